//! A dictionary that learns on the activations of a model that learns too.

use std::path::Path;

use pullback_activations::FeedOrigin;
use pullback_artifact::{Manifest, PartialDir, write_json};
use pullback_kernels::Real;
use serde::{Deserialize, Serialize};

use super::start::{choose_scale, initial, variance};
use super::units::{Units, in_units_of_activations};
use super::{SAE_KIND, TrainConfig, Training, Wire, Wires, Wiring};
use crate::kinds::{Kind, KindConfig};
use crate::learn::{Adam, Batch, Moments, Parameters, Rows, Step, update};
use crate::saelens::{self, SaeLensMetadata};
use crate::{InputNorm, Normalization, Sae, SaeError};

/// Batches without a firing before which no feature counts as dead.
const LEAST_BATCHES: usize = 10;

/// A dictionary in training beside the model whose activations it reconstructs.
///
/// What it minimises is the share of variance that it leaves unexplained. Each activation is measured in its own length,
/// `u = x·√d / ‖x‖`, and the loss is `Σ‖u − û‖² / Σ‖u − ū‖²`, with gradients through both: a model gains nothing by making
/// activations shorter or longer, all of them or some, nor by adding a constant. (Lai and Heimersheim divide `‖x − x̂‖²` by the
/// mean length, which falls with the length. Where one length measures the whole batch, a model learns to make a few rows so
/// long that they are nearly all of the variance.)
pub struct Companion {
    config: TrainConfig,
    steps: usize,
    d: usize,
    kind: Box<dyn Kind<f32>>,
    parameters: Parameters<f32>,
    moments: Moments<f32>,
    state: CompanionState,
}

/// What of a companion is not a list of numbers: it goes on from this and its numbers bit for bit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompanionState {
    /// Steps done.
    pub step: usize,
    /// Steps since each feature fired.
    silent: Vec<u32>,
    /// What the kind remembers of earlier batches.
    memory: Vec<f64>,
}

/// What a batch of activations met.
#[derive(Clone, Debug, PartialEq)]
pub struct Met {
    /// Share of the batch's variance that is not explained.
    pub unexplained: f64,
    /// Active features a token.
    pub l0: f64,
    /// Features that count as dead.
    pub dead: usize,
    /// Gradient of `unexplained` in the activations `[n, d]`. The auxiliary loss of dead features is the dictionary's own
    /// affair and has no part in it.
    pub gradient: Vec<f32>,
}

impl Companion {
    /// The start, for activations `x [n, d]` like these and a training of so many steps.
    ///
    /// # Errors
    /// An option makes no sense; the kind has not the number of active features given and one reconstruction; activations are
    /// to be normalised in another way; the rows are all alike.
    pub fn start(
        config: &TrainConfig,
        steps: usize,
        x: &[f32],
        d: usize,
    ) -> Result<Self, SaeError> {
        config.check(None)?;
        check_kind(&config.kind)?;
        if config.input_norm != InputNorm::ConstantNorm {
            return Err(SaeError::Option(
                "a dictionary that grows with its model measures each activation in its own length (constant-norm)"
                    .to_owned(),
            ));
        }
        if d == 0 || x.len() < 2 * d || !x.len().is_multiple_of(d) {
            return Err(SaeError::Option(format!(
                "{} numbers are no two rows of width {d}",
                x.len()
            )));
        }
        let wire = Wire { place: 0, d };
        let wires = Wires {
            inputs: vec![wire],
            outputs: vec![wire],
        };
        let kind = config.kind.build(config.aux(d));
        let u = by_length(x, d);
        let spread = variance(&u, d);
        if !(spread.is_finite() && spread > 0.0) {
            return Err(SaeError::Option(format!(
                "the activations have variance {spread}: there is nothing to learn from them"
            )));
        }
        let mut parameters = initial((&u, &u), &wires, config, &*kind);
        let rows = Rows::pairs(&u, &u);
        choose_scale(&mut parameters, config, &rows, spread);
        kind.prepare(&mut parameters, &u);
        Ok(Self {
            config: config.clone(),
            steps,
            d,
            moments: Moments::zero(&parameters),
            parameters,
            state: CompanionState {
                silent: vec![0; config.features],
                ..CompanionState::default()
            },
            kind,
        })
    }

    /// Steps done.
    pub fn step_number(&self) -> usize {
        self.state.step
    }

