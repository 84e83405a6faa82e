//! The encoder of a TopK dictionary: a dense product a few rows at a time, and selection while the rows
//! are in cache.

use rayon::prelude::*;

use super::{SparseCodes, select_top};
use crate::simd::vectorized;
use crate::{Matrix, MatrixMut, Real, Threads, matmul};

/// Rows encoded by one task: their pre-activations stay in the second-level cache for a few thousand
/// features.
const ROWS: usize = 64;

/// A second choice among some of the features, for the auxiliary loss of dead ones.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// Which features, ascending.
    pub features: &'a [u32],
    /// How many of them to take a token.
    pub k: usize,
}

/// What [`encode_top_k`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded<T> {
    /// The `k` largest positive pre-activations of each token.
    pub codes: SparseCodes<T>,
    /// The largest positive ones among the candidates, where there are any.
    pub among: Option<SparseCodes<T>>,
}

/// Codes of `x [n, d]` under `encoder [m, d]` (one row a feature) and `bias [m]`:
/// `top_k(relu(x·encoderᵀ + bias))`.
///
/// # Panics
/// If the shapes do not agree.
pub fn encode_top_k<T: Real>(
    x: &[T],
    encoder: &[T],
    bias: &[T],
    k: usize,
    candidates: Option<Candidates<'_>>,
) -> Encoded<T> {
    let m = bias.len();
    let parts = each_part(
        x,
        encoder,
        bias,
        #[inline(always)]
        |pre| select_rows(pre, m, k, candidates),
    );
    let mut all = Encoded {
        codes: SparseCodes::new(),
        among: candidates.map(|_| SparseCodes::new()),
    };
    for part in &parts {
        all.codes.append(&part.codes);
        if let (Some(all), Some(part)) = (&mut all.among, &part.among) {
            all.append(part);
        }
    }
    all
}

/// Codes of `x [n, d]` where each feature decides for itself: `code` maps a feature and its pre-activation to its code,
/// and what is not above zero is left out.
///
/// # Panics
/// If the shapes do not agree.
pub fn encode_each<T: Real>(
    x: &[T],
    encoder: &[T],
    bias: &[T],
    code: impl Fn(usize, T) -> T + Sync,
) -> SparseCodes<T> {
    let m = bias.len();
    let parts = each_part(x, encoder, bias, |pre| {
        let mut codes = SparseCodes::new();
        let (mut places, mut values) = (Vec::new(), Vec::new());
        for row in pre.chunks_exact(m) {
            places.clear();
            values.clear();
            for (feature, &pre) in row.iter().enumerate() {
                let code = code(feature, pre);
                if code > T::zero() {
                    places.push(feature as u32);
                    values.push(code);
                }
            }
            codes.push(&places, &values);
        }
        codes
    });
    let mut all = SparseCodes::new();
    for part in &parts {
        all.append(part);
    }
    all
}

/// What `work` makes of the pre-activations `[rows, m]` of a few rows after the other.
fn each_part<T: Real, P: Send>(
    x: &[T],
    encoder: &[T],
    bias: &[T],
    work: impl Fn(&[T]) -> P + Sync,
) -> Vec<P> {
    let m = bias.len();
    assert!(
        m > 0 && encoder.len().is_multiple_of(m),
        "encode: encoder and bias do not agree"
    );
    let d = encoder.len() / m;
    assert!(
        x.len().is_multiple_of(d),
        "encode: the rows are not of width {d}"
    );
    x.par_chunks(ROWS * d)
        .map_init(Vec::new, |scratch, x| {
            let rows = x.len() / d;
            scratch.resize(ROWS * m, T::zero());
            let pre = &mut scratch[..rows * m];
            for row in pre.chunks_exact_mut(m) {
                row.copy_from_slice(bias);
            }
            matmul(
                MatrixMut::new(pre, rows, m, m),
                Matrix::new(x, rows, d, d),
                Matrix::new(encoder, m, d, d).transposed(),
                T::one(),
                T::one(),
                Threads::One,
            );
            vectorized(
                #[inline(always)]
                || work(pre),
            )
        })
        .collect()
}

#[inline(always)]
fn select_rows<T: Real>(
    pre: &[T],
    m: usize,
    k: usize,
    candidates: Option<Candidates<'_>>,
) -> Encoded<T> {
    let mut codes = SparseCodes::new();
    let mut among = candidates.map(|_| SparseCodes::new());
    let (mut places, mut values) = (Vec::new(), Vec::new());
    let mut picked = Vec::new();
    for row in pre.chunks_exact(m) {
        places.clear();
        values.clear();
        select_top(row, k, &mut places, &mut values);
        codes.push(&places, &values);
        if let (Some(among), Some(candidates)) = (&mut among, candidates) {
            picked.clear();
            picked.extend(
                candidates
                    .features
                    .iter()
                    .map(|&feature| row[feature as usize]),
            );
            places.clear();
            values.clear();
            select_top(&picked, candidates.k, &mut places, &mut values);
            for place in &mut places {
                *place = candidates.features[*place as usize];
            }
            among.push(&places, &values);
        }
    }
    Encoded { codes, among }
}

/// Pre-activations of `x [n, d]` that `keep`, called with the feature and the pre-activation, wants.
///
/// # Panics
/// If the shapes do not agree.
pub fn encode_where<T: Real>(
    x: &[T],
    encoder: &[T],
    bias: &[T],
    keep: impl Fn(usize, T) -> bool + Sync,
) -> SparseCodes<T> {
    let m = bias.len();
    let parts = each_part(x, encoder, bias, |pre| {
        let mut codes = SparseCodes::new();
        let (mut places, mut values) = (Vec::new(), Vec::new());
        for row in pre.chunks_exact(m) {
            places.clear();
            values.clear();
            for (feature, &pre) in row.iter().enumerate() {
                if keep(feature, pre) {
                    places.push(feature as u32);
                    values.push(pre);
                }
            }
            codes.push(&places, &values);
        }
        codes
    });
    let mut all = SparseCodes::new();
    for part in &parts {
        all.append(part);
    }
    all
}
