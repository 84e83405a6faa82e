//! Operators of a stretch of the chain as vectors, and how layers of gates move them.

use std::sync::Arc;

use pullback_tensor::{Mat, c64};

use crate::circuit::PlacedGate;
use crate::dense::{Matrix, kron, scaled};
use crate::error::ChainError;
use crate::qca::Qca;
use crate::statevector::{Plan, StateVector};

/// An orthonormal basis of Hermitian operators, `tr(B_a B_b) = δ_ab`; the first is the identity, over `√d`. For qubits
/// the others are X, Y, Z over `√2`, for more states the matrices of Gell-Mann.
pub(super) fn basis(d: usize) -> Vec<Matrix> {
    let real = |x: f64| c64::new(x, 0.0);
    let mut out = vec![scaled(&Mat::identity(d, d), real(1.0 / (d as f64).sqrt()))];
    let half = 0.5_f64.sqrt();
    for i in 0..d {
        for j in i + 1..d {
            let mut x = Matrix::zeros(d, d);
            x[(i, j)] = real(half);
            x[(j, i)] = real(half);
            let mut y = Matrix::zeros(d, d);
            y[(i, j)] = c64::new(0.0, -half);
            y[(j, i)] = c64::new(0.0, half);
            out.extend([x, y]);
        }
    }
    for k in 1..d {
        let norm = 1.0 / ((k * (k + 1)) as f64).sqrt();
        let mut z = Matrix::zeros(d, d);
        for i in 0..k {
            z[(i, i)] = real(norm);
        }
        z[(k, k)] = real(-norm * k as f64);
        out.push(z);
    }
    out
}

/// `R_ab = tr(B_a U B_b U†)` over the products of the basis: how a gate moves operators of its sites forward in time. It is
/// real and orthogonal.
pub(super) fn transfer(u: &Matrix, basis: &[Matrix]) -> Matrix {
    let n = basis.len();
    let products: Vec<Matrix> = (0..n * n)
        .map(|i| kron(&basis[i / n], &basis[i % n]))
        .collect();
    let moved: Vec<Matrix> = products.iter().map(|b| u * b * u.adjoint()).collect();
    Mat::from_fn(n * n, n * n, |i, j| {
        // tr(AB) = Σ A_kl B_lk.
        let (a, b) = (&products[i], &moved[j]);
        let mut sum = 0.0;
        for k in 0..a.nrows() {
            for l in 0..a.nrows() {
                sum += (a[(k, l)] * b[(l, k)]).re;
            }
        }
        c64::new(sum, 0.0)
    })
}

/// Operators of the sites `first..first + width` of an infinite chain, as coefficients over the products of the basis.
pub(super) struct Stretch {
    first: isize,
    state: StateVector<f64>,
}

impl Stretch {
    /// The product of basis operators, given as `(site, number in the basis)`; the identity elsewhere.
    pub(super) fn new(
        first: isize,
        width: usize,
        size: usize,
        string: &[(isize, usize)],
    ) -> Result<Self, ChainError> {
        let locals: Vec<Vec<c64>> = (0..width)
            .map(|k| {
                let here = string.iter().find(|(site, _)| *site == first + k as isize);
                let level = here.map_or(0, |(_, level)| *level);
                (0..size)
                    .map(|i| c64::new(f64::from(u8::from(i == level)), 0.0))
                    .collect()
            })
            .collect();
        Ok(Self {
            first,
            state: StateVector::product(size, &locals)?,
        })
    }

    /// The first site of the stretch.
    pub(super) fn first(&self) -> isize {
        self.first
    }

    /// Coefficients; the first site is the slowest index.
    pub(super) fn coefficients(&self) -> &[f64] {
        self.state.parts().0
    }

    /// The lowest and the highest site on which the operator is not the identity.
    pub(super) fn support(&self) -> Option<(isize, isize)> {
        let (size, width) = (self.state.dimension(), self.state.sites());
        let (mut low, mut high) = (width, 0);
        for (index, x) in self.coefficients().iter().enumerate() {
            if x.abs() < 1e-11 {
                continue;
            }
            let mut rest = index;
            for site in (0..width).rev() {
                if rest % size > 0 {
                    low = low.min(site);
                    high = high.max(site);
                }
                rest /= size;
            }
        }
        (low <= high).then(|| (self.first + low as isize, self.first + high as isize))
    }
}

/// The layers of an automaton as they move operators.
pub(super) struct Movement {
    pub(super) basis: Vec<Matrix>,
    layers: Vec<(bool, Arc<Matrix>)>,
    shift: isize,
}

impl Movement {
    pub(super) fn new(qca: &Qca) -> Self {
        let basis = basis(qca.dimension());
        let layers = qca
            .layers()
            .iter()
            .map(|layer| (layer.even, Arc::new(transfer(&layer.gate, &basis))))
            .collect();
        Self {
            basis,
            layers,
            shift: qca.shift(),
        }
    }

    /// Operators in the basis.
    pub(super) fn size(&self) -> usize {
        self.basis.len()
    }

    /// How far an operator may grow in one step to each side.
    pub(super) fn reach(&self) -> usize {
        self.layers.len()
    }

    /// One step forward, `O → U O U†`. The operator must not come to the ends of the stretch on the way.
    pub(super) fn step(&self, stretch: &mut Stretch) -> Result<(), ChainError> {
        let width = stretch.state.sites();
        let mut gates = Vec::new();
        for (even, matrix) in &self.layers {
            let offset = (stretch.first.rem_euclid(2) == 0) != *even;
            for k in (usize::from(offset)..width - 1).step_by(2) {
                gates.push(PlacedGate {
                    sites: (k, k + 1),
                    matrix: matrix.clone(),
                });
            }
        }
        let plan = Plan::new(self.size(), width, &gates)?;
        stretch.state.apply(&plan);
        stretch.first += self.shift;
        Ok(())
    }
}
