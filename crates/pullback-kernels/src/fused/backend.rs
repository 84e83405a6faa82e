//! The backend extension: fused operations on Burn's CPU backend, and their backward passes.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, backend_extension};
use burn::tensor::{DType, TensorData};

use super::{
    Activation, AttentionSpec, RotarySpec, activation, attention, linear, loss, norm, rotary,
};
use crate::Real;
use crate::stored::{StoredMatrix, product};

/// What a backend must offer to run fused operations; shapes are those of the functions in [`super`].
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedOps: Backend {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self>;
    fn rotary(x: FloatTensor<Self>, spec: RotarySpec) -> FloatTensor<Self>;
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self>;
    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    fn activate(x: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self>;
    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, kind: Activation)
    -> FloatTensor<Self>;
    fn cross_entropy(
        x: FloatTensor<Self>,
        unembed: FloatTensor<Self>,
        targets: Arc<[u32]>,
    ) -> FloatTensor<Self>;
    fn linear_stored(x: FloatTensor<Self>, weight: StoredMatrix) -> FloatTensor<Self>;
    fn cross_entropy_stored(
        x: FloatTensor<Self>,
        unembed: StoredMatrix,
        targets: Arc<[u32]>,
    ) -> FloatTensor<Self>;
}

/// A contiguous tensor's numbers.
struct Operand(FlexTensor);

impl Operand {
    fn new(tensor: FlexTensor) -> Self {
        Self(if tensor.is_contiguous() {
            tensor
        } else {
            tensor.to_contiguous()
        })
    }

    fn slice<T: Real>(&self) -> &[T] {
        let start = self.0.layout().start_offset();
        let len = self.0.layout().num_elements();
        &self.0.storage::<T>()[start..start + len]
    }

    fn width(&self) -> usize {
        let shape = self.0.layout().shape();
        shape[shape.num_dims() - 1]
    }
}

fn tensor<T: Real>(values: Vec<T>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
}

/// Runs the body once with `T` the element type of the tensor.
macro_rules! with_real {
    ($tensor:expr, $T:ident => $body:expr) => {
        match $tensor.dtype() {
            DType::F64 => {
                type $T = f64;
                $body
            }
            DType::F32 => {
                type $T = f32;
                $body
            }
            other => unreachable!("models run in f32 or f64, this tensor holds {other:?}"),
        }
    };
}

impl FusedOps for Flex {
    fn linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        with_real!(x, T => {
            let (x, weight) = (Operand::new(x), Operand::new(weight));
            let d_in = x.width();
            let out = linear::forward(x.slice::<T>(), weight.slice::<T>(), d_in);
            let d_out = weight.slice::<T>().len() / d_in;
            let rows = out.len() / d_out;
            tensor(out, &[rows, d_out])
        })
    }

    fn rms_norm(x: FlexTensor, weight: FlexTensor, eps: f64) -> FlexTensor {
        with_real!(x, T => {
            let (x, weight) = (Operand::new(x), Operand::new(weight));
            let out = norm::forward(x.slice::<T>(), weight.slice::<T>(), eps);
            like(out, &x)
        })
    }

    fn rotary(x: FlexTensor, spec: RotarySpec) -> FlexTensor {
        rotate(x, &spec, false)
    }

    fn attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, spec: AttentionSpec) -> FlexTensor {
        with_real!(q, T => {
            let (q, k, v) = (Operand::new(q), Operand::new(k), Operand::new(v));
            like(attention::forward(q.slice::<T>(), k.slice(), v.slice(), &spec), &q)
        })
    }

    fn layer_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, eps: f64) -> FlexTensor {
        with_real!(x, T => {
            let (x, weight, bias) = (Operand::new(x), Operand::new(weight), Operand::new(bias));
            let centred = norm::centre(x.slice::<T>(), x.width());
            let mut out = norm::forward(&centred, weight.slice::<T>(), eps);
            norm::add_bias(&mut out, bias.slice());
            like(out, &x)
        })
    }

    fn activate(x: FlexTensor, kind: Activation) -> FlexTensor {
        with_real!(x, T => {
            let x = Operand::new(x);
            like(activation::forward(kind, x.slice::<T>()), &x)
        })
    }

    fn gated(gate: FlexTensor, up: FlexTensor, kind: Activation) -> FlexTensor {
        with_real!(gate, T => {
            let (gate, up) = (Operand::new(gate), Operand::new(up));
            like(activation::gated_forward(kind, gate.slice::<T>(), up.slice()), &gate)
        })
    }

    fn cross_entropy(x: FlexTensor, unembed: FlexTensor, targets: Arc<[u32]>) -> FlexTensor {
        cross_entropy(x, unembed, &targets, false).0
    }

    fn linear_stored(x: FlexTensor, weight: StoredMatrix) -> FlexTensor {
        with_real!(x, T => {
            let x = Operand::new(x);
            let out = product::linear(x.slice::<T>(), &weight);
            let rows = out.len() / weight.rows();
            tensor(out, &[rows, weight.rows()])
        })
    }

    fn cross_entropy_stored(
        x: FlexTensor,
        unembed: StoredMatrix,
        targets: Arc<[u32]>,
    ) -> FlexTensor {
        cross_entropy_stored(x, &unembed, &targets, false).0
    }
}

