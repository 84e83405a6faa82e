//! Bounds against pre-activations in `f64`.

#![allow(clippy::unwrap_used, reason = "a test ends where something is missing")]

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::exact::value;
use super::block::reached_by;
use super::bytes::{self, Vectors};
use super::tiles::{self, measure};
use super::{Block, Bounds, Lengths, PANEL};

/// Which products are rounded how.
#[derive(Clone, Copy, Debug)]
enum Rounded {
    Tiles,
    Bytes(Vectors),
}

fn all_rounded() -> Vec<Rounded> {
    let mut all = Vec::new();
    if tiles::available() {
        all.push(Rounded::Tiles);
    }
    for vectors in [Vectors::Avx512, Vectors::Avx2] {
        if vectors.available() {
            all.push(Rounded::Bytes(vectors));
        }
    }
    all
}

/// The largest `|s − exact| / e` over all rows and features, where `s + e` is what screening has seen, and `e / ‖x‖‖w‖`
/// where that was.
///
/// Checks that the value in `f32`, which the choice goes by, lies within the bound too.
fn worst(rounded: Rounded, x: &[f32], encoder: &[f32], bias: &[f32], d: usize) -> (f64, f64) {
    assert!(bias.len() <= 512, "more are not kept");
    let mut block = Block::default();
    match rounded {
        Rounded::Tiles => {
            let packed = tiles::Packed::new(encoder, bias, d).unwrap();
            packed.screen(&mut block, &mut tiles::Scratch::default(), x, 4);
            let mut lengths = vec![Lengths::default(); x.len() / d];
            measure(&mut lengths, x, d);
            worst_of(&block, packed.bounds(), &lengths, (x, encoder, bias, d))
        }
        Rounded::Bytes(vectors) => {
            let packed = bytes::Packed::new(vectors, encoder, bias, d).unwrap();
            let mut scratch = bytes::Scratch::default();
            packed.screen(&mut block, &mut scratch, x, 4);
            worst_of(
                &block,
                packed.bounds(),
                scratch.lengths(),
                (x, encoder, bias, d),
            )
        }
    }
}

fn worst_of(
    block: &Block,
    bounds: &Bounds,
    lengths: &[Lengths],
    (x, encoder, bias, d): (&[f32], &[f32], &[f32], usize),
) -> (f64, f64) {
    let length = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let (mut worst, mut loosest) = (0.0_f64, 0.0_f64);
    for (row, x) in x.chunks_exact(d).enumerate() {
        for (i, w) in encoder.chunks_exact(d).enumerate() {
            let exact = x
                .iter()
                .zip(w)
                .map(|(&x, &w)| f64::from(x) * f64::from(w))
                .sum::<f64>()
                + f64::from(bias[i]);
            let error = bounds.error(lengths[row], i).unwrap();
            let upper = f64::from(block.kept[i / PANEL * lengths.len() + row][i % PANEL]);
            worst = worst.max((upper - error - exact).abs() / error);
            loosest = loosest.max(error / (length(x) * length(w)));
            let value = f64::from(value(x, w, bias[i]));
            assert!(upper - 2.0 * error <= value && value <= upper, "{row} {i}");
        }
    }
    (worst, loosest)
}

#[test]
fn scores_lie_within_their_bounds() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for (rows, d, m) in [(33, 1, 40), (40, 31, 100), (32, 576, 128), (32, 1500, 64)] {
        for (scale_x, scale_w) in [
            (1.0, 1.0),
            (1e-30, 1e25),
            (1e-19, 1e-19),
            (1e-36, 1.0),
            (1e15, 1e15),
        ] {
            let mut numbers = |count: usize, scale: f32| -> Vec<f32> {
                (0..count)
                    .map(|_| scale * random.random_range(-1.0_f32..1.0))
                    .collect()
            };
            let (x, w) = (numbers(rows * d, scale_x), numbers(m * d, scale_w));
            let bias = numbers(m, scale_x * scale_w);
            for rounded in all_rounded() {
                let (worst, _) = worst(rounded, &x, &w, &bias, d);
                assert!(
                    worst <= 1.0,
                    "{rounded:?}, {rows} × {d} × {m}, {scale_x} {scale_w}: {worst}"
                );
            }
        }
    }
}

#[test]
fn large_coordinates_hardly_loosen_the_bounds_of_bytes() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for (d, bound) in [(576, 0.025), (2048, 0.025)] {
        let mut numbers = |count: usize| -> Vec<f32> {
            (0..count)
                .map(|_| random.random_range(-1.0_f32..1.0))
                .collect()
        };
        let (mut x, mut w) = (numbers(32 * d), numbers(64 * d));
        for row in x.chunks_exact_mut(d) {
            row[7] = 50.0;
            row[d - 3] = -80.0;
        }
        for row in w.chunks_exact_mut(d) {
            row[7] = 20.0;
        }
        for vectors in [Vectors::Avx512, Vectors::Avx2] {
            if vectors.available() {
                let (worst, loosest) = worst(Rounded::Bytes(vectors), &x, &w, &[0.0; 64], d);
                assert!(worst <= 1.0 && loosest <= bound, "{d}: {worst} {loosest}");
            }
        }
    }
}

#[test]
fn the_bound_is_reached_where_all_roundings_agree() {
    if !tiles::available() {
        return;
    }
    // 1 + 2⁻⁸ lies between two bf16 numbers; just below it is rounded down, by as much as there can be.
    let (rows, d, m) = (32, 576, 64);
    let below = 1.0 + 2.0_f32.powi(-8) - 2.0_f32.powi(-23);
    let signs = |i: usize| if i.is_multiple_of(3) { -1.0 } else { 1.0 };
    let x: Vec<f32> = (0..rows * d).map(|i| below * signs(i % d)).collect();
    let w: Vec<f32> = (0..m * d).map(|i| below * signs(i % d) * 0.25).collect();
    let (worst, _) = worst(Rounded::Tiles, &x, &w, &vec![0.5; m], d);
    assert!((0.99..=1.0).contains(&worst), "{worst}");
}

#[test]
fn k_numbers_reach_the_threshold_and_hardly_more() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for vectors in [1, 16, 64] {
        for scale in [1.0, 1e-40, 1e30] {
            let numbers: Vec<[f32; 16]> = (0..vectors)
                .map(|_| {
                    std::array::from_fn(|_| scale * random.random_range(-1.0_f32..1.0).max(0.0))
                })
                .collect();
            let positive = numbers.as_flattened().iter().filter(|&&x| x > 0.0).count();
            for k in [1, 2, 7, 100, vectors * 16] {
                let bound = reached_by(&numbers, k);
                let count = numbers
                    .as_flattened()
                    .iter()
                    .filter(|&&x| x >= bound)
                    .count();
                assert!(bound >= 0.0 && (count >= k || bound == 0.0), "{k}: {bound}");
                if k <= positive && scale > 1e-30 {
                    assert!((k..=k + 2 + k / 8).contains(&count), "{k}: {count}");
                }
            }
        }
    }
}
