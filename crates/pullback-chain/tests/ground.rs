//! Ground states against closed forms.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod common;

use common::times_hamiltonian;
use pullback_artifact::Control;
use pullback_chain::{
    Boundary, Ground, GroundOptions, Hamiltonian, Measure, Site, Truncation, ground,
};

fn find(h: &Hamiltonian, sites: usize, max_bond: usize) -> Ground {
    let options = GroundOptions {
        truncation: Truncation::new(max_bond, 1e-14).unwrap(),
        ..GroundOptions::default()
    };
    ground(h, sites, options, &Control::hidden()).unwrap()
}

fn named(text: &str) -> Hamiltonian {
    Hamiltonian::parse(text, Site::QUBIT).unwrap()
}

#[test]
fn the_critical_ising_chain_has_its_closed_form() {
    let h = named("ising(g=1)");
    for (sites, known) in [(16, -20.016_387_900_485), (20, -25.107_797_111_624)] {
        let found = find(&h, sites, 40);
        let closed = 1.0 - 1.0 / (std::f64::consts::PI / (2.0 * (2 * sites + 1) as f64)).sin();
        assert!((closed - known).abs() < 1e-11);
        assert!(
            (found.energy - closed).abs() < 1e-8,
            "{} {closed}",
            found.energy
        );
        assert!(found.variance.abs() < 1e-8 && found.converged);
        // The energy of the search is that of the state.
        let energy = found.state.energy(&h, Boundary::Open).unwrap();
        assert!((energy - found.energy).abs() < 1e-9);
        assert!(found.state.canonical_defect() < 1e-12);
    }
}

#[test]
fn heisenberg_chains_have_the_energies_of_exact_diagonalisation() {
    let h = named("heisenberg");
    for (sites, known) in [(8, -3.374_932_598_688), (10, -4.258_035_207_283)] {
        let found = find(&h, sites, 64);
        assert!(
            (found.energy - known).abs() < 1e-9,
            "{sites}: {}",
            found.energy
        );
        // Plain loops say how far from an eigenvector.
        let x = found.state.amplitudes().unwrap();
        let y = times_hamiltonian(&h, sites, Boundary::Open, &x);
        let off: f64 = x
            .iter()
            .zip(&y)
            .map(|(x, y)| (y - x * found.energy).norm_sqr())
            .sum();
        assert!(off < 1e-10, "{off:e}");
        assert!((found.variance - off).abs() < 1e-10);
    }
}

#[test]
fn the_variance_is_that_of_plain_loops() {
    let h = named("xyz(jx=1, jy=0.4, jz=-0.7)");
    let options = GroundOptions {
        truncation: Truncation::new(3, 0.0).unwrap(),
        sweeps: 4,
        ..GroundOptions::default()
    };
    let found = ground(&h, 9, options, &Control::hidden()).unwrap();
    let x = found.state.amplitudes().unwrap();
    let y = times_hamiltonian(&h, 9, Boundary::Open, &x);
    let known: f64 = x
        .iter()
        .zip(&y)
        .map(|(x, y)| (y - x * found.energy).norm_sqr())
        .sum();
    assert!(
        known > 1e-5 && (found.variance - known).abs() < 1e-10,
        "{} {known}",
        found.variance
    );
}

#[test]
fn the_aklt_chain_has_a_bond_of_two() {
    let h = named("aklt");
    let found = find(&h, 12, 20);
    assert!(
        (found.energy + 11.0 * 2.0 / 3.0).abs() < 1e-9,
        "{}",
        found.energy
    );
    assert!(found.variance.abs() < 1e-9);
}

#[test]
fn two_sites_are_enough_and_one_is_not() {
    let h = named("ising(g=0.5)");
    let found = find(&h, 2, 4);
    // -ZZ - (X + X)/2: the even sector of two qubits.
    assert!(
        (found.energy + 2.0_f64.sqrt()).abs() < 1e-12,
        "{}",
        found.energy
    );
    let one = ground(&h, 1, GroundOptions::default(), &Control::hidden());
    assert!(one.unwrap_err().to_string().contains("2 or more"));
    let stopped = Control::hidden();
    stopped.interrupt();
    assert!(ground(&h, 8, GroundOptions::default(), &stopped).is_err());
}
