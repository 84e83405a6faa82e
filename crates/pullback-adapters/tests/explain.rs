//! What an adapter does to features, against computing it row by row.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeSet;

use burn::tensor::{DType, Device, Tensor, TensorData};
use common::base::{Setting, assert_close, assert_has, interrupted_at, setting, values};
use common::sae::random_sae;
use common::{Parts, usual};
use pullback_adapters::{
    Activation, AdapterError, Explanation, Pullback, ResidualAdapter, agreement_on, explain,
    explain_on, spearman,
};
use pullback_artifact::{Control, read_json, write_json};
use pullback_model::Site;
use pullback_sae::{Dictionary, FeaturePages, Sae};

const PAGES: FeaturePages = FeaturePages {
    examples: 3,
    context: 3,
    tokens: 4,
};
const M: usize = 64;

fn explained(setting: &Setting, adapter: &ResidualAdapter, sae: &Sae, count: usize) -> Explanation {
    explain(
        adapter,
        sae,
        &setting.store,
        &setting.model,
        count,
        PAGES,
        &Control::hidden(),
    )
    .unwrap()
}

fn held_out(setting: &Setting) -> Vec<&[f32]> {
    setting
        .store
        .normal_rows(true)
        .iter()
        .map(|&row| setting.store.row(row as usize))
        .collect()
}

/// What the adapter writes on each held-out row.
fn changes(setting: &Setting, parts: &Parts) -> Vec<Vec<f64>> {
    held_out(setting)
        .iter()
        .map(|x| parts.written(&parts.hidden(Activation::Gelu, x)))
        .collect()
}

/// Orthonormal directions of the same span (Gram and Schmidt, twice for accuracy).
fn orthonormal(rows: &[&[f32]]) -> Vec<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for row in rows {
        let mut v: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        for _ in 0..2 {
            for b in &basis {
                let along: f64 = v.iter().zip(b).map(|(v, b)| v * b).sum();
                v.iter_mut().zip(b).for_each(|(v, b)| *v -= along * b);
            }
        }
        let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        if length > 1e-9 {
            basis.push(v.into_iter().map(|x| x / length).collect());
        }
    }
    basis
}

/// A dictionary of which every sixth feature never fires.
fn partly_silent() -> Sae {
    let like = random_sae(5, 32, M, 6);
    let bias = like
        .encoder_bias()
        .iter()
        .enumerate()
        .map(|(i, b)| if i % 6 == 0 { -1e9 } else { *b })
        .collect();
    Sae::top_k(
        6,
        like.encoder().to_vec(),
        bias,
        like.decoder().to_vec(),
        like.decoder_bias().to_vec(),
    )
    .unwrap()
}

