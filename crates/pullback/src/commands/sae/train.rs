//! `pullback sae train`: train dictionaries on stores, or on a model while it runs.

mod live;
mod several;

use std::path::PathBuf;

use anyhow::bail;
use pullback_activations::{ActivationStore, Feed as _, FeedSite, StoreFeed, open_stores};
use pullback_model::Site;
use pullback_sae::{
    AuxLoss, DecoderNorm, InputNorm, JumpReluSparsity, KindConfig, Schedule, TrainConfig, Wiring,
};

use crate::context::{App, make_room};

/// Options of `sae train`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pullback sae train store --features 4608 --k 32 -o sae\n  \
    pullback sae train --model smollm2-135m-instruct --text sotu-moby-dick --at 15.resid_post --tokens 2000000 -o sae\n  \
    pullback sae train stores --at 15.hook_mlp_in --target 15.hook_mlp_out --skip -o transcoder\n  \
    pullback sae train store --k 16,32,64 -o saes\n\
    The result is in the layout of SAELens, so other tools read it. Several values of --features or --k, and several sites,\n\
    make a dictionary each, from one pass over the rows."
)]
pub(crate) struct Arguments {
    /// What `pullback harvest` made, of one site or of several; without, --model runs over --text while the dictionary trains
    #[arg(required_unless_present = "text", conflicts_with = "text")]
    store: Option<PathBuf>,
    /// The sites; default: all that there are
    #[arg(long, value_delimiter = ',', value_name = "SITE,...")]
    at: Vec<Site>,
    /// A transcoder: it reads the site of --at and reconstructs this one
    #[arg(long, value_name = "SITE", conflicts_with = "crosscoder")]
    target: Option<Site>,
    /// Give the transcoder a linear way past the features
    #[arg(long, requires = "target")]
    skip: bool,
    /// A crosscoder: one dictionary of all the sites together
    #[arg(long)]
    crosscoder: bool,
    /// Number of features; default: 8 times the width of the activations
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    features: Vec<usize>,
    /// The kind of dictionary
    #[arg(long, default_value = "topk", value_parser = KindConfig::NAMES)]
    kind: String,
    /// Active features a token: of the kinds topk, batchtopk and matryoshka, and what jumprelu aims at
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "32",
        value_name = "K,..."
    )]
    k: Vec<usize>,
    /// Weight of the sparsity loss: L1 of relu and gated, that of --sparsity-loss of jumprelu
    #[arg(long)]
    sparsity: Option<f64>,
    /// The sparsity loss of jumprelu: (L0/k - 1)^2, the number of active features, or the sum of tanh(4 z)
    #[arg(long, value_parser = ["quadratic", "step", "tanh"])]
    sparsity_loss: Option<String>,
    /// The widths of a matryoshka dictionary, ascending; the last is --features
    #[arg(long, value_delimiter = ',', value_name = "N,N,...")]
    widths: Option<Vec<usize>>,
    /// Width of the window in which thresholds of jumprelu have a gradient
    #[arg(long)]
    bandwidth: Option<f64>,
    /// What is done to activations first; folded into what is saved where it can be
    #[arg(long, default_value = "average", value_parser = InputNorm::NAMES)]
    input_norm: String,
    /// Lengths of decoder rows in training: one, or free with codes judged by their product with them; default: unit, and
    /// free for a crosscoder
    #[arg(long, value_parser = ["unit", "free"])]
    decoder_norm: Option<String>,
    /// Tokens to train on, in as many passes as it takes
    #[arg(long, conflicts_with = "passes", required_unless_present = "store")]
    tokens: Option<usize>,
    /// Passes over the store
    #[arg(long)]
    passes: Option<usize>,
    /// Activations that are shuffled in memory, in MiB; stores that are larger are read in runs of neighbours
    #[arg(long, default_value_t = StoreFeed::BUFFER >> 20, value_name = "MIB")]
    buffer: u64,
    #[command(flatten)]
    live: live::Arguments,
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
    /// Dead features that it uses a token; default: half the width of the activations
    #[arg(long)]
    aux_k: Option<usize>,
    /// A feature is dead when it has not fired for so many tokens; default: a twentieth of the
    /// training, and ten batches at least
    #[arg(long)]
    dead_after: Option<usize>,
    /// Seed of the start and of the order of rows
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Also write the curves here, for `TensorBoard`
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
    /// The model, for the cross-entropy score, or to be run over --text; default: the one that the store records
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
    fn config(&self, wiring: &Wiring, features: usize, k: usize) -> anyhow::Result<TrainConfig> {
        let mut kind = KindConfig::named(&self.kind, features, k)?;
        let unfit = |option: &str| anyhow::anyhow!("--{option} is not for the kind {}", self.kind);
        match (&mut kind, self.sparsity_loss.as_deref()) {
            (_, None) | (KindConfig::JumpRelu { .. }, Some("quadratic")) => {}
            (KindConfig::JumpRelu { sparsity, .. }, Some(loss)) => {
                // The weights that their authors use (SAELens; Anthropic, January 2025).
                *sparsity = if loss == "step" {
                    JumpReluSparsity::Step { weight: 1.0 }
                } else {
                    JumpReluSparsity::Tanh {
                        weight: 5.0,
                        scale: 4.0,
                    }
                };
            }
            (_, Some(_)) => return Err(unfit("sparsity-loss")),
        }
        if let Some(asked) = self.sparsity {
            match &mut kind {
                KindConfig::Relu { weight }
                | KindConfig::Gated { weight }
                | KindConfig::JumpRelu {
                    sparsity:
                        JumpReluSparsity::Quadratic { weight, .. }
                        | JumpReluSparsity::Step { weight }
                        | JumpReluSparsity::Tanh { weight, .. },
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
        let free = match self.decoder_norm.as_deref() {
            Some(norm) => norm == "free",
            None => matches!(wiring, Wiring::Crosscoder { .. }),
        };
        Ok(TrainConfig {
            wiring: wiring.clone(),
            input_norm: InputNorm::named(&self.input_norm)?,
            decoder_norm: if free {
                DecoderNorm::Free
            } else {
                DecoderNorm::Unit
            },
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
            aux_k: self.aux_k,
            dead_after_tokens: self.dead_after,
            ..usual
        })
    }
}

impl Arguments {
    /// What is wanted of the sites that there are: their names, in order.
    fn wirings(&self, sites: &[FeedSite]) -> anyhow::Result<Vec<Wiring>> {
        let there: Vec<String> = sites.iter().map(|site| site.name.clone()).collect();
        let mut chosen: Vec<String> = self.at.iter().map(Site::to_string).collect();
        if let Some(target) = &self.target {
            let [from] = &chosen[..] else {
                bail!("--target needs the one site that is read: --at SITE");
            };
            return Ok(vec![Wiring::Transcoder {
                from: from.clone(),
                to: target.to_string(),
                skip: self.skip,
            }]);
        }
        if chosen.is_empty() {
            chosen.clone_from(&there);
        }
        if self.crosscoder {
            return Ok(vec![Wiring::Crosscoder { sites: chosen }]);
        }
        if let ([only], [one]) = (&chosen[..], &there[..])
            && only == one
        {
            return Ok(vec![Wiring::default()]);
        }
        Ok(chosen
            .into_iter()
            .map(|site| Wiring::Autoencoder { site: Some(site) })
            .collect())
    }

    /// The dictionaries that are wanted, with their names among the others.
    fn wanted(&self, sites: &[FeedSite]) -> anyhow::Result<Vec<(String, TrainConfig)>> {
        let mut wanted = Vec::new();
        for wiring in self.wirings(sites)? {
            let inputs = wiring.inputs();
            let of_inputs = sites
                .iter()
                .filter(|site| inputs.is_empty() || inputs.contains(&site.name.as_str()));
            let widest = of_inputs.map(|site| site.d).max().unwrap_or(0);
            let usual = [8 * widest];
            let features = if self.features.is_empty() {
                &usual[..]
            } else {
                &self.features
            };
            for &features in features {
                for &k in &self.k {
                    let name = [
                        inputs.join("+"),
                        format!("{features}-features"),
                        format!("k-{k}"),
                    ];
                    let name: Vec<&str> = name
                        .iter()
                        .map(String::as_str)
                        .filter(|part| !part.is_empty())
                        .collect();
                    wanted.push((name.join("-"), self.config(&wiring, features, k)?));
                }
            }
        }
        Ok(wanted)
    }
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    make_room(&arguments.output, arguments.force)?;
    let Some(path) = &arguments.store else {
        return live::run(app, arguments);
    };
    let stores = open_stores(path)?;
    if stores[0].info().held_out == 0 {
        bail!(
            "{} holds no held-out text to judge the autoencoder on: harvest with --held-out above 0",
            path.display()
        );
    }
    // All stores feed only where all are wanted: rows must be normal at each.
    let needed: Vec<String> = arguments
        .at
        .iter()
        .chain(&arguments.target)
        .map(Site::to_string)
        .collect();
    let refs: Vec<&ActivationStore> = stores
        .iter()
        .filter(|store| needed.is_empty() || needed.contains(&store.info().site.to_string()))
        .collect();
    if refs.len() < needed.len() || refs.is_empty() {
        let sites: Vec<String> = stores
            .iter()
            .map(|store| store.info().site.to_string())
            .collect();
        bail!(
            "{} holds activations at {} only",
            path.display(),
            sites.join(", ")
        );
    }
    let feed = StoreFeed::new(
        &refs,
        arguments.seed,
        arguments.buffer.saturating_mul(1 << 20),
    )?;
    // Options that make no sense are said before a model is loaded.
    arguments.wanted(feed.sites())?;
    let named = app.load_model_of(arguments.model.as_deref(), stores[0].manifest())?;
    several::run(app, arguments, (&feed, &stores), &named.model)
}
