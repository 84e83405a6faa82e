//! The state and its circuits.

use pullback_tensor::{Threads, c64};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::circuit::PlacedGate;
use crate::dense::{Matrix, exchanged};
use crate::error::ChainError;
use crate::statevector::free_memory;

use super::tensor::Tensor;
use super::truncate::Truncation;
use super::update::{Pair, Updated, Work};

/// The largest number of amplitudes that are written out.
const MAX_AMPLITUDES: f64 = (1_u64 << 26) as f64;

/// What truncation took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// The weight discarded at each bond, in all updates.
    pub by_bond: Vec<f64>,
    /// `‖exact − kept‖` is no larger than this, both as they are, without normalising: the sum over layers of the root of
    /// the weight that the layer discarded.
    pub error_bound: f64,
    /// The largest bond dimension that there was.
    pub max_bond: usize,
}

impl Ledger {
    /// The weight discarded at all bonds.
    pub fn discarded(&self) -> f64 {
        self.by_bond.iter().sum()
    }
}

/// A matrix-product state of an open chain. Its squared norm falls by what truncation takes; all that is measured is of
/// the normalised state.
#[derive(Clone, Debug, PartialEq)]
pub struct Mps {
    pub(super) dimension: usize,
    pub(super) tensors: Vec<Tensor>,
    /// `schmidt[j]` is to the left of site `j`.
    pub(super) schmidt: Vec<Vec<f64>>,
    pub(super) ledger: Ledger,
}

/// The tensors of a state as plain numbers: bond dimensions (`L + 1` of them, 1 at both ends), Schmidt coefficients to the
/// left of every site one after the other, and the tensors of all sites, entry `[l, p, r]` at `l + left (p + d r)`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Parts {
    pub(crate) bonds: Vec<u64>,
    pub(crate) schmidt: Vec<f64>,
    pub(crate) tensors: Vec<c64>,
}

impl Mps {
    /// A product of one state a site, each of `dimension` amplitudes.
    ///
    /// # Errors
    /// There are fewer than 2 sites, a site's state has another dimension, or its length is zero.
    pub fn product(dimension: usize, locals: &[Vec<c64>]) -> Result<Self, ChainError> {
        if locals.len() < 2 || dimension < 2 {
            return Err(ChainError::value(
                "the number of sites",
                locals.len(),
                "expected 2 or more, of dimension 2 or more",
            ));
        }
        let mut norm = 1.0;
        let mut tensors = Vec::with_capacity(locals.len());
        for local in locals {
            let length = local.iter().map(c64::norm_sqr).sum::<f64>().sqrt();
            if local.len() != dimension || !(length > 0.0 && length.is_finite()) {
                return Err(ChainError::value(
                    "a site's state",
                    format!("{} amplitudes of length {length}", local.len()),
                    format!("expected {dimension} amplitudes that are not all zero"),
                ));
            }
            norm *= length;
            let data = local.iter().map(|x| x / length).collect();
            tensors.push(Tensor::new(1, dimension, 1, data));
        }
        let mut schmidt = vec![vec![1.0]; locals.len()];
        schmidt[0][0] = norm;
        let ledger = Ledger {
            by_bond: vec![0.0; locals.len() - 1],
            error_bound: 0.0,
            max_bond: 1,
        };
        Ok(Self {
            dimension,
            tensors,
            schmidt,
            ledger,
        })
    }

    /// States of a site.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Sites of the chain.
    pub fn sites(&self) -> usize {
        self.tensors.len()
    }

    /// The dimension of each bond.
    pub fn bonds(&self) -> Vec<usize> {
        self.schmidt[1..].iter().map(Vec::len).collect()
    }

    /// The Schmidt coefficients of a bond, largest first; their squares sum to the squared norm of the state.
    ///
    /// # Panics
    /// There is no such bond.
    pub fn schmidt(&self, bond: usize) -> &[f64] {
        &self.schmidt[bond + 1]
    }

    /// The tensor of a site: its left, physical and right dimension, and entry `[l, p, r]` at `l + left (p + d r)`.
    ///
    /// # Panics
    /// There is no such site.
    pub fn tensor(&self, site: usize) -> ([usize; 3], &[c64]) {
        let tensor = &self.tensors[site];
        ([tensor.left, tensor.physical, tensor.right], &tensor.data)
    }

    /// What truncation took since the state was made.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Refuses bonds whose tensors would not fit into memory.
    ///
    /// # Errors
    /// They would not.
    pub fn check_size(dimension: usize, sites: usize, max_bond: usize) -> Result<(), ChainError> {
        let widest = (dimension as f64).powi(i32::try_from(sites / 2).unwrap_or(i32::MAX));
        let bond = (max_bond as f64).min(widest);
        let d = dimension as f64;
        let tensors = sites as f64 * bond * bond * d;
        // Products, decompositions and their vectors, on every thread.
        let work = rayon::current_num_threads() as f64 * 8.0 * (d * bond).powi(2);
        let bytes = 16.0 * (tensors + work);
        let free = free_memory();
        if bytes > free {
            return Err(ChainError::value(
                "--max-bond",
                max_bond,
                format!(
                    "{sites} sites of dimension {dimension} may take {:.1} GB, and {:.1} GB are free: expected less",
                    bytes / 1e9,
                    free / 1e9
                ),
            ));
        }
        Ok(())
    }

