#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use pullback_artifact::Control;
use pullback_kernels::sparse::{SparseCodes, decode};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::synthetic::{World, WorldConfig};
use crate::{Normalization, Sae, SaeParts, Selection};

fn codes(tokens: &[&[(u32, f32)]]) -> SparseCodes<f32> {
    let mut codes = SparseCodes::new();
    for token in tokens {
        let (features, values): (Vec<u32>, Vec<f32>) = token.iter().copied().unzip();
        codes.push(&features, &values);
    }
    codes
}

fn sample(codes: SparseCodes<f32>, truth: &[f32], d: usize) -> Sample {
    Sample {
        rows: decode(&codes, truth, &vec![0.0; d]),
        codes,
    }
}

#[test]
fn a_case_by_hand() {
    // Three true features along the axes; the dictionary has the first twice (once reversed and of double length), a
    // mixture of the second and third that is nearer to the second, and no third.
    let truth = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
    let decoder = [1.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0, 0.8, 0.6];
    let mut judge = Judge::new(&decoder, &truth, 3, &Control::hidden()).unwrap();
    let sample = sample(
        codes(&[
            &[(0, 4.0)],
            &[(0, 2.0), (1, 1.0)],
            &[(1, 3.0)],
            &[(2, 1.0)],
            &[],
        ]),
        &truth,
        3,
    );
    let found = codes(&[
        &[(0, 2.0)],
        &[(1, 0.5), (2, 1.0)],
        &[(2, 2.0)],
        &[(2, 1.0)],
        &[(0, 1.0)],
    ]);
    let reconstruction = decode(&found, &decoder, &[0.0; 3]);
    // In two parts, as batches come.
    let half = |codes: &SparseCodes<f32>, tokens: std::ops::Range<usize>| {
        let mut part = SparseCodes::new();
        for token in tokens {
            let (features, values) = codes.token(token);
            part.push(features, values);
        }
        part
    };
    for tokens in [0..2, 2..5] {
        let part = Sample {
            rows: sample.rows[3 * tokens.start..3 * tokens.end].to_vec(),
            codes: half(&sample.codes, tokens.clone()),
        };
        judge.add(
            &part,
            &half(&found, tokens.clone()),
            &reconstruction[3 * tokens.start..3 * tokens.end],
        );
    }
    let (scores, latents) = judge.finish();
    let near: Vec<(u32, f32)> = latents.iter().map(|l| (l.nearest, l.cosine)).collect();
    assert_eq!(near, [(0, 1.0), (0, 1.0), (1, 0.8)]);
    // The first fires with feature 0 in one of two tokens, and misses one; the second finds the other one alone.
    let rates: Vec<[f64; 3]> = latents
        .iter()
        .map(|l| [l.precision, l.recall, l.f1])
        .collect();
    assert_eq!(rates[0], [0.5, 0.5, 0.5]);
    assert_eq!(rates[1], [1.0, 0.5, 2.0 / 3.0]);
    assert_eq!(rates[2][..2], [2.0 / 3.0, 1.0]);
    assert!((rates[2][2] - 0.8).abs() < 1e-12);
    let ratios: Vec<f64> = latents.iter().map(|l| l.magnitude_ratio.unwrap()).collect();
    // 2 of 4; 0.5 · 2 of 2; (1 + 2) of (1 + 3), the row being of length one.
    assert_eq!(ratios[..2], [0.5, 0.5]);
    assert!((ratios[2] - 0.75).abs() < 1e-6);
    assert_eq!((scores.rows, scores.dead), (5, 0));
    assert_eq!((scores.l0, scores.true_l0), (6.0 / 5.0, 1.0));
    assert_eq!(scores.uniqueness, 2.0 / 3.0);
    // One of the two copies is left with what is third best: the mixture takes 0.8 and a copy 0 of the third feature.
    assert!((scores.mcc - (1.0 + 0.8) / 3.0).abs() < 1e-6 && scores.mcc_exact);
    assert!((scores.f1 - (0.5 + 2.0 / 3.0 + 0.8) / 3.0).abs() < 1e-12);
    // Errors: (2,0,0), (3, 0.2, -0.6), (0, 1.4, -1.2), (0, -0.8, 0.4), (-1,0,0); rows sum to (6, 4, 1).
    let errors = 4.0 + 9.4 + 3.4 + 0.8 + 1.0;
    let variance = (16.0 + 5.0 + 9.0 + 1.0) - (36.0 + 16.0 + 1.0) / 5.0;
    assert!((scores.explained_variance - (1.0 - errors / variance)).abs() < 1e-6);
}

