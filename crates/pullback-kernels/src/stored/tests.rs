//! Stored matrices against the same values written out, and their own formats against plain formulas.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::lanes::{Lanes, OnLanes, Plain};
use super::{Format, StoredError, StoredMatrix, product};
use crate::Real;
use crate::fused::{cross_entropy, cross_entropy_stored, linear, linear_stored};

/// Where the `f16` numbers of a block are.
fn scale_places(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q6K => &[208],
        Format::F32 | Format::F16 | Format::BF16 | Format::F64 => &[],
    }
}

/// A matrix of random blocks with values about one, its bytes at an odd address.
fn random_matrix(seed: u64, format: Format, rows: usize, columns: usize) -> StoredMatrix {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let blocks = rows * columns / format.block_size();
    let mut bytes = vec![0; 1 + blocks * format.block_bytes()];
    random.fill_bytes(&mut bytes);
    for block in bytes[1..].chunks_exact_mut(format.block_bytes()) {
        let value = random.random_range(-2.0..2.0_f64);
        match format {
            Format::F32 => block.copy_from_slice(&(value as f32).to_le_bytes()),
            Format::BF16 => block.copy_from_slice(&(value as f32).to_le_bytes()[2..]),
            Format::F64 => block.copy_from_slice(&value.to_le_bytes()),
            // Below 1 in magnitude: the highest bit of the exponent is clear.
            Format::F16 => block[1] &= 0xbf,
            _ => {}
        }
        for &at in scale_places(format) {
            // Between 2^-10 and 2^-4, of either sign.
            block[at + 1] = (block[at + 1] & 0x83) | random.random_range(5..11_u8) << 2;
        }
    }
    let range = 1..bytes.len();
    StoredMatrix::new(Arc::new(bytes), range, format, rows, columns).expect("sizes that agree")
}

/// The value of element `i` of a block, element by element as the formats are described.
fn element(format: Format, block: &[u8], i: usize) -> f64 {
    let half = |at: usize| {
        let bits = u16::from_le_bytes([block[at], block[at + 1]]);
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let exponent = i32::from(bits >> 10 & 31);
        let leading = if exponent == 0 { 0.0 } else { 1.0 };
        let fraction = leading + f64::from(bits & 1023) / 1024.0;
        sign * fraction * 2f64.powi(exponent.max(1) - 15)
    };
    let nibble = |at: usize, high: bool| if high { block[at] >> 4 } else { block[at] & 15 };
    let bit = |at: usize, number: usize| block[at + number / 8] >> (number % 8) & 1;
    let four = |at: usize| f64::from(nibble(at + i % 16, i >= 16));
    let five = |at: usize| four(at + 4) + 16.0 * f64::from(bit(at, i));
    // Scale and minimum of a group of 32, of six bits each.
    let group = i / 32;
    let six = |minimum: bool| {
        let offset = if minimum { 4 } else { 0 };
        f64::from(if group < 4 {
            block[4 + offset + group] & 63
        } else {
            nibble(8 + group, minimum) | block[offset + group] >> 6 << 4
        })
    };
    match format {
        Format::Q4_0 => half(0) * (four(2) - 8.0),
        Format::Q4_1 => half(0) * four(4) + half(2),
        Format::Q5_0 => half(0) * (five(2) - 16.0),
        Format::Q5_1 => half(0) * five(4) + half(2),
        Format::Q8_0 => half(0) * f64::from(block[2 + i].cast_signed()),
        Format::Q4K => {
            let quant = nibble(16 + 32 * (group / 2) + i % 32, group % 2 == 1);
            half(0) * six(false) * f64::from(quant) - half(2) * six(true)
        }
        Format::Q5K => {
            let quant = nibble(48 + 32 * (group / 2) + i % 32, group % 2 == 1);
            let quant = quant + 16 * (block[16 + i % 32] >> group & 1);
            half(0) * six(false) * f64::from(quant) - half(2) * six(true)
        }
        Format::Q6K => {
            let (of_two, rest) = (i / 128, i % 128);
            let low = nibble(64 * of_two + rest % 64, rest >= 64);
            let high = block[128 + 32 * of_two + rest % 32] >> (2 * (rest / 32)) & 3;
            let scale = f64::from(block[192 + i / 16].cast_signed());
            half(208) * scale * (f64::from(low + 16 * high) - 32.0)
        }
        Format::F16 => half(0),
        Format::BF16 => f64::from(f32::from_bits(
            u32::from(u16::from_le_bytes([block[0], block[1]])) << 16,
        )),
        Format::F32 => f64::from(f32::from_le_bytes(std::array::from_fn(|i| block[i]))),
        Format::F64 => f64::from_le_bytes(std::array::from_fn(|i| block[i])),
    }
}

