//! Normalisation of rows on slices: by the root mean square, `y = w ∘ x / sqrt(mean(x²) + ε)` (Zhang and Sennrich,
//! arXiv 1910.07467, equation 4), and by mean and variance, `y = w ∘ (x − m) / sqrt(var(x) + ε) + b` (Ba et al., arXiv
//! 1607.06450). The second is the first of the centred row, and that is how it is computed.

use rayon::prelude::*;

use crate::Real;
use crate::real::written;
use crate::simd::vectorized;
use crate::sparse::dot;

/// Rows worked on by one task.
const ROWS: usize = 64;

#[inline(always)]
fn inverse_rms<T: Real>(row: &[T], eps: f64) -> T {
    let mut sums = [T::zero(); 16];
    let mut chunks = row.chunks_exact(16);
    for chunk in &mut chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    let mut total: T = sums.iter().copied().sum();
    for &x in chunks.remainder() {
        total += x * x;
    }
    (total / T::of(row.len() as f64) + T::of(eps))
        .sqrt()
        .recip()
}

/// Rows less their means.
pub(super) fn centre<T: Real>(x: &[T], d: usize) -> Vec<T> {
    let mut out = vec![T::zero(); x.len()];
    out.par_chunks_mut(ROWS * d)
        .zip(x.par_chunks(ROWS * d))
        .for_each(|(out, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                        let mut sums = [T::zero(); 16];
                        let mut chunks = x.chunks_exact(16);
                        for chunk in &mut chunks {
                            for (sum, &x) in sums.iter_mut().zip(chunk) {
                                *sum += x;
                            }
                        }
                        let mut total: T = sums.iter().copied().sum();
                        for &x in chunks.remainder() {
                            total += x;
                        }
                        let mean = total / T::of(d as f64);
                        for (out, &x) in out.iter_mut().zip(x) {
                            *out = x - mean;
                        }
                    }
                },
            );
        });
    out
}

/// Adds `bias [d]` to each row.
pub(super) fn add_bias<T: Real>(x: &mut [T], bias: &[T]) {
    x.par_chunks_mut(ROWS * bias.len()).for_each(|x| {
        vectorized(
            #[inline(always)]
            || {
                for x in x.chunks_exact_mut(bias.len()) {
                    for (x, &b) in x.iter_mut().zip(bias) {
                        *x += b;
                    }
                }
            },
        );
    });
}

/// Sums over rows, in row order.
pub(super) fn sum_rows<T: Real>(x: &[T], d: usize) -> Vec<T> {
    let mut out = vec![T::zero(); d];
    for row in x.chunks_exact(d) {
        for (out, &x) in out.iter_mut().zip(row) {
            *out += x;
        }
    }
    out
}

/// Forward: `x [n, d]`, `weight [d]` → `[n, d]`.
pub(super) fn forward<T: Real>(x: &[T], weight: &[T], eps: f64) -> Vec<T> {
    let d = weight.len();
    assert!(x.len().is_multiple_of(d), "rows are not {d} wide");
    // SAFETY: chunks are whole rows, and every element of a row is written.
    unsafe {
        written(x.len(), ROWS * d, |number, out| {
            let x = &x[number * ROWS * d..][..out.len()];
            vectorized(
                #[inline(always)]
                || {
                    for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                        let scale = inverse_rms(x, eps);
                        for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
                            out.write(x * scale * w);
                        }
                    }
                },
            );
        })
    }
}

/// Backward in `x`: with `s` the inverse root mean square and `h = g ∘ w`,
/// `dx = s·h − x·s³·(h·x)/d`.
pub(super) fn backward_input<T: Real>(x: &[T], weight: &[T], grad: &[T], eps: f64) -> Vec<T> {
    let d = weight.len();
    let mut out = vec![T::zero(); x.len()];
    out.par_chunks_mut(ROWS * d)
        .zip(x.par_chunks(ROWS * d))
        .zip(grad.par_chunks(ROWS * d))
        .for_each(|((out, x), grad)| {
            vectorized(
                #[inline(always)]
                || {
                    let rows = out.chunks_exact_mut(d).zip(x.chunks_exact(d));
                    for ((out, x), grad) in rows.zip(grad.chunks_exact(d)) {
                        let scale = inverse_rms(x, eps);
                        for i in 0..d {
                            out[i] = grad[i] * weight[i];
                        }
                        let dot: T = dot(out, x);
                        let pull = dot * scale * scale * scale / T::of(d as f64);
                        for (out, &x) in out.iter_mut().zip(x) {
                            *out = *out * scale - x * pull;
                        }
                    }
                },
            );
        });
    out
}

/// Backward in `weight`: `dw = Σ_rows g ∘ x·s`, summed in row order.
pub(super) fn backward_weight<T: Real>(x: &[T], d: usize, grad: &[T], eps: f64) -> Vec<T> {
    let mut out = vec![T::zero(); d];
    for (x, grad) in x.chunks_exact(d).zip(grad.chunks_exact(d)) {
        let scale = inverse_rms(x, eps);
        for ((out, &x), &grad) in out.iter_mut().zip(x).zip(grad) {
            *out += grad * x * scale;
        }
    }
    out
}
