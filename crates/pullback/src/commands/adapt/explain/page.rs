//! The page of an explanation.

use std::collections::{BTreeMap, BTreeSet};

use pullback_adapters::{Adapter, ChangedFeature, Explanation};
use pullback_report::change_report::{
    AdapterFacts, ChangeExplanation, ChangeReport, FeatureCard, HiddenUnit, LossFigures,
    ModelFacts, SaeFacts, UnitFeature, WordScore, render_explanation,
};
use pullback_sae::interpret::Interpretation;
use pullback_sae::{Dictionary, Sae};

use super::source::Source;
use super::{Arguments, predicted_by};
use crate::commands::quickstart::{measured_card, words};
use crate::context::App;

/// Features and paths that a table lists.
const ROWS: usize = 12;

pub(super) fn render(
    app: &App,
    arguments: &Arguments,
    source: &Source,
    explanation: &Explanation,
) -> anyhow::Result<String> {
    let labels = labels(app, source, explanation)?;
    let nan = |x: Option<f64>| x.unwrap_or(f64::NAN);
    let config = source.named.model.config();
    let report = ChangeReport {
        title: "What changed in the model".to_owned(),
        model: ModelFacts {
            name: source.named.name.clone(),
            architecture: config.architecture.clone(),
            parameters: config.n_parameters(),
            layers: config.n_layers,
            d_model: config.d_model,
            licence: String::new(),
        },
        site: source.site.to_string(),
        sae: SaeFacts {
            features: source.sae.n_features(),
            k: source.sae.k().unwrap_or(0),
            ..SaeFacts::default()
        },
        adapter: adapter_facts(source),
        agreement_spearman: nan(explanation.agreement_spearman),
        residual_fraction: nan(explanation.residual_fraction),
        changes: explanation.measured.clone(),
        scatter: scatter(explanation),
        features: explanation
            .features
            .iter()
            .enumerate()
            .map(|(place, changed)| card(place, changed))
            .collect(),
        hidden_units: explanation
            .units
            .iter()
            .map(|unit| {
                let named = |(feature, value): &(usize, f32)| UnitFeature {
                    feature: *feature,
                    value: *value,
                    tokens: labels.get(feature).cloned().unwrap_or_default(),
                };
                HiddenUnit {
                    unit: unit.unit,
                    bias: unit.bias,
                    slope: unit.mean_slope,
                    reads: unit.reads.iter().map(named).collect(),
                    writes: unit.writes.iter().map(named).collect(),
                    matching: unit.matching.terms.iter().map(named).collect(),
                    matching_left: unit.matching.left,
                }
            })
            .collect(),
        commands: vec![command(arguments, source)],
        method_notes: notes(source, explanation),
        caveats: caveats(explanation),
        ..ChangeReport::default()
    };
    let matching = |it: &pullback_adapters::Matching| (it.terms.clone(), it.left);
    Ok(render_explanation(&ChangeExplanation {
        report,
        change: source.told(),
        text: format!(
            "{} positions of {}",
            explanation.positions,
            source.text.name()
        ),
        prediction: predicted_by(explanation.prediction).to_owned(),
        loss: explanation.effects.map(|effects| LossFigures {
            positions: effects.positions,
            before: effects.loss_before,
            after: effects.loss_after,
            together_alone: effects.together_alone,
            together_removed: effects.together_removed,
            codes_alone: effects.codes_alone,
            codes_removed: effects.codes_removed,
        }),
        apart: apart(explanation),
        residual_dictionary: nan(explanation.residual_fraction_dictionary),
        residual_codes: nan(explanation.residual_fraction_codes),
        added: matching(&explanation.decomposition.added),
        removed: matching(&explanation.decomposition.removed),
        paths: paths(explanation),
        words: labels,
    }))
}

fn adapter_facts(source: &Source) -> AdapterFacts {
    let Some(Adapter::Residual(adapter)) = source.adapter() else {
        return AdapterFacts::default();
    };
    AdapterFacts {
        rank: adapter.rank(),
        activation: adapter.activation.name().to_owned(),
        ..AdapterFacts::default()
    }
}

/// The card of a feature, with its words where there are some.
fn card(place: usize, changed: &ChangedFeature) -> FeatureCard {
    let words = changed.words.as_ref();
    FeatureCard {
        words: words.map_or_else(String::new, |words| words.explanation.clone()),
        scores: words.map_or_else(Vec::new, scores),
        ..measured_card(place, changed)
    }
}

/// Scores of words as a card shows them.
fn scores(words: &Interpretation) -> Vec<WordScore> {
    let both = [
        ("Detection", words.detection, words.detection_exchanged),
        ("Fuzzing", words.fuzzing, words.fuzzing_exchanged),
    ];
    both.into_iter()
        .filter_map(|(name, own, other)| {
            Some(WordScore {
                name: name.to_owned(),
                own: own?.auc,
                exchanged: other.map_or(f64::NAN, |score| score.auc),
            })
        })
        .collect()
}

/// Predicted and measured change of live features.
fn scatter(explanation: &Explanation) -> Vec<(f32, f32)> {
    let Some(predicted) = &explanation.predicted else {
        return Vec::new();
    };
    let live = explanation.live.iter().map(|&feature| feature as usize);
    live.map(|feature| (predicted[feature], explanation.measured[feature]))
        .collect()
}

