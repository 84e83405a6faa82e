//! `pullback run`: next-token table, text, chat; what happens inside; with adapters and spliced dictionaries.

mod attribute;
mod lens;
mod patch;
mod picture;
mod record;
mod text;
mod token;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use pullback_adapters::Adapter;
use pullback_model::analysis::PatchPlace;
use pullback_model::{Intervention, Message, Model, Site};
use pullback_sae::{Sae, Splice, Wiring, splice_transcoder};

use crate::context::{App, NamedModel};

/// Options of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    pullback run smollm2-135m-instruct --prompt \"The capital of France is\"\n  \
    pullback run smollm2-135m-instruct --chat --prompt \"How do I bake bread?\" --max-tokens 80\n  \
    pullback run smollm2-135m-instruct --chat --adapter pullback-quickstart/adapter\n  \
    pullback run smollm2-135m-instruct --prompt \"One, two,\" --prompt \"A, B,\" --max-tokens 8 --stop .\n  \
    pullback run smollm2-135m-instruct --tokens 504,3575,282 --record 15.resid_post,15.pattern -o acts.safetensors\n  \
    pullback run smollm2-135m-instruct --prompt \"The capital of France is\" --lens --plot lens.svg\n  \
    pullback run smollm2-135m-instruct --prompt \"The capital of France is\" --attribute \" Paris\" --versus \" Rome\"\n  \
    pullback run smollm2-135m-instruct --prompt \"The capital of France is\" \\\n    \
        --patch \"The capital of Italy is\" --patch-place attn_out --plot patch.html")]
pub(crate) struct Arguments {
    /// A catalogue name, a .gguf file, a model directory, or `owner/name[@revision][:file.gguf]` of the hub
    model: String,
    /// The text to go on from, several times for several texts at once; with --chat, what the user says (without it, a
    /// conversation on the terminal)
    #[arg(long)]
    prompt: Vec<String>,
    /// Token ids instead of a prompt
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with_all = ["prompt", "chat"])]
    tokens: Vec<u32>,
    /// Put the prompt into the model's chat template
    #[arg(long)]
    chat: bool,
    /// System message of the conversation
    #[arg(long, requires = "chat")]
    system: Option<String>,
    #[command(flatten)]
    generation: Generation,
    /// Lines of the next-token table, and of the table of --attribute
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// An adapter to run with, or LoRA in PEFT's files (may be given several times; they act in this order)
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// Make the changes of the adapters so many times as large: one number for all, or one each
    #[arg(
        long,
        value_name = "FACTOR",
        requires = "adapter",
        allow_negative_numbers = true
    )]
    adapter_scale: Vec<f32>,
    /// The dictionary of adapters over features; default: the place that they record
    #[arg(long, value_name = "DIR", requires = "adapter")]
    sae: Option<PathBuf>,
    /// A sparse autoencoder whose reconstruction replaces the activation at its site
    #[arg(long, value_name = "DIR")]
    splice: Option<PathBuf>,
    #[command(flatten)]
    inside: Inside,
}

