//! Harvesting: running a model up to some sites over a plan's sequences and keeping the activations.

use std::path::{Path, PathBuf};
use std::time::Instant;

use pullback_artifact::{
    Control, Manifest, ModelRef, PartialDir, read_json, refuse_existing, write_json,
};
use pullback_model::{Model, Site};
use serde::{Deserialize, Serialize};

use crate::sequences::{self, Summary};
use crate::store::shard_name;
use crate::{
    ActivationError, ActivationStore, Corpus, Plan, PlanConfig, STORE_KIND, Sequence, StoreInfo,
};

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
    sites: Vec<Site>,
    model: ModelRef,
    corpus: String,
    /// Of each shard, of each site.
    done: Vec<Vec<Summary>>,
    /// Of each site, from the first shard on.
    median_norms: Vec<f64>,
}

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
    let sites = [config.site];
    let widths = check(model, &sites, config, out)?;
    let plan = Plan::new(corpus, model.tokenizer(), &config.plan, control)?;
    let mut dir = PartialDir::open(out)?;
    let work = Work {
        model,
        model_name,
        sites: &sites,
        widths,
        corpus,
        plan: &plan,
        config,
    };
    let (state, speed) = work.shards(&mut dir, &|dir, _| dir.to_owned(), control)?;
    let finished = work.finished(&state, speed, 0);
    write_json(&dir.path().join("store.json"), &finished.info)?;
    // The digest of a store must not hang on how fast it was made: timings come after the listing.
    dir.finish_skipping(finished.manifest, &[STATE_FILE])?;
    write_json(&out.join("result.json"), &finished.result)?;
    Ok(finished.result)
}

/// Runs the model once and leaves a store for each site at `out`, each in a directory with the site's name; rows of all
/// of them are of the same tokens. [`open_stores`] opens them.
///
/// `config.site` is not looked at. Interruption is as in [`harvest`].
///
/// # Errors
/// As [`harvest`]; a site is given twice.
pub fn harvest_sites(
    model: &Model,
    model_name: &str,
    corpus: &Corpus,
    (config, sites): (&HarvestConfig, &[Site]),
    out: &Path,
    control: &Control,
) -> Result<Vec<HarvestResult>, ActivationError> {
    let widths = check(model, sites, config, out)?;
    let plan = Plan::new(corpus, model.tokenizer(), &config.plan, control)?;
    let mut dir = PartialDir::open(out)?;
    let work = Work {
        model,
        model_name,
        sites,
        widths,
        corpus,
        plan: &plan,
        config,
    };
    let name_of = |number: usize| sites[number].to_string();
    // Where a partial directory of that name works.
    let place_of = |dir: &Path, number: usize| dir.join(name_of(number) + ".partial");
    let (state, speed) = work.shards(&mut dir, &place_of, control)?;
    let mut results = Vec::with_capacity(sites.len());
    for number in 0..sites.len() {
        let finished = work.finished(&state, speed, number);
        let path = dir.path().join(name_of(number));
        // An earlier run may have come as far as here.
        if !path.exists() {
            let store = PartialDir::open(&path)?;
            write_json(&store.path().join("store.json"), &finished.info)?;
            store.finish(finished.manifest)?;
        }
        results.push(finished.result);
    }
    let names: Vec<String> = (0..sites.len()).map(name_of).collect();
    write_json(&dir.path().join(STORES_FILE), &names)?;
    let config_value = serde_json::json!({
        "harvest": config, "sites": names, "corpus": corpus.digest(), "tokens": state.corpus
    });
    let manifest = Manifest::new(STORES_KIND, config.plan.seed)
        .with_model(state.model)
        .with_config(config_value);
    dir.finish_skipping(manifest, &[STATE_FILE])?;
    write_json(&out.join("result.json"), &results)?;
    Ok(results)
}

/// The `kind` of the manifest of stores that were harvested together.
pub const STORES_KIND: &str = "stores";
/// The names of the stores, in order.
const STORES_FILE: &str = "stores.json";

/// Opens the one store at `path`, or all that [`harvest_sites`] left there, in its order.
///
/// # Errors
/// There is neither; a store is damaged.
pub fn open_stores(path: &Path) -> Result<Vec<ActivationStore>, ActivationError> {
    let manifest = Manifest::load(path)?;
    if manifest.kind != STORES_KIND {
        return Ok(vec![ActivationStore::open(path)?]);
    }
    let names: Vec<String> = read_json(&path.join(STORES_FILE))?;
    names
        .iter()
        .map(|name| {
            // A name is that of a site: nothing else leads out of the directory.
            let site: Site = name.parse()?;
            ActivationStore::open(&path.join(site.to_string()))
        })
        .collect()
}

/// What would be refused at the end is refused at once; the widths of the sites.
fn check(
    model: &Model,
    sites: &[Site],
    config: &HarvestConfig,
    out: &Path,
) -> Result<Vec<usize>, ActivationError> {
    let widths = sequences::widths(model, sites)?;
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
    refuse_existing(out)?;
    Ok(widths)
}

