//! `y = x Wᵀ` on slices, with `W` as files store it: one row per output.

use crate::simd::vectorized;
use crate::sparse::dot;
use crate::team::share_chunks;
use crate::{Matrix, Real, Threads, product};

/// Up to this many rows the product is bound by reading `W` once, and dot products are as fast as the
/// memory; above it, blocks of `W` are worth packing.
const FEW_ROWS: usize = 4;
/// Rows of `W` that one task of the few-rows path reads.
const OUTPUTS: usize = 128;
/// Multiply-adds below which starting threads costs more than they save.
const SMALL: usize = 1 << 21;

/// Forward: `x [n, i]`, `weight [o, i]` → `[n, o]`.
pub(super) fn forward<T: Real>(x: &[T], weight: &[T], d_in: usize) -> Vec<T> {
    let (n, d_out) = (x.len() / d_in, weight.len() / d_in);
    if n > FEW_ROWS {
        let threads = if n * d_out * d_in < SMALL {
            Threads::One
        } else {
            Threads::All
        };
        return product(
            Matrix::new(x, n, d_in, d_in),
            Matrix::new(weight, d_out, d_in, d_in).transposed(),
            threads,
        );
    }
    let mut out = vec![T::zero(); n * d_out];
    for (x, out) in x.chunks_exact(d_in).zip(out.chunks_exact_mut(d_out)) {
        share_chunks(out, OUTPUTS, |task, out| {
            let weight = &weight[task * OUTPUTS * d_in..];
            vectorized(
                #[inline(always)]
                || {
                    for (out, row) in out.iter_mut().zip(weight.chunks_exact(d_in)) {
                        *out = dot(row, x);
                    }
                },
            );
        });
    }
    out
}

/// Backward in `x`: `dx = g W`.
pub(super) fn backward_input<T: Real>(weight: &[T], grad: &[T], d_in: usize) -> Vec<T> {
    let d_out = weight.len() / d_in;
    let n = grad.len() / d_out;
    product(
        Matrix::new(grad, n, d_out, d_out),
        Matrix::new(weight, d_out, d_in, d_in),
        Threads::All,
    )
}

/// Backward in `weight`: `dW = gᵀ x`.
pub(super) fn backward_weight<T: Real>(x: &[T], grad: &[T], d_in: usize) -> Vec<T> {
    let n = x.len() / d_in;
    let d_out = grad.len().checked_div(n).unwrap_or(0);
    product(
        Matrix::new(grad, n, d_out, d_out).transposed(),
        Matrix::new(x, n, d_in, d_in),
        Threads::All,
    )
}
