//! Infinite chains that repeat after two sites.

use pullback_tensor::{Mat, MatMut, MatRef, Threads, c64, eigh, multiply, svd};

use crate::circuit::PlacedGate;
use crate::dense::{Matrix, ONE, ZERO, identity, trace};
use crate::error::ChainError;
use crate::statevector::entropy_of;

use super::canonical::transfer;
use super::state::{Ledger, Mps};
use super::tensor::Tensor;
use super::truncate::Truncation;
use super::update::{Pair, Work};

/// Applications of the transfer matrix after which its fixed points are taken as they are.
const ITERATIONS: usize = 4000;

/// A change of a normalised fixed point that is rounding.
const FIXED: f64 = 1e-14;

/// Schmidt coefficients below this part of the largest, roots of rounded weights, are nothing.
const WEAK: f64 = 1e-8;

/// A matrix-product state of an infinite chain with a cell of two sites: bond 0 is within the cell, bond 1 leads to the
/// next one. It is kept as [`Mps`] is, but normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct InfiniteMps {
    dimension: usize,
    pub(super) tensors: [Tensor; 2],
    /// `schmidt[j]` is to the left of site `j` of a cell.
    pub(super) schmidt: [Vec<f64>; 2],
    ledger: Ledger,
}

impl InfiniteMps {
    /// A product of the states of the two sites of a cell.
    ///
    /// # Errors
    /// As [`Mps::product`].
    pub fn product(dimension: usize, cell: [Vec<c64>; 2]) -> Result<Self, ChainError> {
        let finite = Mps::product(dimension, &cell)?;
        let ledger = Ledger {
            by_bond: vec![0.0; 2],
            ..finite.ledger.clone()
        };
        let tensors = [finite.tensors[0].clone(), finite.tensors[1].clone()];
        Ok(Self {
            dimension,
            tensors,
            schmidt: [vec![1.0], vec![1.0]],
            ledger,
        })
    }

    /// States of a site.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The dimensions of bond 0 and bond 1.
    pub fn bonds(&self) -> [usize; 2] {
        [self.schmidt[1].len(), self.schmidt[0].len()]
    }

    /// The Schmidt coefficients of a bond, largest first; their squares sum to one.
    pub fn schmidt(&self, bond: usize) -> &[f64] {
        &self.schmidt[(bond + 1) % 2]
    }

    /// What truncation took since the state was made, each time from one bond of each cell; there is no bound on the
    /// distance of infinite states, and [`Ledger::error_bound`] is 0.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The von Neumann entropy across a bond, in nats.
    pub fn entropy(&self, bond: usize) -> f64 {
        let weights: Vec<f64> = self.schmidt(bond).iter().map(|s| s * s).collect();
        entropy_of(&weights)
    }

    /// Applies gates in their order, each on all cells: one on sites `(0, 1)` on every bond within a cell, one on `(1, 2)`
    /// between cells. Then it restores the canonical form if truncation or gates that are not unitary broke it.
    ///
    /// # Errors
    /// A gate is on other sites or has another dimension.
    pub fn apply(
        &mut self,
        gates: &[PlacedGate],
        truncation: Truncation,
    ) -> Result<(), ChainError> {
        let d = self.dimension;
        let before = self.ledger.discarded();
        let mut work = Work::default();
        for gate in gates {
            let bond = match gate.sites {
                (0, 1) => 0,
                (1, 2) => 1,
                (a, b) => {
                    return Err(ChainError::value(
                        "a gate of an infinite chain",
                        format!("on sites {a} and {b}"),
                        "expected (0, 1) or (1, 2)",
                    ));
                }
            };
            if gate.matrix.shape() != (d * d, d * d) {
                return Err(ChainError::value(
                    "the dimension of a gate",
                    gate.matrix.nrows(),
                    format!("expected {}", d * d),
                ));
            }
            self.update(bond, &gate.matrix, truncation, &mut work)?;
        }
        if self.ledger.discarded() > before || self.canonical_defect() > 1e-12 {
            self.restore()?;
        }
        Ok(())
    }

