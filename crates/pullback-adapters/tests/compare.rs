//! Comparing bases: figures are those of running the model by hand, what is there is not made again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::base::{assert_has, assert_same_files, interrupted_at, tiny, values};
use common::sae::{dense_codes, random_sae};
use common::{as_samples, pairs};
use pullback_adapters::{
    Activation, Adapter, AdapterError, Basis, CompareConfig, CompareInput, ComparedRow, DataSet,
    Pair, Sample, Sparsity, compare, split,
};
use pullback_artifact::{Control, ModelRef, ParentRef};
use pullback_model::{Input, Message, Model, RunOptions, Site};
use pullback_sae::Sae;

const M: usize = 48;
const D: usize = 32;

fn config() -> CompareConfig {
    let bases = vec![
        (
            "residual".to_owned(),
            Basis::Residual {
                rank: 1,
                activation: Activation::Gelu,
            },
        ),
        (
            "bias".to_owned(),
            Basis::Bias {
                active_only: false,
                sparsity: Sparsity::Top { count: 1 },
            },
        ),
        (
            "sparse-low-rank".to_owned(),
            Basis::LowRank {
                rank: 2,
                entries: Some(2),
            },
        ),
    ];
    CompareConfig {
        site: Site::resid_post(1),
        bases,
        budgets: vec![20, 70],
        seeds: vec![3, 4],
        rates: vec![0.2, 5.0],
        steps: 8,
        batch: 3,
        context: 32,
    }
}

/// Two sets; seven pairs are too few to split twice.
fn data() -> Vec<DataSet> {
    let mut more: Vec<Pair> = pairs();
    more.extend(pairs().into_iter().map(|mut pair| {
        pair.prompt += " a";
        pair
    }));
    let texts = ["a sea the rope salt", "cold wind a ship", "old arr ahoy we"];
    vec![
        DataSet {
            name: "pairs".to_owned(),
            samples: as_samples(&more),
        },
        DataSet {
            name: "texts".to_owned(),
            samples: (0..6)
                .map(|i| Sample::Text {
                    text: texts[i % 3].repeat(i + 1),
                })
                .collect(),
        },
    ]
}

struct Setting {
    model: Model,
    sae: Arc<Sae>,
    data: Vec<DataSet>,
}

impl Setting {
    fn new() -> Self {
        Self {
            model: tiny(),
            sae: Arc::new(random_sae(3, D, M, 6)),
            data: data(),
        }
    }

    fn compare(
        &self,
        config: &CompareConfig,
        dir: &Path,
        control: &Control,
    ) -> Result<Vec<ComparedRow>, AdapterError> {
        let parent = ParentRef {
            kind: "sae".to_owned(),
            digest: "sha256:5ae".to_owned(),
            path: "sae".to_owned(),
        };
        let input = CompareInput {
            model: &self.model,
            model_name: "tiny",
            dictionary: (Arc::clone(&self.sae), parent),
            data: &self.data,
        };
        compare(&input, config, dir, control)
    }
}

/// Tokens of a sample and the positions of those that count, by the words of the documentation.
fn tokens(model: &Model, sample: &Sample) -> Vec<(Vec<u32>, Vec<usize>)> {
    match sample {
        Sample::Text { text } => {
            let ids = model.tokenizer().encode_with_bos(text, true).unwrap();
            let windows = ids.chunks(32).filter(|window| window.len() > 1);
            windows
                .map(|window| (window.to_vec(), (1..window.len()).collect()))
                .collect()
        }
        Sample::Pair { pair, .. } => {
            let messages = [
                Message::user(&pair.prompt),
                Message::assistant(&pair.answer),
            ];
            let template = model.chat_template().unwrap();
            let (ids, mask) = template
                .encode_chat_with_mask(model.tokenizer(), &messages, false)
                .unwrap();
            let counted = (1..ids.len()).filter(|&at| mask[at]).collect();
            vec![(ids, counted)]
        }
        Sample::Chat { .. } => unreachable!(),
    }
}

/// Loss, and mean and mean absolute changes of features, from logits and dense codes.
fn by_hand(
    setting: &Setting,
    samples: &[Sample],
    adapter: Option<Adapter>,
) -> (f64, Vec<f64>, Vec<f64>) {
    let mut model = tiny();
    let mut interventions = Vec::new();
    if let Some(adapter) = adapter {
        adapter.attach(&mut model, &mut interventions).unwrap();
    }
    let site = Site::resid_post(1);
    let (mut loss, mut count, mut rows) = (0.0, 0.0, 0.0);
    let (mut mean, mut absolute) = (vec![0.0; M], vec![0.0; M]);
    for sample in samples {
        for (ids, counted) in tokens(&model, sample) {
            let recorded = [site];
            let run = |model: &Model, interventions: &[_]| {
                let options = RunOptions {
                    interventions,
                    record: &recorded,
                    ..RunOptions::default()
                };
                let mut out = model.run(Input::tokens(&ids), &options).unwrap();
                let stream = values(out.take(site).unwrap());
                (values(model.logits(out.stream)), stream)
            };
            let (logits, after) = run(&model, &interventions);
            let (_, before) = run(&setting.model, &[]);
            let width = model.config().d_vocab;
            for at in counted {
                let row = &logits[(at - 1) * width..at * width];
                let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                loss += sum.ln() - f64::from(row[ids[at] as usize]);
                count += 1.0;
            }
            let after = dense_codes(&setting.sae, &after);
            for (after, before) in after.iter().zip(dense_codes(&setting.sae, &before)).skip(1) {
                rows += 1.0;
                for feature in 0..M {
                    let change = after[feature] - before[feature];
                    mean[feature] += change;
                    absolute[feature] += change.abs();
                }
            }
        }
    }
    let scaled = |x: Vec<f64>| x.into_iter().map(|x| x / rows).collect::<Vec<f64>>();
    (loss / count, scaled(mean), scaled(absolute))
}

