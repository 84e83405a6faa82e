//! Training of adapters of every kind.
//!
//! The blocks below the first one that changes are run once for each sequence; each step runs the blocks above, forward
//! and backward. For adapters at a site the model's backward pass ends at the changed stream, and a handwritten pass goes on
//! from there to the parameters.

mod batch;
mod config;
mod learner;
pub(crate) mod prepare;
mod state;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pullback_artifact::{
    Control, Manifest, ModelRef, ParentRef, PartialDir, read_json, refuse_existing, sha256_bytes,
    write_json,
};
use pullback_model::{Model, Site};
use pullback_sae::{Dictionary, Sae};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use self::batch::{Aim, Batch, mean_over, typical_sizes};
pub(crate) use self::config::layer_of;
pub use self::config::{Basis, Length, Sparsity, TrainConfig};
use self::learner::{Learner, Step};
use self::prepare::{Prepared, Source};
pub(crate) use self::prepare::{Sequence, prepare, targets};
use self::state::{Best, State, Work};
use crate::samples::{Sample, split};
use crate::{ADAPTER_KIND, Adapter, AdapterError, Objective};

/// The figures of an adapter: `result.json`, and the `adapter` object of the commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterResult {
    /// In which terms it is.
    pub basis: String,
    /// Hidden units, columns of factors, rank of updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Numbers that make it up.
    pub parameters: usize,
    /// Those that are not zero.
    pub nonzero: usize,
    /// The objective on held-out samples without the adapter; for next tokens the cross-entropy, in nats a token.
    pub loss_before: f64,
    /// With it.
    pub loss_after: f64,
    /// Steps of training.
    pub steps: usize,
    /// The step that the adapter is of: the last, or the best where training ended early.
    pub kept_step: usize,
    /// Of updates trained around a dictionary: what the dictionary costs, before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
}

/// Cross-entropies of held-out tokens that count, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// Of the model as it is.
    pub ce_clean: f64,
    /// With the dictionary's reconstruction in place of the activation.
    pub ce_spliced: f64,
    /// With the reconstruction and the updates.
    pub ce_adapted: f64,
}

impl Gap {
    /// The share of the gap that the updates close: `(ce_spliced − ce_adapted) / (ce_spliced − ce_clean)`.
    pub fn closed(&self) -> f64 {
        (self.ce_spliced - self.ce_adapted) / (self.ce_spliced - self.ce_clean)
    }
}

/// What training keeps in `training.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AdapterTraining {
    /// Loss of each step's batch.
    pub train: Vec<f64>,
    /// Held-out loss: `(step, loss)`, from before the first step on.
    pub held_out: Vec<(usize, f64)>,
}

/// What [`train`] returns.
#[derive(Clone, Debug)]
pub struct TrainedAdapter {
    /// The adapter.
    pub adapter: Adapter,
    /// Its figures.
    pub result: AdapterResult,
    /// Its curves.
    pub training: AdapterTraining,
    /// Mean over the steps of this call; measurements of the held-out loss are not counted. None if there were none.
    pub seconds_per_step: Option<f64>,
}

/// What an adapter is trained with.
#[derive(Clone)]
pub struct TrainInput<'a> {
    /// The model.
    pub model: &'a Model,
    /// The name that the artifact records of it.
    pub model_name: &'a str,
    /// What to learn from; every sixth is held out.
    pub samples: &'a [Sample],
    /// For a basis over features: the dictionary, and what the artifact records of it.
    pub dictionary: Option<(Arc<Sae>, ParentRef)>,
    /// For distillation: the model to learn from. It must have the same tokens.
    pub teacher: Option<&'a Model>,
}

impl<'a> TrainInput<'a> {
    /// A model and samples, without dictionary and teacher.
    pub fn new(model: &'a Model, model_name: &'a str, samples: &'a [Sample]) -> Self {
        Self {
            model,
            model_name,
            samples,
            dictionary: None,
            teacher: None,
        }
    }
}

const STATE_FILE: &str = "adapter-state.safetensors";
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);
/// Sequences from which the sizes of activations and codes are taken.
const SIZED: usize = 256;
/// Held-out samples that are measured, at most.
const MEASURED: usize = 128;

