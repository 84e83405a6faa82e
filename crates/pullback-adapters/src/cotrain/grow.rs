//! Training one model, alone or with dictionaries.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor, TensorData};
use pullback_activations::FeedOrigin;
use pullback_artifact::{Control, Manifest, ModelRef, PartialDir, read_json, write_json};
use pullback_model::{Input, Model, ModelFiles, RunOptions, Site, Weights, save_like};
use pullback_sae::{Companion, CompanionState, CurvePoint, Training};
use serde::{Deserialize, Serialize};

use super::data::Data;
use super::optimizer::{Learned, adam_w};
use super::step::{Companions, joint_step};
use super::{CotrainConfig, MODEL_KIND};
use crate::AdapterError;
use crate::residual::values;
use crate::tensor_file::{TensorFile, write_tensors};

const STATE_FILE: &str = "grow-state.safetensors";
const CURVE_FILE: &str = "training.json";
const CHECKPOINT_EVERY: Duration = Duration::from_secs(20);
/// Points of a curve.
const POINTS: usize = 30;
/// Held-out sequences that the curve looks at.
const CURVE_SEQUENCES: usize = 32;

/// A point of a model's training curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GrowPoint {
    /// Steps done.
    pub step: usize,
    /// Mean cross-entropy of the batches since the last point, in nats a token.
    pub loss: f64,
    /// Cross-entropy on held-out text.
    pub held_out: f64,
    /// Share of variance that the dictionary of each site left unexplained in the last batch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unexplained: Vec<f64>,
    /// Dead features of each dictionary.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead: Vec<usize>,
}

/// The part of a checkpoint that is not lists of numbers.
#[derive(Serialize, Deserialize)]
struct Notes {
    step: usize,
    curve: Vec<GrowPoint>,
    /// Sum of losses since the last point, and their number.
    since: (f64, usize),
    companions: Vec<CompanionState>,
}

/// What a model is grown from and on.
pub(super) struct Soil<'a> {
    pub(super) config: &'a CotrainConfig,
    pub(super) seed: u64,
    pub(super) data: &'a Data,
    pub(super) device: &'a Device,
    /// The directory of the model at the start.
    pub(super) start: &'a Path,
}

