//! Training a TopK autoencoder from an activation store.

mod checkpoint;
mod step;

use std::path::Path;
use std::time::{Duration, Instant};

use pullback_activations::{ActivationStore, STORE_KIND};
use pullback_artifact::{
    Control, Interrupted, Manifest, ParentRef, PartialDir, read_json, write_json,
};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::metrics::{Reconstruction, ReconstructionMetrics};
use crate::saelens::{self, SaeLensMetadata};
use crate::{CrossEntropy, Dictionary, Sae, SaeError};
use checkpoint::{Checkpoint, Progress};
use step::{Adam, Moments, Objective, Parameters, forward, update};

/// The `kind` of an autoencoder's manifest.
pub const SAE_KIND: &str = "sae";

/// How an autoencoder is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Number of features.
    pub features: usize,
    /// Active features a token.
    pub k: usize,
    /// Passes over the store's normal training rows.
    pub passes: usize,
    /// Rows in a batch.
    pub batch: usize,
    /// Peak learning rate of Adam.
    pub lr: f64,
    /// Share of the steps over which the rate rises linearly from zero.
    pub warmup: f64,
    /// Share of the steps, at the end, over which it falls linearly to zero.
    pub decay: f64,
    /// Weight of the auxiliary loss for dead features.
    pub aux_coefficient: f64,
    /// Dead features that the auxiliary loss uses a token; `None` is half the width of the activations.
    pub aux_k: Option<usize>,
    /// A feature is dead when it has not fired for so many tokens; `None` is a fifth of a pass.
    pub dead_after_tokens: Option<usize>,
    /// Seed of the start and of the order of rows.
    pub seed: u64,
}

impl TrainConfig {
    /// The defaults: four passes, batches of 1024, rate 1e-3 with 5 % warm-up and 30 % decay, auxiliary
    /// loss 1/32.
    pub fn new(features: usize, k: usize, seed: u64) -> Self {
        Self {
            features,
            k,
            passes: 4,
            batch: 1024,
            lr: 1e-3,
            warmup: 0.05,
            decay: 0.3,
            aux_coefficient: 1.0 / 32.0,
            aux_k: None,
            dead_after_tokens: None,
            seed,
        }
    }

    fn check(&self, rows: usize) -> Result<(), SaeError> {
        let wrong = |problem: String| Err(SaeError::Option(problem));
        if self.k == 0 || self.k > self.features {
            return wrong(format!(
                "k is {}, it must be between 1 and the {} features",
                self.k, self.features
            ));
        }
        if self.features > MAX_FEATURES {
            return wrong(format!(
                "{} features are too many: at most {MAX_FEATURES}",
                self.features
            ));
        }
        if self.passes == 0 || self.batch == 0 {
            return wrong("at least one pass and one row in a batch are needed".to_owned());
        }
        if rows < self.batch {
            return wrong(format!(
                "the store has {rows} rows to train on, a batch is {}: harvest more tokens or make --batch smaller",
                self.batch
            ));
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return wrong(format!(
                "the learning rate is {}, it must be above zero",
                self.lr
            ));
        }
        if !(self.aux_coefficient.is_finite() && self.aux_coefficient >= 0.0) {
            return wrong(format!(
                "the auxiliary coefficient is {}, it must be zero or above",
                self.aux_coefficient
            ));
        }
        if !(self.warmup >= 0.0 && self.decay >= 0.0 && self.warmup + self.decay <= 1.0) {
            return wrong(format!(
                "warm-up {} and decay {} are shares of the training, together at most 1",
                self.warmup, self.decay
            ));
        }
        Ok(())
    }

    /// Learning rate at a step, counted from zero.
    fn rate(&self, step: usize, steps: usize) -> f64 {
        let place = (step as f64 + 0.5) / steps as f64;
        let up = if self.warmup > 0.0 {
            place / self.warmup
        } else {
            1.0
        };
        let down = if self.decay > 0.0 {
            (1.0 - place) / self.decay
        } else {
            1.0
        };
        self.lr * up.min(down).min(1.0)
    }
}

