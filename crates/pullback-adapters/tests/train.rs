//! Training on pairs: the losses it reports, what it learns, interruption and refusals.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use common::base::{assert_close, assert_has, assert_same_files, interrupted_at, tiny, values};
use common::{as_samples, pairs, samples};
use pullback_adapters::{
    Activation, Adapter, AdapterError, Basis, Length, Pair, ResidualAdapter, TrainConfig,
    TrainInput, TrainedAdapter, held_out_answers, load_training, read_samples, split,
};
use pullback_artifact::{Control, Manifest};
use pullback_model::{Input, Intervention, Message, Model, RunOptions, Site};

fn residual(rank: usize, activation: Activation) -> Basis {
    Basis::Residual { rank, activation }
}

fn config() -> TrainConfig {
    TrainConfig {
        basis: residual(3, Activation::Gelu),
        length: Length::Epochs(5),
        batch: 2,
        lr: 0.05,
        change_penalty: 0.2,
        ..TrainConfig::new(Site::resid_post(1), 4)
    }
}

fn train(
    model: &Model,
    pairs: &[Pair],
    config: &TrainConfig,
    out: &Path,
    control: &Control,
) -> Result<TrainedAdapter, AdapterError> {
    let samples = as_samples(pairs);
    pullback_adapters::train(
        &TrainInput::new(model, "tiny", &samples),
        config,
        out,
        control,
    )
}

fn trained(model: &Model, config: &TrainConfig, out: &Path) -> TrainedAdapter {
    train(model, &pairs(), config, out, &Control::hidden()).unwrap()
}

/// The adapter, which is residual.
fn inner(trained: &TrainedAdapter) -> ResidualAdapter {
    match &trained.adapter {
        Adapter::Residual(adapter) => adapter.clone(),
        other => panic!("{} is not residual", other.basis()),
    }
}

/// Mean cross-entropy of the answers' tokens, one pair at a time with the whole model, from logits.
fn loss_by_hand(model: &Model, pairs: &[Pair], adapter: Option<&ResidualAdapter>) -> f64 {
    let interventions: Vec<Intervention> = adapter
        .into_iter()
        .map(|adapter| Intervention::new(adapter.site, adapter.clone().into()))
        .collect();
    let (mut total, mut count) = (0.0, 0.0);
    for pair in pairs {
        let messages = [
            Message::user(&pair.prompt),
            Message::assistant(&pair.answer),
        ];
        let template = model.chat_template().unwrap();
        let (ids, mask) = template
            .encode_chat_with_mask(model.tokenizer(), &messages, false)
            .unwrap();
        let options = RunOptions {
            interventions: &interventions,
            ..RunOptions::default()
        };
        let out = model.run(Input::uniform(ids.clone(), 1), &options).unwrap();
        let logits = values(model.logits(out.stream));
        let mut answer = Vec::new();
        for (position, logits) in logits.chunks_exact(model.config().d_vocab).enumerate() {
            if position + 1 < ids.len() && mask[position + 1] {
                let top = logits.iter().copied().fold(f32::MIN, f32::max);
                let sum: f64 = logits
                    .iter()
                    .map(|logit| f64::from(logit - top).exp())
                    .sum();
                let target = ids[position + 1];
                total += f64::from(top) + sum.ln() - f64::from(logits[target as usize]);
                count += 1.0;
                answer.push(target);
            }
        }
        // What is counted is the answer and the token that ends it.
        let text = model.tokenizer().decode(&answer, false);
        assert!(
            text.starts_with(&pair.answer) && text.contains("<|im_end|>"),
            "{text:?}"
        );
    }
    total / count
}