/// Trains a model and leaves it at `out` as a directory in the Hugging Face layout; with `dictionaries`, one at each site grows
/// with it and is left in a directory of that name. What is there already is not made again.
///
/// # Errors
/// Training diverges; a file cannot be written; the work was interrupted.
pub(super) fn grow(
    soil: &Soil<'_>,
    out: &Path,
    dictionaries: Option<&Path>,
    control: &Control,
) -> Result<Vec<GrowPoint>, AdapterError> {
    if out.exists() {
        return Ok(read_json(&out.join(CURVE_FILE))?);
    }
    let config = soil.config;
    let name = name_of(out);
    let dir = PartialDir::open(out)?;
    let files = ModelFiles::open(soil.start)?;
    let mut model = Model::with_weights(files, soil.device, DType::F32, Weights::Expanded)?;
    let mut weights: Vec<Learned> = model
        .weights()
        .into_iter()
        .map(|(name, values)| Learned::new(name, values))
        .collect();
    let mut companions = dictionaries.map(|_| Companions {
        sites: config.sites.clone(),
        of_sites: Vec::new(),
        weight: config.weight,
    });
    let mut notes = Notes {
        step: 0,
        curve: Vec::new(),
        since: (0.0, 0),
        companions: Vec::new(),
    };
    let state_path = dir.path().join(STATE_FILE);
    if state_path.is_file() {
        notes = restore(
            &state_path,
            &mut weights,
            companions.as_mut(),
            (soil, &mut model),
        )?;
    }
    let start = |site: Site, x: &[f32], d: usize| {
        let of_site = config.dictionary_at(site, soil.seed);
        Ok(Companion::start(&of_site, config.steps, x, d)?)
    };
    let stage = control.stage(&format!("train {name}"), config.steps as u64, "steps");
    stage.resume_from(notes.step as u64);
    let mut saved = Instant::now();
    while notes.step < config.steps {
        if control.is_interrupted() || saved.elapsed() > CHECKPOINT_EVERY {
            save(&state_path, &weights, companions.as_ref(), &mut notes)?;
            saved = Instant::now();
            control.check()?;
        }
        let step = notes.step;
        let sequences = soil.data.batch(config, soil.seed, step);
        let joint = joint_step(&mut model, &weights, &sequences, companions.as_mut(), start)?;
        let finite = |parts: &[Vec<f32>]| parts.iter().flatten().all(|x| x.is_finite());
        if !joint.loss.is_finite() || !finite(&joint.gradients) {
            return Err(AdapterError::Option(format!(
                "training of the model diverged at step {step}: a smaller learning rate than {} is needed (--lr)",
                config.lr
            )));
        }
        let rates = (step, config.rate(step), config.weight_decay);
        adam_w(&mut weights, &joint.gradients, rates);
        notes.step += 1;
        notes.since = (notes.since.0 + joint.loss, notes.since.1 + 1);
        let points = |step: usize| step * POINTS / config.steps;
        if points(notes.step) != points(step) || notes.step == config.steps {
            let held_out = held_out(&mut model, &weights, soil)?;
            stage.message(&format!("held-out loss {held_out:.3}"));
            notes.curve.push(GrowPoint {
                step: notes.step,
                loss: notes.since.0 / notes.since.1 as f64,
                held_out,
                unexplained: joint.met.iter().map(|met| met.unexplained).collect(),
                dead: joint.met.iter().map(|met| met.dead).collect(),
            });
            notes.since = (0.0, 0);
        }
        stage.advance(1);
    }
    stage.finish();
    // Were the work to end between here and the last dictionary, it would go on from the last step.
    save(&state_path, &weights, companions.as_ref(), &mut notes)?;
    let numbers: Vec<_> = weights.iter().map(|w| (w.name, w.values.clone())).collect();
    save_like(soil.start, &numbers, dir.path())?;
    write_json(&dir.path().join(CURVE_FILE), &notes.curve)?;
    if let (Some(companions), Some(place)) = (&companions, dictionaries) {
        let digest = ModelFiles::open(dir.path())?.digest;
        let origin = FeedOrigin {
            model: Some(ModelRef { name, digest }),
            parents: Vec::new(),
            context: config.context,
            prepend_bos: soil.data.harvest.plan.prepend_bos,
        };
        let sites = companions.sites.iter().zip(&companions.of_sites);
        for (number, (site, companion)) in sites.enumerate() {
            let out = place.join(site.to_string());
            if !out.exists() {
                let training = training(config, &notes.curve, number);
                companion.save(&out, &site.to_string(), origin.clone(), &training)?;
            }
        }
    }
    let manifest = Manifest::new(MODEL_KIND, soil.seed).with_config(serde_json::json!({
        "cotrain": config, "dictionaries": companions.is_some(),
    }));
    dir.finish_skipping(manifest, &[STATE_FILE])?;
    Ok(notes.curve)
}

/// The name of a directory.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The curve of one dictionary.
fn training(config: &CotrainConfig, curve: &[GrowPoint], number: usize) -> Training {
    let points = curve.iter().map(|point| CurvePoint {
        tokens: point.step * config.rows(),
        loss: point.unexplained[number],
        explained_variance: None,
        l0: config.k() as f64,
        dead: point.dead[number],
    });
    Training {
        tokens: config.rows() * config.steps,
        curve: points.collect(),
    }
}

