//! Training in every basis and for every objective: losses fall, budgets are kept, interrupted work goes on to the same
//! bytes, other work is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use common::base::{assert_has, assert_same_files, interrupted_at, tiny, values};
use common::sae::random_sae;
use common::{pairs, samples};
use pullback_adapters::{
    Activation, Adapter, AdapterError, Basis, Length, Objective, Pair, Sample, Sparsity,
    TrainConfig, TrainInput, TrainedAdapter, load_training, read_samples, train,
};
use pullback_artifact::{Control, ParentRef};
use pullback_model::{Input, Intervention, Message, Model, RunOptions, Site};

const M: usize = 48;

/// Every basis, by a name.
fn bases() -> Vec<(&'static str, Basis)> {
    let bias = |active_only, sparsity| Basis::Bias {
        active_only,
        sparsity,
    };
    vec![
        (
            "residual",
            Basis::Residual {
                rank: 2,
                activation: Activation::Silu,
            },
        ),
        (
            "lora",
            Basis::Lora {
                rank: 2,
                alpha: 4.0,
                matrices: vec!["q".to_owned(), "down".to_owned()],
                blocks: vec![2, 1],
            },
        ),
        ("dense-bias", bias(false, Sparsity::None)),
        ("active-bias", bias(true, Sparsity::None)),
        ("top-bias", bias(false, Sparsity::Top { count: 7 })),
        (
            "l1-bias",
            bias(
                true,
                Sparsity::L1 {
                    weight: 0.4,
                    count: Some(20),
                },
            ),
        ),
        (
            "gated-bias",
            bias(
                false,
                Sparsity::HardConcrete {
                    weight: 0.02,
                    count: Some(20),
                },
            ),
        ),
        ("sparse", Basis::Sparse { weights: 30 }),
        (
            "low-rank",
            Basis::LowRank {
                rank: 2,
                entries: None,
            },
        ),
        (
            "sparse-factors",
            Basis::LowRank {
                rank: 2,
                entries: Some(40),
            },
        ),
    ]
}

fn config(basis: Basis) -> TrainConfig {
    let lora = matches!(basis, Basis::Lora { .. });
    TrainConfig {
        length: Length::Steps(16),
        batch: 3,
        lr: 0.05,
        change_penalty: if lora { 0.0 } else { 0.1 },
        evaluate_every: Some(4),
        ..TrainConfig::of(basis, Site::resid_post(1), 4)
    }
}

fn input<'a>(model: &'a Model, samples: &'a [Sample]) -> TrainInput<'a> {
    let mut input = TrainInput::new(model, "tiny", samples);
    let parent = ParentRef {
        kind: "sae".to_owned(),
        digest: "sha256:5ae".to_owned(),
        path: "sae".to_owned(),
    };
    input.dictionary = Some((Arc::new(random_sae(3, 32, M, 6)), parent));
    input
}

fn trained(input: &TrainInput<'_>, config: &TrainConfig, out: &Path) -> TrainedAdapter {
    train(input, config, out, &Control::hidden()).unwrap()
}

#[test]
fn every_basis_learns_within_its_budget_and_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let samples = samples();
    let input = input(&model, &samples);
    for (name, basis) in bases() {
        let config = config(basis);
        let whole = dir.path().join(name);
        let trained = trained(&input, &config, &whole);
        let result = &trained.result;
        assert!(
            result.loss_after < 0.97 * result.loss_before,
            "{name}: {result:?}"
        );
        assert_eq!((result.steps, result.kept_step), (16, 16), "{name}");
        let most = match name {
            "residual" => 2 * 65,
            "lora" => 2 * 2 * (64 + 80),
            "top-bias" => 7,
            "l1-bias" | "gated-bias" => 20,
            "sparse" => 30,
            "low-rank" => 4 * M,
            "sparse-factors" => 40,
            _ => M,
        };
        assert!(
            result.parameters <= most && result.nonzero > most / 4,
            "{name}: {result:?}"
        );
        let steps: Vec<usize> = trained.training.held_out.iter().map(|(s, _)| *s).collect();
        assert_eq!(steps, [0, 4, 8, 12, 16]);
        assert_eq!(load_training(&whole).unwrap().0, *result);
        for times in [1, 7] {
            let out = dir.path().join(format!("{name}-{times}"));
            let control = interrupted_at("adapt", times);
            let error = pullback_adapters::train(&input, &config, &out, &control).unwrap_err();
            assert!(matches!(error, AdapterError::Interrupted(_)), "{error}");
            train(&input, &config, &out, &Control::hidden()).unwrap();
            assert_same_files(&out, &whole);
        }
    }
}