#[test]
fn losses_are_those_from_logits_and_fall() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let (train_pairs, held_out) = split(&pairs());
    assert_eq!((train_pairs.len(), held_out.len()), (6, 1));
    let out = dir.path().join("adapter");
    let trained = trained(&model, &config(), &out);
    let before = loss_by_hand(&model, &held_out, None);
    let after = loss_by_hand(&model, &held_out, Some(&inner(&trained)));
    assert!(
        (trained.result.loss_before - before).abs() < 1e-5,
        "{:?} {before}",
        trained.result
    );
    assert!(
        (trained.result.loss_after - after).abs() < 1e-5,
        "{:?} {after}",
        trained.result
    );
    assert!(
        after < 0.9 * before,
        "held-out loss went from {before} to {after}"
    );
    let before = loss_by_hand(&model, &train_pairs, None);
    let after = loss_by_hand(&model, &train_pairs, Some(&inner(&trained)));
    assert!(after < 0.8 * before, "loss went from {before} to {after}");

    let training = &trained.training;
    assert_eq!(training.train.len(), 15);
    let steps: Vec<usize> = training.held_out.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [0, 3, 6, 9, 12, 15]);
    assert_eq!(
        load_training(&out).unwrap(),
        (trained.result.clone(), training.clone())
    );
    let manifest = Manifest::load(&out).unwrap();
    manifest.check_site("blocks.1.hook_resid_post").unwrap();
    assert_eq!(manifest.model.as_ref().unwrap().digest, model.digest());
    manifest.verify_files(&out, &Control::hidden()).unwrap();
    let (loaded, _) = ResidualAdapter::load(&out).unwrap();
    assert_eq!(values(loaded.w_out), values(inner(&trained).w_out));
    assert_eq!(values(loaded.w_in), values(inner(&trained).w_in));
}

#[test]
fn the_first_loss_is_that_of_the_model_itself() {
    // One batch of all training pairs: its loss at the first step, when the adapter writes nothing.
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let config = TrainConfig {
        batch: 6,
        length: Length::Epochs(1),
        ..config()
    };
    let trained = trained(&model, &config, &dir.path().join("adapter"));
    let expected = loss_by_hand(&model, &split(&pairs()).0, None);
    assert_eq!(trained.training.train.len(), 1);
    assert!((trained.training.train[0] - expected).abs() < 1e-5);
}

#[test]
fn a_larger_penalty_makes_a_smaller_change_and_no_penalty_none() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let x = held_out_answers(
        &model,
        &samples(),
        Site::resid_post(1),
        64,
        &Control::hidden(),
    )
    .unwrap();
    let rows = x.len() / 32;
    let mut sizes = Vec::new();
    for (number, change_penalty) in [0.0, 1.0, 30.0].into_iter().enumerate() {
        let config = TrainConfig {
            change_penalty,
            ..config()
        };
        let adapter = trained(&model, &config, &dir.path().join(number.to_string()));
        let adapter = inner(&adapter);
        let tensor =
            Tensor::<2>::from_data(TensorData::new(x.clone(), [rows, 32]), &Device::flex());
        sizes.push(
            values(adapter.change(tensor))
                .iter()
                .map(|x| x * x)
                .sum::<f32>()
                .sqrt(),
        );
    }
    assert!(
        sizes[1] < 0.9 * sizes[0] && sizes[2] < 0.7 * sizes[1],
        "{sizes:?}"
    );
}

#[test]
fn activations_on_held_out_answers_are_those_of_the_whole_model() {
    let model = tiny();
    let site = Site::resid_post(1);
    let found = held_out_answers(&model, &samples(), site, 64, &Control::hidden()).unwrap();
    let mut expected = Vec::new();
    for pair in split(&pairs()).1 {
        let messages = [
            Message::user(&pair.prompt),
            Message::assistant(&pair.answer),
        ];
        let template = model.chat_template().unwrap();
        let (ids, mask) = template
            .encode_chat_with_mask(model.tokenizer(), &messages, false)
            .unwrap();
        let options = RunOptions {
            record: &[site],
            ..RunOptions::default()
        };
        let mut out = model.run(Input::uniform(ids.clone(), 1), &options).unwrap();
        let x = values(out.take(site).unwrap());
        for at in 0..ids.len() - 1 {
            if mask[at + 1] {
                expected.extend_from_slice(&x[at * 32..(at + 1) * 32]);
            }
        }
    }
    assert_close(&found, &expected, 1e-5);
    let error =
        held_out_answers(&model, &samples(), Site::embed(), 64, &Control::hidden()).unwrap_err();
    assert_has(&error.to_string(), &["hook_resid_post", "hook_embed"]);
}

