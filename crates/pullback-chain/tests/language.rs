//! Operators, Hamiltonians, gates and schemes as people write them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

use pullback_chain::dense::{Matrix, distance, exp, identity, kron, scaled, trace};
use pullback_chain::{
    Boundary, ChainError, Gate, Hamiltonian, Qca, SCHEMES, Scheme, Site, circuit::layer_bonds,
    parse_operator, parse_scalar,
};
use pullback_tensor::{Mat, c64, eigh};

fn op(name: &str) -> Matrix {
    Site::QUBIT.operator(name).unwrap()
}

fn two(text: &str) -> Matrix {
    parse_operator(text, Site::QUBIT).unwrap().bond(2)
}

fn real(x: f64) -> c64 {
    c64::new(x, 0.0)
}

#[test]
fn expressions_mean_what_they_say() {
    let zz = kron(&op("Z"), &op("Z"));
    let x = op("X");
    let shared = kron(&x, &identity(2)) + kron(&identity(2), &x);
    let expected = scaled(&zz, real(-1.0)) + scaled(&shared, real(-0.25));
    assert!(distance(&two("-ZZ - 0.5*X"), &expected) < 1e-15);
    assert!(distance(&two("-1*ZZ - 0.5X"), &expected) < 1e-15);
    assert!(distance(&two("-(ZZ + X/2)"), &expected) < 1e-15);
    assert!(distance(&two("XI*IX"), &kron(&x, &x)) < 1e-15);
    assert!(
        distance(
            &two("2*SxSx+2SySy"),
            &scaled(&(two("XX") + two("YY")), real(0.5))
        ) < 1e-15
    );
    assert!(
        distance(
            &two("SpSm + SmSp"),
            &scaled(&(two("XX") + two("YY")), real(0.5))
        ) < 1e-15
    );
    assert!(distance(&two("XX^2"), &identity(4)) < 1e-15);
    assert!(distance(&two("ZZ + 3"), &(zz + scaled(&identity(4), real(3.0)))) < 1e-15);
    assert!(distance(&two("P0P1"), &kron(&op("P0"), &op("P1"))) < 1e-15);
    let one = parse_operator("i*X*Y*Z", Site::QUBIT).unwrap();
    assert!(distance(&one.one_site(2).unwrap(), &scaled(&identity(2), real(-1.0))) < 1e-15);
    assert_eq!(parse_scalar("-2^2 + 1e1*sqrt(4)/2").unwrap(), 6.0);
    assert!((parse_scalar("cos(pi/3)").unwrap() - 0.5).abs() < 1e-15);
}

#[test]
fn exponentials_are_unitary_and_right() {
    // exp(-iθ(XX+YY)) mixes 01 and 10 with angle 2θ.
    let u = two("exp(-i*0.3*(XX+YY))");
    let (c, s) = (0.6_f64.cos(), 0.6_f64.sin());
    let mut expected = identity(4);
    for (i, j, x) in [
        (1, 1, real(c)),
        (2, 2, real(c)),
        (1, 2, c64::new(0.0, -s)),
        (2, 1, c64::new(0.0, -s)),
    ] {
        expected[(i, j)] = x;
    }
    assert!(distance(&u, &expected) < 1e-15);
    // One that is neither Hermitian nor anti-Hermitian: exp(a Sp) = 1 + a Sp.
    let raise = parse_operator("exp(2*Sp)", Site::QUBIT)
        .unwrap()
        .one_site(2)
        .unwrap();
    assert!(distance(&raise, &(identity(2) + scaled(&op("Sp"), real(2.0)))) < 1e-14);
    let a = two("0.3*XY + (0.2+0.4*i)*ZI - 0.7*i*YX");
    let minus = scaled(&a, real(-1.0));
    assert!(distance(&(exp(&a).unwrap() * exp(&minus).unwrap()), &identity(4)) < 1e-13);
}

