//! Ground states: the density-matrix renormalisation group with two sites (White, PRL 69, 2863; Schollwöck,
//! arXiv:1008.3477, section 6).

use pullback_artifact::Control;
use pullback_tensor::{Mat, Threads, c64, eigh, multiply, svd};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::dense::{Matrix, identity};
use crate::error::ChainError;
use crate::hamiltonian::{Boundary, Hamiltonian};
use crate::measure::Measure;

use super::operator::{Mpo, SiteOperator, joined, push_left, push_right};
use super::state::{Ledger, Mps};
use super::tensor::Tensor;
use super::truncate::Truncation;

/// Bond dimension of the first sweep; each following one may be twice as wide.
const FIRST_BOND: usize = 16;

/// Vectors of the Krylov space of a bond.
const KRYLOV: usize = 12;

/// How a ground state is looked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroundOptions {
    /// What is kept of a bond.
    pub truncation: Truncation,
    /// The most sweeps, each there and back.
    pub sweeps: usize,
    /// The search ends when a sweep of full width changes the energy by less than this, relative to its modulus or 1.
    pub tolerance: f64,
}

impl Default for GroundOptions {
    fn default() -> Self {
        Self {
            truncation: Truncation::default(),
            sweeps: 60,
            tolerance: 1e-12,
        }
    }
}

/// A state of lowest energy, as far as it was found.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The energy.
    pub energy: f64,
    /// `⟨(H − E)²⟩`: zero of an eigenstate.
    pub variance: f64,
    /// Sweeps done, each there and back.
    pub sweeps: usize,
    /// Whether the energy had come to rest.
    pub converged: bool,
    /// The weight that the last sweep discarded.
    pub discarded: f64,
    /// The state.
    pub state: Mps,
}

/// The ground state of an open chain. It begins from a random state (of a fixed seed), so that no symmetry keeps it away.
///
/// # Errors
/// The chain has fewer than 2 sites, memory is short, or the user stopped it.
pub fn ground(
    h: &Hamiltonian,
    sites: usize,
    options: GroundOptions,
    control: &Control,
) -> Result<Ground, ChainError> {
    let truncation = options.truncation.checked()?;
    let mpo = Mpo::new(h, sites, 0.0)?;
    let d = h.site().dimension();
    Mps::check_size(d, sites, truncation.max_bond.saturating_mul(2))?;
    let mut search = Search::new(&mpo, d, sites)?;
    let stage = control.stage("ground state", options.sweeps as u64, "sweeps");
    let (mut energy, mut before) = (f64::INFINITY, f64::INFINITY);
    let (mut sweeps, mut converged) = (0, false);
    while sweeps < options.sweeps && !converged {
        let wide = FIRST_BOND << sweeps.min(20);
        let full = wide >= truncation.max_bond;
        let now = Truncation {
            max_bond: truncation.max_bond.min(wide),
            ..truncation
        };
        search.discarded = 0.0;
        for j in 0..sites - 1 {
            control.check()?;
            search.optimise(&mpo, j, now, true)?;
        }
        for j in (0..sites - 1).rev() {
            control.check()?;
            energy = search.optimise(&mpo, j, now, false)?;
        }
        sweeps += 1;
        stage.set(sweeps as u64);
        stage.message(&format!(
            "energy {energy:.12}, discarded {:.1e}",
            search.discarded
        ));
        converged = full && (energy - before).abs() <= options.tolerance * energy.abs().max(1.0);
        before = energy;
    }
    stage.finish();
    let discarded = search.discarded;
    let state = search.finish()?;
    // That of the state after its last cut.
    let energy = state.energy(h, Boundary::Open)?;
    let variance = Mpo::new(h, sites, energy)?.squared(&state.tensors);
    Ok(Ground {
        energy,
        variance,
        sweeps,
        converged,
        discarded,
        state,
    })
}

