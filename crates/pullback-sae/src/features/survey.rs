//! A survey of a whole dictionary: what every feature responds to, promotes, resembles and goes together with.

use pullback_activations::ActivationStore;
use pullback_artifact::Control;
use pullback_kernels::sparse::SparseCodes;
use pullback_model::Model;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::coactive::{CoActive, Kept};
use super::logits::effects;
use super::neighbours::nearest;
use super::passages::{Passage, count_in};
use super::statistics::{Chosen, Firing, Statistics, sample_size};
use crate::judge::side_by_side;
use crate::{Dictionary, SaeError, Sites};

/// How a survey is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyConfig {
    /// Which features are described; figures of the others are counted all the same.
    pub features: SurveyedFeatures,
    /// Strongest activations a feature, at most one a sequence.
    pub examples: usize,
    /// Quantile bands of a feature's active tokens.
    pub bands: usize,
    /// Examples from each band.
    pub band_examples: usize,
    /// Tokens of context on each side of an example.
    pub context: usize,
    /// Promoted and suppressed tokens a feature.
    pub tokens: usize,
    /// Nearest decoder rows a feature.
    pub neighbours: usize,
    /// Co-active features a feature.
    pub coactive: usize,
    /// Bins of a feature's histogram.
    pub bins: usize,
    /// Active features, over all tokens, that co-activation is counted on; where a store has more, every second token is
    /// looked at, or every fourth, and so on.
    pub coactive_budget: usize,
    /// Seed of the choice of examples from bands.
    pub seed: u64,
}

/// The features that a survey describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SurveyedFeatures {
    /// All of them.
    All,
    /// So many, those that are active on most tokens.
    Densest(usize),
    /// These.
    These(Vec<usize>),
}

impl Default for SurveyConfig {
    fn default() -> Self {
        Self {
            features: SurveyedFeatures::All,
            examples: 6,
            bands: 5,
            band_examples: 1,
            context: 12,
            tokens: 8,
            neighbours: 6,
            coactive: 6,
            bins: 24,
            coactive_budget: 1 << 25,
            seed: 0,
        }
    }
}

/// Examples from a quantile band of a feature's activations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Band {
    /// Share of the feature's active tokens that lie below the band.
    pub from: f32,
    /// Share of them that lie below its end.
    pub to: f32,
    /// The smallest activation of the band that was sampled.
    pub low: f32,
    /// The largest.
    pub high: f32,
    /// Activations of the band, drawn at random, that are not among the strongest of all; strongest first.
    pub examples: Vec<Passage>,
}

/// One feature in a survey.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SurveyedFeature {
    /// The feature.
    pub feature: usize,
    /// Tokens on which it is active.
    pub count: u64,
    /// Share of tokens on which it is active.
    pub density: f32,
    /// Its largest activation.
    pub largest: f32,
    /// Its mean activation over the tokens on which it is active.
    pub mean: f32,
    /// Counts of its activations in bins of one width from zero to the largest; empty where it is never active.
    pub histogram: Vec<u64>,
    /// Its strongest activations, at most one a sequence.
    pub examples: Vec<Passage>,
    /// Quantile bands of its activations, lowest first.
    pub bands: Vec<Band>,
    /// Ids of the tokens that its direction promotes, with the change of their logit for a unit of activation before the
    /// final norm's division.
    pub promoted: Vec<(u32, f32)>,
    /// Ids of those that it suppresses.
    pub suppressed: Vec<(u32, f32)>,
    /// The features of nearest direction, with the cosine of the decoder rows.
    pub neighbours: Vec<(u32, f32)>,
    /// The features that are active on most of the same tokens.
    pub coactive: Vec<CoActive>,
}

/// What [`SurveyConfig::make`] returns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// Tokens looked at.
    pub tokens: usize,
    /// Tokens that co-activation was counted on.
    pub coactive_tokens: usize,
    /// Activations of a feature that quantile bands were cut from, at most.
    pub sample: usize,
    /// Active features a token.
    pub l0: f64,
    /// Share of tokens on which each feature of the dictionary is active.
    pub densities: Vec<f32>,
    /// Whether promoted tokens could be computed.
    pub has_logits: bool,
    /// The features described, in the order asked for; by number where all or the densest are.
    pub features: Vec<SurveyedFeature>,
}

