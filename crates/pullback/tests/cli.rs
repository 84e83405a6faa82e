//! The program from outside: outputs, exit statuses, bad input, resuming. The model is the tiny one of
//! `pullback-model`'s fixtures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

#[path = "../../pullback-artifact/tests/common/hub_server.rs"]
mod hub_server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hub_server::{Access, COMMIT, Fault, HubServer};
use serde_json::Value;
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../pullback-model/tests/fixtures")
        .join(name)
}

/// The tiny model, told that it may read long texts: the built-in pairs outgrow its 64 positions.
fn model(dir: &Path) -> String {
    let path = dir.join("tiny-llama.gguf");
    let mut bytes = fs::read(fixture("tiny-llama.gguf")).unwrap();
    let key = b"llama.context_length";
    let at = bytes
        .windows(key.len())
        .position(|window| window == key)
        .unwrap()
        + key.len();
    // After the key stand the type, u32, and the value.
    assert_eq!(bytes[at..at + 4], 4_u32.to_le_bytes());
    bytes[at + 4..at + 8].copy_from_slice(&4096_u32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

/// The program, in a directory of its own, with a cache that holds nothing and clients that fetch nothing.
fn pullback(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("pullback"));
    command
        .current_dir(dir)
        .env("PULLBACK_CACHE", dir.join("cache"))
        .env("PULLBACK_PIP", "false")
        .env("PULLBACK_NPM", "false")
        .env("HF_HOME", dir.join("huggingface"))
        .env("HF_HUB_OFFLINE", "1")
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_TOKEN")
        .env_remove("HF_TOKEN_PATH")
        .env_remove("HF_ENDPOINT")
        .args(arguments);
    command
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    pullback(dir, arguments).output().unwrap()
}

#[track_caller]
fn json(dir: &Path, arguments: &[&str]) -> Value {
    let output = run(dir, arguments);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Fails with status 1 and one line that holds all the words; leaves no new file behind.
#[track_caller]
fn fails(dir: &Path, arguments: &[&str], words: &[&str]) {
    let output = run(dir, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let line = errors.lines().last().unwrap_or_default();
    assert!(line.starts_with("error: "), "{errors}");
    for word in words {
        assert!(line.contains(word), "`{word}` is not in: {line}");
    }
    assert!(!errors.contains("panicked"), "{errors}");
    assert!(!dir.join("out").exists());
}

/// Some documents of English-like sentences, enough for a tiny harvest.
fn corpus(dir: &Path) -> String {
    let words = [
        "the", "captain", "looked", "over", "a", "calm", "sea", "and", "said", "that", "wind",
        "would", "rise",
    ];
    let path = dir.join("corpus");
    fs::create_dir_all(&path).unwrap();
    let mut state = 12_345_u64;
    for document in 0..24 {
        let mut text = String::new();
        for _ in 0..700 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            text += words[(state >> 33) as usize % words.len()];
            text.push(' ');
        }
        fs::write(path.join(format!("{document:02}.txt")), text).unwrap();
    }
    path.display().to_string()
}

const SMALL: [&str; 16] = [
    "--tokens",
    "6000",
    "--held-out",
    "1024",
    "--features",
    "96",
    "--k",
    "4",
    "--passes",
    "2",
    "--epochs",
    "1",
    "--top",
    "5",
    "--rank",
    "3",
];

fn quickstart(dir: &Path, out: &str, more: &[&str]) -> Command {
    let (model, corpus) = (model(dir), corpus(dir));
    let mut arguments = vec![
        "quickstart",
        "--model",
        &model,
        "--text",
        &corpus,
        "--at",
        "1.resid_post",
        "-o",
        out,
    ];
    arguments.extend(SMALL);
    arguments.extend(more);
    pullback(dir, &arguments)
}

#[test]
fn quickstart_tells_the_whole_story_and_a_second_call_only_reads_it() {
    let dir = TempDir::new().unwrap();
    let first = quickstart(dir.path(), "qs", &[]).output().unwrap();
    assert!(
        first.status.success(),
        "{}",
        String::from_utf8_lossy(&first.stderr)
    );
    let told = String::from_utf8(first.stdout).unwrap();
    assert!(
        told.contains("qs/report.html") && told.contains("qs/summary.json"),
        "{told}"
    );
    let summary: Value =
        serde_json::from_slice(&fs::read(dir.path().join("qs/summary.json")).unwrap()).unwrap();
    assert_eq!(summary["model"], "tiny-llama");
    assert_eq!(summary["site"], "blocks.1.hook_resid_post");
    assert!(summary["tokens_harvested"].as_u64().unwrap() >= 7000);
    for key in [
        "features",
        "k",
        "explained_variance",
        "l0",
        "dead_fraction",
        "ce_clean",
        "ce_spliced",
        "ce_zero",
        "ce_score",
        "train_tokens_per_second",
    ] {
        assert!(
            summary["sae"][key].is_number(),
            "sae.{key}: {}",
            summary["sae"]
        );
    }
    for key in ["rank", "loss_before", "loss_after"] {
        assert!(summary["adapter"][key].is_number(), "adapter.{key}");
    }
    assert!(summary["adapter"]["loss_after"].as_f64() < summary["adapter"]["loss_before"].as_f64());
    let spearman = summary["agreement_spearman"].as_f64().unwrap();
    assert!((-1.0..=1.0).contains(&spearman));
    let changed = summary["changed_features"].as_array().unwrap();
    assert_eq!(changed.len(), 5);
    let sizes: Vec<f64> = changed
        .iter()
        .map(|c| c["measured"].as_f64().unwrap().abs())
        .collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
    for key in ["feature", "predicted", "measured", "density"] {
        assert!(changed[0][key].is_number(), "{key}");
    }
    assert_eq!(changed[0]["promoted"].as_array().unwrap().len(), 10);
    assert_eq!(changed[0]["suppressed"].as_array().unwrap().len(), 10);
    let example = &changed[0]["examples"][0];
    assert!(
        example["text"]
            .as_str()
            .unwrap()
            .contains(example["token"].as_str().unwrap())
    );
    assert!(example["activation"].as_f64().unwrap() > 0.0);
    for stage in [
        "fetch", "harvest", "train", "evaluate", "adapt", "answer", "explain",
    ] {
        assert!(summary["seconds"][stage].is_number(), "seconds.{stage}");
    }
    let page = fs::read_to_string(dir.path().join("qs/report.html")).unwrap();
    assert!(
        page.starts_with("<!DOCTYPE html>")
            && !page.contains("http://")
            && !page.contains("https://")
    );
    for artifact in ["store", "sae", "adapter"] {
        let shown = json(
            dir.path(),
            &["show", &format!("qs/{artifact}"), "--verify", "--json"],
        );
        assert_eq!(shown["manifest"]["kind"], artifact);
    }

    let again = quickstart(dir.path(), "qs", &["--json", "--quiet"])
        .output()
        .unwrap();
    assert!(
        again.status.success() && again.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&again.stderr)
    );
    let mut result: Value = serde_json::from_slice(&again.stdout).unwrap();
    let (mut once, mut twice) = (summary.clone(), result["result"].take());
    once["seconds"] = Value::Null;
    twice["seconds"] = Value::Null;
    assert_eq!(once, twice);

    let other = quickstart(dir.path(), "qs", &["--seed", "9"])
        .output()
        .unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&other.stderr).contains("was made with other options: use --force")
    );
}

