//! The operations of a transformer block on Burn tensors.
//!
//! Each public function runs a fused kernel with a handwritten backward pass where the tensor lives on the
//! CPU backend, and [`composed`] from Burn's own operations elsewhere. Gradients flow to every tensor
//! argument. Rows are the positions of one or several sequences, one after the other.

mod activation;
mod attention;
mod backend;
pub mod composed;
mod linear;
mod loss;
mod norm;
mod rotary;

use std::sync::Arc;

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{Device, Tensor};

pub use activation::Activation;
pub use attention::{AttentionSpec, Span};
pub use rotary::{RotarySpec, RotaryTable};

use crate::StoredMatrix;
use backend::FusedOps;

/// Whether tensors on this device run the fused kernels.
pub fn is_fused(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => true,
        DispatchDevice::Autodiff(inner) => {
            let inner: &DispatchDevice = inner;
            matches!(inner, DispatchDevice::Flex(_))
        }
        #[cfg_attr(
            not(feature = "gpu"),
            expect(
                unreachable_patterns,
                reason = "other devices come with other features of Burn"
            )
        )]
        _ => false,
    }
}

/// `x Wᵀ`: `x [n, i]`, `weight [o, i]` → `[n, o]`.
///
/// # Panics
/// If the inner dimensions differ.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    assert_eq!(
        x.dims()[1],
        weight.dims()[1],
        "linear: widths of `x` and `weight` differ"
    );
    if !is_fused(&x.device()) {
        return composed::linear(x, weight);
    }
    Tensor::from_dispatch(<Dispatch as FusedOps>::linear(
        x.into_dispatch(),
        weight.into_dispatch(),
    ))
}

/// `w ∘ x / sqrt(mean(x²) + eps)`: `x [n, d]`, `weight [d]` → `[n, d]`
/// (arXiv 1910.07467, equation 4).
///
/// # Panics
/// If the widths differ.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> Tensor<2> {
    assert_eq!(
        x.dims()[1],
        weight.dims()[0],
        "rms_norm: widths of `x` and `weight` differ"
    );
    if !is_fused(&x.device()) {
        return composed::rms_norm(x, weight, eps);
    }
    Tensor::from_dispatch(<Dispatch as FusedOps>::rms_norm(
        x.into_dispatch(),
        weight.into_dispatch(),
        eps,
    ))
}

/// `w ∘ (x − mean(x)) / sqrt(var(x) + eps) + b`: `x [n, d]`, `weight [d]`, `bias [d]` → `[n, d]`, the variance that of
/// all `d` numbers (arXiv 1607.06450).
///
/// # Panics
/// If the widths differ.
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    assert!(
        x.dims()[1] == weight.dims()[0] && weight.dims() == bias.dims(),
        "layer_norm: widths of `x`, `weight` and `bias` differ"
    );
    if !is_fused(&x.device()) {
        return composed::layer_norm(x, weight, bias, eps);
    }
    Tensor::from_dispatch(<Dispatch as FusedOps>::layer_norm(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        eps,
    ))
}

/// Rotary position embedding of every head of `x [rows, heads·d_head]` (arXiv 2104.09864).
///
/// # Panics
/// If there is not one position a row, the width is no multiple of `spec.d_head`, or a position is not in the table.
pub fn rotary(x: Tensor<2>, spec: RotarySpec) -> Tensor<2> {
    let [rows, width] = x.dims();
    assert!(
        rows == spec.positions.len() && width.is_multiple_of(spec.d_head),
        "rotary: {rows}×{width} does not fit {} positions and heads of {}",
        spec.positions.len(),
        spec.d_head
    );
    assert!(
        spec.table.turning() <= spec.d_head,
        "rotary: {} of {} coordinates cannot turn",
        spec.table.turning(),
        spec.d_head
    );
    let last = spec.positions.iter().max().copied().unwrap_or(0) as usize;
    assert!(
        last < spec.table.positions() || spec.table.turning() == 0,
        "rotary: position {last} is not in a table of {}",
        spec.table.positions()
    );
    if !is_fused(&x.device()) {
        return composed::rotary(x, &spec);
    }
    Tensor::from_dispatch(<Dispatch as FusedOps>::rotary(x.into_dispatch(), spec))
}

fn assert_attention(q: [usize; 2], k: [usize; 2], v: [usize; 2], spec: &AttentionSpec) {
    assert!(
        spec.kv_heads > 0 && spec.heads.is_multiple_of(spec.kv_heads),
        "attention: {} heads do not divide among {} key-value heads",
        spec.heads,
        spec.kv_heads
    );
    assert!(
        q[1] == spec.heads * spec.d_head && k == v && k[1] == spec.kv_heads * spec.d_head,
        "attention: widths of q {q:?}, k {k:?}, v {v:?} do not fit {spec:?}"
    );
    let (queries, keys) = spec.rows();
    assert!(
        q[0] == queries && k[0] == keys && spec.sequences.iter().all(|s| s.queries <= s.keys),
        "attention: rows of q {q:?} and k {k:?} do not fit {:?}",
        spec.sequences
    );
    assert!(
        spec.window != Some(0),
        "attention: a window of 0 sees nothing"
    );
}

