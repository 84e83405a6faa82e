//! What the tests share: dictionaries made to order and their dense oracle.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../../../pullback-activations/tests/common/mod.rs"]
pub mod base;
pub mod files;

use pullback_activations::ActivationStore;
use pullback_sae::{Dictionary, KindConfig, Sae, TrainConfig};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Uniform numbers.
pub fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A dictionary with nothing special about it: no unit rows, encoder and decoder unrelated.
pub fn random_sae(seed: u64, d: usize, m: usize, k: usize) -> Sae {
    let bias = random(seed + 2, m).iter().map(|b| b - 0.5).collect();
    Sae::top_k(
        k,
        random(seed, m * d),
        bias,
        random(seed + 1, m * d),
        random(seed + 3, d),
    )
    .unwrap()
}

/// `±` unit vectors, all of them allowed: every activation is reconstructed exactly.
pub fn identity_sae(d: usize) -> Sae {
    let mut rows = vec![0.0; 2 * d * d];
    for i in 0..d {
        rows[i * d + i] = 1.0;
        rows[(d + i) * d + i] = -1.0;
    }
    Sae::top_k(2 * d, rows.clone(), vec![0.0; 2 * d], rows, vec![0.0; d]).unwrap()
}

/// A feature's code on each activation, densely, in f64: the definition.
pub fn dense_codes(sae: &Sae, x: &[f32]) -> Vec<Vec<f64>> {
    let (d, m) = (sae.d(), sae.n_features());
    x.chunks_exact(d)
        .map(|x| {
            let pre: Vec<f64> = (0..m)
                .map(|i| {
                    let row = &sae.encoder()[i * d..(i + 1) * d];
                    let sum: f64 = (0..d)
                        .map(|j| {
                            (f64::from(x[j]) - f64::from(sae.decoder_bias()[j])) * f64::from(row[j])
                        })
                        .sum();
                    sum + f64::from(sae.encoder_bias()[i])
                })
                .collect();
            let mut order: Vec<usize> = (0..m).collect();
            order.sort_by(|&a, &b| pre[b].total_cmp(&pre[a]));
            let mut codes = vec![0.0; m];
            for &i in order.iter().take(sae.k().unwrap()) {
                codes[i] = pre[i].max(0.0);
            }
            codes
        })
        .collect()
}

/// The reconstruction of dense codes.
pub fn dense_decode(sae: &Sae, codes: &[Vec<f64>]) -> Vec<f32> {
    let d = sae.d();
    let mut out = Vec::new();
    for codes in codes {
        for j in 0..d {
            let sum: f64 = codes
                .iter()
                .enumerate()
                .map(|(i, c)| c * f64::from(sae.decoder()[i * d + j]))
                .sum();
            out.push((sum + f64::from(sae.decoder_bias()[j])) as f32);
        }
    }
    out
}

/// The activations of some rows, one after the other.
pub fn rows_of(store: &ActivationStore, rows: &[u32]) -> Vec<f32> {
    rows.iter()
        .flat_map(|&row| store.row(row as usize).to_vec())
        .collect()
}

/// 64 features, 4 of them active, 72 steps, a feature silent for two batches counting as dead.
pub fn train_config() -> TrainConfig {
    TrainConfig {
        passes: 4,
        batch: 32,
        lr: 3e-3,
        dead_after_tokens: Some(64),
        ..TrainConfig::new(64, KindConfig::TopK { k: 4 }, 5)
    }
}
