//! `pullback sae synthetic`: which kind of dictionary finds known features.

mod sparsity;
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;
use pullback_artifact::{Manifest, PartialDir, read_json, remove_existing, write_json};
use pullback_sae::synthetic::{PIECE_ROWS, Scores, World, WorldConfig, score};
use pullback_sae::{Job, JumpReluSparsity, KindConfig, TrainConfig, train_all};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::context::{App, make_room};

/// Options of `sae synthetic`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback sae synthetic --kinds topk,batchtopk,matryoshka -o synthetic\n\
    Activations are sums of known directions, as in SynthSAEBench: frequencies by Zipf's law, trees of features that\n\
    exclude each other, correlated firing. All kinds are trained on the same rows with the same settings. relu and gated,\n\
    whose L0 is not asked for, get the weight of their sparsity loss from short trainings such that it comes near --k."
)]
pub(crate) struct Arguments {
    /// Kinds to compare
    #[arg(
        long,
        value_delimiter = ',',
        default_values = KindConfig::NAMES,
        value_parser = clap::builder::PossibleValuesParser::new(KindConfig::NAMES),
        value_name = "KIND,..."
    )]
    kinds: Vec<String>,
    /// Number of true features
    #[arg(long, value_name = "N", default_value_t = 1024)]
    truth: usize,
    /// Width of the activations
    #[arg(long, value_name = "N", default_value_t = 128)]
    d: usize,
    /// Features of the dictionaries; default: a quarter of the true ones
    #[arg(long)]
    features: Option<usize>,
    /// Active features a token; default: how many of the most frequent true features fire, as many as a dictionary has
    #[arg(long)]
    k: Option<usize>,
    /// Trees of features; default: one for each 128 true ones
    #[arg(long)]
    trees: Option<usize>,
    /// Levels below the roots of the trees
    #[arg(long, default_value_t = 3)]
    depth: usize,
    /// Common factors of the features' firing
    #[arg(long, default_value_t = 25)]
    rank: usize,
    /// How strongly features follow them
    #[arg(long, default_value_t = 0.1)]
    correlation: f64,
    /// Move true directions apart until the mean of their largest cosine is at most this
    #[arg(long)]
    overlap: Option<f64>,
    /// Activations to train on
    #[arg(long, default_value_t = 2_000_000)]
    tokens: usize,
    /// Rows in a batch
    #[arg(long, default_value_t = 1024)]
    batch: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Activations to judge on
    #[arg(long, default_value_t = 100_000)]
    judge: usize,
    /// How many worlds, each with trainings of its own
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Seed of the first; the others follow
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The directory to make
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Replace the directory if it is there
    #[arg(long)]
    force: bool,
}

/// The `kind` of the manifest.
const SYNTHETIC_KIND: &str = "synthetic-benchmark";
/// What an unfinished benchmark was asked for.
const WANTED_FILE: &str = "wanted.json";
/// Weights of sparsity losses that were found.
const WEIGHTS_FILE: &str = "weights.json";
/// A dictionary's figures.
const SCORES_FILE: &str = "scores.json";

/// What is asked for.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Wanted {
    world: WorldConfig,
    train: TrainConfig,
    kinds: Vec<String>,
    k: usize,
    seeds: Vec<u64>,
    pieces: usize,
}

/// A dictionary's figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    kind: String,
    seed: u64,
    #[serde(flatten)]
    scores: Scores,
}

/// `result.json`.
#[derive(Debug, Serialize)]
struct Benchmark<'a> {
    #[serde(flatten)]
    wanted: &'a Wanted,
    /// Mean over seeds of the mean largest cosine of true directions.
    overlap: f64,
    /// Weights of the sparsity losses of kinds whose L0 is not asked for.
    weights: &'a BTreeMap<String, f64>,
    table: Vec<table::Line>,
    rows: &'a [Row],
}

impl Arguments {
    fn wanted(&self) -> anyhow::Result<Wanted> {
        let mut world = WorldConfig::new(self.d, self.truth, self.seed);
        world.hierarchy.depth = self.depth;
        if let Some(trees) = self.trees {
            world.hierarchy.roots = trees;
        }
        world.correlation.rank = self.rank;
        world.correlation.scale = self.correlation;
        world.overlap = self.overlap;
        world.check()?;
        let mut kinds = self.kinds.clone();
        kinds.sort_by_key(|kind| KindConfig::NAMES.iter().position(|name| name == kind));
        kinds.dedup();
        if self.seeds == 0 || self.judge == 0 {
            bail!(
                "at least one seed (--seeds) and one activation to judge on (--judge) are needed"
            );
        }
        let features = self.features.unwrap_or((self.truth / 4).max(1));
        let k = match self.k {
            Some(k) => k,
            None => (world.true_l0(features).round() as usize).max(1),
        };
        if k == 0 || k > features {
            bail!("k is {k}, it must be between 1 and the {features} features");
        }
        let Some(last) = self.seed.checked_add(self.seeds - 1) else {
            bail!(
                "--seed {} leaves no room for {} seeds",
                self.seed,
                self.seeds
            );
        };
        let mut train =
            TrainConfig::new(features, KindConfig::named("topk", features, k)?, self.seed);
        train.tokens = Some(self.tokens);
        train.batch = self.batch;
        train.lr = self.lr;
        Ok(Wanted {
            world,
            train,
            kinds,
            k,
            seeds: (self.seed..=last).collect(),
            pieces: self.judge.div_ceil(PIECE_ROWS),
        })
    }
}

