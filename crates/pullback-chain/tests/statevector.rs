//! The state vector against plain loops, exact evolution, free fermions and Bessel functions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod common;

use std::sync::Arc;

use common::{
    FreeIsing, Numbers, apply_gates, evolve_exactly, overlap, qubit, real, times_hamiltonian,
};
use pullback_chain::dense::kron;
use pullback_chain::statevector::Real;
use pullback_chain::{
    Boundary, ChainError, Hamiltonian, Measure, PlacedGate, Plan, Qca, Scheme, Site, StateVector,
    haar, trotter_circuit,
};
use pullback_tensor::c64;

fn state<T: Real>(d: usize, sites: usize, x: &[c64]) -> StateVector<T> {
    let re = x.iter().map(|x| T::of(x.re)).collect();
    let im = x.iter().map(|x| T::of(x.im)).collect();
    StateVector::from_parts(d, sites, re, im).unwrap()
}

fn off<T: Real>(state: &StateVector<T>, x: &[c64]) -> f64 {
    let squares = x
        .iter()
        .enumerate()
        .map(|(i, x)| (state.amplitude(i) - x).norm_sqr());
    squares.sum::<f64>().sqrt()
}

/// Gates on random bonds, also between far sites and with their sites the other way round.
fn random_gates(d: usize, sites: usize, count: usize, n: &mut Numbers) -> Vec<PlacedGate> {
    let mut below = |k: usize| ((n.real() + 0.5) * k as f64) as usize;
    (0..count)
        .map(|i| {
            let a = below(sites);
            let near = below(5) > 0;
            let b = if near && a + 1 < sites {
                a + 1
            } else {
                (a + 1 + below(sites - 1)) % sites
            };
            let sites = if below(4) == 0 { (b, a) } else { (a, b) };
            // Dense gates, and such as keep blocks.
            let matrix = match i % 3 {
                0 => Qca::parse("swap", Site::of_dimension(d).unwrap())
                    .unwrap()
                    .layers()[0]
                    .gate
                    .clone(),
                1 if d == 2 => Qca::parse("exp(-i*(0.3*XX + 0.3*YY + 0.7*ZZ))", Site::QUBIT)
                    .unwrap()
                    .layers()[0]
                    .gate
                    .clone(),
                _ => haar(d * d, i as u64).unwrap(),
            };
            PlacedGate {
                sites,
                matrix: Arc::new(matrix),
            }
        })
        .collect()
}

#[test]
fn gates_do_what_plain_loops_do() {
    let mut n = Numbers(77);
    for (d, sites) in [
        (2, 2),
        (2, 3),
        (2, 9),
        (2, 14),
        (3, 2),
        (3, 8),
        (4, 6),
        (5, 4),
    ] {
        let gates = random_gates(d, sites, 40, &mut n);
        let x = n.state(d.pow(sites as u32));
        let expected = apply_gates(&gates, d, sites, x.clone());
        let mut double: StateVector<f64> = state(d, sites, &x);
        let plan = Plan::new(d, sites, &gates).unwrap();
        assert!(
            plan.passes() < gates.len() || sites == 2,
            "gates share passes"
        );
        double.apply(&plan);
        assert!(
            off(&double, &expected) < 1e-13,
            "{d}, {sites}: {}",
            off(&double, &expected)
        );
        let mut single: StateVector<f32> = state(d, sites, &x);
        single.apply(&Plan::new(d, sites, &gates).unwrap());
        assert!(
            off(&single, &expected) < 1e-5,
            "{d}, {sites}: {}",
            off(&single, &expected)
        );
    }
}

#[test]
fn a_long_brickwork_keeps_order_and_norm() {
    let sites = 15;
    let gates = Qca::parse("haar(seed=5)", Site::QUBIT)
        .unwrap()
        .step(sites, Boundary::Open)
        .unwrap();
    let gates: Vec<PlacedGate> = (0..6).flat_map(|_| gates.clone()).collect();
    let x = Numbers(3).state(1 << sites);
    let expected = apply_gates(&gates, 2, sites, x.clone());
    let mut found: StateVector<f64> = state(2, sites, &x);
    let plan = Plan::new(2, sites, &gates).unwrap();
    assert!(
        plan.passes() * 3 < plan.gates(),
        "{} passes for {} gates",
        plan.passes(),
        plan.gates()
    );
    found.apply(&plan);
    assert!(off(&found, &expected) < 1e-12);
    assert!((found.norm_squared() - 1.0).abs() < 1e-12);
}

