//! Prints how fast the TopK encoder is, by the dense product and screened, in turn in one run.
//!
//! `cargo run --release -p pullback-kernels --example encode_rate [-- M [K]]` (only this many features, largest chosen)
//!
//! Rows are like activations of a language model: correlated, with a few large coordinates, centred. Encoder rows
//! have length one; half of them lie near rows of the data, as those of a trained dictionary do.

use std::hint::black_box;
use std::time::Instant;

use pullback_kernels::sparse::{PreparedEncoder, encode_top_k, select_top};
use pullback_kernels::{Matrix, MatrixMut, Threads, matmul, vectorized};
use rayon::prelude::*;

/// How often each side is timed; the median is printed.
const REPEATS: usize = 5;
const D: usize = 576;
const ROWS: usize = 4096;

fn main() {
    let only: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|x| x.parse().ok())
        .collect();
    println!("tokens/s, medians of {REPEATS}; {ROWS} rows of {D}; prepared: packed before");
    let mut numbers = Numbers(1);
    let x = rows(&mut numbers);
    for m in [2048, 4096, 8192, 16384, 32768, 65536, 131_072] {
        if only.first().is_some_and(|&only| only != m) {
            continue;
        }
        let encoder = encoder(&mut numbers, &x, m);
        let bias: Vec<f32> = (0..m).map(|_| 0.1 * numbers.normal()).collect();
        for k in [8, 32, 64, 128] {
            if only.get(1).is_some_and(|&only| only != k) {
                continue;
            }
            let mut times = [const { Vec::new() }; 3];
            let prepared = PreparedEncoder::new(&encoder, &bias);
            let mut screening = None;
            for round in 0..=REPEATS {
                let start = Instant::now();
                black_box(dense(&x, &encoder, &bias, k));
                let dense = start.elapsed();
                let start = Instant::now();
                screening = Some(encode_top_k(&x, &encoder, &bias, k, None).screening);
                let screened = start.elapsed();
                let start = Instant::now();
                black_box(prepared.encode_top_k(&x, &encoder, &bias, k, None));
                let prepared = start.elapsed();
                // The first round warms up.
                if round > 0 {
                    for (times, time) in times.iter_mut().zip([dense, screened, prepared]) {
                        times.push(time.as_secs_f64());
                    }
                }
            }
            let [dense, screened, prepared] = times.map(|mut times| {
                times.sort_by(f64::total_cmp);
                ROWS as f64 / times[times.len() / 2]
            });
            let screening = screening.unwrap_or_default();
            println!(
                "m {m:6} k {k:3}: dense {dense:8.0}  screened {screened:8.0} {:5.2}×  prepared {prepared:8.0} {:5.2}×  \
                 candidates {:6.1}  dense rows {}",
                screened / dense,
                prepared / dense,
                screening.candidates_a_row(),
                screening.dense_rows,
            );
        }
    }
}

/// The dense product in `f32`, 64 rows a task, and selection.
fn dense(x: &[f32], encoder: &[f32], bias: &[f32], k: usize) -> usize {
    let m = bias.len();
    x.par_chunks(64 * D)
        .map_init(Vec::new, |scratch, x| {
            let rows = x.len() / D;
            scratch.resize(rows * m, 0.0);
            for row in scratch.chunks_exact_mut(m) {
                row.copy_from_slice(bias);
            }
            matmul(
                MatrixMut::new(scratch, rows, m, m),
                Matrix::new(x, rows, D, D),
                Matrix::new(encoder, m, D, D).transposed(),
                1.0,
                1.0,
                Threads::One,
            );
            vectorized(
                #[inline(always)]
                || {
                    let mut count = 0;
                    for row in scratch.chunks_exact(m) {
                        let (mut places, mut values) = (Vec::new(), Vec::new());
                        select_top(row, k, &mut places, &mut values);
                        count += black_box(places).len();
                    }
                    count
                },
            )
        })
        .sum()
}

/// Rows with 64 common directions of falling weight, noise, and four coordinates with large numbers.
fn rows(numbers: &mut Numbers) -> Vec<f32> {
    let common: Vec<f32> = (0..64 * D).map(|_| numbers.normal()).collect();
    let mut x = vec![0.0; ROWS * D];
    for row in x.chunks_exact_mut(D) {
        row.fill_with(|| numbers.normal());
        for (i, direction) in common.chunks_exact(D).enumerate() {
            let factor = 2.0 * numbers.normal() / ((i + 1) as f32).sqrt();
            for (x, &c) in row.iter_mut().zip(direction) {
                *x += factor * c;
            }
        }
        for coordinate in [7, 131, 300, 511] {
            row[coordinate] += 15.0 * numbers.normal();
        }
    }
    x
}

fn encoder(numbers: &mut Numbers, x: &[f32], m: usize) -> Vec<f32> {
    let mut encoder = vec![0.0; m * D];
    for (i, row) in encoder.chunks_exact_mut(D).enumerate() {
        row.fill_with(|| 4.0 * numbers.normal());
        if i % 2 == 0 {
            let near = &x[(i / 2 % ROWS) * D..][..D];
            for (w, &x) in row.iter_mut().zip(near) {
                *w += x;
            }
        }
        let norm = row.iter().map(|w| w * w).sum::<f32>().sqrt();
        for w in row {
            *w /= norm;
        }
    }
    encoder
}

/// Pseudo-random numbers from a multiplicative generator.
struct Numbers(u64);

impl Numbers {
    /// In `[0, 1)`.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(0xD134_2543_DE82_EF95).wrapping_add(1);
        (self.0 >> 40) as f32 / (1_u64 << 24) as f32
    }

    /// Nearly normal: the sum of twelve, centred.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.next()).sum::<f32>() - 6.0
    }
}
