//! Dense matrix products on slices.
//!
//! Products go through the `gemm` crate. Large `f32` products go through the tile unit of the processor
//! (AMX-BF16) instead where it has one and the system is Linux: each number is split into three bf16 parts,
//! which keeps the accuracy of `f32`.
//!
//! # Accuracy in `f32`
//!
//! On the tile unit an output over `K` inner positions differs from the exact sum by at most about
//! `(162 + K/768)·2⁻²⁴·Σ|a||b|`: a term goes through 17 roundings in its tile product, up to 144 while 768
//! positions are summed, and one for each 768 after that; products of parts that are left out weigh as much
//! as one more. The `gemm` crate rounds about once for each position. In practice errors cancel and both are
//! far better; the tests compare both with a product in `f64`.
//!
//! - What is below 2⁻¹²⁶, a part or a product, counts as zero. Parts of a number below 2⁻¹⁰³ may be lost that
//!   way, so an absolute error of up to `2⁻¹²⁴·(|a| + |b| + 2)` a term comes on top.
//! - Infinities and NaN go where they go in any sum of products. A sum of finite terms that comes within
//!   1 % of the largest `f32`, or passes it on the way, may be infinite or NaN.

use gemm::Parallelism;

use crate::Real;

#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    target_pointer_width = "64"
))]
pub(crate) mod amx;

/// How many threads one product may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone: for use inside a parallel loop.
    One,
    /// All threads of the pool.
    All,
}

/// A matrix in a slice: `rows × columns`, with the distance between neighbours in each direction.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A row-major matrix whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    /// If the last row would end past the slice.
    pub fn new(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert_fits(data.len(), rows, columns, row_stride);
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// The same numbers read the other way round.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    target_pointer_width = "64"
))]
impl<'a, T: Real> Matrix<'a, T> {
    /// `count` rows from `start` on.
    fn some_rows(self, start: usize, count: usize) -> Self {
        Self {
            data: &self.data[start * self.row_stride..],
            rows: count,
            ..self
        }
    }

    fn row(self, row: usize) -> impl Iterator<Item = T> {
        (0..self.columns)
            .map(move |column| self.data[row * self.row_stride + column * self.column_stride])
    }

    /// The same matrix, where `T` is f32.
    ///
    /// # Panics
    /// If `T` is not of the size of f32.
    fn in_f32(self) -> Matrix<'a, f32> {
        Matrix {
            data: bytemuck::cast_slice(self.data),
            rows: self.rows,
            columns: self.columns,
            row_stride: self.row_stride,
            column_stride: self.column_stride,
        }
    }
}

/// A row-major matrix to write into.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// A row-major matrix whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    /// If the last row would end past the slice.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert_fits(data.len(), rows, columns, row_stride);
        Self {
            data,
            rows,
            columns,
            row_stride,
        }
    }
}

fn assert_fits(len: usize, rows: usize, columns: usize, row_stride: usize) {
    assert!(
        row_stride >= columns || rows <= 1,
        "matrix rows overlap: {columns} columns, row stride {row_stride}"
    );
    if rows > 0 && columns > 0 {
        let end = (rows - 1) * row_stride + columns;
        assert!(
            end <= len,
            "matrix of {rows}×{columns} (row stride {row_stride}) needs {end} elements, the slice has {len}"
        );
    }
}

/// `out = keep·out + scale·(left × right)`.
///
/// With `keep = 0` the old content of `out` is not read.
///
/// # Panics
/// If the shapes do not agree.
pub fn matmul<T: Real>(
    out: MatrixMut<'_, T>,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    keep: T,
    scale: T,
    threads: Threads,
) {
    assert_eq!(out.rows, left.rows, "matmul: row counts differ");
    assert_eq!(out.columns, right.columns, "matmul: column counts differ");
    // SAFETY: the view was checked on construction to lie within its slice, which is borrowed mutably and
    // so overlaps neither input.
    unsafe {
        into_pointer(
            out.data.as_mut_ptr(),
            out.row_stride,
            left,
            right,
            keep,
            scale,
            threads,
        );
    }
}

/// `left × right` as a new row-major vector `[left.rows · right.columns]`, whose memory is written once.
///
/// # Panics
/// If the inner dimensions differ.
pub fn product<T: Real>(left: Matrix<'_, T>, right: Matrix<'_, T>, threads: Threads) -> Vec<T> {
    let len = left.rows * right.columns;
    if left.columns == 0 {
        return vec![T::zero(); len];
    }
    let mut out = Vec::with_capacity(len);
    let row_stride = right.columns;
    // SAFETY: the allocation holds `len` elements and is nobody else's. With `keep = 0` the product writes
    // every element of `rows × columns` and reads none, so all `len` are initialised when it returns.
    unsafe {
        into_pointer(
            out.as_mut_ptr(),
            row_stride,
            left,
            right,
            T::zero(),
            T::one(),
            threads,
        );
        out.set_len(len);
    }
    out
}

