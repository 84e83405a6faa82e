//! Formats in which each element stands alone, decoded in groups.

use std::array::from_fn;

use super::{Blocks, part, sizes};
use crate::stored::lanes::{LANES, Lanes};

/// Sixteens in a group.
const PIECES: usize = 4;
/// Elements in a group.
const GROUP: usize = PIECES * LANES;

pub(in crate::stored) struct F32;

impl Blocks for F32 {
    sizes!(4 * GROUP, GROUP);

    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, mut sink: impl FnMut(usize, L::Floats)) {
        for piece in 0..PIECES {
            let bytes: &[u8; 4 * LANES] = part(block, piece * 4 * LANES);
            let (values, _) = bytes.as_chunks::<4>();
            sink(
                piece,
                lanes.load(&from_fn(
                    #[inline(always)]
                    |i| f32::from_le_bytes(values[i]),
                )),
            );
        }
    }
}

pub(in crate::stored) struct F16;

impl Blocks for F16 {
    sizes!(2 * GROUP, GROUP);

    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, mut sink: impl FnMut(usize, L::Floats)) {
        for piece in 0..PIECES {
            sink(piece, lanes.halves(part(block, piece * 2 * LANES)));
        }
    }
}

pub(in crate::stored) struct BF16;

impl Blocks for BF16 {
    sizes!(2 * GROUP, GROUP);

    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, mut sink: impl FnMut(usize, L::Floats)) {
        for piece in 0..PIECES {
            let words = lanes.words(part(block, piece * 2 * LANES));
            sink(piece, lanes.as_floats(lanes.left::<16>(words)));
        }
    }
}

pub(in crate::stored) struct F64;

impl Blocks for F64 {
    sizes!(8 * GROUP, GROUP);

    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, mut sink: impl FnMut(usize, L::Floats)) {
        for piece in 0..PIECES {
            let bytes: &[u8; 8 * LANES] = part(block, piece * 8 * LANES);
            let (values, _) = bytes.as_chunks::<8>();
            sink(
                piece,
                lanes.load(&from_fn(
                    #[inline(always)]
                    |i| f64::from_le_bytes(values[i]) as f32,
                )),
            );
        }
    }
}
