//! The tile unit against sums in `f64`, and against the `gemm` crate in `f32`.
//!
//! Where there is no tile unit the same tests check the `gemm` crate alone.

use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::{Matrix, Threads, through_gemm};
use super::{available, into_pointer};

/// How a product is made.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Gemm,
    Tiles(Threads),
}

fn ways() -> Vec<Way> {
    let mut ways = vec![Way::Gemm];
    if available() {
        ways.extend([Way::Tiles(Threads::One), Way::Tiles(Threads::All)]);
    }
    ways
}

/// A matrix that owns its numbers: row-major or column-major, with a gap after each row or column.
#[derive(Clone, Debug)]
struct Owned {
    data: Vec<f32>,
    rows: usize,
    columns: usize,
    gap: usize,
    by_column: bool,
}

impl Owned {
    fn new(rows: usize, columns: usize, value: impl FnMut() -> f32) -> Self {
        let data = std::iter::repeat_with(value).take(rows * columns).collect();
        Self {
            data,
            rows,
            columns,
            gap: 0,
            by_column: false,
        }
    }

    /// The same matrix laid out otherwise.
    fn laid_out(&self, by_column: bool, gap: usize) -> Self {
        let (lines, width) = if by_column {
            (self.columns, self.rows)
        } else {
            (self.rows, self.columns)
        };
        let mut data = vec![f32::NAN; lines * (width + gap)];
        for line in 0..lines {
            for place in 0..width {
                let (row, column) = if by_column {
                    (place, line)
                } else {
                    (line, place)
                };
                data[line * (width + gap) + place] = self.at(row, column);
            }
        }
        Self {
            data,
            gap,
            by_column,
            ..*self
        }
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        if self.by_column {
            self.data[column * (self.rows + self.gap) + row]
        } else {
            self.data[row * (self.columns + self.gap) + column]
        }
    }

    fn view(&self) -> Matrix<'_, f32> {
        if self.by_column {
            Matrix::new(&self.data, self.columns, self.rows, self.rows + self.gap).transposed()
        } else {
            Matrix::new(&self.data, self.rows, self.columns, self.columns + self.gap)
        }
    }
}

/// `keep·out + scale·(left × right)`, `out` with rows `gap` wider than its columns.
fn product_into(
    way: Way,
    out: &mut [f32],
    gap: usize,
    (left, right): (&Owned, &Owned),
    keep: f32,
    scale: f32,
) {
    let stride = right.columns + gap;
    assert_eq!(out.len(), left.rows * stride);
    let (left, right) = (left.view(), right.view());
    // SAFETY: `out` has `left.rows` rows of `stride` numbers and is borrowed mutably; `ways` names the
    // tiles only where they are available.
    unsafe {
        let out = out.as_mut_ptr();
        match way {
            Way::Gemm => through_gemm(out, stride, left, right, keep, scale, Threads::All),
            Way::Tiles(threads) => into_pointer(out, stride, left, right, keep, scale, threads),
        }
    }
}

fn product(way: Way, left: &Owned, right: &Owned) -> Vec<f32> {
    // What `keep = 0` must not read.
    let mut out = vec![f32::NAN; left.rows * right.columns];
    product_into(way, &mut out, 0, (left, right), 0.0, 1.0);
    out
}

/// Sums in `f64`, and the sums of magnitudes.
fn exact(left: &Owned, right: &Owned) -> Vec<(f64, f64)> {
    let mut out = vec![(0.0, 0.0); left.rows * right.columns];
    for (row, out) in out.chunks_exact_mut(right.columns).enumerate() {
        for l in 0..left.columns {
            let a = f64::from(left.at(row, l));
            for (column, (sum, magnitude)) in out.iter_mut().enumerate() {
                let term = a * f64::from(right.at(l, column));
                *sum += term;
                *magnitude += term.abs();
            }
        }
    }
    out
}

/// The largest and the root mean square error, relative to the sums of magnitudes.
fn errors(out: &[f32], exact: &[(f64, f64)]) -> (f64, f64) {
    let relative = out
        .iter()
        .zip(exact)
        .map(|(&x, &(sum, magnitude))| (f64::from(x) - sum).abs() / magnitude);
    let (mut worst, mut squares) = (0.0_f64, 0.0);
    for error in relative {
        assert!(error.is_finite());
        worst = worst.max(error);
        squares += error * error;
    }
    (worst, (squares / out.len() as f64).sqrt())
}

