//! A vector as a sum of decoder rows.

use faer::Mat;
use faer::linalg::solvers::Solve;
use pullback_sae::{Dictionary, Sae};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::pullback::least_squares_rows;

/// A vector as a sum of a few decoder rows with factors above zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Matching {
    /// Features and their factors, in the order in which they were found.
    pub terms: Vec<(usize, f32)>,
    /// The share of the vector's square that is left; one where there is nothing to match.
    pub left: f64,
}

/// The mean change of the stream as a sum of decoder rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Decomposition {
    /// Features with the largest factors of the smallest least-squares solution over all rows.
    pub least_squares: Vec<(usize, f32)>,
    /// Spearman's rank correlation of those factors, of all live features, with the measured change.
    pub agreement_least_squares: Option<f64>,
    /// A few rows with factors above zero: what was added.
    pub added: Matching,
    /// The same of the change turned around: what was taken away.
    pub removed: Matching,
}

/// Non-negative orthogonal matching pursuit: again and again the row that points most along what is left is added, and the
/// factors of all rows that were added are found anew by non-negative least squares (Lawson and Hanson, 1974, chapter 23).
///
/// `rows [m, d]`; ends after `terms` rows, or when what is left points along none.
///
/// # Panics
/// If the rows are not of the width of the target.
pub fn matching_pursuit(rows: &[f32], target: &[f64], terms: usize) -> Matching {
    let d = target.len();
    assert!(
        d > 0 && rows.len().is_multiple_of(d),
        "matching pursuit: rows of the width of the target are needed"
    );
    let all = dot64(target, target);
    let mut found = Matching {
        terms: Vec::new(),
        left: 1.0,
    };
    if all <= 0.0 {
        return found;
    }
    let row = |feature: usize| &rows[feature * d..(feature + 1) * d];
    let mut left = target.to_vec();
    let mut chosen: Vec<usize> = Vec::new();
    let mut factors: Vec<f64> = Vec::new();
    while chosen.len() < terms {
        let along: Vec<f64> = rows
            .par_chunks_exact(d)
            .map(|row| {
                let size = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
                if size > 0.0 {
                    dot(row, &left) / size.sqrt()
                } else {
                    0.0
                }
            })
            .collect();
        let best = (0..along.len())
            .filter(|feature| !chosen.contains(feature))
            .max_by(|&a, &b| along[a].total_cmp(&along[b]).then(b.cmp(&a)));
        // A row that carries a millionth of the vector's length is rounding.
        let Some(best) = best.filter(|&best| along[best] > 1e-6 * all.sqrt()) else {
            break;
        };
        chosen.push(best);
        let n = chosen.len();
        let gram = Mat::from_fn(n, n, |i, j| {
            let (a, b) = (row(chosen[i]).iter(), row(chosen[j]));
            a.zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
        });
        let products: Vec<f64> = chosen.iter().map(|&f| dot(row(f), target)).collect();
        factors = non_negative(&gram, &products);
        left.copy_from_slice(target);
        for (&feature, &factor) in chosen.iter().zip(&factors) {
            for (left, &x) in left.iter_mut().zip(row(feature)) {
                *left -= factor * f64::from(x);
            }
        }
    }
    let terms = chosen.into_iter().zip(factors);
    found.terms = terms
        .filter(|&(_, factor)| factor > 0.0)
        .map(|(feature, factor)| (feature, factor as f32))
        .collect();
    found.left = dot64(&left, &left) / all;
    found
}

