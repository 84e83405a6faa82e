//! Where training starts: the scale of the input, the parameters.

use pullback_activations::ActivationStore;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainConfig;
use crate::kinds::Kind;
use crate::learn::Parameters;

/// `sqrt(d) / mean ‖x‖`, by which activations are multiplied in training (`expected_average_only_in` of
/// SAELens).
pub(super) fn input_scale(store: &ActivationStore, sample: &[u32]) -> f64 {
    let total: f64 = sample
        .iter()
        .map(|&row| {
            let squares: f64 = store
                .row(row as usize)
                .iter()
                .map(|&x| f64::from(x) * f64::from(x))
                .sum();
            squares.sqrt()
        })
        .sum();
    (store.info().d as f64).sqrt() * sample.len() as f64 / total
}

/// Variance about the mean, summed over coordinates.
pub(super) fn variance(store: &ActivationStore, sample: &[u32]) -> f64 {
    let mut sum = vec![0.0_f64; store.info().d];
    let mut squares = 0.0;
    for &row in sample {
        for (sum, &x) in sum.iter_mut().zip(store.row(row as usize)) {
            *sum += f64::from(x);
            squares += f64::from(x) * f64::from(x);
        }
    }
    let n = sample.len() as f64;
    squares / n - sum.iter().map(|sum| (sum / n) * (sum / n)).sum::<f64>()
}

/// The start: unit decoder rows in random directions, the encoder their copy, the decoder bias the
/// geometric median of a sample.
pub(super) fn initial(
    store: &ActivationStore,
    sample: &[u32],
    scale: f64,
    config: &TrainConfig,
    kind: &dyn Kind<f32>,
) -> Parameters<f32> {
    let d = store.info().d;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut decoder = vec![0.0_f32; config.features * d];
    for row in decoder.chunks_exact_mut(d) {
        for x in row.iter_mut() {
            *x = rng.random_range(-1.0..1.0);
        }
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        for x in row.iter_mut() {
            *x /= length;
        }
    }
    let mut median = geometric_median(store, &sample[..sample.len().min(4096)]);
    for x in &mut median {
        *x *= scale;
    }
    Parameters {
        d,
        encoder: decoder.clone(),
        encoder_bias: vec![0.0; config.features],
        decoder,
        decoder_bias: median.into_iter().map(|x| x as f32).collect(),
        extras: kind.extras(config.features),
    }
}

/// The point with the least sum of distances to the rows, by Weiszfeld's iteration.
fn geometric_median(store: &ActivationStore, sample: &[u32]) -> Vec<f64> {
    let d = store.info().d;
    let mut at = vec![0.0; d];
    for &row in sample {
        for (at, &x) in at.iter_mut().zip(store.row(row as usize)) {
            *at += f64::from(x) / sample.len() as f64;
        }
    }
    for _ in 0..100 {
        let mut next = vec![0.0; d];
        let mut total = 0.0;
        for &row in sample {
            let x = store.row(row as usize);
            let squares: f64 = x
                .iter()
                .zip(&at)
                .map(|(&x, a)| (f64::from(x) - a).powi(2))
                .sum();
            let weight = squares.sqrt().max(1e-12).recip();
            total += weight;
            for (next, &x) in next.iter_mut().zip(x) {
                *next += weight * f64::from(x);
            }
        }
        let mut moved = 0.0;
        let mut length = 0.0;
        for (at, next) in at.iter_mut().zip(next) {
            let next = next / total;
            moved += (next - *at).powi(2);
            length += next * next;
            *at = next;
        }
        if moved <= 1e-10 * length {
            break;
        }
    }
    at
}
