//! Harvesting: running a model up to a site over a plan's sequences and keeping the activations.

use std::path::Path;
use std::time::Instant;

use pullback_artifact::{
    Control, Manifest, ModelRef, PartialDir, read_json, refuse_existing, write_json,
};
use pullback_model::{Input, Model, Site, SiteError};
use serde::{Deserialize, Serialize};

use crate::store::{ShardRows, shard_name};
use crate::{ActivationError, Corpus, Flags, Plan, PlanConfig, STORE_KIND, StoreInfo};

/// What to harvest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HarvestConfig {
    /// Where in the model.
    pub site: Site,
    /// Which text.
    pub plan: PlanConfig,
    /// Sequences run together.
    pub batch: usize,
    /// Rows in a shard (rounded up to whole batches). An interruption loses less than one.
    pub shard_rows: usize,
}

impl HarvestConfig {
    /// The usual sizes: sequences of 128 tokens, 8 together, shards of 16,384 rows, 12,800 tokens held out.
    pub fn new(site: Site, tokens: usize, seed: u64) -> Self {
        Self {
            site,
            plan: PlanConfig {
                tokens,
                held_out_tokens: 12_800,
                context: 128,
                prepend_bos: false,
                seed,
            },
            batch: 8,
            shard_rows: 16_384,
        }
    }
}

/// What a harvest reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HarvestResult {
    /// Tokens harvested, held-out ones included.
    pub tokens: usize,
    /// Of those, held out.
    pub held_out_tokens: usize,
    /// Tokens a second, over the tokens that this call computed.
    pub tokens_per_second: f64,
    /// The site.
    pub site: Site,
    /// Width of an activation.
    pub d: usize,
    /// Median norm of rows that are not first in their sequence.
    pub median_norm: f64,
    /// Mean norm of first rows: far above the median where the model has an attention sink.
    pub first_norm: f64,
    /// Rows marked as norm outliers.
    pub outliers: usize,
}

/// Beyond these a typing error would exhaust the memory.
const MAX_BATCH: usize = 1 << 16;
const MAX_SHARD_ROWS: usize = 1 << 24;
/// Working files of an unfinished harvest.
const STATE_FILE: &str = "harvest-state.json";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    config: HarvestConfig,
    model: ModelRef,
    corpus: String,
    done: Vec<ShardSummary>,
    median_norm: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ShardSummary {
    rows: usize,
    outliers: usize,
    held_out: usize,
    first_norm_sum: f64,
    firsts: usize,
}

/// Rows with a norm above this many medians are marked as outliers (the rule of `dictionary_learning`'s
/// buffer).
const OUTLIER_MEDIANS: f64 = 10.0;