fn uniform(random: &mut impl Rng) -> f32 {
    random.random_range(-1.0..1.0)
}

/// Magnitudes over 24 powers of ten.
fn wide(random: &mut impl Rng) -> f32 {
    uniform(random) * 10.0_f32.powf(random.random_range(-12.0..12.0))
}

#[test]
fn errors_are_those_of_f32_products() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for (rows, inner, columns) in [(64, 576, 96), (40, 3001, 70), (33, 64, 200)] {
        let mut inputs = Vec::new();
        for value in [uniform, wide, |random: &mut ChaCha8Rng| {
            // All of one sign: what is left out of a product does not cancel.
            random.random_range(1.0..2.0)
        }] {
            inputs.push((
                Owned::new(rows, inner, || value(&mut random)),
                Owned::new(inner, columns, || value(&mut random)),
            ));
        }
        // Terms that cancel in pairs but for the last bits.
        let (mut left, mut right) = inputs[0].clone();
        for row in 0..rows {
            for l in 1..inner {
                if l % 2 == 1 {
                    left.data[row * inner + l] = left.at(row, l - 1);
                }
            }
        }
        for l in (1..inner).step_by(2) {
            for column in 0..columns {
                right.data[l * columns + column] = -right.at(l - 1, column) * (1.0 + 1e-6);
            }
        }
        inputs.push((left, right));
        for (kind, (left, right)) in inputs.iter().enumerate() {
            let exact = exact(left, right);
            let gemm = errors(&product(Way::Gemm, left, right), &exact);
            assert!(gemm.0 > 0.0 && gemm.0 < inner as f64 * f64::from(f32::EPSILON));
            for way in ways() {
                let ours = errors(&product(way, left, right), &exact);
                println!(
                    "{rows}×{inner}×{columns}, inputs {kind}, {way:?}: {ours:?}, gemm {gemm:?}"
                );
                assert!(ours.0 <= 2.0 * gemm.0, "{ours:?}, gemm {gemm:?}");
                assert!(ours.1 <= 2.0 * gemm.1, "{ours:?}, gemm {gemm:?}");
            }
        }
    }
}

#[test]
fn a_number_is_the_sum_of_its_parts() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let size = 64;
    let mut identity = Owned::new(size, size, || 0.0);
    for i in 0..size {
        identity.data[i * size + i] = 1.0;
    }
    let mut any = Owned::new(size, size, || {
        // Any sign and significand; an exponent whose third part is a normal number.
        let exponent = random.random_range(127 - 103..=254);
        f32::from_bits(random.random::<u32>() & 0x807f_ffff | exponent << 23)
    });
    // Rounded to eight bits these would be infinite.
    any.data[..4].copy_from_slice(&[f32::MAX, f32::MIN, f32::MAX / 1.000_001, 0.0]);
    for way in ways() {
        assert_eq!(product(way, &any, &identity), any.data, "{way:?}");
        assert_eq!(product(way, &identity, &any), any.data, "{way:?}");
    }
}

#[test]
fn products_of_many_chunks_are_exact_in_whole_numbers() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for (rows, inner, columns) in [(40, 1700, 1100), (1090, 800, 67)] {
        let left = Owned::new(rows, inner, || random.random_range(-40_i16..=40).into());
        let right = Owned::new(inner, columns, || random.random_range(-40_i16..=40).into());
        let expected: Vec<f32> = exact(&left, &right).iter().map(|x| x.0 as f32).collect();
        for way in ways() {
            assert!(product(way, &left, &right) == expected, "{way:?}");
        }
    }
}

#[test]
fn threads_and_other_rows_change_no_bit() {
    if !available() {
        return;
    }
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let left = Owned::new(150, 900, || wide(&mut random));
    let right = Owned::new(900, 130, || wide(&mut random));
    let all = product(Way::Tiles(Threads::All), &left, &right);
    assert_eq!(all, product(Way::Tiles(Threads::One), &left, &right));
    // Fewer rows than columns: the operands change places in the plan, not in the sums.
    let some = Owned {
        data: left.data[..70 * 900].to_vec(),
        rows: 70,
        ..left.clone()
    };
    let some = product(Way::Tiles(Threads::All), &some, &right);
    assert_eq!(some, all[..some.len()]);
}