impl SurveyConfig {
    /// Surveys a dictionary in two passes over all normal rows of its sites. Without a model nothing is said about
    /// tokens promoted.
    ///
    /// # Errors
    /// A feature does not exist; dictionary and store do not fit; the work was interrupted.
    pub fn make(
        &self,
        dictionary: &dyn Dictionary,
        sites: &Sites<'_>,
        model: Option<&Model>,
        control: &Control,
    ) -> Result<Survey, SaeError> {
        let m = dictionary.n_features();
        self.check(dictionary, sites)?;
        let store = sites.first();
        let mut rows: Vec<u32> = sites.normal_rows(false);
        rows.extend(sites.normal_rows(true));
        rows.sort_unstable();
        let sample = sample_size(m);
        let mut statistics = Statistics::new(m, self.examples, sample, self.seed);
        let mut kept = Kept::new(self.coactive_budget);
        each_row(
            "activations",
            dictionary,
            sites,
            &rows,
            control,
            |row, codes| {
                let sequence = store.sequence(row as usize);
                for (&feature, &value) in codes.0.iter().zip(codes.1) {
                    statistics.add(
                        feature as usize,
                        Firing {
                            row,
                            sequence,
                            value,
                        },
                    );
                }
                kept.add(codes.0);
            },
        )?;

        let wanted = self.wanted(&statistics);
        let coactive = kept.coactive(&wanted, m, self.coactive, control)?;
        let coactive_tokens = kept.tokens();
        drop(kept);
        let neighbours = nearest(
            dictionary.decoder(),
            &wanted,
            dictionary.d_out(),
            self.neighbours,
            control,
        )?;
        let logits = match model {
            Some(model) => effects((dictionary, sites), &wanted, model, self.tokens, control)?,
            None => None,
        };

        let mut features: Vec<SurveyedFeature> = wanted
            .iter()
            .zip(coactive.into_iter().zip(neighbours))
            .map(|(&feature, (coactive, neighbours))| SurveyedFeature {
                neighbours,
                coactive,
                ..self.begun(feature, &statistics, store, rows.len())
            })
            .collect();
        let has_logits = logits.is_some();
        for (feature, effects) in features.iter_mut().zip(logits.unwrap_or_default()) {
            (feature.promoted, feature.suppressed) = (effects.promoted, effects.suppressed);
        }
        let count = |seen: &super::statistics::Seen| seen.count as f64;
        let n = rows.len().max(1) as f64;
        let densities = statistics.features.iter();
        let densities: Vec<f32> = densities.map(|seen| (count(seen) / n) as f32).collect();
        let l0 = statistics.features.iter().map(count).sum::<f64>() / n;
        drop(statistics);
        fill(&mut features, dictionary, sites, &rows, control)?;
        Ok(Survey {
            tokens: rows.len(),
            coactive_tokens,
            sample,
            l0,
            densities,
            has_logits,
            features,
        })
    }

    fn check(&self, dictionary: &dyn Dictionary, sites: &Sites<'_>) -> Result<(), SaeError> {
        let m = dictionary.n_features();
        sites.check_inputs(dictionary)?;
        if let SurveyedFeatures::These(features) = &self.features
            && let Some(feature) = features.iter().find(|&&feature| feature >= m)
        {
            return Err(SaeError::Option(format!(
                "feature {feature} does not exist: the dictionary has {m}"
            )));
        }
        Ok(())
    }

    fn wanted(&self, statistics: &Statistics) -> Vec<usize> {
        let all = 0..statistics.features.len();
        match &self.features {
            SurveyedFeatures::All => all.collect(),
            SurveyedFeatures::These(features) => features.clone(),
            SurveyedFeatures::Densest(count) => {
                let mut order: Vec<usize> = all.collect();
                let active = |feature: usize| statistics.features[feature].count;
                order.sort_by(|&a, &b| active(b).cmp(&active(a)).then(a.cmp(&b)));
                order.truncate(*count);
                order.sort_unstable();
                order
            }
        }
    }

