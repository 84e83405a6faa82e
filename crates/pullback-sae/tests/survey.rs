//! Surveys of dictionaries against encoding every row by itself and counting.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::HashSet;

use common::base::{Setting, assert_close, assert_has, interrupted_at, setting};
use common::{random, random_sae};
use pullback_artifact::Control;
use pullback_sae::{
    Dictionary, FeaturePages, Normalization, Passage, Sae, SaeError, SaeParts, Selection, Sites,
    Survey, SurveyConfig, SurveyedFeatures,
};

/// Activations of every feature on every normal row, each row encoded alone.
struct Oracle {
    rows: Vec<usize>,
    /// `[feature][place of the row]`.
    values: Vec<Vec<f32>>,
}

impl Oracle {
    fn new(setting: &Setting, sae: &Sae) -> Self {
        let store = &setting.store;
        let rows: Vec<usize> = (0..store.len())
            .filter(|&row| !store.flags(row).is_abnormal())
            .collect();
        let codes: Vec<_> = rows.iter().map(|&row| sae.encode(store.row(row))).collect();
        let values = (0..sae.n_features() as u32)
            .map(|feature| codes.iter().map(|codes| codes.value(0, feature)).collect())
            .collect();
        Self { rows, values }
    }

    fn on(&self, feature: usize, row: u32) -> f32 {
        let place = self.rows.binary_search(&(row as usize));
        place.map_or(0.0, |place| self.values[feature][place])
    }

    /// Active rows with their activation.
    fn active(&self, feature: usize) -> Vec<(u32, f32)> {
        let pairs = self.rows.iter().zip(&self.values[feature]);
        pairs
            .map(|(&row, &value)| (row as u32, value))
            .filter(|(_, value)| *value > 0.0)
            .collect()
    }
}

fn survey(setting: &Setting, sae: &Sae, config: &SurveyConfig) -> Survey {
    let model = Some(&setting.model);
    config
        .make(sae, &Sites::of(&setting.store), model, &Control::hidden())
        .unwrap()
}

const CONFIG: SurveyConfig = SurveyConfig {
    features: SurveyedFeatures::All,
    examples: 4,
    bands: 5,
    band_examples: 2,
    context: 3,
    tokens: 6,
    neighbours: 5,
    coactive: 4,
    bins: 7,
    coactive_budget: 1 << 20,
    seed: 3,
};

/// Whether the activations along a passage are those of each row by itself.
#[track_caller]
fn check_passage(passage: &Passage, feature: usize, oracle: &Oracle) {
    let start = passage.row - passage.row % 16;
    let expected = passage.row.saturating_sub(3).max(start)..(passage.row + 4).min(start + 16);
    assert_eq!(passage.rows, expected);
    let values: Vec<f32> = expected.map(|row| oracle.on(feature, row)).collect();
    assert_close(&passage.activations, &values, 1e-5);
    assert_close(
        &[passage.activation],
        &[oracle.on(feature, passage.row)],
        1e-5,
    );
}

