//! Products with a stored matrix.
//!
//! With few rows of `x`, as when text is generated, the time is that of reading the weights once: a row of `W` is
//! decoded in registers (or, for more than one row of `x`, in the first-level cache) and multiplied at once. With many
//! rows, blocks of `W` are decoded and given to [`matmul`]; then decoding costs little beside the product.

use std::any::TypeId;

use super::StoredMatrix;
use super::decode::{decode_row, with_blocks};
use super::lanes::{LANES, Lanes, OnLanes, Piece, on_widest};
use crate::team::share_chunks;
use crate::{Matrix, MatrixMut, Real, Threads, matmul, product};

/// Up to this many rows of `x`, `W` is decoded row by row.
const FEW_ROWS: usize = 16;
/// Elements of `W` below which starting threads costs more than they save.
const SMALL: usize = 1 << 15;
/// Tasks for each thread: threads are not equally fast, nor equally soon there.
const TASKS: usize = 2;
/// Elements of `W` in a decoded block, 8 MiB in `f32`: a layer's matrix of a small model at once, so that the other operand
/// is packed once for the product.
const BLOCK: usize = 1 << 21;
/// How far ahead of their use weights are asked for, in bytes.
const AHEAD: usize = 2048;
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;

/// Sixteen numbers at the start of a cache line: loads of vectors that cross lines cost twice.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(Piece);

/// `x Wᵀ` on slices: `x [n, columns]` → `[n, rows]`; [`crate::fused::linear_stored`] without tensors.
///
/// Up to sixteen rows of `x` take one pass over the stored bytes.
///
/// # Panics
/// If `x` is not whole rows.
pub fn linear<T: Real>(x: &[T], weight: &StoredMatrix) -> Vec<T> {
    let columns = weight.columns();
    assert!(
        x.len().is_multiple_of(columns),
        "{} elements are not whole rows of {columns}",
        x.len()
    );
    let n = x.len() / columns;
    if n > FEW_ROWS && weight.rows() * columns <= BLOCK {
        let x = Matrix::new(x, n, columns, columns);
        return whole(weight, |block| {
            let block = Matrix::new(block, weight.rows(), columns, columns);
            product(x, block.transposed(), Threads::All)
        });
    }
    let mut out = vec![T::zero(); n * weight.rows()];
    linear_into(&mut out, x, weight);
    out
}

/// What `body` makes of all values of `weight`, decoded where they have to be.
fn whole<T: Real>(weight: &StoredMatrix, body: impl FnOnce(&[T]) -> Vec<T>) -> Vec<T> {
    match weight.in_place() {
        Some(values) => body(values),
        None => body(&weight.to_vec()),
    }
}

/// `x Wᵀ` into `out [n, rows]`, whatever it holds.
pub(crate) fn linear_into<T: Real>(out: &mut [T], x: &[T], weight: &StoredMatrix) {
    let (d_out, d_in) = (weight.rows(), weight.columns());
    let n = x.len() / d_in;
    if n == 0 {
        return;
    }
    // In `f64`, which is for checks, there is one way only.
    if n <= FEW_ROWS && TypeId::of::<T>() == TypeId::of::<f32>() {
        few_rows(
            bytemuck::cast_slice_mut(out),
            bytemuck::cast_slice(x),
            weight,
        );
        return;
    }
    let x = Matrix::new(x, n, d_in, d_in);
    each_block(weight, |first, rows, block| {
        matmul(
            MatrixMut::new(&mut out[first..], n, rows, d_out),
            x,
            Matrix::new(block, rows, d_in, d_in).transposed(),
            T::zero(),
            T::one(),
            Threads::All,
        );
    });
}

/// `g W`: `g [n, rows]` → `[n, columns]`, the backward pass of [`linear`] in `x`.
pub(crate) fn backward_input<T: Real>(grad: &[T], weight: &StoredMatrix) -> Vec<T> {
    let (d_out, d_in) = (weight.rows(), weight.columns());
    let n = grad.len() / d_out;
    if n > 0 && d_out * d_in <= BLOCK {
        let grad = Matrix::new(grad, n, d_out, d_out);
        return whole(weight, |block| {
            product(grad, Matrix::new(block, d_out, d_in, d_in), Threads::All)
        });
    }
    let mut out = vec![T::zero(); n * d_in];
    backward_input_into(&mut out, grad, weight);
    out
}

