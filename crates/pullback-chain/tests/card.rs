//! The report card against closed forms, tables and plain matrices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod common;

use common::{Numbers, qubit};
use pullback_artifact::Control;
use pullback_chain::card::{
    card, charges, clifford_class, dispersion, dual_unitarity, entangling_power, index, light_cone,
    operator_schmidt, spread,
};
use pullback_chain::dense::{Matrix, adjoint, identity, kron};
use pullback_chain::{Layer, Mpu, Qca, Site, haar};
use pullback_tensor::{Mat, c64};

fn qca(text: &str) -> Qca {
    Qca::parse(text, Site::QUBIT).unwrap()
}

const RANDOM_U1: &str = "exp(-i*(0.3*ZI - 0.5*IZ + 0.7*ZZ + 0.4*(XX+YY) + 0.2*(XY-YX)))";

#[test]
fn the_index_counts_what_flows() {
    let spin1 = Site::Spin { twice: 2 };
    let shifted = |by| {
        let layers = qca("haar(seed=4)").layers().to_vec();
        Qca::new("both", Site::QUBIT, layers, by).unwrap()
    };
    for (name, automaton, bits) in [
        ("identity", qca("identity"), 0.0),
        ("swap", qca("swap"), 0.0),
        ("haar", qca("haar(seed=4)"), 0.0),
        ("cnot", qca("cnot"), 0.0),
        ("shift", qca("shift"), 1.0),
        ("shift left", qca("shift(-1)"), -1.0),
        ("shift 3", qca("shift(3)"), 3.0),
        (
            "shift of spins 1",
            Qca::parse("shift", spin1).unwrap(),
            3.0_f64.log2(),
        ),
        ("haar of spins 1", Qca::parse("haar", spin1).unwrap(), 0.0),
        ("gates and shift", shifted(1), 1.0),
    ] {
        let found = index(&automaton).unwrap();
        assert!((found.bits - bits).abs() < 1e-12, "{name}: {}", found.bits);
        assert!(
            (found.by_entropies.unwrap() - bits).abs() < 1e-9,
            "{name}: {:?}",
            found.by_entropies
        );
    }
}

#[test]
fn matrix_product_unitaries_have_an_index_too() {
    let shift = Mpu::shift(2, true);
    assert!(shift.unitarity_defect().unwrap() < 1e-6);
    assert_eq!(shift.index_by_ranks().unwrap(), 1.0);
    assert_eq!(shift.after(&shift).index_by_ranks().unwrap(), 2.0);
    assert_eq!(
        shift.after(&Mpu::shift(2, false)).index_by_ranks().unwrap(),
        0.0
    );
    // A brickwork in cells of two sites, and the same followed by a shift of cells: two sites to the right.
    let gate = haar(4, 9).unwrap();
    let bricks = Mpu::of_layers(&gate, &gate, 2).unwrap();
    assert_eq!((bricks.bond(), bricks.dimension()), (4, 4));
    assert!(bricks.unitarity_defect().unwrap() < 1e-3);
    assert_eq!(bricks.index_by_ranks().unwrap(), 0.0);
    assert_eq!(
        Mpu::shift(4, true).after(&bricks).index_by_ranks().unwrap(),
        2.0
    );
    // What is not unitary is found out.
    let mut n = Numbers(1);
    let random: Vec<c64> = (0..16).map(|_| c64::new(n.real(), n.real())).collect();
    let random = Mpu::new(2, 2, random).unwrap();
    assert!(random.check_unitary("a random tensor").is_err());
    assert!(random.index_by_ranks().is_err());
    assert!(Mpu::new(2, 2, Vec::new()).is_err());
}

#[test]
fn the_tensor_of_two_layers_is_the_layers() {
    // The trace over a ring of two cells, against the gates themselves.
    let (even, odd) = (haar(4, 1).unwrap(), haar(4, 2).unwrap());
    let mpu = Mpu::of_layers(&even, &odd, 2).unwrap();
    let ring = mpu.ring(2);
    let layer = kron(&even, &even);
    // The odd layer on bonds (1, 2) and (3, 0).
    let second = Mat::from_fn(16, 16, |i, j| {
        let bit = |x: usize, site: usize| x >> (3 - site) & 1;
        let entry =
            |a: usize, b: usize| odd[(bit(i, a) * 2 + bit(i, b), bit(j, a) * 2 + bit(j, b))];
        entry(1, 2) * entry(3, 0)
    });
    assert!((ring - second * layer).norm_l2() < 1e-13);
}

