//! Small dense matrices: products, exponentials, how far from unitary.

use pullback_tensor::{LinalgError, Mat, c64, eigh};

/// A dense complex matrix.
pub type Matrix = Mat<c64>;

/// Zero.
pub const ZERO: c64 = c64::new(0.0, 0.0);
/// One.
pub const ONE: c64 = c64::new(1.0, 0.0);
/// The imaginary unit.
pub const I: c64 = c64::new(0.0, 1.0);

/// The identity.
pub fn identity(n: usize) -> Matrix {
    Mat::identity(n, n)
}

/// The product with a number.
pub fn scaled(a: &Matrix, by: c64) -> Matrix {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] * by)
}

/// The tensor product; the index of `a` is the slow one.
pub fn kron(a: &Matrix, b: &Matrix) -> Matrix {
    let (m, n) = b.shape();
    Mat::from_fn(a.nrows() * m, a.ncols() * n, |i, j| {
        a[(i / m, j / n)] * b[(i % m, j % n)]
    })
}

/// The adjoint.
pub fn adjoint(a: &Matrix) -> Matrix {
    a.adjoint().to_owned()
}

/// The trace.
pub fn trace(a: &Matrix) -> c64 {
    (0..a.nrows().min(a.ncols())).map(|i| a[(i, i)]).sum()
}

/// The Frobenius norm of a difference.
pub fn distance(a: &Matrix, b: &Matrix) -> f64 {
    (a - b).norm_l2()
}

/// The largest singular value of `a† a − 1`: zero where `a` is an isometry.
///
/// # Errors
/// An entry is not finite.
pub fn unitarity_defect(a: &Matrix) -> Result<f64, LinalgError> {
    let gram = a.adjoint() * a;
    let values = eigh(gram.as_ref())?.values;
    Ok(values.iter().fold(0.0, |most, x| most.max((x - 1.0).abs())))
}

/// `exp(a)`. Hermitian and anti-Hermitian matrices go through their eigenvalues, so that the exponential of the latter
/// is unitary to rounding; others by scaling, a Taylor series and squaring.
///
/// # Errors
/// An entry is not finite.
pub fn exp(a: &Matrix) -> Result<Matrix, LinalgError> {
    let n = a.nrows();
    let size = a.norm_l2();
    for unit in [ONE, I] {
        // `a` or `i a` is Hermitian: `a = u diag(λ) u†` or `a = u diag(−i λ) u†`.
        let h = scaled(a, unit);
        if distance(&h, &adjoint(&h)) <= 1e-14 * size {
            let eigh = eigh(h.as_ref())?;
            let factors: Vec<c64> = eigh
                .values
                .iter()
                .map(|&x| (c64::new(x, 0.0) / unit).exp())
                .collect();
            let left = Mat::from_fn(n, n, |i, j| eigh.u[(i, j)] * factors[j]);
            return Ok(left * eigh.u.adjoint());
        }
    }
    let squarings = size.max(0.25).log2().ceil() as i32 + 2;
    let small = scaled(a, c64::new(2.0_f64.powi(-squarings), 0.0));
    let mut term = identity(n);
    let mut sum = identity(n);
    for k in 1..=24 {
        term = scaled(&(&term * &small), c64::new(1.0 / f64::from(k), 0.0));
        sum += &term;
    }
    for _ in 0..squarings {
        sum = &sum * &sum;
    }
    Ok(sum)
}

/// The matrix `[d², d²]` with the two sites exchanged.
pub fn exchanged(a: &Matrix, d: usize) -> Matrix {
    let flip = |i: usize| (i % d) * d + i / d;
    Mat::from_fn(d * d, d * d, |i, j| a[(flip(i), flip(j))])
}
