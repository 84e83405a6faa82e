//! The scalar types the kernels are written for.

use std::fmt::Debug;
use std::iter::Sum;
use std::mem::MaybeUninit;
use std::ops::{AddAssign, MulAssign, SubAssign};

use bytemuck::Pod;
use num_traits::Float;
use rayon::prelude::*;

/// `f32`, in which models run, or `f64`, in which gradients are checked by finite differences.
pub trait Real:
    Float
    + Pod
    + AddAssign
    + SubAssign
    + MulAssign
    + Sum
    + Debug
    + Default
    + Send
    + Sync
    + burn::tensor::Element
    + 'static
{
    /// The nearest value to `x`.
    fn of(x: f64) -> Self;

    /// The value as `f64`.
    fn as_f64(self) -> f64;

    /// `e^self` in a form that vectorises; within 2 units in the last place.
    #[must_use]
    fn exp_vector(self) -> Self;

    /// The normal distribution function `Φ(self)`, in a form that vectorises for `f32`.
    #[must_use]
    fn normal_cdf(self) -> Self;
}

/// Lanes of a reduction: partial results in as many, so that the compiler can use vectors.
const LANES: usize = 32;

/// The largest of some numbers, `-inf` of none.
#[inline(always)]
pub(crate) fn largest<T: Real>(x: &[T]) -> T {
    let mut tops = [T::neg_infinity(); LANES];
    let chunks = x.chunks_exact(LANES);
    for (top, &x) in tops.iter_mut().zip(chunks.remainder()) {
        *top = x;
    }
    for chunk in chunks {
        for (top, &x) in tops.iter_mut().zip(chunk) {
            *top = if x > *top { x } else { *top };
        }
    }
    let mut top = T::neg_infinity();
    for x in tops {
        top = if x > top { x } else { top };
    }
    top
}

/// The sum of some numbers, in partial sums whose order does not depend on anything but their count.
#[inline(always)]
pub(crate) fn total<T: Real>(x: &[T]) -> T {
    let mut sums = [T::zero(); LANES];
    let chunks = x.chunks_exact(LANES);
    for (sum, &x) in sums.iter_mut().zip(chunks.remainder()) {
        *sum = x;
    }
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    let mut total = T::zero();
    for sum in sums {
        total += sum;
    }
    total
}

/// A vector that is written chunk by chunk, by all threads where there are several chunks, and never read before: memory
/// that is first filled with zeros by one thread costs as much as a small operation itself.
///
/// # Safety
/// `write`, called with the number of the chunk and its place, must write every element.
pub(crate) unsafe fn written<T: Real>(
    len: usize,
    chunk: usize,
    write: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync,
) -> Vec<T> {
    let mut out = Vec::with_capacity(len);
    let place = &mut out.spare_capacity_mut()[..len];
    if len <= chunk {
        write(0, place);
    } else {
        place
            .par_chunks_mut(chunk)
            .enumerate()
            .for_each(|(number, place)| write(number, place));
    }
    // SAFETY: all elements are written, as the caller promises.
    unsafe { out.set_len(len) };
    out
}

impl Real for f32 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as Self
    }

    #[inline(always)]
    fn as_f64(self) -> f64 {
        f64::from(self)
    }

    /// Cody-Waite reduction to |r| ≤ ln 2 / 2, then a polynomial of degree 6 (minimax coefficients of the
    /// Cephes library, S. Moshier), then the exponent is put together from bits.
    #[inline(always)]
    fn exp_vector(self) -> Self {
        const LOG2_E: f32 = std::f32::consts::LOG2_E;
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        // Adding and subtracting 1.5·2²³ rounds to the nearest integer without a library call.
        const ROUND: f32 = 12_582_912.0;
        let x = self.clamp(-87.3, 88.7);
        let n = x.mul_add(LOG2_E, ROUND) - ROUND;
        let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
        let mut p = 1.987_569_1e-4_f32;
        p = p.mul_add(r, 1.398_199_9e-3);
        p = p.mul_add(r, 8.333_452e-3);
        p = p.mul_add(r, 4.166_579_6e-2);
        p = p.mul_add(r, 1.666_666_5e-1);
        p = p.mul_add(r, 5.000_000_1e-1);
        let y = (p * r).mul_add(r, r) + 1.0;
        // Two factors, so that neither exponent overflows at the ends of the range.
        let half = (n as i32) >> 1;
        let rest = n as i32 - half;
        let scaled = y
            * Self::from_bits(((half + 127) as u32) << 23)
            * Self::from_bits(((rest + 127) as u32) << 23);
        if self < -87.3 { 0.0 } else { scaled }
    }

    /// `erfc(z) = t·P(t)·e^{-z²}` with `t = 1/(1 + pz)`, `z = |x|/√2`: the form of Abramowitz and Stegun, 7.1.26, with
    /// a polynomial of degree 10 fitted to `erfcx` on `[0, 10]` (relative error 1e-9 before rounding). Within 2e-7.
    #[inline(always)]
    fn normal_cdf(self) -> Self {
        const P: f32 = 0.470_47;
        const COEFFICIENTS: [f32; 11] = [
            0.265_438_169_240_951_54,
            0.265_315_473_079_681_4,
            0.237_649_440_765_380_86,
            0.164_978_861_808_776_86,
            0.160_163_566_470_146_18,
            -0.183_202_072_978_019_71,
            0.423_438_131_809_234_6,
            -0.726_318_955_421_447_8,
            0.588_494_539_260_864_3,
            -0.233_432_933_688_163_76,
            0.037_475_772_202_014_92,
        ];
        let z = self.abs() * std::f32::consts::FRAC_1_SQRT_2;
        let t = (1.0 + P * z).recip();
        let mut poly = COEFFICIENTS[10];
        let mut i = 10;
        while i > 0 {
            i -= 1;
            poly = poly * t + COEFFICIENTS[i];
        }
        let tail = 0.5 * t * poly * (-z * z).exp_vector();
        if self > 0.0 { 1.0 - tail } else { tail }
    }
}

impl Real for f64 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }

    #[inline(always)]
    fn as_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn exp_vector(self) -> Self {
        self.exp()
    }

    #[inline(always)]
    fn normal_cdf(self) -> Self {
        0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2)
    }
}

#[cfg(test)]
mod tests {
    use super::Real;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0_f64;
        for step in -870_000..=887_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let unit = exact * f64::from(f32::EPSILON) / 2.0;
            worst = worst.max((f64::from(x.exp_vector()) - exact).abs() / unit);
        }
        // A unit in the last place is between one and two of these units.
        assert!(worst <= 4.0, "{worst}");
    }

    #[test]
    fn the_normal_distribution_function_is_right_in_single_precision() {
        let (mut worst, mut worst_relative) = (0.0_f64, 0.0_f64);
        for step in -120_000..=120_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).normal_cdf();
            let off = (f64::from(x.normal_cdf()) - exact).abs();
            worst = worst.max(off);
            if x > -4.0 {
                worst_relative = worst_relative.max(off / exact);
            }
        }
        assert!(
            worst < 2e-7 && worst_relative < 2e-6,
            "{worst} {worst_relative}"
        );
        assert_eq!(f64::normal_cdf(0.0), 0.5);
        assert!((f64::normal_cdf(1.959_963_984_540_054) - 0.975).abs() < 1e-15);
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!((-200.0_f32).exp_vector(), 0.0);
        assert_eq!(f32::NEG_INFINITY.exp_vector(), 0.0);
        assert_eq!(0.0_f32.exp_vector(), 1.0);
        assert!(200.0_f32.exp_vector() > 1e38);
    }
}
