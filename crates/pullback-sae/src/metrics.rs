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
    magnitude: f64,
    legacy: f64,
    cosine: f64,
    length_ratio: f64,
    outputs: f64,
    products: f64,
    fired: Vec<u64>,
}

/// What [`Reconstruction::metrics`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReconstructionMetrics {
    /// `1 − E‖x − x̂‖² / E‖x − E x‖²`: variance about the mean.
    pub explained_variance: f64,
    /// `1 − E‖x − x̂‖² / E‖x‖²`: variance about zero, which older tools report under the same name.
    pub explained_about_zero: f64,
    /// `E [1 − ‖x − x̂‖² / ‖x − mean x‖²]`, the ratio of each token with the mean of its batch: what `SAELens` had as its
    /// explained variance until 2026. It hangs on how rows were batched.
    pub explained_variance_legacy: f64,
    /// `1 − explained_variance`.
    pub fvu: f64,
    /// `E cos(x, x̂)`.
    pub cosine: f64,
    /// `E ‖x̂‖ / ‖x‖`.
    pub l2_ratio: f64,
    /// `E‖x̂‖² / E⟨x, x̂⟩`: below 1 where reconstructions are too short (arXiv 2404.16014, equation 10).
    pub relative_bias: f64,
    /// `E‖x − x̂‖²`, summed over coordinates.
    pub mse: f64,
    /// Active features a token.
    pub l0: f64,
    /// `E Σ_i |z_i|`.
    pub l1: f64,
    /// Share of features active on none of the tokens seen.
    pub dead_fraction: f64,
}

/// How many features have which density, on a logarithmic scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DensityHistogram {
    /// Borders between bins, as base-10 logarithms of the density.
    pub log10_edges: Vec<f64>,
    /// Features in each bin, one less than edges; the first holds all that are rarer, but are active at all.
    pub counts: Vec<usize>,
    /// Features that are never active.
    pub never: usize,
    /// Share of features active on more than a hundredth of the tokens.
    pub over_1_percent: f64,
    /// Share of features active on more than a tenth of the tokens.
    pub over_10_percent: f64,
}

