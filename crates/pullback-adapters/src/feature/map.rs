//! Maps of a dictionary's codes to changed codes, what they write into the stream, and their gradients.
//!
//! With codes `z`, decoder rows `D [m, d]` and a map `g`, the change of the stream is `(g(z) − z)·D`. All maps here are
//! products with a few rows of width `d` that are made once from the parameters and the decoder ([`Projected`]), so
//! neither `m × m` nor `tokens × m` numbers are ever made.

use pullback_kernels::Real;
use pullback_kernels::sparse::{SparseCodes, add_scaled, dot};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Where the parameters of a map stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Support {
    /// `g(z) = z + b`, or `z + b ∘ [z > 0]`.
    Bias {
        /// Features with an entry of `b`, ascending.
        features: Vec<u32>,
        /// Whether an entry acts only where its feature is active.
        active_only: bool,
    },
    /// `g(z)_j = z_j + Σ_i w_ij z_i`.
    Sparse {
        /// The pairs `(i, j)`, from a feature to a feature, ascending.
        pairs: Vec<(u32, u32)>,
    },
    /// `g(z) = z + write·readᵀ·z`, both factors `[m, rank]`.
    LowRank {
        /// Columns of the factors.
        rank: usize,
        /// Entries `(feature, column)` of `read`, ascending.
        read: Vec<(u32, u32)>,
        /// Entries of `write`, ascending.
        write: Vec<(u32, u32)>,
    },
}

/// The decoder of a dictionary: `m` rows of width `d`.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a, T> {
    /// `[m, d]`.
    pub rows: &'a [T],
    /// Width.
    pub d: usize,
}

impl<T: Real> Decoder<'_, T> {
    /// Number of features.
    pub fn features(&self) -> usize {
        self.rows.len() / self.d
    }

    /// The row of a feature.
    fn row(&self, feature: u32) -> &[T] {
        &self.rows[feature as usize * self.d..(feature as usize + 1) * self.d]
    }
}

/// What a map's parameters and the decoder make together.
#[derive(Clone, Debug)]
pub struct Projected<T> {
    /// For each feature that is read, its place among `rows` and the factor with which its code, or one where it is
    /// active, is added: entries of a matrix by rows of features.
    read: Read<T>,
    /// `[rows, d]`.
    rows: Vec<T>,
    d: usize,
}

#[derive(Clone, Debug)]
enum Read<T> {
    /// The one row is added everywhere.
    Always,
    /// Row `k` belongs to the `k`-th feature listed; its code counts, or a one.
    Each { features: Vec<u32>, code: bool },
    /// `h = z·read`, then `h·rows`.
    Mixed { factor: ByRow<T>, rank: usize },
}

/// Entries of a matrix by its rows, those of one row beside each other.
#[derive(Clone, Debug)]
struct ByRow<T> {
    rows: Vec<u32>,
    offsets: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<T>,
}

impl<T: Real> ByRow<T> {
    fn new(entries: &[(u32, u32)], values: &[T]) -> Self {
        let (rows, offsets) = sources(entries);
        Self {
            rows,
            offsets,
            columns: entries.iter().map(|&(_, column)| column).collect(),
            values: values.to_vec(),
        }
    }

    fn row(&self, feature: u32) -> Option<(&[u32], &[T])> {
        let at = self.rows.binary_search(&feature).ok()?;
        let span = self.offsets[at]..self.offsets[at + 1];
        Some((&self.columns[span.clone()], &self.values[span]))
    }
}

/// The different first members of ascending pairs, and where the pairs of each begin.
fn sources(entries: &[(u32, u32)]) -> (Vec<u32>, Vec<usize>) {
    let (mut rows, mut offsets) = (Vec::new(), Vec::new());
    for (place, &(row, _)) in entries.iter().enumerate() {
        if rows.last() != Some(&row) {
            rows.push(row);
            offsets.push(place);
        }
    }
    offsets.push(entries.len());
    (rows, offsets)
}

impl Support {
    /// Sizes of the parts that the parameters have: one for a bias and a matrix, two for factors.
    pub fn sizes(&self) -> Vec<usize> {
        match self {
            Self::Bias { features, .. } => vec![features.len()],
            Self::Sparse { pairs } => vec![pairs.len()],
            Self::LowRank { read, write, .. } => vec![read.len(), write.len()],
        }
    }

