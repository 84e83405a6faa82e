//! Stabilizer states against state vectors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod common;

use std::sync::Arc;

use common::{Numbers, real};
use pullback_chain::dense::{Matrix, adjoint, kron};
use pullback_chain::stabilizer::{CliffordGate, Pauli, Stabilizer};
use pullback_chain::{Gate, PlacedGate, Plan, Site, StateVector};

const GATES: [&str; 8] = [
    "cnot",
    "cz",
    "swap",
    "iswap",
    "exp(-i*pi/4*XI)*exp(-i*pi/4*IZ)",
    "exp(-i*pi/4*YX)",
    "exp(i*pi/4*ZY)*XZ",
    "exp(-i*pi/4*IY)",
];

fn matrix(text: &str) -> Matrix {
    Gate::parse(text, Site::QUBIT).unwrap().matrix().clone()
}

#[test]
fn gates_are_taken_apart_rightly() {
    for text in GATES {
        let u = matrix(text);
        let gate = CliffordGate::from_matrix(&u).unwrap();
        for p in 0..16_u8 {
            let pauli = |bits: u8| kron(&Pauli(bits >> 2).matrix(), &Pauli(bits & 3).matrix());
            let moved = &u * pauli(p) * adjoint(&u);
            let image = pauli(gate.image(p));
            let same = (&moved - &image).norm_l2().min((&moved + &image).norm_l2());
            assert!(same < 1e-12, "{text}, {p}");
        }
    }
    assert!(CliffordGate::from_matrix(&matrix("exp(-i*0.3*XX)")).is_none());
    assert!(CliffordGate::from_matrix(&matrix("sqrt-swap")).is_none());
    for letter in "IXYZ".chars() {
        assert_eq!(Pauli::named(letter).unwrap().letter(), letter);
    }
}

#[test]
fn random_circuits_agree_with_the_state_vector() {
    let mut n = Numbers(99);
    let mut below = move |k: usize| ((n.real() + 0.5) * k as f64) as usize;
    let half = 0.5_f64.sqrt();
    let mut seen = [0; 3];
    for sites in [2, 5, 9] {
        let letters: Vec<char> = (0..sites).map(|_| ['0', '1', '+', '-'][below(4)]).collect();
        let locals: Vec<_> = letters
            .iter()
            .map(|letter| match letter {
                '0' => vec![real(1.0), real(0.0)],
                '1' => vec![real(0.0), real(1.0)],
                '+' => vec![real(half), real(half)],
                _ => vec![real(half), real(-half)],
            })
            .collect();
        let mut state: StateVector<f64> = StateVector::product(2, &locals).unwrap();
        let mut tableau = Stabilizer::product(&letters).unwrap();
        for _ in 0..4 {
            let mut gates = Vec::new();
            for _ in 0..6 {
                let a = below(sites);
                let b = (a + 1 + below(sites - 1)) % sites;
                let u = matrix(GATES[below(GATES.len())]);
                tableau.apply(&CliffordGate::from_matrix(&u).unwrap(), a, b);
                gates.push(PlacedGate {
                    sites: (a, b),
                    matrix: Arc::new(u),
                });
            }
            state.apply(&Plan::new(2, sites, &gates).unwrap());
            for bond in 0..sites - 1 {
                let bits = state.entropy(bond).unwrap() / std::f64::consts::LN_2;
                assert!((bits - tableau.entropy_bits(bond).unwrap() as f64).abs() < 1e-10);
            }
            for _ in 0..60 {
                let mut product = Vec::new();
                let mut moved = state.clone();
                for site in 0..sites {
                    let pauli = Pauli(below(4) as u8);
                    if pauli.0 > 0 {
                        moved.apply_to_site(site, &pauli.matrix());
                        product.push((site, pauli));
                    }
                }
                let found = tableau.expectation(&product);
                assert!((state.inner(&moved) - f64::from(found)).norm() < 1e-10);
                seen[(found + 1) as usize] += 1;
            }
            // A generator itself, so that values other than zero are met at every size.
            assert_eq!(tableau.expectation(&[]), 1);
        }
    }
    assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
}

#[test]
fn ten_thousand_sites_spread_as_they_should() {
    let sites = 10_000;
    let letters = vec!['0'; sites];
    let mut tableau = Stabilizer::product(&letters).unwrap();
    // Self-dual kicks: from a product state the entropy grows by two ebits a step of two kicks at the most.
    let gate = CliffordGate::from_matrix(&matrix("kicked-ising")).unwrap();
    let steps = 3;
    for _ in 0..steps {
        for first in [0, 1] {
            for left in (first..sites - 1).step_by(2) {
                tableau.apply(&gate, left, left + 1);
            }
        }
    }
    let entropy = tableau.entropy_bits(20).unwrap();
    assert!(entropy > 0 && entropy <= 2 * steps + 1, "{entropy}");
    assert!(Stabilizer::product(&[]).is_err());
    assert!(Stabilizer::product(&['y']).is_err());
    assert!(Stabilizer::product(&vec!['0'; 1_000_000]).is_err());
}