struct Search {
    tensors: Vec<Tensor>,
    /// Environments to the left and to the right of every site; those that are out of date are made anew on the way.
    left: Vec<Vec<Matrix>>,
    right: Vec<Vec<Matrix>>,
    discarded: f64,
}

impl Search {
    /// Random tensors of narrow bonds, right-canonical.
    fn new(mpo: &Mpo, d: usize, sites: usize) -> Result<Self, ChainError> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let bond = |j: usize| {
            let side = j.min(sites - j).min(3);
            d.pow(side as u32).min(8)
        };
        let tensors: Vec<Tensor> = (0..sites)
            .map(|j| {
                let (l, r) = (bond(j), bond(j + 1));
                let data = (0..l * d * r)
                    .map(|_| c64::new(rng.random::<f64>() - 0.5, 0.0))
                    .collect();
                Tensor::new(l, d, r, data)
            })
            .collect();
        let mut start = Mps {
            dimension: d,
            schmidt: tensors.iter().map(|t| vec![1.0; t.left]).collect(),
            tensors,
            ledger: Ledger::default(),
        };
        start.restore()?;
        let mut search = Self {
            tensors: start.tensors,
            left: vec![vec![identity(1)]; sites + 1],
            right: vec![vec![identity(1)]; sites + 1],
            discarded: 0.0,
        };
        for j in (1..sites).rev() {
            search.right[j] = push_right(&search.right[j + 1], &mpo.sites[j], &search.tensors[j]);
        }
        Ok(search)
    }

    /// Finds the best tensor of sites `j` and `j + 1`, cuts it, and moves the centre on.
    fn optimise(
        &mut self,
        mpo: &Mpo,
        j: usize,
        truncation: Truncation,
        to_right: bool,
    ) -> Result<f64, ChainError> {
        let (a, b) = (&self.tensors[j], &self.tensors[j + 1]);
        let d = a.physical;
        let mut theta = Tensor::zeros(a.left, d * d, b.right);
        let (rows, columns) = (a.left * d, d * b.right);
        multiply(
            super::operator::over(&mut theta.data, rows, columns),
            a.by_left(),
            b.by_right(),
            Threads::All,
        );
        let problem = Problem::new(
            &self.left[j],
            &self.right[j + 2],
            &mpo.sites[j],
            &mpo.sites[j + 1],
        );
        let (energy, theta) = lowest(&problem, theta)?;
        let matrix = pullback_tensor::MatRef::from_column_major_slice(&theta.data, rows, columns);
        let svd = svd(matrix)?;
        let weights: Vec<f64> = svd.values.iter().map(|s| s * s).collect();
        let count = truncation.keep(&weights);
        self.discarded += weights[count..].iter().sum::<f64>();
        let length = weights[..count].iter().sum::<f64>().sqrt();
        let (left, right) = (theta.left, theta.right);
        let weight = |k: usize, here: bool| if here { svd.values[k] / length } else { 1.0 };
        let u = Mat::from_fn(rows, count, |i, k| svd.u[(i, k)] * weight(k, !to_right));
        let v = Mat::from_fn(count, columns, |k, i| {
            svd.v[(i, k)].conj() * weight(k, to_right)
        });
        self.tensors[j] = Tensor::from_mat(left, d, count, &u);
        self.tensors[j + 1] = Tensor::from_mat(count, d, right, &v);
        if to_right {
            self.left[j + 1] = push_left(&self.left[j], &mpo.sites[j], &self.tensors[j]);
        } else {
            self.right[j + 1] =
                push_right(&self.right[j + 2], &mpo.sites[j + 1], &self.tensors[j + 1]);
        }
        Ok(energy)
    }

    /// The state after a sweep to the left, canonical.
    fn finish(self) -> Result<Mps, ChainError> {
        let sites = self.tensors.len();
        let dimension = self.tensors[0].physical;
        let mut state = Mps {
            dimension,
            schmidt: self.tensors.iter().map(|t| vec![1.0; t.left]).collect(),
            tensors: self.tensors,
            ledger: Ledger {
                by_bond: vec![0.0; sites - 1],
                ..Ledger::default()
            },
        };
        state.restore()?;
        state.ledger.max_bond = state.bonds().into_iter().max().unwrap_or(1);
        Ok(state)
    }
}

