//! Losses of one batch and what their gradients follow from.
//!
//! Where codes are sparse, nothing of size batch × features is made after the selection: the gradients of a feature's
//! two rows are summed over the tokens in which it is active, when it is updated, while they are in cache.

use pullback_kernels::sparse::{ByFeature, SparseCodes, add_scaled};
use pullback_kernels::{Real, vectorized};
use rayon::prelude::*;

use super::Parameters;
use super::dead::Auxiliary;

/// The rows of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a, T> {
    /// What is encoded `[n, d]`.
    pub(crate) x: &'a [T],
    /// What the features are to reconstruct `[n, d_out]`.
    pub(crate) target: &'a [T],
    /// The same with what the skip matrix already makes of it.
    pub(crate) whole: &'a [T],
}

impl<'a, T> Rows<'a, T> {
    /// Of an autoencoder, which reconstructs what it encodes.
    #[cfg(test)]
    pub(crate) fn same(x: &'a [T]) -> Self {
        Self::pairs(x, x)
    }

    /// Of what is encoded and what is to be reconstructed.
    pub(crate) fn pairs(x: &'a [T], target: &'a [T]) -> Self {
        Self {
            x,
            target,
            whole: target,
        }
    }
}

/// One sum of codes × decoder rows in the losses, as far as the gradients need it: an entry for each code.
pub(crate) struct Part<T> {
    by_feature: ByFeature,
    /// The codes and the gradient of the losses in their sum, `[n, d]`; none where the decoder is not differentiated.
    decoder: Option<(Vec<T>, Vec<T>)>,
    /// Gradient in each entry's pre-activation as the encoder makes it.
    encoder: Vec<T>,
    /// Gradient in the encoder bias, where it is another.
    bias: Option<Vec<T>>,
    /// Gradients in what the kind adds.
    extras: Vec<Vec<T>>,
}

impl<T: Real> Part<T> {
    /// Codes whose pre-activation has the same gradient as they: `slopes`, one an entry.
    pub(crate) fn new(
        codes: &SparseCodes<T>,
        slope: Vec<T>,
        slopes: Vec<T>,
        features: usize,
    ) -> Self {
        Self {
            by_feature: codes.by_feature(features),
            decoder: Some((codes.values().to_vec(), slope)),
            encoder: slopes,
            bias: None,
            extras: Vec::new(),
        }
    }

    /// Entries at `places`, with codes, slopes of the sum and gradients of their own.
    pub(crate) fn of_entries(
        places: &SparseCodes<T>,
        codes: Vec<T>,
        slope: Vec<T>,
        (encoder, bias): (Vec<T>, Option<Vec<T>>),
        extras: Vec<Vec<T>>,
        features: usize,
    ) -> Self {
        Self {
            by_feature: places.by_feature(features),
            decoder: Some((codes, slope)),
            encoder,
            bias,
            extras,
        }
    }
}

/// Gradients for all features at once, where codes are not sparse.
pub(crate) struct Dense<T> {
    pub(crate) encoder: Vec<T>,
    pub(crate) decoder: Vec<T>,
    pub(crate) encoder_sums: Vec<T>,
    pub(crate) bias: Vec<T>,
    pub(crate) extras: Vec<Vec<T>>,
}

/// Everything of one batch that the update needs.
pub(crate) struct Batch<T> {
    /// `Σ‖x − x̂‖² / (tokens · variance)`, all levels of reconstruction together.
    pub(crate) reconstruction: f64,
    /// The sparsity loss with its weight, in the same unit.
    pub(crate) sparsity: f64,
    /// The auxiliary loss with its weight.
    pub(crate) auxiliary: f64,
    /// Active features, over all tokens.
    pub(crate) active: usize,
    /// Features that were active on some token.
    pub(crate) fired: Vec<bool>,
    pub(crate) centred: Vec<T>,
    pub(crate) parts: Vec<Part<T>>,
    pub(crate) dense: Option<Dense<T>>,
    /// Gradient of the decoder bias by the reconstructions alone, `[d_out]`.
    pub(crate) bias_slope: Vec<f64>,
    /// Gradient in the whole reconstruction `[n, d_out]`, where there is a skip matrix.
    pub(crate) slope: Option<Vec<T>>,
    /// Gradient of the skip matrix.
    pub(crate) skip: Option<Vec<T>>,
}

impl<T: Real> Batch<T> {
    /// Of sparse codes without a sparsity loss: `squares` is the sum of all squared errors, of which `unit` is the weight.
    pub(crate) fn of_codes(
        codes: &SparseCodes<T>,
        features: usize,
        (squares, unit): (f64, f64),
        (centred, bias_slope, slope): (Vec<T>, Vec<f64>, Option<Vec<T>>),
        mut parts: Vec<Part<T>>,
        auxiliary: Option<Auxiliary<T>>,
    ) -> Self {
        let mut fired = vec![false; features];
        for &feature in codes.features() {
            fired[feature as usize] = true;
        }
        let mut weighted = 0.0;
        if let Some(auxiliary) = auxiliary {
            weighted = auxiliary.loss;
            parts.push(auxiliary.part);
        }
        Self {
            reconstruction: squares * unit,
            sparsity: 0.0,
            auxiliary: weighted,
            active: codes.active(),
            fired,
            centred,
            parts,
            dense: None,
            bias_slope,
            slope,
            skip: None,
        }
    }