struct Work<'a> {
    model: &'a Model,
    model_name: &'a str,
    sites: &'a [Site],
    widths: Vec<usize>,
    corpus: &'a Corpus,
    plan: &'a Plan,
    config: &'a HarvestConfig,
}

/// All that describes one finished store.
struct Finished {
    info: StoreInfo,
    manifest: Manifest,
    result: HarvestResult,
}

impl Work<'_> {
    /// Writes all shards that are not there yet, each site's into the directory that `place_of` names; how far that is,
    /// and the tokens a second.
    fn shards(
        &self,
        dir: &mut PartialDir,
        place_of: &dyn Fn(&Path, usize) -> PathBuf,
        control: &Control,
    ) -> Result<(State, f64), ActivationError> {
        let (config, plan) = (self.config, self.plan);
        let mut state = State {
            config: config.clone(),
            sites: self.sites.to_vec(),
            model: ModelRef {
                name: self.model_name.to_owned(),
                digest: self.model.digest().to_owned(),
            },
            corpus: plan.digest(),
            done: Vec::new(),
            median_norms: Vec::new(),
        };
        let state_path = dir.path().join(STATE_FILE);
        if dir.is_resumed() {
            match read_json::<State>(&state_path) {
                Ok(found) if same_work(&found, &state) => state = found,
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
        let places: Vec<PathBuf> = (0..self.sites.len())
            .map(|number| place_of(dir.path(), number))
            .collect();
        let per_shard = config
            .shard_rows
            .div_ceil(config.plan.context * config.batch)
            * config.batch;
        let stage = control.stage("harvest", plan.tokens() as u64, "tokens");
        let resumed: usize = state.done.iter().map(|shard| shard[0].rows).sum();
        stage.resume_from(resumed as u64);
        let clock = Instant::now();
        let shards = plan.sequences.chunks(per_shard).enumerate();
        for (number, sequences) in shards.skip(state.done.len()) {
            let sequences: Vec<&Sequence> = sequences.iter().collect();
            let batches = (number * per_shard, config.batch);
            let of_sites = sequences::run(
                self.model,
                self.sites,
                &sequences,
                batches,
                control,
                Some(&stage),
            )?;
            let mut summaries = Vec::with_capacity(of_sites.len());
            for (place, mut rows) in of_sites.into_iter().enumerate() {
                let mut median = state.median_norms.get(place).copied();
                summaries.push(sequences::mark(&mut rows, self.widths[place], &mut median));
                if state.median_norms.len() == place {
                    state.median_norms.extend(median);
                }
                std::fs::create_dir_all(&places[place]).map_err(|source| ActivationError::Io {
                    path: places[place].clone(),
                    source,
                })?;
                rows.write(&places[place].join(shard_name(number)), self.widths[place])?;
            }
            state.done.push(summaries);
            write_json(&state_path, &state)?;
        }
        stage.finish();
        let seconds = clock.elapsed().as_secs_f64().max(1e-9);
        Ok((state, (plan.tokens() - resumed) as f64 / seconds))
    }

    fn finished(&self, state: &State, tokens_per_second: f64, number: usize) -> Finished {
        let (site, d) = (self.sites[number], self.widths[number]);
        let shards: Vec<&Summary> = state.done.iter().map(|shard| &shard[number]).collect();
        let total = |part: fn(&Summary) -> usize| shards.iter().map(|s| part(s)).sum::<usize>();
        let (rows, firsts) = (total(|s| s.rows), total(|s| s.firsts));
        let first_norms: f64 = shards.iter().map(|s| s.first_norm_sum).sum();
        let result = HarvestResult {
            tokens: rows,
            held_out_tokens: total(|s| s.held_out),
            tokens_per_second,
            site,
            d,
            median_norm: state.median_norms[number],
            first_norm: first_norms / firsts.max(1) as f64,
            outliers: total(|s| s.outliers),
        };
        let config = HarvestConfig {
            site,
            ..self.config.clone()
        };
        let info = StoreInfo {
            site,
            d,
            rows,
            shard_rows: shards.iter().map(|s| s.rows).collect(),
            context: config.plan.context,
            prepend_bos: config.plan.prepend_bos,
            median_norm: result.median_norm,
            outliers: result.outliers,
            held_out: result.held_out_tokens,
        };
        let config_value = serde_json::json!({
            "harvest": config, "corpus": self.corpus.digest(), "tokens": state.corpus
        });
        let manifest = Manifest::new(STORE_KIND, config.plan.seed)
            .with_site(site.to_string())
            .with_model(state.model.clone())
            .with_config(config_value);
        Finished {
            info,
            manifest,
            result,
        }
    }
}

fn same_work(found: &State, wanted: &State) -> bool {
    found.config == wanted.config
        && found.sites == wanted.sites
        && found.model == wanted.model
        && found.corpus == wanted.corpus
}
