//! `sae features` and `sae compare` from outside, on autoencoders of the tiny model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{fails, parsed, run, text};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory with a store and autoencoders `sae` and `other` of two seeds; the model's path.
fn place() -> (TempDir, String) {
    let dir = TempDir::new().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../pullback-model/tests/fixtures/tiny-llama.gguf")
        .display()
        .to_string();
    let words = [
        "the", "captain", "looked", "over", "a", "calm", "sea", "and", "wind",
    ];
    let mut state = 12_345_u64;
    fs::create_dir(dir.path().join("corpus")).unwrap();
    for document in 0..16 {
        let mut text = String::new();
        for _ in 0..300 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            text += words[(state >> 33) as usize % words.len()];
            text.push(' ');
        }
        fs::write(dir.path().join(format!("corpus/{document:02}.txt")), text).unwrap();
    }
    let at = dir.path();
    text(
        at,
        &[
            "harvest",
            &model,
            "--text",
            "corpus",
            "--at",
            "1.resid_post",
            "--tokens",
            "3000",
            "--held-out",
            "512",
            "--context",
            "32",
            "-o",
            "store",
        ],
    );
    for (out, seed) in [("sae", "0"), ("other", "1")] {
        text(
            at,
            &[
                "sae",
                "train",
                "store",
                "--features",
                "96",
                "--k",
                "4",
                "--passes",
                "2",
                "--batch",
                "256",
                "--seed",
                seed,
                "--model",
                &model,
                "-o",
                out,
            ],
        );
    }
    (dir, model)
}

