//! Models and dictionaries grown together: the twin, seeds, interruption, what is left, refusals.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use common::base::{assert_has, interrupted_at, tiny};
use pullback_activations::Corpus;
use pullback_adapters::{
    AdapterError, CotrainConfig, CotrainInput, CotrainResult, Spread, cotrain,
};
use pullback_artifact::{Control, Manifest, ModelRef};
use pullback_model::{Model, NewModel, Site};
use pullback_sae::{Dictionary, InputNorm, KindConfig, TrainConfig};

fn config() -> CotrainConfig {
    let mut config = CotrainConfig::new(vec![Site::resid_post(0), Site::resid_post(1)], 1);
    config.new = Some(NewModel {
        d_model: 16,
        n_layers: 2,
        n_heads: 2,
        d_mlp: 24,
        n_ctx: 16,
        vocabulary: 270,
        seed: 1,
    });
    config.context = 16;
    config.batch = 4;
    config.steps = 12;
    config.held_out_tokens = 128;
    config.tokens = 2000;
    config.dictionary = TrainConfig {
        lr: 0.01,
        input_norm: InputNorm::ConstantNorm,
        ..TrainConfig::new(40, KindConfig::TopK { k: 4 }, 1)
    };
    config
}

fn corpus(dir: &Path) -> Corpus {
    let text = dir.join("corpus");
    std::fs::create_dir_all(&text).unwrap();
    for document in 0..12_usize {
        let words = ["the sea ", "a calm ", "captain ", "and wind, ", "ship. "];
        let text_of: String = (0..150)
            .map(|i| words[(i * i + document * i) % 5])
            .collect();
        std::fs::write(text.join(format!("{document:02}.txt")), text_of).unwrap();
    }
    Corpus::open(&text).unwrap()
}

fn grow(
    corpus: &Corpus,
    config: &CotrainConfig,
    out: &Path,
    control: &Control,
) -> Result<CotrainResult, AdapterError> {
    let input = CotrainInput {
        corpus,
        model: None,
        device: &Device::flex(),
    };
    cotrain(&input, config, out, control)
}

fn weights(out: &Path, model: &str) -> Vec<u8> {
    std::fs::read(out.join("seed-1").join(model).join("model.safetensors")).unwrap()
}

#[test]
fn at_weight_zero_the_model_is_its_twin_bit_for_bit_and_else_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    let mut config = config();
    let with = dir.path().join("with");
    grow(&corpus, &config, &with, &Control::hidden()).unwrap();
    config.weight = 0.0;
    let without = dir.path().join("without");
    let result = grow(&corpus, &config, &without, &Control::hidden()).unwrap();
    assert_eq!(weights(&without, "co-trained"), weights(&without, "twin"));
    // The twin does not know of weights.
    assert_eq!(weights(&with, "twin"), weights(&without, "twin"));
    assert_ne!(weights(&with, "co-trained"), weights(&with, "twin"));
    assert_ne!(weights(&with, "twin"), weights(&with, "start"));
    // The dictionaries learn all the same.
    let curve = &result.seeds[0].co_trained;
    let (first, last) = (&curve[0].unexplained, &curve.last().unwrap().unexplained);
    assert!(last[0] < first[0], "{first:?} {last:?}");
    assert!(result.seeds[0].twin[0].unexplained.is_empty());
    assert!(curve.last().unwrap().held_out < curve[0].held_out);
}

#[test]
fn the_same_seed_gives_the_same_bytes_also_after_interruptions() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    let config = config();
    let whole = dir.path().join("whole");
    let result = grow(&corpus, &config, &whole, &Control::hidden()).unwrap();
    let digest = Manifest::load(&whole).unwrap().digest();
    for (stage, times) in [
        ("train co-trained", 1),
        ("train co-trained", 7),
        ("train twin", 3),
        ("held out", 1),
        ("train", 5),
        ("encode", 1),
        ("cross-entropy", 2),
    ] {
        let out = dir.path().join(format!("{stage} {times}"));
        let error = grow(&corpus, &config, &out, &interrupted_at(stage, times)).unwrap_err();
        assert!(
            error.to_string().contains("interrupted"),
            "{stage}: {error}"
        );
        assert!(!out.exists());
        let resumed = grow(&corpus, &config, &out, &Control::hidden()).unwrap();
        assert_eq!(
            Manifest::load(&out).unwrap().digest(),
            digest,
            "{stage} {times}"
        );
        assert_eq!(resumed.summary, result.summary);
    }
    let other = CotrainConfig {
        seed: 2,
        ..config.clone()
    };
    let out = dir.path().join("other");
    grow(&corpus, &other, &out, &Control::hidden()).unwrap();
    let other = std::fs::read(out.join("seed-2/twin/model.safetensors")).unwrap();
    assert_ne!(other, weights(&whole, "twin"));
    let again = grow(&corpus, &config, &whole, &Control::hidden()).unwrap_err();
    assert!(again.to_string().contains("exists"), "{again}");
}

