//! `sae synthetic` from outside: what it makes, what it refuses.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn run(dir: &Path, arguments: &str) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("pullback"))
        .current_dir(dir)
        .arg("--quiet")
        .args(["sae", "synthetic"])
        .args(arguments.split(' '))
        .output()
        .unwrap()
}

#[track_caller]
fn text(dir: &Path, arguments: &str) -> String {
    let output = run(dir, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

const SMALL: &str = "--truth 64 --d 24 --trees 4 --depth 1 --features 32 --k 4 --tokens 100000 --batch 64 --judge 8192 --seeds 2";

#[test]
fn kinds_are_compared_on_the_same_worlds() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let result: Value = serde_json::from_str(&text(
        dir,
        &format!("{SMALL} --kinds relu,batchtopk,topk -o out --json"),
    ))
    .unwrap();
    let table = result["table"].as_array().unwrap();
    let kinds: Vec<&str> = table
        .iter()
        .map(|line| line["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["topk", "batchtopk", "relu"]);
    let rows = result["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    for line in table {
        let of_kind: Vec<&Value> = rows
            .iter()
            .filter(|row| row["kind"] == line["kind"])
            .collect();
        assert_eq!(
            (&of_kind[0]["seed"], &of_kind[1]["seed"]),
            (&0.into(), &1.into())
        );
        for (column, key) in [
            ("mcc", "mcc"),
            ("explained", "explained_variance"),
            ("f1", "f1"),
        ] {
            let values = [0, 1].map(|i: usize| of_kind[i][key].as_f64().unwrap());
            let mean = line[column]["mean"].as_f64().unwrap();
            assert!((mean - f64::midpoint(values[0], values[1])).abs() < 1e-12);
            // Of two values the standard deviation is their distance over the root of two.
            let deviation = line[column]["deviation"].as_f64().unwrap();
            assert!((deviation - (values[0] - values[1]).abs() / 2.0_f64.sqrt()).abs() < 1e-9);
            assert!(values[0] > 0.3 && values[0] < 1.0 && values[0] != values[1]);
        }
        // What is asked for, or what the weight that was found leads to.
        let l0 = line["l0"]["mean"].as_f64().unwrap();
        assert!((l0 - 4.0).abs() < 1.5, "{l0}");
        assert_eq!(of_kind[0]["true_l0"], rows[0]["true_l0"]);
    }
    let weights = result["weights"].as_object().unwrap();
    assert!(weights.keys().eq(["relu"]) && weights["relu"].as_f64().unwrap() > 0.0);
    let written: Value =
        serde_json::from_slice(&fs::read(dir.join("out/result.json")).unwrap()).unwrap();
    assert_eq!(written, result);
    // Each dictionary is an artifact of its own; what was tried on the way is gone.
    let sae = pullback_sae::load(&dir.join("out/batchtopk-1")).unwrap().0;
    assert_eq!(sae.parts().encoder_bias.len(), 32);
    let latents: Value =
        serde_json::from_slice(&fs::read(dir.join("out/batchtopk-1/latents.json")).unwrap())
            .unwrap();
    assert_eq!(latents.as_array().unwrap().len(), 32);
    assert!(!dir.join("out/search").exists());

    // The same again, from what an interrupted run leaves: one dictionary is finished, the other one is not there.
    let only = format!("{SMALL} --kinds topk,batchtopk -o again");
    let first = text(dir, &format!("{only} --json"));
    fs::rename(dir.join("again"), dir.join("again.partial")).unwrap();
    for name in ["result.json", "pullback.json"] {
        fs::remove_file(dir.join("again.partial").join(name)).unwrap();
    }
    let wanted: Value = serde_json::from_str(&first).unwrap();
    let keys = ["world", "train", "kinds", "k", "seeds", "pieces"];
    let wanted: serde_json::Map<String, Value> = keys
        .into_iter()
        .map(|key| (key.to_owned(), wanted[key].clone()))
        .collect();
    fs::write(
        dir.join("again.partial/wanted.json"),
        Value::from(wanted).to_string(),
    )
    .unwrap();
    fs::remove_dir_all(dir.join("again.partial/topk-1")).unwrap();
    let before = fs::metadata(dir.join("again.partial/batchtopk-0/scores.json")).unwrap();
    assert_eq!(text(dir, &format!("{only} --json")), first);
    let after = fs::metadata(dir.join("again/batchtopk-0/scores.json")).unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
}

#[test]
fn what_makes_no_benchmark_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    for (arguments, word) in [
        ("--truth 64 --d 0", "width 0"),
        ("--truth 64 --d 8 --seeds 0", "at least one seed"),
        ("--truth 64 --d 8 --features 32 --k 40", "k is 40"),
        ("--truth 64 --d 8 --trees 4 --rank 1", "at least 4"),
        ("--truth 64 --d 4 --overlap 0.01", "an overlap of 0.01"),
        ("--truth 64 --d 8 --trees 65", "65 trees"),
        ("--truth 64 --d 8 --batch 0", "one row in a batch"),
        ("--truth 64 --d 8 --kinds best", "invalid value 'best'"),
    ] {
        let output = run(dir, &format!("{arguments} --tokens 4096 -o out"));
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments}");
        assert!(errors.contains(word), "`{word}` is not in: {errors}");
        assert!(!dir.join("out").exists());
    }
}
