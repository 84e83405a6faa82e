//! `pullback quickstart`: the whole story on a real model; writes a page to read.

mod page;

pub(crate) use page::measured_card;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use pullback_activations::{ActivationStore, HarvestConfig, HarvestResult, harvest};
use pullback_adapters::{
    Activation, AdapterResult, AdapterTraining, Basis, Explanation, Length, ResidualAdapter,
    TrainConfig as AdaptConfig, TrainInput, agreement_on, built_in_samples, explain_on,
    held_out_answers,
};
use pullback_artifact::{Control, Manifest, read_json, write_atomic, write_json};
use pullback_model::{GenerateOptions, Intervention, Message, Model, Site};
use pullback_report::change_report::most_frequent;
use pullback_sae::saelens::save_sparsity;
use pullback_sae::{
    FeaturePages, KindConfig, Sae, SaeResult, Sites, TrainConfig as SaeConfig, Training,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::adapt::explain::printed;
use super::sae::eval::evaluate;
use crate::context::{App, NamedModel, make_room};

/// Options of `quickstart`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  pullback quickstart\n\
    Fetches a model and a corpus (130 MB, once), then harvests activations, trains a sparse autoencoder, teaches\n\
    the model the manner of an old sailor, and writes report.html: which features of the model changed.\n\
    What is finished is kept: after Ctrl-C the same command goes on.")]
pub(crate) struct Arguments {
    /// A catalogue name, a .gguf file, a model directory or owner/name of the hub (with a chat template)
    #[arg(long, default_value = "smollm2-135m-instruct")]
    model: String,
    /// A corpus: a catalogue name, a .txt, .json or .jsonl file, or a directory of them
    #[arg(long, default_value = "sotu-moby-dick")]
    text: String,
    /// Where in the model; default: the residual stream after the middle block
    #[arg(long, value_name = "SITE")]
    at: Option<Site>,
    /// Tokens to harvest for training
    #[arg(long, default_value_t = 200_000)]
    tokens: usize,
    /// Tokens to harvest from held-out documents, beside those
    #[arg(long, default_value_t = 12_800, value_name = "TOKENS")]
    held_out: usize,
    /// Features of the autoencoder; default: 8 times the width of the residual stream
    #[arg(long)]
    features: Option<usize>,
    /// Active features a token
    #[arg(long, default_value_t = 32)]
    k: usize,
    /// Passes of the autoencoder's training over the store
    #[arg(long)]
    passes: Option<usize>,
    /// Hidden units of the adapter
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Passes of the adapter's training over the pairs
    #[arg(long)]
    epochs: Option<usize>,
    /// How many of the most changed features to interpret
    #[arg(long, default_value_t = 20)]
    top: usize,
    /// Seed of all random choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The directory to work in
    #[arg(long, short, value_name = "DIR", default_value = "pullback-quickstart")]
    output: PathBuf,
    /// Start anew: replace the artifacts in the directory
    #[arg(long)]
    force: bool,
}

/// Questions answered before and after; none of them is in the training set.
const QUESTIONS: [&str; 2] = [
    "How do I make a good cup of coffee?",
    "Why is the sky blue?",
];
/// Length of an answer, in tokens.
const ANSWER_TOKENS: usize = 70;

/// The same question answered by the model as it was and as it became.
#[derive(Clone, Debug, Serialize)]
struct Answer {
    prompt: String,
    before: String,
    after: String,
}

/// All that the summary and the page are made from.
struct Story<'a> {
    arguments: &'a Arguments,
    named: &'a NamedModel,
    site: Site,
    store: &'a ActivationStore,
    harvested: HarvestResult,
    sae: SaeResult,
    sae_training: Training,
    adapter: ResidualAdapter,
    adapter_result: AdapterResult,
    adapter_training: AdapterTraining,
    answers: Vec<Answer>,
    explanation: Explanation,
    agreement_on_corpus: Option<f64>,
    labels: BTreeMap<usize, Vec<String>>,
    seconds: Vec<(String, f64)>,
}

/// Seconds of each stage, kept across interruptions.
struct Clock {
    path: PathBuf,
    seconds: Vec<(String, f64)>,
}

impl Clock {
    fn open(path: PathBuf) -> anyhow::Result<Self> {
        let seconds = if path.exists() {
            read_json(&path)?
        } else {
            Vec::new()
        };
        Ok(Self { path, seconds })
    }

