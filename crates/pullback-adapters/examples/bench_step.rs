//! What a step of training costs beside the bare forward and backward pass of the blocks above the site, in turn.
//!
//! `bench_step MODEL.gguf SAE [ROUNDS [NAME]]`: 8 sequences of 64 tokens. A round is three bare passes and three steps; printed
//! are medians over the rounds and of their ratios, for each basis or for those whose name begins so.
#![allow(clippy::print_stdout, reason = "it prints its measurements")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{Device, Int, Tensor, TensorData};
use pullback_adapters::{
    Activation, Basis, Length, Objective, Sample, Sparsity, TrainConfig, TrainInput, train,
};
use pullback_artifact::{Control, ParentRef};
use pullback_model::{Input, Model, RunOptions, Site};

const SEQUENCES: usize = 8;
const TOKENS: usize = 64;
const PASSES: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model_path, sae_path, rest @ ..] = &arguments[..] else {
        return Err("usage: bench_step MODEL.gguf SAE [ROUNDS [NAME]]".into());
    };
    let rounds: usize = rest.first().map_or(Ok(3), |rounds| rounds.parse())?;
    let model = Model::load(Path::new(model_path), &Device::flex())?;
    let (sae, manifest) = pullback_sae::load(Path::new(sae_path))?;
    let site: Site = manifest.site.as_deref().unwrap_or_default().parse()?;
    let layer = site.layer().ok_or("the dictionary is of no block")?;
    let words = [
        "the", "old", "ship", "went", "over", "a", "wide", "sea", "and",
    ];
    let long: Vec<&str> = (0..4000).map(|i| words[(i * i + i / 7) % 9]).collect();
    let ids = model.tokenizer().encode_with_bos(&long.join(" "), true)?;
    let ids = &ids[..SEQUENCES * TOKENS];
    let samples = [
        Sample::Text {
            text: model.tokenizer().decode(ids, false),
        },
        Sample::Text {
            text: "the sea".to_owned(),
        },
    ];
    let parent = ParentRef {
        kind: "sae".to_owned(),
        digest: manifest.digest(),
        path: sae_path.clone(),
    };
    let mut input = TrainInput::new(&model, "model", &samples);
    input.dictionary = Some((Arc::new(sae), parent));
    let bare = Bare::new(&model, ids, layer + 1)?;

    let dir = std::env::temp_dir().join(format!("bench-step-{}", std::process::id()));
    let wanted = rest.get(1).map_or("", String::as_str);
    let chosen = bases(layer).into_iter();
    for (name, basis, leash) in chosen.filter(|(name, ..)| name.starts_with(wanted)) {
        let (mut bares, mut steps) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let mut config = TrainConfig::of(basis.clone(), site, 0);
            config.length = Length::Steps(PASSES);
            config.batch = SEQUENCES;
            config.context = TOKENS;
            config.evaluate_every = Some(PASSES);
            config.objective = Objective::NextToken;
            config.leash = leash;
            let mut seconds = 0.0;
            for _ in 0..PASSES {
                seconds += bare.pass(&model)?;
            }
            bares.push(seconds / PASSES as f64);
            let out = dir.join(format!("{name}-{round}").replace(' ', "-"));
            let trained = train(&input, &config, &out, &Control::hidden())?;
            steps.push(trained.seconds_per_step.unwrap_or(f64::NAN));
        }
        let ratios: Vec<f64> = bares.iter().zip(&steps).map(|(b, s)| s / b).collect();
        let each: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        println!(
            "{name}: bare {:.3} s, step {:.3} s, ratio {:.3} (rounds: {})",
            median(bares),
            median(steps),
            median(ratios),
            each.join(" ")
        );
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// What is measured, and with which leash.
fn bases(layer: usize) -> Vec<(String, Basis, f64)> {
    let residual = Basis::Residual {
        rank: 8,
        activation: Activation::Gelu,
    };
    let bias = Basis::Bias {
        active_only: false,
        sparsity: Sparsity::Top { count: 64 },
    };
    let low_rank = Basis::LowRank {
        rank: 4,
        entries: None,
    };
    let lora = Basis::Lora {
        rank: 8,
        alpha: 16.0,
        matrices: vec!["q".to_owned(), "v".to_owned()],
        blocks: vec![layer + 1],
    };
    vec![
        ("residual".to_owned(), residual.clone(), 0.0),
        ("bias of 64".to_owned(), bias, 0.0),
        (
            "sparse of 1024".to_owned(),
            Basis::Sparse { weights: 1024 },
            0.0,
        ),
        ("low-rank of 4".to_owned(), low_rank, 0.0),
        ("lora of 8".to_owned(), lora, 0.0),
        ("residual with leash".to_owned(), residual, 0.1),
    ]
}

/// The blocks above the site, forward and backward, and nothing else.
struct Bare {
    stream: Tensor<2>,
    rows: Tensor<1, Int>,
    targets: Vec<u32>,
    first: usize,
}

impl Bare {
    fn new(model: &Model, ids: &[u32], first: usize) -> Result<Self, Box<dyn Error>> {
        let options = RunOptions {
            stop_at: Some(first),
            ..RunOptions::default()
        };
        let out = model.run(Input::uniform(ids.to_vec(), SEQUENCES), &options)?;
        let rows: Vec<i64> = (0..ids.len() as i64)
            .filter(|row| (row + 1) % TOKENS as i64 != 0)
            .collect();
        let targets = rows.iter().map(|&row| ids[row as usize + 1]).collect();
        let count = rows.len();
        Ok(Self {
            stream: out.stream,
            rows: Tensor::from_data(TensorData::new(rows, [count]), model.device()),
            targets,
            first,
        })
    }

    /// Seconds.
    fn pass(&self, model: &Model) -> Result<f64, Box<dyn Error>> {
        let clock = Instant::now();
        let leaf = Tensor::<2>::from_inner(self.stream.clone()).require_grad();
        let input = Input::residual(leaf.clone(), SEQUENCES, self.first);
        let out = model.run(input, &RunOptions::default())?;
        let last = out.stream.select(0, self.rows.clone());
        let losses = model.cross_entropy(last, &self.targets)?;
        let grads = losses.mean().backward();
        let grad = leaf.grad(&grads).ok_or("no gradient")?;
        let total = grad.abs().sum().into_scalar::<f32>();
        let seconds = clock.elapsed().as_secs_f64();
        if !total.is_finite() {
            return Err("the gradient is not finite".into());
        }
        Ok(seconds)
    }
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}
