//! `pullback run`: next-token table, text, chat; with adapters and spliced dictionaries.

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use pullback_adapters::ResidualAdapter;
use pullback_model::{GenerateOptions, Intervention, Message, Model, NextToken, Sampling};
use pullback_sae::Splice;
use serde_json::json;

use crate::context::App;
use crate::output;

/// Options of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    pullback run smollm2-135m-instruct --prompt \"The capital of France is\"\n  \
    pullback run smollm2-135m-instruct --chat --prompt \"How do I bake bread?\" --max-tokens 80\n  \
    pullback run smollm2-135m-instruct --chat --adapter pullback-quickstart/adapter")]
pub(crate) struct Arguments {
    /// A catalogue name, a .gguf file, a model directory, or owner/name[@revision][:file.gguf] of the hub
    model: String,
    /// The text to go on from; with --chat, what the user says (without it, a conversation on the terminal)
    #[arg(long)]
    prompt: Option<String>,
    /// Put the prompt into the model's chat template
    #[arg(long)]
    chat: bool,
    /// System message of the conversation
    #[arg(long, requires = "chat")]
    system: Option<String>,
    /// Generate at most so many tokens (with --chat: 200)
    #[arg(long)]
    max_tokens: Option<usize>,
    /// 0 takes the likeliest token; above it, tokens are sampled
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Sample among so many of the likeliest tokens
    #[arg(long)]
    top_k: Option<usize>,
    /// Sample among the likeliest tokens that reach this probability together
    #[arg(long)]
    top_p: Option<f32>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Lines of the next-token table
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// An adapter to run with (may be given several times)
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// A sparse autoencoder whose reconstruction replaces the activation at its site
    #[arg(long, value_name = "DIR")]
    splice: Option<PathBuf>,
}

/// Tokens of an answer when --max-tokens does not say.
const CHAT_TOKENS: usize = 200;

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    if !(arguments.temperature >= 0.0 && arguments.temperature.is_finite()) {
        bail!(
            "--temperature is {}, it must be 0 or above",
            arguments.temperature
        );
    }
    if arguments.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
        bail!("--top-p must be above 0 and at most 1");
    }
    if arguments.top_k == Some(0) {
        bail!("--top-k must be at least 1");
    }
    let named = app.load_model(&arguments.model)?;
    let model = &named.model;
    let mut interventions = Vec::new();
    for path in &arguments.adapter {
        let (adapter, manifest) = ResidualAdapter::load(path)?;
        manifest.check_model(&named.reference())?;
        let adapter = adapter.to_device(model.device());
        interventions.push(Intervention::new(adapter.site, Arc::new(adapter)));
    }
    if let Some(path) = &arguments.splice {
        let (sae, manifest) = pullback_sae::load(path)?;
        manifest.check_model(&named.reference())?;
        let site = manifest.site.as_deref().unwrap_or_default().parse()?;
        let splice = Splice {
            dictionary: Arc::new(sae),
            first_position: 1,
        };
        interventions.push(Intervention::new(site, Arc::new(splice)));
    }
    match (&arguments.prompt, arguments.chat) {
        (Some(prompt), false) => {
            let ids = model.tokenizer().encode_with_bos(prompt, true)?;
            once(app, arguments, model, &ids, &interventions)
        }
        (Some(prompt), true) => {
            let ids = chat_ids(model, &opening(arguments, prompt))?;
            once(app, arguments, model, &ids, &interventions)
        }
        (None, true) if !app.json => converse(app, arguments, model, &interventions),
        (None, _) => {
            bail!("--prompt is needed: the text to go on from (or --chat for a conversation)")
        }
    }
}

fn opening(arguments: &Arguments, prompt: &str) -> Vec<Message> {
    let system = arguments.system.as_deref().map(Message::system);
    system.into_iter().chain([Message::user(prompt)]).collect()
}

fn chat_ids(model: &Model, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
    Ok(model
        .chat_template()?
        .encode_chat(model.tokenizer(), messages, true)?)
}