#[test]
fn evolution_agrees_with_the_exact_one() {
    for (text, site, sites, boundary) in [
        ("-ZZ - 0.7*X - 0.3*Z", Site::QUBIT, 12, Boundary::Open),
        ("xyz(0.4, 0.9, -0.3)", Site::QUBIT, 10, Boundary::Ring),
        ("heisenberg", Site::Spin { twice: 2 }, 7, Boundary::Open),
        ("clock(g=0.6)", Site::clock(3).unwrap(), 7, Boundary::Open),
        ("pxp", Site::QUBIT, 6, Boundary::Open),
    ] {
        let h = Hamiltonian::parse(text, site).unwrap();
        let d = h.site().dimension();
        let x = Numbers(9).state(d.pow(sites as u32));
        let exact = evolve_exactly(&h, sites, boundary, 0.8, &x);
        let scheme = Scheme::parse("symmetric6-19").unwrap();
        let gates = trotter_circuit(&h, &scheme, 0.04, 20, sites, boundary).unwrap();
        let mut found: StateVector<f64> = state(d, sites, &x);
        found.apply(&Plan::new(d, sites, &gates).unwrap());
        let off = off(&found, &exact);
        assert!(off < 2e-8, "{text}: {off:e}");
    }
}

#[test]
fn energy_is_kept_by_the_exact_evolution_and_nearly_by_the_steps() {
    // The oracle itself.
    let h = Hamiltonian::parse("xxz(delta=0.5)", Site::QUBIT).unwrap();
    let x = Numbers(4).state(1 << 8);
    let energy = |x: &[c64]| overlap(x, &times_hamiltonian(&h, 8, Boundary::Open, x)).re;
    let y = evolve_exactly(&h, 8, Boundary::Open, 1.3, &x);
    assert!((energy(&x) - energy(&y)).abs() < 1e-13 && (overlap(&y, &y).re - 1.0).abs() < 1e-13);
    assert!((overlap(&x, &y) - 1.0).norm() > 0.1);
}

fn wall(sites: usize, up: impl Fn(usize) -> bool) -> StateVector<f64> {
    let locals: Vec<Vec<c64>> = (0..sites)
        .map(|j| {
            if up(j) {
                vec![real(1.0), real(0.0)]
            } else {
                vec![real(0.0), real(1.0)]
            }
        })
        .collect();
    StateVector::product(2, &locals).unwrap()
}

fn evolve(state: &mut StateVector<f64>, h: &str, scheme: &str, dt: f64, steps: usize) {
    let h = Hamiltonian::parse(h, Site::QUBIT).unwrap();
    let scheme = Scheme::parse(scheme).unwrap();
    let gates = trotter_circuit(&h, &scheme, dt, steps, state.sites(), Boundary::Open).unwrap();
    state.apply(&Plan::new(2, state.sites(), &gates).unwrap());
}

#[test]
fn the_domain_wall_spreads_as_bessel_functions_say() {
    // Antal, Rácz, Rákos and Schütz, PRE 59, 4912; values of the table, and libm's functions.
    let known = [
        (
            1.0,
            [-0.292_763_749_757, -0.486_408_267_771, -0.499_611_078_621],
            0.529_412_551_126,
        ),
        (
            2.0,
            [-0.025_063_540_492, -0.357_675_044_374, -0.482_166_896_124],
            0.699_501_849_008,
        ),
    ];
    let sites = 16;
    let mut state = wall(sites, |j| j < 8);
    let sz = Site::QUBIT.operator("Sz").unwrap();
    for (t, values, entropy) in known {
        evolve(&mut state, "xx", "symmetric6-19", 0.1, 10);
        for (n, value) in (1..).zip(values) {
            let bessel: f64 = (1 - n..n).map(|j| libm::jn(j, t).powi(2)).sum();
            assert!((-0.5 * bessel - value).abs() < 1e-11, "the table itself");
            let found = state.expectation(&[7 + n as usize], &sz).unwrap().re;
            assert!((found - value).abs() < 1e-8, "t = {t}, n = {n}: {found}");
        }
        let found = state.entropy(7).unwrap();
        assert!((found - entropy).abs() < 1e-6, "t = {t}: {found}");
        let moved: f64 = (8..16)
            .map(|j| state.expectation(&[j], &sz).unwrap().re + 0.5)
            .sum();
        let m = 0.5
            * (t * t * (libm::j0(t).powi(2) + libm::j1(t).powi(2)) - t * libm::j0(t) * libm::j1(t));
        assert!((moved - m).abs() < 1e-6, "{moved} {m}");
    }
}

