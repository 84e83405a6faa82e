//! What can be read off a state.

use pullback_tensor::{Mat, c64, eigh, singular_values};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::dense::Matrix;
use crate::error::ChainError;

use super::pass::SERIAL;
use super::real::Real;
use super::state::StateVector;

/// Partial sums, whatever the threads.
const PARTS: usize = 64;

/// The largest dimension of the smaller side of a cut; its density matrix is then 256 MB.
const MAX_CUT: usize = 4096;

/// Up to this dimension the Schmidt values come from a singular value decomposition, above it from the density matrix.
const BY_SVD: usize = 256;

impl<T: Real> StateVector<T> {
    /// The density matrix of some sites in the order given, the first one's index slow.
    ///
    /// # Errors
    /// A site does not exist or stands twice, or there are too many.
    pub fn reduced(&self, sites: &[usize]) -> Result<Matrix, ChainError> {
        let d = self.dimension();
        let size = u32::try_from(sites.len())
            .ok()
            .and_then(|n| d.checked_pow(n));
        let size = size.filter(|&n| n <= 256).ok_or_else(|| {
            ChainError::value(
                "the number of sites of a density matrix",
                sites.len(),
                "expected one of up to 256 rows",
            )
        })?;
        for (i, &site) in sites.iter().enumerate() {
            if site >= self.sites() || sites[..i].contains(&site) {
                return Err(ChainError::value(
                    "a site of a density matrix",
                    site,
                    format!("expected different sites from 0 to {}", self.sites() - 1),
                ));
            }
        }
        let stride = |site: usize| d.pow((self.sites() - site - 1) as u32);
        let places: Vec<usize> = (0..size)
            .map(|state| {
                let (mut rest, mut at) = (state, 0);
                for &site in sites.iter().rev() {
                    at += rest % d * stride(site);
                    rest /= d;
                }
                at
            })
            .collect();
        let mut sorted = sites.to_vec();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let (re, im) = self.parts();
        let rest = re.len() / size;
        let part = rest.div_ceil(PARTS);
        let part_of = |number: usize| {
            let mut sum = vec![c64::new(0.0, 0.0); size * size];
            let mut x = vec![c64::new(0.0, 0.0); size];
            for index in number * part..((number + 1) * part).min(rest) {
                // The index of the other sites, with a gap where each of these stands.
                let mut base = index;
                for &site in &sorted {
                    let s = stride(site);
                    base = base / s * (s * d) + base % s;
                }
                for (x, place) in x.iter_mut().zip(&places) {
                    *x = c64::new(re[base + place].f64(), im[base + place].f64());
                }
                for i in 0..size {
                    for j in 0..size {
                        sum[i * size + j] += x[i] * x[j].conj();
                    }
                }
            }
            sum
        };
        let sums: Vec<Vec<c64>> = if re.len() >= SERIAL {
            (0..PARTS).into_par_iter().map(part_of).collect()
        } else {
            (0..PARTS).map(part_of).collect()
        };
        Ok(Mat::from_fn(size, size, |i, j| {
            sums.iter().map(|sum| sum[i * size + j]).sum()
        }))
    }

    /// The Schmidt coefficients squared across a bond, largest first: eigenvalues of the density matrix of either side.
    ///
    /// # Errors
    /// There is no such bond, or both sides have more than 4096 states.
    pub fn spectrum(&self, bond: usize) -> Result<Vec<f64>, ChainError> {
        let d = self.dimension();
        if bond + 1 >= self.sites() {
            return Err(ChainError::value(
                "a bond",
                bond,
                format!("expected 0 to {}", self.sites().saturating_sub(2)),
            ));
        }
        let rows = d.pow(bond as u32 + 1);
        let (re, im) = self.parts();
        let columns = re.len() / rows;
        let least = rows.min(columns);
        if least > MAX_CUT {
            return Err(ChainError::value(
                "the smaller side of the cut",
                format!("{least} states at bond {bond}"),
                format!("entropies are found for up to {MAX_CUT}"),
            ));
        }
        let entry =
            |i: usize, j: usize| c64::new(re[i * columns + j].f64(), im[i * columns + j].f64());
        let mut spectrum = if least <= BY_SVD {
            let m = Mat::from_fn(rows, columns, entry);
            singular_values(m.as_ref())?.iter().map(|s| s * s).collect()
        } else {
            let m = Mat::from_fn(rows, columns, entry);
            let rho = if rows <= columns {
                &m * m.adjoint()
            } else {
                m.adjoint() * &m
            };
            eigh(rho.as_ref())?.values
        };
        spectrum.sort_by(|a, b| b.total_cmp(a));
        Ok(spectrum)
    }

    /// The von Neumann entropy across a bond, in nats.
    ///
    /// # Errors
    /// As [`StateVector::spectrum`].
    pub fn entropy(&self, bond: usize) -> Result<f64, ChainError> {
        Ok(entropy(&self.spectrum(bond)?))
    }

    /// `count` outcomes of measuring every site in its basis, each a state of all sites; drawn by the seed.
    pub fn sample(&self, count: usize, seed: u64) -> Vec<Vec<usize>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (re, im) = self.parts();
        let part = re.len().div_ceil(PARTS * 16).max(1);
        let weight = |i: usize| re[i].f64().powi(2) + im[i].f64().powi(2);
        let sums: Vec<f64> = (0..re.len().div_ceil(part))
            .into_par_iter()
            .map(|p| (p * part..((p + 1) * part).min(re.len())).map(weight).sum())
            .collect();
        let total: f64 = sums.iter().sum();
        let d = self.dimension();
        (0..count)
            .map(|_| {
                let mut left = rng.random::<f64>() * total;
                let mut at = 0;
                while at + 1 < sums.len() && left >= sums[at] {
                    left -= sums[at];
                    at += 1;
                }
                let end = ((at + 1) * part).min(re.len());
                let mut index = at * part;
                while index + 1 < end && left >= weight(index) {
                    left -= weight(index);
                    index += 1;
                }
                let mut digits = vec![0; self.sites()];
                for digit in digits.iter_mut().rev() {
                    *digit = index % d;
                    index /= d;
                }
                digits
            })
            .collect()
    }
}

/// `−Σ p ln p` of probabilities that sum to about one, in nats.
pub(crate) fn entropy(spectrum: &[f64]) -> f64 {
    let total: f64 = spectrum.iter().filter(|p| **p > 0.0).sum();
    let terms = spectrum.iter().filter(|p| **p > 0.0).map(|p| {
        let p = p / total;
        -p * p.ln()
    });
    terms.sum::<f64>().max(0.0)
}
