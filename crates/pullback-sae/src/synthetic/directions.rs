//! The true dictionary: unit directions that overlap no more than asked for.

use pullback_artifact::Control;
use pullback_kernels::{Matrix, Threads, product};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use crate::SaeError;
use crate::features::neighbours::unit_rows;

/// Rows whose products with all others are in memory at a time.
const BLOCK: usize = 1024;
/// After so many steps no more is to be gained.
const STEPS: usize = 400;
/// How far directions go in a step, as a share of what they overlap too much.
const RATE: f32 = 0.3;

/// `n` random unit directions `[n, d]`; moved apart where an overlap is given.
pub(super) fn directions(
    n: usize,
    d: usize,
    overlap: Option<f64>,
    rng: &mut impl Rng,
    control: &Control,
) -> Result<Vec<f32>, SaeError> {
    let start: Vec<f32> = (0..n * d)
        .map(|_| -> f32 { StandardNormal.sample(rng) })
        .collect();
    let mut rows = unit_rows(&start, d);
    let Some(wanted) = overlap else {
        return Ok(rows);
    };
    if n < 2 {
        return Ok(rows);
    }
    let stage = control.stage("true directions", STEPS as u64, "steps");
    let mut found = f64::INFINITY;
    for _ in 0..STEPS {
        control.check()?;
        let (mean, moved) = apart(&rows, d, 0.8 * wanted as f32);
        found = mean;
        if found <= wanted {
            stage.finish();
            return Ok(rows);
        }
        rows = unit_rows(&moved, d);
        stage.advance(1);
    }
    stage.finish();
    Err(SaeError::Option(format!(
        "{n} directions in {d} dimensions are not brought to an overlap of {wanted}: they came to {found:.3}; ask for more \
         overlap, fewer features or a greater width"
    )))
}

/// The mean over rows of the largest `|cos|` with another one, and the rows after a step down the gradient of
/// `½ Σ_{i≠j} relu(|cos_ij| − bound)²`.
fn apart(rows: &[f32], d: usize, bound: f32) -> (f64, Vec<f32>) {
    let n = rows.len() / d;
    let mut moved = rows.to_vec();
    let mut sum = 0.0;
    for (number, (block, moved)) in rows
        .chunks(BLOCK * d)
        .zip(moved.chunks_mut(BLOCK * d))
        .enumerate()
    {
        let here = block.len() / d;
        let mut cosines = product(
            Matrix::new(block, here, d, d),
            Matrix::new(rows, n, d, d).transposed(),
            Threads::All,
        );
        let largest: Vec<f32> = cosines
            .par_chunks_exact_mut(n)
            .enumerate()
            .map(|(row, cosines)| {
                cosines[number * BLOCK + row] = 0.0;
                let mut largest = 0.0_f32;
                for cosine in cosines {
                    largest = largest.max(cosine.abs());
                    *cosine = cosine.signum() * (cosine.abs() - bound).max(0.0);
                }
                largest
            })
            .collect();
        sum += largest.iter().map(|&x| f64::from(x)).sum::<f64>();
        let steps = product(
            Matrix::new(&cosines, here, n, n),
            Matrix::new(rows, n, d, d),
            Threads::All,
        );
        for (moved, step) in moved.iter_mut().zip(steps) {
            *moved -= RATE * step;
        }
    }
    (sum / n as f64, moved)
}

/// The mean over rows `[n, d]` of length one of the largest `|cos|` with another one; zero for one row.
pub(super) fn mean_largest(rows: &[f32], d: usize) -> f64 {
    apart(rows, d, 1.0).0
}

#[cfg(test)]
mod tests {
    use pullback_artifact::Control;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::{directions, mean_largest};
    use crate::SaeError;

    fn made(n: usize, d: usize, overlap: Option<f64>) -> Result<Vec<f32>, SaeError> {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        directions(n, d, overlap, &mut rng, &Control::hidden())
    }

    /// Each pair by itself, in `f64`.
    fn by_pairs(rows: &[f32], d: usize) -> f64 {
        let rows: Vec<&[f32]> = rows.chunks_exact(d).collect();
        let largest = |i: usize| {
            (0..rows.len())
                .filter(|&j| j != i)
                .map(|j| {
                    let products = rows[i].iter().zip(rows[j]);
                    let sum: f64 = products.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
                    sum.abs()
                })
                .fold(0.0, f64::max)
        };
        (0..rows.len()).map(largest).sum::<f64>() / rows.len() as f64
    }

    #[test]
    #[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    fn directions_overlap_no_more_than_asked_for() {
        let (n, d) = (1100, 40);
        let random = made(n, d, None).unwrap();
        let wanted = 0.8 * by_pairs(&random, d);
        let apart = made(n, d, Some(wanted)).unwrap();
        for rows in [&random, &apart] {
            for row in rows.chunks_exact(d) {
                let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
                assert!((squares - 1.0).abs() < 1e-6);
            }
            assert!((mean_largest(rows, d) - by_pairs(rows, d)).abs() < 1e-6);
        }
        assert!(by_pairs(&apart, d) <= wanted + 1e-6);
        assert!(by_pairs(&apart, d) > 0.9 * wanted);
        // Fewer than dimensions: as near to orthogonal as anyone likes.
        let few = made(12, 24, Some(1e-3)).unwrap();
        assert!(by_pairs(&few, 24) <= 1e-3 + 1e-6);
    }

    #[test]
    fn an_overlap_that_cannot_be_is_refused() {
        // Four lines in the plane are at best 45 degrees apart.
        for overlap in [0.3, 0.65] {
            let error = made(4, 2, Some(overlap))
                .map(|_| ())
                .map_err(|error| error.to_string());
            assert!(
                matches!(&error, Err(text) if text.contains(&format!("{overlap}: they came to"))),
                "{error:?}"
            );
        }
    }
}