/// The Hamiltonian on two sites with what stands beside them.
struct Problem<'a> {
    left: &'a [Matrix],
    right: &'a [Matrix],
    operators: Vec<(usize, usize, Matrix)>,
}

impl<'a> Problem<'a> {
    fn new(
        left: &'a [Matrix],
        right: &'a [Matrix],
        first: &SiteOperator,
        last: &SiteOperator,
    ) -> Self {
        Self {
            left,
            right,
            operators: joined(first, last),
        }
    }

    fn times(&self, x: &Tensor) -> Tensor {
        let (left, physical, right) = (x.left, x.physical, x.right);
        let mut sums: Vec<Option<Tensor>> = vec![None; self.right.len()];
        for (from, env) in self.left.iter().enumerate() {
            let mut pushed = Tensor::zeros(left, physical, right);
            multiply(
                pushed.by_right_mut(),
                env.as_ref(),
                x.by_right(),
                Threads::All,
            );
            for (_, to, matrix) in self.operators.iter().filter(|entry| entry.0 == from) {
                sums[*to]
                    .get_or_insert_with(|| Tensor::zeros(left, physical, right))
                    .add_operator(&pushed, matrix.as_ref());
            }
        }
        let mut out = Tensor::zeros(left, physical, right);
        for (sum, env) in sums.iter().zip(self.right) {
            if let Some(sum) = sum {
                pullback_tensor::multiply_add(
                    out.by_left_mut(),
                    sum.by_left(),
                    env.as_ref(),
                    Threads::All,
                );
            }
        }
        out
    }
}

fn inner(x: &Tensor, y: &Tensor) -> c64 {
    x.data.iter().zip(&y.data).map(|(x, y)| x.conj() * y).sum()
}

fn add(x: &mut Tensor, y: &Tensor, factor: c64) {
    for (x, y) in x.data.iter_mut().zip(&y.data) {
        *x += y * factor;
    }
}

/// The lowest eigenvalue and vector in the Krylov space of a start (Lanczos, every vector made orthogonal to all).
fn lowest(problem: &Problem<'_>, start: Tensor) -> Result<(f64, Tensor), ChainError> {
    let normalised = |mut x: Tensor| {
        let length = inner(&x, &x).re.sqrt();
        for x in &mut x.data {
            *x /= length;
        }
        (x, length)
    };
    let size = start.data.len();
    let mut basis = vec![normalised(start).0];
    let (mut diagonal, mut beside) = (Vec::new(), Vec::new());
    loop {
        let k = basis.len() - 1;
        let mut next = problem.times(&basis[k]);
        diagonal.push(inner(&basis[k], &next).re);
        let projected = Mat::from_fn(k + 1, k + 1, |i, j| match i.abs_diff(j) {
            0 => diagonal[i],
            1 => beside[i.min(j)],
            _ => 0.0,
        });
        for _ in 0..2 {
            for v in &basis {
                let overlap = inner(v, &next);
                add(&mut next, v, -overlap);
            }
        }
        let (next, length) = normalised(next);
        let eigh = eigh(projected.as_ref())?;
        // What the best vector of this space is off by.
        let residual = length * eigh.u[(k, 0)].abs();
        if k + 1 >= KRYLOV.min(size) || residual.is_nan() || residual < 1e-11 {
            let mut best = Tensor::zeros(next.left, next.physical, next.right);
            for (i, v) in basis.iter().enumerate() {
                add(&mut best, v, c64::new(eigh.u[(i, 0)], 0.0));
            }
            return Ok((eigh.values[0], normalised(best).0));
        }
        beside.push(length);
        basis.push(next);
    }
}