#[test]
fn the_true_dictionary_has_the_best_scores() {
    let mut config = WorldConfig::new(16, 40, 3);
    config.hierarchy.roots = 4;
    config.hierarchy.depth = 1;
    config.rarest = 0.05;
    let world = World::new(&config, &Control::hidden()).unwrap();
    // In another order and of another length, with its own codes.
    let order: Vec<usize> = (0..40).map(|i| (i * 7) % 40).collect();
    let mut place = [0; 40];
    for (at, &feature) in order.iter().enumerate() {
        place[feature] = at as u32;
    }
    let rows = world.directions().chunks_exact(16);
    let rows: Vec<&[f32]> = rows.collect();
    let decoder: Vec<f32> = order
        .iter()
        .flat_map(|&feature| rows[feature].iter().map(|x| 2.0 * x))
        .collect();
    let mut judge = Judge::new(&decoder, world.directions(), 16, &Control::hidden()).unwrap();
    for number in 0..2 {
        let sample = world.held_out(number);
        let mut codes = SparseCodes::new();
        for token in 0..sample.codes.tokens() {
            let (features, values) = sample.codes.token(token);
            let mut entries: Vec<(u32, f32)> = features
                .iter()
                .zip(values)
                .map(|(&feature, &value)| (place[feature as usize], 0.5 * value))
                .collect();
            entries.sort_by_key(|(feature, _)| *feature);
            let (features, values): (Vec<u32>, Vec<f32>) = entries.into_iter().unzip();
            codes.push(&features, &values);
        }
        let reconstruction = decode(&codes, &decoder, world.bias());
        judge.add(&sample, &codes, &reconstruction);
    }
    let (scores, _) = judge.finish();
    assert_eq!(
        [
            scores.uniqueness,
            scores.precision,
            scores.recall,
            scores.f1
        ],
        [1.0; 4]
    );
    assert_eq!((scores.dead, scores.rows), (0, 8192));
    assert_eq!(scores.l0, scores.true_l0);
    for one in [
        scores.mcc,
        scores.explained_variance,
        scores.shrinkage,
        scores.magnitude_ratio,
    ] {
        assert!((one - 1.0).abs() < 1e-6, "{one}");
    }
}

#[test]
fn an_encoder_of_orthogonal_truth_is_scored_as_such() {
    // Fewer features than dimensions, orthogonal: the tied encoder finds all of them, and one that halves its codes
    // shrinks by half.
    let mut config = WorldConfig::new(48, 32, 11);
    config.hierarchy.roots = 4;
    config.hierarchy.depth = 1;
    config.rarest = 0.02;
    config.overlap = Some(2e-3);
    // No magnitude comes near the threshold, nor does what other directions leave.
    config.magnitudes.spread_deviation = 0.0;
    let world = World::new(&config, &Control::hidden()).unwrap();
    let sae = |factor: f32| {
        Sae::new(SaeParts {
            selection: Selection::Threshold {
                thresholds: vec![0.2; 32],
            },
            encoder: world.directions().iter().map(|x| factor * x).collect(),
            encoder_bias: vec![0.0; 32],
            decoder: world.directions().to_vec(),
            decoder_bias: world.bias().to_vec(),
            input_bias: world.bias().to_vec(),
            normalization: Normalization::None,
            skip: None,
        })
        .unwrap()
    };
    let (scores, latents) = score(&sae(1.0), &world, 1, &Control::hidden()).unwrap();
    assert_eq!(latents.len(), 32);
    assert_eq!((scores.f1, scores.uniqueness), (1.0, 1.0));
    assert!((scores.mcc - 1.0).abs() < 1e-6, "{}", scores.mcc);
    assert!(scores.explained_variance > 0.9999);
    let (half, _) = score(&sae(0.5), &world, 1, &Control::hidden()).unwrap();
    assert!((half.magnitude_ratio - 0.5).abs() < 0.01);
    // Everything but the bias is halved.
    let rows = world.held_out(0).rows;
    let ratios = rows.chunks_exact(48).map(|row| {
        let (mut squares, mut halved) = (0.0, 0.0);
        for (&x, &b) in row.iter().zip(world.bias()) {
            squares += f64::from(x).powi(2);
            halved += f64::from(0.5 * (x + b)).powi(2);
        }
        (halved / squares).sqrt()
    });
    let expected = ratios.sum::<f64>() / scores.rows as f64;
    assert!(expected < 0.7 && (half.shrinkage - expected).abs() < 2e-3);
    // With the error of a half everywhere, a quarter of the second moment is left.
    assert!(half.explained_variance < 0.75);
    let error = score(&sae(1.0), &world, 0, &Control::hidden()).unwrap_err();
    assert!(error.to_string().contains("at least one piece"));
}

