//! A product in chunks that are packed, blocks that are tasks, and panels that the unit multiplies.

use std::arch::x86_64::{
    __mmask16, _mm512_fmadd_ps, _mm512_load_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_mul_ps, _mm512_set1_ps,
};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::split::{Operand, PANEL, STEP, STEP_ROWS, Side, TileRow, pack_panel};
use super::unit::{AHEAD, Sums, Tiles, multiply_panels};
use crate::Threads;

/// Inner positions that are packed, and summed in the tiles, at a time.
const DEPTH: usize = 768;
/// Lines of the shared operand that are packed at a time, for all tasks: at most 4.5 MiB.
const SHARED_LINES: usize = 1024;
/// Panels of the other operand that a task packs for itself at most: 864 KiB with 768 inner positions, which
/// stay in the second cache of its processor.
const OWN_PANELS: usize = 6;

/// Where the product goes: `rows × columns` with rows `row_stride` apart.
#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
}

// SAFETY: threads write to blocks of the output that do not overlap.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// `out = keep·out + scale·sums` for the panel that starts at (`row`, `column`).
    ///
    /// # Safety
    /// `start` must be valid for this panel, and no other thread be using it.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add(self, sums: &Sums, row: usize, column: usize, keep: f32, scale: f32) {
        let rows = PANEL.min(self.rows - row);
        let columns = PANEL.min(self.columns - column);
        let masks = [0, 16].map(|first| {
            let count = columns.saturating_sub(first).min(16);
            ((1_u32 << count) - 1) as __mmask16
        });
        let (keep_all, scale) = (_mm512_set1_ps(keep), _mm512_set1_ps(scale));
        for r in 0..rows {
            // SAFETY: the row lies in the output, and the masks end with its columns. `sums` has 32 columns.
            unsafe {
                let out = self.start.add((row + r) * self.row_stride + column);
                for (half, mask) in masks.into_iter().enumerate() {
                    if mask == 0 {
                        break;
                    }
                    let out = out.add(half * 16);
                    let sum = _mm512_load_ps(sums.0.as_ptr().add(r * PANEL + half * 16));
                    let new = if keep == 0.0 {
                        _mm512_mul_ps(sum, scale)
                    } else {
                        let old = _mm512_maskz_loadu_ps(mask, out);
                        let old = if keep == 1.0 {
                            old
                        } else {
                            _mm512_mul_ps(old, keep_all)
                        };
                        _mm512_fmadd_ps(sum, scale, old)
                    };
                    _mm512_mask_storeu_ps(out, mask, new);
                }
            }
        }
    }
}

thread_local! {
    /// Packed operands of earlier products, shared and own: fresh memory would cost more than packing.
    static BUFFERS: Cell<[Vec<TileRow>; 2]> = const { Cell::new([const { Vec::new() }; 2]) };
}

/// Runs `body` on the buffer `which` of this thread, made large enough.
///
/// The buffer is taken, not borrowed: while a thread waits for others it may be given another product.
fn with_buffer<R>(which: usize, rows: usize, body: impl FnOnce(&mut [TileRow]) -> R) -> R {
    let mut buffers = BUFFERS.take();
    let mut buffer = std::mem::take(&mut buffers[which]);
    BUFFERS.set(buffers);
    if buffer.len() < rows {
        buffer.resize(rows, TileRow::ZERO);
    }
    let result = body(&mut buffer[..rows]);
    let mut buffers = BUFFERS.take();
    buffers[which] = buffer;
    BUFFERS.set(buffers);
    result
}

/// Calls `body` with every index below `count`.
fn for_each(threads: Threads, count: usize, body: impl Fn(usize) + Sync + Send) {
    match threads {
        Threads::One => (0..count).for_each(body),
        Threads::All => (0..count).into_par_iter().for_each(body),
    }
}

/// `total` in as few equal parts of at most `most` as possible, in units of [`PANEL`] (or [`STEP`]).
fn even_part(total: usize, most: usize) -> usize {
    total.div_ceil(total.div_ceil(most)).next_multiple_of(PANEL)
}

/// `out = keep·out + scale·(left × right)`, `left` in rows and `right` in columns, over what is finite in
/// both; tells whether anything was not finite.
///
/// The operand with fewer lines is packed by all threads for all of them. Of the other one each task packs
/// some lines for itself and multiplies them with all that is shared, so that every number is packed once
/// (or once for each [`SHARED_LINES`] lines of the shared operand).
///
/// The sum of an output depends on its row, its column, `keep` and `scale` alone: not on the number of
/// threads, nor on the other rows and columns.
///
/// # Safety
/// [`super::available`] must hold. `out` must be valid for writes (and, unless `keep` is zero, reads) of
/// `left.lines` rows of `right.lines` numbers, `row_stride` apart, and overlap neither input.
///
/// # Panics
/// If the inner dimensions differ or are zero.
pub(super) unsafe fn multiply(
    out: *mut f32,
    row_stride: usize,
    left: Operand<'_>,
    right: Operand<'_>,
    keep: f32,
    scale: f32,
    threads: Threads,
) -> bool {
    assert!(left.inner == right.inner && left.inner > 0);
    let output = Output {
        start: out,
        rows: left.lines,
        columns: right.lines,
        row_stride,
    };
    let (shared, own) = if left.lines < right.lines {
        ((left, Side::Left), (right, Side::Right))
    } else {
        ((right, Side::Right), (left, Side::Left))
    };
    let depth = even_part(left.inner, DEPTH);
    let lines = even_part(shared.0.lines, SHARED_LINES);
    let found = AtomicBool::new(false);
    for line in (0..shared.0.lines).step_by(lines) {
        for inner in (0..left.inner).step_by(depth) {
            let slab = Slab {
                output,
                line,
                lines: lines.min(shared.0.lines - line),
                inner,
                length: depth.min(left.inner - inner),
                keep: if inner == 0 { keep } else { 1.0 },
                scale,
            };
            // SAFETY: as promised by the caller; the slab lies within the operands.
            unsafe { slab.add(shared, own, &found, threads) };
        }
    }
    found.into_inner()
}

