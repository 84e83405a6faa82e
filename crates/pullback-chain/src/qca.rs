//! Quantum cellular automata: layers of gates, and shifts.

use std::sync::Arc;

use pullback_tensor::c64;

use crate::circuit::{PlacedGate, bond_sites, check_sites, layer_bonds};
use crate::dense::{Matrix, exp, scaled};
use crate::error::ChainError;
use crate::gate::{GATES, Gate};
use crate::hamiltonian::{Boundary, Hamiltonian};
use crate::named::{Named, find, names};
use crate::scheme::Scheme;
use crate::site::Site;

/// Automata with names that are no brickwork of one gate.
pub const AUTOMATA: &[Named] = &[
    Named {
        name: "shift",
        parameters: &[("by", 1.0)],
        about: "moves every site to the right",
    },
    Named {
        name: "dirac",
        parameters: &[("mass", 0.5)],
        about: "the Dirac automaton of fermions: cos ω = √(1 − mass²) cos k",
    },
];

/// A layer: one gate on every even or every odd bond.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Whether it acts on even bonds, those of sites `2j` and `2j + 1`.
    pub even: bool,
    /// The gate, `[d², d²]`.
    pub gate: Matrix,
}

/// A quantum cellular automaton that repeats after two sites: layers of gates, then a shift.
#[derive(Clone, Debug)]
pub struct Qca {
    name: String,
    site: Site,
    layers: Vec<Layer>,
    shift: isize,
}

impl Qca {
    /// Brickwork: the gate on even bonds, then on odd bonds.
    pub fn brickwork(gate: &Gate) -> Self {
        let layer = |even| Layer {
            even,
            gate: gate.matrix().clone(),
        };
        Self {
            name: gate.name().to_owned(),
            site: gate.site(),
            layers: vec![layer(true), layer(false)],
            shift: 0,
        }
    }

    /// Layers in the order in which they act, then a shift by so many sites to the right.
    ///
    /// # Errors
    /// A gate is not unitary or not of two sites.
    pub fn new(
        name: &str,
        site: Site,
        layers: Vec<Layer>,
        shift: isize,
    ) -> Result<Self, ChainError> {
        for layer in &layers {
            Gate::new(name, site, layer.gate.clone())?;
        }
        Ok(Self {
            name: name.to_owned(),
            site,
            layers,
            shift,
        })
    }

    /// One step of a Trotter scheme for a Hamiltonian, in the bulk.
    ///
    /// # Errors
    /// The step is not finite.
    pub fn trotter(h: &Hamiltonian, scheme: &Scheme, dt: f64) -> Result<Self, ChainError> {
        let term = h.bulk_term();
        let mut layers = Vec::new();
        for (even, x) in scheme.factors() {
            let gate = exp(&scaled(&term, c64::new(0.0, -x * dt)))?;
            layers.push(Layer { even, gate });
        }
        let name = format!("{} by {} with dt = {dt}", h.name(), scheme.name());
        Self::new(&name, h.site(), layers, 0)
    }

    /// From a name of [`AUTOMATA`] or of [`GATES`], a `.npy` file or an expression of a gate.
    ///
    /// # Errors
    /// It cannot be read, or is not unitary.
    pub fn parse(text: &str, site: Site) -> Result<Self, ChainError> {
        let Some((automaton, p)) = find(AUTOMATA, text)? else {
            let gate = Gate::parse(text, site).map_err(|error| match error {
                ChainError::Expression { message, text, at }
                    if text
                        .trim_start()
                        .starts_with(|c: char| c.is_ascii_lowercase()) =>
                {
                    let hint = format!(
                        "; gates with names are {}, {}",
                        names(AUTOMATA),
                        names(GATES)
                    );
                    ChainError::Expression {
                        message: message + &hint,
                        text,
                        at,
                    }
                }
                error => error,
            })?;
            return Ok(Self::brickwork(&gate));
        };
        let name = automaton.signature_with(&p);
        if automaton.name == "shift" {
            if p[0].fract() != 0.0 || p[0].abs() > 16.0 {
                return Err(ChainError::value(
                    "the shift",
                    p[0],
                    "expected a whole number of sites, 16 at most",
                ));
            }
            return Self::new(&name, site, Vec::new(), p[0] as isize);
        }
        let mass = p[0];
        if !(0.0..=1.0).contains(&mass) {
            return Err(ChainError::value("the mass", mass, "expected 0 to 1"));
        }
        // cos ε = cos θ1 cos θ2 − sin θ1 sin θ2 cos k with θ2 = π/2 and sin θ1 = √(1 − m²).
        let hop = |theta: f64| Gate::parse(&format!("exp(-i*({theta})/2*(XX+YY))"), Site::QUBIT);
        let (even, odd) = (hop(mass.acos())?, hop(std::f64::consts::FRAC_PI_2)?);
        let layers = vec![
            Layer {
                even: true,
                gate: even.matrix().clone(),
            },
            Layer {
                even: false,
                gate: odd.matrix().clone(),
            },
        ];
        Self::new(&name, Site::QUBIT, layers, 0)
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What stands on each site.
    pub fn site(&self) -> Site {
        self.site
    }

    /// States of a site.
    pub fn dimension(&self) -> usize {
        self.site.dimension()
    }

    /// The layers in the order in which they act.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Sites by which everything moves to the right after the layers.
    pub fn shift(&self) -> isize {
        self.shift
    }

    /// The gate, if the automaton is brickwork of one.
    pub fn gate(&self) -> Option<&Matrix> {
        match self.layers.as_slice() {
            [first, second] if first.even && !second.even && self.shift == 0 => {
                let same = (&first.gate - &second.gate).norm_l2() == 0.0;
                same.then_some(&first.gate)
            }
            _ => None,
        }
    }

    /// The gates of one step on a chain in the order in which they act.
    ///
    /// # Errors
    /// The chain is too short, a ring has an odd number of sites, or there is a shift, which is no layer of gates.
    pub fn step(&self, sites: usize, boundary: Boundary) -> Result<Vec<PlacedGate>, ChainError> {
        check_sites(sites, boundary)?;
        if self.shift != 0 {
            return Err(ChainError::value(
                "the shift",
                self.shift,
                "an automaton with a shift has no layers of gates: expected one without",
            ));
        }
        let mut out = Vec::new();
        for layer in &self.layers {
            let matrix = Arc::new(layer.gate.clone());
            for bond in layer_bonds(layer.even, sites, boundary) {
                out.push(PlacedGate {
                    sites: bond_sites(bond, sites),
                    matrix: matrix.clone(),
                });
            }
        }
        Ok(out)
    }
}
