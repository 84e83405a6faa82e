//! Gates in their places on a chain.

use std::collections::HashMap;
use std::sync::Arc;

use pullback_tensor::c64;

use crate::dense::{Matrix, exp, scaled};
use crate::error::ChainError;
use crate::hamiltonian::{Boundary, Hamiltonian};
use crate::scheme::Scheme;

/// A gate on two sites. Its matrix is `[d², d²]`, the index of `sites.0` slow.
#[derive(Clone, Debug)]
pub struct PlacedGate {
    /// The sites.
    pub sites: (usize, usize),
    /// The matrix.
    pub matrix: Arc<Matrix>,
}

/// The bonds of a layer: even ones join sites `2j` and `2j + 1`.
pub fn layer_bonds(even: bool, sites: usize, boundary: Boundary) -> impl Iterator<Item = usize> {
    (usize::from(!even)..boundary.bonds(sites)).step_by(2)
}

/// The sites of a bond.
pub fn bond_sites(bond: usize, sites: usize) -> (usize, usize) {
    (bond, (bond + 1) % sites)
}

/// Refuses chains on which layers of gates do not fit.
pub(crate) fn check_sites(sites: usize, boundary: Boundary) -> Result<(), ChainError> {
    if sites < 2 {
        return Err(ChainError::value(
            "the number of sites",
            sites,
            "expected 2 or more",
        ));
    }
    if boundary == Boundary::Ring && (sites < 4 || sites % 2 == 1) {
        return Err(ChainError::value(
            "the number of sites of a ring",
            sites,
            "expected an even number from 4, so that even and odd bonds take turns",
        ));
    }
    Ok(())
}

/// The gates of `steps` Trotter steps of length `dt` in the order in which they act; factors on the same bonds that
/// follow one another are one.
///
/// # Errors
/// The chain is too short, or a ring has an odd number of sites.
pub fn trotter_circuit(
    h: &Hamiltonian,
    scheme: &Scheme,
    dt: f64,
    steps: usize,
    sites: usize,
    boundary: Boundary,
) -> Result<Vec<PlacedGate>, ChainError> {
    check_sites(sites, boundary)?;
    // Bonds at the ends have other terms than those of the bulk, which are all alike.
    let class = |bond: usize| match boundary {
        Boundary::Open => (bond == 0, bond + 2 == sites),
        Boundary::Ring => (false, false),
    };
    let mut known: HashMap<(bool, bool, u64), Arc<Matrix>> = HashMap::new();
    let mut out = Vec::new();
    for (even, x) in scheme.factors_of(steps) {
        for bond in layer_bonds(even, sites, boundary) {
            let (first, last) = class(bond);
            let key = (first, last, x.to_bits());
            let matrix = if let Some(matrix) = known.get(&key) {
                matrix.clone()
            } else {
                let term = h.bond_term(bond, sites, boundary);
                let matrix = Arc::new(exp(&scaled(&term, c64::new(0.0, -x * dt)))?);
                known.insert(key, matrix.clone());
                matrix
            };
            out.push(PlacedGate {
                sites: bond_sites(bond, sites),
                matrix,
            });
        }
    }
    Ok(out)
}