/// How text is made.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Text")]
struct Generation {
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
    /// Sample among tokens at least so many times as likely as the likeliest
    #[arg(long)]
    min_p: Option<f32>,
    /// Make tokens that are in the text already less likely: their logits are divided by this, or multiplied below zero
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// End the text before this string (may be given several times)
    #[arg(long, value_name = "STRING")]
    stop: Vec<String>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// What is looked at inside the model.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Inside the model")]
struct Inside {
    /// Keep the activations at these sites in the file of --output, and run no further than they need
    #[arg(long, value_name = "SITES", value_delimiter = ',', requires = "output")]
    record: Vec<Site>,
    /// The safetensors file to make: a tensor [tokens, …] a site
    #[arg(long, short, value_name = "FILE", requires = "record")]
    output: Option<PathBuf>,
    /// Replace the file if it is there, and that of --plot
    #[arg(long)]
    force: bool,
    /// What each layer would say, if it were the last
    #[arg(long, conflicts_with_all = ["record", "attribute", "patch"])]
    lens: bool,
    /// So many tokens a layer
    #[arg(long, value_name = "COUNT", default_value_t = 3, requires = "lens")]
    lens_top: usize,
    /// The token that the lens follows through the layers (default: the likeliest)
    #[arg(long, value_name = "TOKEN", requires = "lens")]
    follow: Option<String>,
    /// What each part of the model gives to the logit of a token (default: the likeliest)
    #[arg(long, value_name = "TOKEN", num_args = 0..=1, conflicts_with_all = ["record", "patch"])]
    #[expect(
        clippy::option_option,
        reason = "as clap has an option with or without a value"
    )]
    attribute: Option<Option<String>>,
    /// Which patches of this text with activations of the prompt's run bring back the prompt's answer
    #[arg(long, value_name = "CORRUPTED_PROMPT", conflicts_with = "record")]
    patch: Option<String>,
    /// What is patched: the residual stream before each block, or what attention or MLP add to it, position by
    /// position; or the output of each head at all positions
    #[arg(
        long,
        value_name = "PLACE",
        default_value = "resid_pre", value_parser = places(),
        requires = "patch"
    )]
    patch_place: PatchPlace,
    /// The prompt's answer for --patch (default: the likeliest)
    #[arg(long, value_name = "TOKEN", requires = "patch")]
    answer: Option<String>,
    /// The token whose logit is subtracted (with --patch by default the likeliest after the other prompt)
    #[arg(long, value_name = "TOKEN")]
    versus: Option<String>,
    /// The position that --lens and --attribute look at (default: the last)
    #[arg(long, conflicts_with = "patch")]
    position: Option<usize>,
    /// A picture, .svg or .html
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

impl Inside {
    /// Whether one of the analyses is asked for.
    fn analyses(&self) -> bool {
        self.lens || self.attribute.is_some() || self.patch.is_some()
    }
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    check(arguments)?;
    let mut named = app.load_model(&arguments.model)?;
    let interventions = interventions(arguments, &mut named)?;
    let model = &named.model;
    if arguments.prompt.is_empty() && arguments.tokens.is_empty() {
        if arguments.chat && !app.json && !arguments.inside.analyses() {
            return text::converse(app, arguments, model, &interventions);
        }
        bail!(
            "--prompt is needed: the text to go on from (or --tokens, or --chat for a conversation)"
        );
    }
    let texts = texts(arguments, model)?;
    let inside = &arguments.inside;
    if !inside.analyses() && inside.record.is_empty() {
        return text::run(app, arguments, model, &texts, &interventions);
    }
    let [ids] = &texts[..] else {
        bail!(
            "{} prompts are given: --record, --lens, --attribute and --patch look at one",
            texts.len()
        );
    };
    if let Some(output) = &inside.output {
        record::run(app, inside, &named, ids, &interventions, output)
    } else if let Some(corrupted) = &inside.patch {
        let corrupted = encoded(arguments, model, corrupted)?;
        patch::run(app, inside, model, [ids, &corrupted], &interventions)
    } else if let Some(token) = &inside.attribute {
        let lines = arguments.top;
        attribute::run(
            app,
            inside,
            model,
            ids,
            &interventions,
            token.as_deref(),
            lines,
        )
    } else {
        lens::run(app, inside, model, ids, &interventions)
    }
}

/// The names of what can be patched.
fn places() -> impl TypedValueParser<Value = PatchPlace> {
    PossibleValuesParser::new(PatchPlace::ALL.map(PatchPlace::name))
        .try_map(|name| name.parse::<PatchPlace>())
}