#[test]
fn values_are_those_of_the_formulas() {
    for format in Format::ALL {
        let (rows, columns) = (7, if format.block_size() == 1 { 83 } else { 512 });
        let weight = random_matrix(3, format, rows, columns);
        let values: Vec<f32> = weight.to_vec();
        let blocks = weight.bytes_of(0..rows).chunks_exact(format.block_bytes());
        let expected =
            blocks.flat_map(|block| (0..format.block_size()).map(|i| element(format, block, i)));
        assert_eq!(values.len(), rows * columns);
        for (i, (&value, expected)) in values.iter().zip(expected).enumerate() {
            // Two roundings of terms that are at most 4.
            let tolerance = 4.0 * f64::from(f32::EPSILON);
            assert!(
                (f64::from(value) - expected).abs() <= tolerance * expected.abs().max(1.0),
                "{format} element {i}: {value} against {expected}"
            );
        }
        assert_eq!(
            weight.to_vec::<f64>(),
            values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()
        );
    }
}

#[test]
fn rows_and_lookups_are_parts_of_the_whole() {
    for format in Format::ALL {
        // Larger than one task.
        let (rows, columns) = (301, 256);
        let weight = random_matrix(4, format, rows, columns);
        let all: Vec<f32> = weight.to_vec();
        let mut some = vec![0.0; 5 * columns];
        weight.rows_into(290, &mut some);
        assert_eq!(some, all[290 * columns..295 * columns], "{format}");
        let ids = [300, 0, 17, 17];
        let expected: Vec<f32> = ids
            .iter()
            .flat_map(|&id| &all[id as usize * columns..(id as usize + 1) * columns])
            .copied()
            .collect();
        assert_eq!(weight.gather::<f32>(&ids), expected, "{format}");
        let ids: Vec<f64> = weight.gather(&ids);
        assert!(ids.iter().zip(&expected).all(|(&a, &b)| a == f64::from(b)));
    }
}

#[test]
#[should_panic(expected = "row 9 is not within the 9 rows there are")]
fn a_lookup_past_the_end_is_refused() {
    let _: Vec<f32> = random_matrix(5, Format::Q8_0, 9, 32).gather(&[3, 9]);
}

/// All kinds of lanes that this processor has, beside the widest.
fn on_other_lanes<C: OnLanes>(computation: impl Fn() -> C, mut check: impl FnMut(C::Output)) {
    check(computation().on(Plain));
    #[cfg(target_arch = "x86_64")]
    if let Some(lanes) = super::lanes::Avx2::try_new() {
        check(lanes.run(|| computation().on(lanes)));
    }
}

#[test]
fn all_kinds_of_lanes_agree() {
    struct Values<'a>(&'a StoredMatrix);

    impl OnLanes for Values<'_> {
        type Output = Vec<u32>;

        fn on<L: Lanes>(self, lanes: L) -> Vec<u32> {
            let mut out = Vec::new();
            super::decode::with_blocks!(self.0.format(), B => super::decode::decode_row::<B, L>(
                lanes,
                self.0.bytes_of(0..1),
                |_, _, values| out.extend(lanes.store(values).map(f32::to_bits)),
            ));
            out
        }
    }

    for format in Format::ALL {
        let columns = if format.block_size() == 1 { 83 } else { 512 };
        let weight = random_matrix(6, format, 1, columns);
        let expected = super::lanes::on_widest(Values(&weight));
        on_other_lanes(
            || Values(&weight),
            |values| assert_eq!(values, expected, "{format}"),
        );
        for n in [1, 2, 3, 4, 7, 16] {
            let x = random_values(7, n * columns);
            let expected = product::linear(&x, &weight);
            on_other_lanes(
                || product::OneTask {
                    x: &x,
                    weight: &weight,
                },
                |values| {
                    let difference = values.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                    assert!(difference.fold(0.0, f32::max) < 1e-3, "{format}, {n} rows");
                },
            );
        }
    }
}

fn random_values<T: Real>(seed: u64, len: usize) -> Vec<T> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..len)
        .map(|_| T::of(random.random_range(-1.5..1.5)))
        .collect()
}

