//! Growing a model and its dictionaries together (Lai and Heimersheim's SAE regularisation), and what it is worth.
//!
//! For each seed a model is trained with dictionaries whose losses it feels, and a twin on the same data without. Then fresh
//! dictionaries are trained on both as they are, and all three are judged at the same number of active features.

mod config;
mod data;
mod grow;
mod judge;
mod optimizer;
mod step;
mod summary;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use pullback_activations::Corpus;
use pullback_artifact::{
    Control, Manifest, ModelRef, PartialDir, read_json, refuse_existing, write_json,
};
use pullback_model::{Model, ModelFiles, Tokenizer};
use serde::{Deserialize, Serialize};

pub use self::config::CotrainConfig;
use self::data::Data;
pub use self::grow::GrowPoint;
use self::grow::{Soil, grow};
use self::judge::Judge;
pub use self::judge::JudgedDictionary;
pub use self::summary::{DictionarySummary, ModelSummary, Spread, Summary};
use crate::AdapterError;

/// The `kind` of the manifest of a model's directory.
pub const MODEL_KIND: &str = "model";
/// The `kind` of the manifest of the whole.
pub const COTRAIN_KIND: &str = "cotrain";

/// What is grown.
pub struct CotrainInput<'a> {
    /// The text.
    pub corpus: &'a Corpus,
    /// A model that goes on, and the name that is recorded of it; `None`: a new one.
    pub model: Option<(&'a Model, &'a str)>,
    /// Where models run.
    pub device: &'a Device,
}

/// One seed of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GrownSeed {
    /// The seed.
    pub seed: u64,
    /// The curve of the model that grew with dictionaries.
    pub co_trained: Vec<GrowPoint>,
    /// The curve of the one that grew alone.
    pub twin: Vec<GrowPoint>,
    /// All dictionaries.
    pub dictionaries: Vec<JudgedDictionary>,
    /// Seconds that it took; of a run that was interrupted, since it went on.
    pub seconds: f64,
}

/// `result.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CotrainResult {
    /// How it was made.
    pub config: CotrainConfig,
    /// Figures over all seeds.
    pub summary: Summary,
    /// Each seed.
    pub seeds: Vec<GrownSeed>,
}

/// What the work is: a partial directory of other work is of no use.
#[derive(PartialEq, Serialize, Deserialize)]
struct Work {
    config: CotrainConfig,
    corpus: String,
    model: Option<String>,
}

const WORK_FILE: &str = "work.json";

/// Grows models and dictionaries and leaves all of them at `out`: under `seed-N` the models `start`, `co-trained` and `twin` as
/// directories in the Hugging Face layout, and the dictionaries `original`, `fresh` and `fresh-on-twin`, one at each site.
///
/// Interrupted work stays in `<out>.partial`, and the same call goes on from its last checkpoint to the same files.
///
/// # Errors
/// An option makes no sense; the text is too small; the model's directory cannot be written; `out` exists; training diverges; the
/// work was interrupted.
pub fn cotrain(
    input: &CotrainInput<'_>,
    config: &CotrainConfig,
    out: &Path,
    control: &Control,
) -> Result<CotrainResult, AdapterError> {
    config.check()?;
    if let (Some(_), Some(_)) = (&config.new, input.model) {
        return Err(AdapterError::Option(
            "a model that goes on has its sizes: those of a new one do not apply".to_owned(),
        ));
    }
    if let Some((model, _)) = input.model {
        check_model(model, config)?;
    } else if config.new.is_none() {
        return Err(AdapterError::Option(
            "neither a model that goes on nor the sizes of a new one are given".to_owned(),
        ));
    }
    refuse_existing(out)?;
    let mut dir = PartialDir::open(out)?;
    let work = Work {
        config: config.clone(),
        corpus: input.corpus.digest(),
        model: input.model.map(|(model, _)| model.digest().to_owned()),
    };
    let work_path = dir.path().join(WORK_FILE);
    if dir.is_resumed() {
        let same = read_json::<Work>(&work_path).is_ok_and(|found| found == work);
        if !same {
            control.say(&format!(
                "{} holds the start of different work: starting anew",
                dir.path().display()
            ));
            dir.clear()?;
        }
    }
    write_json(&work_path, &work)?;
    let mut seeds = Vec::with_capacity(config.seeds);
    for seed in config.seed..config.seed + config.seeds as u64 {
        let place = dir.path().join(format!("seed-{seed}"));
        std::fs::create_dir_all(&place)
            .map_err(|error| pullback_artifact::ArtifactError::io("create", &place, error))?;
        seeds.push(one_seed(input, config, seed, &place, control)?);
    }
    let result = CotrainResult {
        config: config.clone(),
        summary: Summary::of(&seeds),
        seeds,
    };
    let mut manifest = Manifest::new(COTRAIN_KIND, config.seed).with_config(
        serde_json::json!({ "cotrain": config, "corpus": work.corpus, "summary": result.summary }),
    );
    if let Some((model, name)) = input.model {
        manifest = manifest.with_model(ModelRef {
            name: name.to_owned(),
            digest: model.digest().to_owned(),
        });
    }
    let seeds = config.seed..config.seed + config.seeds as u64;
    let working: Vec<String> = seeds
        .map(|seed| format!("seed-{seed}/{SEED_FILE}"))
        .collect();
    let mut working: Vec<&str> = working.iter().map(String::as_str).collect();
    working.push(WORK_FILE);
    dir.finish_skipping(manifest, &working)?;
    // How long it took must not be in what the digest is of.
    write_json(&out.join("result.json"), &result)?;
    Ok(result)
}

