//! Eigenvalues and vectors of Hermitian matrices, by a ladder of methods.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, MatRef, Par};

use crate::check::{Scaling, decomposes, largest_entry};
use crate::error::LinalgError;
use crate::jacobi;
use crate::scalar::Scalar;
use crate::svd::{Rung, threads};

/// `a = u diag(values) u†`.
#[derive(Clone, Debug)]
pub struct Eigh<T> {
    /// The eigenvalues, smallest first.
    pub values: Vec<f64>,
    /// The vectors as columns, in the same order.
    pub u: Mat<T>,
    /// Which method gave it.
    pub rung: Rung,
}

/// Eigenvalues and vectors of a Hermitian matrix.
///
/// # Errors
/// The matrix is not square, not Hermitian within rounding (relative 1e-10), has an entry that is not finite, or no
/// method gives a result that passes its check.
pub fn eigh<T: Scalar>(a: MatRef<'_, T>) -> Result<Eigh<T>, LinalgError> {
    let largest = checked(a)?;
    for rung in [Rung::Threads, Rung::Serial, Rung::Jacobi] {
        if let Some(eigh) = try_rung(a, largest, rung) {
            return Ok(eigh);
        }
    }
    Err(failed(a))
}

/// As [`eigh`] by one method only, for tests and comparisons; [`Rung::QrFirst`] is none of its methods.
///
/// # Errors
/// As [`eigh`].
pub fn eigh_by<T: Scalar>(a: MatRef<'_, T>, rung: Rung) -> Result<Eigh<T>, LinalgError> {
    let largest = checked(a)?;
    try_rung(a, largest, rung).ok_or_else(|| failed(a))
}

fn failed<T>(a: MatRef<'_, T>) -> LinalgError {
    LinalgError::NoConvergence {
        what: "eigenvalues",
        rows: a.nrows(),
        columns: a.ncols(),
    }
}

/// The largest entry of a matrix that is square and Hermitian.
fn checked<T: Scalar>(a: MatRef<'_, T>) -> Result<f64, LinalgError> {
    let (rows, columns) = a.shape();
    if rows != columns {
        return Err(LinalgError::NotSquare { rows, columns });
    }
    let largest = largest_entry(a)?;
    let mut worst = (0, 0, 0.0);
    for column in 0..columns {
        for row in 0..=column {
            let defect = (a[(row, column)] - a[(column, row)].conjugate()).modulus();
            if defect > worst.2 {
                worst = (row, column, defect);
            }
        }
    }
    if worst.2 > 1e-10 * largest {
        return Err(LinalgError::NotHermitian {
            row: worst.0,
            column: worst.1,
            defect: worst.2,
        });
    }
    Ok(largest)
}

fn try_rung<T: Scalar>(a: MatRef<'_, T>, largest: f64, rung: Rung) -> Option<Eigh<T>> {
    let n = a.nrows();
    if largest == 0.0 {
        return Some(Eigh {
            values: vec![0.0; n],
            u: Mat::identity(n, n),
            rung,
        });
    }
    let scaling = Scaling::of(largest);
    let scaled = scaling.apply(a);
    // What the methods do not look at must be the mirror of what they do.
    let scaled = Mat::from_fn(n, n, |i, j| {
        (scaled[(i, j)] + scaled[(j, i)].conjugate()).times(0.5)
    });
    let (mut values, u) = match rung {
        Rung::Threads => by_faer(scaled.as_ref(), threads(n))?,
        Rung::Serial => by_faer(scaled.as_ref(), Par::Seq)?,
        Rung::QrFirst => return None,
        Rung::Jacobi => jacobi::eigh(scaled.as_ref())?,
    };
    let sorted = values.windows(2).all(|pair| pair[0] <= pair[1]);
    if !sorted || !decomposes(scaled.as_ref(), u.as_ref(), &values, u.as_ref()) {
        return None;
    }
    for value in &mut values {
        *value = scaling.undo(*value);
    }
    Some(Eigh { values, u, rung })
}

fn by_faer<T: Scalar>(a: MatRef<'_, T>, par: Par) -> Option<(Vec<f64>, Mat<T>)> {
    let n = a.nrows();
    let mut u = Mat::zeros(n, n);
    let mut s = Diag::<T>::zeros(n);
    let vectors = ComputeEigenvectors::Yes;
    let scratch = self_adjoint_evd_scratch::<T>(n, vectors, par, faer::Spec::default());
    let mut memory = MemBuffer::new(scratch);
    self_adjoint_evd(
        a,
        s.as_mut(),
        Some(u.as_mut()),
        par,
        MemStack::new(&mut memory),
        faer::Spec::default(),
    )
    .ok()?;
    let values = (0..n).map(|i| s.column_vector()[i].real()).collect();
    Some((values, u))
}
