//! `pullback adapt cotrain`: a model and its dictionaries, grown together.

mod page;

use std::path::PathBuf;

use anyhow::bail;
use burn::tensor::Device;
use pullback_adapters::{CotrainConfig, CotrainInput, CotrainResult, Spread, cotrain};
use pullback_artifact::write_atomic;
use pullback_model::{NewModel, Site};
use pullback_sae::KindConfig;

use crate::cli::DeviceKind;
use crate::context::{App, NamedModel, make_room};

/// Options of `adapt cotrain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    pullback adapt cotrain --text stories.json --seeds 3 -o cotrain\n  \
    pullback adapt cotrain models/tinystories-656k --text stories.json --steps 200 -o cotrain\n\
    Left there for each seed: the models co-trained and twin, as directories in the Hugging Face layout, and the dictionaries\n\
    original, fresh and fresh-on-twin, one at each site. All other commands read them.")]
pub(crate) struct Arguments {
    /// A model that goes on, in a directory of the Hugging Face layout; without, a small Llama is trained from scratch
    model: Option<String>,
    /// The text: a .txt, .md, .json or .jsonl file, a directory of them, or a name of the catalogue
    #[arg(long, value_name = "FILE")]
    text: String,
    /// The directory to make
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Replace the directory if it is there
    #[arg(long)]
    force: bool,
    /// Where dictionaries grow, in the residual stream (default: after each block)
    #[arg(long, value_delimiter = ',', value_name = "SITES")]
    sites: Vec<Site>,
    /// Weight of the dictionaries' losses: of the mean share of variance that they leave unexplained
    #[arg(long, default_value_t = 0.3)]
    weight: f64,
    /// First seed: of the weights, of the order of the text and of the dictionaries
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 1)]
    seeds: usize,
    #[command(flatten)]
    size: Size,
    #[command(flatten)]
    learning: Learning,
    #[command(flatten)]
    dictionary: Dictionary,
}

/// The sizes of a new model.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "A model from scratch")]
struct Size {
    /// Width of the residual stream (default: 64)
    #[arg(long)]
    width: Option<usize>,
    /// Blocks (default: 4)
    #[arg(long)]
    layers: Option<usize>,
    /// Heads of attention (default: 4)
    #[arg(long)]
    heads: Option<usize>,
    /// Width of the MLP (default: three times that of the stream)
    #[arg(long)]
    mlp: Option<usize>,
    /// Tokens of the byte-level BPE that is trained on the text (default: 512)
    #[arg(long, value_name = "TOKENS")]
    vocabulary: Option<usize>,
}

/// How models are trained.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Training")]
struct Learning {
    /// Steps of each model, and of each dictionary trained afterwards
    #[arg(long, default_value_t = 600)]
    steps: usize,
    /// Sequences in a batch
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Tokens in a sequence
    #[arg(long, default_value_t = 128)]
    context: usize,
    /// Training tokens taken from the text, at most; they are used again until the steps are done
    #[arg(long, default_value_t = 2_000_000)]
    tokens: usize,
    /// Held-out tokens, at most
    #[arg(long, value_name = "TOKENS", default_value_t = 24_576)]
    held_out: usize,
    /// Peak learning rate of the model
    #[arg(long, default_value_t = 3e-3)]
    lr: f64,
    /// Decay of weight matrices, as a share of the learning rate
    #[arg(long, default_value_t = 0.1)]
    weight_decay: f64,
}

/// What dictionaries are like.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Dictionaries")]
struct Dictionary {
    /// Kind: topk or batchtopk
    #[arg(long, default_value = "topk")]
    kind: String,
    /// Features of each
    #[arg(long, default_value_t = 512)]
    features: usize,
    /// Active features a token, of all that are compared
    #[arg(long, default_value_t = 16)]
    k: usize,
    /// Peak learning rate of dictionaries
    #[arg(long = "dictionary-lr", value_name = "RATE", default_value_t = 3e-3)]
    rate: f64,
}