/// How far the product is from the exact one, relative to `Σ |x| |w|`, at worst.
fn worst_error<T: Real>(out: &[T], x: &[T], weight: &StoredMatrix) -> f64 {
    let (rows, columns) = (weight.rows(), weight.columns());
    let values: Vec<f64> = weight.to_vec();
    assert_eq!(out.len(), x.len() / columns * rows);
    let mut worst = 0.0_f64;
    for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact(rows)) {
        for (w, out) in values.chunks_exact(columns).zip(out) {
            let terms = || x.iter().zip(w).map(|(x, w)| x.as_f64() * w);
            let size = terms().map(f64::abs).sum::<f64>();
            let error = (out.as_f64() - terms().sum::<f64>()).abs();
            worst = worst.max(if error == 0.0 { 0.0 } else { error / size });
        }
    }
    worst
}

fn tensor<const D: usize>(values: &[f64], dims: [usize; D], dtype: DType) -> Tensor<D> {
    let device = Device::flex().autodiff();
    let data = TensorData::new(values.to_vec(), dims);
    Tensor::from_data(data, (&device, dtype)).require_grad()
}

fn numbers<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

fn assert_close(a: &[f64], b: &[f64], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    assert!(!a.is_empty(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * b.abs().max(1.0),
            "{what}, element {i}: {a} against {b}"
        );
    }
}

/// Values and gradient of an operation with a stored matrix against those of the dense one in `f64`.
fn compare<const D: usize>(
    weight: &StoredMatrix,
    x: &[f64],
    stored: impl Fn(Tensor<2>) -> Tensor<D>,
    dense: impl Fn(Tensor<2>, Tensor<2>) -> Tensor<D>,
) {
    let columns = weight.columns();
    let x = tensor(x, [x.len() / columns, columns], DType::F64);
    let values = tensor(
        &weight.to_vec::<f64>(),
        [weight.rows(), columns],
        DType::F64,
    );
    let (found, expected) = (stored(x.clone()), dense(x.clone(), values));
    assert_close(&numbers(&found), &numbers(&expected), 1e-12, "values");
    let dims = found.dims();
    let functional: Vec<f64> = random_values(8, dims.iter().product());
    let functional = tensor(&functional, dims, DType::F64).detach();
    let gradient = |out: Tensor<D>| {
        let gradients = (out * functional.clone()).sum().backward();
        numbers(&x.grad(&gradients).expect("a gradient"))
    };
    assert_close(&gradient(found), &gradient(expected), 1e-12, "gradient");
}

