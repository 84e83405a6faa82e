//! `pullback adapt explain`: read a change of a model through a dictionary, and measure what it does.

mod page;
mod source;
mod words;

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::ValueEnum;
use pullback_adapters::{
    ChangedFeature, ExplainConfig, ExplainInput, Explanation, Prediction, Words, explain_in_words,
};
use pullback_artifact::{
    Manifest, ParentRef, PartialDir, refuse_existing, write_atomic, write_json,
};
use pullback_model::Site;
use pullback_sae::SAE_KIND;
use pullback_sae::interpret::{InterpretConfig, Score};
use serde::Serialize;
use serde_json::{Value, json};

use self::source::Source;
use self::words::{Asked, Trust};
use crate::context::App;

/// Options of `adapt explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    pullback adapt explain adapter --sae sae --store store --top 20 -o explanation\n  \
    pullback adapt explain adapter --sae sae --text novel.txt --json\n  \
    pullback adapt explain --from smollm2-135m-instruct --to my-fine-tune --sae sae --text novel.txt -o explanation\n\
    Without --text, the change of an adapter is measured on the held-out part of the data it was trained on, and any other\n\
    change on the store's held-out text.")]
pub(crate) struct Arguments {
    /// An adapter, or LoRA in PEFT's files
    #[arg(required_unless_present = "from", conflicts_with_all = ["from", "to"])]
    adapter: Option<PathBuf>,
    /// Instead of an adapter: the model as it was
    #[arg(long, value_name = "MODEL", requires = "to", conflicts_with_all = ["model", "data"])]
    from: Option<String>,
    /// The model as it became: another checkpoint of the same model
    #[arg(long, value_name = "MODEL", requires = "from")]
    to: Option<String>,
    /// An autoencoder of the same model
    #[arg(long)]
    sae: PathBuf,
    /// The site; default: the autoencoder's
    #[arg(long, value_name = "SITE")]
    site: Option<Site>,
    /// Text to measure on: a corpus as for `harvest`, or data as for `adapt train` (then answers count)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["on", "data"])]
    text: Option<String>,
    /// A store of the same model and site: text for examples and densities, and held-out text to measure on; default for
    /// examples: the text that is measured on
    #[arg(long)]
    store: Option<PathBuf>,
    /// Without --text: which held-out text the change is measured on
    #[arg(long, value_enum)]
    on: Option<On>,
    /// The data that the adapter was trained on; default: the built-in set
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// How many of the most changed features to interpret
    #[arg(long, default_value_t = 20)]
    top: usize,
    /// Tokens of text to measure features on, at most
    #[arg(long, default_value_t = 12_800)]
    tokens: usize,
    /// Tokens of it that the loss is measured on, twice for each feature; 0: no loss
    #[arg(long, default_value_t = 1024, value_name = "TOKENS")]
    effect_tokens: usize,
    /// Text is cut into sequences of so many tokens
    #[arg(long, default_value_t = 128)]
    context: usize,
    /// Put the listed features into words, by a model (its name or path; the explained one's own name is allowed) or a server
    /// that speaks the chat protocol of `OpenAI` (its address up to `/v1`; its key in `OPENAI_API_KEY`)
    #[arg(long, value_name = "MODEL|URL")]
    explainer: Option<String>,
    /// The model that the server is to use
    #[arg(long, value_name = "NAME")]
    explainer_model: Option<String>,
    /// The model that an adapter is for; default: the one that adapter, store or autoencoder records
    #[arg(long)]
    model: Option<String>,
    /// Leave the result, the whole explanation and a page in this directory
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Replace the directory if it is there
    #[arg(long)]
    force: bool,
}

/// Held-out text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum On {
    /// The held-out part of the data that the adapter was trained on
    Answers,
    /// The store's held-out documents
    Corpus,
}

/// The `kind` of an explanation's manifest.
const EXPLANATION_KIND: &str = "explanation";

/// A changed feature as the commands print it.
#[derive(Serialize)]
pub(crate) struct PrintedFeature<'a> {
    feature: usize,
    predicted: Option<f32>,
    measured: f32,
    effect_alone: Option<f64>,
    effect_removed: Option<f64>,
    density: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    reads: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    writes: Option<f32>,
    promoted: Vec<&'a str>,
    suppressed: Vec<&'a str>,
    examples: Vec<PrintedExample<'a>>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    words: Option<PrintedWords<'a>>,
}

