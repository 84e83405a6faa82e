//! Training: what it learns, and that interruption, resumption and the seed decide nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytemuck::cast_slice;
use common::base::{
    assert_close, assert_has, assert_same_files, config, interrupted_at, setting, setting_with,
};
use common::{dense_codes, dense_decode, identity_sae, random, random_sae, rows_of, train_config};
use pullback_activations::{ActivationStore, Flags, STORE_KIND, StoreInfo};
use pullback_artifact::{Control, Manifest, PartialDir, read_json, write_json};
use pullback_model::Site;
use pullback_sae::metrics::{DensityHistogram, ReconstructionMetrics};
use pullback_sae::{
    CrossEntropy, Dictionary, Judged, KindConfig, SAE_KIND, Sae, SaeError, SaeResult, Sites,
    TrainConfig, evaluate_reconstruction, load, load_training, train,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

fn trained(store: &ActivationStore, config: &TrainConfig, out: &Path) -> Sae {
    train(store, config, out, &Control::hidden()).unwrap().sae
}

fn judged(sae: &Sae, store: &ActivationStore, rows: &[u32]) -> Judged {
    let sae: Arc<dyn Dictionary> = Arc::new(sae.clone());
    evaluate_reconstruction(&sae, &Sites::of(store), rows, &Control::hidden()).unwrap()
}

/// A store of activations from elsewhere, each its own sequence of `context` rows, every tenth row held out.
fn store_of(x: &[f32], d: usize, context: usize, out: &Path) -> ActivationStore {
    let n = x.len() / d;
    let dir = PartialDir::open(out).unwrap();
    let numbers: Vec<u32> = (0..n as u32).collect();
    let positions: Vec<u32> = numbers.iter().map(|row| row % context as u32).collect();
    let sequences: Vec<u32> = numbers.iter().map(|row| row / context as u32).collect();
    let held_out = |row: usize| (row / context) % 10 == 9;
    let flags: Vec<u8> = (0..n)
        .map(|row| {
            let first = if row % context == 0 {
                Flags::FIRST.0
            } else {
                0
            };
            first | if held_out(row) { Flags::HELD_OUT.0 } else { 0 }
        })
        .collect();
    let view = |dtype, shape: Vec<usize>, bytes| TensorView::new(dtype, shape, bytes).unwrap();
    let tensors = [
        ("activations", view(Dtype::F32, vec![n, d], cast_slice(x))),
        ("tokens", view(Dtype::U32, vec![n], cast_slice(&numbers))),
        (
            "positions",
            view(Dtype::U32, vec![n], cast_slice(&positions)),
        ),
        (
            "sequences",
            view(Dtype::U32, vec![n], cast_slice(&sequences)),
        ),
        ("flags", view(Dtype::U8, vec![n], &flags)),
    ];
    let bytes = safetensors::serialize(tensors, None).unwrap();
    fs::write(dir.path().join("shard-00000.safetensors"), bytes).unwrap();
    let info = StoreInfo {
        site: Site::resid_post(0),
        d,
        rows: n,
        shard_rows: vec![n],
        context,
        prepend_bos: false,
        median_norm: 1.0,
        outliers: 0,
        held_out: (0..n).filter(|&row| held_out(row)).count(),
    };
    write_json(&dir.path().join("store.json"), &info).unwrap();
    dir.finish(Manifest::new(STORE_KIND, 0).with_site("blocks.0.hook_resid_post"))
        .unwrap();
    ActivationStore::open(out).unwrap()
}

#[test]
fn features_that_made_the_data_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let (d, true_features, active, n) = (32, 40, 3, 8000);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut directions = random(2, true_features * d);
    for row in directions.chunks_exact_mut(d) {
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        for x in row.iter_mut() {
            *x /= length;
        }
    }
    let offset = random(3, d);
    let mut x = Vec::with_capacity(n * d);
    for _ in 0..n {
        let mut row = offset.clone();
        for _ in 0..active {
            let feature = rng.random_range(0..true_features);
            let size: f32 = rng.random_range(5.0..15.0);
            for (x, w) in row.iter_mut().zip(&directions[feature * d..]) {
                *x += size * w;
            }
        }
        x.extend(row);
    }
    let store = store_of(&x, d, 10, &dir.path().join("store"));
    let config = TrainConfig {
        passes: 20,
        batch: 128,
        lr: 3e-3,
        ..TrainConfig::new(64, KindConfig::TopK { k: active }, 1)
    };
    let out = train(&store, &config, &dir.path().join("sae"), &Control::hidden()).unwrap();
    let held_out = store.normal_rows(true);
    let metrics = judged(&out.sae, &store, &held_out).metrics;
    assert!(metrics.explained_variance > 0.9, "{metrics:?}");
    let curve = &out.training.curve;
    let (first, last) = (curve.first().unwrap(), curve.last().unwrap());
    assert!(
        last.explained_variance.unwrap() > first.explained_variance.unwrap() + 0.2,
        "{first:?} {last:?}"
    );
    assert!(last.loss < 0.2 * first.loss, "{first:?} {last:?}");
    let found = directions
        .chunks_exact(d)
        .filter(|truth| {
            let cosine = |i: usize| {
                out.sae
                    .direction(i)
                    .iter()
                    .zip(*truth)
                    .map(|(a, b)| a * b)
                    .sum::<f32>()
            };
            (0..64).map(cosine).fold(f32::MIN, f32::max) > 0.95
        })
        .count();
    assert!(
        found >= 36,
        "only {found} of {true_features} directions were found"
    );
}

