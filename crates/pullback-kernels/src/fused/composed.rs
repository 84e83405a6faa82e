//! The fused operations spelled out in Burn's own: what devices without a fused kernel run, and the oracle
//! the fused ones are tested against. Shapes and formulas are those of [`super`].

use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation};

use super::{Activation, AttentionSpec, RotarySpec};

/// See [`super::linear`].
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    x.matmul(weight.transpose())
}

/// See [`super::rms_norm`].
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> Tensor<2> {
    let mean_square = x.clone().powf_scalar(2.0).mean_dim(1);
    x / (mean_square + eps).sqrt() * weight.unsqueeze()
}

/// See [`super::layer_norm`].
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().powf_scalar(2.0).mean_dim(1);
    centred / (variance + eps).sqrt() * weight.unsqueeze() + bias.unsqueeze()
}

/// See [`super::rotary`].
pub fn rotary(x: Tensor<2>, spec: &RotarySpec) -> Tensor<2> {
    let [rows, width] = x.dims();
    let (heads, turning) = (width / spec.d_head, spec.table.turning());
    let half = turning / 2;
    let angles = spec.positions.iter().map(|&p| spec.table.at(p));
    let (cosines, sines): (Vec<&[f64]>, Vec<&[f64]>) = angles.unzip();
    let table = |values: Vec<f64>| -> Tensor<3> {
        let data = TensorData::new(values, [rows, 1, half]);
        Tensor::from_data(data, (&x.device(), x.dtype()))
    };
    let (cosines, sines) = (table(cosines.concat()), table(sines.concat()));
    let whole: Tensor<3> = x.reshape([rows, heads, spec.d_head]);
    let part = whole.clone().narrow(2, 0, turning);
    let (a, b) = (part.clone().narrow(2, 0, half), part.narrow(2, half, half));
    let turned_a = a.clone() * cosines.clone() - b.clone() * sines.clone();
    let turned_b = a * sines + b * cosines;
    let turned = Tensor::cat(vec![turned_a, turned_b], 2);
    let turned = if turning == spec.d_head {
        turned
    } else {
        let rest = whole.narrow(2, turning, spec.d_head - turning);
        Tensor::cat(vec![turned, rest], 2)
    };
    turned.reshape([rows, width])
}

/// The scores of one sequence before its mask, after scale and cap: `q [t, heads·d]`, `k [s, kv_heads·d]` →
/// `[heads, t, s]`.
pub fn attention_scores(q: Tensor<2>, k: Tensor<2>, spec: &AttentionSpec) -> Tensor<3> {
    let (t, s) = (q.dims()[0], k.dims()[0]);
    let q: Tensor<3> = q.reshape([t, spec.heads, spec.d_head]).swap_dims(0, 1);
    let k = by_query_head(k, s, spec).swap_dims(1, 2);
    softcap(q.matmul(k) * spec.scale, spec.softcap)
}

/// Keys or values of one sequence, once for each query head: `[s, kv_heads·d]` → `[heads, s, d]`.
pub fn by_query_head(x: Tensor<2>, s: usize, spec: &AttentionSpec) -> Tensor<3> {
    let (kv, group, d) = (spec.kv_heads, spec.group(), spec.d_head);
    let x: Tensor<4> = x.reshape([s, kv, 1, d]).permute([1, 2, 0, 3]);
    x.expand([kv as i64, group as i64, s as i64, d as i64])
        .reshape([spec.heads, s, d])
}

/// `cap · tanh(x / cap)`.
pub fn softcap<const D: usize>(x: Tensor<D>, cap: Option<f64>) -> Tensor<D> {
    match cap {
        // Not `x / cap`: the gradient of a division by a number is computed in single precision.
        Some(cap) => (x * cap.recip()).tanh() * cap,
        None => x,
    }
}

/// What the last `t` of `s` positions must not see, `[t, s]`.
pub fn hidden(t: usize, s: usize, spec: &AttentionSpec, device: &Device) -> Tensor<2, Bool> {
    let mut mask = Vec::with_capacity(t * s);
    for query in 0..t {
        let (first, end) = spec.visible(s - t + query);
        mask.extend((0..s).map(|key| key < first || key >= end));
    }
    Tensor::from_data(TensorData::new(mask, [t, s]), device)
}

/// See [`super::attention`].
pub fn attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, spec: &AttentionSpec) -> Tensor<2> {
    let (mut queries, mut keys) = (0, 0);
    let mut out = Vec::with_capacity(spec.sequences.len());
    for span in spec.sequences.iter() {
        let (t, s) = (span.queries, span.keys);
        if t == 0 {
            continue;
        }
        let q = q.clone().narrow(0, queries, t);
        let k = k.clone().narrow(0, keys, s);
        let v = v.clone().narrow(0, keys, s);
        queries += t;
        keys += s;
        let scores = attention_scores(q, k, spec);
        let mask = hidden(t, s, spec, &scores.device()).unsqueeze::<3>();
        let mask = mask.expand([spec.heads as i64, t as i64, s as i64]);
        let weights = activation::softmax(scores.mask_fill(mask, -1.0e30), 2);
        let mixed = weights.matmul(by_query_head(v, s, spec));
        out.push(mixed.swap_dims(0, 1).reshape([t, spec.heads * spec.d_head]));
    }
    Tensor::cat(out, 0)
}

/// See [`super::activate`].
pub fn activate(x: Tensor<2>, kind: Activation) -> Tensor<2> {
    match kind {
        Activation::Silu => activation::silu(x),
        // Not `activation::gelu`: on some devices its gradient is that of the approximation by tanh.
        Activation::Gelu => {
            let share = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0;
            x * share * 0.5
        }
        Activation::GeluTanh => {
            let cubic = x.clone().powi_scalar(3) * 0.044_715;
            let root = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
            let inner = (x.clone() + cubic) * root;
            x * (inner.tanh() + 1.0) * 0.5
        }
        Activation::Relu => activation::relu(x),
    }
}

/// See [`super::gated`].
pub fn gated(gate: Tensor<2>, up: Tensor<2>, kind: Activation) -> Tensor<2> {
    activate(gate, kind) * up
}

/// See [`super::cross_entropy`]; here the logits stand in memory whole.
pub fn cross_entropy(x: Tensor<2>, unembed: Tensor<2>, targets: &[u32]) -> Tensor<1> {
    loss_of_logits(linear(x, unembed), targets)
}

/// Cross-entropy in nats of each row's target, from logits `[n, v]`.
pub fn loss_of_logits(logits: Tensor<2>, targets: &[u32]) -> Tensor<1> {
    let ids: Vec<i64> = targets.iter().map(|&target| i64::from(target)).collect();
    let ids = TensorData::new(ids, [targets.len(), 1]);
    let ids = Tensor::<2, Int>::from_data(ids, &logits.device());
    activation::log_softmax(logits, 1)
        .gather(1, ids)
        .neg()
        .squeeze_dim(1)
}
