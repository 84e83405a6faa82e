//! Matrix-product operators of Hamiltonians.

use pullback_tensor::{Mat, MatMut, MatRef, Threads, c64, multiply, multiply_adjoint, svd};

use crate::dense::{Matrix, ONE, ZERO, identity, scaled};
use crate::error::ChainError;
use crate::hamiltonian::{Boundary, Hamiltonian};

use super::tensor::Tensor;

/// The operators of a site between the channels of its bonds; those that are zero are left out.
#[derive(Clone, Debug)]
pub(super) struct SiteOperator {
    pub(super) left: usize,
    pub(super) right: usize,
    pub(super) entries: Vec<(usize, usize, Matrix)>,
}

/// A sum of terms on neighbouring sites. Between two sites channel 0 means that no term has begun, the last one that one is
/// done, and those in between that the left half of a term of this bond is placed.
#[derive(Clone, Debug)]
pub struct Mpo {
    pub(super) sites: Vec<SiteOperator>,
}

impl Mpo {
    /// `H − shift` on an open chain. The term of each bond is cut by its operator Schmidt decomposition.
    ///
    /// # Errors
    /// There are fewer than 2 sites.
    pub fn new(h: &Hamiltonian, sites: usize, shift: f64) -> Result<Self, ChainError> {
        if sites < 2 {
            return Err(ChainError::value(
                "the number of sites",
                sites,
                "expected 2 or more",
            ));
        }
        let d = h.site().dimension();
        let each = shift / (sites - 1) as f64;
        let mut halves = Vec::with_capacity(sites - 1);
        for bond in 0..sites - 1 {
            let constant = scaled(&identity(d * d), c64::new(each, 0.0));
            let term = h.bond_term(bond, sites, Boundary::Open) - constant;
            // [p p', q q'] of the entry [(p q), (p' q')].
            let cut = Mat::from_fn(d * d, d * d, |a, b| {
                term[((a / d) * d + b / d, (a % d) * d + b % d)]
            });
            let svd = svd(cut.as_ref())?;
            let count = svd
                .values
                .iter()
                .filter(|s| **s > 1e-14 * svd.values[0])
                .count();
            let pair = |k: usize| {
                let root = svd.values[k].sqrt();
                let a = Mat::from_fn(d, d, |p, q| svd.u[(p * d + q, k)] * root);
                let b = Mat::from_fn(d, d, |p, q| svd.v[(p * d + q, k)].conj() * root);
                (a, b)
            };
            halves.push((0..count).map(pair).collect::<Vec<_>>());
        }
        let channels = |bond: usize| halves[bond].len() + 2;
        let operators = (0..sites).map(|j| {
            let (first, last) = (j == 0, j + 1 == sites);
            let left = if first { 1 } else { channels(j - 1) };
            let right = if last { 1 } else { channels(j) };
            let done = right - 1;
            let mut entries = Vec::new();
            if !last {
                entries.push((0, 0, identity(d)));
                for (k, (a, _)) in halves[j].iter().enumerate() {
                    entries.push((0, 1 + k, a.clone()));
                }
            }
            if !first {
                entries.push((left - 1, done, identity(d)));
                for (k, (_, b)) in halves[j - 1].iter().enumerate() {
                    entries.push((1 + k, done, b.clone()));
                }
            }
            SiteOperator {
                left,
                right,
                entries,
            }
        });
        Ok(Self {
            sites: operators.collect(),
        })
    }

    /// The largest number of channels of a bond.
    pub fn bond(&self) -> usize {
        self.sites.iter().map(|site| site.left).max().unwrap_or(1)
    }

    /// `⟨ψ|O†O|ψ⟩` of right-canonical tensors, for Hermitian `O`.
    pub(super) fn squared(&self, tensors: &[Tensor]) -> f64 {
        let mut env = vec![vec![identity(1)]];
        for (operator, tensor) in self.sites.iter().zip(tensors) {
            let mut out: Vec<Vec<Matrix>> = (0..operator.right)
                .map(|_| {
                    (0..operator.right)
                        .map(|_| Matrix::zeros(tensor.right, tensor.right))
                        .collect()
                })
                .collect();
            for (a, row) in env.iter().enumerate() {
                for (b, x) in row.iter().enumerate() {
                    let mut pushed = Tensor::zeros(x.nrows(), tensor.physical, tensor.right);
                    multiply(
                        pushed.by_right_mut(),
                        x.as_ref(),
                        tensor.by_right(),
                        Threads::All,
                    );
                    for (_, to, first) in operator.entries.iter().filter(|entry| entry.0 == a) {
                        let once = pushed.with_operator(first);
                        for (_, other, second) in
                            operator.entries.iter().filter(|entry| entry.0 == b)
                        {
                            let twice = once.with_operator(second);
                            let mut sum = Matrix::zeros(tensor.right, tensor.right);
                            multiply_adjoint(
                                sum.as_mut(),
                                tensor.by_left(),
                                twice.by_left(),
                                Threads::All,
                            );
                            out[*to][*other] += sum;
                        }
                    }
                }
            }
            env = out;
        }
        env[0][0][(0, 0)].re
    }
}

