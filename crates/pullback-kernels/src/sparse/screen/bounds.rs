//! Bounds on the errors of scores, from the lengths of vectors and of what was lost of them.

use super::{LANES, PANEL};
use crate::real::Real;

/// Norms are enlarged by this factor: far more than the roundings of the bound itself, which are below `2⁻²¹`.
const ENLARGED: f64 = 1.0 + 2e-6;
/// Products of norms, and biases, from which on scores might overflow.
const LARGE: f64 = 1e37;

/// Units of `γ`, each `2⁻²⁴`, for a value computed by [`super::exact`] and for the sums of bound and score.
pub(in crate::sparse) fn units_of_value(d: usize) -> f64 {
    // A fused multiply-add for every 32 positions, the sum of the 32 sums, up to 31 positions that are left, the
    // bias; four more for the score's own sums.
    (d.div_ceil(32) + 5 + 2 * 31 + 1 + 4) as f64
}

/// How long a row or a feature's vector is, how long what is kept of it, and what is lost.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::sparse) struct Lengths {
    /// `‖x‖`
    pub(in crate::sparse) whole: f64,
    /// `‖x̂‖`
    pub(in crate::sparse) kept: f64,
    /// `‖x − x̂‖`
    pub(in crate::sparse) lost: f64,
}

impl Lengths {
    /// Bounds on the lengths, from the numbers and what is kept of each; `x − x̂` must be exact.
    #[inline(always)]
    pub(in crate::sparse) fn of(numbers: &[f32], keep: impl Fn(f32) -> f32) -> Self {
        let [whole, kept, lost] = squares(numbers, &keep, |x| x).map(|x| f64::from(x).sqrt());
        if (1e-10..=1e18).contains(&whole) {
            // Nothing was near an overflow; each sum has had a rounding for every 32 numbers and some at its end, and
            // what was below the smallest numbers of `f32` weighs less than this.
            let count = numbers.len() as f64;
            let roundings = 1.0 + (count / 32.0 + 40.0) * 2.0_f64.powi(-24);
            let tiny = 1e-22 * count.sqrt();
            let [whole, kept, lost] = [whole, kept, lost].map(|x| x * roundings);
            return Self {
                whole,
                kept: kept + tiny,
                lost: lost + tiny,
            };
        }
        let [whole, kept, lost] = squares(numbers, &keep, f64::from).map(f64::sqrt);
        Self { whole, kept, lost }
    }

    fn larger(self) -> f64 {
        self.whole.max(self.kept)
    }
}

/// Sums of the squares of numbers, of what is kept of them and of what is lost.
#[inline(always)]
fn squares<T: Real>(
    numbers: &[f32],
    keep: impl Fn(f32) -> f32,
    widened: impl Fn(f32) -> T,
) -> [T; 3] {
    const SUMS: usize = 32;
    let mut sums = [[T::zero(); SUMS]; 3];
    let mut add = |lane: usize, x: f32| {
        let kept = keep(x);
        for (sums, x) in sums.iter_mut().zip([x, kept, x - kept]) {
            let x = widened(x);
            sums[lane] = x.mul_add(x, sums[lane]);
        }
    };
    let chunks = numbers.chunks_exact(SUMS);
    for (lane, &x) in chunks.remainder().iter().enumerate() {
        add(lane, x);
    }
    for chunk in chunks {
        for lane in 0..SUMS {
            add(lane, chunk[lane]);
        }
    }
    sums.map(|sums| sums.into_iter().sum())
}

/// The smallest `f32` that is not below `x`, enlarged.
fn up(x: f64) -> f32 {
    let x = x * ENLARGED;
    let near = x as f32;
    if f64::from(near) < x {
        near.next_up()
    } else {
        near
    }
}

/// What the scores and bounds of 32 neighbouring features need besides the product.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct FeaturePanel {
    bias: [f32; PANEL],
    /// `p`
    norm: [f32; PANEL],
    /// `q`
    lost: [f32; PANEL],
    /// `c`
    slack: [f32; PANEL],
}

