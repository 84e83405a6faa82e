//! One training step: losses and gradients of a TopK autoencoder, and the update, feature by feature.
//!
//! Nothing of size batch × features is ever made after the selection: the gradients of a feature's two rows
//! are summed over the tokens in which it is active and used for the update at once, while they are in
//! cache.

use pullback_kernels::sparse::{
    ByFeature, Candidates, Encoded, SparseCodes, add_scaled, decode, dot, dots_with_rows,
    encode_top_k,
};
use pullback_kernels::{Real, vectorized};
use rayon::prelude::*;

/// Parameters in training, in normalised units; both matrices one row a feature.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameters<T> {
    pub(crate) d: usize,
    pub(crate) encoder: Vec<T>,
    pub(crate) encoder_bias: Vec<T>,
    pub(crate) decoder: Vec<T>,
    pub(crate) decoder_bias: Vec<T>,
}

/// What the loss hangs on beside parameters and batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Objective<'a> {
    pub(crate) k: usize,
    /// Variance of the activations about their mean, summed over coordinates: the unit of the loss.
    pub(crate) variance: f64,
    /// Weight of the auxiliary loss.
    pub(crate) aux_coefficient: f64,
    /// Features a token that the auxiliary loss uses, at most.
    pub(crate) aux_k: usize,
    /// Dead features, ascending.
    pub(crate) dead: &'a [u32],
}

/// Everything of one batch that the update needs.
pub(crate) struct Batch<T> {
    pub(crate) encoded: Encoded<T>,
    /// `Σ‖x − x̂‖² / (tokens · variance)`.
    pub(crate) loss: f64,
    /// The auxiliary loss, its coefficient not included.
    pub(crate) aux_loss: f64,
    centred: Vec<T>,
    main: Part<T>,
    aux: Option<Part<T>>,
}

/// One of the two sums of codes × rows in the loss.
struct Part<T> {
    codes: SparseCodes<T>,
    by_feature: ByFeature,
    /// Gradient of the loss in the reconstruction, `[n, d]`.
    slope: Vec<T>,
    /// Gradient of the loss in each active code.
    code_slopes: Vec<T>,
}

impl<T: Real> Part<T> {
    fn new(codes: SparseCodes<T>, slope: Vec<T>, parameters: &Parameters<T>) -> Self {
        Self {
            by_feature: codes.by_feature(parameters.encoder_bias.len()),
            code_slopes: dots_with_rows(&codes, &parameters.decoder, &slope),
            codes,
            slope,
        }
    }

    /// Adds this part's gradients of one feature: of its decoder row, its encoder row and its bias.
    #[inline(always)]
    fn add_gradients(
        &self,
        feature: usize,
        centred: &[T],
        decoder: &mut [T],
        encoder: &mut [T],
        bias: &mut T,
    ) {
        let d = decoder.len();
        let (tokens, entries) = self.by_feature.feature(feature);
        for (&token, &entry) in tokens.iter().zip(entries) {
            let span = token as usize * d..(token as usize + 1) * d;
            let code_slope = self.code_slopes[entry as usize];
            add_scaled(
                decoder,
                self.codes.values()[entry as usize],
                &self.slope[span.clone()],
            );
            add_scaled(encoder, code_slope, &centred[span]);
            *bias += code_slope;
        }
    }
}

