//! Scores by one product of 8-bit integers (VNNI), for processors without a tile unit.
//!
//! A rotated row ([`super::rotation`]) is `s·q` with whole numbers `|q| ≤ 127` and one scale, and so is a rotated
//! feature. The product of whole numbers is exact, and the score is `s_x·s_w·(q_x·q_w)`. What rounding to whole numbers
//! loses is measured for each row and each feature; together with the roundings of the rotation it is the `‖x − x̂‖` and
//! `‖w − ŵ‖` of the bound. Rows and features that are far too small or too large keep nothing and lose all, which is
//! right too.
//!
//! The instruction multiplies bytes without a sign by bytes with one: features are stored with 128 added, and each row's
//! sum starts at `−128·Σq`.

use std::arch::x86_64::{
    _mm256_cvtepi32_ps, _mm256_dpbusd_avx_epi32, _mm256_load_si256, _mm256_loadu_ps, _mm256_mul_ps,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_storeu_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32,
    _mm512_load_si512, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_storeu_ps,
};

use rayon::prelude::*;

use super::reached::{Masks, Plain};
use super::rotation::Rotation;
use super::{Block, Bounds, Lengths, PANEL, units_of_value};
use crate::real::largest;
use crate::simd::vectorized;

/// Which instructions multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sparse) enum Vectors {
    /// AVX-512 VNNI.
    Avx512,
    /// AVX-VNNI.
    Avx2,
}

impl Vectors {
    pub(in crate::sparse) fn available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Self::Avx512 => {
                has!("avx512f")
                    && has!("avx512dq")
                    && has!("avx512bw")
                    && has!("avx512vl")
                    && has!("avx512vnni")
                    && has!("fma")
            }
            Self::Avx2 => has!("avx2") && has!("avxvnni") && has!("fma"),
        }
    }
}

/// Positions whose products one instruction adds to a sum.
const STEP: usize = 4;
/// Numbers in a row at most: sums are below 2³¹.
const WIDEST: usize = 1 << 16;
/// The largest whole number.
const MOST: f32 = 127.0;
/// Rows that are multiplied together, by vectors of 512 and of 256 bits: as many as registers hold sums of.
const TOGETHER: [usize; 2] = [8, 4];

/// Four positions of a panel of features: four bytes of each, with 128 added.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; STEP * PANEL]);

/// Products of 32 rows with a panel.
#[repr(C, align(64))]
struct Sums([f32; PANEL * PANEL]);

/// The rows of an encoder in eight bits a number.
#[derive(Clone, Debug)]
pub(in crate::sparse) struct Packed {
    vectors: Vectors,
    lines: Vec<Line>,
    /// `s` of each feature.
    scales: Vec<[f32; PANEL]>,
    bounds: Bounds,
    rotation: Rotation,
    d: usize,
}

/// What one thread needs besides.
#[derive(Debug, Default)]
pub(in crate::sparse) struct Scratch {
    /// `q` of the rows, each filled up to whole steps.
    bytes: Vec<i8>,
    /// `−128·Σq` of each row.
    starts: Vec<i32>,
    /// `s` of each row.
    scales: Vec<f32>,
    lengths: Vec<Lengths>,
    work: Work,
}

#[derive(Debug, Default)]
struct Work {
    rotated: Vec<f32>,
    spare: Vec<f32>,
    quanta: Vec<i8>,
}

impl Packed {
    /// `encoder [m, d]`, `bias [m]`; none where the processor lacks the instructions or rows are too long.
    pub(in crate::sparse) fn new(
        vectors: Vectors,
        encoder: &[f32],
        bias: &[f32],
        d: usize,
    ) -> Option<Self> {
        if !vectors.available() || d == 0 || d > WIDEST || bias.is_empty() {
            return None;
        }
        let m = bias.len();
        let (panels, steps) = (m.div_ceil(PANEL), d.div_ceil(STEP));
        let rotation = Rotation::new(d);
        let mut lines = vec![Line([0; STEP * PANEL]); panels * steps];
        let mut scales = vec![[0.0; PANEL]; panels];
        let mut lengths = vec![Lengths::default(); m];
        lines
            .par_chunks_exact_mut(steps)
            .zip(&mut scales)
            .zip(lengths.par_chunks_mut(PANEL))
            .zip(encoder.par_chunks(PANEL * d))
            .for_each_init(Work::default, |work, (((lines, scales), lengths), rows)| {
                vectorized(
                    #[inline(always)]
                    || {
                        for (i, row) in rows.chunks_exact(d).enumerate() {
                            (scales[i], lengths[i]) = work.quantise(rotation, row);
                            for (line, four) in lines.iter_mut().zip(work.quanta.as_chunks().0) {
                                let four: &[i8; STEP] = four;
                                line.0[i * STEP..(i + 1) * STEP]
                                    .copy_from_slice(&four.map(|q| q.cast_unsigned() ^ 0x80));
                            }
                        }
                    },
                );
            });
        // The score: the sum of whole numbers in f32, two products with scales.
        let units = 4.0 + units_of_value(d);
        Some(Self {
            vectors,
            lines,
            scales,
            bounds: Bounds::new(&lengths, bias, d, units),
            rotation,
            d,
        })
    }