impl FeaturePanel {
    /// `s + e` of a row's products with these features; `maxima` grow to `s − e`.
    #[inline(always)]
    pub(super) fn upper(
        &self,
        sums: &[f32; PANEL],
        [alpha, beta]: [f32; 2],
        maxima: &mut [f32; LANES],
    ) -> [f32; PANEL] {
        let mut upper = [0.0; PANEL];
        let mut lower = [0.0; PANEL];
        for i in 0..PANEL {
            let error = alpha.mul_add(self.norm[i], beta.mul_add(self.lost[i], self.slack[i]));
            upper[i] = sums[i] + (self.bias[i] + error);
            lower[i] = error.mul_add(-2.0, upper[i]);
        }
        for half in lower.as_chunks::<LANES>().0 {
            for (max, &x) in maxima.iter_mut().zip(half) {
                // In this order a score that is not a number changes nothing.
                *max = if x > *max { x } else { *max };
            }
        }
        upper
    }
}

/// What the scores and bounds of all features need.
#[derive(Clone, Debug)]
pub(in crate::sparse) struct Bounds {
    panels: Vec<FeaturePanel>,
    /// The largest finite `p`.
    largest: f64,
    /// `γ`
    gamma: f64,
    features: usize,
}

impl Bounds {
    /// Of features with these lengths and biases, where rows have `d` numbers and a score and a value together go
    /// through `units` roundings.
    pub(in crate::sparse) fn new(lengths: &[Lengths], bias: &[f32], d: usize, units: f64) -> Self {
        // More than what the tile unit and vectors take for zero: factors, products and sums below 2⁻¹²⁶.
        let tiny = (4 * d + 256) as f64 * f64::from(f32::MIN_POSITIVE);
        let mut largest = 0.0_f64;
        let panels = lengths
            .chunks(PANEL)
            .zip(bias.chunks(PANEL))
            .map(|(lengths, bias)| {
                // A feature that is not there is never reached: its score is not a number.
                let mut panel = FeaturePanel {
                    bias: [f32::NAN; PANEL],
                    norm: [0.0; PANEL],
                    lost: [0.0; PANEL],
                    slack: [0.0; PANEL],
                };
                panel.bias[..bias.len()].copy_from_slice(bias);
                for (i, (lengths, &bias)) in lengths.iter().zip(bias).enumerate() {
                    let norm = lengths.larger();
                    if norm <= LARGE && lengths.lost <= LARGE {
                        largest = largest.max(norm);
                        panel.norm[i] = up(norm);
                        panel.lost[i] = up(lengths.lost);
                    } else {
                        panel.norm[i] = f32::INFINITY;
                    }
                    let bias = f64::from(bias).abs();
                    panel.slack[i] = if bias <= LARGE {
                        up(bias * 2.0_f64.powi(-21) + tiny)
                    } else {
                        f32::INFINITY
                    };
                }
                panel
            })
            .collect();
        Self {
            panels,
            largest,
            // Higher powers of a rounding are within one in a thousand.
            gamma: units * 2.0_f64.powi(-24) * 1.001,
            features: bias.len(),
        }
    }

    pub(super) fn features(&self) -> usize {
        self.features
    }

    /// What the scores of a panel need.
    pub(super) fn panel(&self, panel: usize) -> &FeaturePanel {
        &self.panels[panel]
    }

    pub(in crate::sparse) fn panels(&self) -> usize {
        self.panels.len()
    }

    /// `α` and `β` of a row, none if its scores might overflow.
    pub(super) fn of_row(&self, row: Lengths) -> Option<[f32; 2]> {
        let norm = row.larger();
        let small = norm <= LARGE && row.lost <= LARGE && norm * self.largest.max(1.0) <= LARGE;
        small.then(|| {
            let alpha = up(row.lost + self.gamma * norm).max(f32::MIN_POSITIVE);
            [alpha, up(row.kept)]
        })
    }

    /// The bound on the error of a score.
    #[cfg(test)]
    pub(super) fn error(&self, row: Lengths, feature: usize) -> Option<f64> {
        let panel = &self.panels[feature / PANEL];
        let i = feature % PANEL;
        self.of_row(row).map(|[a, b]| {
            f64::from(a.mul_add(panel.norm[i], b.mul_add(panel.lost[i], panel.slack[i])))
        })
    }
}
