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

#[test]
fn matrix_product_states_run_where_amplitudes_would_not_fit() {
    let dir = TempDir::new().unwrap();
    let rows = |engine: &str, sites: &str, at: &str| {
        let observe = format!("X:{at},ZZ:{at},entropy:{at}");
        json(&pullback(
            dir.path(),
            &[
                "chain",
                "run",
                "--hamiltonian",
                "-1*ZZ - 2*X",
                "--sites",
                sites,
                "--state",
                "+",
                "--engine",
                engine,
                "--dt",
                "0.05",
                "--time",
                "0.5",
                "--every",
                "5",
                "--max-bond",
                "50",
                "--observe",
                &observe,
                "--json",
            ],
        ))
    };
    // Values of the infinite chain from the specification, at t = 0.25 and 0.5.
    let known = [
        (1, 0.836_157_679_218, 0.327_684_641_564, 0.180_324_336_192),
        (2, 0.820_433_514_575, 0.359_132_970_851, 0.248_683_089_569),
    ];
    for engine in ["mps", "infinite"] {
        let result = rows(engine, "80", "39");
        for (row, x, zz, entropy) in known {
            let row = &result["rows"][row];
            assert!((row["X:39"].as_f64().unwrap() - x).abs() < 1e-6);
            assert!((row["ZZ:39"].as_f64().unwrap() - zz).abs() < 1e-6);
            assert!((row["entropy:39"].as_f64().unwrap() - entropy).abs() < 1e-6);
        }
        let ledger = &result["ledger"];
        assert!(ledger["max_bond"].as_u64().unwrap() > 4);
        assert!(ledger["discarded"].as_f64().unwrap() < 1e-9);
        assert!(ledger["energy_drift"].as_f64().unwrap() < 1e-4);
    }
}

#[test]
fn ground_states_and_pulled_back_operators() {
    let dir = TempDir::new().unwrap();
    let found = json(&pullback(
        dir.path(),
        &[
            "chain",
            "ground",
            "--hamiltonian",
            "ising(g=1)",
            "--sites",
            "16",
            "--max-bond",
            "32",
            "--observe",
            "entropy:7,energy",
            "--json",
        ],
    ));
    let energy = found["energy"].as_f64().unwrap();
    assert!((energy + 20.016_387_900_485).abs() < 1e-8);
    assert!((found["energy_per_site"].as_f64().unwrap() - energy / 16.0).abs() < 1e-12);
    assert!(
        found["variance"].as_f64().unwrap().abs() < 1e-8 && found["sweeps"].as_u64().unwrap() > 1
    );
    assert!((found["values"]["energy"].as_f64().unwrap() - energy).abs() < 1e-9);
    let pulled = json(&pullback(
        dir.path(),
        &[
            "chain",
            "heisenberg",
            "--gate",
            "swap",
            "--operator",
            "Z",
            "--steps",
            "3",
            "--overlaps",
            "Z",
            "--json",
        ],
    ));
    assert_eq!(pulled["support"], serde_json::json!([-6, -6]));
    assert!(pulled["operator_entropy"].as_f64().unwrap() < 1e-12);
    assert!((pulled["overlaps"]["Z"][0]["re"].as_f64().unwrap() - 1.0).abs() < 1e-12);
    for (arguments, says) in [
        (
            &["chain", "ground", "--hamiltonian", "xx", "--sites", "1"][..],
            "2 or more",
        ),
        (
            &[
                "chain",
                "ground",
                "--hamiltonian",
                "xx",
                "--sites",
                "4",
                "--max-bond",
                "0",
            ],
            "--max-bond",
        ),
        (
            &[
                "chain",
                "heisenberg",
                "--gate",
                "swap",
                "--operator",
                "ZZ",
                "--steps",
                "1",
            ],
            "two sites",
        ),
        (
            &[
                "chain",
                "heisenberg",
                "--gate",
                "shift",
                "--operator",
                "Z",
                "--steps",
                "1",
            ],
            "shift",
        ),
        (
            &[
                "chain",
                "run",
                "--hamiltonian",
                "xx",
                "--sites",
                "8",
                "--ring",
                "--engine",
                "mps",
                "--time",
                "1",
            ],
            "open chain",
        ),
        (
            &[
                "chain",
                "run",
                "--hamiltonian",
                "xx",
                "--sites",
                "8",
                "--state",
                "wall",
                "--engine",
                "infinite",
                "--time",
                "1",
            ],
            "one or two sites",
        ),
    ] {
        let output = pullback(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(says),
            "{arguments:?}"
        );
    }
}
