//! Matrix-product states against the state vector, free fermions, Bessel functions, stabilizers, and what truncation may cost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod common;

use std::sync::Arc;

use common::{FreeIsing, apply_gates, overlap, qubit};
use pullback_artifact::Control;
use pullback_chain::dense::kron;
use pullback_chain::initial::{amplitudes, letters};
use pullback_chain::{
    Boundary, EngineKind, Hamiltonian, Measure, Mps, PlacedGate, Precision, RunConfig, Scheme,
    Site, StateVector, Truncation, haar, run, trotter_circuit,
};
use pullback_tensor::c64;

fn product(text: &str, d: usize, sites: usize) -> Mps {
    let locals: Vec<_> = letters(text, d, sites)
        .unwrap()
        .into_iter()
        .map(|letter| amplitudes(letter, d))
        .collect();
    Mps::product(d, &locals).unwrap()
}

/// Brickwork of different random gates, some with their sites the other way round.
fn random_circuit(d: usize, sites: usize, layers: usize, seed: u64) -> Vec<PlacedGate> {
    let mut out = Vec::new();
    for layer in 0..layers {
        for bond in (layer % 2..sites - 1).step_by(2) {
            let number = seed * 10_000 + (layer * sites + bond) as u64;
            let pair = if number.is_multiple_of(3) {
                (bond + 1, bond)
            } else {
                (bond, bond + 1)
            };
            out.push(PlacedGate {
                sites: pair,
                matrix: Arc::new(haar(d * d, number).unwrap()),
            });
        }
    }
    out
}

fn all() -> Truncation {
    Truncation::new(1 << 12, 0.0).unwrap()
}

fn distance(x: &[c64], y: &[c64]) -> f64 {
    let squares = x.iter().zip(y).map(|(x, y)| (x - y).norm_sqr());
    squares.sum::<f64>().sqrt()
}

#[test]
fn at_full_bond_it_is_the_state_vector() {
    for (d, sites, layers) in [(2, 2, 3), (2, 3, 4), (2, 12, 14), (3, 7, 8), (5, 4, 5)] {
        let circuit = random_circuit(d, sites, layers, d as u64);
        let mut mps = product("01", d, sites);
        let exact = apply_gates(&circuit, d, sites, mps.amplitudes().unwrap());
        mps.apply(&circuit, all()).unwrap();
        let off = distance(&mps.amplitudes().unwrap(), &exact);
        assert!(off < 1e-11, "{d} {sites}: {off:e}");
        assert!(mps.canonical_defect() < 1e-12);
        let widest = (0..sites - 1)
            .map(|b| d.pow((b + 1).min(sites - 1 - b) as u32))
            .collect::<Vec<_>>();
        assert_eq!(mps.bonds(), widest);
        let (re, im) = exact.iter().map(|x| (x.re, x.im)).unzip();
        let vector = StateVector::<f64>::from_parts(d, sites, re, im).unwrap();
        let one = haar(d, 5).unwrap();
        let two = haar(d * d, 6).unwrap();
        let mut places = vec![(vec![0], &one), (vec![sites - 1], &one)];
        for (i, j) in [(0, 1), (1, 0), (0, sites - 1), (sites - 1, 0)] {
            places.push((vec![i, j], &two));
        }
        for (at, operator) in places {
            let x = mps.expectation(&at, operator).unwrap();
            let y = vector.expectation(&at, operator).unwrap();
            assert!((x - y).norm() < 1e-10, "{at:?}: {x} {y}");
        }
        for bond in 0..sites - 1 {
            let (x, y) = (
                Measure::entropy(&mps, bond).unwrap(),
                vector.entropy(bond).unwrap(),
            );
            assert!((x - y).abs() < 1e-10 && x > 0.01, "{bond}: {x} {y}");
        }
    }
}

#[test]
fn truncation_costs_no_more_than_it_says() {
    for (max_bond, seed) in [(12, 1), (20, 2), (24, 3)] {
        let sites = 12;
        let circuit = random_circuit(2, sites, 10, seed);
        let truncation = Truncation::new(max_bond, 0.0).unwrap();
        let start = product("+", 2, sites);
        let exact = apply_gates(&circuit, 2, sites, start.amplitudes().unwrap());
        let mut mps = start.clone();
        mps.apply(&circuit, truncation).unwrap();
        let bound = mps.ledger().error_bound;
        let off = distance(&mps.amplitudes().unwrap(), &exact);
        assert!(off > 0.05 && off <= bound * 1.001, "{off} {bound}");
        // Layer by layer: the bound of one layer is sharp, and holds before the canonical form is restored as well.
        let mut mps = start.clone();
        let mut rest = &circuit[..];
        while !rest.is_empty() {
            let even = rest[0].sites.0.min(rest[0].sites.1).is_multiple_of(2);
            let bonds = if even { sites / 2 } else { sites / 2 - 1 };
            let (layer, next) = rest.split_at(bonds);
            let (before, weight) = (mps.amplitudes().unwrap(), mps.ledger().discarded());
            mps.apply(layer, truncation).unwrap();
            let after = apply_gates(layer, 2, sites, before);
            let off = distance(&mps.amplitudes().unwrap(), &after);
            let discarded = mps.ledger().discarded() - weight;
            assert!(
                off * off <= discarded * 1.001 + 1e-24,
                "{off} {}",
                discarded.sqrt()
            );
            if discarded > 1e-6 {
                assert!(off * off > 0.5 * discarded, "{} {discarded}", off * off);
            }
            assert!(mps.canonical_defect() < 1e-12);
            rest = next;
        }
        assert!(mps.norm_squared() < 0.99);
    }
}

