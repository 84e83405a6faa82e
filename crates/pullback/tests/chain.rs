//! `pullback chain` from outside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn pullback(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("pullback"))
        .current_dir(dir)
        .args(arguments)
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_card_answers_the_questions() {
    let dir = TempDir::new().unwrap();
    let swap = json(&pullback(
        dir.path(),
        &[
            "chain",
            "qca",
            "--gate",
            "swap",
            "--range",
            "2",
            "--json",
            "-o",
            "swap.html",
        ],
    ));
    assert_eq!(swap["unitary"], true);
    assert_eq!(swap["index"], 0.0);
    assert_eq!(swap["dual_unitary"], true);
    assert_eq!(swap["clifford"], true);
    assert_eq!(swap["light_cone"]["right"], 2.0);
    assert!(swap["charges"]["1"].is_number() && swap["charges"]["2"].is_number());
    let page = std::fs::read_to_string(dir.path().join("swap.html")).unwrap();
    assert!(page.contains("A spreading operator") && page.contains("class=\"field"));
    let beside: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("swap.json")).unwrap()).unwrap();
    assert_eq!(beside, swap);
    let shift = json(&pullback(
        dir.path(),
        &["chain", "qca", "--gate", "shift", "--range", "1", "--json"],
    ));
    assert_eq!(shift["index"], 1.0);
    let again = pullback(
        dir.path(),
        &["chain", "qca", "--gate", "swap", "-o", "swap.html"],
    );
    assert_eq!(again.status.code(), Some(1));
}

#[test]
fn a_run_gives_rows_and_a_ledger() {
    let dir = TempDir::new().unwrap();
    let arguments = [
        "chain",
        "run",
        "--hamiltonian",
        "-1*ZZ - 2*X",
        "--sites",
        "10",
        "--state",
        "+",
        "--scheme",
        "optimized4-11",
        "--dt",
        "0.05",
        "--time",
        "0.5",
        "--observe",
        "X:4,ZZ:4,entropy:4,Z:*",
        "--json",
    ];
    let plain = json(&pullback(dir.path(), &arguments));
    let rows = plain["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 11);
    // The infinite chain's values at t = 0.5; ten sites are nearly as good.
    assert!((rows[10]["X:4"].as_f64().unwrap() - 0.820_433_514_575).abs() < 1e-3);
    assert!((rows[10]["ZZ:4"].as_f64().unwrap() - 0.359_132_970_851).abs() < 1e-3);
    assert!((rows[10]["entropy:4"].as_f64().unwrap() - 0.248_683_089_569).abs() < 1e-3);
    for key in ["discarded", "norm_drift", "energy_drift", "max_bond"] {
        assert!(plain["ledger"].get(key).is_some(), "{key}");
    }
    let kept = json(&pullback(
        dir.path(),
        &[&arguments[..], &["-o", "out"]].concat(),
    ));
    assert_eq!(kept["rows"], plain["rows"]);
    for file in ["pullback.json", "rows.csv", "result.json", "report.html"] {
        assert!(dir.path().join("out").join(file).exists(), "{file}");
    }
    assert!(!dir.path().join("out/checkpoint.safetensors").exists());
    let csv = std::fs::read_to_string(dir.path().join("out/rows.csv")).unwrap();
    assert!(csv.starts_with("t,X:4,ZZ:4,entropy:4,Z:0,") && csv.lines().count() == 12);
    let shown = pullback(dir.path(), &["show", "out", "--verify"]);
    assert!(
        shown.status.success(),
        "{}",
        String::from_utf8_lossy(&shown.stderr)
    );
}

#[test]
fn mistakes_are_told_with_their_place() {
    let dir = TempDir::new().unwrap();
    let message = |arguments: &[&str]| {
        let output = pullback(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    let run = [
        "chain",
        "run",
        "--sites",
        "8",
        "--steps",
        "2",
        "--hamiltonian",
    ];
    let bad = message(&[&run[..], &["-ZZ - 0.5*W"]].concat());
    let lines: Vec<&str> = bad.lines().collect();
    assert_eq!(lines[2].find('^'), lines[1].find('W'), "{bad}");
    assert!(message(&["chain", "qca", "--gate", "XX + YY"]).contains("not unitary"));
    assert!(
        message(&[
            "chain", "run", "--gate", "swap", "--sites", "8", "--time", "1"
        ])
        .contains("--steps")
    );
    assert!(
        message(&[
            "chain",
            "run",
            "--hamiltonian",
            "ising",
            "--sites",
            "80",
            "--time",
            "1"
        ])
        .contains("memory")
    );
    assert_eq!(
        pullback(dir.path(), &["chain", "run", "--sites", "8"])
            .status
            .code(),
        Some(2)
    );
    let list = json(&pullback(dir.path(), &["chain", "qca", "--list", "--json"]));
    assert!(
        list["models"]
            .as_array()
            .unwrap()
            .iter()
            .any(|m| m["name"] == "aklt")
    );
}