/// The `c ≥ 0` that minimises `cᵀ·gram·c − 2·productsᵀ·c`, by the active set method of Lawson and Hanson.
pub(crate) fn non_negative(gram: &Mat<f64>, products: &[f64]) -> Vec<f64> {
    let n = products.len();
    let mut c = vec![0.0; n];
    let mut free = vec![false; n];
    let size = products.iter().fold(0.0_f64, |top, x| top.max(x.abs()));
    // Each round frees one; more rounds than this would be a cycle of rounding errors.
    for _ in 0..3 * n + 3 {
        let slope =
            |i: usize, c: &[f64]| products[i] - (0..n).map(|j| gram[(i, j)] * c[j]).sum::<f64>();
        let next = (0..n)
            .filter(|&i| !free[i])
            .max_by(|&a, &b| slope(a, &c).total_cmp(&slope(b, &c)));
        let Some(next) = next.filter(|&i| slope(i, &c) > 1e-12 * size) else {
            break;
        };
        free[next] = true;
        loop {
            let set: Vec<usize> = (0..n).filter(|&i| free[i]).collect();
            let part = Mat::from_fn(set.len(), set.len(), |i, j| {
                // As in `least_squares_rows`, so that rows that point the same way can be solved for.
                let ridge = if i == j {
                    1e-12 * gram[(set[i], set[i])]
                } else {
                    0.0
                };
                gram[(set[i], set[j])] + ridge
            });
            let right = Mat::from_fn(set.len(), 1, |i, _| products[set[i]]);
            let solved = part.partial_piv_lu().solve(&right);
            // How far one may go towards the solution before a factor becomes zero.
            let step = set
                .iter()
                .enumerate()
                .filter(|&(at, _)| solved[(at, 0)] <= 0.0)
                .map(|(at, &i)| c[i] / (c[i] - solved[(at, 0)]).max(f64::MIN_POSITIVE))
                .fold(1.0_f64, f64::min);
            for (at, &i) in set.iter().enumerate() {
                c[i] += step * (solved[(at, 0)] - c[i]);
            }
            let negative = |at: usize, i: usize, c: &[f64]| {
                solved[(at, 0)] <= 0.0 && c[i] <= 1e-14 * (1.0 + c[i].abs())
            };
            let zero: Vec<usize> = set
                .iter()
                .enumerate()
                .filter(|&(at, &i)| negative(at, i, &c))
                .map(|(_, &i)| i)
                .collect();
            if zero.is_empty() {
                break;
            }
            for i in zero {
                c[i] = 0.0;
                free[i] = false;
            }
        }
    }
    c
}

/// The factors of the smallest least-squares solution over all decoder rows, `[m]`.
pub(crate) fn least_squares(sae: &Sae, target: &[f64]) -> Vec<f32> {
    let d = target.len();
    let rows = crate::pullback::matrix(sae.decoder(), sae.n_features(), d);
    let target = Mat::from_fn(d, 1, |i, _| target[i]);
    let solved = least_squares_rows(&rows, &target);
    (0..solved.nrows()).map(|i| solved[(i, 0)] as f32).collect()
}

fn dot(row: &[f32], vector: &[f64]) -> f64 {
    row.iter().zip(vector).map(|(&x, y)| f64::from(x) * y).sum()
}