#[test]
fn what_is_discarded_is_the_least_that_can_be() {
    // A bond of 24 makes the Gram matrix judge; the tail of the exact Schmidt spectrum is the least for each bond.
    let h = Hamiltonian::parse("ising(g=1)", Site::QUBIT).unwrap();
    let scheme = Scheme::parse("first").unwrap();
    let sites = 14;
    let truncation = Truncation::new(24, 0.0).unwrap();
    let mut mps = product("+", 2, sites);
    let circuit = trotter_circuit(&h, &scheme, 0.1, 30, sites, Boundary::Open).unwrap();
    mps.apply(&circuit, truncation).unwrap();
    let layer = &circuit[..sites / 2];
    let before = mps.ledger().by_bond.clone();
    let exact = apply_gates(layer, 2, sites, mps.amplitudes().unwrap());
    let (re, im) = exact.iter().map(|x| (x.re, x.im)).unzip();
    let vector = StateVector::<f64>::from_parts(2, sites, re, im).unwrap();
    mps.apply(layer, truncation).unwrap();
    let mut judged = 0;
    for bond in (0..sites - 1).step_by(2) {
        let discarded = mps.ledger().by_bond[bond] - before[bond];
        let tail: f64 = vector.spectrum(bond).unwrap().iter().skip(24).sum();
        if tail > 1e-11 {
            judged += 1;
            assert!(
                (discarded / tail - 1.0).abs() < 1e-3,
                "{bond}: {discarded:e} {tail:e}"
            );
        }
    }
    assert!(judged >= 3);
}

#[test]
fn overlaps_and_draws() {
    let circuit = random_circuit(2, 10, 6, 9);
    let other = random_circuit(2, 10, 3, 11);
    let (mut a, mut b) = (product("01", 2, 10), product("+", 2, 10));
    a.apply(&circuit, all()).unwrap();
    b.apply(&other, all()).unwrap();
    let (x, y) = (a.amplitudes().unwrap(), b.amplitudes().unwrap());
    assert!((a.inner(&b).unwrap() - overlap(&x, &y)).norm() < 1e-12);
    let fidelity = a.fidelity(&b).unwrap();
    assert!((fidelity - overlap(&x, &y).norm_sqr()).abs() < 1e-12 && fidelity > 1e-6);
    // Frequencies of the first three sites within five standard errors.
    let draws = a.sample(4000, 3);
    for state in 0..8 {
        let p: f64 = x[state << 7..(state + 1) << 7]
            .iter()
            .map(c64::norm_sqr)
            .sum();
        let hits = draws
            .iter()
            .filter(|draw| draw[0] * 4 + draw[1] * 2 + draw[2] == state)
            .count();
        let off = hits as f64 / 4000.0 - p;
        assert!(off.abs() < 5.0 * (p * (1.0 - p) / 4000.0).sqrt(), "{state}");
    }
    assert_eq!(draws, a.sample(4000, 3));
}

fn config() -> RunConfig {
    RunConfig {
        hamiltonian: Some("-1*ZZ - 2*X".to_owned()),
        gate: None,
        spin: "1/2".to_owned(),
        clock: None,
        sites: 40,
        boundary: Boundary::Open,
        state: "+".to_owned(),
        engine: EngineKind::Mps,
        precision: Precision::Double,
        truncation: Truncation::default(),
        scheme: "symmetric6-19".to_owned(),
        dt: 0.1,
        steps: 10,
        every: 5,
        observe: String::new(),
    }
}

