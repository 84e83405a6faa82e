//! `pullback harvest`: keep activations of a model on disk.

use std::path::PathBuf;

use pullback_activations::{HarvestConfig, HarvestResult, harvest, harvest_sites};
use pullback_model::Site;

use crate::context::{App, make_room, middle_site};

/// Options of `harvest`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback harvest smollm2-135m-instruct --text sotu-moby-dick --at blocks.15.hook_resid_post --tokens 200000 -o store"
)]
pub(crate) struct Arguments {
    /// A catalogue name, a .gguf file, a model directory, or `owner/name[@revision][:file.gguf]` of the hub
    model: String,
    /// A corpus: a catalogue name, a .txt, .json or .jsonl file, or a directory of them
    #[arg(long)]
    text: String,
    /// Where in the model; default: the residual stream after the middle block. Several sites make a store each, of the
    /// same tokens, in one directory
    #[arg(long, value_delimiter = ',', value_name = "SITE,...")]
    at: Vec<Site>,
    /// Tokens to harvest for training
    #[arg(long, default_value_t = 200_000)]
    tokens: usize,
    /// Tokens to harvest from held-out documents, beside those
    #[arg(long, default_value_t = 12_800, value_name = "TOKENS")]
    held_out: usize,
    /// Tokens in a sequence; default: 128, or what the model can read if that is less
    #[arg(long)]
    context: Option<usize>,
    /// Sequences run together
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Start each sequence with the model's beginning-of-text token
    #[arg(long)]
    bos: bool,
    /// Seed of the choice of text
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The directory to make
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Replace the directory if it is there
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    make_room(&arguments.output, arguments.force)?;
    let corpus = app.open_corpus(&arguments.text)?;
    let named = app.load_model(&arguments.model)?;
    let site = arguments
        .at
        .first()
        .copied()
        .unwrap_or_else(|| middle_site(named.model.config().n_layers));
    let mut config = HarvestConfig::new(site, arguments.tokens, arguments.seed);
    config.plan.held_out_tokens = arguments.held_out;
    config.plan.context = arguments
        .context
        .unwrap_or(config.plan.context.min(named.model.config().n_ctx));
    config.plan.prepend_bos = arguments.bos;
    config.batch = arguments.batch;
    if arguments.at.len() > 1 {
        let results = harvest_sites(
            &named.model,
            &named.name,
            &corpus,
            (&config, &arguments.at),
            &arguments.output,
            &app.control,
        )?;
        return app.print(&results, || {
            let lines: String = results.iter().map(describe).collect();
            format!("{lines}{}\n", arguments.output.display())
        });
    }
    let result = harvest(
        &named.model,
        &named.name,
        &corpus,
        &config,
        &arguments.output,
        &app.control,
    )?;
    app.print(&result, || {
        format!("{}{}\n", describe(&result), arguments.output.display())
    })
}

/// The figures for a person.
fn describe(result: &HarvestResult) -> String {
    format!(
        "{} tokens at {} (width {}), {:.0} a second\n\
         first positions have norm {:.0} against {:.0} elsewhere; {} outliers\n",
        result.tokens,
        result.site,
        result.d,
        result.tokens_per_second,
        result.first_norm,
        result.median_norm,
        result.outliers
    )
}