/// Trains an adapter and leaves an artifact at `out`. Every sixth sample is held out.
///
/// Interrupted work stays in `<out>.partial`, and the same call goes on from its last checkpoint to the
/// same result.
///
/// # Errors
/// An option makes no sense; a sample does not fit the objective or the context; `out` exists; the work was interrupted;
/// training diverges, in which case the state with the best held-out loss is at `out`.
pub fn train(
    input: &TrainInput<'_>,
    config: &TrainConfig,
    out: &Path,
    control: &Control,
) -> Result<TrainedAdapter, AdapterError> {
    check(input, config, out)?;
    let sets = Sets::new(input, config, control)?;
    train_on(&sets, input, config, out, control)
}

/// Refuses what cannot be trained.
fn check(input: &TrainInput<'_>, config: &TrainConfig, out: &Path) -> Result<(), AdapterError> {
    config.check(input.model.config())?;
    check_input(input, config)?;
    Ok(refuse_existing(out)?)
}

/// As [`train`], on samples that may already have been trained on from the same block, with the same dictionary.
pub(crate) fn train_on(
    sets: &Sets,
    input: &TrainInput<'_>,
    config: &TrainConfig,
    out: &Path,
    control: &Control,
) -> Result<TrainedAdapter, AdapterError> {
    check(input, config, out)?;
    let model = input.model;
    let (train_set, held_out_set) = (&sets.learnt, &sets.held_out);
    let first = match &config.basis {
        Basis::Lora { blocks, .. } => blocks.iter().min().copied().unwrap_or(0),
        _ => config.layer()? + 1,
    };
    let mut source = Source::new(model, first, config.objective, config.leash > 0.0);
    source.dictionary = input.dictionary.as_ref().map(|(sae, _)| Arc::clone(sae));
    source.dictionary = source
        .dictionary
        .filter(|_| config.basis.needs_dictionary());
    // Around a dictionary the model as it is teaches, unless another one does.
    let own = config.around.then_some(model);
    let teacher = input.teacher.or(own);
    source.teacher = teacher;
    let dictionary = input.dictionary.as_ref().filter(|_| config.around);
    let standing = match dictionary {
        Some((sae, _)) => Some((Arc::clone(sae), config.layer()?)),
        None => None,
    };
    // Below the first block that changes, the reconstruction is the same at every step.
    source.around = standing.clone().filter(|(_, layer)| *layer < first);
    let between = standing.as_ref().filter(|(_, layer)| *layer >= first);
    let aim = Aim {
        model,
        teacher,
        objective: config.objective,
        leash: config.leash,
        first,
        around: between.map(|(sae, layer)| (&**sae, *layer)),
    };
    let mut dir = PartialDir::open(out)?;

    let sized: Vec<&Prepared> = train_set.iter().take(SIZED).collect();
    let stage = control.stage("run up to the site", sized.len() as u64, "samples");
    let units = typical_sizes(&source, &sized, || {
        control.check()?;
        stage.advance(1);
        Ok(())
    })?;
    stage.finish();
    let dictionary = source.dictionary.clone();
    let (mut learner, parameters) = Learner::start(config, model, dictionary.as_ref(), units)?;
    let mut state = State {
        work: Work {
            config: config.clone(),
            data: data_digest(input.samples)?,
            model: model.digest().to_owned(),
            dictionary: input
                .dictionary
                .as_ref()
                .map(|(_, parent)| parent.digest.clone()),
            teacher: input.teacher.map(|teacher| teacher.digest().to_owned()),
        },
        step: 0,
        training: AdapterTraining::default(),
        parameters,
        support: learner.support().cloned(),
        best: None,
    };
    let state_path = dir.path().join(STATE_FILE);
    if dir.is_resumed() {
        match State::load(&state_path, state.support.as_ref()) {
            Ok(found) if found.work == state.work => state = found,
            _ => {
                control.say(&format!(
                    "{} holds the start of a different training: starting anew",
                    dir.path().display()
                ));
                dir.clear()?;
            }
        }
        if let Some(support) = state.support.clone() {
            learner.set_support(support);
        }
    }

    let steps_per_epoch = train_set.len().div_ceil(config.batch);
    let steps = match config.length {
        Length::Epochs(epochs) => steps_per_epoch * epochs,
        Length::Steps(steps) => steps,
    };
    let every = config.evaluate_every.unwrap_or(steps_per_epoch);
    let measured = &held_out_set[..held_out_set.len().min(MEASURED)];
    let measure = |learner: &Learner, state: &State| {
        let apply = |batch: &Batch| learner.apply(&state.parameters, batch);
        mean_over(aim, &source, measured, apply, || Ok(control.check()?))
    };
    if state.training.held_out.is_empty() {
        let loss = mean_over(
            aim,
            &source,
            measured,
            |batch| (batch.stream.clone(), Vec::new()),
            || Ok(control.check()?),
        )?;
        note_held_out(&mut state, &learner, loss);
    }
    let stage = control.stage("adapt", steps as u64, "steps");
    stage.resume_from(state.step as u64);
    let mut saved = Instant::now();
    let mut spent: Vec<f64> = Vec::new();
    let mut diverged = None;
    while state.step < steps && !is_stale(&state, config.patience) {
        if control.is_interrupted() || saved.elapsed() > CHECKPOINT_EVERY {
            state.support = learner.support().cloned();
            state.save(&state_path)?;
            saved = Instant::now();
            control.check()?;
        }
        let clock = Instant::now();
        let batch = chosen(train_set, config, state.step, steps_per_epoch);
        let batch = Batch::new(&source, &batch, model.device())?;
        let step = Step {
            number: state.step,
            of: steps,
        };
        let gradient = learner.gradient(config, aim, &batch, &mut state.parameters, step)?;
        let loss = gradient.evaluated.sum / gradient.evaluated.count;
        let finite = |parts: &[Vec<f32>]| parts.iter().flatten().all(|x| x.is_finite());
        if !loss.is_finite()
            || !gradient.evaluated.divergence.is_finite()
            || !finite(&gradient.parts)
        {
            diverged = Some(state.step);
            break;
        }
        let lr = config.rate(state.step, steps);
        state.parameters.step(&gradient.parts, state.step, lr);
        learner.after_step(&mut state.parameters, lr);
        state.training.train.push(loss);
        state.step += 1;
        spent.push(clock.elapsed().as_secs_f64());
        if state.step.is_multiple_of(every) || state.step == steps {
            let held_out = measure(&learner, &state)?;
            if !held_out.is_finite() {
                diverged = Some(state.step);
                break;
            }
            note_held_out(&mut state, &learner, held_out);
            stage.message(&format!("held-out loss {held_out:.3}"));
        }
        stage.advance(1);
    }
    stage.finish();

    let mut kept = (state.step, state.training.held_out.last().copied());
    if (diverged.is_some() || config.patience.is_some())
        && let Some(best) = state.best.take()
    {
        kept = (best.step, Some((best.step, best.loss)));
        state.parameters.values = best.values;
        if let Some(support) = best.support {
            learner.set_support(support);
        }
    }
    let adapter = learner.adapter(&state.parameters, model)?;
    let gap = if standing.is_some() {
        Some(measure_gap(
            input,
            config,
            aim,
            &source,
            (&learner, &state),
            control,
        )?)
    } else {
        None
    };
    let losses = &state.training.held_out;
    let result = AdapterResult {
        basis: adapter.basis().to_owned(),
        rank: adapter.rank(),
        parameters: adapter.parameters(),
        nonzero: adapter.nonzero(),
        loss_before: losses.first().map_or(f64::NAN, |(_, loss)| *loss),
        loss_after: kept.1.map_or(f64::NAN, |(_, loss)| loss),
        steps: state.step,
        kept_step: kept.0,
        gap,
    };
    adapter.save(dir.path(), model, input.model_name)?;
    write_json(&dir.path().join("training.json"), &state.training)?;
    write_json(&dir.path().join("result.json"), &result)?;
    dir.finish_skipping(manifest(input, config, &state, &adapter), &[STATE_FILE])?;
    if let Some(step) = diverged {
        return Err(AdapterError::Diverged {
            step,
            lr: config.lr,
            kept_step: kept.0,
            kept: out.to_owned(),
        });
    }
    let count = spent.len() as f64;
    Ok(TrainedAdapter {
        adapter,
        result,
        training: state.training,
        seconds_per_step: (count > 0.0).then(|| spent.iter().sum::<f64>() / count),
    })
}

