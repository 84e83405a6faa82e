//! Observables pulled back through an automaton: the Heisenberg picture.
//!
//! An operator is kept as a matrix-product state whose sites have `d²` states, the entries of a matrix; a gate acts on it as
//! `O → g† O g`, which is unitary there. Norms are those of `⟨A, B⟩ = Tr(A† B) / Tr 1`, so that Pauli strings have length one.

use std::sync::Arc;

use pullback_tensor::{Mat, c64};

use crate::circuit::PlacedGate;
use crate::dense::{Matrix, ZERO, identity};
use crate::error::ChainError;
use crate::hamiltonian::Boundary;
use crate::measure::Measure;
use crate::mps::{Ledger, Mps, Truncation};
use crate::qca::Qca;

/// Weight of other operators than the identity from which on a site belongs to the support.
const SUPPORT: f64 = 1e-12;

/// An operator on an open chain that an automaton pulls back step by step.
#[derive(Clone, Debug)]
pub struct PulledBack {
    dimension: usize,
    state: Mps,
    /// The gates of a step in the order in which they act on operators, the last one of the step first.
    gates: Vec<PlacedGate>,
}

impl PulledBack {
    /// `operator` (`[d, d]`) on one site of a chain of so many, to be pulled back by an automaton without a shift.
    ///
    /// # Errors
    /// The chain is too short, there is no such site, the operator is zero or has another dimension, or the automaton has
    /// a shift.
    pub fn new(
        qca: &Qca,
        operator: &Matrix,
        site: usize,
        sites: usize,
    ) -> Result<Self, ChainError> {
        let d = qca.dimension();
        if site >= sites {
            return Err(ChainError::value(
                "the site of the operator",
                site,
                format!("expected 0 to {}", sites.saturating_sub(1)),
            ));
        }
        if operator.shape() != (d, d) || operator.norm_l2().is_nan() || operator.norm_l2() == 0.0 {
            return Err(ChainError::value(
                "the operator",
                format!("{} × {}", operator.nrows(), operator.ncols()),
                format!("expected {d} × {d}, and not zero"),
            ));
        }
        let step = qca.step(sites, Boundary::Open)?;
        let mut known: Vec<(*const Matrix, Arc<Matrix>)> = Vec::new();
        let mut gates = Vec::with_capacity(step.len());
        for gate in step.iter().rev() {
            let key = Arc::as_ptr(&gate.matrix);
            let found = known.iter().find(|(k, _)| *k == key);
            let matrix = if let Some((_, matrix)) = found {
                matrix.clone()
            } else {
                let matrix = Arc::new(conjugation(&gate.matrix, d));
                known.push((key, matrix.clone()));
                matrix
            };
            gates.push(PlacedGate {
                sites: gate.sites,
                matrix,
            });
        }
        let locals: Vec<Vec<c64>> = (0..sites)
            .map(|j| {
                if j == site {
                    entries(operator)
                } else {
                    entries(&identity(d))
                }
            })
            .collect();
        Ok(Self {
            dimension: d,
            state: Mps::product(d * d, &locals)?,
            gates,
        })
    }

    /// One more step.
    ///
    /// # Errors
    /// None that can be met: the gates fit the chain.
    pub fn step(&mut self, truncation: Truncation) -> Result<(), ChainError> {
        self.state.apply(&self.gates, truncation)
    }

    /// Sites of the chain.
    pub fn sites(&self) -> usize {
        self.state.sites()
    }

    /// What truncation took.
    pub fn ledger(&self) -> &Ledger {
        self.state.ledger()
    }

    /// The squared norm, `Tr(O† O) / Tr 1`.
    pub fn norm_squared(&self) -> f64 {
        self.state.norm_squared()
    }

    /// For every site the part of the squared norm whose strings are not the identity there.
    ///
    /// # Errors
    /// None that can be met: the sites exist.
    pub fn weights(&self) -> Result<Vec<f64>, ChainError> {
        let one = entries(&identity(self.dimension));
        (0..self.sites())
            .map(|j| {
                let rho = self.state.reduced(&[j])?;
                let mut part = ZERO;
                for (a, x) in one.iter().enumerate() {
                    for (b, y) in one.iter().enumerate() {
                        part += x.conj() * rho[(a, b)] * y;
                    }
                }
                Ok((1.0 - part.re).max(0.0))
            })
            .collect()
    }

