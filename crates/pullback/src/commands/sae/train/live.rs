//! Training on a model while it runs: nothing is kept on disk but the dictionary.

use pullback_activations::{HarvestConfig, ModelFeed};

use super::several;
use crate::context::{App, middle_site};

/// Options of training without a store.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Without a store")]
#[group(id = "without_a_store")]
pub(crate) struct Arguments {
    /// A corpus: a catalogue name, a .txt, .json or .jsonl file, or a directory of them
    #[arg(long, requires = "model")]
    pub(crate) text: Option<String>,
    /// Passes over the text: a model runs over it again in each
    #[arg(long, default_value_t = 1, value_name = "N")]
    text_passes: usize,
    /// Tokens of held-out documents, kept in memory, that the dictionary is judged on
    #[arg(long, default_value_t = 12_800, value_name = "TOKENS")]
    held_out: usize,
    /// Tokens in a sequence; default: 128, or what the model can read if that is less
    #[arg(long)]
    context: Option<usize>,
    /// Sequences run together
    #[arg(long, default_value_t = 8, value_name = "N")]
    sequences: usize,
    /// Rows that are made and shuffled at a time
    #[arg(long, default_value_t = ModelFeed::PIECE_ROWS, value_name = "ROWS")]
    piece: usize,
    /// Start each sequence with the model's beginning-of-text token
    #[arg(long)]
    bos: bool,
}

pub(super) fn run(app: &App, arguments: &super::Arguments) -> anyhow::Result<()> {
    let live = &arguments.live;
    // Clap has seen to it that all three are there.
    let (Some(text), Some(model), Some(tokens)) = (&live.text, &arguments.model, arguments.tokens)
    else {
        anyhow::bail!("a store is needed, or --model, --text and --tokens");
    };
    if live.text_passes == 0 {
        anyhow::bail!("--text-passes is 0, at least one pass is needed");
    }
    let corpus = app.open_corpus(text)?;
    let named = app.load_model(model)?;
    let mut sites = arguments.at.clone();
    sites.extend(arguments.target);
    if sites.is_empty() {
        sites.push(middle_site(named.model.config().n_layers));
    }
    let mut config =
        HarvestConfig::new(sites[0], tokens.div_ceil(live.text_passes), arguments.seed);
    config.plan.held_out_tokens = live.held_out;
    config.plan.context = live
        .context
        .unwrap_or(config.plan.context.min(named.model.config().n_ctx));
    config.plan.prepend_bos = live.bos;
    config.batch = live.sequences;
    config.shard_rows = live.piece;
    let model = (&named.model, named.name.as_str());
    let feed = ModelFeed::new(model, &sites, &corpus, &config, &app.control)?;
    several::run(
        app,
        arguments,
        (&feed, feed.held_out_stores()),
        &named.model,
    )
}
