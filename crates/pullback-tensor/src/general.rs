//! Eigenvalues of any square matrix.

use faer::{MatRef, c64};

use crate::check::{Scaling, largest_entry};
use crate::error::LinalgError;

/// The eigenvalues of a square matrix, largest modulus first. Those of a matrix without a full set of eigenvectors are
/// as inexact as that problem is: an eigenvalue in a Jordan block of size `n` moves by the `n`-th root of the rounding.
///
/// # Errors
/// The matrix is not square, an entry is not finite, or the iteration does not converge.
pub fn eigenvalues(a: MatRef<'_, c64>) -> Result<Vec<c64>, LinalgError> {
    let (rows, columns) = a.shape();
    if rows != columns {
        return Err(LinalgError::NotSquare { rows, columns });
    }
    let largest = largest_entry(a)?;
    if largest == 0.0 {
        return Ok(vec![c64::new(0.0, 0.0); rows]);
    }
    let scaling = Scaling::of(largest);
    let scaled = scaling.apply(a);
    // The transpose has the same eigenvalues and takes the iteration another way.
    for transposed in [false, true] {
        let found = if transposed {
            scaled.transpose().eigenvalues()
        } else {
            scaled.eigenvalues()
        };
        let Ok(values) = found else { continue };
        let trace: c64 = (0..rows).map(|i| scaled[(i, i)]).sum();
        let sum: c64 = values.iter().sum();
        let tolerance = 1e3 * f64::EPSILON * scaled.norm_l2() * (rows as f64).sqrt();
        if (trace - sum).norm() <= tolerance {
            let mut values: Vec<c64> = values
                .iter()
                .map(|x| c64::new(scaling.undo(x.re), scaling.undo(x.im)))
                .collect();
            values.sort_by(|x, y| y.norm().total_cmp(&x.norm()));
            return Ok(values);
        }
    }
    Err(LinalgError::NoConvergence {
        what: "eigenvalues",
        rows,
        columns,
    })
}
