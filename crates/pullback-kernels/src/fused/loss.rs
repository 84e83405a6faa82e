//! Next-token cross-entropy straight from the last hidden state, a few rows at a time: the logits of a
//! large vocabulary never stand in memory all at once.

use rayon::prelude::*;

use crate::real::largest;
use crate::simd::vectorized;
use crate::stored::product;
use crate::{Matrix, MatrixMut, Real, StoredMatrix, Threads, matmul};

/// Logits that stand in memory together, 64 MiB in `f32`: few enough for memory, and rows enough that packing the
/// unembedding for each part costs little.
const LOGITS: usize = 1 << 24;

/// How many of `n` rows are worked on together, in parts of one size.
fn rows_at_once(n: usize, d_vocab: usize) -> usize {
    let most = (LOGITS / d_vocab.max(1)).max(1);
    n.div_ceil(n.div_ceil(most).max(1)).max(1)
}

/// Turns each row of logits into probabilities and returns `log Σ e^logit` per row.
fn softmax_in_place<T: Real>(logits: &mut [T], d_vocab: usize) -> Vec<T> {
    logits
        .par_chunks_mut(d_vocab)
        .map(|row| {
            vectorized(
                #[inline(always)]
                || {
                    let top = largest(row);
                    // Sixteen partial sums: vectors, and an error that does not grow with the vocabulary.
                    let mut sums = [T::zero(); 16];
                    let mut chunks = row.chunks_exact_mut(16);
                    for chunk in &mut chunks {
                        for (x, sum) in chunk.iter_mut().zip(&mut sums) {
                            *x = (*x - top).exp_vector();
                            *sum += *x;
                        }
                    }
                    let mut total: T = sums.iter().copied().sum();
                    for x in chunks.into_remainder() {
                        *x = (*x - top).exp_vector();
                        total += *x;
                    }
                    let inverse = total.recip();
                    for x in row.iter_mut() {
                        *x *= inverse;
                    }
                    top + total.ln()
                },
            )
        })
        .collect()
}

/// The products with the unembedding `[v, d]` that the loss is made of.
pub(super) trait Unembed<T> {
    /// Number of tokens `v`.
    fn d_vocab(&self) -> usize;
    /// `x Wᵀ` of `x [n, d]` into `[n, v]`.
    fn logits_into(&self, logits: &mut [T], x: &[T]);
    /// `g W` of `g [n, v]` into `[n, d]`.
    fn input_grad_into(&self, out: &mut [T], grad: &[T]);
}

/// An unembedding whose values stand in memory.
pub(super) struct Dense<'a, T> {
    values: &'a [T],
    d: usize,
}

impl<'a, T> Dense<'a, T> {
    /// From the values `[v, d]`.
    pub(super) fn new(values: &'a [T], d: usize) -> Self {
        Self { values, d }
    }
}

impl<T: Real> Unembed<T> for Dense<'_, T> {
    fn d_vocab(&self) -> usize {
        self.values.len() / self.d.max(1)
    }

    fn logits_into(&self, logits: &mut [T], x: &[T]) {
        let (d, d_vocab) = (self.d, self.d_vocab());
        let rows = logits.len() / d_vocab;
        matmul(
            MatrixMut::new(logits, rows, d_vocab, d_vocab),
            Matrix::new(x, rows, d, d),
            Matrix::new(self.values, d_vocab, d, d).transposed(),
            T::zero(),
            T::one(),
            Threads::All,
        );
    }

    fn input_grad_into(&self, out: &mut [T], grad: &[T]) {
        let (d, d_vocab) = (self.d, self.d_vocab());
        let rows = grad.len() / d_vocab;
        matmul(
            MatrixMut::new(out, rows, d, d),
            Matrix::new(grad, rows, d_vocab, d_vocab),
            Matrix::new(self.values, d_vocab, d, d),
            T::zero(),
            T::one(),
            Threads::All,
        );
    }
}

impl<T: Real> Unembed<T> for StoredMatrix {
    fn d_vocab(&self) -> usize {
        self.rows()
    }

    fn logits_into(&self, logits: &mut [T], x: &[T]) {
        product::linear_into(logits, x, self);
    }

    fn input_grad_into(&self, out: &mut [T], grad: &[T]) {
        product::backward_input_into(out, grad, self);
    }
}

/// Losses `[n]` in nats, from `x [n, d]`, the unembedding and the targets; with `want_input_grad` also
/// `d loss_row / d x_row` `[n, d]`.
pub(super) fn forward<T: Real>(
    x: &[T],
    unembed: &impl Unembed<T>,
    targets: &[u32],
    want_input_grad: bool,
) -> (Vec<T>, Vec<T>) {
    let n = targets.len();
    let d = x.len() / n.max(1);
    let d_vocab = unembed.d_vocab();
    let mut losses = Vec::with_capacity(n);
    let mut input_grad = vec![T::zero(); if want_input_grad { x.len() } else { 0 }];
    let at_once = rows_at_once(n, d_vocab);
    let mut logits = vec![T::zero(); at_once * d_vocab];
    for start in (0..n).step_by(at_once) {
        let rows = at_once.min(n - start);
        let logits = &mut logits[..rows * d_vocab];
        unembed.logits_into(logits, &x[start * d..(start + rows) * d]);
        let targets = &targets[start..start + rows];
        let at_target: Vec<T> = targets
            .iter()
            .zip(logits.chunks_exact(d_vocab))
            .map(|(&target, row)| row[target as usize])
            .collect();
        let log_sums = softmax_in_place(logits, d_vocab);
        losses.extend(log_sums.iter().zip(at_target).map(|(&sum, at)| sum - at));
        if want_input_grad {
            for (&target, row) in targets.iter().zip(logits.chunks_exact_mut(d_vocab)) {
                row[target as usize] -= T::one();
            }
            unembed.input_grad_into(&mut input_grad[start * d..(start + rows) * d], logits);
        }
    }
    (losses, input_grad)
}

/// Backward in the unembedding: `dW = Σ_rows g_row (p − onehot)_row x_rowᵀ`, the logits computed anew.
pub(super) fn backward_unembed<T: Real>(
    x: &[T],
    unembed: &[T],
    targets: &[u32],
    grad: &[T],
) -> Vec<T> {
    let n = targets.len();
    let d = x.len() / n.max(1);
    let d_vocab = unembed.len() / d.max(1);
    let mut out = vec![T::zero(); unembed.len()];
    let at_once = rows_at_once(n, d_vocab);
    let mut logits = vec![T::zero(); at_once * d_vocab];
    for start in (0..n).step_by(at_once) {
        let rows = at_once.min(n - start);
        let logits = &mut logits[..rows * d_vocab];
        let x = Matrix::new(&x[start * d..], rows, d, d);
        matmul(
            MatrixMut::new(logits, rows, d_vocab, d_vocab),
            x,
            Matrix::new(unembed, d_vocab, d, d).transposed(),
            T::zero(),
            T::one(),
            Threads::All,
        );
        softmax_in_place(logits, d_vocab);
        for (row, logits) in logits.chunks_exact_mut(d_vocab).enumerate() {
            logits[targets[start + row] as usize] -= T::one();
            for logit in logits {
                *logit *= grad[start + row];
            }
        }
        matmul(
            MatrixMut::new(&mut out, d_vocab, d, d),
            Matrix::new(logits, rows, d_vocab, d_vocab).transposed(),
            x,
            T::one(),
            T::one(),
            Threads::All,
        );
    }
    out
}