/// Causal attention with grouped heads: `q [Σ queries, heads·d_head]`, `k`, `v [Σ keys, kv_heads·d_head]`
/// → `[Σ queries, heads·d_head]`. The sequences' rows follow one another and their lengths may differ, so a batch of
/// different prompts needs no padding. The queries of a sequence are the last of its positions (one, with a cache of
/// keys).
///
/// # Panics
/// If the shapes do not fit `spec`.
pub fn attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, spec: AttentionSpec) -> Tensor<2> {
    assert_attention(q.dims(), k.dims(), v.dims(), &spec);
    if !is_fused(&q.device()) {
        return composed::attention(q, k, v, &spec);
    }
    Tensor::from_dispatch(<Dispatch as FusedOps>::attention(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        spec,
    ))
}

/// `f(x)` elementwise, `x [n, f]`.
pub fn activate(x: Tensor<2>, kind: Activation) -> Tensor<2> {
    if !is_fused(&x.device()) {
        return composed::activate(x, kind);
    }
    Tensor::from_dispatch(<Dispatch as FusedOps>::activate(x.into_dispatch(), kind))
}

/// `f(gate) ∘ up`, both `[n, f]` (arXiv 2002.05202, equation 5).
///
/// # Panics
/// If the shapes differ.
pub fn gated(gate: Tensor<2>, up: Tensor<2>, kind: Activation) -> Tensor<2> {
    assert_eq!(gate.dims(), up.dims(), "gated: shapes differ");
    if !is_fused(&gate.device()) {
        return composed::gated(gate, up, kind);
    }
    Tensor::from_dispatch(<Dispatch as FusedOps>::gated(
        gate.into_dispatch(),
        up.into_dispatch(),
        kind,
    ))
}

fn assert_cross_entropy(x: [usize; 2], unembed: [usize; 2], targets: &[u32]) {
    assert_eq!(x[1], unembed[1], "cross_entropy: widths differ");
    assert_eq!(
        x[0],
        targets.len(),
        "cross_entropy: one target a row is needed"
    );
    let d_vocab = unembed[0];
    assert!(
        targets.iter().all(|&target| (target as usize) < d_vocab),
        "cross_entropy: a target is not below the vocabulary size {d_vocab}"
    );
}

/// Cross-entropy in nats of each row's target: `x [n, d]` (after the final norm), `unembed [v, d]` →
/// `[n]`. The logits are made a few rows at a time.
///
/// # Panics
/// If a target is not below `v`, or the shapes do not agree.
pub fn cross_entropy(x: Tensor<2>, unembed: Tensor<2>, targets: Arc<[u32]>) -> Tensor<1> {
    assert_cross_entropy(x.dims(), unembed.dims(), &targets);
    if !is_fused(&x.device()) {
        return composed::cross_entropy(x, unembed, &targets);
    }
    Tensor::from_dispatch(<Dispatch as FusedOps>::cross_entropy(
        x.into_dispatch(),
        unembed.into_dispatch(),
        targets,
    ))
}

/// `x Wᵀ` with a matrix that stays as its file stores it: `x [n, i]`, `weight [o, i]` → `[n, o]`. Gradients flow to
/// `x` alone.
///
/// # Panics
/// If the inner dimensions differ, or `x` is not on the CPU backend; elsewhere use [`linear`] with
/// [`StoredMatrix::to_vec`].
pub fn linear_stored(x: Tensor<2>, weight: &StoredMatrix) -> Tensor<2> {
    assert_eq!(
        x.dims()[1],
        weight.columns(),
        "linear_stored: widths of `x` and `weight` differ"
    );
    assert_fused("linear_stored", &x.device());
    Tensor::from_dispatch(<Dispatch as FusedOps>::linear_stored(
        x.into_dispatch(),
        weight.clone(),
    ))
}

/// [`cross_entropy`] with an unembedding that stays as its file stores it: `x [n, d]`, `unembed [v, d]` → `[n]`.
/// Gradients flow to `x` alone.
///
/// # Panics
/// As [`cross_entropy`], or if `x` is not on the CPU backend.
pub fn cross_entropy_stored(
    x: Tensor<2>,
    unembed: &StoredMatrix,
    targets: Arc<[u32]>,
) -> Tensor<1> {
    assert_cross_entropy(x.dims(), [unembed.rows(), unembed.columns()], &targets);
    assert_fused("cross_entropy_stored", &x.device());
    Tensor::from_dispatch(<Dispatch as FusedOps>::cross_entropy_stored(
        x.into_dispatch(),
        unembed.clone(),
        targets,
    ))
}

fn assert_fused(operation: &str, device: &Device) {
    assert!(
        is_fused(device),
        "{operation}: stored weights are multiplied on the CPU only; on {device:?} expand them first"
    );
}

#[cfg(test)]
mod tests;
