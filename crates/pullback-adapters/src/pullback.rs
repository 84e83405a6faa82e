//! An adapter's matrices read through a dictionary.
//!
//! What a feature feeds into hidden unit `j` for a unit of its activation is row `i` of `W_dec·W_inᵀ`. What
//! unit `j` writes is `W_out[:, j]`: to first order it moves the pre-activation of feature `i` by
//! `W_outᵀ·W_enc`, and as a sum of decoder rows it is the least-squares solution of `W_decᵀ c = W_out`.

use faer::Mat;
use faer::linalg::solvers::Solve;
use pullback_sae::{Dictionary, Sae};

use crate::residual::values;
use crate::{AdapterError, ResidualAdapter};

/// The pullback of an adapter through a dictionary; matrices are row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Pullback {
    /// Hidden units.
    pub rank: usize,
    /// Features.
    pub features: usize,
    /// `W_dec·W_inᵀ [features, rank]`: what each feature feeds into each unit.
    pub reads: Vec<f32>,
    /// `W_outᵀ·W_enc`, transposed to `[features, rank]`: how far each unit moves each pre-activation.
    pub writes: Vec<f32>,
    /// The smallest `c [features, rank]` with `W_decᵀ c = W_out` in least squares: each unit's output as a
    /// sum of decoder rows.
    pub written_rows: Vec<f32>,
    /// `b_in + W_in·b_dec [rank]`: what the units get when no feature is active.
    pub bias: Vec<f32>,
}

impl Pullback {
    /// Pulls an adapter back.
    ///
    /// # Errors
    /// The widths differ.
    pub fn new(adapter: &ResidualAdapter, sae: &Sae) -> Result<Self, AdapterError> {
        let (rank, d, features) = (adapter.rank(), adapter.d(), sae.n_features());
        if sae.d() != d {
            return Err(AdapterError::Option(format!(
                "the adapter is of width {d}, the dictionary of width {}",
                sae.d()
            )));
        }
        let (w_in, b_in) = (values(&adapter.w_in), values(&adapter.b_in));
        let w_out = values(&adapter.w_out);
        let w_in = matrix(&w_in, rank, d);
        let w_out = matrix(&w_out, d, rank);
        let decoder = matrix(sae.decoder(), features, d);
        let encoder = matrix(sae.encoder(), features, d);
        let decoder_bias = matrix(sae.decoder_bias(), d, 1);
        let reads = &decoder * w_in.transpose();
        let writes = &encoder * &w_out;
        let through_bias = &w_in * decoder_bias;
        Ok(Self {
            rank,
            features,
            reads: row_major(&reads),
            writes: row_major(&writes),
            written_rows: row_major(&least_squares_rows(&decoder, &w_out)),
            bias: (0..rank)
                .map(|j| b_in[j] + through_bias[(j, 0)] as f32)
                .collect(),
        })
    }

    /// Length of a feature's row of `W_dec·W_inᵀ`, each unit weighted by its slope.
    pub fn read_length(&self, feature: usize, slope: impl Fn(usize) -> f64) -> f64 {
        let row = &self.reads[feature * self.rank..(feature + 1) * self.rank];
        let squares = row
            .iter()
            .enumerate()
            .map(|(unit, &x)| (f64::from(x) * slope(unit)).powi(2));
        squares.sum::<f64>().sqrt()
    }

    /// First-order change of the pre-activation of the feature `to` for a unit of the feature `from`, through all units, each
    /// weighted by its slope: an entry of `W_dec·W_inᵀ·diag(slope)·W_outᵀ·W_enc`.
    pub fn path(&self, from: usize, to: usize, slope: impl Fn(usize) -> f64) -> f64 {
        (0..self.rank)
            .map(|unit| {
                let read = f64::from(self.reads[from * self.rank + unit]);
                read * slope(unit) * f64::from(self.writes[to * self.rank + unit])
            })
            .sum()
    }

    /// First-order change of every feature's pre-activation `[features]` for given hidden activities
    /// `[rank]`.
    pub fn pre_activation_change(&self, hidden: &[f64]) -> Vec<f32> {
        self.writes
            .chunks_exact(self.rank)
            .map(|row| {
                row.iter()
                    .zip(hidden)
                    .map(|(&w, h)| f64::from(w) * h)
                    .sum::<f64>() as f32
            })
            .collect()
    }
}

/// The smallest `c` that minimises `‖rowsᵀ c − target‖`: `rows [m, d]`, `target [d, r]` → `[m, r]`.
///
/// With `G` the smaller Gram matrix of the rows, `c = rows·G⁺·target` for more rows than dimensions, and
/// `c = G⁺·rows·target` for fewer; a relative ridge of 1e-10 stands for the pseudo-inverse.
pub(crate) fn least_squares_rows(rows: &Mat<f64>, target: &Mat<f64>) -> Mat<f64> {
    let (m, d) = (rows.nrows(), rows.ncols());
    let tall = m >= d;
    let mut gram = if tall {
        rows.transpose() * rows
    } else {
        rows * rows.transpose()
    };
    let size = gram.nrows();
    let trace: f64 = (0..size).map(|i| gram[(i, i)]).sum();
    for i in 0..size {
        gram[(i, i)] += 1e-10 * trace / size.max(1) as f64;
    }
    let solver = gram.partial_piv_lu();
    if tall {
        rows * solver.solve(target)
    } else {
        solver.solve(rows * target)
    }
}

/// A row-major slice as a matrix in f64.
pub(crate) fn matrix(x: &[f32], rows: usize, columns: usize) -> Mat<f64> {
    Mat::from_fn(rows, columns, |i, j| f64::from(x[i * columns + j]))
}

fn row_major(x: &Mat<f64>) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.nrows() * x.ncols());
    for i in 0..x.nrows() {
        for j in 0..x.ncols() {
            out.push(x[(i, j)] as f32);
        }
    }
    out
}
