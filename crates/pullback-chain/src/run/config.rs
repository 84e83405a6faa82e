//! What a run is asked to do.

use serde::{Deserialize, Serialize};

use crate::error::ChainError;
use crate::hamiltonian::{Boundary, Hamiltonian};
use crate::measure::Observable;
use crate::mps::Truncation;
use crate::qca::Qca;
use crate::scheme::Scheme;
use crate::site::Site;
use crate::statevector::Precision;

/// What holds the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// All amplitudes.
    #[default]
    Statevector,
    /// Generators of a stabilizer state, for Clifford automata.
    Stabilizer,
    /// A matrix-product state.
    Mps,
    /// A matrix-product state of an infinite chain; sites are those at which observables may be asked for.
    Infinite,
}

/// The configuration of a run; it decides on every figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// The Hamiltonian, or…
    pub hamiltonian: Option<String>,
    /// … the gate or automaton.
    pub gate: Option<String>,
    /// The spin of a site, as text.
    pub spin: String,
    /// Positions of a clock, in place of a spin.
    pub clock: Option<usize>,
    /// Sites of the chain.
    pub sites: usize,
    /// How it ends.
    pub boundary: Boundary,
    /// The state at the start.
    pub state: String,
    /// What holds it.
    pub engine: EngineKind,
    /// Single or double precision of amplitudes.
    pub precision: Precision,
    /// What a matrix-product state keeps of a bond.
    pub truncation: Truncation,
    /// The Trotter scheme of a Hamiltonian.
    pub scheme: String,
    /// Its step.
    pub dt: f64,
    /// Steps in all.
    pub steps: usize,
    /// Steps from one row to the next.
    pub every: usize,
    /// What is measured.
    pub observe: String,
}

impl RunConfig {
    /// Steps of length `dt` that make up a time.
    ///
    /// # Errors
    /// They are no whole number.
    pub fn steps_in(time: f64, dt: f64) -> Result<usize, ChainError> {
        let positive = |what: &str, x: f64| {
            if x.is_finite() && x > 0.0 {
                Ok(())
            } else {
                Err(ChainError::value(what, x, "expected a number above 0"))
            }
        };
        positive("--dt", dt)?;
        if time != 0.0 {
            positive("--time", time)?;
        }
        let steps = time / dt;
        if (steps - steps.round()).abs() > 1e-6 * steps.max(1.0) || steps > 1e12 {
            return Err(ChainError::value(
                "--time",
                time,
                format!("expected a multiple of --dt, {dt}"),
            ));
        }
        Ok(steps.round() as usize)
    }
}

/// What a configuration means.
pub(super) struct Setting {
    pub(super) site: Site,
    pub(super) movement: Movement,
    pub(super) observables: Vec<Observable>,
}

/// What moves the state.
pub(super) enum Movement {
    Hamiltonian(Box<Hamiltonian>, Scheme),
    Automaton(Qca),
}

impl Setting {
    pub(super) fn new(config: &RunConfig) -> Result<Self, ChainError> {
        let site = match config.clock {
            Some(positions) => Site::clock(positions)?,
            None => Site::spin(&config.spin)?,
        };
        if config.every == 0 {
            return Err(ChainError::value("--every", 0, "expected 1 or more"));
        }
        let (movement, site) = match (&config.hamiltonian, &config.gate) {
            (Some(text), None) => {
                let h = Hamiltonian::parse(text, site)?;
                let site = h.site();
                (
                    Movement::Hamiltonian(Box::new(h), Scheme::parse(&config.scheme)?),
                    site,
                )
            }
            (None, Some(text)) => {
                let qca = Qca::parse(text, site)?;
                let site = qca.site();
                (Movement::Automaton(qca), site)
            }
            _ => {
                return Err(ChainError::value(
                    "what moves the state",
                    if config.gate.is_some() {
                        "given twice"
                    } else {
                        "missing"
                    },
                    "expected --hamiltonian or --gate",
                ));
            }
        };
        let observables =
            Observable::parse_list(&config.observe, site, config.sites, config.boundary)?;
        if matches!(movement, Movement::Automaton(_))
            && observables.iter().any(Observable::is_energy)
        {
            return Err(ChainError::value(
                "an observable",
                "`energy`",
                "a gate has no energy: use --hamiltonian",
            ));
        }
        Ok(Self {
            site,
            movement,
            observables,
        })
    }

    pub(super) fn hamiltonian(&self, boundary: Boundary) -> Option<(&Hamiltonian, Boundary)> {
        match &self.movement {
            Movement::Hamiltonian(h, _) => Some((h, boundary)),
            Movement::Automaton(_) => None,
        }
    }
}
