//! The hidden layer of an MLP on slices: `f(x)`, or `f(gate) ∘ up` where it is gated (Shazeer, arXiv 2002.05202,
//! equation 5).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Real;
use crate::real::written;
use crate::simd::vectorized;

/// Elements worked on by one task.
const CHUNK: usize = 1 << 15;

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)` with the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415).
    Gelu,
    /// `x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))`, the same paper's approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// `√(2/π)`.
const ROOT: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    (T::one() + (-x).exp_vector()).recip()
}

/// `f(x) / x`, the share of `x` that passes.
#[inline(always)]
fn share<T: Real>(kind: Activation, x: T) -> T {
    match kind {
        Activation::Silu => sigmoid(x),
        Activation::Gelu => x.normal_cdf(),
        // (1 + tanh y)/2 = sigmoid(2y).
        Activation::GeluTanh => sigmoid(T::of(2.0 * ROOT) * (x + T::of(CUBIC) * x * x * x)),
        Activation::Relu => {
            if x > T::zero() {
                T::one()
            } else {
                T::zero()
            }
        }
    }
}

/// `f'(x)`, given `f(x) / x`.
#[inline(always)]
fn slope<T: Real>(kind: Activation, x: T, share: T) -> T {
    match kind {
        Activation::Silu => share + x * share * (T::one() - share),
        Activation::Gelu => {
            const DENSITY: f64 = 0.398_942_280_401_432_7;
            share + x * T::of(DENSITY) * (T::of(-0.5) * x * x).exp_vector()
        }
        Activation::GeluTanh => {
            let inner = T::of(2.0 * ROOT) * (T::one() + T::of(3.0 * CUBIC) * x * x);
            share + x * share * (T::one() - share) * inner
        }
        Activation::Relu => share,
    }
}

/// Runs the body once for each kind, so that the choice is made outside of the loop.
macro_rules! for_kind {
    ($kind:expr, $K:ident => $body:expr) => {
        match $kind {
            Activation::Silu => {
                const $K: Activation = Activation::Silu;
                $body
            }
            Activation::Gelu => {
                const $K: Activation = Activation::Gelu;
                $body
            }
            Activation::GeluTanh => {
                const $K: Activation = Activation::GeluTanh;
                $body
            }
            Activation::Relu => {
                const $K: Activation = Activation::Relu;
                $body
            }
        }
    };
}

/// Forward: `f(x)`, elementwise.
pub(super) fn forward<T: Real>(kind: Activation, x: &[T]) -> Vec<T> {
    // SAFETY: the chunk and its part of `x` are equally long, so every element is written.
    unsafe {
        written(x.len(), CHUNK, |number, out| {
            let x = &x[number * CHUNK..][..out.len()];
            for_kind!(kind, K => vectorized(
                #[inline(always)]
                || {
                    for (out, &x) in out.iter_mut().zip(x) {
                        out.write(x * share(K, x));
                    }
                },
            ));
        })
    }
}

/// Backward: `g ∘ f'(x)`.
pub(super) fn backward<T: Real>(kind: Activation, x: &[T], grad: &[T]) -> Vec<T> {
    let mut out = grad.to_vec();
    each(&mut out, x, |out, x| {
        for_kind!(kind, K => vectorized(
            #[inline(always)]
            || {
                for (out, &x) in out.iter_mut().zip(x) {
                    *out *= slope(K, x, share(K, x));
                }
            },
        ));
    });
    out
}

/// Calls `work` on matching chunks, on threads where there are several.
fn each<T: Real>(out: &mut [T], x: &[T], work: impl Fn(&mut [T], &[T]) + Sync) {
    if out.len() <= CHUNK {
        work(out, x);
    } else {
        out.par_chunks_mut(CHUNK)
            .zip(x.par_chunks(CHUNK))
            .for_each(|(out, x)| work(out, x));
    }
}

/// Forward of a gated layer: `f(gate) ∘ up`.
pub(super) fn gated_forward<T: Real>(kind: Activation, gate: &[T], up: &[T]) -> Vec<T> {
    assert_eq!(gate.len(), up.len(), "gate and up differ in length");
    // SAFETY: the chunk and its parts of `gate` and `up` are equally long, so every element is written.
    unsafe {
        written(gate.len(), CHUNK, |number, out| {
            let gate = &gate[number * CHUNK..][..out.len()];
            let up = &up[number * CHUNK..][..out.len()];
            for_kind!(kind, K => vectorized(
                #[inline(always)]
                || {
                    for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                        out.write(u * (g * share(K, g)));
                    }
                },
            ));
        })
    }
}

/// Backward of a gated layer: gradients of the gate and of the other factor.
pub(super) fn gated_backward<T: Real>(
    kind: Activation,
    gate: &[T],
    up: &[T],
    grad: &[T],
) -> (Vec<T>, Vec<T>) {
    let mut gate_grad = vec![T::zero(); gate.len()];
    let mut up_grad = vec![T::zero(); gate.len()];
    gate_grad
        .par_chunks_mut(CHUNK)
        .zip(up_grad.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .zip(grad.par_chunks(CHUNK))
        .for_each(|(((gate_grad, up_grad), (gate, up)), grad)| {
            for_kind!(kind, K => vectorized(
                #[inline(always)]
                || {
                    let n = gate.len();
                    let (gate_grad, up_grad) = (&mut gate_grad[..n], &mut up_grad[..n]);
                    let (up, grad) = (&up[..n], &grad[..n]);
                    for i in 0..n {
                        let s = share(K, gate[i]);
                        gate_grad[i] = grad[i] * up[i] * slope(K, gate[i], s);
                        up_grad[i] = grad[i] * gate[i] * s;
                    }
                },
            ));
        });
    (gate_grad, up_grad)
}