/// The part of a product that belongs to some lines of the shared operand and some inner positions.
struct Slab {
    output: Output,
    line: usize,
    lines: usize,
    inner: usize,
    length: usize,
    keep: f32,
    scale: f32,
}

impl Slab {
    /// Adds this part to the output and sets `found` where numbers are not finite.
    ///
    /// # Safety
    /// As for [`multiply`], and the slab must lie within the operands.
    unsafe fn add(
        &self,
        (shared, shared_side): (Operand<'_>, Side),
        (own, own_side): (Operand<'_>, Side),
        found: &AtomicBool,
        threads: Threads,
    ) {
        let panel_rows = self.length.div_ceil(STEP) * STEP_ROWS;
        let pack = |out: &mut [TileRow], operand, side, line| {
            // SAFETY: `available` includes the vector instructions that packing is compiled for.
            if unsafe { pack_panel::<3>(out, operand, side, line, self.inner, self.length) } {
                found.store(true, Ordering::Relaxed);
            }
        };
        let panels = self.lines.div_ceil(PANEL);
        with_buffer(0, panels * panel_rows, |packed| {
            let pack_shared = |(panel, out): (usize, &mut [TileRow])| {
                pack(out, shared, shared_side, self.line + panel * PANEL);
            };
            match threads {
                Threads::One => packed
                    .chunks_exact_mut(panel_rows)
                    .enumerate()
                    .for_each(pack_shared),
                Threads::All => packed
                    .par_chunks_exact_mut(panel_rows)
                    .enumerate()
                    .for_each(pack_shared),
            }
            let own_panels = own.lines.div_ceil(PANEL);
            // At least two tasks a thread, so that none waits long for the last.
            let tasks = match threads {
                Threads::One => 1,
                Threads::All => 2 * rayon::current_num_threads(),
            };
            let a_task = own_panels.div_ceil(tasks).min(OWN_PANELS);
            for_each(threads, own_panels.div_ceil(a_task), |task| {
                let first = task * a_task;
                let count = a_task.min(own_panels - first);
                with_buffer(1, count * panel_rows, |own_packed| {
                    for (panel, out) in own_packed.chunks_exact_mut(panel_rows).enumerate() {
                        pack(out, own, own_side, (first + panel) * PANEL);
                    }
                    // SAFETY: both are packed, and the lines of a task are its own.
                    unsafe { self.multiply_packed(packed, own_packed, own_side, first) };
                });
            });
        });
    }

    /// Adds the product of the shared panels and of a task's own, which start at panel `first`.
    ///
    /// # Safety
    /// As for [`multiply`]; no other thread may use the lines of the output that belong to the own panels.
    unsafe fn multiply_packed(
        &self,
        shared: &[TileRow],
        own: &[TileRow],
        own_side: Side,
        first: usize,
    ) {
        let steps = self.length.div_ceil(STEP);
        let mut sums = Sums([0.0; PANEL * PANEL]);
        // SAFETY: the unit is there. Nothing else runs on this thread until the tiles are released: the
        // loops below call no code that could switch to another task.
        let tiles = unsafe { Tiles::configure() };
        for (i, shared) in shared.chunks_exact(steps * STEP_ROWS).enumerate() {
            for (j, own) in own.chunks_exact(steps * STEP_ROWS).enumerate() {
                // The next shared panel, a part with each of the own ones.
                let ahead = shared
                    .as_ptr()
                    .wrapping_add(steps * (STEP_ROWS + j * AHEAD));
                let shared_line = self.line + i * PANEL;
                let own_line = (first + j) * PANEL;
                let (left, right, row, column) = match own_side {
                    Side::Left => (own, shared, own_line, shared_line),
                    Side::Right => (shared, own, shared_line, own_line),
                };
                // SAFETY: the tiles are configured, the slices hold `steps` steps, the panel lies in the
                // output, and this task alone has it.
                unsafe {
                    multiply_panels(&mut sums, left.as_ptr(), right.as_ptr(), steps, ahead);
                    self.output.add(&sums, row, column, self.keep, self.scale);
                }
            }
        }
        drop(tiles);
    }
}
