//! Whole runs: rows, ledger, checkpoints.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod common;

use std::time::Duration;

use common::FreeIsing;
use pullback_artifact::Control;
use pullback_chain::{Boundary, EngineKind, Precision, RunConfig, RunResult, Truncation, run};

fn quench() -> RunConfig {
    RunConfig {
        hamiltonian: Some("-1*ZZ - 2*X".to_owned()),
        gate: None,
        spin: "1/2".to_owned(),
        clock: None,
        sites: 10,
        boundary: Boundary::Open,
        state: "+".to_owned(),
        engine: EngineKind::Statevector,
        precision: Precision::Double,
        truncation: Truncation::default(),
        scheme: "optimized4-11".to_owned(),
        dt: 0.05,
        steps: RunConfig::steps_in(0.5, 0.05).unwrap(),
        every: 2,
        observe: "X:4, ZZ:4,entropy:4,energy,XX:2-7,Z:*".to_owned(),
    }
}

fn value(result: &RunResult, row: usize, name: &str) -> f64 {
    result.rows[row][name].as_f64().unwrap()
}

#[test]
fn rows_hold_what_free_fermions_do() {
    let result = run(&quench(), None, &Control::hidden()).unwrap();
    assert_eq!(result.rows.len(), 6);
    let mut free = FreeIsing::plus(10, 2.0);
    for row in 0..6 {
        assert!((value(&result, row, "t") - 0.1 * row as f64).abs() < 1e-12);
        assert!(
            (value(&result, row, "X:4") - free.x(4)).abs() < 1e-5,
            "{row}"
        );
        assert!((value(&result, row, "ZZ:4") - free.zz(4)).abs() < 1e-5);
        assert!((value(&result, row, "entropy:4") - free.entropy(4)).abs() < 1e-5);
        assert!((value(&result, row, "energy") - free.energy()).abs() < 1e-3);
        assert!(value(&result, row, "Z:9").abs() < 1e-12);
        free.evolve(0.1);
    }
    let names: Vec<&String> = result.rows[0].keys().collect();
    assert_eq!(
        names[..6],
        ["t", "X:4", "ZZ:4", "entropy:4", "energy", "XX:2-7"]
    );
    let ledger = &result.ledger;
    assert!(ledger.norm_drift < 1e-12 && ledger.discarded == 0.0 && ledger.max_bond.is_none());
    let drift = ledger.energy_drift.unwrap();
    assert!(drift > 0.0 && drift < 1e-3);
    assert_eq!(ledger.trotter.as_ref().unwrap().order, 4);
}

#[test]
fn single_precision_is_near() {
    let double = run(&quench(), None, &Control::hidden()).unwrap();
    let single = run(
        &RunConfig {
            precision: Precision::Single,
            ..quench()
        },
        None,
        &Control::hidden(),
    )
    .unwrap();
    let off = (value(&double, 5, "X:4") - value(&single, 5, "X:4")).abs();
    assert!(off > 0.0 && off < 1e-5);
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_rows() {
    for config in [
        quench(),
        RunConfig {
            precision: Precision::Single,
            ..quench()
        },
        RunConfig {
            hamiltonian: None,
            gate: Some("kicked-ising".to_owned()),
            engine: EngineKind::Stabilizer,
            state: "0".to_owned(),
            observe: "entropy:4,Z:*,ZZ:3".to_owned(),
            ..quench()
        },
        RunConfig {
            engine: EngineKind::Mps,
            truncation: Truncation::new(6, 1e-12).unwrap(),
            ..quench()
        },
        RunConfig {
            engine: EngineKind::Infinite,
            truncation: Truncation::new(6, 1e-12).unwrap(),
            ..quench()
        },
    ] {
        let whole = run(&config, None, &Control::hidden()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("checkpoint.safetensors");
        // Stopped before the first step, then by another thread wherever that falls.
        let control = Control::hidden();
        control.interrupt();
        assert!(run(&config, Some(dir.path()), &control).is_err());
        assert!(checkpoint.exists());
        let control = Control::hidden();
        let other = control.clone();
        let stopper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(2));
            other.interrupt();
        });
        let stopped = run(&config, Some(dir.path()), &control);
        stopper.join().unwrap();
        let resumed = match stopped {
            Ok(result) => result,
            Err(_) => run(&config, Some(dir.path()), &Control::hidden()).unwrap(),
        };
        assert_eq!(whole.rows, resumed.rows);
        assert_eq!(
            serde_json::to_string(&whole.ledger).unwrap(),
            serde_json::to_string(&resumed.ledger).unwrap()
        );
        // A checkpoint of other work, and a damaged one, are not taken up.
        let other = RunConfig {
            state: "1".to_owned(),
            ..config.clone()
        };
        let fresh = run(&other, None, &Control::hidden()).unwrap();
        assert_eq!(
            run(&other, Some(dir.path()), &Control::hidden())
                .unwrap()
                .rows,
            fresh.rows
        );
        std::fs::write(&checkpoint, b"nonsense").unwrap();
        assert_eq!(
            run(&config, Some(dir.path()), &Control::hidden())
                .unwrap()
                .rows,
            whole.rows
        );
    }
}