#[test]
fn an_artifact_says_what_it_is_and_decoder_rows_have_length_one() {
    let setting = setting();
    let out = setting.dir.path().join("sae");
    let config = train_config();
    let trained = train(&setting.store, &config, &out, &Control::hidden()).unwrap();
    for feature in 0..64 {
        let length = trained
            .sae
            .direction(feature)
            .iter()
            .map(|x| x * x)
            .sum::<f32>()
            .sqrt();
        assert!((length - 1.0).abs() < 1e-5, "feature {feature}: {length}");
    }
    let (loaded, manifest) = load(&out).unwrap();
    assert_eq!(loaded, trained.sae);
    assert_eq!(manifest.kind, SAE_KIND);
    assert_eq!(manifest.seed, 5);
    manifest.verify_files(&out, &Control::hidden()).unwrap();
    manifest.check_site("blocks.1.hook_resid_post").unwrap();
    manifest
        .check_parent(STORE_KIND, &setting.store.manifest().digest(), "the store")
        .unwrap();
    manifest
        .check_model(setting.store.manifest().model.as_ref().unwrap())
        .unwrap();
    assert!(!out.join("checkpoint.safetensors").exists());

    let training = load_training(&out).unwrap();
    assert_eq!(training, trained.training);
    // Four passes over 600 rows are 75 batches of 32; one may hold rows of two passes.
    assert_eq!(training.tokens, 75 * 32);
    assert_eq!(training.curve.len(), 9);
    assert_eq!(training.curve.last().unwrap().tokens, training.tokens);
    let (first, last) = (training.curve[0], training.curve[8]);
    assert!(
        last.explained_variance.unwrap() > first.explained_variance.unwrap() + 0.1,
        "{first:?} {last:?}"
    );
    assert!(
        training.curve.iter().any(|point| point.dead > 0),
        "the auxiliary loss was never used"
    );
    // The last point of the curve is on all held-out rows here, in other units.
    let rows = setting.store.normal_rows(true);
    let Judged {
        metrics, densities, ..
    } = judged(&loaded, &setting.store, &rows);
    assert!((metrics.explained_variance - last.explained_variance.unwrap()).abs() < 1e-4);
    assert!(metrics.l0 <= 4.0);

    // The same metrics from dense codes.
    let x = rows_of(&setting.store, &rows);
    let codes = dense_codes(&loaded, &x);
    let reconstruction = dense_decode(&loaded, &codes);
    let n = rows.len() as f64;
    let mean: Vec<f64> = (0..32)
        .map(|j| {
            x.iter()
                .skip(j)
                .step_by(32)
                .map(|&x| f64::from(x))
                .sum::<f64>()
                / n
        })
        .collect();
    let (mut error, mut spread, mut size) = (0.0, 0.0, 0.0);
    for (place, (&x, &y)) in x.iter().zip(&reconstruction).enumerate() {
        error += (f64::from(x) - f64::from(y)).powi(2);
        spread += (f64::from(x) - mean[place % 32]).powi(2);
        size += f64::from(x).powi(2);
    }
    assert!((metrics.explained_variance - (1.0 - error / spread)).abs() < 1e-5);
    assert!((metrics.explained_about_zero - (1.0 - error / size)).abs() < 1e-5);
    for (feature, density) in densities.iter().enumerate() {
        let expected = codes.iter().filter(|codes| codes[feature] > 0.0).count() as f64 / n;
        assert!((f64::from(*density) - expected).abs() < 1e-6);
    }
}

