//! The page of the quickstart: the story's figures put into a change report.

use pullback_adapters::{ChangedFeature, HiddenUnit};
use pullback_artifact::Catalogue;
use pullback_report::change_report::{
    self, AdapterFacts, ChangeReport, CorpusFacts, Example, FeatureCard, ModelFacts, SaeFacts,
    UnitFeature,
};

use super::Story;

/// The whole page.
pub(super) fn render(story: &Story<'_>) -> String {
    change_report::render(&report(story))
}

fn report(story: &Story<'_>) -> ChangeReport {
    let explanation = &story.explanation;
    let of = |feature: &u32| {
        let feature = *feature as usize;
        (
            explanation
                .predicted
                .as_ref()
                .map_or(f32::NAN, |all| all[feature]),
            explanation.measured[feature],
        )
    };
    ChangeReport {
        title: "What teaching a language model to talk like a sailor changed in it".to_owned(),
        model: model_facts(story),
        site: story.site.to_string(),
        corpus: CorpusFacts {
            name: corpus_title(&story.arguments.text),
            tokens_harvested: (story.harvested.tokens - story.harvested.held_out_tokens) as u64,
            tokens_held_out: story.harvested.held_out_tokens as u64,
        },
        seed: story.arguments.seed,
        sae: sae_facts(story),
        adapter: adapter_facts(story),
        answers: story
            .answers
            .iter()
            .map(|answer| change_report::Answer {
                prompt: answer.prompt.clone(),
                before: answer.before.clone(),
                after: answer.after.clone(),
            })
            .collect(),
        agreement_spearman: explanation.agreement_spearman.unwrap_or(f64::NAN),
        residual_fraction: explanation.residual_fraction.unwrap_or(f64::NAN),
        changes: explanation.measured.clone(),
        scatter: explanation.live.iter().map(of).collect(),
        features: explanation
            .features
            .iter()
            .enumerate()
            .map(|(place, changed)| measured_card(place, changed))
            .collect(),
        hidden_units: explanation
            .units
            .iter()
            .map(|unit| hidden_unit(story, unit))
            .collect(),
        seconds: story.seconds.clone(),
        commands: commands(story),
        method_notes: method_notes(story),
        caveats: caveats(story),
    }
}

fn entry_of(name: &str) -> Option<pullback_artifact::Entry> {
    let catalogue = Catalogue::built_in().ok()?;
    catalogue
        .entries
        .into_iter()
        .find(|entry| entry.name == name)
}

fn corpus_title(text: &str) -> String {
    entry_of(text).map_or_else(|| text.to_owned(), |entry| entry.title)
}

fn model_facts(story: &Story<'_>) -> ModelFacts {
    let config = story.named.model.config();
    ModelFacts {
        name: story.named.name.clone(),
        architecture: config.architecture.clone(),
        parameters: config.n_parameters(),
        layers: config.n_layers,
        d_model: config.d_model,
        licence: entry_of(&story.named.name).map_or_else(String::new, |entry| entry.licence),
    }
}

fn sae_facts(story: &Story<'_>) -> SaeFacts {
    let sae = &story.sae;
    let curve = &story.sae_training.curve;
    let ce = |part: fn(&pullback_sae::CrossEntropy) -> f64| {
        sae.cross_entropy.as_ref().map_or(f64::NAN, part)
    };
    SaeFacts {
        features: sae.features,
        k: sae.k.unwrap_or(0),
        explained_variance: sae.reconstruction.explained_variance,
        l0: sae.reconstruction.l0,
        dead_fraction: sae.reconstruction.dead_fraction,
        ce_clean: ce(|ce| ce.ce_clean),
        ce_spliced: ce(|ce| ce.ce_spliced),
        ce_zero: ce(|ce| ce.ce_zero),
        ce_score: ce(|ce| ce.ce_score),
        curve: curve
            .iter()
            .filter_map(|point| Some((point.tokens as f64, point.explained_variance?)))
            .collect(),
        curve_held_out: true,
        loss_curve: curve
            .iter()
            .map(|point| (point.tokens as f64, point.loss))
            .collect(),
    }
}

fn adapter_facts(story: &Story<'_>) -> AdapterFacts {
    let training = &story.adapter_training;
    AdapterFacts {
        rank: story.adapter.rank(),
        activation: story.adapter.activation.name().to_owned(),
        loss_before: story.adapter_result.loss_before,
        loss_after: story.adapter_result.loss_after,
        train_curve: training
            .train
            .iter()
            .enumerate()
            .map(|(step, loss)| (step as f64 + 1.0, *loss))
            .collect(),
        validation_curve: training
            .held_out
            .iter()
            .map(|(step, loss)| (*step as f64, *loss))
            .collect(),
    }
}