/// The figures of a seed that is done.
const SEED_FILE: &str = "seed.json";

fn one_seed(
    input: &CotrainInput<'_>,
    config: &CotrainConfig,
    seed: u64,
    place: &Path,
    control: &Control,
) -> Result<GrownSeed, AdapterError> {
    let done = place.join(SEED_FILE);
    if done.is_file() {
        return Ok(read_json(&done)?);
    }
    control.say(&format!("seed {seed}"));
    let clock = Instant::now();
    let start = match (input.model, &config.new) {
        (Some((model, _)), _) => model.files().path().to_owned(),
        (None, Some(new)) => {
            let start = place.join("start");
            if !start.exists() {
                let dir = PartialDir::open(&start)?;
                let new = pullback_model::NewModel {
                    seed,
                    ..new.clone()
                };
                let documents = input.corpus.documents().iter();
                new.create(documents.map(|document| document.text.as_str()), dir.path())?;
                let manifest =
                    Manifest::new(MODEL_KIND, seed).with_config(serde_json::json!({ "new": new }));
                dir.finish(manifest)?;
            }
            start
        }
        (None, None) => place.to_owned(),
    };
    let files = ModelFiles::open(&start)?;
    for site in &config.sites {
        site.check(&files.config)?;
    }
    let data = data_of(input, config, &files.tokenizer, seed, control)?;
    let soil = Soil {
        config,
        seed,
        data: &data,
        device: input.device,
        start: &start,
    };
    let [co_trained, twin] = ["co-trained", "twin"].map(|name| place.join(name));
    let [original, fresh, on_twin] =
        ["original", "fresh", "fresh-on-twin"].map(|name| place.join(name));
    let curve = grow(&soil, &co_trained, Some(&original), control)?;
    let twin_curve = grow(&soil, &twin, None, control)?;
    let root = place.parent().unwrap_or(place);
    let mut judge = Judge {
        config,
        seed,
        device: input.device,
        root,
        model: co_trained,
    };
    let sets = [("original", original), ("fresh", fresh.clone())];
    let mut dictionaries = judge.judge(input.corpus, &data, &fresh, &sets, control)?;
    judge.model = twin;
    let sets = [("fresh-on-twin", on_twin.clone())];
    dictionaries.extend(judge.judge(input.corpus, &data, &on_twin, &sets, control)?);
    let grown = GrownSeed {
        seed,
        co_trained: curve,
        twin: twin_curve,
        dictionaries,
        seconds: clock.elapsed().as_secs_f64(),
    };
    write_json(&done, &grown)?;
    Ok(grown)
}

fn data_of(
    input: &CotrainInput<'_>,
    config: &CotrainConfig,
    tokenizer: &Tokenizer,
    seed: u64,
    control: &Control,
) -> Result<Data, AdapterError> {
    Data::new(input.corpus, tokenizer, config, seed, control)
}

/// Refuses a model that cannot go on.
fn check_model(model: &Model, config: &CotrainConfig) -> Result<(), AdapterError> {
    let refuse = |problem: String| Err(AdapterError::Option(problem));
    if model.config().n_ctx < config.context {
        return refuse(format!(
            "sequences of {} tokens are longer than the {} positions of the model",
            config.context,
            model.config().n_ctx
        ));
    }
    let path = model.files().path();
    if !path.join("config.json").is_file() {
        return refuse(format!(
            "{} is no directory in the Hugging Face layout (config.json, model.safetensors, tokenizer.json): only such a model \
             can go on, since what is written is a copy of it with other weights",
            path.display()
        ));
    }
    Ok(())
}