/// Samples with worse answers.
fn preferences() -> Vec<Sample> {
    let pairs = pairs().into_iter();
    pairs
        .map(|pair| Sample::Pair {
            rejected: Some(if pair.answer == "arr" { "no" } else { "yes we" }.to_owned()),
            pair,
        })
        .collect()
}

#[test]
fn every_objective_is_lowered_in_features_and_in_weights() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let samples = preferences();
    let mut input = input(&model, &samples);
    input.teacher = Some(&model);
    let objectives = [
        Objective::Dpo { beta: 0.5 },
        Objective::Orpo { weight: 0.5 },
    ];
    for objective in objectives {
        for (name, basis) in bases() {
            if !["residual", "lora", "sparse"].contains(&name) {
                continue;
            }
            let config = TrainConfig {
                objective,
                ..config(basis)
            };
            let out = dir.path().join(format!("{name}-{}", objective.name()));
            let result = trained(&input, &config, &out).result;
            if let Objective::Dpo { .. } = objective {
                // The model itself prefers nothing.
                assert!((result.loss_before - std::f64::consts::LN_2).abs() < 1e-6);
            }
            assert!(
                result.loss_after < 0.97 * result.loss_before,
                "{name} {objective:?}: {result:?}"
            );
        }
    }
}

#[test]
fn a_student_comes_closer_to_a_changed_model_and_is_none_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (model, mut teacher) = (tiny(), tiny());
    let samples = samples();
    let mut taught = input(&model, &samples);
    // The teacher is the model with an adapter in its weights.
    let lora = trained(
        &taught,
        &config(bases()[1].1.clone()),
        &dir.path().join("lora"),
    );
    lora.adapter.attach(&mut teacher, &mut Vec::new()).unwrap();
    taught.teacher = Some(&teacher);
    let distill = TrainConfig {
        objective: Objective::Distill,
        ..config(bases()[0].1.clone())
    };
    let result = trained(&taught, &distill, &dir.path().join("student")).result;
    assert!(
        result.loss_before > 0.05 && result.loss_after < 0.6 * result.loss_before,
        "{result:?}"
    );
    let mut own = input(&model, &samples);
    own.teacher = Some(&model);
    let result = trained(&own, &distill, &dir.path().join("self")).result;
    assert!(result.loss_before.abs() < 1e-5, "{result:?}");
}

#[test]
fn a_leash_keeps_the_predictions_near() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let samples = samples();
    let input = input(&model, &samples);
    let mut distances = Vec::new();
    for leash in [0.0, 5.0, 50.0] {
        let config = TrainConfig {
            leash,
            change_penalty: 0.0,
            ..config(bases()[0].1.clone())
        };
        let trained = trained(&input, &config, &dir.path().join(leash.to_string()));
        let Adapter::Residual(adapter) = trained.adapter else {
            panic!("residual");
        };
        let ids = [5_u32, 60, 7, 100, 33];
        let run = |interventions: &[Intervention]| {
            let options = RunOptions {
                interventions,
                ..RunOptions::default()
            };
            let out = model.run(Input::tokens(&ids), &options).unwrap();
            model.logits(out.stream)
        };
        let edit = [Intervention::new(adapter.site, adapter.into())];
        let moved = values(run(&edit) - run(&[]));
        distances.push(moved.iter().map(|x| x * x).sum::<f32>().sqrt());
    }
    assert!(
        distances[1] < 0.9 * distances[0] && distances[2] < 0.6 * distances[1],
        "{distances:?}"
    );
}

