//! The encoders of dictionaries: a dense product a few rows at a time, and selection while the rows are in cache.
//!
//! For TopK in `f32` the dense product only screens ([`super::screen`]): features that can be among the largest are
//! computed anew, and what is chosen is chosen by those values.

use std::any::{Any, TypeId};

use super::choose::Screened;
use super::prepared::{Way, screened};
use super::{SparseCodes, select_top};
use crate::simd::vectorized;
use crate::{Matrix, MatrixMut, Real, Threads, matmul};
use rayon::prelude::*;

/// Rows encoded by one task: their pre-activations stay in the second-level cache for a few thousand
/// features.
pub(super) const ROWS: usize = 64;

/// A second choice among some of the features, for the auxiliary loss of dead ones.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// Which features, ascending.
    pub features: &'a [u32],
    /// How many of them to take a token.
    pub k: usize,
}

/// What the choice of the largest took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Screening {
    /// Rows encoded.
    pub rows: usize,
    /// Pre-activations computed in full after screening, over all rows but those in `dense_rows`.
    pub candidates: usize,
    /// Rows of which all pre-activations were computed in full.
    pub dense_rows: usize,
}

impl Screening {
    /// Candidates of a row that was screened, on average; zero if none was.
    pub fn candidates_a_row(&self) -> f64 {
        self.candidates as f64 / (self.rows - self.dense_rows).max(1) as f64
    }

    pub(super) fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.candidates += other.candidates;
        self.dense_rows += other.dense_rows;
    }
}

/// What [`encode_top_k`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded<T> {
    /// The `k` largest positive pre-activations of each token.
    pub codes: SparseCodes<T>,
    /// The largest positive ones among the candidates, where there are any.
    pub among: Option<SparseCodes<T>>,
    /// What choosing `codes` took.
    pub screening: Screening,
}

/// Codes of `x [n, d]` under `encoder [m, d]` (one row a feature) and `bias [m]`:
/// `top_k(relu(x·encoderᵀ + bias))`. Of equal values the features that come first win, and NaN is never chosen.
///
/// In `f32` the result is exact in this sense: with the pre-activation defined as [`dot`](super::dot)` + bias`, a sum
/// of fixed order, codes are the `k` largest positive pre-activations and their values, bit by bit, on every
/// processor and with any number of rows and threads. To encode several times with one encoder, see
/// [`PreparedEncoder`](super::PreparedEncoder).
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
    if TypeId::of::<T>() == TypeId::of::<f32>() {
        let [x, encoder, bias] = [x, encoder, bias].map(bytemuck::cast_slice);
        let encoded = encode_in_f32(x, encoder, bias, k, candidates);
        let encoded: Box<dyn Any> = Box::new(encoded);
        if let Ok(encoded) = encoded.downcast() {
            return *encoded;
        }
    }
    let m = bias.len();
    let parts = each_part(
        x,
        encoder,
        bias,
        ROWS,
        #[inline(always)]
        |pre| select_rows(pre, m, k, candidates),
    );
    let mut all = Encoded {
        codes: SparseCodes::new(),
        among: candidates.map(|_| SparseCodes::new()),
        screening: Screening::default(),
    };
    for part in &parts {
        all.codes.append(&part.codes);
        all.screening.add(part.screening);
        if let (Some(all), Some(part)) = (&mut all.among, &part.among) {
            all.append(part);
        }
    }
    all
}

fn encode_in_f32(
    x: &[f32],
    encoder: &[f32],
    bias: &[f32],
    k: usize,
    candidates: Option<Candidates<'_>>,
) -> Encoded<f32> {
    let d = width(x, encoder, bias);
    let rows = x.len() / d;
    let way = Way::for_shape(rows, d, bias.len(), k);
    let Screened { codes, screening } = screened(way, x, encoder, bias, k);
    Encoded {
        codes,
        among: candidates.map(|candidates| among(x, encoder, bias, d, candidates)),
        screening,
    }
}