#[test]
fn features_writes_a_page_and_tells_every_feature() {
    let (dir, model) = place();
    let dir = dir.path();
    let base = [
        "sae", "features", "sae", "--store", "store", "--model", &model,
    ];
    let with = |more: &[&'static str]| -> Vec<&str> {
        base.iter().copied().chain(more.iter().copied()).collect()
    };
    let told = text(dir, &with(&[]));
    assert!(
        told.contains("96 of 96 features") && told.contains("features.html"),
        "{told}"
    );
    let page = fs::read_to_string(dir.join("features.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("Features of sae"));
    assert!(page.contains("data-sort=\"logit\"") && !page.contains("data-sort=\"change\""));
    assert!(page.contains("J(i, j) = n_ij / (n_i + n_j − n_ij)"));
    fails(
        dir,
        &with(&[]),
        &["features.html already exists", "--force"],
    );

    let result = parsed(dir, &with(&["--force", "--json", "--context", "5"]));
    assert_eq!(
        (&result["dictionary"], &result["page"]),
        (&json!(96), &json!("features.html"))
    );
    let features = result["features"].as_array().unwrap();
    assert_eq!(features.len(), 96);
    let live: Vec<&Value> = features
        .iter()
        .filter(|f| f["count"].as_u64() > Some(20))
        .collect();
    assert!(live.len() > 5, "too little is active for this test");
    for feature in live {
        for key in [
            "promoted",
            "suppressed",
            "examples",
            "bands",
            "neighbours",
            "coactive",
            "histogram",
        ] {
            assert!(
                !feature[key].as_array().unwrap().is_empty(),
                "{key}: {feature}"
            );
        }
        let example = &feature["examples"][0];
        let token = example["token"].as_str().unwrap();
        assert!(
            example["text"]
                .as_str()
                .unwrap()
                .contains(&format!("«{token}»"))
        );
        assert_eq!(example["activation"], feature["largest"]);
        let counted: u64 = feature["histogram"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_u64)
            .sum();
        assert_eq!(Some(counted), feature["count"].as_u64());
    }

    let bare = parsed(
        dir,
        &[
            "sae",
            "features",
            "sae",
            "--store",
            "store",
            "--no-model",
            "--json",
            "--limit",
            "7",
            "-o",
            "bare.html",
        ],
    );
    assert_eq!(bare["features"].as_array().unwrap().len(), 7);
    assert_eq!(bare["features"][0]["promoted"], json!([]));
    let token = bare["features"][0]["examples"][0]["token"]
        .as_str()
        .unwrap();
    assert!(token.starts_with('⟨') && token.ends_with('⟩'), "{token}");
    let page = fs::read_to_string(dir.join("bare.html")).unwrap();
    assert!(!page.contains("data-sort=\"logit\""));
}

#[test]
fn features_takes_a_change_and_refuses_what_does_not_fit() {
    let (dir, model) = place();
    let dir = dir.path();
    fs::write(
        dir.join("change.json"),
        json!({ "3": 0.5, "90": -2.0, "4": 0.1 }).to_string(),
    )
    .unwrap();
    fs::write(dir.join("short.json"), "[1, 2]").unwrap();
    let base = [
        "sae", "features", "sae", "--store", "store", "--model", &model,
    ];
    let with = |more: &[&'static str]| -> Vec<&str> {
        base.iter().copied().chain(more.iter().copied()).collect()
    };
    let result = parsed(
        dir,
        &with(&["--change", "change.json", "--limit", "2", "--json"]),
    );
    let found: Vec<(&Value, &Value)> = result["features"]
        .as_array()
        .unwrap()
        .iter()
        .map(|feature| (&feature["feature"], &feature["change"]))
        .collect();
    assert_eq!(
        found,
        [(&json!(90), &json!(-2.0)), (&json!(3), &json!(0.5))]
    );
    let page = fs::read_to_string(dir.join("features.html")).unwrap();
    assert!(page.contains("data-sort=\"change\""));
    fails(
        dir,
        &with(&["--change", "short.json", "-o", "out.html"]),
        &["short.json", "2 numbers for a dictionary of 96"],
    );
    fails(
        dir,
        &with(&["--context", "5000", "-o", "out.html"]),
        &["--context is 5000", "100"],
    );
    fails(
        dir,
        &[
            "sae", "features", "store", "--store", "store", "-o", "out.html",
        ],
        &["store"],
    );
    assert!(!dir.join("out.html").exists());
}

#[test]
fn compare_tells_what_is_shared_and_writes_a_page() {
    let (dir, _) = place();
    let dir = dir.path();
    let same = parsed(dir, &["sae", "compare", "sae", "sae", "--json"]);
    assert_eq!(
        (&same["shared"], &same["exact"]),
        (&json!(96), &json!(true))
    );
    assert!((same["mean_matched_cosine"].as_f64().unwrap() - 1.0).abs() < 1e-6);
    let found = parsed(
        dir,
        &[
            "sae",
            "compare",
            "sae",
            "other",
            "--json",
            "-o",
            "page.html",
        ],
    );
    let count = |key: &str| found[key].as_array().unwrap().len() as u64;
    let shared = found["shared"].as_u64().unwrap();
    assert_eq!(
        (count("pairs"), count("lost"), count("new")),
        (96, 96 - shared, 96 - shared)
    );
    let mmcs = found["a"]["mean_max_cosine"].as_f64().unwrap();
    assert!(mmcs >= found["mean_matched_cosine"].as_f64().unwrap() - 1e-9 && mmcs < 1.0);
    let page = fs::read_to_string(dir.join("page.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("What two dictionaries share"));
    let told = text(
        dir,
        &[
            "sae",
            "compare",
            "sae",
            "other",
            "--exact",
            "50",
            "--neighbours",
            "3",
        ],
    );
    assert!(
        told.contains("among the 3 nearest") && told.contains("MMCS"),
        "{told}"
    );
    fails(
        dir,
        &["sae", "compare", "sae", "other", "-o", "page.html"],
        &["page.html already exists", "--force"],
    );
    fails(
        dir,
        &["sae", "compare", "sae", "other", "--threshold", "1.5"],
        &["threshold is 1.5"],
    );
    fails(dir, &["sae", "compare", "sae", "nothing"], &["nothing"]);
}

/// Arguments in one string.
fn words(arguments: &str) -> Vec<&str> {
    arguments.split_whitespace().collect()
}

#[test]
fn several_sites_make_transcoders_crosscoders_and_many_dictionaries_at_once() {
    let (dir, model) = place();
    let at = dir.path();
    let harvest = format!(
        "harvest {model} --text corpus --at 0.resid_post,1.ln2.hook_normalized,1.hook_mlp_out --tokens 3000 --held-out 512 --context 32 --json -o stores"
    );
    let harvested = parsed(at, &words(&harvest));
    assert_eq!(harvested.as_array().unwrap().len(), 3);
    let train = |out: &str, more: &str| {
        let line = format!(
            "sae train stores --model {model} --passes 2 --batch 256 --json -o {out} {more}"
        );
        parsed(at, &words(&line))
    };
    let transcoder = train(
        "transcoder",
        "--at 1.ln2.hook_normalized --target 1.hook_mlp_out --skip --features 64 --k 4",
    );
    assert!(transcoder["explained_variance"].as_f64().unwrap() > 0.0);
    let cfg: Value =
        serde_json::from_slice(&fs::read(at.join("transcoder/cfg.json")).unwrap()).unwrap();
    assert_eq!(cfg["architecture"], "topk_skip_transcoder");
    assert_eq!(cfg["metadata"]["hook_name_out"], "blocks.1.hook_mlp_out");
    let eval = format!("sae eval transcoder --store stores --model {model} --json");
    let again = parsed(at, &words(&eval));
    for figure in ["explained_variance", "ce_spliced", "l0", "dead_fraction"] {
        assert_eq!(again[figure], transcoder[figure], "{figure}");
    }
    // In place of the MLP, in a run.
    let run = format!("run {model} --tokens 1,2,3,4 --splice transcoder --json");
    assert!(parsed(at, &words(&run))["next"].is_array());

    let crosscoder = train(
        "crosscoder",
        "--at 0.resid_post,1.hook_mlp_out --crosscoder --kind batchtopk --features 64 --k 4",
    );
    let sites = crosscoder["sites"].as_array().unwrap();
    assert_eq!(sites[0]["site"], "blocks.0.hook_resid_post");
    assert_eq!(sites[1]["site"], "blocks.1.hook_mlp_out");
    assert!(sites.iter().all(|site| site["ce_score"].is_number()));
    let page = format!("sae features crosscoder --store stores --model {model} -o page.html");
    text(at, &words(&page));
    assert!(at.join("page.html").exists());
    let run = format!("run {model} --tokens 1,2,3 --splice crosscoder");
    fails(at, &words(&run), &["crosscoder", "cannot be spliced"]);

    let many = train(
        "many",
        "--at 0.resid_post,1.hook_mlp_out --features 32,64 --k 2,4 --tensorboard curves",
    );
    let rows = many.as_array().unwrap();
    assert_eq!(rows.len(), 8);
    for row in rows {
        let name = row["directory"].as_str().unwrap();
        let one: Value = serde_json::from_slice(
            &fs::read(at.join("many").join(name).join("result.json")).unwrap(),
        )
        .unwrap();
        assert_eq!(one["explained_variance"], row["explained_variance"]);
        assert!(at.join("curves").join(name).is_dir());
    }
    assert_eq!(
        rows[0]["directory"],
        "blocks.0.hook_resid_post-32-features-k-2"
    );
    // One of them alone is the same.
    train("alone", "--at 1.hook_mlp_out --features 64 --k 4");
    assert_eq!(
        fs::read(at.join("alone/sae_weights.safetensors")).unwrap(),
        fs::read(at.join("many/blocks.1.hook_mlp_out-64-features-k-4/sae_weights.safetensors"))
            .unwrap()
    );
    let jump = "--at 1.hook_mlp_out --kind jumprelu --features 32 --k 4 --sparsity-loss tanh --sparsity 0.5";
    assert_eq!(train("jump", jump)["selection"], "jumprelu");
    fails(
        at,
        &words("sae train stores --at 1.hook_mlp_out --sparsity-loss tanh -o x"),
        &["--sparsity-loss is not for the kind topk"],
    );
    fails(
        at,
        &words("sae train stores --at 2.resid_post -o x"),
        &["stores holds activations at", "blocks.1.hook_mlp_out only"],
    );
}

#[test]
fn a_dictionary_is_trained_while_the_model_runs() {
    let (dir, model) = place();
    let at = dir.path();
    let train = |out: &str, more: &str| {
        format!(
            "sae train --model {model} --text corpus --at 1.resid_post --features 64 --k 4 --batch 128 --tokens 6000 \
             --text-passes 2 --held-out 512 --context 32 --piece 640 --json -o {out} {more}"
        )
    };
    let result = parsed(at, &words(&train("live", "")));
    assert!(
        result["explained_variance"].as_f64().unwrap() > 0.3,
        "{result}"
    );
    assert_eq!(result["train_tokens"], 46 * 128);
    parsed(at, &words(&train("again", "--quiet")));
    assert_eq!(
        fs::read(at.join("live/sae_weights.safetensors")).unwrap(),
        fs::read(at.join("again/sae_weights.safetensors")).unwrap()
    );
    // It is judged like any other.
    let eval = format!("sae eval live --store store --model {model} --json");
    assert!(parsed(at, &words(&eval))["ce_score"].is_number());
    let normalised = parsed(
        at,
        &words(&train(
            "white",
            "--input-norm whitening --decoder-norm free",
        )),
    );
    assert!(normalised["explained_variance"].is_number());
    fails(
        at,
        &words(&train("none", "--held-out 0").replace("--held-out 512", "")),
        &["no text is held out"],
    );
    let output = run(
        at,
        &words(&format!("sae train --model {model} --text corpus -o x")),
    );
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_killed_training_leaves_nothing_under_its_name_and_is_done_again() {
    let (dir, model) = place();
    let at = dir.path();
    let line = |out: &str| {
        format!(
            "sae train store --model {model} --features 96 --k 4 --tokens 200000 --batch 128 --json -o {out}"
        )
    };
    parsed(at, &words(&line("whole")));
    let weights = |out: &str| fs::read(at.join(out).join("sae_weights.safetensors")).unwrap();
    for wait in [30, 120, 400] {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("pullback"))
            .current_dir(at)
            .args(words(&line("killed")))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // What is waited for is a moment in the middle of the work, whichever.
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
        if at.join("killed").exists() {
            // It was faster than the signal.
            fs::remove_dir_all(at.join("killed")).unwrap();
        }
    }
    parsed(at, &words(&line("killed")));
    assert_eq!(weights("killed"), weights("whole"));
    assert!(!at.join("killed.partial").exists());
}
