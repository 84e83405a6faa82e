//! The auxiliary loss that brings dead features back: they reconstruct what the living ones leave over.

use std::cmp::Ordering;

use pullback_kernels::sparse::{SparseCodes, decode, dots_with_rows, encode_top_k};
use pullback_kernels::{Matrix, Real, Threads, product};
use serde::{Deserialize, Serialize};

use super::{Parameters, Part, Rows, Step, add_row_sums, differences, scale};

/// Which auxiliary loss; `e = x − x̂` is the error, not differentiated, and `ê` what the largest dead features make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuxLoss {
    /// `Σ‖e − ê‖² / Σ‖e − mean e‖²`, codes above zero (arXiv 2406.04093, appendix A.2, as in `OpenAI`'s code and in
    /// `dictionary_learning`).
    #[default]
    Openai,
    /// `s · mean ‖e − ê‖²`, codes of either sign, `s` the number of dead features over `k_aux`, at most 1 (`SAELens`).
    Saelens,
    /// `s · Σ‖e − ê − b_dec‖² / Σ‖x − mean x‖²`, codes above zero (`sparsify`).
    Sparsify,
}

impl AuxLoss {
    /// The weight with which its authors use it.
    pub fn usual_weight(self) -> f64 {
        match self {
            Self::Openai | Self::Sparsify => 1.0 / 32.0,
            Self::Saelens => 1.0,
        }
    }
}

/// Which auxiliary loss, with which weight, among how many features a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Aux {
    pub(crate) loss: AuxLoss,
    pub(crate) weight: f64,
    pub(crate) k: usize,
}

/// What an auxiliary loss adds to a batch: its weighted value, its part of the gradients.
pub(crate) struct Auxiliary<T> {
    pub(crate) loss: f64,
    pub(crate) part: Part<T>,
}

/// The auxiliary loss, where features are dead. `residual` is `x̂ − x`; the codes above zero are given where they are known.
/// The gradient of the decoder bias is added to `bias_slope`.
pub(crate) fn auxiliary<T: Real>(
    parameters: &Parameters<T>,
    (rows, centred, residual): (&Rows<'_, T>, &[T], &[T]),
    aux: Aux,
    step: &Step<'_>,
    positive: Option<SparseCodes<T>>,
    bias_slope: &mut [f64],
) -> Option<Auxiliary<T>> {
    if step.dead.is_empty() || aux.weight == 0.0 || aux.k == 0 {
        return None;
    }
    let d = parameters.d_out;
    let n = (residual.len() / d) as f64;
    let signed = aux.loss == AuxLoss::Saelens;
    let codes = match positive {
        Some(codes) if !signed => codes,
        _ => dead_codes(parameters, centred, step.dead, aux.k, signed),
    };
    let zero = vec![T::zero(); d];
    let bias = if aux.loss == AuxLoss::Sparsify {
        &parameters.decoder_bias
    } else {
        &zero
    };
    let mut slope = decode(&codes, &parameters.decoder, bias);
    // ê − e = ê + (x̂ − x).
    scale(&mut slope, -1.0);
    let squares = differences(&mut slope, residual, d);
    let share = (step.dead.len() as f64 / aux.k as f64).min(1.0);
    let factor = aux.weight
        * match aux.loss {
            AuxLoss::Openai => spread(residual, d).max(f64::MIN_POSITIVE).recip(),
            AuxLoss::Saelens => share / (n * step.variance),
            AuxLoss::Sparsify => share / spread(rows.whole, d).max(f64::MIN_POSITIVE),
        };
    // `slope` is e − ê so far.
    scale(&mut slope, -2.0 * factor);
    if aux.loss == AuxLoss::Sparsify {
        add_row_sums(bias_slope, &slope);
    }
    let slopes = dots_with_rows(&codes, &parameters.decoder, &slope);
    Some(Auxiliary {
        loss: factor * squares,
        part: Part::new(&codes, slope, slopes, parameters.features()),
    })
}

/// `Σ‖row − mean‖²` over rows of width `d`.
fn spread<T: Real>(x: &[T], d: usize) -> f64 {
    let n = (x.len() / d) as f64;
    let (mut sum, mut squares) = (vec![0.0; d], 0.0);
    for row in x.chunks_exact(d) {
        for (sum, &x) in sum.iter_mut().zip(row) {
            *sum += x.as_f64();
            squares += x.as_f64() * x.as_f64();
        }
    }
    squares - sum.iter().map(|sum| sum * sum).sum::<f64>() / n
}

/// The largest pre-activations of each token among the dead features; of those above zero unless `signed`.
fn dead_codes<T: Real>(
    parameters: &Parameters<T>,
    centred: &[T],
    dead: &[u32],
    k: usize,
    signed: bool,
) -> SparseCodes<T> {
    let d = parameters.d;
    let mut rows = Vec::with_capacity(dead.len() * d);
    for &feature in dead {
        let start = feature as usize * d;
        rows.extend_from_slice(&parameters.encoder[start..start + d]);
    }
    let bias: Vec<T> = dead
        .iter()
        .map(|&feature| parameters.encoder_bias[feature as usize])
        .collect();
    let features =
        |places: &[u32]| -> Vec<u32> { places.iter().map(|&place| dead[place as usize]).collect() };
    let mut codes = SparseCodes::new();
    if !signed {
        let among = encode_top_k(centred, &rows, &bias, k, None).codes;
        for token in 0..among.tokens() {
            let (places, values) = among.token(token);
            codes.push(&features(places), values);
        }
        return codes;
    }
    let n = centred.len() / d;
    let pre = product(
        Matrix::new(centred, n, d, d),
        Matrix::new(&rows, dead.len(), d, d).transposed(),
        Threads::All,
    );
    for pre in pre.chunks_exact(dead.len()) {
        let values: Vec<T> = pre.iter().zip(&bias).map(|(&x, &b)| x + b).collect();
        let mut places: Vec<u32> = (0..dead.len() as u32).collect();
        if k < places.len() {
            places.select_nth_unstable_by(k, |&a, &b| {
                let (a, b) = (values[a as usize], values[b as usize]);
                b.partial_cmp(&a).unwrap_or(Ordering::Equal)
            });
            places.truncate(k);
            places.sort_unstable();
        }
        let values: Vec<T> = places.iter().map(|&at| values[at as usize]).collect();
        codes.push(&features(&places), &values);
    }
    codes
}
