//! [`Lanes`] on AVX-512 and AVX2.

use std::arch::x86_64::{__m128i, __m256, __m256i, __m512, __m512i, _mm256_cvtph_ps};

use pulp::cast;

use super::{Lanes, Piece};

#[allow(
    clippy::struct_field_names,
    reason = "the fields are named after instruction sets"
)]
mod tokens {
    pulp::simd_type! {
        /// Exists where the processor has AVX-512 with its byte, word and double-word parts.
        pub(in crate::stored) struct Avx512 {
            pub(super) avx: "avx",
            pub(super) avx2: "avx2",
            pub(super) fma: "fma",
            pub(super) avx512f: "avx512f",
            pub(super) avx512bw: "avx512bw",
            pub(super) avx512dq: "avx512dq",
        }

        /// Exists where the processor has AVX2, fused multiply-add and half-precision conversion.
        pub(in crate::stored) struct Avx2 {
            pub(super) sse2: "sse2",
            pub(super) avx: "avx",
            pub(super) avx2: "avx2",
            pub(super) fma: "fma",
            pub(super) f16c: "f16c",
        }
    }
}

pub(in crate::stored) use tokens::{Avx2, Avx512};

impl Lanes for Avx512 {
    type Floats = __m512;
    type Ints = __m512i;

    #[inline(always)]
    fn run<R>(self, body: impl FnOnce() -> R) -> R {
        self.vectorize(body)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        self.avx512f._mm512_set1_ps(x)
    }
    #[inline(always)]
    fn load(self, piece: &Piece) -> __m512 {
        cast(*piece)
    }
    #[inline(always)]
    fn store(self, x: __m512) -> Piece {
        cast(x)
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_add_ps(a, b)
    }
    #[inline(always)]
    fn subtract(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_sub_ps(a, b)
    }
    #[inline(always)]
    fn multiply(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_mul_ps(a, b)
    }
    #[inline(always)]
    fn multiply_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        self.avx512f._mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    fn bytes(self, bytes: &[u8; 16]) -> __m512i {
        self.avx512f._mm512_cvtepu8_epi32(cast(*bytes))
    }
    #[inline(always)]
    fn signed_bytes(self, bytes: &[u8; 16]) -> __m512i {
        self.avx512f._mm512_cvtepi8_epi32(cast(*bytes))
    }
    #[inline(always)]
    fn words(self, words: &[u8; 32]) -> __m512i {
        self.avx512f._mm512_cvtepu16_epi32(cast(*words))
    }
    #[inline(always)]
    fn splat_bits(self, bits: u32) -> __m512i {
        self.avx512f._mm512_set1_epi32(bits.cast_signed())
    }
    #[inline(always)]
    fn and(self, a: __m512i, mask: u32) -> __m512i {
        self.avx512f._mm512_and_si512(a, self.splat_bits(mask))
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        self.avx512f._mm512_or_si512(a, b)
    }
    #[inline(always)]
    fn left<const N: u32>(self, a: __m512i) -> __m512i {
        self.avx512f._mm512_slli_epi32::<N>(a)
    }
    #[inline(always)]
    fn right<const N: u32>(self, a: __m512i) -> __m512i {
        self.avx512f._mm512_srli_epi32::<N>(a)
    }
    #[inline(always)]
    fn right_by_lane(self, a: __m512i) -> __m512i {
        const LANE: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        self.avx512f._mm512_srlv_epi32(a, cast(LANE))
    }
    #[inline(always)]
    fn to_floats(self, a: __m512i) -> __m512 {
        self.avx512f._mm512_cvtepi32_ps(a)
    }
    #[inline(always)]
    fn as_floats(self, a: __m512i) -> __m512 {
        cast(a)
    }
    #[inline(always)]
    fn splat_half(self, bits: [u8; 2]) -> __m512 {
        let words = self.avx._mm256_set1_epi16(i16::from_le_bytes(bits));
        self.avx512f._mm512_cvtph_ps(words)
    }
    #[inline(always)]
    fn halves(self, halves: &[u8; 32]) -> __m512 {
        self.avx512f._mm512_cvtph_ps(cast(*halves))
    }
    #[inline(always)]
    fn map_nibbles(
        self,
        of: impl Fn(__m512) -> __m512 + Copy,
    ) -> impl Fn(__m512i) -> __m512 + Copy {
        const NIBBLES: Piece = [
            0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
        ];
        let table = of(cast(NIBBLES));
        // The instruction looks at the low four bits of each lane only.
        #[inline(always)]
        move |quants| self.avx512f._mm512_permutexvar_ps(quants, table)
    }
}

/// The halves of a vector of sixteen lanes.
type Floats = (__m256, __m256);
type Ints = (__m256i, __m256i);

/// Eight half-precision numbers; for the methods of [`Avx2`].
macro_rules! from_halves {
    ($halves:expr) => {{
        let halves: __m128i = $halves;
        // SAFETY: the token `self` was made after `f16c` had been detected.
        unsafe { _mm256_cvtph_ps(halves) }
    }};
}

impl Lanes for Avx2 {
    type Floats = Floats;
    type Ints = Ints;