/// Cross-entropy on held-out sequences.
fn held_out(model: &mut Model, weights: &[Learned], soil: &Soil<'_>) -> Result<f64, AdapterError> {
    put(model, weights, soil.device)?;
    let (mut sum, mut count) = (0.0, 0);
    let most = soil.data.held_out.len().min(CURVE_SEQUENCES);
    for sequences in soil.data.held_out[..most].chunks(soil.config.batch) {
        let inputs: Vec<&[u32]> = sequences.iter().map(|s| &s[..s.len() - 1]).collect();
        let targets: Vec<u32> = sequences.iter().flat_map(|s| &s[1..]).copied().collect();
        let out = model.run(Input::batch(&inputs), &RunOptions::default())?;
        let losses = values(&model.cross_entropy(out.stream, &targets)?);
        sum += losses.iter().map(|&x| f64::from(x)).sum::<f64>();
        count += losses.len();
    }
    Ok(sum / count.max(1) as f64)
}

/// Gives a model these weights, without gradients.
fn put(model: &mut Model, weights: &[Learned], device: &Device) -> Result<(), AdapterError> {
    let tensors = weights.iter().map(|weight| {
        let data = TensorData::new(weight.values.clone(), [weight.values.len()]);
        (weight.name, Tensor::from_data(data, (device, DType::F32)))
    });
    Ok(model.set_weights(tensors)?)
}

fn save(
    path: &Path,
    weights: &[Learned],
    companions: Option<&Companions>,
    notes: &mut Notes,
) -> Result<(), AdapterError> {
    let mut file = TensorFile::default();
    for (number, weight) in weights.iter().enumerate() {
        for (part, values) in [
            ("values", &weight.values),
            ("first", &weight.first),
            ("second", &weight.second),
        ] {
            let name = format!("{part}.{number}");
            file.floats(name, vec![values.len()], values.clone());
        }
    }
    notes.companions.clear();
    let companions = companions.iter().flat_map(|c| &c.of_sites);
    for (number, companion) in companions.enumerate() {
        for (name, values) in companion.numbers() {
            let name = format!("dictionary.{number}.{name}");
            file.floats(name, vec![values.len()], values);
        }
        notes.companions.push(companion.state().clone());
    }
    let notes = serde_json::to_string(notes).map_err(|error| AdapterError::File {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    let metadata: HashMap<String, String> = [("notes".to_owned(), notes)].into_iter().collect();
    write_tensors(path, &file, Some(metadata))
}

fn restore(
    path: &Path,
    weights: &mut [Learned],
    companions: Option<&mut Companions>,
    (soil, model): (&Soil<'_>, &mut Model),
) -> Result<Notes, AdapterError> {
    let wrong = |problem: String| AdapterError::File {
        path: path.to_owned(),
        problem,
    };
    let file = TensorFile::read(path)?;
    let notes = file.note("notes").unwrap_or_default();
    let notes: Notes = serde_json::from_str(notes).map_err(|error| wrong(error.to_string()))?;
    let config = soil.config;
    if let Some(companions) = companions
        && notes.step > 0
    {
        // Those of the start, for their shapes; their numbers follow.
        let sequences = soil.data.batch(config, soil.seed, 0);
        let made = |site: Site, x: &[f32], d: usize| {
            let of_site = config.dictionary_at(site, soil.seed);
            Ok(Companion::start(&of_site, config.steps, x, d)?)
        };
        joint_step(model, weights, &sequences, Some(&mut *companions), made)?;
        if notes.companions.len() != companions.of_sites.len() {
            return Err(wrong("it is that of other dictionaries".to_owned()));
        }
        for (number, state) in notes.companions.iter().enumerate() {
            companions.of_sites[number].restore(state.clone(), |name| {
                file.vector(&format!("dictionary.{number}.{name}")).ok()
            })?;
        }
    }
    for (number, weight) in weights.iter_mut().enumerate() {
        for (part, values) in [
            ("values", &mut weight.values),
            ("first", &mut weight.first),
            ("second", &mut weight.second),
        ] {
            let found = file.vector(&format!("{part}.{number}"))?;
            if found.len() != values.len() {
                return Err(wrong(format!(
                    "{part}.{number} has {} numbers, expected {}",
                    found.len(),
                    values.len()
                )));
            }
            *values = found;
        }
    }
    Ok(notes)
}