#[test]
fn an_interrupted_training_goes_on_to_the_same_bytes() {
    let setting = setting();
    let (store, config) = (&setting.store, train_config());
    let whole = setting.dir.path().join("whole");
    trained(store, &config, &whole);
    let (_, manifest) = load(&whole).unwrap();
    for times in [1, 2, 11, 19, 20, 45, 71, 72] {
        let out = setting.dir.path().join(format!("at{times}"));
        let error = train(store, &config, &out, &interrupted_at("train", times)).unwrap_err();
        assert!(matches!(error, SaeError::Interrupted(_)), "{error}");
        assert!(!out.exists());
        trained(store, &config, &out);
        assert_same_files(&out, &whole);
        assert_eq!(load(&out).unwrap().1.digest(), manifest.digest());
    }
    // Again and again, seven steps at a time.
    let out = setting.dir.path().join("piecemeal");
    let mut calls = 1;
    while train(store, &config, &out, &interrupted_at("train", 8)).is_err() {
        calls += 1;
        assert!(calls < 40, "no progress");
    }
    assert!(calls > 8, "only {calls} calls");
    assert_same_files(&out, &whole);
    assert_eq!(load(&out).unwrap().1.digest(), manifest.digest());
}

#[test]
fn the_seed_decides_and_other_work_is_started_anew() {
    let setting = setting();
    let at = |name: &str| setting.dir.path().join(name);
    let (store, config) = (&setting.store, train_config());
    let first = trained(store, &config, &at("first"));
    let second = trained(store, &config, &at("second"));
    assert_eq!(first, second);
    assert_same_files(&at("first"), &at("second"));
    let other = TrainConfig {
        seed: 6,
        ..config.clone()
    };
    assert_ne!(trained(store, &other, &at("other")), first);

    train(
        store,
        &other,
        &at("restarted"),
        &interrupted_at("train", 30),
    )
    .unwrap_err();
    assert_eq!(trained(store, &config, &at("restarted")), first);
    assert_same_files(&at("restarted"), &at("first"));

    // Another store under the same configuration.
    let another = setting_with(&{
        let mut config = common::base::config();
        config.plan.seed = 99;
        config
    });
    train(
        &another.store,
        &config,
        &at("moved"),
        &interrupted_at("train", 30),
    )
    .unwrap_err();
    assert_eq!(trained(store, &config, &at("moved")), first);
}

#[test]
fn results_do_not_hang_on_the_number_of_threads() {
    let setting = setting();
    let config = train_config();
    let many = trained(&setting.store, &config, &setting.dir.path().join("many"));
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let out = setting.dir.path().join(threads.to_string());
        let found = pool.install(|| trained(&setting.store, &config, &out));
        assert_eq!(found, many);
    }
}

#[test]
fn a_store_without_held_out_text_can_be_trained_on_and_resumed() {
    let mut harvest = config();
    harvest.plan.held_out_tokens = 0;
    let setting = setting_with(&harvest);
    let config = train_config();
    let whole = setting.dir.path().join("whole");
    trained(&setting.store, &config, &whole);
    let training = load_training(&whole).unwrap();
    assert_eq!(training.curve.len(), 9);
    let out = setting.dir.path().join("resumed");
    train(&setting.store, &config, &out, &interrupted_at("train", 30)).unwrap_err();
    trained(&setting.store, &config, &out);
    assert_same_files(&out, &whole);
}

#[test]
fn what_cannot_be_trained_is_refused_in_words() {
    let setting = setting();
    let out = setting.dir.path().join("sae");
    let refused = |change: &dyn Fn(&mut TrainConfig)| {
        let mut config = train_config();
        change(&mut config);
        let result = train(&setting.store, &config, &out, &Control::hidden()).map(|_| ());
        let error = result.expect_err("it was trained").to_string();
        assert!(!out.exists());
        error
    };
    assert_has(
        &refused(&|c| c.kind = KindConfig::TopK { k: 0 }),
        &["k is 0", "64"],
    );
    assert_has(
        &refused(&|c| c.kind = KindConfig::TopK { k: 65 }),
        &["k is 65", "64"],
    );
    assert_has(&refused(&|c| c.batch = 601), &["600 rows", "601"]);
    assert_has(&refused(&|c| c.batch = 0), &["one row in a batch"]);
    assert_has(&refused(&|c| c.passes = 0), &["one pass"]);
    assert_has(&refused(&|c| c.lr = 0.0), &["learning rate is 0"]);
    assert_has(&refused(&|c| c.lr = f64::NAN), &["learning rate is NaN"]);
    assert_has(
        &refused(&|c| c.decay = 0.99),
        &["warm-up 0.05 and decay 0.99"],
    );
    let error = refused(&|c| c.lr = 1e38);
    assert_has(&error, &["diverged at step", "smaller learning rate"]);
    fs::create_dir_all(&out).unwrap();
    let error = train(&setting.store, &train_config(), &out, &Control::hidden()).unwrap_err();
    assert_has(&error.to_string(), &["sae", "exists"]);
}