/// `g W` into `out [n, columns]`, whatever it holds. Blocks of rows of `W` are added in their order.
pub(crate) fn backward_input_into<T: Real>(out: &mut [T], grad: &[T], weight: &StoredMatrix) {
    let (d_out, d_in) = (weight.rows(), weight.columns());
    let n = grad.len() / d_out;
    if n == 0 {
        return;
    }
    each_block(weight, |first, rows, block| {
        matmul(
            MatrixMut::new(out, n, d_in, d_in),
            Matrix::new(&grad[first..], n, rows, d_out),
            Matrix::new(block, rows, d_in, d_in),
            if first == 0 { T::zero() } else { T::one() },
            T::one(),
            Threads::All,
        );
    });
}

/// Calls `body` with the first row, the number of rows and the values of one block of `weight` after another; with all
/// of it where it needs no decoding.
fn each_block<T: Real>(weight: &StoredMatrix, mut body: impl FnMut(usize, usize, &[T])) {
    if let Some(values) = weight.in_place() {
        body(0, weight.rows(), values);
        return;
    }
    let columns = weight.columns();
    let rows = (BLOCK / columns).clamp(1, weight.rows());
    let mut block = vec![T::zero(); rows * columns];
    for first in (0..weight.rows()).step_by(rows) {
        let rows = rows.min(weight.rows() - first);
        let block = &mut block[..rows * columns];
        weight.rows_into(first, block);
        body(first, rows, block);
    }
}

/// `x Wᵀ` for few rows of `x`, in one pass over `W`.
fn few_rows(out: &mut [f32], x: &[f32], weight: &StoredMatrix) {
    let (d_out, d_in) = (weight.rows(), weight.columns());
    let n = x.len() / d_in;
    let padded = padded(x, d_in);
    // One row of results for each row of `W`, so that tasks write to places of their own.
    let compute = |first: usize, out: &mut [f32]| {
        on_widest(FewRows {
            weight,
            first,
            x: &padded,
            n,
            out,
        });
    };
    let mut turned = vec![0.0; if n == 1 { 0 } else { out.len() }];
    let target = if n == 1 { &mut *out } else { &mut turned[..] };
    if d_out * d_in < SMALL {
        compute(0, target);
    } else {
        let rows = d_out.div_ceil(TASKS * rayon::current_num_threads());
        share_chunks(target, rows * n, |task, out| compute(task * rows, out));
    }
    for (row, results) in turned.chunks_exact(n).enumerate() {
        for (i, &result) in results.iter().enumerate() {
            out[i * d_out + row] = result;
        }
    }
}

/// Rows of `columns` values in lines, the last line of each filled up with zeros.
fn padded(x: &[f32], columns: usize) -> Vec<Line> {
    let lines = columns.div_ceil(LANES);
    let mut padded = vec![Line([0.0; LANES]); x.len() / columns * lines];
    for (x, padded) in x.chunks_exact(columns).zip(padded.chunks_exact_mut(lines)) {
        for (x, line) in x.chunks(LANES).zip(padded) {
            line.0[..x.len()].copy_from_slice(x);
        }
    }
    padded
}

/// The products of rows of `W`, from `first` on, with the `n` rows of `x`: `out [rows, n]`.
struct FewRows<'a> {
    weight: &'a StoredMatrix,
    first: usize,
    x: &'a [Line],
    n: usize,
    out: &'a mut [f32],
}

