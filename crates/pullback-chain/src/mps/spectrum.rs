//! The spectrum of an infinite state's transfer matrix.

use pullback_tensor::{c64, eigenvalues};

use crate::dense::Matrix;
use crate::error::ChainError;

use super::infinite::{InfiniteMps, column_major, from_right, square};

/// Vectors of the Krylov space in which eigenvalues of the transfer matrix are looked for.
const KRYLOV: usize = 48;

impl InfiniteMps {
    /// The eigenvalues of the transfer matrix of a cell, largest modulus first, up to `count` of them; the first is 1. For
    /// wide bonds those of a Krylov space, of which the first few are good.
    ///
    /// # Errors
    /// The iteration does not converge.
    pub fn transfer_spectrum(&self, count: usize) -> Result<Vec<c64>, ChainError> {
        let [a, b] = &self.tensors;
        let n = a.left;
        let size = n * n;
        let steps = KRYLOV.min(size);
        let apply = |x: &[c64]| column_major(&from_right(&from_right(&square(x, n), b), a));
        // Arnoldi with every product made orthogonal twice.
        let mut state = 0x9e37_79b9_u64;
        let start: Vec<c64> = (0..size)
            .map(|_| {
                let mut next = || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
                };
                c64::new(next(), next())
            })
            .collect();
        let mut basis = vec![normalised(start).0];
        let mut h = Matrix::zeros(steps, steps);
        let mut found = steps;
        for k in 0..steps {
            let mut next = apply(&basis[k]);
            for _ in 0..2 {
                for (i, v) in basis.iter().enumerate() {
                    let overlap: c64 = v.iter().zip(&next).map(|(v, x)| v.conj() * x).sum();
                    h[(i, k)] += overlap;
                    for (x, v) in next.iter_mut().zip(v) {
                        *x -= overlap * v;
                    }
                }
            }
            let (next, length) = normalised(next);
            if k + 1 == steps {
                break;
            }
            if length < 1e-13 {
                found = k + 1;
                break;
            }
            h[(k + 1, k)] = c64::new(length, 0.0);
            basis.push(next);
        }
        let mut values = eigenvalues(h.submatrix(0, 0, found, found))?;
        values.truncate(count);
        Ok(values)
    }

    /// The correlation length in sites: `−2 / ln |second eigenvalue of the transfer matrix|`, 0 for a product state.
    ///
    /// # Errors
    /// As [`InfiniteMps::transfer_spectrum`].
    pub fn correlation_length(&self) -> Result<f64, ChainError> {
        let values = self.transfer_spectrum(2)?;
        let second = values.get(1).map_or(0.0, |x| x.norm()).min(1.0);
        Ok(if second > 1e-14 {
            -2.0 / second.ln()
        } else {
            0.0
        })
    }
}

fn normalised(mut x: Vec<c64>) -> (Vec<c64>, f64) {
    let length = x.iter().map(c64::norm_sqr).sum::<f64>().sqrt();
    if length > 0.0 {
        for x in &mut x {
            *x /= length;
        }
    }
    (x, length)
}
