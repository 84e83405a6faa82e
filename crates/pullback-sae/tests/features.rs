//! Feature pages against encoding every row by itself and a plain matrix product.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::base::{Setting, assert_has, config, interrupted_at, setting, setting_with};
use common::random_sae;
use pullback_artifact::Control;
use pullback_model::Site;
use pullback_sae::{Dictionary, FeaturePage, FeaturePages, Sae, SaeError};

const PAGES: FeaturePages = FeaturePages {
    examples: 5,
    context: 3,
    tokens: 6,
};

fn make(setting: &Setting, sae: &Sae, pages: FeaturePages, features: &[usize]) -> Vec<FeaturePage> {
    pages
        .make(
            sae,
            &setting.store,
            &setting.model,
            features,
            &Control::hidden(),
        )
        .unwrap()
}

/// Every normal row on which a feature is active, each row encoded alone.
fn active_rows(setting: &Setting, sae: &Sae, feature: usize) -> Vec<(usize, f32)> {
    (0..setting.store.len())
        .filter(|&row| !setting.store.flags(row).is_abnormal())
        .map(|row| {
            (
                row,
                sae.encode(setting.store.row(row)).value(0, feature as u32),
            )
        })
        .filter(|(_, value)| *value > 0.0)
        .collect()
}

#[test]
fn densities_and_examples_are_those_of_every_row_by_itself() {
    let setting = setting();
    let (store, tokenizer) = (&setting.store, setting.model.tokenizer());
    let sae = random_sae(5, 32, 64, 6);
    let features = [40, 0, 63, 7, 21];
    let pages = make(&setting, &sae, PAGES, &features);
    let normal = (0..store.len())
        .filter(|&row| !store.flags(row).is_abnormal())
        .count();
    assert_eq!(normal, 750);
    let mut full = 0;
    for (page, feature) in pages.iter().zip(features) {
        assert_eq!(page.feature, feature);
        let active = active_rows(&setting, &sae, feature);
        assert!((page.density - active.len() as f32 / normal as f32).abs() < 1e-7);

        let best_of = |sequence: usize| {
            let rows = active.iter().filter(|(row, _)| row / 16 == sequence);
            rows.map(|(_, value)| *value).fold(0.0, f32::max)
        };
        let mut best: Vec<f32> = (0..50).map(best_of).filter(|value| *value > 0.0).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        best.truncate(5);
        let found: Vec<f32> = page
            .examples
            .iter()
            .map(|example| example.activation)
            .collect();
        common::base::assert_close(&found, &best, 1e-6);
        full += usize::from(found.len() == 5);

        let mut sequences = Vec::new();
        for example in &page.examples {
            let of_example =
                |value: f32| (value - example.activation).abs() <= 1e-6 * example.activation;
            // The same piece of text may stand in the corpus twice: one of the places must fit.
            let place = active.iter().find(|(row, value)| {
                let start = row - row % 16;
                let span = row.saturating_sub(3).max(start)..(row + 4).min(start + 16);
                let text = |rows: std::ops::Range<usize>| {
                    tokenizer.decode(&rows.map(|row| store.token(row)).collect::<Vec<_>>(), false)
                };
                let context: Vec<(String, f32)> = span
                    .clone()
                    .map(|row| {
                        let value = active
                            .iter()
                            .find(|(other, _)| *other == row)
                            .map_or(0.0, |(_, value)| *value);
                        (tokenizer.token_text(store.token(row)), value)
                    })
                    .collect();
                of_example(*value)
                    && !sequences.contains(&(row / 16))
                    && example.token == tokenizer.token_text(store.token(*row))
                    && example.before == text(span.start..*row)
                    && example.after == text(row + 1..span.end)
                    && example.context.len() == context.len()
                    && example
                        .context
                        .iter()
                        .zip(&context)
                        .all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5)
            });
            let (row, _) = place.expect("the example stands nowhere in the store");
            sequences.push(row / 16);
            assert_eq!(
                example.text,
                format!("{}«{}»{}", example.before, example.token, example.after)
            );
        }
    }
    assert!(
        full >= 3,
        "too few features are active enough for this test"
    );
}

