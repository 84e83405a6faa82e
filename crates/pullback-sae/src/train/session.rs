//! One dictionary in training.

use std::path::Path;

use pullback_activations::{Feed, Piece, Position};
use pullback_artifact::{Control, Manifest, PartialDir, write_json};

use super::checkpoint::{self, Checkpoint, Found, Progress};
use super::start::{choose_scale, initial, variance};
use super::units::{Units, in_units_of_activations};
use super::wiring::{Wires, joined};
use super::{CurvePoint, SAE_KIND, TrainConfig, Trained, Training, Wiring};
use crate::judge::columns;
use crate::kinds::Kind;
use crate::learn::{Adam, Moments, Rows, Step, batch, update};
use crate::metrics::Reconstruction;
use crate::saelens::{self, SaeLensMetadata};
use crate::{Dictionary, Sae, SaeError};

/// Points of the curve of a long training.
const CURVE_POINTS: usize = 40;
/// Steps at least from one point to the next: a point costs about as much as one step of a kind that is still dense.
const STEPS_PER_POINT: usize = 8;
/// Held-out rows that the curve looks at.
const CURVE_ROWS: usize = 2048;
/// Batches without a firing before which no feature counts as dead, unless it is said otherwise.
const LEAST_BATCHES: usize = 10;
/// Rows that a kind sees before training.
const PREPARED_ROWS: usize = 1024;

/// What all dictionaries of one training have in common.
pub(super) struct Common<'a> {
    pub(super) feed: &'a dyn Feed,
    /// Digest of the rows.
    pub(super) rows: String,
    /// The first rows, in the units of the activations.
    pub(super) first: &'a Piece,
    pub(super) steps: usize,
}

/// A dictionary, where it is in its training, and all that the next step needs.
pub(super) struct Session {
    config: TrainConfig,
    /// With its site named.
    wiring: Wiring,
    wires: Wires,
    inputs: Units,
    outputs: Units,
    kind: Box<dyn Kind<f32>>,
    dir: PartialDir,
    state: Checkpoint,
    variance: f64,
    steps: usize,
    dead_after: usize,
    held_out: Piece,
    first_step: usize,
}

impl Session {
    /// Begins a training, or goes on with the one that was interrupted.
    pub(super) fn open(
        common: &Common<'_>,
        config: &TrainConfig,
        out: &Path,
        control: &Control,
    ) -> Result<Self, SaeError> {
        let feed = common.feed;
        config.check(feed.pass())?;
        let (wiring, wires) = config.wiring.resolve(feed)?;
        let config = config.clone();
        let mut kind = config.kind.build(config.aux(wires.d_out()));
        let rows = common.first.rows;
        let mut x = joined(common.first, &wires.inputs, rows);
        let inputs = Units::of(config.input_norm, &x, &wires.inputs)?;
        inputs.apply(&mut x);
        let (outputs, target) = if config.wiring.is_same() {
            (inputs.clone(), None)
        } else {
            let mut target = joined(common.first, &wires.outputs, rows);
            let outputs = Units::of(config.input_norm, &target, &wires.outputs)?;
            outputs.apply(&mut target);
            (outputs, Some(target))
        };
        let target = target.as_ref().unwrap_or(&x);
        let variance = variance(target, wires.d_out());
        if !(variance.is_finite() && variance > 0.0) {
            return Err(SaeError::Option(format!(
                "the rows at {} have variance {variance}: there is nothing to learn from them",
                wiring.outputs().join(", ")
            )));
        }
        let mut parameters = initial((&x, target), &wires, &config, &*kind);
        let prepared = rows.min(PREPARED_ROWS);
        let rows = Rows::pairs(
            &x[..prepared * wires.d()],
            &target[..prepared * wires.d_out()],
        );
        choose_scale(&mut parameters, &config, &rows, variance);
        kind.prepare(&mut parameters, rows.x);

        let mut dir = PartialDir::open(out)?;
        let mut found = Found::Nothing;
        if dir.is_resumed() {
            found = Checkpoint::load(dir.path(), (&config, &common.rows), &parameters)?;
            if let Found::Other = found {
                control.say(&format!(
                    "{} holds the start of a different training: starting anew",
                    dir.path().display()
                ));
            }
            if !matches!(found, Found::Same(_)) {
                dir.clear()?;
            }
        }
        let state = match found {
            Found::Same(state) => *state,
            Found::Nothing | Found::Other => Checkpoint {
                moments: Moments::zero(&parameters),
                silent: vec![0; config.features],
                parameters,
                progress: Progress {
                    config: config.clone(),
                    rows: common.rows.clone(),
                    step: 0,
                    position: Position::default(),
                    curve: Vec::new(),
                    memory: Vec::new(),
                    loss_sum: 0.0,
                    loss_steps: 0,
                },
            },
        };
        kind.remember(&state.progress.memory);
        let total = common.steps * config.batch;
        Ok(Self {
            // Of a short training a twentieth may be less than a batch, in which a living feature may well be silent.
            dead_after: config
                .dead_after_tokens
                .unwrap_or((total / 20).max(LEAST_BATCHES * config.batch)),
            held_out: feed.held_out(CURVE_ROWS)?,
            first_step: state.progress.step,
            steps: common.steps,
            config,
            wiring,
            wires,
            inputs,
            outputs,
            kind,
            dir,
            state,
            variance,
        })
    }

    /// Steps done, and where the rows of the next begin.
    pub(super) fn place(&self) -> (usize, Position) {
        (self.state.progress.step, self.state.progress.position)
    }