    #[cfg(test)]
    pub(super) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Screens the rows `x` for their `k` largest.
    pub(in crate::sparse) fn screen(
        &self,
        block: &mut Block,
        scratch: &mut Scratch,
        x: &[f32],
        k: usize,
    ) {
        let d = self.d;
        let (rows, stride) = (x.len() / d, d.div_ceil(STEP) * STEP);
        let whole = rows.next_multiple_of(PANEL);
        scratch.bytes.clear();
        scratch.bytes.resize(whole * stride, 0);
        scratch.starts.clear();
        scratch.starts.resize(whole, 0);
        scratch.scales.clear();
        scratch.scales.resize(whole, 0.0);
        scratch.lengths.resize(rows, Lengths::default());
        vectorized(
            #[inline(always)]
            || {
                let work = &mut scratch.work;
                for (row, x) in x.chunks_exact(d).enumerate() {
                    (scratch.scales[row], scratch.lengths[row]) = work.quantise(self.rotation, x);
                    let sum: i32 = work.quanta.iter().map(|&q| i32::from(q)).sum();
                    scratch.starts[row] = -128 * sum;
                    scratch.bytes[row * stride..(row + 1) * stride].copy_from_slice(&work.quanta);
                }
            },
        );
        block.begin(&self.bounds, k, &scratch.lengths);
        // SAFETY: this value exists only where its instructions do.
        unsafe {
            match self.vectors {
                Vectors::Avx512 => self.multiply_512(block, scratch),
                Vectors::Avx2 => self.multiply_256(block, scratch),
            }
        }
    }

    /// # Safety
    /// The processor must have these instructions.
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,fma")]
    unsafe fn multiply_512(&self, block: &mut Block, scratch: &Scratch) {
        // SAFETY: the caller promises the instructions.
        let masks = unsafe { Masks::new() };
        let steps = self.d.div_ceil(STEP);
        let mut sums = Sums([0.0; PANEL * PANEL]);
        for (panel, lines) in self.lines.chunks_exact(steps).enumerate() {
            for first in (0..scratch.starts.len()).step_by(PANEL) {
                for row in (0..PANEL).step_by(TOGETHER[0]) {
                    let rows = scratch.rows(first + row, TOGETHER[0], steps * STEP);
                    let sums = &mut sums.0[row * PANEL..][..TOGETHER[0] * PANEL];
                    // SAFETY: as above.
                    unsafe { products_512(sums, lines, &self.scales[panel], rows) };
                }
                block.take(&self.bounds, panel, first, &sums.0, PANEL, masks);
            }
            block.done(panel, masks);
        }
    }

    /// # Safety
    /// The processor must have these instructions.
    #[target_feature(enable = "avx2,avxvnni,fma")]
    unsafe fn multiply_256(&self, block: &mut Block, scratch: &Scratch) {
        let steps = self.d.div_ceil(STEP);
        let mut sums = Sums([0.0; PANEL * PANEL]);
        for (panel, lines) in self.lines.chunks_exact(steps).enumerate() {
            for first in (0..scratch.starts.len()).step_by(PANEL) {
                for row in (0..PANEL).step_by(TOGETHER[1]) {
                    let rows = scratch.rows(first + row, TOGETHER[1], steps * STEP);
                    let sums = &mut sums.0[row * PANEL..][..TOGETHER[1] * PANEL];
                    // SAFETY: the caller promises the instructions.
                    unsafe { products_256(sums, lines, &self.scales[panel], rows) };
                }
                block.take(&self.bounds, panel, first, &sums.0, PANEL, Plain);
            }
            block.done(panel, Plain);
        }
    }
}

impl Scratch {
    #[cfg(test)]
    pub(super) fn lengths(&self) -> &[Lengths] {
        &self.lengths
    }

    fn rows(&self, first: usize, count: usize, stride: usize) -> Rows<'_> {
        Rows {
            bytes: &self.bytes[first * stride..(first + count) * stride],
            starts: &self.starts[first..first + count],
            scales: &self.scales[first..first + count],
        }
    }
}

/// A few rows.
#[derive(Clone, Copy)]
struct Rows<'a> {
    bytes: &'a [i8],
    starts: &'a [i32],
    scales: &'a [f32],
}

