//! Gates that move free fermions, and their dispersion.

use std::f64::consts::TAU;

use pullback_tensor::{Mat, c64, eigenvalues};
use serde::Serialize;

use crate::dense::{Matrix, ZERO, adjoint, kron};
use crate::error::ChainError;
use crate::qca::{Layer, Qca};
use crate::site::Site;

/// Momenta at which the dispersion is told.
const MOMENTA: usize = 64;

/// The quasi-energies of an automaton of free fermions.
#[derive(Clone, Debug, Serialize)]
pub struct Dispersion {
    /// Momenta of a cell of two sites, from 0 to 2π.
    pub momentum: Vec<f64>,
    /// At each momentum the quasi-energies of the modes, from −π to π; particles and holes both.
    pub energies: Vec<Vec<f64>>,
    /// The largest group velocity, in sites a step.
    pub velocity: f64,
    /// The smallest distance between two bands, zero where they touch.
    pub gap: f64,
}

/// Which Pauli matrices stand for a fermion's two Majorana operators, and which for the string: chains of fermions come in
/// three orientations.
const ORIENTATIONS: [[&str; 3]; 3] = [["X", "Y", "Z"], ["Y", "Z", "X"], ["Z", "X", "Y"]];

/// The Majorana operators of two qubits: with the string along Z, `X1`, `Y1`, `ZX`, `ZY`.
fn majoranas(orientation: [&str; 3]) -> Vec<Matrix> {
    let one = |name: &str| {
        Site::QUBIT
            .operator(name)
            .unwrap_or_else(|| Matrix::zeros(2, 2))
    };
    let [p, q, string] = orientation.map(one);
    let i = one("I");
    vec![
        kron(&p, &i),
        kron(&q, &i),
        kron(&string, &p),
        kron(&string, &q),
    ]
}

/// The rotation by which a gate moves the Majorana operators of its sites, `U c_n U† = Σ_m R_mn c_m`, if it is one: then
/// the gate is an exponential of products of two.
fn rotation(u: &Matrix, orientation: [&str; 3]) -> Option<Mat<f64>> {
    let c = majoranas(orientation);
    let mut r = Mat::<f64>::zeros(4, 4);
    for n in 0..4 {
        let moved = u * &c[n] * adjoint(u);
        let mut norm = 0.0;
        for m in 0..4 {
            let product = &c[m] * &moved;
            let overlap: c64 = (0..4).map(|i| product[(i, i)]).sum::<c64>() / 4.0;
            r[(m, n)] = overlap.re;
            norm += overlap.norm_sqr();
        }
        if (norm - 1.0).abs() > 1e-9 {
            return None;
        }
    }
    // A reflection changes the sign of the string that goes with fermions to its right.
    (r.determinant() > 0.0).then_some(r)
}

/// The dispersion, if every layer of the automaton moves free fermions.
///
/// # Errors
/// Eigenvalues could not be found.
pub fn dispersion(qca: &Qca) -> Result<Option<Dispersion>, ChainError> {
    if qca.site() != Site::QUBIT || qca.shift() != 0 || qca.layers().is_empty() {
        return Ok(None);
    }
    let along = |orientation| -> Option<Vec<(bool, Mat<f64>)>> {
        let layers = qca.layers().iter();
        layers
            .map(|Layer { even, gate }| Some((*even, rotation(gate, orientation)?)))
            .collect()
    };
    let rotations = ORIENTATIONS.into_iter().find_map(along);
    let Some(rotations) = rotations else {
        return Ok(None);
    };
    let bloch = |k: f64| {
        let mut all = Mat::<c64>::identity(4, 4);
        for (even, r) in &rotations {
            all = bloch_matrix(*even, r, k) * all;
        }
        all
    };
    let mut out = Dispersion {
        momentum: Vec::new(),
        energies: Vec::new(),
        velocity: 0.0,
        gap: f64::INFINITY,
    };
    for m in 0..=MOMENTA {
        let k = TAU * m as f64 / MOMENTA as f64;
        let values = eigenvalues(bloch(k).as_ref())?;
        let mut energies: Vec<f64> = values.iter().map(|x| -x.arg()).collect();
        energies.sort_by(f64::total_cmp);
        out.gap = out.gap.min(band_gap(&energies));
        out.momentum.push(k);
        out.energies.push(energies);
    }
    out.velocity = 2.0 * fastest(&bloch)?;
    Ok(Some(out))
}

/// A layer in the space of the four Majorana operators of a cell, for waves `e^{ikx}` over cells.
fn bloch_matrix(even: bool, r: &Mat<f64>, k: f64) -> Mat<c64> {
    if even {
        return Mat::from_fn(4, 4, |i, j| c64::new(r[(i, j)], 0.0));
    }
    // The left site of an odd bond is the right one of a cell; its right site is the left one of the next cell.
    let place = |i: usize| ((i + 2) % 4, if i < 2 { 0.0 } else { 1.0 });
    let mut out = Mat::from_fn(4, 4, |_, _| ZERO);
    for i in 0..4 {
        for j in 0..4 {
            let ((row, to), (column, from)) = (place(i), place(j));
            out[(row, column)] = c64::from_polar(1.0, k * (from - to)) * r[(i, j)];
        }
    }
    out
}

/// The distance between the middle two bands above zero, or of the bands about zero: the smallest difference of
/// neighbouring quasi-energies on the circle that are not the same band twice.
fn band_gap(energies: &[f64]) -> f64 {
    let mut distances: Vec<f64> = (0..energies.len())
        .map(|i| {
            let next = energies[(i + 1) % energies.len()];
            (next - energies[i]).rem_euclid(TAU)
        })
        .collect();
    distances.sort_by(f64::total_cmp);
    // Particles and holes make every band of a model that keeps their number twofold; these are no gaps.
    distances.into_iter().find(|x| *x > 1e-7).unwrap_or(0.0)
}

/// The largest slope of a band, per cell.
fn fastest(bloch: &impl Fn(f64) -> Mat<c64>) -> Result<f64, ChainError> {
    let mut most = 0.0_f64;
    let h = 1e-4;
    for m in 0..512 {
        let k = TAU * (f64::from(m) + 0.5) / 512.0;
        let (below, above) = (
            eigenvalues(bloch(k - h).as_ref())?,
            eigenvalues(bloch(k + h).as_ref())?,
        );
        for x in &below {
            // The nearest one on the circle is the same band, unless bands cross just here.
            let step = above
                .iter()
                .map(|y| (y / x).arg().abs())
                .fold(f64::INFINITY, f64::min);
            most = most.max(step / (2.0 * h));
        }
    }
    Ok(most)
}