#[test]
fn measured_changes_are_those_of_every_row_by_itself() {
    let setting = setting();
    let (adapter, parts) = usual(4, 32, 5);
    let sae = partly_silent();
    let found = explained(&setting, &adapter, &sae, 7);
    let rows = held_out(&setting);
    let n = rows.len() as f64;
    assert_eq!(rows.len(), 150);
    let (mut change, mut density, mut live) = (vec![0.0; M], vec![0.0; M], BTreeSet::new());
    let mut hidden = [0.0; 5];
    for (x, written) in rows.iter().zip(changes(&setting, &parts)) {
        let moved: Vec<f32> = x
            .iter()
            .zip(&written)
            .map(|(x, w)| (f64::from(*x) + w) as f32)
            .collect();
        for (x, sign) in [(*x, -1.0), (&moved[..], 1.0)] {
            let codes = sae.encode(x);
            for (&feature, &value) in codes.features().iter().zip(codes.values()) {
                change[feature as usize] += sign * f64::from(value) / n;
                if sign < 0.0 {
                    density[feature as usize] += 1.0 / n;
                }
                live.insert(feature);
            }
        }
        for (sum, h) in hidden.iter_mut().zip(parts.hidden(Activation::Gelu, x)) {
            *sum += h / n;
        }
    }
    let expected: Vec<f32> = change.iter().map(|&x| x as f32).collect();
    assert_close(&found.measured, &expected, 1e-5);
    assert!(
        expected.iter().any(|x| x.abs() > 0.1),
        "the adapter does next to nothing"
    );
    assert_eq!(found.live, live.iter().copied().collect::<Vec<_>>());
    assert!(
        live.len() > 20 && live.len() < M,
        "{} of the features are live",
        live.len()
    );

    // density × first-order change of the pre-activation at the mean hidden activity.
    let written = parts.written(&hidden);
    let first_order = |i: usize| {
        sae.encoder()[i * 32..(i + 1) * 32]
            .iter()
            .zip(&written)
            .map(|(e, w)| f64::from(*e) * w)
            .sum::<f64>()
    };
    let predicted: Vec<f32> = (0..M)
        .map(|i| (density[i] * first_order(i)) as f32)
        .collect();
    let found_predicted = found.predicted.as_deref().unwrap();
    assert_close(found_predicted, &predicted, 1e-5);

    let pullback = Pullback::new(&adapter, &sae).unwrap();
    assert_eq!(found.features.len(), 7);
    let mut order: Vec<usize> = (0..M).collect();
    order.sort_by(|&a, &b| expected[b].abs().total_cmp(&expected[a].abs()));
    for (feature, expected_feature) in found.features.iter().zip(order) {
        let i = feature.feature;
        assert_eq!(i, expected_feature);
        assert_eq!(
            (feature.measured, feature.predicted),
            (found.measured[i], Some(found_predicted[i]))
        );
        assert!((f64::from(feature.writes.unwrap()) - first_order(i)).abs() < 1e-5);
        let row = &pullback.reads[i * 5..(i + 1) * 5];
        assert!(
            (feature.reads.unwrap() - row.iter().map(|x| x * x).sum::<f32>().sqrt()).abs() < 1e-5
        );
        let page = &PAGES
            .make(
                &sae,
                &setting.store,
                &setting.model,
                &[i],
                &Control::hidden(),
            )
            .unwrap()[0];
        assert_eq!(
            (&feature.examples, feature.density),
            (&page.examples, page.density)
        );
        assert_eq!(
            (&feature.promoted, &feature.suppressed),
            (&page.promoted, &page.suppressed)
        );
    }
    for (unit, expected) in found.units.iter().zip(hidden) {
        assert!((f64::from(unit.mean_activity) - expected).abs() < 1e-5);
        assert!((unit.bias - pullback.bias[unit.unit]).abs() < 1e-6);
        for (listed, matrix) in [
            (&unit.reads, &pullback.reads),
            (&unit.writes, &pullback.written_rows),
        ] {
            assert_eq!(listed.len(), 5);
            for (feature, entry) in listed {
                assert!((entry - matrix[feature * 5 + unit.unit]).abs() < 1e-6);
            }
        }
        let largest = found
            .live
            .iter()
            .map(|&i| pullback.written_rows[i as usize * 5 + unit.unit].abs());
        assert!((unit.writes[0].1.abs() - largest.fold(0.0, f32::max)).abs() < 1e-6);
    }
}

#[test]
fn the_agreement_is_the_rank_correlation_of_what_is_returned() {
    let setting = setting();
    let (adapter, _) = usual(4, 32, 5);
    let found = explained(&setting, &adapter, &random_sae(5, 32, M, 6), 3);
    let of_live = |x: &[f32]| {
        found
            .live
            .iter()
            .map(|&i| x[i as usize])
            .collect::<Vec<f32>>()
    };
    let (a, b) = (
        of_live(found.predicted.as_deref().unwrap()),
        of_live(&found.measured),
    );
    assert!((found.agreement_spearman.unwrap() - spearman(&a, &b)).abs() < 1e-12);
    // By counting: a rank is one more than the values below, and half of the other equal ones.
    let rank = |x: &[f32], i: usize| {
        let below = x.iter().filter(|&&y| y < x[i]).count() as f64;
        let equal = x
            .iter()
            .enumerate()
            .filter(|&(j, &y)| j != i && y.total_cmp(&x[i]).is_eq())
            .count() as f64;
        1.0 + below + equal / 2.0
    };
    let ranks = |x: &[f32]| (0..x.len()).map(|i| rank(x, i)).collect::<Vec<f64>>();
    let (a, b) = (ranks(&a), ranks(&b));
    let mean = f64::midpoint(a.len() as f64, 1.0);
    let sum = |a: &[f64], b: &[f64]| {
        a.iter()
            .zip(b)
            .map(|(a, b)| (a - mean) * (b - mean))
            .sum::<f64>()
    };
    let expected = sum(&a, &b) / (sum(&a, &a) * sum(&b, &b)).sqrt();
    assert!(
        (found.agreement_spearman.unwrap() - expected).abs() < 1e-9,
        "{} {expected}",
        found.agreement_spearman.unwrap()
    );
    assert!(
        expected > 0.2,
        "prediction and measurement have nothing to do with each other: {expected}"
    );
}

