//! What the tests share: the tiny model, texts, stores harvested from them, and controls that interrupt at a chosen
//! place.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use burn::tensor::{Device, Tensor};
use pullback_activations::{ActivationStore, Corpus, HarvestConfig, PlanConfig, harvest};
use pullback_artifact::Control;
use pullback_model::{Model, Site};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The GGUF file of the tiny model: 3 blocks, width 32, 300 tokens, context 64.
pub fn tiny_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../pullback-model/tests/fixtures/tiny-llama.gguf")
}

/// The tiny model.
pub fn tiny() -> Model {
    Model::load(&tiny_path(), &Device::flex()).unwrap()
}

/// Words from a small vocabulary, so that some sequences of tokens come again.
pub fn words(seed: u64, count: usize) -> String {
    const WORDS: [&str; 24] = [
        "the", "sea", "a", "ship", "sails", "on", "and", "old", "water", "wind", "is", "cold",
        "he", "said", "rope", "to", "captain", "never", "in", "night", "storm", "of", "salt",
        "morning",
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut text = String::new();
    for _ in 0..count {
        text.push_str(WORDS[rng.random_range(0..WORDS.len())]);
        text.push_str(if rng.random_range(0..9) == 0 {
            ".\n"
        } else {
            " "
        });
    }
    text
}

/// Twenty-four documents in two groups, one of them with far more text.
pub fn corpus(dir: &Path) -> Corpus {
    let dir = dir.join("corpus");
    for (group, documents, length) in [("long", 12, 220), ("short", 12, 70)] {
        fs::create_dir_all(dir.join(group)).unwrap();
        for document in 0..documents {
            let text = words(document + length as u64 * 100, length);
            fs::write(dir.join(group).join(format!("{document:02}.txt")), text).unwrap();
        }
    }
    Corpus::open(&dir).unwrap()
}

/// 40 sequences of 16 tokens to train on and 10 held out, in shards of 4 sequences; the last shard is smaller.
pub fn config() -> HarvestConfig {
    HarvestConfig {
        site: Site::resid_post(1),
        plan: PlanConfig {
            tokens: 640,
            held_out_tokens: 160,
            context: 16,
            prepend_bos: false,
            seed: 7,
        },
        batch: 2,
        shard_rows: 64,
    }
}

/// Harvests into `dir/name` and opens the store.
pub fn harvested(
    model: &Model,
    corpus: &Corpus,
    config: &HarvestConfig,
    out: &Path,
) -> ActivationStore {
    harvest(model, "tiny", corpus, config, out, &Control::hidden()).unwrap();
    ActivationStore::open(out).unwrap()
}

/// A directory with a model, a corpus and a store.
pub struct Setting {
    pub dir: tempfile::TempDir,
    pub model: Model,
    pub store: ActivationStore,
}

/// The usual store.
pub fn setting() -> Setting {
    setting_with(&config())
}

/// A store made to order.
pub fn setting_with(config: &HarvestConfig) -> Setting {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let store = harvested(
        &model,
        &corpus(dir.path()),
        config,
        &dir.path().join("store"),
    );
    Setting { dir, model, store }
}

/// A control that is interrupted as soon as `stage` has shown its progress `times` times; every step shows it.
pub fn interrupted_at(stage: &str, times: usize) -> Control {
    let own = Arc::new(OnceLock::new());
    let stopper = Stopper {
        control: own.clone(),
        start: format!("{stage}: "),
        left: times,
    };
    let control = Control::lines(Box::new(stopper), Duration::ZERO);
    own.set(control.clone()).ok().unwrap();
    control
}

struct Stopper {
    control: Arc<OnceLock<Control>>,
    start: String,
    left: usize,
}

impl Write for Stopper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        let amount = line.strip_prefix(&self.start);
        if amount.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                self.control.get().unwrap().interrupt();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// All files of an artifact but its manifest (it holds a date) and `result.json` (it holds timings).
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name != "pullback.json" && name != "result.json" {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    files
}

/// Fails naming the first file that differs, without printing bytes.
#[track_caller]
pub fn assert_same_files(found: &Path, expected: &Path) {
    let (found, expected) = (files(found), files(expected));
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in &found {
        assert!(*bytes == expected[name], "{name} differs");
    }
}

/// A tensor's numbers.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Fails unless numbers agree to `tolerance` times the larger of one and their size.
#[track_caller]
pub fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (place, (a, b)) in found.iter().zip(expected).enumerate() {
        let bound = tolerance * b.abs().max(1.0);
        assert!((a - b).abs() <= bound, "at {place}: {a} against {b}");
    }
}

/// Fails unless `message` holds all `parts`.
#[track_caller]
pub fn assert_has(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}