#[test]
fn promoted_tokens_are_those_of_the_matrix_product() {
    let setting = setting();
    let model = &setting.model;
    let sae = random_sae(6, 32, 64, 6);
    let gain: Vec<f64> = model.final_gain().to_data().iter::<f64>().collect();
    let unembedding: Vec<f64> = model.unembedding().to_data().iter::<f64>().collect();
    assert!(
        gain.iter().any(|g| (g - 1.0).abs() > 1e-3),
        "the gain of the final norm does not matter"
    );
    for page in make(&setting, &sae, PAGES, &[3, 50]) {
        let direction = sae.direction(page.feature);
        let mut weights: Vec<(f64, u32)> = unembedding
            .chunks_exact(32)
            .enumerate()
            .map(|(id, row)| {
                let weight = row
                    .iter()
                    .zip(&gain)
                    .zip(direction)
                    .map(|((u, g), w)| u * g * f64::from(*w))
                    .sum();
                (weight, id as u32)
            })
            .filter(|(_, id)| !model.tokenizer().is_special(*id))
            .collect();
        assert!(weights.len() < 300 && weights.len() > 200);
        weights.sort_by(|a, b| b.0.total_cmp(&a.0));
        let lowest: Vec<_> = weights.iter().rev().copied().collect();
        for (found, expected) in [(&page.promoted, &weights), (&page.suppressed, &lowest)] {
            assert_eq!(found.len(), 6);
            for ((token, weight), (expected, id)) in found.iter().zip(expected.iter()) {
                assert_eq!(*token, model.tokenizer().token_text(*id));
                assert!(
                    (f64::from(*weight) - expected).abs() < 1e-5,
                    "{weight} {expected}"
                );
            }
        }
    }
}

#[test]
fn sizes_asked_for_are_kept_to() {
    let setting = setting();
    let sae = random_sae(5, 32, 64, 6);
    for examples in [1, 2] {
        let page = &make(&setting, &sae, FeaturePages { examples, ..PAGES }, &[40])[0];
        assert_eq!(page.examples.len(), examples);
    }
    let page = &make(
        &setting,
        &sae,
        FeaturePages {
            context: 0,
            tokens: 0,
            ..PAGES
        },
        &[40],
    )[0];
    assert!(
        page.examples
            .iter()
            .all(|example| example.before.is_empty() && example.context.len() == 1)
    );
    assert!(page.promoted.is_empty() && page.suppressed.is_empty());
    let page = &make(
        &setting,
        &sae,
        FeaturePages {
            context: 1000,
            tokens: 1000,
            examples: 1000,
        },
        &[40],
    )[0];
    assert!(
        page.examples
            .iter()
            .all(|example| example.context.len() == 16)
    );
    assert!(make(&setting, &sae, PAGES, &[]).is_empty());
}

#[test]
fn no_examples_are_made_when_none_are_asked_for() {
    let setting = setting();
    let pages = make(
        &setting,
        &random_sae(5, 32, 64, 6),
        FeaturePages {
            examples: 0,
            ..PAGES
        },
        &[40],
    );
    assert_eq!(pages[0].examples.len(), 0);
}

#[test]
fn a_feature_asked_for_twice_gets_two_equal_pages() {
    let setting = setting();
    let sae = random_sae(5, 32, 64, 6);
    let pages = make(&setting, &sae, PAGES, &[40, 7, 40]);
    assert!(!pages[2].examples.is_empty());
    assert_eq!(pages[0], pages[2], "the first page of the two is another");
}

#[test]
fn a_feature_that_never_fires_has_an_empty_page() {
    let setting = setting();
    let random = random_sae(5, 32, 64, 6);
    let mut bias = random.encoder_bias().to_vec();
    bias[7] = -1e9;
    let decoder = random.decoder().to_vec();
    let sae = Sae::top_k(
        6,
        random.encoder().to_vec(),
        bias,
        decoder,
        random.decoder_bias().to_vec(),
    )
    .unwrap();
    let page = &make(&setting, &sae, PAGES, &[7])[0];
    assert_eq!(
        (page.density, page.examples.len(), page.promoted.len()),
        (0.0, 0, 6)
    );
}

#[test]
fn parts_that_do_not_fit_are_refused_in_words() {
    let setting = setting();
    let make = |sae: &Sae, features: &[usize], control: &Control| {
        PAGES
            .make(sae, &setting.store, &setting.model, features, control)
            .unwrap_err()
    };
    let hidden = Control::hidden();
    let sae = random_sae(5, 32, 64, 6);
    assert_has(
        &make(&sae, &[1, 64], &hidden).to_string(),
        &["feature 64", "has 64"],
    );
    assert_has(
        &make(&random_sae(5, 31, 64, 6), &[1], &hidden).to_string(),
        &["width 31", "width 32"],
    );
    let error = make(&sae, &[1], &{
        let control = interrupted_at("nothing", 1);
        control.interrupt();
        control
    });
    assert!(matches!(error, SaeError::Interrupted(_)), "{error}");

    // A site of another width promotes nothing, and has examples all the same.
    let mut config = config();
    config.site = "blocks.0.mlp.hook_post".parse::<Site>().unwrap();
    let setting = setting_with(&config);
    let page = &PAGES
        .make(
            &random_sae(5, 48, 64, 6),
            &setting.store,
            &setting.model,
            &[1],
            &hidden,
        )
        .unwrap()[0];
    assert!(page.promoted.is_empty() && !page.examples.is_empty());
}
