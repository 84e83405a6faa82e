//! Prints how fast dictionaries are trained, and how that falls with the number of features and with `k`.
//!
//! `cargo run --release -p pullback-sae --example train_rate` (TopK, how cost grows, with fitted exponents)
//! `cargo run --release -p pullback-sae --example train_rate -- KIND FEATURES [K [STEPS]]` (one kind)
//!
//! A whole training is timed: reading rows from a store, the losses and gradients of a batch, the update. The store holds
//! no rows for evaluation, so no held-out figures are computed, and no feature counts as dead, so there is no auxiliary
//! loss. Rows are like activations of a language model: correlated, with a few large coordinates.

#![allow(clippy::print_stdout, reason = "what is measured is printed")]

use std::error::Error;
use std::fs;
use std::path::Path;

use bytemuck::cast_slice;
use pullback_activations::{ActivationStore, STORE_KIND, StoreInfo};
use pullback_artifact::{Control, Manifest, PartialDir, write_json};
use pullback_kernels::allocator::{MiMalloc, keep_freed_memory};
use pullback_model::Site;
use pullback_sae::{KindConfig, TrainConfig, train};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const D: usize = 576;
const BATCH: usize = 4096;
/// Batches in the store.
const BATCHES: usize = 8;
/// How often each training is timed; the median is printed.
const REPEATS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let dir = tempfile::tempdir()?;
    let store = store(&dir.path().join("store"))?;
    let number = |place: usize, usual: usize| -> Result<usize, std::num::ParseIntError> {
        arguments
            .get(place)
            .map_or(Ok(usual), |number| number.parse())
    };
    if let Some(kind) = arguments.first() {
        let (features, k, steps) = (number(1, 8192)?, number(2, 32)?, number(3, 12)?);
        let kind = KindConfig::named(kind, features, k)?;
        let rate = rate(&store, &dir.path().join("sae"), kind, features, steps)?;
        println!("{rate:.0} tokens/s over the first {steps} steps");
        return Ok(());
    }
    println!("TopK, d {D}, batch {BATCH}: tokens/s, medians of {REPEATS}");
    let measure = |features: usize, k: usize| -> Result<f64, Box<dyn Error>> {
        let steps = (1_usize << 18).div_ceil(features).clamp(6, 32);
        let mut rates = Vec::new();
        for _ in 0..REPEATS {
            let out = dir.path().join("sae");
            rates.push(rate(&store, &out, KindConfig::TopK { k }, features, steps)?);
        }
        rates.sort_by(f64::total_cmp);
        let rate = rates[REPEATS / 2];
        println!("features {features:6}  k {k:3}: {rate:8.0} tokens/s");
        Ok(rate)
    };
    let mut by_features = Vec::new();
    for features in (11..=17).map(|power| 1 << power) {
        by_features.push((features as f64, measure(features, 32)?.recip()));
    }
    let mut by_k = Vec::new();
    for k in [8, 16, 32, 64, 128, 256] {
        by_k.push((k as f64, measure(16_384, k)?.recip()));
    }
    print_growth("features, k 32", &by_features);
    print_growth("features from 16,384 on", &by_features[3..]);
    print_growth("k, 16,384 features", &by_k);
    print_growth("k from 32 on", &by_k[2..]);
    Ok(())
}

/// Tokens a second of one training.
fn rate(
    store: &ActivationStore,
    out: &Path,
    kind: KindConfig,
    features: usize,
    steps: usize,
) -> Result<f64, Box<dyn Error>> {
    let config = TrainConfig {
        tokens: Some(steps * BATCH),
        batch: BATCH,
        dead_after_tokens: Some(usize::MAX),
        ..TrainConfig::new(features, kind, 1)
    };
    let trained = train(store, &config, out, &Control::hidden())?;
    fs::remove_dir_all(out)?;
    Ok(trained.tokens_per_second)
}

/// Fits `seconds a token = factor · size^exponent` by least squares of the logarithms.
fn print_growth(what: &str, points: &[(f64, f64)]) {
    let count = points.len() as f64;
    let logs: Vec<(f64, f64)> = points.iter().map(|&(x, y)| (x.ln(), y.ln())).collect();
    let mean_x = logs.iter().map(|p| p.0).sum::<f64>() / count;
    let mean_y = logs.iter().map(|p| p.1).sum::<f64>() / count;
    let products: f64 = logs.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum();
    let squares: f64 = logs.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    let exponent = products / squares;
    let residuals: Vec<String> = logs
        .iter()
        .map(|p| {
            let residual = p.1 - mean_y - exponent * (p.0 - mean_x);
            format!("{:+.0} %", 100.0 * residual.exp_m1())
        })
        .collect();
    println!(
        "time a token ∝ {what}: exponent {exponent:.2}, measured against fitted {}",
        residuals.join(", ")
    );
}

/// A store of rows with 64 common directions of falling weight, noise, and four coordinates with large numbers.
fn store(out: &Path) -> Result<ActivationStore, Box<dyn Error>> {
    let rows = BATCH * BATCHES;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    // Nearly normal.
    let mut normal = || -> f32 { (0..6).map(|_| random.random_range(-1.0_f32..1.0)).sum() };
    let common: Vec<f32> = (0..64 * D).map(|_| normal()).collect();
    let mut x = vec![0.0; rows * D];
    for row in x.chunks_exact_mut(D) {
        row.fill_with(&mut normal);
        for (i, direction) in common.chunks_exact(D).enumerate() {
            let factor = 2.0 * normal() / ((i + 1) as f32).sqrt();
            for (x, &c) in row.iter_mut().zip(direction) {
                *x += factor * c;
            }
        }
        for coordinate in [7, 131, 300, 511] {
            row[coordinate] += 15.0 * normal();
        }
    }
    let numbers: Vec<u32> = (0..rows as u32).collect();
    let flags = vec![0_u8; rows];
    let of_numbers = || TensorView::new(Dtype::U32, vec![rows], cast_slice(&numbers));
    let tensors = [
        (
            "activations",
            TensorView::new(Dtype::F32, vec![rows, D], cast_slice(&x))?,
        ),
        ("tokens", of_numbers()?),
        ("positions", of_numbers()?),
        ("sequences", of_numbers()?),
        ("flags", TensorView::new(Dtype::U8, vec![rows], &flags)?),
    ];
    let dir = PartialDir::open(out)?;
    fs::write(
        dir.path().join("shard-00000.safetensors"),
        safetensors::serialize(tensors, None)?,
    )?;
    let info = StoreInfo {
        site: Site::resid_post(0),
        d: D,
        rows,
        shard_rows: vec![rows],
        context: rows,
        prepend_bos: false,
        median_norm: 1.0,
        outliers: 0,
        held_out: 0,
    };
    write_json(&dir.path().join("store.json"), &info)?;
    dir.finish(Manifest::new(STORE_KIND, 0).with_site("blocks.0.hook_resid_post"))?;
    Ok(ActivationStore::open(out)?)
}