    /// The first and the last site on which it is not the identity; `None` for a multiple of the identity.
    ///
    /// # Errors
    /// As [`PulledBack::weights`].
    pub fn support(&self) -> Result<Option<(usize, usize)>, ChainError> {
        let weights = self.weights()?;
        let first = weights.iter().position(|w| *w > SUPPORT);
        let last = weights.iter().rposition(|w| *w > SUPPORT);
        Ok(first.zip(last))
    }

    /// The operator entanglement entropy across every bond, in nats.
    ///
    /// # Errors
    /// None that can be met: the bonds exist.
    pub fn entropies(&self) -> Result<Vec<f64>, ChainError> {
        (0..self.sites() - 1)
            .map(|bond| Measure::entropy(&self.state, bond))
            .collect()
    }

    /// `⟨P_j, O⟩` for an operator `P` (`[d, d]`) on each site `j`: for operators without trace the correlations at infinite
    /// temperature.
    ///
    /// # Errors
    /// The operator is zero or has another dimension.
    pub fn overlaps(&self, operator: &Matrix) -> Result<Vec<c64>, ChainError> {
        let one = entries(&identity(self.dimension));
        let mut locals = vec![one.clone(); self.sites()];
        (0..self.sites())
            .map(|j| {
                locals[j] = entries(operator);
                let other = Mps::product(self.dimension * self.dimension, &locals)?;
                locals[j].clone_from(&one);
                other.inner(&self.state)
            })
            .collect()
    }

    /// `⟨ψ|O|ψ⟩` of a product of one normalised state a site.
    ///
    /// # Errors
    /// The number of states or their dimension is another.
    pub fn in_product_state(&self, locals: &[Vec<c64>]) -> Result<c64, ChainError> {
        if locals.len() != self.sites() || locals.iter().any(|x| x.len() != self.dimension) {
            return Err(ChainError::value(
                "the product state",
                locals.len(),
                format!(
                    "expected {} states of dimension {}",
                    self.sites(),
                    self.dimension
                ),
            ));
        }
        // ⟨ψ|O|ψ⟩ = Tr(|ψ⟩⟨ψ| O), and a projector has d times less norm than its entries here say.
        let d = self.dimension as f64;
        let projectors: Vec<Vec<c64>> = locals
            .iter()
            .map(|x| {
                let projector = Mat::from_fn(x.len(), x.len(), |i, j| x[i] * x[j].conj() * d);
                entries(&projector)
            })
            .collect();
        let other = Mps::product(self.dimension * self.dimension, &projectors)?;
        other.inner(&self.state)
    }
}

/// The entries of a matrix, rows slow, in the norm in which the identity has length one.
fn entries(a: &Matrix) -> Vec<c64> {
    let (d, root) = (a.nrows(), (a.nrows() as f64).sqrt());
    (0..d * d).map(|k| a[(k / d, k % d)] / root).collect()
}

/// `O → g† O g` on the entries of two sites.
fn conjugation(g: &Matrix, d: usize) -> Matrix {
    let n = d * d;
    Mat::from_fn(n * n, n * n, |to, from| {
        // (p p') of the left site slow, then (q q') of the right one.
        let split = |k: usize| (k / n / d, k / n % d, k % n / d, k % n % d);
        let ((a, x, b, y), (s, u, t, v)) = (split(to), split(from));
        g[(s * d + t, a * d + b)].conj() * g[(u * d + v, x * d + y)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dense::{adjoint, distance};
    use crate::gate::haar;

    #[test]
    fn a_gate_conjugates() {
        let g = haar(4, 1).unwrap();
        let o = haar(4, 2).unwrap();
        let known = adjoint(&g) * &o * &g;
        let flat = |m: &Matrix| {
            // The order of entries in which two sites stand.
            Mat::from_fn(16, 1, |k, _| {
                let (a, x, b, y) = (k / 8, k / 4 % 2, k / 2 % 2, k % 2);
                m[(a * 2 + b, x * 2 + y)]
            })
        };
        let found = conjugation(&g, 2) * flat(&o);
        assert!(distance(&found, &flat(&known)) < 1e-13);
    }
}
