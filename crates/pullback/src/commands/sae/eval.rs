//! `pullback sae eval`: judge a dictionary on held-out text of stores.

use std::path::PathBuf;
use std::sync::Arc;

use pullback_activations::open_stores;
use pullback_model::Model;
use pullback_sae::metrics::{DensityHistogram, ReconstructionMetrics};
use pullback_sae::{
    Dictionary, Sae, SaeResult, SiteResult, Sites, Wiring, cross_entropy_scores,
    evaluate_reconstruction, load, load_training,
};

use crate::context::App;

/// Options of `sae eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  pullback sae eval sae --store store --json")]
pub(crate) struct Arguments {
    /// A dictionary
    sae: PathBuf,
    /// What `pullback harvest` made of the same model, with held-out text: a store of the dictionary's site, or stores of
    /// several sites, among them all that it reads and reconstructs
    #[arg(long)]
    store: PathBuf,
    /// The model; default: the one that the store records
    #[arg(long)]
    model: Option<String>,
}

/// Held-out sequences that the cross-entropy is measured on.
const SEQUENCES: usize = 48;

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let stores = open_stores(&arguments.store)?;
    let (sae, manifest) = load(&arguments.sae)?;
    let sites = Sites::wired(&Wiring::of(&manifest), &stores)?;
    let store = sites.first();
    if let Some(model) = &store.manifest().model {
        manifest.check_model(model)?;
    }
    let named = app.load_model_of(arguments.model.as_deref(), store.manifest())?;
    let trained = load_training(&arguments.sae).map_or(0, |training| training.tokens);
    let (mut result, _) = evaluate(app, &named.model, &sites, sae, (trained, 0.0))?;
    let recorded: Option<SaeResult> =
        pullback_artifact::read_json(&arguments.sae.join("result.json")).ok();
    result.train_tokens_per_second =
        recorded.map_or(0.0, |recorded| recorded.train_tokens_per_second);
    app.print(&result, || describe(&result))
}

/// All figures of a dictionary, and the density of each feature: on the stores' training rows, or on the held-out ones where
/// there are no others.
pub(crate) fn evaluate(
    app: &App,
    model: &Model,
    sites: &Sites<'_>,
    sae: Sae,
    (train_tokens, train_tokens_per_second): (usize, f64),
) -> anyhow::Result<(SaeResult, Vec<f32>)> {
    let (features, k) = (sae.n_features(), sae.k());
    let selection = sae.selection().name().to_owned();
    let sae: Arc<dyn Dictionary> = Arc::new(sae);
    let judge = |rows: &[u32]| evaluate_reconstruction(&sae, sites, rows, &app.control);
    let held_out = judge(&sites.normal_rows(true))?;
    let training_rows = sites.normal_rows(false);
    let (dead_fraction, densities) = if training_rows.is_empty() {
        (held_out.metrics.dead_fraction, held_out.densities)
    } else {
        let train = judge(&training_rows)?;
        (train.metrics.dead_fraction, train.densities)
    };
    let scores = cross_entropy_scores(model, sites, &sae, SEQUENCES, &app.control)?;
    let of_sites = sites.outputs.iter().zip(held_out.of_sites).zip(&scores);
    let result = SaeResult {
        selection,
        features,
        k,
        reconstruction: ReconstructionMetrics {
            dead_fraction,
            ..held_out.metrics
        },
        density_histogram: DensityHistogram::of(&densities),
        cross_entropy: scores.first().copied(),
        sites: if scores.len() > 1 {
            of_sites
                .map(|((store, reconstruction), score)| SiteResult {
                    site: store.info().site.to_string(),
                    reconstruction,
                    cross_entropy: Some(*score),
                })
                .collect()
        } else {
            Vec::new()
        },
        train_tokens,
        train_tokens_per_second,
    };
    Ok((result, densities))
}

/// The figures for a person.
pub(crate) fn describe(result: &SaeResult) -> String {
    let figures = &result.reconstruction;
    let mut text = format!(
        "{} features, {:.1} active a token, {:.1} % dead\n",
        result.features,
        figures.l0,
        100.0 * figures.dead_fraction,
    );
    if result.sites.is_empty() {
        text += &format!(
            "explained variance {:.3} on held-out text (about the mean; {:.3} about zero)\n",
            figures.explained_variance, figures.explained_about_zero
        );
    }
    for site in &result.sites {
        text += &format!(
            "{}: explained variance {:.3} on held-out text{}\n",
            site.site,
            site.reconstruction.explained_variance,
            site.cross_entropy.map_or_else(String::new, |ce| format!(
                ", cross-entropy score {:.3}",
                ce.ce_score
            ))
        );
    }
    if let (Some(ce), true) = (&result.cross_entropy, result.sites.is_empty()) {
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
