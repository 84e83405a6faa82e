//! `adapt train` in every basis and `run --adapter` from outside, on the tiny model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
fn every_change_is_explained() {
    let (dir, model) = place();
    let at = dir.path();
    let explain = |change: &[&str], more: &[&str]| {
        let rest = ["--sae", "sae", "--top", "3", "--json"];
        let named = ["--model", &model];
        let named = if change[0] == "--from" {
            &[][..]
        } else {
            &named
        };
        parsed(
            at,
            &[&["adapt", "explain"], change, &rest, named, more].concat(),
        )
    };
    let is_whole = |result: &Value, predicted: bool| {
        let features = result["features"].as_array().unwrap();
        assert_eq!(features.len(), 3, "{result}");
        for feature in features {
            assert_eq!(feature["predicted"].is_number(), predicted, "{feature}");
            for key in [
                "feature",
                "measured",
                "effect_alone",
                "effect_removed",
                "density",
            ] {
                assert!(feature[key].is_number(), "{key}: {feature}");
            }
            for key in ["promoted", "suppressed", "examples"] {
                assert!(feature[key].is_array(), "{key}: {feature}");
            }
        }
        assert_eq!(result["residual_fraction"].is_number(), predicted);
        assert!(result["effects"]["loss_after"].is_number());
    };
    for (basis, prediction) in [
        ("residual", "weights"),
        ("lora", "first_order"),
        ("bias", "map"),
        ("sparse", "map"),
        ("low-rank", "map"),
    ] {
        let first = [
            "adapt",
            "train",
            &model,
            "--basis",
            basis,
            "--data",
            "data.jsonl",
        ];
        let rest = ["--steps", "4", "--site", "1.resid_post", "-o", basis];
        let sae: &[&str] = match basis {
            "residual" | "lora" => &[],
            _ => &["--sae", "sae"],
        };
        text(at, &[&first[..], &rest, sae].concat());
        // On the answers it was trained for, and on plain text.
        let own = explain(&[basis], &["--data", "data.jsonl"]);
        is_whole(&own, true);
        assert_eq!(own["prediction"], prediction);
        assert_eq!(own["change"], basis);
        let plain = explain(&[basis], &["--text", "corpus/3.txt", "--context", "32"]);
        is_whole(&plain, true);
        assert_ne!(plain["features"], own["features"]);
    }
    // Someone's LoRA, on data with answers and on a store; the page and the files.
    let peft = fixture("pullback-adapters/tests/fixtures/peft");
    is_whole(&explain(&[&peft], &["--text", "data.jsonl"]), true);
    let kept = explain(
        &[&peft],
        &["--store", "store", "--effect-tokens", "64", "-o", "out"],
    );
    is_whole(&kept, true);
    assert!(kept["agreement_spearman"].is_number());
    let read = |name: &str| fs::read_to_string(at.join("out").join(name)).unwrap();
    let result: Value = serde_json::from_str(&read("result.json")).unwrap();
    assert_eq!(result["features"], kept["features"]);
    let whole: Value = serde_json::from_str(&read("explanation.json")).unwrap();
    assert_eq!(whole["measured"].as_array().unwrap().len(), 64);
    let page = read("report.html");
    assert!(page.starts_with("<!DOCTYPE html>") && !page.contains("http://"));
    let shown = parsed(at, &["show", "out", "--verify", "--json"]);
    assert_eq!(shown["manifest"]["kind"], "explanation");
    let change = ["--change", "out/explanation.json", "--limit", "2"];
    let features = [
        "sae", "features", "sae", "--store", "store", "--model", &model,
    ];
    text(at, &[&features[..], &change].concat());
    // Two checkpoints: the same weights in two files, so that nothing changes at all.
    let other = fixture("pullback-model/tests/fixtures/tiny-llama");
    let checkpoints = ["--from", &model, "--to", &other];
    let same = explain(&checkpoints, &["--text", "corpus/3.txt"]);
    is_whole(&same, false);
    assert_eq!(same["prediction"], "none");
    assert!(same["agreement_spearman"].is_null());
    assert!(same["features"][0]["measured"].as_f64().unwrap().abs() < 1e-3);
}