#[test]
fn all_is_left_as_ordinary_models_and_dictionaries_judged_at_the_same_number_of_active_features() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    for kind in [KindConfig::TopK { k: 4 }, KindConfig::BatchTopK { k: 4 }] {
        let mut config = config();
        config.seeds = 2;
        config.dictionary.kind = kind.clone();
        let out = dir.path().join(kind.name());
        let result = grow(&corpus, &config, &out, &Control::hidden()).unwrap();
        assert_eq!(result.seeds.len(), 2);
        for seed in &result.seeds {
            let of: Vec<&str> = seed
                .dictionaries
                .iter()
                .map(|d| d.dictionary.as_str())
                .collect();
            let twice = ["original", "original", "fresh", "fresh"];
            assert_eq!(of, [&twice[..], &["fresh-on-twin"; 2]].concat());
            for judged in &seed.dictionaries {
                let model = Model::load(&out.join(&judged.model), &Device::flex()).unwrap();
                let (sae, manifest) = pullback_sae::load(&out.join(&judged.path)).unwrap();
                manifest.check_site(&judged.site.to_string()).unwrap();
                let name = manifest.model.as_ref().unwrap().name.clone();
                manifest
                    .check_model(&ModelRef {
                        name,
                        digest: model.digest().to_owned(),
                    })
                    .unwrap();
                assert_eq!(sae.n_features(), 40);
                // Where a threshold is set, rows that are alike come and go together.
                assert!((judged.l0 - 4.0).abs() < 0.1, "{}", judged.l0);
                if let KindConfig::TopK { .. } = kind {
                    assert_eq!(judged.l0, 4.0);
                }
                let ce = &judged.cross_entropy;
                assert!((judged.ce_increase - (ce.ce_spliced - ce.ce_clean)).abs() < 1e-12);
                assert!(judged.explained_variance > 0.1 && judged.explained_variance < 1.0);
            }
        }
        // The two models have one text and one tokenizer.
        let place = out.join("seed-1");
        for file in ["tokenizer.json", "config.json"] {
            let read = |model: &str| std::fs::read(place.join(model).join(file)).unwrap();
            assert_eq!(read("co-trained"), read("twin"));
        }
        let increases: Vec<f64> = result
            .seeds
            .iter()
            .map(|seed| {
                let own = seed.dictionaries.iter();
                let own = own.filter(|d| d.dictionary == "fresh");
                own.map(|d| d.ce_increase).sum::<f64>() / 2.0
            })
            .collect();
        let row = &result.summary.dictionaries[1];
        assert_eq!(
            (row.dictionary.as_str(), row.ce_increase),
            ("fresh", Spread::of(&increases))
        );
    }
}

#[test]
fn a_model_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    let mut first = config();
    first.steps = 4;
    grow(
        &corpus,
        &first,
        &dir.path().join("first"),
        &Control::hidden(),
    )
    .unwrap();
    let path: PathBuf = dir.path().join("first/seed-1/twin");
    let model = Model::load(&path, &Device::flex()).unwrap();
    let config = CotrainConfig {
        new: None,
        ..config()
    };
    let out = dir.path().join("on");
    let input = CotrainInput {
        corpus: &corpus,
        model: Some((&model, "first")),
        device: &Device::flex(),
    };
    let result = cotrain(&input, &config, &out, &Control::hidden()).unwrap();
    assert!(!out.join("seed-1/start").exists());
    let curve = &result.seeds[0].twin;
    assert!(curve.last().unwrap().held_out < curve[0].held_out);
    assert_eq!(
        Manifest::load(&out).unwrap().model.unwrap().digest,
        model.digest()
    );
    // Only a directory in the Hugging Face layout can be written again.
    let gguf = tiny();
    let input = CotrainInput {
        model: Some((&gguf, "tiny")),
        ..input
    };
    let error = cotrain(&input, &config, &dir.path().join("no"), &Control::hidden()).unwrap_err();
    assert_has(&error.to_string(), &["Hugging Face layout"]);
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    let refused = |change: fn(&mut CotrainConfig), words: &str| {
        let mut config = config();
        change(&mut config);
        let out = dir.path().join("out");
        let error = grow(&corpus, &config, &out, &Control::hidden()).unwrap_err();
        assert_has(&error.to_string(), &[words]);
        assert!(!out.exists());
    };
    refused(
        |c| c.weight = -1.0,
        "weight of the dictionaries' losses is -1",
    );
    refused(|c| c.weight = f64::NAN, "NaN");
    refused(|c| c.lr = 0.0, "must be above zero");
    refused(|c| c.steps = 0, "0 steps");
    refused(|c| c.batch = 0, "0 sequences");
    refused(|c| c.seeds = 0, "0 seeds");
    refused(|c| c.context = 3, "too short");
    refused(|c| c.context = 40, "longer than the 16 positions");
    refused(|c| c.sites.clear(), "no site");
    refused(|c| c.sites.push(c.sites[0]), "more than once");
    refused(
        |c| c.sites.push("blocks.0.hook_mlp_out".parse().unwrap()),
        "residual stream",
    );
    refused(|c| c.sites.push(Site::resid_post(7)), "blocks.7");
    refused(|c| c.batch = 5000, "is too small");
    refused(
        |c| c.dictionary.kind = KindConfig::Relu { weight: 1.0 },
        "not relu",
    );
    refused(
        |c| c.dictionary.kind = KindConfig::TopK { k: 41 },
        "between 1 and the 40 features",
    );
    refused(|c| c.lr = 1e30, "diverged");
    refused(|c| c.new = None, "neither a model");
}