    /// Runs a stage and adds its time, also when it is interrupted.
    fn time<T>(
        &mut self,
        stage: &str,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        let result = work();
        let seconds = start.elapsed().as_secs_f64();
        match self.seconds.iter_mut().find(|(name, _)| name == stage) {
            Some((_, total)) => *total += seconds,
            None => self.seconds.push((stage.to_owned(), seconds)),
        }
        write_json(&self.path, &self.seconds)?;
        result
    }

    /// A stage that starts anew, or is looked at again, has no time yet.
    fn reset(&mut self, stage: &str) {
        self.seconds.retain(|(name, _)| name != stage);
    }
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.held_out == 0 {
        bail!("--held-out is 0: the autoencoder is judged on held-out text, give it some tokens");
    }
    let out = &arguments.output;
    std::fs::create_dir_all(out)
        .with_context(|| format!("cannot make the directory {}", out.display()))?;
    let mut clock = Clock::open(out.join("timings.json"))?;
    let (store_path, sae_path, adapter_path) =
        (out.join("store"), out.join("sae"), out.join("adapter"));
    if arguments.force {
        for path in [&store_path, &sae_path, &adapter_path] {
            make_room(path, true)?;
        }
        clock.seconds.clear();
    }
    let control = &app.control;

    clock.reset("fetch");
    let (corpus, named) = clock.time("fetch", || {
        let named = app.load_model(&arguments.model)?;
        control.say(&format!("model   {}", named.model.files().path().display()));
        let corpus = app.open_corpus(&arguments.text)?;
        control.say(&format!(
            "corpus  {} ({} documents)",
            corpus.path().display(),
            corpus.documents().len()
        ));
        Ok((corpus, named))
    })?;
    let model = &named.model;
    let site = arguments
        .at
        .unwrap_or_else(|| crate::context::middle_site(model.config().n_layers));
    // A model without one should say so before the long work.
    model.chat_template()?;

    let mut config = HarvestConfig::new(site, arguments.tokens, arguments.seed);
    config.plan.held_out_tokens = arguments.held_out;
    config.plan.context = config.plan.context.min(model.config().n_ctx);
    let harvest_of_this_text = json!({ "harvest": config, "corpus": corpus.digest() });
    if !finished(&store_path, "store", &harvest_of_this_text, &named, None)? {
        clock.time("harvest", || {
            harvest(model, &named.name, &corpus, &config, &store_path, control)?;
            Ok(())
        })?;
    }
    let store = ActivationStore::open(&store_path)?;
    let harvested: HarvestResult = read_json(&store_path.join("result.json"))?;
    let store_digest = store.manifest().digest();

    let mut config = SaeConfig::new(
        arguments.features.unwrap_or(8 * store.info().d),
        KindConfig::TopK { k: arguments.k },
        arguments.seed,
    );
    config.passes = arguments.passes.unwrap_or(config.passes);
    if !finished(
        &sae_path,
        "sae",
        &json!({ "train": config }),
        &named,
        Some(("store", &store_digest)),
    )? {
        let trained = clock.time("train", || {
            Ok(pullback_sae::train(&store, &config, &sae_path, control)?)
        })?;
        write_json(&sae_path.join("rate.json"), &trained.tokens_per_second)?;
    }
    let (sae, _) = pullback_sae::load(&sae_path)?;
    let sae_training = pullback_sae::load_training(&sae_path)?;
    let sae_result = evaluated(
        app,
        &mut clock,
        model,
        &store,
        &sae,
        &sae_training,
        &sae_path,
    )?;

    let samples = built_in_samples()?;
    let mut config = AdaptConfig::new(site, arguments.seed);
    config.basis = Basis::Residual {
        rank: arguments.rank,
        activation: Activation::Gelu,
    };
    if let Some(epochs) = arguments.epochs {
        config.length = Length::Epochs(epochs);
    }
    if !finished(
        &adapter_path,
        "adapter",
        &json!({ "train": config }),
        &named,
        None,
    )? {
        clock.time("adapt", || {
            let input = TrainInput::new(model, &named.name, &samples);
            pullback_adapters::train(&input, &config, &adapter_path, control)?;
            Ok(())
        })?;
    }
    let (adapter, _) = ResidualAdapter::load(&adapter_path)?;
    let adapter = adapter.to_device(model.device());
    let (adapter_result, adapter_training) = pullback_adapters::load_training(&adapter_path)?;