#[test]
fn training_ends_early_with_the_best_state() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let samples = samples();
    let input = input(&model, &samples);
    for name in ["residual", "sparse"] {
        let basis = bases().into_iter().find(|b| b.0 == name).unwrap().1;
        // So high a rate that the held-out loss rises again.
        let config = TrainConfig {
            length: Length::Steps(200),
            lr: 0.6,
            evaluate_every: Some(2),
            patience: Some(3),
            ..config(basis)
        };
        let out = dir.path().join(name);
        let trained = trained(&input, &config, &out);
        let (result, curve) = (&trained.result, &trained.training.held_out);
        assert!(result.steps < 200, "{name}: {result:?}");
        let best = curve.iter().map(|x| x.1).fold(f64::MAX, f64::min);
        assert_eq!(result.loss_after, best);
        assert_eq!(result.kept_step + 6, result.steps, "{name}");
        // The adapter is that of the best step.
        let shorter = TrainConfig {
            patience: Some(4),
            ..config.clone()
        };
        let again = pullback_adapters::train(
            &input,
            &shorter,
            &dir.path().join(format!("{name}-longer")),
            &Control::hidden(),
        )
        .unwrap();
        assert!(again.result.loss_after <= result.loss_after);
    }
}

#[test]
fn divergence_is_an_error_and_leaves_the_best_state() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let samples = samples();
    let input = input(&model, &samples);
    let config = TrainConfig {
        lr: 1e38,
        change_penalty: 0.0,
        ..config(Basis::Residual {
            rank: 2,
            activation: Activation::Identity,
        })
    };
    let out = dir.path().join("adapter");
    let error = pullback_adapters::train(&input, &config, &out, &Control::hidden()).unwrap_err();
    assert_has(
        &error.to_string(),
        &["diverged at step", "adapter", "smaller"],
    );
    let (result, _) = load_training(&out).unwrap();
    assert!(result.loss_after.is_finite() && result.loss_after <= result.loss_before);
}

