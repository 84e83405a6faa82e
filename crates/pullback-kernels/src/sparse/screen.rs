//! Which features can be among the `k` largest, from scores that are only nearly right.
//!
//! A cheap product gives each pre-activation a score `s` with a bound `e` on its error. At least `k` features reach
//! the `k`-th largest `s − e`, so one whose `s + e` lies below it is not among the `k` largest. The few others are
//! computed anew ([`super::exact`]).
//!
//! # The bound
//!
//! The cheap product is that of rounded vectors `x̂`, `ŵ`, so that by Cauchy and Schwarz
//!
//! `|x·w − x̂·ŵ| = |(x − x̂)·w + x̂·(w − ŵ)| ≤ ‖x − x̂‖‖w‖ + ‖x̂‖‖w − ŵ‖`.
//!
//! Roundings of sums, those of the cheap product and those of the value that the score stands for, add
//! `γ·max(‖x‖, ‖x̂‖)·max(‖w‖, ‖ŵ‖)`; what is made of the sum adds `2⁻²¹|b|`, and what is below the normal
//! numbers of `f32` a few times `2⁻¹²⁶` a term. Norms are rounded up.
//!
//! With `p ≥ ‖w‖, ‖ŵ‖`, `q ≥ ‖w − ŵ‖` and `c` of each feature, `α ≥ ‖x − x̂‖ + γ·max(‖x‖, ‖x̂‖)` and `β ≥ ‖x̂‖` of
//! each row, the bound is `e = αp + βq + c`. Features whose numbers are not finite have an infinite bound; rows
//! whose bounds could overflow are not screened.

use crate::real::{Real, largest};
use crate::simd::vectorized;

#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    target_pointer_width = "64"
))]
pub(super) mod tiles;

/// Features that are screened together, and rows of a product's block.
pub(super) const PANEL: usize = 32;
/// Groups that share a vector.
const LANES: usize = 16;
/// Features before the first threshold at least.
const FIRST: usize = 512;
/// Each threshold but the last serves until this many times as many features have been seen.
const GROWTH: usize = 4;
/// Norms are enlarged by this factor: far more than the roundings of the bound itself, which are below `2⁻²¹`.
const ENLARGED: f64 = 1.0 + 2e-6;
/// Products of norms, and biases, from which on scores might overflow.
const LARGE: f64 = 1e37;

/// Units of `γ`, each `2⁻²⁴`, for a value computed by [`super::exact`] and for the sums of bound and score.
pub(super) fn units_of_value(d: usize) -> f64 {
    // A fused multiply-add for every 32 positions, the sum of the 32 sums, up to 31 positions that are left, the
    // bias; four more for the score's own sums.
    (d.div_ceil(32) + 5 + 2 * 31 + 1 + 4) as f64
}

/// How long a row or a feature's vector is, how long what is kept of it, and what is lost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lengths {
    /// `‖x‖`
    pub(super) whole: f64,
    /// `‖x̂‖`
    pub(super) kept: f64,
    /// `‖x − x̂‖`
    pub(super) lost: f64,
}