fn like<T: Real>(values: Vec<T>, model: &Operand) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, model.0.layout().shape().clone()))
}

fn rotate(x: FlexTensor, spec: &RotarySpec, inverse: bool) -> FlexTensor {
    with_real!(x, T => {
        let x = Operand::new(x);
        like(rotary::rotate(x.slice::<T>(), x.width(), spec, inverse), &x)
    })
}

fn cross_entropy(
    x: FlexTensor,
    unembed: FlexTensor,
    targets: &[u32],
    want_grad: bool,
) -> (FlexTensor, Option<FlexTensor>) {
    with_real!(x, T => {
        let (x, unembed) = (Operand::new(x), Operand::new(unembed));
        let unembed = loss::Dense::new(unembed.slice::<T>(), x.width());
        let (losses, grad) = loss::forward(x.slice::<T>(), &unembed, targets, want_grad);
        let rows = losses.len();
        (tensor(losses, &[rows]), want_grad.then(|| like(grad, &x)))
    })
}

fn cross_entropy_stored(
    x: FlexTensor,
    unembed: &StoredMatrix,
    targets: &[u32],
    want_grad: bool,
) -> (FlexTensor, Option<FlexTensor>) {
    with_real!(x, T => {
        let x = Operand::new(x);
        let (losses, grad) = loss::forward(x.slice::<T>(), unembed, targets, want_grad);
        let rows = losses.len();
        (tensor(losses, &[rows]), want_grad.then(|| like(grad, &x)))
    })
}

/// The gradient of each row's loss times the gradient of that loss.
fn scaled_rows(row_grads: FlexTensor, grad: FlexTensor) -> FlexTensor {
    with_real!(grad, T => {
        let (row_grads, grad) = (Operand::new(row_grads), Operand::new(grad));
        let mut dx = row_grads.slice::<T>().to_vec();
        for (row, &g) in dx.chunks_exact_mut(row_grads.width()).zip(grad.slice::<T>()) {
            for value in row {
                *value *= g;
            }
        }
        like(dx, &row_grads)
    })
}

/// One operation's autodiff step: `$state` is what the backward pass keeps, `$backward` maps it and the
/// gradient of the output to the gradient of each parent that wants one.
macro_rules! differentiable {
    (
        $name:ident, $parents:literal, $state:ty,
        |$kept:ident, $grad:ident, $wanted:ident| $backward:expr
    ) => {
        #[derive(Debug)]
        struct $name;

        impl Backward<Flex, $parents> for $name {
            type State = $state;

            fn backward(
                self,
                ops: Ops<Self::State, $parents>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let $grad: FlexTensor = grads.consume::<Flex>(&ops.node);
                let $wanted: [bool; $parents] = ops.parents.each_ref().map(Option::is_some);
                let $kept = ops.state;
                let parent_grads: [Option<FlexTensor>; $parents] = $backward;
                for (parent, grad) in ops.parents.into_iter().zip(parent_grads) {
                    if let (Some(parent), Some(grad)) = (parent, grad) {
                        grads.register::<Flex>(parent.id, grad);
                    }
                }
            }
        }
    };
}

differentiable!(Linear, 2, (FlexTensor, FlexTensor), |kept, grad, wanted| {
    with_real!(grad, T => {
        let (x, weight, grad) = (Operand::new(kept.0), Operand::new(kept.1), Operand::new(grad));
        let d_in = x.width();
        [
            wanted[0].then(|| {
                like(linear::backward_input(weight.slice::<T>(), grad.slice(), d_in), &x)
            }),
            wanted[1].then(|| {
                like(linear::backward_weight(x.slice::<T>(), grad.slice(), d_in), &weight)
            }),
        ]
    })
});