/// The greatest sum over all ways to give each of the `few` from `at` on a partner of its own.
fn best(at: usize, few: usize, used: &mut [bool], of: &dyn Fn(usize, usize) -> f64) -> f64 {
    if at == few {
        return 0.0;
    }
    let mut most = f64::NEG_INFINITY;
    for partner in 0..used.len() {
        if !used[partner] {
            used[partner] = true;
            most = most.max(of(at, partner) + best(at + 1, few, used, of));
            used[partner] = false;
        }
    }
    most
}

#[test]
fn the_matching_is_the_best_of_all_permutations() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for (m, n) in [(4, 6), (6, 4), (5, 5), (1, 3)] {
        let mut rows = |count: usize| -> Vec<f32> {
            (0..count * 3)
                .map(|_| rng.random_range(-1.0..1.0))
                .collect()
        };
        let (decoder, truth) = (rows(m), rows(n));
        let (found, _) = Judge::new(&decoder, &truth, 3, &Control::hidden())
            .unwrap()
            .finish();
        let size = |i: usize, j: usize| {
            let (x, y) = (&decoder[3 * i..3 * i + 3], &truth[3 * j..3 * j + 3]);
            let product = |x: &[f32], y: &[f32]| -> f64 {
                x.iter()
                    .zip(y)
                    .map(|(&x, &y)| f64::from(x) * f64::from(y))
                    .sum()
            };
            (product(x, y) / (product(x, x) * product(y, y)).sqrt()).abs()
        };
        let (few, many) = (m.min(n), m.max(n));
        let of = |a: usize, b: usize| if m <= n { size(a, b) } else { size(b, a) };
        let expected = best(0, few, &mut vec![false; many], &of) / few as f64;
        assert!(
            (found.mcc - expected).abs() < 1e-6,
            "{} is not {expected}",
            found.mcc
        );
        // Over near neighbours, all of which are on offer here, the same.
        let (rows, truth) = (unit_rows(&decoder, 3), unit_rows(&truth, 3));
        let near = near(&rows, &truth, 3, false, &Control::hidden()).unwrap();
        let sum = near_pairs(&near, n, &Control::hidden()).unwrap();
        assert!((sum / few as f64 - expected).abs() < 1e-6);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |decoder: &[f32], truth: &[f32]| {
        Judge::new(decoder, truth, 2, &Control::hidden())
            .err()
            .unwrap()
            .to_string()
    };
    assert!(refused(&[1.0; 3], &[1.0; 4]).contains("3 and 4 numbers"));
    assert!(refused(&[], &[1.0; 4]).contains("0 and 4 numbers"));
    // A row that has no direction is near to nothing, and no panic.
    let (scores, latents) =
        Judge::new(&[0.0, 0.0, f32::NAN, 1.0], &[1.0; 4], 2, &Control::hidden())
            .unwrap()
            .finish();
    assert_eq!((latents[0].cosine, latents[1].cosine), (0.0, 0.0));
    assert_eq!((scores.mcc, scores.dead), (0.0, 2));
}