/// Runs the model over the plan and leaves a store at `out`.
///
/// Interrupted work stays in `<out>.partial`, and the same call goes on from the last whole shard: what it
/// then leaves is byte for byte what an uninterrupted call leaves.
///
/// # Errors
/// The corpus is too small or not text; the site does not exist; `out` exists; the disk is full; the work
/// was interrupted.
pub fn harvest(
    model: &Model,
    model_name: &str,
    corpus: &Corpus,
    config: &HarvestConfig,
    out: &Path,
    control: &Control,
) -> Result<HarvestResult, ActivationError> {
    let d = width_at(model, config.site)?;
    if config.batch == 0 || config.shard_rows == 0 {
        return Err(ActivationError::Option(
            "a harvest needs at least one sequence in a batch and one row in a shard".to_owned(),
        ));
    }
    if config.batch > MAX_BATCH || config.shard_rows > MAX_SHARD_ROWS {
        return Err(ActivationError::Option(format!(
            "batches of {} sequences and shards of {} rows are too large: at most {MAX_BATCH} and {MAX_SHARD_ROWS}",
            config.batch, config.shard_rows
        )));
    }
    // Before the text is read: what would be refused at the end is refused at once.
    refuse_existing(out)?;
    let plan = Plan::new(corpus, model.tokenizer(), &config.plan, control)?;
    let mut dir = PartialDir::open(out)?;
    let model_ref = ModelRef {
        name: model_name.to_owned(),
        digest: model.digest().to_owned(),
    };
    let corpus_digest = digest_of(&plan);
    let fresh = State {
        config: config.clone(),
        model: model_ref.clone(),
        corpus: corpus_digest,
        done: Vec::new(),
        median_norm: 0.0,
    };
    let state_path = dir.path().join(STATE_FILE);
    let mut state = fresh.clone();
    if dir.is_resumed() {
        match read_json::<State>(&state_path) {
            Ok(found) if same_work(&found, &fresh) => state = found,
            _ => {
                control.say(&format!(
                    "{} holds the start of a different harvest: starting anew",
                    dir.path().display()
                ));
                dir.clear()?;
            }
        }
    }
    write_json(&state_path, &state)?;

    let context = config.plan.context;
    let sequences_per_shard = config.shard_rows.div_ceil(context * config.batch) * config.batch;
    let stage = control.stage("harvest", plan.tokens() as u64, "tokens");
    let resumed: usize = state.done.iter().map(|shard| shard.rows).sum();
    stage.resume_from(resumed as u64);
    let clock = Instant::now();
    let mut width = 0;
    let mut norms = Vec::new();
    for (number, sequences) in plan.sequences.chunks(sequences_per_shard).enumerate() {
        let first_sequence = number * sequences_per_shard;
        if number < state.done.len() {
            continue;
        }
        let mut rows = ShardRows::default();
        for (batch_number, batch) in sequences.chunks(config.batch).enumerate() {
            control.check()?;
            let ids: Vec<u32> = batch
                .iter()
                .flat_map(|sequence| sequence.ids.iter().copied())
                .collect();
            let activations = activations_at(model, config.site, ids.clone(), batch.len())?;
            width = activations.len() / ids.len();
            for (place, sequence) in batch.iter().enumerate() {
                let index = first_sequence + batch_number * config.batch + place;
                for position in 0..context {
                    let mut flags = 0;
                    if position == 0 {
                        flags |= Flags::FIRST.0;
                    }
                    if sequence.held_out {
                        flags |= Flags::HELD_OUT.0;
                    }
                    rows.flags.push(flags);
                    rows.positions.push(position as u32);
                    rows.sequences.push(index as u32);
                }
            }
            rows.tokens.extend(&ids);
            rows.activations.extend(activations);
            stage.advance(ids.len() as u64);
        }
        norms.clear();
        norms.extend(rows.activations.chunks_exact(width).map(|row| {
            row.iter()
                .map(|&x| f64::from(x) * f64::from(x))
                .sum::<f64>()
                .sqrt()
        }));
        if number == 0 {
            state.median_norm = median(&norms, &rows.flags);
        }
        let mut summary = ShardSummary {
            rows: rows.len(),
            outliers: 0,
            held_out: 0,
            first_norm_sum: 0.0,
            firsts: 0,
        };
        for (&norm, flags) in norms.iter().zip(&mut rows.flags) {
            if *flags & Flags::FIRST.0 != 0 {
                summary.first_norm_sum += norm;
                summary.firsts += 1;
            } else if norm > OUTLIER_MEDIANS * state.median_norm || !norm.is_finite() {
                *flags |= Flags::OUTLIER.0;
                summary.outliers += 1;
            }
            summary.held_out += usize::from(*flags & Flags::HELD_OUT.0 != 0);
        }
        rows.write(&dir.path().join(shard_name(number)), width)?;
        state.done.push(summary);
        write_json(&state_path, &state)?;
    }
    stage.finish();
    let seconds = clock.elapsed().as_secs_f64();

    let total = |part: fn(&ShardSummary) -> usize| state.done.iter().map(part).sum::<usize>();
    let (rows, firsts) = (total(|s| s.rows), total(|s| s.firsts));
    let result = HarvestResult {
        tokens: rows,
        held_out_tokens: total(|s| s.held_out),
        tokens_per_second: (rows - resumed) as f64 / seconds.max(1e-9),
        site: config.site,
        d,
        median_norm: state.median_norm,
        first_norm: state.done.iter().map(|s| s.first_norm_sum).sum::<f64>() / firsts.max(1) as f64,
        outliers: total(|s| s.outliers),
    };
    let info = StoreInfo {
        site: config.site,
        d,
        rows,
        shard_rows: state.done.iter().map(|s| s.rows).collect(),
        context,
        prepend_bos: config.plan.prepend_bos,
        median_norm: state.median_norm,
        outliers: result.outliers,
        held_out: result.held_out_tokens,
    };
    write_json(&dir.path().join("store.json"), &info)?;
    let config_value =
        serde_json::json!({ "harvest": config, "corpus": corpus.digest(), "tokens": state.corpus });
    let manifest = Manifest::new(STORE_KIND, config.plan.seed)
        .with_site(config.site.to_string())
        .with_model(model_ref)
        .with_config(config_value);
    // The digest of a store must not hang on how fast it was made: timings come after the listing.
    dir.finish_skipping(manifest, &[STATE_FILE])?;
    write_json(&out.join("result.json"), &result)?;
    Ok(result)
}

/// Activations at one site `[batch·time, width]`; nothing above the site is computed.
fn activations_at(
    model: &Model,
    site: Site,
    ids: Vec<u32>,
    batch: usize,
) -> Result<Vec<f32>, ActivationError> {
    let mut recorded = model.record(Input::uniform(ids, batch), &[site], &[])?;
    let Some(found) = recorded.remove(&site) else {
        return Err(SiteError::NotReached {
            site,
            reached: "the run recorded nothing there".to_owned(),
        }
        .into());
    };
    let data = found.into_data();
    data.try_into_vec::<f32>().map_err(|error| {
        ActivationError::Option(format!(
            "activations are kept in f32, the model runs in another type: {error:?}"
        ))
    })
}

/// Width of a site, which is the same for all texts.
fn width_at(model: &Model, site: Site) -> Result<usize, ActivationError> {
    let place = site.check(model.config())?.place();
    place.width(model.config()).ok_or_else(|| {
        ActivationError::Option(format!(
            "{site} cannot be harvested: its width is the length of the text; a site of one width is needed"
        ))
    })
}

fn same_work(found: &State, wanted: &State) -> bool {
    found.config == wanted.config && found.model == wanted.model && found.corpus == wanted.corpus
}

/// Digest of the token ids to be run, in order.
fn digest_of(plan: &Plan) -> String {
    let ids: Vec<u32> = plan
        .sequences
        .iter()
        .flat_map(|s| s.ids.iter().copied())
        .collect();
    format!(
        "sha256:{}",
        pullback_artifact::sha256_bytes(bytemuck::cast_slice(&ids))
    )
}

/// Median norm of the rows that are not first.
fn median(norms: &[f64], flags: &[u8]) -> f64 {
    let mut rest: Vec<f64> = norms
        .iter()
        .zip(flags)
        .filter(|(norm, flags)| **flags & Flags::FIRST.0 == 0 && norm.is_finite())
        .map(|(&norm, _)| norm)
        .collect();
    rest.sort_by(f64::total_cmp);
    rest.get(rest.len() / 2).copied().unwrap_or(0.0)
}
