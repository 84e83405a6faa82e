//! Cross-entropies with a dictionary in the model, against computations from logits by hand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::cell::Cell;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use common::base::{self, Setting, assert_has, config, interrupted_at, setting_with, values};
use common::{identity_sae, random, random_sae};
use pullback_activations::{ActivationStore, harvest_sites, open_stores};
use pullback_artifact::Control;
use pullback_model::{Edit, Input, Intervention, Model, Rows, RunOptions, Site};
use pullback_sae::{
    CrossEntropy, Dictionary, Normalization, Sae, SaeError, SaeParts, Selection, Sites, Splice,
    cross_entropy_score, cross_entropy_scores, splice_transcoder,
};

/// A residual stream after a block (kept streams are used) and another site (the model runs from the tokens).
fn settings() -> [Setting; 2] {
    ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"].map(|name| {
        let mut config = config();
        config.site = name.parse().unwrap();
        setting_with(&config)
    })
}

fn score(setting: &Setting, sae: Sae, sequences: usize) -> CrossEntropy {
    cross_entropy_score(
        &setting.model,
        &setting.store,
        Arc::new(sae),
        sequences,
        &Control::hidden(),
    )
    .unwrap()
}

/// Puts given activations at the site.
struct Put(Tensor<2>);

impl Edit for Put {
    fn apply(&self, _x: Tensor<2>, _rows: &Rows) -> Tensor<2> {
        self.0.clone()
    }

    fn describe(&self) -> String {
        "given activations".to_owned()
    }
}

/// Mean cross-entropy over the held-out sequences, one at a time and from logits, with `change` made to the activations
/// `[context, d]` at the site; and the logarithms of all predictions that count.
fn by_hand(
    model: &Model,
    setting: &Setting,
    sequences: usize,
    change: impl Fn(&[f32]) -> Vec<f32>,
) -> (f64, Vec<Vec<f64>>) {
    let (store, site) = (&setting.store, setting.store.info().site);
    let (context, d) = (store.info().context, store.info().d);
    let (mut total, mut predictions) = (0.0, Vec::new());
    for start in store.sequence_starts(true).into_iter().take(sequences) {
        let ids: Vec<u32> = (start..start + context)
            .map(|row| store.token(row))
            .collect();
        let input = Input::uniform(ids.clone(), 1);
        let record = [site];
        let options = RunOptions {
            record: &record,
            ..RunOptions::default()
        };
        let x = values(
            model
                .run(input.clone(), &options)
                .unwrap()
                .take(site)
                .unwrap(),
        );
        let put = Tensor::from_data(
            TensorData::new(change(&x), [context, d]),
            (&Device::flex(), model.dtype()),
        );
        let interventions = [Intervention::new(site, Arc::new(Put(put)))];
        let options = RunOptions {
            interventions: &interventions,
            ..RunOptions::default()
        };
        let out = model.run(input, &options).unwrap();
        let logits: Vec<f64> = model.logits(out.stream).into_data().iter::<f64>().collect();
        for (position, logits) in logits.chunks_exact(model.config().d_vocab).enumerate() {
            if (1..context - 1).contains(&position) {
                let top = logits.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = logits.iter().map(|logit| (logit - top).exp()).sum();
                let logs: Vec<f64> = logits.iter().map(|x| x - top - sum.ln()).collect();
                total -= logs[ids[position + 1] as usize];
                predictions.push(logs);
            }
        }
    }
    assert_eq!(predictions.len(), sequences * (context - 2));
    (total / predictions.len() as f64, predictions)
}

#[test]
fn a_perfect_dictionary_changes_nothing_and_an_empty_one_is_zero_ablation() {
    for setting in settings() {
        let perfect = score(&setting, identity_sae(32), 10);
        assert!(
            (perfect.ce_spliced - perfect.ce_clean).abs() < 1e-6,
            "{perfect:?}"
        );
        assert!((perfect.ce_score - 1.0).abs() < 1e-4, "{perfect:?}");
        assert!(perfect.kl_spliced.abs() < 1e-6, "{perfect:?}");
        assert!((perfect.kl_score - 1.0).abs() < 1e-4, "{perfect:?}");
        let nothing = Sae::top_k(
            3,
            vec![1.0; 64 * 32],
            vec![0.0; 64],
            vec![0.0; 64 * 32],
            vec![0.0; 32],
        )
        .unwrap();
        let nothing = score(&setting, nothing, 10);
        assert!(
            (nothing.ce_spliced - nothing.ce_zero).abs() < 1e-6,
            "{nothing:?}"
        );
        assert!(nothing.ce_score.abs() < 1e-4, "{nothing:?}");
        assert!(nothing.kl_score.abs() < 1e-4, "{nothing:?}");
        assert!((nothing.ce_clean - perfect.ce_clean).abs() < 1e-12);
        assert!(
            (nothing.ce_zero - nothing.ce_clean).abs() > 1e-2,
            "the site does not matter: {nothing:?}"
        );
    }
}

