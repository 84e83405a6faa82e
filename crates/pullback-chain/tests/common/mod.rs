//! Oracles that share no code with the engines: plain loops over indices, free fermions.
#![allow(dead_code, clippy::unwrap_used, clippy::missing_panics_doc)]

use pullback_chain::dense::{Matrix, exp};
use pullback_chain::{Boundary, Hamiltonian, PlacedGate, Site};
use pullback_tensor::{Mat, c64, eigh};

pub(crate) fn real(x: f64) -> c64 {
    c64::new(x, 0.0)
}

/// Adds `matrix` on two sites of a state of `sites` sites, index by index: `out += matrix · x`.
pub(crate) fn add_two_site(
    matrix: &Matrix,
    (a, b): (usize, usize),
    d: usize,
    sites: usize,
    x: &[c64],
    out: &mut [c64],
) {
    let stride = |site: usize| d.pow((sites - 1 - site) as u32);
    let (p, q) = (stride(a), stride(b));
    for i in 0..x.len() {
        let (u, v) = (i / p % d, i / q % d);
        let base = i - u * p - v * q;
        let mut sum = c64::new(0.0, 0.0);
        for s in 0..d {
            for t in 0..d {
                sum += matrix[(u * d + v, s * d + t)] * x[base + s * p + t * q];
            }
        }
        out[i] += sum;
    }
}

pub(crate) fn apply_gates(
    gates: &[PlacedGate],
    d: usize,
    sites: usize,
    mut x: Vec<c64>,
) -> Vec<c64> {
    for gate in gates {
        let mut out = vec![c64::new(0.0, 0.0); x.len()];
        add_two_site(&gate.matrix, gate.sites, d, sites, &x, &mut out);
        x = out;
    }
    x
}

/// `H x`.
pub(crate) fn times_hamiltonian(
    h: &Hamiltonian,
    sites: usize,
    boundary: Boundary,
    x: &[c64],
) -> Vec<c64> {
    let d = h.site().dimension();
    let mut out = vec![c64::new(0.0, 0.0); x.len()];
    for bond in 0..boundary.bonds(sites) {
        let term = h.bond_term(bond, sites, boundary);
        add_two_site(&term, (bond, (bond + 1) % sites), d, sites, x, &mut out);
    }
    out
}

/// `exp(-i H t) x` by the Taylor series, in steps short enough that it converges at once.
pub(crate) fn evolve_exactly(
    h: &Hamiltonian,
    sites: usize,
    boundary: Boundary,
    t: f64,
    x: &[c64],
) -> Vec<c64> {
    let size: f64 = (0..boundary.bonds(sites))
        .map(|b| h.bond_term(b, sites, boundary).norm_l2())
        .sum();
    let steps = (size * t).ceil().max(1.0) as usize;
    let dt = t / steps as f64;
    let mut x = x.to_vec();
    for _ in 0..steps {
        let mut term = x.clone();
        for k in 1..30 {
            term = times_hamiltonian(h, sites, boundary, &term);
            for (sum, term) in x.iter_mut().zip(&mut term) {
                *term *= c64::new(0.0, -dt / f64::from(k));
                *sum += *term;
            }
        }
    }
    x
}

pub(crate) fn overlap(x: &[c64], y: &[c64]) -> c64 {
    x.iter().zip(y).map(|(x, y)| x.conj() * y).sum()
}

/// Numbers in [−½, ½).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn real(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
    }

    pub(crate) fn state(&mut self, len: usize) -> Vec<c64> {
        let x: Vec<c64> = (0..len)
            .map(|_| c64::new(self.real(), self.real()))
            .collect();
        let norm = x.iter().map(c64::norm_sqr).sum::<f64>().sqrt();
        x.iter().map(|x| x / norm).collect()
    }
}

/// The open Ising chain `−ΣZZ − gΣX` as free Majorana fermions `a_j = (Π_{k<j} X_k) Z_j`, `b_j = (Π_{k<j} X_k) Y_j`:
/// `X_j = i a_j b_j` and `Z_j Z_{j+1} = i b_j a_{j+1}`. Holds `Γ_mn = i/2 ⟨[c_m, c_n]⟩`, ordered `a_0 b_0 a_1 b_1 …`.
pub(crate) struct FreeIsing {
    sites: usize,
    generator: Mat<f64>,
    pub(crate) gamma: Mat<f64>,
    g: f64,
}

impl FreeIsing {
    /// All spins along +x.
    pub(crate) fn plus(sites: usize, g: f64) -> Self {
        let n = 2 * sites;
        let mut generator = Mat::<f64>::zeros(n, n);
        let mut gamma = Mat::<f64>::zeros(n, n);
        // A term i α c_m c_n of H makes dc/dt = A c with A_mn = 2α.
        let mut term = |m: usize, k: usize, alpha: f64| {
            generator[(m, k)] += 2.0 * alpha;
            generator[(k, m)] -= 2.0 * alpha;
        };
        for j in 0..sites {
            term(2 * j, 2 * j + 1, -g);
            if j + 1 < sites {
                term(2 * j + 1, 2 * j + 2, -1.0);
            }
            gamma[(2 * j, 2 * j + 1)] = 1.0;
            gamma[(2 * j + 1, 2 * j)] = -1.0;
        }
        Self {
            sites,
            generator,
            gamma,
            g,
        }
    }

    pub(crate) fn evolve(&mut self, t: f64) {
        let n = 2 * self.sites;
        let a = Mat::from_fn(n, n, |i, j| real(self.generator[(i, j)] * t));
        let u = exp(&a).unwrap();
        let u = Mat::from_fn(n, n, |i, j| u[(i, j)].re);
        self.gamma = &u * &self.gamma * u.transpose();
    }

    pub(crate) fn x(&self, j: usize) -> f64 {
        self.gamma[(2 * j, 2 * j + 1)]
    }

    pub(crate) fn zz(&self, j: usize) -> f64 {
        self.gamma[(2 * j + 1, 2 * j + 2)]
    }

    pub(crate) fn energy(&self) -> f64 {
        let zz: f64 = (0..self.sites - 1).map(|j| self.zz(j)).sum();
        let x: f64 = (0..self.sites).map(|j| self.x(j)).sum();
        -zz - self.g * x
    }

    /// Of sites `0..=bond`, in nats.
    pub(crate) fn entropy(&self, bond: usize) -> f64 {
        let n = 2 * (bond + 1);
        let h = Mat::from_fn(n, n, |i, j| c64::new(0.0, self.gamma[(i, j)]));
        let values = eigh(h.as_ref()).unwrap().values;
        let part = |p: f64| if p > 1e-300 { -p * p.ln() } else { 0.0 };
        values
            .iter()
            .filter(|v| **v > 0.0)
            .map(|v| part(f64::midpoint(1.0, *v)) + part(((1.0 - v) / 2.0).max(0.0)))
            .sum()
    }
}

pub(crate) fn qubit(name: &str) -> Matrix {
    Site::QUBIT.operator(name).unwrap()
}
