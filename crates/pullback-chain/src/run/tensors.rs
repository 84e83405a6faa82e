//! The engine of matrix-product states.

use pullback_tensor::c64;
use safetensors::tensor::{Dtype, TensorView};

use crate::dense::Matrix;
use crate::error::ChainError;
use crate::hamiltonian::Boundary;
use crate::initial::{amplitudes, letters};
use crate::measure::Measure;
use crate::mps::{Ledger, Mps, Parts};

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
        let parts = self.state.parts();
        let ledger = self.state.ledger();
        let mut figures = ledger.by_bond.clone();
        figures.extend([ledger.error_bound, ledger.max_bond as f64]);
        let tensors: Vec<f64> = parts.tensors.iter().flat_map(|x| [x.re, x.im]).collect();
        vec![
            ("bonds", Numbers::gathered(Dtype::U64, &parts.bonds)),
            ("schmidt", Numbers::gathered(Dtype::F64, &parts.schmidt)),
            ("tensors", Numbers::gathered(Dtype::F64, &tensors)),
            ("ledger", Numbers::gathered(Dtype::F64, &figures)),
        ]
    }

    fn restore(&mut self, name: &str, stored: &TensorView<'_>) -> bool {
        if name == "bonds" {
            self.read.bonds = numbers(stored.data());
            return stored.dtype() == Dtype::U64 && self.read.bonds.len() == self.config.sites + 1;
        }
        if stored.dtype() != Dtype::F64 {
            return false;
        }
        let x: Vec<f64> = numbers(stored.data());
        match name {
            "schmidt" => self.read.schmidt = x,
            "tensors" => {
                self.read.tensors = x.chunks_exact(2).map(|x| c64::new(x[0], x[1])).collect();
            }
            // The last one: now all are there.
            _ => {
                let [by_bond @ .., error_bound, max_bond] = x.as_slice() else {
                    return false;
                };
                let ledger = Ledger {
                    by_bond: by_bond.to_vec(),
                    error_bound: *error_bound,
                    max_bond: *max_bond as usize,
                };
                let parts = std::mem::take(&mut self.read);
                match Mps::from_parts(self.state.dimension(), &parts, ledger) {
                    Some(state) => self.state = state,
                    None => return false,
                }
            }
        }
        true
    }

    fn names(&self) -> &'static [&'static str] {
        &["bonds", "schmidt", "tensors", "ledger"]
    }

    fn truncated(&self) -> Option<&Ledger> {
        Some(self.state.ledger())
    }
}
