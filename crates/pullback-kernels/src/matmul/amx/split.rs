//! Operands of the tile unit: every `f32` as a sum of three bf16 numbers, laid out in tiles.
//!
//! `x = high + middle + low`, each the upper half of an `f32`. `high` and `middle` are rounded to nearest
//! (8 significant bits, ties away from zero), so `|middle| ≤ 2⁻⁸|x|` and `|low| ≤ 2⁻¹⁷|x|`; both remainders
//! are exact in `f32`, and what is left for `low` has at most 8 bits. The sum is therefore exactly `x`
//! wherever `low` is a normal number, which `|x| ≥ 2⁻¹⁰³` ensures.
//!
//! The packed form of an operand is a sequence of panels of [`PANEL`] lines (rows of the left operand,
//! columns of the right one). A panel is a sequence of steps of [`STEP`] inner positions, and a step holds
//! six tiles of 16 × 64 bytes: the three parts of its first 16 lines and of its last 16, in the order high,
//! high, middle, middle, low, low. A tile row pairs inner position `p` with `p + 16`: the product of tiles
//! sums over pairs, so any pairing will do that both operands share, and with this one no lane moves.
//!
//! Where only the first of the three parts is wanted, a step holds the two tiles of that part.

use std::arch::x86_64::{
    __m512, __m512i, __mmask16, _CMP_UNORD_Q, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cmpeq_epi32_mask,
    _mm512_loadu_ps, _mm512_mask_mov_epi32, _mm512_maskz_loadu_ps, _mm512_maskz_mov_ps,
    _mm512_or_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_srli_epi32,
    _mm512_store_si512, _mm512_sub_ps, _mm512_unpackhi_ps, _mm512_unpacklo_ps,
};

/// Lines of an operand in one panel: two tiles.
pub(crate) const PANEL: usize = 32;
/// Inner positions in one step: a tile row of 64 bytes.
pub(crate) const STEP: usize = 32;
/// Rows of a tile, pairs in a tile row, and numbers in a vector.
const TILE: usize = 16;
/// Rows of 64 bytes in one step of a panel: three parts of two tiles.
pub(crate) const STEP_ROWS: usize = step_rows(3);

/// Rows of 64 bytes in one step of a panel of the first `parts` parts.
pub(crate) const fn step_rows(parts: usize) -> usize {
    2 * parts * TILE
}

/// One row of a tile.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct TileRow([u32; TILE]);

impl TileRow {
    pub(crate) const ZERO: Self = Self([0; TILE]);
}

/// An operand as lines over the inner dimension: `lines × inner`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a> {
    data: &'a [f32],
    pub(crate) lines: usize,
    pub(crate) inner: usize,
    line_stride: usize,
    inner_stride: usize,
}

impl<'a> Operand<'a> {
    /// # Panics
    /// If the last number lies past the slice, or if neighbours are adjacent in neither direction.
    pub(crate) fn new(
        data: &'a [f32],
        lines: usize,
        inner: usize,
        line_stride: usize,
        inner_stride: usize,
    ) -> Self {
        assert!(line_stride == 1 || inner_stride == 1);
        if lines > 0 && inner > 0 {
            assert!((lines - 1) * line_stride + (inner - 1) * inner_stride < data.len());
        }
        Self {
            data,
            lines,
            inner,
            line_stride,
            inner_stride,
        }
    }
}

/// Which operand is packed: a tile row of the left one belongs to a line, of the right one to a pair of
/// inner positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// Packs the lines from `line` on (at most [`PANEL`]; the rest is zero) over the inner positions
/// `inner .. inner + length` into `out`, which holds `length / STEP`, rounded up, steps of [`step_rows`] of the
/// first `PARTS` parts.
///
/// Numbers that are not finite become zero, and the answer tells whether there were any.
///
/// # Panics
/// If `out` has another length or the ranges lie outside the operand.
#[target_feature(enable = "avx512f,avx512dq,avx512bw")]
pub(crate) fn pack_panel<const PARTS: usize>(
    out: &mut [TileRow],
    operand: Operand<'_>,
    side: Side,
    line: usize,
    inner: usize,
    length: usize,
) -> bool {
    assert!(line < operand.lines && inner + length <= operand.inner);
    assert_eq!(out.len(), length.div_ceil(STEP) * step_rows(PARTS));
    if pack_steps::<PARTS, false>(out, operand, side, line, inner, length) {
        return false;
    }
    // Something is not finite or would be rounded to infinity: once more, with care.
    pack_steps::<PARTS, true>(out, operand, side, line, inner, length);
    let lines = line..operand.lines.min(line + PANEL);
    lines.into_iter().any(|line| {
        (inner..inner + length).any(|inner| {
            !operand.data[line * operand.line_stride + inner * operand.inner_stride].is_finite()
        })
    })
}

