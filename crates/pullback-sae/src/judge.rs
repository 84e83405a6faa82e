//! A dictionary judged on the rows of stores.

use std::sync::Arc;

use pullback_activations::{ActivationStore, Flags};
use pullback_artifact::Control;

use crate::metrics::{Reconstruction, ReconstructionMetrics};
use crate::{Dictionary, SaeError, Wiring};

/// Stores of the sites that a dictionary reads and of those that it reconstructs, of the same text.
#[derive(Clone, Debug)]
pub struct Sites<'a> {
    /// What is read, side by side.
    pub inputs: Vec<&'a ActivationStore>,
    /// What is reconstructed, side by side.
    pub outputs: Vec<&'a ActivationStore>,
}

impl<'a> Sites<'a> {
    /// Of an autoencoder.
    pub fn of(store: &'a ActivationStore) -> Self {
        Self {
            inputs: vec![store],
            outputs: vec![store],
        }
    }

    /// Those that a dictionary is wired to, among some stores of the same text.
    ///
    /// # Errors
    /// There is no store of one of its sites.
    pub fn wired(wiring: &Wiring, stores: &'a [ActivationStore]) -> Result<Self, SaeError> {
        let find = |names: Vec<&str>| -> Result<Vec<&'a ActivationStore>, SaeError> {
            // An autoencoder may leave its site unsaid, where there is one only.
            if let ([], [only]) = (&names[..], stores) {
                return Ok(vec![only]);
            }
            names
                .into_iter()
                .map(|name| {
                    let found = stores
                        .iter()
                        .find(|store| store.info().site.to_string() == name);
                    found.ok_or_else(|| {
                        let sites: Vec<String> = stores
                            .iter()
                            .map(|store| store.info().site.to_string())
                            .collect();
                        SaeError::Option(format!(
                            "there are no activations at {name}, only at {}",
                            sites.join(", ")
                        ))
                    })
                })
                .collect()
        };
        let sites = Self {
            inputs: find(wiring.inputs())?,
            outputs: find(wiring.outputs())?,
        };
        if sites.inputs.is_empty() {
            return Err(SaeError::Option(
                "there are activations of several sites, and it is not said which are meant"
                    .to_owned(),
            ));
        }
        Ok(sites)
    }

    /// The same, where nothing is asked of what is reconstructed: without its stores, if they are not among these.
    ///
    /// # Errors
    /// There is no store of a site that is read.
    pub fn wired_to_read(wiring: &Wiring, stores: &'a [ActivationStore]) -> Result<Self, SaeError> {
        Self::wired(wiring, stores).or_else(|_| {
            let [from] = wiring.inputs()[..] else {
                return Self::wired(wiring, stores);
            };
            let site = Some(from.to_owned());
            let Self { inputs, .. } = Self::wired(&Wiring::Autoencoder { site }, stores)?;
            Ok(Self {
                inputs,
                outputs: Vec::new(),
            })
        })
    }

    /// One of the stores, for what they have in common.
    pub fn first(&self) -> &'a ActivationStore {
        self.inputs[0]
    }

    fn all(&self) -> impl Iterator<Item = &'a ActivationStore> {
        self.inputs.iter().chain(&self.outputs).copied()
    }

    /// Rows that are neither first in their sequence nor outliers at any site, held out or not.
    pub fn normal_rows(&self, held_out: bool) -> Vec<u32> {
        (0..self.first().len())
            .filter(|&row| {
                self.first().flags(row).has(Flags::HELD_OUT) == held_out
                    && self.all().all(|store| !store.flags(row).is_abnormal())
            })
            .map(|row| row as u32)
            .collect()
    }

    /// Checks the width of what is read.
    pub(crate) fn check_inputs(&self, dictionary: &dyn Dictionary) -> Result<(), SaeError> {
        let d: usize = self.inputs.iter().map(|store| store.info().d).sum();
        if dictionary.d() != d {
            return Err(SaeError::Option(format!(
                "the dictionary is of width {}, the store's activations of width {d}",
                dictionary.d()
            )));
        }
        Ok(())
    }

    /// Checks the widths.
    pub(crate) fn check(&self, dictionary: &dyn Dictionary) -> Result<(), SaeError> {
        self.check_inputs(dictionary)?;
        let d_out: usize = self.outputs.iter().map(|store| store.info().d).sum();
        if dictionary.d_out() != d_out {
            return Err(SaeError::Option(format!(
                "the dictionary makes width {}, the store's activations are of width {d_out}",
                dictionary.d_out()
            )));
        }
        Ok(())
    }
}

/// Rows of stores side by side, `[rows, Σ d]`.
pub(crate) fn side_by_side(stores: &[&ActivationStore], rows: &[u32]) -> Vec<f32> {
    let d: usize = stores.iter().map(|store| store.info().d).sum();
    let mut out = Vec::with_capacity(rows.len() * d);
    for &row in rows {
        for store in stores {
            out.extend_from_slice(store.row(row as usize));
        }
    }
    out
}

/// The columns of one of several sites in rows `[n, Σ d]`.
pub(crate) fn columns(rows: &[f32], widths: &[usize], site: usize) -> Vec<f32> {
    let start: usize = widths[..site].iter().sum();
    let d: usize = widths.iter().sum();
    rows.chunks_exact(d)
        .flat_map(|row| row[start..start + widths[site]].iter().copied())
        .collect()
}

/// What [`evaluate_reconstruction`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Of all that is reconstructed together.
    pub metrics: ReconstructionMetrics,
    /// Share of tokens in which each feature is active.
    pub densities: Vec<f32>,
    /// Of each site that is reconstructed.
    pub of_sites: Vec<ReconstructionMetrics>,
}

/// Metrics of a dictionary on some rows, and each feature's density there.
///
/// # Errors
/// The widths differ; the work was interrupted.
pub fn evaluate_reconstruction(
    dictionary: &Arc<dyn Dictionary>,
    sites: &Sites<'_>,
    rows: &[u32],
    control: &Control,
) -> Result<Judged, SaeError> {
    sites.check(&**dictionary)?;
    let m = dictionary.n_features();
    let widths: Vec<usize> = sites.outputs.iter().map(|store| store.info().d).collect();
    let mut sums = Reconstruction::new(dictionary.d_out(), m);
    let mut of_sites: Vec<Reconstruction> = match widths[..] {
        [_] => Vec::new(),
        _ => widths.iter().map(|&d| Reconstruction::new(d, m)).collect(),
    };
    let stage = control.stage("encode", rows.len() as u64, "tokens");
    for rows in rows.chunks(4096) {
        control.check()?;
        let x = side_by_side(&sites.inputs, rows);
        let target = side_by_side(&sites.outputs, rows);
        let codes = dictionary.encode(&x);
        let made = dictionary.reconstruct(&x, &codes);
        sums.add(&target, &codes, &made);
        for (site, sums) in of_sites.iter_mut().enumerate() {
            let of = |rows: &[f32]| columns(rows, &widths, site);
            sums.add(&of(&target), &codes, &of(&made));
        }
        stage.advance(rows.len() as u64);
    }
    stage.finish();
    let metrics = sums.metrics();
    Ok(Judged {
        metrics,
        densities: sums.densities(),
        of_sites: match of_sites.len() {
            0 => vec![metrics],
            _ => of_sites.iter().map(Reconstruction::metrics).collect(),
        },
    })
}
