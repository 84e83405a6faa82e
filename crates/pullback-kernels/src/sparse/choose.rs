//! The values of what screening has left, and the choice by them.

use super::exact::value;
use super::{Screening, SparseCodes, select_top};
use crate::simd::prefetch;

/// An encoder: `encoder [m, d]`, `bias [m]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights<'a> {
    pub(super) encoder: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) d: usize,
}

/// Codes, and what they took.
#[derive(Debug)]
pub(super) struct Screened {
    pub(super) codes: SparseCodes<f32>,
    pub(super) screening: Screening,
}

impl Screened {
    pub(super) fn none() -> Self {
        Self {
            codes: SparseCodes::new(),
            screening: Screening::default(),
        }
    }

    pub(super) fn append(&mut self, other: &Self) {
        self.codes.append(&other.codes);
        self.screening.add(other.screening);
    }
}

/// Values that are to be computed for a few rows.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Features, one row after the other.
    features: Vec<u32>,
    /// The row of each.
    rows: Vec<u32>,
    /// Their places, by feature: neighbours share rows of the encoder.
    order: Vec<u32>,
    values: Vec<f32>,
    /// Where each bucket of `order` goes on.
    next: Vec<u32>,
}

/// Values before one is computed that its numbers are asked for.
const AHEAD: usize = 3;
/// Buckets of features by which values are ordered.
const BUCKETS: usize = 4096;

impl Wanted {
    /// Computes all values, those of a bucket of neighbouring features together: a row of the encoder then comes from
    /// memory once for several rows of `x`.
    #[inline(always)]
    fn compute(&mut self, x: &[f32], Weights { encoder, bias, d }: Weights<'_>) {
        let width = bias.len().div_ceil(BUCKETS).next_power_of_two();
        let shift = width.trailing_zeros();
        self.next.clear();
        self.next.resize(BUCKETS + 1, 0);
        for &feature in &self.features {
            self.next[(feature >> shift) as usize + 1] += 1;
        }
        for i in 0..BUCKETS {
            self.next[i + 1] += self.next[i];
        }
        self.order.resize(self.features.len(), 0);
        for (place, &feature) in self.features.iter().enumerate() {
            let next = &mut self.next[(feature >> shift) as usize];
            self.order[*next as usize] = place as u32;
            *next += 1;
        }
        self.values.resize(self.features.len(), 0.0);
        for (number, &place) in self.order.iter().enumerate() {
            if let Some(&soon) = self.order.get(number + AHEAD) {
                let (row, i) = (self.rows[soon as usize], self.features[soon as usize]);
                prefetch(&encoder[i as usize * d..][..d]);
                prefetch(&x[row as usize * d..][..d]);
            }
            let place = place as usize;
            let (row, i) = (self.rows[place] as usize, self.features[place] as usize);
            self.values[place] = value(&x[row * d..][..d], &encoder[i * d..][..d], bias[i]);
        }
    }
}

/// Computes what is left of each row, all of it where nothing was left out, and chooses.
#[inline(always)]
pub(super) fn choose<'a>(
    x: &[f32],
    weights: Weights<'_>,
    k: usize,
    left: impl Iterator<Item = Option<&'a [u32]>>,
    wanted: &mut Wanted,
) -> Screened {
    let Weights { encoder, bias, d } = weights;
    let mut ends = Vec::new();
    wanted.features.clear();
    wanted.rows.clear();
    for (row, left) in left.enumerate() {
        if let Some(features) = left {
            wanted.features.extend_from_slice(features);
            wanted.rows.resize(wanted.features.len(), row as u32);
        }
        ends.push(left.map(|_| wanted.features.len()));
    }
    wanted.compute(x, weights);
    let mut screening = Screening {
        rows: ends.len(),
        candidates: wanted.features.len(),
        dense_rows: 0,
    };
    let mut codes = SparseCodes::new();
    let (mut places, mut chosen, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    let mut start = 0;
    for (x, end) in x.chunks_exact(d).zip(ends) {
        places.clear();
        chosen.clear();
        if let Some(end) = end {
            select_top(&wanted.values[start..end], k, &mut places, &mut chosen);
            for place in &mut places {
                *place = wanted.features[start + *place as usize];
            }
            start = end;
        } else {
            screening.dense_rows += 1;
            whole.clear();
            for (row, &bias) in encoder.chunks_exact(d).zip(bias) {
                whole.push(value(x, row, bias));
            }
            select_top(&whole, k, &mut places, &mut chosen);
        }
        codes.push(&places, &chosen);
    }
    Screened { codes, screening }
}