/// The product, written through a pointer.
///
/// # Safety
/// `out` must be valid for writes (and, unless `keep` is zero, reads) of `left.rows` rows of
/// `right.columns` elements, `row_stride` apart, and overlap neither input.
unsafe fn into_pointer<T: Real>(
    out: *mut T,
    row_stride: usize,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    keep: T,
    scale: T,
    threads: Threads,
) {
    assert_eq!(left.columns, right.rows, "matmul: inner dimensions differ");
    if left.rows == 0 || right.columns == 0 {
        return;
    }
    #[cfg(all(
        target_arch = "x86_64",
        target_os = "linux",
        target_pointer_width = "64"
    ))]
    if std::any::TypeId::of::<T>() == std::any::TypeId::of::<f32>()
        && amx::pays(left.rows, right.columns, left.columns)
    {
        let (left, right) = (left.in_f32(), right.in_f32());
        let (keep, scale) = (keep.as_f64() as f32, scale.as_f64() as f32);
        // SAFETY: `T` is f32, `out` is the caller's promise, and `pays` has found the unit.
        unsafe { amx::into_pointer(out.cast(), row_stride, left, right, keep, scale, threads) };
        return;
    }
    // SAFETY: as promised by the caller.
    unsafe { through_gemm(out, row_stride, left, right, keep, scale, threads) };
}

/// The product by the `gemm` crate.
///
/// # Safety
/// As for [`into_pointer`].
unsafe fn through_gemm<T: Real>(
    out: *mut T,
    row_stride: usize,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    keep: T,
    scale: T,
    threads: Threads,
) {
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
    // SAFETY: both inputs were checked on construction to lie within their slices, `out` is the caller's
    // promise, and `T` is f32 or f64, which `gemm` knows.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            out,
            1,
            row_stride as isize,
            keep != T::zero(),
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            keep,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{Matrix, MatrixMut, Threads, matmul, product};

    #[test]
    fn agrees_with_sums_by_hand() {
        let left: Vec<f64> = (0..6).map(f64::from).collect();
        let right: Vec<f64> = (0..12).map(|i| f64::from(i) * 0.5 - 2.0).collect();
        for threads in [Threads::One, Threads::All] {
            let mut out = vec![1.0; 8];
            matmul(
                MatrixMut::new(&mut out, 2, 4, 4),
                Matrix::new(&left, 2, 3, 3),
                Matrix::new(&right, 4, 3, 3).transposed(),
                2.0,
                3.0,
                threads,
            );
            for i in 0..2 {
                for j in 0..4 {
                    let sum: f64 = (0..3).map(|l| left[i * 3 + l] * right[j * 3 + l]).sum();
                    assert_eq!(out[i * 4 + j], 2.0 + 3.0 * sum);
                }
            }
        }
    }

    #[test]
    fn a_large_product_agrees_with_that_in_f64() {
        let (rows, inner, columns) = (96, 300, 128);
        let left: Vec<f32> = (0..rows * inner).map(|i| (i as f32).sin()).collect();
        let right: Vec<f32> = (0..inner * columns).map(|i| (i as f32).cos()).collect();
        let double = |x: &[f32], of: fn(f64) -> f64| -> Vec<f64> {
            x.iter().map(|&x| of(f64::from(x))).collect()
        };
        let in_double = |of| {
            product(
                Matrix::new(&double(&left, of), rows, inner, inner),
                Matrix::new(&double(&right, of), columns, inner, inner).transposed(),
                Threads::All,
            )
        };
        let (sums, magnitudes) = (in_double(|x| x), in_double(f64::abs));
        // 300 roundings by `gemm`, or 17 and 6 for each 32 positions and one on the tile unit.
        let bound = 300.0 * 2.0_f64.powi(-24);
        for threads in [Threads::One, Threads::All] {
            let single = product(
                Matrix::new(&left, rows, inner, inner),
                Matrix::new(&right, columns, inner, inner).transposed(),
                threads,
            );
            for ((x, sum), magnitude) in single.iter().zip(&sums).zip(&magnitudes) {
                assert!((f64::from(*x) - sum).abs() <= bound * magnitude);
            }
        }
        assert!(sums.iter().any(|sum| sum.abs() > 1.0));
    }

    #[test]
    #[should_panic(expected = "needs 9 elements, the slice has 8")]
    fn a_view_past_the_slice_is_refused() {
        let _ = Matrix::new(&[0.0_f32; 8], 3, 3, 3);
    }
}