/// What the dictionary costs on the held-out samples without and with the updates.
fn measure_gap(
    input: &TrainInput<'_>,
    config: &TrainConfig,
    aim: Aim<'_>,
    spliced: &Source<'_>,
    (learner, state): (&Learner, &State),
    control: &Control,
) -> Result<Gap, AdapterError> {
    let check = || Ok(control.check()?);
    let aim = Aim {
        objective: Objective::NextToken,
        ..aim
    };
    // What is kept of a sequence is that of one source.
    let mut sets = Vec::new();
    for _ in 0..2 {
        let mut held_out = Sets::new(input, config, control)?.held_out;
        held_out.truncate(MEASURED);
        sets.push(held_out);
    }
    let as_it_is = |batch: &Batch| (batch.stream.clone(), Vec::new());
    let plain = Source::new(input.model, aim.first, Objective::NextToken, false);
    let clean = Aim {
        around: None,
        ..aim
    };
    let adapted = |batch: &Batch| learner.apply(&state.parameters, batch);
    Ok(Gap {
        ce_clean: mean_over(clean, &plain, &sets[0], as_it_is, check)?,
        ce_spliced: mean_over(aim, spliced, &sets[1], as_it_is, check)?,
        ce_adapted: mean_over(aim, spliced, &sets[1], adapted, check)?,
    })
}

