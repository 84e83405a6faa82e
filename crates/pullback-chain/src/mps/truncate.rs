//! What of a bond is kept.

use serde::{Deserialize, Serialize};

use crate::error::ChainError;

/// Singular values below this part of the largest are rounding.
const NOISE: f64 = 1e-14;

/// Neighbours that differ by less than this part are taken for one multiplet.
const DEGENERATE: f64 = 1e-6;

/// How much of a bond is kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Truncation {
    /// The largest bond dimension.
    pub max_bond: usize,
    /// The weight that one update may discard below that dimension.
    pub cutoff: f64,
}

impl Default for Truncation {
    fn default() -> Self {
        Self {
            max_bond: 100,
            cutoff: 1e-14,
        }
    }
}

impl Truncation {
    /// Checks the values.
    ///
    /// # Errors
    /// The bond dimension is 0 or above 16384, or the cutoff is not from 0 to below 1.
    pub fn new(max_bond: usize, cutoff: f64) -> Result<Self, ChainError> {
        if !(1..=16_384).contains(&max_bond) {
            return Err(ChainError::value(
                "--max-bond",
                max_bond,
                "expected 1 to 16384",
            ));
        }
        if !(0.0..1.0).contains(&cutoff) {
            return Err(ChainError::value(
                "--cutoff",
                cutoff,
                "expected a weight from 0 to below 1",
            ));
        }
        Ok(Self { max_bond, cutoff })
    }

    /// The same, checked as [`Truncation::new`] does.
    pub(crate) fn checked(self) -> Result<Self, ChainError> {
        Self::new(self.max_bond, self.cutoff)
    }

    /// How many are kept of weights (squares of singular values, largest first). No multiplet is cut: one that the cutoff
    /// would cut is kept whole, one that the largest dimension would cut is dropped whole, unless that would drop more
    /// than half of what fits.
    pub(super) fn keep(&self, weights: &[f64]) -> usize {
        let largest = weights.first().copied().unwrap_or(0.0);
        let real = weights
            .iter()
            .take_while(|&&w| w > NOISE * NOISE * largest)
            .count();
        let noise: f64 = weights[real..].iter().sum();
        let (mut count, mut discarded) = (real, noise);
        while count > 1 && discarded + weights[count - 1] <= self.cutoff {
            count -= 1;
            discarded += weights[count];
        }
        let joined = |n: usize| {
            n > 0 && n < real && (weights[n - 1] - weights[n]).abs() <= DEGENERATE * weights[n - 1]
        };
        while joined(count) {
            count += 1;
        }
        if count > self.max_bond {
            let mut start = self.max_bond;
            while joined(start) {
                start -= 1;
            }
            count = if 2 * start > self.max_bond {
                start
            } else {
                self.max_bond
            };
        }
        count.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplets_stay_whole() {
        let weights = [0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 1e-40];
        let keep = |max_bond, cutoff| Truncation::new(max_bond, cutoff).unwrap().keep(&weights);
        assert_eq!(keep(100, 0.0), 6);
        assert_eq!(keep(100, 0.06), 6);
        assert_eq!(keep(100, 0.11), 4);
        assert_eq!(keep(5, 0.0), 4);
        assert_eq!(keep(4, 0.0), 4);
        assert_eq!(keep(3, 0.0), 2);
        assert_eq!(keep(1, 0.0), 1);
        // All alike: cut where the dimension says.
        let flat = [0.25; 8];
        assert_eq!(Truncation::new(3, 0.0).unwrap().keep(&flat), 3);
        assert_eq!(Truncation::new(3, 0.0).unwrap().keep(&[0.0, 0.0]), 1);
    }

    #[test]
    fn wrong_values_are_refused() {
        assert!(Truncation::new(0, 0.0).is_err());
        assert!(Truncation::new(1 << 20, 0.0).is_err());
        assert!(Truncation::new(8, f64::NAN).is_err());
        assert!(Truncation::new(8, -1e-9).is_err());
    }
}
