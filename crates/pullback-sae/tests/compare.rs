//! The matching of dictionaries against all permutations, prices that prove it, and planted permutations.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::base::{assert_has, interrupted_at};
use common::{random, random_sae};
use pullback_artifact::Control;
use pullback_sae::{
    Assignment, CompareConfig, Dictionary, Sae, SaeError, assign_dense, assign_sparse, compare,
};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The greatest total over all ways to give rows columns of their own; a weight of none is not on offer. Where `free`,
/// a row may go without.
fn best(weights: &[Vec<Option<f32>>], row: usize, taken: &mut Vec<bool>, free: bool) -> f64 {
    if row == weights.len() {
        return 0.0;
    }
    let mut most = if free {
        best(weights, row + 1, taken, free)
    } else {
        f64::NEG_INFINITY
    };
    for column in 0..taken.len() {
        if let Some(weight) = weights[row][column]
            && !taken[column]
        {
            taken[column] = true;
            most = most.max(f64::from(weight) + best(weights, row + 1, taken, free));
            taken[column] = false;
        }
    }
    most
}

/// The total weight, after a look at whether prices prove that none is greater: weak duality.
#[track_caller]
fn proven(assignment: &Assignment, offers: &[Vec<(u32, f32)>], columns: usize, free: bool) -> f64 {
    let mut total = 0.0;
    let mut taken = vec![false; columns];
    for (row, column) in assignment.columns.iter().enumerate() {
        let Some(column) = *column else {
            assert!(free, "row {row} has no column");
            assert!(assignment.row_prices[row].abs() < 1e-9);
            continue;
        };
        assert!(!std::mem::replace(&mut taken[column as usize], true));
        let offer = offers[row].iter().find(|(other, _)| *other == column);
        total += f64::from(offer.expect("a pair that was not on offer").1);
    }
    for (row, offers) in offers.iter().enumerate() {
        let price = assignment.row_prices[row];
        assert!(!free || price >= -1e-9);
        for &(column, weight) in offers {
            let both = price + assignment.column_prices[column as usize];
            assert!(
                both >= f64::from(weight) - 1e-9,
                "{row} {column}: {both} {weight}"
            );
        }
    }
    for (column, &price) in assignment.column_prices.iter().enumerate() {
        assert!(price >= -1e-9 && (taken[column] || price.abs() < 1e-9));
    }
    let sum = |prices: &[f64]| prices.iter().sum::<f64>();
    let bound = sum(&assignment.row_prices) + sum(&assignment.column_prices);
    assert!(
        (total - bound).abs() < 1e-7,
        "{total} under the bound {bound}"
    );
    total
}

fn whole(weights: &[f32], columns: usize) -> Vec<Vec<(u32, f32)>> {
    weights
        .chunks_exact(columns)
        .map(|row| (0..).zip(row.iter().copied()).collect())
        .collect()
}

#[test]
fn assignments_are_the_best_of_all_permutations() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let control = Control::hidden();
    for round in 0..300 {
        let rows = rng.random_range(1..=6);
        let columns = rng.random_range(rows..=7);
        // In every second round few different weights, so that many assignments are equally good.
        let weights: Vec<f32> = (0..rows * columns)
            .map(|_| {
                if round % 2 == 0 {
                    rng.random_range(-1.0..1.0)
                } else {
                    rng.random_range(-2..3) as f32 / 2.0
                }
            })
            .collect();
        let all: Vec<Vec<Option<f32>>> = weights
            .chunks_exact(columns)
            .map(|row| row.iter().copied().map(Some).collect())
            .collect();
        let found = assign_dense(&weights, rows, columns, &control).unwrap();
        let total = proven(&found, &whole(&weights, columns), columns, false);
        let expected = best(&all, 0, &mut vec![false; columns], false);
        assert!((total - expected).abs() < 1e-6, "{total} {expected}");

        let some: Vec<Vec<Option<f32>>> = all
            .iter()
            .map(|row| {
                row.iter()
                    .map(|weight| weight.filter(|_| rng.random_range(0..3) > 0))
                    .collect()
            })
            .collect();
        let offers: Vec<Vec<(u32, f32)>> = some
            .iter()
            .map(|row| {
                (0..)
                    .zip(row)
                    .filter_map(|(j, w)| Some((j, (*w)?)))
                    .collect()
            })
            .collect();
        let found = assign_sparse(&offers, columns, &control).unwrap();
        let total = proven(&found, &offers, columns, true);
        let expected = best(&some, 0, &mut vec![false; columns], true);
        assert!((total - expected).abs() < 1e-6, "{total} {expected}");
    }
}