#[test]
fn light_cones_are_exact() {
    for (text, right, left, support) in [
        ("haar(seed=2)", 2.0, 2.0, vec![4, 8]),
        ("swap", 2.0, 2.0, vec![1, 1]),
        ("identity", 0.0, 0.0, vec![1, 1]),
        ("shift", 1.0, -1.0, vec![1, 1]),
        ("cz", 1.0, 1.0, vec![3, 1]),
        (RANDOM_U1, 2.0, 2.0, vec![4, 8]),
    ] {
        let cone = light_cone(&qca(text)).unwrap();
        assert_eq!(
            (cone.right, cone.left, cone.steps),
            (right, left, 2),
            "{text}"
        );
        assert_eq!(cone.support, support, "{text}");
    }
    let spin1 = Qca::parse("haar", Site::Spin { twice: 2 }).unwrap();
    assert_eq!(light_cone(&spin1).unwrap().support, [4]);
}

/// The mean linear entropy of random product states, with the moments of the Haar measure in place of a sample: the mean of
/// a projector on two copies is the projector on their symmetric subspace.
fn mean_linear_entropy(u: &Matrix) -> f64 {
    let d = 2;
    // Two copies of both sites: indices a b a' b'. ω is the product of the symmetric projectors of a a' and of b b'.
    let symmetric = |x: usize, y: usize, p: usize, q: usize| {
        let same = f64::from(u8::from(x == p && y == q));
        let turned = f64::from(u8::from(x == q && y == p));
        0.5 * (same + turned) / 3.0
    };
    let digits = |i: usize| (i / 8 % d, i / 4 % d, i / 2 % d, i % d);
    let omega = Mat::from_fn(16, 16, |i, j| {
        let ((a, b, c, e), (p, q, r, s)) = (digits(i), digits(j));
        c64::new(symmetric(a, c, p, r) * symmetric(b, e, q, s), 0.0)
    });
    let both = kron(u, u);
    let moved = &both * omega * adjoint(&both);
    // tr ρ² of the left site is the expectation of the swap of a and a'.
    let purity: c64 = (0..16)
        .map(|i| {
            let (a, b, c, e) = digits(i);
            moved[(i, c * 8 + b * 4 + a * 2 + e)]
        })
        .sum();
    1.0 - purity.re
}

#[test]
fn entangling_power_is_the_mean_over_product_states() {
    for seed in 1..6 {
        let u = haar(4, seed).unwrap();
        let found = entangling_power(&u, 2).unwrap();
        assert!((found - mean_linear_entropy(&u)).abs() < 1e-12 && found > 0.05);
    }
    for (text, power, spectrum) in [
        ("cnot", 2.0 / 9.0, [0.5, 0.5, 0.0, 0.0]),
        ("swap", 0.0, [0.25; 4]),
        ("identity", 0.0, [1.0, 0.0, 0.0, 0.0]),
        ("sqrt-swap", 1.0 / 6.0, [0.625, 0.125, 0.125, 0.125]),
    ] {
        let u = qca(text).layers()[0].gate.clone();
        assert!(
            (entangling_power(&u, 2).unwrap() - power).abs() < 1e-12,
            "{text}"
        );
        for (x, y) in operator_schmidt(&u, 2).unwrap().iter().zip(spectrum) {
            assert!((x - y).abs() < 1e-12, "{text}");
        }
    }
}

