//! `pullback sae eval`: judge an autoencoder on a store's held-out text.

use std::path::PathBuf;
use std::sync::Arc;

use pullback_activations::ActivationStore;
use pullback_model::Model;
use pullback_sae::metrics::{DensityHistogram, ReconstructionMetrics};
use pullback_sae::{
    Dictionary, Sae, SaeResult, cross_entropy_score, evaluate_reconstruction, load, load_training,
};

use crate::context::App;

/// Options of `sae eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  pullback sae eval sae --store store --json")]
pub(crate) struct Arguments {
    /// An autoencoder
    sae: PathBuf,
    /// A store of the same model and site, with held-out text
    #[arg(long)]
    store: PathBuf,
    /// The model; default: the one that the store records
    #[arg(long)]
    model: Option<String>,
}

/// Held-out sequences that the cross-entropy is measured on.
const SEQUENCES: usize = 48;

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let store = ActivationStore::open(&arguments.store)?;
    let (sae, manifest) = load(&arguments.sae)?;
    manifest.check_site(&store.info().site.to_string())?;
    if let Some(model) = &store.manifest().model {
        manifest.check_model(model)?;
    }
    let named = app.load_model_of(arguments.model.as_deref(), store.manifest())?;
    let trained = load_training(&arguments.sae).map_or(0, |training| training.tokens);
    let (mut result, _) = evaluate(app, &named.model, &store, sae, trained, 0.0)?;
    let recorded: Option<SaeResult> =
        pullback_artifact::read_json(&arguments.sae.join("result.json")).ok();
    result.train_tokens_per_second =
        recorded.map_or(0.0, |recorded| recorded.train_tokens_per_second);
    app.print(&result, || describe(&result))
}

/// All figures of an autoencoder, and the density of each feature on the store's training rows.
pub(crate) fn evaluate(
    app: &App,
    model: &Model,
    store: &ActivationStore,
    sae: Sae,
    train_tokens: usize,
    train_tokens_per_second: f64,
) -> anyhow::Result<(SaeResult, Vec<f32>)> {
    let (features, k) = (sae.n_features(), sae.k());
    let selection = sae.selection().name().to_owned();
    let (held_out, _) =
        evaluate_reconstruction(&sae, store, &store.normal_rows(true), &app.control)?;
    let (train, densities) =
        evaluate_reconstruction(&sae, store, &store.normal_rows(false), &app.control)?;
    let cross_entropy = cross_entropy_score(model, store, Arc::new(sae), SEQUENCES, &app.control)?;
    let result = SaeResult {
        selection,
        features,
        k,
        reconstruction: ReconstructionMetrics {
            dead_fraction: train.dead_fraction,
            ..held_out
        },
        density_histogram: DensityHistogram::of(&densities),
        cross_entropy: Some(cross_entropy),
        train_tokens,
        train_tokens_per_second,
    };
    Ok((result, densities))
}

/// The figures for a person.
pub(crate) fn describe(result: &SaeResult) -> String {
    let figures = &result.reconstruction;
    let mut text = format!(
        "{} features, {:.1} active a token, {:.1} % dead\n\
         explained variance {:.3} on held-out text (about the mean; {:.3} about zero)\n",
        result.features,
        figures.l0,
        100.0 * figures.dead_fraction,
        figures.explained_variance,
        figures.explained_about_zero
    );
    if let Some(ce) = &result.cross_entropy {
        text += &format!(
            "error {:.4} of the variance, cosine {:.3}, length {:.3} of the activations'\n\
             cross-entropy {:.3} clean, {:.3} spliced, {:.3} zeroed: score {:.3}; KL score {:.3}\n",
            figures.fvu,
            figures.cosine,
            figures.l2_ratio,
            ce.ce_clean,
            ce.ce_spliced,
            ce.ce_zero,
            ce.ce_score,
            ce.kl_score
        );
    }
    if result.train_tokens_per_second > 0.0 {
        text += &format!(
            "trained on {} tokens, {:.0} a second\n",
            result.train_tokens, result.train_tokens_per_second
        );
    }
    text
}
