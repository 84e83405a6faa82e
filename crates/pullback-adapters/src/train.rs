//! Training a residual adapter on question-answer pairs.
//!
//! The layers up to the site do not change and are run once; each step runs the layers above it, forward and
//! backward.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, TensorData};
use pullback_artifact::{
    Control, Manifest, ModelRef, PartialDir, read_json, refuse_existing, sha256_bytes, write_json,
};
use pullback_model::{Edit, Input, Message, Model, Place, Rows, RunOptions, Site};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::residual::{FIRST_POSITION, values};
use crate::{ADAPTER_KIND, Activation, AdapterError, Pair, ResidualAdapter, split_pairs};

/// How an adapter is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Where it acts: a `hook_resid_post`.
    pub site: Site,
    /// Hidden units.
    pub rank: usize,
    /// Between the matrices.
    pub activation: Activation,
    /// Passes over the training pairs.
    pub epochs: usize,
    /// Pairs in a batch.
    pub batch: usize,
    /// Peak learning rate of Adam, for an adapter whose input and output are in units of the typical
    /// activation.
    pub lr: f64,
    /// Weight of the mean square of the change, relative to that of the activation: what does not help the
    /// answers is not written.
    pub change_penalty: f64,
    /// Seed of the start and of the order of pairs.
    pub seed: u64,
}

impl TrainConfig {
    /// The defaults: rank 8, GELU, 8 epochs of batches of 6, rate 0.01, change penalty 2.
    pub fn new(site: Site, seed: u64) -> Self {
        Self {
            site,
            rank: 8,
            activation: Activation::Gelu,
            epochs: 8,
            batch: 6,
            lr: 0.01,
            change_penalty: 2.0,
            seed,
        }
    }

    /// Share of the steps over which the rate rises; it then falls along a cosine.
    fn rate(&self, step: usize, steps: usize) -> f64 {
        let place = (step as f64 + 0.5) / steps as f64;
        let up = (place / 0.1).min(1.0);
        self.lr * up * 0.5 * (1.0 + (std::f64::consts::PI * place).cos()).max(0.02)
    }
}

/// The figures of an adapter: `result.json`, and the `adapter` object of the commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterResult {
    /// Hidden units.
    pub rank: usize,
    /// Cross-entropy of held-out answers, in nats a token, without the adapter.
    pub loss_before: f64,
    /// With it.
    pub loss_after: f64,
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
    pub adapter: ResidualAdapter,
    /// Its figures.
    pub result: AdapterResult,
    /// Its curves.
    pub training: AdapterTraining,
}

const STATE_FILE: &str = "adapter-state.json";
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);

/// A pair as the model sees it, run up to the site.
struct Prepared {
    ids: Vec<u32>,
    /// Rows whose next token belongs to the answer.
    counted: Vec<usize>,
    /// `[time, d]`.
    stream: Vec<f32>,
}

/// Parameters in training, with their Adam moments: in units of the typical activation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    config: TrainConfig,
    data: String,
    model: String,
    step: usize,
    parameters: [Vec<f32>; 3],
    first: [Vec<f32>; 3],
    second: [Vec<f32>; 3],
    training: AdapterTraining,
}

