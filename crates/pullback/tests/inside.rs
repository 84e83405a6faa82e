//! `run` and `tokenize` from outside: recordings, logit lens, attribution, patching, generation options, ids.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

fn model() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../pullback-model/tests/fixtures/tiny-llama.gguf")
        .display()
        .to_string()
}

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("pullback"));
    command
        .current_dir(dir)
        .env("PULLBACK_CACHE", dir.join("cache"))
        .env("PULLBACK_PIP", "false")
        .env("PULLBACK_NPM", "false")
        .env("HF_HOME", dir.join("huggingface"))
        .env("HF_HUB_OFFLINE", "1")
        .args(arguments);
    command
}

/// A directory of its own, and the command `run` or `tokenize` on the tiny model there.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn output(&self, name: &str, arguments: &[&str]) -> Output {
        let model = model();
        let all: Vec<&str> = [name, &model]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        command(self.0.path(), &all).output().unwrap()
    }

    #[track_caller]
    fn text(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.output(name, arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, name: &str, arguments: &[&str]) -> Value {
        let all: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&self.text(name, &all)).unwrap()
    }

    #[track_caller]
    fn fails(&self, name: &str, arguments: &[&str], words: &[&str]) {
        let output = self.output(name, arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        let line = errors.lines().last().unwrap_or_default();
        assert!(line.starts_with("error: "), "{errors}");
        for word in words {
            assert!(line.contains(word), "`{word}` is not in: {line}");
        }
        assert!(output.stdout.is_empty());
    }

    #[track_caller]
    fn usage(&self, name: &str, arguments: &[&str]) {
        let output = self.output(name, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap())
        .collect()
}

#[test]
fn a_recording_has_a_tensor_a_site_and_says_where_it_is_from() {
    let place = Place::new();
    let sites = "0.resid_post,1.attn.q,1.k,0.pattern,1.scores,2.result,2.ln2.scale,logits";
    let sites = sites.replace("1.scores", "1.attn_scores");
    let run = [
        "--tokens",
        "5,7,11,3",
        "--record",
        &sites,
        "-o",
        "acts.safetensors",
    ];
    let told = place.json("run", &run);
    let bytes = fs::read(place.path("acts.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    let inspected = place.json("inspect", &[]);
    let size = |key: &str| usize::try_from(inspected[key].as_u64().unwrap()).unwrap();
    let (heads, d_head, d_model) = (size("heads"), size("d_head"), size("d_model"));
    assert_eq!(shape("blocks.0.hook_resid_post"), [4, d_model]);
    assert_eq!(shape("blocks.1.attn.hook_q"), [4, heads, d_head]);
    assert_eq!(shape("blocks.1.attn.hook_k"), [4, size("kv_heads"), d_head]);
    assert_eq!(shape("blocks.0.attn.hook_pattern"), [4, heads, 4]);
    assert_eq!(shape("blocks.1.attn.hook_attn_scores"), [4, heads, 4]);
    assert_eq!(shape("blocks.2.attn.hook_result"), [4, heads, d_model]);
    assert_eq!(shape("blocks.2.ln2.hook_scale"), [4, 1]);
    assert_eq!(shape("hook_logits"), [4, size("vocab")]);
    assert_eq!(tensors.len(), 8);
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let about = header.metadata().clone().unwrap();
    assert_eq!(about["ids"], "[5,7,11,3]");
    assert_eq!(about["model"], "tiny-llama");
    assert_eq!(about["digest"], inspected["digest"].as_str().unwrap());
    assert_eq!(told["sites"].as_array().unwrap().len(), 8);
    assert_eq!(numbers(&told["ids"]), [5.0, 7.0, 11.0, 3.0]);

    // The logits are those of the next-token table.
    let values: Vec<f32> = tensors
        .tensor("hook_logits")
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    let next = &place.json("run", &["--tokens", "5,7,11,3"])["next"][0];
    let id = usize::try_from(next["id"].as_u64().unwrap()).unwrap();
    let logit = f64::from(values[3 * size("vocab") + id]);
    assert!((logit - next["logit"].as_f64().unwrap()).abs() < 1e-4);
    // A pattern's rows sum to one.
    let pattern = tensors.tensor("blocks.0.attn.hook_pattern").unwrap();
    let pattern: Vec<f32> = pattern
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert!(
        pattern
            .chunks_exact(4)
            .all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5)
    );

    // Equal work leaves equal bytes, and nothing is overwritten unasked.
    place.fails("run", &run, &["acts.safetensors already exists", "--force"]);
    let forced: Vec<&str> = run.iter().copied().chain(["--force"]).collect();
    assert!(
        place
            .text("run", &forced)
            .contains("blocks.0.attn.hook_pattern")
    );
    assert_eq!(fs::read(place.path("acts.safetensors")).unwrap(), bytes);
}

#[test]
fn a_recording_that_cannot_be_is_refused() {
    let place = Place::new();
    let out = ["-o", "out.safetensors"];
    let with =
        |more: &[&'static str]| -> Vec<&'static str> { more.iter().copied().chain(out).collect() };
    place.fails(
        "run",
        &with(&["--tokens", "1,2", "--record", "9.resid_post"]),
        &["blocks.9.hook_resid_post", "blocks.0 to blocks.2"],
    );
    place.fails(
        "run",
        &with(&["--tokens", "1,999999", "--record", "0.resid_post"]),
        &["token id 999999"],
    );
    place.fails(
        "run",
        &["--tokens", "1", "--record", "0.resid_post", "-o", "."],
        &["is a directory"],
    );
    let two = ["--prompt", "a", "--prompt", "b", "--record", "0.resid_post"];
    place.fails("run", &with(&two), &["2 prompts"]);
    place.usage("run", &["--tokens", "1", "--record", "0.resid_post"]);
    place.usage("run", &with(&["--tokens", "1", "--record", "0.risid_post"]));
    place.usage("run", &["--tokens", "1", "--prompt", "a"]);
    place.usage(
        "run",
        &with(&["--tokens", "1", "--record", "0.resid_post", "--lens"]),
    );
    assert!(!place.path("out.safetensors").exists());
}

#[test]
fn the_lens_ends_at_the_next_token() {
    let place = Place::new();
    let prompt = ["--prompt", "The capital of France is"];
    let next = place.json("run", &prompt)["next"][0].clone();
    let with = |more: &[&'static str]| -> Vec<&'static str> {
        prompt
            .iter()
            .copied()
            .chain(["--lens"])
            .chain(more.iter().copied())
            .collect()
    };
    let found = place.json("run", &with(&["--lens-top", "2", "--plot", "lens.svg"]));
    let layers = found["lens"]["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    assert_eq!(layers[0]["site"], "blocks.0.hook_resid_pre");
    assert_eq!(layers[3]["site"], "blocks.2.hook_resid_post");
    let count = found["tokens"].as_array().unwrap().len();
    assert_eq!(found["ids"].as_array().unwrap().len(), count);
    assert_eq!(layers[3]["positions"].as_array().unwrap().len(), count);
    let last = &layers[3]["positions"][count - 1];
    assert_eq!(last["top"].as_array().unwrap().len(), 2);
    assert_eq!(last["top"][0]["id"], next["id"]);
    assert_eq!(found["lens"]["followed"]["id"], next["id"]);
    assert_eq!(last["followed"]["rank"], 1);
    let difference =
        last["followed"]["probability"].as_f64().unwrap() - next["probability"].as_f64().unwrap();
    assert!(difference.abs() < 1e-6);
    let picture = fs::read_to_string(place.path("lens.svg")).unwrap();
    assert!(picture.starts_with("<svg xmlns=") && picture.contains("probability"));
    let told = place.text("run", &with(&["--follow", "#7", "--position", "0"]));
    for words in [
        "block 2",
        "embedding",
        "rank",
        "after position 0",
        "(#7) followed",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(told.lines().all(|line| line.chars().count() <= 110));
}

#[test]
fn an_attribution_sums_to_the_logit() {
    let place = Place::new();
    let prompt = ["--prompt", "The capital of France is"];
    let next = place.json("run", &prompt)["next"].clone();
    let with = |more: &[&'static str]| -> Vec<&'static str> {
        prompt.iter().copied().chain(more.iter().copied()).collect()
    };
    let found = place.json("run", &with(&["--attribute", "--plot", "parts.html"]));
    let parts = found["attribution"]["parts"].as_array().unwrap();
    let sum = |found: &Value| -> f64 {
        let parts = found["attribution"]["parts"].as_array().unwrap();
        parts
            .iter()
            .map(|part| part["value"].as_f64().unwrap())
            .sum()
    };
    assert!((sum(&found) - next[0]["logit"].as_f64().unwrap()).abs() < 1e-3);
    assert_eq!(found["attribution"]["token"]["id"], next[0]["id"]);
    assert!(found["attribution"]["versus"].is_null());
    assert!(found["attribution"]["remainder"].as_f64().unwrap().abs() < 1e-4);
    let inspected = place.json("inspect", &[]);
    let heads = inspected["heads"].as_u64().unwrap() * inspected["layers"].as_u64().unwrap();
    let of = |kind: &str| parts.iter().filter(|part| part["part"] == kind).count() as u64;
    assert_eq!((of("head"), of("mlp"), of("embedding")), (heads, 3, 1));
    let head = parts.iter().find(|part| part["part"] == "head").unwrap();
    assert!(head["layer"] == 0 && head["head"] == 0);
    let page = fs::read_to_string(place.path("parts.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("block 2"));

    let second = format!("#{}", next[1]["id"]);
    let mut arguments = with(&["--attribute", "--versus"]);
    arguments.push(&second);
    let difference = place.json("run", &arguments);
    let of = |i: usize| next[i]["logit"].as_f64().unwrap();
    assert!((sum(&difference) - of(0) + of(1)).abs() < 1e-3);
    let told = place.text("run", &with(&["--attribute", "--top", "4"]));
    for words in ["other parts", "logit before any cap", "all heads"] {
        assert!(told.contains(words), "{words}: {told}");
    }
}

#[test]
fn patching_tells_where_the_answer_comes_from() {
    let place = Place::new();
    let arguments = |more: &[&'static str]| -> Vec<&'static str> {
        let first = ["--tokens", "5,7,11,3", "--answer", "#9", "--versus", "#4"];
        first.into_iter().chain(more.iter().copied()).collect()
    };
    let corrupted = "The sea is calm";
    let ids = place.json("run", &["--prompt", corrupted, "--lens"])["ids"].clone();
    let count = ids.as_array().unwrap().len();
    let heads = place.json("inspect", &[])["heads"].as_u64().unwrap();
    let heads = usize::try_from(heads).unwrap();
    assert_ne!(count, heads);
    let same: Vec<String> = (0..count).map(|i| (i + 3).to_string()).collect();
    let same = same.join(",");
    let clean = [
        "--tokens", &same, "--answer", "#9", "--versus", "#4", "--patch", corrupted,
    ];
    for (kind, by) in [
        ("resid_pre", "position"),
        ("attn_out", "position"),
        ("mlp_out", "position"),
        ("z", "head"),
    ] {
        let plot = format!("{kind}.svg");
        let all: Vec<&str> = clean
            .iter()
            .copied()
            .chain(["--patch-place", kind, "--plot", &plot])
            .collect();
        let found = place.json("run", &all)["patching"].clone();
        assert_eq!(found["place"], kind);
        assert_eq!(found["by"], by);
        assert_eq!(found["answer"]["id"], 9);
        assert_eq!(found["versus"]["id"], 4);
        let normalised = found["normalised"].as_array().unwrap();
        assert_eq!(normalised.len(), 3);
        let of = |key: &str| found[key]["difference"].as_f64().unwrap();
        let (low, high) = (of("corrupted"), of("clean"));
        for (row, raw) in normalised
            .iter()
            .zip(found["difference"].as_array().unwrap())
        {
            for (share, raw) in numbers(row).into_iter().zip(numbers(raw)) {
                assert!((share - (raw - low) / (high - low)).abs() < 1e-6);
            }
        }
        let columns = if by == "head" { heads } else { count };
        assert!(normalised.iter().all(|row| numbers(row).len() == columns));
        assert!(place.path(&plot).exists());
    }
    let told = place.text("run", &clean);
    assert!(
        told.contains("block 0") && told.contains("position"),
        "{told}"
    );
    place.fails(
        "run",
        &arguments(&["--patch", "x y z x y z x y z x y z"]),
        &["as many tokens", "have 4 and"],
    );
    let equal: Vec<&str> = clean
        .iter()
        .map(|&word| if word == "#4" { "#9" } else { word })
        .collect();
    place.fails("run", &equal, &["to both prompts", "--versus"]);
}

#[test]
fn what_is_no_token_or_no_picture_is_refused() {
    let place = Place::new();
    let prompt = ["--prompt", "The sea"];
    let with = |more: &[&'static str]| -> Vec<&'static str> {
        prompt.iter().copied().chain(more.iter().copied()).collect()
    };
    place.fails(
        "run",
        &with(&["--attribute", "extraordinary words"]),
        &["is not one token", "splits into", "#"],
    );
    place.fails(
        "run",
        &with(&["--attribute", "#999999"]),
        &["#999999", "#0 to #"],
    );
    place.fails(
        "run",
        &with(&["--lens", "--plot", "x.png"]),
        &["x.png", ".svg or .html"],
    );
    place.fails("run", &with(&["--plot", "x.svg"]), &["--plot goes with"]);
    place.fails("run", &with(&["--versus", "#1"]), &["--versus goes with"]);
    place.fails(
        "run",
        &with(&["--position", "1"]),
        &["--position goes with"],
    );
    place.fails(
        "run",
        &with(&["--lens", "--position", "99"]),
        &["--position is 99", "0 to"],
    );
    fs::write(place.path("there.svg"), "mine").unwrap();
    place.fails(
        "run",
        &with(&["--lens", "--plot", "there.svg"]),
        &["already exists"],
    );
    assert_eq!(fs::read(place.path("there.svg")).unwrap(), b"mine");
    place.usage(
        "run",
        &with(&["--patch", "x", "--patch-place", "resid_mid"]),
    );
    place.usage("run", &with(&["--lens", "--patch", "x"]));
}

#[test]
fn several_prompts_give_what_each_gives_alone() {
    let place = Place::new();
    let more = ["--max-tokens", "9"];
    let alone = |prompt: &'static str| {
        let all: Vec<&str> = ["--prompt", prompt].into_iter().chain(more).collect();
        place.json("run", &all)
    };
    let (first, second) = (alone("The capital of France is"), alone("A"));
    let both = ["--prompt", "The capital of France is", "--prompt", "A"];
    let both: Vec<&str> = both.into_iter().chain(more).collect();
    let found = place.json("run", &both);
    let texts = found["texts"].as_array().unwrap();
    assert_eq!(texts.len(), 2);
    assert_eq!((&texts[0], &texts[1]), (&first["text"], &second["text"]));
    assert_eq!(found["endings"][0], first["ending"]);
    assert_eq!(found["next"][1], second["next"]);
    assert!(found.get("text").is_none());
    let told = place.text("run", &both);
    assert!(told.contains("1. \"The capital of France is\""), "{told}");
}

#[test]
fn generation_options_change_the_text() {
    let place = Place::new();
    let with = |more: &[&str]| {
        let first = ["--prompt", "The", "--max-tokens", "24"];
        let all: Vec<&str> = first.into_iter().chain(more.iter().copied()).collect();
        place.json("run", &all)
    };
    let plain = with(&[]);
    let text = plain["text"].as_str().unwrap();
    assert_eq!(plain["ending"], "length");
    // A stop string is the middle of what comes otherwise.
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[characters.len() / 2..][..2].iter().collect();
    let stopped = with(&["--stop", "never to be seen", "--stop", &stop]);
    let before = text.split(&stop).next().unwrap();
    assert_eq!(stopped["text"], before);
    assert_eq!(stopped["ending"]["stop_string"], stop);
    let streamed = place.text(
        "run",
        &["--prompt", "The", "--max-tokens", "24", "--stop", &stop],
    );
    assert!(streamed.ends_with(&format!("{before}\n")), "{streamed:?}");
    // With one token left to choose from, sampling is greedy.
    let narrow = with(&["--temperature", "2", "--min-p", "1", "--seed", "3"]);
    assert_eq!(narrow["text"], plain["text"]);
    assert_ne!(
        with(&["--temperature", "2", "--seed", "3"])["text"],
        plain["text"]
    );
    assert_ne!(with(&["--repetition-penalty", "20"])["text"], plain["text"]);
    let prompt = ["--prompt", "The"];
    for (option, value, words) in [
        ("--min-p", "1.5", "from 0 to 1"),
        ("--repetition-penalty", "0", "above 0"),
        ("--stop", "", "--stop is empty"),
    ] {
        place.fails("run", &[prompt[0], prompt[1], option, value], &[words]);
    }
}

#[test]
fn text_to_ids_and_back() {
    let place = Place::new();
    let found = place.json("tokenize", &["The sea is calm"]);
    let ids = found["ids"].as_array().unwrap();
    let tokens: Vec<&str> = found["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t.as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), tokens.len());
    assert_eq!(tokens.concat().trim_start(), "The sea is calm");
    let list: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let list = list.join(",");
    assert_eq!(
        place.json("tokenize", &["--decode", &list])["text"],
        "The sea is calm"
    );
    assert_eq!(
        place.text("tokenize", &["--decode", &list]),
        "The sea is calm\n"
    );
    let table = place.text("tokenize", &["The sea is calm"]);
    assert_eq!(table.lines().count(), ids.len() + 1);
    let model = model();
    let mut child = command(place.0.path(), &["tokenize", &model, "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"The sea is calm")
        .unwrap();
    let read: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(read, found);

    let bos = place.json("inspect", &[])["tokenizer"]["bos"].clone();
    assert_eq!(place.json("tokenize", &["The", "--bos"])["ids"][0], bos);
    let name = place.json("tokenize", &["", "--bos"])["tokens"][0].clone();
    let name = name.as_str().unwrap();
    assert_eq!(
        place.json("tokenize", &[name])["ids"],
        serde_json::json!([bos])
    );
    let plain = place.json("tokenize", &[name, "--no-special"]);
    assert!(plain["ids"].as_array().unwrap().len() > 1, "{plain}");
    place.fails(
        "tokenize",
        &["--decode", "1,999999"],
        &["999999", "does not exist"],
    );
    place.usage("tokenize", &[]);
    place.usage("tokenize", &["text", "--decode", "1"]);
    place.usage("tokenize", &["--decode", "one"]);
}

#[test]
fn inspect_has_the_sizes_at_the_top() {
    let found = Place::new().json("inspect", &[]);
    for key in [
        "layers",
        "d_model",
        "heads",
        "kv_heads",
        "d_head",
        "d_mlp",
        "vocab",
        "context",
        "parameters",
    ] {
        assert!(found[key].as_u64().unwrap() > 0, "{key}");
    }
    assert_eq!(found["architecture"], "llama");
    let sites: Vec<&str> = found["sites"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_str().unwrap())
        .collect();
    for site in [
        "hook_embed",
        "blocks.2.attn.hook_pattern",
        "blocks.0.hook_resid_pre",
        "hook_logits",
    ] {
        assert!(sites.contains(&site), "{site}");
    }
}