    fn update(
        &mut self,
        bond: usize,
        gate: &Matrix,
        truncation: Truncation,
        work: &mut Work,
    ) -> Result<(), ChainError> {
        let (left, right) = (bond, (bond + 1) % 2);
        let pair = Pair {
            schmidt: &self.schmidt[left],
            left: &self.tensors[left],
            right: &self.tensors[right],
            gate,
        };
        let mut updated = pair.update(truncation, Threads::All, work)?;
        let kept: f64 = updated.schmidt.iter().map(|s| s * s).sum();
        let scale = 1.0 / kept.sqrt();
        for s in &mut updated.schmidt {
            *s *= scale;
        }
        for x in &mut updated.left.data {
            *x *= scale;
        }
        self.ledger.by_bond[bond] += updated.discarded;
        self.ledger.max_bond = self.ledger.max_bond.max(updated.schmidt.len());
        self.tensors[left] = updated.left;
        self.tensors[right] = updated.right;
        self.schmidt[right] = updated.schmidt;
        Ok(())
    }

    /// Brings the tensors into canonical form: the fixed points of the transfer matrix of a cell from both sides become one
    /// and the squares of the Schmidt coefficients (Orús and Vidal, arXiv:0711.3960).
    ///
    /// # Errors
    /// A tensor is not finite.
    pub fn restore(&mut self) -> Result<(), ChainError> {
        // The roots of weak directions are inexact the first time; then all is near one and they are not.
        for _ in 0..3 {
            self.restore_once()?;
            if self.canonical_defect() < 1e-12 {
                break;
            }
        }
        Ok(())
    }

    fn restore_once(&mut self) -> Result<(), ChainError> {
        let [a, b] = &self.tensors;
        let n = a.left;
        let (right, eta) = fixed_point(identity(n), |r| from_right(&from_right(r, b), a));
        let start = Mat::from_fn(n, n, |i, j| {
            if i == j {
                c64::new(self.schmidt[0][i] * self.schmidt[0][i], 0.0)
            } else {
                ZERO
            }
        });
        let (left, _) = fixed_point(start, |l| {
            let env = transfer(&transfer(&column_major(l), a, a), b, b);
            MatRef::from_column_major_slice(&env, n, n).to_owned()
        });
        let (r, l) = (eigh(right.as_ref())?, eigh(left.as_ref())?);
        let largest = r.values.last().copied().unwrap_or(1.0);
        // Directions in which the state has nothing.
        let kept: Vec<usize> = (0..n).filter(|&k| r.values[k] > 1e-12 * largest).collect();
        let x = Mat::from_fn(n, kept.len(), |i, k| {
            r.u[(i, kept[k])] * r.values[kept[k]].sqrt()
        });
        let inverse = Mat::from_fn(kept.len(), n, |k, i| {
            r.u[(i, kept[k])].conj() / r.values[kept[k]].sqrt()
        });
        let y = Mat::from_fn(n, n, |k, i| {
            l.u[(i, k)].conj() * l.values[k].max(0.0).sqrt()
        });
        let middle = svd((&y * &x).as_ref())?;
        let count = middle
            .values
            .iter()
            .filter(|s| **s > WEAK * middle.values[0])
            .count()
            .max(1);
        let length = middle.values[..count]
            .iter()
            .map(|s| s * s)
            .sum::<f64>()
            .sqrt();
        let v = middle.v.subcols(0, count);
        let from = v.adjoint() * &inverse;
        let to = &x * v;
        let d = self.dimension;
        let mut first = Tensor::zeros(count, d, a.right);
        multiply(
            first.by_right_mut(),
            from.as_ref(),
            a.by_right(),
            Threads::All,
        );
        let mut last = Tensor::zeros(b.left, d, count);
        multiply(last.by_left_mut(), b.by_left(), to.as_ref(), Threads::All);
        for entry in &mut first.data {
            *entry /= eta.sqrt();
        }
        self.schmidt[0] = middle.values[..count].iter().map(|s| s / length).collect();
        self.tensors = [first, last];
        // The bond within the cell: an update that changes nothing.
        let all = Truncation::new(16_384, 0.0)?;
        let discarded = self.ledger.clone();
        self.update(0, &identity(d * d), all, &mut Work::default())?;
        self.ledger = discarded;
        Ok(())
    }

    /// How far from canonical: the largest entry of `1 − Σ B B†` and of `λ'² − Σ B† λ² B`, over both sites.
    pub fn canonical_defect(&self) -> f64 {
        let mut most = 0.0_f64;
        for j in 0..2 {
            let b = &self.tensors[j];
            let right = from_right(&identity(b.right), b);
            let weights = |s: &[f64]| {
                Mat::from_fn(s.len(), s.len(), |i, k| {
                    if i == k {
                        c64::new(s[i] * s[i], 0.0)
                    } else {
                        ZERO
                    }
                })
            };
            let env = transfer(&column_major(&weights(&self.schmidt[j])), b, b);
            let left = MatRef::from_column_major_slice(&env, b.right, b.right).to_owned();
            let left = left - weights(&self.schmidt[(j + 1) % 2]);
            let right = right - identity(b.left);
            for off in [left, right] {
                most = most.max(off.norm_max());
            }
        }
        most
    }