/// Trains an adapter on pairs and leaves an artifact at `out`. Every sixth pair is held out.
///
/// Interrupted work stays in `<out>.partial`, and the same call goes on from its last checkpoint to the
/// same result.
///
/// # Errors
/// An option makes no sense; a pair does not fit the context; `out` exists; training diverges; the work was
/// interrupted.
pub fn train(
    model: &Model,
    model_name: &str,
    pairs: &[Pair],
    config: &TrainConfig,
    out: &Path,
    control: &Control,
) -> Result<TrainedAdapter, AdapterError> {
    config.site.check(model.config())?;
    let layer = layer_of(config.site)?;
    if config.rank == 0 || config.epochs == 0 || config.batch == 0 {
        return Err(AdapterError::Option(
            "an adapter needs at least one hidden unit, one epoch and one pair in a batch"
                .to_owned(),
        ));
    }
    if config.rank > model.config().d_model {
        return Err(AdapterError::Option(format!(
            "rank {} is above the width {} of the residual stream",
            config.rank,
            model.config().d_model
        )));
    }
    if !(config.lr.is_finite() && config.lr > 0.0) {
        return Err(AdapterError::Option(format!(
            "the learning rate is {}, it must be above zero",
            config.lr
        )));
    }
    if !(config.change_penalty.is_finite() && config.change_penalty >= 0.0) {
        return Err(AdapterError::Option(format!(
            "the change penalty is {}, it must be zero or above",
            config.change_penalty
        )));
    }
    refuse_existing(out)?;
    let (train_pairs, held_out_pairs) = split_pairs(pairs);
    if train_pairs.is_empty() || held_out_pairs.is_empty() {
        return Err(AdapterError::Option(format!(
            "{} pairs are too few: at least two are needed, one to learn from and one to hold out",
            pairs.len()
        )));
    }
    let stage = control.stage("prepare pairs", pairs.len() as u64, "pairs");
    let prepare = |pairs: &[Pair]| -> Result<Vec<Prepared>, AdapterError> {
        pairs
            .iter()
            .map(|pair| {
                control.check()?;
                stage.advance(1);
                prepare_pair(model, pair, layer)
            })
            .collect()
    };
    let (train_set, held_out_set) = (prepare(&train_pairs)?, prepare(&held_out_pairs)?);
    stage.finish();
    let mut dir = PartialDir::open(out)?;

    let d = model.config().d_model;
    let scale = typical_size(&train_set, d);
    let data = data_digest(pairs)?;
    let fresh = initial(config, d, data.clone(), model.digest().to_owned());
    let state_path = dir.path().join(STATE_FILE);
    let mut state = fresh.clone();
    if dir.is_resumed() {
        match read_json::<State>(&state_path) {
            Ok(found)
                if found.config == *config && found.data == data && found.model == fresh.model =>
            {
                state = found;
            }
            _ => {
                control.say(&format!(
                    "{} holds the start of a different training: starting anew",
                    dir.path().display()
                ));
                dir.clear()?;
            }
        }
    }

    let steps_per_epoch = train_set.len().div_ceil(config.batch);
    let steps = steps_per_epoch * config.epochs;
    if state.training.held_out.is_empty() {
        let loss = mean_loss(model, layer, &held_out_set, None, control)?;
        state.training.held_out.push((0, loss));
    }
    let stage = control.stage("adapt", steps as u64, "steps");
    stage.resume_from(state.step as u64);
    let mut saved = Instant::now();
    while state.step < steps {
        if control.is_interrupted() || saved.elapsed() > CHECKPOINT_EVERY {
            write_json(&state_path, &state)?;
            saved = Instant::now();
            control.check()?;
        }
        let epoch = state.step / steps_per_epoch;
        let mut order: Vec<usize> = (0..train_set.len()).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(epoch as u64 + 1);
        order.shuffle(&mut rng);
        let start = (state.step % steps_per_epoch) * config.batch;
        let batch: Vec<&Prepared> = order[start..(start + config.batch).min(order.len())]
            .iter()
            .map(|&place| &train_set[place])
            .collect();
        let lr = config.rate(state.step, steps);
        let loss = step(model, layer, &batch, &mut state, scale, lr)?;
        if !loss.is_finite() {
            return Err(AdapterError::Diverged {
                step: state.step,
                lr: config.lr,
            });
        }
        state.training.train.push(loss);
        state.step += 1;
        if state.step.is_multiple_of(steps_per_epoch) {
            let adapter = adapter_of(&state, scale, d, model.device());
            let held_out = mean_loss(model, layer, &held_out_set, Some(&adapter), control)?;
            state.training.held_out.push((state.step, held_out));
            stage.message(&format!("held-out loss {held_out:.3}"));
        }
        stage.advance(1);
    }
    stage.finish();

    let adapter = adapter_of(&state, scale, d, model.device());
    let losses = &state.training.held_out;
    let result = AdapterResult {
        rank: config.rank,
        loss_before: losses.first().map_or(f64::NAN, |(_, loss)| *loss),
        loss_after: losses.last().map_or(f64::NAN, |(_, loss)| *loss),
    };
    adapter.save(dir.path())?;
    write_json(&dir.path().join("training.json"), &state.training)?;
    write_json(&dir.path().join("result.json"), &result)?;
    let manifest = Manifest::new(ADAPTER_KIND, config.seed)
        .with_site(config.site.to_string())
        .with_model(ModelRef {
            name: model_name.to_owned(),
            digest: model.digest().to_owned(),
        })
        .with_config(serde_json::json!({ "train": config, "data": data }));
    dir.finish_skipping(manifest, &[STATE_FILE])?;
    Ok(TrainedAdapter {
        adapter,
        result,
        training: state.training,
    })
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

/// Digest of a set of pairs, as the `data` of an adapter's configuration records it.
///
/// # Errors
/// Never for pairs that were read.
pub fn data_digest(pairs: &[Pair]) -> Result<String, AdapterError> {
    let data =
        serde_json::to_vec(pairs).map_err(|error| AdapterError::Option(error.to_string()))?;
    Ok(format!("sha256:{}", sha256_bytes(&data)))
}

/// Activations `[n, d]` at a residual stream after a block, on the held-out pairs: one row for each token
/// before one of the answer's, without any adapter.
///
/// # Errors
/// The site is another; a pair does not fit the model; the work was interrupted.
pub fn held_out_answers(
    model: &Model,
    pairs: &[Pair],
    site: Site,
    control: &Control,
) -> Result<Vec<f32>, AdapterError> {
    let layer = layer_of(site)?;
    let d = model.config().d_model;
    let mut activations = Vec::new();
    for pair in split_pairs(pairs).1 {
        control.check()?;
        let prepared = prepare_pair(model, &pair, layer)?;
        for row in prepared.counted {
            activations.extend_from_slice(&prepared.stream[row * d..(row + 1) * d]);
        }
    }
    Ok(activations)
}

/// The block of a residual stream after a block.
fn layer_of(site: Site) -> Result<usize, AdapterError> {
    match (site.place(), site.layer()) {
        (Place::ResidPost, Some(layer)) => Ok(layer),
        _ => Err(AdapterError::Option(format!(
            "an adapter is trained at a residual stream after a block (blocks.L.hook_resid_post), not at {site}"
        ))),
    }
}

fn prepare_pair(model: &Model, pair: &Pair, layer: usize) -> Result<Prepared, AdapterError> {
    let messages = [
        Message::user(&pair.prompt),
        Message::assistant(&pair.answer),
    ];
    let template = model.chat_template()?;
    let (mut ids, mask) = template.encode_chat_with_mask(model.tokenizer(), &messages, false)?;
    let counted: Vec<usize> = (1..ids.len())
        .filter(|&at| mask[at])
        .map(|at| at - 1)
        .collect();
    let Some(&last) = counted.last() else {
        return Err(AdapterError::Option(format!(
            "the answer to `{}` has no tokens",
            pair.prompt
        )));
    };
    // Nothing after the last counted token is needed; the token that ends the answer is a target.
    ids.truncate(last + 2);
    let options = RunOptions {
        stop_at: Some(layer + 1),
        ..RunOptions::default()
    };
    let n_ctx = model.config().n_ctx;
    if ids.len() > n_ctx {
        return Err(AdapterError::Option(format!(
            "question and answer to `{}` have {} tokens, the model's context is {n_ctx}",
            pair.prompt,
            ids.len()
        )));
    }
    let out = model.run(Input::tokens(&ids), &options)?;
    Ok(Prepared {
        ids,
        counted,
        stream: values(&out.stream),
    })
}

/// Root mean square of a coordinate of the activations at positions from the second on.
fn typical_size(set: &[Prepared], d: usize) -> f64 {
    let (mut squares, mut count) = (0.0, 0.0);
    for prepared in set {
        for &x in &prepared.stream[d..] {
            squares += f64::from(x) * f64::from(x);
            count += 1.0;
        }
    }
    (squares / f64::max(count, 1.0))
        .sqrt()
        .max(f64::MIN_POSITIVE)
}

/// The start: `W_in` random, so that hidden pre-activations are of order one; `b_in` and `W_out` zero, so
/// that the adapter changes nothing.
fn initial(config: &TrainConfig, d: usize, data: String, model: String) -> State {
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let bound = (3.0 / d as f64).sqrt();
    let w_in: Vec<f32> = (0..config.rank * d)
        .map(|_| rng.random_range(-bound..bound) as f32)
        .collect();
    let zero = [
        vec![0.0; w_in.len()],
        vec![0.0; config.rank],
        vec![0.0; d * config.rank],
    ];
    State {
        config: config.clone(),
        data,
        model,
        step: 0,
        parameters: [w_in, zero[1].clone(), zero[2].clone()],
        first: zero.clone(),
        second: zero,
        training: AdapterTraining::default(),
    }
}

/// The adapter in units of the activations: it reads `x/scale` and writes `scale ·`.
fn adapter_of(state: &State, scale: f64, d: usize, device: &Device) -> ResidualAdapter {
    let rank = state.config.rank;
    let [w_in, b_in, w_out] = &state.parameters;
    let scaled = |x: &[f32], by: f64| {
        x.iter()
            .map(|x| (f64::from(*x) * by) as f32)
            .collect::<Vec<_>>()
    };
    ResidualAdapter {
        site: state.config.site,
        activation: state.config.activation,
        w_in: Tensor::from_data(
            TensorData::new(scaled(w_in, 1.0 / scale), [rank, d]),
            device,
        ),
        b_in: Tensor::from_data(TensorData::new(b_in.clone(), [rank]), device),
        w_out: Tensor::from_data(TensorData::new(scaled(w_out, scale), [d, rank]), device),
    }
}

/// Pairs side by side, padded at their ends: causal attention keeps padding out of what is counted.
struct Padded {
    stream: Tensor<2>,
    /// `[batch·time, 1]`: one where the adapter acts on text, divided by the number of such rows.
    mean_over_text: Tensor<2>,
    batch: usize,
    rows: Tensor<1, burn::tensor::Int>,
    targets: Vec<u32>,
}

fn pad(batch: &[&Prepared], d: usize, device: &Device) -> Padded {
    let time = batch
        .iter()
        .map(|prepared| prepared.ids.len())
        .max()
        .unwrap_or(0);
    let mut stream = vec![0.0_f32; batch.len() * time * d];
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    let mut text = vec![0.0_f32; batch.len() * time];
    for (place, prepared) in batch.iter().enumerate() {
        text[place * time + FIRST_POSITION..place * time + prepared.ids.len()].fill(1.0);
        let start = place * time * d;
        stream[start..start + prepared.stream.len()].copy_from_slice(&prepared.stream);
        for &row in &prepared.counted {
            rows.push((place * time + row) as i64);
            targets.push(prepared.ids[row + 1]);
        }
    }
    let count = rows.len();
    let total = text.iter().sum::<f32>().max(1.0);
    for weight in &mut text {
        *weight /= total;
    }
    Padded {
        mean_over_text: Tensor::from_data(TensorData::new(text, [batch.len() * time, 1]), device),
        stream: Tensor::from_data(TensorData::new(stream, [batch.len() * time, d]), device),
        batch: batch.len(),
        rows: Tensor::from_data(TensorData::new(rows, [count]), device),
        targets,
    }
}

/// Losses of all counted tokens of some pairs, with the adapter at the site's output, and the mean square of
/// what the adapter adds to a row of text.
fn losses(
    model: &Model,
    layer: usize,
    batch: &[&Prepared],
    adapter: Option<&ResidualAdapter>,
    device: &Device,
) -> Result<(Tensor<1>, Option<Tensor<1>>), AdapterError> {
    let padded = pad(batch, model.config().d_model, device);
    let time = padded.stream.dims()[0] / padded.batch;
    let rows = Rows::uniform(padded.batch, time, 0);
    let mut squares = None;
    let stream = match adapter {
        Some(adapter) => {
            let stream = adapter.apply(padded.stream.clone(), &rows);
            let change = stream.clone() - padded.stream;
            squares = Some((change.clone() * change * padded.mean_over_text).sum());
            stream
        }
        None => padded.stream,
    };
    let input = Input::residual(stream, padded.batch, layer + 1);
    let out = model.run(input, &RunOptions::default())?;
    let losses = model.cross_entropy(out.stream.select(0, padded.rows), &padded.targets)?;
    Ok((losses, squares))
}

/// Mean loss a token over a set.
fn mean_loss(
    model: &Model,
    layer: usize,
    set: &[Prepared],
    adapter: Option<&ResidualAdapter>,
    control: &Control,
) -> Result<f64, AdapterError> {
    let (mut total, mut count) = (0.0, 0);
    for batch in set.chunks(4) {
        control.check()?;
        let batch: Vec<&Prepared> = batch.iter().collect();
        let losses = values(&losses(model, layer, &batch, adapter, model.device())?.0);
        total += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        count += losses.len();
    }
    Ok(total / f64::from(u32::try_from(count.max(1)).unwrap_or(u32::MAX)))
}

/// Loss of a batch and its gradients in the parameters (in training units).
fn gradients(
    model: &Model,
    layer: usize,
    batch: &[&Prepared],
    state: &State,
    scale: f64,
) -> Result<(f64, [Vec<f32>; 3]), AdapterError> {
    let d = model.config().d_model;
    let device = model.device().clone().autodiff();
    let mut adapter = adapter_of(state, scale, d, &device);
    adapter.w_in = adapter.w_in.require_grad();
    adapter.b_in = adapter.b_in.require_grad();
    adapter.w_out = adapter.w_out.require_grad();
    let (losses, squares) = losses(model, layer, batch, Some(&adapter), &device)?;
    let loss = losses.mean();
    // In units of the typical activation, whose mean square is d·scale².
    let weight = state.config.change_penalty / (d as f64 * scale * scale);
    let objective = match squares {
        Some(squares) if weight > 0.0 => loss.clone() + squares * weight,
        _ => loss.clone(),
    };
    let grads = objective.backward();
    let take = |grad: Option<Vec<f32>>, len: usize, by: f64| {
        grad.map_or_else(
            || vec![0.0; len],
            |grad| grad.iter().map(|g| (f64::from(*g) * by) as f32).collect(),
        )
    };
    let rank = state.config.rank;
    let w_in = take(
        adapter.w_in.grad(&grads).map(|g| values(&g)),
        rank * d,
        1.0 / scale,
    );
    let b_in = take(adapter.b_in.grad(&grads).map(|g| values(&g)), rank, 1.0);
    let w_out = take(
        adapter.w_out.grad(&grads).map(|g| values(&g)),
        rank * d,
        scale,
    );
    Ok((f64::from(loss.into_scalar::<f32>()), [w_in, b_in, w_out]))
}

/// One step of Adam (arXiv 1412.6980, algorithm 1, with β = 0.9, 0.99: runs are short).
fn step(
    model: &Model,
    layer: usize,
    batch: &[&Prepared],
    state: &mut State,
    scale: f64,
    lr: f64,
) -> Result<f64, AdapterError> {
    let (loss, gradients) = gradients(model, layer, batch, state, scale)?;
    let t = state.step as i32 + 1;
    let (beta1, beta2): (f64, f64) = (0.9, 0.99);
    let (correct1, correct2) = (1.0 - beta1.powi(t), 1.0 - beta2.powi(t));
    for (part, gradient) in gradients.iter().enumerate() {
        for (i, &g) in gradient.iter().enumerate() {
            let g = f64::from(g);
            let first = beta1 * f64::from(state.first[part][i]) + (1.0 - beta1) * g;
            let second = beta2 * f64::from(state.second[part][i]) + (1.0 - beta2) * g * g;
            state.first[part][i] = first as f32;
            state.second[part][i] = second as f32;
            let moved = lr * (first / correct1) / ((second / correct2).sqrt() + 1e-8);
            state.parameters[part][i] -= moved as f32;
        }
    }
    Ok(loss)
}

/// An adapter as an edit to give to a run.
impl From<ResidualAdapter> for Arc<dyn Edit> {
    fn from(adapter: ResidualAdapter) -> Self {
        Arc::new(adapter)
    }
}
