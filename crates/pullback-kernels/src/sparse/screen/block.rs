//! Rows on their way through the features: thresholds, and what reaches them.

use super::bounds::{Bounds, Lengths};
use super::reached::Reached;
use super::{LANES, PANEL};
use crate::real::largest;

/// Features before the first threshold at least.
const FIRST: usize = 512;
/// Each threshold but the last serves until this many times as many features have been seen.
const GROWTH: usize = 4;

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
pub(in crate::sparse) struct Block {
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
    pub(super) kept: Vec<[f32; PANEL]>,
    rows: Vec<Row>,
    /// The maxima of one row.
    of_row: Vec<[f32; LANES]>,
}

impl Block {
    /// Begins with rows of these lengths. All memory is used again.
    pub(in crate::sparse) fn begin(&mut self, bounds: &Bounds, k: usize, lengths: &[Lengths]) {
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
        let features = bounds.panel(panel);
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

    /// Rows that are not screened, to be called after the last panel.
    pub(in crate::sparse) fn dense_rows(&self) -> usize {
        let rows = self.rows[..self.bounds.len()].iter();
        rows.filter(|row| row.dense || row.features.len() > self.limit)
            .count()
    }

    /// Ends: for each row the features that can be among the `k` largest, ascending; nothing where the row is to be
    /// computed whole.
    #[inline(always)]
    pub(in crate::sparse) fn end(&mut self) -> impl Iterator<Item = Option<&[u32]>> {
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
pub(super) fn reached_by(numbers: &[[f32; LANES]], k: usize) -> f32 {
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
