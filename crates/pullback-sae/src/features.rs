//! Feature pages: what a few chosen features respond to and what they promote; and, in [`survey`], all of them.

mod coactive;
pub(crate) mod largest;
mod logits;
pub(crate) mod neighbours;
mod passages;
mod statistics;
mod survey;

use burn::tensor::{Tensor, TensorData};
use pullback_activations::ActivationStore;
use pullback_artifact::Control;
use pullback_model::Model;
use serde::{Deserialize, Serialize};

use crate::{Dictionary, SaeError};

pub use coactive::CoActive;
pub use passages::Passage;
pub(crate) use passages::span;
pub use survey::{Band, Survey, SurveyConfig, SurveyedFeature, SurveyedFeatures};

/// A place in the text where a feature is strongly active.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The text around the token, the token itself between « and ».
    pub text: String,
    /// The token.
    pub token: String,
    /// The feature's activation on it.
    pub activation: f32,
    /// The text before the token.
    pub before: String,
    /// The text after it.
    pub after: String,
    /// Every token of the excerpt with the feature's activation on it.
    pub context: Vec<(String, f32)>,
}

/// What one feature responds to and what it promotes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeaturePage {
    /// The feature.
    pub feature: usize,
    /// Share of tokens on which it is active.
    pub density: f32,
    /// Tokens that its direction promotes, with the change of their logit for a unit of activation before
    /// the final norm's division.
    pub promoted: Vec<(String, f32)>,
    /// Tokens that it suppresses.
    pub suppressed: Vec<(String, f32)>,
    /// Its strongest activations, at most one a sequence.
    pub examples: Vec<Example>,
}

/// How feature pages are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeaturePages {
    /// Examples a feature.
    pub examples: usize,
    /// Tokens of context on each side of an example.
    pub context: usize,
    /// Promoted and suppressed tokens a feature.
    pub tokens: usize,
}

impl Default for FeaturePages {
    fn default() -> Self {
        Self {
            examples: 8,
            context: 14,
            tokens: 10,
        }
    }
}

impl FeaturePages {
    /// Makes the pages of chosen features from all normal rows of a store.
    ///
    /// # Errors
    /// A feature does not exist; dictionary, store and model do not fit; the work was interrupted.
    pub fn make(
        &self,
        dictionary: &dyn Dictionary,
        store: &ActivationStore,
        model: &Model,
        features: &[usize],
        control: &Control,
    ) -> Result<Vec<FeaturePage>, SaeError> {
        let (rows, active) = active_rows(dictionary, store, features, control)?;
        features
            .iter()
            .zip(&active)
            .map(|(&feature, active)| {
                let (promoted, suppressed) = self.logit_weights(dictionary, model, feature)?;
                Ok(FeaturePage {
                    feature,
                    density: active.len() as f32 / rows.len().max(1) as f32,
                    promoted,
                    suppressed,
                    examples: self.examples(store, model, active),
                })
            })
            .collect()
    }

    /// The tokens whose logits a feature's direction raises and lowers most: `W_U (γ ∘ direction)`, with γ
    /// the gains of the final norm. Control tokens are left out.
    ///
    /// # Errors
    /// The feature does not exist.
    pub fn logit_weights(
        &self,
        dictionary: &dyn Dictionary,
        model: &Model,
        feature: usize,
    ) -> Result<(TokenWeights, TokenWeights), SaeError> {
        if feature >= dictionary.n_features() {
            return Err(SaeError::Option(format!(
                "feature {feature} does not exist: the dictionary has {}",
                dictionary.n_features()
            )));
        }
        let direction = dictionary.direction(feature);
        if direction.len() != model.config().d_model {
            return Ok((Vec::new(), Vec::new()));
        }
        let data = TensorData::new(direction.to_vec(), [1, direction.len()]);
        let direction = Tensor::<2>::from_data(data, model.device());
        let weighted = direction * model.final_gain().clone().unsqueeze();
        let weights: Vec<f32> = model.unembed(weighted).into_data().iter::<f32>().collect();
        let known = model.tokenizer().vocab_size().min(weights.len());
        let mut order: Vec<usize> = (0..known)
            .filter(|&id| !model.tokenizer().is_special(id as u32))
            .collect();
        order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
        let named = |id: &usize| (model.tokenizer().token_text(*id as u32), weights[*id]);
        let promoted = order.iter().take(self.tokens).map(named).collect();
        let suppressed = order.iter().rev().take(self.tokens).map(named).collect();
        Ok((promoted, suppressed))
    }