/// Whether the split held everywhere: with `CAREFUL` it always does.
#[target_feature(enable = "avx512f,avx512dq,avx512bw")]
fn pack_steps<const PARTS: usize, const CAREFUL: bool>(
    out: &mut [TileRow],
    operand: Operand<'_>,
    side: Side,
    line: usize,
    inner: usize,
    length: usize,
) -> bool {
    let mut left_over = _mm512_setzero_ps();
    for (step, out) in out.chunks_exact_mut(step_rows(PARTS)).enumerate() {
        for half in 0..2 {
            let lines = operand.lines.saturating_sub(line + half * TILE).min(TILE);
            let line = line + half * TILE;
            let first = step * STEP;
            let blocks = [first, first + TILE].map(|first| {
                let count = length.saturating_sub(first).min(TILE);
                Block::new(operand, side, line, lines, inner + first, count)
            });
            let rest = pack_tile::<PARTS, CAREFUL>(out, half, blocks);
            left_over = _mm512_add_ps(left_over, rest);
        }
    }
    _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(left_over, left_over) == 0
}

/// Up to 16 × 16 numbers, as 16 vectors: a vector is a line (left) or an inner position (right).
struct Block<'a> {
    data: &'a [f32],
    stride: usize,
    /// Vectors in memory, and numbers in each.
    rows: usize,
    width: usize,
    /// Whether vectors in memory run across those that are wanted.
    across: bool,
}

impl<'a> Block<'a> {
    fn new(
        operand: Operand<'a>,
        side: Side,
        line: usize,
        lines: usize,
        inner: usize,
        count: usize,
    ) -> Self {
        let lines_adjacent = operand.inner_stride != 1;
        let (stride, rows, width) = if lines_adjacent {
            (operand.inner_stride, count, lines)
        } else {
            (operand.line_stride, lines, count)
        };
        let data = if rows == 0 || width == 0 {
            &[]
        } else {
            let start = line * operand.line_stride + inner * operand.inner_stride;
            &operand.data[start..start + (rows - 1) * stride + width]
        };
        Self {
            data,
            stride,
            rows: if data.is_empty() { 0 } else { rows },
            width,
            across: lines_adjacent == (side == Side::Left),
        }
    }

    /// Vector `row` as it lies in memory.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw")]
    fn row(&self, row: usize) -> __m512 {
        if row >= self.rows {
            return _mm512_setzero_ps();
        }
        let start = self.data[row * self.stride..].as_ptr();
        if self.width == TILE {
            // SAFETY: `data` ends `width` numbers after the start of the last row.
            unsafe { _mm512_loadu_ps(start) }
        } else {
            let mask: __mmask16 = (1 << self.width) - 1;
            // SAFETY: as above; the mask leaves out what lies behind.
            unsafe { _mm512_maskz_loadu_ps(mask, start) }
        }
    }

    /// All vectors, as they are wanted.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw")]
    fn vectors(&self) -> [__m512; TILE] {
        let mut rows = [_mm512_setzero_ps(); TILE];
        for (row, vector) in rows.iter_mut().enumerate() {
            *vector = self.row(row);
        }
        if self.across { transpose(&rows) } else { rows }
    }
}

