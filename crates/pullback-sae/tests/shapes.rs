//! Training of transcoders, crosscoders and several dictionaries at once, on feeds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::Path;

use common::base::{assert_has, assert_same_files, interrupted_at};
use pullback_activations::{ActivationError, Feed, FeedSite, Piece};
use pullback_artifact::Control;
use pullback_sae::metrics::Reconstruction;
use pullback_sae::{
    DecoderNorm, Dictionary, InputNorm, Job, KindConfig, SaeError, TrainConfig, Trained, Wiring,
    load, train_all,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const WIDTHS: [usize; 3] = [12, 12, 9];
const NAMES: [&str; 3] = ["a", "b", "c"];
const TRUE_FEATURES: usize = 20;

/// Sparse combinations of directions that each feature has at every site; at the last site they are twenty times as long.
struct Planted {
    sites: Vec<FeedSite>,
    directions: Vec<Vec<f32>>,
    endless: bool,
}

fn planted() -> Planted {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    Planted {
        sites: NAMES
            .iter()
            .zip(WIDTHS)
            .map(|(name, d)| FeedSite {
                name: (*name).to_owned(),
                d,
            })
            .collect(),
        directions: WIDTHS
            .iter()
            .enumerate()
            .map(|(site, d)| {
                let scale = if site == 2 { 20.0 } else { 1.0 };
                (0..TRUE_FEATURES * d)
                    .map(|_| scale * rng.random_range(-1.0_f32..1.0))
                    .collect()
            })
            .collect(),
        endless: true,
    }
}

impl Planted {
    fn rows(&self, seed: u64, rows: usize) -> Piece {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut sites: Vec<Vec<f32>> = WIDTHS.iter().map(|d| vec![0.5; rows * d]).collect();
        for row in 0..rows {
            for _ in 0..2 {
                let feature = rng.random_range(0..TRUE_FEATURES);
                let size = rng.random_range(1.0_f32..3.0);
                for ((site, directions), d) in sites.iter_mut().zip(&self.directions).zip(WIDTHS) {
                    for (x, w) in site[row * d..][..d]
                        .iter_mut()
                        .zip(&directions[feature * d..])
                    {
                        *x += size * w;
                    }
                }
            }
        }
        Piece { rows, sites }
    }
}

impl Feed for Planted {
    fn sites(&self) -> &[FeedSite] {
        &self.sites
    }

    fn digest(&self) -> String {
        "planted".to_owned()
    }

    fn pass(&self) -> Option<usize> {
        (!self.endless).then_some(1000)
    }

    fn piece(&self, number: usize, control: &Control) -> Result<Piece, ActivationError> {
        control.check()?;
        Ok(self.rows(100 + number as u64, 300))
    }

    fn held_out(&self, most: usize) -> Result<Piece, ActivationError> {
        Ok(self.rows(7, most.min(500)))
    }
}

fn config(kind: &str, wiring: Wiring, steps: usize) -> TrainConfig {
    let crosscoder = matches!(wiring, Wiring::Crosscoder { .. });
    TrainConfig {
        wiring,
        tokens: Some(steps * 64),
        batch: 64,
        lr: 3e-3,
        decoder_norm: if crosscoder {
            DecoderNorm::Free
        } else {
            DecoderNorm::Unit
        },
        ..TrainConfig::new(32, KindConfig::named(kind, 32, 3).unwrap(), 4)
    }
}

fn autoencoder(site: &str) -> Wiring {
    Wiring::Autoencoder {
        site: Some(site.to_owned()),
    }
}

fn transcoder(from: &str, to: &str, skip: bool) -> Wiring {
    Wiring::Transcoder {
        from: from.to_owned(),
        to: to.to_owned(),
        skip,
    }
}

fn crosscoder(sites: &[&str]) -> Wiring {
    Wiring::Crosscoder {
        sites: sites.iter().map(|&site| site.to_owned()).collect(),
    }
}

fn jobs(configs: &[TrainConfig], dir: &Path) -> Vec<Job> {
    let job = |(number, config): (usize, &TrainConfig)| Job {
        config: config.clone(),
        out: dir.join(number.to_string()),
    };
    configs.iter().enumerate().map(job).collect()
}

fn run(configs: &[TrainConfig], dir: &Path, control: &Control) -> Result<Vec<Trained>, SaeError> {
    train_all(&planted(), &jobs(configs, dir), control, &mut |_, _| Ok(()))
}

#[test]
fn dictionaries_trained_together_are_those_trained_alone_and_go_on_after_interruption() {
    let dir = tempfile::tempdir().unwrap();
    let configs = [
        config("topk", autoencoder("a"), 30),
        config("batchtopk", transcoder("a", "c", true), 30),
        TrainConfig {
            features: 20,
            seed: 5,
            ..config("relu", crosscoder(&["b", "c"]), 30)
        },
        TrainConfig {
            decoder_norm: DecoderNorm::Free,
            input_norm: InputNorm::Whitening,
            clip: Some(0.5),
            ..config("gated", autoencoder("b"), 30)
        },
    ];
    let together = dir.path().join("together");
    let mut seen = [0; 4];
    train_all(
        &planted(),
        &jobs(&configs, &together),
        &Control::hidden(),
        &mut |job, point| {
            seen[job] += 1;
            assert!(point.explained_variance.is_some());
            Ok(())
        },
    )
    .unwrap();
    // Thirty steps, and a point at every tenth.
    assert_eq!(seen, [3; 4]);
    for (number, config) in configs.iter().enumerate() {
        let alone = dir.path().join(format!("alone{number}"));
        run(std::slice::from_ref(config), &alone, &Control::hidden()).unwrap();
        assert_same_files(&alone.join("0"), &together.join(number.to_string()));
    }
    let again = dir.path().join("again");
    for times in [1, 4, 9] {
        let error = run(&configs, &again, &interrupted_at("train", times)).unwrap_err();
        assert!(matches!(error, SaeError::Interrupted(_)), "{error}");
    }
    // One of them is further than the others, as after a kill between two checkpoints.
    run(&configs[..1], &again, &interrupted_at("train", 5)).unwrap_err();
    run(&configs, &again, &Control::hidden()).unwrap();
    for number in 0..configs.len() {
        let number = number.to_string();
        assert_same_files(&again.join(&number), &together.join(&number));
    }
}

/// Explained variance of each output site by a saved dictionary, on rows in the units of the activations.
fn judged(path: &Path, inputs: &[usize], outputs: &[usize]) -> Vec<f64> {
    let (sae, _) = load(path).unwrap();
    let held_out = planted().held_out(500).unwrap();
    let joined = |sites: &[usize]| -> Vec<f32> {
        let mut out = Vec::new();
        for row in 0..500 {
            for &site in sites {
                let d = WIDTHS[site];
                out.extend_from_slice(&held_out.sites[site][row * d..(row + 1) * d]);
            }
        }
        out
    };
    let (x, y) = (joined(inputs), joined(outputs));
    let codes = sae.encode(&x);
    let made = sae.reconstruct(&x, &codes);
    let d_out = sae.d_out();
    let mut start = 0;
    outputs
        .iter()
        .map(|&site| {
            let columns = |rows: &[f32]| -> Vec<f32> {
                rows.chunks_exact(d_out)
                    .flat_map(|row| row[start..start + WIDTHS[site]].to_vec())
                    .collect()
            };
            let mut sums = Reconstruction::new(WIDTHS[site], sae.n_features());
            sums.add(&columns(&y), &codes, &columns(&made));
            start += WIDTHS[site];
            sums.metrics().explained_variance
        })
        .collect()
}

#[test]
fn every_kind_learns_to_transcode_and_to_cross_sites() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KindConfig::NAMES {
        let mut configs = vec![
            config(kind, transcoder("a", "c", false), 500),
            config(kind, transcoder("a", "b", true), 500),
            config(kind, crosscoder(&["a", "c"]), 500),
            config(kind, autoencoder("a"), 500),
        ];
        for config in &mut configs {
            // Weak enough for a dictionary that is to reconstruct well.
            if let KindConfig::Relu { weight } | KindConfig::Gated { weight } = &mut config.kind {
                *weight = 0.05;
            }
        }
        configs[3].decoder_norm = DecoderNorm::Free;
        let out = dir.path().join(kind);
        let trained = run(&configs, &out, &Control::hidden()).unwrap();
        let sites: [(&[usize], &[usize]); 4] =
            [(&[0], &[2]), (&[0], &[1]), (&[0, 2], &[0, 2]), (&[0], &[0])];
        for (number, (trained, (inputs, outputs))) in trained.iter().zip(sites).enumerate() {
            let found = judged(&out.join(number.to_string()), inputs, outputs);
            let last = trained.training.curve.last().unwrap();
            let mean = found.iter().sum::<f64>() / found.len() as f64;
            assert!((mean - last.explained_variance.unwrap()).abs() < 1e-6);
            // The long site of a crosscoder does not drown the short one.
            for found in found {
                assert!(found > 0.6, "{kind} {number}: {found}");
            }
        }
    }
}

