//! Fused against composed: values and every gradient, in f64, where rounding cannot hide an error.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Activation, AttentionSpec, RotarySpec, RotaryTable, Span, composed};

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
fn layer_norm() {
    compare(
        12,
        [[67, 50], [1, 50], [1, 50]],
        |[x, w, b]| super::layer_norm(x, w.squeeze_dim(0), b.squeeze_dim(0), 1e-5),
        |[x, w, b]| composed::layer_norm(x, w.squeeze_dim(0), b.squeeze_dim(0), 1e-5),
    );
}

/// A rotary embedding of the classical frequencies.
fn turning(positions: &[u32], d_head: usize, turning: usize, base: f64) -> RotarySpec {
    let frequencies: Vec<f64> = (0..turning / 2)
        .map(|pair| base.powf(-2.0 * pair as f64 / turning as f64))
        .collect();
    let last = positions.iter().max().unwrap();
    RotarySpec {
        table: Arc::new(RotaryTable::new(*last as usize + 1, &frequencies)),
        positions: Arc::from(positions),
        d_head,
    }
}

#[test]
fn rotary() {
    {
        for part in [8, 6] {
            // More rows than one task takes.
            let positions: Vec<u32> = (0..40).map(|row| 7 + row % 5).collect();
            let spec = turning(&positions, 8, part, 1000.0);
            compare(
                3,
                [[40, 24]],
                |[x]| super::rotary(x, spec.clone()),
                |[x]| composed::rotary(x, &spec),
            );
        }
    }
}

#[test]
fn rotary_scores_depend_on_distance_alone() {
    {
        let mut source = Source(ChaCha8Rng::seed_from_u64(4));
        let (q, k) = (
            source.tensor([1, 8], DType::F64),
            source.tensor([1, 8], DType::F64),
        );
        let score = |i: u32, j: u32| {
            let at = |position| turning(&[position], 8, 8, 100.0);
            let product = super::rotary(q.clone(), at(i)) * super::rotary(k.clone(), at(j));
            product.sum().into_scalar::<f64>()
        };
        assert!((score(9, 4) - score(25, 20)).abs() < 1e-12);
        assert!((score(9, 4) - score(9, 5)).abs() > 1e-3);
    }
}

#[test]
fn attention() {
    // Longer than a block of queries, one query over a cache, sequences of different lengths, windows shorter and
    // longer than a block, capped scores; few long sequences and many short ones take different ways.
    let cases: [&[(usize, usize)]; 5] = [
        &[(70, 70), (3, 3)],
        &[(1, 9), (1, 1), (1, 30)],
        &[(5, 40), (7, 7)],
        &[(130, 140)],
        &[(100, 100), (90, 95), (80, 80), (70, 90), (60, 60)],
    ];
    for (case, spans) in cases.into_iter().enumerate() {
        for (window, softcap) in [
            (None, None),
            (Some(4), None),
            (Some(75), Some(0.7)),
            (None, Some(2.0)),
        ] {
            let spec = AttentionSpec {
                sequences: spans
                    .iter()
                    .map(|&(queries, keys)| Span { queries, keys })
                    .collect(),
                heads: 4,
                kv_heads: 2,
                d_head: 6,
                scale: 0.4,
                window,
                softcap,
            };
            let (t, s) = spec.rows();
            compare(
                5 + case as u64,
                [[t, 24], [s, 12], [s, 12]],
                |[q, k, v]| super::attention(q, k, v, spec.clone()),
                |[q, k, v]| composed::attention(q, k, v, &spec),
            );
        }
    }
}

const ACTIVATIONS: [Activation; 4] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
];

#[test]
fn activations() {
    for kind in ACTIVATIONS {
        compare(
            6,
            [[40, 37], [40, 37]],
            |[g, u]| super::gated(g, u, kind),
            |[g, u]| composed::gated(g, u, kind),
        );
        compare(
            9,
            [[40, 37]],
            |[x]| super::activate(x, kind),
            |[x]| composed::activate(x, kind),
        );
    }
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
    let rotary = turning(&[0, 1, 2, 0, 1, 2], 4, 4, 50.0);
    let spec = AttentionSpec {
        sequences: Arc::from(
            [Span {
                queries: 3,
                keys: 3,
            }; 2],
        ),
        heads: 2,
        kv_heads: 1,
        d_head: 4,
        scale: 0.5,
        window: Some(2),
        softcap: Some(1.5),
    };
    let loss = |x: Tensor<2>| {
        let h = super::layer_norm(x.clone(), gain.clone(), gain.clone() * 0.3, 1e-5);
        let h = super::rms_norm(h, gain.clone(), 1e-5);
        let q = super::rotary(super::linear(h.clone(), w.clone()), rotary.clone());
        let k = super::rotary(super::linear(h.clone(), kv.clone()), rotary.clone());
        let v = super::linear(h.clone(), kv.clone());
        let x = x + super::attention(q, k, v, spec.clone());
        let x = x.clone() + super::gated(super::linear(x.clone(), w.clone()), x, Activation::Gelu);
        let x = x.clone() + super::activate(x, Activation::GeluTanh);
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
    let step = 2e-6;
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
