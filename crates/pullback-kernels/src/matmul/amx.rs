//! `f32` products on the tile unit of the processor (AMX-BF16), with the accuracy of `f32`.
//!
//! Each operand is split into three bf16 parts ([`split`]), and of the nine products of parts the six
//! that matter are summed: `low·high`, `middle·high`, `middle·middle`, `high·middle`, `high·low`,
//! `high·high`. Left out are `middle·low`, `low·middle` and `low·low`, together at most 2⁻²⁴ of the product
//! (one rounding of an `f32`). Bf16 products are exact in `f32`; the unit sums them in `f32` with rounding
//! to nearest and takes subnormal numbers for zero (Intel SDM, `TDPBF16PS`).

use std::ops::Range;

mod blocks;
mod split;
mod unit;

use super::{Matrix, Threads, through_gemm};
pub(crate) use split::{Operand, PANEL, STEP, Side, TileRow, pack_panel, step_rows};
pub(crate) use unit::{HIGH_AHEAD, Sums, Tiles, available};

/// Multiply-adds below which `gemm` is as fast.
const SMALL: usize = 1 << 19;
/// Multiply-adds below which starting threads costs more than they save.
const ONE_THREAD: usize = 1 << 21;

/// Whether the unit is there and a product of this shape is faster on it.
///
/// Panels are multiplied whole, so shapes are left out for which much of that would be zeros.
pub(super) fn pays(rows: usize, columns: usize, inner: usize) -> bool {
    let shape = [rows, columns, inner];
    let volume = shape.into_iter().fold(1, usize::saturating_mul);
    let whole = shape
        .into_iter()
        .map(|size| size.next_multiple_of(PANEL) as f64 / size as f64);
    volume >= SMALL
        && shape.into_iter().all(|size| size >= PANEL)
        && whole.product::<f64>() <= 1.5
        && available()
}

/// `out = keep·out + scale·(left × right)`.
///
/// # Safety
/// [`available`] must hold. `out` must be valid for writes (and, unless `keep` is zero, reads) of
/// `left.rows` rows of `right.columns` elements, `row_stride` apart, and overlap neither input.
///
/// # Panics
/// If the inner dimensions differ or are zero.
pub(super) unsafe fn into_pointer(
    out: *mut f32,
    row_stride: usize,
    left: Matrix<'_, f32>,
    right: Matrix<'_, f32>,
    keep: f32,
    scale: f32,
    threads: Threads,
) {
    let volume = left
        .rows
        .saturating_mul(left.columns)
        .saturating_mul(right.columns);
    let threads = if volume < ONE_THREAD {
        Threads::One
    } else {
        threads
    };
    let rows = Operand::new(
        left.data,
        left.rows,
        left.columns,
        left.row_stride,
        left.column_stride,
    );
    let columns = Operand::new(
        right.data,
        right.columns,
        right.rows,
        right.column_stride,
        right.row_stride,
    );
    // SAFETY: as promised by the caller.
    let all_finite =
        unsafe { !blocks::multiply(out, row_stride, rows, columns, keep, scale, threads) };
    if all_finite {
        return;
    }
    // Numbers that are not finite were zero so far. Every output of their row or column is infinite or NaN,
    // whatever the finite terms are, so the ordinary product of these rows and columns is added.
    for run in rows_to_repair(left) {
        let left = left.some_rows(run.start, run.len());
        // SAFETY: these rows of the output are part of what the caller promises.
        unsafe {
            let out = out.add(run.start * row_stride);
            through_gemm(out, row_stride, left, right, 1.0, scale, threads);
        }
    }
    let right_columns = right.transposed();
    for run in rows_to_repair(right_columns) {
        let right = right_columns.some_rows(run.start, run.len()).transposed();
        // SAFETY: these columns of the output are part of what the caller promises.
        unsafe {
            let out = out.add(run.start);
            through_gemm(out, row_stride, left, right, 1.0, scale, threads);
        }
    }
}

/// Runs of rows that hold numbers which are not finite.
fn rows_to_repair(matrix: Matrix<'_, f32>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for row in 0..matrix.rows {
        if matrix.row(row).all(f32::is_finite) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == row => run.end += 1,
            _ => runs.push(row..row + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