#[test]
fn spins_and_clocks_obey_their_algebra() {
    for twice in 1..=6 {
        let site = Site::Spin { twice };
        let d = twice + 1;
        let s = twice as f64 / 2.0;
        let [x, y, z] = ["Sx", "Sy", "Sz"].map(|name| site.operator(name).unwrap());
        let commutator = &x * &y - &y * &x;
        assert!(distance(&commutator, &scaled(&z, c64::new(0.0, 1.0))) < 1e-14);
        let square = &x * &x + &y * &y + &z * &z;
        assert!(distance(&square, &scaled(&identity(d), real(s * (s + 1.0)))) < 1e-13);
    }
    for d in 2..=5 {
        let site = Site::clock(d).unwrap();
        let [x, z] = ["X", "Z"].map(|name| site.operator(name).unwrap());
        let omega = c64::from_polar(1.0, std::f64::consts::TAU / d as f64);
        assert!(distance(&(&z * &x), &scaled(&(&x * &z), omega)) < 1e-14);
    }
    assert_eq!(Site::spin("3/2").unwrap(), Site::Spin { twice: 3 });
    assert_eq!(Site::spin("0.5").unwrap(), Site::QUBIT);
    for bad in ["0", "1/3", "x", "-1", "6", "1/0"] {
        assert!(Site::spin(bad).is_err(), "{bad}");
    }
}

/// The message and the column of the caret.
fn caret(text: &str, site: Site) -> (String, usize) {
    match parse_operator(text, site).unwrap_err() {
        ChainError::Expression { message, at, .. } => (message, at),
        other => panic!("{other}"),
    }
}

#[test]
fn errors_point_at_the_character() {
    for (text, at, part) in [
        ("", 0, "ends where"),
        ("ZZ +", 4, "ends where"),
        ("ZZ + * X", 5, "missing before `*`"),
        ("ZQ", 1, "`Q` is no operator of a spin-1/2 site"),
        ("ZZZ", 2, "a third operator"),
        ("ZZ XX", 3, "a sign"),
        ("(ZZ", 0, "never closed"),
        ("ZZ)", 2, "closes nothing"),
        ("ZZ*X", 2, "XI or IX"),
        ("ZZ/XX", 2, "division by an operator"),
        ("X/0", 1, "division by zero"),
        ("2 & 3", 2, "no meaning"),
        ("exp X", 4, "parentheses"),
        ("sin(X)", 4, "takes numbers"),
        ("X^Z", 2, "whole number"),
        ("1.2.3", 3, "a sign"),
    ] {
        let (message, found) = caret(text, Site::QUBIT);
        assert_eq!(found, at, "{text}: {message}");
        assert!(message.contains(part), "{text}: {message}");
    }
    let (message, at) = caret("SzSz + X", Site::Spin { twice: 2 });
    assert_eq!(at, 7);
    assert!(
        message.contains("spin-1 site") && message.contains("Pauli"),
        "{message}"
    );
    let error = parse_operator("ZZ + Qx", Site::QUBIT)
        .unwrap_err()
        .to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines[1], "  ZZ + Qx");
    assert_eq!(lines[2].find('^'), lines[1].find('Q'));
    assert!(parse_operator(&"(".repeat(100_000), Site::QUBIT).is_err());
    assert!(parse_operator(&"-".repeat(100_000), Site::QUBIT).is_err());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[ -~é\\n]{0,40}") {
        let _ = parse_operator(&text, Site::QUBIT);
        let _ = Hamiltonian::parse(&text, Site::QUBIT);
        let _ = Qca::parse(&text, Site::QUBIT);
        let _ = Scheme::parse(&text);
    }

    #[test]
    fn no_expression_makes_it_panic(text in "[XZS+*/^()i2.xp -]{0,24}") {
        let _ = parse_operator(&text, Site::QUBIT);
    }
}

/// The Hamiltonian of a chain as one matrix.
fn dense(h: &Hamiltonian, sites: usize, boundary: Boundary) -> Matrix {
    let d = h.site().dimension();
    let n = d.pow(sites as u32);
    let mut sum = Matrix::zeros(n, n);
    for bond in 0..boundary.bonds(sites) {
        assert_eq!(boundary, Boundary::Open);
        let term = h.bond_term(bond, sites, boundary);
        let left = identity(d.pow(bond as u32));
        let right = identity(d.pow((sites - bond - 2) as u32));
        sum += kron(&kron(&left, &term), &right);
    }
    sum
}

fn ground(h: &str, site: Site, sites: usize) -> f64 {
    let h = Hamiltonian::parse(h, site).unwrap();
    eigh(dense(&h, sites, Boundary::Open).as_ref())
        .unwrap()
        .values[0]
}

