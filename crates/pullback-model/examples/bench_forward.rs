//! Tokens a second of a model, in the modes of `benches/rivals/forward.py`, which say what each of them does.
//!
//! `bench_forward --mode residual|logits|backward|generate --model FILE [--hooks none|all-residual|one-active]
//! [--repeats N] [--paced]`
//!
//! With `--hooks all-residual` the stream after every block is recorded; with `one-active` a vector is added to the
//! stream after one block. Threads are those of rayon (`RAYON_NUM_THREADS`).
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use pullback_kernels::allocator::{MiMalloc, keep_freed_memory};
use pullback_model::{AddVector, GenerateOptions, Input, Intervention, Model, RunOptions, Site};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const BATCH: usize = 8;
const TIME: usize = 128;
const PROMPT: usize = 16;
const NEW: usize = 64;
const CUT: usize = 16;
const LEAF: usize = 8;
const WARM_UP: u64 = 2;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Residual,
    Logits,
    Backward,
    Generate,
}

#[derive(Clone, Copy, PartialEq)]
enum Hooks {
    None,
    AllResidual,
    OneActive,
}

struct Arguments {
    mode: Mode,
    hooks: Hooks,
    model: PathBuf,
    repeats: u64,
    paced: bool,
}

impl Arguments {
    fn read() -> Result<Self, String> {
        let (mut mode, mut model) = (None, None);
        let (mut hooks, mut repeats, mut paced) = (Hooks::None, 10, false);
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--mode" => {
                    mode = Some(match value()?.as_str() {
                        "residual" => Mode::Residual,
                        "logits" => Mode::Logits,
                        "backward" => Mode::Backward,
                        "generate" => Mode::Generate,
                        other => return Err(format!("`{other}` is no mode")),
                    });
                }
                "--hooks" => {
                    hooks = match value()?.as_str() {
                        "none" => Hooks::None,
                        "all-residual" => Hooks::AllResidual,
                        "one-active" => Hooks::OneActive,
                        other => return Err(format!("`{other}` names no hooks")),
                    };
                }
                "--model" => model = Some(value()?.into()),
                "--repeats" => repeats = value()?.parse().map_err(|e| format!("--repeats: {e}"))?,
                "--paced" => paced = true,
                other => return Err(format!("`{other}` is no option")),
            }
        }
        let arguments = Self {
            mode: mode.ok_or("--mode is missing")?,
            hooks,
            model: model.ok_or("--model is missing")?,
            repeats,
            paced,
        };
        if arguments.mode == Mode::Generate && hooks == Hooks::AllResidual {
            return Err("generation records nothing".to_owned());
        }
        Ok(arguments)
    }
}

fn random_ids(seed: u64, count: usize) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| random.random_range(100..40000))
        .collect()
}

/// The model with what its runs share.
struct Bench {
    model: Model,
    mode: Mode,
    record: Vec<Site>,
    interventions: Vec<Intervention>,
}

impl Bench {
    fn new(arguments: &Arguments) -> Self {
        let model = Model::load(Path::new(&arguments.model), &Device::flex()).unwrap();
        let layers = if arguments.mode == Mode::Residual {
            CUT
        } else {
            model.config().n_layers
        };
        let record = match arguments.hooks {
            Hooks::AllResidual => (0..layers).map(Site::resid_post).collect(),
            _ => Vec::new(),
        };
        let interventions = match arguments.hooks {
            Hooks::OneActive => {
                let width = model.config().d_model;
                let vector = TensorData::new(vec![0.01_f32; width], [width]);
                let edit = AddVector {
                    vector: Tensor::from_data(vector, model.device()),
                    first_position: 0,
                };
                vec![Intervention::new(
                    Site::resid_post(layers / 2),
                    Arc::new(edit),
                )]
            }
            _ => Vec::new(),
        };
        Self {
            model,
            mode: arguments.mode,
            record,
            interventions,
        }
    }

    /// One repeat; the number of tokens it was about.
    fn step(&self, seed: u64) -> usize {
        match self.mode {
            Mode::Residual | Mode::Logits => {
                let options = RunOptions {
                    stop_at: (self.mode == Mode::Residual).then_some(CUT),
                    record: &self.record,
                    interventions: &self.interventions,
                    ..RunOptions::default()
                };
                let out = self.model.run(batch(seed), &options).unwrap();
                if self.mode == Mode::Residual {
                    drop(out.stream.into_data());
                } else {
                    drop(self.model.logits(out.stream).into_data());
                }
                BATCH * TIME
            }
            Mode::Backward => self.backward(seed),
            Mode::Generate => {
                let options = GenerateOptions {
                    max_tokens: NEW,
                    interventions: &self.interventions,
                    ..GenerateOptions::default()
                };
                let ids = random_ids(seed, PROMPT);
                let text = self.model.generate(&ids, &options, |_| true).unwrap();
                assert_eq!(text.len(), NEW);
                NEW
            }
        }
    }

    fn backward(&self, seed: u64) -> usize {
        let below = RunOptions {
            stop_at: Some(LEAF),
            ..RunOptions::default()
        };
        let ids = random_ids(seed, BATCH * TIME);
        let below = self.model.run(batch(seed), &below).unwrap();
        let stream = Tensor::<2>::from_inner(below.stream).require_grad();
        let input = Input::residual(stream.clone(), BATCH, LEAF);
        // The sites below the leaf are not reached by this run.
        let record: Vec<Site> = self
            .record
            .iter()
            .copied()
            .filter(|site| site.layer() >= Some(LEAF))
            .collect();
        let options = RunOptions {
            record: &record,
            interventions: &self.interventions,
            ..RunOptions::default()
        };
        let out = self.model.run(input, &options).unwrap();
        let targets: Vec<u32> = ids
            .chunks(TIME)
            .flat_map(|row| row[1..].iter().chain(&row[..1]).copied())
            .collect();
        let loss = self.model.cross_entropy(out.stream, &targets).unwrap();
        let grads = loss.mean().backward();
        drop(stream.grad(&grads).unwrap().into_data());
        BATCH * TIME
    }

    fn rate(&self, seed: u64) -> f64 {
        let start = Instant::now();
        let tokens = self.step(seed);
        tokens as f64 / start.elapsed().as_secs_f64()
    }
}

fn batch(seed: u64) -> Input {
    Input::uniform(random_ids(seed, BATCH * TIME), BATCH)
}

fn main() -> Result<(), String> {
    keep_freed_memory();
    let arguments = Arguments::read()?;
    let bench = Bench::new(&arguments);
    for seed in 0..WARM_UP {
        bench.step(seed);
    }
    if arguments.paced {
        println!("{}", serde_json::json!({ "ready": true }));
        for (seed, _) in std::io::stdin().lock().lines().enumerate() {
            let rate = bench.rate(WARM_UP + seed as u64);
            println!("{}", serde_json::json!({ "tokens_per_second": rate }));
        }
        return Ok(());
    }
    let rates: Vec<f64> = (0..arguments.repeats)
        .map(|seed| bench.rate(WARM_UP + seed))
        .collect();
    let mut sorted = rates.clone();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    };
    println!(
        "{}",
        serde_json::json!({ "program": "pullback", "tokens_per_second": median, "rates": rates })
    );
    Ok(())
}