    /// Learns from a batch of activations `[n, d]`, and says what they met before that.
    ///
    /// # Errors
    /// The loss is not finite.
    pub fn step(&mut self, x: &[f32]) -> Result<Met, SaeError> {
        let config = &self.config;
        let step = self.state.step;
        let rows = x.len() / self.d;
        // A twentieth of the training, unless it is said otherwise.
        let after = match config.dead_after_tokens {
            Some(tokens) => tokens.div_ceil(rows.max(1)),
            None => (self.steps / 20).max(LEAST_BATCHES),
        };
        let silent = self.state.silent.iter().enumerate();
        let dead: Vec<u32> = silent
            .filter(|(_, silent)| **silent as usize >= after)
            .map(|(feature, _)| feature as u32)
            .collect();
        let joint = joint_batch(&mut *self.kind, &self.parameters, x, &dead);
        let loss = joint.batch.loss();
        if !loss.is_finite() {
            return Err(SaeError::Diverged {
                step,
                loss,
                lr: config.lr,
            });
        }
        let adam = Adam::at(step + 1, config.rate(step, self.steps), config.betas);
        update(
            &mut self.parameters,
            &mut self.moments,
            &joint.batch,
            adam,
            config.clip,
        );
        self.kind.settle(&mut self.parameters);
        let state = &mut self.state;
        for (silent, &fired) in state.silent.iter_mut().zip(&joint.batch.fired) {
            *silent = if fired { 0 } else { *silent + 1 };
        }
        state.step += 1;
        state.memory = self.kind.memory();
        Ok(Met {
            unexplained: joint.batch.reconstruction,
            l0: joint.batch.active as f64 / rows.max(1) as f64,
            dead: dead.len(),
            gradient: joint.gradient,
        })
    }

    /// The dictionary as it is now.
    ///
    /// # Errors
    /// Never for numbers that training left.
    pub fn sae(&self) -> Result<Sae, SaeError> {
        let units = Units::Rows(Normalization::ConstantNorm, self.d);
        in_units_of_activations(&self.parameters, &*self.kind, &units, &units)
    }

    /// Leaves the dictionary as an artifact at `out`.
    ///
    /// # Errors
    /// As [`Companion::sae`]; a file cannot be written.
    pub fn save(
        &self,
        out: &Path,
        site: &str,
        origin: FeedOrigin,
        training: &Training,
    ) -> Result<Sae, SaeError> {
        let sae = self.sae()?;
        let dir = PartialDir::open(out)?;
        let metadata = SaeLensMetadata {
            model_name: origin.model.as_ref().map(|model| model.name.clone()),
            hook_name: site.to_owned(),
            hook_name_out: None,
            context_size: origin.context,
            prepend_bos: origin.prepend_bos,
        };
        saelens::save(&sae, &metadata, dir.path())?;
        write_json(&dir.path().join("training.json"), training)?;
        let mut config = self.config.clone();
        config.wiring = Wiring::Autoencoder {
            site: Some(site.to_owned()),
        };
        let mut manifest = Manifest::new(SAE_KIND, config.seed)
            .with_site(site)
            .with_config(serde_json::json!({ "train": config, "grown_with_model": true }));
        for parent in origin.parents {
            manifest = manifest.with_parent(parent);
        }
        if let Some(model) = origin.model {
            manifest = manifest.with_model(model);
        }
        dir.finish(manifest)?;
        Ok(sae)
    }

    /// All its numbers with their names, in a fixed order.
    pub fn numbers(&self) -> Vec<(String, Vec<f32>)> {
        let of = |prefix: &'static str, parameters: &Parameters<f32>| {
            let named = parameters.named().into_iter();
            named
                .map(|(name, values)| (format!("{prefix}.{name}"), values.clone()))
                .collect::<Vec<_>>()
        };
        let mut all = of("parameters", &self.parameters);
        all.extend(of("first", &self.moments.first));
        all.extend(of("second", &self.moments.second));
        all
    }

    /// What beside its numbers it goes on from.
    pub fn state(&self) -> &CompanionState {
        &self.state
    }

    /// Goes on from where another one with the same settings was.
    ///
    /// # Errors
    /// Numbers are missing or too many.
    pub fn restore(
        &mut self,
        state: CompanionState,
        numbers: impl Fn(&str) -> Option<Vec<f32>>,
    ) -> Result<(), SaeError> {
        if state.silent.len() != self.config.features {
            return Err(SaeError::Option(
                "the state is that of another dictionary".to_owned(),
            ));
        }
        for (prefix, parameters) in [
            ("parameters", &mut self.parameters),
            ("first", &mut self.moments.first),
            ("second", &mut self.moments.second),
        ] {
            for (name, values) in parameters.named_mut() {
                let name = format!("{prefix}.{name}");
                match numbers(&name) {
                    Some(found) if found.len() == values.len() => *values = found,
                    _ => {
                        return Err(SaeError::Option(format!(
                            "the state of a dictionary has no {} numbers of {name}",
                            values.len()
                        )));
                    }
                }
            }
        }
        self.kind.remember(&state.memory);
        self.state = state;
        Ok(())
    }
}