    pub(super) fn save(&self) -> Result<(), SaeError> {
        self.state.save(self.dir.path())
    }

    /// One step; `after` is where the next one's rows begin. Where it reaches one, the point of the curve.
    pub(super) fn step(
        &mut self,
        piece: &Piece,
        after: Position,
    ) -> Result<Option<CurvePoint>, SaeError> {
        let (config, step) = (&self.config, self.state.progress.step);
        let mut x = joined(piece, &self.wires.inputs, piece.rows);
        self.inputs.apply(&mut x);
        let target = (!config.wiring.is_same()).then(|| {
            let mut target = joined(piece, &self.wires.outputs, piece.rows);
            self.outputs.apply(&mut target);
            target
        });
        let dead: Vec<u32> = self.dead();
        let batch = batch(
            &mut *self.kind,
            &self.state.parameters,
            &Rows::pairs(&x, target.as_ref().unwrap_or(&x)),
            &Step {
                variance: self.variance,
                dead: &dead,
                sparsity: config.sparsity(step, self.steps),
            },
        );
        let loss = batch.loss();
        if !loss.is_finite() {
            return Err(SaeError::Diverged {
                step,
                loss,
                lr: config.lr,
            });
        }
        let adam = Adam::at(step + 1, config.rate(step, self.steps), config.betas);
        let state = &mut self.state;
        update(
            &mut state.parameters,
            &mut state.moments,
            &batch,
            adam,
            config.clip,
        );
        self.kind.settle(&mut state.parameters);
        for (silent, &fired) in state.silent.iter_mut().zip(&batch.fired) {
            *silent = if fired {
                0
            } else {
                *silent + config.batch as u64
            };
        }
        let progress = &mut state.progress;
        progress.step += 1;
        progress.position = after;
        progress.memory = self.kind.memory();
        progress.loss_sum += loss;
        progress.loss_steps += 1;
        let most = (self.steps / STEPS_PER_POINT).clamp(1, CURVE_POINTS);
        let points = |step: usize| step * most / self.steps;
        if progress.step != self.steps && points(progress.step) == points(step) {
            return Ok(None);
        }
        let point = CurvePoint {
            tokens: progress.step * config.batch,
            loss: progress.loss_sum / f64::from(progress.loss_steps),
            explained_variance: self.explained_variance()?,
            l0: batch.active as f64 / config.batch as f64,
            dead: dead.len(),
        };
        let progress = &mut self.state.progress;
        progress.curve.push(point);
        (progress.loss_sum, progress.loss_steps) = (0.0, 0);
        Ok(Some(point))
    }

    /// Features that count as dead, ascending.
    fn dead(&self) -> Vec<u32> {
        (0..self.config.features as u32)
            .filter(|&feature| self.state.silent[feature as usize] >= self.dead_after as u64)
            .collect()
    }

    /// The dictionary as it is now.
    fn sae(&self) -> Result<Sae, SaeError> {
        in_units_of_activations(
            &self.state.parameters,
            &*self.kind,
            &self.inputs,
            &self.outputs,
        )
    }

    /// That of some held-out rows, the mean over the sites that are reconstructed; none where there are none.
    fn explained_variance(&self) -> Result<Option<f64>, SaeError> {
        if self.held_out.rows == 0 {
            return Ok(None);
        }
        let sae = self.sae()?;
        let x = joined(&self.held_out, &self.wires.inputs, self.held_out.rows);
        let codes = sae.encode(&x);
        let made = sae.reconstruct(&x, &codes);
        let widths: Vec<usize> = self.wires.outputs.iter().map(|wire| wire.d).collect();
        let mut sum = 0.0;
        for (site, wire) in self.wires.outputs.iter().enumerate() {
            let mut sums = Reconstruction::new(wire.d, sae.n_features());
            let of_site = columns(&made, &widths, site);
            sums.add(&self.held_out.sites[wire.place], &codes, &of_site);
            sum += sums.metrics().explained_variance;
        }
        Ok(Some(sum / self.wires.outputs.len() as f64))
    }

    /// Leaves the artifact.
    pub(super) fn finish(self, common: &Common<'_>, seconds: f64) -> Result<Trained, SaeError> {
        let sae = self.sae()?;
        let dead = self.dead().len();
        let training = Training {
            tokens: self.steps * self.config.batch,
            curve: self.state.progress.curve.clone(),
        };
        let origin = common.feed.origin();
        let metadata = SaeLensMetadata {
            model_name: origin.model.as_ref().map(|model| model.name.clone()),
            hook_name: self.wiring.inputs().join(","),
            hook_name_out: match &self.wiring {
                Wiring::Transcoder { to, .. } => Some(to.clone()),
                _ => None,
            },
            context_size: origin.context,
            prepend_bos: origin.prepend_bos,
        };
        saelens::save(&sae, &metadata, self.dir.path())?;
        write_json(&self.dir.path().join("training.json"), &training)?;
        let mut manifest = Manifest::new(SAE_KIND, self.config.seed)
            .with_site(metadata.hook_name.clone())
            .with_config(serde_json::json!({ "train": self.config }));
        for parent in origin.parents {
            manifest = manifest.with_parent(parent);
        }
        if let Some(model) = origin.model {
            manifest = manifest.with_model(model);
        }
        self.dir.finish_skipping(manifest, &checkpoint::FILES)?;
        let trained = (self.steps - self.first_step) * self.config.batch;
        Ok(Trained {
            dead_fraction: dead as f64 / sae.n_features() as f64,
            sae,
            training,
            tokens_per_second: trained as f64 / seconds.max(1e-9),
        })
    }
}