#[test]
fn one_site_terms_are_whole_at_an_open_end() {
    let h = Hamiltonian::parse("-ZZ - 2*X", Site::QUBIT).unwrap();
    let sum = dense(&h, 4, Boundary::Open);
    let mut expected = Matrix::zeros(16, 16);
    for j in 0..4 {
        let at = |k: usize, a: &str| if k == j { op(a) } else { identity(2) };
        let x = (0..4).fold(identity(1), |m, k| kron(&m, &at(k, "X")));
        expected += scaled(&x, real(-2.0));
        if j < 3 {
            let z = (0..4).fold(identity(1), |m, k| {
                kron(
                    &m,
                    &if k == j || k == j + 1 {
                        op("Z")
                    } else {
                        identity(2)
                    },
                )
            });
            expected += scaled(&z, real(-1.0));
        }
    }
    assert!(distance(&sum, &expected) < 1e-13);
}

#[test]
fn ground_energies_of_named_models_are_the_known_ones() {
    let q = Site::QUBIT;
    // E = 1 − 1/sin(π/(2(2L+1))) of the critical Ising chain with open ends.
    let l = 8.0;
    let ising = 1.0 - 1.0 / (std::f64::consts::PI / (2.0 * (2.0 * l + 1.0))).sin();
    assert!((ground("ising", q, 8) - ising).abs() < 1e-12);
    assert!((ground("ising(g=1, j=1)", q, 8) - ground("-ZZ - X", q, 8)).abs() < 1e-13);
    assert!((ground("heisenberg", q, 8) + 3.374_932_598_688).abs() < 1e-11);
    // Free fermions: −Σ of the positive ones of cos(πk/(L+1)).
    let xx: f64 = (1..=8)
        .map(|k| (std::f64::consts::PI * f64::from(k) / 9.0).cos())
        .filter(|x| *x > 0.0)
        .sum();
    assert!((ground("xx", q, 8) + xx).abs() < 1e-12);
    assert!((ground("xxz(delta=0)", q, 8) + xx).abs() < 1e-12);
    // AKLT: −2/3 a bond.
    assert!((ground("aklt", q, 5) + 8.0 / 3.0).abs() < 1e-12);
    // A clock of two positions is an Ising chain with twice the couplings.
    assert!(
        (ground("clock(j=0.5, g=0.5)", Site::clock(2).unwrap(), 6) - ground("ising", q, 6)).abs()
            < 1e-12
    );
}

#[test]
fn pxp_in_blocks_has_the_spectrum_of_pxp() {
    // Directly: four atoms, a flip is allowed where both neighbours are down.
    let atoms = 6;
    let allowed: Vec<usize> = (0..1 << atoms).filter(|s| s & (s >> 1) == 0).collect();
    let index = |s: usize| allowed.iter().position(|&t| t == s);
    let direct = Mat::from_fn(allowed.len(), allowed.len(), |i, j| {
        let flipped = allowed[i] ^ allowed[j];
        real(f64::from(u8::from(flipped.is_power_of_two())))
    });
    let expected = eigh(direct.as_ref()).unwrap().values;
    let h = Hamiltonian::parse("pxp", Site::QUBIT).unwrap();
    let full = dense(&h, atoms / 2, Boundary::Open);
    // Blocks: 0 = both down, 1 = left up, 2 = right up; the left atom is the more significant bit.
    let bits = [0b00, 0b10, 0b01];
    let code = |block: usize| {
        (0..atoms / 2).fold(0, |s, k| {
            (s << 2) | bits[block / 3_usize.pow((atoms / 2 - 1 - k) as u32) % 3]
        })
    };
    let n = full.nrows();
    let inside: Vec<usize> = (0..n).filter(|&b| index(code(b)).is_some()).collect();
    assert_eq!(inside.len(), allowed.len());
    for &b in &inside {
        for outside in (0..n).filter(|b| index(code(*b)).is_none()) {
            assert_eq!(full[(outside, b)].norm(), 0.0, "the constraint is kept");
        }
    }
    let block = Mat::from_fn(inside.len(), inside.len(), |i, j| {
        full[(inside[i], inside[j])]
    });
    for (x, y) in eigh(block.as_ref()).unwrap().values.iter().zip(&expected) {
        assert!((x - y).abs() < 1e-12);
    }
}