    /// The strongest activations, at most one a sequence.
    fn examples(
        &self,
        store: &ActivationStore,
        model: &Model,
        active: &[(u32, f32)],
    ) -> Vec<Example> {
        let mut order: Vec<usize> = (0..active.len()).collect();
        order.sort_by(|&a, &b| active[b].1.total_cmp(&active[a].1).then(a.cmp(&b)));
        let mut seen = Vec::new();
        let mut examples = Vec::new();
        for at in order {
            if examples.len() == self.examples {
                break;
            }
            let (row, activation) = active[at];
            let span = passages::span(store, row, self.context);
            let span = span.start as usize..span.end as usize;
            let row = row as usize;
            let sequence = store.sequence(row);
            if seen.contains(&sequence) {
                continue;
            }
            seen.push(sequence);
            let text = |rows: std::ops::Range<usize>| {
                let ids: Vec<u32> = rows.map(|row| store.token(row)).collect();
                model.tokenizer().decode(&ids, false)
            };
            let (before, after) = (text(span.start..row), text(row + 1..span.end));
            let token = model.tokenizer().token_text(store.token(row));
            examples.push(Example {
                text: format!("{before}«{token}»{after}"),
                token,
                activation,
                before,
                after,
                context: span
                    .map(|row| {
                        let value = active
                            .binary_search_by_key(&(row as u32), |(row, _)| *row)
                            .map_or(0.0, |at| active[at].1);
                        (model.tokenizer().token_text(store.token(row)), value)
                    })
                    .collect(),
            });
        }
        examples
    }
}

/// Rows on which a feature is active, ascending, with its activation.
pub(crate) type ActiveRows = Vec<(u32, f32)>;

/// All normal rows of a store, ascending, and for each of some features its active ones, ascending, with the activation.
///
/// # Errors
/// A feature does not exist; dictionary and store do not fit; the work was interrupted.
pub(crate) fn active_rows(
    dictionary: &dyn Dictionary,
    store: &ActivationStore,
    features: &[usize],
    control: &Control,
) -> Result<(Vec<u32>, Vec<ActiveRows>), SaeError> {
    let d = store.info().d;
    if let Some(feature) = features
        .iter()
        .find(|&&feature| feature >= dictionary.n_features())
    {
        return Err(SaeError::Option(format!(
            "feature {feature} does not exist: the dictionary has {}",
            dictionary.n_features()
        )));
    }
    if dictionary.d() != d {
        return Err(SaeError::Option(format!(
            "the dictionary is of width {}, the store's activations of width {d}",
            dictionary.d()
        )));
    }
    let mut distinct = features.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let mut wanted = vec![None; dictionary.n_features()];
    for (place, &feature) in distinct.iter().enumerate() {
        wanted[feature] = Some(place);
    }
    let mut rows: Vec<u32> = store.normal_rows(false);
    rows.extend(store.normal_rows(true));
    rows.sort_unstable();
    // For each wanted feature its active rows, ascending, with the activation.
    let mut active: Vec<ActiveRows> = vec![Vec::new(); distinct.len()];
    let stage = control.stage("examples", rows.len() as u64, "tokens");
    for rows in rows.chunks(4096) {
        control.check()?;
        let mut x = vec![0.0; rows.len() * d];
        store.gather(rows, &mut x);
        let codes = dictionary.encode(&x);
        for (token, &row) in rows.iter().enumerate() {
            let (features, values) = codes.token(token);
            for (&feature, &value) in features.iter().zip(values) {
                if let Some(place) = wanted[feature as usize] {
                    active[place].push((row, value));
                }
            }
        }
        stage.advance(rows.len() as u64);
    }
    stage.finish();
    let of_feature =
        |feature: &usize| wanted[*feature].map_or(Vec::new(), |place| active[place].clone());
    Ok((rows, features.iter().map(of_feature).collect()))
}

/// Tokens with the change of their logit.
pub type TokenWeights = Vec<(String, f32)>;
