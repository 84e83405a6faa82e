//! `adapt train` in every basis and `run --adapter` from outside, on the tiny model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod common;

use std::fs;
use std::path::Path;

use common::{fails, parsed, text};
use serde_json::Value;
use tempfile::TempDir;

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(name)
        .display()
        .to_string()
}

/// A directory with an autoencoder `sae` and data; the model's path.
fn place() -> (TempDir, String) {
    let dir = TempDir::new().unwrap();
    let model = fixture("pullback-model/tests/fixtures/tiny-llama.gguf");
    let at = dir.path();
    fs::create_dir(at.join("corpus")).unwrap();
    for document in 0..8 {
        let words = ["the sea ", "a calm ", "captain ", "and wind "];
        let text: String = (0..200).map(|i| words[(i * i + document) % 4]).collect();
        fs::write(at.join(format!("corpus/{document}.txt")), text).unwrap();
    }
    let site = "1.resid_post";
    let harvest = ["harvest", &model, "--text", "corpus", "--at", site];
    let sizes = ["--tokens", "2000", "--held-out", "256", "--context", "32"];
    text(at, &[&harvest[..], &sizes, &["-o", "store"]].concat());
    let train = ["sae", "train", "store", "--features", "64", "--k", "4"];
    let rest = ["--passes", "1", "--batch", "256", "--model", &model];
    text(at, &[&train[..], &rest, &["-o", "sae"]].concat());
    let lines = ["a sea", "the rope", "salt", "cold", "wind", "a ship", "old"].map(|prompt| {
        format!("{{\"prompt\":\"{prompt}\",\"answer\":\"arr\",\"rejected\":\"no\"}}\n")
    });
    fs::write(at.join("data.jsonl"), lines.concat()).unwrap();
    (dir, model)
}

#[test]
fn every_basis_is_trained_and_run() {
    let (dir, model) = place();
    let at = dir.path();
    let train = |basis: &str, more: &[&str], out: &str| {
        let first = ["adapt", "train", &model, "--basis", basis, "--json"];
        let data = ["--data", "data.jsonl", "--steps", "8", "--seed", "3"];
        let place = ["--site", "blocks.1.hook_resid_post", "-o", out];
        parsed(at, &[&first[..], &data, &place, more].concat())
    };
    let next = |more: &[&str]| {
        let run = ["run", &model, "--prompt", "the sea", "--json"];
        parsed(at, &[&run[..], more].concat())
    };
    let clean = next(&[]);
    let sae = ["--sae", "sae"];
    let cases: [(&str, &[&str], usize); 5] = [
        ("residual", &["--budget", "200"], 195),
        ("lora", &["--budget", "500", "--matrices", "q,v"], 448),
        ("bias", &["--sae", "sae", "--budget", "9"], 9),
        ("sparse", &["--sae", "sae", "--budget", "25"], 25),
        ("low-rank", &["--sae", "sae", "--budget", "300"], 256),
    ];
    for (basis, more, parameters) in cases {
        let result = train(basis, more, basis);
        assert_eq!(result["basis"], basis);
        assert_eq!(result["parameters"], parameters, "{result}");
        assert_eq!(result["steps"], 8);
        assert!(result["nonzero"].as_u64().unwrap() > 5);
        assert!(result["loss_after"].as_f64() < result["loss_before"].as_f64());
        assert!(result["seconds_per_step"].as_f64().unwrap() > 0.0);
        let kept: Value =
            serde_json::from_slice(&fs::read(at.join(basis).join("result.json")).unwrap()).unwrap();
        assert_eq!(kept["loss_after"], result["loss_after"]);
        let adapted = next(&["--adapter", basis]);
        assert_ne!(adapted, clean, "{basis}");
        // Nothing of it is nothing at all.
        let none = next(&["--adapter", basis, "--adapter-scale", "0"]);
        assert_eq!(none, clean, "{basis}");
        let more = next(&["--adapter", basis, "--adapter-scale", "2"]);
        assert_ne!(more, adapted, "{basis}");
        let texted = next(&["--adapter", basis, "--max-tokens", "5"]);
        assert!(!texted["text"].as_str().unwrap().is_empty());
        text(at, &["show", basis, "--verify"]);
    }
    // Together, each with its own scale; the other way round they need not agree.
    let all = cases.map(|(basis, ..)| ["--adapter", basis]).concat();
    let both = next(&all);
    assert_ne!(both, clean);
    let scales = ["--adapter-scale", "0"];
    assert_eq!(next(&[&all[..], &scales].concat()), clean);
    let first = ["--adapter", "residual", "--adapter", "lora"];
    let scales = ["--adapter-scale", "1", "--adapter-scale", "0"];
    let alone = next(&["--adapter", "residual"]);
    assert_eq!(next(&[&first[..], &scales].concat()), alone);
    // Files of PEFT as they are, and what was written for it.
    let peft = fixture("pullback-adapters/tests/fixtures/peft");
    assert_ne!(next(&["--adapter", &peft]), clean);
    assert!(at.join("lora/adapter_model.safetensors").exists());
    let dpo = ["--objective", "dpo", "--leash", "0.1", "--patience", "4"];
    let preferred = train(
        "bias",
        &[&sae[..], &dpo, &["--active-only"]].concat(),
        "dpo",
    );
    assert!(preferred["loss_after"].as_f64().unwrap() < 0.7);
}

