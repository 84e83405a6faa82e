//! Two dictionaries matched on the directions of their features.

mod assignment;

use pullback_artifact::Control;
use pullback_kernels::{Matrix, Threads, product};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use assignment::{Assignment, assign_dense, assign_sparse};

use crate::features::largest::largest;
use crate::features::neighbours::{cosines, unit_rows};
use crate::{Dictionary, SaeError};

/// How dictionaries are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompareConfig {
    /// The cosine from which on a matched pair counts as one shared feature.
    pub threshold: f32,
    /// The one-to-one matching is over all pairs where there are at most the square of this many; above that over near
    /// neighbours.
    pub exact: usize,
    /// Near neighbours of each feature that a larger matching is restricted to.
    pub neighbours: usize,
}

impl Default for CompareConfig {
    fn default() -> Self {
        Self {
            threshold: 0.7,
            exact: 5000,
            neighbours: 32,
        }
    }
}

/// One of the two dictionaries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Its features.
    pub features: usize,
    /// Those whose decoder row is zero or not finite; their cosines count as zero.
    pub without_direction: usize,
    /// Mean over its features of the largest cosine with one of the other dictionary (MMCS; Sharkey, Braun and Millidge,
    /// "Taking features out of superposition with sparse autoencoders", 2022).
    pub mean_max_cosine: f64,
    /// For each feature the nearest of the other dictionary with its cosine.
    pub nearest: Vec<(u32, f32)>,
}

/// A feature of the first dictionary and the one of the second that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatchedPair {
    /// Feature of the first.
    pub a: u32,
    /// Feature of the second.
    pub b: u32,
    /// Cosine of their decoder rows.
    pub cosine: f32,
}

/// What [`compare()`] returns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The first dictionary.
    pub a: Side,
    /// The second.
    pub b: Side,
    /// Whether the matching is over all pairs of features.
    pub exact: bool,
    /// The near neighbours of each feature, from either side, that it is restricted to otherwise.
    pub neighbours: usize,
    /// The one-to-one matching of greatest total cosine, highest cosine first.
    pub pairs: Vec<MatchedPair>,
    /// Mean cosine of those pairs; none where there are no pairs.
    pub mean_matched_cosine: Option<f64>,
    /// The cosine from which on a pair is shared.
    pub threshold: f32,
    /// How many pairs are.
    pub shared: usize,
    /// Features of the first dictionary in no shared pair.
    pub lost: Vec<u32>,
    /// Those of them that come that near to a feature of the second all the same, which another one was matched with.
    pub lost_but_near: usize,
    /// Features of the second dictionary in no shared pair.
    pub new: Vec<u32>,
    /// Those of them that come that near to a feature of the first all the same.
    pub new_but_near: usize,
}

/// Compares two dictionaries by the cosines of their decoder rows: the nearest neighbours both ways, and the one-to-one
/// matching of greatest total cosine. In a matching over all pairs every feature of the smaller dictionary has a
/// partner, however far; in one over near neighbours some have none.
///
/// # Errors
/// Their outputs are of different widths, an option makes no sense, or the work was interrupted.
pub fn compare(
    a: &dyn Dictionary,
    b: &dyn Dictionary,
    config: &CompareConfig,
    control: &Control,
) -> Result<Comparison, SaeError> {
    let d = a.d_out();
    if b.d_out() != d {
        return Err(SaeError::Option(format!(
            "the first dictionary's directions are of width {d}, the second's of width {}",
            b.d_out()
        )));
    }
    if !(config.threshold > 0.0 && config.threshold <= 1.0) || config.neighbours == 0 {
        return Err(SaeError::Option(format!(
            "the threshold is {} and the number of neighbours {}: a cosine above 0 and at most 1, and at least one are needed",
            config.threshold, config.neighbours
        )));
    }
    let (m_a, m_b) = (a.n_features(), b.n_features());
    let (rows_a, rows_b) = (unit_rows(a.decoder(), d), unit_rows(b.decoder(), d));
    let exact = m_a.saturating_mul(m_b) <= config.exact.saturating_mul(config.exact);
    let count = if exact { 1 } else { config.neighbours };
    let near_a = near(&rows_a, &rows_b, d, count, control)?;
    let near_b = near(&rows_b, &rows_a, d, count, control)?;
    let mut pairs = if exact {
        match_all(&rows_a, &rows_b, d, control)?
    } else {
        match_near(&near_a, &near_b, control)?
    };
    pairs.sort_by(|x, y| y.cosine.total_cmp(&x.cosine).then(x.a.cmp(&y.a)));
    let shared = pairs.partition_point(|pair| pair.cosine >= config.threshold);
    let (a, b) = (side(&rows_a, d, &near_a), side(&rows_b, d, &near_b));
    let shared_pairs = &pairs[..shared];
    let (lost, lost_but_near) = left(&a, shared_pairs.iter().map(|pair| pair.a), config.threshold);
    let (new, new_but_near) = left(&b, shared_pairs.iter().map(|pair| pair.b), config.threshold);
    let total: f64 = pairs.iter().map(|pair| f64::from(pair.cosine)).sum();
    Ok(Comparison {
        exact,
        neighbours: config.neighbours,
        mean_matched_cosine: (!pairs.is_empty()).then(|| total / pairs.len() as f64),
        threshold: config.threshold,
        shared,
        lost,
        lost_but_near,
        new,
        new_but_near,
        a,
        b,
        pairs,
    })
}