impl Lengths {
    /// Bounds on the lengths, from the numbers and what is kept of each; `x − x̂` must be exact.
    #[inline(always)]
    pub(super) fn of(numbers: &[f32], keep: impl Fn(f32) -> f32) -> Self {
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
struct FeaturePanel {
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
    fn upper(
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
pub(super) struct Bounds {
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
    pub(super) fn new(lengths: &[Lengths], bias: &[f32], d: usize, units: f64) -> Self {
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

    pub(super) fn panels(&self) -> usize {
        self.panels.len()
    }

    /// `α` and `β` of a row, none if its scores might overflow.
    fn of_row(&self, row: Lengths) -> Option<[f32; 2]> {
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

/// How the bits are found of the 32 numbers that are at least as large as a bound.
pub(super) trait Reached: Copy {
    /// A bit a number.
    fn reached(self, numbers: &[f32; PANEL], bound: f32) -> u32;
}

/// In the plain way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain;

impl Reached for Plain {
    #[inline(always)]
    fn reached(self, numbers: &[f32; PANEL], bound: f32) -> u32 {
        let mut any = 0;
        for &x in numbers {
            any |= u32::from(x >= bound);
        }
        if any == 0 {
            return 0;
        }
        let mut bits = 0;
        for (i, &x) in numbers.iter().enumerate() {
            bits |= u32::from(x >= bound) << i;
        }
        bits
    }
}

/// What a row's features have shown so far.
#[derive(Clone, Debug, Default)]
struct Row {
    /// Features whose `s + e` reached the threshold of their time, ascending, and `s + e`.
    features: Vec<u32>,
    upper: Vec<f32>,
    /// Not screened.
    dense: bool,
}

impl Row {
    /// Adds the features of a panel whose bit is set.
    #[inline(always)]
    fn add(&mut self, panel: usize, upper: &[f32; PANEL], mut bits: u32) {
        while bits != 0 {
            let i = bits.trailing_zeros();
            self.features.push((panel * PANEL) as u32 + i);
            self.upper.push(upper[i as usize]);
            bits &= bits - 1;
        }
    }
}

/// A few rows on their way through the features, panel by panel in order.
///
/// The threshold of a row is a lower bound on its `k`-th largest `s − e` so far: features are dealt to groups, and
/// `k` of them reach the `k`-th largest of the groups' maxima. The first panels' scores are kept until there is a
/// threshold; after that only what reaches it is.
#[derive(Debug, Default)]
pub(super) struct Block {
    k: usize,
    /// Vectors of groups a row.
    slots: usize,
    /// Panels whose scores are kept.
    first: usize,
    /// Panels after which thresholds are found anew.
    next: usize,
    /// No panel was taken since thresholds were found.
    fresh: bool,
    /// Features found from which on a row is not screened.
    limit: usize,
    bounds: Vec<[f32; 2]>,
    thresholds: Vec<f32>,
    /// `[slots, rows]`, so that neighbouring rows of a panel are neighbours in memory.
    maxima: Vec<[f32; LANES]>,
    /// `[first, rows]`
    kept: Vec<[f32; PANEL]>,
    rows: Vec<Row>,
    /// The maxima of one row.
    of_row: Vec<[f32; LANES]>,
}

impl Block {
    /// Begins with rows of these lengths. All memory is used again.
    pub(super) fn begin(&mut self, bounds: &Bounds, k: usize, lengths: &[Lengths]) {
        let panels = bounds.panels();
        // Eight groups for each of the k largest: few of them share one.
        self.k = k;
        self.slots = (8 * k / LANES).clamp(FIRST / PANEL, panels.max(FIRST / PANEL));
        self.first = (8 * k)
            .clamp(FIRST, FIRST.max(panels * PANEL))
            .div_ceil(PANEL)
            .min(panels);
        self.next = self.first;
        self.limit = (bounds.features() / 8).max(2 * k + 64);
        let count = lengths.len();
        self.maxima.clear();
        self.maxima.resize(count * self.slots, [0.0; LANES]);
        // What is left in it is written before it is read.
        self.kept.resize(count * self.first, [0.0; PANEL]);
        self.thresholds.clear();
        self.bounds.clear();
        self.rows
            .resize_with(count.max(self.rows.len()), Row::default);
        for (row, &lengths) in self.rows.iter_mut().zip(lengths) {
            row.features.clear();
            row.upper.clear();
            let bounds = bounds.of_row(lengths);
            row.dense = bounds.is_none();
            self.bounds.push(bounds.unwrap_or_default());
            self.thresholds.push(if row.dense {
                f32::INFINITY
            } else {
                f32::MIN_POSITIVE
            });
        }
    }

    /// Takes the products of the rows from `row` on with the features of a panel: `sums`, one row after `stride`
    /// numbers.
    #[inline(always)]
    pub(super) fn take(
        &mut self,
        bounds: &Bounds,
        panel: usize,
        row: usize,
        sums: &[f32],
        stride: usize,
        reached: impl Reached,
    ) {
        let features = &bounds.panels[panel];
        let count = self.bounds.len();
        if row >= count {
            return;
        }
        let rows = row..count.min(row + PANEL);
        self.fresh = false;
        let start = panel % self.slots * count;
        let each = sums
            .chunks(stride)
            .zip(&self.bounds[rows.clone()])
            .zip(&mut self.maxima[start + rows.start..start + rows.end]);
        if panel < self.first {
            let start = panel * count;
            let kept = &mut self.kept[start + rows.start..start + rows.end];
            for (((sums, bounds), maxima), kept) in each.zip(kept) {
                if let Some(sums) = sums.first_chunk() {
                    *kept = features.upper(sums, *bounds, maxima);
                }
            }
            return;
        }
        let found = self.thresholds[rows.clone()]
            .iter()
            .zip(&mut self.rows[rows]);
        for (((sums, bounds), maxima), (&threshold, found)) in each.zip(found) {
            if let Some(sums) = sums.first_chunk() {
                let upper = features.upper(sums, *bounds, maxima);
                let bits = reached.reached(&upper, threshold);
                if bits != 0 && found.features.len() <= self.limit {
                    found.add(panel, &upper, bits);
                }
            }
        }
    }

    /// To be called when all rows have had a panel.
    #[inline(always)]
    pub(super) fn done(&mut self, panel: usize, reached: impl Reached) {
        if panel + 1 != self.next {
            return;
        }
        self.find_thresholds();
        if self.next == self.first {
            let count = self.bounds.len();
            for row in 0..count {
                let found = &mut self.rows[row];
                for panel in 0..self.first {
                    let upper = &self.kept[panel * count + row];
                    let bits = reached.reached(upper, self.thresholds[row]);
                    found.add(panel, upper, bits);
                }
            }
        }
        self.next *= GROWTH;
    }

    #[inline(always)]
    fn find_thresholds(&mut self) {
        if self.fresh {
            return;
        }
        self.fresh = true;
        let count = self.bounds.len();
        for row in 0..count {
            if self.rows[row].dense {
                continue;
            }
            let maxima = self.maxima.iter().skip(row).step_by(count);
            self.of_row.clear();
            self.of_row.extend(maxima);
            let bound = reached_by(&self.of_row, self.k);
            self.thresholds[row] = self.thresholds[row].max(bound);
        }
    }

    /// Ends: for each row the features that can be among the `k` largest, ascending; nothing where the row is to be
    /// computed whole.
    #[inline(always)]
    pub(super) fn end(&mut self) -> impl Iterator<Item = Option<&[u32]>> {
        self.find_thresholds();
        for (row, &threshold) in self.rows.iter_mut().zip(&self.thresholds) {
            let mut count = 0;
            row.dense |= row.features.len() > self.limit;
            if row.dense {
                continue;
            }
            for i in 0..row.features.len() {
                row.features[count] = row.features[i];
                count += usize::from(row.upper[i] >= threshold);
            }
            row.features.truncate(count);
        }
        self.rows[..self.bounds.len()]
            .iter()
            .map(|row| (!row.dense).then_some(&row.features[..]))
    }
}

/// A number that at least `k` of some numbers reach, none of which is negative, and hardly more than `k` if they
/// differ; zero if fewer than `k` are positive.
///
/// Bisection of the bits, which are in the order of the numbers, to one part in 2⁹.
#[inline(always)]
fn reached_by(numbers: &[[f32; LANES]], k: usize) -> f32 {
    const PART: u32 = 1 << 14;
    /// A factor of four: the first step.
    const FACTOR: u32 = 2 << 23;
    let count = |bits: u32| {
        let bound = f32::from_bits(bits);
        let mut counts = [0_u32; LANES];
        for numbers in numbers {
            for i in 0..LANES {
                counts[i] = if numbers[i] >= bound {
                    counts[i] + 1
                } else {
                    counts[i]
                };
            }
        }
        counts.iter().sum::<u32>() as usize
    };
    if k == 0 || numbers.len() * LANES < k {
        return 0.0;
    }
    let top = largest(numbers.as_flattened()).max(0.0);
    // `k` numbers reach `low`, fewer reach `high`.
    let (mut low, mut high) = (0, top.to_bits() + 1);
    let near = high.saturating_sub(FACTOR);
    if count(near) >= k {
        low = near;
    } else {
        high = near;
    }
    while high - low > PART {
        let middle = low + (high - low) / 2;
        if count(middle) >= k {
            low = middle;
        } else {
            high = middle;
        }
    }
    f32::from_bits(low)
}

/// Features that can be among the `k` largest of each row, where products of all rows with all features are there:
/// `sums`, one row after `bounds.panels() · 32` numbers.
pub(super) fn from_products(block: &mut Block, bounds: &Bounds, sums: &[f32]) {
    let stride = bounds.panels() * PANEL;
    let rows = sums.len() / stride;
    vectorized(
        #[inline(always)]
        || {
            for panel in 0..bounds.panels() {
                for row in (0..rows).step_by(PANEL) {
                    let sums = &sums[row * stride + panel * PANEL..];
                    block.take(bounds, panel, row, sums, stride, Plain);
                }
                block.done(panel, Plain);
            }
        },
    );
}

#[cfg(all(
    test,
    target_arch = "x86_64",
    target_os = "linux",
    target_pointer_width = "64"
))]
mod tests;
