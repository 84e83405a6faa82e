//! Blocks of 32 elements: an `f16` scale `d`, for the formats that end in `_1` an `f16` minimum `m`, for five bits 4
//! bytes of high bits, then the quants. A byte of four-bit quants holds element `i` in its low half and element
//! `i + 16` in its high half.

use super::{Blocks, part, sizes};
use crate::stored::lanes::Lanes;

/// `d`, and for the formats that have it `m`, in all lanes.
#[inline(always)]
fn factor<L: Lanes>(lanes: L, block: &[u8], at: usize) -> L::Floats {
    lanes.splat_half(*part(block, at))
}

pub(in crate::stored) struct Q8_0;

impl Blocks for Q8_0 {
    sizes!(34, 32);

    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, mut sink: impl FnMut(usize, L::Floats)) {
        let d = factor(lanes, block, 0);
        for piece in 0..2 {
            let quants = lanes.signed_bytes(part(block, 2 + 16 * piece));
            sink(piece, lanes.multiply(d, lanes.to_floats(quants)));
        }
    }
}

pub(in crate::stored) struct Q4_0;

impl Blocks for Q4_0 {
    sizes!(18, 32);

    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, mut sink: impl FnMut(usize, L::Floats)) {
        let d = factor(lanes, block, 0);
        let value = lanes.map_nibbles(
            #[inline(always)]
            move |q| lanes.multiply(d, lanes.subtract(q, lanes.splat(8.0))),
        );
        let quants = lanes.bytes(part(block, 2));
        sink(0, value(quants));
        sink(1, value(lanes.right::<4>(quants)));
    }
}

pub(in crate::stored) struct Q4_1;

impl Blocks for Q4_1 {
    sizes!(20, 32);

    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, mut sink: impl FnMut(usize, L::Floats)) {
        let (d, m) = (factor(lanes, block, 0), factor(lanes, block, 2));
        let value = lanes.map_nibbles(
            #[inline(always)]
            move |q| lanes.add(lanes.multiply(d, q), m),
        );
        let quants = lanes.bytes(part(block, 4));
        sink(0, value(quants));
        sink(1, value(lanes.right::<4>(quants)));
    }
}

/// The five-bit quants of a block as floats: their low bits from `low`, their high bits from the four bytes at `high`.
#[inline(always)]
fn five_bits<L: Lanes>(lanes: L, block: &[u8], high: usize, low: usize) -> (L::Floats, L::Floats) {
    let high = u32::from_le_bytes(*part(block, high));
    let low = lanes.bytes(part(block, low));
    let first = extended(lanes, low, high);
    (first, extended(lanes, lanes.right::<4>(low), high >> 16))
}

/// The low four bits of `low` with bit `i` of `high` before those of lane `i`.
#[inline(always)]
fn extended<L: Lanes>(lanes: L, low: L::Ints, high: u32) -> L::Floats {
    let high = lanes.left::<4>(lanes.right_by_lane(lanes.splat_bits(high)));
    lanes.to_floats(lanes.or(lanes.and(low, 0x0f), lanes.and(high, 0x10)))
}

pub(in crate::stored) struct Q5_0;

impl Blocks for Q5_0 {
    sizes!(22, 32);

    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, mut sink: impl FnMut(usize, L::Floats)) {
        let d = factor(lanes, block, 0);
        let (low, high) = five_bits(lanes, block, 2, 6);
        let middle = lanes.splat(16.0);
        sink(0, lanes.multiply(d, lanes.subtract(low, middle)));
        sink(1, lanes.multiply(d, lanes.subtract(high, middle)));
    }
}

pub(in crate::stored) struct Q5_1;

impl Blocks for Q5_1 {
    sizes!(24, 32);

    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, mut sink: impl FnMut(usize, L::Floats)) {
        let (d, m) = (factor(lanes, block, 0), factor(lanes, block, 2));
        let (low, high) = five_bits(lanes, block, 4, 8);
        sink(0, lanes.add(lanes.multiply(d, low), m));
        sink(1, lanes.add(lanes.multiply(d, high), m));
    }
}