    /// Names of the parts.
    pub fn names(&self) -> &'static [&'static str] {
        match self {
            Self::Bias { .. } => &["bias"],
            Self::Sparse { .. } => &["weights"],
            Self::LowRank { .. } => &["read", "write"],
        }
    }

    /// Prepares a map for use.
    ///
    /// # Panics
    /// If the values are not of these sizes, or a feature is not in the dictionary.
    pub fn project<T: Real>(&self, values: &[Vec<T>], decoder: Decoder<'_, T>) -> Projected<T> {
        let d = decoder.d;
        assert!(
            values.iter().map(Vec::len).eq(self.sizes()),
            "a map's values must be of the sizes of its support"
        );
        match self {
            Self::Bias {
                features,
                active_only: false,
            } => {
                let mut row = vec![T::zero(); d];
                for (&feature, &b) in features.iter().zip(&values[0]) {
                    add_scaled(&mut row, b, decoder.row(feature));
                }
                Projected {
                    read: Read::Always,
                    rows: row,
                    d,
                }
            }
            Self::Bias {
                features,
                active_only: true,
            } => {
                let mut rows = Vec::with_capacity(features.len() * d);
                for (&feature, &b) in features.iter().zip(&values[0]) {
                    rows.extend(decoder.row(feature).iter().map(|&x| b * x));
                }
                Projected {
                    read: Read::Each {
                        features: features.clone(),
                        code: false,
                    },
                    rows,
                    d,
                }
            }
            Self::Sparse { pairs } => {
                let (features, offsets) = sources(pairs);
                let mut rows = vec![T::zero(); features.len() * d];
                rows.par_chunks_mut(d).enumerate().for_each(|(at, row)| {
                    for entry in offsets[at]..offsets[at + 1] {
                        add_scaled(row, values[0][entry], decoder.row(pairs[entry].1));
                    }
                });
                Projected {
                    read: Read::Each {
                        features,
                        code: true,
                    },
                    rows,
                    d,
                }
            }
            Self::LowRank { rank, read, write } => Projected {
                read: Read::Mixed {
                    factor: ByRow::new(read, &values[0]),
                    rank: *rank,
                },
                rows: written(*rank, write, &values[1], decoder),
                d,
            },
        }
    }

    /// The gradient of each part of the values, where `grad [tokens, d]` is that of the stream. Rows that the map does not
    /// act on must be zero in `grad`.
    pub fn gradients<T: Real>(
        &self,
        values: &[Vec<T>],
        codes: &SparseCodes<T>,
        decoder: Decoder<'_, T>,
        grad: &[T],
    ) -> Vec<Vec<T>> {
        let d = decoder.d;
        match self {
            Self::Bias {
                features,
                active_only: false,
            } => {
                let total = column_sums(grad, d);
                vec![dots(features.par_iter(), decoder, &total)]
            }
            Self::Bias {
                features,
                active_only: true,
            } => {
                let sums = sums_by_feature(features, codes, decoder, grad, false);
                let part = features.par_iter().zip(sums.par_chunks_exact(d));
                vec![
                    part.map(|(&feature, sum)| dot(decoder.row(feature), sum))
                        .collect(),
                ]
            }
            Self::Sparse { pairs } => {
                let (features, offsets) = sources(pairs);
                let sums = sums_by_feature(&features, codes, decoder, grad, true);
                let parts: Vec<Vec<T>> = sums
                    .par_chunks_exact(d)
                    .enumerate()
                    .map(|(at, sum)| {
                        let own = &pairs[offsets[at]..offsets[at + 1]];
                        own.iter().map(|&(_, j)| dot(decoder.row(j), sum)).collect()
                    })
                    .collect();
                vec![parts.concat()]
            }
            Self::LowRank { rank, read, write } => {
                let rows = written(*rank, write, &values[1], decoder);
                let hidden = mixed(&ByRow::new(read, &values[0]), *rank, codes);
                let by_hidden = outer(&hidden, grad, *rank, d);
                let write_grad = write
                    .par_iter()
                    .map(|&(j, column)| {
                        let at = column as usize * d;
                        dot(decoder.row(j), &by_hidden[at..at + d])
                    })
                    .collect();
                let hidden_grad: Vec<T> = grad
                    .par_chunks_exact(d)
                    .flat_map_iter(|g| rows.chunks_exact(d).map(move |row| dot(row, g)))
                    .collect();
                let (features, offsets) = sources(read);
                let sums = hidden_by_feature(&features, codes, decoder, &hidden_grad, *rank);
                let mut read_grad = Vec::with_capacity(read.len());
                for (at, sum) in sums.chunks_exact(*rank).enumerate() {
                    let own = &read[offsets[at]..offsets[at + 1]];
                    read_grad.extend(own.iter().map(|&(_, column)| sum[column as usize]));
                }
                vec![read_grad, write_grad]
            }
        }
    }
}

impl<T: Real> Projected<T> {
    /// The change `[tokens, d]` of the stream for codes, everywhere.
    pub fn change(&self, codes: &SparseCodes<T>) -> Vec<T> {
        let d = self.d;
        let mut out = vec![T::zero(); codes.tokens() * d];
        let hidden = match &self.read {
            Read::Mixed { factor, rank } => mixed(factor, *rank, codes),
            _ => Vec::new(),
        };
        out.par_chunks_mut(d)
            .enumerate()
            .for_each(|(token, out)| match &self.read {
                Read::Always => out.copy_from_slice(&self.rows),
                Read::Each { features, code } => {
                    let (active, values) = codes.token(token);
                    for (feature, &value) in active.iter().zip(values) {
                        if let Ok(at) = features.binary_search(feature) {
                            let factor = if *code { value } else { T::one() };
                            add_scaled(out, factor, &self.rows[at * d..(at + 1) * d]);
                        }
                    }
                }
                Read::Mixed { rank, .. } => {
                    let hidden = &hidden[token * rank..(token + 1) * rank];
                    for (&h, row) in hidden.iter().zip(self.rows.chunks_exact(d)) {
                        add_scaled(out, h, row);
                    }
                }
            });
        out
    }