    /// Applies gates on neighbouring sites in their order, those of a layer at once, and restores the canonical form.
    ///
    /// # Errors
    /// A gate is not on two neighbouring sites of the chain or has another dimension.
    pub fn apply(
        &mut self,
        gates: &[PlacedGate],
        truncation: Truncation,
    ) -> Result<(), ChainError> {
        let d = self.dimension;
        for gate in gates {
            let (a, b) = gate.sites;
            if a.abs_diff(b) != 1 || a.max(b) >= self.sites() || gate.matrix.nrows() != d * d {
                return Err(ChainError::value(
                    "a gate of a matrix-product state",
                    format!("{} rows on sites {a} and {b}", gate.matrix.nrows()),
                    format!(
                        "expected {} on neighbouring sites from 0 to {}",
                        d * d,
                        self.sites() - 1
                    ),
                ));
            }
        }
        let before = self.ledger.discarded();
        let mut rest = gates;
        let mut busy = vec![false; self.sites()];
        while !rest.is_empty() {
            busy.fill(false);
            let free = |gate: &PlacedGate, busy: &mut [bool]| {
                let (a, b) = gate.sites;
                !std::mem::replace(&mut busy[a], true) & !std::mem::replace(&mut busy[b], true)
            };
            let end = rest.iter().position(|gate| !free(gate, &mut busy));
            let (layer, next) = rest.split_at(end.unwrap_or(rest.len()));
            self.apply_layer(layer, truncation)?;
            rest = next;
        }
        if self.ledger.discarded() > before {
            self.restore()?;
        }
        Ok(())
    }

    /// Gates that have no site in common.
    fn apply_layer(
        &mut self,
        layer: &[PlacedGate],
        truncation: Truncation,
    ) -> Result<(), ChainError> {
        debug_assert!(
            self.canonical_defect() <= 1e-10 * self.norm() + 2.0 * self.ledger.discarded(),
            "the state is canonical up to what was discarded"
        );
        let d = self.dimension;
        let state = &*self;
        let threads = if layer.len() > 1 {
            Threads::One
        } else {
            Threads::All
        };
        let update = |work: &mut Work, gate: &PlacedGate| -> Result<Updated, ChainError> {
            let (a, b) = gate.sites;
            let turned: Matrix;
            let (j, matrix) = if a < b {
                (a, &*gate.matrix)
            } else {
                turned = exchanged(&gate.matrix, d);
                (b, &turned)
            };
            let pair = Pair {
                schmidt: &state.schmidt[j],
                left: &state.tensors[j],
                right: &state.tensors[j + 1],
                gate: matrix,
            };
            pair.update(truncation, threads, work)
        };
        let updated: Vec<Result<Updated, ChainError>> = layer
            .par_iter()
            .with_max_len(1)
            .map_init(Work::default, update)
            .collect();
        let mut weight = 0.0;
        for (gate, updated) in layer.iter().zip(updated) {
            let updated = updated?;
            let j = gate.sites.0.min(gate.sites.1);
            weight += updated.discarded;
            self.ledger.by_bond[j] += updated.discarded;
            self.ledger.max_bond = self.ledger.max_bond.max(updated.schmidt.len());
            self.tensors[j] = updated.left;
            self.tensors[j + 1] = updated.right;
            self.schmidt[j + 1] = updated.schmidt;
        }
        self.ledger.error_bound += weight.sqrt();
        Ok(())
    }

    /// All amplitudes, site 0 slowest.
    ///
    /// # Errors
    /// There are more than 2²⁶.
    pub fn amplitudes(&self) -> Result<Vec<c64>, ChainError> {
        let count = (self.dimension as f64).powi(i32::try_from(self.sites()).unwrap_or(i32::MAX));
        if count > MAX_AMPLITUDES {
            return Err(ChainError::value(
                "the number of amplitudes",
                count,
                "expected 2^26 at most",
            ));
        }
        let mut rows = vec![vec![c64::new(self.schmidt[0][0], 0.0)]];
        for tensor in &self.tensors {
            let mut next = Vec::with_capacity(rows.len() * tensor.physical);
            for row in &rows {
                for p in 0..tensor.physical {
                    let slice = tensor.slice(p);
                    next.push(
                        (0..tensor.right)
                            .map(|r| (0..tensor.left).map(|l| row[l] * slice[(l, r)]).sum())
                            .collect(),
                    );
                }
            }
            rows = next;
        }
        Ok(rows.into_iter().map(|row| row[0]).collect())
    }

    pub(crate) fn parts(&self) -> Parts {
        let mut bonds: Vec<u64> = self.schmidt.iter().map(|s| s.len() as u64).collect();
        bonds.push(1);
        Parts {
            bonds,
            schmidt: self.schmidt.concat(),
            tensors: self
                .tensors
                .iter()
                .flat_map(|t| t.data.iter().copied())
                .collect(),
        }
    }

    /// From what [`Mps::parts`] gave; `None` if the numbers do not fit together.
    pub(crate) fn from_parts(dimension: usize, parts: &Parts, ledger: Ledger) -> Option<Self> {
        let sites = parts.bonds.len().checked_sub(1).filter(|&n| n >= 2)?;
        let bonds: Vec<usize> = parts.bonds.iter().map(|&b| b as usize).collect();
        if bonds[0] != 1 || bonds[sites] != 1 || ledger.by_bond.len() + 1 != sites {
            return None;
        }
        let (mut schmidt, mut tensors) = (Vec::new(), Vec::new());
        let (mut values, mut entries) = (&parts.schmidt[..], &parts.tensors[..]);
        for pair in bonds.windows(2) {
            let (own, rest) = values.split_at_checked(pair[0])?;
            values = rest;
            schmidt.push(own.to_vec());
            let size = pair[0].checked_mul(dimension)?.checked_mul(pair[1])?;
            let (own, rest) = entries.split_at_checked(size)?;
            entries = rest;
            tensors.push(Tensor::new(pair[0], dimension, pair[1], own.to_vec()));
        }
        (values.is_empty() && entries.is_empty()).then_some(Self {
            dimension,
            tensors,
            schmidt,
            ledger,
        })
    }
}
