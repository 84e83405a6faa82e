//! A gate as an operator between its two sites.

use pullback_tensor::{LinalgError, Mat, singular_values};

use crate::dense::Matrix;

/// `R_(aa'),(bb') = U_(ab),(a'b')`: the rows are operators on the left site, the columns such on the right one.
pub(super) fn reshuffled(u: &Matrix, d: usize) -> Matrix {
    Mat::from_fn(d * d, d * d, |i, j| {
        let (a, b) = (i / d, j / d);
        let (c, e) = (i % d, j % d);
        u[(a * d + b, c * d + e)]
    })
}

/// The operator Schmidt spectrum: weights that sum to one, largest first.
///
/// # Errors
/// An entry is not finite.
pub fn operator_schmidt(u: &Matrix, d: usize) -> Result<Vec<f64>, LinalgError> {
    let squares: Vec<f64> = singular_values(reshuffled(u, d).as_ref())?
        .iter()
        .map(|s| s * s)
        .collect();
    let total: f64 = squares.iter().sum();
    Ok(squares.iter().map(|s| s / total).collect())
}

/// The linear operator entanglement `1 − Σ p²` of the Schmidt spectrum.
fn linear_entanglement(u: &Matrix, d: usize) -> Result<f64, LinalgError> {
    Ok(1.0 - operator_schmidt(u, d)?.iter().map(|p| p * p).sum::<f64>())
}

/// The entangling power: the mean linear entropy `1 − tr ρ²` that the gate gives to random product states,
/// `(d/(d+1))² [E(U) + E(US) − E(S)]` with the swap `S` (Zanardi, Phys. Rev. A 63, 040304).
///
/// # Errors
/// An entry is not finite.
pub fn entangling_power(u: &Matrix, d: usize) -> Result<f64, LinalgError> {
    let swapped = Mat::from_fn(d * d, d * d, |i, j| u[(i, (j % d) * d + j / d)]);
    let swap = 1.0 - 1.0 / (d * d) as f64;
    let share = d as f64 / (d as f64 + 1.0);
    let sum = linear_entanglement(u, d)? + linear_entanglement(&swapped, d)? - swap;
    Ok((share * share * sum).max(0.0))
}

/// The gate with space and time exchanged: `Ũ_(ac),(bd) = U_(ab),(cd)`.
pub(super) fn dual(u: &Matrix, d: usize) -> Matrix {
    let mut out = Matrix::zeros(d * d, d * d);
    for a in 0..d {
        for b in 0..d {
            for c in 0..d {
                for e in 0..d {
                    out[(a * d + c, b * d + e)] = u[(a * d + b, c * d + e)];
                }
            }
        }
    }
    out
}
