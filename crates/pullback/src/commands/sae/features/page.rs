//! The survey put into the page's plain data.

use std::collections::HashMap;

use pullback_activations::ActivationStore;
use pullback_report::feature_browser::{
    self, BrowsedBand, BrowsedFeature, BrowsedPassage, FeatureBrowser,
};
use pullback_report::number::count;
use pullback_sae::{Dictionary, Passage, Sae, Survey, SurveyConfig, SurveyedFeature};

use super::{Arguments, Words};

/// What the page is made from.
pub(super) struct Source<'a> {
    pub(super) arguments: &'a Arguments,
    pub(super) survey: &'a Survey,
    pub(super) config: &'a SurveyConfig,
    pub(super) sae: &'a Sae,
    pub(super) store: &'a ActivationStore,
    pub(super) words: Words<'a>,
    pub(super) model: Option<&'a str>,
    pub(super) change: Option<&'a [Option<f32>]>,
}

/// The whole page.
pub(super) fn render(source: &Source<'_>) -> String {
    let survey = source.survey;
    let mut table = TokenTable::new(source.words);
    let text = PageText::new(survey, source.store, &mut table);
    let features = survey
        .features
        .iter()
        .map(|feature| browsed(feature, source, &text, &mut table))
        .collect();
    let name = |path: &std::path::Path| {
        path.file_name().map_or_else(
            || path.display().to_string(),
            |name| name.to_string_lossy().into_owned(),
        )
    };
    let site = source.store.info().site.to_string();
    feature_browser::render(&FeatureBrowser {
        title: format!("Features of {}", name(&source.arguments.sae)),
        subtitle: format!(
            "{} features at {site}{}, looked for in {} tokens",
            count(survey.densities.len() as u64),
            source
                .model
                .map_or_else(String::new, |model| format!(" of {model}")),
            count(survey.tokens as u64)
        ),
        dictionary: survey.densities.len(),
        densities: survey.densities.clone(),
        has_logits: survey.has_logits,
        change: source.arguments.change.as_ref().map(|path| name(path)),
        tokens: table.texts,
        text: text.tokens,
        features,
        notes: notes(source),
        facts: facts(source, &site),
    })
}

/// The distinct tokens of the page.
struct TokenTable<'a> {
    words: Words<'a>,
    texts: Vec<String>,
    places: HashMap<u32, u32>,
}

impl<'a> TokenTable<'a> {
    fn new(words: Words<'a>) -> Self {
        Self {
            words,
            texts: Vec::new(),
            places: HashMap::new(),
        }
    }

    /// The place of a token, which is added if it is new.
    fn place(&mut self, id: u32) -> u32 {
        let next = self.texts.len() as u32;
        *self.places.entry(id).or_insert_with(|| {
            self.texts.push(self.words.token(id));
            next
        })
    }
}

/// The rows of all passages, each row once.
struct PageText {
    /// Stretches of rows, ascending: first row, row after the last, place of the first in `tokens`.
    stretches: Vec<(u32, u32, u32)>,
    tokens: Vec<u32>,
}

impl PageText {
    fn new(survey: &Survey, store: &ActivationStore, table: &mut TokenTable<'_>) -> Self {
        let of_feature = |feature: &SurveyedFeature| -> Vec<(u32, u32)> {
            let bands = feature.bands.iter().flat_map(|band| &band.examples);
            let passages = feature.examples.iter().chain(bands);
            passages
                .map(|passage| (passage.rows.start, passage.rows.end))
                .collect()
        };
        let mut spans: Vec<(u32, u32)> = survey.features.iter().flat_map(of_feature).collect();
        spans.sort_unstable();
        spans.dedup();
        let mut stretches: Vec<(u32, u32, u32)> = Vec::new();
        let mut tokens = Vec::new();
        for (start, end) in spans {
            let first_new = match stretches.last_mut() {
                Some(last) if start <= last.1 => {
                    let from = last.1;
                    last.1 = last.1.max(end);
                    from
                }
                _ => {
                    stretches.push((start, end, tokens.len() as u32));
                    start
                }
            };
            tokens.extend((first_new..end).map(|row| table.place(store.token(row as usize))));
        }
        Self { stretches, tokens }
    }

    /// Where a row stands in the text.
    fn place(&self, row: u32) -> u32 {
        let after = self.stretches.partition_point(|(start, ..)| *start <= row);
        after.checked_sub(1).map_or(0, |at| {
            let (start, _, place) = self.stretches[at];
            place + (row - start)
        })
    }

