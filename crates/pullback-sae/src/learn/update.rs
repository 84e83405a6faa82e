//! The update of all parameters from one batch.

use pullback_kernels::sparse::{add_scaled, dot};
use pullback_kernels::{Real, vectorized};
use rayon::prelude::*;

use super::{Adam, Batch, Moments, Parameters};

/// Features updated by one task.
const FEATURES: usize = 32;

/// The gradients that are single numbers, for all features.
pub(crate) struct Sums<T> {
    /// Of the encoder bias.
    pub(crate) bias: Vec<T>,
    /// Of what the kind adds.
    pub(crate) extras: Vec<Vec<T>>,
    /// Of the decoder bias: directly, and through the encoder's input `x − b_dec`.
    pub(crate) decoder_bias: Vec<T>,
}

impl<T: Real> Sums<T> {
    pub(crate) fn of(parameters: &Parameters<T>, batch: &Batch<T>) -> Self {
        let (d, m) = (parameters.d, parameters.features());
        let numbers: Vec<(T, T, Vec<T>)> = (0..m)
            .into_par_iter()
            .with_min_len(256)
            .map(|feature| {
                let mut extras = vec![T::zero(); parameters.extras.len()];
                let (sum, bias) = batch.numbers(feature, &mut extras);
                (sum, bias, extras)
            })
            .collect();
        let mut decoder_bias = batch.bias_slope.clone();
        for (row, (slope, ..)) in parameters.encoder.chunks_exact(d).zip(&numbers) {
            if *slope != T::zero() {
                for (total, &w) in decoder_bias.iter_mut().zip(row) {
                    *total -= slope.as_f64() * w.as_f64();
                }
            }
        }
        let extras = (0..parameters.extras.len())
            .map(|i| numbers.iter().map(|(_, _, extras)| extras[i]).collect())
            .collect();
        Self {
            bias: numbers.iter().map(|(_, bias, _)| *bias).collect(),
            extras,
            decoder_bias: decoder_bias.into_iter().map(T::of).collect(),
        }
    }

    /// The sum of the squares.
    fn squares(&self) -> f64 {
        let all = self
            .extras
            .iter()
            .chain([&self.bias, &self.decoder_bias])
            .flatten();
        all.map(|x| x.as_f64() * x.as_f64()).sum()
    }
}

/// Gradients of a feature's two rows; the part of the decoder's along the row is taken out.
#[inline(always)]
fn rows<T: Real>(
    batch: &Batch<T>,
    feature: usize,
    row: &[T],
    decoder: &mut [T],
    encoder: &mut [T],
) {
    batch.rows(feature, decoder, encoder);
    let along = dot(decoder, row);
    add_scaled(decoder, -along, row);
}

/// The length of the gradient in all parameters.
fn gradient_norm<T: Real>(parameters: &Parameters<T>, batch: &Batch<T>, sums: &Sums<T>) -> f64 {
    let d = parameters.d;
    let squares: Vec<f64> = (0..parameters.features())
        .into_par_iter()
        .with_min_len(FEATURES)
        .map_init(
            || (vec![T::zero(); d], vec![T::zero(); d]),
            |(decoder, encoder), feature| {
                vectorized(
                    #[inline(always)]
                    || {
                        let row = parameters.decoder_row(feature);
                        rows(batch, feature, row, decoder, encoder);
                        (dot(decoder, decoder) + dot(encoder, encoder)).as_f64()
                    },
                )
            },
        )
        .collect();
    (squares.iter().sum::<f64>() + sums.squares()).sqrt()
}

/// Updates all parameters from one batch. Decoder rows have length one: the part of a row's gradient along the row is
/// taken out, and the row is brought back to length one after the step. A gradient longer than `clip` is shortened to it.
pub(crate) fn update<T: Real>(
    parameters: &mut Parameters<T>,
    moments: &mut Moments<T>,
    batch: &Batch<T>,
    adam: Adam<T>,
    clip: Option<f64>,
) {
    // The encoder is read for the gradient of the decoder bias before it moves.
    let sums = Sums::of(parameters, batch);
    let adam = match clip {
        Some(most) => {
            let norm = gradient_norm(parameters, batch, &sums);
            adam.scaled(if norm > most { most / norm } else { 1.0 })
        }
        None => adam,
    };
    let d = parameters.d;
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
                            let decoder = &mut decoders[row.clone()];
                            rows(batch, feature, decoder, decoder_gradient, encoder_gradient);
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
    adam.update(
        &mut parameters.encoder_bias,
        &sums.bias,
        &mut first.encoder_bias,
        &mut second.encoder_bias,
    );
    adam.update(
        &mut parameters.decoder_bias,
        &sums.decoder_bias,
        &mut first.decoder_bias,
        &mut second.decoder_bias,
    );
    for (i, extra) in parameters.extras.iter_mut().enumerate() {
        adam.update(
            extra,
            &sums.extras[i],
            &mut first.extras[i],
            &mut second.extras[i],
        );
    }
}
