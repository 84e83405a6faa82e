//! Training a dictionary from an activation store.

mod checkpoint;
mod config;
mod start;

use std::path::Path;
use std::time::{Duration, Instant};

use pullback_activations::{ActivationStore, STORE_KIND};
use pullback_artifact::{
    Control, Interrupted, Manifest, ParentRef, PartialDir, read_json, write_json,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::kinds::Kind;
use crate::learn::{Adam, Moments, Parameters, Step, update};
use crate::metrics::{DensityHistogram, Reconstruction, ReconstructionMetrics};
use crate::saelens::{self, SaeLensMetadata};
use crate::{CrossEntropy, Dictionary, Normalization, Sae, SaeError, SaeParts};
use checkpoint::{Checkpoint, Progress};
pub use config::{Schedule, TrainConfig};
use start::{initial, input_scale, variance};

/// The `kind` of an autoencoder's manifest.
pub const SAE_KIND: &str = "sae";

/// One point of the training curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Tokens trained on.
    pub tokens: usize,
    /// Mean loss since the last point (fraction of variance unexplained, plus the auxiliary term).
    pub loss: f64,
    /// Explained variance of a sample of held-out rows; none when the store holds none.
    pub explained_variance: Option<f64>,
    /// Active features a token, in the last batch.
    #[serde(default)]
    pub l0: f64,
    /// Features that count as dead.
    pub dead: usize,
}

/// The figures of a dictionary: `result.json`, and the `sae` object of the commands. On held-out rows unless said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SaeResult {
    /// The kind by which codes are chosen in use: `topk`, `jumprelu`, `gated` or `relu`.
    pub selection: String,
    /// Number of features.
    pub features: usize,
    /// Active features a token, at most, where their number is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// Error, explained variance and lengths. `dead_fraction` is the share of features active on no normal training row.
    #[serde(flatten)]
    pub reconstruction: ReconstructionMetrics,
    /// How many features have which density, on training rows.
    pub density_histogram: DensityHistogram,
    /// Cross-entropies and their score, where the model was run.
    #[serde(flatten)]
    pub cross_entropy: Option<CrossEntropy>,
    /// Tokens trained on.
    pub train_tokens: usize,
    /// Tokens a second in training.
    pub train_tokens_per_second: f64,
}

/// What training keeps in `training.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Tokens trained on.
    pub tokens: usize,
    /// The curve.
    pub curve: Vec<CurvePoint>,
}

/// What [`train`] returns.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The dictionary, in the units of the activations.
    pub sae: Sae,
    /// The curve.
    pub training: Training,
    /// Tokens a second, over the tokens that this call trained on.
    pub tokens_per_second: f64,
}

/// Points of the curve.
const CURVE_POINTS: usize = 40;
/// Held-out rows that the curve looks at.
const CURVE_ROWS: usize = 2048;
/// Rows that a kind sees before training.
const PREPARED_ROWS: usize = 1024;
/// Time between checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(20);

/// Trains on the store's normal training rows and leaves an artifact at `out`: the SAELens layout,
/// `training.json` and `pullback.json`.
///
/// Interrupted work stays in `<out>.partial`; the same call goes on from its last checkpoint, and what it
/// then leaves is byte for byte what an uninterrupted call leaves.
///
/// # Errors
/// An option makes no sense; the store has too few rows; `out` exists; training diverges; the work was
/// interrupted.
pub fn train(
    store: &ActivationStore,
    config: &TrainConfig,
    out: &Path,
    control: &Control,
) -> Result<Trained, SaeError> {
    train_watched(store, config, out, control, &mut |_| Ok(()))
}

