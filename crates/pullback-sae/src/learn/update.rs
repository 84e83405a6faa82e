//! The update of all parameters from one batch.

use pullback_kernels::sparse::{add_scaled, dot};
use pullback_kernels::{Real, vectorized};
use rayon::prelude::*;

use super::{Adam, Batch, Moments, Parameters, parts};

/// Features updated by one task.
const FEATURES: usize = 32;

/// The gradients that are single numbers, for all features.
pub(crate) struct Sums<T> {
    /// Of the encoder bias.
    pub(crate) bias: Vec<T>,
    /// Of what the kind adds.
    pub(crate) extras: Vec<Vec<T>>,
    /// Of the decoder bias: directly, and through the encoder's input where that is `x − b_dec`.
    pub(crate) decoder_bias: Vec<T>,
}

impl<T: Real> Sums<T> {
    pub(crate) fn of(parameters: &Parameters<T>, batch: &Batch<T>) -> Self {
        let m = parameters.features();
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
        if parameters.tied {
            let rows = parameters.encoder.chunks_exact(parameters.d);
            for (row, (slope, ..)) in rows.zip(&numbers) {
                if *slope != T::zero() {
                    for (total, &w) in decoder_bias.iter_mut().zip(row) {
                        *total -= slope.as_f64() * w.as_f64();
                    }
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
}

/// One feature as it is before an update.
struct Feature<'a, T> {
    number: usize,
    encoder: &'a [T],
    decoder: &'a [T],
    bias: T,
    /// Where the length of the decoder row is free: the length, and the ends of the row's parts.
    length: Option<(T, &'a [usize])>,
}

impl<'a, T: Real> Feature<'a, T> {
    fn of(parameters: &'a Parameters<T>, number: usize) -> Self {
        Self {
            number,
            encoder: parameters.encoder_row(number),
            decoder: parameters.decoder_row(number),
            bias: parameters.encoder_bias[number],
            length: parameters
                .lengths
                .as_ref()
                .map(|lengths| (lengths.of_rows[number], &lengths.ends[..])),
        }
    }

    /// Gradients of the decoder row and the encoder row that Adam moves, given that of the bias.
    ///
    /// Where rows have length one, the part of the decoder's along the row is taken out. Where the length `n` is free, the
    /// moved rows are `W = n·D` and `V = E/n` and the bias is `b/n`, and `n` is a function of `W`; so `∂W = ∂D/n + g·∂n/∂W`
    /// with `g = (⟨∂E, E⟩ + ∂b·b − ⟨∂D, D⟩)/n`, and `∂n/∂W` is each part's direction.
    #[inline(always)]
    fn rows(&self, batch: &Batch<T>, by_bias: T, decoder: &mut [T], encoder: &mut [T]) {
        batch.rows(self.number, decoder, encoder);
        let along = dot(decoder, self.decoder);
        let Some((length, ends)) = self.length else {
            add_scaled(decoder, -along, self.decoder);
            return;
        };
        let by_length = (dot(encoder, self.encoder) + by_bias * self.bias - along) / length;
        let inverse = length.recip();
        multiply(decoder, inverse);
        multiply(encoder, length);
        for part in parts(ends) {
            let row = &self.decoder[part.clone()];
            let size = dot(row, row).sqrt();
            if size > T::zero() {
                add_scaled(&mut decoder[part], by_length / size, row);
            }
        }
    }
}

#[inline(always)]
fn multiply<T: Real>(x: &mut [T], factor: T) {
    for x in x {
        *x *= factor;
    }
}

/// The gradients of all rows that Adam moves, `[m, d_out]` and `[m, d]`, and of the biases.
#[cfg(test)]
pub(crate) fn gradients<T: Real>(
    parameters: &Parameters<T>,
    batch: &Batch<T>,
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let sums = Sums::of(parameters, batch);
    let mut decoder = vec![T::zero(); parameters.decoder.len()];
    let mut encoder = vec![T::zero(); parameters.encoder.len()];
    let rows = decoder.chunks_exact_mut(parameters.d_out);
    for (number, (decoder, encoder)) in rows.zip(encoder.chunks_exact_mut(parameters.d)).enumerate()
    {
        Feature::of(parameters, number).rows(batch, sums.bias[number], decoder, encoder);
    }
    let bias = of_moved_bias(parameters, &sums.bias);
    (decoder, encoder, bias)
}

/// Gradients of the biases that Adam moves.
fn of_moved_bias<T: Real>(parameters: &Parameters<T>, bias: &[T]) -> Vec<T> {
    let mut moved = bias.to_vec();
    if let Some(lengths) = &parameters.lengths {
        for (moved, &length) in moved.iter_mut().zip(&lengths.of_rows) {
            *moved *= length;
        }
    }
    moved
}

/// The length of the gradient in all parameters.
fn gradient_norm<T: Real>(
    parameters: &Parameters<T>,
    batch: &Batch<T>,
    sums: &Sums<T>,
    moved_bias: &[T],
) -> f64 {
    let squares: Vec<f64> = (0..parameters.features())
        .into_par_iter()
        .with_min_len(FEATURES)
        .map_init(
            || {
                let zeros = |d| vec![T::zero(); d];
                (zeros(parameters.d_out), zeros(parameters.d))
            },
            |(decoder, encoder), number| {
                vectorized(
                    #[inline(always)]
                    || {
                        let feature = Feature::of(parameters, number);
                        feature.rows(batch, sums.bias[number], decoder, encoder);
                        (dot(decoder, decoder) + dot(encoder, encoder)).as_f64()
                    },
                )
            },
        )
        .collect();
    let others = sums.extras.iter().chain(&batch.skip).flatten();
    let others = others.chain(&sums.decoder_bias).chain(moved_bias);
    let others: f64 = others.map(|x| x.as_f64() * x.as_f64()).sum();
    (squares.iter().sum::<f64>() + others).sqrt()
}

/// What one task updates.
struct Chunk<'a, T> {
    encoder: &'a mut [T],
    decoder: &'a mut [T],
    /// First and second moments.
    of_encoder: (&'a mut [T], &'a mut [T]),
    of_decoder: (&'a mut [T], &'a mut [T]),
    /// Empty where lengths are not free.
    lengths: &'a mut [T],
}

impl<T: Real> Chunk<'_, T> {
    /// Updates the features of the chunk, the first of which is `first`.
    #[inline(always)]
    fn update(
        &mut self,
        first: usize,
        (batch, sums, biases): (&Batch<T>, &Sums<T>, &[T]),
        (d, d_out, ends): (usize, usize, &[usize]),
        adam: Adam<T>,
        (by_decoder, by_encoder): (&mut [T], &mut [T]),
    ) {
        for place in 0..self.encoder.len() / d {
            let number = first + place;
            let encoder = &mut self.encoder[place * d..(place + 1) * d];
            let span = place * d_out..(place + 1) * d_out;
            let decoder = &mut self.decoder[span.clone()];
            let length = self.lengths.get(place).copied();
            let feature = Feature {
                number,
                encoder,
                decoder,
                bias: biases[number],
                length: length.map(|length| (length, ends)),
            };
            feature.rows(batch, sums.bias[number], by_decoder, by_encoder);
            if let Some(length) = length {
                let inverse = length.recip();
                multiply(decoder, length);
                multiply(encoder, inverse);
            }
            let moments = &mut self.of_decoder;
            adam.update(
                decoder,
                by_decoder,
                &mut moments.0[span.clone()],
                &mut moments.1[span],
            );
            let span = place * d..(place + 1) * d;
            let moments = &mut self.of_encoder;
            adam.update(
                encoder,
                by_encoder,
                &mut moments.0[span.clone()],
                &mut moments.1[span],
            );
            let size = |row: &[T]| dot(row, row).sqrt();
            let now = if length.is_some() {
                let lengths = parts(ends).map(|part| size(&decoder[part]));
                lengths.fold(T::zero(), |sum, length| sum + length)
            } else {
                size(decoder)
            };
            if now > T::zero() {
                let inverse = now.recip();
                multiply(decoder, inverse);
            }
            if length.is_some() {
                multiply(encoder, now);
                self.lengths[place] = now;
            }
        }
    }
}

/// Updates all parameters from one batch. Where decoder rows have length one, the part of a row's gradient along the row is
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
    let by_bias = of_moved_bias(parameters, &sums.bias);
    let adam = match clip {
        Some(most) => {
            let norm = gradient_norm(parameters, batch, &sums, &by_bias);
            adam.scaled(if norm > most { most / norm } else { 1.0 })
        }
        None => adam,
    };
    let (d, d_out) = (parameters.d, parameters.d_out);
    let Moments { first, second } = moments;
    let (ends, mut lengths) = match parameters.lengths.take() {
        Some(lengths) => (lengths.ends, lengths.of_rows),
        None => (Vec::new(), Vec::new()),
    };
    let before = lengths.clone();
    let mut of_lengths: Vec<&mut [T]> = lengths.chunks_mut(FEATURES).collect();
    of_lengths.resize_with(parameters.features().div_ceil(FEATURES), Default::default);
    let biases = &parameters.encoder_bias;
    let encoders = parameters.encoder.par_chunks_mut(FEATURES * d);
    let decoders = parameters.decoder.par_chunks_mut(FEATURES * d_out);
    let of_encoders = first
        .encoder
        .par_chunks_mut(FEATURES * d)
        .zip(second.encoder.par_chunks_mut(FEATURES * d));
    let of_decoders = first
        .decoder
        .par_chunks_mut(FEATURES * d_out)
        .zip(second.decoder.par_chunks_mut(FEATURES * d_out));
    (
        encoders.zip(decoders),
        of_encoders.zip(of_decoders),
        of_lengths,
    )
        .into_par_iter()
        .enumerate()
        .for_each_init(
            || (vec![T::zero(); d_out], vec![T::zero(); d]),
            |(by_decoder, by_encoder), (number, (rows, of_rows, lengths))| {
                let mut chunk = Chunk {
                    encoder: rows.0,
                    decoder: rows.1,
                    of_encoder: of_rows.0,
                    of_decoder: of_rows.1,
                    lengths,
                };
                vectorized(
                    #[inline(always)]
                    || {
                        chunk.update(
                            number * FEATURES,
                            (batch, &sums, biases),
                            (d, d_out, &ends),
                            adam,
                            (by_decoder, by_encoder),
                        );
                    },
                );
            },
        );
    for (bias, &length) in parameters.encoder_bias.iter_mut().zip(&before) {
        *bias *= length.recip();
    }
    adam.update(
        &mut parameters.encoder_bias,
        &by_bias,
        &mut first.encoder_bias,
        &mut second.encoder_bias,
    );
    for (bias, &length) in parameters.encoder_bias.iter_mut().zip(&lengths) {
        *bias *= length;
    }
    if !lengths.is_empty() {
        parameters.lengths = Some(super::Lengths {
            of_rows: lengths,
            ends,
        });
    }
    adam.update(
        &mut parameters.decoder_bias,
        &sums.decoder_bias,
        &mut first.decoder_bias,
        &mut second.decoder_bias,
    );
    if let (Some(skip), Some(by_skip), Some(first), Some(second)) = (
        &mut parameters.skip,
        &batch.skip,
        &mut first.skip,
        &mut second.skip,
    ) {
        adam.update(skip, by_skip, first, second);
    }
    for (i, extra) in parameters.extras.iter_mut().enumerate() {
        adam.update(
            extra,
            &sums.extras[i],
            &mut first.extras[i],
            &mut second.extras[i],
        );
    }
}