/// Losses of a batch `x [n, d]` and what their gradients follow from.
///
/// The loss is `FVU + aux_coefficient · aux`, with the fraction of variance unexplained
/// `Σ‖x − x̂‖²/(n·variance)` and, where features are dead, `aux = Σ‖e − ê‖² / Σ‖e − mean e‖²` for the error
/// `e = x − x̂` (not differentiated) and its reconstruction `ê` from the largest dead features (arXiv
/// 2406.04093, appendix A.2; normalised as in `OpenAI`'s and `dictionary_learning`'s code).
pub(crate) fn forward<T: Real>(
    parameters: &Parameters<T>,
    x: &[T],
    objective: &Objective<'_>,
) -> Batch<T> {
    let d = parameters.d;
    let n = x.len() / d;
    let mut centred = x.to_vec();
    for row in centred.chunks_exact_mut(d) {
        for (x, &b) in row.iter_mut().zip(&parameters.decoder_bias) {
            *x -= b;
        }
    }
    let candidates =
        (!objective.dead.is_empty() && objective.aux_coefficient > 0.0).then_some(Candidates {
            features: objective.dead,
            k: objective.aux_k,
        });
    let encoded = encode_top_k(
        &centred,
        &parameters.encoder,
        &parameters.encoder_bias,
        objective.k,
        candidates,
    );
    let mut slope = decode(
        &encoded.codes,
        &parameters.decoder,
        &parameters.decoder_bias,
    );
    // From here on `slope` is x̂ − x, then its multiple.
    let squares = chunked_sum(&mut slope, x, d, |difference, x| {
        *difference -= x;
        *difference * *difference
    });
    let loss = squares / (n as f64 * objective.variance);

    let mut aux_loss = 0.0;
    let aux = encoded.among.as_ref().map(|codes| {
        let zero = vec![T::zero(); d];
        let mut difference = decode(codes, &parameters.decoder, &zero);
        let mut mean = vec![0.0; d];
        for row in slope.chunks_exact(d) {
            for (mean, &x) in mean.iter_mut().zip(row) {
                *mean += x.as_f64() / n as f64;
            }
        }
        let spread = squares - n as f64 * mean.iter().map(|m| m * m).sum::<f64>();
        let spread = spread.max(f64::MIN_POSITIVE);
        // ê − e = ê + (x̂ − x).
        let squares = chunked_sum(&mut difference, &slope, d, |difference, error| {
            *difference += error;
            *difference * *difference
        });
        aux_loss = squares / spread;
        scale(
            &mut difference,
            T::of(2.0 * objective.aux_coefficient / spread),
        );
        Part::new(codes.clone(), difference, parameters)
    });
    scale(&mut slope, T::of(2.0 / (n as f64 * objective.variance)));
    let main = Part::new(encoded.codes.clone(), slope, parameters);
    Batch {
        encoded,
        loss,
        aux_loss,
        centred,
        main,
        aux,
    }
}

/// Maps pairs of elements in place and sums what the map returns, in a fixed order.
fn chunked_sum<T: Real>(
    left: &mut [T],
    right: &[T],
    d: usize,
    map: impl Fn(&mut T, T) -> T + Sync,
) -> f64 {
    let parts: Vec<f64> = left
        .par_chunks_mut(256 * d)
        .zip(right.par_chunks(256 * d))
        .map(|(left, right)| {
            vectorized(
                #[inline(always)]
                || {
                    let mut total = 0.0;
                    for (left, right) in left.chunks_mut(d).zip(right.chunks(d)) {
                        let mut sum = T::zero();
                        for (left, &right) in left.iter_mut().zip(right) {
                            sum += map(left, right);
                        }
                        total += sum.as_f64();
                    }
                    total
                },
            )
        })
        .collect();
    parts.iter().sum()
}

fn scale<T: Real>(x: &mut [T], factor: T) {
    x.par_chunks_mut(1 << 15).for_each(|x| {
        for x in x {
            *x *= factor;
        }
    });
}

impl<T: Real> Batch<T> {
    /// Gradients of one feature's decoder row, encoder row and bias.
    #[inline(always)]
    pub(crate) fn feature_gradients(
        &self,
        feature: usize,
        decoder: &mut [T],
        encoder: &mut [T],
    ) -> T {
        decoder.fill(T::zero());
        encoder.fill(T::zero());
        let mut bias = T::zero();
        self.main
            .add_gradients(feature, &self.centred, decoder, encoder, &mut bias);
        if let Some(aux) = &self.aux {
            aux.add_gradients(feature, &self.centred, decoder, encoder, &mut bias);
        }
        bias
    }

    /// Gradient of the decoder bias: directly, and through the encoder's input `x − b_dec`.
    pub(crate) fn decoder_bias_gradient(
        &self,
        parameters: &Parameters<T>,
        bias_gradients: &[T],
    ) -> Vec<T> {
        let d = parameters.d;
        let mut total = vec![0.0; d];
        for row in self.main.slope.chunks_exact(d) {
            for (total, &x) in total.iter_mut().zip(row) {
                *total += x.as_f64();
            }
        }
        for (row, &slope) in parameters.encoder.chunks_exact(d).zip(bias_gradients) {
            for (total, &w) in total.iter_mut().zip(row) {
                *total -= slope.as_f64() * w.as_f64();
            }
        }
        total.into_iter().map(T::of).collect()
    }
}

