//! The pullback against brute force: one activation moved, the other side measured.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use burn::tensor::{DType, Device, Tensor, TensorData};
use common::base::{assert_close, assert_has, values};
use common::sae::random_sae;
use common::{Parts, random, usual};
use faer::Mat;
use faer::linalg::solvers::Solve;
use pullback_adapters::{Activation, Pullback, ResidualAdapter};
use pullback_sae::{Dictionary, Sae};

const D: usize = 12;
const M: usize = 40;
const RANK: usize = 5;

/// Hidden units with nothing after them: `W_in x + b_in`.
fn pre(adapter: &ResidualAdapter, x: &[f32]) -> Vec<f32> {
    let linear = ResidualAdapter {
        activation: Activation::Identity,
        ..adapter.clone()
    };
    let n = x.len() / adapter.d();
    values(linear.hidden(Tensor::from_data(
        TensorData::new(x.to_vec(), [n, adapter.d()]),
        &Device::flex(),
    )))
}

fn matrix(x: &[f32], rows: usize, columns: usize) -> Mat<f64> {
    Mat::from_fn(rows, columns, |i, j| f64::from(x[i * columns + j]))
}

fn norm(x: &Mat<f64>) -> f64 {
    x.norm_l2()
}

#[test]
fn a_unit_of_a_feature_moves_the_hidden_units_by_its_row_of_reads() {
    let (adapter, _) = usual(1, D, RANK);
    let sae = random_sae(2, D, M, 6);
    let pullback = Pullback::new(&adapter, &sae).unwrap();
    assert_eq!(
        (pullback.rank, pullback.features, pullback.reads.len()),
        (RANK, M, M * RANK)
    );
    for seed in 0..3 {
        let x: Vec<f32> = random(50 + seed, D).iter().map(|x| 3.0 * x).collect();
        let before = pre(&adapter, &x);
        for feature in 0..M {
            let moved: Vec<f32> = x
                .iter()
                .zip(sae.direction(feature))
                .map(|(x, w)| x + w)
                .collect();
            let change: Vec<f32> = pre(&adapter, &moved)
                .iter()
                .zip(&before)
                .map(|(a, b)| a - b)
                .collect();
            assert_close(
                &change,
                &pullback.reads[feature * RANK..(feature + 1) * RANK],
                2e-6,
            );
        }
    }
}

#[test]
fn a_unit_of_a_hidden_unit_moves_the_pre_activations_by_its_column_of_writes() {
    let (adapter, parts) = usual(1, D, RANK);
    let like = random_sae(2, D, M, 6);
    // All features allowed and lifted far above zero: codes are pre-activations.
    let sae = Sae::top_k(
        M,
        like.encoder().to_vec(),
        vec![64.0; M],
        like.decoder().to_vec(),
        like.decoder_bias().to_vec(),
    )
    .unwrap();
    let pullback = Pullback::new(&adapter, &sae).unwrap();
    let x = random(9, D);
    let codes = |x: &[f32]| {
        let codes = sae.encode(x);
        assert_eq!(codes.active(), M);
        codes.values().to_vec()
    };
    let before = codes(&x);
    let mut hidden = [0.0; RANK];
    for unit in 0..RANK {
        let mut one = [0.0; RANK];
        one[unit] = 1.0;
        let moved: Vec<f32> = x
            .iter()
            .zip(parts.written(&one))
            .map(|(x, w)| x + w as f32)
            .collect();
        let column: Vec<f32> = (0..M)
            .map(|feature| pullback.writes[feature * RANK + unit])
            .collect();
        let change: Vec<f32> = codes(&moved)
            .iter()
            .zip(&before)
            .map(|(a, b)| a - b)
            .collect();
        // One unit in the last place of 64 is 8e-6.
        assert_close(&change, &column, 2e-5);
        assert_close(&pullback.pre_activation_change(&one), &column, 1e-6);
        hidden[unit] = 0.3 - unit as f64;
    }
    let expected: Vec<f32> = (0..M)
        .map(|i| {
            (0..RANK)
                .map(|j| f64::from(pullback.writes[i * RANK + j]) * hidden[j])
                .sum::<f64>() as f32
        })
        .collect();
    assert_close(&pullback.pre_activation_change(&hidden), &expected, 1e-6);
}

