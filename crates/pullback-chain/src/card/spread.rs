//! How an operator spreads: where it is not the identity, step by step.

use pullback_tensor::c64;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::circuit::PlacedGate;
use crate::dense::{Matrix, adjoint, identity};
use crate::error::ChainError;
use crate::hamiltonian::Boundary;
use crate::qca::Qca;
use crate::site::Site;
use crate::statevector::{Plan, StateVector};
use std::sync::Arc;

use super::clifford::{PauliMap, clifford_layers, step};

/// The most amplitudes of the random state.
const AMPLITUDES: usize = 1 << 16;

/// Steps of the picture of a Clifford automaton.
const CLIFFORD_STEPS: usize = 48;

/// An operator that began on one site.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    /// What it was.
    pub operator: String,
    /// The site it began on; the first of the picture is 0.
    pub source: usize,
    /// `weight[t][site]`: the share of the operator's products in which that site is not the identity, after `t` steps. In
    /// a fully scrambled region it is `1 − 1/d²`.
    pub weight: Vec<Vec<f64>>,
    /// Whether the weights are exact; else they are means over one random state, with an error of about `error`.
    pub exact: bool,
    /// The error of the weights, zero where they are exact.
    pub error: f64,
    /// Sites a step of the right front: the outermost site where the weight reaches a quarter of its scrambled value.
    pub velocity_right: f64,
    /// The same of the left front.
    pub velocity_left: f64,
}

/// Follows `Z` (for more states than two, the phase operator of a clock) from the middle of an open chain. Clifford
/// automata are followed exactly and far, others on up to sixteen qubits.
///
/// # Errors
/// Memory is short.
pub fn spread(qca: &Qca) -> Result<Option<Spread>, ChainError> {
    if let Some(layers) = clifford_layers(qca) {
        return Ok(Some(clifford_spread(&layers, qca.shift())));
    }
    if qca.shift() != 0 {
        return Ok(None);
    }
    random_spread(qca).map(Some)
}

fn clifford_spread(layers: &[(bool, crate::stabilizer::CliffordGate)], shift: isize) -> Spread {
    let mut paulis = PauliMap::from([(0, 1)]);
    let mut history = vec![paulis.clone()];
    for _ in 0..CLIFFORD_STEPS {
        paulis = step(layers, shift, &paulis);
        history.push(paulis.clone());
    }
    let sites = || history.iter().flat_map(PauliMap::keys);
    let low = sites().min().copied().unwrap_or(0).min(0) / 2 * 2;
    let high = sites().max().copied().unwrap_or(0);
    let weight: Vec<Vec<f64>> = history
        .iter()
        .map(|paulis| {
            (low..=high)
                .map(|site| f64::from(u8::from(paulis.contains_key(&site))))
                .collect()
        })
        .collect();
    finished("Z", (-low) as usize, weight, 2, 0.0)
}

fn random_spread(qca: &Qca) -> Result<Spread, ChainError> {
    let d = qca.dimension();
    let mut sites = 2;
    while d.pow(sites + 2) <= AMPLITUDES {
        sites += 2;
    }
    let sites = sites as usize;
    let source = (sites / 2 - 1) / 2 * 2;
    let steps = ((sites / 2) / qca.layers().len().max(1)).clamp(1, 8);
    let forward = qca.step(sites, Boundary::Open)?;
    let backward: Vec<PlacedGate> = forward
        .iter()
        .rev()
        .map(|gate| PlacedGate {
            sites: gate.sites,
            matrix: Arc::new(adjoint(&gate.matrix)),
        })
        .collect();
    let (forward, backward) = (
        Plan::new(d, sites, &forward)?,
        Plan::new(d, sites, &backward)?,
    );
    let operator = Site::clock(d)?.operator("Z").unwrap_or_else(|| identity(d));
    let twirl = twirl(d)?;
    let psi = random_state(d, sites, 1)?;
    let total = psi.norm_squared();
    // ψ and P ψ for every site and operator P, evolved backward.
    let mut images = vec![psi.clone()];
    for site in 0..sites {
        for p in &twirl[1..] {
            let mut image = psi.clone();
            image.apply_to_site(site, p);
            images.push(image);
        }
    }
    let mut weight = vec![
        (0..sites)
            .map(|site| f64::from(u8::from(site == source)))
            .collect::<Vec<f64>>(),
    ];
    for t in 1..=steps {
        for image in &mut images {
            image.apply(&backward);
        }
        // A(t) = Uᵗ A U⁻ᵗ; the mean of P A(t)† P† A(t) over all P keeps what is the identity at the site.
        let moved = |image: &StateVector<f64>, a: &Matrix| {
            let mut image = image.clone();
            image.apply_to_site(source, a);
            for _ in 0..t {
                image.apply(&forward);
            }
            image
        };
        let left = moved(&images[0], &operator);
        let mut row = Vec::with_capacity(sites);
        for site in 0..sites {
            let mut sum = left.norm_squared();
            for (k, p) in twirl[1..].iter().enumerate() {
                // ⟨ψ| A† P A P† |ψ⟩ with P† ψ among the images: the operators are in the set with their adjoints.
                let image = &images[1 + site * (d * d - 1) + k];
                let mut right = moved(image, &operator);
                right.apply_to_site(site, &adjoint(p));
                sum += left.inner(&right).re;
            }
            row.push(1.0 - sum / (total * (d * d) as f64));
        }
        weight.push(row);
    }
    let error = (d as f64).powf(-(sites as f64) / 2.0);
    Ok(finished("Z", source, weight, d, error))
}

