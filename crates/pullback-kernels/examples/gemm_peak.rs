//! Prints how fast dense `f32` products are: `pullback_kernels::matmul` and the `gemm` crate in turn, in one
//! run; before that, on processors with AMX-BF16, what the tile unit can do and what packing costs.
//!
//! `cargo run --release -p pullback-kernels --example gemm_peak [-- WORD]` (only lines that contain `WORD`)

use std::hint::black_box;
use std::time::Instant;

use pullback_kernels::{Matrix, MatrixMut, Threads, matmul};

#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    target_pointer_width = "64"
))]
#[path = "../src/matmul/amx/split.rs"]
mod split;
#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    target_pointer_width = "64"
))]
#[path = "../src/matmul/amx/unit.rs"]
#[allow(dead_code, reason = "a constant is for the products of the library")]
mod unit;

/// How often each side is timed; the median is printed.
const REPEATS: usize = 9;

/// A product: what it stands for, rows × inner × columns, and which inputs lie transposed in memory.
struct Shape(&'static str, [usize; 3], [bool; 2]);

fn main() {
    let only = std::env::args().nth(1).unwrap_or_default();
    let ahead = [false, true];
    let input = [false, false];
    let weight = [true, false];
    let mut shapes = Vec::new();
    for inner in [576, 1536, 192] {
        for columns in [576, 1536] {
            shapes.push(Shape("x·Wᵀ", [1024, inner, columns], ahead));
            shapes.push(Shape("g·W", [1024, columns, inner], input));
            shapes.push(Shape("gᵀ·x", [columns, 1024, inner], weight));
        }
    }
    shapes.push(Shape("x·Wᵀ", [1024, 576, 49152], ahead));
    shapes.push(Shape("g·W", [1024, 49152, 576], input));
    shapes.push(Shape("gᵀ·x", [49152, 1024, 576], weight));
    shapes.push(Shape("loss x·Wᵀ", [128, 576, 49152], ahead));
    shapes.push(Shape("loss g·W", [128, 49152, 576], input));
    shapes.push(Shape("SAE x·Wᵀ", [4096, 576, 8192], ahead));
    shapes.push(Shape("SAE x·Wᵀ", [4096, 576, 16384], ahead));
    for rows in [512, 1024, 2048, 4096] {
        shapes.push(Shape("SAE z·W", [rows, 8192, 576], input));
        shapes.push(Shape("SAE g·Wᵀ", [rows, 576, 8192], ahead));
        shapes.push(Shape("SAE zᵀ·g", [8192, rows, 576], weight));
    }
    for rows in [64, 128, 256] {
        shapes.push(Shape("SAE part", [rows, 576, 8192], ahead));
    }
    for rows in [8, 16, 24, 32, 48, 64, 96, 128, 256] {
        shapes.push(Shape("few rows", [rows, 576, 1536], ahead));
        shapes.push(Shape("few rows", [rows, 576, 576], ahead));
        shapes.push(Shape("few inner", [1024, rows, 576], ahead));
        shapes.push(Shape("few columns", [1024, 576, rows], ahead));
    }
    for keys in [64, 128, 256, 1024] {
        shapes.push(Shape("attention q·kᵀ", [64, 64, keys], ahead));
        shapes.push(Shape("attention p·v", [64, keys, 64], input));
        shapes.push(Shape("attention pᵀ·g", [keys, 64, 64], weight));
    }
    for size in [32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048] {
        shapes.push(Shape("square", [size, size, size], ahead));
    }
    #[cfg(all(
        target_arch = "x86_64",
        target_os = "linux",
        target_pointer_width = "64"
    ))]
    if unit::available() {
        tiles();
    }
    println!("GFLOP/s, medians of {REPEATS}; rows × inner × columns");
    for threads in [Threads::One, Threads::All] {
        for shape in &shapes {
            let line = format!("{threads:?} {} {:?}", shape.0, shape.1);
            if line.contains(&only) {
                compare(&line, shape, threads);
            }
        }
    }
}

fn compare(line: &str, shape: &Shape, threads: Threads) {
    let Shape(_, [rows, inner, columns], transposed) = *shape;
    let left = numbers(rows * inner, 1);
    let right = numbers(inner * columns, 2);
    let mut out = vec![0.0_f32; rows * columns];
    let flops = 2.0 * rows as f64 * inner as f64 * columns as f64;
    // Short products are repeated so that each timing takes a millisecond or so.
    let inside = ((2e8 / flops) as usize).clamp(1, 1000);
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for round in 0..=REPEATS {
        let start = Instant::now();
        for _ in 0..inside {
            matmul(
                MatrixMut::new(&mut out, rows, columns, columns),
                view(&left, rows, inner, transposed[0]),
                view(&right, inner, columns, transposed[1]),
                0.0,
                1.0,
                threads,
            );
        }
        black_box(&mut out);
        let our_time = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for _ in 0..inside {
            through_gemm(&mut out, &left, &right, shape, threads);
        }
        black_box(&mut out);
        let their_time = start.elapsed().as_secs_f64();
        // The first round warms up.
        if round > 0 {
            ours.push(our_time);
            theirs.push(their_time);
        }
    }
    let rate = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        flops * inside as f64 / times[times.len() / 2] / 1e9
    };
    let (ours, theirs) = (rate(&mut ours), rate(&mut theirs));
    println!(
        "{line:<40} gemm {theirs:7.1}  ours {ours:7.1}  {:5.2}×",
        ours / theirs
    );
}

