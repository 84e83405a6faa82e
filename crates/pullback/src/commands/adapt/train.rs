//! `pullback adapt train`: train a residual-stream adapter on question-answer pairs.

use std::path::PathBuf;

use clap::ValueEnum;
use pullback_adapters::{Activation, TrainConfig, built_in_pairs, read_pairs, train};
use pullback_model::Site;

use crate::context::{App, make_room, middle_site};

/// Options of `adapt train`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback adapt train smollm2-135m-instruct --at blocks.15.hook_resid_post -o adapter\n\
    Data are JSON Lines of {\"prompt\": \"…\", \"answer\": \"…\"}; every sixth pair is held out.\n\
    Without --data, the built-in set teaches the manner of an old sailor."
)]
pub(crate) struct Arguments {
    /// A catalogue name, a .gguf file, a model directory, or `owner/name[@revision][:file.gguf]` of the hub
    model: String,
    /// Question-answer pairs; default: the built-in set
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Where it acts; default: the residual stream after the middle block
    #[arg(long, value_name = "SITE")]
    at: Option<Site>,
    /// Hidden units
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Function between the two matrices
    #[arg(long, value_enum, default_value_t = ActivationName::Gelu)]
    activation: ActivationName,
    /// Passes over the pairs
    #[arg(long)]
    epochs: Option<usize>,
    /// Pairs in a batch
    #[arg(long)]
    batch: Option<usize>,
    /// Peak learning rate
    #[arg(long)]
    lr: Option<f64>,
    /// Weight of the mean square of the change, relative to that of the activation
    #[arg(long)]
    change_penalty: Option<f64>,
    /// Seed of the start and of the order of pairs
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The directory to make
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Replace the directory if it is there
    #[arg(long)]
    force: bool,
}

/// Names of [`Activation`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ActivationName {
    Identity,
    Relu,
    Gelu,
    Silu,
}

impl From<ActivationName> for Activation {
    fn from(name: ActivationName) -> Self {
        match name {
            ActivationName::Identity => Self::Identity,
            ActivationName::Relu => Self::Relu,
            ActivationName::Gelu => Self::Gelu,
            ActivationName::Silu => Self::Silu,
        }
    }
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let pairs = match &arguments.data {
        Some(path) => read_pairs(path)?,
        None => built_in_pairs()?,
    };
    make_room(&arguments.output, arguments.force)?;
    let named = app.load_model(&arguments.model)?;
    let site = arguments
        .at
        .unwrap_or_else(|| middle_site(named.model.config().n_layers));
    let mut config = TrainConfig::new(site, arguments.seed);
    config.rank = arguments.rank;
    config.activation = arguments.activation.into();
    config.epochs = arguments.epochs.unwrap_or(config.epochs);
    config.batch = arguments.batch.unwrap_or(config.batch);
    config.lr = arguments.lr.unwrap_or(config.lr);
    config.change_penalty = arguments.change_penalty.unwrap_or(config.change_penalty);
    let trained = train(
        &named.model,
        &named.name,
        &pairs,
        &config,
        &arguments.output,
        &app.control,
    )?;
    let result = trained.result;
    app.print(&result, || {
        format!(
            "rank {} at {site}: held-out loss {:.3} before, {:.3} after\n{}\n",
            result.rank,
            result.loss_before,
            result.loss_after,
            arguments.output.display()
        )
    })
}
