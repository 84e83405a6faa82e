//! Scores by one product on the tile unit, of the numbers rounded to bf16.

use rayon::prelude::*;

use super::reached::Masks;
use super::{Block, Bounds, Lengths, PANEL, units_of_value};
use crate::matmul::amx::{
    self, HIGH_AHEAD, Operand, STEP, Side, Sums, TileRow, Tiles, pack_panel, step_rows,
};
use crate::simd::vectorized;

pub(in crate::sparse) use amx::available;

/// The rows of an encoder, rounded to bf16 and packed for the tile unit.
#[derive(Clone, Debug)]
pub(in crate::sparse) struct Packed {
    tiles: Vec<TileRow>,
    bounds: Bounds,
    d: usize,
}

/// Parts in which a panel is multiplied.
const PARTS: usize = 4;

/// What one thread needs besides.
#[derive(Debug, Default)]
pub(in crate::sparse) struct Scratch {
    tiles: Vec<TileRow>,
    lengths: Vec<Lengths>,
}

impl Packed {
    /// `encoder [m, d]`, `bias [m]`; none where there is no such unit.
    pub(in crate::sparse) fn new(encoder: &[f32], bias: &[f32], d: usize) -> Option<Self> {
        if !amx::available() || d == 0 || bias.is_empty() {
            return None;
        }
        const { assert!(PANEL == amx::PANEL) };
        let m = bias.len();
        let panel_rows = d.div_ceil(STEP) * step_rows(1);
        let mut tiles = vec![TileRow::ZERO; m.div_ceil(PANEL) * panel_rows];
        let mut lengths = vec![Lengths::default(); m];
        let operand = Operand::new(encoder, m, d, d, 1);
        tiles
            .par_chunks_exact_mut(panel_rows)
            .zip(lengths.par_chunks_mut(PANEL))
            .enumerate()
            .for_each(|(panel, (tiles, lengths))| {
                let first = panel * PANEL;
                // SAFETY: `available` includes the vector instructions of packing.
                unsafe { pack_panel::<1>(tiles, operand, Side::Right, first, 0, d) };
                measure(lengths, &encoder[first * d..], d);
            });
        // The tile unit: a term goes through 16 sums of its tile and the sum of even and odd ones, and one sum for
        // each tile.
        let units = (17 + d.div_ceil(STEP)) as f64 + units_of_value(d);
        Some(Self {
            tiles,
            bounds: Bounds::new(&lengths, bias, d, units),
            d,
        })
    }

    #[cfg(test)]
    pub(super) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Screens the rows `x` for their `k` largest.
    pub(in crate::sparse) fn screen(
        &self,
        block: &mut Block,
        scratch: &mut Scratch,
        x: &[f32],
        k: usize,
    ) {
        let d = self.d;
        let rows = x.len() / d;
        let steps = d.div_ceil(STEP);
        let panel_rows = steps * step_rows(1);
        scratch.lengths.resize(rows, Lengths::default());
        measure(&mut scratch.lengths, x, d);
        block.begin(&self.bounds, k, &scratch.lengths);
        scratch
            .tiles
            .resize(rows.div_ceil(PANEL) * panel_rows, TileRow::ZERO);
        let operand = Operand::new(x, rows, d, d, 1);
        for (panel, tiles) in scratch.tiles.chunks_exact_mut(panel_rows).enumerate() {
            // SAFETY: as above.
            unsafe { pack_panel::<1>(tiles, operand, Side::Left, panel * PANEL, 0, d) };
        }
        // SAFETY: the unit is there, as this value shows, and with it the vector instructions. What is multiplied is
        // packed.
        unsafe { self.multiply(block, &scratch.tiles, steps) };
    }

    /// # Safety
    /// The unit must be available, and `rows` hold whole panels of `steps` steps.
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
    unsafe fn multiply(&self, block: &mut Block, rows: &[TileRow], steps: usize) {
        // SAFETY: the unit is there only together with AVX-512.
        let masks = unsafe { Masks::new() };
        let panel_rows = steps * step_rows(1);
        let mut sums = Sums([0.0; PANEL * PANEL]);
        let mut before = None;
        // SAFETY: the unit is there. Nothing below could switch to another task of this thread, and compiled code
        // uses no tile registers.
        let mut tiles = unsafe { Tiles::configure() };
        let count = rows.len() / panel_rows;
        let parts = if steps < PARTS { 1 } else { PARTS };
        for (panel, features) in self.tiles.chunks_exact(panel_rows).enumerate() {
            for (i, rows) in rows.chunks_exact(panel_rows).enumerate() {
                // The next panel of features, a part with each panel of rows.
                let ahead = features
                    .as_ptr()
                    .wrapping_add(panel_rows + i * steps * HIGH_AHEAD);
                tiles.clear();
                for part in 0..parts {
                    let [start, end] = [part, part + 1].map(|part| steps * part / parts);
                    // SAFETY: the slices hold `steps` steps, and a part has one at least.
                    unsafe {
                        tiles.add_high(
                            rows.as_ptr().add(start * step_rows(1)),
                            features.as_ptr().add(start * step_rows(1)),
                            end - start,
                            ahead.wrapping_add(start * HIGH_AHEAD),
                        );
                    }
                    // While the unit works on this panel, the vector units take the one before, a part with each part,
                    // so that both kinds of instructions are in flight. The sums are stored only then: behind stores
                    // that wait for the unit, all loads would wait too.
                    if let Some((panel, i)) = before {
                        let first = part * PANEL / parts;
                        let sums = &sums.0[first * PANEL..][..PANEL / parts * PANEL];
                        block.take(&self.bounds, panel, i * PANEL + first, sums, PANEL, masks);
                    }
                }
                if let Some((panel, i)) = before
                    && i + 1 == count
                {
                    block.done(panel, masks);
                }
                tiles.store(&mut sums);
                before = Some((panel, i));
            }
        }
        if let Some((panel, i)) = before {
            block.take(&self.bounds, panel, i * PANEL, &sums.0, PANEL, masks);
            block.done(panel, masks);
        }
        drop(tiles);
    }
}

/// Lengths of rows of `d` numbers when they are rounded to bf16 and the tile unit reads them.
pub(super) fn measure(lengths: &mut [Lengths], rows: &[f32], d: usize) {
    vectorized(
        #[inline(always)]
        || {
            for (lengths, row) in lengths.iter_mut().zip(rows.chunks_exact(d)) {
                *lengths = Lengths::of(row, high);
            }
        },
    );
}

/// What the unit makes of a number: the first of the parts it is split into, and zero for what is below the normal
/// numbers.
#[inline(always)]
fn high(x: f32) -> f32 {
    const EXPONENT: u32 = 0x7f80_0000;
    let bits = x.to_bits();
    let up = bits.wrapping_add(0x8000);
    let bits = if up & EXPONENT == EXPONENT { bits } else { up } & 0xffff_0000;
    let kept = f32::from_bits(bits);
    if bits & EXPONENT == 0 { 0.0 } else { kept }
}
