//! The gate of a gated MLP on slices: `y = silu(g) ∘ u`, `silu(g) = g / (1 + e^{-g})`
//! (Shazeer, arXiv 2002.05202, equation 5).

use rayon::prelude::*;

use crate::Real;
use crate::simd::vectorized;

/// Elements worked on by one task.
const CHUNK: usize = 1 << 15;

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    (T::one() + (-x).exp_vector()).recip()
}

/// Forward, elementwise over two slices of one length.
pub(super) fn forward<T: Real>(gate: &[T], up: &[T]) -> Vec<T> {
    let mut out = vec![T::zero(); gate.len()];
    out.par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .for_each(|(out, (gate, up))| {
            vectorized(
                #[inline(always)]
                || {
                    for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                        *out = g * sigmoid(g) * u;
                    }
                },
            );
        });
    out
}

/// Backward: gradients of the gate and of the other factor.
pub(super) fn backward<T: Real>(gate: &[T], up: &[T], grad: &[T]) -> (Vec<T>, Vec<T>) {
    let mut gate_grad = vec![T::zero(); gate.len()];
    let mut up_grad = vec![T::zero(); gate.len()];
    gate_grad
        .par_chunks_mut(CHUNK)
        .zip(up_grad.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .zip(grad.par_chunks(CHUNK))
        .for_each(|(((gate_grad, up_grad), (gate, up)), grad)| {
            vectorized(
                #[inline(always)]
                || {
                    let n = gate.len();
                    let (gate_grad, up_grad) = (&mut gate_grad[..n], &mut up_grad[..n]);
                    let (up, grad) = (&up[..n], &grad[..n]);
                    for i in 0..n {
                        let s = sigmoid(gate[i]);
                        let silu = gate[i] * s;
                        gate_grad[i] = grad[i] * up[i] * (s + silu * (T::one() - s));
                        up_grad[i] = grad[i] * silu;
                    }
                },
            );
        });
    (gate_grad, up_grad)
}