differentiable!(
    RmsNorm,
    2,
    (FlexTensor, FlexTensor, f64),
    |kept, grad, wanted| {
        with_real!(grad, T => {
            let (x, weight, grad) = (Operand::new(kept.0), Operand::new(kept.1), Operand::new(grad));
            let (xs, weights, grads) = (x.slice::<T>(), weight.slice::<T>(), grad.slice::<T>());
            [
                wanted[0].then(|| like(norm::backward_input(xs, weights, grads, kept.2), &x)),
                wanted[1].then(|| {
                    like(norm::backward_weight(xs, weights.len(), grads, kept.2), &weight)
                }),
            ]
        })
    }
);

differentiable!(Rotary, 1, RotarySpec, |kept, grad, wanted| {
    [wanted[0].then(|| rotate(grad, &kept, true))]
});

differentiable!(
    Attention,
    3,
    (
        FlexTensor,
        FlexTensor,
        FlexTensor,
        FlexTensor,
        AttentionSpec
    ),
    |kept, grad, _wanted| {
        with_real!(grad, T => {
            let (q, k, v) = (Operand::new(kept.0), Operand::new(kept.1), Operand::new(kept.2));
            let (out, grad) = (Operand::new(kept.3), Operand::new(grad));
            let (dq, dk, dv) = attention::backward(
                q.slice::<T>(),
                k.slice(),
                v.slice(),
                out.slice(),
                grad.slice(),
                &kept.4,
            );
            [Some(like(dq, &q)), Some(like(dk, &k)), Some(like(dv, &v))]
        })
    }
);

differentiable!(
    LayerNorm,
    3,
    (FlexTensor, FlexTensor, f64),
    |kept, grad, wanted| {
        with_real!(grad, T => {
            let (x, weight, grad) = (Operand::new(kept.0), Operand::new(kept.1), Operand::new(grad));
            let (weights, grads) = (weight.slice::<T>(), grad.slice::<T>());
            let d = weights.len();
            let centred = norm::centre(x.slice::<T>(), d);
            [
                // Centring is its own transpose.
                wanted[0].then(|| {
                    let inner = norm::backward_input(&centred, weights, grads, kept.2);
                    like(norm::centre(&inner, d), &x)
                }),
                wanted[1].then(|| {
                    like(norm::backward_weight(&centred, d, grads, kept.2), &weight)
                }),
                wanted[2].then(|| like(norm::sum_rows(grads, d), &weight)),
            ]
        })
    }
);

differentiable!(
    Activate,
    1,
    (FlexTensor, Activation),
    |kept, grad, wanted| {
        with_real!(grad, T => {
            let (x, grad) = (Operand::new(kept.0), Operand::new(grad));
            [wanted[0].then(|| {
                like(activation::backward(kept.1, x.slice::<T>(), grad.slice()), &x)
            })]
        })
    }
);

differentiable!(
    Gated,
    2,
    (FlexTensor, FlexTensor, Activation),
    |kept, grad, _wanted| {
        with_real!(grad, T => {
            let (gate, up, grad) = (Operand::new(kept.0), Operand::new(kept.1), Operand::new(grad));
            let (dgate, dup) =
                activation::gated_backward(kept.2, gate.slice::<T>(), up.slice(), grad.slice());
            [Some(like(dgate, &gate)), Some(like(dup, &up))]
        })
    }
);

differentiable!(
    CrossEntropy,
    2,
    (FlexTensor, FlexTensor, FlexTensor, Arc<[u32]>),
    |kept, grad, wanted| {
        with_real!(grad, T => {
            let (x, unembed) = (Operand::new(kept.0), Operand::new(kept.1));
            let dx = wanted[0].then(|| scaled_rows(kept.2, grad.clone()));
            let grad = Operand::new(grad);
            let dw = wanted[1].then(|| {
                let dw = loss::backward_unembed(
                    x.slice::<T>(),
                    unembed.slice(),
                    &kept.3,
                    grad.slice(),
                );
                like(dw, &unembed)
            });
            [dx, dw]
        })
    }
);

differentiable!(LinearStored, 1, StoredMatrix, |kept, grad, wanted| {
    with_real!(grad, T => {
        let grad = Operand::new(grad);
        [wanted[0].then(|| {
            let dx = product::backward_input(grad.slice::<T>(), &kept);
            let rows = dx.len() / kept.columns();
            tensor(dx, &[rows, kept.columns()])
        })]
    })
});

differentiable!(CrossEntropyStored, 1, FlexTensor, |kept, grad, wanted| {
    [wanted[0].then(|| scaled_rows(kept, grad))]
});

impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let step = Linear.prepare::<C>([x_node, weight_node]).compute_bound();
        let out = Flex::linear(x.clone(), weight.clone());
        match step.stateful() {
            OpsKind::Tracked(step) => step.finish((x, weight), out),
            OpsKind::UnTracked(step) => step.finish(out),
        }
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let step = RmsNorm.prepare::<C>([x_node, weight_node]).compute_bound();
        let out = Flex::rms_norm(x.clone(), weight.clone(), eps);
        match step.stateful() {
            OpsKind::Tracked(step) => step.finish((x, weight, eps), out),
            OpsKind::UnTracked(step) => step.finish(out),
        }
    }

    fn rotary(x: FloatTensor<Self>, spec: RotarySpec) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let step = Rotary.prepare::<C>([x_node]).compute_bound();
        let out = Flex::rotary(x, spec.clone());
        match step.stateful() {
            OpsKind::Tracked(step) => step.finish(spec, out),
            OpsKind::UnTracked(step) => step.finish(out),
        }
    }

    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self> {
        let (q, q_node) = q.into_parts();
        let (k, k_node) = k.into_parts();
        let (v, v_node) = v.into_parts();
        let step = Attention
            .prepare::<C>([q_node, k_node, v_node])
            .compute_bound();
        let out = Flex::attention(q.clone(), k.clone(), v.clone(), spec.clone());
        match step.stateful() {
            OpsKind::Tracked(step) => {
                let state = (q, k, v, out.clone(), spec);
                step.finish(state, out)
            }
            OpsKind::UnTracked(step) => step.finish(out),
        }
    }

    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let (bias, bias_node) = bias.into_parts();
        let step = LayerNorm
            .prepare::<C>([x_node, weight_node, bias_node])
            .compute_bound();
        let out = Flex::layer_norm(x.clone(), weight.clone(), bias, eps);
        match step.stateful() {
            OpsKind::Tracked(step) => step.finish((x, weight, eps), out),
            OpsKind::UnTracked(step) => step.finish(out),
        }
    }

    fn activate(x: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let step = Activate.prepare::<C>([x_node]).compute_bound();
        let out = Flex::activate(x.clone(), kind);
        match step.stateful() {
            OpsKind::Tracked(step) => step.finish((x, kind), out),
            OpsKind::UnTracked(step) => step.finish(out),
        }
    }

    fn gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        kind: Activation,
    ) -> FloatTensor<Self> {
        let (gate, gate_node) = gate.into_parts();
        let (up, up_node) = up.into_parts();
        let step = Gated.prepare::<C>([gate_node, up_node]).compute_bound();
        let out = Flex::gated(gate.clone(), up.clone(), kind);
        match step.stateful() {
            OpsKind::Tracked(step) => step.finish((gate, up, kind), out),
            OpsKind::UnTracked(step) => step.finish(out),
        }
    }

    fn cross_entropy(
        x: FloatTensor<Self>,
        unembed: FloatTensor<Self>,
        targets: Arc<[u32]>,
    ) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (unembed, unembed_node) = unembed.into_parts();
        let step = CrossEntropy
            .prepare::<C>([x_node, unembed_node])
            .compute_bound();
        match step.stateful() {
            OpsKind::Tracked(step) => {
                // The gradient of each row comes almost free while its probabilities are at hand.
                let (losses, row_grads) = cross_entropy(x.clone(), unembed.clone(), &targets, true);
                let row_grads = row_grads.unwrap_or_else(|| x.clone());
                step.finish((x, unembed, row_grads, targets), losses)
            }
            OpsKind::UnTracked(step) => step.finish(cross_entropy(x, unembed, &targets, false).0),
        }
    }

    fn linear_stored(x: FloatTensor<Self>, weight: StoredMatrix) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let step = LinearStored.prepare::<C>([x_node]).compute_bound();
        let out = Flex::linear_stored(x, weight.clone());
        match step.stateful() {
            OpsKind::Tracked(step) => step.finish(weight, out),
            OpsKind::UnTracked(step) => step.finish(out),
        }
    }

    fn cross_entropy_stored(
        x: FloatTensor<Self>,
        unembed: StoredMatrix,
        targets: Arc<[u32]>,
    ) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let step = CrossEntropyStored.prepare::<C>([x_node]).compute_bound();
        match step.stateful() {
            OpsKind::Tracked(step) => {
                let (losses, row_grads) = cross_entropy_stored(x.clone(), &unembed, &targets, true);
                step.finish(row_grads.unwrap_or(x), losses)
            }
            OpsKind::UnTracked(step) => {
                step.finish(cross_entropy_stored(x, &unembed, &targets, false).0)
            }
        }
    }
}