#[test]
fn a_change_that_only_shifts_active_features_is_predicted_exactly() {
    // No activation function, no reading: the adapter adds one vector, which moves every feature that stays active by
    // its first-order change.
    let setting = setting();
    let mut parts = Parts::random(4, 32, 1);
    parts.w_in.fill(0.0);
    parts.b_in = vec![1e-3];
    let adapter = parts.adapter(Activation::Identity, &Device::flex(), DType::F32);
    let like = random_sae(5, 32, M, 6);
    let bias = vec![1000.0; M];
    let sae = Sae::top_k(
        M,
        like.encoder().to_vec(),
        bias,
        like.decoder().to_vec(),
        like.decoder_bias().to_vec(),
    )
    .unwrap();
    let found = explained(&setting, &adapter, &sae, 3);
    assert_eq!(found.live.len(), M);
    // 1000 in f32 is known to 6e-5, and the mean is over 150 rows.
    for (predicted, measured) in found.predicted.iter().flatten().zip(&found.measured) {
        assert!(
            (predicted - measured).abs() < 3e-5,
            "{predicted} {measured}"
        );
    }
    assert!(found.predicted.iter().flatten().any(|x| x.abs() > 1e-3));
}

#[test]
fn the_residual_is_what_the_shown_directions_do_not_carry() {
    let setting = setting();
    let (adapter, parts) = usual(4, 32, 5);
    let sae = random_sae(5, 32, M, 20);
    let changes = changes(&setting, &parts);
    let energy = |changes: &[Vec<f64>]| changes.iter().flatten().map(|x| x * x).sum::<f64>();
    for count in [1, 4, 31, 40, 1000] {
        let found = explained(&setting, &adapter, &sae, count);
        assert_eq!(found.features.len(), count.min(found.live.len()));
        let rows: Vec<&[f32]> = found
            .features
            .iter()
            .map(|feature| sae.direction(feature.feature))
            .collect();
        let basis = orthonormal(&rows);
        let left: Vec<Vec<f64>> = changes
            .iter()
            .map(|change| {
                let mut left = change.clone();
                for b in &basis {
                    let along: f64 = change.iter().zip(b).map(|(c, b)| c * b).sum();
                    left.iter_mut()
                        .zip(b)
                        .for_each(|(left, b)| *left -= along * b);
                }
                left
            })
            .collect();
        let expected = energy(&left) / energy(&changes);
        let fraction = found.residual_fraction.unwrap();
        assert!(
            (fraction - expected).abs() < 1e-5,
            "{count}: {fraction} against {expected}"
        );
        assert!((0.0..=1.0).contains(&fraction), "{count}: {fraction}");
        assert_eq!(fraction < 1e-9, basis.len() == 32, "{count}: {fraction}");
    }
    assert!(
        (explained(&setting, &adapter, &sae, 0)
            .residual_fraction
            .unwrap()
            - 1.0)
            .abs()
            < 1e-12
    );
}

