//! What the tests share: adapters made to order.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../../../pullback-sae/tests/common/mod.rs"]
pub mod sae;

use burn::tensor::{DType, Device, Tensor, TensorData};
use pullback_adapters::{Activation, Pair, ResidualAdapter, Sample};
use pullback_model::Site;

pub use sae::base;
pub use sae::random;

/// All kinds.
pub const ACTIVATIONS: [Activation; 4] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Gelu,
    Activation::Silu,
];

/// Parts of an adapter, as plain numbers.
#[derive(Clone)]
pub struct Parts {
    pub d: usize,
    pub rank: usize,
    pub w_in: Vec<f64>,
    pub b_in: Vec<f64>,
    pub w_out: Vec<f64>,
}

impl Parts {
    /// Random parts; hidden pre-activations of the tiny model's residual stream are of order one.
    pub fn random(seed: u64, d: usize, rank: usize) -> Self {
        let numbers = |seed, count, size: f64| {
            random(seed, count)
                .iter()
                .map(|x| size * f64::from(*x))
                .collect()
        };
        Self {
            d,
            rank,
            w_in: numbers(seed, rank * d, 0.1),
            b_in: numbers(seed + 1, rank, 0.5),
            w_out: numbers(seed + 2, rank * d, 0.5),
        }
    }

    /// As tensors.
    pub fn adapter(
        &self,
        activation: Activation,
        device: &Device,
        dtype: DType,
    ) -> ResidualAdapter {
        let options = (device, dtype);
        ResidualAdapter {
            site: Site::resid_post(1),
            activation,
            w_in: Tensor::from_data(
                TensorData::new(self.w_in.clone(), [self.rank, self.d]),
                options,
            ),
            b_in: Tensor::from_data(TensorData::new(self.b_in.clone(), [self.rank]), options),
            w_out: Tensor::from_data(
                TensorData::new(self.w_out.clone(), [self.d, self.rank]),
                options,
            ),
        }
    }

    /// `W_in x + b_in` of one activation.
    pub fn pre(&self, x: &[f32]) -> Vec<f64> {
        (0..self.rank)
            .map(|j| {
                let row = &self.w_in[j * self.d..(j + 1) * self.d];
                row.iter()
                    .zip(x)
                    .map(|(w, &x)| w * f64::from(x))
                    .sum::<f64>()
                    + self.b_in[j]
            })
            .collect()
    }

    /// `act(W_in x + b_in)` of one activation.
    pub fn hidden(&self, activation: Activation, x: &[f32]) -> Vec<f64> {
        self.pre(x)
            .into_iter()
            .map(|u| act(activation, u))
            .collect()
    }

    /// `W_out h`.
    pub fn written(&self, hidden: &[f64]) -> Vec<f64> {
        self.w_out
            .chunks_exact(self.rank)
            .map(|row| row.iter().zip(hidden).map(|(w, h)| w * h).sum())
            .collect()
    }
}

/// An adapter in f32 with GELU on the CPU, and its parts rounded as it holds them.
pub fn usual(seed: u64, d: usize, rank: usize) -> (ResidualAdapter, Parts) {
    let mut parts = Parts::random(seed, d, rank);
    for part in [&mut parts.w_in, &mut parts.b_in, &mut parts.w_out] {
        for x in part.iter_mut() {
            *x = f64::from(*x as f32);
        }
    }
    (
        parts.adapter(Activation::Gelu, &Device::flex(), DType::F32),
        parts,
    )
}

/// The function between the matrices, by its definition.
pub fn act(activation: Activation, u: f64) -> f64 {
    match activation {
        Activation::Identity => u,
        Activation::Relu => u.max(0.0),
        Activation::Gelu => u * 0.5 * (1.0 + erf(u / std::f64::consts::SQRT_2)),
        Activation::Silu => u / (1.0 + (-u).exp()),
    }
}

/// The error function by its power series, good to 1e-12 within ±4.
fn erf(x: f64) -> f64 {
    assert!(x.abs() < 4.0, "the series is not for {x}");
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// Seven short pairs: with the template's words they fit the tiny model's context of 64.
pub fn pairs() -> Vec<Pair> {
    ["a sea", "the rope", "salt", "cold", "wind", "a ship", "old"]
        .iter()
        .enumerate()
        .map(|(number, prompt)| Pair {
            prompt: (*prompt).to_owned(),
            answer: if number % 2 == 0 { "arr" } else { "ahoy" }.to_owned(),
        })
        .collect()
}

/// The same as samples.
pub fn samples() -> Vec<Sample> {
    as_samples(&pairs())
}

/// Pairs as samples.
pub fn as_samples(pairs: &[Pair]) -> Vec<Sample> {
    pairs.iter().cloned().map(Sample::from).collect()
}