    fn passage(&self, passage: &Passage) -> BrowsedPassage {
        BrowsedPassage {
            start: self.place(passage.rows.start),
            peak: passage.row - passage.rows.start,
            activation: passage.activation,
            activations: passage.activations.clone(),
        }
    }
}

fn browsed(
    feature: &SurveyedFeature,
    source: &Source<'_>,
    text: &PageText,
    table: &mut TokenTable<'_>,
) -> BrowsedFeature {
    let passages = |list: &[Passage]| list.iter().map(|passage| text.passage(passage)).collect();
    let mut effects = |list: &[(u32, f32)]| -> Vec<(u32, f32)> {
        list.iter()
            .map(|&(id, change)| (table.place(id), change))
            .collect()
    };
    BrowsedFeature {
        feature: feature.feature,
        count: feature.count,
        density: feature.density,
        largest: feature.largest,
        mean: feature.mean,
        change: source.change.and_then(|change| change[feature.feature]),
        histogram: feature.histogram.clone(),
        examples: passages(&feature.examples),
        bands: feature
            .bands
            .iter()
            .map(|band| BrowsedBand {
                from: band.from,
                to: band.to,
                low: band.low,
                high: band.high,
                examples: passages(&band.examples),
            })
            .collect(),
        promoted: effects(&feature.promoted),
        suppressed: effects(&feature.suppressed),
        neighbours: feature.neighbours.clone(),
        coactive: feature
            .coactive
            .iter()
            .map(|other| (other.feature, other.jaccard, other.together))
            .collect(),
    }
}

fn facts(source: &Source<'_>, site: &str) -> Vec<(String, String)> {
    let (sae, survey) = (source.sae, source.survey);
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut facts = vec![
        fact("dictionary", source.arguments.sae.display().to_string()),
        fact("kind", sae.selection().name().to_owned()),
        fact(
            "width",
            if sae.d() == sae.d_out() {
                sae.d().to_string()
            } else {
                format!("{} in, {} out", sae.d(), sae.d_out())
            },
        ),
        fact("active features a token", format!("{:.1}", survey.l0)),
        fact("site", site.to_owned()),
        fact("store", source.arguments.store.display().to_string()),
        fact("tokens looked at", count(survey.tokens as u64)),
    ];
    if let Some(model) = source.model {
        facts.push(fact("model", model.to_owned()));
    }
    if let Some(path) = &source.arguments.change {
        facts.push(fact("change from", path.display().to_string()));
    }
    facts
}

fn notes(source: &Source<'_>) -> Vec<String> {
    let (survey, config) = (source.survey, source.config);
    let mut notes = vec![
        format!(
            "Everything is counted on the {} rows of the store that are neither first in their sequence nor of abnormal \
             length, those held out included.",
            count(survey.tokens as u64)
        ),
        format!(
            "Strongest: the {} largest activations, at most one a sequence. The marked token is the one that the figure on \
             the right belongs to; every token is shaded in proportion to the activation on it, beside the feature's largest.",
            config.examples
        ),
        format!(
            "From quantiles: the feature's active tokens (a uniform random sample of {} where there are more) are cut into \
             {} bands of equal number by activation, and {} drawn from each, seed {}. They show what the feature does on \
             most of the tokens on which it is active.",
            survey.sample, config.bands, config.band_examples, config.seed
        ),
        "Nearest decoder rows: cosine of the angle between the directions that two features write."
            .to_owned(),
        format!(
            "Active together: J(i, j) = n_ij / (n_i + n_j − n_ij), Jaccard's index, with n_i the tokens on which feature i is \
             active and n_ij those on which both are{}.",
            if survey.coactive_tokens < survey.tokens {
                format!(
                    ", counted on {} tokens at equal distances",
                    survey.coactive_tokens
                )
            } else {
                String::new()
            }
        ),
    ];
    if survey.has_logits {
        notes.push(
            "Promoted and suppressed tokens: W_U (γ ∘ direction), with γ the gains of the final norm and W_U the output \
             matrix: the change of each token's logit by a unit of activation, before the final norm's division and as if no \
             layer followed. The logit effect in the table is the largest of them in size. In the middle of a model this is a \
             rough guide."
                .to_owned(),
        );
    } else {
        notes.push(
            "There are no logit effects: the dictionary does not write into the residual stream, or no model was given."
                .to_owned(),
        );
    }
    notes.push(
        "A list of tokens and examples suggests a meaning; it does not prove that the model uses the feature that way."
            .to_owned(),
    );
    notes
}