    /// The same, `factor` times as large.
    #[must_use]
    pub fn scaled(mut self, factor: T) -> Self {
        for x in &mut self.rows {
            *x *= factor;
        }
        self
    }
}

/// `writeᵀ·D`, `[rank, d]`.
fn written<T: Real>(
    rank: usize,
    write: &[(u32, u32)],
    values: &[T],
    decoder: Decoder<'_, T>,
) -> Vec<T> {
    let mut rows = vec![T::zero(); rank * decoder.d];
    rows.par_chunks_mut(decoder.d)
        .enumerate()
        .for_each(|(column, row)| {
            for (&(feature, at), &value) in write.iter().zip(values) {
                if at as usize == column {
                    add_scaled(row, value, decoder.row(feature));
                }
            }
        });
    rows
}

/// `h = z·read`, `[tokens, rank]`.
fn mixed<T: Real>(factor: &ByRow<T>, rank: usize, codes: &SparseCodes<T>) -> Vec<T> {
    let mut hidden = vec![T::zero(); codes.tokens() * rank];
    hidden
        .par_chunks_mut(rank)
        .enumerate()
        .for_each(|(token, hidden)| {
            let (features, values) = codes.token(token);
            for (&feature, &z) in features.iter().zip(values) {
                if let Some((columns, weights)) = factor.row(feature) {
                    for (&column, &weight) in columns.iter().zip(weights) {
                        hidden[column as usize] += z * weight;
                    }
                }
            }
        });
    hidden
}

/// `hᵀ·G`, `[rank, d]`.
fn outer<T: Real>(hidden: &[T], grad: &[T], rank: usize, d: usize) -> Vec<T> {
    let mut out = vec![T::zero(); rank * d];
    out.par_chunks_mut(d).enumerate().for_each(|(column, out)| {
        for (h, g) in hidden.chunks_exact(rank).zip(grad.chunks_exact(d)) {
            add_scaled(out, h[column], g);
        }
    });
    out
}

/// Sums over all rows, `[d]`.
pub(crate) fn column_sums<T: Real>(grad: &[T], d: usize) -> Vec<T> {
    let mut total = vec![T::zero(); d];
    for row in grad.chunks_exact(d) {
        add_scaled(&mut total, T::one(), row);
    }
    total
}

/// Products of the rows of some features with one vector.
fn dots<'a, T: Real>(
    features: impl IndexedParallelIterator<Item = &'a u32>,
    decoder: Decoder<'_, T>,
    vector: &[T],
) -> Vec<T> {
    features
        .map(|&feature| dot(decoder.row(feature), vector))
        .collect()
}

/// For each of some features, the sum of the gradient's rows over the tokens in which it is active, times its code
/// there if `code`: `[features, d]`.
pub(crate) fn sums_by_feature<T: Real>(
    features: &[u32],
    codes: &SparseCodes<T>,
    decoder: Decoder<'_, T>,
    grad: &[T],
    code: bool,
) -> Vec<T> {
    let d = decoder.d;
    let by_feature = codes.by_feature(decoder.features());
    let mut sums = vec![T::zero(); features.len() * d];
    sums.par_chunks_mut(d)
        .zip(features.par_iter())
        .for_each(|(sum, &feature)| {
            let (tokens, entries) = by_feature.feature(feature as usize);
            for (&token, &entry) in tokens.iter().zip(entries) {
                let factor = if code {
                    codes.values()[entry as usize]
                } else {
                    T::one()
                };
                let at = token as usize * d;
                add_scaled(sum, factor, &grad[at..at + d]);
            }
        });
    sums
}

/// `Σ_t z_ti (∂h_t)`, `[features, rank]`.
fn hidden_by_feature<T: Real>(
    features: &[u32],
    codes: &SparseCodes<T>,
    decoder: Decoder<'_, T>,
    hidden_grad: &[T],
    rank: usize,
) -> Vec<T> {
    let by_feature = codes.by_feature(decoder.features());
    let mut sums = vec![T::zero(); features.len() * rank];
    sums.par_chunks_mut(rank)
        .zip(features.par_iter())
        .for_each(|(sum, &feature)| {
            let (tokens, entries) = by_feature.feature(feature as usize);
            for (&token, &entry) in tokens.iter().zip(entries) {
                let at = token as usize * rank;
                let z = codes.values()[entry as usize];
                add_scaled(sum, z, &hidden_grad[at..at + rank]);
            }
        });
    sums
}