#[derive(Serialize)]
struct PrintedWords<'a> {
    explanation: &'a str,
    detection: Option<Score>,
    detection_exchanged: Option<Score>,
    fuzzing: Option<Score>,
    fuzzing_exchanged: Option<Score>,
}

#[derive(Serialize)]
struct PrintedExample<'a> {
    text: &'a str,
    token: &'a str,
    activation: f32,
}

/// Changed features as the commands print them.
pub(crate) fn printed(features: &[ChangedFeature]) -> Vec<PrintedFeature<'_>> {
    features
        .iter()
        .map(|changed| PrintedFeature {
            feature: changed.feature,
            predicted: changed.predicted,
            measured: changed.measured,
            effect_alone: changed.effect_alone,
            effect_removed: changed.effect_removed,
            density: changed.density,
            reads: changed.reads,
            writes: changed.writes,
            promoted: changed
                .promoted
                .iter()
                .map(|(token, _)| token.as_str())
                .collect(),
            suppressed: changed
                .suppressed
                .iter()
                .map(|(token, _)| token.as_str())
                .collect(),
            examples: changed
                .examples
                .iter()
                .map(|example| PrintedExample {
                    text: &example.text,
                    token: &example.token,
                    activation: example.activation,
                })
                .collect(),
            words: changed.words.as_ref().map(|words| PrintedWords {
                explanation: &words.explanation,
                detection: words.detection,
                detection_exchanged: words.detection_exchanged,
                fuzzing: words.fuzzing,
                fuzzing_exchanged: words.fuzzing_exchanged,
            }),
        })
        .collect()
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    if let (Some(out), false) = (&arguments.output, arguments.force) {
        refuse_existing(out)?;
    }
    words::check(arguments)?;
    let source = Source::open(app, arguments)?;
    let own = (&source.named.model, source.named.name.as_str());
    let asked = Asked::open(app, arguments, own.1)?;
    let explainer = match &asked {
        Some(asked) => Some(asked.explainer(own)?),
        None => None,
    };
    let words = explainer.as_ref().map(|explainer| Words {
        explainer: &**explainer,
        config: InterpretConfig::default(),
    });
    // What stands in the way is said before the long work.
    let dir = match &arguments.output {
        Some(out) => Some(emptied(PartialDir::open_replacing(out)?)?),
        None => None,
    };
    let config = ExplainConfig {
        top: arguments.top,
        effect_tokens: arguments.effect_tokens,
        ..ExplainConfig::default()
    };
    let input = ExplainInput {
        model: &source.named.model,
        model_name: &source.named.name,
        change: source.change(),
        sae: &source.sae,
        site: source.site,
        text: &source.text,
        store: source.store.as_ref(),
    };
    let explanation = explain_in_words(&input, &config, words, &app.control)?;
    let mut result = result(&source, &explanation);
    if let (Some(out), Some(dir)) = (&arguments.output, dir) {
        write_json(&dir.path().join("result.json"), &result)?;
        write_json(&dir.path().join("explanation.json"), &explanation)?;
        let page = page::render(app, arguments, &source, &explanation)?;
        write_atomic(&dir.path().join("report.html"), page.as_bytes())?;
        dir.finish(manifest(arguments, &source))?;
        result["report"] = json!(out.join("report.html"));
    }
    app.print(&result, || describe(arguments, &source, &explanation))
}

/// A directory to work in, without what work that was stopped may have left.
pub(super) fn emptied(mut dir: PartialDir) -> anyhow::Result<PartialDir> {
    if dir.is_resumed() {
        dir.clear()?;
    }
    Ok(dir)
}

/// What the command prints and keeps as `result.json`.
fn result(source: &Source, explanation: &Explanation) -> Value {
    json!({
        "change": source.kind(),
        "site": source.site,
        "text": source.text.name(),
        "positions": explanation.positions,
        "features": printed(&explanation.features),
        "prediction": explanation.prediction,
        "agreement_spearman": explanation.agreement_spearman,
        "residual_fraction": explanation.residual_fraction,
        "residual_fraction_dictionary": explanation.residual_fraction_dictionary,
        "residual_fraction_codes": explanation.residual_fraction_codes,
        "effects": explanation.effects,
        "words": Trust::of(explanation),
    })
}