#[test]
fn an_ising_quench_is_that_of_free_fermions() {
    let result = run(
        &RunConfig {
            observe: "X:19,ZZ:19,entropy:19,energy".to_owned(),
            ..config()
        },
        None,
        &Control::hidden(),
    )
    .unwrap();
    let mut free = FreeIsing::plus(40, 2.0);
    for row in &result.rows {
        let value = |name: &str| row[name].as_f64().unwrap();
        assert!((value("X:19") - free.x(19)).abs() < 1e-6);
        assert!((value("ZZ:19") - free.zz(19)).abs() < 1e-6);
        assert!((value("entropy:19") - free.entropy(19)).abs() < 1e-6);
        assert!((value("energy") - free.energy()).abs() < 1e-4);
        free.evolve(0.5);
    }
    // Values that are stored with the specification: of the infinite chain at t = 0.5 and 1.
    let value = |row: usize, name: &str| result.rows[row][name].as_f64().unwrap();
    assert!((value(1, "X:19") - 0.820_433_514_575).abs() < 1e-7);
    assert!((value(2, "X:19") - 0.881_189_786_219).abs() < 1e-7);
    assert!((value(2, "ZZ:19") - 0.237_620_427_561).abs() < 1e-7);
    assert!((value(2, "entropy:19") - 0.296_199_732_850).abs() < 1e-6);
    let ledger = &result.ledger;
    assert!(ledger.max_bond.unwrap() > 4 && ledger.discarded < 1e-10);
    let truncation = ledger.truncation.as_ref().unwrap();
    assert_eq!(truncation.by_bond.len(), 39);
    assert!(truncation.error_bound.unwrap() < 1e-4);
}

#[test]
fn a_domain_wall_and_a_neel_state_follow_bessel_functions() {
    let result = run(
        &RunConfig {
            hamiltonian: Some("xx".to_owned()),
            state: "wall".to_owned(),
            steps: 20,
            every: 10,
            observe: "Sz:20,Sz:21,Sz:22,entropy:19".to_owned(),
            ..config()
        },
        None,
        &Control::hidden(),
    )
    .unwrap();
    for (row, t) in [(1, 1.0), (2, 2.0)] {
        for n in 1..4 {
            let sum: f64 = (1 - n..n).map(|j| libm::jn(j, t).powi(2)).sum();
            let sz = result.rows[row][&format!("Sz:{}", 19 + n)]
                .as_f64()
                .unwrap();
            assert!((sz + 0.5 * sum).abs() < 1e-7, "{t} {n}: {sz}");
        }
    }
    let entropy = |row: usize| result.rows[row]["entropy:19"].as_f64().unwrap();
    assert!((entropy(1) - 0.529_412_551_126).abs() < 1e-6);
    assert!((entropy(2) - 0.699_501_849_008).abs() < 1e-6);
    let neel = run(
        &RunConfig {
            hamiltonian: Some("xx".to_owned()),
            state: "01".to_owned(),
            observe: "Sz:20,Sz:19".to_owned(),
            ..config()
        },
        None,
        &Control::hidden(),
    )
    .unwrap();
    for (row, t) in [(1, 0.5), (2, 1.0)] {
        let known = 0.5 * libm::j0(2.0 * t);
        assert!((neel.rows[row]["Sz:20"].as_f64().unwrap() - known).abs() < 1e-7);
        assert!((neel.rows[row]["Sz:19"].as_f64().unwrap() + known).abs() < 1e-7);
    }
}

#[test]
fn a_clifford_automaton_is_that_of_stabilizers() {
    let with = |engine| {
        let config = RunConfig {
            hamiltonian: None,
            gate: Some("kicked-ising".to_owned()),
            sites: 24,
            state: "0+1".to_owned(),
            engine,
            steps: 4,
            every: 1,
            observe: "entropy:*,Z:*,XX:*,ZZ:2-9".to_owned(),
            ..config()
        };
        run(&config, None, &Control::hidden()).unwrap()
    };
    let (a, b) = (with(EngineKind::Mps), with(EngineKind::Stabilizer));
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
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut mps = product("0", 2, 4);
    let gate = |a, b| PlacedGate {
        sites: (a, b),
        matrix: Arc::new(kron(&qubit("X"), &qubit("X"))),
    };
    assert!(mps.apply(&[gate(0, 2)], all()).is_err());
    assert!(mps.apply(&[gate(3, 4)], all()).is_err());
    assert!(
        mps.expectation(&[0, 0], &kron(&qubit("X"), &qubit("X")))
            .is_err()
    );
    assert!(
        mps.expectation(&[0], &kron(&qubit("X"), &qubit("X")))
            .is_err()
    );
    assert!(Measure::entropy(&mps, 3).is_err());
    assert!(mps.inner(&product("0", 2, 5)).is_err());
    assert!(product("0", 2, 40).amplitudes().is_err());
    assert!(Mps::product(2, &vec![vec![c64::new(0.0, 0.0); 2]; 3]).is_err());
    let message = |config: RunConfig| {
        run(&config, None, &Control::hidden())
            .unwrap_err()
            .to_string()
    };
    let ring = RunConfig {
        boundary: Boundary::Ring,
        ..config()
    };
    assert!(message(ring).contains("open chain"));
    let wide = RunConfig {
        sites: 1_000_000,
        truncation: Truncation::new(10_000, 0.0).unwrap(),
        ..config()
    };
    assert!(message(wide).contains("GB"));
}