#[test]
fn the_three_cross_entropies_are_those_from_logits() {
    for setting in settings() {
        let sae = random_sae(8, 32, 64, 6);
        // Neither one batch nor whole batches of eight; and fewer than there are.
        for sequences in [10, 3] {
            let found = score(&setting, sae.clone(), sequences);
            let model = &setting.model;
            let keep_first = |x: &[f32], rest: Vec<f32>| [&x[..32], &rest[32..]].concat();
            let (clean, predicted) = by_hand(model, &setting, sequences, <[f32]>::to_vec);
            let (zero, with_zero) = by_hand(model, &setting, sequences, |x| {
                keep_first(x, vec![0.0; x.len()])
            });
            let (spliced, with_splice) = by_hand(model, &setting, sequences, |x| {
                let rows: Vec<f32> = x
                    .chunks_exact(32)
                    .flat_map(|x| sae.decode(&sae.encode(x)))
                    .collect();
                keep_first(x, rows)
            });
            assert!((found.ce_clean - clean).abs() < 1e-5, "{found:?} {clean}");
            assert!((found.ce_zero - zero).abs() < 1e-5, "{found:?} {zero}");
            assert!(
                (found.ce_spliced - spliced).abs() < 1e-5,
                "{found:?} {spliced}"
            );
            let divergence = |other: &[Vec<f64>]| {
                let rows = predicted.iter().zip(other).map(|(clean, other)| {
                    let terms = clean.iter().zip(other).map(|(a, b)| a.exp() * (a - b));
                    terms.sum::<f64>()
                });
                rows.sum::<f64>() / predicted.len() as f64
            };
            let (kl_spliced, kl_zero) = (divergence(&with_splice), divergence(&with_zero));
            assert!(
                (found.kl_spliced - kl_spliced).abs() < 1e-5,
                "{found:?} {kl_spliced}"
            );
            assert!(
                (found.kl_zero - kl_zero).abs() < 1e-5,
                "{found:?} {kl_zero}"
            );
            assert!(kl_zero > 1e-3);
            let expected = (kl_zero - kl_spliced) / kl_zero;
            assert!((found.kl_score - expected).abs() < 1e-3 * expected.abs().max(1.0));
            let expected = (zero - spliced) / (zero - clean);
            assert!(
                (found.ce_score - expected).abs() < 1e-3 * expected.abs().max(1.0),
                "{found:?} {expected}"
            );
        }
    }
}

#[test]
fn a_splice_keeps_what_stands_before_its_first_position() {
    let sae = random_sae(3, 4, 9, 2);
    let splice = Splice {
        dictionary: Arc::new(sae.clone()),
        first_position: 2,
    };
    let x: Vec<f32> = common::random(1, 6 * 4);
    let tensor = |dtype| {
        Tensor::<2>::from_data(TensorData::new(x.clone(), [6, 4]), (&Device::flex(), dtype))
    };
    // Two sequences of three positions, the first of which is position 1: one row of each is kept.
    let rows = Rows::uniform(2, 3, 1);
    let found = values(splice.apply(tensor(DType::F32), &rows));
    let all = sae.decode(&sae.encode(&x));
    for row in 0..6 {
        let expected = if row % 3 == 0 { &x } else { &all };
        assert_eq!(
            found[row * 4..(row + 1) * 4],
            expected[row * 4..(row + 1) * 4],
            "row {row}"
        );
    }
    assert_eq!(splice.apply(tensor(DType::F64), &rows).dtype(), DType::F64);
}

/// A dictionary that reads width `d` and makes width `d_out`.
fn wide(d: usize, d_out: usize) -> Sae {
    Sae::new(SaeParts {
        selection: Selection::TopK { k: 5 },
        encoder: random(1, 40 * d),
        encoder_bias: vec![0.0; 40],
        decoder: random(2, 40 * d_out),
        decoder_bias: random(3, d_out),
        input_bias: vec![0.0; d],
        normalization: Normalization::None,
        skip: None,
    })
    .unwrap()
}

