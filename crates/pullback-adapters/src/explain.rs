//! What a change of a model does to a dictionary's features: predicted, measured, and the few that changed most.

mod change;
mod decompose;
mod effects;
mod measure;
mod predict;
mod seen;
mod text;
mod units;

use pullback_activations::ActivationStore;
use pullback_artifact::{Control, ModelRef};
use pullback_model::{Model, Site};
use pullback_sae::interpret::{Explainer, InterpretConfig, Interpretation};
use pullback_sae::{Dictionary, Example, FeaturePages, Sae};
use serde::{Deserialize, Serialize};

pub use change::Change;
pub use decompose::{Decomposition, Matching, matching_pursuit};
pub use effects::Effects;
pub use predict::Prediction;
pub use text::{HeldOutText, TextSequence};
pub use units::{FeatureJacobian, HiddenUnit};

use self::change::Side;
use self::effects::Compared;
use self::measure::{CHUNK, Measured, Sums};
use self::seen::Seen;
use crate::feature::check_dictionary;
use crate::{Adapter, AdapterError, ResidualAdapter};

/// A feature that the change moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangedFeature {
    /// The feature.
    pub feature: usize,
    /// Predicted mean change of its activation, as [`Explanation::prediction`] says.
    pub predicted: Option<f32>,
    /// Measured mean change of its activation on the text.
    pub measured: f32,
    /// Change of the mean loss, in nats a token, when its change alone is applied to the model as it was.
    pub effect_alone: Option<f64>,
    /// Change of the mean loss when it alone is restored in the model as it became.
    pub effect_removed: Option<f64>,
    /// Share of tokens on which it is active, without the change.
    pub density: f32,
    /// Length of its row of `W_dec·W_inᵀ`: how much a unit of it feeds into a residual adapter.
    pub reads: Option<f32>,
    /// The same with each hidden unit weighted by its mean slope: what gets through on the text.
    pub reads_averaged: Option<f32>,
    /// First-order change of its pre-activation at the mean hidden activity.
    pub writes: Option<f32>,
    /// Tokens that its direction promotes, with their weight.
    pub promoted: Vec<(String, f32)>,
    /// Tokens that it suppresses.
    pub suppressed: Vec<(String, f32)>,
    /// Its strongest activations in the corpus.
    pub examples: Vec<Example>,
    /// What it responds to in words, if an explainer was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<Interpretation>,
}

/// Who is asked for words, and how.
#[derive(Clone, Copy)]
pub struct Words<'a> {
    /// The explainer.
    pub explainer: &'a dyn Explainer,
    /// How texts are chosen.
    pub config: InterpretConfig,
}

/// What [`explain()`], [`explain_on`] and [`explain_change`] return.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The most changed features, most changed first.
    pub features: Vec<ChangedFeature>,
    /// Where predictions come from.
    pub prediction: Prediction,
    /// Spearman's rank correlation of prediction and measurement over all features that are active on the
    /// text, with the change or without; none when there is no prediction or either does not vary.
    pub agreement_spearman: Option<f64>,
    /// Share of the change of the stream (`E‖Δ‖²`) that no combination of the listed features' decoder rows carries; none
    /// when nothing changes.
    pub residual_fraction: Option<f64>,
    /// The same of all decoder rows of the dictionary: near zero where there are more of them than dimensions.
    pub residual_fraction_dictionary: Option<f64>,
    /// `E‖Δ − Σ_f Δz_f·W_dec[f]‖²/E‖Δ‖²` over all features: the share that the change of the codes themselves does not
    /// make. It can be above one.
    pub residual_fraction_codes: Option<f64>,
    /// Positions of the text that features were measured at.
    pub positions: usize,
    /// The losses, where they were measured.
    pub effects: Option<Effects>,
    /// Measured mean change of every feature.
    pub measured: Vec<f32>,
    /// Predicted mean change of every feature.
    pub predicted: Option<Vec<f32>>,
    /// Features that are active on the text, with the change or without.
    pub live: Vec<u32>,
    /// The mean change of the stream as sums of decoder rows.
    pub decomposition: Decomposition,
    /// A residual adapter's hidden units.
    pub units: Vec<HiddenUnit>,
    /// How the listed features feed each other through a nonlinear residual adapter.
    pub jacobian: Option<FeatureJacobian>,
}

