//! The canonical form: how far off it is, and restoring it.

use pullback_tensor::{Mat, MatMut, Threads, c64, multiply, multiply_adjoint, qr, svd};
use rayon::prelude::*;

use crate::error::ChainError;

use super::state::Mps;
use super::tensor::Tensor;

impl Mps {
    /// How far the tensors are from canonical, in weight: the largest of `Σ_l λ_l² |(1 − B B†)_ll|` and
    /// `Tr |λ'² − Σ_p B_p† λ² B_p|` (by its diagonal) over all sites. Zero right after [`Mps::apply`], to rounding.
    pub fn canonical_defect(&self) -> f64 {
        (0..self.sites())
            .into_par_iter()
            .map(|j| {
                let b = &self.tensors[j];
                let mut rows = vec![0.0; b.left];
                for column in b.data.chunks_exact(b.left) {
                    for (sum, x) in rows.iter_mut().zip(column) {
                        *sum += x.norm_sqr();
                    }
                }
                let weights = || self.schmidt[j].iter().map(|s| s * s);
                let right: f64 = rows
                    .iter()
                    .zip(weights())
                    .map(|(x, w)| w * (1.0 - x).abs())
                    .sum();
                let last = j + 1 == self.sites();
                let norm = self.schmidt[0][0];
                let left: f64 = b
                    .data
                    .chunks_exact(b.left * b.physical)
                    .enumerate()
                    .map(|(r, column)| {
                        let sum: f64 = column
                            .chunks_exact(b.left)
                            .map(|part| {
                                part.iter()
                                    .zip(weights())
                                    .map(|(x, w)| w * x.norm_sqr())
                                    .sum::<f64>()
                            })
                            .sum();
                        let coefficient = if last { norm } else { self.schmidt[j + 1][r] };
                        (coefficient * coefficient - sum).abs()
                    })
                    .sum();
                right.max(if last { 0.0 } else { left })
            })
            .reduce(|| 0.0, f64::max)
    }

    /// `‖ψ‖` of a canonical state.
    pub(super) fn norm(&self) -> f64 {
        self.schmidt[0][0]
    }

    /// Brings the tensors into canonical form: isometries from the left by QR, then Schmidt bases from the right.
    pub(super) fn restore(&mut self) -> Result<(), ChainError> {
        let d = self.dimension;
        let sites = self.sites();
        let mut centre = self.tensors[0].weighted(&self.schmidt[0]);
        for j in 0..sites - 1 {
            let factors = qr(centre.by_left())?;
            let count = factors.r.nrows();
            self.tensors[j] = Tensor::from_mat(centre.left, d, count, &factors.q);
            let next = &self.tensors[j + 1];
            let mut out = Tensor::zeros(count, d, next.right);
            multiply(
                out.by_right_mut(),
                factors.r.as_ref(),
                next.by_right(),
                Threads::All,
            );
            centre = out;
        }
        for j in (0..sites).rev() {
            let svd = svd(centre.by_right())?;
            let weights: Vec<f64> = svd.values.iter().map(|s| s * s).collect();
            // Directions that are rounding are no states.
            let floor = 1e-30 * weights[0];
            let count = weights.iter().filter(|w| **w > floor).count().max(1);
            let v = Mat::from_fn(count, d * centre.right, |k, i| svd.v[(i, k)].conj());
            self.tensors[j] = Tensor::from_mat(count, d, centre.right, &v);
            self.schmidt[j] = svd.values[..count].to_vec();
            if j == 0 {
                // A phase that belongs to no bond.
                let phase = svd.u[(0, 0)];
                for x in &mut self.tensors[0].data {
                    *x *= phase;
                }
                break;
            }
            let weighted = Mat::from_fn(centre.left, count, |i, k| svd.u[(i, k)] * svd.values[k]);
            let before = &self.tensors[j - 1];
            let mut out = Tensor::zeros(before.left, d, count);
            multiply(
                out.by_left_mut(),
                before.by_left(),
                weighted.as_ref(),
                Threads::All,
            );
            centre = out;
        }
        Ok(())
    }

    /// `⟨self|other⟩`, of the states as they are, without normalising.
    ///
    /// # Errors
    /// The states are of different chains.
    pub fn inner(&self, other: &Self) -> Result<c64, ChainError> {
        if (self.sites(), self.dimension) != (other.sites(), other.dimension) {
            return Err(ChainError::value(
                "the other state",
                format!("{} sites of dimension {}", other.sites(), other.dimension),
                format!("expected {} of dimension {}", self.sites(), self.dimension),
            ));
        }
        let start = self.schmidt[0][0] * other.schmidt[0][0];
        let mut env = vec![c64::new(start, 0.0)];
        for (a, b) in self.tensors.iter().zip(&other.tensors) {
            env = transfer(&env, a, b);
        }
        Ok(env[0])
    }

    /// `|⟨self|other⟩|²` of the normalised states.
    ///
    /// # Errors
    /// As [`Mps::inner`].
    pub fn fidelity(&self, other: &Self) -> Result<f64, ChainError> {
        Ok(self.inner(other)?.norm_sqr() / (self.inner(self)?.re * other.inner(other)?.re))
    }
}

/// `Σ_p A_p† E B_p` for `E [l of A, l of B]`, column-major.
pub(super) fn transfer(env: &[c64], a: &Tensor, b: &Tensor) -> Vec<c64> {
    let env = pullback_tensor::MatRef::from_column_major_slice(env, a.left, b.left);
    let mut pushed = Tensor::zeros(a.left, b.physical, b.right);
    multiply(pushed.by_right_mut(), env, b.by_right(), Threads::All);
    let mut out = vec![c64::new(0.0, 0.0); a.right * b.right];
    let to = MatMut::from_column_major_slice_mut(&mut out, a.right, b.right);
    multiply_adjoint(to, a.by_left(), pushed.by_left(), Threads::All);
    out
}
