//! Greedy texts of the two real models against Hugging Face transformers (fixture `greedy.json`, made by
//! `make_greedy.py`): 64 tokens, all the same, alone and in one batch.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use burn::tensor::{DType, Device};
use common::{ids, json, small_model, smollm2};
use pullback_model::{GenerateOptions, Model, ModelFiles, Weights};

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
