//! `pullback sae features`: a page of all features of a dictionary.

mod change;
mod page;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use pullback_activations::{ActivationStore, open_stores};
use pullback_artifact::write_atomic;
use pullback_model::{Model, Tokenizer};
use pullback_sae::{
    Dictionary, Passage, Sites, SurveyConfig, SurveyedFeature, SurveyedFeatures, Wiring, load,
};
use serde_json::{Value, json};

use crate::context::App;

/// Options of `sae features`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback sae features sae --store store -o features.html\n\
    The page is one file that needs no network. With --json every feature is printed as well."
)]
pub(crate) struct Arguments {
    /// An autoencoder or transcoder
    sae: PathBuf,
    /// A store of the same model and site: the text that features are looked for in
    #[arg(long)]
    store: PathBuf,
    /// The model; default: the one that the store records
    #[arg(long, conflicts_with = "no_model")]
    model: Option<String>,
    /// Do without the model: tokens are shown by their numbers, and no logit effects
    #[arg(long)]
    no_model: bool,
    /// A number a feature to sort by: what `adapt explain` prints or writes, a list, or an object
    #[arg(long, value_name = "FILE.json")]
    change: Option<PathBuf>,
    /// Only so many features: those that change most, or else those active on most tokens
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Strongest activations of each feature
    #[arg(long, default_value_t = 6)]
    examples: usize,
    /// Examples from each fifth of a feature's activations
    #[arg(long, default_value_t = 1)]
    quantile_examples: usize,
    /// Tokens of context on each side of an example
    #[arg(long, default_value_t = 12)]
    context: usize,
    /// Seed of the choice of examples from quantiles
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The page to write
    #[arg(long, short, value_name = "PAGE.html", default_value = "features.html")]
    output: PathBuf,
    /// Replace the page if it is there
    #[arg(long)]
    force: bool,
}

/// Examples of a feature that are still worth a page.
const MOST_EXAMPLES: usize = 100;

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    for (option, value) in [
        ("--examples", arguments.examples),
        ("--quantile-examples", arguments.quantile_examples),
        ("--context", arguments.context),
    ] {
        if value > MOST_EXAMPLES {
            bail!("{option} is {value}, at most {MOST_EXAMPLES} fit on a page");
        }
    }
    if !arguments.force {
        pullback_artifact::refuse_existing(&arguments.output)?;
    }
    let stores = open_stores(&arguments.store)?;
    let (sae, manifest) = load(&arguments.sae)?;
    let sites = Sites::wired_to_read(&Wiring::of(&manifest), &stores)?;
    let store = sites.first();
    if let Some(model) = &store.manifest().model {
        manifest.check_model(model)?;
    }
    let change = match &arguments.change {
        Some(path) => Some(change::read(path, sae.n_features())?),
        None => None,
    };
    let named = if arguments.no_model {
        None
    } else {
        let named = app
            .load_model_of(arguments.model.as_deref(), store.manifest())
            .context("with --no-model the page is made without a model")?;
        Some(named)
    };
    let model = named.as_ref().map(|named| &named.model);
    let config = SurveyConfig {
        features: match (arguments.limit, &change) {
            (None, _) => SurveyedFeatures::All,
            (Some(count), None) => SurveyedFeatures::Densest(count),
            (Some(count), Some(change)) => SurveyedFeatures::These(change::most(change, count)),
        },
        examples: arguments.examples,
        band_examples: arguments.quantile_examples,
        context: arguments.context,
        seed: arguments.seed,
        ..SurveyConfig::default()
    };
    let survey = config.make(&sae, &sites, model, &app.control)?;
    let text = page::render(&page::Source {
        arguments,
        survey: &survey,
        config: &config,
        sae: &sae,
        store,
        words: Words::of(model),
        model: named.as_ref().map(|named| named.name.as_str()),
        change: change.as_deref(),
    });
    write_atomic(&arguments.output, text.as_bytes())?;
    let silent = survey.densities.iter().filter(|density| **density == 0.0);
    let silent = silent.count();
    let page = arguments.output.display().to_string();
    let summary = || {
        format!(
            "{} of {} features on the page; {} are active on none of the {} tokens, {:.1} on one of them\n{page}, {:.1} MB\n",
            survey.features.len(),
            survey.densities.len(),
            silent,
            survey.tokens,
            survey.l0,
            text.len() as f64 / 1e6
        )
    };
    if !app.json {
        return app.print(&Value::Null, summary);
    }
    let words = Words::of(model);
    let features: Vec<Value> = survey
        .features
        .iter()
        .map(|feature| printed(feature, store, words, change.as_deref()))
        .collect();
    let result = json!({
        "page": page,
        "bytes": text.len(),
        "tokens": survey.tokens,
        "coactive_tokens": survey.coactive_tokens,
        "l0": survey.l0,
        "dictionary": survey.densities.len(),
        "never_active": silent,
        "features": features,
    });
    app.print(&result, summary)
}

/// How tokens are called.
#[derive(Clone, Copy)]
pub(super) struct Words<'a>(Option<&'a Tokenizer>);

impl<'a> Words<'a> {
    fn of(model: Option<&'a Model>) -> Self {
        Self(model.map(Model::tokenizer))
    }

    /// A token by itself: its text, or its number where there is no model.
    pub(super) fn token(self, id: u32) -> String {
        self.0
            .map_or_else(|| format!("⟨{id}⟩"), |tokenizer| tokenizer.token_text(id))
    }

    fn text(self, ids: &[u32]) -> String {
        match self.0 {
            Some(tokenizer) => tokenizer.decode(ids, false),
            None => ids.iter().map(|&id| self.token(id)).collect(),
        }
    }
}

/// A feature as `--json` has it.
fn printed(
    feature: &SurveyedFeature,
    store: &ActivationStore,
    words: Words<'_>,
    change: Option<&[Option<f32>]>,
) -> Value {
    let passage = |passage: &Passage| {
        let text = |rows: std::ops::Range<u32>| {
            words.text(
                &rows
                    .map(|row| store.token(row as usize))
                    .collect::<Vec<_>>(),
            )
        };
        let token = words.token(store.token(passage.row as usize));
        let (before, after) = (
            text(passage.rows.start..passage.row),
            text(passage.row + 1..passage.rows.end),
        );
        json!({
            "text": format!("{before}«{token}»{after}"),
            "token": token,
            "activation": passage.activation,
        })
    };
    let passages = |list: &[Passage]| list.iter().map(passage).collect::<Vec<Value>>();
    let effects = |list: &[(u32, f32)]| -> Vec<Value> {
        list.iter()
            .map(|(id, change)| json!([words.token(*id), change]))
            .collect()
    };
    let bands: Vec<Value> = feature
        .bands
        .iter()
        .map(|band| {
            json!({
                "from": band.from, "to": band.to, "low": band.low, "high": band.high,
                "examples": passages(&band.examples),
            })
        })
        .collect();
    json!({
        "feature": feature.feature,
        "count": feature.count,
        "density": feature.density,
        "largest": feature.largest,
        "mean": feature.mean,
        "change": change.map(|change| change[feature.feature]),
        "histogram": feature.histogram,
        "promoted": effects(&feature.promoted),
        "suppressed": effects(&feature.suppressed),
        "examples": passages(&feature.examples),
        "bands": bands,
        "neighbours": feature.neighbours,
        "coactive": feature.coactive,
    })
}