fn options<'a>(
    arguments: &Arguments,
    model: &Model,
    max_tokens: usize,
    interventions: &'a [Intervention],
) -> GenerateOptions<'a> {
    let ends =
        (0..model.tokenizer().vocab_size() as u32).filter(|&id| model.tokenizer().is_end(id));
    GenerateOptions {
        max_tokens,
        sampling: Sampling {
            temperature: arguments.temperature,
            top_k: arguments.top_k,
            top_p: arguments.top_p,
            seed: arguments.seed,
            ..Sampling::default()
        },
        stop: ends.collect(),
        stop_strings: Vec::new(),
        interventions,
    }
}

/// Table and text for one prompt.
fn once(
    app: &App,
    arguments: &Arguments,
    model: &Model,
    ids: &[u32],
    interventions: &[Intervention],
) -> anyhow::Result<()> {
    if ids.is_empty() {
        bail!("the prompt holds no tokens: give some text");
    }
    let logits = model.next_logits(ids, interventions)?;
    let next = model.rank_next(&logits, arguments.top);
    let max_tokens = arguments
        .max_tokens
        .or(arguments.chat.then_some(CHAT_TOKENS));
    if !app.json && !arguments.chat {
        output::text(&table(&next))?;
    }
    let mut text = None;
    if let Some(max_tokens) = max_tokens.filter(|&count| count > 0) {
        let mut stream = model.tokenizer().decode_stream(true).continuing();
        let mut whole = String::new();
        let mut failed = None;
        let options = options(arguments, model, max_tokens, interventions);
        model.generate(ids, &options, |id| {
            let piece = stream.push(id);
            whole.push_str(&piece);
            if !app.json {
                failed = output::text(&piece).err();
            }
            failed.is_none() && !app.control.is_interrupted()
        })?;
        let last = stream.finish();
        whole.push_str(&last);
        if let Some(error) = failed {
            return Err(error);
        }
        if !app.json {
            output::text(&(last + "\n"))?;
        }
        text = Some(whole);
        app.control.check()?;
    }
    if app.json {
        let mut result = json!({ "next": next });
        if let Some(text) = text {
            result["text"] = text.into();
        }
        output::json(&result)?;
    }
    Ok(())
}

fn table(next: &[NextToken]) -> String {
    let mut text = format!(
        "{:>8}  {:>8}  {:>11}  token\n",
        "id", "logit", "probability"
    );
    for next in next {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:>8}  {:>8.3}  {:>11.4}  {:?}",
            next.id, next.logit, next.probability, next.token
        );
    }
    text
}

/// A conversation on the terminal, until the end of the input.
fn converse(
    app: &App,
    arguments: &Arguments,
    model: &Model,
    interventions: &[Intervention],
) -> anyhow::Result<()> {
    let mut messages: Vec<Message> = arguments
        .system
        .as_deref()
        .map(Message::system)
        .into_iter()
        .collect();
    let prompt = if std::io::stdin().is_terminal() {
        "> "
    } else {
        ""
    };
    loop {
        output::text(prompt)?;
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message::user(line.trim()));
        let ids = chat_ids(model, &messages)?;
        let options = options(
            arguments,
            model,
            arguments.max_tokens.unwrap_or(CHAT_TOKENS),
            interventions,
        );
        let mut stream = model.tokenizer().decode_stream(true).continuing();
        let mut answer = String::new();
        let mut failed = None;
        model.generate(&ids, &options, |id| {
            let piece = stream.push(id);
            answer.push_str(&piece);
            failed = output::text(&piece).err();
            failed.is_none() && !app.control.is_interrupted()
        })?;
        let last = stream.finish();
        answer.push_str(&last);
        output::text(&(last + "\n"))?;
        if let Some(error) = failed {
            return Err(error);
        }
        app.control.check()?;
        messages.push(Message::assistant(answer.trim()));
    }
}