/// The same, with each point of the curve handed to `watch` when it is reached.
///
/// # Errors
/// As [`train`], and what `watch` returns.
pub fn train_watched(
    store: &ActivationStore,
    config: &TrainConfig,
    out: &Path,
    control: &Control,
    watch: &mut dyn FnMut(&CurvePoint) -> Result<(), SaeError>,
) -> Result<Trained, SaeError> {
    let rows = store.normal_rows(false);
    config.check(rows.len())?;
    let mut dir = PartialDir::open(out)?;
    let store_digest = store.manifest().digest();
    let steps_per_pass = rows.len() / config.batch;
    let steps = config.steps(rows.len());
    let mut kind = config.kind.build(config.aux(store.info().d));

    let fresh = Progress {
        config: config.clone(),
        store: store_digest.clone(),
        step: 0,
        curve: Vec::new(),
        memory: Vec::new(),
        loss_sum: 0.0,
        loss_steps: 0,
    };
    let mut resumed = None;
    if dir.is_resumed() {
        match Checkpoint::load(dir.path())? {
            Some(found)
                if found.progress.config == *config && found.progress.store == store_digest =>
            {
                resumed = Some(found);
            }
            Some(_) => {
                control.say(&format!(
                    "{} holds the start of a different training: starting anew",
                    dir.path().display()
                ));
                dir.clear()?;
            }
            None => dir.clear()?,
        }
    }
    let sample: Vec<u32> = order(&rows, config.seed, 0)
        .into_iter()
        .take(65_536)
        .collect();
    let scale = input_scale(store, &sample);
    let variance = variance(store, &sample) * scale * scale;
    if !(variance.is_finite() && variance > 0.0) {
        return Err(SaeError::Option(format!(
            "the store's rows have variance {variance}: there is nothing to learn from them"
        )));
    }
    let mut state = resumed.unwrap_or_else(|| {
        let mut parameters = initial(store, &sample, scale, config, &*kind);
        let mut first = vec![0.0; sample.len().min(PREPARED_ROWS) * store.info().d];
        store.gather(&sample[..sample.len().min(PREPARED_ROWS)], &mut first);
        for x in &mut first {
            *x *= scale as f32;
        }
        kind.prepare(&mut parameters, &first);
        Checkpoint {
            moments: Moments::zero(&parameters),
            silent: vec![0; config.features],
            parameters,
            progress: fresh,
        }
    });

    kind.remember(&state.progress.memory);
    let d = store.info().d;
    let dead_after = config.dead_after_tokens.unwrap_or(rows.len() / 5);
    let held_out = held_out_sample(store, scale);
    let stage = control.stage("train", (steps * config.batch) as u64, "tokens");
    stage.resume_from((state.progress.step * config.batch) as u64);
    let first_step = state.progress.step;
    let clock = Instant::now();
    let mut saved = Instant::now();
    let mut batch_rows = vec![0.0_f32; config.batch * d];
    let mut permutation = (usize::MAX, Vec::new());
    while state.progress.step < steps {
        let step = state.progress.step;
        if control.is_interrupted() || saved.elapsed() > CHECKPOINT_EVERY {
            state.save(dir.path())?;
            saved = Instant::now();
            control.check()?;
        }
        let pass = step / steps_per_pass;
        if permutation.0 != pass {
            permutation = (pass, order(&rows, config.seed, pass));
        }
        let start = (step % steps_per_pass) * config.batch;
        store.gather(&permutation.1[start..start + config.batch], &mut batch_rows);
        for x in &mut batch_rows {
            *x *= scale as f32;
        }
        let dead: Vec<u32> = (0..config.features as u32)
            .filter(|&feature| state.silent[feature as usize] >= dead_after as u64)
            .collect();
        let batch = kind.batch(
            &state.parameters,
            &batch_rows,
            &Step {
                variance,
                dead: &dead,
                sparsity: config.sparsity(step, steps),
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
        let adam = Adam::at(step + 1, config.rate(step, steps), config.betas);
        update(
            &mut state.parameters,
            &mut state.moments,
            &batch,
            adam,
            config.clip,
        );
        kind.settle(&mut state.parameters);
        for (silent, &fired) in state.silent.iter_mut().zip(&batch.fired) {
            *silent = if fired {
                0
            } else {
                *silent + config.batch as u64
            };
        }
        let progress = &mut state.progress;
        progress.step += 1;
        progress.memory = kind.memory();
        progress.loss_sum += loss;
        progress.loss_steps += 1;
        if progress.step == steps
            || (progress.step * CURVE_POINTS) / steps > (step * CURVE_POINTS) / steps
        {
            let explained = (!held_out.is_empty())
                .then(|| explained_variance(&state.parameters, &*kind, &held_out))
                .transpose()?;
            let point = CurvePoint {
                tokens: progress.step * config.batch,
                loss: progress.loss_sum / f64::from(progress.loss_steps),
                explained_variance: explained,
                l0: batch.active as f64 / config.batch as f64,
                dead: dead.len(),
            };
            watch(&point)?;
            progress.curve.push(point);
            (progress.loss_sum, progress.loss_steps) = (0.0, 0);
            let explained = explained.map_or_else(String::new, |explained| {
                format!("explained variance {explained:.3}, ")
            });
            let l0 = batch.active as f64 / config.batch as f64;
            stage.message(&format!("{explained}L0 {l0:.0}, {} dead", dead.len()));
        }
        stage.advance(config.batch as u64);
    }
    let seconds = clock.elapsed().as_secs_f64();
    stage.finish();

    let sae = in_units_of_activations(&state.parameters, &*kind, scale)?;
    let training = Training {
        tokens: steps * config.batch,
        curve: state.progress.curve.clone(),
    };
    let metadata = SaeLensMetadata {
        model_name: store
            .manifest()
            .model
            .as_ref()
            .map(|model| model.name.clone()),
        hook_name: store.info().site.to_string(),
        context_size: store.info().context,
        prepend_bos: store.info().prepend_bos,
    };
    saelens::save(&sae, &metadata, dir.path())?;
    write_json(&dir.path().join("training.json"), &training)?;
    let mut manifest = Manifest::new(SAE_KIND, config.seed)
        .with_site(store.info().site.to_string())
        .with_parent(ParentRef {
            kind: STORE_KIND.to_owned(),
            digest: store_digest,
            path: store.path().display().to_string(),
        })
        .with_config(serde_json::json!({ "train": config }));
    if let Some(model) = &store.manifest().model {
        manifest = manifest.with_model(model.clone());
    }
    dir.finish_skipping(manifest, &checkpoint::FILES)?;
    Ok(Trained {
        sae,
        training,
        tokens_per_second: ((steps - first_step) * config.batch) as f64 / seconds.max(1e-9),
    })
}

/// Loads an autoencoder's artifact and checks that it is one.
///
/// # Errors
/// The directory is no autoencoder, or a file of it is damaged.
pub fn load(path: &Path) -> Result<(Sae, Manifest), SaeError> {
    let manifest = Manifest::load_kind(path, SAE_KIND)?;
    manifest.verify_sizes(path)?;
    Ok((saelens::load(path)?, manifest))
}

/// Reads what training kept beside an autoencoder.
///
/// # Errors
/// `training.json` is missing or damaged.
pub fn load_training(path: &Path) -> Result<Training, SaeError> {
    Ok(read_json(&path.join("training.json"))?)
}

/// The rows in the order of one pass.
fn order(rows: &[u32], seed: u64, pass: usize) -> Vec<u32> {
    let mut order = rows.to_vec();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(pass as u64 + 1);
    order.shuffle(&mut rng);
    order
}

/// Undoes the input normalisation: codes scale with their input, so only biases and thresholds change, and decoder rows
/// keep length one.
fn in_units_of_activations(
    parameters: &Parameters<f32>,
    kind: &dyn Kind<f32>,
    scale: f64,
) -> Result<Sae, SaeError> {
    let by_scale = |bias: &[f32]| bias.iter().map(|b| b / scale as f32).collect::<Vec<_>>();
    let decoder_bias = by_scale(&parameters.decoder_bias);
    Sae::new(SaeParts {
        selection: kind.selection(parameters, scale),
        encoder: parameters.encoder.clone(),
        encoder_bias: by_scale(&parameters.encoder_bias),
        decoder: parameters.decoder.clone(),
        input_bias: decoder_bias.clone(),
        decoder_bias,
        normalization: Normalization::None,
        skip: None,
    })
}

fn held_out_sample(store: &ActivationStore, scale: f64) -> Vec<f32> {
    let rows: Vec<u32> = store
        .normal_rows(true)
        .into_iter()
        .take(CURVE_ROWS)
        .collect();
    let mut sample = vec![0.0; rows.len() * store.info().d];
    store.gather(&rows, &mut sample);
    for x in &mut sample {
        *x *= scale as f32;
    }
    sample
}

fn explained_variance(
    parameters: &Parameters<f32>,
    kind: &dyn Kind<f32>,
    x: &[f32],
) -> Result<f64, SaeError> {
    let sae = in_units_of_activations(parameters, kind, 1.0)?;
    let mut sums = Reconstruction::new(sae.d(), sae.n_features());
    let codes = sae.encode(x);
    sums.add(x, &codes, &sae.reconstruct(x, &codes));
    Ok(sums.metrics().explained_variance)
}

/// Metrics of a dictionary on some rows of a store, and each feature's density there.
///
/// # Errors
/// The widths differ; the work was interrupted.
pub fn evaluate_reconstruction(
    dictionary: &dyn Dictionary,
    store: &ActivationStore,
    rows: &[u32],
    control: &Control,
) -> Result<(ReconstructionMetrics, Vec<f32>), SaeError> {
    let d = store.info().d;
    if dictionary.d() != d {
        return Err(SaeError::Option(format!(
            "the dictionary is of width {}, the store's activations of width {d}",
            dictionary.d()
        )));
    }
    let mut sums = Reconstruction::new(d, dictionary.n_features());
    let stage = control.stage("encode", rows.len() as u64, "tokens");
    for rows in rows.chunks(4096) {
        control
            .check()
            .map_err(|interrupted: Interrupted| interrupted)?;
        let mut x = vec![0.0; rows.len() * d];
        store.gather(rows, &mut x);
        let codes = dictionary.encode(&x);
        sums.add(&x, &codes, &dictionary.reconstruct(&x, &codes));
        stage.advance(rows.len() as u64);
    }
    stage.finish();
    Ok((sums.metrics(), sums.densities()))
}