#[test]
fn counts_histograms_and_examples_are_those_of_every_row_by_itself() {
    let setting = setting();
    let sae = random_sae(5, 32, 64, 6);
    let oracle = Oracle::new(&setting, &sae);
    let found = survey(&setting, &sae, &CONFIG);
    assert_eq!((found.tokens, found.coactive_tokens), (750, 750));
    assert_eq!(found.features.len(), 64);
    let (mut many, mut banded, mut total) = (0, 0, 0);
    for (number, feature) in found.features.iter().enumerate() {
        assert_eq!(feature.feature, number);
        let active = oracle.active(number);
        total += active.len();
        assert_eq!(feature.count as usize, active.len());
        let density = active.len() as f32 / 750.0;
        assert_close(
            &[feature.density, found.densities[number]],
            &[density; 2],
            1e-7,
        );
        if active.is_empty() {
            assert!(feature.histogram.is_empty() && feature.examples.is_empty());
            assert!(feature.bands.is_empty() && feature.coactive.is_empty());
            continue;
        }
        let mut sorted: Vec<f32> = active.iter().map(|(_, value)| *value).collect();
        sorted.sort_by(f32::total_cmp);
        let largest = *sorted.last().unwrap();
        assert_close(&[feature.largest], &[largest], 1e-6);
        let mean = sorted.iter().map(|&x| f64::from(x)).sum::<f64>() / sorted.len() as f64;
        assert_close(&[feature.mean], &[mean as f32], 1e-6);

        // A value within rounding of an edge may fall on either side of it.
        let below = |edge: f64| sorted.iter().filter(|x| f64::from(**x) < edge).count() as u64;
        let mut sum = 0;
        for (bin, count) in feature.histogram.iter().enumerate() {
            sum += count;
            let edge = f64::from(largest) * (bin + 1) as f64 / 7.0;
            if bin < 6 {
                assert!(below(edge * (1.0 - 1e-5)) <= sum && sum <= below(edge * (1.0 + 1e-5)));
            }
        }
        assert_eq!((feature.histogram.len(), sum), (7, feature.count));
        many += usize::from(feature.histogram.iter().filter(|count| **count > 0).count() > 4);

        let best_of = |sequence: u32| {
            let rows = active.iter().filter(|(row, _)| row / 16 == sequence);
            rows.map(|(_, value)| *value).fold(0.0, f32::max)
        };
        let mut best: Vec<f32> = (0..50).map(best_of).filter(|value| *value > 0.0).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        best.truncate(4);
        let top: Vec<f32> = feature.examples.iter().map(|e| e.activation).collect();
        assert_close(&top, &best, 1e-6);
        let sequences: HashSet<u32> = feature.examples.iter().map(|e| e.row / 16).collect();
        assert_eq!(sequences.len(), feature.examples.len());
        for passage in &feature.examples {
            check_passage(passage, number, &oracle);
        }

        // All active tokens fit into the sample, so bands are exact.
        assert!(active.len() < found.sample);
        let n = active.len();
        let of_band = |band: usize| &sorted[band * n / 5..(band + 1) * n / 5];
        let full: Vec<usize> = (0..5).filter(|&band| !of_band(band).is_empty()).collect();
        assert_eq!(feature.bands.len(), full.len());
        for (band, at) in feature.bands.iter().zip(full) {
            let members = of_band(at);
            assert_close(
                &[band.from, band.to],
                &[at as f32 / 5.0, (at + 1) as f32 / 5.0],
                1e-6,
            );
            assert_close(
                &[band.low, band.high],
                &[members[0], members[members.len() - 1]],
                1e-5,
            );
            for passage in &band.examples {
                assert!(passage.activation >= band.low && passage.activation <= band.high);
                assert!(feature.examples.iter().all(|top| top.row != passage.row));
                check_passage(passage, number, &oracle);
            }
            let expected = if members.len() > 6 {
                2
            } else {
                band.examples.len()
            };
            assert_eq!(band.examples.len(), expected);
            banded += band.examples.len();
        }
    }
    assert!((found.l0 - total as f64 / 750.0).abs() < 1e-9 && found.l0 > 3.0);
    assert!(
        many > 10 && banded > 100,
        "too little is active: {many} {banded}"
    );
}

#[test]
fn coactive_features_are_those_of_counting_all_pairs() {
    let setting = setting();
    let sae = random_sae(5, 32, 64, 6);
    let oracle = Oracle::new(&setting, &sae);
    let rows_of = |feature: usize| -> HashSet<u32> {
        oracle.active(feature).iter().map(|(row, _)| *row).collect()
    };
    let rows: Vec<HashSet<u32>> = (0..64).map(rows_of).collect();
    let mut seen = 0;
    for feature in survey(&setting, &sae, &CONFIG).features {
        let own = &rows[feature.feature];
        let mut expected: Vec<(f64, usize)> = (0..64)
            .filter(|&other| other != feature.feature)
            .map(|other| {
                let both = own.intersection(&rows[other]).count();
                (
                    both as f64 / own.union(&rows[other]).count().max(1) as f64,
                    both,
                )
            })
            .filter(|(_, both)| *both > 0)
            .collect();
        expected.sort_by(|a, b| b.0.total_cmp(&a.0));
        expected.truncate(4);
        assert_eq!(feature.coactive.len(), expected.len());
        for (found, (jaccard, _)) in feature.coactive.iter().zip(expected) {
            assert_close(&[found.jaccard], &[jaccard as f32], 1e-6);
            let other = &rows[found.feature as usize];
            let both = own.intersection(other).count();
            assert_eq!(found.together as usize, both);
            let either = own.union(other).count();
            assert_close(&[found.jaccard], &[both as f32 / either as f32], 1e-6);
            assert_ne!(found.feature as usize, feature.feature);
            seen += 1;
        }
    }
    assert!(seen > 100);
    // With less memory fewer tokens are counted on.
    let small = SurveyConfig {
        coactive_budget: 1000,
        ..CONFIG
    };
    let found = survey(&setting, &sae, &small);
    assert!(found.coactive_tokens < 250 && found.coactive_tokens > 80);
}

