//! `pullback sae train`: train a dictionary on a store.

use std::path::PathBuf;

use anyhow::bail;
use pullback_activations::ActivationStore;
use pullback_artifact::{EventWriter, write_json};
use pullback_sae::saelens::save_sparsity;
use pullback_sae::{
    AuxLoss, CurvePoint, JumpReluSparsity, KindConfig, Schedule, TrainConfig, Trained,
    train_watched,
};

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
    /// The kind of dictionary
    #[arg(long, default_value = "topk", value_parser = KindConfig::NAMES)]
    kind: String,
    /// Active features a token: of the kinds topk, batchtopk and matryoshka, and what jumprelu aims at
    #[arg(long, default_value_t = 32)]
    k: usize,
    /// Weight of the sparsity loss: L1 of relu and gated, (L0/k - 1)^2 of jumprelu
    #[arg(long)]
    sparsity: Option<f64>,
    /// The widths of a matryoshka dictionary, ascending; the last is --features
    #[arg(long, value_delimiter = ',', value_name = "N,N,...")]
    widths: Option<Vec<usize>>,
    /// Width of the window in which thresholds of jumprelu have a gradient
    #[arg(long)]
    bandwidth: Option<f64>,
    /// Tokens to train on, in as many passes as it takes
    #[arg(long, conflicts_with = "passes")]
    tokens: Option<usize>,
    /// Passes over the store
    #[arg(long)]
    passes: Option<usize>,
    /// Rows in a batch
    #[arg(long)]
    batch: Option<usize>,
    /// Peak learning rate
    #[arg(long)]
    lr: Option<f64>,
    /// The course of the learning rate between warm-up and decay
    #[arg(long, default_value = "constant", value_parser = ["constant", "cosine"])]
    schedule: String,
    /// Share of the steps over which the learning rate rises from zero
    #[arg(long)]
    warmup: Option<f64>,
    /// Share of the steps, at the end, over which it falls to zero
    #[arg(long)]
    decay: Option<f64>,
    /// Share of the steps over which the weight of the sparsity loss rises from zero
    #[arg(long)]
    sparsity_warmup: Option<f64>,
    /// Shorten gradients that are longer than this
    #[arg(long)]
    clip: Option<f64>,
    /// The auxiliary loss for dead features of topk, batchtopk and matryoshka
    #[arg(long, default_value = "openai", value_parser = ["openai", "saelens", "sparsify"])]
    aux_loss: String,
    /// Its weight
    #[arg(long)]
    aux_coefficient: Option<f64>,
    /// A feature is dead when it has not fired for so many tokens; default: a fifth of a pass
    #[arg(long)]
    dead_after: Option<usize>,
    /// Seed of the start and of the order of rows
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Also write the curves here, for `TensorBoard`
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
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

impl Arguments {
    /// The settings asked for, the usual ones where nothing is.
    fn config(&self, features: usize) -> anyhow::Result<TrainConfig> {
        let mut kind = KindConfig::named(&self.kind, features, self.k)?;
        let unfit = |option: &str| anyhow::anyhow!("--{option} is not for the kind {}", self.kind);
        if let Some(asked) = self.sparsity {
            match &mut kind {
                KindConfig::Relu { weight }
                | KindConfig::Gated { weight }
                | KindConfig::JumpRelu {
                    sparsity: JumpReluSparsity::Quadratic { weight, .. },
                    ..
                } => *weight = asked,
                _ => return Err(unfit("sparsity")),
            }
        }
        if let Some(asked) = &self.widths {
            match &mut kind {
                KindConfig::Matryoshka { widths, .. } => widths.clone_from(asked),
                _ => return Err(unfit("widths")),
            }
        }
        if let Some(asked) = self.bandwidth {
            match &mut kind {
                KindConfig::JumpRelu { bandwidth, .. } => *bandwidth = asked,
                _ => return Err(unfit("bandwidth")),
            }
        }
        let aux_loss = match self.aux_loss.as_str() {
            "saelens" => AuxLoss::Saelens,
            "sparsify" => AuxLoss::Sparsify,
            _ => AuxLoss::Openai,
        };
        let usual = TrainConfig::new(features, kind, self.seed);
        Ok(TrainConfig {
            passes: self.passes.unwrap_or(usual.passes),
            tokens: self.tokens,
            batch: self.batch.unwrap_or(usual.batch),
            lr: self.lr.unwrap_or(usual.lr),
            schedule: if self.schedule == "cosine" {
                Schedule::Cosine
            } else {
                Schedule::Constant
            },
            warmup: self.warmup.unwrap_or(usual.warmup),
            decay: self.decay.unwrap_or(usual.decay),
            sparsity_warmup: self.sparsity_warmup.unwrap_or(usual.sparsity_warmup),
            clip: self.clip,
            aux_loss,
            aux_coefficient: self.aux_coefficient.unwrap_or(aux_loss.usual_weight()),
            dead_after_tokens: self.dead_after,
            ..usual
        })
    }
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let store = ActivationStore::open(&arguments.store)?;
    let features = arguments.features.unwrap_or(8 * store.info().d);
    let config = arguments.config(features)?;
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
    } = {
        let mut events = match &arguments.tensorboard {
            Some(dir) => Some(EventWriter::create(dir)?),
            None => None,
        };
        let mut watch = |point: &CurvePoint| {
            let Some(events) = &mut events else {
                return Ok(());
            };
            let mut scalars = vec![
                ("loss", point.loss),
                ("l0", point.l0),
                ("dead", point.dead as f64),
            ];
            scalars.extend(
                point
                    .explained_variance
                    .map(|ev| ("explained_variance", ev)),
            );
            Ok(events.scalars(point.tokens as u64, &scalars)?)
        };
        train_watched(&store, &config, &arguments.output, &app.control, &mut watch)?
    };
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
