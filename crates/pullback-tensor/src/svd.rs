//! Singular values, by a ladder of methods.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd as faer_svd, svd_scratch};
use faer::{Mat, MatRef, Par};

use crate::check::{Scaling, decomposes, largest_entry};
use crate::error::LinalgError;
use crate::jacobi;
use crate::qr::qr;
use crate::scalar::Scalar;

/// A method of the ladder, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// faer on all threads, of which a small matrix needs one.
    Threads,
    /// faer on one thread: its blocks then fall otherwise, and what did not converge often does.
    Serial,
    /// A QR decomposition first, then faer on its triangle.
    QrFirst,
    /// Jacobi rotations, which always converge; slow.
    Jacobi,
}

impl Rung {
    /// All of them in the order in which they are tried.
    pub const ALL: [Self; 4] = [Self::Threads, Self::Serial, Self::QrFirst, Self::Jacobi];
}

/// `a = u diag(values) v†`.
#[derive(Clone, Debug)]
pub struct Svd<T> {
    /// Left vectors as columns, `[rows, k]` with `k` the smaller of rows and columns.
    pub u: Mat<T>,
    /// The singular values, largest first.
    pub values: Vec<f64>,
    /// Right vectors as columns, `[columns, k]`.
    pub v: Mat<T>,
    /// Which method gave it.
    pub rung: Rung,
}

/// The thin singular value decomposition.
///
/// # Errors
/// An entry is not finite, or no method gives a result that passes its check.
pub fn svd<T: Scalar>(a: MatRef<'_, T>) -> Result<Svd<T>, LinalgError> {
    let largest = largest_entry(a)?;
    for rung in Rung::ALL {
        if let Some(svd) = try_rung(a, largest, rung) {
            return Ok(svd);
        }
    }
    Err(failed(a))
}

/// As [`svd()`] by one method only, for tests and comparisons.
///
/// # Errors
/// As [`svd()`].
pub fn svd_by<T: Scalar>(a: MatRef<'_, T>, rung: Rung) -> Result<Svd<T>, LinalgError> {
    let largest = largest_entry(a)?;
    try_rung(a, largest, rung).ok_or_else(|| failed(a))
}

/// The singular values alone, largest first.
///
/// # Errors
/// As [`svd()`].
pub fn singular_values<T: Scalar>(a: MatRef<'_, T>) -> Result<Vec<f64>, LinalgError> {
    Ok(svd(a)?.values)
}

fn failed<T>(a: MatRef<'_, T>) -> LinalgError {
    LinalgError::NoConvergence {
        what: "singular values",
        rows: a.nrows(),
        columns: a.ncols(),
    }
}

fn try_rung<T: Scalar>(a: MatRef<'_, T>, largest: f64, rung: Rung) -> Option<Svd<T>> {
    let (rows, columns) = a.shape();
    let size = rows.min(columns);
    if largest == 0.0 {
        return Some(Svd {
            u: Mat::identity(rows, size),
            values: vec![0.0; size],
            v: Mat::identity(columns, size),
            rung,
        });
    }
    let scaling = Scaling::of(largest);
    let scaled = scaling.apply(a);
    let (u, mut values, v) = match rung {
        Rung::Threads => by_faer(scaled.as_ref(), threads(rows.max(columns)))?,
        Rung::Serial => by_faer(scaled.as_ref(), Par::Seq)?,
        Rung::QrFirst => by_qr(scaled.as_ref())?,
        Rung::Jacobi => jacobi::svd(scaled.as_ref())?,
    };
    let sorted = values.windows(2).all(|pair| pair[0] >= pair[1]);
    if !sorted || !decomposes(scaled.as_ref(), u.as_ref(), &values, v.as_ref()) {
        return None;
    }
    for value in &mut values {
        *value = scaling.undo(*value);
    }
    Some(Svd { u, values, v, rung })
}

/// Threads for a matrix of this size; waking them costs more than a small one.
pub(crate) fn threads(size: usize) -> Par {
    if size < 768 {
        Par::Seq
    } else {
        faer::get_global_parallelism()
    }
}

type Factors<T> = (Mat<T>, Vec<f64>, Mat<T>);

fn by_faer<T: Scalar>(a: MatRef<'_, T>, par: Par) -> Option<Factors<T>> {
    let (rows, columns) = a.shape();
    let size = rows.min(columns);
    let mut u = Mat::zeros(rows, size);
    let mut v = Mat::zeros(columns, size);
    let mut s = Diag::<T>::zeros(size);
    let thin = ComputeSvdVectors::Thin;
    let scratch = svd_scratch::<T>(rows, columns, thin, thin, par, faer::Spec::default());
    let mut memory = MemBuffer::new(scratch);
    faer_svd(
        a,
        s.as_mut(),
        Some(u.as_mut()),
        Some(v.as_mut()),
        par,
        MemStack::new(&mut memory),
        faer::Spec::default(),
    )
    .ok()?;
    let values = (0..size).map(|i| s.column_vector()[i].real()).collect();
    Some((u, values, v))
}

fn by_qr<T: Scalar>(a: MatRef<'_, T>) -> Option<Factors<T>> {
    if a.nrows() < a.ncols() {
        let (v, values, u) = by_qr(a.adjoint().to_owned().as_ref())?;
        return Some((u, values, v));
    }
    let first = qr(a).ok()?;
    let (u, values, v) = by_faer(first.r.as_ref(), Par::Seq)?;
    Some((&first.q * &u, values, v))
}