#[test]
fn other_text_is_explained_as_the_stores_own_is() {
    let setting = setting();
    let (adapter, _) = usual(4, 32, 5);
    let sae = partly_silent();
    let hidden = Control::hidden();
    let on = |x: &[f32]| {
        explain_on(
            x,
            &adapter,
            &sae,
            &setting.store,
            &setting.model,
            5,
            PAGES,
            &hidden,
        )
    };
    let own = held_out(&setting).concat();
    assert_eq!(on(&own).unwrap(), explained(&setting, &adapter, &sae, 5));
    // Half of the rows: other figures, those of these rows.
    let half = &own[..75 * 32];
    let found = on(half).unwrap();
    assert_ne!(
        found.measured,
        explained(&setting, &adapter, &sae, 5).measured
    );
    let agreement = agreement_on(half, &adapter, &sae, &hidden).unwrap();
    assert!((agreement.unwrap() - found.agreement_spearman.unwrap()).abs() < 1e-12);
    let mean = half
        .chunks_exact(32)
        .map(|x| f64::from(sae.encode(x).value(0, 7)))
        .sum::<f64>()
        / 75.0;
    let after: f64 = half
        .chunks_exact(32)
        .map(|x| {
            let tensor =
                Tensor::<2>::from_data(TensorData::new(x.to_vec(), [1, 32]), &Device::flex());
            let moved = values(tensor.clone() + adapter.change(tensor));
            f64::from(sae.encode(&moved).value(0, 7)) / 75.0
        })
        .sum();
    assert!((f64::from(found.measured[7]) - (after - mean)).abs() < 1e-5);
    for wrong in [&[][..], &own[..33]] {
        let number = wrong.len().to_string();
        assert_has(&on(wrong).unwrap_err().to_string(), &[&number, "32"]);
        assert_has(
            &agreement_on(wrong, &adapter, &sae, &hidden)
                .unwrap_err()
                .to_string(),
            &[&number, "32"],
        );
    }
}

#[test]
fn parts_that_do_not_fit_are_refused_in_words() {
    let setting = setting();
    let (adapter, _) = usual(4, 32, 5);
    let refused = |adapter: &ResidualAdapter, d: usize, control: &Control| {
        let sae = random_sae(5, d, M, 6);
        explain(
            adapter,
            &sae,
            &setting.store,
            &setting.model,
            3,
            PAGES,
            control,
        )
        .unwrap_err()
    };
    let hidden = Control::hidden();
    let elsewhere = ResidualAdapter {
        site: Site::resid_post(0),
        ..adapter.clone()
    };
    let error = refused(&elsewhere, 32, &hidden).to_string();
    assert_has(
        &error,
        &["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"],
    );
    assert_has(
        &refused(&adapter, 31, &hidden).to_string(),
        &["width 32", "width 31"],
    );
    for stage in ["measure change", "examples"] {
        let control = interrupted_at(stage, 1);
        let sae = random_sae(5, 32, M, 6);
        let result = explain(
            &adapter,
            &sae,
            &setting.store,
            &setting.model,
            3,
            PAGES,
            &control,
        );
        // One batch holds all rows, so that each stage ends before it looks again.
        assert_eq!(result.is_err(), stage == "measure change", "{stage}");
        assert!(result.err().is_none_or(|error| matches!(
            error,
            AdapterError::Sae(_) | AdapterError::Interrupted(_)
        )));
    }
    let mut config = common::base::config();
    config.plan.held_out_tokens = 0;
    let bare = common::base::setting_with(&config);
    let result = explain(
        &adapter,
        &random_sae(5, 32, M, 6),
        &bare.store,
        &bare.model,
        3,
        PAGES,
        &hidden,
    );
    assert_has(&result.unwrap_err().to_string(), &["no held-out"]);
}

#[test]
fn an_adapter_and_a_dictionary_of_another_width_than_the_store_are_an_error() {
    let setting = setting();
    let (adapter, _) = usual(4, 16, 5);
    let result = explain(
        &adapter,
        &random_sae(5, 16, M, 6),
        &setting.store,
        &setting.model,
        3,
        PAGES,
        &Control::hidden(),
    );
    assert_has(&result.unwrap_err().to_string(), &["16", "32"]);
}

#[test]
fn an_adapter_that_writes_nothing_is_explained_and_can_be_kept_in_a_file() {
    let setting = setting();
    let (_, mut parts) = usual(4, 32, 5);
    parts.w_out.fill(0.0);
    let adapter = parts.adapter(Activation::Gelu, &Device::flex(), DType::F32);
    let found = explained(&setting, &adapter, &random_sae(5, 32, M, 6), 3);
    assert!(
        found
            .measured
            .iter()
            .chain(found.predicted.iter().flatten())
            .all(|x| x.abs() == 0.0)
    );
    let path = setting.dir.path().join("explanation.json");
    write_json(&path, &found).unwrap();
    read_json::<Explanation>(&path).expect("what was written is not read");
}