fn view(data: &[f32], rows: usize, columns: usize, transposed: bool) -> Matrix<'_, f32> {
    if transposed {
        Matrix::new(data, columns, rows, rows).transposed()
    } else {
        Matrix::new(data, rows, columns, columns)
    }
}

fn through_gemm(out: &mut [f32], left: &[f32], right: &[f32], shape: &Shape, threads: Threads) {
    let Shape(_, [rows, inner, columns], transposed) = *shape;
    // (column stride, row stride)
    let strides = |rows: usize, columns: usize, transposed: bool| {
        if transposed {
            (rows as isize, 1)
        } else {
            (1, columns as isize)
        }
    };
    let (left_strides, right_strides) = (
        strides(rows, inner, transposed[0]),
        strides(inner, columns, transposed[1]),
    );
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(0),
    };
    assert_eq!(
        [out.len(), left.len(), right.len()],
        [rows * columns, rows * inner, inner * columns]
    );
    // SAFETY: the slices hold matrices of these shapes, and `out` overlaps neither input.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            columns as isize,
            false,
            left.as_ptr(),
            left_strides.0,
            left_strides.1,
            right.as_ptr(),
            right_strides.0,
            right_strides.1,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Numbers in [-1, 1) from a multiplicative generator.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(0xD134_2543_DE82_EF95).wrapping_add(1);
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// The tile unit alone on one thread, and packing.
#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    target_pointer_width = "64"
))]
fn tiles() {
    use split::{Operand, STEP, STEP_ROWS, Side, TileRow, pack_panel};
    use unit::{Sums, Tiles, multiply_panels};

    let median = |inside: usize, body: &mut dyn FnMut()| {
        let mut times: Vec<f64> = (0..=20 * REPEATS)
            .map(|_| {
                let start = Instant::now();
                (0..inside).for_each(|_| body());
                start.elapsed().as_secs_f64() / inside as f64
            })
            .skip(1)
            .collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    println!("packing on one thread, ns a number");
    for (lines, inner) in [(128, 576), (1024, 1024)] {
        let data = numbers(lines * inner, 3);
        let steps = inner / STEP;
        let mut out = vec![TileRow::ZERO; lines / 32 * steps * STEP_ROWS];
        for (side, line_stride, inner_stride) in [
            (Side::Left, inner, 1),
            (Side::Left, 1, lines),
            (Side::Right, inner, 1),
            (Side::Right, 1, lines),
        ] {
            let operand = Operand::new(&data, lines, inner, line_stride, inner_stride);
            let time = median(1, &mut || {
                for (panel, out) in out.chunks_exact_mut(steps * STEP_ROWS).enumerate() {
                    // SAFETY: `available` includes the vector instructions of packing.
                    unsafe { pack_panel::<3>(out, operand, side, panel * 32, 0, inner) };
                }
            });
            let place = if inner_stride == 1 { "inner" } else { "lines" };
            println!(
                "{side:?} {lines} × {inner}, {place} adjacent: {:.3}",
                time * 1e9 / (lines * inner) as f64
            );
        }
    }
    println!("tile unit on one thread, GFLOP/s of f32 products (six tile products each)");
    for (name, data) in [
        ("zeros", vec![0.0; 256 * 576]),
        ("numbers", numbers(256 * 576, 4)),
    ] {
        let steps = 576 / STEP;
        let mut packed = vec![TileRow::ZERO; 8 * steps * STEP_ROWS];
        for (panel, out) in packed.chunks_exact_mut(steps * STEP_ROWS).enumerate() {
            let operand = Operand::new(&data, 256, 576, 576, 1);
            let side = if panel < 4 { Side::Left } else { Side::Right };
            // SAFETY: as above.
            unsafe { pack_panel::<3>(out, operand, side, panel * 32, 0, 576) };
        }
        // SAFETY: the unit is available.
        let configured = unsafe { Tiles::configure() };
        let count = 2000_usize;
        let time = median(1, &mut || {
            // SAFETY: the tiles are configured and the six loads lie within `packed`.
            unsafe {
                std::arch::asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "tileloadd tmm4, [{data} + {row}]",
                    "tileloadd tmm5, [{data} + {row} + 1024]",
                    "tileloadd tmm6, [{data} + {row} + 2048]",
                    "tileloadd tmm7, [{data} + {row} + 3072]",
                    "2:",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "dec {count}",
                    "jnz 2b",
                    data = in(reg) packed.as_ptr(),
                    row = in(reg) 64_usize,
                    count = inout(reg) count => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, readonly),
                );
            }
        });
        let alone = (count * 4 * 16 * 16 * 32 * 2) as f64 / 6.0 / time / 1e9;
        let mut sums = Sums([0.0; 32 * 32]);
        let time = median(1, &mut || {
            for left in 0..4 {
                for right in 4..8 {
                    let [left, right] =
                        [left, right].map(|i| packed[i * steps * STEP_ROWS..].as_ptr());
                    // SAFETY: the tiles are configured, and each panel holds `steps` steps.
                    unsafe { multiply_panels(&mut sums, left, right, steps, left) };
                }
            }
        });
        black_box(&mut sums.0);
        drop(configured);
        let panels = (16 * 32 * 32 * steps * STEP * 2) as f64 / time / 1e9;
        println!("{name}: in registers {alone:.0}, packed panels {panels:.0}");
    }
}