/// Refuses parts that do not fit each other.
fn check_input(input: &TrainInput<'_>, config: &TrainConfig) -> Result<(), AdapterError> {
    let refuse = |problem: String| Err(AdapterError::Option(problem));
    let config_of = input.model.config();
    match &input.dictionary {
        Some((dictionary, _)) if dictionary.d() != config_of.d_model => {
            return refuse(format!(
                "the dictionary is of width {}, the model's stream of width {}",
                dictionary.d(),
                config_of.d_model
            ));
        }
        None if config.around => {
            return refuse(
                "training around a dictionary needs one: give it with --around".to_owned(),
            );
        }
        None if config.basis.needs_dictionary() => {
            return refuse(format!(
                "the basis {} needs a dictionary: give it with --sae",
                config.basis.name()
            ));
        }
        _ => {}
    }
    match input.teacher {
        Some(teacher) if config.objective == Objective::Distill => {
            let (own, theirs) = (config_of.d_vocab, teacher.config().d_vocab);
            if own != theirs {
                return refuse(format!(
                    "the teacher has {theirs} tokens, the model {own}: distillation needs the same ones"
                ));
            }
        }
        None if config.objective == Objective::Distill && !config.around => {
            return refuse("distillation needs a teacher: give it with --teacher".to_owned());
        }
        _ => {}
    }
    Ok(())
}

/// Samples as the model sees them, with what does not change about them once it has been computed.
pub(crate) struct Sets {
    learnt: Vec<Prepared>,
    held_out: Vec<Prepared>,
}

impl Sets {
    /// Of the samples of a training.
    ///
    /// # Errors
    /// There are too few, one does not fit, or the work was interrupted.
    pub(crate) fn new(
        input: &TrainInput<'_>,
        config: &TrainConfig,
        control: &Control,
    ) -> Result<Self, AdapterError> {
        let (learnt, held_out) = split(input.samples);
        if learnt.is_empty() || held_out.is_empty() {
            return Err(AdapterError::Option(format!(
                "{} pairs are too few: at least two are needed, one to learn from and one to hold out",
                input.samples.len()
            )));
        }
        let stage = control.stage("prepare pairs", input.samples.len() as u64, "pairs");
        let prepare_all = |samples: &[Sample]| -> Result<Vec<Prepared>, AdapterError> {
            let mut all = Vec::new();
            for sample in samples {
                control.check()?;
                stage.advance(1);
                all.extend(prepare(
                    input.model,
                    sample,
                    config.objective,
                    config.context,
                )?);
            }
            Ok(all)
        };
        let sets = Self {
            learnt: prepare_all(&learnt)?,
            held_out: prepare_all(&held_out)?,
        };
        stage.finish();
        Ok(sets)
    }
}