impl Wanted {
    fn world(&self, seed: u64) -> WorldConfig {
        WorldConfig {
            seed,
            ..self.world.clone()
        }
    }

    /// How a kind is trained: as all are, with this weight of its sparsity loss where its L0 is not asked for.
    fn training(&self, kind: &str, weight: Option<f64>, seed: u64) -> anyhow::Result<TrainConfig> {
        let mut kind = KindConfig::named(kind, self.train.features, self.k)?;
        if let (Some(asked), KindConfig::Relu { weight } | KindConfig::Gated { weight }) =
            (weight, &mut kind)
        {
            *weight = asked;
        }
        Ok(TrainConfig {
            kind,
            seed,
            ..self.train.clone()
        })
    }

    /// Whether the number of active features follows from a weight alone.
    fn needs_weight(&self, kind: &str) -> bool {
        match KindConfig::named(kind, self.train.features, self.k) {
            Ok(KindConfig::Relu { .. } | KindConfig::Gated { .. }) => true,
            Ok(KindConfig::JumpRelu { sparsity, .. }) => {
                !matches!(sparsity, JumpReluSparsity::Quadratic { .. })
            }
            _ => false,
        }
    }
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let wanted = arguments.wanted()?;
    make_room(&arguments.output, arguments.force)?;
    let mut dir = PartialDir::open(&arguments.output)?;
    let wanted_path = dir.path().join(WANTED_FILE);
    if dir.is_resumed() && read_json::<Wanted>(&wanted_path).ok().as_ref() != Some(&wanted) {
        app.control.say(&format!(
            "{} holds the start of a different benchmark: starting anew",
            dir.path().display()
        ));
        dir.clear()?;
    }
    write_json(&wanted_path, &wanted)?;

    let weights_path = dir.path().join(WEIGHTS_FILE);
    let weights: BTreeMap<String, f64> = if weights_path.exists() {
        read_json(&weights_path)?
    } else {
        let found = sparsity::search(app, &wanted, &dir.path().join("search"))?;
        write_json(&weights_path, &found)?;
        found
    };
    let mut rows = Vec::new();
    let mut overlap = 0.0;
    for &seed in &wanted.seeds {
        let world = World::new(&wanted.world(seed), &app.control)?;
        overlap += world.overlap() / wanted.seeds.len() as f64;
        let place = |kind: &String| dir.path().join(format!("{kind}-{seed}"));
        let mut jobs = Vec::new();
        let mut names = Vec::new();
        for kind in &wanted.kinds {
            let out = place(kind);
            // Finished, but not judged: its figures follow from a training that is done again.
            if !out.join(SCORES_FILE).exists() {
                remove_existing(&out)?;
                let config = wanted.training(kind, weights.get(kind).copied(), seed)?;
                names.push(kind);
                jobs.push(Job { config, out });
            }
        }
        if !jobs.is_empty() {
            let trained = train_all(&world, &jobs, &app.control, &mut |_, _| Ok(()))?;
            for ((kind, job), trained) in names.into_iter().zip(&jobs).zip(trained) {
                let (scores, latents) = score(&trained.sae, &world, wanted.pieces, &app.control)?;
                write_json(&job.out.join("latents.json"), &latents)?;
                let row = Row {
                    kind: kind.clone(),
                    seed,
                    scores,
                };
                write_json(&job.out.join(SCORES_FILE), &row)?;
            }
        }
        for kind in &wanted.kinds {
            rows.push(read_json::<Row>(&place(kind).join(SCORES_FILE))?);
        }
    }
    let result = Benchmark {
        overlap,
        weights: &weights,
        table: table::lines(&wanted.kinds, &rows),
        rows: &rows,
        wanted: &wanted,
    };
    write_json(&dir.path().join("result.json"), &result)?;
    let manifest = Manifest::new(SYNTHETIC_KIND, arguments.seed)
        .with_config(json!({ "synthetic": wanted, "weights": weights }));
    dir.finish_skipping(manifest, &[WANTED_FILE, WEIGHTS_FILE])?;
    app.print(&result, || {
        table::text(&result) + &format!("{}\n", arguments.output.display())
    })
}
