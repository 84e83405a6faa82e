//! The fused operations spelled out in Burn's own: what devices without a fused kernel run, and the oracle
//! the fused ones are tested against. Shapes and formulas are those of [`super`].

use burn::tensor::{DType, Int, Tensor, TensorData, activation};

use super::{AttentionSpec, RotaryPairs, RotarySpec};

/// See [`super::linear`].
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    x.matmul(weight.transpose())
}

/// See [`super::rms_norm`].
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> Tensor<2> {
    let mean_square = x.clone().powf_scalar(2.0).mean_dim(1);
    x / (mean_square + eps).sqrt() * weight.unsqueeze()
}

/// See [`super::rotary`].
pub fn rotary(x: Tensor<2>, spec: RotarySpec) -> Tensor<2> {
    let [rows, width] = x.dims();
    let (batch, heads, half) = (rows / spec.time, width / spec.d_head, spec.rotary_dim / 2);
    let mut cosines = Vec::with_capacity(spec.time * half);
    let mut sines = Vec::with_capacity(spec.time * half);
    for row in 0..spec.time {
        for pair in 0..half {
            let frequency = spec.base.powf(-2.0 * pair as f64 / spec.rotary_dim as f64);
            let (sin, cos) = ((spec.start + row) as f64 * frequency).sin_cos();
            cosines.push(cos);
            sines.push(sin);
        }
    }
    let table = |values: Vec<f64>| -> Tensor<4> {
        let data = TensorData::new(values, [1, spec.time, 1, half]);
        Tensor::from_data(data, (&x.device(), dtype(&x)))
    };
    let (cosines, sines) = (table(cosines), table(sines));
    let x4 = x.reshape([batch, spec.time, heads, spec.d_head]);
    let turning = x4.clone().narrow(3, 0, spec.rotary_dim);
    let (a, b) = match spec.pairs {
        RotaryPairs::HalfSplit => (
            turning.clone().narrow(3, 0, half),
            turning.narrow(3, half, half),
        ),
        RotaryPairs::Interleaved => {
            let pairs: Tensor<5> = turning.reshape([batch, spec.time, heads, half, 2]);
            (
                pairs.clone().narrow(4, 0, 1).squeeze_dim(4),
                pairs.narrow(4, 1, 1).squeeze_dim(4),
            )
        }
    };
    let turned_a = a.clone() * cosines.clone() - b.clone() * sines.clone();
    let turned_b = a * sines + b * cosines;
    let turned: Tensor<4> = match spec.pairs {
        RotaryPairs::HalfSplit => Tensor::cat(vec![turned_a, turned_b], 3),
        RotaryPairs::Interleaved => Tensor::stack::<5>(vec![turned_a, turned_b], 4).reshape([
            batch,
            spec.time,
            heads,
            spec.rotary_dim,
        ]),
    };
    let whole = if spec.rotary_dim == spec.d_head {
        turned
    } else {
        let rest = x4.narrow(3, spec.rotary_dim, spec.d_head - spec.rotary_dim);
        Tensor::cat(vec![turned, rest], 3)
    };
    whole.reshape([rows, width])
}

/// See [`super::attention`].
pub fn attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, spec: AttentionSpec) -> Tensor<2> {
    let (t, s) = (q.dims()[0] / spec.batch, k.dims()[0] / spec.batch);
    let (kv, group, d) = (spec.kv_heads, spec.heads / spec.kv_heads, spec.d_head);
    let q: Tensor<5> = q
        .reshape([spec.batch, t, kv, group, d])
        .permute([0, 2, 3, 1, 4]);
    let k: Tensor<5> = k
        .reshape([spec.batch, s, kv, 1, d])
        .permute([0, 2, 3, 4, 1]);
    let v: Tensor<5> = v
        .reshape([spec.batch, s, kv, 1, d])
        .permute([0, 2, 3, 1, 4]);
    let scores = q.matmul(k.expand([
        spec.batch as i64,
        kv as i64,
        group as i64,
        d as i64,
        s as i64,
    ])) * spec.scale;
    let device = scores.device();
    let queries: Tensor<2, Int> =
        Tensor::arange((s - t) as i64..s as i64, &device).unsqueeze_dim(1);
    let keys: Tensor<2, Int> = Tensor::arange(0..s as i64, &device).unsqueeze_dim(0);
    let hidden = keys
        .expand([t as i64, s as i64])
        .greater(queries.expand([t as i64, s as i64]));
    let scores = scores.mask_fill(
        hidden.unsqueeze::<5>().expand([
            spec.batch as i64,
            kv as i64,
            group as i64,
            t as i64,
            s as i64,
        ]),
        -1.0e30,
    );
    let weights = activation::softmax(scores, 4);
    let v = v.expand([
        spec.batch as i64,
        kv as i64,
        group as i64,
        s as i64,
        d as i64,
    ]);
    weights
        .matmul(v)
        .permute([0, 3, 1, 2, 4])
        .reshape([spec.batch * t, spec.heads * d])
}

/// See [`super::gated_silu`].
pub fn gated_silu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    activation::silu(gate) * up
}

/// See [`super::cross_entropy`]; here the logits stand in memory whole.
pub fn cross_entropy(x: Tensor<2>, unembed: Tensor<2>, targets: &[u32]) -> Tensor<1> {
    let logits = linear(x, unembed);
    let ids: Vec<i64> = targets.iter().map(|&target| i64::from(target)).collect();
    let ids = TensorData::new(ids, [targets.len(), 1]);
    let ids = Tensor::<2, Int>::from_data(ids, &logits.device());
    activation::log_softmax(logits, 1)
        .gather(1, ids)
        .neg()
        .squeeze_dim(1)
}

fn dtype(x: &Tensor<2>) -> DType {
    x.dtype()
}
