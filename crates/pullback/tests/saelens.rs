//! What pullback trains and converts, read by SAELens itself.
//!
//! Not part of the default run: it needs Python with SAELens. With `PULLBACK_TEST_SAELENS` as the path of a Python that
//! has it, that one is used; otherwise a virtual environment is made and SAELens installed there (1 GB and more, from the
//! registry that pip is set up for).
//!
//! ```sh
//! PULLBACK_TEST_SAELENS=venv/bin/python cargo test -p pullback --test saelens -- --ignored --nocapture
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::print_stdout
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pullback_activations::ActivationStore;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// The version that the formats were written against.
const SAELENS: &str = "sae-lens==6.54.12";

const KINDS: [&str; 6] = [
    "topk",
    "batchtopk",
    "matryoshka",
    "jumprelu",
    "gated",
    "relu",
];

/// Which kinds each format can hold; the others have to be refused.
const FORMATS: [(&str, &[&str]); 4] = [
    ("saelens", &KINDS),
    ("dictionary-learning", &KINDS),
    ("sparsify", &["topk"]),
    (
        "gemma-scope",
        &["batchtopk", "matryoshka", "jumprelu", "gated", "relu"],
    ),
];

const FEATURES: usize = 96;

fn run(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("pullback"))
        .current_dir(dir)
        .env("PULLBACK_CACHE", dir.join("cache"))
        .env("PULLBACK_PIP", "false")
        .env("PULLBACK_NPM", "false")
        .env("HF_HOME", dir.join("huggingface"))
        .env("HF_HUB_OFFLINE", "1")
        .arg("--quiet")
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn succeeds(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn tiny_model() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../pullback-model/tests/fixtures/tiny-llama.gguf")
        .display()
        .to_string()
}

/// A store of the tiny model's activations.
fn harvest(dir: &Path, model: &str) -> ActivationStore {
    let words = ["the", "captain", "looked", "over", "a", "calm", "sea"];
    let mut state = 12_345_u64;
    fs::create_dir(dir.join("corpus")).unwrap();
    for document in 0..16 {
        let mut text = String::new();
        for _ in 0..300 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            text += words[(state >> 33) as usize % words.len()];
            text.push(' ');
        }
        fs::write(dir.join(format!("corpus/{document:02}.txt")), text).unwrap();
    }
    let arguments =
        "--text corpus --at 1.resid_post --tokens 3000 --held-out 512 --context 32 -o store";
    let arguments: Vec<&str> = ["harvest", model]
        .into_iter()
        .chain(arguments.split(' '))
        .collect();
    succeeds(run(dir, &arguments));
    ActivationStore::open(&dir.join("store")).unwrap()
}

/// Python with SAELens.
fn python(dir: &Path) -> PathBuf {
    if let Some(python) = std::env::var_os("PULLBACK_TEST_SAELENS") {
        return python.into();
    }
    let venv = dir.join("venv");
    let done = Command::new("python3")
        .args(["-m", "venv"])
        .arg(&venv)
        .status();
    assert!(
        done.unwrap().success(),
        "python3 makes no virtual environment"
    );
    let python = venv.join("bin/python");
    let done = Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", SAELENS])
        .status();
    assert!(done.unwrap().success(), "pip does not install {SAELENS}");
    python
}

#[test]
#[ignore = "needs Python with SAELens, or installs it: see the file's head"]
fn saelens_reads_every_kind_and_computes_the_same() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let python = python(dir);
    let model = tiny_model();
    let store = harvest(dir, &model);
    let d = store.info().d;
    let rows: Vec<f32> = (0..400).flat_map(|row| store.row(row).to_vec()).collect();
    let all = dir.join("all");
    fs::create_dir(&all).unwrap();
    let bytes: &[u8] = &rows
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect::<Vec<u8>>();
    let view = TensorView::new(Dtype::F32, vec![rows.len() / d, d], bytes).unwrap();
    safetensors::serialize_to_file([("x", view)], None, &all.join("x.safetensors")).unwrap();

    let mut expected = Vec::new();
    for kind in KINDS {
        let arguments = format!(
            "sae train store --kind {kind} --features {FEATURES} --k 6 --passes 4 --batch 256 -o {kind} --model"
        );
        let arguments: Vec<&str> = arguments.split(' ').chain([model.as_str()]).collect();
        succeeds(run(dir, &arguments));
        let codes = format!("sae encode {kind} --input all/x.safetensors -o {kind}-codes");
        succeeds(run(dir, &codes.split(' ').collect::<Vec<_>>()));
        let decode = format!("sae decode {kind} --input {kind}-codes -o {kind}-output");
        succeeds(run(dir, &decode.split(' ').collect::<Vec<_>>()));
        for (format, holds) in FORMATS {
            let name = format!("{kind}-{format}");
            let to = format!("all/{name}");
            let output = run(dir, &["sae", "convert", kind, &to, "--format", format]);
            if !holds.contains(&kind) {
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(!output.status.success(), "{format} took {kind}");
                assert!(error.contains("cannot hold"), "{error}");
                continue;
            }
            succeeds(output);
            let to = dir.join(to);
            fs::copy(
                dir.join(format!("{kind}-codes")),
                to.join("codes.safetensors"),
            )
            .unwrap();
            fs::copy(
                dir.join(format!("{kind}-output")),
                to.join("output.safetensors"),
            )
            .unwrap();
            let size = json!({ "d": d, "m": FEATURES });
            fs::write(to.join("size.json"), size.to_string()).unwrap();
            expected.push(name);
        }
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/saelens/read.py");
    let output = Command::new(python)
        .arg(script)
        .arg(&all)
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    let text = succeeds(output);
    let lines: Vec<Value> = text
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    expected.sort();
    let names: Vec<&str> = lines
        .iter()
        .map(|line| line["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, expected);
    for line in &lines {
        println!("{line}");
    }
    for line in &lines {
        let number = |key: &str| line[key].as_f64().unwrap();
        assert!(line["same_support"] == true, "{line}");
        assert!(
            number("codes") <= 1e-5 && number("output") <= 1e-5,
            "{line}"
        );
        // Something is active, and not everything.
        assert!(
            number("l0") > 0.5 && number("l0") < FEATURES as f64 * 0.9,
            "{line}"
        );
    }
}