/// One point of the training curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Tokens trained on.
    pub tokens: usize,
    /// Mean loss since the last point (fraction of variance unexplained, plus the auxiliary term).
    pub loss: f64,
    /// Explained variance of a sample of held-out rows; none when the store holds none.
    pub explained_variance: Option<f64>,
    /// Features that count as dead.
    pub dead: usize,
}

/// The figures of an autoencoder: `result.json`, and the `sae` object of the commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SaeResult {
    /// Number of features.
    pub features: usize,
    /// Active features a token, at most, where their number is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// Explained variance about the mean, on held-out rows.
    pub explained_variance: f64,
    /// The historic figure, about zero.
    pub explained_about_zero: f64,
    /// Active features a token, on held-out rows.
    pub l0: f64,
    /// Share of features active on no normal training row of the store.
    pub dead_fraction: f64,
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

/// More features than any published dictionary has; beyond it a typing error would exhaust the memory.
const MAX_FEATURES: usize = 1 << 24;
/// Points of the curve.
const CURVE_POINTS: usize = 40;
/// Held-out rows that the curve looks at.
const CURVE_ROWS: usize = 2048;
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
    let rows = store.normal_rows(false);
    config.check(rows.len())?;
    let mut dir = PartialDir::open(out)?;
    let store_digest = store.manifest().digest();
    let steps_per_pass = rows.len() / config.batch;
    let steps = steps_per_pass * config.passes;

    let fresh = Progress {
        config: config.clone(),
        store: store_digest.clone(),
        step: 0,
        curve: Vec::new(),
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
        let parameters = initial(store, &sample, scale, config);
        Checkpoint {
            moments: Moments::zero(&parameters),
            silent: vec![0; config.features],
            parameters,
            progress: fresh,
        }
    });

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
        let objective = Objective {
            k: config.k,
            variance,
            aux_coefficient: config.aux_coefficient,
            aux_k: config.aux_k.unwrap_or(d / 2),
            dead: &dead,
        };
        let batch = forward(&state.parameters, &batch_rows, &objective);
        let loss = batch.loss + config.aux_coefficient * batch.aux_loss;
        let lr = config.rate(step, steps);
        if !loss.is_finite() {
            return Err(SaeError::Diverged {
                step,
                loss,
                lr: config.lr,
            });
        }
        update(
            &mut state.parameters,
            &mut state.moments,
            &batch,
            &Adam::at(step + 1, lr),
        );
        for silent in &mut state.silent {
            *silent += config.batch as u64;
        }
        for &feature in batch.encoded.codes.features() {
            state.silent[feature as usize] = 0;
        }
        let progress = &mut state.progress;
        progress.step += 1;
        progress.loss_sum += loss;
        progress.loss_steps += 1;
        if progress.step == steps
            || (progress.step * CURVE_POINTS) / steps > (step * CURVE_POINTS) / steps
        {
            let explained = (!held_out.is_empty())
                .then(|| explained_variance(&state.parameters, &held_out, config.k))
                .transpose()?;
            progress.curve.push(CurvePoint {
                tokens: progress.step * config.batch,
                loss: progress.loss_sum / f64::from(progress.loss_steps),
                explained_variance: explained,
                dead: dead.len(),
            });
            (progress.loss_sum, progress.loss_steps) = (0.0, 0);
            let explained = explained.map_or_else(String::new, |explained| {
                format!("explained variance {explained:.3}, ")
            });
            stage.message(&format!("{explained}{} dead", dead.len()));
        }
        stage.advance(config.batch as u64);
    }
    let seconds = clock.elapsed().as_secs_f64();
    stage.finish();

    let sae = in_units_of_activations(&state.parameters, config.k, scale as f32)?;
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