#[test]
fn wrong_models_and_hamiltonians_are_refused() {
    let message = |text: &str| {
        Hamiltonian::parse(text, Site::QUBIT)
            .unwrap_err()
            .to_string()
    };
    assert!(message("ising(k=1)").contains("ising(j=1, g=1, h=0)"));
    assert!(message("ising(g=1,g=2)").contains("twice"));
    assert!(message("isnig").contains("heisenberg(j=1)"));
    assert!(message("i*ZZ").contains("not Hermitian"));
    assert!(message("3").contains("needs an operator"));
    assert!(Hamiltonian::parse("xx", Site::Levels { dimension: 3 }).is_err());
}

#[test]
fn gates_that_are_not_unitary_are_refused_with_the_norm() {
    let error = Gate::parse("XX + YY", Site::QUBIT).unwrap_err();
    // (XX + YY)† (XX + YY) − 1 has eigenvalues 3, 3, −1, −1.
    assert!(
        matches!(error, ChainError::NotUnitary { defect, .. } if (defect - 3.0).abs() < 1e-12),
        "{error}"
    );
    assert!(
        Gate::parse("X", Site::QUBIT)
            .unwrap_err()
            .to_string()
            .contains("XI")
    );
    for (name, site) in [
        ("swap", Site::Spin { twice: 2 }),
        ("haar(seed=7)", Site::QUBIT),
        ("iswap", Site::QUBIT),
        ("sqrt-swap", Site::QUBIT),
        ("kicked-ising(j=0.3,g=0.2,h=0.1)", Site::QUBIT),
    ] {
        assert!(Gate::parse(name, site).unwrap().defect() < 1e-14, "{name}");
    }
    let root = Gate::parse("sqrt-swap", Site::QUBIT).unwrap();
    let swap = Gate::parse("swap", Site::QUBIT).unwrap();
    assert!(distance(&(root.matrix() * root.matrix()), swap.matrix()) < 1e-15);
    assert!(
        distance(
            Gate::parse("cnot", Site::QUBIT).unwrap().matrix(),
            &two("P0I + P1X")
        ) < 1e-15
    );
    let a = Gate::parse("haar(seed=1)", Site::QUBIT).unwrap();
    let b = Gate::parse("haar(seed=2)", Site::QUBIT).unwrap();
    assert!(distance(a.matrix(), b.matrix()) > 0.5);
}

#[test]
fn gates_come_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gate.npy");
    let u = Gate::parse("haar(seed=3)", Site::QUBIT).unwrap();
    let write = |shape: &str, fortran: bool| {
        let header = format!(
            "{{'descr': '<c16', 'fortran_order': {}, 'shape': {shape}, }}\n",
            if fortran { "True" } else { "False" }
        );
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        for k in 0..16 {
            let (i, j) = if fortran {
                (k % 4, k / 4)
            } else {
                (k / 4, k % 4)
            };
            bytes.extend(u.matrix()[(i, j)].re.to_le_bytes());
            bytes.extend(u.matrix()[(i, j)].im.to_le_bytes());
        }
        std::fs::write(&path, bytes).unwrap();
    };
    for (shape, fortran) in [("(4, 4)", false), ("(2, 2, 2, 2)", false), ("(4, 4)", true)] {
        write(shape, fortran);
        let read = Gate::parse(path.to_str().unwrap(), Site::QUBIT).unwrap();
        assert_eq!(distance(read.matrix(), u.matrix()), 0.0);
    }
    write("(2, 8)", false);
    let error = Gate::parse(path.to_str().unwrap(), Site::QUBIT)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("gate.npy") && error.contains("[2, 8]"),
        "{error}"
    );
    assert!(
        Gate::parse("nowhere.npy", Site::QUBIT)
            .unwrap_err()
            .to_string()
            .contains("nowhere.npy")
    );
}