#[test]
fn neighbours_are_those_of_all_cosines() {
    let setting = setting();
    let sae = random_sae(5, 32, 64, 6);
    let cosine = |a: usize, b: usize| {
        let dot = |a: usize, b: usize| -> f64 {
            let pairs = sae.direction(a).iter().zip(sae.direction(b));
            pairs.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
        };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    for feature in survey(&setting, &sae, &CONFIG).features {
        let mut expected: Vec<(f64, u32)> = (0..64)
            .filter(|&other| other != feature.feature)
            .map(|other| (cosine(feature.feature, other), other as u32))
            .collect();
        expected.sort_by(|a, b| b.0.total_cmp(&a.0));
        assert_eq!(feature.neighbours.len(), 5);
        for ((other, found), (value, expected)) in feature.neighbours.iter().zip(&expected) {
            assert_eq!(other, expected);
            assert!((f64::from(*found) - value).abs() < 1e-5);
        }
    }
}

#[test]
fn logit_effects_are_those_of_single_features() {
    let setting = setting();
    let sae = random_sae(5, 32, 64, 6);
    let found = survey(&setting, &sae, &CONFIG);
    assert!(found.has_logits);
    let pages = FeaturePages {
        tokens: 6,
        ..FeaturePages::default()
    };
    for feature in &found.features {
        let (promoted, suppressed) = pages
            .logit_weights(&sae, &setting.model, feature.feature)
            .unwrap();
        for (found, expected) in [
            (&feature.promoted, promoted),
            (&feature.suppressed, suppressed),
        ] {
            let named: Vec<(String, f32)> = found
                .iter()
                .map(|(id, value)| (setting.model.tokenizer().token_text(*id), *value))
                .collect();
            assert_eq!(named.len(), 6);
            for ((token, value), (expected, other)) in named.iter().zip(&expected) {
                assert_eq!(token, expected);
                assert_close(&[*value], &[*other], 1e-5);
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_survey_and_some_features_the_same_as_all() {
    let setting = setting();
    let sae = random_sae(5, 32, 64, 6);
    let all = survey(&setting, &sae, &CONFIG);
    assert_eq!(all, survey(&setting, &sae, &CONFIG));
    let these = SurveyConfig {
        features: SurveyedFeatures::These(vec![40, 7, 40]),
        ..CONFIG
    };
    let some = survey(&setting, &sae, &these);
    for (feature, number) in some.features.iter().zip([40, 7, 40]) {
        let of_all = &all.features[number];
        assert_eq!(
            (feature.feature, &feature.examples, &feature.bands),
            (number, &of_all.examples, &of_all.bands)
        );
        assert_eq!(feature.histogram, of_all.histogram);
        assert_eq!(feature.coactive, of_all.coactive);
    }
    let densest = SurveyConfig {
        features: SurveyedFeatures::Densest(3),
        ..CONFIG
    };
    let densest: Vec<usize> = survey(&setting, &sae, &densest)
        .features
        .iter()
        .map(|feature| feature.feature)
        .collect();
    let mut order: Vec<usize> = (0..64).collect();
    order.sort_by_key(|&feature| std::cmp::Reverse(all.features[feature].count));
    order.truncate(3);
    order.sort_unstable();
    assert_eq!(densest, order);
    let other = survey(&setting, &sae, &SurveyConfig { seed: 4, ..CONFIG });
    assert_eq!(other.features[40].examples, all.features[40].examples);
    assert_ne!(other.features[40].bands, all.features[40].bands);
}

#[test]
fn a_transcoder_of_another_width_and_no_model_are_surveyed_without_logits() {
    let setting = setting();
    let (d, d_out, m) = (32, 20, 24);
    let sae = Sae::new(SaeParts {
        selection: Selection::Relu,
        encoder: random(1, m * d),
        encoder_bias: random(2, m),
        decoder: random(3, m * d_out),
        decoder_bias: vec![0.0; d_out],
        input_bias: vec![0.0; d],
        normalization: Normalization::None,
        skip: None,
    })
    .unwrap();
    let found = survey(&setting, &sae, &CONFIG);
    assert!(!found.has_logits && found.features.len() == m);
    assert!(found.features.iter().all(|f| f.promoted.is_empty()));
    assert!(
        found
            .features
            .iter()
            .any(|f| f.examples.len() == 4 && f.bands.len() == 5)
    );
    let sae = random_sae(5, 32, 64, 6);
    let found = CONFIG
        .make(&sae, &Sites::of(&setting.store), None, &Control::hidden())
        .unwrap();
    assert!(!found.has_logits && found.features[40].promoted.is_empty());
}

#[test]
fn parts_that_do_not_fit_are_refused_and_work_stops_when_asked() {
    let setting = setting();
    let make = |sae: &Sae, config: &SurveyConfig, control: &Control| {
        let model = Some(&setting.model);
        config
            .make(sae, &Sites::of(&setting.store), model, control)
            .unwrap_err()
    };
    let sae = random_sae(5, 32, 64, 6);
    let wrong = SurveyConfig {
        features: SurveyedFeatures::These(vec![64]),
        ..CONFIG
    };
    let hidden = Control::hidden();
    assert_has(
        &make(&sae, &wrong, &hidden).to_string(),
        &["feature 64", "has 64"],
    );
    let narrow = random_sae(5, 31, 64, 6);
    assert_has(
        &make(&narrow, &CONFIG, &hidden).to_string(),
        &["width 31", "width 32"],
    );
    for stage in [
        "activations",
        "co-active features",
        "nearest decoder rows",
        "logit effects",
        "examples",
    ] {
        let control = interrupted_at(stage, 1);
        // A stage that ends with its first step is stopped at the next one.
        let result = CONFIG.make(
            &sae,
            &Sites::of(&setting.store),
            Some(&setting.model),
            &control,
        );
        match result {
            Err(error) => assert!(
                matches!(error, SaeError::Interrupted(_)),
                "{stage}: {error}"
            ),
            Ok(_) => assert_eq!(stage, "examples"),
        }
    }
}