    clock.reset("answer");
    let answers = clock.time("answer", || answers(app, model, &adapter))?;
    clock.reset("explain");
    let (explanation, agreement_on_corpus, labels) = clock.time("explain", || {
        let pages = FeaturePages::default();
        let answers = held_out_answers(model, &samples, site, config.context, control)?;
        let explanation = explain_on(
            &answers,
            &adapter,
            &sae,
            &store,
            model,
            arguments.top,
            pages,
            control,
        )?;
        let rows = store.normal_rows(true);
        let mut corpus = vec![0.0; rows.len() * store.info().d];
        store.gather(&rows, &mut corpus);
        let on_corpus = agreement_on(&corpus, &adapter, &sae, control)?;
        let labels = words(&of_units(&explanation), &sae, &store, model, control)?;
        Ok((explanation, on_corpus, labels))
    })?;

    let story = Story {
        arguments,
        named: &named,
        site,
        store: &store,
        harvested,
        sae: sae_result,
        sae_training,
        adapter,
        adapter_result,
        adapter_training,
        answers,
        explanation,
        agreement_on_corpus,
        labels,
        seconds: clock.seconds.clone(),
    };
    let summary = summary(&story);
    let (summary_path, page_path) = (out.join("summary.json"), out.join("report.html"));
    write_json(&summary_path, &summary)?;
    write_atomic(&page_path, page::render(&story).as_bytes())?;
    let result = json!({ "report": page_path, "summary": summary_path, "result": summary });
    app.print(&result, || told(&story, &page_path, &summary_path))
}

/// Whether an artifact stands at a path and is the one wanted: of this model and parent, and with these
/// entries in its configuration.
fn finished(
    path: &Path,
    kind: &str,
    config: &Value,
    named: &NamedModel,
    parent: Option<(&str, &str)>,
) -> anyhow::Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    let manifest = Manifest::load_kind(path, kind)?;
    let entries = config.as_object().into_iter().flatten();
    let same_config = entries
        .into_iter()
        .all(|(key, value)| manifest.config[key] == *value);
    let same_model = manifest.check_model(&named.reference()).is_ok();
    let same_parent =
        parent.is_none_or(|(kind, digest)| manifest.check_parent(kind, digest, "a store").is_ok());
    if !(same_config && same_model && same_parent) {
        bail!(
            "{} was made with other options: use --force to start anew, or another directory with -o",
            path.display()
        );
    }
    manifest.verify_sizes(path)?;
    Ok(true)
}

/// The figures of the autoencoder: measured once, then read.
fn evaluated(
    app: &App,
    clock: &mut Clock,
    model: &Model,
    store: &ActivationStore,
    sae: &Sae,
    training: &Training,
    path: &Path,
) -> anyhow::Result<SaeResult> {
    let result_path = path.join("result.json");
    if result_path.exists() {
        return Ok(read_json(&result_path)?);
    }
    let rate_path = path.join("rate.json");
    let rate: f64 = if rate_path.exists() {
        read_json(&rate_path)?
    } else {
        0.0
    };
    clock.reset("evaluate");
    let (result, densities) = clock.time("evaluate", || {
        evaluate(
            app,
            model,
            &Sites::of(store),
            sae.clone(),
            (training.tokens, rate),
        )
    })?;
    save_sparsity(&densities, path)?;
    write_json(&result_path, &result)?;
    if rate_path.exists() {
        std::fs::remove_file(&rate_path)
            .with_context(|| format!("cannot remove {}", rate_path.display()))?;
    }
    Ok(result)
}

/// The questions, answered greedily with and without the adapter.
fn answers(app: &App, model: &Model, adapter: &ResidualAdapter) -> anyhow::Result<Vec<Answer>> {
    let edit = [Intervention::new(adapter.site, Arc::new(adapter.clone()))];
    let tokenizer = model.tokenizer();
    let stop: Vec<u32> = (0..tokenizer.vocab_size() as u32)
        .filter(|&id| tokenizer.is_end(id))
        .collect();
    let total = (QUESTIONS.len() * 2 * ANSWER_TOKENS) as u64;
    let stage = app.control.stage("answer", total, "tokens");
    let mut answers = Vec::new();
    for (place, prompt) in QUESTIONS.iter().enumerate() {
        let ids = model
            .chat_template()?
            .encode_chat(tokenizer, &[Message::user(*prompt)], true)?;
        let mut texts = Vec::new();
        for (side, interventions) in [&[][..], &edit[..]].into_iter().enumerate() {
            app.control.check()?;
            let options = GenerateOptions {
                max_tokens: ANSWER_TOKENS,
                stop: stop.clone(),
                interventions,
                ..GenerateOptions::default()
            };
            let ids = model.generate(&ids, &options, |_| {
                stage.advance(1);
                !app.control.is_interrupted()
            })?;
            app.control.check()?;
            stage.set(((2 * place + side + 1) * ANSWER_TOKENS) as u64);
            let cut = if ids.len() == ANSWER_TOKENS {
                " …"
            } else {
                ""
            };
            texts.push(tokenizer.decode(&ids, true).trim().to_owned() + cut);
        }
        let after = texts.pop().unwrap_or_default();
        let before = texts.pop().unwrap_or_default();
        answers.push(Answer {
            prompt: (*prompt).to_owned(),
            before,
            after,
        });
    }
    stage.finish();
    Ok(answers)
}

