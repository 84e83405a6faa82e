//! Pulled-back operators against dense matrices and states that are evolved instead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod common;

use common::{apply_gates, qubit};
use pullback_chain::dense::{Matrix, adjoint, identity, kron, trace};
use pullback_chain::initial::amplitudes;
use pullback_chain::{Boundary, PulledBack, Qca, Site, Truncation};
use pullback_tensor::{Mat, c64, singular_values};

const SITES: usize = 6;

fn all() -> Truncation {
    Truncation::new(4096, 0.0).unwrap()
}

/// `op` on one site of the chain.
fn on(op: &Matrix, site: usize) -> Matrix {
    (0..SITES).fold(identity(1), |m, j| {
        kron(&m, &if j == site { op.clone() } else { identity(2) })
    })
}

#[test]
fn it_is_the_product_of_dense_matrices() {
    let qca = Qca::parse("haar(seed=4)", Site::QUBIT).unwrap();
    let step = qca.step(SITES, Boundary::Open).unwrap();
    let n = 1 << SITES;
    // The columns of the unitary of two steps.
    let twice: Vec<_> = step.iter().chain(&step).cloned().collect();
    let columns: Vec<Vec<c64>> = (0..n)
        .map(|k| {
            let x = (0..n)
                .map(|i| c64::new(f64::from(u8::from(i == k)), 0.0))
                .collect();
            apply_gates(&twice, 2, SITES, x)
        })
        .collect();
    let u = Mat::from_fn(n, n, |i, j| columns[j][i]);
    let z = qubit("Z");
    let dense = adjoint(&u) * on(&z, 2) * &u;
    let mut pulled = PulledBack::new(&qca, &z, 2, SITES).unwrap();
    pulled.step(all()).unwrap();
    pulled.step(all()).unwrap();
    for name in ["X", "Y", "Z"] {
        let p = qubit(name);
        for (j, found) in pulled.overlaps(&p).unwrap().iter().enumerate() {
            let known = trace(&(on(&p, j) * &dense)) / n as f64;
            assert!((found - known).norm() < 1e-12, "{name} {j}");
        }
    }
    // The operator Schmidt values across the middle.
    let half = 1 << (SITES / 2);
    let cut = Mat::from_fn(half * half, half * half, |a, b| {
        dense[((a / half) * half + b / half, (a % half) * half + b % half)]
    });
    let values = singular_values(cut.as_ref()).unwrap();
    let entropy: f64 = values
        .iter()
        .map(|s| s * s / n as f64)
        .filter(|p| *p > 1e-16)
        .map(|p| -p * p.ln())
        .sum();
    let found = pulled.entropies().unwrap()[SITES / 2 - 1];
    assert!(
        (entropy - found).abs() < 1e-10 && found > 0.5,
        "{entropy} {found}"
    );
    let locals: Vec<_> = "01+0-1".chars().map(|c| amplitudes(c, 2)).collect();
    let x = locals.iter().fold(vec![c64::new(1.0, 0.0)], |x, local| {
        x.iter()
            .flat_map(|a| local.iter().map(move |b| a * b))
            .collect()
    });
    let known: c64 = (0..n)
        .map(|i| {
            (0..n)
                .map(|j| x[i].conj() * dense[(i, j)] * x[j])
                .sum::<c64>()
        })
        .sum();
    assert!((pulled.in_product_state(&locals).unwrap() - known).norm() < 1e-12);
    assert!((pulled.norm_squared() - 1.0).abs() < 1e-12);
}

#[test]
fn the_light_cone_grows_by_four_sites_a_step() {
    let qca = Qca::parse("haar(seed=9)", Site::QUBIT).unwrap();
    let mut pulled = PulledBack::new(&qca, &qubit("X"), 8, 18).unwrap();
    assert_eq!(pulled.support().unwrap(), Some((8, 8)));
    // Pulled back, the odd layer acts first: sites 7 and 8, then 6 to 9.
    for t in 1..=2 {
        pulled.step(Truncation::new(256, 1e-14).unwrap()).unwrap();
        let (a, b) = pulled.support().unwrap().unwrap();
        assert_eq!(b - a + 1, 4 * t);
        let weights = pulled.weights().unwrap();
        assert!(weights[..a].iter().all(|w| *w < 1e-12) && weights[a] > 1e-3);
    }
}

#[test]
fn swaps_carry_an_operator_along_the_light_ray() {
    let qca = Qca::parse("swap", Site::QUBIT).unwrap();
    for (site, by) in [(8_usize, -2_i64), (9, 2)] {
        let mut pulled = PulledBack::new(&qca, &qubit("Z"), site, 18).unwrap();
        for t in 1..=3 {
            pulled.step(all()).unwrap();
            let at = (site as i64 + by * t) as usize;
            assert_eq!(pulled.support().unwrap(), Some((at, at)));
            let z = pulled.overlaps(&qubit("Z")).unwrap();
            assert!((z[at] - c64::new(1.0, 0.0)).norm() < 1e-12);
            assert!(pulled.entropies().unwrap().iter().all(|s| *s < 1e-12));
        }
    }
    assert!(PulledBack::new(&qca, &qubit("Z"), 4, 4).is_err());
    assert!(PulledBack::new(&qca, &identity(3), 1, 4).is_err());
}
