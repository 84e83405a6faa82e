//! A gate on two neighbouring sites.

use pullback_tensor::{GramWork, Mat, MatMut, MatRef, Threads, c64, multiply, svd};

use crate::dense::{Matrix, ZERO};
use crate::error::ChainError;

use super::tensor::Tensor;
use super::truncate::Truncation;

/// Up to so many columns the decomposition is that of the matrix itself.
const SMALL: usize = 16;

/// The part of the weight that must be discarded, or be free to be, for the Gram matrix to be enough.
const GRAM_FROM: f64 = 1e-14;

/// What the rounding of a Gram matrix can hide, as a part of the weight; it counts as discarded.
const ROUNDING: f64 = 4.0 * f64::EPSILON;

/// Memory of a thread.
#[derive(Default)]
pub(super) struct Work {
    product: Vec<c64>,
    gated: Vec<c64>,
    theta: Vec<c64>,
    gram: GramWork,
}

/// What becomes of two sites.
pub(super) struct Updated {
    pub(super) left: Tensor,
    pub(super) right: Tensor,
    pub(super) schmidt: Vec<f64>,
    pub(super) discarded: f64,
}

/// Sites `j` and `j + 1` with the coefficients to their left, and the gate `[d², d²]` whose slow index is the left site's.
pub(super) struct Pair<'a> {
    pub(super) schmidt: &'a [f64],
    pub(super) left: &'a Tensor,
    pub(super) right: &'a Tensor,
    pub(super) gate: &'a Matrix,
}

fn resized(memory: &mut Vec<c64>, len: usize) -> &mut [c64] {
    memory.resize(len, ZERO);
    &mut memory[..len]
}

impl Pair<'_> {
    pub(super) fn update(
        &self,
        truncation: Truncation,
        threads: Threads,
        work: &mut Work,
    ) -> Result<Updated, ChainError> {
        let (d, left, right) = (self.left.physical, self.left.left, self.right.right);
        let size = left * d * d * right;
        let product = resized(&mut work.product, size);
        multiply(
            MatMut::from_column_major_slice_mut(product, left * d, d * right),
            self.left.by_left(),
            self.right.by_right(),
            threads,
        );
        // In memory the left site's index is the fast one of the two.
        let by = Mat::from_fn(d * d, d * d, |i, o| {
            let swapped = |k: usize| (k % d) * d + k / d;
            self.gate[(swapped(o), swapped(i))]
        });
        let gated = resized(&mut work.gated, size);
        let theta = resized(&mut work.theta, size);
        let block = left * d * d;
        for ((from, to), scaled) in product
            .chunks_exact(block)
            .zip(gated.chunks_exact_mut(block))
            .zip(theta.chunks_exact_mut(block))
        {
            let from = MatRef::from_column_major_slice(from, left, d * d);
            let out = MatMut::from_column_major_slice_mut(to, left, d * d);
            multiply(out, from, by.as_ref(), Threads::One);
            for (to, scaled) in to.chunks_exact(left).zip(scaled.chunks_exact_mut(left)) {
                for ((x, y), s) in to.iter().zip(scaled).zip(self.schmidt) {
                    *y = x * s;
                }
            }
        }
        let (rows, columns) = (left * d, d * right);
        let gated = MatRef::from_column_major_slice(&*gated, rows, columns);
        let theta = MatRef::from_column_major_slice(&*theta, rows, columns);
        let shape = Shape { left, d, right };
        // Nothing but the largest dimension makes a cut that the Gram matrix can judge.
        if rows.min(columns) > truncation.max_bond.max(SMALL) && work.gram.decompose(theta, threads)
        {
            let weights = work.gram.weights();
            let count = truncation.keep(weights);
            let total = theta.squared_norm_l2();
            let discarded: f64 = weights[count..].iter().sum();
            if truncation.cutoff >= GRAM_FROM * total || discarded >= GRAM_FROM * total {
                return Ok(shape.by_gram(
                    gated,
                    self.schmidt,
                    total,
                    work.gram.vectors(count),
                    threads,
                ));
            }
        }
        let svd = svd(theta)?;
        let weights: Vec<f64> = svd.values.iter().map(|s| s * s).collect();
        let count = truncation.keep(&weights);
        let vectors = svd.v.subcols(0, count);
        let (new_left, new_right) = shape.tensors(gated, vectors, threads);
        Ok(Updated {
            left: new_left,
            right: new_right,
            schmidt: svd.values[..count].to_vec(),
            discarded: weights[count..].iter().sum(),
        })
    }
}

#[derive(Clone, Copy)]
struct Shape {
    left: usize,
    d: usize,
    right: usize,
}

impl Shape {
    /// `C V` and `V†`.
    fn tensors(
        self,
        gated: MatRef<'_, c64>,
        vectors: MatRef<'_, c64>,
        threads: Threads,
    ) -> (Tensor, Tensor) {
        let count = vectors.ncols();
        let mut left = Tensor::zeros(self.left, self.d, count);
        multiply(left.by_left_mut(), gated, vectors, threads);
        let mut right = Tensor::zeros(count, self.d, self.right);
        for (column, entries) in right.data.chunks_exact_mut(count).enumerate() {
            for (k, entry) in entries.iter_mut().enumerate() {
                *entry = vectors[(column, k)].conj();
            }
        }
        (left, right)
    }

    fn by_gram(
        self,
        gated: MatRef<'_, c64>,
        schmidt: &[f64],
        total: f64,
        vectors: MatRef<'_, c64>,
        threads: Threads,
    ) -> Updated {
        let (left, right) = self.tensors(gated, vectors, threads);
        // The coefficients are the lengths of the columns of θ V: better than the roots of the Gram matrix's eigenvalues.
        let squares: Vec<f64> = left
            .data
            .chunks_exact(self.left * self.d)
            .map(|column| {
                let rows = column.chunks_exact(self.left);
                rows.map(|row| {
                    row.iter()
                        .zip(schmidt)
                        .map(|(x, s)| x.norm_sqr() * s * s)
                        .sum::<f64>()
                })
                .sum()
            })
            .collect();
        let discarded = if squares.len() < self.d * self.right {
            (total - squares.iter().sum::<f64>()).max(0.0) + ROUNDING * total
        } else {
            0.0
        };
        Updated {
            left,
            right,
            discarded,
            schmidt: squares.iter().map(|x| x.sqrt()).collect(),
        }
    }
}