#[test]
fn dual_unitary_gates_are_found_and_their_rays_followed() {
    let local = |seed: u64| kron(&haar(2, seed).unwrap(), &haar(2, seed + 1).unwrap());
    let core = |text: &str| qca(text).layers()[0].gate.clone();
    let dressed = |text: &str, seed: u64| {
        let gate = local(seed) * core(text) * local(seed + 2);
        let layer = |even| Layer {
            even,
            gate: gate.clone(),
        };
        Qca::new("dressed", Site::QUBIT, vec![layer(true), layer(false)], 0).unwrap()
    };
    let solvable = "exp(-i*(pi/4*XX + pi/4*YY + 0.2*ZZ))";
    for (automaton, class) in [
        (qca("swap"), "non-interacting"),
        (qca(solvable), "non-ergodic"),
        (dressed(solvable, 5), "ergodic and mixing"),
        (dressed(solvable, 11), "ergodic and mixing"),
        (qca("kicked-ising(h=0.4)"), "ergodic and mixing"),
    ] {
        let dual = dual_unitarity(automaton.gate().unwrap(), 2, &automaton).unwrap();
        assert!(dual.dual_unitary && dual.defect < 1e-13);
        let rays = dual.rays.unwrap();
        assert_eq!(rays.class, class, "{rays:?}");
        assert!(
            rays.direct_difference < 1e-13 && rays.off_rays < 1e-13 && rays.steps == 2,
            "{rays:?}"
        );
    }
    for text in [
        "exp(-i*(0.6*XX + 0.5*YY + 0.2*ZZ))",
        "haar(seed=1)",
        "cnot",
        "kicked-ising(j=0.7)",
    ] {
        let automaton = qca(text);
        let dual = dual_unitarity(automaton.gate().unwrap(), 2, &automaton).unwrap();
        assert!(
            !dual.dual_unitary && dual.rays.is_none() && dual.defect > 0.05,
            "{text}"
        );
    }
}

#[test]
fn clifford_automata_fall_into_their_classes() {
    for (text, class, period, speeds) in [
        ("identity", "periodic", Some(1), vec![]),
        ("cz", "periodic", Some(2), vec![]),
        ("swap", "gliders", None, vec![-2.0, 2.0]),
        ("shift", "gliders", None, vec![1.0]),
        ("kicked-ising", "gliders", None, vec![-2.0, 2.0]),
    ] {
        let found = clifford_class(&qca(text)).unwrap();
        assert_eq!(
            (found.class.as_str(), found.period),
            (class, period),
            "{text}"
        );
        assert_eq!(found.speeds, speeds, "{text}");
    }
    // A field of π/4 makes the glider of the kicked chain a fractal. Here each gate kicks, and the whole field stands before.
    let fractal = "exp(-i*pi/4*ZZ)*exp(-i*pi/4*(XI+IX))*exp(-i*pi/4*(ZZ+ZI+IZ))";
    let fractal = clifford_class(&qca(fractal)).unwrap();
    assert_eq!(fractal.class, "fractal");
    assert!(clifford_class(&qca("haar")).is_none());
    assert!(clifford_class(&qca("exp(-i*0.3*XX)")).is_none());
}

#[test]
fn the_census_of_charges_is_the_known_one() {
    let census = [
        // Three components of the spin and two charges of range three, one for each direction.
        ("exp(-i*0.4*(XX+YY+ZZ))", 5),
        ("exp(-i*(0.4*(XX+YY) + 0.15*ZZ))", 3),
        (RANDOM_U1, 3),
        ("haar(seed=3)", 0),
        ("kicked-ising(j=0.5, g=0.3)", 4),
    ];
    for (text, count) in census {
        let found = charges(&qca(text), 3).unwrap();
        assert_eq!(found.by_range.len(), 3);
        assert_eq!(found.by_range[2], count, "{text}: {found:?}");
        assert_eq!(found.densities.len(), count);
    }
    // What the first two of them are, and that every operator is kept by the identity.
    let spin = charges(&qca("exp(-i*(0.4*(XX+YY) + 0.15*ZZ))"), 1).unwrap();
    assert_eq!(spin.by_range, [1]);
    assert!(
        spin.densities[0]
            .iter()
            .all(|t| t.operators == "Z" && (t.coefficient - 1.0).abs() < 1e-9)
    );
    assert_eq!(charges(&qca("identity"), 3).unwrap().by_range, [6, 24, 96]);
    // Sites that swap past each other keep everything at momentum zero, and nothing of one site at another.
    let swap = charges(&qca("swap"), 1).unwrap();
    assert_eq!(swap.by_range, [6]);
    assert_eq!(swap.by_momentum[1], [0]);
    assert_eq!(swap.by_momentum[0], [6]);
    // Spin 1: the Heisenberg interaction keeps three components.
    let spins = Qca::parse("exp(-i*0.3*(SxSx+SySy+SzSz))", Site::Spin { twice: 2 }).unwrap();
    assert_eq!(charges(&spins, 1).unwrap().by_range, [3]);
}