#[cfg(unix)]
#[test]
fn an_interrupted_quickstart_goes_on_to_the_same_artifacts() {
    let dir = TempDir::new().unwrap();
    assert!(
        quickstart(dir.path(), "whole", &["--quiet"])
            .output()
            .unwrap()
            .status
            .success()
    );
    let mut interrupted = 0;
    for wait in [
        200, 350, 500, 700, 900, 1200, 1600, 2200, 3000, 6000, 20_000,
    ] {
        let mut child = quickstart(dir.path(), "parts", &["--quiet"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let start = std::time::Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed().as_millis() > wait {
                // The signal of Ctrl-C.
                Command::new("kill")
                    .args(["-INT", &child.id().to_string()])
                    .status()
                    .unwrap();
                break child.wait().unwrap();
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        match status.code() {
            Some(0) => break,
            Some(130) => interrupted += 1,
            other => panic!("status {other:?}"),
        }
    }
    assert!(interrupted > 0, "nothing was interrupted");
    for artifact in ["store", "sae", "adapter"] {
        let digest = |which: &str| {
            json(
                dir.path(),
                &["show", &format!("{which}/{artifact}"), "--json"],
            )["digest"]
                .clone()
        };
        assert_eq!(digest("whole"), digest("parts"), "{artifact}");
    }
}

#[test]
fn the_separate_commands_do_what_quickstart_does() {
    let dir = TempDir::new().unwrap();
    let (model, corpus, d) = (model(dir.path()), corpus(dir.path()), dir.path());
    let harvested = json(
        d,
        &[
            "harvest",
            &model,
            "--text",
            &corpus,
            "--at",
            "blocks.1.hook_resid_post",
            "--tokens",
            "6000",
            "--held-out",
            "1024",
            "-o",
            "store",
            "--json",
        ],
    );
    assert_eq!(harvested["site"], "blocks.1.hook_resid_post");
    assert_eq!(harvested["d"], 32);
    assert!(
        harvested["tokens"].as_u64().unwrap() >= 7000
            && harvested["tokens_per_second"].as_f64().unwrap() > 0.0
    );
    let trained = json(
        d,
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
            "--model",
            &model,
            "-o",
            "sae",
            "--json",
        ],
    );
    let judged = json(
        d,
        &[
            "sae", "eval", "sae", "--store", "store", "--model", &model, "--json",
        ],
    );
    assert_eq!(trained, judged);
    let adapted = json(
        d,
        &[
            "adapt",
            "train",
            &model,
            "--at",
            "1.resid_post",
            "--rank",
            "3",
            "--epochs",
            "1",
            "-o",
            "adapter",
            "--json",
        ],
    );
    assert_eq!(adapted["rank"], 3);
    let explained = json(
        d,
        &[
            "adapt", "explain", "adapter", "--sae", "sae", "--store", "store", "--model", &model,
            "--top", "4", "--json",
        ],
    );
    assert_eq!(explained["features"].as_array().unwrap().len(), 4);
    assert!((0.0..=1.0).contains(&explained["residual_fraction"].as_f64().unwrap()));
    // The adapter changes what the model says; a dictionary in place does, too.
    let clean = json(d, &["run", &model, "--prompt", "the sea", "--json"]);
    let changed = json(
        d,
        &[
            "run",
            &model,
            "--prompt",
            "the sea",
            "--adapter",
            "adapter",
            "--json",
        ],
    );
    let spliced = json(
        d,
        &[
            "run", &model, "--prompt", "the sea", "--splice", "sae", "--json",
        ],
    );
    assert_ne!(clean, changed);
    assert_ne!(clean, spliced);
    let absurd = usize::MAX.to_string();
    fails(
        d,
        &[
            "sae",
            "train",
            "store",
            "--features",
            &absurd,
            "--model",
            &model,
            "-o",
            "out",
        ],
        &["too many", &absurd],
    );
    // What was made for something else is refused.
    json(
        d,
        &[
            "harvest",
            &model,
            "--text",
            &corpus,
            "--at",
            "0.resid_post",
            "--tokens",
            "3000",
            "--held-out",
            "256",
            "-o",
            "other",
            "--json",
        ],
    );
    fails(
        d,
        &["sae", "eval", "sae", "--store", "other", "--model", &model],
        &["blocks.1.hook_resid_post", "blocks.0.hook_resid_post"],
    );
    fails(
        d,
        &["sae", "eval", "store", "--store", "store"],
        &["`store`", "`sae`"],
    );
    fails(
        d,
        &["harvest", &model, "--text", &corpus, "-o", "store"],
        &["store already exists", "--force"],
    );
}

#[test]
fn run_prints_the_next_tokens_and_text() {
    let dir = TempDir::new().unwrap();
    let model = model(dir.path());
    let result = json(
        dir.path(),
        &[
            "run",
            &model,
            "--prompt",
            "The capital of France is",
            "--json",
        ],
    );
    let next = result["next"].as_array().unwrap();
    assert_eq!(next.len(), 10);
    assert!(result.get("text").is_none());
    assert!(
        next.windows(2)
            .all(|w| w[0]["logit"].as_f64() >= w[1]["logit"].as_f64())
    );
    let total: f64 = next
        .iter()
        .map(|n| n["probability"].as_f64().unwrap())
        .sum();
    assert!(total > 0.0 && total <= 1.0);
    let with_text = |more: &[&str]| {
        let mut arguments = vec![
            "run",
            &model,
            "--prompt",
            "The",
            "--max-tokens",
            "12",
            "--json",
        ];
        arguments.extend(more);
        json(dir.path(), &arguments)["text"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(!with_text(&[]).is_empty());
    assert_eq!(
        with_text(&["--temperature", "1.5", "--seed", "4"]),
        with_text(&["--temperature", "1.5", "--seed", "4"])
    );
    assert_ne!(
        with_text(&["--temperature", "1.5", "--seed", "4"]),
        with_text(&["--temperature", "1.5", "--seed", "5"])
    );
    let table = run(dir.path(), &["run", &model, "--prompt", "The"]);
    assert!(String::from_utf8(table.stdout).unwrap().lines().count() == 11);
}

#[test]
fn bad_input_is_one_clear_error() {
    let dir = TempDir::new().unwrap();
    let d = dir.path();
    let whole = fs::read(fixture("tiny-llama.gguf")).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        fs::write(d.join(name), bytes).unwrap();
        name.to_owned()
    };
    let corpus = corpus(d);
    for (name, bytes, words) in [
        (
            "short.gguf",
            whole[..whole.len() / 2].to_vec(),
            ["short.gguf", "cut short", "missing"],
        ),
        (
            "absurd.gguf",
            // The number of tensors, right after magic and version.
            [&whole[..8], &u64::MAX.to_le_bytes()[..], &whole[16..]].concat(),
            ["absurd.gguf", "tensor", "18446744073709551615"],
        ),
        (
            "family.gguf",
            String::from_utf8_lossy(&whole[..256])
                .find("llama")
                .map_or_else(Vec::new, |_| replaced(&whole, b"llama", b"bloom")),
            ["family.gguf", "bloom", "llama"],
        ),
        (
            "text.gguf",
            b"this is no model".to_vec(),
            ["text.gguf", "", ""],
        ),
    ] {
        let name = write(name, &bytes);
        fails(d, &["inspect", &name], &words);
        fails(
            d,
            &["harvest", &name, "--text", &corpus, "-o", "out"],
            &words,
        );
    }
    let model = model(dir.path());
    let picture = write("picture.txt", b"\x89PNG\r\n\x1a\n\0\0");
    fails(
        d,
        &["harvest", &model, "--text", &picture, "-o", "out"],
        &["picture.txt", "not text", "byte 0"],
    );
    fails(
        d,
        &["harvest", &model, "--text", "nowhere.txt", "-o", "out"],
        &["nowhere.txt", "No such file"],
    );
    fails(
        d,
        &["inspect", "nowhere.gguf"],
        &["nowhere.gguf", "does not exist"],
    );
    fails(
        d,
        &["inspect", "no-such-name"],
        &["no-such-name", "smollm2-135m-instruct"],
    );
    fails(
        d,
        &["inspect", "no/such-name"],
        &["no/such-name does not exist as a file", "HF_HUB_OFFLINE"],
    );
    fails(
        d,
        &["inspect", "no/such-name:model.bin"],
        &["no/such-name:model.bin", "not a .gguf file"],
    );
    fails(
        d,
        &["inspect", "no/such/directory"],
        &["no/such/directory does not exist", "owner/name"],
    );
    let tiny = write("tiny.txt", b"too little text");
    fails(
        d,
        &["harvest", &model, "--text", &tiny, "-o", "out"],
        &["tiny.txt", "too small", "are wanted"],
    );
    fails(
        d,
        &[
            "harvest",
            &model,
            "--text",
            &corpus,
            "--at",
            "7.resid_post",
            "-o",
            "out",
        ],
        &["blocks.7.hook_resid_post", "blocks.0 to blocks.2"],
    );
    fails(d, &["run", &model, "--prompt", ""], &["no tokens"]);
    fails(d, &["show", "."], &["not a pullback artifact"]);
    let absurd = usize::MAX.to_string();
    fails(
        d,
        &[
            "harvest", &model, "--text", &corpus, "--batch", &absurd, "-o", "out",
        ],
        &["too large", &absurd],
    );
    fails(
        d,
        &[
            "harvest", &model, "--text", &corpus, "--tokens", &absurd, "-o", "out",
        ],
        &["too small"],
    );
    fails(
        d,
        &["adapt", "train", &model, "--rank", &absurd, "-o", "out"],
        &["rank", "width 32"],
    );
    fails(
        d,
        &[
            "quickstart",
            "--model",
            &model,
            "--text",
            &corpus,
            "--held-out",
            "0",
            "-o",
            "out",
        ],
        &["--held-out is 0"],
    );
    let pairs = write("pairs.jsonl", b"{\"prompt\": 3}\n");
    fails(
        d,
        &["adapt", "train", &model, "--data", &pairs, "-o", "out"],
        &["pairs.jsonl", "line 1"],
    );
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes
        .windows(from.len())
        .position(|window| window == from)
        .unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn wrong_usage_is_status_two() {
    let dir = TempDir::new().unwrap();
    for arguments in [
        &["no-such-command"][..],
        &["harvest"],
        &["run", "x", "--temperature", "warm"],
        &[
            "harvest",
            "x",
            "--text",
            "y",
            "--at",
            "blocks.3.hook_risid_post",
            "-o",
            "z",
        ],
        &["run", "x", "--config", "none.toml"],
    ] {
        assert_eq!(
            run(dir.path(), arguments).status.code(),
            Some(2),
            "{arguments:?}"
        );
    }
    let wrong = run(
        dir.path(),
        &[
            "harvest",
            "x",
            "--text",
            "y",
            "--at",
            "blocks.3.hook_risid_post",
            "-o",
            "z",
        ],
    );
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("hook_resid_post"));
}

#[test]
fn options_can_come_from_a_file_and_the_command_line_wins() {
    let dir = TempDir::new().unwrap();
    let model = model(dir.path());
    fs::write(
        dir.path().join("run.toml"),
        "prompt = \"The\"\nmax_tokens = 3\ntop = 4\n",
    )
    .unwrap();
    let from_file = json(
        dir.path(),
        &["run", &model, "--config", "run.toml", "--json"],
    );
    assert_eq!(from_file["next"].as_array().unwrap().len(), 4);
    assert!(from_file["text"].is_string());
    let overridden = json(
        dir.path(),
        &[
            "run", &model, "--config", "run.toml", "--top", "2", "--json",
        ],
    );
    assert_eq!(overridden["next"].as_array().unwrap().len(), 2);
    fs::write(dir.path().join("run.toml"), "promt = \"The\"\n").unwrap();
    let wrong = run(dir.path(), &["run", &model, "--config", "run.toml"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("`promt` is no option"));
}

/// The tiny model in both layouts, as a repository of a hub.
fn tiny_hub() -> HubServer {
    let tiny = |name: &str| fs::read(fixture("tiny-llama").join(name)).unwrap();
    HubServer::new([
        ("README.md", b"# Tiny".to_vec()),
        ("config.json", tiny("config.json")),
        ("model.safetensors", tiny("model.safetensors")),
        ("tokenizer.json", tiny("tokenizer.json")),
        ("tokenizer_config.json", tiny("tokenizer_config.json")),
        (
            "tiny-llama.gguf",
            fs::read(fixture("tiny-llama.gguf")).unwrap(),
        ),
    ])
}

/// The program, with this hub instead of the real one.
fn with_hub(dir: &Path, hub: &HubServer, arguments: &[&str]) -> Command {
    let mut command = pullback(dir, arguments);
    command
        .env("HF_ENDPOINT", &hub.endpoint)
        .env_remove("HF_HUB_OFFLINE");
    command
}

fn parsed(output: Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_repository_of_the_hub_is_pulled_and_used_wherever_a_model_is() {
    let (dir, hub) = (TempDir::new().unwrap(), tiny_hub());
    let d = dir.path();
    let ask = |arguments: &[&str]| with_hub(d, &hub, arguments).output().unwrap();

    let pulled = parsed(ask(&["pull", "owner/name", "--json"]));
    let snapshot = d
        .join("huggingface/hub/models--owner--name/snapshots")
        .join(COMMIT);
    assert_eq!(pulled["path"], snapshot.display().to_string());
    assert_eq!(pulled["commit"], COMMIT);
    assert_eq!(pulled["revision"], "main");
    assert_eq!(pulled["from_cache"], false);
    assert!(!snapshot.join("README.md").exists());
    assert_eq!(
        parsed(ask(&["pull", "owner/name", "--json"]))["from_cache"],
        true
    );

    // From here on without a network.
    hub.asked();
    let from_hub = json(d, &["inspect", "owner/name", "--json"]);
    let from_disk = fixture("tiny-llama").display().to_string();
    let from_disk = json(d, &["inspect", &from_disk, "--json"]);
    assert_eq!(from_hub["name"], "owner/name");
    assert_eq!(from_hub["digest"], from_disk["digest"]);
    assert!(from_hub["parameters"].as_u64().unwrap() > 0);
    let path = snapshot.display().to_string();
    assert_eq!(
        json(d, &["inspect", &path, "--json"])["digest"],
        from_disk["digest"]
    );
    let first = json(d, &["run", "owner/name", "--prompt", "a sea", "--json"]);
    let second = json(d, &["run", &path, "--prompt", "a sea", "--json"]);
    assert_eq!(first["next"], second["next"]);
    assert!(
        first["next"]
            .as_array()
            .is_some_and(|next| !next.is_empty()),
        "{first}"
    );
    assert!(hub.asked().is_empty());

    // A file of it, fetched when it is needed.
    let reference = "owner/name@main:tiny-llama.gguf";
    fails(
        d,
        &["inspect", reference],
        &["lacks tiny-llama.gguf", "HF_HUB_OFFLINE"],
    );
    let one = parsed(ask(&["inspect", reference, "--json"]));
    assert_eq!(one["name"], reference);
    let gguf = fixture("tiny-llama.gguf").display().to_string();
    assert_eq!(
        one["digest"],
        json(d, &["inspect", &gguf, "--json"])["digest"]
    );

    // What lies here under that name comes first.
    fs::create_dir_all(d.join("owner/name")).unwrap();
    fails(d, &["inspect", "owner/name"], &["owner/name"]);
}

#[test]
fn an_artifact_finds_its_model_on_the_hub_again() {
    let (dir, hub) = (TempDir::new().unwrap(), tiny_hub());
    let (d, text) = (dir.path(), corpus(dir.path()));
    let harvest = [
        "harvest",
        "owner/name",
        "--text",
        &text,
        "--tokens",
        "2000",
        "--held-out",
        "512",
        "--context",
        "32",
        "-o",
        "store",
        "--json",
    ];
    parsed(with_hub(d, &hub, &harvest).output().unwrap());
    let manifest = json(d, &["show", "store", "--json"]);
    assert_eq!(manifest["manifest"]["model"]["name"], "owner/name");
    let train = [
        "sae",
        "train",
        "store",
        "--features",
        "64",
        "--k",
        "4",
        "--passes",
        "1",
        "-o",
        "sae",
    ];
    let output = run(d, &train);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

#[test]
fn the_hub_refuses_and_the_program_says_what_to_do() {
    let (dir, hub) = (TempDir::new().unwrap(), tiny_hub());
    let d = dir.path();
    let fails = |arguments: &[&str], token: &str, words: &[&str]| {
        let mut command = with_hub(d, &hub, arguments);
        if !token.is_empty() {
            command.env("HF_TOKEN", token);
        }
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        for word in words {
            assert!(errors.contains(word), "`{word}` is not in: {errors}");
        }
        assert!(
            !errors.contains("panicked") && !errors.contains("hf_"),
            "{errors}"
        );
    };
    fails(
        &["pull", "owner/other"],
        "",
        &["no repository `owner/other`", "HF_TOKEN"],
    );
    fails(
        &["run", "owner/other", "--prompt", "x"],
        "",
        &["does not exist as a file"],
    );
    fails(&["pull", "owner/name@v7"], "", &["no revision `v7`"]);
    fails(
        &["pull", "owner/name:x.gguf"],
        "",
        &["x.gguf", "tiny-llama.gguf"],
    );
    hub.state().access = Access::Gated;
    fails(&["pull", "owner/name"], "", &["is gated", "ask for access"]);
    fails(
        &["pull", "owner/name"],
        "hf_bad",
        &["is gated", "token that was sent"],
    );
    // The token of a file, as `hf auth login` leaves it; the cache where a variable says.
    fs::create_dir_all(d.join("huggingface")).unwrap();
    fs::write(d.join("huggingface/token"), "hf_good\n").unwrap();
    let output = with_hub(d, &hub, &["pull", "owner/name"])
        .env("HF_HUB_CACHE", d.join("elsewhere"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(d.join("elsewhere/models--owner--name/refs/main").is_file());
    assert!(!d.join("huggingface/hub").exists());
}

#[cfg(unix)]
#[test]
fn an_interrupted_pull_ends_with_130_and_goes_on() {
    let (dir, hub) = (TempDir::new().unwrap(), tiny_hub());
    let d = dir.path();
    hub.state().faults = vec![Fault::Stall(5000)];
    let child = with_hub(d, &hub, &["pull", "owner/name"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let blobs = d.join("huggingface/hub/models--owner--name/blobs");
    let begun = || {
        fs::read_dir(&blobs)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| {
                entry.file_name().to_string_lossy().ends_with(".incomplete")
                    && entry.metadata().is_ok_and(|part| part.len() == 5000)
            })
    };
    while !begun() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&output.stderr).contains("goes on"));
    assert!(begun());
    let output = with_hub(d, &hub, &["pull", "owner/name"]).output().unwrap();
    assert!(output.status.success());
    let state = hub.state();
    let resumed = state
        .requests
        .iter()
        .any(|request| request.headers.get("range").map(String::as_str) == Some("bytes=5000-"));
    assert!(resumed);
}

#[cfg(not(feature = "gpu"))]
#[test]
fn a_device_that_is_not_built_in_is_said_before_anything_is_done() {
    let dir = TempDir::new().unwrap();
    fails(
        dir.path(),
        &["run", "no/such-model", "--prompt", "x", "--device", "gpu"],
        &["--device gpu", "--features gpu"],
    );
}