    /// What the first pass tells of a feature.
    fn begun(
        &self,
        feature: usize,
        statistics: &Statistics,
        store: &ActivationStore,
        tokens: usize,
    ) -> SurveyedFeature {
        let seen = &statistics.features[feature];
        // Its own stream: which features are described does not change what is drawn for one.
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(feature as u64 + 1);
        let passages = |firings: &[Firing]| -> Vec<Passage> {
            let firings = firings.iter();
            firings
                .map(|firing| Passage::around(store, firing, self.context))
                .collect()
        };
        let band = |chosen: Chosen| Band {
            from: chosen.from,
            to: chosen.to,
            low: chosen.low,
            high: chosen.high,
            examples: passages(&chosen.firings),
        };
        SurveyedFeature {
            feature,
            count: seen.count,
            density: (seen.count as f64 / tokens.max(1) as f64) as f32,
            largest: seen.largest,
            mean: (seen.sum / seen.count.max(1) as f64) as f32,
            histogram: vec![0; if seen.count == 0 { 0 } else { self.bins }],
            examples: passages(&seen.top),
            bands: seen
                .bands(self.bands, self.band_examples, &mut rng)
                .into_iter()
                .map(band)
                .collect(),
            promoted: Vec::new(),
            suppressed: Vec::new(),
            neighbours: Vec::new(),
            coactive: Vec::new(),
        }
    }
}

/// The second pass: histograms, and activations on the rows of passages.
fn fill(
    features: &mut [SurveyedFeature],
    dictionary: &dyn Dictionary,
    sites: &Sites<'_>,
    rows: &[u32],
    control: &Control,
) -> Result<(), SaeError> {
    let mut places: Vec<Vec<u32>> = vec![Vec::new(); dictionary.n_features()];
    for (place, feature) in features.iter().enumerate() {
        places[feature.feature].push(place as u32);
    }
    each_row(
        "examples",
        dictionary,
        sites,
        rows,
        control,
        |row, codes| {
            for (&feature, &value) in codes.0.iter().zip(codes.1) {
                for &place in &places[feature as usize] {
                    let feature = &mut features[place as usize];
                    count_in(&mut feature.histogram, value, feature.largest);
                    let bands = feature.bands.iter_mut();
                    let of_bands = bands.flat_map(|band| &mut band.examples);
                    for passage in feature.examples.iter_mut().chain(of_bands) {
                        passage.see(row, value);
                    }
                }
            }
        },
    )
}

/// Encodes rows and shows each with its active features and their activations, all above zero.
fn each_row(
    stage: &str,
    dictionary: &dyn Dictionary,
    sites: &Sites<'_>,
    rows: &[u32],
    control: &Control,
    mut see: impl FnMut(u32, (&[u32], &[f32])),
) -> Result<(), SaeError> {
    // A wide dictionary's pre-activations of a chunk may be made at once.
    let chunk = ((1 << 24) / dictionary.n_features().max(1)).clamp(64, 4096);
    let stage = control.stage(stage, rows.len() as u64, "tokens");
    for rows in rows.chunks(chunk) {
        control.check()?;
        let x = side_by_side(&sites.inputs, rows);
        let codes = positive(dictionary.encode(&x));
        for (token, &row) in rows.iter().enumerate() {
            see(row, codes.token(token));
        }
        stage.advance(rows.len() as u64);
    }
    stage.finish();
    Ok(())
}

/// Codes without entries that are not above zero.
fn positive(codes: SparseCodes<f32>) -> SparseCodes<f32> {
    if codes.values().iter().all(|&value| value > 0.0) {
        return codes;
    }
    let mut out = SparseCodes::new();
    for token in 0..codes.tokens() {
        let (features, values) = codes.token(token);
        let above = features
            .iter()
            .zip(values)
            .filter(|(_, value)| **value > 0.0);
        let (features, values): (Vec<u32>, Vec<f32>) = above.unzip();
        out.push(&features, &values);
    }
    out
}
