//! `pullback tokenize`: text to token ids and back.

use std::fmt::Write as _;
use std::io::Read as _;

use anyhow::{Context, bail};
use pullback_model::{ModelFiles, Tokenizer};
use serde_json::json;

use crate::context::App;

/// Options of `tokenize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    pullback tokenize smollm2-135m-instruct \"The capital of France is\"\n  \
    pullback tokenize smollm2-135m-instruct - --json < text.txt\n  \
    pullback tokenize smollm2-135m-instruct --decode 504,3575,282")]
pub(crate) struct Arguments {
    /// A catalogue name, a .gguf file, a model directory, or `owner/name[@revision][:file.gguf]` of the hub
    model: String,
    /// The text; `-` reads it from standard input, a line break at its end included
    #[arg(required_unless_present = "decode", conflicts_with = "decode")]
    text: Option<String>,
    /// Token ids to turn into text
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    decode: Vec<u32>,
    /// Read the text of special tokens as ordinary text like any other
    #[arg(long, conflicts_with = "decode")]
    no_special: bool,
    /// Begin with the token that begins texts
    #[arg(long, conflicts_with = "decode")]
    bos: bool,
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let (_, path) = app.model_path(&arguments.model)?;
    let files = ModelFiles::open(&path)?;
    let tokenizer = &files.tokenizer;
    let Some(text) = &arguments.text else {
        return decode(app, tokenizer, &arguments.decode);
    };
    let text = if text == "-" {
        let mut text = String::new();
        std::io::stdin()
            .lock()
            .read_to_string(&mut text)
            .context("cannot read the text from standard input")?;
        text
    } else {
        text.clone()
    };
    let mut ids = tokenizer.encode(&text, !arguments.no_special)?;
    if arguments.bos {
        let Some(bos) = tokenizer.bos() else {
            bail!(
                "{} has no token that begins texts: leave --bos out",
                path.display()
            );
        };
        ids.insert(0, bos);
    }
    let tokens: Vec<String> = ids.iter().map(|&id| tokenizer.token_text(id)).collect();
    app.print(&json!({ "ids": ids, "tokens": tokens }), || {
        let mut table = format!("{:>8}  {:>8}  token\n", "position", "id");
        for (position, (id, token)) in ids.iter().zip(&tokens).enumerate() {
            // Writing to a string cannot fail.
            let _ = writeln!(table, "{position:>8}  {id:>8}  {token:?}");
        }
        table
    })
}

fn decode(app: &App, tokenizer: &Tokenizer, ids: &[u32]) -> anyhow::Result<()> {
    let count = tokenizer.vocab_size();
    if let Some(id) = ids.iter().find(|&&id| id as usize >= count) {
        bail!(
            "token id {id} does not exist: the tokenizer's are 0 to {}",
            count.saturating_sub(1)
        );
    }
    let text = tokenizer.decode(ids, false);
    app.print(&json!({ "text": text }), || format!("{text}\n"))
}
