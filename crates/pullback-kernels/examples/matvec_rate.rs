//! How fast all matrices of a small language model are multiplied with one vector, as in generating a token, beside
//! how fast the same bytes are read.
//!
//! The matrices have the shapes and formats of SmolLM2-135M in its `Q4_1` file: 30 blocks, and the embedding in `Q8_0`.
//! Run: `cargo run --release -p pullback-kernels --example matvec_rate [ROWS_OF_X]`

#![allow(clippy::print_stdout, reason = "the program's output")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use pullback_kernels::stored::linear;
use pullback_kernels::{Format, StoredMatrix};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

const REPEATS: usize = 30;
const LAYERS: usize = 30;
const LAYER: [(usize, usize); 7] = [
    (576, 576),
    (192, 576),
    (192, 576),
    (576, 576),
    (1536, 576),
    (1536, 576),
    (576, 1536),
];

/// Random quants with scales of 1/1024.
fn matrix(random: &mut ChaCha8Rng, format: Format, rows: usize, columns: usize) -> StoredMatrix {
    let mut bytes = vec![0; rows * columns / format.block_size() * format.block_bytes()];
    random.fill_bytes(&mut bytes);
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let places: &[usize] = match format {
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q6K => &[208],
            Format::F32 => &[2],
            Format::F64 => &[6],
            _ => &[0],
        };
        for &at in places {
            block[at..at + 2].copy_from_slice(&0x1400_u16.to_le_bytes());
        }
    }
    let range = 0..bytes.len();
    StoredMatrix::new(Arc::new(bytes), range, format, rows, columns).expect("sizes that agree")
}

/// Median and least of the seconds that `body` takes.
fn seconds(mut body: impl FnMut()) -> (f64, f64) {
    body();
    let mut times: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            body();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[REPEATS / 2], times[0])
}

/// Reads all bytes once, on all threads.
fn read(bytes: &[u64]) -> u64 {
    let share = bytes.len().div_ceil(rayon::current_num_threads());
    bytes
        .par_chunks(share)
        .map(|bytes| {
            pullback_kernels::vectorized(
                #[inline(always)]
                || {
                    let mut sums = [0_u64; 32];
                    for chunk in bytes.chunks_exact(32) {
                        for (sum, &word) in sums.iter_mut().zip(chunk) {
                            *sum ^= word;
                        }
                    }
                    sums.iter().fold(0, |a, b| a ^ b)
                },
            )
        })
        .reduce(|| 0, |a, b| a ^ b)
}

fn main() {
    let n: usize = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(1);
    let mut random = ChaCha8Rng::seed_from_u64(1);
    println!(
        "{} threads, {n} rows of x, median and least of {REPEATS}",
        rayon::current_num_threads()
    );

    let mut model = Vec::new();
    for _ in 0..LAYERS {
        model.extend(LAYER.map(|(rows, columns)| matrix(&mut random, Format::Q4_1, rows, columns)));
    }
    model.push(matrix(&mut random, Format::Q8_0, 49152, 576));
    let bytes: usize = model.iter().map(StoredMatrix::bytes_len).sum();
    let x: Vec<f32> = (0..n * 1536).map(|i| (i as f32).sin()).collect();
    let pass = || {
        for weight in &model {
            black_box(linear(&x[..n * weight.columns()], weight));
        }
    };
    let report = |what: &str, bytes: usize, (median, least): (f64, f64)| {
        let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
        println!(
            "{what:<34} {:>7.1} MB  {:6.2} ms ({:.2})  {:5.1} GB/s ({:.1})",
            bytes as f64 / 1e6,
            median * 1e3,
            least * 1e3,
            rate(median),
            rate(least),
        );
    };
    report("the model", bytes, seconds(pass));
    report(
        "the model, from within the pool",
        bytes,
        rayon::scope(|_| seconds(pass)),
    );
    let plain = vec![1_u64; bytes / 8];
    report(
        "reading as many bytes",
        bytes,
        seconds(|| _ = black_box(read(&plain))),
    );

    println!("\na matrix of 16384×2048:");
    for format in Format::ALL {
        let weight = matrix(&mut random, format, 16384, 2048);
        let x: Vec<f32> = (0..n * 2048).map(|i| (i as f32).sin()).collect();
        report(
            format.name(),
            weight.bytes_len(),
            seconds(|| _ = black_box(linear(&x, &weight))),
        );
    }
}