#[test]
fn the_neel_state_decays_as_a_bessel_function() {
    let sites = 16;
    let mut state = wall(sites, |j| j % 2 == 0);
    let sz = Site::QUBIT.operator("Sz").unwrap();
    for (t, known) in [(0.5, 0.382_598_843_279), (1.0, 0.111_945_389_571)] {
        evolve(&mut state, "xx", "symmetric6-19", 0.05, 10);
        assert!((0.5 * libm::j0(2.0 * t) - known).abs() < 1e-11);
        let found = state.expectation(&[8], &sz).unwrap().re;
        assert!((found - known).abs() < 1e-8, "t = {t}: {found}");
    }
}

#[test]
fn the_ising_quench_is_that_of_free_fermions() {
    let sites = 12;
    let [x, z] = ["X", "Z"].map(qubit);
    for g in [0.5, 1.0, 2.0] {
        let plus = vec![real(0.5_f64.sqrt()); 2];
        let mut state: StateVector<f64> = StateVector::product(2, &vec![plus; sites]).unwrap();
        let mut free = FreeIsing::plus(sites, g);
        let energy = free.energy();
        for _ in 0..3 {
            evolve(
                &mut state,
                &format!("ising(g={g})"),
                "symmetric6-19",
                0.0125,
                40,
            );
            free.evolve(0.5);
            assert!((free.energy() - energy).abs() < 1e-11);
            for j in [0, 5, 11] {
                let found = state.expectation(&[j], &x).unwrap();
                assert!(
                    (found.re - free.x(j)).abs() < 1e-10 && found.im.abs() < 1e-12,
                    "{g} {j}"
                );
            }
            for j in [0, 6] {
                let found = state.expectation(&[j, j + 1], &kron(&z, &z)).unwrap().re;
                assert!((found - free.zz(j)).abs() < 1e-10, "{g} {j}");
                assert!(
                    (state.entropy(j).unwrap() - free.entropy(j)).abs() < 1e-8,
                    "{g} {j}"
                );
            }
        }
    }
    // The infinite chain's values, from the table, at a length where the ends are not felt yet.
    for (g, t, x, zz, s) in [
        (
            2.0,
            0.25,
            0.836_157_679_218,
            0.327_684_641_564,
            0.180_324_336_192,
        ),
        (
            2.0,
            0.5,
            0.820_433_514_575,
            0.359_132_970_851,
            0.248_683_089_569,
        ),
        (
            1.0,
            0.5,
            0.483_489_167_994,
            0.516_510_832_006,
            0.458_726_802_309,
        ),
        (
            1.0,
            1.0,
            0.529_329_543_357,
            0.470_670_456_643,
            0.740_428_899_007,
        ),
    ] {
        let mut free = FreeIsing::plus(40, g);
        free.evolve(t);
        assert!((free.x(20) - x).abs() < 1e-9, "{}", free.x(20));
        assert!((free.zz(19) - zz).abs() < 1e-9, "{}", free.zz(19));
        assert!((free.entropy(19) - s).abs() < 1e-9, "{}", free.entropy(19));
        // At the critical field, ⟨X⟩ = ½ + J1(8t)/(8t).
        if g == 1.0 {
            assert!((x - 0.5 - libm::j1(8.0 * t) / (8.0 * t)).abs() < 1e-11);
        }
    }
}