#[test]
fn options_that_are_no_numbers_are_named() {
    type Change = (&'static str, fn(&mut TrainConfig));
    let setting = setting();
    let mut unnamed = Vec::new();
    let changes: [Change; 4] = [
        ("warm-up", |c| c.warmup = f64::NAN),
        ("decay", |c| c.decay = f64::NAN),
        ("auxiliary", |c| c.aux_coefficient = f64::NAN),
        ("auxiliary", |c| c.aux_coefficient = -1.0),
    ];
    for (number, (name, change)) in changes.into_iter().enumerate() {
        let mut config = train_config();
        change(&mut config);
        let out = setting.dir.path().join(number.to_string());
        match train(&setting.store, &config, &out, &Control::hidden()) {
            Err(error) if error.to_string().contains(name) => {}
            Err(error) => unnamed.push(format!("{name}: {error}")),
            Ok(_) => unnamed.push(format!("{name}: accepted")),
        }
    }
    assert!(unnamed.is_empty(), "{unnamed:?}");
}

#[test]
fn codes_and_reconstructions_are_those_of_the_definition() {
    for (d, m, k, n) in [
        (12, 40, 5, 70),
        (7, 3, 3, 5),
        (33, 130, 1, 200),
        (5, 20, 20, 9),
    ] {
        let sae = random_sae(d as u64, d, m, k);
        let x = random(77, n * d);
        let codes = sae.encode(&x);
        let expected = dense_codes(&sae, &x);
        assert_eq!(codes.tokens(), n);
        let mut active = 0;
        for (token, expected) in expected.iter().enumerate() {
            let found: Vec<f32> = (0..m as u32)
                .map(|feature| codes.value(token, feature))
                .collect();
            let expected: Vec<f32> = expected.iter().map(|&x| x as f32).collect();
            assert_close(&found, &expected, 1e-5);
            active += expected.iter().filter(|&&x| x > 0.0).count();
        }
        assert_eq!(codes.active(), active);
        assert_close(&sae.decode(&codes), &dense_decode(&sae, &expected), 1e-5);
    }
    let x = random(3, 50 * 8);
    let identity = identity_sae(8);
    assert_eq!(identity.decode(&identity.encode(&x)), x);
}

#[test]
fn figures_keep_their_names_and_survive_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut result = SaeResult {
        selection: "topk".to_owned(),
        features: 64,
        k: Some(4),
        reconstruction: ReconstructionMetrics {
            explained_variance: 0.123_456_789_012_345_67,
            explained_about_zero: 0.9,
            explained_variance_legacy: 0.2,
            fvu: 0.876,
            cosine: 0.5,
            l2_ratio: 0.75,
            relative_bias: 1.0,
            mse: 12.5,
            l0: 3.9,
            l1: 7.0,
            dead_fraction: 0.1,
        },
        density_histogram: DensityHistogram::of(&[0.0, 0.1, 0.3]),
        cross_entropy: None,
        sites: Vec::new(),
        train_tokens: 100,
        train_tokens_per_second: 1.0 / 3.0,
    };
    let path = dir.path().join("result.json");
    let cross_entropy = CrossEntropy {
        ce_clean: 1.0 / 3.0,
        ce_spliced: 2.0 / 3.0,
        ce_zero: 7.1,
        ce_score: 0.95,
        kl_spliced: 0.1,
        kl_zero: 4.0,
        kl_score: 0.975,
    };
    for cross_entropy in [None, Some(cross_entropy)] {
        result.cross_entropy = cross_entropy;
        write_json(&path, &result).unwrap();
        assert_eq!(read_json::<SaeResult>(&path).unwrap(), result);
        let value: serde_json::Value = read_json(&path).unwrap();
        assert_eq!(value["ce_score"].is_number(), cross_entropy.is_some());
        assert!(value["explained_variance"].is_number() && value["density_histogram"].is_object());
    }
}