    #[inline(always)]
    fn run<R>(self, body: impl FnOnce() -> R) -> R {
        self.vectorize(body)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Floats {
        let x = self.avx._mm256_set1_ps(x);
        (x, x)
    }
    #[inline(always)]
    fn load(self, piece: &Piece) -> Floats {
        let [low, high]: [[f32; 8]; 2] = cast(*piece);
        (cast(low), cast(high))
    }
    #[inline(always)]
    fn store(self, x: Floats) -> Piece {
        cast::<[[f32; 8]; 2], _>([cast(x.0), cast(x.1)])
    }
    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        (
            self.avx._mm256_add_ps(a.0, b.0),
            self.avx._mm256_add_ps(a.1, b.1),
        )
    }
    #[inline(always)]
    fn subtract(self, a: Floats, b: Floats) -> Floats {
        (
            self.avx._mm256_sub_ps(a.0, b.0),
            self.avx._mm256_sub_ps(a.1, b.1),
        )
    }
    #[inline(always)]
    fn multiply(self, a: Floats, b: Floats) -> Floats {
        (
            self.avx._mm256_mul_ps(a.0, b.0),
            self.avx._mm256_mul_ps(a.1, b.1),
        )
    }
    #[inline(always)]
    fn multiply_add(self, a: Floats, b: Floats, c: Floats) -> Floats {
        (
            self.fma._mm256_fmadd_ps(a.0, b.0, c.0),
            self.fma._mm256_fmadd_ps(a.1, b.1, c.1),
        )
    }
    #[inline(always)]
    fn bytes(self, bytes: &[u8; 16]) -> Ints {
        let [low, high]: [u64; 2] = cast(*bytes);
        (
            self.avx2._mm256_cvtepu8_epi32(cast([low, 0])),
            self.avx2._mm256_cvtepu8_epi32(cast([high, 0])),
        )
    }
    #[inline(always)]
    fn signed_bytes(self, bytes: &[u8; 16]) -> Ints {
        let [low, high]: [u64; 2] = cast(*bytes);
        (
            self.avx2._mm256_cvtepi8_epi32(cast([low, 0])),
            self.avx2._mm256_cvtepi8_epi32(cast([high, 0])),
        )
    }
    #[inline(always)]
    fn words(self, words: &[u8; 32]) -> Ints {
        let [low, high]: [[u8; 16]; 2] = cast(*words);
        (
            self.avx2._mm256_cvtepu16_epi32(cast(low)),
            self.avx2._mm256_cvtepu16_epi32(cast(high)),
        )
    }
    #[inline(always)]
    fn splat_bits(self, bits: u32) -> Ints {
        let x = self.avx._mm256_set1_epi32(bits.cast_signed());
        (x, x)
    }
    #[inline(always)]
    fn and(self, a: Ints, mask: u32) -> Ints {
        let mask = self.avx._mm256_set1_epi32(mask.cast_signed());
        (
            self.avx2._mm256_and_si256(a.0, mask),
            self.avx2._mm256_and_si256(a.1, mask),
        )
    }
    #[inline(always)]
    fn or(self, a: Ints, b: Ints) -> Ints {
        (
            self.avx2._mm256_or_si256(a.0, b.0),
            self.avx2._mm256_or_si256(a.1, b.1),
        )
    }
    #[inline(always)]
    fn left<const N: u32>(self, a: Ints) -> Ints {
        let by = self.avx._mm256_set1_epi32(N.cast_signed());
        (
            self.avx2._mm256_sllv_epi32(a.0, by),
            self.avx2._mm256_sllv_epi32(a.1, by),
        )
    }
    #[inline(always)]
    fn right<const N: u32>(self, a: Ints) -> Ints {
        let by = self.avx._mm256_set1_epi32(N.cast_signed());
        (
            self.avx2._mm256_srlv_epi32(a.0, by),
            self.avx2._mm256_srlv_epi32(a.1, by),
        )
    }
    #[inline(always)]
    fn right_by_lane(self, a: Ints) -> Ints {
        const LANE: [[u32; 8]; 2] = [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]];
        (
            self.avx2._mm256_srlv_epi32(a.0, cast(LANE[0])),
            self.avx2._mm256_srlv_epi32(a.1, cast(LANE[1])),
        )
    }
    #[inline(always)]
    fn to_floats(self, a: Ints) -> Floats {
        (
            self.avx._mm256_cvtepi32_ps(a.0),
            self.avx._mm256_cvtepi32_ps(a.1),
        )
    }
    #[inline(always)]
    fn as_floats(self, a: Ints) -> Floats {
        (cast(a.0), cast(a.1))
    }
    #[inline(always)]
    fn splat_half(self, bits: [u8; 2]) -> Floats {
        let words = self.sse2._mm_set1_epi16(i16::from_le_bytes(bits));
        let x = from_halves!(words);
        (x, x)
    }
    #[inline(always)]
    fn halves(self, halves: &[u8; 32]) -> Floats {
        let [low, high]: [[u8; 16]; 2] = cast(*halves);
        (from_halves!(cast(low)), from_halves!(cast(high)))
    }
}