/// The `d²` unitary products of clock operators, the identity first: their mean `P A P†` takes a site out of `A`.
fn twirl(d: usize) -> Result<Vec<Matrix>, ChainError> {
    let clock = Site::clock(d)?;
    let one = || identity(d);
    let (x, z) = (
        clock.operator("X").unwrap_or_else(one),
        clock.operator("Z").unwrap_or_else(one),
    );
    let mut out = Vec::new();
    let mut up = one();
    for _ in 0..d {
        let mut both = up.clone();
        for _ in 0..d {
            out.push(both.clone());
            both = &both * &z;
        }
        up = &up * &x;
    }
    Ok(out)
}

fn random_state(d: usize, sites: usize, seed: u64) -> Result<StateVector<f64>, ChainError> {
    let size = StateVector::<f64>::check_size(d, sites)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut gaussian = || {
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        c64::from_polar((-2.0 * (1.0 - u).ln()).sqrt(), std::f64::consts::TAU * v)
    };
    let x: Vec<c64> = (0..size).map(|_| gaussian()).collect();
    let norm = x.iter().map(c64::norm_sqr).sum::<f64>().sqrt();
    StateVector::from_parts(
        d,
        sites,
        x.iter().map(|x| x.re / norm).collect(),
        x.iter().map(|x| x.im / norm).collect(),
    )
}

/// Finds the fronts and puts everything together.
fn finished(operator: &str, source: usize, weight: Vec<Vec<f64>>, d: usize, error: f64) -> Spread {
    let threshold = 0.25 * (1.0 - 1.0 / (d * d) as f64);
    let mut right = Vec::new();
    let mut left = Vec::new();
    for (t, row) in weight.iter().enumerate() {
        let above = |x: &f64| *x >= threshold;
        if let (Some(high), Some(low)) = (row.iter().rposition(above), row.iter().position(above)) {
            right.push((t as f64, high as f64 - source as f64));
            left.push((t as f64, source as f64 - low as f64));
        }
    }
    Spread {
        operator: operator.to_owned(),
        source,
        weight,
        exact: error == 0.0,
        error,
        velocity_right: slope(&right),
        velocity_left: slope(&left),
    }
}

/// The slope of the line nearest to some points; the first step begins on a site that may be either one of a cell and is
/// left out where there are others.
fn slope(points: &[(f64, f64)]) -> f64 {
    let points = if points.len() > 2 {
        &points[1..]
    } else {
        points
    };
    let n = points.len() as f64;
    let (x, y) = points
        .iter()
        .fold((0.0, 0.0), |(x, y), p| (x + p.0 / n, y + p.1 / n));
    let (over, under) = points.iter().fold((0.0, 0.0), |(o, u), p| {
        (o + (p.0 - x) * (p.1 - y), u + (p.0 - x).powi(2))
    });
    if under > 0.0 { over / under } else { 0.0 }
}
