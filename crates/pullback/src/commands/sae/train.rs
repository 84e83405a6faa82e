//! `pullback sae train`: train a TopK autoencoder on a store.

use std::path::PathBuf;

use anyhow::bail;
use pullback_activations::ActivationStore;
use pullback_artifact::write_json;
use pullback_sae::saelens::save_sparsity;
use pullback_sae::{TrainConfig, Trained, train};

use super::eval::{describe, evaluate};
use crate::context::{App, make_room};

/// Options of `sae train`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback sae train store --features 4608 --k 32 -o sae\n\
    The result is in the layout of SAELens, so other tools read it."
)]
pub(crate) struct Arguments {
    /// A store made by `pullback harvest`
    store: PathBuf,
    /// Number of features; default: 8 times the width of the activations
    #[arg(long)]
    features: Option<usize>,
    /// Active features a token
    #[arg(long, default_value_t = 32)]
    k: usize,
    /// Passes over the store
    #[arg(long)]
    passes: Option<usize>,
    /// Rows in a batch
    #[arg(long)]
    batch: Option<usize>,
    /// Peak learning rate
    #[arg(long)]
    lr: Option<f64>,
    /// Weight of the auxiliary loss for dead features
    #[arg(long)]
    aux_coefficient: Option<f64>,
    /// Seed of the start and of the order of rows
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The model, for the cross-entropy score; default: the one that the store records
    #[arg(long)]
    model: Option<String>,
    /// The directory to make
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Replace the directory if it is there
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let store = ActivationStore::open(&arguments.store)?;
    let features = arguments.features.unwrap_or(8 * store.info().d);
    let mut config = TrainConfig::new(features, arguments.k, arguments.seed);
    config.passes = arguments.passes.unwrap_or(config.passes);
    config.batch = arguments.batch.unwrap_or(config.batch);
    config.lr = arguments.lr.unwrap_or(config.lr);
    config.aux_coefficient = arguments.aux_coefficient.unwrap_or(config.aux_coefficient);
    if store.info().held_out == 0 {
        bail!(
            "{} holds no held-out text to judge the autoencoder on: harvest with --held-out above 0",
            arguments.store.display()
        );
    }
    make_room(&arguments.output, arguments.force)?;
    let named = app.load_model_of(arguments.model.as_deref(), store.manifest())?;
    let Trained {
        sae,
        training,
        tokens_per_second,
    } = train(&store, &config, &arguments.output, &app.control)?;
    let (result, densities) = evaluate(
        app,
        &named.model,
        &store,
        sae,
        training.tokens,
        tokens_per_second,
    )?;
    save_sparsity(&densities, &arguments.output)?;
    write_json(&arguments.output.join("result.json"), &result)?;
    app.print(&result, || {
        describe(&result) + &format!("{}\n", arguments.output.display())
    })
}