fn dot64(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use faer::Mat;
    use faer::linalg::solvers::Solve;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::{dot, dot64, matching_pursuit, non_negative};

    fn numbers(seed: u64, count: usize) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count)
            .map(|_| f64::from(rng.random_range(-1.0_f32..1.0)))
            .collect()
    }

    /// What is left of the target, squared.
    fn left(rows: &[Vec<f64>], target: &[f64], factors: &[f64]) -> f64 {
        let mut left = target.to_vec();
        for (row, factor) in rows.iter().zip(factors) {
            left.iter_mut().zip(row).for_each(|(l, x)| *l -= factor * x);
        }
        dot64(&left, &left)
    }

    /// The best non-negative factors by trying all sets of rows.
    fn best_of_all_sets(rows: &[Vec<f64>], target: &[f64]) -> Vec<f64> {
        let n = rows.len();
        let mut best = vec![0.0; n];
        for set in 1..1_usize << n {
            let chosen: Vec<usize> = (0..n).filter(|i| set >> i & 1 == 1).collect();
            let k = chosen.len();
            let gram = Mat::from_fn(k, k, |i, j| dot64(&rows[chosen[i]], &rows[chosen[j]]));
            let right = Mat::from_fn(k, 1, |i, _| dot64(&rows[chosen[i]], target));
            let solved = gram.partial_piv_lu().solve(&right);
            if (0..k).any(|i| solved[(i, 0)] < 0.0) {
                continue;
            }
            let mut factors = vec![0.0; n];
            for (i, &place) in chosen.iter().enumerate() {
                factors[place] = solved[(i, 0)];
            }
            if left(rows, target, &factors) < left(rows, target, &best) {
                best = factors;
            }
        }
        best
    }

    #[test]
    fn non_negative_least_squares_is_the_best_of_all_sets() {
        let mut zeros = 0;
        for seed in 0..60 {
            let (n, d) = (2 + seed as usize % 5, 7);
            let rows: Vec<Vec<f64>> = (0..n).map(|i| numbers(seed * 10 + i as u64, d)).collect();
            let target = numbers(seed + 1000, d);
            let gram = Mat::from_fn(n, n, |i, j| dot64(&rows[i], &rows[j]));
            let products: Vec<f64> = rows.iter().map(|row| dot64(row, &target)).collect();
            let found = non_negative(&gram, &products);
            let best = best_of_all_sets(&rows, &target);
            for (a, b) in found.iter().zip(&best) {
                assert!((a - b).abs() < 1e-8, "seed {seed}: {found:?} {best:?}");
            }
            zeros += best.iter().filter(|&&x| x == 0.0).count();
        }
        assert!(zeros > 50, "only {zeros} factors are held at zero");
    }

    #[test]
    fn the_pursuit_chooses_greedily_and_refits_exactly() {
        for seed in 0..20 {
            let (m, d) = (9, 6);
            let rows: Vec<Vec<f64>> = (0..m).map(|i| numbers(seed * 20 + i, d)).collect();
            let flat: Vec<f32> = rows.iter().flatten().map(|&x| x as f32).collect();
            let target = numbers(seed + 500, d);
            let all = dot64(&target, &target);
            let mut before = 1.0;
            let mut chosen: Vec<usize> = Vec::new();
            let mut factors: Vec<f64> = Vec::new();
            for terms in 1..=4 {
                let found = matching_pursuit(&flat, &target, terms);
                // By definition: the next row is that of the largest cosine with what was left.
                let rest: Vec<f64> = (0..d)
                    .map(|j| {
                        let made = chosen.iter().zip(&factors).map(|(&i, f)| f * rows[i][j]);
                        target[j] - made.sum::<f64>()
                    })
                    .collect();
                let cosine = |i: usize| dot64(&rows[i], &rest) / dot64(&rows[i], &rows[i]).sqrt();
                let next = (0..m as usize)
                    .filter(|i| !chosen.contains(i))
                    .max_by(|&a, &b| cosine(a).total_cmp(&cosine(b)))
                    .unwrap();
                if cosine(next) <= 0.0 {
                    break;
                }
                chosen.push(next);
                let own: Vec<Vec<f64>> = chosen.iter().map(|&i| rows[i].clone()).collect();
                factors = best_of_all_sets(&own, &target);
                let expected: Vec<(usize, f32)> = chosen
                    .iter()
                    .zip(&factors)
                    .filter(|(_, f)| **f > 0.0)
                    .map(|(&i, &f)| (i, f as f32))
                    .collect();
                assert_eq!(found.terms.len(), expected.len(), "seed {seed}");
                for (a, b) in found.terms.iter().zip(&expected) {
                    assert_eq!(a.0, b.0);
                    assert!((a.1 - b.1).abs() < 1e-5);
                }
                assert!((found.left - left(&own, &target, &factors) / all).abs() < 1e-6);
                assert!(found.left <= before + 1e-12);
                before = found.left;
            }
        }
    }

    #[test]
    fn a_sum_of_orthogonal_rows_is_found_whole_and_nothing_else() {
        let mut rows = vec![0.0_f32; 5 * 5];
        (0..5).for_each(|i| rows[i * 5 + i] = 2.0);
        let target = [0.0, 6.0, -3.0, 0.5, 0.0];
        let found = matching_pursuit(&rows, &target, 9);
        assert_eq!(found.terms, [(1, 3.0), (3, 0.25)]);
        assert!((found.left - 9.0 / 45.25).abs() < 1e-12);
        assert_eq!(matching_pursuit(&rows, &[0.0; 5], 3).left, 1.0);
        assert!((dot(&rows[..5], &target) - 0.0).abs() < 1e-15);
    }
}
