//! Converting the data of ggml tensors to `f32`.
//!
//! The block formats are those of `ggml-common.h` in the ggml repository: 32 elements with an `f16` scale `d`, for the
//! types that end in `_1` an `f16` minimum `m`, for five-bit types 4 bytes of high bits, then the quants. A byte of
//! four-bit quants holds element `i` in its low half and element `i + 16` in its high half.

use half::{bf16, f16};

use super::tensor_type::{Kind, TensorType};

/// Elements in a block of the quantised types here.
const BLOCK: usize = 32;
const HALF: usize = BLOCK / 2;

/// The elements as `f32`; nothing for a type that cannot be converted.
pub(super) fn to_f32(tensor_type: TensorType, bytes: &[u8]) -> Vec<f32> {
    match tensor_type.kind() {
        None => Vec::new(),
        Some(Kind::F32) => elements(bytes, f32::from_le_bytes),
        Some(Kind::F64) => elements(bytes, |b| f64::from_le_bytes(b) as f32),
        Some(Kind::F16) => elements(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Some(Kind::Bf16) => elements(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Some(Kind::Q8_0) => blocks::<34>(bytes, |block, out| {
            let d = scale(block, 0);
            for (out, &q) in out.iter_mut().zip(&block[2..]) {
                *out = d * f32::from(q.cast_signed());
            }
        }),
        Some(Kind::Q4_0) => blocks::<18>(bytes, |block, out| {
            let d = scale(block, 0);
            nibbles(&block[2..], out, |_, q| d * (f32::from(q) - 8.0));
        }),
        Some(Kind::Q4_1) => blocks::<20>(bytes, |block, out| {
            let (d, m) = (scale(block, 0), scale(block, 2));
            nibbles(&block[4..], out, |_, q| d * f32::from(q) + m);
        }),
        Some(Kind::Q5_0) => blocks::<22>(bytes, |block, out| {
            let (d, high) = (scale(block, 0), high_bits(block, 2));
            nibbles(&block[6..], out, |i, q| {
                d * (f32::from(q | fifth_bit(high, i)) - 16.0)
            });
        }),
        Some(Kind::Q5_1) => blocks::<24>(bytes, |block, out| {
            let (d, m, high) = (scale(block, 0), scale(block, 2), high_bits(block, 4));
            nibbles(&block[8..], out, |i, q| {
                d * f32::from(q | fifth_bit(high, i)) + m
            });
        }),
    }
}

fn elements<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|&chunk| convert(chunk)).collect()
}

/// Converts blocks of `N` bytes, each to [`BLOCK`] elements.
fn blocks<const N: usize>(bytes: &[u8], convert: impl Fn(&[u8; N], &mut [f32; BLOCK])) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<N>();
    let mut out = vec![0.0; chunks.len() * BLOCK];
    let (rows, _) = out.as_chunks_mut::<BLOCK>();
    for (chunk, row) in chunks.iter().zip(rows) {
        convert(chunk, row);
    }
    out
}

fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn high_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Bit `i` of `high`, moved to where it extends a four-bit quant.
fn fifth_bit(high: u32, i: usize) -> u8 {
    (((high >> i) & 1) << 4) as u8
}

/// Converts the four-bit quants of a block; `convert` gets the index of the element and the quant.
fn nibbles(quants: &[u8], out: &mut [f32; BLOCK], convert: impl Fn(usize, u8) -> f32) {
    for (i, &byte) in quants.iter().take(HALF).enumerate() {
        out[i] = convert(i, byte & 0x0f);
        out[i + HALF] = convert(i + HALF, byte >> 4);
    }
}