fn manifest(arguments: &Arguments, source: &Source) -> Manifest {
    let sae = ParentRef {
        kind: SAE_KIND.to_owned(),
        digest: source.sae_manifest.digest(),
        path: arguments.sae.display().to_string(),
    };
    Manifest::new(EXPLANATION_KIND, 0)
        .with_site(source.site.to_string())
        .with_model(source.named.reference())
        .with_parent(sae)
        .with_config(json!({
            "adapter": arguments.adapter,
            "from": arguments.from,
            "to": arguments.to,
            "text": source.text.name(),
            "top": arguments.top,
            "tokens": arguments.tokens,
            "effect_tokens": arguments.effect_tokens,
            "context": arguments.context,
        }))
}

/// Where predictions come from, in a sentence.
fn predicted_by(prediction: Prediction) -> &'static str {
    match prediction {
        Prediction::Weights => {
            "The predicted change of a feature is its density times the first-order change of its pre-activation, \
             W_enc · W_out · E[h], with h the adapter's hidden activity."
        }
        Prediction::Map => {
            "The predicted change of a feature is the mean change of its code under the adapter's own map; the stream that the map \
             makes is not encoded again."
        }
        Prediction::FirstOrder => {
            "The predicted change of a feature is its density times W_enc · E[dx/ds], the mean derivative of the stream at the site by \
             the size s of the change, at zero: what an infinitely small part of the change would do, scaled up."
        }
        Prediction::None => "",
    }
}

/// The explanation for a person.
fn describe(arguments: &Arguments, source: &Source, explanation: &Explanation) -> String {
    let share = |x: Option<f64>| 100.0 * x.unwrap_or(f64::NAN);
    let mut text = format!(
        "{} positions of {}, {} features active at {}\n",
        explanation.positions,
        source.text.name(),
        explanation.live.len(),
        source.site
    );
    // Writing to a string cannot fail.
    if let Some(rho) = explanation.agreement_spearman {
        let _ = writeln!(
            text,
            "prediction and measurement agree with Spearman {rho:.2}"
        );
    }
    let _ = writeln!(
        text,
        "the {} most changed leave {:.0} % of the change unexplained, the change of all codes {:.0} %",
        explanation.features.len(),
        share(explanation.residual_fraction),
        share(explanation.residual_fraction_codes)
    );
    if let Some(effects) = &explanation.effects {
        let _ = writeln!(
            text,
            "loss {:.3} -> {:.3}; these features alone {:+.3}, put back {:+.3}; all features alone {:+.3}, put back {:+.3}",
            effects.loss_before,
            effects.loss_after,
            effects.together_alone,
            effects.together_removed,
            effects.codes_alone,
            effects.codes_removed
        );
    }
    text.push('\n');
    for changed in &explanation.features {
        let tokens: Vec<String> = changed
            .promoted
            .iter()
            .take(6)
            .map(|(token, _)| format!("{token:?}"))
            .collect();
        let predicted = changed
            .predicted
            .map_or_else(String::new, |x| format!(" (predicted {x:+.3})"));
        let effect = changed
            .effect_alone
            .zip(changed.effect_removed)
            .map_or_else(String::new, |(alone, removed)| {
                format!("  loss alone {alone:+.4}, put back {removed:+.4}")
            });
        let _ = writeln!(
            text,
            "feature {:>6}  change {:+.3}{predicted}{effect}  active on {:.2} %  promotes {}",
            changed.feature,
            changed.measured,
            100.0 * changed.density,
            tokens.join(" ")
        );
        if let Some(words) = &changed.words {
            let auc = |score: Option<Score>| score.map_or(f64::NAN, |score| score.auc);
            let _ = writeln!(
                text,
                "    “{}”  detection {:.2}, fuzzing {:.2}",
                words.explanation,
                auc(words.detection),
                auc(words.fuzzing)
            );
        }
        for example in changed.examples.iter().take(2) {
            let line = example
                .text
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            let _ = writeln!(text, "    {:>7.1}  {line}", example.activation);
        }
    }
    if let Some(trust) = Trust::of(explanation) {
        let _ = writeln!(text, "{}", trust.sentence());
    }
    if let Some(out) = &arguments.output {
        let _ = writeln!(text, "{}", out.join("report.html").display());
    }
    text
}
