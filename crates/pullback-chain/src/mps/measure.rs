//! What can be read off a state in canonical form.

use pullback_tensor::{Mat, MatMut, MatRef, Threads, c64, multiply, multiply_adjoint};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::dense::{Matrix, ZERO, exchanged, trace};
use crate::error::ChainError;
use crate::measure::Measure;
use crate::statevector::entropy_of;

use super::canonical::transfer;
use super::state::Mps;
use super::tensor::Tensor;

impl Mps {
    /// The density matrix of one or two different sites of the normalised state, the first one's index slow.
    ///
    /// # Errors
    /// A site does not exist or stands twice, or there are more than two.
    pub fn reduced(&self, sites: &[usize]) -> Result<Matrix, ChainError> {
        let bad = || {
            ChainError::value(
                "the sites of a density matrix",
                format!("{sites:?}"),
                format!(
                    "expected one or two different ones from 0 to {}",
                    self.sites() - 1
                ),
            )
        };
        if sites.iter().any(|&site| site >= self.sites()) {
            return Err(bad());
        }
        let rho = match *sites {
            [j] => self.weighted(j).reduced(),
            [i, j] if i < j => self.two(i, j),
            [i, j] if i > j => exchanged(&self.two(j, i), self.dimension),
            _ => return Err(bad()),
        };
        let norm = trace(&rho).re;
        Ok(Mat::from_fn(rho.nrows(), rho.ncols(), |a, b| {
            rho[(a, b)] / norm
        }))
    }

    fn weighted(&self, j: usize) -> Tensor {
        self.tensors[j].weighted(&self.schmidt[j])
    }

    /// Of sites `i < j`, not normalised.
    fn two(&self, i: usize, j: usize) -> Matrix {
        let d = self.dimension;
        let first = self.weighted(i);
        let last = &self.tensors[j];
        let mut rho = Matrix::zeros(d * d, d * d);
        let n = first.right;
        for a in 0..d {
            for b in 0..=a {
                // ⟨b| … |a⟩ on site i: the matrix between the bonds, pushed on to site j.
                let mut env = vec![ZERO; n * n];
                multiply_adjoint(
                    MatMut::from_column_major_slice_mut(&mut env, n, n),
                    first.slice(b),
                    first.slice(a),
                    Threads::All,
                );
                for tensor in &self.tensors[i + 1..j] {
                    env = transfer(&env, tensor, tensor);
                }
                let mut pushed = Tensor::zeros(last.left, d, last.right);
                let env = MatRef::from_column_major_slice(&env, last.left, last.left);
                multiply(pushed.by_right_mut(), env, last.by_right(), Threads::All);
                for c in 0..d {
                    for e in 0..d {
                        let x = inner(last.slice(e), pushed.slice(c));
                        rho[(a * d + c, b * d + e)] = x;
                        rho[(b * d + e, a * d + c)] = x.conj();
                    }
                }
            }
        }
        rho
    }

    /// `count` outcomes of measuring every site in its basis, each a state of all sites; drawn by the seed. Each is an
    /// independent draw from the exact distribution of the state.
    pub fn sample(&self, count: usize, seed: u64) -> Vec<Vec<usize>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let draw = |_| {
            let mut row = Mat::from_fn(1, 1, |_, _| c64::new(1.0, 0.0));
            let one = |tensor: &Tensor| {
                let mut out = Tensor::zeros(1, tensor.physical, tensor.right);
                multiply(
                    out.by_right_mut(),
                    row.as_ref(),
                    tensor.by_right(),
                    Threads::One,
                );
                let weights: Vec<f64> = (0..tensor.physical)
                    .map(|p| out.slice(p).squared_norm_l2())
                    .collect();
                let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
                let mut p = 0;
                while p + 1 < weights.len() && left >= weights[p] {
                    left -= weights[p];
                    p += 1;
                }
                let length = weights[p].sqrt();
                row = Mat::from_fn(1, tensor.right, |_, r| out.slice(p)[(0, r)] / length);
                p
            };
            self.tensors.iter().map(one).collect()
        };
        (0..count).map(draw).collect()
    }
}

impl Tensor {
    /// `ρ_ab = Σ_lr B[l, a, r] B*[l, b, r]`.
    fn reduced(&self) -> Matrix {
        Mat::from_fn(self.physical, self.physical, |a, b| {
            inner(self.slice(b), self.slice(a))
        })
    }
}

/// `Σ conj(a) b`.
fn inner(a: MatRef<'_, c64>, b: MatRef<'_, c64>) -> c64 {
    let mut sum = ZERO;
    for column in 0..a.ncols() {
        let (a, b) = (a.col(column), b.col(column));
        sum += a.adjoint() * b;
    }
    sum
}

impl Measure for Mps {
    fn sites(&self) -> usize {
        Mps::sites(self)
    }

    fn expectation(&self, sites: &[usize], operator: &Matrix) -> Result<c64, ChainError> {
        let rho = self.reduced(sites)?;
        if operator.shape() != rho.shape() {
            return Err(ChainError::value(
                "the dimension of an operator",
                operator.nrows(),
                format!("expected {} for {} sites", rho.nrows(), sites.len()),
            ));
        }
        Ok(trace(&(operator * &rho)))
    }

    fn entropy(&self, bond: usize) -> Result<f64, ChainError> {
        if bond + 1 >= Mps::sites(self) {
            return Err(ChainError::value(
                "a bond",
                bond,
                format!("expected 0 to {}", Mps::sites(self).saturating_sub(2)),
            ));
        }
        let weights: Vec<f64> = self.schmidt(bond).iter().map(|s| s * s).collect();
        Ok(entropy_of(&weights))
    }

    fn norm_squared(&self) -> f64 {
        self.norm() * self.norm()
    }
}