/// The choice among some of the features: that of an encoder which has these alone.
pub(super) fn among(
    x: &[f32],
    encoder: &[f32],
    bias: &[f32],
    d: usize,
    candidates: Candidates<'_>,
) -> SparseCodes<f32> {
    let features = candidates.features;
    if features.is_empty() {
        let mut codes = SparseCodes::new();
        (0..x.len() / d).for_each(|_| codes.push(&[], &[]));
        return codes;
    }
    let mut rows = Vec::with_capacity(features.len() * d);
    for &feature in features {
        rows.extend_from_slice(&encoder[feature as usize * d..][..d]);
    }
    let bias: Vec<f32> = features.iter().map(|&i| bias[i as usize]).collect();
    let way = Way::for_shape(x.len() / d, d, features.len(), candidates.k);
    let mut codes = screened(way, x, &rows, &bias, candidates.k).codes;
    codes.rename(features);
    codes
}

/// The width of rows, checked.
///
/// # Panics
/// If the shapes do not agree.
pub(super) fn width<T>(x: &[T], encoder: &[T], bias: &[T]) -> usize {
    let m = bias.len();
    assert!(
        m > 0 && encoder.len().is_multiple_of(m),
        "encode: encoder and bias do not agree"
    );
    let d = encoder.len() / m;
    assert!(
        d > 0 && x.len().is_multiple_of(d),
        "encode: the rows are not of width {d}"
    );
    d
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
    entries(
        x,
        encoder,
        bias,
        #[inline(always)]
        |feature, pre| {
            let code = code(feature, pre);
            (code > T::zero(), code)
        },
    )
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
    entries(
        x,
        encoder,
        bias,
        #[inline(always)]
        |feature, pre| (keep(feature, pre), pre),
    )
}

/// What `entry` makes of each pre-activation, where it says that this is an entry.
fn entries<T: Real>(
    x: &[T],
    encoder: &[T],
    bias: &[T],
    entry: impl Fn(usize, T) -> (bool, T) + Sync,
) -> SparseCodes<T> {
    /// Pre-activations that are passed over together.
    const GROUP: usize = 16;
    /// Pre-activations that a task holds.
    const HELD: usize = 1 << 21;
    let m = bias.len();
    // With more rows the encoder is packed more seldom.
    let rows = (HELD / m).clamp(ROWS, 4 * ROWS);
    let parts = each_part(
        x,
        encoder,
        bias,
        rows,
        #[inline(always)]
        |pre| {
            let mut codes = SparseCodes::new();
            let (mut places, mut values) = (vec![0; m], vec![T::zero(); m]);
            for row in pre.chunks_exact(m) {
                let mut count = 0;
                for (group, pre) in row.chunks(GROUP).enumerate() {
                    let mut any = false;
                    for (i, &pre) in pre.iter().enumerate() {
                        any |= entry(group * GROUP + i, pre).0;
                    }
                    if !any {
                        continue;
                    }
                    // No choices: where many features are active, none could be foreseen.
                    for (i, &pre) in pre.iter().enumerate() {
                        let feature = group * GROUP + i;
                        let (is_one, value) = entry(feature, pre);
                        places[count] = feature as u32;
                        values[count] = value;
                        count += usize::from(is_one);
                    }
                }
                codes.push(&places[..count], &values[..count]);
            }
            codes
        },
    );
    let mut all = SparseCodes::new();
    for part in &parts {
        all.append(part);
    }
    all
}

/// What `work` makes of the pre-activations `[a_task, m]` of so many rows, one part after the other.
fn each_part<T: Real, P: Send>(
    x: &[T],
    encoder: &[T],
    bias: &[T],
    a_task: usize,
    work: impl Fn(&[T]) -> P + Sync,
) -> Vec<P> {
    let (m, d) = (bias.len(), width(x, encoder, bias));
    x.par_chunks(a_task * d)
        .map_init(Vec::new, |scratch, x| {
            let rows = x.len() / d;
            scratch.resize(a_task * m, T::zero());
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
    let rows = codes.tokens();
    Encoded {
        codes,
        among,
        screening: Screening {
            rows,
            candidates: 0,
            dense_rows: rows,
        },
    }
}