/// What is explained.
#[derive(Clone, Copy, Debug)]
pub struct ExplainInput<'a> {
    /// The model as it was.
    pub model: &'a Model,
    /// The name that it is known by.
    pub model_name: &'a str,
    /// What became of it.
    pub change: Change<'a>,
    /// The dictionary.
    pub sae: &'a Sae,
    /// The dictionary's site.
    pub site: Site,
    /// The text to measure on.
    pub text: &'a HeldOutText,
    /// Where examples and densities come from; without, the text.
    pub store: Option<&'a ActivationStore>,
}

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExplainConfig {
    /// Features to interpret.
    pub top: usize,
    /// The loss is measured on the first sequences of the text with so many tokens together; zero: not at all. It is run
    /// twice for each of the features.
    pub effect_tokens: usize,
    /// Terms of each sum of decoder rows.
    pub terms: usize,
    /// How features are shown.
    pub pages: FeaturePages,
}

impl Default for ExplainConfig {
    fn default() -> Self {
        Self {
            top: 20,
            effect_tokens: 1024,
            terms: 8,
            pages: FeaturePages::default(),
        }
    }
}

/// Pulls the adapter back, measures each feature's mean change on the store's held-out rows with and without
/// the adapter, and interprets the `count` most changed. No loss is measured; [`explain_change`] does that too.
///
/// # Errors
/// The store holds no held-out rows; the parts do not fit each other; the work was interrupted.
pub fn explain(
    adapter: &ResidualAdapter,
    sae: &Sae,
    store: &ActivationStore,
    model: &Model,
    count: usize,
    pages: FeaturePages,
    control: &Control,
) -> Result<Explanation, AdapterError> {
    let rows = store.normal_rows(true);
    if rows.is_empty() {
        return Err(AdapterError::Option(format!(
            "{} holds no held-out text: harvest with --held-out above 0",
            store.path().display()
        )));
    }
    let mut activations = vec![0.0; rows.len() * store.info().d];
    store.gather(&rows, &mut activations);
    explain_on(
        &activations,
        adapter,
        sae,
        store,
        model,
        count,
        pages,
        control,
    )
}

/// As [`explain()`], on other text than the store's: `activations [n, d]` of the site. Examples are still the
/// store's.
///
/// # Errors
/// There are no activations; the parts do not fit each other; the work was interrupted.
#[expect(
    clippy::too_many_arguments,
    reason = "the parts of one computation, each of another kind"
)]
pub fn explain_on(
    activations: &[f32],
    adapter: &ResidualAdapter,
    sae: &Sae,
    store: &ActivationStore,
    model: &Model,
    count: usize,
    pages: FeaturePages,
    control: &Control,
) -> Result<Explanation, AdapterError> {
    if adapter.site != store.info().site {
        return Err(AdapterError::Option(format!(
            "the adapter acts at {}, the store holds activations of {}",
            adapter.site,
            store.info().site
        )));
    }
    if adapter.d() != store.info().d {
        return Err(AdapterError::Option(format!(
            "the adapter is of width {}, the store's activations of width {}",
            adapter.d(),
            store.info().d
        )));
    }
    let seen = Seen::residual(activations, adapter, sae, control)?;
    let config = ExplainConfig {
        top: count,
        effect_tokens: 0,
        pages,
        ..ExplainConfig::default()
    };
    let positions = activations.len() / adapter.d();
    let parts = (sae, store, model);
    seen.explanation(parts, positions, (&config, None), control, |_| Ok(None))
}

/// Spearman's rank correlation of predicted and measured change on some activations `[n, d]` of the site.
///
/// # Errors
/// There are no activations; the parts do not fit each other; the work was interrupted.
pub fn agreement_on(
    activations: &[f32],
    adapter: &ResidualAdapter,
    sae: &Sae,
    control: &Control,
) -> Result<Option<f64>, AdapterError> {
    Ok(Seen::residual(activations, adapter, sae, control)?.agreement())
}

/// Runs the model as it was and as it became over the text, measures every feature's mean change, and for the features that
/// changed most what their change does to the loss.
///
/// The first position of each sequence and rows whose norm is more than ten times the median (attention sinks) are left out
/// of all means of features, and no feature is changed there. The cost of the losses is that of `2·(top + 3)` runs of the
/// layers above the site, less the sequences in which a feature does not change.
///
/// # Errors
/// The parts do not fit each other; the change acts above the site; numbers are not finite; the work was interrupted.
pub fn explain_change(
    input: &ExplainInput<'_>,
    config: &ExplainConfig,
    control: &Control,
) -> Result<Explanation, AdapterError> {
    explain_in_words(input, config, None, control)
}