/// Splits two blocks, the first and the second members of the pairs, into the tiles of one half.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw")]
fn pack_tile<const PARTS: usize, const CAREFUL: bool>(
    out: &mut [TileRow],
    half: usize,
    [first, second]: [Block<'_>; 2],
) -> __m512 {
    let mut left_over = _mm512_setzero_ps();
    let mut write = |row: usize, first: __m512, second: __m512| {
        let (parts, rest) = split::<CAREFUL>(first, second);
        left_over = _mm512_add_ps(left_over, rest);
        for (part, bits) in parts.into_iter().enumerate().take(PARTS) {
            let out = &mut out[(2 * part + half) * TILE + row];
            // SAFETY: a `TileRow` is 64 bytes, aligned to 64.
            unsafe { _mm512_store_si512(out.0.as_mut_ptr().cast(), bits) };
        }
    };
    if first.across {
        let (first, second) = (first.vectors(), second.vectors());
        for row in 0..TILE {
            write(row, first[row], second[row]);
        }
    } else {
        for row in 0..TILE {
            write(row, first.row(row), second.row(row));
        }
    }
    left_over
}

/// The parts of 16 pairs, the first member in the lower half of each 32 bits, and a vector that is not a
/// number wherever a part of the pair is not finite.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw")]
fn split<const CAREFUL: bool>(first: __m512, second: __m512) -> ([__m512i; 3], __m512) {
    let (first, second) = if CAREFUL {
        (finite(first), finite(second))
    } else {
        (first, second)
    };
    let (high_first, high_second) = (round::<CAREFUL>(first), round::<CAREFUL>(second));
    let (first, second) = (
        _mm512_sub_ps(first, high_first),
        _mm512_sub_ps(second, high_second),
    );
    let (middle_first, middle_second) = (round::<CAREFUL>(first), round::<CAREFUL>(second));
    // Infinity minus itself is not a number, and neither is anything after it.
    let (first, second) = (
        _mm512_sub_ps(first, middle_first),
        _mm512_sub_ps(second, middle_second),
    );
    let parts = [
        pair(high_first, high_second),
        pair(middle_first, middle_second),
        pair(first, second),
    ];
    (parts, _mm512_add_ps(first, second))
}

/// The nearest number whose lower 16 bits are zero.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw")]
fn round<const CAREFUL: bool>(x: __m512) -> __m512 {
    let bits = _mm512_castps_si512(x);
    let mut up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x8000));
    if CAREFUL {
        // Rounding up would overflow: cut off instead.
        let exponent = _mm512_set1_epi32(0x7f80_0000);
        let infinite = _mm512_cmpeq_epi32_mask(_mm512_and_si512(up, exponent), exponent);
        up = _mm512_mask_mov_epi32(up, infinite, bits);
    }
    _mm512_castsi512_ps(_mm512_and_si512(up, upper_half()))
}

/// `x` where it is finite and zero where it is not.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw")]
fn finite(x: __m512) -> __m512 {
    let exponent = _mm512_set1_epi32(0x7f80_0000);
    let bits = _mm512_and_si512(_mm512_castps_si512(x), exponent);
    _mm512_maskz_mov_ps(!_mm512_cmpeq_epi32_mask(bits, exponent), x)
}

/// The upper halves of both, those of `first` below.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw")]
fn pair(first: __m512, second: __m512) -> __m512i {
    _mm512_or_si512(
        _mm512_srli_epi32::<16>(_mm512_castps_si512(first)),
        _mm512_and_si512(_mm512_castps_si512(second), upper_half()),
    )
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw")]
fn upper_half() -> __m512i {
    _mm512_set1_epi32(0xffff_0000_u32.cast_signed())
}

/// The transposed 16 × 16 matrix: 2 × 2 blocks of numbers, then of pairs, then of quarters of a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw")]
fn transpose(rows: &[__m512; TILE]) -> [__m512; TILE] {
    use std::arch::x86_64::{
        _mm512_castpd_ps, _mm512_castps_pd, _mm512_unpackhi_pd, _mm512_unpacklo_pd,
    };
    let mut singles = *rows;
    for i in (0..TILE).step_by(2) {
        singles[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        singles[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    // After this, `pairs[4a + c]` holds, in quarter q, rows 4a .. 4a+4 of column 4q + c.
    let mut pairs = singles;
    for i in (0..TILE).step_by(4) {
        for j in 0..2 {
            let (top, bottom) = (
                _mm512_castps_pd(singles[i + j]),
                _mm512_castps_pd(singles[i + j + 2]),
            );
            pairs[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(top, bottom));
            pairs[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(top, bottom));
        }
    }
    let mut out = pairs;
    for c in 0..4 {
        let [a, b, d, e] = [pairs[c], pairs[4 + c], pairs[8 + c], pairs[12 + c]];
        let (even_top, odd_top) = (
            _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
        );
        let (even_bottom, odd_bottom) = (
            _mm512_shuffle_f32x4::<0b10_00_10_00>(d, e),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(d, e),
        );
        out[c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even_top, even_bottom);
        out[8 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even_top, even_bottom);
        out[4 + c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd_top, odd_bottom);
        out[12 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd_top, odd_bottom);
    }
    out
}
