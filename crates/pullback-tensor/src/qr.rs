//! The thin QR decomposition.

use faer::{Mat, MatRef};

use crate::check::largest_entry;
use crate::error::LinalgError;
use crate::scalar::Scalar;

/// `a = q r`, with orthonormal columns in `q` and `r` upper triangular.
#[derive(Clone, Debug)]
pub struct Qr<T> {
    /// `[rows, k]` with `k` the smaller of rows and columns.
    pub q: Mat<T>,
    /// `[k, columns]`.
    pub r: Mat<T>,
}

/// The thin QR decomposition, by Householder reflections.
///
/// # Errors
/// An entry is not finite.
pub fn qr<T: Scalar>(a: MatRef<'_, T>) -> Result<Qr<T>, LinalgError> {
    largest_entry(a)?;
    let factors = a.qr();
    Ok(Qr {
        q: factors.compute_thin_Q(),
        r: factors.thin_R().to_owned(),
    })
}