    /// The whole loss.
    pub(crate) fn loss(&self) -> f64 {
        self.reconstruction + self.sparsity + self.auxiliary
    }

    /// Gradient of the reconstruction loss in the rows that were encoded and reconstructed, `[n, d]`, of a kind with one
    /// reconstruction and codes that are sparse: `x − x̂` directly, and through the encoder. The auxiliary loss, whose target
    /// is taken as given, has no part in it.
    pub(crate) fn by_rows(&self, encoder: &[T], d: usize) -> Vec<T> {
        let mut out = vec![T::zero(); self.centred.len()];
        let Some(part) = self.parts.first() else {
            return out;
        };
        if let Some((_, slope)) = &part.decoder {
            for (out, &slope) in out.iter_mut().zip(slope) {
                *out = -slope;
            }
        }
        for (feature, row) in encoder.chunks_exact(d).enumerate() {
            let (tokens, entries) = part.by_feature.feature(feature);
            for (&token, &entry) in tokens.iter().zip(entries) {
                let start = token as usize * d;
                add_scaled(
                    &mut out[start..start + d],
                    part.encoder[entry as usize],
                    row,
                );
            }
        }
        out
    }

    /// Gradients of one feature's decoder row and encoder row.
    #[inline(always)]
    pub(crate) fn rows(&self, feature: usize, decoder: &mut [T], encoder: &mut [T]) {
        let (d, d_out) = (encoder.len(), decoder.len());
        if let Some(dense) = &self.dense {
            decoder.copy_from_slice(&dense.decoder[feature * d_out..(feature + 1) * d_out]);
            encoder.copy_from_slice(&dense.encoder[feature * d..(feature + 1) * d]);
        } else {
            decoder.fill(T::zero());
            encoder.fill(T::zero());
        }
        for part in &self.parts {
            let (tokens, entries) = part.by_feature.feature(feature);
            for (&token, &entry) in tokens.iter().zip(entries) {
                let token = token as usize;
                if let Some((codes, slope)) = &part.decoder {
                    let span = token * d_out..(token + 1) * d_out;
                    add_scaled(decoder, codes[entry as usize], &slope[span]);
                }
                let span = token * d..(token + 1) * d;
                add_scaled(encoder, part.encoder[entry as usize], &self.centred[span]);
            }
        }
    }

    /// One feature's gradients that are single numbers: of its pre-activation summed over tokens, of its encoder bias,
    /// and of what the kind adds.
    pub(crate) fn numbers(&self, feature: usize, extras: &mut [T]) -> (T, T) {
        let (mut sum, mut bias) = (T::zero(), T::zero());
        extras.fill(T::zero());
        if let Some(dense) = &self.dense {
            sum += dense.encoder_sums[feature];
            bias += dense.bias[feature];
            for (extra, of_features) in extras.iter_mut().zip(&dense.extras) {
                *extra += of_features[feature];
            }
        }
        for part in &self.parts {
            let mut own = T::zero();
            for &entry in part.by_feature.feature(feature).1 {
                let entry = entry as usize;
                own += part.encoder[entry];
                if let Some(slopes) = &part.bias {
                    bias += slopes[entry];
                }
                for (extra, slopes) in extras.iter_mut().zip(&part.extras) {
                    *extra += slopes[entry];
                }
            }
            sum += own;
            if part.bias.is_none() {
                bias += own;
            }
        }
        (sum, bias)
    }
}

/// What is multiplied by the encoder: `x − b_dec` row by row, or `x` where the decoder bias is not taken from it.
pub(crate) fn centred<T: Real>(parameters: &Parameters<T>, x: &[T]) -> Vec<T> {
    let mut centred = x.to_vec();
    if !parameters.tied {
        return centred;
    }
    centred
        .par_chunks_mut(256 * parameters.d)
        .for_each(|centred| {
            for row in centred.chunks_exact_mut(parameters.d) {
                for (x, &b) in row.iter_mut().zip(&parameters.decoder_bias) {
                    *x -= b;
                }
            }
        });
    centred
}

/// Takes `right` from `left` and gives the sum of the squares, in a fixed order.
pub(crate) fn differences<T: Real>(left: &mut [T], right: &[T], d: usize) -> f64 {
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
                            *left -= right;
                            sum += *left * *left;
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

pub(crate) fn scale<T: Real>(x: &mut [T], factor: f64) {
    let factor = T::of(factor);
    x.par_chunks_mut(1 << 15).for_each(|x| {
        for x in x {
            *x *= factor;
        }
    });
}

/// Adds the sum of the rows of a slope to `total`.
pub(crate) fn add_row_sums<T: Real>(total: &mut [f64], slope: &[T]) {
    for row in slope.chunks_exact(total.len()) {
        for (total, &x) in total.iter_mut().zip(row) {
            *total += x.as_f64();
        }
    }
}
