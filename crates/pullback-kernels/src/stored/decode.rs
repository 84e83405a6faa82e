//! From the bytes of a row to its values, sixteen at a time.
//!
//! The block formats are those of `ggml-common.h` in the ggml repository. The arithmetic and its order are those of
//! ggml's own conversion, so that the `f32` values have the same bits on every processor: nothing here is fused.

mod k_quants;
mod plain;
mod quants;

use super::format::Format;
use super::lanes::{LANES, Lanes, OnLanes, on_widest};

pub(super) use k_quants::{Q4K, Q5K, Q6K};
pub(super) use plain::{BF16, F16, F32, F64};
pub(super) use quants::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};

/// How the blocks of one format are laid out.
pub(super) trait Blocks {
    /// The bytes of a block; of a group of elements where the format has no blocks.
    type Block: Copy;
    /// A block of zero bytes.
    const ZERO: Self::Block;
    /// Sixteens in a block.
    const PIECES: usize;

    /// The blocks in some bytes, and the bytes after the last whole one.
    fn blocks(bytes: &[u8]) -> (&[Self::Block], &[u8]);

    /// The bytes of a block, to write.
    fn bytes_mut(block: &mut Self::Block) -> &mut [u8];

    /// Gives the values of a block to `sink`, with the place of each sixteen of them in the block.
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, sink: impl FnMut(usize, L::Floats));
}

/// The members of [`Blocks`] that follow from the bytes of a block and the number of its elements.
macro_rules! sizes {
    ($bytes:expr, $elements:expr) => {
        type Block = [u8; $bytes];
        const ZERO: Self::Block = [0; $bytes];
        const PIECES: usize = $elements / $crate::stored::lanes::LANES;

        #[inline(always)]
        fn blocks(bytes: &[u8]) -> (&[Self::Block], &[u8]) {
            bytes.as_chunks()
        }

        #[inline(always)]
        fn bytes_mut(block: &mut Self::Block) -> &mut [u8] {
            block
        }
    };
}
use sizes;

/// Runs the body with `B` the layout of the format.
macro_rules! with_blocks {
    ($format:expr, $B:ident => $body:expr) => {{
        use $crate::stored::decode as layouts;
        use $crate::stored::format::Format;
        match $format {
            Format::F32 => {
                type $B = layouts::F32;
                $body
            }
            Format::F16 => {
                type $B = layouts::F16;
                $body
            }
            Format::BF16 => {
                type $B = layouts::BF16;
                $body
            }
            Format::F64 => {
                type $B = layouts::F64;
                $body
            }
            Format::Q4_0 => {
                type $B = layouts::Q4_0;
                $body
            }
            Format::Q4_1 => {
                type $B = layouts::Q4_1;
                $body
            }
            Format::Q5_0 => {
                type $B = layouts::Q5_0;
                $body
            }
            Format::Q5_1 => {
                type $B = layouts::Q5_1;
                $body
            }
            Format::Q8_0 => {
                type $B = layouts::Q8_0;
                $body
            }
            Format::Q4K => {
                type $B = layouts::Q4K;
                $body
            }
            Format::Q5K => {
                type $B = layouts::Q5K;
                $body
            }
            Format::Q6K => {
                type $B = layouts::Q6K;
                $body
            }
        }
    }};
}
pub(super) use with_blocks;

/// Gives the values of a row to `sink`, sixteen at a time, with the place of the block among the sixteens of the row
/// and the place in the block; the second is known when the loops are compiled. What is past the end of the row in the
/// last sixteen is zero.
#[inline(always)]
pub(super) fn decode_row<B: Blocks, L: Lanes>(
    lanes: L,
    row: &[u8],
    mut sink: impl FnMut(usize, usize, L::Floats),
) {
    let (blocks, end) = B::blocks(row);
    let mut at = 0;
    for block in blocks {
        B::decode(
            lanes,
            block,
            #[inline(always)]
            |piece, values| sink(at, piece, values),
        );
        at += B::PIECES;
    }
    // The end of a row that is not a whole group; only formats without blocks have one.
    if !end.is_empty() {
        // Zero bytes are zero in these formats. Sixteen zeros past the end have no place in the caller's buffers.
        let mut block = B::ZERO;
        B::bytes_mut(&mut block)[..end.len()].copy_from_slice(end);
        let pieces = (end.len() * B::PIECES).div_ceil(size_of::<B::Block>());
        B::decode(
            lanes,
            &block,
            #[inline(always)]
            |piece, values| {
                if piece < pieces {
                    sink(at, piece, values);
                }
            },
        );
    }
}

/// Decodes whole rows of `columns` values each.
pub(super) fn decode_rows(format: Format, bytes: &[u8], columns: usize, out: &mut [f32]) {
    struct Rows<'a> {
        format: Format,
        bytes: &'a [u8],
        columns: usize,
        out: &'a mut [f32],
    }

    impl OnLanes for Rows<'_> {
        type Output = ();

        #[inline(always)]
        fn on<L: Lanes>(self, lanes: L) {
            let row_bytes = self.columns / self.format.block_size() * self.format.block_bytes();
            let rows = self.out.chunks_exact_mut(self.columns);
            let rows = rows.zip(self.bytes.chunks_exact(row_bytes));
            with_blocks!(self.format, B => for (out, row) in rows {
                let (whole, end) = out.as_chunks_mut::<LANES>();
                decode_row::<B, L>(
                    lanes,
                    row,
                    #[inline(always)]
                    |at, piece, values| match whole.get_mut(at + piece) {
                        Some(out) => *out = lanes.store(values),
                        None => end.copy_from_slice(&lanes.store(values)[..end.len()]),
                    },
                );
            });
        }
    }

    on_widest(Rows {
        format,
        bytes,
        columns,
        out,
    });
}

/// `N` bytes of a block.
#[inline(always)]
fn part<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    match block[at..].first_chunk() {
        Some(bytes) => bytes,
        None => unreachable!("the parts of a block lie within it"),
    }
}
