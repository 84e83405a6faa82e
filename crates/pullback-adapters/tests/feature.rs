//! Adapters over features: against dense maps, gradients against finite differences, zero adapters, files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use common::base::{assert_close, assert_has, tiny, values};
use common::{random, sae::random_sae};
use pullback_adapters::{ADAPTER_KIND, Adapter, AdapterError, Decoder, FeatureAdapter, Support};
use pullback_artifact::{Manifest, ModelRef, ParentRef, PartialDir};
use pullback_kernels::sparse::SparseCodes;
use pullback_model::{Input, Intervention, Model, RunOptions, Site};
use pullback_sae::{Dictionary, Sae, SaeParts, Selection};

const M: u32 = 24;
const D: usize = 8;

/// A support of each form.
fn supports() -> Vec<Support> {
    let features = vec![0, 3, 7, 8, 15, 23];
    let entries = |seed: u32, count: u32, columns: u32| {
        let mut all: Vec<(u32, u32)> = (0..count)
            .map(|i| ((i * 7 + seed) % M, (i * 5 + i / 4 + seed) % columns))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    vec![
        Support::Bias {
            features: features.clone(),
            active_only: false,
        },
        Support::Bias {
            features,
            active_only: true,
        },
        Support::Sparse {
            pairs: entries(1, 40, M),
        },
        Support::LowRank {
            rank: 3,
            read: entries(2, 30, 3),
            write: entries(0, 20, 3),
        },
        Support::LowRank {
            rank: 2,
            read: (0..2 * M).map(|i| (i / 2, i % 2)).collect(),
            write: (0..2 * M).map(|i| (i / 2, i % 2)).collect(),
        },
    ]
}

fn numbers(seed: u64, count: usize) -> Vec<f64> {
    random(seed, count).into_iter().map(f64::from).collect()
}

fn values_of(support: &Support, seed: u64) -> Vec<Vec<f64>> {
    let sizes = support.sizes().into_iter().enumerate();
    sizes
        .map(|(part, size)| numbers(seed + part as u64, size))
        .collect()
}

/// Codes of seven tokens, one of which has none.
fn codes() -> SparseCodes<f64> {
    let mut codes = SparseCodes::new();
    for token in 0..7_u32 {
        if token == 2 {
            codes.push(&[], &[]);
            continue;
        }
        let mut features: Vec<u32> = (0..6).map(|k| (k * 5 + token * 3) % M).collect();
        features.sort_unstable();
        features.dedup();
        let sizes = numbers(u64::from(token) + 50, features.len());
        let sizes: Vec<f64> = sizes.iter().map(|x| x.abs() + 0.1).collect();
        codes.push(&features, &sizes);
    }
    codes
}

/// `(g(z) − z)·D`, from the definition of `g` with dense matrices.
fn dense_change(
    support: &Support,
    values: &[Vec<f64>],
    codes: &SparseCodes<f64>,
    decoder: &[f64],
) -> Vec<f64> {
    let m = M as usize;
    let mut out = Vec::new();
    for token in 0..codes.tokens() {
        let z: Vec<f64> = (0..M).map(|i| codes.value(token, i)).collect();
        let mut added = vec![0.0; m];
        match support {
            Support::Bias {
                features,
                active_only,
            } => {
                for (&i, b) in features.iter().zip(&values[0]) {
                    if !active_only || z[i as usize] > 0.0 {
                        added[i as usize] += b;
                    }
                }
            }
            Support::Sparse { pairs } => {
                for (&(i, j), w) in pairs.iter().zip(&values[0]) {
                    added[j as usize] += w * z[i as usize];
                }
            }
            Support::LowRank { rank, read, write } => {
                let mut hidden = vec![0.0; *rank];
                for (&(i, column), v) in read.iter().zip(&values[0]) {
                    hidden[column as usize] += v * z[i as usize];
                }
                for (&(j, column), u) in write.iter().zip(&values[1]) {
                    added[j as usize] += u * hidden[column as usize];
                }
            }
        }
        for k in 0..D {
            let sum: f64 = (0..m).map(|j| added[j] * decoder[j * D + k]).sum();
            out.push(sum);
        }
    }
    out
}

#[test]
fn changes_are_those_of_dense_maps() {
    let decoder = numbers(9, M as usize * D);
    let codes = codes();
    for support in supports() {
        let values = values_of(&support, 20);
        let projected = support.project(
            &values,
            Decoder {
                rows: &decoder,
                d: D,
            },
        );
        let found = projected.change(&codes);
        let expected = dense_change(&support, &values, &codes, &decoder);
        let size = expected.iter().map(|x| x.abs()).fold(0.0, f64::max);
        assert!(size > 0.1);
        for (a, b) in found.iter().zip(&expected) {
            assert!(
                (a - b).abs() < 1e-13 * size.max(1.0),
                "{support:?}: {a} {b}"
            );
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let decoder = numbers(9, M as usize * D);
    let codes = codes();
    // A smooth objective of the change: Σ c·Δ + ½ Σ Δ².
    let weights = numbers(4, codes.tokens() * D);
    let objective = |change: &[f64]| {
        let parts = change.iter().zip(&weights);
        parts.map(|(x, c)| c * x + 0.5 * x * x).sum::<f64>()
    };
    for support in supports() {
        let values = values_of(&support, 30);
        let rows = Decoder {
            rows: &decoder,
            d: D,
        };
        let change = support.project(&values, rows).change(&codes);
        let grad: Vec<f64> = change.iter().zip(&weights).map(|(x, c)| c + x).collect();
        let found = support.gradients(&values, &codes, rows, &grad);
        let mut largest = 0.0_f64;
        for part in 0..values.len() {
            for at in 0..values[part].len() {
                let moved = |by: f64| {
                    let mut values = values.clone();
                    values[part][at] += by;
                    objective(&dense_change(&support, &values, &codes, &decoder))
                };
                let measured = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                let g = found[part][at];
                largest = largest.max(g.abs());
                assert!(
                    (measured - g).abs() < 1e-8 * g.abs().max(1.0),
                    "{support:?} {part} {at}: {measured} {g}"
                );
            }
        }
        assert!(largest > 0.1);
    }
}

/// A dictionary of the tiny model's stream.
fn dictionary(seed: u64) -> Arc<Sae> {
    Arc::new(random_sae(seed, 32, 24, 5))
}

fn adapter(support: Support, size: f32) -> FeatureAdapter {
    let values: Vec<Vec<f32>> = support
        .sizes()
        .iter()
        .enumerate()
        .map(|(part, &count)| {
            let numbers = random(70 + part as u64, count);
            numbers.iter().map(|x| x * size).collect()
        })
        .collect();
    FeatureAdapter::new(Site::resid_post(1), dictionary(3), support, values).unwrap()
}

fn logits(model: &Model, adapter: Option<Arc<FeatureAdapter>>) -> Vec<f32> {
    let interventions: Vec<Intervention> = adapter
        .into_iter()
        .map(|adapter| Intervention::new(adapter.site, adapter))
        .collect();
    let options = RunOptions {
        interventions: &interventions,
        ..RunOptions::default()
    };
    let ids = [5_u32, 60, 7, 100, 33];
    let out = model.run(Input::tokens(&ids), &options).unwrap();
    values(model.logits(out.stream))
}

#[test]
fn a_zero_adapter_changes_no_bit_and_another_changes_all_but_the_first_position() {
    let model = tiny();
    let clean = logits(&model, None);
    let vocabulary = model.config().d_vocab;
    for support in supports() {
        let zero = logits(&model, Some(Arc::new(adapter(support.clone(), 0.0))));
        assert_eq!(zero, clean, "{support:?}");
        let changed = logits(&model, Some(Arc::new(adapter(support.clone(), 1.0))));
        assert_eq!(changed[..vocabulary], clean[..vocabulary]);
        assert_ne!(changed[vocabulary..], clean[vocabulary..], "{support:?}");
    }
}

#[test]
fn the_error_term_is_carried_along() {
    // What is added is the difference of the decoded codes, whatever is not reconstructed.
    let dictionary = dictionary(3);
    let support = supports()[1].clone();
    let own = adapter(support.clone(), 1.0);
    let x = random(8, 6 * 32);
    let codes = dictionary.encode(&x);
    let mut changed = SparseCodes::new();
    let Support::Bias { features, .. } = &support else {
        panic!("a bias");
    };
    for token in 0..codes.tokens() {
        let (active, z) = codes.token(token);
        let moved: Vec<f32> = active
            .iter()
            .zip(z)
            .map(|(i, z)| {
                let at = features.iter().position(|j| j == i);
                z + at.map_or(0.0, |at| own.values()[0][at])
            })
            .collect();
        changed.push(active, &moved);
    }
    let (before, after) = (dictionary.decode(&codes), dictionary.decode(&changed));
    let expected: Vec<f32> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
    assert!(expected.iter().any(|x| x.abs() > 0.1));
    assert_close(&own.change(&x), &expected, 1e-5);
    let twice: Vec<f32> = expected.iter().map(|x| 2.0 * x).collect();
    assert_close(&own.scaled(2.0).unwrap().change(&x), &twice, 1e-5);
}

fn saved_sae(dir: &std::path::Path, sae: &Sae, model: &ModelRef) -> Manifest {
    let partial = PartialDir::open(dir).unwrap();
    pullback_sae::saelens::save(
        sae,
        &pullback_sae::saelens::SaeLensMetadata::default(),
        partial.path(),
    )
    .unwrap();
    let manifest = Manifest::new("sae", 0)
        .with_site("blocks.1.hook_resid_post")
        .with_model(model.clone());
    partial.finish(manifest).unwrap()
}

#[test]
fn files_give_back_the_adapter_and_refuse_other_models_sites_and_dictionaries() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let reference = |digest: &str| ModelRef {
        name: "tiny".to_owned(),
        digest: digest.to_owned(),
    };
    let own = reference(model.digest());
    let sae_path = dir.path().join("sae");
    let sae = saved_sae(&sae_path, &dictionary(3), &own);
    saved_sae(&dir.path().join("other-sae"), &dictionary(5), &own);
    let write = |name: &str, support: &Support, site: &str| {
        let out = dir.path().join(name);
        let partial = PartialDir::open(&out).unwrap();
        let adapter = Adapter::Feature(adapter(support.clone(), 1.0));
        adapter.save(partial.path(), &model, "tiny").unwrap();
        let manifest = Manifest::new(ADAPTER_KIND, 0)
            .with_site(site)
            .with_model(own.clone())
            .with_parent(ParentRef {
                kind: "sae".to_owned(),
                digest: sae.digest(),
                path: sae_path.display().to_string(),
            });
        partial.finish(manifest).unwrap();
        out
    };
    let site = "blocks.1.hook_resid_post";
    for (number, support) in supports().iter().enumerate() {
        let out = write(&format!("adapter{number}"), support, site);
        let loaded = Adapter::load(&out, &own, &model, None).unwrap();
        let Adapter::Feature(loaded) = loaded else {
            panic!("{} is not over features", loaded.basis());
        };
        let original = adapter(support.clone(), 1.0);
        assert_eq!(loaded.support(), support);
        assert_eq!(loaded.values(), original.values());
        let x = random(8, 6 * 32);
        assert_eq!(loaded.change(&x), original.change(&x));
    }
    let out = dir.path().join("adapter2");
    let error = |result: Result<Adapter, AdapterError>| result.map(|_| ()).unwrap_err().to_string();
    let other = dir.path().join("other-sae");
    assert_has(
        &error(Adapter::load(&out, &own, &model, Some(&other))),
        &["other-sae", "sae"],
    );
    assert_has(
        &error(Adapter::load(&out, &reference("sha256:00"), &model, None)),
        &["model"],
    );
    let elsewhere = write("elsewhere", &supports()[0], "blocks.2.hook_resid_post");
    assert_has(
        &error(Adapter::load(&elsewhere, &own, &model, None)),
        &["site", "blocks.1", "blocks.2"],
    );
    let gone = dir.path().join("nowhere");
    assert_has(
        &error(Adapter::load(&out, &own, &model, Some(&gone))),
        &["nowhere", "--sae"],
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let new = |support: Support, values: Vec<Vec<f32>>| {
        FeatureAdapter::new(Site::resid_post(1), dictionary(3), support, values).map(|_| ())
    };
    let bias = |features: Vec<u32>| Support::Bias {
        features,
        active_only: true,
    };
    assert!(new(bias(vec![0, 23]), vec![vec![1.0, 2.0]]).is_ok());
    for (support, values) in [
        (bias(vec![0, 24]), vec![vec![1.0, 2.0]]),
        (bias(vec![3, 3]), vec![vec![1.0, 2.0]]),
        (bias(vec![3, 4]), vec![vec![1.0]]),
        (
            Support::Sparse {
                pairs: vec![(0, 24)],
            },
            vec![vec![1.0]],
        ),
        (
            Support::LowRank {
                rank: 1,
                read: vec![(0, 1)],
                write: vec![(0, 0)],
            },
            vec![vec![1.0], vec![1.0]],
        ),
    ] {
        assert!(new(support.clone(), values).is_err(), "{support:?}");
    }
    // A transcoder writes elsewhere than it reads.
    let parts = SaeParts {
        selection: Selection::Relu,
        encoder: vec![0.1; 6 * 4],
        encoder_bias: vec![0.0; 6],
        decoder: vec![0.1; 6 * 3],
        decoder_bias: vec![0.0; 3],
        input_bias: vec![0.0; 4],
        normalization: pullback_sae::Normalization::None,
        skip: None,
    };
    let transcoder = Arc::new(Sae::new(parts).unwrap());
    let error = FeatureAdapter::new(
        Site::resid_post(1),
        transcoder,
        bias(vec![0]),
        vec![vec![1.0]],
    );
    assert_has(&error.unwrap_err().to_string(), &["transcoder"]);
}

#[test]
fn merged_adapters_add_the_sum_of_their_changes() {
    let x = random(8, 6 * 32);
    for support in supports() {
        let (a, b) = (adapter(support.clone(), 1.0), adapter(support, 0.3));
        let pair = [Adapter::Feature(a.clone()), Adapter::Feature(b.clone())];
        let Adapter::Feature(sum) = Adapter::merged(&pair).unwrap() else {
            panic!("over features");
        };
        let expected: Vec<f32> = a
            .change(&x)
            .iter()
            .zip(b.change(&x))
            .map(|(a, b)| a + b)
            .collect();
        assert_close(&sum.change(&x), &expected, 1e-5);
    }
    let (residual, _) = common::usual(3, 32, 2);
    let (other, _) = common::usual(9, 32, 3);
    let tensor = Tensor::<2>::from_data(TensorData::new(x, [6, 32]), &Device::flex());
    let both = values(residual.change(tensor.clone()) + other.change(tensor.clone()));
    let pair = [Adapter::Residual(residual), Adapter::Residual(other)];
    let Adapter::Residual(sum) = Adapter::merged(&pair).unwrap() else {
        panic!("residual");
    };
    assert_eq!(sum.rank(), 5);
    assert_close(&values(sum.change(tensor)), &both, 1e-5);
    let mixed = [
        pair[0].clone(),
        Adapter::Feature(adapter(supports()[0].clone(), 1.0)),
    ];
    assert_has(
        &Adapter::merged(&mixed).unwrap_err().to_string(),
        &["residual", "bias", "composed"],
    );
}