/// Every feature that a hidden unit reads or writes.
fn of_units(explanation: &Explanation) -> Vec<usize> {
    let named: BTreeSet<usize> = explanation
        .units
        .iter()
        .flat_map(|unit| {
            unit.reads
                .iter()
                .chain(&unit.writes)
                .map(|(feature, _)| *feature)
        })
        .collect();
    named.into_iter().collect()
}

/// A few words that each of some features fires on, to name it by.
pub(crate) fn words(
    features: &[usize],
    sae: &Sae,
    store: &ActivationStore,
    model: &Model,
    control: &Control,
) -> anyhow::Result<BTreeMap<usize, Vec<String>>> {
    let pages = FeaturePages {
        examples: 5,
        tokens: 0,
        ..FeaturePages::default()
    };
    let pages = pages.make(sae, store, model, features, control)?;
    Ok(pages
        .iter()
        .map(|page| {
            let words = page
                .examples
                .iter()
                .map(|example| page::example(example).peak_word());
            (page.feature, most_frequent(words, 3))
        })
        .collect())
}

/// `summary.json`.
fn summary(story: &Story<'_>) -> Value {
    let seconds: serde_json::Map<String, Value> = story
        .seconds
        .iter()
        .map(|(stage, seconds)| (stage.clone(), json!(seconds)))
        .collect();
    json!({
        "model": story.named.name,
        "model_digest": story.named.model.digest(),
        "site": story.site,
        "seed": story.arguments.seed,
        "tokens_harvested": story.harvested.tokens,
        "tokens_held_out": story.harvested.held_out_tokens,
        "harvest_tokens_per_second": story.harvested.tokens_per_second,
        "sae": story.sae,
        "adapter": story.adapter_result,
        "answers": story.answers,
        "agreement_spearman": story.explanation.agreement_spearman,
        "agreement_spearman_on_corpus": story.agreement_on_corpus,
        "residual_fraction": story.explanation.residual_fraction,
        "changed_features": printed(&story.explanation.features),
        "seconds": seconds,
    })
}

/// The end of the story, on the terminal.
fn told(story: &Story<'_>, page: &Path, summary: &Path) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        text += &words;
        text.push('\n');
    };
    if let Some(answer) = story.answers.first() {
        line(format!("question  {}", answer.prompt));
        line(format!("before    {}", one_line(&answer.before)));
        line(format!("after     {}", one_line(&answer.after)));
        line(String::new());
    }
    let sae = &story.sae;
    let score = sae.cross_entropy.map_or(f64::NAN, |ce| ce.ce_score);
    line(format!(
        "autoencoder   {} features, explained variance {:.3}, cross-entropy score {score:.3}",
        sae.features, sae.reconstruction.explained_variance
    ));
    line(format!(
        "adapter       held-out loss {:.3} before, {:.3} after",
        story.adapter_result.loss_before, story.adapter_result.loss_after
    ));
    line(format!(
        "pulled back   predicted and measured change agree with Spearman {:.2}",
        story.explanation.agreement_spearman.unwrap_or(f64::NAN)
    ));
    for changed in story.explanation.features.iter().take(5) {
        let words = changed
            .examples
            .iter()
            .map(|example| page::example(example).peak_word());
        let words = most_frequent(words, 5).join(", ");
        line(format!(
            "  feature {:>5}  change {:+.3}  fires on {words}",
            changed.feature, changed.measured
        ));
    }
    let total: f64 = story.seconds.iter().map(|(_, seconds)| seconds).sum();
    line(format!("{total:.0} seconds in all"));
    line(String::new());
    line(page.display().to_string());
    line(summary.display().to_string());
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
