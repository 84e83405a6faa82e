//! Infinite chains against closed forms.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod common;

use std::sync::Arc;

use common::real;
use pullback_artifact::Control;
use pullback_chain::dense::{exp, scaled, trace};
use pullback_chain::initial::amplitudes;
use pullback_chain::{
    Boundary, EngineKind, Hamiltonian, InfiniteMps, PlacedGate, Precision, RunConfig, Site,
    Truncation, haar, run,
};
use pullback_tensor::c64;

fn config() -> RunConfig {
    RunConfig {
        hamiltonian: Some("ising(g=1)".to_owned()),
        gate: None,
        spin: "1/2".to_owned(),
        clock: None,
        sites: 80,
        boundary: Boundary::Open,
        state: "+".to_owned(),
        engine: EngineKind::Infinite,
        precision: Precision::Double,
        truncation: Truncation::new(64, 1e-14).unwrap(),
        scheme: "optimized4-11".to_owned(),
        dt: 0.05,
        steps: 20,
        every: 10,
        observe: "X:39,X:40,ZZ:39,ZZ:40,entropy:39,energy".to_owned(),
    }
}

#[test]
fn a_critical_quench_has_its_closed_form() {
    let result = run(&config(), None, &Control::hidden()).unwrap();
    for (row, entropy) in [(1, 0.458_726_802_309), (2, 0.740_428_899_007)] {
        let value = |name: &str| result.rows[row][name].as_f64().unwrap();
        let t = value("t");
        let x = 0.5 + libm::j1(8.0 * t) / (8.0 * t);
        for name in ["X:39", "X:40"] {
            assert!(
                (value(name) - x).abs() < 2e-6,
                "{t} {name}: {}",
                value(name)
            );
        }
        for name in ["ZZ:39", "ZZ:40"] {
            assert!((value(name) - (1.0 - x)).abs() < 2e-6, "{t} {name}");
        }
        assert!(
            (value("entropy:39") - entropy).abs() < 1e-5,
            "{t}: {}",
            value("entropy:39")
        );
        assert!((value("energy") + 1.0).abs() < 2e-6);
    }
    let ledger = &result.ledger;
    assert!(ledger.max_bond.unwrap() > 8 && ledger.discarded < 1e-10);
    assert!(ledger.truncation.as_ref().unwrap().error_bound.is_none());
}

#[test]
fn a_neel_state_follows_a_bessel_function() {
    let config = RunConfig {
        hamiltonian: Some("xx".to_owned()),
        state: "01".to_owned(),
        observe: "Sz:0,Sz:1,correlation-length".to_owned(),
        ..config()
    };
    let result = run(&config, None, &Control::hidden()).unwrap();
    for (row, t) in [(1, 0.5), (2, 1.0)] {
        let known = 0.5 * libm::j0(2.0 * t);
        let value = |name: &str| result.rows[row][name].as_f64().unwrap();
        assert!((value("Sz:0") - known).abs() < 1e-6);
        assert!((value("Sz:1") + known).abs() < 1e-6);
        assert!(value("correlation-length") > 0.1);
    }
    assert_eq!(result.rows[0]["correlation-length"].as_f64().unwrap(), 0.0);
}

#[test]
fn the_aklt_state_comes_out_of_its_projectors() {
    // The Hamiltonian is frustration-free, so products of exp(-τ h) lead to its ground state whatever τ is: bond 2,
    // entropy ln 2, correlations that fall as (-1/3)^r, and -2/3 on each bond.
    let site = Site::Spin { twice: 2 };
    let h = Hamiltonian::parse("aklt", site).unwrap();
    let gate = Arc::new(exp(&scaled(&h.bulk_term(), real(-2.0))).unwrap());
    let local = |k: u32| -> Vec<c64> {
        (0..3)
            .map(|i| c64::new(1.0, 0.3 * f64::from(i * k) - 0.2))
            .collect()
    };
    let mut state = InfiniteMps::product(3, [local(1), local(2)]).unwrap();
    let truncation = Truncation::new(12, 1e-18).unwrap();
    for _ in 0..30 {
        let gates = [(0, 1), (1, 2)].map(|sites| PlacedGate {
            sites,
            matrix: gate.clone(),
        });
        state.apply(&gates, truncation).unwrap();
    }
    assert!(
        state.canonical_defect() < 1e-10,
        "{:e} {:?}",
        state.canonical_defect(),
        state.schmidt(0)
    );
    for bond in 0..2 {
        assert!(
            (state.entropy(bond) - 2.0_f64.ln()).abs() < 1e-8,
            "{}",
            state.entropy(bond)
        );
        let rho = state.reduced(&[bond, bond + 1]).unwrap();
        let energy = trace(&(h.bulk_term() * &rho)).re;
        assert!((energy + 2.0 / 3.0).abs() < 1e-10, "{energy}");
    }
    let length = state.correlation_length().unwrap();
    assert!((length * 3.0_f64.ln() - 1.0).abs() < 1e-6, "{length}");
    let spectrum = state.transfer_spectrum(4).unwrap();
    assert!((spectrum[0] - real(1.0)).norm() < 1e-10);
    for value in &spectrum[1..] {
        assert!((value - real(1.0 / 9.0)).norm() < 1e-6, "{spectrum:?}");
    }
    let sz = site.operator("Sz").unwrap();
    let two = pullback_chain::dense::kron(&sz, &sz);
    for r in 1..5 {
        let rho = state.reduced(&[1, 1 + r]).unwrap();
        let known = 4.0 / 3.0 * (-1.0_f64 / 3.0).powi(r as i32);
        let found = trace(&(&two * &rho)).re;
        assert!((found - known).abs() < 1e-8, "{r}: {found} {known}");
    }
}

#[test]
fn restoring_changes_the_basis_and_nothing_else() {
    let mut state = InfiniteMps::product(2, [amplitudes('0', 2), amplitudes('+', 2)]).unwrap();
    let gates: Vec<PlacedGate> = (0..6)
        .map(|k| PlacedGate {
            sites: if k % 2 == 0 { (0, 1) } else { (1, 2) },
            matrix: Arc::new(haar(4, 50 + k).unwrap()),
        })
        .collect();
    state
        .apply(&gates, Truncation::new(64, 0.0).unwrap())
        .unwrap();
    assert_eq!(state.bonds(), [32, 64]);
    let before = state.reduced(&[1, 4]).unwrap();
    let entropy = state.entropy(1);
    state.restore().unwrap();
    let after = state.reduced(&[1, 4]).unwrap();
    assert!((before - after).norm_l2() < 1e-10);
    assert!((entropy - state.entropy(1)).abs() < 1e-10 && entropy > 0.5);
    assert!(state.canonical_defect() < 1e-10);
    // A rough truncation leaves a canonical state.
    state
        .apply(&gates, Truncation::new(10, 0.0).unwrap())
        .unwrap();
    assert!(
        state.ledger().discarded() > 1e-3 && state.canonical_defect() < 1e-9,
        "{:e}",
        state.canonical_defect()
    );
    assert!(
        state
            .apply(
                &[PlacedGate {
                    sites: (2, 3),
                    ..gates[0].clone()
                }],
                Truncation::default()
            )
            .is_err()
    );
}
