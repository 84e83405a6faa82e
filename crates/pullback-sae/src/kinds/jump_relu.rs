//! `JumpReLU` (Rajamanoharan et al., arXiv 2407.14435): a threshold a feature, learned through straight-through estimates.
//!
//! The thresholds themselves are the parameters: as `exp(log θ)` under Adam they hardly move. In the window
//! `|pre − θ| < ε/2` the code has the pseudo-derivative `−θ/ε` by its threshold, and the step `−1/ε`.

use pullback_kernels::{Matrix, Real, Threads, product};

use super::{JumpReluSparsity, Kind, numbers};
use crate::Selection;
use crate::learn::{
    Batch, Elementwise, Gradient, Parameters, Rows, Step, centred, elementwise_batch,
};

pub(crate) struct JumpRelu {
    sparsity: JumpReluSparsity,
    bandwidth: f64,
    /// The thresholds, or the number of active features that they are chosen by.
    start: (Option<f64>, usize),
    revive: f64,
    share: f64,
}

impl JumpRelu {
    pub(crate) fn new(
        sparsity: JumpReluSparsity,
        bandwidth: f64,
        start: (Option<f64>, usize),
        revive: f64,
    ) -> Self {
        Self {
            sparsity,
            bandwidth,
            start,
            revive,
            share: 1.0,
        }
    }
}

/// One batch's rule; all weights in units of the loss.
struct Rule<'a, T> {
    thresholds: &'a [T],
    dead: Vec<bool>,
    half_window: T,
    inverse_window: T,
    sparsity: JumpReluSparsity,
    /// Weight of one entry's penalty.
    weight: T,
    tanh_scale: T,
    /// Of the revival of dead features.
    revive: T,
    /// Of the whole quadratic loss, and its derivative by one entry's step.
    quadratic: (f64, T),
}

impl<T: Real> Rule<'_, T> {
    #[inline(always)]
    fn in_window(&self, feature: usize, pre: T) -> bool {
        (pre - self.thresholds[feature]).abs() < self.half_window
    }
}

impl<T: Real> Elementwise<T> for Rule<'_, T> {
    #[inline(always)]
    fn code(&self, feature: usize, pre: T) -> T {
        if pre > self.thresholds[feature] {
            pre
        } else {
            T::zero()
        }
    }

    #[inline(always)]
    fn matters(&self, feature: usize, pre: T) -> bool {
        pre > self.thresholds[feature]
            || self.in_window(feature, pre)
            || (self.dead[feature] && self.revive > T::zero())
    }

    fn counted(&mut self, active: f64, tokens: usize) {
        if let JumpReluSparsity::Quadratic { target, .. } = self.sparsity {
            let off = active / target - 1.0;
            // `weight` is that of one token.
            let whole = self.weight.as_f64() * tokens as f64;
            self.quadratic = (
                whole * off * off,
                T::of(2.0 * self.weight.as_f64() * off / target),
            );
        }
    }

    #[inline(always)]
    fn penalty(&self, feature: usize, pre: T) -> T {
        let code = self.code(feature, pre);
        if code > T::zero() {
            match self.sparsity {
                JumpReluSparsity::Step { .. } => self.weight,
                JumpReluSparsity::Tanh { .. } => self.weight * (self.tanh_scale * code).tanh(),
                JumpReluSparsity::Quadratic { .. } => T::zero(),
            }
        } else if self.dead[feature] {
            self.revive * (self.thresholds[feature] - pre)
        } else {
            T::zero()
        }
    }

    fn shared_penalty(&self) -> f64 {
        self.quadratic.0
    }

    #[inline(always)]
    fn gradient(&self, feature: usize, pre: T, code: T, _: T) -> Gradient<T> {
        let threshold = self.thresholds[feature];
        let open = pre > threshold;
        let mut by_code = code;
        if let JumpReluSparsity::Tanh { .. } = self.sparsity {
            let z = if open { pre } else { T::zero() };
            let tanh = (self.tanh_scale * z).tanh();
            by_code += self.weight * self.tanh_scale * (T::one() - tanh * tanh);
        }
        let mut by_pre = if open { by_code } else { T::zero() };
        let mut by_threshold = T::zero();
        if self.in_window(feature, pre) {
            let by_step = match self.sparsity {
                JumpReluSparsity::Step { .. } => self.weight,
                JumpReluSparsity::Tanh { .. } => T::zero(),
                JumpReluSparsity::Quadratic { .. } => self.quadratic.1,
            };
            by_threshold -= self.inverse_window * (threshold * by_code + by_step);
        }
        if self.dead[feature] && !open {
            by_pre -= self.revive;
            by_threshold += self.revive;
        }
        Gradient {
            encoder: by_pre,
            bias: by_pre,
            extras: [by_threshold, T::zero()],
        }
    }
}

impl<T: Real> Kind<T> for JumpRelu {
    fn extras(&self, features: usize) -> Vec<Vec<T>> {
        vec![vec![T::of(self.start.0.unwrap_or(0.0)); features]]
    }

    /// Thresholds that start far below where they end need thousands of steps to get there.
    fn prepare(&self, parameters: &mut Parameters<T>, x: &[T]) {
        let (None, active) = self.start else {
            return;
        };
        let (d, m) = (parameters.d, parameters.features());
        let n = x.len() / d;
        let centred = centred(parameters, x);
        let mut pre = product(
            Matrix::new(&centred, n, d, d),
            Matrix::new(&parameters.encoder, m, d, d).transposed(),
            Threads::All,
        );
        let place = (active * n).min(pre.len() - 1);
        let (_, bound, _) = pre.select_nth_unstable_by(place, |a, b| {
            b.partial_cmp(a).unwrap_or(std::cmp::Ordering::Equal)
        });
        let bound = bound.max(T::zero());
        parameters.extras[0].fill(bound);
    }

    fn batch(
        &mut self,
        parameters: &Parameters<T>,
        rows: &Rows<'_, T>,
        step: &Step<'_>,
    ) -> Batch<T> {
        let n = (rows.x.len() / parameters.d) as f64;
        let unit = 1.0 / (n * step.variance);
        let (weight, tanh_scale) = match self.sparsity {
            JumpReluSparsity::Step { weight } | JumpReluSparsity::Quadratic { weight, .. } => {
                (weight, 0.0)
            }
            JumpReluSparsity::Tanh { weight, scale } => (weight, scale),
        };
        let mut dead = vec![false; parameters.features()];
        for &feature in step.dead {
            dead[feature as usize] = true;
        }
        let rule = Rule {
            thresholds: &parameters.extras[0],
            dead,
            half_window: T::of(self.bandwidth / 2.0),
            inverse_window: T::of(self.bandwidth.recip()),
            sparsity: self.sparsity,
            weight: T::of(weight * step.sparsity * unit),
            tanh_scale: T::of(tanh_scale),
            revive: T::of(self.revive * unit),
            quadratic: (0.0, T::zero()),
        };
        elementwise_batch(parameters, rows, step, rule, &mut self.share)
    }

    fn settle(&self, parameters: &mut Parameters<T>) {
        for threshold in &mut parameters.extras[0] {
            *threshold = threshold.max(T::zero());
        }
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
        Selection::Threshold {
            thresholds: numbers(&parameters.extras[0], |threshold| threshold / scale),
        }
    }
}