/// Refuses kinds whose loss is not one reconstruction with a number of active features that is given.
fn check_kind(kind: &KindConfig) -> Result<(), SaeError> {
    match kind {
        KindConfig::TopK { .. } | KindConfig::BatchTopK { .. } => Ok(()),
        other => Err(SaeError::Option(format!(
            "a dictionary that grows with its model is of the kind topk or batchtopk, not {}: the number of its active \
             features must be given, and its loss one reconstruction",
            other.name()
        ))),
    }
}

/// A batch whose activations are measured in their own lengths.
struct Joint<T> {
    batch: Batch<T>,
    /// Of the unexplained share in the activations.
    gradient: Vec<T>,
}

/// `√d / ‖x‖` of each row; a row of zeros stays as it is.
fn factors<T: Real>(x: &[T], d: usize) -> Vec<f64> {
    let square = |row: &[T]| row.iter().map(|x| x.as_f64() * x.as_f64()).sum::<f64>();
    let rows = x.chunks_exact(d).map(square);
    rows.map(|square| {
        if square > 0.0 {
            (d as f64 / square).sqrt()
        } else {
            1.0
        }
    })
    .collect()
}

/// Each row at the length `√d`.
fn by_length<T: Real>(x: &[T], d: usize) -> Vec<T> {
    let mut u = x.to_vec();
    for (row, factor) in u.chunks_exact_mut(d).zip(factors(x, d)) {
        for u in row {
            *u *= T::of(factor);
        }
    }
    u
}

/// The unexplained share of variance of activations `x [n, d]`, the dictionary's gradients, and that in `x`.
fn joint_batch<T: Real>(
    kind: &mut dyn Kind<T>,
    parameters: &Parameters<T>,
    x: &[T],
    dead: &[u32],
) -> Joint<T> {
    let d = parameters.d;
    let n = (x.len() / d) as f64;
    let u = by_length(x, d);
    let mut mean = vec![0.0; d];
    for row in u.chunks_exact(d) {
        for (mean, u) in mean.iter_mut().zip(row) {
            *mean += u.as_f64() / n;
        }
    }
    let spread = |row: &[T]| {
        let parts = row.iter().zip(&mean);
        parts.map(|(u, m)| (u.as_f64() - m).powi(2)).sum::<f64>()
    };
    let variance = u.chunks_exact(d).map(spread).sum::<f64>() / n;
    let batch = kind.batch(
        parameters,
        &Rows::pairs(&u, &u),
        &Step {
            variance,
            dead,
            sparsity: 1.0,
        },
    );
    let mut gradient = batch.by_rows(&parameters.encoder, d);
    // Through the variance: L = R/V with V = mean ‖u − ū‖².
    let by_variance = -batch.reconstruction / variance * 2.0 / n;
    // Through the unit: u = √d·x/‖x‖ has no part along x, and across it the factor √d/‖x‖.
    let rows = gradient.chunks_exact_mut(d).zip(u.chunks_exact(d));
    for ((row, u), factor) in rows.zip(factors(x, d)) {
        let mut along = 0.0;
        for ((g, u), mean) in row.iter_mut().zip(u).zip(&mean) {
            *g += T::of(by_variance * (u.as_f64() - mean));
            along += g.as_f64() * u.as_f64() / d as f64;
        }
        for (g, u) in row.iter_mut().zip(u) {
            *g = T::of(factor * (g.as_f64() - along * u.as_f64()));
        }
    }
    Joint { batch, gradient }
}

#[cfg(test)]
mod tests;