#[test]
fn what_is_not_finite_spreads_as_in_any_sum() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let (rows, inner, columns) = (70, 100, 90);
    let mut left = Owned::new(rows, inner, || uniform(&mut random));
    let mut right = Owned::new(inner, columns, || uniform(&mut random));
    left.data[3 * inner + 5] = f32::INFINITY;
    left.data[4 * inner + 7] = f32::NEG_INFINITY;
    left.data[40 * inner + 99] = f32::NAN;
    left.data[69 * inner] = f32::INFINITY;
    left.data[69 * inner + 1] = f32::INFINITY;
    right.data[6 * columns + 50] = f32::INFINITY;
    right.data[99 * columns + 89] = f32::NAN;
    // Infinity times zero.
    right.data[5 * columns + 8] = 0.0;
    left.data[12 * inner + 6] = 0.0;
    // Bf16 numbers: their middle and low parts are zero.
    right.data[5 * columns + 9] = 1.0;
    let expected = exact(&left, &right);
    let bad = expected.iter().filter(|x| !x.0.is_finite()).count();
    assert!(bad > 4 * columns && bad < rows * columns / 2);
    for way in ways() {
        for by_column in [false, true] {
            let (left, right) = (left.laid_out(by_column, 2), right.laid_out(by_column, 1));
            let mut out = vec![1.0; rows * columns];
            product_into(way, &mut out, 0, (&left, &right), 0.5, 2.0);
            for (&x, &(sum, magnitude)) in out.iter().zip(&expected) {
                let sum = 0.5 + 2.0 * sum;
                if sum.is_finite() {
                    assert!(
                        (f64::from(x) - sum).abs() <= 1e-5 * (1.0 + magnitude),
                        "{x} {sum}"
                    );
                } else if sum.is_nan() {
                    assert!(x.is_nan(), "{way:?}: {x}, expected NaN");
                } else {
                    assert_eq!(f64::from(x), sum, "{way:?}");
                }
            }
        }
    }
}

#[test]
fn tiny_numbers_lose_what_the_documentation_says() {
    let mut random = ChaCha8Rng::seed_from_u64(6);
    let tiny = 2.0_f32.powi(-115);
    let left = Owned::new(40, 64, || uniform(&mut random) * tiny);
    let right = Owned::new(64, 40, || uniform(&mut random));
    let exact = exact(&left, &right);
    let floor = 2.0_f64.powi(-124);
    for way in ways() {
        for (&x, &(sum, magnitude)) in product(way, &left, &right).iter().zip(&exact) {
            let bound = 68.0 * 2.0_f64.powi(-24) * magnitude + 64.0 * 4.0 * floor;
            assert!(x != 0.0 && (f64::from(x) - sum).abs() <= bound);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_shape_layout_and_scaling(
        rows in 1_usize..80,
        inner in 1_usize..110,
        columns in 1_usize..80,
        by_column in any::<[bool; 2]>(),
        gaps in prop::array::uniform3(0_usize..4),
        keep in prop::sample::select(vec![0.0_f32, 1.0, -0.75, 3.0]),
        scale in prop::sample::select(vec![1.0_f32, 0.3, -2.0]),
        seed in any::<u64>(),
    ) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let left = Owned::new(rows, inner, || uniform(&mut random)).laid_out(by_column[0], gaps[0]);
        let right = Owned::new(inner, columns, || uniform(&mut random)).laid_out(by_column[1], gaps[1]);
        let before: Vec<f32> = (0..rows * (columns + gaps[2])).map(|_| uniform(&mut random)).collect();
        let sums = exact(&left, &right);
        for way in ways() {
            let mut out = before.clone();
            product_into(way, &mut out, gaps[2], (&left, &right), keep, scale);
            for row in 0..rows {
                for column in 0..columns + gaps[2] {
                    let place = row * (columns + gaps[2]) + column;
                    if column >= columns {
                        prop_assert_eq!(out[place], before[place], "the gap was written to");
                        continue;
                    }
                    let (sum, magnitude) = sums[row * columns + column];
                    let kept = f64::from(keep) * f64::from(before[place]);
                    let sum = kept + f64::from(scale) * sum;
                    // Roundings of a sum of 110 terms, of scaling and of adding what is kept.
                    let bound = 114.0 * 2.0_f64.powi(-24)
                        * (kept.abs() + f64::from(scale).abs() * magnitude);
                    prop_assert!((f64::from(out[place]) - sum).abs() <= bound);
                }
            }
        }
    }
}