/// For each row the nearest of the others.
fn near(
    rows: &[f32],
    others: &[f32],
    d: usize,
    count: usize,
    control: &Control,
) -> Result<Vec<Vec<(u32, f32)>>, SaeError> {
    let all: Vec<usize> = (0..rows.len() / d).collect();
    let mut found: Vec<Vec<(u32, f32)>> = Vec::with_capacity(all.len());
    cosines(rows, &all, others, d, control, |_, cosines| {
        found.par_extend(
            cosines
                .par_chunks_exact(others.len() / d)
                .map(|cosines| largest(cosines, count, |_| true)),
        );
    })?;
    Ok(found)
}

/// The matching over all pairs. The smaller dictionary's features are the rows.
fn match_all(
    rows_a: &[f32],
    rows_b: &[f32],
    d: usize,
    control: &Control,
) -> Result<Vec<MatchedPair>, SaeError> {
    let swapped = rows_a.len() > rows_b.len();
    let (few, many) = if swapped {
        (rows_b, rows_a)
    } else {
        (rows_a, rows_b)
    };
    let (n, m) = (few.len() / d, many.len() / d);
    let weights = product(
        Matrix::new(few, n, d, d),
        Matrix::new(many, m, d, d).transposed(),
        Threads::All,
    );
    let assignment = assign_dense(&weights, n, m, control)?;
    Ok(pairs(&assignment, |row, column| {
        let cosine = weights[row as usize * m + column as usize];
        let (a, b) = if swapped {
            (column, row)
        } else {
            (row, column)
        };
        MatchedPair { a, b, cosine }
    }))
}

/// The matching over pairs of which one is among the nearest of the other.
fn match_near(
    near_a: &[Vec<(u32, f32)>],
    near_b: &[Vec<(u32, f32)>],
    control: &Control,
) -> Result<Vec<MatchedPair>, SaeError> {
    let mut offers = near_a.to_vec();
    for (b, near) in near_b.iter().enumerate() {
        for &(a, cosine) in near {
            offers[a as usize].push((b as u32, cosine));
        }
    }
    for offers in &mut offers {
        offers.retain(|(_, cosine)| *cosine > 0.0);
        offers.sort_by_key(|(b, _)| *b);
        // The two products may differ in their last bits; one of the two is as good as the other.
        offers.dedup_by_key(|(b, _)| *b);
    }
    let assignment = assign_sparse(&offers, near_b.len(), control)?;
    Ok(pairs(&assignment, |a, b| {
        let offers = &offers[a as usize];
        let place = offers.binary_search_by_key(&b, |(b, _)| *b);
        MatchedPair {
            a,
            b,
            cosine: place.map_or(0.0, |place| offers[place].1),
        }
    }))
}

fn pairs(assignment: &Assignment, pair: impl Fn(u32, u32) -> MatchedPair) -> Vec<MatchedPair> {
    let columns = assignment.columns.iter().enumerate();
    columns
        .filter_map(|(row, column)| Some(pair(row as u32, (*column)?)))
        .collect()
}

fn side(rows: &[f32], d: usize, near: &[Vec<(u32, f32)>]) -> Side {
    let nearest: Vec<(u32, f32)> = near
        .iter()
        .map(|near| near.first().copied().unwrap_or_default())
        .collect();
    let zero = |row: &[f32]| row.iter().all(|&x| x == 0.0);
    Side {
        features: nearest.len(),
        without_direction: rows.chunks_exact(d).filter(|row| zero(row)).count(),
        mean_max_cosine: nearest.iter().map(|(_, x)| f64::from(*x)).sum::<f64>()
            / nearest.len().max(1) as f64,
        nearest,
    }
}

/// The features of a side that are in no shared pair, and how many of them are near to one of the other side.
fn left(side: &Side, shared: impl Iterator<Item = u32>, threshold: f32) -> (Vec<u32>, usize) {
    let mut is_shared = vec![false; side.features];
    for feature in shared {
        is_shared[feature as usize] = true;
    }
    let left: Vec<u32> = (0..side.features as u32)
        .filter(|&feature| !is_shared[feature as usize])
        .collect();
    let near = |feature: &&u32| side.nearest[**feature as usize].1 >= threshold;
    let near = left.iter().filter(near).count();
    (left, near)
}
