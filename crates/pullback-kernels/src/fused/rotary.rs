//! Rotary position embedding on slices (Su et al., arXiv 2104.09864, section 3.4.2), with the coordinates `i` and
//! `i + r/2` of a head turning together.

use std::sync::Arc;

use rayon::prelude::*;

use crate::Real;
use crate::simd::vectorized;

/// Rows worked on by one task.
const ROWS: usize = 32;

/// Cosines and sines of every pair's angle at every position: made once a model, not once a call.
#[derive(Debug, PartialEq)]
pub struct RotaryTable {
    /// Pairs of coordinates that turn, half the number of turning coordinates.
    pairs: usize,
    /// `[positions, pairs]`.
    cosines: Vec<f64>,
    sines: Vec<f64>,
}

impl RotaryTable {
    /// The table of `positions` positions; pair `i` turns by `position · frequencies[i]` radians.
    pub fn new(positions: usize, frequencies: &[f64]) -> Self {
        let mut cosines = Vec::with_capacity(positions * frequencies.len());
        let mut sines = Vec::with_capacity(positions * frequencies.len());
        for position in 0..positions {
            for frequency in frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                cosines.push(cos);
                sines.push(sin);
            }
        }
        Self {
            pairs: frequencies.len(),
            cosines,
            sines,
        }
    }

    /// Positions in the table.
    pub fn positions(&self) -> usize {
        self.cosines.len().checked_div(self.pairs).unwrap_or(0)
    }

    /// Coordinates of a head that turn.
    pub fn turning(&self) -> usize {
        2 * self.pairs
    }

    /// Cosines and sines at one position.
    pub(super) fn at(&self, position: u32) -> (&[f64], &[f64]) {
        let span = position as usize * self.pairs..(position as usize + 1) * self.pairs;
        (&self.cosines[span.clone()], &self.sines[span])
    }
}

/// What a rotary embedding needs beside the vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct RotarySpec {
    /// The angles.
    pub table: Arc<RotaryTable>,
    /// The position of each row.
    pub positions: Arc<[u32]>,
    /// Size of a head.
    pub d_head: usize,
}

/// Turns every head of `x [rows, heads·d_head]`; `inverse` turns back (the transpose, so also the backward pass).
pub(super) fn rotate<T: Real>(x: &[T], width: usize, spec: &RotarySpec, inverse: bool) -> Vec<T> {
    let pairs = spec.table.pairs;
    let sign = if inverse { -1.0 } else { 1.0 };
    let mut out = vec![T::zero(); x.len()];
    let turn = |first: usize, out: &mut [T], x: &[T]| {
        let mut cosines = vec![T::zero(); pairs];
        let mut sines = vec![T::zero(); pairs];
        vectorized(
            #[inline(always)]
            || {
                let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(width));
                for (row, (out, x)) in rows.enumerate() {
                    let (cos, sin) = spec.table.at(spec.positions[first + row]);
                    for (into, &from) in cosines.iter_mut().zip(cos) {
                        *into = T::of(from);
                    }
                    for (into, &from) in sines.iter_mut().zip(sin) {
                        *into = T::of(sign * from);
                    }
                    let heads = out.chunks_exact_mut(spec.d_head);
                    for (out, x) in heads.zip(x.chunks_exact(spec.d_head)) {
                        rotate_head(out, x, &cosines, &sines);
                    }
                }
            },
        );
    };
    if x.len() <= ROWS * width {
        turn(0, &mut out, x);
    } else {
        out.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * width))
            .enumerate()
            .for_each(|(task, (out, x))| turn(task * ROWS, out, x));
    }
    out
}

#[inline(always)]
fn rotate_head<T: Real>(out: &mut [T], x: &[T], cosines: &[T], sines: &[T]) {
    let half = cosines.len();
    let (first, rest) = out.split_at_mut(half);
    let second = &mut rest[..half];
    let (a, b) = (&x[..half], &x[half..2 * half]);
    for i in 0..half {
        first[i] = a[i] * cosines[i] - b[i] * sines[i];
        second[i] = a[i] * sines[i] + b[i] * cosines[i];
    }
    out[2 * half..].copy_from_slice(&x[2 * half..]);
}