impl Arguments {
    /// The sizes of a new model, none where one goes on.
    fn new_model(&self) -> anyhow::Result<Option<NewModel>> {
        let size = &self.size;
        if self.model.is_some() {
            for (option, given) in [
                ("--width", size.width),
                ("--layers", size.layers),
                ("--heads", size.heads),
                ("--mlp", size.mlp),
                ("--vocabulary", size.vocabulary),
            ] {
                if given.is_some() {
                    bail!("{option} belongs to a model from scratch: leave MODEL out");
                }
            }
            return Ok(None);
        }
        let width = size.width.unwrap_or(64);
        Ok(Some(NewModel {
            d_model: width,
            n_layers: size.layers.unwrap_or(4),
            n_heads: size.heads.unwrap_or(4),
            d_mlp: size.mlp.unwrap_or(width.saturating_mul(3)),
            n_ctx: self.learning.context,
            vocabulary: size.vocabulary.unwrap_or(512),
            seed: self.seed,
        }))
    }

    fn config(&self, model: Option<&NamedModel>) -> anyhow::Result<CotrainConfig> {
        let new = self.new_model()?;
        let layers = match (model, &new) {
            (Some(model), _) => model.model.config().n_layers,
            (None, Some(new)) => {
                new.check()?;
                new.n_layers
            }
            (None, None) => 0,
        };
        let sites = match &self.sites[..] {
            [] => (0..layers).map(Site::resid_post).collect(),
            sites => sites.to_vec(),
        };
        let (learning, dictionary) = (&self.learning, &self.dictionary);
        let mut config = CotrainConfig::new(sites, self.seed);
        config.new = new;
        config.weight = self.weight;
        config.seeds = self.seeds;
        config.steps = learning.steps;
        config.batch = learning.batch;
        config.context = learning.context;
        config.tokens = learning.tokens;
        config.held_out_tokens = learning.held_out;
        config.lr = learning.lr;
        config.weight_decay = learning.weight_decay;
        config.dictionary.kind =
            KindConfig::named(&dictionary.kind, dictionary.features, dictionary.k)?;
        config.dictionary.features = dictionary.features;
        config.dictionary.lr = dictionary.rate;
        Ok(config)
    }
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    if app.device_kind() == DeviceKind::Gpu {
        bail!("adapt cotrain runs on the CPU: leave out --device gpu");
    }
    // What can be wrong without a model is said before one is loaded.
    if arguments.model.is_none() {
        arguments.config(None)?;
    }
    let corpus = app.open_corpus(&arguments.text)?;
    make_room(&arguments.output, arguments.force)?;
    let model = match &arguments.model {
        Some(model) => Some(app.load_model(model)?),
        None => None,
    };
    let config = arguments.config(model.as_ref())?;
    let input = CotrainInput {
        corpus: &corpus,
        model: model
            .as_ref()
            .map(|named| (&named.model, named.name.as_str())),
        device: &Device::flex(),
    };
    let result = cotrain(&input, &config, &arguments.output, &app.control)?;
    let page = arguments.output.join("report.html");
    write_atomic(&page, page::render(&result).as_bytes())?;
    app.print(&result, || describe(arguments, &result))
}

fn describe(arguments: &Arguments, result: &CotrainResult) -> String {
    let spread = |of: Spread, digits: usize| match of.deviation {
        Some(deviation) => format!("{:.digits$} ± {deviation:.digits$}", of.mean),
        None => format!("{:.digits$}", of.mean),
    };
    let mut text = String::new();
    for model in &result.summary.models {
        text += &format!(
            "{}: held-out cross-entropy {} nats a token\n",
            model.model,
            spread(model.held_out, 3)
        );
    }
    text += "\ndictionary       cross-entropy increase   explained variance   L0\n";
    for row in &result.summary.dictionaries {
        text += &format!(
            "{:<16} {:<24} {:<20} {}\n",
            row.dictionary,
            spread(row.ce_increase, 4),
            spread(row.explained_variance, 4),
            spread(row.l0, 2)
        );
    }
    text += &format!(
        "\nmeans over {} sites, then over {} seeds\n{}\n",
        result.config.sites.len(),
        result.seeds.len(),
        arguments.output.join("report.html").display()
    );
    text
}