#[test]
fn prices_prove_larger_assignments() {
    let control = Control::hidden();
    for (rows, columns) in [(60, 60), (60, 140), (1, 1)] {
        let weights = random(4, rows * columns);
        let found = assign_dense(&weights, rows, columns, &control).unwrap();
        proven(&found, &whole(&weights, columns), columns, false);
    }
    // Each row near a few columns only, which many others want as well.
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let offers: Vec<Vec<(u32, f32)>> = (0..200)
        .map(|_| {
            let mut columns: Vec<u32> = (0..6).map(|_| rng.random_range(0..150)).collect();
            columns.sort_unstable();
            columns.dedup();
            columns
                .into_iter()
                .map(|column| (column, rng.random_range(0.0..1.0)))
                .collect()
        })
        .collect();
    let found = assign_sparse(&offers, 150, &control).unwrap();
    let total = proven(&found, &offers, 150, true);
    let unmatched = found
        .columns
        .iter()
        .filter(|column| column.is_none())
        .count();
    assert!(unmatched >= 50 && total > 50.0, "{unmatched} {total}");
}

/// A dictionary with these decoder rows.
fn with_decoder(decoder: Vec<f32>, d: usize) -> Sae {
    let m = decoder.len() / d;
    Sae::top_k(1, vec![0.0; m * d], vec![0.0; m], decoder, vec![0.0; d]).unwrap()
}

/// Rows of `[m, d]` in another order, lengthened, with noise, and some of them replaced.
fn planted(rows: &[f32], d: usize, replaced: usize) -> (Vec<f32>, Vec<usize>) {
    let m = rows.len() / d;
    let mut order: Vec<usize> = (0..m).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(9));
    let noise = random(10, m * d);
    let mut out = Vec::new();
    for (place, &from) in order.iter().enumerate() {
        for j in 0..d {
            let noise = noise[place * d + j];
            out.push(if place < replaced {
                noise
            } else {
                (1.0 + place as f32) * (rows[from * d + j] + 0.15 * noise)
            });
        }
    }
    (out, order)
}

#[test]
fn a_planted_permutation_is_found_with_what_was_lost_and_what_is_new() {
    let (m, d, replaced) = (90, 48, 20);
    let rows = random(3, m * d);
    let (others, order) = planted(&rows, d, replaced);
    let (a, b) = (
        with_decoder(rows.clone(), d),
        with_decoder(others.clone(), d),
    );
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum()
    };
    let cosine = |i: usize, j: usize| {
        let (x, y) = (&rows[i * d..(i + 1) * d], &others[j * d..(j + 1) * d]);
        dot(x, y) / (dot(x, x) * dot(y, y)).sqrt()
    };
    for exact in [5000, 10] {
        let config = CompareConfig {
            exact,
            neighbours: 8,
            ..CompareConfig::default()
        };
        let found = compare(&a, &b, &config, &Control::hidden()).unwrap();
        assert_eq!(found.exact, exact == 5000);
        assert_eq!(found.shared, m - replaced);
        for (place, pair) in found.pairs.iter().enumerate() {
            let (i, j) = (pair.a as usize, pair.b as usize);
            assert!((f64::from(pair.cosine) - cosine(i, j)).abs() < 1e-5);
            if place < found.shared {
                assert_eq!(order[j], i);
                assert!(j >= replaced && pair.cosine > 0.9);
            } else {
                assert!(pair.cosine < 0.7);
            }
        }
        assert!(found.pairs.is_sorted_by(|x, y| x.cosine >= y.cosine));
        let mut lost: Vec<u32> = order[..replaced].iter().map(|&i| i as u32).collect();
        lost.sort_unstable();
        assert_eq!(found.lost, lost);
        assert_eq!(found.new, (0..replaced as u32).collect::<Vec<_>>());
        assert_eq!((found.lost_but_near, found.new_but_near), (0, 0));

        let mut mmcs = 0.0;
        for (i, &(nearest, value)) in found.a.nearest.iter().enumerate() {
            let most = (0..m).map(|j| cosine(i, j)).fold(f64::MIN, f64::max);
            assert!((f64::from(value) - most).abs() < 1e-5);
            assert!((cosine(i, nearest as usize) - most).abs() < 1e-5);
            mmcs += most / m as f64;
        }
        assert!((found.a.mean_max_cosine - mmcs).abs() < 1e-5);
        assert!(mmcs > 0.7 && mmcs < 0.95);
        let mmcs: f64 = (0..m)
            .map(|j| (0..m).map(|i| cosine(i, j)).fold(f64::MIN, f64::max) / m as f64)
            .sum();
        assert!((found.b.mean_max_cosine - mmcs).abs() < 1e-5);
        let total: f64 = found.pairs.iter().map(|pair| f64::from(pair.cosine)).sum();
        let mean = found.mean_matched_cosine.unwrap();
        assert!((mean - total / found.pairs.len() as f64).abs() < 1e-12);
        if found.exact {
            assert_eq!(found.pairs.len(), m);
        }
    }
}

