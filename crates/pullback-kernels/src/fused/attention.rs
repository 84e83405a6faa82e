//! Causal attention with grouped heads on slices, one block of queries at a time, so that the scores never
//! stand in memory all at once (the recomputation in the backward pass follows Dao et al., arXiv
//! 2205.14135, algorithm 4, with the row sum of `dO ∘ O` in place of that of `dP ∘ P`).

use rayon::prelude::*;

use crate::simd::vectorized;
use crate::{Matrix, MatrixMut, Real, Threads, matmul};

/// Queries in a block.
const BLOCK: usize = 64;

/// Shapes of one attention call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`, and each serves `heads / kv_heads` neighbouring query heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub d_head: usize,
    /// Factor on the scores, usually `1/sqrt(d_head)`.
    pub scale: f64,
}

impl AttentionSpec {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// One head's view of a `[batch·time, heads·d_head]` slice.
fn head<T: Real>(x: &[T], time: usize, heads: usize, d: usize, b: usize, h: usize) -> &[T] {
    let width = heads * d;
    let start = b * time * width + h * d;
    &x[start..b * time * width + time * width - (heads - 1 - h) * d]
}

/// Softmax of each row over its first `visible(row)` entries, the rest set to zero.
fn softmax_rows<T: Real>(scores: &mut [T], columns: usize, first_visible: usize, scale: T) {
    vectorized(
        #[inline(always)]
        || {
            for (row, scores) in scores.chunks_exact_mut(columns).enumerate() {
                let visible = (first_visible + row).min(columns);
                let (seen, hidden) = scores.split_at_mut(visible);
                let mut top = T::neg_infinity();
                for &x in seen.iter() {
                    top = if x > top { x } else { top };
                }
                for x in seen.iter_mut() {
                    *x = ((*x - top) * scale).exp_vector();
                }
                let mut total = T::zero();
                for &x in seen.iter() {
                    total += x;
                }
                let inverse = total.recip();
                for x in seen.iter_mut() {
                    *x *= inverse;
                }
                hidden.fill(T::zero());
            }
        },
    );
}

/// Forward: `q [batch·t, heads·d]`, `k` and `v [batch·s, kv_heads·d]` → `[batch·t, heads·d]`; the queries
/// are the last `t` of `s` positions.
pub(super) fn forward<T: Real>(q: &[T], k: &[T], v: &[T], spec: &AttentionSpec) -> Vec<T> {
    let (d, heads) = (spec.d_head, spec.heads);
    let t = q.len() / (spec.batch * heads * d);
    let s = k.len() / (spec.batch * spec.kv_heads * d);
    // Written head by head, then put in the order of the rows: tasks share no memory.
    let mut by_head = vec![T::zero(); q.len()];
    by_head
        .par_chunks_mut(t * d)
        .enumerate()
        .for_each(|(task, out)| {
            let (b, h) = (task / heads, task % heads);
            let q = head(q, t, heads, d, b, h);
            let k = head(k, s, spec.kv_heads, d, b, h / spec.group());
            let v = head(v, s, spec.kv_heads, d, b, h / spec.group());
            let kv_stride = spec.kv_heads * d;
            let mut scores = vec![T::zero(); BLOCK.min(t) * s];
            for start in (0..t).step_by(BLOCK) {
                let rows = BLOCK.min(t - start);
                let columns = s - t + start + rows;
                let scores = &mut scores[..rows * columns];
                matmul(
                    MatrixMut::new(scores, rows, columns, columns),
                    Matrix::new(&q[start * heads * d..], rows, d, heads * d),
                    Matrix::new(k, columns, d, kv_stride).transposed(),
                    T::zero(),
                    T::one(),
                    Threads::One,
                );
                softmax_rows(scores, columns, s - t + start + 1, T::of(spec.scale));
                matmul(
                    MatrixMut::new(&mut out[start * d..(start + rows) * d], rows, d, d),
                    Matrix::new(scores, rows, columns, columns),
                    Matrix::new(v, columns, d, kv_stride),
                    T::zero(),
                    T::one(),
                    Threads::One,
                );
            }
        });
    heads_to_rows(&by_head, spec.batch, t, heads, d)
}

/// Backward: gradients of `q`, `k` and `v`, from the output `out` and its gradient `grad`.
pub(super) fn backward<T: Real>(
    q: &[T],
    k: &[T],
    v: &[T],
    out: &[T],
    grad: &[T],
    spec: &AttentionSpec,
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let (d, heads, kv_heads, group) = (spec.d_head, spec.heads, spec.kv_heads, spec.group());
    let t = q.len() / (spec.batch * heads * d);
    let s = k.len() / (spec.batch * kv_heads * d);
    let (stride, kv_stride) = (heads * d, kv_heads * d);
    let scale = T::of(spec.scale);
    let mut dq = vec![T::zero(); q.len()];
    let mut dk = vec![T::zero(); k.len()];
    let mut dv = vec![T::zero(); v.len()];
    // One task per key-value head: its query heads add to the same dk and dv.
    dq.par_chunks_mut(group * t * d)
        .zip(dk.par_chunks_mut(s * d).zip(dv.par_chunks_mut(s * d)))
        .enumerate()
        .for_each(|(task, (dq, (dk, dv)))| {
            let (b, kv) = (task / kv_heads, task % kv_heads);
            let k = head(k, s, kv_heads, d, b, kv);
            let v = head(v, s, kv_heads, d, b, kv);
            let mut weights = vec![T::zero(); BLOCK.min(t) * s];
            let mut slopes = vec![T::zero(); BLOCK.min(t) * s];
            for member in 0..group {
                let h = kv * group + member;
                let q = head(q, t, heads, d, b, h);
                let out = head(out, t, heads, d, b, h);
                let grad = head(grad, t, heads, d, b, h);
                let dq = &mut dq[member * t * d..(member + 1) * t * d];
                for start in (0..t).step_by(BLOCK) {
                    let rows = BLOCK.min(t - start);
                    let columns = s - t + start + rows;
                    let weights = &mut weights[..rows * columns];
                    let slopes = &mut slopes[..rows * columns];
                    let q = Matrix::new(&q[start * stride..], rows, d, stride);
                    let grad_rows = &grad[start * stride..];
                    let out_rows = &out[start * stride..];
                    let grad = Matrix::new(grad_rows, rows, d, stride);
                    let keys = Matrix::new(k, columns, d, kv_stride);
                    let values = Matrix::new(v, columns, d, kv_stride);
                    matmul(
                        MatrixMut::new(weights, rows, columns, columns),
                        q,
                        keys.transposed(),
                        T::zero(),
                        T::one(),
                        Threads::One,
                    );
                    softmax_rows(weights, columns, s - t + start + 1, scale);
                    matmul(
                        MatrixMut::new(slopes, rows, columns, columns),
                        grad,
                        values.transposed(),
                        T::zero(),
                        T::one(),
                        Threads::One,
                    );
                    matmul(
                        MatrixMut::new(dv, columns, d, d),
                        Matrix::new(weights, rows, columns, columns).transposed(),
                        grad,
                        T::one(),
                        T::one(),
                        Threads::One,
                    );
                    for row in 0..rows {
                        let span = row * stride..row * stride + d;
                        let shift: T = grad_rows[span.clone()]
                            .iter()
                            .zip(&out_rows[span])
                            .map(|(&g, &o)| g * o)
                            .sum();
                        let span = row * columns..(row + 1) * columns;
                        for (slope, &weight) in slopes[span.clone()].iter_mut().zip(&weights[span])
                        {
                            *slope = weight * (*slope - shift) * scale;
                        }
                    }
                    let slopes = Matrix::new(slopes, rows, columns, columns);
                    matmul(
                        MatrixMut::new(&mut dq[start * d..], rows, d, d),
                        slopes,
                        keys,
                        T::zero(),
                        T::one(),
                        Threads::One,
                    );
                    matmul(
                        MatrixMut::new(dk, columns, d, d),
                        slopes.transposed(),
                        q,
                        T::one(),
                        T::one(),
                        Threads::One,
                    );
                }
            }
        });
    (
        heads_to_rows(&dq, spec.batch, t, heads, d),
        heads_to_rows(&dk, spec.batch, s, kv_heads, d),
        heads_to_rows(&dv, spec.batch, s, kv_heads, d),
    )
}

/// `[batch, heads, time, d]` → `[batch·time, heads·d]`.
fn heads_to_rows<T: Real>(x: &[T], batch: usize, time: usize, heads: usize, d: usize) -> Vec<T> {
    if time == 1 {
        return x.to_vec();
    }
    let width = heads * d;
    let mut out = vec![T::zero(); batch * time * width];
    out.par_chunks_mut(width)
        .enumerate()
        .for_each(|(row, out)| {
            let (b, t) = (row / time, row % time);
            for (h, out) in out.chunks_exact_mut(d).enumerate() {
                let start = ((b * heads + h) * time + t) * d;
                out.copy_from_slice(&x[start..start + d]);
            }
        });
    out
}