/// The live features whose prediction is furthest off.
fn apart(explanation: &Explanation) -> Vec<(usize, f32, f32)> {
    let live = explanation.live.iter().map(|&feature| feature as usize);
    let pairs = live.zip(scatter(explanation));
    let mut all: Vec<(usize, f32, f32)> = pairs
        .map(|(feature, (predicted, measured))| (feature, predicted, measured))
        .collect();
    let off = |it: &(usize, f32, f32)| (it.2 - it.1).abs();
    all.sort_by(|a, b| off(b).total_cmp(&off(a)).then(a.0.cmp(&b.0)));
    all.truncate(ROWS);
    all
}

/// The largest entries of a nonlinear adapter's Jacobian among the listed features.
fn paths(explanation: &Explanation) -> Vec<(usize, usize, f32, f32)> {
    let Some(jacobian) = &explanation.jacobian else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for (from, (weights, averaged)) in jacobian.weights.iter().zip(&jacobian.averaged).enumerate() {
        for (to, (w, a)) in weights.iter().zip(averaged).enumerate() {
            all.push((jacobian.features[from], jacobian.features[to], *w, *a));
        }
    }
    all.sort_by(|a, b| b.3.abs().total_cmp(&a.3.abs()));
    all.truncate(ROWS);
    all
}

/// Words that features fire on which hidden units read or write, where there is a store to look in.
fn labels(
    app: &App,
    source: &Source,
    explanation: &Explanation,
) -> anyhow::Result<BTreeMap<usize, Vec<String>>> {
    let mut named: BTreeSet<usize> = BTreeSet::new();
    for unit in &explanation.units {
        let lists = unit.reads.iter().chain(&unit.writes);
        named.extend(
            lists
                .chain(&unit.matching.terms)
                .map(|(feature, _)| *feature),
        );
    }
    let sums = &explanation.decomposition;
    let terms = sums.added.terms.iter().chain(&sums.removed.terms);
    named.extend(terms.map(|(feature, _)| *feature));
    named.extend(apart(explanation).iter().map(|(feature, ..)| *feature));
    match &source.store {
        Some(store) => {
            let named: Vec<usize> = named.into_iter().collect();
            let sae: &Sae = &source.sae;
            words(&named, sae, store, &source.named.model, &app.control)
        }
        None => Ok(explanation
            .features
            .iter()
            .enumerate()
            .map(|(place, changed)| (changed.feature, card(place, changed).peak_words(3)))
            .collect()),
    }
}

/// The command again.
fn command(arguments: &Arguments, source: &Source) -> String {
    let mut words = vec!["pullback adapt explain".to_owned()];
    match (&arguments.adapter, &arguments.from, &arguments.to) {
        (Some(path), ..) => words.push(path.display().to_string()),
        (None, Some(from), Some(to)) => words.push(format!("--from {from} --to {to}")),
        _ => {}
    }
    words.push(format!("--sae {}", arguments.sae.display()));
    words.extend(arguments.text.iter().map(|text| format!("--text {text}")));
    for (name, path) in [("--store", &arguments.store), ("--data", &arguments.data)] {
        words.extend(path.iter().map(|path| format!("{name} {}", path.display())));
    }
    words.push(format!(
        "--site {} --top {} --tokens {} --effect-tokens {} --context {}",
        source.site, arguments.top, arguments.tokens, arguments.effect_tokens, arguments.context
    ));
    words.join(" ")
}

fn notes(source: &Source, explanation: &Explanation) -> Vec<String> {
    let mut notes = vec![
        "The first position of each sequence and rows whose norm is more than ten times the median are attention sinks: \
         features are neither measured nor changed there. Of questions and answers only positions before a token of an answer \
         count, of plain text all but the first and the last of each sequence."
            .to_owned(),
        "The measured change of a feature is the mean of its activation with the change minus the mean without it, both after \
         the dictionary's own selection of active features."
            .to_owned(),
        "For the effect of a feature alone, the difference of its two activations times its decoder row is added to the stream of \
         the model as it was, at every position; all other parts of the stream stay. For the effect of putting it back, the same \
         is taken from the stream of the changed model. Losses are means over the counted positions; sequences in which the \
         feature does not change have no part in it."
            .to_owned(),
    ];
    if explanation.prediction != pullback_adapters::Prediction::None {
        notes.push(predicted_by(explanation.prediction).to_owned());
    }
    if !explanation.units.is_empty() {
        notes.push(
            "What a hidden unit reads is its column of P_in = W_dec · W_inᵀ; what it moves is its row of P_out = W_outᵀ · W_enc to \
             first order, and as decoder rows either the smallest least-squares solution over all of them or a few with factors \
             above zero, found by matching pursuit."
                .to_owned(),
        );
    }
    if source.store.is_none() {
        notes.push(
            "Examples and densities are those of the text that was measured on: a small text, in which a feature may have few \
             activations. With --store they come from a larger one."
                .to_owned(),
        );
    }
    notes
}

fn caveats(explanation: &Explanation) -> Vec<String> {
    let mut caveats = vec![
        "An effect on the loss is one of this text; on another a feature may do nothing, or the opposite.".to_owned(),
        "A list of tokens and examples suggests a meaning; it does not prove that the model uses the feature that way.".to_owned(),
    ];
    if let Some(trust) = super::words::Trust::of(explanation) {
        caveats.push(trust.sentence());
    }
    if let Some(share) = explanation.residual_fraction_codes {
        caveats.push(format!(
            "The dictionary sees the change only in part: taking away what the change of all codes makes leaves {:.0} % of its mean \
             square.",
            100.0 * share
        ));
    }
    caveats
}