/// Products of 8 rows with a panel: `sums [8, 32]`.
///
/// # Safety
/// The processor must have these instructions.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn products_512(
    sums: &mut [f32],
    lines: &[Line],
    of_features: &[f32; PANEL],
    rows: Rows<'_>,
) {
    const COUNT: usize = TOGETHER[0];
    let stride = lines.len() * STEP;
    assert!(rows.bytes.len() == COUNT * stride && sums.len() == COUNT * PANEL);
    let mut totals: [_; COUNT] =
        std::array::from_fn(|row| [_mm512_set1_epi32(rows.starts[row]); 2]);
    for (step, line) in lines.iter().enumerate() {
        // SAFETY: a line is 128 bytes, aligned to 64; each row has four bytes for each line.
        unsafe {
            let line = line.0.as_ptr();
            let features = [0, 64].map(|start| _mm512_load_si512(line.add(start).cast()));
            for row in 0..COUNT {
                let four = rows.bytes.as_ptr().add(row * stride + step * STEP);
                let four = _mm512_set1_epi32(four.cast::<i32>().read_unaligned());
                for half in 0..2 {
                    totals[row][half] =
                        _mm512_dpbusd_epi32(totals[row][half], features[half], four);
                }
            }
        }
    }
    for row in 0..COUNT {
        let scale = _mm512_set1_ps(rows.scales[row]);
        for half in 0..2 {
            // SAFETY: both arrays hold 32 numbers (a row).
            unsafe {
                let of_features = _mm512_loadu_ps(of_features.as_ptr().add(half * 16));
                let total = _mm512_mul_ps(_mm512_cvtepi32_ps(totals[row][half]), of_features);
                let out = sums.as_mut_ptr().add(row * PANEL + half * 16);
                _mm512_storeu_ps(out, _mm512_mul_ps(total, scale));
            }
        }
    }
}

/// Products of 4 rows with a panel: `sums [4, 32]`.
///
/// # Safety
/// The processor must have these instructions.
#[inline]
#[target_feature(enable = "avx2,avxvnni,fma")]
unsafe fn products_256(
    sums: &mut [f32],
    lines: &[Line],
    of_features: &[f32; PANEL],
    rows: Rows<'_>,
) {
    const COUNT: usize = TOGETHER[1];
    let stride = lines.len() * STEP;
    assert!(rows.bytes.len() == COUNT * stride && sums.len() == COUNT * PANEL);
    for half in 0..2 {
        let mut totals: [_; COUNT] =
            std::array::from_fn(|row| [_mm256_set1_epi32(rows.starts[row]); 2]);
        for (step, line) in lines.iter().enumerate() {
            // SAFETY: a line is 128 bytes, aligned to 64; each row has four bytes for each line.
            unsafe {
                let line = line.0.as_ptr().add(half * 64);
                let features = [0, 32].map(|start| _mm256_load_si256(line.add(start).cast()));
                for row in 0..COUNT {
                    let four = rows.bytes.as_ptr().add(row * stride + step * STEP);
                    let four = _mm256_set1_epi32(four.cast::<i32>().read_unaligned());
                    for part in 0..2 {
                        totals[row][part] =
                            _mm256_dpbusd_avx_epi32(totals[row][part], features[part], four);
                    }
                }
            }
        }
        for row in 0..COUNT {
            let scale = _mm256_set1_ps(rows.scales[row]);
            for part in 0..2 {
                let first = half * 16 + part * 8;
                // SAFETY: both arrays hold 32 numbers (a row).
                unsafe {
                    let of_features = _mm256_loadu_ps(of_features.as_ptr().add(first));
                    let total = _mm256_mul_ps(_mm256_cvtepi32_ps(totals[row][part]), of_features);
                    let out = sums.as_mut_ptr().add(row * PANEL + first);
                    _mm256_storeu_ps(out, _mm256_mul_ps(total, scale));
                }
            }
        }
    }
}

impl Work {
    /// Writes the whole numbers of `x [d]` into `quanta`, filled up with zeros to whole steps; the scale and the lengths.
    #[inline(always)]
    fn quantise(&mut self, rotation: Rotation, x: &[f32]) -> (f32, Lengths) {
        /// Numbers with which nothing below comes near an overflow or the smallest numbers.
        const SIZES: std::ops::RangeInclusive<f32> = 1e-25..=1e25;
        /// Adding it rounds to the nearest whole number, which then stands in the lowest bits.
        const ROUND: f32 = 12_582_912.0;
        self.quanta.clear();
        self.quanta.resize(x.len().next_multiple_of(STEP), 0);
        self.rotated.clear();
        self.rotated.extend(x.iter().map(|x| x.abs()));
        if !SIZES.contains(&largest(&self.rotated)) {
            return (0.0, Lengths::of(x, |_| 0.0));
        }
        self.rotated.copy_from_slice(x);
        rotation.apply(&mut self.rotated, &mut self.spare);
        let mut top = 0.0_f32;
        for x in &self.rotated {
            top = if x.abs() > top { x.abs() } else { top };
        }
        let (scale, inverse) = (top / MOST, MOST / top);
        for (q, x) in self.quanta.iter_mut().zip(&self.rotated) {
            *q = (x * inverse + ROUND).to_bits() as i8;
        }
        let mut lengths = Lengths::of(
            &self.rotated,
            #[inline(always)]
            |x| scale * ((x * inverse + ROUND) - ROUND),
        );
        // The rotation's roundings, those of products with the scale, and that of the difference.
        let units = rotation.units() + 4.0;
        let rounded = units * 2.0_f64.powi(-24) * 1.001 * lengths.whole.max(lengths.kept);
        lengths.whole += rounded;
        lengths.lost += rounded;
        (scale, lengths)
    }
}
