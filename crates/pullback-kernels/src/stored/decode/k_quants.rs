//! Blocks of 256 elements, whose scales are themselves quantised.

use super::{Blocks, part, sizes};
use crate::stored::lanes::Lanes;

/// The scales and the minima of the eight groups of 32 in a block of `Q4_K` or `Q5_K`, times their `f16` factors.
///
/// The factors are the first four bytes. Of the twelve after them, the low six bits of the first four are the scales
/// of groups 0 to 3 and those of the next four their minima; the last four hold the low four bits of groups 4 to 7, of
/// the scale in the low half of a byte and of the minimum in its high half; the two high bits of these are the upper
/// two of the first eight bytes.
#[inline(always)]
fn scales_and_minima<L: Lanes>(lanes: L, block: &[u8]) -> ([f32; 8], [f32; 8]) {
    let [scales, minima, rest] = [4, 8, 12].map(
        #[inline(always)]
        |at| u32::from_le_bytes(*part(block, at)),
    );
    let (six, four, upper) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x3030_3030);
    let words = [
        scales & six,
        (rest & four) | ((scales >> 2) & upper),
        minima & six,
        ((rest >> 4) & four) | ((minima >> 2) & upper),
    ];
    let quants: [u8; 16] = bytemuck::cast(words.map(u32::to_le_bytes));
    let quants = lanes.to_floats(lanes.bytes(&quants));
    let [[scales, _], [_, minima]]: [[[f32; 8]; 2]; 2] = [0, 2].map(
        #[inline(always)]
        |at| {
            let factor = lanes.splat_half(*part(block, at));
            bytemuck::cast(lanes.store(lanes.multiply(factor, quants)))
        },
    );
    (scales, minima)
}

pub(in crate::stored) struct Q4K;

impl Blocks for Q4K {
    sizes!(144, 256);

    /// 32 bytes hold two groups, one in their low halves and one in their high halves.
    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, mut sink: impl FnMut(usize, L::Floats)) {
        let (scales, minima) = scales_and_minima(lanes, block);
        for pair in 0..4 {
            let quants = [0, 16].map(
                #[inline(always)]
                |at| lanes.bytes(part(block, 16 + 32 * pair + at)),
            );
            for half in 0..2 {
                let group = 2 * pair + half;
                let (d, m) = (lanes.splat(scales[group]), lanes.splat(minima[group]));
                let value = lanes.map_nibbles(
                    #[inline(always)]
                    move |q| lanes.subtract(lanes.multiply(d, q), m),
                );
                for (i, &quants) in quants.iter().enumerate() {
                    let quants = if half == 0 {
                        quants
                    } else {
                        lanes.right::<4>(quants)
                    };
                    sink(2 * group + i, value(quants));
                }
            }
        }
    }
}

pub(in crate::stored) struct Q5K;

impl Blocks for Q5K {
    sizes!(176, 256);

    /// As `Q4_K`, with the fifth bits before the quants: bit `g` of byte `i` belongs to element `i` of group `g`.
    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, mut sink: impl FnMut(usize, L::Floats)) {
        let (scales, minima) = scales_and_minima(lanes, block);
        let mut fifth = [0, 16].map(
            #[inline(always)]
            |at| lanes.left::<4>(lanes.bytes(part(block, 16 + at))),
        );
        for pair in 0..4 {
            let quants = [0, 16].map(
                #[inline(always)]
                |at| lanes.bytes(part(block, 48 + 32 * pair + at)),
            );
            for half in 0..2 {
                let group = 2 * pair + half;
                let (d, m) = (lanes.splat(scales[group]), lanes.splat(minima[group]));
                for i in 0..2 {
                    let low = if half == 0 {
                        quants[i]
                    } else {
                        lanes.right::<4>(quants[i])
                    };
                    let quant = lanes.or(lanes.and(low, 0x0f), lanes.and(fifth[i], 0x10));
                    fifth[i] = lanes.right::<1>(fifth[i]);
                    let value = lanes.subtract(lanes.multiply(d, lanes.to_floats(quant)), m);
                    sink(2 * group + i, value);
                }
            }
        }
    }
}

pub(in crate::stored) struct Q6K;

impl Blocks for Q6K {
    sizes!(210, 256);

    /// 128 bytes of low four bits, 64 bytes of high two bits, 16 signed scales and an `f16` factor. Each half of the
    /// block has 64 of the first, of which the low halves are the first 64 elements, and 32 of the second, of which the
    /// lowest two bits belong to the first 32 elements, the next two to the next 32, and so on.
    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, block: &Self::Block, mut sink: impl FnMut(usize, L::Floats)) {
        let d = lanes.splat_half(*part(block, 208));
        let scales = lanes.to_floats(lanes.signed_bytes(part(block, 192)));
        let scales = lanes.store(lanes.multiply(d, scales));
        for half in 0..2 {
            for i in 0..2 {
                let low = 64 * half + 16 * i;
                let first = lanes.bytes(part(block, low));
                let second = lanes.bytes(part(block, low + 32));
                let high = lanes.bytes(part(block, 128 + 32 * half + 16 * i));
                let quarters = [
                    (lanes.and(first, 0x0f), lanes.left::<4>(high)),
                    (lanes.and(second, 0x0f), lanes.left::<2>(high)),
                    (lanes.right::<4>(first), high),
                    (lanes.right::<4>(second), lanes.right::<2>(high)),
                ];
                for (quarter, &(low, high)) in quarters.iter().enumerate() {
                    let quant = lanes.to_floats(lanes.or(low, lanes.and(high, 0x30)));
                    let quant = lanes.subtract(quant, lanes.splat(32.0));
                    let piece = 8 * half + 2 * quarter + i;
                    sink(piece, lanes.multiply(lanes.splat(scales[piece]), quant));
                }
            }
        }
    }
}
