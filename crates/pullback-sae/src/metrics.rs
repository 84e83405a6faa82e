//! How well a dictionary reconstructs: closed formulas, accumulated in f64 over batches.

use pullback_kernels::sparse::SparseCodes;
use serde::{Deserialize, Serialize};

/// Sums from which the metrics of a reconstruction follow; batches can be added in any split.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconstruction {
    rows: f64,
    sum: Vec<f64>,
    squares: f64,
    errors: f64,
    active: f64,
    fired: Vec<u64>,
}

/// What [`Reconstruction::metrics`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReconstructionMetrics {
    /// `1 − E‖x − x̂‖² / E‖x − E x‖²`: variance about the mean.
    pub explained_variance: f64,
    /// `1 − E‖x − x̂‖² / E‖x‖²`: variance about zero, which older tools report under the same name.
    pub explained_about_zero: f64,
    /// `E‖x − x̂‖²`, summed over coordinates.
    pub mse: f64,
    /// Active features a token.
    pub l0: f64,
    /// Share of features active on none of the tokens seen.
    pub dead_fraction: f64,
}

impl Reconstruction {
    /// Nothing seen yet.
    pub fn new(d: usize, n_features: usize) -> Self {
        Self {
            rows: 0.0,
            sum: vec![0.0; d],
            squares: 0.0,
            errors: 0.0,
            active: 0.0,
            fired: vec![0; n_features],
        }
    }

    /// Adds activations `[n, d]`, their codes and reconstructions `[n, d]`.
    ///
    /// # Panics
    /// If the sizes do not agree.
    pub fn add(&mut self, x: &[f32], codes: &SparseCodes<f32>, reconstruction: &[f32]) {
        assert_eq!(
            x.len(),
            reconstruction.len(),
            "one reconstruction an activation is needed"
        );
        let d = self.sum.len();
        assert_eq!(
            x.len(),
            codes.tokens() * d,
            "one code an activation is needed"
        );
        for (x, y) in x.chunks_exact(d).zip(reconstruction.chunks_exact(d)) {
            for ((sum, &x), &y) in self.sum.iter_mut().zip(x).zip(y) {
                let (x, y) = (f64::from(x), f64::from(y));
                *sum += x;
                self.squares += x * x;
                self.errors += (x - y) * (x - y);
            }
        }
        self.rows += codes.tokens() as f64;
        for (&feature, &value) in codes.features().iter().zip(codes.values()) {
            if value != 0.0 {
                self.active += 1.0;
                self.fired[feature as usize] += 1;
            }
        }
    }

    /// Share of tokens in which each feature is active.
    pub fn densities(&self) -> Vec<f32> {
        self.fired
            .iter()
            .map(|&count| (count as f64 / self.rows.max(1.0)) as f32)
            .collect()
    }

    /// The metrics of all that was added.
    pub fn metrics(&self) -> ReconstructionMetrics {
        let n = self.rows.max(1.0);
        let mean_square: f64 = self.sum.iter().map(|sum| (sum / n) * (sum / n)).sum();
        let about_mean = self.squares / n - mean_square;
        let silent = self.fired.iter().filter(|&&count| count == 0).count();
        ReconstructionMetrics {
            explained_variance: 1.0 - self.errors / n / about_mean,
            explained_about_zero: 1.0 - self.errors / self.squares,
            mse: self.errors / n,
            l0: self.active / n,
            dead_fraction: silent as f64 / self.fired.len().max(1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Reconstruction;
    use pullback_kernels::sparse::SparseCodes;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn codes(rows: &[&[u32]]) -> SparseCodes<f32> {
        let mut codes = SparseCodes::new();
        for row in rows {
            codes.push(row, &vec![1.0; row.len()]);
        }
        codes
    }

    #[test]
    fn closed_forms() {
        // Two points at ±1 about (10, 0): E‖x − E x‖² = 1, E‖x‖² = 101.
        let x = [10.0, 1.0, 10.0, -1.0];
        let fired = codes(&[&[0, 2], &[2]]);
        let at = |reconstruction: &[f32]| {
            let mut sums = Reconstruction::new(2, 4);
            sums.add(&x, &fired, reconstruction);
            sums.metrics()
        };
        let perfect = at(&x);
        assert_eq!(
            (perfect.explained_variance, perfect.mse, perfect.l0),
            (1.0, 0.0, 1.5)
        );
        assert_eq!(perfect.dead_fraction, 0.5);
        // The mean explains nothing of the variance about the mean, and nearly all of that about zero.
        let mean = at(&[10.0, 0.0, 10.0, 0.0]);
        assert!(mean.explained_variance.abs() < 1e-12);
        assert!((mean.explained_about_zero - 100.0 / 101.0).abs() < 1e-12);
        // Halfway: the error is a quarter of the variance.
        assert!((at(&[10.0, 0.5, 10.0, -0.5]).explained_variance - 0.75).abs() < 1e-12);
        // A constant bias in the reconstruction is an error, not forgiven.
        assert!((at(&[11.0, 1.0, 11.0, -1.0]).explained_variance - 0.0).abs() < 1e-12);
    }

    #[test]
    fn agrees_with_two_passes_over_all_rows_however_they_are_split() {
        let (n, d) = (60, 7);
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let x: Vec<f32> = (0..n * d).map(|_| rng.random_range(-1.0..3.0)).collect();
        let y: Vec<f32> = x.iter().map(|x| x + rng.random_range(-0.3..0.3)).collect();
        let fired: Vec<Vec<u32>> = (0..n)
            .map(|i| {
                (0..5)
                    .filter(|j| (i * 7 + j) % 3 == 0)
                    .map(|j| j as u32)
                    .collect()
            })
            .collect();
        let mut sums = Reconstruction::new(d, 6);
        for rows in [0..13, 13..14, 14..60] {
            let part: Vec<&[u32]> = fired[rows.clone()].iter().map(Vec::as_slice).collect();
            sums.add(
                &x[rows.start * d..rows.end * d],
                &codes(&part),
                &y[rows.start * d..rows.end * d],
            );
        }
        let mean: Vec<f64> = (0..d)
            .map(|j| (0..n).map(|i| f64::from(x[i * d + j])).sum::<f64>() / n as f64)
            .collect();
        let (mut error, mut variance) = (0.0, 0.0);
        for i in 0..n {
            for j in 0..d {
                let (x, y) = (f64::from(x[i * d + j]), f64::from(y[i * d + j]));
                error += (x - y).powi(2);
                variance += (x - mean[j]).powi(2);
            }
        }
        let found = sums.metrics();
        assert!((found.explained_variance - (1.0 - error / variance)).abs() < 1e-12);
        assert!((found.mse - error / n as f64).abs() < 1e-12);
        let active: usize = fired.iter().map(Vec::len).sum();
        assert!((found.l0 - active as f64 / n as f64).abs() < 1e-12);
        assert_eq!(found.dead_fraction, 1.0 / 6.0);
        let density = fired.iter().filter(|row| row.contains(&4)).count() as f32 / n as f32;
        assert!((sums.densities()[4] - density).abs() < 1e-7);
    }
}