#[test]
fn with_no_feature_active_the_units_get_the_bias() {
    let (adapter, _) = usual(1, D, RANK);
    let sae = random_sae(2, D, M, 6);
    let pullback = Pullback::new(&adapter, &sae).unwrap();
    assert_close(&pullback.bias, &pre(&adapter, sae.decoder_bias()), 1e-6);
    // And with features active, the bias and their rows together.
    let x: Vec<f32> = random(7, D).iter().map(|x| 2.0 * x).collect();
    let codes = sae.encode(&x);
    assert!(codes.active() > 2);
    let (features, activations) = codes.token(0);
    let sum: Vec<f32> = (0..RANK)
        .map(|j| {
            let fed = features
                .iter()
                .zip(activations)
                .map(|(&i, z)| z * pullback.reads[i as usize * RANK + j]);
            pullback.bias[j] + fed.sum::<f32>()
        })
        .collect();
    assert_close(&pre(&adapter, &sae.decode(&codes)), &sum, 1e-5);
}

#[test]
fn with_more_features_than_dimensions_the_smallest_exact_sum_of_rows_is_found() {
    let (adapter, parts) = usual(1, D, RANK);
    let sae = random_sae(2, D, M, 6);
    let pullback = Pullback::new(&adapter, &sae).unwrap();
    let rows = matrix(sae.decoder(), M, D);
    let c = matrix(&pullback.written_rows, M, RANK);
    let target = Mat::from_fn(D, RANK, |i, j| parts.w_out[i * RANK + j]);
    assert!(norm(&(rows.transpose() * &c - &target)) < 1e-5 * norm(&target));
    // Nothing of it lies where the decoder sends everything to zero, so no solution is smaller.
    let gram = rows.transpose() * &rows;
    let random = matrix(&random(8, M * 20), M, 20);
    let null = &random - &rows * gram.partial_piv_lu().solve(rows.transpose() * &random);
    assert!(norm(&(rows.transpose() * &null)) < 1e-10);
    assert!(norm(&(null.transpose() * &c)) < 1e-5 * norm(&null) * norm(&c));
    // Another solution, on the first rows alone.
    let few = rows.get(..D, ..).to_owned();
    let alone = few.transpose().to_owned().partial_piv_lu().solve(&target);
    assert!(norm(&(few.transpose() * &alone - &target)) < 1e-8 * norm(&target));
    assert!(norm(&c) < 0.9 * norm(&alone));
}

#[test]
fn with_fewer_features_than_dimensions_the_error_is_orthogonal_to_all_rows() {
    let (adapter, parts) = usual(1, D, RANK);
    let target = Mat::from_fn(D, RANK, |i, j| parts.w_out[i * RANK + j]);
    for m in [1, 4, D - 1, D] {
        let sae = random_sae(2, D, m, 1);
        let pullback = Pullback::new(&adapter, &sae).unwrap();
        let rows = matrix(sae.decoder(), m, D);
        let left = &target - rows.transpose() * matrix(&pullback.written_rows, m, RANK);
        assert!(norm(&(&rows * &left)) < 1e-5 * norm(&target), "{m} rows");
        assert_eq!(norm(&left) > 1e-2, m < D);
    }
}

#[test]
fn equal_decoder_rows_share_what_is_written() {
    let (adapter, parts) = usual(1, D, RANK);
    let target = Mat::from_fn(D, RANK, |i, j| parts.w_out[i * RANK + j]);
    // Fewer and more rows than dimensions, each of them there twice.
    for m in [8, M] {
        let like = random_sae(2, D, m, 3);
        let mut decoder = like.decoder()[..m / 2 * D].to_vec();
        decoder.extend_from_within(..);
        let sae = Sae::top_k(
            3,
            like.encoder().to_vec(),
            like.encoder_bias().to_vec(),
            decoder,
            like.decoder_bias().to_vec(),
        )
        .unwrap();
        let pullback = Pullback::new(&adapter, &sae).unwrap();
        let (first, second) = pullback.written_rows.split_at(m / 2 * RANK);
        assert_close(first, second, 1e-4);
        let rows = matrix(sae.decoder(), m, D);
        let left = &target - rows.transpose() * matrix(&pullback.written_rows, m, RANK);
        assert!(norm(&(&rows * &left)) < 1e-4 * norm(&target), "{m} rows");
    }
}

#[test]
fn widths_that_differ_are_refused_in_words() {
    let adapter =
        Parts::random(1, D + 1, RANK).adapter(Activation::Silu, &Device::flex(), DType::F32);
    let error = Pullback::new(&adapter, &random_sae(2, D, M, 6)).unwrap_err();
    assert_has(&error.to_string(), &["13", "12"]);
}