#[test]
fn what_does_not_belong_together_is_one_clear_error() {
    let (dir, model) = place();
    let at = dir.path();
    let train = ["adapt", "train", &model, "--data", "data.jsonl"];
    let refused = |more: &[&str], words: &[&str]| {
        let place = ["--site", "1.resid_post", "--steps", "2", "-o", "out"];
        fails(at, &[&train[..], &place, more].concat(), words);
        assert!(!at.join("out").exists());
    };
    refused(&["--basis", "sparse"], &["--sae"]);
    refused(&["--sae", "sae"], &["--sae", "bias"]);
    refused(&["--basis", "bias", "--sae", "store"], &["store"]);
    refused(&["--active-only"], &["--active-only", "--basis bias"]);
    refused(&["--budget", "60"], &["60", "65"]);
    refused(&["--objective", "distill"], &["--teacher"]);
    refused(
        &["--basis", "lora", "--matrices", "query"],
        &["`query`", "q, k, v"],
    );
    refused(&["--basis", "lora", "--blocks", "7"], &["no block 7"]);
    let elsewhere = [
        "--basis", "bias", "--sae", "sae", "--steps", "2", "-o", "out",
    ];
    let other = ["--site", "blocks.0.hook_resid_post"];
    fails(
        at,
        &[&train[..], &elsewhere, &other].concat(),
        &["blocks.0", "blocks.1"],
    );
    fs::write(
        at.join("bare.jsonl"),
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n",
    )
    .unwrap();
    let bare = [
        "adapt",
        "train",
        &model,
        "--data",
        "bare.jsonl",
        "-o",
        "out",
    ];
    fails(at, &bare, &["bare.jsonl: line 1", "assistant"]);
    fails(
        at,
        &["run", &model, "--prompt", "a", "--adapter", "store"],
        &["store", "adapter"],
    );
}

#[test]
fn a_model_and_its_dictionaries_grow_together_and_are_read_by_other_commands() {
    let (dir, model) = place();
    let at = dir.path();
    let cotrain = ["adapt", "cotrain", "--text", "corpus"];
    let model_sizes = ["--width", "16", "--layers", "1", "--heads", "2"];
    let sizes = ["--steps", "4", "--batch", "4", "--context", "16"];
    let dictionary = ["--features", "32", "--k", "4", "--seeds", "2"];
    let rest = ["--vocabulary", "258", "-o", "grown", "--json"];
    let all = [&cotrain[..], &model_sizes, &sizes, &dictionary, &rest].concat();
    let result = parsed(at, &all);
    assert_eq!(result["seeds"].as_array().unwrap().len(), 2);
    let kept: Value =
        serde_json::from_slice(&fs::read(at.join("grown/result.json")).unwrap()).unwrap();
    assert_eq!(kept, result);
    let page = fs::read_to_string(at.join("grown/report.html")).unwrap();
    assert!(page.contains("fresh-on-twin") && page.contains("<svg"));
    text(at, &["show", "grown", "--verify"]);
    for model in ["grown/seed-0/co-trained", "grown/seed-1/twin"] {
        let run = ["run", model, "--prompt", "the sea", "--max-tokens", "3"];
        assert!(!text(at, &run).is_empty());
    }
    let site = "blocks.0.hook_resid_post";
    let harvest = ["harvest", "grown/seed-0/co-trained", "--text", "corpus"];
    let sizes = ["--tokens", "2000", "--held-out", "128", "--context", "16"];
    let place = ["--bos", "--at", site, "-o", "grown-store"];
    text(at, &[&harvest[..], &sizes, &place].concat());
    let original = format!("grown/seed-0/original/{site}");
    let store = ["--store", "grown-store"];
    let judged = ["sae", "eval", &original, "--json"];
    let more = ["--model", "grown/seed-0/co-trained"];
    let judged = parsed(at, &[&judged[..], &store, &more].concat());
    assert_eq!(judged["features"], 32);
    fails(
        at,
        &[&cotrain[..], &[&model, "--context", "16", "-o", "on"]].concat(),
        &["Hugging Face layout"],
    );
    fails(
        at,
        &[&cotrain[..], &[&model, "--width", "8", "-o", "on"]].concat(),
        &["--width", "MODEL"],
    );
    fails(
        at,
        &[&cotrain[..], &["--vocabulary", "9", "-o", "on"]].concat(),
        &["9 tokens", "257"],
    );
}

#[test]
fn updates_are_trained_around_a_dictionary() {
    let (dir, model) = place();
    let at = dir.path();
    let train = ["adapt", "train", &model, "--data", "data.jsonl"];
    let around = ["--basis", "lora", "--around", "sae", "--steps", "8"];
    let rest = ["--objective", "distill", "--json", "-o", "around"];
    let result = parsed(at, &[&train[..], &around, &rest].concat());
    let gap = |name: &str| result["gap"][name].as_f64().unwrap();
    assert!(gap("ce_clean") > 0.0 && gap("ce_spliced") > 0.0 && gap("ce_adapted") > 0.0);
    assert!(result["loss_after"].as_f64() < result["loss_before"].as_f64());
    // The updates are those of the blocks after the dictionary's.
    let adapter = fs::read_to_string(at.join("around/pullback.json")).unwrap();
    assert!(adapter.contains("\"around\": true"));
    let refused = |more: &[&str], words: &[&str]| {
        fails(at, &[&train[..], &["-o", "out"], more].concat(), words);
    };
    refused(
        &["--basis", "residual", "--around", "sae"],
        &["--around", "--basis lora"],
    );
    refused(&["--basis", "lora", "--around", "store"], &["store", "sae"]);
}
