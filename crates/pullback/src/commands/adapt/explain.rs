//! `pullback adapt explain`: pull an adapter back through an autoencoder and read what changed.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use clap::ValueEnum;
use pullback_activations::ActivationStore;
use pullback_adapters::{
    ChangedFeature, Explanation, ResidualAdapter, built_in_samples, data_digest, explain,
    explain_on, held_out_answers, read_samples,
};
use pullback_artifact::write_json;
use pullback_sae::FeaturePages;
use serde::Serialize;
use serde_json::json;

use crate::context::App;

/// Options of `adapt explain`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback adapt explain adapter --sae sae --store store --top 20\n\
    Change is measured on the held-out answers of the adapter's own pairs, where it is meant to act, or with\n\
    --on corpus on the store's held-out text."
)]
pub(crate) struct Arguments {
    /// An adapter
    adapter: PathBuf,
    /// An autoencoder of the same model and site
    #[arg(long)]
    sae: PathBuf,
    /// A store of the same model and site: held-out text to measure on, and text for examples
    #[arg(long)]
    store: PathBuf,
    /// How many of the most changed features to interpret
    #[arg(long, default_value_t = 20)]
    top: usize,
    /// Which held-out text the change is measured on
    #[arg(long, value_enum, default_value_t = On::Answers)]
    on: On,
    /// The pairs that the adapter was trained on; default: the built-in set
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The model; default: the one that the store records
    #[arg(long)]
    model: Option<String>,
    /// Write the whole explanation to this file as well
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Held-out text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum On {
    /// Answers of the held-out pairs
    Answers,
    /// The store's held-out documents
    Corpus,
}

/// A changed feature as the commands print it.
#[derive(Serialize)]
pub(crate) struct PrintedFeature<'a> {
    feature: usize,
    predicted: f32,
    measured: f32,
    density: f32,
    reads: f32,
    writes: f32,
    promoted: Vec<&'a str>,
    suppressed: Vec<&'a str>,
    examples: Vec<PrintedExample<'a>>,
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
        })
        .collect()
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let store = ActivationStore::open(&arguments.store)?;
    let (sae, sae_manifest) = pullback_sae::load(&arguments.sae)?;
    let (adapter, adapter_manifest) = ResidualAdapter::load(&arguments.adapter)?;
    let site = store.info().site.to_string();
    for manifest in [&sae_manifest, &adapter_manifest] {
        manifest.check_site(&site)?;
        if let Some(model) = &store.manifest().model {
            manifest.check_model(model)?;
        }
    }
    let named = app.load_model_of(arguments.model.as_deref(), store.manifest())?;
    let pages = FeaturePages::default();
    let (model, control) = (&named.model, &app.control);
    let adapter = adapter.to_device(model.device());
    let explanation = match arguments.on {
        On::Corpus => explain(&adapter, &sae, &store, model, arguments.top, pages, control)?,
        On::Answers => {
            let samples = match &arguments.data {
                Some(path) => read_samples(path)?,
                None => built_in_samples()?,
            };
            if adapter_manifest.config["data"] != data_digest(&samples)? {
                bail!(
                    "{} was trained on other pairs: give them with --data, or measure with --on corpus",
                    arguments.adapter.display()
                );
            }
            let context = adapter_manifest.config["train"]["context"].as_u64();
            let context = context.map_or(model.config().n_ctx, |context| context as usize);
            let answers = held_out_answers(model, &samples, adapter.site, context, control)?;
            explain_on(
                &answers,
                &adapter,
                &sae,
                &store,
                model,
                arguments.top,
                pages,
                control,
            )?
        }
    };
    if let Some(path) = &arguments.output {
        write_json(path, &explanation)?;
    }
    let result = json!({
        "features": printed(&explanation.features),
        "agreement_spearman": explanation.agreement_spearman,
        "residual_fraction": explanation.residual_fraction,
    });
    app.print(&result, || describe(&explanation))
}

/// The explanation for a person.
fn describe(explanation: &Explanation) -> String {
    let mut text = format!(
        "{} features are active on held-out text; prediction and measurement agree with Spearman {:.2}\n\
         the {} most changed leave {:.0} % of what the adapter writes unexplained\n\n",
        explanation.live.len(),
        explanation.agreement_spearman.unwrap_or(f64::NAN),
        explanation.features.len(),
        100.0 * explanation.residual_fraction.unwrap_or(f64::NAN)
    );
    for changed in &explanation.features {
        let tokens: Vec<String> = changed
            .promoted
            .iter()
            .take(6)
            .map(|(token, _)| format!("{token:?}"))
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "feature {:>6}  change {:+.3} (predicted {:+.3})  active on {:.2} %  promotes {}",
            changed.feature,
            changed.measured,
            changed.predicted,
            100.0 * changed.density,
            tokens.join(" ")
        );
        for example in changed.examples.iter().take(2) {
            let line = example
                .text
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            let _ = writeln!(text, "    {:>7.1}  {line}", example.activation);
        }
    }
    text
}
