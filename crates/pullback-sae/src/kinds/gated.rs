//! Gated (Rajamanoharan et al., arXiv 2404.16014): one bias decides whether a feature is active, another how much.
//!
//! `π = w·(x − b_dec) + b_gate`, `z = 1[π > 0] · relu(e^r · w·(x − b_dec) + b_mag)`. The L1 loss is on `relu(π)`, and so is
//! an auxiliary reconstruction whose decoder and decoder bias are not differentiated.

use pullback_kernels::Real;

use super::{Kind, numbers};
use crate::Selection;
use crate::learn::{Batch, Elementwise, Gradient, Parameters, Rows, Step, elementwise_batch};

pub(crate) struct Gated {
    weight: f64,
    share: f64,
}

impl Gated {
    pub(crate) fn new(weight: f64) -> Self {
        Self { weight, share: 1.0 }
    }
}

struct Rule<'a, T> {
    weight: T,
    gate_bias: &'a [T],
    scales: Vec<T>,
    biases: &'a [T],
}

impl<T: Real> Elementwise<T> for Rule<'_, T> {
    const FROZEN: bool = true;

    #[inline(always)]
    fn code(&self, feature: usize, pre: T) -> T {
        if pre > T::zero() {
            let magnitude =
                self.scales[feature] * (pre - self.gate_bias[feature]) + self.biases[feature];
            magnitude.max(T::zero())
        } else {
            T::zero()
        }
    }

    #[inline(always)]
    fn frozen_code(&self, _: usize, pre: T) -> T {
        pre.max(T::zero())
    }

    #[inline(always)]
    fn matters(&self, _: usize, pre: T) -> bool {
        pre > T::zero()
    }

    #[inline(always)]
    fn penalty(&self, _: usize, pre: T) -> T {
        self.weight * pre
    }

    #[inline(always)]
    fn gradient(&self, feature: usize, pre: T, code: T, frozen: T) -> Gradient<T> {
        let raw = pre - self.gate_bias[feature];
        let scale = self.scales[feature];
        let by_magnitude = if scale * raw + self.biases[feature] > T::zero() {
            code
        } else {
            T::zero()
        };
        let by_gate = self.weight + frozen;
        Gradient {
            encoder: scale * by_magnitude + by_gate,
            bias: by_gate,
            extras: [by_magnitude * scale * raw, by_magnitude],
        }
    }
}

impl<T: Real> Kind<T> for Gated {
    /// `r` and `b_mag`.
    fn extras(&self, features: usize) -> Vec<Vec<T>> {
        vec![vec![T::zero(); features]; 2]
    }

    fn batch(
        &mut self,
        parameters: &Parameters<T>,
        rows: &Rows<'_, T>,
        step: &Step<'_>,
    ) -> Batch<T> {
        let n = (rows.x.len() / parameters.d) as f64;
        let rule = Rule {
            weight: T::of(self.weight * step.sparsity / (n * step.variance)),
            gate_bias: &parameters.encoder_bias,
            scales: parameters.extras[0].iter().map(|r| r.exp()).collect(),
            biases: &parameters.extras[1],
        };
        elementwise_batch(parameters, rows, step, rule, &mut self.share)
    }

    fn memory(&self) -> Vec<f64> {
        vec![self.share]
    }

    fn remember(&mut self, memory: &[f64]) {
        if let [share] = memory {
            self.share = *share;
        }
    }

    fn selection(&self, parameters: &Parameters<T>, scale: f64) -> Selection {
        Selection::Gated {
            scales: numbers(&parameters.extras[0], f64::exp),
            biases: numbers(&parameters.extras[1], |bias| bias / scale),
        }
    }
}