#[test]
fn what_cannot_be_trained_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |config: TrainConfig| {
        let error = run(&[config], dir.path(), &Control::hidden()).unwrap_err();
        assert!(!dir.path().join("0.partial").exists());
        error.to_string()
    };
    assert_has(
        &refused(config("topk", Wiring::default(), 5)),
        &["several sites", "a, b, c"],
    );
    assert_has(
        &refused(config("topk", autoencoder("x"), 5)),
        &["no activations at x", "a, b, c"],
    );
    assert_has(
        &refused(config("topk", crosscoder(&["a"]), 5)),
        &["at least two sites"],
    );
    assert_has(
        &refused(config("topk", crosscoder(&["a", "a"]), 5)),
        &["a is given more than once"],
    );
    let unit = TrainConfig {
        decoder_norm: DecoderNorm::Unit,
        ..config("topk", crosscoder(&["a", "b"]), 5)
    };
    assert_has(&refused(unit), &["crosscoder", "free lengths"]);
    let layer = TrainConfig {
        input_norm: InputNorm::LayerNorm,
        ..config("topk", transcoder("a", "b", false), 5)
    };
    assert_has(&refused(layer), &["average or none"]);
    let unknown = TrainConfig {
        tokens: None,
        ..config("topk", autoencoder("a"), 5)
    };
    assert_has(&refused(unknown), &["say how many tokens"]);
    let two = [
        config("topk", autoencoder("a"), 5),
        config("topk", autoencoder("b"), 6),
    ];
    let error = run(&two, dir.path(), &Control::hidden()).unwrap_err();
    assert_has(
        &error.to_string(),
        &["6 steps of 64 rows", "the first 5 of 64"],
    );
}
