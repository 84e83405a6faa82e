//! Sixteen lanes at a time, on whatever vector instructions the processor has.
//!
//! [`Lanes`] is the small set of operations that decoding needs. An implementation is a token that exists only where
//! its instructions do, so its methods are safe; [`Lanes::run`] compiles a closure for them.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::array::from_fn;

#[cfg(all(test, target_arch = "x86_64"))]
pub(super) use x86::Avx2;

/// Lanes in a vector.
pub(super) const LANES: usize = 16;
/// Sixteen numbers in memory.
pub(super) type Piece = [f32; LANES];

/// Operations on vectors of sixteen `f32` or sixteen 32-bit integers.
pub(super) trait Lanes: Copy {
    /// Sixteen `f32`.
    type Floats: Copy;
    /// Sixteen 32-bit integers.
    type Ints: Copy;

    /// Runs `body` compiled for these instructions; its loops must be inlined into it.
    fn run<R>(self, body: impl FnOnce() -> R) -> R;

    fn splat(self, x: f32) -> Self::Floats;
    fn load(self, piece: &Piece) -> Self::Floats;
    fn store(self, x: Self::Floats) -> Piece;
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn subtract(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a·b + c`, rounded once where the processor can.
    fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// Unsigned bytes.
    fn bytes(self, bytes: &[u8; 16]) -> Self::Ints;
    /// Signed bytes.
    fn signed_bytes(self, bytes: &[u8; 16]) -> Self::Ints;
    /// Unsigned little-endian 16-bit integers.
    fn words(self, words: &[u8; 32]) -> Self::Ints;
    /// One integer in all lanes.
    fn splat_bits(self, bits: u32) -> Self::Ints;
    fn and(self, a: Self::Ints, mask: u32) -> Self::Ints;
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Shifts all lanes left.
    fn left<const N: u32>(self, a: Self::Ints) -> Self::Ints;
    /// Shifts all lanes right, without sign.
    fn right<const N: u32>(self, a: Self::Ints) -> Self::Ints;
    /// Shifts lane `i` right by `i` bits, without sign.
    fn right_by_lane(self, a: Self::Ints) -> Self::Ints;
    /// Signed integers to floats.
    fn to_floats(self, a: Self::Ints) -> Self::Floats;
    /// The bits of the integers read as floats.
    fn as_floats(self, a: Self::Ints) -> Self::Floats;

    /// An IEEE half-precision number in all lanes.
    fn splat_half(self, bits: [u8; 2]) -> Self::Floats;
    /// Sixteen half-precision numbers.
    fn halves(self, halves: &[u8; 32]) -> Self::Floats;

    /// The function that takes integers, of which the low four bits count, to `of(bits as floats)`.
    ///
    /// Where the processor can look up sixteen numbers at once, `of` is worked out for all sixteen arguments here, and
    /// the function returned is one instruction.
    #[inline(always)]
    fn map_nibbles(
        self,
        of: impl Fn(Self::Floats) -> Self::Floats + Copy,
    ) -> impl Fn(Self::Ints) -> Self::Floats + Copy {
        #[inline(always)]
        move |quants| of(self.to_floats(self.and(quants, 0x0f)))
    }

    /// The sum of the lanes, in a fixed order.
    #[inline(always)]
    fn sum(self, x: Self::Floats) -> f32 {
        let mut lanes = self.store(x);
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }
}

/// A computation that is written once for all kinds of [`Lanes`].
pub(super) trait OnLanes {
    type Output;
    fn on<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs a computation with the widest vectors of this processor.
pub(super) fn on_widest<C: OnLanes>(computation: C) -> C::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(lanes) = x86::Avx512::try_new() {
            return lanes.run(
                #[inline(always)]
                || computation.on(lanes),
            );
        }
        if let Some(lanes) = x86::Avx2::try_new() {
            return lanes.run(
                #[inline(always)]
                || computation.on(lanes),
            );
        }
    }
    computation.on(Plain)
}

/// A half-precision number from its bits, exactly; signalling NaNs become quiet ones, as in hardware.
#[inline(always)]
fn half(bits: [u8; 2]) -> f32 {
    // Exponents of `f16` count from 15, those of `f32` from 127.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(u16::from_le_bytes(bits));
    let sign = (bits & 0x8000) << 16;
    let magnitude = (bits & 0x7fff) << 13;
    let rest = if bits & 0x7c00 != 0x7c00 {
        (f32::from_bits(magnitude) * REBIAS).to_bits()
    } else if bits & 0x7fff == 0x7c00 {
        f32::INFINITY.to_bits()
    } else {
        magnitude | 0x7fc0_0000
    };
    f32::from_bits(sign | rest)
}

/// Plain Rust, for processors without the instructions above.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Lanes for Plain {
    type Floats = Piece;
    type Ints = [u32; LANES];

    #[inline(always)]
    fn run<R>(self, body: impl FnOnce() -> R) -> R {
        body()
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Piece {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, piece: &Piece) -> Piece {
        *piece
    }
    #[inline(always)]
    fn store(self, x: Piece) -> Piece {
        x
    }
    #[inline(always)]
    fn add(self, a: Piece, b: Piece) -> Piece {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn subtract(self, a: Piece, b: Piece) -> Piece {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn multiply(self, a: Piece, b: Piece) -> Piece {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn multiply_add(self, a: Piece, b: Piece, c: Piece) -> Piece {
        from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn bytes(self, bytes: &[u8; 16]) -> Self::Ints {
        bytes.map(u32::from)
    }
    #[inline(always)]
    fn signed_bytes(self, bytes: &[u8; 16]) -> Self::Ints {
        bytes.map(|byte| i32::from(byte.cast_signed()).cast_unsigned())
    }
    #[inline(always)]
    fn words(self, words: &[u8; 32]) -> Self::Ints {
        from_fn(|i| u32::from(u16::from_le_bytes([words[2 * i], words[2 * i + 1]])))
    }
    #[inline(always)]
    fn splat_bits(self, bits: u32) -> Self::Ints {
        [bits; LANES]
    }
    #[inline(always)]
    fn and(self, a: Self::Ints, mask: u32) -> Self::Ints {
        a.map(|a| a & mask)
    }
    #[inline(always)]
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn left<const N: u32>(self, a: Self::Ints) -> Self::Ints {
        a.map(|a| a << N)
    }
    #[inline(always)]
    fn right<const N: u32>(self, a: Self::Ints) -> Self::Ints {
        a.map(|a| a >> N)
    }
    #[inline(always)]
    fn right_by_lane(self, a: Self::Ints) -> Self::Ints {
        from_fn(|i| a[i] >> i)
    }
    #[inline(always)]
    fn to_floats(self, a: Self::Ints) -> Piece {
        a.map(|a| a.cast_signed() as f32)
    }
    #[inline(always)]
    fn as_floats(self, a: Self::Ints) -> Piece {
        a.map(f32::from_bits)
    }
    #[inline(always)]
    fn splat_half(self, bits: [u8; 2]) -> Piece {
        [half(bits); LANES]
    }
    #[inline(always)]
    fn halves(self, halves: &[u8; 32]) -> Piece {
        from_fn(|i| half([halves[2 * i], halves[2 * i + 1]]))
    }
}

#[cfg(test)]
mod tests {
    use super::{Lanes, OnLanes, Plain, half};

    struct Halves([u8; 32]);

    impl OnLanes for Halves {
        type Output = Vec<u32>;

        fn on<L: Lanes>(self, lanes: L) -> Vec<u32> {
            let single = lanes.store(lanes.splat_half([self.0[6], self.0[7]]));
            let all = lanes.store(lanes.halves(&self.0));
            all.iter().chain(&single).map(|x| x.to_bits()).collect()
        }
    }

    #[test]
    fn every_half_is_the_same_on_all_lanes() {
        for start in (0..=u16::MAX).step_by(16) {
            let mut bytes = [0; 32];
            for (i, pair) in bytes.chunks_exact_mut(2).enumerate() {
                pair.copy_from_slice(&(start + i as u16).to_le_bytes());
            }
            let plain = Halves(bytes).on(Plain);
            assert_eq!(super::on_widest(Halves(bytes)), plain);
            #[cfg(target_arch = "x86_64")]
            if let Some(lanes) = super::x86::Avx2::try_new() {
                assert_eq!(Halves(bytes).on(lanes), plain);
            }
        }
    }

    #[test]
    fn halves_are_exact() {
        // IEEE 754: sign, five bits of exponent, ten of fraction.
        for bits in 0..=u16::MAX {
            let (exponent, fraction) = (i32::from(bits >> 10) & 31, f64::from(bits & 0x3ff));
            let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
            let found = half(bits.to_le_bytes());
            match exponent {
                31 if fraction == 0.0 => assert_eq!(found, (sign / 0.0) as f32),
                31 => assert!(found.is_nan()),
                0 => assert_eq!(f64::from(found), sign * fraction * 2f64.powi(-24)),
                _ => assert_eq!(
                    f64::from(found),
                    sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15)
                ),
            }
            assert_eq!(found.is_sign_negative(), sign < 0.0);
        }
    }
}