    /// The density matrix of one or two different sites, counted from the first of some cell, the first one's index slow.
    ///
    /// # Errors
    /// As [`Mps::reduced`].
    pub fn reduced(&self, sites: &[usize]) -> Result<Matrix, ChainError> {
        let first = sites.iter().min().map_or(0, |s| s - s % 2);
        let shifted: Vec<usize> = sites.iter().map(|s| s - first).collect();
        let len = shifted.iter().max().map_or(2, |s| s + 1).max(2);
        let window = Mps {
            dimension: self.dimension,
            tensors: (0..len).map(|j| self.tensors[j % 2].clone()).collect(),
            schmidt: (0..len).map(|j| self.schmidt[j % 2].clone()).collect(),
            ledger: Ledger::default(),
        };
        window.reduced(&shifted)
    }

    /// Tensors, coefficients and ledger as plain numbers, as those of a finite state of two sites.
    pub(crate) fn parts(&self) -> super::state::Parts {
        super::state::Parts {
            bonds: vec![
                self.schmidt[0].len() as u64,
                self.schmidt[1].len() as u64,
                self.schmidt[0].len() as u64,
            ],
            schmidt: self.schmidt.concat(),
            tensors: self
                .tensors
                .iter()
                .flat_map(|t| t.data.iter().copied())
                .collect(),
        }
    }

    /// From what [`InfiniteMps::parts`] gave; `None` if the numbers do not fit together.
    pub(crate) fn from_parts(
        dimension: usize,
        parts: &super::state::Parts,
        ledger: Ledger,
    ) -> Option<Self> {
        let bonds: Vec<usize> = parts.bonds.iter().map(|&b| b as usize).collect();
        let &[n, m, same] = bonds.as_slice() else {
            return None;
        };
        let size = n.checked_mul(dimension)?.checked_mul(m)?;
        if n != same
            || n == 0
            || m == 0
            || parts.schmidt.len() != n + m
            || parts.tensors.len() != 2 * size
            || ledger.by_bond.len() != 2
        {
            return None;
        }
        let (first, last) = parts.tensors.split_at(size);
        let (outer, inner) = parts.schmidt.split_at(n);
        Some(Self {
            dimension,
            tensors: [
                Tensor::new(n, dimension, m, first.to_vec()),
                Tensor::new(m, dimension, n, last.to_vec()),
            ],
            schmidt: [outer.to_vec(), inner.to_vec()],
            ledger,
        })
    }
}

pub(super) fn column_major(m: &Matrix) -> Vec<c64> {
    (0..m.ncols())
        .flat_map(|j| m.col_as_slice(j).iter().copied())
        .collect()
}

pub(super) fn square(x: &[c64], n: usize) -> Matrix {
    MatRef::from_column_major_slice(x, n, n).to_owned()
}

/// `Σ_p B_p R B_p†`.
pub(super) fn from_right(r: &Matrix, b: &Tensor) -> Matrix {
    let mut pushed = Tensor::zeros(b.left, b.physical, b.right);
    multiply(pushed.by_left_mut(), b.by_left(), r.as_ref(), Threads::All);
    let mut out = vec![ZERO; b.left * b.left];
    let adjoint = b.by_right().adjoint().to_owned();
    multiply(
        MatMut::from_column_major_slice_mut(&mut out, b.left, b.left),
        pushed.by_right(),
        adjoint.as_ref(),
        Threads::All,
    );
    square(&out, b.left)
}

/// The fixed point of a positive map with its eigenvalue, from a start near it; its trace is that of the start.
fn fixed_point(start: Matrix, map: impl Fn(&Matrix) -> Matrix) -> (Matrix, f64) {
    let total = trace(&start).re;
    let n = start.nrows();
    let mut x = start;
    let mut eta = 1.0;
    for _ in 0..ITERATIONS {
        let y = map(&x);
        eta = trace(&y).re / total;
        let y = Mat::from_fn(n, n, |i, j| {
            (y[(i, j)] + y[(j, i)].conj()) * (0.5 / eta) * ONE
        });
        let change = (&y - &x).norm_l2();
        let done = change <= FIXED * y.norm_l2();
        x = y;
        if done {
            break;
        }
    }
    (x, eta)
}