/// Says what cannot be before a model is loaded.
fn check(arguments: &Arguments) -> anyhow::Result<()> {
    let Generation {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        stop,
        ..
    } = &arguments.generation;
    if !(*temperature >= 0.0 && temperature.is_finite()) {
        bail!("--temperature is {temperature}, it must be 0 or above");
    }
    if top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
        bail!("--top-p must be above 0 and at most 1");
    }
    if *top_k == Some(0) {
        bail!("--top-k must be at least 1");
    }
    if let Some(p) = min_p
        && !(0.0..=1.0).contains(p)
    {
        bail!("--min-p is {p}, it must be from 0 to 1");
    }
    if !(*repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
        bail!("--repetition-penalty is {repetition_penalty}, it must be above 0");
    }
    if stop.iter().any(String::is_empty) {
        bail!("--stop is empty: no text could come before it");
    }
    let (scales, adapters) = (arguments.adapter_scale.len(), arguments.adapter.len());
    if scales > 1 && scales != adapters {
        bail!(
            "--adapter-scale is given {scales} times for {adapters} adapters: give one, or one each"
        );
    }
    let inside = &arguments.inside;
    if inside.versus.is_some() && inside.attribute.is_none() && inside.patch.is_none() {
        bail!("--versus goes with --attribute or --patch");
    }
    if inside.position.is_some() && !inside.lens && inside.attribute.is_none() {
        bail!("--position goes with --lens or --attribute");
    }
    if let Some(plot) = &inside.plot {
        if !inside.analyses() {
            bail!("--plot goes with --lens, --attribute or --patch");
        }
        picture::check(plot, inside.force)?;
    }
    if let Some(output) = &inside.output {
        refuse_existing(output, inside.force)?;
    }
    Ok(())
}

/// A file that is there is an error without --force; a directory always.
fn refuse_existing(path: &std::path::Path, force: bool) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!("{} is a directory, a file is made here", path.display());
    }
    if !force && path.symlink_metadata().is_ok() {
        bail!(
            "{} already exists: choose another name or use --force",
            path.display()
        );
    }
    Ok(())
}

/// What changes the run; updates of weights change the model itself.
fn interventions(
    arguments: &Arguments,
    named: &mut NamedModel,
) -> anyhow::Result<Vec<Intervention>> {
    let mut interventions = Vec::new();
    let reference = named.reference();
    for (number, path) in arguments.adapter.iter().enumerate() {
        let scale = match &arguments.adapter_scale[..] {
            [] => 1.0,
            [scale] => *scale,
            scales => scales[number],
        };
        let sae = arguments.sae.as_deref();
        Adapter::load(path, &reference, &named.model, sae)?
            .scaled(scale)?
            .attach(&mut named.model, &mut interventions)?;
    }
    if let Some(path) = &arguments.splice {
        let (sae, manifest) = pullback_sae::load(path)?;
        manifest.check_model(&named.reference())?;
        interventions.extend(spliced(sae, &Wiring::of(&manifest), named)?);
    }
    Ok(interventions)
}

/// A dictionary's output in place of what it reconstructs. First positions keep their activations.
fn spliced(sae: Sae, wiring: &Wiring, named: &NamedModel) -> anyhow::Result<Vec<Intervention>> {
    let dictionary = Arc::new(sae);
    let (inputs, outputs) = (wiring.inputs(), wiring.outputs());
    let ([from], [to]) = (&inputs[..], &outputs[..]) else {
        bail!(
            "a crosscoder of {} cannot be spliced into one run: `pullback sae eval` measures the model with each site replaced",
            inputs.join(", ")
        );
    };
    let (from, to): (Site, Site) = (from.parse()?, to.parse()?);
    if from == to {
        let splice = Splice {
            dictionary,
            first_position: 1,
        };
        return Ok(vec![Intervention::new(from, Arc::new(splice))]);
    }
    let order = Site::all(named.model.config());
    let place = |site: Site| order.iter().position(|other| *other == site);
    if place(from) >= place(to) {
        bail!("the transcoder reads {from}, which the model does not make before {to}");
    }
    let (read, write) = splice_transcoder(dictionary, 1);
    Ok(vec![
        Intervention::new(from, read),
        Intervention::new(to, write),
    ])
}

/// The token ids of all texts.
fn texts(arguments: &Arguments, model: &Model) -> anyhow::Result<Vec<Vec<u32>>> {
    if !arguments.tokens.is_empty() {
        return Ok(vec![arguments.tokens.clone()]);
    }
    let prompts = arguments.prompt.iter();
    prompts
        .map(|prompt| encoded(arguments, model, prompt))
        .collect()
}

fn encoded(arguments: &Arguments, model: &Model, prompt: &str) -> anyhow::Result<Vec<u32>> {
    let ids = if arguments.chat {
        chat_ids(model, &opening(arguments, prompt))?
    } else {
        model.tokenizer().encode_with_bos(prompt, true)?
    };
    if ids.is_empty() {
        bail!("the prompt holds no tokens: give some text");
    }
    Ok(ids)
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