/// The samples of a step, in an order that hangs on the seed and the epoch alone.
fn chosen<'a>(
    set: &'a [Prepared],
    config: &TrainConfig,
    step: usize,
    steps_per_epoch: usize,
) -> Vec<&'a Prepared> {
    let mut order: Vec<usize> = (0..set.len()).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    rng.set_stream((step / steps_per_epoch) as u64 + 1);
    order.shuffle(&mut rng);
    let start = (step % steps_per_epoch) * config.batch;
    let places = &order[start..(start + config.batch).min(order.len())];
    places.iter().map(|&place| &set[place]).collect()
}

/// Notes a held-out loss, and the state if it is the best so far.
fn note_held_out(state: &mut State, learner: &Learner, loss: f64) {
    state.training.held_out.push((state.step, loss));
    if state.best.as_ref().is_none_or(|best| loss < best.loss) {
        state.best = Some(Best {
            step: state.step,
            loss,
            values: state.parameters.values.clone(),
            support: learner.support().cloned(),
        });
    }
}

/// Whether the held-out loss has not become better for so many measurements.
fn is_stale(state: &State, patience: Option<usize>) -> bool {
    let (Some(patience), Some(best)) = (patience, &state.best) else {
        return false;
    };
    let later = state
        .training
        .held_out
        .iter()
        .filter(|(step, _)| *step > best.step);
    later.count() >= patience
}

fn manifest(
    input: &TrainInput<'_>,
    config: &TrainConfig,
    state: &State,
    adapter: &Adapter,
) -> Manifest {
    let model = ModelRef {
        name: input.model_name.to_owned(),
        digest: input.model.digest().to_owned(),
    };
    let mut of = serde_json::json!({ "train": config, "data": state.work.data });
    if let Some(teacher) = &state.work.teacher {
        of["teacher"] = teacher.as_str().into();
    }
    let mut manifest = Manifest::new(ADAPTER_KIND, config.seed)
        .with_model(model)
        .with_config(of);
    if let Some(site) = adapter.site() {
        manifest = manifest.with_site(site.to_string());
    }
    match &input.dictionary {
        Some((_, parent)) if config.basis.needs_dictionary() || config.around => {
            manifest.with_parent(parent.clone())
        }
        _ => manifest,
    }
}

/// Reads what training kept beside an adapter.
///
/// # Errors
/// A file is missing or damaged.
pub fn load_training(path: &Path) -> Result<(AdapterResult, AdapterTraining), AdapterError> {
    Ok((
        read_json(&path.join("result.json"))?,
        read_json(&path.join("training.json"))?,
    ))
}

/// Digest of a set of samples, as the `data` of an adapter's configuration records it.
///
/// # Errors
/// Never for samples that were read.
pub fn data_digest(samples: &[Sample]) -> Result<String, AdapterError> {
    let data =
        serde_json::to_vec(samples).map_err(|error| AdapterError::Option(error.to_string()))?;
    Ok(format!("sha256:{}", sha256_bytes(&data)))
}

/// Activations `[n, d]` at a residual stream after a block, on the held-out samples: one row for each token
/// before one that counts, without any adapter. Plain text is cut into windows of `context` tokens.
///
/// # Errors
/// The site is another; a sample does not fit the model; the work was interrupted.
pub fn held_out_answers(
    model: &Model,
    samples: &[Sample],
    site: Site,
    context: usize,
    control: &Control,
) -> Result<Vec<f32>, AdapterError> {
    let first = layer_of(site)? + 1;
    let d = model.config().d_model;
    let source = Source::new(model, first, Objective::NextToken, false);
    let mut activations = Vec::new();
    for sample in split(samples).1 {
        for prepared in prepare(model, &sample, Objective::NextToken, context)? {
            control.check()?;
            for sequence in &prepared.sequences {
                let frozen = source.frozen(sequence)?;
                for row in &sequence.counted {
                    activations.extend_from_slice(&frozen.stream[row * d..(row + 1) * d]);
                }
            }
        }
    }
    Ok(activations)
}