#[test]
fn transcoders_and_crosscoders_are_scored_and_spliced_at_their_own_sites() {
    let dir = tempfile::tempdir().unwrap();
    let (model, corpus) = (base::tiny(), base::corpus(dir.path()));
    let sites: Vec<Site> = ["blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"]
        .map(|name| name.parse().unwrap())
        .to_vec();
    let out = dir.path().join("stores");
    let control = Control::hidden();
    harvest_sites(&model, "tiny", &corpus, (&config(), &sites), &out, &control).unwrap();
    let mut stores = open_stores(&out).unwrap();
    let (written, read) = (stores.pop().unwrap(), stores.pop().unwrap());
    let sequences = 4;
    let starts: Vec<usize> = read.sequence_starts(true)[..sequences].to_vec();
    let transcoder: Arc<dyn Dictionary> = Arc::new(wide(32, 32));
    let crosscoder: Arc<dyn Dictionary> = Arc::new(wide(64, 64));
    let judged = |dictionary, inputs: &[&ActivationStore], outputs: &[&ActivationStore]| {
        let sites = Sites {
            inputs: inputs.to_vec(),
            outputs: outputs.to_vec(),
        };
        cross_entropy_scores(&model, &sites, dictionary, sequences, &control).unwrap()
    };
    let one = judged(&transcoder, &[&read], &[&written]);
    let two = judged(&crosscoder, &[&read, &written], &[&read, &written]);
    assert_eq!((one.len(), two.len()), (1, 2));

    let rows = |store: &ActivationStore, start: usize| -> Vec<Vec<f32>> {
        (start..start + 16)
            .map(|row| store.row(row).to_vec())
            .collect()
    };
    // What each dictionary makes of each sequence, its first position as the model has it.
    let made = |of_crosscoder: Option<usize>, sequence: usize, clean: &[f32]| -> Vec<f32> {
        let (x, y) = (
            rows(&read, starts[sequence]),
            rows(&written, starts[sequence]),
        );
        let mut out = clean.to_vec();
        for position in 1..16 {
            let (sae, x, span) = match of_crosscoder {
                None => (&transcoder, x[position].clone(), 0..32),
                Some(site) => {
                    let both = [&x[position][..], &y[position]].concat();
                    (&crosscoder, both, 32 * site..32 * (site + 1))
                }
            };
            let made = sae.decode(&sae.encode(&x));
            out[position * 32..(position + 1) * 32].copy_from_slice(&made[span]);
        }
        out
    };
    let by_hand_at = |store: ActivationStore, of_crosscoder: Option<usize>| {
        let sequence = Cell::new(0);
        let setting = Setting {
            dir: tempfile::tempdir().unwrap(),
            model: base::tiny(),
            store,
        };
        by_hand(&model, &setting, sequences, |clean| {
            let number = sequence.replace(sequence.get() + 1);
            made(of_crosscoder, number, clean)
        })
    };
    let open = |number: usize| open_stores(&out).unwrap().remove(number);
    let (expected, predictions) = by_hand_at(open(1), None);
    assert!((one[0].ce_spliced - expected).abs() < 1e-4);
    for (site, score) in two.iter().enumerate() {
        let (expected, _) = by_hand_at(open(site), Some(site));
        assert!(
            (score.ce_spliced - expected).abs() < 1e-4,
            "{score:?} {expected}"
        );
        assert!((score.ce_clean - one[0].ce_clean).abs() < 1e-6);
        assert!(score.kl_spliced > 1e-3);
    }

    // The same by two edits in one run.
    let (keep, put) = splice_transcoder(transcoder.clone(), 1);
    let interventions = [
        Intervention::new(sites[0], keep),
        Intervention::new(sites[1], put),
    ];
    let options = RunOptions {
        interventions: &interventions,
        ..RunOptions::default()
    };
    let ids: Vec<u32> = (starts[0]..starts[0] + 16)
        .map(|row| read.token(row))
        .collect();
    let run = model.run(Input::tokens(&ids), &options).unwrap();
    let logits: Vec<f64> = model.logits(run.stream).into_data().iter::<f64>().collect();
    for (position, logs) in predictions[..14].iter().enumerate() {
        let logits = &logits[(position + 1) * logs.len()..][..logs.len()];
        let shift = logits[0] - logs[0];
        for (logit, log) in logits.iter().zip(logs) {
            assert!((logit - log - shift).abs() < 1e-3);
        }
    }
}

#[test]
fn what_cannot_be_scored_is_refused_in_words() {
    let mut config = config();
    config.plan.held_out_tokens = 0;
    let setting = setting_with(&config);
    let run = |setting: &Setting, d: usize, control: &Control| {
        let sae = Arc::new(identity_sae(d));
        cross_entropy_score(&setting.model, &setting.store, sae, 10, control).unwrap_err()
    };
    assert_has(
        &run(&setting, 32, &Control::hidden()).to_string(),
        &["store", "no held-out"],
    );
    let setting = setting_with(&common::base::config());
    assert_has(
        &run(&setting, 31, &Control::hidden()).to_string(),
        &["width 31", "width 32"],
    );
    let error = run(&setting, 32, &interrupted_at("cross-entropy", 2));
    assert!(matches!(error, SaeError::Interrupted(_)), "{error}");
    assert_eq!(setting.store.info().site, Site::resid_post(1));
}
