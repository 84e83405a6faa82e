//! The engines of matrix-product states.

use pullback_tensor::c64;
use safetensors::tensor::{Dtype, TensorView};

use crate::dense::{Matrix, trace};
use crate::error::ChainError;
use crate::hamiltonian::{Boundary, Hamiltonian};
use crate::initial::{amplitudes, letters};
use crate::measure::Measure;
use crate::mps::{InfiniteMps, Ledger, Mps, Parts};

use super::config::{RunConfig, Setting};
use super::engine::{Engine, Numbers, Stored, gates, numbers};

/// A matrix-product state.
pub(super) struct Tensors<'a> {
    config: &'a RunConfig,
    setting: &'a Setting,
    state: Mps,
    /// What was read of a checkpoint so far.
    read: Parts,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(config: &'a RunConfig, setting: &'a Setting) -> Result<Self, ChainError> {
        if config.boundary == Boundary::Ring {
            return Err(ChainError::value(
                "the boundary of the engine `mps`",
                "a ring",
                "expected an open chain; --engine statevector takes rings",
            ));
        }
        let d = setting.site.dimension();
        Mps::check_size(d, config.sites, config.truncation.checked()?.max_bond)?;
        let locals: Vec<_> = letters(&config.state, d, config.sites)?
            .iter()
            .map(|letter| amplitudes(*letter, d))
            .collect();
        Ok(Self {
            config,
            setting,
            state: Mps::product(d, &locals)?,
            read: Parts::default(),
        })
    }
}

impl Measure for Tensors<'_> {
    fn sites(&self) -> usize {
        self.state.sites()
    }

    fn expectation(&self, sites: &[usize], operator: &Matrix) -> Result<c64, ChainError> {
        self.state.expectation(sites, operator)
    }

    fn entropy(&self, bond: usize) -> Result<f64, ChainError> {
        self.state.entropy(bond)
    }

    fn norm_squared(&self) -> f64 {
        self.state.norm_squared()
    }
}

impl Engine for Tensors<'_> {
    fn advance(&mut self, steps: usize) -> Result<(), ChainError> {
        let gates = gates(self.config, self.setting, steps)?;
        self.state.apply(&gates, self.config.truncation)
    }

    fn stored(&self) -> Stored<'_> {
        stored(&self.state.parts(), self.state.ledger())
    }

    fn restore(&mut self, name: &str, stored: &TensorView<'_>) -> bool {
        let d = self.state.dimension();
        match self.read.take_up(name, stored) {
            Taken::Piece => true,
            Taken::Whole(parts, ledger) if parts.bonds.len() == self.config.sites + 1 => {
                Mps::from_parts(d, &parts, ledger)
                    .map(|state| self.state = state)
                    .is_some()
            }
            Taken::Whole(..) | Taken::Wrong => false,
        }
    }

    fn names(&self) -> &'static [&'static str] {
        &NAMES
    }

    fn truncated(&self) -> Option<&Ledger> {
        Some(self.state.ledger())
    }
}

/// The names under which a state is stored, the ledger last.
const NAMES: [&str; 4] = ["bonds", "schmidt", "tensors", "ledger"];

fn stored(parts: &Parts, ledger: &Ledger) -> Stored<'static> {
    let mut figures = ledger.by_bond.clone();
    figures.extend([ledger.error_bound, ledger.max_bond as f64]);
    let tensors: Vec<f64> = parts.tensors.iter().flat_map(|x| [x.re, x.im]).collect();
    vec![
        (NAMES[0], Numbers::gathered(Dtype::U64, &parts.bonds)),
        (NAMES[1], Numbers::gathered(Dtype::F64, &parts.schmidt)),
        (NAMES[2], Numbers::gathered(Dtype::F64, &tensors)),
        (NAMES[3], Numbers::gathered(Dtype::F64, &figures)),
    ]
}

/// What a piece of a stored state led to.
enum Taken {
    /// More pieces are to come.
    Piece,
    /// It was the last one.
    Whole(Parts, Ledger),
    /// It is no piece of a state.
    Wrong,
}