#[test]
fn explanations_of_what_does_not_belong_together_are_refused() {
    let (dir, model) = place();
    let at = dir.path();
    let first = [
        "adapt",
        "train",
        &model,
        "--data",
        "data.jsonl",
        "--steps",
        "2",
    ];
    text(
        at,
        &[&first[..], &["--site", "1.resid_post", "-o", "low"]].concat(),
    );
    text(
        at,
        &[&first[..], &["--site", "2.resid_post", "-o", "high"]].concat(),
    );
    let refused = |change: &[&str], more: &[&str], words: &[&str]| {
        let rest = ["--sae", "sae"];
        let named = ["--model", &model];
        let named = if change[0] == "--from" {
            &[][..]
        } else {
            &named
        };
        let all = [&["adapt", "explain"], change, &rest, named, more].concat();
        fails(at, &all, words);
    };
    let words = ["--text", "corpus/3.txt"];
    refused(&["high"], &words, &["blocks.2.hook_resid_post", "above"]);
    refused(&["low"], &["--text", "nowhere.txt"], &["nowhere.txt"]);
    refused(&["low"], &[], &["other pairs", "--data"]);
    let site = ["--site", "0.resid_post"];
    refused(
        &["low"],
        &[&words[..], &site].concat(),
        &["blocks.1", "blocks.0"],
    );
    refused(&["store"], &words, &["store", "adapter"]);
    refused(&["low"], &["--on", "corpus"], &["--text or --store"]);
    let family = fixture("pullback-model/tests/fixtures/families/gpt2");
    let apart = ["--from", &model, "--to", &family];
    refused(&apart, &words, &["no checkpoints of one model", "gpt2"]);
    let neither = ["--from", &family, "--to", &family];
    refused(&neither, &words, &["neither --from nor --to"]);
    refused(&apart, &[], &["--text or --store"]);
    let context = ["--context", "2"];
    refused(
        &["low"],
        &[&words[..], &context].concat(),
        &["context of 2"],
    );
    refused(
        &["low"],
        &[&words[..], &["--tokens", "0"]].concat(),
        &["--tokens is 0"],
    );
}

#[test]
fn merged_adapters_are_composed_ones() {
    let (dir, model) = place();
    let at = dir.path();
    let sae: &[&str] = &["--sae", "sae"];
    for (basis, own) in [("lora", &["--matrices", "q,down"][..]), ("bias", sae)] {
        let names = ["a", "b"].map(|name| format!("{basis}-{name}"));
        for (seed, name) in names.iter().enumerate() {
            let seed = (7 + 3 * seed).to_string();
            let steps = (4 + 2 * name.len()).to_string();
            let first = [
                "adapt",
                "train",
                &model,
                "--basis",
                basis,
                "--data",
                "data.jsonl",
            ];
            let rest = ["--site", "1.resid_post", "--seed", &seed, "--steps", &steps];
            text(at, &[&first[..], &rest, own, &["-o", name]].concat());
        }
        let [a, b] = &names;
        let merge = [
            "adapt", "merge", a, b, "--model", &model, "--json", "-o", basis,
        ];
        let scales = ["--scale", "1", "--scale", "0.5"];
        let merged = parsed(at, &[&merge[..], &scales].concat());
        assert_eq!(merged["basis"], basis);
        let next = |adapters: &[&str]| {
            let run = ["run", &model, "--prompt", "the sea", "--json"];
            parsed(at, &[&run[..], adapters].concat())
        };
        let composed = next(&[
            "--adapter",
            a,
            "--adapter",
            b,
            "--adapter-scale",
            "1",
            "--adapter-scale",
            "0.5",
        ]);
        let one = next(&["--adapter", basis]);
        let logits = |result: &Value| -> Vec<(u64, f64)> {
            let mut all: Vec<(u64, f64)> = result["next"]
                .as_array()
                .unwrap()
                .iter()
                .map(|token| {
                    (
                        token["id"].as_u64().unwrap(),
                        token["logit"].as_f64().unwrap(),
                    )
                })
                .collect();
            all.sort_by_key(|(id, _)| *id);
            all
        };
        let (one, composed) = (logits(&one), logits(&composed));
        assert!(!one.is_empty() && one.len() == composed.len());
        for (x, y) in one.iter().zip(&composed) {
            assert_eq!(x.0, y.0, "{basis}");
            assert!((x.1 - y.1).abs() < 1e-4, "{basis}: {x:?} {y:?}");
        }
        assert_ne!(one, logits(&next(&["--adapter", a])));
        text(at, &["show", basis, "--verify"]);
    }
    let mixed = [
        "adapt", "merge", "lora", "bias", "--model", &model, "-o", "mixed",
    ];
    fails(at, &mixed, &["lora", "bias", "different"]);
    let merge = [
        "adapt", "merge", "lora", "lora", "--model", &model, "-o", "mixed",
    ];
    let scales = ["--scale", "1", "--scale", "1", "--scale", "1"];
    fails(
        at,
        &[&merge[..], &scales].concat(),
        &["3 times", "2 adapters"],
    );
}