/// First and second moments of Adam, laid out as the parameters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Moments<T> {
    pub(crate) first: Parameters<T>,
    pub(crate) second: Parameters<T>,
}

impl<T: Real> Moments<T> {
    pub(crate) fn zero(like: &Parameters<T>) -> Self {
        let zero = Parameters {
            d: like.d,
            encoder: vec![T::zero(); like.encoder.len()],
            encoder_bias: vec![T::zero(); like.encoder_bias.len()],
            decoder: vec![T::zero(); like.decoder.len()],
            decoder_bias: vec![T::zero(); like.decoder_bias.len()],
        };
        Self {
            first: zero.clone(),
            second: zero,
        }
    }
}

/// Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) at one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adam<T> {
    rate: T,
    beta1: T,
    beta2: T,
    root_correction: T,
    eps: T,
}

impl<T: Real> Adam<T> {
    /// At step `step`, counted from one.
    pub(crate) fn at(step: usize, lr: f64) -> Self {
        let (beta1, beta2): (f64, f64) = (0.9, 0.999);
        Self {
            rate: T::of(lr / (1.0 - beta1.powi(step as i32))),
            beta1: T::of(beta1),
            beta2: T::of(beta2),
            root_correction: T::of((1.0 - beta2.powi(step as i32)).sqrt().recip()),
            eps: T::of(1e-8),
        }
    }

    #[inline(always)]
    fn update(&self, parameters: &mut [T], gradient: &[T], first: &mut [T], second: &mut [T]) {
        let n = parameters.len();
        let (gradient, first, second) = (&gradient[..n], &mut first[..n], &mut second[..n]);
        for i in 0..n {
            let g = gradient[i];
            first[i] = self.beta1 * first[i] + (T::one() - self.beta1) * g;
            second[i] = self.beta2 * second[i] + (T::one() - self.beta2) * g * g;
            parameters[i] -=
                self.rate * first[i] / (second[i].sqrt() * self.root_correction + self.eps);
        }
    }
}

/// Features updated by one task.
const FEATURES: usize = 32;

/// Updates all parameters from one batch. The part of a decoder row's gradient along the row is taken out,
/// and the row is brought back to length one after the step.
pub(crate) fn update<T: Real>(
    parameters: &mut Parameters<T>,
    moments: &mut Moments<T>,
    batch: &Batch<T>,
    adam: &Adam<T>,
) {
    let d = parameters.d;
    let m = parameters.encoder_bias.len();
    // The encoder is read for the gradient of the decoder bias before it moves.
    let mut bias_gradients = vec![T::zero(); m];
    bias_gradients
        .par_iter_mut()
        .enumerate()
        .for_each(|(feature, out)| {
            let mut sum = T::zero();
            for part in std::iter::once(&batch.main).chain(&batch.aux) {
                for &entry in part.by_feature.feature(feature).1 {
                    sum += part.code_slopes[entry as usize];
                }
            }
            *out = sum;
        });
    let decoder_bias_gradient = batch.decoder_bias_gradient(parameters, &bias_gradients);

    let width = FEATURES * d;
    let Moments { first, second } = moments;
    let encoders = parameters.encoder.par_chunks_mut(width);
    let decoders = parameters.decoder.par_chunks_mut(width);
    let encoder_moments = first
        .encoder
        .par_chunks_mut(width)
        .zip(second.encoder.par_chunks_mut(width));
    let decoder_moments = first
        .decoder
        .par_chunks_mut(width)
        .zip(second.decoder.par_chunks_mut(width));
    encoders
        .zip(decoders)
        .zip(encoder_moments.zip(decoder_moments))
        .enumerate()
        .for_each_init(
            || (vec![T::zero(); d], vec![T::zero(); d]),
            |(decoder_gradient, encoder_gradient), (chunk, ((encoders, decoders), (em, dm)))| {
                vectorized(
                    #[inline(always)]
                    || {
                        for place in 0..encoders.len() / d {
                            let row = place * d..(place + 1) * d;
                            let feature = chunk * FEATURES + place;
                            batch.feature_gradients(feature, decoder_gradient, encoder_gradient);
                            let decoder = &mut decoders[row.clone()];
                            let along = dot(decoder_gradient, decoder);
                            add_scaled(decoder_gradient, -along, decoder);
                            let first = &mut dm.0[row.clone()];
                            adam.update(decoder, decoder_gradient, first, &mut dm.1[row.clone()]);
                            let length = dot(decoder, decoder).sqrt();
                            if length > T::zero() {
                                let inverse = length.recip();
                                for x in decoder.iter_mut() {
                                    *x *= inverse;
                                }
                            }
                            let first = &mut em.0[row.clone()];
                            adam.update(
                                &mut encoders[row.clone()],
                                encoder_gradient,
                                first,
                                &mut em.1[row],
                            );
                        }
                    },
                );
            },
        );
    let moments = (&mut first.encoder_bias, &mut second.encoder_bias);
    adam.update(
        &mut parameters.encoder_bias,
        &bias_gradients,
        moments.0,
        moments.1,
    );
    let moments = (&mut first.decoder_bias, &mut second.decoder_bias);
    adam.update(
        &mut parameters.decoder_bias,
        &decoder_bias_gradient,
        moments.0,
        moments.1,
    );
}