/// How many of the largest are needed, by trying.
fn needed(changes: &[f64]) -> usize {
    let mut sizes: Vec<f64> = changes.iter().map(|x| x.abs()).collect();
    sizes.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = sizes.iter().sum();
    (0..=sizes.len())
        .find(|&n| sizes[..n].iter().sum::<f64>() >= 0.9 * total - 1e-6 * total)
        .unwrap()
}

#[test]
fn figures_are_those_of_running_the_model_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let setting = Setting::new();
    let config = config();
    let rows = setting
        .compare(&config, dir.path(), &Control::hidden())
        .unwrap();
    // A residual adapter of rank 1 has 65 numbers, more than 20; a bias has 48 entries at most.
    let names: Vec<(&str, &str, usize, u64)> = rows
        .iter()
        .map(|row| (&row.data[..], &row.basis[..], row.budget, row.seed))
        .collect();
    let mut expected = Vec::new();
    for data in ["pairs", "texts"] {
        for (basis, budget) in [
            ("residual", 70),
            ("bias", 20),
            ("sparse-low-rank", 20),
            ("sparse-low-rank", 70),
        ] {
            expected.extend([(data, basis, budget, 3), (data, basis, budget, 4)]);
        }
    }
    assert_eq!(names, expected);
    let reference = ModelRef {
        name: "tiny".to_owned(),
        digest: setting.model.digest().to_owned(),
    };
    for row in &rows {
        let place = setting.data.iter().position(|set| set.name == row.data);
        let (rest, unseen) = split(&setting.data[place.unwrap()].samples);
        assert!(unseen.iter().all(|sample| !rest.contains(sample)));
        // The rate is that whose loss on what the training held out is least, tried by the first seed.
        let at = |rate: f64, seed: u64| {
            let name = format!("{}-{}-{}-{seed}-{rate}", row.data, row.basis, row.budget);
            dir.path().join(name)
        };
        let loss = |rate: f64| {
            let path = at(rate, 3).with_added_extension("json");
            let kept: serde_json::Value =
                serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            kept["row"]["validation_loss"].as_f64().unwrap()
        };
        let rate = if loss(0.2) <= loss(5.0) { 0.2 } else { 5.0 };
        if row.basis != "residual" && row.basis != "bias" {
            continue;
        }
        assert_eq!(at(0.2, 4).exists(), rate < 1.0);
        // The dictionary is not on disk, so only the adapter without one can be loaded.
        if row.basis != "residual" {
            continue;
        }
        let adapter = Adapter::load(&at(rate, row.seed), &reference, &setting.model, None).unwrap();
        let (before, ..) = by_hand(&setting, &unseen, None);
        let (after, mean, absolute) = by_hand(&setting, &unseen, Some(adapter));
        assert!((row.loss_before - before).abs() < 1e-5, "{row:?} {before}");
        assert!((row.loss_after - after).abs() < 1e-5, "{row:?} {after}");
        assert_eq!(row.features_90, needed(&mean), "{row:?}");
        assert_eq!(row.features_90_absolute, needed(&absolute), "{row:?}");
        assert!(row.change_explained <= 1.0);
        assert!((0.0..=1.0).contains(&row.stability.unwrap()));
    }
}

#[test]
fn interrupted_comparisons_go_on_to_the_same_figures() {
    let dir = tempfile::tempdir().unwrap();
    let setting = Setting::new();
    let mut config = config();
    config.bases.truncate(2);
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let rows = setting
        .compare(&config, &whole, &Control::hidden())
        .unwrap();
    for times in [1, 30] {
        let error = setting
            .compare(&config, &parts, &interrupted_at("adapt", times))
            .unwrap_err();
        assert!(matches!(error, AdapterError::Interrupted(_)), "{error}");
    }
    let again = setting
        .compare(&config, &parts, &Control::hidden())
        .unwrap();
    assert_eq!(again, rows);
    let mut adapters = 0;
    for entry in std::fs::read_dir(&whole).unwrap() {
        let found = entry.unwrap().path();
        let other = parts.join(found.file_name().unwrap());
        if found.is_dir() {
            assert_same_files(&other, &found);
            adapters += 1;
        } else {
            assert_eq!(
                std::fs::read(&other).unwrap(),
                std::fs::read(&found).unwrap()
            );
        }
    }
    // Two sets of data, two bases with one budget each, two rates for the first seed and one for the other.
    assert_eq!(adapters, 12);
}

#[test]
fn what_cannot_be_compared_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut setting = Setting::new();
    let refused = |setting: &Setting, config: &CompareConfig, words: &[&str]| {
        let error = setting
            .compare(config, dir.path(), &Control::hidden())
            .unwrap_err();
        assert_has(&error.to_string(), words);
    };
    let mut small = config();
    small.bases.truncate(1);
    small.budgets = vec![20];
    refused(&setting, &small, &["[20]", "65"]);
    let mut rates = config();
    rates.rates = vec![0.0];
    refused(&setting, &rates, &["0.0", "above zero"]);
    let mut none = config();
    none.seeds.clear();
    refused(&setting, &none, &["seed"]);
    let mut elsewhere = config();
    elsewhere.site = "blocks.1.hook_mlp_out".parse().unwrap();
    refused(&setting, &elsewhere, &["blocks.1.hook_mlp_out"]);
    elsewhere.site = Site::resid_post(99);
    refused(&setting, &elsewhere, &["blocks.99"]);
    setting.data[0].samples.truncate(2);
    refused(&setting, &config(), &["pairs has 2 samples", "too few"]);
}
