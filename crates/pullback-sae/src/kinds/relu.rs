//! `ReLU` with an L1 loss (Cunningham et al., arXiv 2309.08600; Bricken et al. 2023).

use pullback_kernels::Real;

use super::Kind;
use crate::Selection;
use crate::learn::{Batch, Elementwise, Gradient, Parameters, Rows, Step, elementwise_batch};

pub(crate) struct Relu {
    weight: f64,
    share: f64,
}

impl Relu {
    pub(crate) fn new(weight: f64) -> Self {
        Self { weight, share: 1.0 }
    }
}

/// With decoder rows of length one the penalty on `z ‖W_dec‖` is that on `z`.
struct Rule<T> {
    weight: T,
}

impl<T: Real> Elementwise<T> for Rule<T> {
    #[inline(always)]
    fn code(&self, _: usize, pre: T) -> T {
        if pre > T::zero() { pre } else { T::zero() }
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
    fn gradient(&self, _: usize, _: T, code: T, _: T) -> Gradient<T> {
        let slope = code + self.weight;
        Gradient {
            encoder: slope,
            bias: slope,
            extras: [T::zero(); 2],
        }
    }
}

impl<T: Real> Kind<T> for Relu {
    fn batch(
        &mut self,
        parameters: &Parameters<T>,
        rows: &Rows<'_, T>,
        step: &Step<'_>,
    ) -> Batch<T> {
        let n = (rows.x.len() / parameters.d) as f64;
        let rule = Rule {
            weight: T::of(self.weight * step.sparsity / (n * step.variance)),
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

    fn selection(&self, _: &Parameters<T>, _: f64) -> Selection {
        Selection::Relu
    }
}
