//! Jacobi rotations: slow, but they converge for every finite matrix, and give small singular values with high relative
//! accuracy (Golub and Van Loan, Matrix Computations, 8.5 and 8.6.3).

use faer::{Mat, MatRef};

use crate::scalar::Scalar;

/// Sweeps after which something is wrong; ten are many.
const SWEEPS: usize = 60;

/// One-sided: columns of `a` are rotated in pairs until all are orthogonal.
pub(crate) fn svd<T: Scalar>(a: MatRef<'_, T>) -> Option<(Mat<T>, Vec<f64>, Mat<T>)> {
    let (rows, columns) = a.shape();
    if rows < columns {
        let (v, values, u) = svd(a.adjoint().to_owned().as_ref())?;
        return Some((u, values, v));
    }
    let mut w = a.to_owned();
    let mut v = Mat::<T>::identity(columns, columns);
    let mut converged = columns < 2;
    for _ in 0..SWEEPS {
        if converged {
            break;
        }
        converged = true;
        for p in 0..columns {
            for q in p + 1..columns {
                let (mut alpha, mut beta, mut gamma) = (0.0, 0.0, T::from_real(0.0));
                for i in 0..rows {
                    alpha += w[(i, p)].norm_squared();
                    beta += w[(i, q)].norm_squared();
                    gamma += w[(i, p)].conjugate() * w[(i, q)];
                }
                let size = gamma.modulus();
                // A column that underflows to nothing is orthogonal to all.
                if size == 0.0 || size <= f64::EPSILON * (alpha * beta).sqrt() {
                    continue;
                }
                converged = false;
                let (c, s) = angle(alpha, beta, size);
                let phase = gamma.times(1.0 / size);
                rotate(&mut w, p, q, c, s, phase);
                rotate(&mut v, p, q, c, s, phase);
            }
        }
    }
    if !converged {
        return None;
    }
    let norms: Vec<f64> = (0..columns)
        .map(|j| {
            let squares = (0..rows).map(|i| w[(i, j)].norm_squared());
            squares.sum::<f64>().sqrt()
        })
        .collect();
    let mut order: Vec<usize> = (0..columns).collect();
    order.sort_by(|&i, &j| norms[j].total_cmp(&norms[i]).then(i.cmp(&j)));
    let values: Vec<f64> = order.iter().map(|&j| norms[j]).collect();
    let u = completed(&w, &order, &norms);
    let v = Mat::from_fn(columns, columns, |i, j| v[(i, order[j])]);
    Some((u, values, v))
}

/// Cosine and sine of the rotation that makes two columns with squared norms `alpha`, `beta` and inner product of
/// modulus `gamma` orthogonal; the smaller of the two angles.
fn angle(alpha: f64, beta: f64, gamma: f64) -> (f64, f64) {
    let zeta = (beta - alpha) / (2.0 * gamma);
    let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
    let c = 1.0 / t.hypot(1.0);
    (c, c * t)
}

/// Columns `p`, `q` become `c p − s conj(phase) q` and `s phase p + c q`.
fn rotate<T: Scalar>(m: &mut Mat<T>, p: usize, q: usize, c: f64, s: f64, phase: T) {
    for i in 0..m.nrows() {
        let (x, y) = (m[(i, p)], m[(i, q)]);
        m[(i, p)] = x.times(c) - (phase.conjugate() * y).times(s);
        m[(i, q)] = (phase * x).times(s) + y.times(c);
    }
}

/// The columns of `w` in `order`, normalised; in place of those that are nothing beside the largest, whatever completes
/// an orthonormal set.
fn completed<T: Scalar>(w: &Mat<T>, order: &[usize], norms: &[f64]) -> Mat<T> {
    let rows = w.nrows();
    let largest = order.first().map_or(0.0, |&j| norms[j]);
    let mut u = Mat::<T>::zeros(rows, order.len());
    let mut next = 0;
    for (k, &j) in order.iter().enumerate() {
        if norms[j] > f64::MIN_POSITIVE.sqrt() * largest.max(f64::MIN_POSITIVE) {
            for i in 0..rows {
                u[(i, k)] = w[(i, j)].times(1.0 / norms[j]);
            }
            continue;
        }
        while next < rows {
            let mut x = vec![T::from_real(0.0); rows];
            x[next] = T::from_real(1.0);
            next += 1;
            // Twice, since the first time may leave rounding.
            for _ in 0..2 {
                for l in 0..k {
                    let mut dot = T::from_real(0.0);
                    for i in 0..rows {
                        dot += u[(i, l)].conjugate() * x[i];
                    }
                    for i in 0..rows {
                        x[i] -= u[(i, l)] * dot;
                    }
                }
            }
            let norm = x.iter().map(|x| x.norm_squared()).sum::<f64>().sqrt();
            if norm > 0.1 / (rows as f64).sqrt() {
                for i in 0..rows {
                    u[(i, k)] = x[i].times(1.0 / norm);
                }
                break;
            }
        }
    }
    u
}

/// Two-sided: rotations that make the entries off the diagonal of a Hermitian matrix vanish, one after the other.
pub(crate) fn eigh<T: Scalar>(a: MatRef<'_, T>) -> Option<(Vec<f64>, Mat<T>)> {
    let n = a.nrows();
    let mut a = a.to_owned();
    let mut u = Mat::<T>::identity(n, n);
    let size = a.norm_l2();
    let mut converged = n < 2;
    for _ in 0..SWEEPS {
        if converged {
            break;
        }
        converged = true;
        for p in 0..n {
            for q in p + 1..n {
                let off = a[(p, q)];
                let modulus = off.modulus();
                if modulus <= f64::EPSILON * size / n as f64 {
                    continue;
                }
                converged = false;
                let (c, s) = angle(a[(p, p)].real(), a[(q, q)].real(), modulus);
                let phase = off.times(1.0 / modulus);
                // a ← J† a J, first the columns, then the rows.
                rotate(&mut a, p, q, c, s, phase);
                for j in 0..n {
                    let (x, y) = (a[(p, j)], a[(q, j)]);
                    a[(p, j)] = x.times(c) - (phase * y).times(s);
                    a[(q, j)] = (phase.conjugate() * x).times(s) + y.times(c);
                }
                rotate(&mut u, p, q, c, s, phase);
            }
        }
    }
    if !converged {
        return None;
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| {
        a[(i, i)]
            .real()
            .total_cmp(&a[(j, j)].real())
            .then(i.cmp(&j))
    });
    let values = order.iter().map(|&i| a[(i, i)].real()).collect();
    Some((values, Mat::from_fn(n, n, |i, j| u[(i, order[j])])))
}
