//! Texts with a feature and texts without it.

use pullback_activations::ActivationStore;
use pullback_artifact::Control;
use pullback_model::Model;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::InterpretConfig;
use crate::features::{active_rows, span};
use crate::{Dictionary, SaeError};

/// A stretch of text with a feature's activation on each token.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Excerpt {
    pub(super) tokens: Vec<String>,
    pub(super) activations: Vec<f32>,
}

impl Excerpt {
    /// Tokens on which the feature is at least half as active as on its strongest here.
    pub(super) fn marked(&self) -> Vec<bool> {
        let top = self.activations.iter().copied().fold(0.0, f32::max);
        let mark = |&z: &f32| z > 0.0 && z >= 0.5 * top;
        self.activations.iter().map(mark).collect()
    }
}

/// The texts of one feature; all of different sequences but those without it.
pub(super) struct FeatureTexts {
    pub(super) feature: usize,
    /// The strongest.
    pub(super) shown: Vec<Excerpt>,
    /// From all strengths, none of them shown.
    pub(super) active: Vec<Excerpt>,
    /// On which it is nowhere active.
    pub(super) quiet: Vec<Excerpt>,
}

/// Tries for each text without a feature.
const TRIES: usize = 50;

/// Chooses texts of a store for each feature.
pub(super) fn gather(
    dictionary: &dyn Dictionary,
    (store, model): (&ActivationStore, &Model),
    features: &[usize],
    config: &InterpretConfig,
    control: &Control,
) -> Result<Vec<FeatureTexts>, SaeError> {
    let (rows, active) = active_rows(dictionary, store, features, control)?;
    Ok(features
        .iter()
        .zip(&active)
        .map(|(&feature, active)| {
            let mut random = ChaCha8Rng::seed_from_u64(config.seed);
            random.set_stream(feature as u64);
            let excerpt = |row: u32| {
                let span = span(store, row, config.context);
                let token = |row: u32| model.tokenizer().token_text(store.token(row as usize));
                let activation = |row: u32| {
                    let found = active.binary_search_by_key(&row, |(row, _)| *row);
                    found.map_or(0.0, |at| active[at].1)
                };
                Excerpt {
                    tokens: span.clone().map(token).collect(),
                    activations: span.map(activation).collect(),
                }
            };
            // The strongest of each sequence, strongest first.
            let mut order: Vec<(u32, f32)> = active.clone();
            order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let mut seen = std::collections::HashSet::new();
            order.retain(|(row, _)| seen.insert(store.sequence(*row as usize)));
            // Where there are few, half are left to be judged on.
            let shown = config.shown.min(order.len().div_ceil(2));
            let rest = order.split_off(shown);
            // One from each stretch of the rest, from strong to weak.
            let count = config.judged.min(rest.len());
            let judged: Vec<u32> = (0..count)
                .map(|i| {
                    let (from, to) = (i * rest.len() / count, (i + 1) * rest.len() / count);
                    rest[random.random_range(from..to.max(from + 1))].0
                })
                .collect();
            let mut quiet = Vec::new();
            for _ in 0..TRIES * judged.len() {
                if quiet.len() == judged.len() {
                    break;
                }
                let found = excerpt(rows[random.random_range(0..rows.len())]);
                if found.activations.iter().all(|&z| z == 0.0) {
                    quiet.push(found);
                }
            }
            let mut texts: Vec<Excerpt> = judged.into_iter().map(excerpt).collect();
            texts.shuffle(&mut random);
            FeatureTexts {
                feature,
                shown: order.into_iter().map(|(row, _)| excerpt(row)).collect(),
                active: texts,
                quiet,
            }
        })
        .collect())
}