impl OnLanes for FewRows<'_> {
    type Output = ();

    #[inline(always)]
    fn on<L: Lanes>(self, lanes: L) {
        let rows = self.out.len() / self.n;
        let bytes = self.weight.bytes_of(self.first..self.first + rows);
        let row_bytes = bytes.len() / rows;
        let bytes = bytes.chunks_exact(row_bytes).enumerate().map(
            #[inline(always)]
            |(i, row)| {
                prefetch(bytes, i * row_bytes + AHEAD, row_bytes);
                row
            },
        );
        let pieces = self.x.len() / self.n;
        if self.n == 1 {
            with_blocks!(self.weight.format(), B => for (out, row) in self.out.iter_mut().zip(bytes) {
                let mut sums = [lanes.splat(0.0); 4];
                decode_row::<B, L>(
                    lanes,
                    row,
                    #[inline(always)]
                    |at, piece, values| {
                        let x = lanes.load(&self.x[at + piece].0);
                        sums[piece % 4] = lanes.multiply_add(values, x, sums[piece % 4]);
                    },
                );
                *out = total(lanes, sums);
            });
            return;
        }
        let mut decoded = vec![Line([0.0; LANES]); pieces];
        for (out, row) in self.out.chunks_exact_mut(self.n).zip(bytes) {
            with_blocks!(self.weight.format(), B => decode_row::<B, L>(
                lanes,
                row,
                #[inline(always)]
                |at, piece, values| decoded[at + piece].0 = lanes.store(values),
            ));
            let mut done = 0;
            while done < self.n {
                let (x, out) = (&self.x[done * pieces..], &mut out[done..]);
                done += match out.len() {
                    4.. => dots::<4, L>(lanes, &decoded, x, out),
                    2..4 => dots::<2, L>(lanes, &decoded, x, out),
                    _ => dots::<1, L>(lanes, &decoded, x, out),
                };
            }
        }
    }
}

/// The products of a decoded row with the first `N` rows of `x`; returns `N`.
#[inline(always)]
fn dots<const N: usize, L: Lanes>(
    lanes: L,
    decoded: &[Line],
    x: &[Line],
    out: &mut [f32],
) -> usize {
    let rows: [&[Line]; N] = std::array::from_fn(
        #[inline(always)]
        |i| &x[i * decoded.len()..][..decoded.len()],
    );
    let mut even = [lanes.splat(0.0); N];
    let mut odd = even;
    let pairs = decoded.len() / 2 * 2;
    for piece in (0..pairs).step_by(2) {
        for (sums, piece) in [(&mut even, piece), (&mut odd, piece + 1)] {
            let values = lanes.load(&decoded[piece].0);
            for i in 0..N {
                sums[i] = lanes.multiply_add(values, lanes.load(&rows[i][piece].0), sums[i]);
            }
        }
    }
    if pairs < decoded.len() {
        let values = lanes.load(&decoded[pairs].0);
        for i in 0..N {
            even[i] = lanes.multiply_add(values, lanes.load(&rows[i][pairs].0), even[i]);
        }
    }
    for i in 0..N {
        out[i] = lanes.sum(lanes.add(even[i], odd[i]));
    }
    N
}

/// Asks for bytes that are used soon.
///
/// Decoding keeps the processor so busy that it does not look far enough ahead to hide the memory's latency by itself.
#[inline(always)]
fn prefetch(bytes: &[u8], from: usize, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (from..(from + len).min(bytes.len())).step_by(CACHE_LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction is part of every x86-64 processor; the address is within the slice.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().add(at).cast()) };
    }
}

#[inline(always)]
fn total<L: Lanes>(lanes: L, [a, b, c, d]: [L::Floats; 4]) -> f32 {
    lanes.sum(lanes.add(lanes.add(a, b), lanes.add(c, d)))
}

#[cfg(test)]
/// All of a product with few rows as one task, on lanes of the test's choice, for a matrix of one row.
pub(super) struct OneTask<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: &'a StoredMatrix,
}

#[cfg(test)]
impl OnLanes for OneTask<'_> {
    type Output = Vec<f32>;

    fn on<L: Lanes>(self, lanes: L) -> Vec<f32> {
        let n = self.x.len() / self.weight.columns();
        let mut out = vec![0.0; n * self.weight.rows()];
        FewRows {
            weight: self.weight,
            first: 0,
            x: &padded(self.x, self.weight.columns()),
            n,
            out: &mut out,
        }
        .on(lanes);
        out
    }
}
