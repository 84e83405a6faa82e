//! `AdamW` over all weights of a model.

use pullback_model::WeightName;
use rayon::prelude::*;

/// Gradients longer than this are shortened to it.
const LONGEST: f64 = 1.0;
const BETAS: (f64, f64) = (0.9, 0.99);
const EPS: f64 = 1e-8;

/// A weight with its moments.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Learned {
    pub(super) name: WeightName,
    pub(super) values: Vec<f32>,
    pub(super) first: Vec<f32>,
    pub(super) second: Vec<f32>,
    /// Whether it is a matrix, which decays.
    pub(super) decays: bool,
}

impl Learned {
    pub(super) fn new(name: WeightName, values: Vec<f32>) -> Self {
        let zeros = vec![0.0; values.len()];
        let decays =
            name.is_block_matrix() || matches!(name, WeightName::Embed | WeightName::Unembed);
        Self {
            name,
            values,
            first: zeros.clone(),
            second: zeros,
            decays,
        }
    }
}

/// One step of `AdamW` (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, with the decay scaled by the rate), with the
/// gradient shortened to length one where it is longer. `step` is counted from zero.
pub(super) fn adam_w(
    weights: &mut [Learned],
    gradients: &[Vec<f32>],
    (step, lr, decay): (usize, f64, f64),
) {
    let squares = |g: &Vec<f32>| g.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    let length = gradients.iter().map(squares).sum::<f64>().sqrt();
    let shorten = (LONGEST / length.max(LONGEST)) as f32;
    let t = step as i32 + 1;
    let (beta1, beta2) = BETAS;
    // The bias corrections, gathered: m̂/(√v̂ + ε) = m/(√v·c + ε') with one factor before it.
    let correct2 = (1.0 - beta2.powi(t)).sqrt();
    let rate = (lr * correct2 / (1.0 - beta1.powi(t))) as f32;
    let eps = (EPS * correct2) as f32;
    let (beta1, beta2) = (beta1 as f32, beta2 as f32);
    for (weight, gradient) in weights.iter_mut().zip(gradients) {
        let keep = if weight.decays {
            (1.0 - lr * decay) as f32
        } else {
            1.0
        };
        let moments = weight.first.par_iter_mut().zip(&mut weight.second);
        weight
            .values
            .par_iter_mut()
            .zip(moments)
            .zip(gradient)
            .with_min_len(1 << 13)
            .for_each(|((x, (first, second)), g)| {
                let g = g * shorten;
                *first = beta1 * *first + (1.0 - beta1) * g;
                *second = beta2 * *second + (1.0 - beta2) * g * g;
                *x = keep * *x - rate * *first / (second.sqrt() + eps);
            });
    }
}

#[cfg(test)]
mod tests {
    use super::{Learned, adam_w};
    use pullback_model::WeightName;

    /// The algorithm as the paper writes it, in f64.
    #[test]
    fn steps_are_those_of_the_paper() {
        let start = [0.5_f32, -2.0, 0.01];
        let gradients = [[0.3_f32, -0.1, 0.0], [0.02, 0.4, -0.5], [2.0, -2.0, 1.0]];
        let (lr, decay) = (0.05, 0.2);
        let mut weights = [
            Learned::new(WeightName::Q(0), start.to_vec()),
            Learned::new(WeightName::FinalNorm, start.to_vec()),
        ];
        let mut oracle = [start.map(f64::from); 2];
        let (mut m, mut v) = ([0.0_f64; 3], [0.0_f64; 3]);
        for (step, gradient) in gradients.iter().enumerate() {
            adam_w(
                &mut weights,
                &[gradient.to_vec(), gradient.to_vec()],
                (step, lr, decay),
            );
            let both = 2.0 * gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
            let short = 1.0 / both.sqrt().max(1.0);
            for i in 0..3 {
                let g = f64::from(gradient[i]) * short;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.99 * v[i] + 0.01 * g * g;
                let t = step as i32 + 1;
                let hats = (
                    m[i] / (1.0 - 0.9_f64.powi(t)),
                    v[i] / (1.0 - 0.99_f64.powi(t)),
                );
                let moved = lr * hats.0 / (hats.1.sqrt() + 1e-8);
                oracle[0][i] = oracle[0][i] * (1.0 - lr * decay) - moved;
                oracle[1][i] -= moved;
            }
        }
        for (weight, oracle) in weights.iter().zip(oracle) {
            for (x, expected) in weight.values.iter().zip(oracle) {
                assert!((f64::from(*x) - expected).abs() < 1e-5, "{x} {expected}");
            }
        }
        assert_ne!(weights[0].values, weights[1].values);
    }
}