#[test]
fn data_of_every_form_is_read_and_what_has_no_answer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    let lines = [
        r#"{"prompt":"a","answer":"b"}"#,
        r#"{"prompt":"a","answer":"b","rejected":"c"}"#,
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"rejected":"c"}"#,
        r#"{"text":"plain"}"#,
    ];
    std::fs::write(&path, lines.join("\n")).unwrap();
    let samples = read_samples(&path).unwrap();
    assert_eq!(samples.len(), 5);
    let pair = Pair {
        prompt: "a".to_owned(),
        answer: "b".to_owned(),
    };
    assert_eq!(samples[0], Sample::from(pair));
    assert_eq!(samples[1].rejected(), Some("c"));
    assert_eq!(
        samples[2],
        Sample::Chat {
            messages: vec![Message::user("a"), Message::assistant("b")],
            rejected: None
        }
    );
    assert_eq!(samples[3].rejected(), Some("c"));
    for (line, words) in [
        (
            r#"{"messages":[{"role":"user","content":"a"}]}"#,
            "assistant",
        ),
        (r#"{"messages":[]}"#, "assistant"),
        (r#"{"prompt":"a"}"#, "answer is missing"),
        (r#"{"text":"a","rejected":"b"}"#, "do not go together"),
        (r#"{"text":7}"#, "no string"),
        (r#"{"txt":"a"}"#, "\"txt\""),
    ] {
        std::fs::write(&path, format!("{}\n{line}\n", lines[0])).unwrap();
        let error = read_samples(&path).unwrap_err().to_string();
        assert_has(&error, &["data.jsonl: line 2", words]);
    }
}

#[test]
fn what_does_not_go_together_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let plain = samples();
    let out = dir.path().join("adapter");
    let sparse = || config(Basis::Sparse { weights: 9 });
    let refused = |input: &TrainInput<'_>, config: &TrainConfig| {
        let result = pullback_adapters::train(input, config, &out, &Control::hidden());
        assert!(!out.exists());
        result.map(|_| ()).unwrap_err().to_string()
    };
    let whole = input(&model, &plain);
    let mut bare = whole.clone();
    bare.dictionary = None;
    assert_has(&refused(&bare, &sparse()), &["sparse", "--sae"]);
    let mut narrow = whole.clone();
    let parent = whole.dictionary.as_ref().unwrap().1.clone();
    narrow.dictionary = Some((Arc::new(random_sae(3, 16, M, 6)), parent));
    assert_has(&refused(&narrow, &sparse()), &["16", "32"]);
    let dpo = TrainConfig {
        objective: Objective::Dpo { beta: 0.1 },
        ..sparse()
    };
    assert_has(&refused(&whole, &dpo), &["rejected", "dpo", "a sea"]);
    let distill = TrainConfig {
        objective: Objective::Distill,
        ..sparse()
    };
    assert_has(&refused(&whole, &distill), &["--teacher"]);
    let too_many = config(Basis::Bias {
        active_only: true,
        sparsity: Sparsity::Top { count: M + 1 },
    });
    assert_has(&refused(&whole, &too_many), &["49", "48"]);
    let penalised = TrainConfig {
        change_penalty: 1.0,
        ..config(bases()[1].1.clone())
    };
    assert_has(&refused(&whole, &penalised), &["change penalty", "--leash"]);
    let tight = Basis::LowRank {
        rank: 1,
        entries: None,
    };
    let error = tight.with_budget(50, model.config(), M).unwrap_err();
    assert_has(&error.to_string(), &["50", "96", "low-rank"]);
}

#[test]
fn plain_text_counts_every_token_in_windows() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let text = "the cat sat on the mat and the old sailor told the tale of the great white whale";
    let texts: Vec<Sample> = (0..3)
        .map(|_| Sample::Text {
            text: text.to_owned(),
        })
        .collect();
    let input = input(&model, &texts);
    let config = TrainConfig {
        context: 8,
        length: Length::Steps(1),
        batch: 100,
        ..config(bases()[0].1.clone())
    };
    let trained = trained(&input, &config, &dir.path().join("adapter"));
    // One window after the other, by hand.
    let ids = model.tokenizer().encode_with_bos(text, true).unwrap();
    let (mut total, mut count) = (0.0, 0);
    for window in ids.chunks(8).filter(|window| window.len() > 1) {
        let out = model
            .run(Input::tokens(window), &RunOptions::default())
            .unwrap();
        let rows = window.len() - 1;
        let stream = out.stream.narrow(0, 0, rows);
        let losses = values(
            model
                .cross_entropy(
                    Tensor::<2>::from_data(
                        TensorData::new(values(stream), [rows, 32]),
                        model.device(),
                    ),
                    &window[1..],
                )
                .unwrap(),
        );
        total += losses.iter().map(|&x| f64::from(x)).sum::<f64>();
        count += rows;
    }
    let expected = total / f64::from(u32::try_from(count).unwrap());
    assert!((trained.training.train[0] - expected).abs() < 1e-5);
    assert!((trained.result.loss_before - expected).abs() < 1e-5);
}

fn around(blocks: &[usize], objective: Objective) -> TrainConfig {
    let basis = Basis::Lora {
        rank: 4,
        alpha: 8.0,
        matrices: vec![
            "q".to_owned(),
            "o".to_owned(),
            "up".to_owned(),
            "down".to_owned(),
        ],
        blocks: blocks.to_vec(),
    };
    TrainConfig {
        objective,
        around: true,
        length: Length::Steps(40),
        batch: 4,
        lr: 0.01,
        ..TrainConfig::of(basis, Site::resid_post(1), 2)
    }
}

#[test]
fn updates_around_a_dictionary_close_a_part_of_its_gap() {
    let dir = tempfile::tempdir().unwrap();
    let (model, samples) = (tiny(), samples());
    let sae = Arc::new(random_sae(3, 32, M, 6));
    let parent = ParentRef {
        kind: "sae".to_owned(),
        digest: "sha256:0".to_owned(),
        path: "sae".to_owned(),
    };
    let input = TrainInput {
        dictionary: Some((Arc::clone(&sae), parent)),
        ..TrainInput::new(&model, "tiny", &samples)
    };
    for (number, blocks) in [&[2_usize][..], &[0, 1, 2], &[1]].iter().enumerate() {
        for objective in [Objective::Distill, Objective::NextToken] {
            let config = around(blocks, objective);
            let out = dir.path().join(format!("{number}-{}", objective.name()));
            let trained = train(&input, &config, &out, &Control::hidden()).unwrap();
            let (result, gap) = (&trained.result, trained.result.gap.unwrap());
            // A model that has learned nothing may lose nothing by a dictionary; its predictions are others all the same.
            assert_ne!(gap.ce_spliced, gap.ce_clean);
            assert!(
                result.loss_after < result.loss_before,
                "{blocks:?}: {result:?}"
            );
            if objective == Objective::NextToken {
                assert_eq!(result.loss_before, gap.ce_spliced);
                assert_eq!(result.loss_after, gap.ce_adapted);
            } else {
                // The divergence from the model as it is: a part of it goes.
                assert!(
                    result.loss_after < 0.9 * result.loss_before,
                    "{blocks:?}: {result:?}"
                );
            }
            assert_eq!(
                gap.closed(),
                (gap.ce_spliced - gap.ce_adapted) / (gap.ce_spliced - gap.ce_clean)
            );
            let manifest = pullback_artifact::Manifest::load(&out).unwrap();
            assert_eq!(manifest.parents.len(), 1);
            // It goes on to the same bytes.
            let again = dir
                .path()
                .join(format!("{number}-{}-again", objective.name()));
            train(&input, &config, &again, &interrupted_at("adapt", 7)).unwrap_err();
            train(&input, &config, &again, &Control::hidden()).unwrap();
            assert_same_files(&again, &out);
        }
    }
    let refused = |input: &TrainInput<'_>, config: &TrainConfig, words: &str| {
        let out = dir.path().join("refused");
        let error = train(input, config, &out, &Control::hidden()).unwrap_err();
        assert_has(&error.to_string(), &[words]);
    };
    let good = around(&[2], Objective::Distill);
    let none = TrainInput::new(&model, "tiny", &samples);
    refused(&none, &good, "--around");
    let leashed = TrainConfig {
        leash: 1.0,
        ..good.clone()
    };
    refused(&input, &leashed, "without a leash");
    let dpo = around(&[2], Objective::Dpo { beta: 0.1 });
    refused(&input, &dpo, "distill and next-token");
    let other = TrainConfig {
        around: true,
        ..TrainConfig::new(Site::resid_post(1), 2)
    };
    refused(&input, &other, "only updates of weights");
}

