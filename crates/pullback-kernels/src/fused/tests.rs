//! Fused against composed: values and every gradient, in f64, where rounding cannot hide an error.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{AttentionSpec, RotaryPairs, RotarySpec, composed};

struct Source(ChaCha8Rng);

impl Source {
    fn tensor<const D: usize>(&mut self, dims: [usize; D], dtype: DType) -> Tensor<D> {
        let values: Vec<f64> = (0..dims.iter().product())
            .map(|_| self.0.random_range(-1.5..1.5))
            .collect();
        let device = Device::flex().autodiff();
        Tensor::from_data(TensorData::new(values, dims), (&device, dtype)).require_grad()
    }
}

fn worst<const D: usize>(a: &Tensor<D>, b: &Tensor<D>) -> f64 {
    let a: Vec<f64> = a.to_data().iter::<f64>().collect();
    let b: Vec<f64> = b.to_data().iter::<f64>().collect();
    assert_eq!(a.len(), b.len());
    assert!(!a.is_empty());
    a.iter()
        .zip(&b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

/// Runs both on the same inputs under a random linear functional of the output and compares everything.
fn compare<const N: usize, const D: usize>(
    seed: u64,
    shapes: [[usize; 2]; N],
    fused: impl Fn([Tensor<2>; N]) -> Tensor<D>,
    oracle: impl Fn([Tensor<2>; N]) -> Tensor<D>,
) {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        let mut source = Source(ChaCha8Rng::seed_from_u64(seed));
        let inputs = shapes.map(|shape| source.tensor(shape, dtype));
        let out = fused(inputs.clone());
        let expected = oracle(inputs.clone());
        assert!(
            worst(&out, &expected) < tolerance,
            "{dtype:?} values: {}",
            worst(&out, &expected)
        );
        let functional = source.tensor(out.dims(), dtype).detach();
        let grads = (out * functional.clone()).sum().backward();
        let expected_grads = (expected * functional).sum().backward();
        for (i, input) in inputs.iter().enumerate() {
            let grad = input.grad(&grads).expect("a gradient");
            let expected = input.grad(&expected_grads).expect("a gradient");
            let off = worst(&grad, &expected);
            assert!(
                off < tolerance * 10.0,
                "{dtype:?} gradient of input {i}: {off}"
            );
        }
    }
}

#[test]
fn linear() {
    for rows in [1, 3, 4, 5, 70] {
        compare(
            1,
            [[rows, 33], [130, 33]],
            |[x, w]| super::linear(x, w),
            |[x, w]| composed::linear(x, w),
        );
    }
}

#[test]
fn rms_norm() {
    compare(
        2,
        [[67, 50], [1, 50]],
        |[x, w]| super::rms_norm(x, w.squeeze_dim(0), 1e-5),
        |[x, w]| composed::rms_norm(x, w.squeeze_dim(0), 1e-5),
    );
}

#[test]
fn rotary() {
    for pairs in [RotaryPairs::Interleaved, RotaryPairs::HalfSplit] {
        for rotary_dim in [8, 6] {
            let spec = RotarySpec {
                time: 5,
                start: 7,
                d_head: 8,
                rotary_dim,
                base: 1000.0,
                pairs,
            };
            compare(
                3,
                [[10, 24]],
                |[x]| super::rotary(x, spec),
                |[x]| composed::rotary(x, spec),
            );
        }
    }
}

#[test]
fn rotary_scores_depend_on_distance_alone() {
    for pairs in [RotaryPairs::Interleaved, RotaryPairs::HalfSplit] {
        let mut source = Source(ChaCha8Rng::seed_from_u64(4));
        let (q, k) = (
            source.tensor([1, 8], DType::F64),
            source.tensor([1, 8], DType::F64),
        );
        let score = |i: usize, j: usize| {
            let at = |start| RotarySpec {
                time: 1,
                start,
                d_head: 8,
                rotary_dim: 8,
                base: 100.0,
                pairs,
            };
            let product = super::rotary(q.clone(), at(i)) * super::rotary(k.clone(), at(j));
            product.sum().into_scalar::<f64>()
        };
        assert!((score(9, 4) - score(25, 20)).abs() < 1e-12);
        assert!((score(9, 4) - score(9, 5)).abs() > 1e-3);
    }
}

#[test]
fn attention() {
    // Longer than a block of queries, one query over a cache, and grouped heads.
    for (t, s) in [(70, 70), (1, 9), (5, 40), (130, 140)] {
        let spec = AttentionSpec {
            batch: 2,
            heads: 4,
            kv_heads: 2,
            d_head: 6,
            scale: 0.4,
        };
        compare(
            5,
            [[2 * t, 24], [2 * s, 12], [2 * s, 12]],
            |[q, k, v]| super::attention(q, k, v, spec),
            |[q, k, v]| composed::attention(q, k, v, spec),
        );
    }
}

#[test]
fn gated_silu() {
    compare(
        6,
        [[40, 37], [40, 37]],
        |[g, u]| super::gated_silu(g, u),
        |[g, u]| composed::gated_silu(g, u),
    );
}

#[test]
fn cross_entropy() {
    let targets: Arc<[u32]> = (0..150).map(|i| (i * 7) % 41).collect();
    compare(
        7,
        [[150, 12], [41, 12]],
        |[x, w]| super::cross_entropy(x, w, Arc::clone(&targets)),
        |[x, w]| composed::cross_entropy(x, w, &targets),
    );
}

#[test]
fn gradients_by_finite_differences() {
    // One chain through every operation, so that the hand-written steps are also checked in company and
    // against nothing but the forward pass.
    let mut source = Source(ChaCha8Rng::seed_from_u64(8));
    let x = source.tensor([6, 8], DType::F64);
    let w = source.tensor([8, 8], DType::F64);
    let kv = source.tensor([4, 8], DType::F64);
    let gain = source.tensor([8], DType::F64);
    let vocabulary = source.tensor([11, 8], DType::F64);
    let targets: Arc<[u32]> = Arc::from([1, 2, 3, 10, 0, 5]);
    let rotary = RotarySpec {
        time: 3,
        start: 0,
        d_head: 4,
        rotary_dim: 4,
        base: 50.0,
        pairs: RotaryPairs::Interleaved,
    };
    let spec = AttentionSpec {
        batch: 2,
        heads: 2,
        kv_heads: 1,
        d_head: 4,
        scale: 0.5,
    };
    let loss = |x: Tensor<2>| {
        let h = super::rms_norm(x.clone(), gain.clone(), 1e-5);
        let q = super::rotary(super::linear(h.clone(), w.clone()), rotary);
        let k = super::rotary(super::linear(h.clone(), kv.clone()), rotary);
        let v = super::linear(h.clone(), kv.clone());
        let x = x + super::attention(q, k, v, spec);
        let x = x.clone() + super::gated_silu(super::linear(x.clone(), w.clone()), x);
        super::cross_entropy(x, vocabulary.clone(), Arc::clone(&targets)).mean()
    };
    let grads = loss(x.clone()).backward();
    let grad: Vec<f64> = x
        .grad(&grads)
        .expect("a gradient")
        .to_data()
        .iter::<f64>()
        .collect();
    let values: Vec<f64> = x.to_data().iter::<f64>().collect();
    let at = |values: Vec<f64>| {
        let data = TensorData::new(values, [6, 8]);
        loss(Tensor::from_data(data, (&x.device(), DType::F64))).into_scalar::<f64>()
    };
    let step = 1e-5;
    for i in 0..values.len() {
        let (mut up, mut down) = (values.clone(), values.clone());
        up[i] += step;
        down[i] -= step;
        let slope = (at(up) - at(down)) / (2.0 * step);
        assert!(
            (slope - grad[i]).abs() < 1e-8,
            "coordinate {i}: {slope} against {}",
            grad[i]
        );
    }
}
