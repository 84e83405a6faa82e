//! The index of an automaton: the net flow of information to the right (Gross, Nesme, Vogts and Werner,
//! arXiv:0910.3675).

use serde::Serialize;

use pullback_tensor::c64;

use crate::circuit::{PlacedGate, bond_sites, layer_bonds};
use crate::dense::{Matrix, identity};
use crate::error::ChainError;
use crate::hamiltonian::Boundary;
use crate::mpu::Mpu;
use crate::qca::Qca;
use crate::statevector::{Plan, StateVector};
use std::sync::Arc;

/// Sites of the ring on which entropies are found.
const RING: usize = 6;

/// The index, found in two ways.
#[derive(Clone, Debug, Serialize)]
pub struct Index {
    /// In bits, by ranks: the shift of a qubit chain to the right has 1.
    pub bits: f64,
    /// In bits, by mutual informations between inputs and outputs; `None` for sites of more than three states.
    pub by_entropies: Option<f64>,
}

/// The index of an automaton. It is that of its parts, two layers or a shift each, added up: the index of a composition is
/// the sum.
///
/// # Errors
/// Memory is short.
pub fn index(qca: &Qca) -> Result<Index, ChainError> {
    let d = qca.dimension();
    let (mut bits, mut entropic) = (0.0, 0.0);
    let nothing = identity(d * d);
    let mut layers = qca.layers().iter().peekable();
    while let Some(layer) = layers.next() {
        // An odd layer that has no even one before it follows the identity.
        let (even, odd) = if layer.even {
            let odd = layers
                .next_if(|next| !next.even)
                .map_or(&nothing, |next| &next.gate);
            (&layer.gate, odd)
        } else {
            (&nothing, &layer.gate)
        };
        bits += Mpu::of_layers(even, odd, d)?.index_by_ranks()?;
        if d <= 3 {
            entropic += by_entropies(d, &[(true, even), (false, odd)], 0)?;
        }
    }
    let shifts = qca.shift();
    if shifts != 0 {
        let sign = shifts.signum();
        let count = shifts.unsigned_abs() as f64;
        bits += count * Mpu::shift(d, sign > 0).index_by_ranks()?;
        if d <= 3 {
            entropic += count * by_entropies(d, &[], sign)?;
        }
    }
    Ok(Index {
        bits,
        by_entropies: (d <= 3).then_some(entropic),
    })
}

/// `½ [I(R_out : L_in) − I(L_out : R_in)]` in bits, of the state that the automaton makes of one half of maximally
/// entangled pairs, with two sites left and two right of a cut of a ring of six.
fn by_entropies(d: usize, layers: &[(bool, &Matrix)], shift: isize) -> Result<f64, ChainError> {
    // Sites 0..6 are the outputs, 6..12 the inputs: the pairs are made by gates from a product state.
    let zero: Vec<c64> = (0..d)
        .map(|i| c64::new(f64::from(u8::from(i == 0)), 0.0))
        .collect();
    let mut state: StateVector<f64> = StateVector::product(d, &vec![zero; 2 * RING])?;
    let pair = Arc::new(pair_gate(d));
    let mut gates: Vec<PlacedGate> = (0..RING)
        .map(|j| PlacedGate {
            sites: (j, j + RING),
            matrix: pair.clone(),
        })
        .collect();
    for &(even, gate) in layers {
        let matrix = Arc::new(gate.clone());
        for bond in layer_bonds(even, RING, Boundary::Ring) {
            gates.push(PlacedGate {
                sites: bond_sites(bond, RING),
                matrix: matrix.clone(),
            });
        }
    }
    state.apply(&Plan::new(d, 2 * RING, &gates)?);
    // A shift to the right brings what is at site j − 1 to site j.
    let out = |j: isize| (j - shift).rem_euclid(RING as isize) as usize;
    let within = |j: isize| j as usize + RING;
    let entropy = |sites: &[usize]| -> Result<f64, ChainError> {
        let values = pullback_tensor::eigh(state.reduced(sites)?.as_ref())?.values;
        Ok(crate::statevector::entropy_of(&values) / std::f64::consts::LN_2)
    };
    let information = |a: [usize; 2], b: [usize; 2]| -> Result<f64, ChainError> {
        Ok(entropy(&a)? + entropy(&b)? - entropy(&[a[0], a[1], b[0], b[1]])?)
    };
    let right = information([out(3), out(4)], [within(1), within(2)])?;
    let left = information([out(1), out(2)], [within(3), within(4)])?;
    Ok(0.5 * (right - left))
}

/// A unitary that makes a maximally entangled pair of `00`: the Fourier transform of the first site, then the second moved
/// up by the first.
fn pair_gate(d: usize) -> Matrix {
    let norm = (d as f64).sqrt();
    Matrix::from_fn(d * d, d * d, |i, j| {
        let (a, b, k, l) = (i / d, i % d, j / d, j % d);
        if b == (l + a) % d {
            c64::from_polar(
                1.0 / norm,
                std::f64::consts::TAU * (a * k) as f64 / d as f64,
            )
        } else {
            c64::new(0.0, 0.0)
        }
    })
}