/// Logits with the dictionary spliced in by an intervention are those of training around it with updates of nothing, bit for bit.
#[test]
fn updates_of_nothing_leave_the_spliced_predictions_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (model, samples) = (tiny(), samples());
    let sae = Arc::new(random_sae(3, 32, M, 6));
    let parent = ParentRef {
        kind: "sae".to_owned(),
        digest: "sha256:0".to_owned(),
        path: "sae".to_owned(),
    };
    let input = TrainInput {
        dictionary: Some((Arc::clone(&sae), parent)),
        ..TrainInput::new(&model, "tiny", &samples)
    };
    let mut config = around(&[0, 2], Objective::NextToken);
    config.length = Length::Steps(1);
    let out = dir.path().join("lora");
    let result = train(&input, &config, &out, &Control::hidden())
        .unwrap()
        .result;
    let splice = pullback_sae::Splice {
        dictionary: sae,
        first_position: 1,
    };
    let interventions = [Intervention::new(Site::resid_post(1), Arc::new(splice))];
    let options = RunOptions {
        interventions: &interventions,
        ..RunOptions::default()
    };
    let (mut total, mut count) = (0.0, 0.0);
    for sample in pullback_adapters::split(&samples).1 {
        let Sample::Pair { pair, .. } = &sample else {
            continue;
        };
        let messages = [
            Message::new("user", &pair.prompt),
            Message::new("assistant", &pair.answer),
        ];
        let template = model.chat_template().unwrap();
        let (ids, mask) = template
            .encode_chat_with_mask(model.tokenizer(), &messages, false)
            .unwrap();
        let n = ids.len() - 1;
        let stream = model
            .run(Input::tokens(&ids[..n]), &options)
            .unwrap()
            .stream;
        let losses = values(model.cross_entropy(stream, &ids[1..]).unwrap());
        for at in 0..n {
            if mask[at + 1] {
                total += f64::from(losses[at]);
                count += 1.0;
            }
        }
    }
    let expected = total / count;
    // Sequences stand beside each other in other batches: sums of f32 are rounded at other places.
    assert!(
        (result.loss_before - expected).abs() < 1e-5 * expected,
        "{} {expected}",
        result.loss_before
    );
    assert_eq!(result.gap.unwrap().ce_spliced, result.loss_before);
}