#[test]
fn fermions_have_the_known_dispersion() {
    for theta in [0.3, 1.0, std::f64::consts::FRAC_PI_2] {
        let found = dispersion(&qca(&format!("exp(-i*{theta}*(XX+YY)/2)")))
            .unwrap()
            .unwrap();
        for (k, energies) in found.momentum.iter().zip(&found.energies) {
            let cosine = theta.cos().powi(2) - theta.sin().powi(2) * k.cos();
            for energy in energies {
                assert!((energy.cos() - cosine).abs() < 1e-9, "θ = {theta}, k = {k}");
            }
        }
        assert!(
            (found.velocity - 2.0 * theta.sin()).abs() < 1e-3,
            "θ = {theta}: {}",
            found.velocity
        );
    }
    let mass = 0.6_f64;
    let dirac = dispersion(&qca("dirac(mass=0.6)")).unwrap().unwrap();
    for (k, energies) in dirac.momentum.iter().zip(&dirac.energies) {
        // The momentum of the cell is one turn from that of the formula.
        let cosine = (1.0 - mass * mass).sqrt() * k.cos();
        assert!(
            energies
                .iter()
                .all(|e| (e.cos().abs() - cosine.abs()).abs() < 1e-9),
            "k = {k}"
        );
    }
    assert!(
        dispersion(&qca("kicked-ising(j=0.5,g=0.3)"))
            .unwrap()
            .is_some()
    );
    for text in [
        "haar",
        "exp(-i*0.3*(XX+YY+ZZ))",
        "kicked-ising(h=0.2)",
        "swap",
        "shift",
    ] {
        assert!(dispersion(&qca(text)).unwrap().is_none(), "{text}");
    }
}

#[test]
fn the_picture_shows_where_the_operator_is() {
    let found = spread(&qca("haar(seed=6)")).unwrap().unwrap();
    assert!(!found.exact && found.source.is_multiple_of(2));
    // One step exactly: four sites, first the pair (1, 2), then (0, 1) and (2, 3).
    let u = haar(4, 6).unwrap();
    let first = kron(&kron(&identity(2), &u), &identity(2));
    let all = kron(&u, &u) * first;
    let z = kron(&kron(&identity(2), &qubit("Z")), &identity(4));
    let moved = &all * z * adjoint(&all);
    for site in 0..4 {
        let mut sum = c64::new(0.0, 0.0);
        for name in ["I", "X", "Y", "Z"] {
            let p = kron(
                &kron(&identity(1 << site), &qubit(name)),
                &identity(1 << (3 - site)),
            );
            let product = &p * &moved * &p * &moved;
            sum += (0..16).map(|i| product[(i, i)]).sum::<c64>() / 64.0;
        }
        let weight = found.weight[1][found.source + site - 1];
        assert!(
            (weight - (1.0 - sum.re)).abs() < 6.0 * found.error,
            "site {site}: {weight}"
        );
    }
    for (t, row) in found.weight.iter().enumerate() {
        for (site, weight) in row.iter().enumerate() {
            let inside =
                site + 2 * t >= found.source + usize::from(t > 0) && site <= found.source + 2 * t;
            assert!(
                inside || weight.abs() < 1e-9,
                "t = {t}, site {site}: {weight}"
            );
        }
    }
    let swap = spread(&qca("swap")).unwrap().unwrap();
    assert!(swap.exact && swap.velocity_right == 2.0 && swap.velocity_left == -2.0);
    assert!(
        spread(&Qca::new("x", Site::QUBIT, qca("haar").layers().to_vec(), 1).unwrap())
            .unwrap()
            .is_none()
    );
}

#[test]
fn the_whole_card_is_written() {
    for text in ["swap", "shift"] {
        let card = card(&qca(text), 2, &Control::hidden()).unwrap();
        let json = serde_json::to_value(&card).unwrap();
        for key in [
            "unitary",
            "index",
            "light_cone",
            "dual_unitary",
            "clifford",
            "charges",
        ] {
            assert!(!json[key].is_null(), "{text}: {key}");
        }
        assert!(json["charges"]["2"].is_number());
    }
    let interrupted = Control::hidden();
    interrupted.interrupt();
    assert!(card(&qca("swap"), 1, &interrupted).is_err());
}