#[test]
fn density_matrices_are_those_of_the_definition() {
    let (d, sites) = (3, 5);
    let x = Numbers(21).state(243);
    let found: StateVector<f64> = state(d, sites, &x);
    let rho = found.reduced(&[3, 1]).unwrap();
    let digit = |i: usize, site: usize| i / 3_usize.pow(4 - site as u32) % 3;
    for i in 0..9 {
        for j in 0..9 {
            let mut sum = c64::new(0.0, 0.0);
            for a in 0..243 {
                for b in 0..243 {
                    let row = digit(a, 3) * 3 + digit(a, 1) == i;
                    let column = digit(b, 3) * 3 + digit(b, 1) == j;
                    let rest = [0, 2, 4].iter().all(|&s| digit(a, s) == digit(b, s));
                    if row && column && rest {
                        sum += x[a] * x[b].conj();
                    }
                }
            }
            assert!((rho[(i, j)] - sum).norm() < 1e-14);
        }
    }
    assert!(found.reduced(&[1, 1]).is_err() && found.reduced(&[5]).is_err());
    // Both sides of a cut have the same spectrum; the svd and the density matrix give the same.
    let spectrum = found.spectrum(1).unwrap();
    let pair = found.reduced(&[0, 1]).unwrap();
    let values = pullback_tensor::eigh(pair.as_ref()).unwrap().values;
    for (p, q) in spectrum.iter().zip(values.iter().rev()) {
        assert!((p - q).abs() < 1e-14);
    }
    assert!(found.spectrum(4).is_err());
}

#[test]
fn large_and_small_cuts_agree() {
    // Bond 8 goes through the density matrix, bond 6 through the singular values.
    let sites = 18;
    let mut found = wall(sites, |j| j % 2 == 0);
    let gates = Qca::parse("haar(seed=2)", Site::QUBIT)
        .unwrap()
        .step(sites, Boundary::Open)
        .unwrap();
    let plan = Plan::new(2, sites, &gates).unwrap();
    found.apply(&plan);
    found.apply(&plan);
    // Across an even bond three gates have acted in two steps, one of them the first of all: at most 4 · 4 · 2 values.
    let spectrum = found.spectrum(8).unwrap();
    assert_eq!(spectrum.len(), 512);
    assert!(spectrum[32].abs() < 1e-13 && (spectrum.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    assert!((found.spectrum(6).unwrap().iter().sum::<f64>() - 1.0).abs() < 1e-12);
    assert!(found.entropy(8).unwrap() > 0.1);
}

#[test]
fn samples_follow_the_amplitudes() {
    let x = Numbers(8).state(27);
    let found: StateVector<f64> = state(3, 3, &x);
    let count = 40_000;
    let mut hits = [0.0; 27];
    for digits in found.sample(count, 1) {
        hits[digits[0] * 9 + digits[1] * 3 + digits[2]] += 1.0;
    }
    for (hits, x) in hits.iter().zip(&x) {
        let p = x.norm_sqr();
        let error = (p * (1.0 - p) / count as f64).sqrt();
        // Five standard errors, for 27 counts.
        assert!((hits / count as f64 - p).abs() < 5.0 * error, "{hits} {p}");
    }
    assert_eq!(found.sample(5, 7), found.sample(5, 7));
    let one = wall(20, |j| j == 3);
    assert!(
        one.sample(3, 0)
            .iter()
            .all(|s| s.iter().enumerate().all(|(j, b)| (*b == 0) == (j == 3)))
    );
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    for sites in [45, 64, 4000] {
        let error = StateVector::<f64>::check_size(2, sites).unwrap_err();
        assert!(matches!(error, ChainError::Memory { .. }), "{error}");
    }
    assert!(StateVector::<f64>::check_size(2, 0).is_err());
}

#[test]
fn one_site_operators_and_overlaps() {
    let x = Numbers(2).state(1 << 6);
    let mut found: StateVector<f64> = state(2, 6, &x);
    let before = found.clone();
    found.apply_to_site(2, &qubit("Z"));
    let z = before.expectation(&[2], &qubit("Z")).unwrap();
    assert!((before.inner(&found) - z).norm() < 1e-14);
    found.apply_to_site(2, &qubit("Z"));
    assert!((before.fidelity(&found) - 1.0).abs() < 1e-13);
}
