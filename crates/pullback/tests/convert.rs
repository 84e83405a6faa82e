//! `sae convert` from outside: what it makes, what it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pullback_sae::Dictionary;
use pullback_sae::formats::load;
use serde_json::Value;

fn fixture(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../pullback-sae/tests/fixtures/formats")
        .join(name);
    path.display().to_string()
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("pullback"))
        .current_dir(dir)
        .arg("--quiet")
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn json(dir: &Path, arguments: &[&str]) -> Value {
    let output = run(dir, &[arguments, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Fails with one line that holds all the words.
#[track_caller]
fn fails(dir: &Path, arguments: &[&str], words: &[&str]) {
    let output = run(dir, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let line = errors.lines().last().unwrap_or_default();
    for word in words {
        assert!(line.contains(word), "`{word}` is not in: {line}");
    }
}

#[test]
fn a_dictionary_goes_from_format_to_format() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let from = fixture("dictionary-learning-JumpReluAutoEncoder");
    let result = json(
        dir,
        &["sae", "convert", &from, "ours", "--format", "saelens"],
    );
    for (key, value) in [
        ("from", "dictionary-learning"),
        ("format", "saelens"),
        ("kind", "jumprelu"),
        ("model", "EleutherAI/pythia-70m-deduped"),
        ("site", "blocks.1.hook_resid_post"),
    ] {
        assert_eq!(result[key], value, "{key}");
    }
    assert_eq!(
        (&result["features"], &result["d_in"]),
        (&40.into(), &12.into())
    );
    let shown = json(dir, &["show", "ours", "--verify"]);
    assert_eq!(shown["manifest"]["kind"], "sae");
    assert_eq!(shown["manifest"]["site"], "blocks.1.hook_resid_post");
    // The artifact that was made is read in turn, and its files are in the parents' line.
    let digest = shown["digest"].as_str().unwrap();
    for format in ["gemma-scope", "dictionary-learning"] {
        let made = json(dir, &["sae", "convert", "ours", format, "--format", format]);
        assert_eq!(made["from"], "saelens");
        let shown = json(dir, &["show", format, "--verify"]);
        assert_eq!(shown["manifest"]["kind"], format!("sae-{format}"));
        assert_eq!(shown["manifest"]["parents"][0]["digest"], digest);
        let (a, b) = (
            load(Path::new(&from)).unwrap(),
            load(&dir.join(format)).unwrap(),
        );
        assert_eq!(a.sae, b.sae);
        assert_eq!(b.sae.n_features(), 40);
    }
}

#[test]
fn what_cannot_be_converted_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let top_k = fixture("dictionary-learning-AutoEncoderTopK");
    let convert = |from: &str, format: &str, words: &[&str]| {
        fails(
            dir,
            &["sae", "convert", from, "out", "--format", format],
            words,
        );
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    };
    convert(&top_k, "gemma-scope", &["gemma-scope", "topk", "threshold"]);
    convert(&fixture("saelens-gated"), "sparsify", &["gated", "TopK"]);
    convert("nowhere", "saelens", &["nowhere", "no such file"]);
    convert(&fixture("."), "saelens", &["no dictionary", "ae.pt"]);

    let to = |more: &[&'static str]| {
        [
            &["sae", "convert", &top_k, "out", "--format", "sparsify"],
            more,
        ]
        .concat()
    };
    json(dir, &to(&[]));
    fails(dir, &to(&[]), &["out"]);
    json(dir, &to(&["--force"]));
    // What stands there stays where the new one is refused.
    let gated = fixture("saelens-gated");
    fails(
        dir,
        &[
            "sae", "convert", &gated, "out", "--format", "sparsify", "--force",
        ],
        &["gated"],
    );
    assert!(dir.join("out/sae.safetensors").is_file());
    assert!(!dir.join("out.partial").exists());
    // A file of one's own is not taken away.
    fs::create_dir(dir.join("mine")).unwrap();
    fails(
        dir,
        &[
            "sae", "convert", &top_k, "mine", "--format", "saelens", "--force",
        ],
        &["mine"],
    );
}
