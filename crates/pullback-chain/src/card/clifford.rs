//! Clifford automata: Pauli operators stay Pauli operators, and the automaton is a matrix of polynomials over two elements
//! (Schlingemann, Vogts and Werner, arXiv:0804.4447; Gütschow, Uphoff, Werner and Zimborás, arXiv:0906.3195).

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::qca::Qca;
use crate::site::Site;
use crate::stabilizer::CliffordGate;

/// Powers that are looked at for the period.
const PERIODS: usize = 60;

/// Powers that are looked at for gliders.
const GLIDERS: i32 = 8;

/// What a Clifford automaton does to Pauli operators in the long run.
#[derive(Clone, Debug, Serialize)]
pub struct CliffordClass {
    /// `periodic`: after some steps each is back, up to its sign. `gliders`: some move without changing. `fractal`: none of
    /// both.
    pub class: String,
    /// The steps after which each is back.
    pub period: Option<usize>,
    /// Speeds of gliders in sites a step, to the right positive.
    pub speeds: Vec<f64>,
}

/// A polynomial in `u` and `1/u` over two elements: the exponents that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Poly(BTreeSet<i32>);

impl Poly {
    fn monomial(n: i32) -> Self {
        Self(BTreeSet::from([n]))
    }

    fn add(&mut self, other: &Self) {
        for n in &other.0 {
            if !self.0.remove(n) {
                self.0.insert(*n);
            }
        }
    }

    fn times(&self, other: &Self) -> Self {
        let mut out = Self::default();
        for n in &self.0 {
            let moved = other.0.iter().map(|m| m + n).collect();
            out.add(&Self(moved));
        }
        out
    }
}

/// Entries `[row][column]` for the four components of a cell: Z and X of its left site, Z and X of its right one.
type Symplectic = [[Poly; 4]; 4];

/// The class, if the automaton is one of qubits whose layers are Clifford gates.
pub fn clifford_class(qca: &Qca) -> Option<CliffordClass> {
    let step = symplectic(qca)?;
    let mut powers = vec![step.clone()];
    while powers.len() < PERIODS {
        if is_identity(&powers[powers.len() - 1]) {
            return Some(CliffordClass {
                class: "periodic".to_owned(),
                period: Some(powers.len()),
                speeds: Vec::new(),
            });
        }
        let next = product(&powers[powers.len() - 1], &step);
        powers.push(next);
    }
    let mut speeds: Vec<f64> = Vec::new();
    for p in 1..=GLIDERS {
        let characteristic = characteristic(&powers[p as usize - 1]);
        let reach = p * (qca.layers().len() as i32 + qca.shift().unsigned_abs() as i32 + 1);
        for n in (-reach..=reach).filter(|n| *n != 0) {
            // det(Mᵖ − uⁿ) = 0: something is moved by n cells in p steps.
            let mut value = Poly::default();
            for (k, coefficient) in (0..).zip(&characteristic) {
                value.add(&coefficient.times(&Poly::monomial(n * k)));
            }
            let speed = 2.0 * f64::from(n) / f64::from(p);
            if value.0.is_empty() && !speeds.contains(&speed) {
                speeds.push(speed);
            }
        }
    }
    speeds.sort_by(f64::total_cmp);
    let class = if speeds.is_empty() {
        "fractal"
    } else {
        "gliders"
    };
    Some(CliffordClass {
        class: class.to_owned(),
        period: None,
        speeds,
    })
}

/// Pauli operators by site, as bits: Z 1, X 2.
pub(crate) type PauliMap = BTreeMap<isize, u8>;

/// The layers of a Clifford automaton: whether on even bonds, and the gate.
pub(crate) fn clifford_layers(qca: &Qca) -> Option<Vec<(bool, CliffordGate)>> {
    if qca.site() != Site::QUBIT {
        return None;
    }
    let layers = qca
        .layers()
        .iter()
        .map(|layer| Some((layer.even, CliffordGate::from_matrix(&layer.gate)?)));
    layers.collect()
}

/// One step of a product of Pauli operators.
pub(crate) fn step(layers: &[(bool, CliffordGate)], shift: isize, paulis: &PauliMap) -> PauliMap {
    let mut now = paulis.clone();
    for (even, gate) in layers {
        let mut next = PauliMap::new();
        let offset = isize::from(!*even);
        let lefts: BTreeSet<isize> = now
            .keys()
            .map(|site| (site - offset).div_euclid(2) * 2 + offset)
            .collect();
        for left in lefts {
            let at = |site: isize| now.get(&site).copied().unwrap_or(0);
            let image = gate.image(at(left) << 2 | at(left + 1));
            for (site, pauli) in [(left, image >> 2), (left + 1, image & 3)] {
                if pauli != 0 {
                    next.insert(site, pauli);
                }
            }
        }
        now = next;
    }
    now.into_iter()
        .map(|(site, pauli)| (site + shift, pauli))
        .collect()
}

fn symplectic(qca: &Qca) -> Option<Symplectic> {
    let layers = clifford_layers(qca)?;
    let mut m = Symplectic::default();
    for column in 0..4 {
        let start = PauliMap::from([((column / 2) as isize, 1_u8 << (column % 2))]);
        for (site, pauli) in step(&layers, qca.shift(), &start) {
            let cell = site.div_euclid(2) as i32;
            for bit in (0..2).filter(|bit| pauli >> bit & 1 == 1) {
                m[site.rem_euclid(2) as usize * 2 + bit][column].add(&Poly::monomial(cell));
            }
        }
    }
    Some(m)
}

fn product(a: &Symplectic, b: &Symplectic) -> Symplectic {
    let mut out = Symplectic::default();
    for i in 0..4 {
        for j in 0..4 {
            for k in 0..4 {
                out[i][j].add(&a[i][k].times(&b[k][j]));
            }
        }
    }
    out
}

fn is_identity(m: &Symplectic) -> bool {
    (0..4).all(|i| {
        (0..4).all(|j| {
            m[i][j]
                == if i == j {
                    Poly::monomial(0)
                } else {
                    Poly::default()
                }
        })
    })
}

/// The coefficients of `det(M + λ)`, that of `λ⁰` first: sums of principal minors.
fn characteristic(m: &Symplectic) -> [Poly; 5] {
    let mut out = [const { Poly(BTreeSet::new()) }; 5];
    for set in 0..16_usize {
        let chosen: Vec<usize> = (0..4).filter(|i| set >> i & 1 == 1).collect();
        out[4 - chosen.len()].add(&minor(m, &chosen, &chosen));
    }
    out
}

/// The determinant of some rows and as many columns; over two elements signs do not matter.
fn minor(m: &Symplectic, rows: &[usize], columns: &[usize]) -> Poly {
    let Some((&row, rest)) = rows.split_first() else {
        return Poly::monomial(0);
    };
    let mut sum = Poly::default();
    for &column in columns {
        let others: Vec<usize> = columns.iter().copied().filter(|c| *c != column).collect();
        sum.add(&m[row][column].times(&minor(m, rest, &others)));
    }
    sum
}