#[test]
fn dictionaries_of_two_sizes_are_matched_either_way_round() {
    let d = 16;
    let few = random(5, 6 * d);
    // The larger has each of them twice, one of them a bit off, and a row of zeros.
    let mut many = few.clone();
    many.extend(few.iter().zip(random(6, 6 * d)).map(|(x, e)| x + 0.1 * e));
    many.extend(vec![0.0; d]);
    let (few, many) = (with_decoder(few, d), with_decoder(many, d));
    let (config, control) = (CompareConfig::default(), Control::hidden());
    let found = compare(&few, &many, &config, &control).unwrap();
    assert_eq!((found.shared, found.lost.len()), (6, 0));
    assert!(found.pairs.iter().all(|pair| pair.a == pair.b));
    assert_eq!(found.new, (6..13).collect::<Vec<u32>>());
    assert_eq!(found.new_but_near, 6);
    assert_eq!(
        (found.a.without_direction, found.b.without_direction),
        (0, 1)
    );
    assert!((found.mean_matched_cosine.unwrap() - 1.0).abs() < 1e-6);
    let back = compare(&many, &few, &config, &control).unwrap();
    assert_eq!(back.lost, found.new);
    assert_eq!(back.a, found.b);
    assert!(back.pairs.iter().all(|pair| pair.a == pair.b) && back.pairs.len() == 6);
}

#[test]
fn what_makes_no_sense_is_refused_and_work_stops_when_asked() {
    let (a, b) = (random_sae(1, 8, 12, 2), random_sae(2, 9, 12, 2));
    let config = CompareConfig::default();
    let error = compare(&a, &b, &config, &Control::hidden()).unwrap_err();
    assert_has(&error.to_string(), &["width 8", "of width 9"]);
    let wrong = CompareConfig {
        threshold: f32::NAN,
        ..config
    };
    let error = compare(&a, &a, &wrong, &Control::hidden()).unwrap_err();
    assert_has(&error.to_string(), &["threshold is NaN"]);
    for stage in ["nearest decoder rows", "matching"] {
        let error = compare(&a, &a, &config, &interrupted_at(stage, 1)).unwrap_err();
        assert!(
            matches!(error, SaeError::Interrupted(_)),
            "{stage}: {error}"
        );
    }
}

#[test]
fn a_dictionary_is_all_shared_with_itself() {
    let sae = random_sae(1, 8, 12, 2);
    let found = compare(&sae, &sae, &CompareConfig::default(), &Control::hidden()).unwrap();
    assert_eq!((found.shared, found.a.features), (12, sae.n_features()));
    assert!(found.pairs.iter().all(|pair| pair.a == pair.b));
    assert!((found.a.mean_max_cosine - 1.0).abs() < 1e-6);
}
