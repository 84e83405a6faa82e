//! The report card of an automaton: everything that can be said of it from its gates.

mod charges;
mod clifford;
mod dual;
mod fermion;
mod index;
mod light_cone;
mod operators;
mod schmidt;
mod spread;

use std::collections::BTreeMap;

use serde::Serialize;

pub use charges::{Charges, Term, charges};
pub use clifford::{CliffordClass, clifford_class};
pub use dual::{DualUnitarity, Rays, dual_unitarity};
pub use fermion::{Dispersion, dispersion};
pub use index::{Index, index};
pub use light_cone::{LightCone, light_cone};
pub use schmidt::{entangling_power, operator_schmidt};
pub use spread::{Spread, spread};

use crate::dense::unitarity_defect;
use crate::error::ChainError;
use crate::qca::Qca;
use pullback_artifact::Control;

/// What is known of an automaton.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a question that the card answers"
)]
#[derive(Clone, Debug, Serialize)]
pub struct Card {
    /// What it was made from.
    pub name: String,
    /// States of a site.
    pub dimension: usize,
    /// Whether its gates are unitary within rounding; an automaton of others cannot be made.
    pub unitary: bool,
    /// The largest singular value of `U†U − 1` of its gates.
    pub unitarity_defect: f64,
    /// The index in bits: the net flow of information to the right; one shift of a qubit chain has 1.
    pub index: f64,
    /// The same by mutual informations; `None` for sites of more than three states.
    pub index_by_entropies: Option<f64>,
    /// How far operators of one site get.
    pub light_cone: LightCone,
    /// Of the gate, where the automaton is brickwork of one: the mean linear entropy it gives to random product states.
    pub entangling_power: Option<f64>,
    /// The operator Schmidt spectrum of that gate, as weights that sum to one.
    pub operator_schmidt: Option<Vec<f64>>,
    /// Whether that gate is unitary with space and time exchanged.
    pub dual_unitary: bool,
    /// What follows from that, and how far it is from it.
    pub dual: Option<DualUnitarity>,
    /// Whether all layers are Clifford gates.
    pub clifford: bool,
    /// What becomes of Pauli operators then.
    pub clifford_class: Option<CliffordClass>,
    /// For each range in sites: how many independent conserved charges have densities on so many sites at most.
    pub charges: BTreeMap<String, usize>,
    /// Their densities, and how many there are at other momenta.
    pub charge_details: Charges,
    /// Whether the layers move free fermions.
    pub free_fermion: bool,
    /// Their quasi-energies then.
    pub dispersion: Option<Dispersion>,
    /// How an operator spreads.
    pub spread: Option<Spread>,
}

/// Works everything out; charges up to `range` sites, or as far as they can be found.
///
/// # Errors
/// Memory is short, or the user stopped it.
pub fn card(qca: &Qca, range: usize, control: &Control) -> Result<Card, ChainError> {
    let stage = control.stage("report card", 6, "parts");
    let d = qca.dimension();
    let mut defect = 0.0_f64;
    for layer in qca.layers() {
        defect = defect.max(unitarity_defect(&layer.gate)?);
    }
    let part = |n: u64, name: &str| {
        stage.set(n);
        stage.message(name);
        control.check()
    };
    part(0, "index")?;
    let index = index(qca)?;
    part(1, "light cone")?;
    let light_cone = light_cone(qca)?;
    part(2, "duality")?;
    let gate = qca.gate();
    let dual = gate.map(|u| dual_unitarity(u, d, qca)).transpose()?;
    let clifford_class = clifford_class(qca);
    part(3, "charges")?;
    let charges = charges(qca, range)?;
    part(4, "fermions")?;
    let dispersion = dispersion(qca)?;
    part(5, "spreading")?;
    let spread = spread(qca)?;
    let card = Card {
        name: qca.name().to_owned(),
        dimension: d,
        unitary: true,
        unitarity_defect: defect,
        index: index.bits,
        index_by_entropies: index.by_entropies,
        light_cone,
        entangling_power: gate.map(|u| entangling_power(u, d)).transpose()?,
        operator_schmidt: gate.map(|u| operator_schmidt(u, d)).transpose()?,
        dual_unitary: dual.as_ref().is_some_and(|dual| dual.dual_unitary),
        dual,
        clifford: clifford_class.is_some(),
        clifford_class,
        charges: (1..)
            .zip(&charges.by_range)
            .map(|(range, count): (usize, _)| (range.to_string(), *count))
            .collect(),
        charge_details: charges,
        free_fermion: dispersion.is_some(),
        dispersion,
        spread,
    };
    stage.finish();
    Ok(card)
}