impl Parts {
    /// Takes up one piece of what was stored.
    fn take_up(&mut self, name: &str, stored: &TensorView<'_>) -> Taken {
        if name == NAMES[0] {
            self.bonds = numbers(stored.data());
            return if stored.dtype() == Dtype::U64 {
                Taken::Piece
            } else {
                Taken::Wrong
            };
        }
        if stored.dtype() != Dtype::F64 {
            return Taken::Wrong;
        }
        let x: Vec<f64> = numbers(stored.data());
        if name == NAMES[1] {
            self.schmidt = x;
            return Taken::Piece;
        }
        if name == NAMES[2] {
            self.tensors = x.chunks_exact(2).map(|x| c64::new(x[0], x[1])).collect();
            return Taken::Piece;
        }
        let [by_bond @ .., error_bound, max_bond] = x.as_slice() else {
            return Taken::Wrong;
        };
        let ledger = Ledger {
            by_bond: by_bond.to_vec(),
            error_bound: *error_bound,
            max_bond: *max_bond as usize,
        };
        Taken::Whole(std::mem::take(self), ledger)
    }
}

/// A matrix-product state of an infinite chain.
pub(super) struct Cells<'a> {
    config: &'a RunConfig,
    setting: &'a Setting,
    state: InfiniteMps,
    read: Parts,
}

impl<'a> Cells<'a> {
    pub(super) fn new(config: &'a RunConfig, setting: &'a Setting) -> Result<Self, ChainError> {
        let d = setting.site.dimension();
        let max_bond = config.truncation.checked()?.max_bond;
        // As wide as asked for, whatever the number of sites.
        Mps::check_size(d, 64, max_bond)?;
        let letters = letters(&config.state, d, 2)?;
        if config.state == "wall" || config.state.chars().count() > 2 {
            return Err(ChainError::value(
                "the state of the engine `infinite`",
                format!("`{}`", config.state),
                "expected a pattern of one or two sites",
            ));
        }
        let cell = [amplitudes(letters[0], d), amplitudes(letters[1], d)];
        Ok(Self {
            config,
            setting,
            state: InfiniteMps::product(d, cell)?,
            read: Parts::default(),
        })
    }
}

impl Measure for Cells<'_> {
    fn sites(&self) -> usize {
        self.config.sites
    }

    fn expectation(&self, sites: &[usize], operator: &Matrix) -> Result<c64, ChainError> {
        Ok(trace(&(operator * &self.state.reduced(sites)?)))
    }

    fn entropy(&self, bond: usize) -> Result<f64, ChainError> {
        Ok(self.state.entropy(bond))
    }

    fn norm_squared(&self) -> f64 {
        1.0
    }

    fn correlation_length(&self) -> Result<f64, ChainError> {
        self.state.correlation_length()
    }

    fn energy(&self, h: &Hamiltonian, _: Boundary) -> Result<f64, ChainError> {
        let term = h.bulk_term();
        let bond = |j| self.expectation(&[j, j + 1], &term);
        Ok(f64::midpoint(bond(0)?.re, bond(1)?.re))
    }
}

impl Engine for Cells<'_> {
    fn advance(&mut self, steps: usize) -> Result<(), ChainError> {
        // The bulk of a ring of two cells, of which one stands for all.
        let ring = RunConfig {
            sites: 4,
            boundary: Boundary::Ring,
            ..self.config.clone()
        };
        let mut gates = gates(&ring, self.setting, steps)?;
        gates.retain(|gate| gate.sites.0 < 2);
        self.state.apply(&gates, self.config.truncation)
    }

    fn stored(&self) -> Stored<'_> {
        stored(&self.state.parts(), self.state.ledger())
    }

    fn restore(&mut self, name: &str, stored: &TensorView<'_>) -> bool {
        let d = self.state.dimension();
        match self.read.take_up(name, stored) {
            Taken::Piece => true,
            Taken::Whole(parts, ledger) => InfiniteMps::from_parts(d, &parts, ledger)
                .map(|state| self.state = state)
                .is_some(),
            Taken::Wrong => false,
        }
    }

    fn names(&self) -> &'static [&'static str] {
        &NAMES
    }

    fn truncated(&self) -> Option<&Ledger> {
        Some(self.state.ledger())
    }
}