/// The card of a feature at a place in the list.
pub(crate) fn measured_card(place: usize, changed: &ChangedFeature) -> FeatureCard {
    FeatureCard {
        feature: changed.feature,
        rank: place + 1,
        predicted: changed.predicted.unwrap_or(f32::NAN),
        measured: changed.measured,
        effect_alone: changed.effect_alone.unwrap_or(f64::NAN),
        effect_removed: changed.effect_removed.unwrap_or(f64::NAN),
        density: changed.density,
        promoted: changed.promoted.clone(),
        suppressed: changed.suppressed.clone(),
        examples: changed.examples.iter().map(example).collect(),
        reads: changed.reads.unwrap_or(f32::NAN),
        writes: changed.writes.unwrap_or(f32::NAN),
        ..FeatureCard::default()
    }
}

/// An example as the page has it.
pub(super) fn example(example: &pullback_sae::Example) -> Example {
    Example {
        before: example.before.clone(),
        token: example.token.clone(),
        after: example.after.clone(),
        activation: example.activation,
        source: String::new(),
        context: example.context.clone(),
    }
}

fn hidden_unit(story: &Story<'_>, unit: &HiddenUnit) -> change_report::HiddenUnit {
    let named = |(feature, value): &(usize, f32)| UnitFeature {
        feature: *feature,
        value: *value,
        tokens: story.labels.get(feature).cloned().unwrap_or_default(),
    };
    change_report::HiddenUnit {
        unit: unit.unit,
        bias: unit.bias,
        reads: unit.reads.iter().map(named).collect(),
        writes: unit.writes.iter().map(named).collect(),
        ..change_report::HiddenUnit::default()
    }
}

/// The separate commands that do the same.
fn commands(story: &Story<'_>) -> Vec<String> {
    let arguments = story.arguments;
    let (model, site, seed) = (&arguments.model, story.site, arguments.seed);
    let passes = arguments
        .passes
        .map_or_else(String::new, |passes| format!(" --passes {passes}"));
    let epochs = arguments
        .epochs
        .map_or_else(String::new, |epochs| format!(" --epochs {epochs}"));
    vec![
        format!(
            "pullback harvest {model} --text {} --at {site} --tokens {} --held-out {} --seed {seed} -o store",
            arguments.text, arguments.tokens, arguments.held_out
        ),
        format!(
            "pullback sae train store --features {} --k {}{passes} --seed {seed} -o sae",
            story.sae.features, arguments.k
        ),
        "pullback sae eval sae --store store".to_owned(),
        format!(
            "pullback adapt train {model} --at {site} --rank {}{epochs} --seed {seed} -o adapter",
            arguments.rank
        ),
        format!(
            "pullback adapt explain adapter --sae sae --store store --top {}",
            arguments.top
        ),
        format!("pullback run {model} --chat --adapter adapter"),
    ]
}

fn method_notes(story: &Story<'_>) -> Vec<String> {
    vec![
        format!(
            "Activations are those of {} over sequences of {} tokens; whole documents are held out. The first token of \
             each sequence is an attention sink (mean norm {:.0}, against a median of {:.0} elsewhere): it enters \
             neither training nor measurement, and the adapter leaves it alone.",
            story.site,
            story.store.info().context,
            story.harvested.first_norm,
            story.harvested.median_norm
        ),
        "Change is measured where the adapter is meant to act: on the answers of the question-answer pairs that were \
         held out, one row for each token that precedes one of an answer's."
            .to_owned(),
        "The predicted change of a feature is its density on that text times the first-order change of its \
         pre-activation, W_enc · W_out · E[h], with h the adapter's hidden activity. The measured change is the mean of \
         its activation with the adapter minus the mean without it, both after the autoencoder's own selection of the k \
         largest."
            .to_owned(),
        "The residual fraction is the share of E‖Δ‖², the mean square of what the adapter adds on that text, that \
         lies outside the span of the decoder rows of the features shown."
            .to_owned(),
        "Examples are the strongest activations of a feature in the harvested text, at most one a sequence. Promoted \
         and suppressed tokens are read from the feature's decoder row through the final norm's gains and the output \
         matrix."
            .to_owned(),
    ]
}

fn caveats(story: &Story<'_>) -> Vec<String> {
    let explanation = &story.explanation;
    vec![
        format!(
            "The features shown carry {:.0} % of what the adapter writes; the rest lies in directions that none of them \
             covers.",
            100.0 * (1.0 - explanation.residual_fraction.unwrap_or(f64::NAN))
        ),
        format!(
            "The autoencoder is small and was trained on {} tokens of old prose and speeches: many of its features are \
             particular to that text, and {:.0} % of the activations' variance escapes it.",
            story.sae.train_tokens,
            100.0 * (1.0 - story.sae.reconstruction.explained_variance)
        ),
        format!(
            "Change is measured on a dozen held-out answers, a small text. On the corpus's held-out documents, where \
             nobody talks like this, prediction and measurement agree with Spearman {:.2}.",
            story.agreement_on_corpus.unwrap_or(f64::NAN)
        ),
        "A list of tokens and examples suggests a meaning; it does not prove that the model uses the feature that way."
            .to_owned(),
    ]
}
