//! The same dictionary said in other words: formats differ in what they take from the input and in how they select.

use super::Format;
use crate::{Normalization, Sae, SaeError, SaeParts, Selection};

/// The same dictionary with `target [d]` as what is taken from the input: what differs goes into the encoder's biases,
/// `W·(x − b) + c = W·(x − t) + (c + W·(t − b))`. Where nothing differs, nothing changes.
pub(super) fn with_input_bias(sae: &Sae, target: &[f32]) -> SaeParts {
    let mut parts = sae.parts().clone();
    if parts.input_bias == target {
        return parts;
    }
    let difference: Vec<f64> = target
        .iter()
        .zip(&parts.input_bias)
        .map(|(&t, &b)| f64::from(t) - f64::from(b))
        .collect();
    let shifts: Vec<f64> = parts
        .encoder
        .chunks_exact(target.len())
        .map(|row| {
            row.iter()
                .zip(&difference)
                .map(|(&w, d)| f64::from(w) * d)
                .sum()
        })
        .collect();
    for (bias, shift) in parts.encoder_bias.iter_mut().zip(&shifts) {
        *bias = (f64::from(*bias) + shift) as f32;
    }
    if let Selection::Gated { scales, biases } = &mut parts.selection {
        for ((bias, &scale), shift) in biases.iter_mut().zip(&*scales).zip(&shifts) {
            *bias = (f64::from(*bias) + f64::from(scale) * shift) as f32;
        }
    }
    parts.input_bias = target.to_vec();
    parts
}

/// A gated dictionary as one with thresholds: the gate `w·x + g > 0` is open where the magnitude
/// `m = s·w·x + c` is above `c − s·g`, for `s > 0` (Rajamanoharan et al., arXiv 2404.16014, section 3.2). Other kinds come
/// back as they are.
///
/// # Errors
/// A scale is not above zero.
pub(super) fn gated_as_thresholds(
    format: Format,
    mut parts: SaeParts,
) -> Result<SaeParts, SaeError> {
    let Selection::Gated { scales, biases } = &parts.selection else {
        return Ok(parts);
    };
    if let Some(scale) = scales.iter().find(|&&s| s.is_nan() || s <= 0.0) {
        return Err(SaeError::Inexpressible {
            format,
            reason: format!(
                "a feature's magnitude has the scale {scale}; only above zero is a gate a threshold of the magnitude"
            ),
        });
    }
    let d = parts.input_bias.len();
    let thresholds = scales
        .iter()
        .zip(biases)
        .zip(&parts.encoder_bias)
        .map(|((&s, &c), &g)| (f64::from(c) - f64::from(s) * f64::from(g)) as f32)
        .collect();
    for (row, s) in parts.encoder.chunks_exact_mut(d).zip(scales) {
        for w in row {
            *w *= s;
        }
    }
    parts.encoder_bias.clone_from(biases);
    parts.selection = Selection::Threshold { thresholds };
    Ok(parts)
}

/// `ln` of a gated dictionary's scales, as files keep them.
///
/// # Errors
/// A scale is not above zero.
pub(super) fn log_scales(format: Format, scales: &[f32]) -> Result<Vec<f32>, SaeError> {
    match scales.iter().find(|&&s| s.is_nan() || s <= 0.0) {
        Some(scale) => Err(SaeError::Inexpressible {
            format,
            reason: format!(
                "a feature's magnitude has the scale {scale}, and the file keeps its logarithm"
            ),
        }),
        None => Ok(scales.iter().map(|&s| f64::from(s).ln() as f32).collect()),
    }
}

/// Refuses what formats without normalisation, skip matrices or other widths of output cannot hold.
pub(super) fn refuse(
    format: Format,
    sae: &Sae,
    skip_is_kept: bool,
    widths_may_differ: bool,
) -> Result<(), SaeError> {
    let parts = sae.parts();
    let refused = |reason: String| Err(SaeError::Inexpressible { format, reason });
    if parts.normalization != Normalization::None {
        return refused(
            "each activation is normalised by itself, and the format has no place to say so"
                .to_owned(),
        );
    }
    if parts.skip.is_some() && !skip_is_kept {
        return refused("it has a skip matrix, and the format has none".to_owned());
    }
    let (d, d_out) = (parts.input_bias.len(), parts.decoder_bias.len());
    if d != d_out && !widths_may_differ {
        return refused(format!(
            "it maps width {d} to width {d_out}, and the format has one width"
        ));
    }
    Ok(())
}

/// Scales each feature's encoder by the length of its decoder row, and makes that row's length one. Codes are then
/// those of the unit row; a feature whose row is zero is never active.
pub(super) fn with_unit_rows(parts: &mut SaeParts) {
    let (d, d_out) = (parts.input_bias.len(), parts.decoder_bias.len());
    let rows = parts
        .encoder
        .chunks_exact_mut(d)
        .zip(parts.decoder.chunks_exact_mut(d_out));
    for ((encoder, decoder), bias) in rows.zip(&mut parts.encoder_bias) {
        let squares: f64 = decoder.iter().map(|&x| f64::from(x).powi(2)).sum();
        let length = squares.sqrt() as f32;
        for x in encoder.iter_mut() {
            *x *= length;
        }
        *bias *= length;
        if length > 0.0 {
            for x in decoder.iter_mut() {
                *x /= length;
            }
        }
    }
}