/// As [`explain_change`], with the features that changed most also put into words, from the texts that examples come from.
///
/// # Errors
/// As [`explain_change`], and those of the explainer.
pub fn explain_in_words(
    input: &ExplainInput<'_>,
    config: &ExplainConfig,
    words: Option<Words<'_>>,
    control: &Control,
) -> Result<Explanation, AdapterError> {
    let (model, sae, site, text) = (input.model, input.sae, input.site, input.text);
    check_dictionary(sae)?;
    site.check(model.config())?;
    let width = site.place().width(model.config());
    if width != Some(sae.d()) {
        return Err(AdapterError::Option(format!(
            "the dictionary is of width {}, activations at {site} are {}",
            sae.d(),
            width.map_or("as wide as the text is long".to_owned(), |d| format!(
                "of width {d}"
            ))
        )));
    }
    let before = Side::before(model, site);
    let after = Side::after(model, input.change, site, 1.0)?;
    let sequences = text.sequences();
    let stage = control.stage("run both models", 2 * text.tokens() as u64, "tokens");
    let x = before.activations(sequences, control, &stage)?;
    let y = after.activations(sequences, control, &stage)?;
    stage.finish();
    let ids: Vec<&[u32]> = sequences.iter().map(|sequence| &sequence.ids[..]).collect();
    let reference = ModelRef {
        name: input.model_name.to_owned(),
        digest: model.digest().to_owned(),
    };
    let own = ActivationStore::of_text(text.name(), reference, (site, sae.d()), &ids, x)
        .map_err(|error| AdapterError::Option(error.to_string()))?;
    let d = sae.d();
    let x: Vec<f32> = (0..own.len())
        .flat_map(|row| own.row(row))
        .copied()
        .collect();
    let normal: Vec<bool> = (0..own.len())
        .map(|row| !own.flags(row).is_abnormal())
        .collect();
    let (mut rows, mut start) = (Vec::with_capacity(text.counted()), 0);
    for sequence in sequences {
        rows.extend(sequence.counted.iter().map(|at| start + at));
        start += sequence.ids.len();
    }
    rows.retain(|&row| normal[row]);
    let gathered = |of: &[f32]| -> Vec<f32> {
        let parts = rows.iter().map(|&row| &of[row * d..(row + 1) * d]);
        parts.flatten().copied().collect()
    };
    let (x_rows, y_rows) = (gathered(&x), gathered(&y));
    let measured = measured_pair(sae, &x_rows, &y_rows, control)?;
    let seen = match input.change {
        Change::Adapter(Adapter::Residual(adapter)) if adapter.site == site => {
            Seen::of_residual(adapter, sae, &x_rows, measured, control)?
        }
        Change::Adapter(Adapter::Feature(adapter))
            if adapter.site == site && **adapter.dictionary() == *sae =>
        {
            let predicted = predict::of_map(adapter, &measured);
            Seen::plain(measured, Prediction::Map, Some(predicted))
        }
        Change::Adapter(adapter) => {
            let mean = predict::mean_derivative(model, adapter, site, (text, &rows), control)?;
            let predicted = predict::through_encoder(sae, &measured, &mean);
            Seen::plain(measured, Prediction::FirstOrder, Some(predicted))
        }
        Change::Checkpoint(_) => Seen::plain(measured, Prediction::None, None),
    };
    let parts = (sae, input.store.unwrap_or(&own), model);
    seen.explanation(parts, rows.len(), (config, words), control, |features| {
        let (mut count, mut tokens) = (0, 0);
        while count < sequences.len() && tokens < config.effect_tokens {
            tokens += sequences[count].ids.len();
            count += 1;
        }
        if count == 0 {
            return Ok(None);
        }
        let compared = Compared {
            before: &before,
            after: &after,
            sae,
            sequences: &sequences[..count],
            x: [&x[..tokens * d], &y[..tokens * d]],
            normal: &normal,
        };
        compared.effects(features, control).map(Some)
    })
}

/// Features before and after, on rows `[n, d]` of both.
fn measured_pair(
    sae: &Sae,
    x: &[f32],
    y: &[f32],
    control: &Control,
) -> Result<Measured, AdapterError> {
    let d = sae.d();
    let mut sums = Sums::new(sae);
    let stage = control.stage("measure change", (x.len() / d) as u64, "tokens");
    for (x, y) in x.chunks(CHUNK * d).zip(y.chunks(CHUNK * d)) {
        control.check()?;
        let delta: Vec<f32> = y.iter().zip(x).map(|(y, x)| y - x).collect();
        sums.add(x, y, &delta);
        stage.advance((x.len() / d) as u64);
    }
    stage.finish();
    sums.finish()
}
