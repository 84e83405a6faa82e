//! What is seen of a change on text: the means of features before and after, and the moments of the change itself.

use faer::Mat;
use pullback_sae::{Dictionary, Sae};

use crate::pullback::{least_squares_rows, matrix};
use crate::{AdapterError, spearman};

/// Rows that are encoded together.
pub(crate) const CHUNK: usize = 2048;

/// What is seen on the text.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Mean activation of each feature without the change.
    pub(crate) mean: Vec<f32>,
    /// Mean change of each feature's activation.
    pub(crate) change: Vec<f32>,
    /// Share of rows on which each feature is active without the change.
    pub(crate) density: Vec<f32>,
    /// Features that are ever active, with the change or without, ascending.
    pub(crate) live: Vec<u32>,
    /// `E Δ [d]`.
    pub(crate) delta_mean: Vec<f64>,
    /// `E Δ Δᵀ [d, d]`.
    pub(crate) delta_second: Mat<f64>,
    /// `E‖Δ − Σ_f Δz_f·W_dec[f]‖²`: what the dictionary does not see of the change.
    pub(crate) unseen: f64,
}

/// Sums over rows, on their way to [`Measured`].
pub(crate) struct Sums<'a> {
    sae: &'a Sae,
    rows: usize,
    before: Vec<f64>,
    after: Vec<f64>,
    fired: Vec<u64>,
    live: Vec<bool>,
    delta: Vec<f64>,
    second: Mat<f64>,
    unseen: f64,
}

impl<'a> Sums<'a> {
    pub(crate) fn new(sae: &'a Sae) -> Self {
        let (d, m) = (sae.d(), sae.n_features());
        Self {
            sae,
            rows: 0,
            before: vec![0.0; m],
            after: vec![0.0; m],
            fired: vec![0; m],
            live: vec![false; m],
            delta: vec![0.0; d],
            second: Mat::zeros(d, d),
            unseen: 0.0,
        }
    }

    /// Adds rows `[n, d]` before, after, and their difference (given as it is made, which rounds less than the difference
    /// of the two).
    pub(crate) fn add(&mut self, before: &[f32], after: &[f32], delta: &[f32]) {
        let d = self.sae.d();
        let n = before.len() / d;
        self.rows += n;
        let clean = self.sae.encode(before);
        for (&feature, &value) in clean.features().iter().zip(clean.values()) {
            self.before[feature as usize] += f64::from(value);
            self.fired[feature as usize] += 1;
            self.live[feature as usize] = true;
        }
        let moved = self.sae.encode(after);
        for (&feature, &value) in moved.features().iter().zip(moved.values()) {
            self.after[feature as usize] += f64::from(value);
            self.live[feature as usize] = true;
        }
        for row in delta.chunks_exact(d) {
            for (sum, &x) in self.delta.iter_mut().zip(row) {
                *sum += f64::from(x);
            }
        }
        let rows = matrix(delta, n, d);
        self.second += rows.transpose() * &rows;
        if self.sae.d_out() == d {
            let (a, b) = (self.sae.decode(&clean), self.sae.decode(&moved));
            let parts = delta.iter().zip(a.iter().zip(&b));
            let squares = parts.map(|(delta, (a, b))| f64::from(delta - (b - a)).powi(2));
            self.unseen += squares.sum::<f64>();
        }
    }

    /// The means.
    ///
    /// # Errors
    /// There were no rows, or what was added is not finite.
    pub(crate) fn finish(self) -> Result<Measured, AdapterError> {
        if self.rows == 0 {
            return Err(AdapterError::Option(
                "the text has no position to measure a change at".to_owned(),
            ));
        }
        let n = self.rows as f64;
        let sums = self.before.iter().zip(&self.after);
        if !self.delta.iter().all(|x| x.is_finite())
            || !sums.clone().all(|(b, a)| (b + a).is_finite())
        {
            return Err(AdapterError::Option(
                "the change, or what the dictionary makes of it, is not finite: weights are damaged or too large"
                    .to_owned(),
            ));
        }
        Ok(Measured {
            mean: self.before.iter().map(|sum| (sum / n) as f32).collect(),
            change: sums.map(|(b, a)| ((a - b) / n) as f32).collect(),
            density: self.fired.iter().map(|&c| (c as f64 / n) as f32).collect(),
            live: (0..self.live.len() as u32)
                .filter(|&feature| self.live[feature as usize])
                .collect(),
            delta_mean: self.delta.iter().map(|sum| sum / n).collect(),
            delta_second: self.second * faer::Scale(1.0 / n),
            unseen: self.unseen / n,
        })
    }
}

impl Measured {
    /// `E‖Δ‖²`.
    fn energy(&self) -> f64 {
        (0..self.delta_mean.len())
            .map(|i| self.delta_second[(i, i)])
            .sum()
    }

    /// The share of `E‖Δ‖²` outside the span of some features' decoder rows; none where nothing changed.
    pub(crate) fn outside(&self, sae: &Sae, features: &[usize]) -> Option<f64> {
        let d = self.delta_mean.len();
        let all = self.energy();
        if all <= 0.0 {
            return None;
        }
        if features.is_empty() {
            return Some(1.0);
        }
        let rows = Mat::from_fn(features.len(), d, |i, j| {
            f64::from(sae.direction(features[i])[j])
        });
        let one = Mat::<f64>::identity(d, d);
        // What is left of each direction of the stream.
        let left = &one - rows.transpose() * least_squares_rows(&rows, &one);
        let product = &left * &self.delta_second;
        let outside: f64 = (0..d)
            .map(|i| {
                let row = (0..d).map(|j| product[(i, j)] * left[(i, j)]);
                row.sum::<f64>()
            })
            .sum();
        Some((outside / all).max(0.0))
    }

    /// The share of `E‖Δ‖²` that the change of all codes does not make; none where nothing changed.
    pub(crate) fn unseen_share(&self) -> Option<f64> {
        let all = self.energy();
        (all > 0.0).then(|| self.unseen / all)
    }

    /// The live features, those that changed most first.
    pub(crate) fn ranked(&self) -> Vec<usize> {
        let mut order: Vec<usize> = self.live.iter().map(|&feature| feature as usize).collect();
        let size = |feature: usize| self.change[feature].abs();
        order.sort_by(|&a, &b| size(b).total_cmp(&size(a)).then(a.cmp(&b)));
        order
    }

    /// Spearman's rank correlation of a figure of every feature with the measured change, over live features.
    pub(crate) fn agreement(&self, of_all: &[f32]) -> Option<f64> {
        let of_live = |x: &[f32]| -> Vec<f32> {
            self.live
                .iter()
                .map(|&feature| x[feature as usize])
                .collect()
        };
        Some(spearman(&of_live(of_all), &of_live(&self.change))).filter(|rho| rho.is_finite())
    }
}