#[test]
fn schemes_have_the_orders_that_they_are_known_for() {
    let orders = [1, 2, 2, 4, 4, 6];
    let lengths = [2, 3, 5, 11, 11, 19];
    for ((name, order), length) in SCHEMES.iter().zip(orders).zip(lengths) {
        let scheme = Scheme::parse(name).unwrap();
        assert_eq!(scheme.order(), order, "{name}");
        assert_eq!(scheme.factors().len(), length, "{name}");
        let sum = |even| {
            scheme
                .factors()
                .iter()
                .filter(|f| f.0 == even)
                .map(|f| f.1)
                .sum::<f64>()
        };
        assert!((sum(true) - 1.0).abs() < 1e-14 && (sum(false) - 1.0).abs() < 1e-14);
        // Two steps have one factor less where the last and the first are of the same bonds.
        let joined = scheme.factors_of(2).len();
        assert_eq!(joined, 2 * length - usize::from(length % 2 == 1), "{name}");
    }
    assert_eq!(Scheme::parse("a=0.5,0.5;b=1").unwrap().order(), 2);
    let yoshida = "leapfrog=1/(2-exp(ln2/3))";
    assert!(Scheme::parse(yoshida).is_err());
    // Yoshida's scheme of three leapfrogs: w = 1/(2 − 2^(1/3)).
    let w = 1.0 / (2.0 - 2.0_f64.cbrt());
    assert_eq!(
        Scheme::parse(&format!("leapfrog={w},{},{w}", 1.0 - 2.0 * w))
            .unwrap()
            .order(),
        4
    );
    for bad in [
        "third",
        "a=0.5,0.6;b=1",
        "a=0.4,0.6;b=1",
        "leapfrog=",
        "a=0.5,0.5;b=0.5,0.5",
        "a=1",
    ] {
        assert!(Scheme::parse(bad).is_err(), "{bad}");
    }
}

/// `exp(-i t H)`.
fn evolution(h: &Matrix, t: f64) -> Matrix {
    exp(&scaled(h, c64::new(0.0, -t))).unwrap()
}

#[test]
fn errors_of_schemes_fall_with_their_order() {
    // Heisenberg, 6 sites, open: even and odd bonds as two matrices that do not commute.
    let h = Hamiltonian::parse("heisenberg", Site::QUBIT).unwrap();
    let sites = 6;
    let half = |even: bool| {
        let mut sum = Matrix::zeros(64, 64);
        for bond in layer_bonds(even, sites, Boundary::Open) {
            let term = h.bond_term(bond, sites, Boundary::Open);
            sum += kron(
                &kron(&identity(1 << bond), &term),
                &identity(1 << (sites - bond - 2)),
            );
        }
        sum
    };
    let (even, odd) = (half(true), half(false));
    let exact = evolution(&(&even + &odd), 1.0);
    for (name, slope, steps) in [
        ("first", 1.0, 160),
        ("leapfrog2", 2.0, 40),
        ("optimized2-5", 2.0, 40),
        ("suzuki4", 4.0, 20),
        ("optimized4-11", 4.0, 20),
        ("symmetric6-19", 6.0, 10),
    ] {
        let scheme = Scheme::parse(name).unwrap();
        let error = |steps: usize| {
            let dt = 1.0 / steps as f64;
            let mut step = identity(64);
            for (is_even, x) in scheme.factors() {
                step = evolution(if is_even { &even } else { &odd }, x * dt) * step;
            }
            let all = (0..steps).fold(identity(64), |u, _| &step * u);
            distance(&all, &exact)
        };
        let found = (error(steps) / error(2 * steps)).log2();
        assert!((found - slope).abs() < 0.02, "{name}: slope {found}");
    }
}

#[test]
fn the_dirac_automaton_moves_fermions_as_it_should() {
    let qca = Qca::parse("dirac(mass=0.6)", Site::QUBIT).unwrap();
    assert!((trace(&qca.layers()[0].gate).re - (2.0 + 2.0 * 0.6)).abs() < 1e-14);
    assert!(Qca::parse("dirac(mass=2)", Site::QUBIT).is_err());
    assert_eq!(Qca::parse("shift(-2)", Site::QUBIT).unwrap().shift(), -2);
    assert!(Qca::parse("shift(0.5)", Site::QUBIT).is_err());
    assert!(
        Qca::parse("swpa", Site::QUBIT)
            .unwrap_err()
            .to_string()
            .contains("sqrt-swap")
    );
}