fn any_case() -> impl Strategy<Value = (Format, usize, usize, usize, u64)> {
    let format = prop::sample::select(Format::ALL.to_vec());
    (format, 1..=40_usize, 0..40_usize, 1..=3_usize, any::<u64>()).prop_map(
        |(format, n, rows, blocks, seed)| {
            let columns = match format.block_size() {
                1 => 1 + seed as usize % 150,
                block => block * blocks,
            };
            (format, n, 2 * rows + 1, columns, seed)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn products_are_the_dense_ones((format, n, rows, columns, seed) in any_case()) {
        let weight = random_matrix(seed, format, rows, columns);
        let x: Vec<f64> = random_values(seed, n * columns);
        let single: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        let out = linear_stored(tensor(&x, [n, columns], DType::F32).detach(), &weight);
        let out: Vec<f32> = out.to_data().iter::<f32>().collect();
        let error = worst_error(&out, &single, &weight);
        prop_assert!(error <= 1e-5, "f32: {}", error);
        let error = worst_error(&product::linear(&x, &weight), &x, &weight);
        prop_assert!(error <= 1e-12, "f64: {}", error);
        compare(&weight, &x, |x| linear_stored(x, &weight), linear);
    }

    #[test]
    fn losses_are_the_dense_ones((format, n, rows, columns, seed) in any_case()) {
        let weight = random_matrix(seed, format, rows, columns);
        let mut x: Vec<f64> = random_values(seed, n * columns);
        for x in &mut x {
            *x *= 0.1;
        }
        let targets: Arc<[u32]> = (0..n).map(|i| (i * 7 % rows) as u32).collect();
        compare(
            &weight,
            &x,
            |x| cross_entropy_stored(x, &weight, Arc::clone(&targets)),
            |x, values| cross_entropy(x, values, Arc::clone(&targets)),
        );
    }
}

#[test]
fn products_of_more_than_one_block_and_thread() {
    for (format, n) in [
        (Format::Q4_1, 1),
        (Format::Q4_1, 16),
        (Format::Q4_0, 17),
        (Format::Q8_0, 3),
        (Format::Q6K, 7),
        (Format::F32, 11),
        (Format::BF16, 33),
        (Format::Q5_0, 12),
    ] {
        let weight = random_matrix(9, format, 1301, 512);
        let x: Vec<f32> = random_values(10, n * 512);
        let error = worst_error(&product::linear(&x, &weight), &x, &weight);
        assert!(error <= 1e-5, "{format}: {error}");
        let x: Vec<f64> = random_values(10, n * 512);
        compare(&weight, &x, |x| linear_stored(x, &weight), linear);
        // Two times the same, whatever the threads do.
        let gradient: Vec<f32> = random_values(11, n * 1301);
        assert_eq!(
            product::backward_input(&gradient, &weight),
            product::backward_input(&gradient, &weight)
        );
    }
}

#[test]
fn single_precision_at_a_good_address_is_used_in_place() {
    let values: Vec<f32> = random_values(12, 33 * 20);
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    // A vector of bytes may lie anywhere: one of the four starts is good, the others are not.
    let mut in_place = 0;
    for shift in 0..4 {
        let moved: Vec<u8> = vec![0; shift]
            .into_iter()
            .chain(bytes.iter().copied())
            .collect();
        let range = shift..moved.len();
        let weight = StoredMatrix::new(Arc::new(moved), range, Format::F32, 33, 20)
            .expect("sizes that agree");
        in_place += usize::from(weight.in_place::<f32>().is_some());
        assert!(weight.in_place::<f64>().is_none());
        assert_eq!(weight.to_vec::<f32>(), values);
        let x: Vec<f32> = random_values(13, 10 * 20);
        assert!(worst_error(&product::linear(&x, &weight), &x, &weight) <= 1e-5);
    }
    assert_eq!(in_place, 1);
}

#[test]
fn gradients_by_finite_differences() {
    let (mlp, vocabulary) = (
        random_matrix(14, Format::Q5_1, 11, 32),
        random_matrix(15, Format::Q4_0, 13, 32),
    );
    let back = random_matrix(16, Format::F16, 32, 11);
    let targets: Arc<[u32]> = Arc::from([1, 12, 0]);
    let loss = |x: Tensor<2>| {
        let hidden = linear_stored(x.clone() * 0.1, &mlp).tanh();
        let x = x + linear_stored(hidden, &back);
        cross_entropy_stored(x, &vocabulary, Arc::clone(&targets)).mean()
    };
    let values: Vec<f64> = random_values(17, 3 * 32);
    let x = tensor(&values, [3, 32], DType::F64);
    let gradients = loss(x.clone()).backward();
    let gradient = numbers(&x.grad(&gradients).expect("a gradient"));
    let step = 1e-5;
    for i in 0..values.len() {
        let at = |change: f64| {
            let mut values = values.clone();
            values[i] += change;
            loss(tensor(&values, [3, 32], DType::F64)).into_scalar::<f64>()
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        assert!(
            (slope - gradient[i]).abs() < 1e-8,
            "coordinate {i}: {slope} against {}",
            gradient[i]
        );
    }
}

#[test]
fn no_rows_give_no_rows() {
    let weight = random_matrix(18, Format::Q8_0, 9, 32);
    assert!(product::linear::<f32>(&[], &weight).is_empty());
    assert!(product::linear::<f64>(&[], &weight).is_empty());
    assert!(product::backward_input::<f32>(&[], &weight).is_empty());
}

#[test]
fn sizes_that_do_not_agree_are_errors() {
    let make = |range, format, rows, columns| {
        StoredMatrix::new(Arc::new(vec![0_u8; 100]), range, format, rows, columns)
            .expect_err("sizes that do not agree")
    };
    let cases = [
        (
            make(0..0, Format::F32, 0, 4),
            "a stored matrix of 0×4 has no elements",
        ),
        (
            make(0..80, Format::Q4_1, 4, 33),
            "rows of 33 elements are not made of the blocks of 32 of format Q4_1",
        ),
        (
            make(30..101, Format::F32, 1, 4),
            "bytes 30 to 101 are not within the 100 bytes there are",
        ),
        (
            make(0..82, Format::Q4_1, 4, 32),
            "a matrix of 4×32 in format Q4_1 has 80 bytes, found 82",
        ),
        (
            make(0..82, Format::F64, usize::MAX / 2, 2),
            "has more than 2^64 bytes, found 82",
        ),
    ];
    for (error, message) in cases {
        assert!(error.to_string().contains(message), "{error}");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "the case to be refused")]
    let error = make(9..3, Format::F32, 1, 1);
    assert!(matches!(error, StoredError::Range { length: 100, .. }));
}