#[test]
fn stabilizers_and_amplitudes_agree() {
    let config = |engine| RunConfig {
        hamiltonian: None,
        gate: Some("exp(-i*pi/4*ZZ)*exp(-i*pi/4*(XI+IX))*exp(-i*pi/4*(ZZ+ZI+IZ))".to_owned()),
        engine,
        state: "0+1".to_owned(),
        steps: 6,
        every: 1,
        observe: "entropy:*,Z:*,XX:*,(Z+0.5*X)*Y:2".to_owned(),
        ..quench()
    };
    let a = run(&config(EngineKind::Statevector), None, &Control::hidden()).unwrap();
    let b = run(&config(EngineKind::Stabilizer), None, &Control::hidden()).unwrap();
    let mut largest = 0.0_f64;
    for (a, b) in a.rows.iter().zip(&b.rows) {
        for (name, x) in a {
            let (x, y) = (x.as_f64().unwrap(), b[name].as_f64().unwrap());
            assert!((x - y).abs() < 1e-10, "{name}: {x} {y}");
            if name.starts_with("entropy") {
                largest = largest.max(x);
            }
        }
    }
    assert!(largest > 2.0);
    let dense = RunConfig {
        gate: Some("haar".to_owned()),
        ..config(EngineKind::Stabilizer)
    };
    assert!(
        run(&dense, None, &Control::hidden())
            .unwrap_err()
            .to_string()
            .contains("statevector")
    );
}

#[test]
fn the_energy_drifts_as_the_order_says_and_no_further() {
    // Heisenberg, Néel start, 8 sites, t ≤ 20.
    let drift = |scheme: &str, dt: f64| {
        let config = RunConfig {
            hamiltonian: Some("heisenberg".to_owned()),
            sites: 8,
            state: "01".to_owned(),
            scheme: scheme.to_owned(),
            dt,
            steps: RunConfig::steps_in(20.0, dt).unwrap(),
            every: 1,
            observe: "energy".to_owned(),
            ..quench()
        };
        let result = run(&config, None, &Control::hidden()).unwrap();
        result.ledger.energy_drift.unwrap()
    };
    // Values of the leapfrog that begins with the odd bonds.
    let odd_first = "a=0,1,0;b=0.5,0.5";
    for (dt, known) in [(0.4, 8.52e-3), (0.2, 1.98e-3), (0.1, 4.87e-4)] {
        let found = drift(odd_first, dt);
        assert!((found / known - 1.0).abs() < 2e-3, "{dt}: {found:e}");
    }
    let ratio = drift("suzuki4", 0.4) / drift("suzuki4", 0.2);
    assert!((ratio - 16.0).abs() < 0.3, "{ratio}");
}

#[test]
fn wrong_configurations_are_refused() {
    let message = |config: RunConfig| {
        run(&config, None, &Control::hidden())
            .unwrap_err()
            .to_string()
    };
    assert!(
        message(RunConfig {
            observe: "X:10".to_owned(),
            ..quench()
        })
        .contains("0 to 9")
    );
    assert!(
        message(RunConfig {
            observe: "ZZ:9".to_owned(),
            ..quench()
        })
        .contains("0 to 8")
    );
    assert!(
        message(RunConfig {
            observe: "ZZ:3-3".to_owned(),
            ..quench()
        })
        .contains("different")
    );
    assert!(
        message(RunConfig {
            observe: "X".to_owned(),
            ..quench()
        })
        .contains("place")
    );
    assert!(
        message(RunConfig {
            observe: "Q:1".to_owned(),
            ..quench()
        })
        .contains("no operator")
    );
    assert!(
        message(RunConfig {
            state: "02".to_owned(),
            ..quench()
        })
        .contains("`02`")
    );
    assert!(
        message(RunConfig {
            sites: 60,
            ..quench()
        })
        .contains("memory")
    );
    assert!(
        message(RunConfig {
            sites: 1,
            observe: String::new(),
            ..quench()
        })
        .contains("2 or more")
    );
    assert!(
        message(RunConfig {
            gate: Some("swap".to_owned()),
            ..quench()
        })
        .contains("given twice")
    );
    assert!(
        message(RunConfig {
            boundary: Boundary::Ring,
            sites: 9,
            ..quench()
        })
        .contains("even number")
    );
    assert!(RunConfig::steps_in(1.0, 0.3).is_err());
    assert!(RunConfig::steps_in(f64::NAN, 0.1).is_err());
    assert!(RunConfig::steps_in(1.0, 0.0).is_err());
    assert_eq!(RunConfig::steps_in(4.0, 0.05).unwrap(), 80);
}