#[test]
fn every_activation_and_site_can_be_trained() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    for (number, activation) in common::ACTIVATIONS.into_iter().enumerate() {
        let site = Site::resid_post(number % 3);
        let config = TrainConfig {
            basis: residual(3, activation),
            site,
            ..config()
        };
        let trained = trained(&model, &config, &dir.path().join(activation.name()));
        assert_eq!(
            (inner(&trained).activation, inner(&trained).site),
            (activation, site)
        );
        assert!(
            trained.result.loss_after < 0.95 * trained.result.loss_before,
            "{activation:?} {:?}",
            trained.result
        );
    }
}

#[test]
fn an_interrupted_training_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (model, config) = (tiny(), config());
    let whole = dir.path().join("whole");
    trained(&model, &config, &whole);
    let digest = Manifest::load(&whole).unwrap().digest();
    for (stage, times) in [
        ("prepare pairs", 3),
        ("adapt", 1),
        ("adapt", 2),
        ("adapt", 4),
        ("adapt", 5),
        ("adapt", 9),
        ("adapt", 15),
    ] {
        let out = dir.path().join(format!("{stage}{times}"));
        let control = interrupted_at(stage, times);
        let error = train(&model, &pairs(), &config, &out, &control).unwrap_err();
        assert!(matches!(error, AdapterError::Interrupted(_)), "{error}");
        assert!(!out.exists());
        let resumed = trained(&model, &config, &out);
        assert_same_files(&out, &whole);
        assert_eq!(
            Manifest::load(&out).unwrap().digest(),
            digest,
            "{stage} {times}"
        );
        assert_eq!(
            load_training(&out).unwrap().0,
            load_training(&whole).unwrap().0
        );
        assert_eq!(resumed.training.train.len(), 15);
    }
    // Again and again, two steps at a time.
    let out = dir.path().join("piecemeal");
    let mut calls = 1;
    while train(&model, &pairs(), &config, &out, &interrupted_at("adapt", 3)).is_err() {
        calls += 1;
        assert!(calls < 30, "no progress");
    }
    assert!(calls > 5, "only {calls} calls");
    assert_same_files(&out, &whole);
}

#[test]
fn the_seed_decides_and_other_work_is_started_anew() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (model, config) = (tiny(), config());
    trained(&model, &config, &at("first"));
    trained(&model, &config, &at("second"));
    assert_same_files(&at("first"), &at("second"));
    let other = TrainConfig {
        seed: 5,
        ..config.clone()
    };
    let third = trained(&model, &other, &at("third"));
    let first = ResidualAdapter::load(&at("first")).unwrap().0;
    assert_ne!(values(inner(&third).w_in), values(first.w_in));
    train(
        &model,
        &pairs(),
        &other,
        &at("restarted"),
        &interrupted_at("adapt", 6),
    )
    .unwrap_err();
    trained(&model, &config, &at("restarted"));
    assert_same_files(&at("restarted"), &at("first"));
    // Other pairs under the same configuration.
    let mut changed = pairs();
    changed[0].answer = "aye".to_owned();
    train(
        &model,
        &changed,
        &config,
        &at("changed"),
        &interrupted_at("adapt", 6),
    )
    .unwrap_err();
    trained(&model, &config, &at("changed"));
    assert_same_files(&at("changed"), &at("first"));
}