impl Tensor {
    /// `Σ_q O[p, q] B[l, q, r]`.
    pub(super) fn with_operator(&self, operator: &Matrix) -> Self {
        let mut out = Self::zeros(self.left, self.physical, self.right);
        out.add_operator(self, operator.transpose().to_owned().as_ref());
        out
    }

    /// `B[l, p, r] += Σ_q X[l, q, r] O[q, p]`.
    pub(super) fn add_operator(&mut self, x: &Self, turned: MatRef<'_, c64>) {
        let block = self.left * self.physical;
        for (to, from) in self
            .data
            .chunks_exact_mut(block)
            .zip(x.data.chunks_exact(block))
        {
            for p in 0..self.physical {
                let to = &mut to[p * self.left..(p + 1) * self.left];
                for q in 0..self.physical {
                    let factor = turned[(q, p)];
                    if factor == ZERO {
                        continue;
                    }
                    let from = &from[q * self.left..(q + 1) * self.left];
                    if factor == ONE {
                        for (to, from) in to.iter_mut().zip(from) {
                            *to += from;
                        }
                    } else {
                        for (to, from) in to.iter_mut().zip(from) {
                            *to += from * factor;
                        }
                    }
                }
            }
        }
    }
}

/// What stands to the left of a site, for every channel `[bra, ket]`, with one more left-canonical tensor.
pub(super) fn push_left(env: &[Matrix], operator: &SiteOperator, a: &Tensor) -> Vec<Matrix> {
    let pushed: Vec<Tensor> = env
        .iter()
        .map(|x| {
            let mut out = Tensor::zeros(a.left, a.physical, a.right);
            multiply(out.by_right_mut(), x.as_ref(), a.by_right(), Threads::All);
            out
        })
        .collect();
    (0..operator.right)
        .map(|to| {
            let mut sum = Tensor::zeros(a.left, a.physical, a.right);
            for (from, _, matrix) in operator.entries.iter().filter(|entry| entry.1 == to) {
                sum.add_operator(&pushed[*from], matrix.transpose().to_owned().as_ref());
            }
            let mut out = Matrix::zeros(a.right, a.right);
            multiply_adjoint(out.as_mut(), a.by_left(), sum.by_left(), Threads::All);
            out
        })
        .collect()
}

/// What stands to the right of a site, for every channel `[ket, bra]`, with one more right-canonical tensor.
pub(super) fn push_right(env: &[Matrix], operator: &SiteOperator, b: &Tensor) -> Vec<Matrix> {
    let pushed: Vec<Tensor> = env
        .iter()
        .map(|x| {
            let mut out = Tensor::zeros(b.left, b.physical, b.right);
            multiply(out.by_left_mut(), b.by_left(), x.as_ref(), Threads::All);
            out
        })
        .collect();
    let adjoint = b.by_right().adjoint().to_owned();
    (0..operator.left)
        .map(|to| {
            let mut sum = Tensor::zeros(b.left, b.physical, b.right);
            for (_, from, matrix) in operator.entries.iter().filter(|entry| entry.0 == to) {
                sum.add_operator(&pushed[*from], matrix.transpose().to_owned().as_ref());
            }
            let mut out = Matrix::zeros(b.left, b.left);
            multiply(out.as_mut(), sum.by_right(), adjoint.as_ref(), Threads::All);
            out
        })
        .collect()
}

/// The operators of two neighbouring sites between their outer channels, `[q q', p p']` turned for
/// [`Tensor::add_operator`], the left site's index fast.
pub(super) fn joined(left: &SiteOperator, right: &SiteOperator) -> Vec<(usize, usize, Matrix)> {
    let mut out: Vec<(usize, usize, Matrix)> = Vec::new();
    for (from, middle, a) in &left.entries {
        for (_, to, b) in right.entries.iter().filter(|entry| entry.0 == *middle) {
            let product = crate::dense::kron(b, a).transpose().to_owned();
            match out
                .iter_mut()
                .find(|entry| (entry.0, entry.1) == (*from, *to))
            {
                Some(entry) => entry.2 += product,
                None => out.push((*from, *to, product)),
            }
        }
    }
    out
}

/// A matrix over the memory of a vector.
pub(super) fn over(x: &mut [c64], rows: usize, columns: usize) -> MatMut<'_, c64> {
    MatMut::from_column_major_slice_mut(x, rows, columns)
}
