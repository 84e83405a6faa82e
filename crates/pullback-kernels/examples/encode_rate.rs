//! Prints how fast the TopK encoder is: by dense products, and screened in each way that this processor has, in turn in
//! one run.
//!
//! `cargo run --release -p pullback-kernels --example encode_rate [-- M [K [D]]]` (only this many features, largest
//! chosen; width of the rows, 576 if not given)
//!
//! *gemm* is the dense product by the `gemm` crate, which a processor without a tile unit would use, and selection; *f32*
//! that of [`pullback_kernels::matmul`]. All others are with an encoder packed before; *at once* packs it too, and screens
//! in the way that is usual here.
//!
//! Rows are like activations of a language model: correlated, with a few large coordinates, centred. Encoder rows
//! have length one; half of them lie near rows of the data, as those of a trained dictionary do.

use std::hint::black_box;
use std::time::Instant;

use gemm::Parallelism;
use pullback_kernels::sparse::{PreparedEncoder, Screening, Way, encode_top_k, select_top};
use pullback_kernels::{Matrix, MatrixMut, Threads, matmul, vectorized};
use rayon::prelude::*;

/// How often each side is timed; the median is printed.
const REPEATS: usize = 5;
const ROWS: usize = 4096;
/// Rows that a task multiplies in a dense product.
const TASK: usize = 128;

fn main() {
    let only: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|x| x.parse().ok())
        .collect();
    let d = only.get(2).copied().unwrap_or(576);
    println!("tokens/s, medians of {REPEATS}; {ROWS} rows of {d}; × gemm; candidates a row");
    let mut numbers = Numbers(1);
    let x = rows(&mut numbers, d);
    for m in [2048, 4096, 8192, 16384, 32768, 65536, 131_072] {
        if only.first().is_some_and(|&only| only != m) {
            continue;
        }
        let encoder = encoder(&mut numbers, &x, m, d);
        let bias: Vec<f32> = (0..m).map(|_| 0.1 * numbers.normal()).collect();
        for k in [8, 32, 64, 128] {
            if only.get(1).is_none_or(|&only| only == k) {
                measure(&x, &encoder, &bias, k, d);
            }
        }
    }
}

fn measure(x: &[f32], encoder: &[f32], bias: &[f32], k: usize, d: usize) {
    let ways = [Way::Products, Way::Bytes256, Way::Bytes512, Way::Tiles];
    let prepared: Vec<(Way, PreparedEncoder)> = ways
        .into_iter()
        .filter_map(|way| Some((way, PreparedEncoder::with_way(way, encoder, bias)?)))
        .collect();
    let mut times = vec![Vec::new(); 3 + prepared.len()];
    let mut screening = vec![Screening::default(); prepared.len()];
    // The first round warms up.
    for round in 0..=REPEATS {
        let mut place = 0;
        let mut timed = |work: &mut dyn FnMut()| {
            let start = Instant::now();
            work();
            if round > 0 {
                times[place].push(start.elapsed().as_secs_f64());
            }
            place += 1;
        };
        timed(&mut || {
            black_box(dense(x, encoder, bias, k, d, by_gemm));
        });
        timed(&mut || {
            black_box(dense(x, encoder, bias, k, d, by_matmul));
        });
        timed(&mut || {
            black_box(encode_top_k(x, encoder, bias, k, None));
        });
        for ((_, prepared), screening) in prepared.iter().zip(&mut screening) {
            timed(&mut || {
                *screening = prepared.encode_top_k(x, encoder, bias, k, None).screening;
            });
        }
    }
    let rates: Vec<f64> = times
        .into_iter()
        .map(|mut times| {
            times.sort_by(f64::total_cmp);
            ROWS as f64 / times[times.len() / 2]
        })
        .collect();
    print!(
        "m {m:6} k {k:3}: gemm {:7.0}  f32 {:5.2}×  at once {:5.2}×",
        rates[0],
        rates[1] / rates[0],
        rates[2] / rates[0],
        m = bias.len(),
    );
    for (((way, _), screening), rate) in prepared.iter().zip(&screening).zip(&rates[3..]) {
        print!(
            "  {way:?} {:5.2}× {:4.0}",
            rate / rates[0],
            screening.candidates_a_row()
        );
        if screening.dense_rows > 0 {
            print!(" ({} rows whole)", screening.dense_rows);
        }
    }
    println!();
}

/// A product `out = out + x·encoderᵀ`.
type Product = fn(&mut [f32], &[f32], &[f32], usize, usize);

/// The dense product in `f32`, a few rows a task, and selection.
fn dense(x: &[f32], encoder: &[f32], bias: &[f32], k: usize, d: usize, product: Product) -> usize {
    let m = bias.len();
    x.par_chunks(TASK * d)
        .map_init(Vec::new, |scratch, x| {
            scratch.resize(x.len() / d * m, 0.0);
            for row in scratch.chunks_exact_mut(m) {
                row.copy_from_slice(bias);
            }
            product(scratch, x, encoder, m, d);
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

fn by_matmul(out: &mut [f32], x: &[f32], encoder: &[f32], m: usize, d: usize) {
    let rows = x.len() / d;
    matmul(
        MatrixMut::new(out, rows, m, m),
        Matrix::new(x, rows, d, d),
        Matrix::new(encoder, m, d, d).transposed(),
        1.0,
        1.0,
        Threads::One,
    );
}

fn by_gemm(out: &mut [f32], x: &[f32], encoder: &[f32], m: usize, d: usize) {
    let rows = x.len() / d;
    assert!(out.len() == rows * m && encoder.len() == m * d);
    // SAFETY: the slices hold these matrices, and none overlaps the one that is written.
    unsafe {
        gemm::gemm(
            rows,
            m,
            d,
            out.as_mut_ptr(),
            1,
            m as isize,
            true,
            x.as_ptr(),
            1,
            d as isize,
            encoder.as_ptr(),
            d as isize,
            1,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Rows with 64 common directions of falling weight, noise, and four coordinates with large numbers.
fn rows(numbers: &mut Numbers, d: usize) -> Vec<f32> {
    let common: Vec<f32> = (0..64 * d).map(|_| numbers.normal()).collect();
    let mut x = vec![0.0; ROWS * d];
    for row in x.chunks_exact_mut(d) {
        row.fill_with(|| numbers.normal());
        for (i, direction) in common.chunks_exact(d).enumerate() {
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

fn encoder(numbers: &mut Numbers, x: &[f32], m: usize, d: usize) -> Vec<f32> {
    let mut encoder = vec![0.0; m * d];
    for (i, row) in encoder.chunks_exact_mut(d).enumerate() {
        row.fill_with(|| 4.0 * numbers.normal());
        if i % 2 == 0 {
            let near = &x[(i / 2 % ROWS) * d..][..d];
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