impl DensityHistogram {
    /// Of the densities of all features, in quarters of a power of ten from 1e-6 to 1.
    pub fn of(densities: &[f32]) -> Self {
        const PER_POWER: usize = 4;
        const POWERS: usize = 6;
        let mut counts = vec![0; PER_POWER * POWERS];
        let last = counts.len() - 1;
        let mut never = 0;
        for &density in densities {
            if density > 0.0 {
                let place = (f64::from(density).log10() + POWERS as f64) * PER_POWER as f64;
                counts[(place.max(0.0) as usize).min(last)] += 1;
            } else {
                never += 1;
            }
        }
        let over = |bound: f32| {
            let count = densities.iter().filter(|&&density| density > bound).count();
            count as f64 / densities.len().max(1) as f64
        };
        Self {
            log10_edges: (0..=counts.len())
                .map(|i| i as f64 / PER_POWER as f64 - POWERS as f64)
                .collect(),
            counts,
            never,
            over_1_percent: over(0.01),
            over_10_percent: over(0.1),
        }
    }
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
            magnitude: 0.0,
            legacy: 0.0,
            cosine: 0.0,
            length_ratio: 0.0,
            outputs: 0.0,
            products: 0.0,
            fired: vec![0; n_features],
        }
    }

    /// Adds activations `[n, d]`, their codes and reconstructions `[n, d]`: one batch.
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
        let mut mean = vec![0.0; d];
        for x in x.chunks_exact(d) {
            for (mean, &x) in mean.iter_mut().zip(x) {
                *mean += f64::from(x);
            }
        }
        for (sum, mean) in self.sum.iter_mut().zip(&mut mean) {
            *sum += *mean;
            *mean /= codes.tokens() as f64;
        }
        for (x, y) in x.chunks_exact(d).zip(reconstruction.chunks_exact(d)) {
            let [mut xx, mut yy, mut xy, mut error, mut about] = [0.0; 5];
            for ((&x, &y), mean) in x.iter().zip(y).zip(&mean) {
                let (x, y) = (f64::from(x), f64::from(y));
                xx += x * x;
                yy += y * y;
                xy += x * y;
                error += (x - y) * (x - y);
                about += (x - mean) * (x - mean);
            }
            self.squares += xx;
            self.errors += error;
            self.outputs += yy;
            self.products += xy;
            // A token at the mean, and one of length zero, have no ratio: they count as lost and as unlike.
            if about > 0.0 {
                self.legacy += 1.0 - error / about;
            }
            if xx > 0.0 {
                self.length_ratio += (yy / xx).sqrt();
                if yy > 0.0 {
                    self.cosine += xy / (xx * yy).sqrt();
                }
            }
        }
        self.rows += codes.tokens() as f64;
        for (&feature, &value) in codes.features().iter().zip(codes.values()) {
            if value != 0.0 {
                self.active += 1.0;
                self.magnitude += f64::from(value.abs());
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

    /// How many features have which density.
    pub fn density_histogram(&self) -> DensityHistogram {
        DensityHistogram::of(&self.densities())
    }

    /// The metrics of all that was added.
    pub fn metrics(&self) -> ReconstructionMetrics {
        let n = self.rows.max(1.0);
        let mean_square: f64 = self.sum.iter().map(|sum| (sum / n) * (sum / n)).sum();
        let about_mean = self.squares / n - mean_square;
        let silent = self.fired.iter().filter(|&&count| count == 0).count();
        let fvu = self.errors / n / about_mean;
        ReconstructionMetrics {
            explained_variance: 1.0 - fvu,
            explained_variance_legacy: self.legacy / n,
            fvu,
            cosine: self.cosine / n,
            l2_ratio: self.length_ratio / n,
            relative_bias: self.outputs / self.products,
            l1: self.magnitude / n,
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
        assert_eq!(
            (perfect.l1, perfect.cosine, perfect.l2_ratio),
            (1.5, 1.0, 1.0)
        );
        assert_eq!((perfect.fvu, perfect.explained_variance_legacy), (0.0, 1.0));
        // Half as long: cosine 1, and half of the energy is twice the product.
        let half = at(&[5.0, 0.5, 5.0, -0.5]);
        assert!((half.cosine - 1.0).abs() < 1e-12 && (half.l2_ratio - 0.5).abs() < 1e-12);
        assert!((half.relative_bias - 0.5).abs() < 1e-12);
        // The error is 101/4 a token, of 1 about the mean.
        assert!((half.explained_variance_legacy - (1.0 - 101.0 / 4.0)).abs() < 1e-12);
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
        let lengths = |row: usize| {
            let product = |a: &[f32], b: &[f32]| -> f64 {
                let pairs = a[row * d..(row + 1) * d].iter().zip(&b[row * d..]);
                pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            };
            (product(&x, &x), product(&y, &y), product(&x, &y))
        };
        let all: Vec<(f64, f64, f64)> = (0..n).map(lengths).collect();
        let mean_of =
            |f: &dyn Fn(&(f64, f64, f64)) -> f64| all.iter().map(f).sum::<f64>() / n as f64;
        let cosine = mean_of(&|(xx, yy, xy)| xy / (xx.sqrt() * yy.sqrt()));
        assert!((found.cosine - cosine).abs() < 1e-12);
        let ratio = mean_of(&|(xx, yy, _)| yy.sqrt() / xx.sqrt());
        assert!((found.l2_ratio - ratio).abs() < 1e-12);
        let bias = mean_of(&|(_, yy, _)| *yy) / mean_of(&|(.., xy)| *xy);
        assert!((found.relative_bias - bias).abs() < 1e-12);
        assert_eq!(found.l1, found.l0);
        // The legacy figure takes the mean of each batch.
        let mut legacy = 0.0;
        for rows in [0..13, 13..14, 14..60] {
            let size = rows.len() as f64;
            let centre: Vec<f64> = (0..d)
                .map(|j| rows.clone().map(|i| f64::from(x[i * d + j])).sum::<f64>() / size)
                .collect();
            for i in rows {
                let sum = |f: &dyn Fn(usize) -> f64| (0..d).map(f).sum::<f64>();
                let error = sum(&|j| (f64::from(x[i * d + j]) - f64::from(y[i * d + j])).powi(2));
                let about = sum(&|j| (f64::from(x[i * d + j]) - centre[j]).powi(2));
                if about > 0.0 {
                    legacy += (1.0 - error / about) / n as f64;
                }
            }
        }
        assert!((found.explained_variance_legacy - legacy).abs() < 1e-12);
        assert!((found.explained_variance - (1.0 - error / variance)).abs() < 1e-12);
        assert!((found.mse - error / n as f64).abs() < 1e-12);
        let active: usize = fired.iter().map(Vec::len).sum();
        assert!((found.l0 - active as f64 / n as f64).abs() < 1e-12);
        assert_eq!(found.dead_fraction, 1.0 / 6.0);
        let density = fired.iter().filter(|row| row.contains(&4)).count() as f32 / n as f32;
        assert!((sums.densities()[4] - density).abs() < 1e-7);
    }

    #[test]
    fn densities_fall_into_their_bins() {
        let found = super::DensityHistogram::of(&[0.0, 1.0, 0.5, 0.02, 1e-9, 1e-6, 1.1e-3]);
        assert_eq!((found.never, found.counts.iter().sum::<usize>()), (1, 6));
        assert_eq!(found.counts.len() + 1, found.log10_edges.len());
        assert_eq!((found.log10_edges[0], found.log10_edges[24]), (-6.0, 0.0));
        // 1e-9 and 1e-6 in the first, 1.1e-3 in the one from -3, 0.02 in that from -1.75, the others in the last two.
        assert_eq!(
            (found.counts[0], found.counts[12], found.counts[17]),
            (2, 1, 1)
        );
        assert_eq!((found.counts[22], found.counts[23]), (1, 1));
        assert!((found.over_1_percent - 3.0 / 7.0).abs() < 1e-12);
        assert!((found.over_10_percent - 2.0 / 7.0).abs() < 1e-12);
    }
}