/// `sqrt(d) / mean ‖x‖`, by which activations are multiplied in training (`expected_average_only_in` of
/// SAELens).
fn input_scale(store: &ActivationStore, sample: &[u32]) -> f64 {
    let total: f64 = sample
        .iter()
        .map(|&row| {
            let squares: f64 = store
                .row(row as usize)
                .iter()
                .map(|&x| f64::from(x) * f64::from(x))
                .sum();
            squares.sqrt()
        })
        .sum();
    (store.info().d as f64).sqrt() * sample.len() as f64 / total
}

/// Variance about the mean, summed over coordinates.
fn variance(store: &ActivationStore, sample: &[u32]) -> f64 {
    let mut sum = vec![0.0_f64; store.info().d];
    let mut squares = 0.0;
    for &row in sample {
        for (sum, &x) in sum.iter_mut().zip(store.row(row as usize)) {
            *sum += f64::from(x);
            squares += f64::from(x) * f64::from(x);
        }
    }
    let n = sample.len() as f64;
    squares / n - sum.iter().map(|sum| (sum / n) * (sum / n)).sum::<f64>()
}

/// The start: unit decoder rows in random directions, the encoder their copy, the decoder bias the
/// geometric median of a sample.
fn initial(
    store: &ActivationStore,
    sample: &[u32],
    scale: f64,
    config: &TrainConfig,
) -> Parameters<f32> {
    let d = store.info().d;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut decoder = vec![0.0_f32; config.features * d];
    for row in decoder.chunks_exact_mut(d) {
        for x in row.iter_mut() {
            *x = rng.random_range(-1.0..1.0);
        }
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        for x in row.iter_mut() {
            *x /= length;
        }
    }
    let mut median = geometric_median(store, &sample[..sample.len().min(4096)]);
    for x in &mut median {
        *x *= scale;
    }
    Parameters {
        d,
        encoder: decoder.clone(),
        encoder_bias: vec![0.0; config.features],
        decoder,
        decoder_bias: median.into_iter().map(|x| x as f32).collect(),
    }
}

/// The point with the least sum of distances to the rows, by Weiszfeld's iteration.
fn geometric_median(store: &ActivationStore, sample: &[u32]) -> Vec<f64> {
    let d = store.info().d;
    let mut at = vec![0.0; d];
    for &row in sample {
        for (at, &x) in at.iter_mut().zip(store.row(row as usize)) {
            *at += f64::from(x) / sample.len() as f64;
        }
    }
    for _ in 0..100 {
        let mut next = vec![0.0; d];
        let mut total = 0.0;
        for &row in sample {
            let x = store.row(row as usize);
            let squares: f64 = x
                .iter()
                .zip(&at)
                .map(|(&x, a)| (f64::from(x) - a).powi(2))
                .sum();
            let weight = squares.sqrt().max(1e-12).recip();
            total += weight;
            for (next, &x) in next.iter_mut().zip(x) {
                *next += weight * f64::from(x);
            }
        }
        let mut moved = 0.0;
        let mut length = 0.0;
        for (at, next) in at.iter_mut().zip(next) {
            let next = next / total;
            moved += (next - *at).powi(2);
            length += next * next;
            *at = next;
        }
        if moved <= 1e-10 * length {
            break;
        }
    }
    at
}

/// Undoes the input normalisation: since the code of TopK scales with its input, only the biases change,
/// and decoder rows keep length one.
fn in_units_of_activations(
    parameters: &Parameters<f32>,
    k: usize,
    scale: f32,
) -> Result<Sae, SaeError> {
    let by_scale = |bias: &[f32]| bias.iter().map(|b| b / scale).collect::<Vec<_>>();
    Sae::top_k(
        k,
        parameters.encoder.clone(),
        by_scale(&parameters.encoder_bias),
        parameters.decoder.clone(),
        by_scale(&parameters.decoder_bias),
    )
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

fn explained_variance(parameters: &Parameters<f32>, x: &[f32], k: usize) -> Result<f64, SaeError> {
    let sae = in_units_of_activations(parameters, k, 1.0)?;
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
