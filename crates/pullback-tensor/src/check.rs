//! What is looked at before a decomposition and after it.

use faer::{Mat, MatRef};

use crate::error::LinalgError;
use crate::scalar::Scalar;

/// Refuses entries that are not finite; gives the largest modulus.
pub(crate) fn largest_entry<T: Scalar>(a: MatRef<'_, T>) -> Result<f64, LinalgError> {
    let mut largest = 0.0_f64;
    for column in 0..a.ncols() {
        for row in 0..a.nrows() {
            let x = a[(row, column)];
            if !x.finite() {
                return Err(LinalgError::NotFinite {
                    row,
                    column,
                    rows: a.nrows(),
                    columns: a.ncols(),
                    value: format!("{x:?}"),
                });
            }
            largest = largest.max(x.modulus());
        }
    }
    Ok(largest)
}

/// A power of two that brings numbers of this size near one, as two factors: for the smallest and largest numbers one
/// alone would overflow. Products with it are exact.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scaling {
    first: f64,
    second: f64,
}

impl Scaling {
    pub(crate) fn of(largest: f64) -> Self {
        // The exponent as `log2` says it may be one off, which does not matter.
        let exponent = -largest.log2().floor() as i32;
        let half = exponent / 2;
        Self {
            first: 2.0_f64.powi(half),
            second: 2.0_f64.powi(exponent - half),
        }
    }

    pub(crate) fn apply<T: Scalar>(self, a: MatRef<'_, T>) -> Mat<T> {
        Mat::from_fn(a.nrows(), a.ncols(), |i, j| {
            a[(i, j)].times(self.first).times(self.second)
        })
    }

    pub(crate) fn undo(self, x: f64) -> f64 {
        x / self.second / self.first
    }
}

/// A vector that is in no special place; always the same.
fn probe<T: Scalar>(len: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            T::from_real((state >> 11) as f64 / (1_u64 << 53) as f64 - 0.5)
        })
        .collect()
}

/// `a x`.
fn product<T: Scalar>(a: MatRef<'_, T>, x: &[T]) -> Vec<T> {
    let mut out = vec![T::from_real(0.0); a.nrows()];
    for (j, &x) in x.iter().enumerate() {
        for (i, out) in out.iter_mut().enumerate() {
            *out += a[(i, j)] * x;
        }
    }
    out
}

/// `a† x`.
fn adjoint_product<T: Scalar>(a: MatRef<'_, T>, x: &[T]) -> Vec<T> {
    (0..a.ncols())
        .map(|j| {
            let mut sum = T::from_real(0.0);
            for (i, &x) in x.iter().enumerate() {
                sum += a[(i, j)].conjugate() * x;
            }
            sum
        })
        .collect()
}

fn norm<T: Scalar>(x: &[T]) -> f64 {
    x.iter().map(|x| x.norm_squared()).sum::<f64>().sqrt()
}

fn distance<T: Scalar>(x: &[T], y: &[T]) -> f64 {
    let squares = x.iter().zip(y).map(|(&x, &y)| (x - y).norm_squared());
    squares.sum::<f64>().sqrt()
}

/// How far a probe may be off, relative to its length: rounding grows no faster than with the root of the size.
fn tolerance(rows: usize, columns: usize) -> f64 {
    64.0 * f64::EPSILON * (rows.max(columns) as f64).sqrt().max(4.0)
}

/// Whether the columns are orthonormal, as far as a probe tells.
pub(crate) fn orthonormal<T: Scalar>(u: MatRef<'_, T>) -> bool {
    let x = probe::<T>(u.ncols(), 3);
    let back = adjoint_product(u, &product(u, &x));
    // `is_nan` must fail as well, so the comparison is this way round.
    distance(&back, &x) <= tolerance(u.nrows(), u.ncols()) * norm(&x)
}

/// Whether `a = u diag(values) v†`, and whether `u` and `v` have orthonormal columns, as far as probes tell.
pub(crate) fn decomposes<T: Scalar>(
    a: MatRef<'_, T>,
    u: MatRef<'_, T>,
    values: &[f64],
    v: MatRef<'_, T>,
) -> bool {
    let size = a.squared_norm_l2().sqrt();
    let x = probe::<T>(a.ncols(), 7);
    let direct = product(a, &x);
    let mut within = adjoint_product(v, &x);
    for (x, &value) in within.iter_mut().zip(values) {
        *x = x.times(value);
    }
    let through = product(u, &within);
    distance(&direct, &through) <= tolerance(a.nrows(), a.ncols()) * size * norm(&x)
        && orthonormal(u)
        && orthonormal(v)
}
