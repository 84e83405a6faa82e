//! An activation on its way through the model, with its derivative in a direction where one is asked for, and the
//! operations that carry both along.

use std::sync::Arc;

use burn::tensor::Tensor;
use pullback_kernels::fused::{self, Activation, RotarySpec, RotaryTable, layer_norm, rms_norm};

use crate::model::{Affine, NormWeights};

/// An activation `[rows, width]` and, in a forward-mode run, its derivative in the run's direction.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) x: Tensor<2>,
    pub(crate) dx: Option<Tensor<2>>,
}

impl Flow {
    pub(crate) fn new(x: Tensor<2>) -> Self {
        Self { x, dx: None }
    }

    /// Applies a linear map.
    pub(crate) fn linear(self, map: impl Fn(Tensor<2>) -> Tensor<2>) -> Self {
        Self {
            x: map(self.x),
            dx: self.dx.map(map),
        }
    }

    /// `x Wᵀ + b`.
    pub(crate) fn affine(self, map: &Affine) -> Self {
        let mut out = self.linear(|x| map.weight.apply(x));
        if let Some(bias) = &map.bias {
            out.x = out.x + bias.clone().unsqueeze();
        }
        out
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            x: self.x + other.x,
            dx: sum(self.dx, other.dx),
        }
    }

    /// A function whose derivative is a symmetric matrix; see [`symmetric_tangent`].
    pub(crate) fn symmetric(self, function: impl Fn(Tensor<2>) -> Tensor<2>) -> Self {
        let dx = self.dx.map(|dx| symmetric_tangent(&function, &self.x, dx));
        Self {
            x: function(self.x),
            dx,
        }
    }

    /// A norm, in the model's way.
    pub(crate) fn norm(self, weights: &NormWeights, is_layer: bool, eps: f64) -> Self {
        let plain = |x: Tensor<2>, gain: &Tensor<1>, bias: Option<&Tensor<1>>| {
            if is_layer {
                let bias = bias.cloned().unwrap_or_else(|| gain.zeros_like());
                layer_norm(x, gain.clone(), bias, eps)
            } else {
                rms_norm(x, gain.clone(), eps)
            }
        };
        if self.dx.is_none() {
            return Self::new(plain(self.x, &weights.gain, weights.bias.as_ref()));
        }
        // Without its gain a norm has a symmetric derivative.
        let one = weights.gain.ones_like();
        let lifted = |x: &Tensor<2>| {
            if x.device().is_autodiff() {
                Tensor::from_inner(one.clone())
            } else {
                one.clone()
            }
        };
        let gain: Tensor<2> = weights.gain.clone().unsqueeze();
        let mut out = self
            .symmetric(|x| {
                let one = lifted(&x);
                plain(x, &one, None)
            })
            .linear(|x| x * gain.clone());
        if let Some(bias) = &weights.bias {
            out.x = out.x + bias.clone().unsqueeze();
        }
        out
    }

    /// What a norm divides by, `[rows, 1]`, and the (centred) activation that it divides.
    pub(crate) fn norm_scale(self, is_layer: bool, eps: f64) -> (Self, Self) {
        let centred = if is_layer {
            self.linear(|x| x.clone() - x.mean_dim(1))
        } else {
            self
        };
        let x = centred.x.clone();
        let scale = (x.clone().powi_scalar(2).mean_dim(1) + eps).sqrt();
        let dx = centred
            .dx
            .clone()
            .map(|dx| (x * dx).mean_dim(1) / scale.clone());
        (Self { x: scale, dx }, centred)
    }

    /// `gain ∘ self / scale + bias`.
    pub(crate) fn divided(self, scale: Self, weights: &NormWeights) -> Self {
        let ratio = self.x / scale.x.clone();
        let dx = sum(
            self.dx.map(|dx| dx / scale.x.clone()),
            scale.dx.map(|ds| (ratio.clone() * ds / scale.x).neg()),
        );
        let gain: Tensor<2> = weights.gain.clone().unsqueeze();
        let mut out = Self { x: ratio, dx }.linear(|x| x * gain.clone());
        if let Some(bias) = &weights.bias {
            out.x = out.x + bias.clone().unsqueeze();
        }
        out
    }

    /// Works on heads of `d` coordinates as on rows: `[rows, heads·d]` → `[rows·heads, d]`.
    pub(crate) fn split_heads(self, d: usize) -> Self {
        self.linear(|x| {
            let [rows, width] = x.dims();
            x.reshape([rows * (width / d), d])
        })
    }

    /// Undoes [`Flow::split_heads`].
    pub(crate) fn join_heads(self, heads: usize) -> Self {
        self.linear(|x| {
            let [rows, d] = x.dims();
            x.reshape([rows / heads, heads * d])
        })
    }

    pub(crate) fn rotary(
        self,
        table: &Arc<RotaryTable>,
        positions: &Arc<[u32]>,
        d_head: usize,
    ) -> Self {
        self.linear(|x| {
            let spec = RotarySpec {
                table: Arc::clone(table),
                positions: Arc::clone(positions),
                d_head,
            };
            fused::rotary(x, spec)
        })
    }

    pub(crate) fn activate(self, kind: Activation) -> Self {
        self.symmetric(|x| fused::activate(x, kind))
    }

    /// `f(self) ∘ up`.
    pub(crate) fn gate(self, up: Self, kind: Activation) -> Self {
        if self.dx.is_none() && up.dx.is_none() {
            return Self::new(fused::gated(self.x, up.x, kind));
        }
        let hidden = self.activate(kind);
        Self {
            x: hidden.x.clone() * up.x.clone(),
            dx: sum(hidden.dx.map(|dx| dx * up.x), up.dx.map(|dx| dx * hidden.x)),
        }
    }

    /// `cap · tanh(x / cap)`.
    pub(crate) fn softcap(self, cap: Option<f32>) -> Self {
        match cap {
            Some(cap) => self.symmetric(|x| fused::composed::softcap(x, Some(f64::from(cap)))),
            None => self,
        }
    }
}

/// The derivative at `x` in the direction `dx` of a function whose derivative is a symmetric matrix, such as a function of
/// each number alone: its product with a vector from the right is that from the left, which the backward pass gives.
pub fn symmetric_tangent(
    function: impl Fn(Tensor<2>) -> Tensor<2>,
    x: &Tensor<2>,
    dx: Tensor<2>,
) -> Tensor<2> {
    let at = Tensor::<2>::from_inner(x.clone()).require_grad();
    let value = function(at.clone()) * Tensor::from_inner(dx.clone());
    let grads = value.sum().backward();
    at.grad(&grads).unwrap_or_else(|| dx.zeros_like())
}

/// The sum of two derivatives, of which an absent one is zero.
pub(crate) fn sum<const D: usize>(a: Option<Tensor<D>>, b: Option<Tensor<D>>) -> Option<Tensor<D>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}