/// A server that answers every question of the chat protocol with the same word; its address, and how often it was asked.
fn server(word: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = Vec::new();
            let mut block = [0; 4096];
            loop {
                let length = stream.read(&mut block).unwrap();
                request.extend_from_slice(&block[..length]);
                let text = String::from_utf8_lossy(&request);
                let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                if length == 0 || serde_json::from_str::<Value>(body).is_ok() {
                    break;
                }
            }
            count.fetch_add(1, Ordering::SeqCst);
            let answer =
                serde_json::json!({ "choices": [{ "message": { "content": word } }] }).to_string();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
                answer.len()
            );
        }
    });
    (url, asked)
}

#[test]
fn listed_features_are_put_into_words_once() {
    let (dir, model) = place();
    let at = dir.path();
    let train = ["adapt", "train", &model, "--data", "data.jsonl"];
    let more = ["--steps", "8", "--site", "1.resid_post", "-o", "adapter"];
    text(at, &[&train[..], &more].concat());
    let (url, asked) = server("Yes, ships");
    let explain = |more: &[&str]| {
        let first = [
            "adapt", "explain", "adapter", "--sae", "sae", "--store", "store",
        ];
        let rest = ["--data", "data.jsonl", "--top", "3", "--model", &model];
        [&first[..], &rest, more]
            .concat()
            .iter()
            .map(|s| (*s).to_owned())
            .collect::<Vec<_>>()
    };
    let words = explain(&[
        "--explainer",
        &url,
        "--explainer-model",
        "m",
        "--json",
        "-o",
        "out",
    ]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let found = parsed(at, &words);
    assert_eq!(found["words"]["features"], 3);
    for feature in found["features"].as_array().unwrap() {
        assert_eq!(feature["explanation"], "Yes, ships");
        // Who says yes to everything guesses.
        for score in ["detection", "fuzzing"] {
            if let Some(auc) = feature[score]["auc"].as_f64() {
                assert!((auc - 0.5).abs() < 1e-12, "{feature}");
            }
        }
    }
    let page = fs::read_to_string(at.join("out/report.html")).unwrap();
    assert!(page.contains("Yes, ships") && page.contains("0.5 is guessing"));
    // The answers are kept.
    let first = asked.load(Ordering::SeqCst);
    assert!(first > 3);
    let again = [&words[..], &["--force"]].concat();
    assert_eq!(parsed(at, &again)["features"], found["features"]);
    assert_eq!(asked.load(Ordering::SeqCst), first);
    let refused = |more: &[&str], words: &[&str]| {
        let all = explain(more);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        fails(at, &all, words);
    };
    refused(&["--explainer", &url], &["--explainer-model"]);
    refused(&["--explainer-model", "m"], &["--explainer"]);
    let nowhere = [
        "--explainer",
        "http://127.0.0.1:1/v1",
        "--explainer-model",
        "m",
    ];
    refused(&nowhere, &["http://127.0.0.1:1/v1/chat/completions"]);
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
