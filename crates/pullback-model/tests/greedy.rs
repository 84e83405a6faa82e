//! The two real models against Hugging Face transformers: greedy texts of 64 tokens, all the same, alone and in one batch
//! (fixture `greedy.json`, made by `make_greedy.py`); logits and residual stream of SmolLM2 (`smollm2_reference.json`,
//! made by `make_smollm2.py`).

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use burn::tensor::{DType, Device};
use common::{ids, json, small_model, smollm2};
use pullback_model::{GenerateOptions, Input, Model, ModelFiles, Site, Weights};

fn check(name: &str, path: &Path, weights: Weights) {
    let files = ModelFiles::open(path).unwrap();
    let model = Model::with_weights(files, &Device::flex(), DType::F32, weights).unwrap();
    let reference = json("greedy.json");
    let texts: Vec<(Vec<u32>, Vec<u32>)> = reference[name]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| (ids(&text["prompt"]), ids(&text["text"])))
        .collect();
    let options = GenerateOptions {
        max_tokens: 64,
        ..GenerateOptions::default()
    };
    for (prompt, expected) in &texts {
        assert_eq!(expected.len(), 64);
        let found = model.generate(prompt, &options, |_| true).unwrap();
        assert_eq!(found, *expected, "{name}, {prompt:?}");
    }
    let prompts: Vec<&[u32]> = texts.iter().map(|(prompt, _)| prompt.as_slice()).collect();
    let together = model.generate_batch(&prompts, &options, |_| true).unwrap();
    for (text, (prompt, expected)) in together.iter().zip(&texts) {
        assert_eq!(text.ids, *expected, "{name}, {prompt:?}, in a batch");
    }
}

#[test]
fn smollm2_writes_what_transformers_writes() {
    if let Some(path) = smollm2() {
        check("smollm2", &path, Weights::AsStored);
    }
}

#[test]
fn tinystories_writes_what_transformers_writes() {
    if let Some(path) = small_model("tinystories-656k") {
        for weights in [Weights::AsStored, Weights::Expanded] {
            check("tinystories-656k", &path, weights);
        }
    }
}

#[test]
fn smollm2_computes_what_transformers_computes() {
    let Some(path) = smollm2() else { return };
    let model = Model::load(&path, &Device::flex()).unwrap();
    let reference = json("smollm2_reference.json");
    let prompt = ids(&reference["ids"]);
    let logits = model.next_logits(&prompt, &[]).unwrap();
    let best = model.rank_next(&logits, 10);
    for (found, expected) in best.iter().zip(reference["top_logits"].as_array().unwrap()) {
        assert_eq!(u64::from(found.id), expected[0].as_u64().unwrap());
        let off = f64::from(found.logit) - expected[1].as_f64().unwrap();
        assert!(off.abs() < 1e-4, "{}: off by {off}", found.token);
    }
    let site = Site::resid_post(15);
    let stream = model.record(Input::tokens(&prompt), &[site], &[]).unwrap()[&site].clone();
    let d = model.config().d_model;
    let values: Vec<f32> = stream.into_data().iter::<f32>().collect();
    let expected = &reference["resid_post_15"];
    for (position, row) in values.chunks_exact(d).enumerate() {
        let norm = row
            .iter()
            .map(|&x| f64::from(x).powi(2))
            .sum::<f64>()
            .sqrt();
        let off = norm / expected["norms"][position].as_f64().unwrap() - 1.0;
        assert!(off.abs() < 1e-5, "norm at {position}: off by {off}");
        for (i, &x) in row.iter().take(8).enumerate() {
            let expected = expected["first_values"][position][i].as_f64().unwrap();
            let off = f64::from(x) - expected;
            // The first position is an attention sink, with values in the thousands.
            assert!(
                off.abs() < 1e-4 * expected.abs().max(1.0),
                "position {position}, coordinate {i}: {x}, off by {off}"
            );
        }
    }
}