#[test]
fn what_cannot_be_trained_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let out = dir.path().join("adapter");
    let refused = |pairs: &[Pair], change: &dyn Fn(&mut TrainConfig)| {
        let mut config = config();
        change(&mut config);
        let result = train(&model, pairs, &config, &out, &Control::hidden()).map(|_| ());
        let error = result.expect_err("it was trained").to_string();
        assert!(!out.exists());
        error
    };
    let pairs = pairs();
    let error = refused(&pairs, &|c| {
        c.site = "blocks.1.hook_mlp_out".parse().unwrap();
    });
    assert_has(&error, &["hook_resid_post", "blocks.1.hook_mlp_out"]);
    assert_has(
        &refused(&pairs, &|c| c.site = Site::embed()),
        &["hook_resid_post", "hook_embed"],
    );
    assert_has(
        &refused(&pairs, &|c| c.site = Site::resid_post(3)),
        &["blocks.3", "blocks.0 to blocks.2"],
    );
    assert_has(
        &refused(&pairs, &|c| c.basis = residual(0, Activation::Gelu)),
        &["one hidden unit"],
    );
    assert_has(
        &refused(&pairs, &|c| c.length = Length::Epochs(0)),
        &["one epoch"],
    );
    assert_has(&refused(&pairs, &|c| c.batch = 0), &["one pair in a batch"]);
    assert_has(
        &refused(&pairs, &|c| c.lr = -0.1),
        &["learning rate is -0.1"],
    );
    assert_has(
        &refused(&pairs, &|c| c.lr = f64::INFINITY),
        &["learning rate is inf"],
    );
    for penalty in [-1.0, f64::NAN] {
        let number = penalty.to_string();
        assert_has(
            &refused(&pairs, &|c| c.change_penalty = penalty),
            &["change penalty is", &number],
        );
    }
    std::fs::create_dir(&out).unwrap();
    let error = train(&model, &pairs, &config(), &out, &Control::hidden()).unwrap_err();
    assert_has(&error.to_string(), &["adapter", "exists"]);
}

#[test]
fn a_pair_longer_than_the_context_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut pairs = pairs();
    pairs[3].prompt = "the longest of all questions ".repeat(5);
    let result = train(
        &tiny(),
        &pairs,
        &config(),
        &dir.path().join("adapter"),
        &Control::hidden(),
    );
    let error = result.map(|_| ()).expect_err("it was trained").to_string();
    assert_has(&error, &["64", "the longest of all questions"]);
}

#[test]
fn too_few_pairs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for count in [0, 1] {
        let out = dir.path().join(count.to_string());
        let result = train(
            &tiny(),
            &pairs()[..count],
            &config(),
            &out,
            &Control::hidden(),
        );
        let error = result.map(|_| ()).expect_err("it was trained").to_string();
        assert_has(&error, &["pair"]);
    }
}

#[test]
fn two_pairs_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("two");
    let trained = train(&tiny(), &pairs()[..2], &config(), &out, &Control::hidden()).unwrap();
    assert!(trained.result.loss_before > 0.0 && trained.training.train.len() == 5);
}

#[test]
fn malformed_pairs_are_named_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.jsonl");
    let good = "{\"prompt\":\"a\",\"answer\":\"b\"}";
    for (text, words) in [
        (format!("{good}\n\n{{\"prompt\":\"a\"}}\n"), "line 3"),
        (format!("{good}\nnot json\n"), "line 2"),
        (format!("{good}\n[\"a\", 3]\n"), "line 2"),
        (
            format!("{good}\n{{\"prompt\":\" \",\"answer\":\"b\"}}\n"),
            "line 2: prompt is empty",
        ),
        (format!("{good}\n"), "1 samples are too few"),
        (String::new(), "0 samples are too few"),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_has(
            &read_samples(&path).unwrap_err().to_string(),
            &["pairs.jsonl", words],
        );
    }
    std::fs::write(&path, b"\xff\xfe").unwrap();
    assert_has(
        &read_samples(&path).unwrap_err().to_string(),
        &["pairs.jsonl", "UTF-8"],
    );
    std::fs::write(&path, format!("{good}\r\n{good}\r\n")).unwrap();
    assert_eq!(read_samples(&path).unwrap().len(), 2);
}