#[cfg(test)]
mod tests {
    use super::{Adam, Moments, Objective, Parameters, forward, update};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn example() -> (Parameters<f64>, Vec<f64>) {
        let (m, d, n) = (24, 6, 10);
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut random = |count: usize| -> Vec<f64> {
            (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
        };
        let parameters = Parameters {
            d,
            encoder: random(m * d),
            encoder_bias: random(m),
            decoder: random(m * d),
            decoder_bias: random(d),
        };
        (parameters, random(n * d))
    }

    /// The loss whose gradient is taken: the auxiliary target and its spread stay as they are at `at`.
    fn loss_with_fixed_target(
        moved: &Parameters<f64>,
        at: &Parameters<f64>,
        x: &[f64],
        objective: &Objective<'_>,
    ) -> f64 {
        let d = at.d;
        let n = x.len() / d;
        let dense = |parameters: &Parameters<f64>,
                     x: &[f64],
                     among: &[u32],
                     k: usize,
                     bias: bool|
         -> Vec<f64> {
            let centred: Vec<f64> = x
                .iter()
                .zip(&parameters.decoder_bias)
                .map(|(x, b)| x - b)
                .collect();
            let mut pre: Vec<(f64, u32)> = among
                .iter()
                .map(|&i| {
                    let row = &parameters.encoder[i as usize * d..(i as usize + 1) * d];
                    let sum: f64 = row.iter().zip(&centred).map(|(w, x)| w * x).sum();
                    (sum + parameters.encoder_bias[i as usize], i)
                })
                .filter(|(value, _)| *value > 0.0)
                .collect();
            pre.sort_by(|a, b| b.0.total_cmp(&a.0));
            pre.truncate(k);
            let mut out = if bias {
                parameters.decoder_bias.clone()
            } else {
                vec![0.0; d]
            };
            for (value, i) in pre {
                for (out, w) in out.iter_mut().zip(&parameters.decoder[i as usize * d..]) {
                    *out += value * w;
                }
            }
            out
        };
        let all: Vec<u32> = (0..at.encoder_bias.len() as u32).collect();
        let errors: Vec<Vec<f64>> = x
            .chunks_exact(d)
            .map(|x| {
                let y = dense(at, x, &all, objective.k, true);
                x.iter().zip(y).map(|(x, y)| x - y).collect()
            })
            .collect();
        let mean: Vec<f64> = (0..d)
            .map(|j| errors.iter().map(|e| e[j]).sum::<f64>() / n as f64)
            .collect();
        let spread: f64 = errors
            .iter()
            .flat_map(|e| e.iter().zip(&mean).map(|(e, m)| (e - m).powi(2)))
            .sum();
        let (mut main, mut aux) = (0.0, 0.0);
        for (x, error) in x.chunks_exact(d).zip(&errors) {
            let y = dense(moved, x, &all, objective.k, true);
            main += x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
            let y = dense(moved, x, objective.dead, objective.aux_k, false);
            aux += error
                .iter()
                .zip(y)
                .map(|(e, y)| (e - y).powi(2))
                .sum::<f64>();
        }
        main / (n as f64 * objective.variance) + objective.aux_coefficient * aux / spread
    }

    #[test]
    fn losses_and_gradients_agree_with_a_dense_oracle_and_finite_differences() {
        let (parameters, x) = example();
        let dead = [1, 2, 5, 9, 14, 20];
        let objective = Objective {
            k: 4,
            variance: 1.7,
            aux_coefficient: 0.3,
            aux_k: 3,
            dead: &dead,
        };
        let batch = forward(&parameters, &x, &objective);
        let expected = loss_with_fixed_target(&parameters, &parameters, &x, &objective);
        assert!((batch.loss + 0.3 * batch.aux_loss - expected).abs() < 1e-12);
        assert!(batch.aux_loss > 0.0);

        let (d, m) = (parameters.d, parameters.encoder_bias.len());
        let (mut decoder, mut encoder) = (vec![0.0; d], vec![0.0; d]);
        let step = 1e-6;
        let slope = |change: &dyn Fn(&mut Parameters<f64>, f64)| {
            let at = |by: f64| {
                let mut moved = parameters.clone();
                change(&mut moved, by);
                loss_with_fixed_target(&moved, &parameters, &x, &objective)
            };
            (at(step) - at(-step)) / (2.0 * step)
        };
        let mut biases = vec![0.0; m];
        let mut largest = 0.0_f64;
        for i in 0..m {
            biases[i] = batch.feature_gradients(i, &mut decoder, &mut encoder);
            for j in 0..d {
                let at = i * d + j;
                assert!(
                    (slope(&|p, by| p.decoder[at] += by) - decoder[j]).abs() < 1e-7,
                    "decoder {i} {j}"
                );
                assert!(
                    (slope(&|p, by| p.encoder[at] += by) - encoder[j]).abs() < 1e-7,
                    "encoder {i} {j}"
                );
                largest = largest.max(encoder[j].abs());
            }
            assert!(
                (slope(&|p, by| p.encoder_bias[i] += by) - biases[i]).abs() < 1e-7,
                "bias {i}"
            );
        }
        assert!(largest > 1e-2);
        let bias = batch.decoder_bias_gradient(&parameters, &biases);
        for j in 0..d {
            let measured = slope(&|p, by| p.decoder_bias[j] += by);
            // The auxiliary part reads x − b_dec as well.
            assert!(
                (measured - bias[j]).abs() < 1e-7,
                "decoder bias {j}: {measured} against {}",
                bias[j]
            );
        }
    }

    #[test]
    fn an_update_is_one_step_of_adam_with_unit_decoder_rows() {
        let (mut parameters, x) = example();
        for row in parameters.decoder.chunks_exact_mut(6) {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            for x in row.iter_mut() {
                *x /= length;
            }
        }
        let objective = Objective {
            k: 4,
            variance: 1.7,
            aux_coefficient: 0.0,
            aux_k: 3,
            dead: &[],
        };
        let batch = forward(&parameters, &x, &objective);
        let before = parameters.clone();
        let mut moments = Moments::zero(&parameters);
        update(&mut parameters, &mut moments, &batch, &Adam::at(1, 0.01));
        let (mut decoder, mut encoder) = (vec![0.0; 6], vec![0.0; 6]);
        for i in 0..24 {
            batch.feature_gradients(i, &mut decoder, &mut encoder);
            let row = &parameters.decoder[i * 6..(i + 1) * 6];
            assert!((row.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-12);
            for j in 0..6 {
                // The first step of Adam moves every coordinate by the rate, against its gradient's sign.
                let moved = parameters.encoder[i * 6 + j] - before.encoder[i * 6 + j];
                let expected = if encoder[j] == 0.0 {
                    0.0
                } else {
                    -0.01 * encoder[j].signum()
                };
                assert!((moved - expected).abs() < 1e-6, "{moved} {expected}");
            }
        }
        let after = forward(&parameters, &x, &objective);
        assert!(after.loss < batch.loss);
    }
}
