//! The gradient of every objective against finite differences, through the model, in f64.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use pullback_model::{Model, ModelFiles, Site, WeightName, WeightUpdate};
use pullback_sae::Sae;

use super::batch::{Aim, Batch, typical_sizes};
use super::config::{Basis, Sparsity, TrainConfig};
use super::learner::{Learner, Step};
use super::prepare::{Prepared, Source, prepare};
use crate::samples::{Pair, Sample};
use crate::{Activation, Objective};

fn tiny() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../pullback-model/tests/fixtures/tiny-llama.gguf");
    let files = ModelFiles::open(&path).unwrap();
    Model::from_files(files, &Device::flex(), DType::F64).unwrap()
}

fn sample(prompt: &str, answer: &str, rejected: &str) -> Sample {
    Sample::Pair {
        pair: Pair {
            prompt: prompt.to_owned(),
            answer: answer.to_owned(),
        },
        rejected: Some(rejected.to_owned()),
    }
}

/// A batch of two samples, with the streams in f64.
fn batch(model: &Model, teacher: &Model, objective: Objective, first: usize) -> Batch {
    let samples = [
        sample("a sea", "arr", "no sir"),
        sample("old", "ahoy", "yes"),
    ];
    let prepared: Vec<Prepared> = samples
        .iter()
        .flat_map(|sample| prepare(model, sample, objective, 64).unwrap())
        .collect();
    let mut source = Source::new(model, first, objective, true);
    source.teacher = Some(teacher);
    let refs: Vec<&Prepared> = prepared.iter().collect();
    let mut batch = Batch::new(&source, &refs, model.device()).unwrap();
    batch.stream = widen(model, &batch.stream);
    batch.finals = batch.finals.map(|x| x.map(|x| widen(model, &x)));
    batch
}

/// A tensor in f64.
fn widen(model: &Model, x: &Tensor<2>) -> Tensor<2> {
    let numbers: Vec<f64> = x.to_data().iter::<f64>().collect();
    let data = TensorData::new(numbers, x.dims());
    Tensor::from_data(data, (model.device(), DType::F64))
}

const OBJECTIVES: [Objective; 4] = [
    Objective::NextToken,
    Objective::Dpo { beta: 0.7 },
    Objective::Orpo { weight: 0.4 },
    Objective::Distill,
];

/// The mean objective with its leash.
fn value(aim: Aim<'_>, batch: &Batch, stream: Tensor<2>, updates: &[WeightUpdate]) -> f64 {
    let found = aim.evaluate(batch, stream, updates).unwrap();
    let tokens = batch.targets.len() as f64;
    found.sum / found.count + aim.leash * found.divergence / tokens
}

fn aim<'a>(model: &'a Model, teacher: &'a Model, objective: Objective, first: usize) -> Aim<'a> {
    Aim {
        model,
        teacher: Some(teacher),
        objective,
        leash: 0.3,
        first,
        around: None,
    }
}

/// The tiny model with another matrix in its last block: another model with the same tokens.
fn other() -> Model {
    let mut model = tiny();
    model.merge(&[update(2, 0.4, &Device::flex())]).unwrap();
    model
}

fn numbers(seed: f64, count: usize, size: f64) -> Vec<f64> {
    let wave = |i: usize| size * (seed + 1.3 * i as f64 + 0.01 * (i * i) as f64).sin();
    (0..count).map(wave).collect()
}

fn update(layer: usize, size: f64, device: &Device) -> WeightUpdate {
    let tensor = |values: Vec<f64>, shape: [usize; 2]| {
        Tensor::from_data(TensorData::new(values, shape), (device, DType::F64))
    };
    WeightUpdate {
        weight: WeightName::Down(layer),
        down: tensor(numbers(0.3, 2 * 48, size), [2, 48]),
        up: tensor(numbers(2.1, 32 * 2, size), [32, 2]),
        scale: 0.8,
    }
}

#[test]
fn gradients_at_the_site_are_those_of_finite_differences() {
    let (model, teacher) = (tiny(), other());
    for objective in OBJECTIVES {
        let first = 2;
        let batch = batch(&model, &teacher, objective, first);
        let aim = aim(&model, &teacher, objective, first);
        let shape = batch.stream.dims();
        let push = |seed: f64, size: f64| {
            let data = TensorData::new(numbers(seed, shape[0] * shape[1], size), shape);
            Tensor::<2>::from_data(data, (model.device(), DType::F64))
        };
        // Away from the model itself, where divergences have no slope.
        let at = batch.stream.clone() + push(0.7, 0.2);
        let leaf = Tensor::<2>::from_inner(at.clone()).require_grad();
        let found = aim.evaluate(&batch, leaf.clone(), &[]).unwrap();
        let grads = found.slope.backward();
        let gradient = leaf.grad(&grads).unwrap();
        for seed in [0.1, 1.9, 4.2] {
            let direction = push(seed, 1.0);
            let along = (gradient.clone() * direction.clone()).sum();
            let along = along.into_data().iter::<f64>().next().unwrap();
            let moved = |step: f64| value(aim, &batch, at.clone() + direction.clone() * step, &[]);
            let measured = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!(along.abs() > 1e-3, "{objective:?}: {along}");
            assert!(
                (measured - along).abs() < 1e-7 * along.abs().max(1.0),
                "{objective:?}: {measured} {along}"
            );
        }
    }
}

#[test]
fn gradients_of_updates_are_those_of_finite_differences() {
    let (model, teacher) = (tiny(), other());
    let device = model.device().clone().autodiff();
    for objective in OBJECTIVES {
        let first = 1;
        let batch = batch(&model, &teacher, objective, first);
        let aim = aim(&model, &teacher, objective, first);
        let mut tracked = update(1, 0.3, &device);
        tracked.down = tracked.down.require_grad();
        tracked.up = tracked.up.require_grad();
        let stream = Tensor::<2>::from_inner(batch.stream.clone());
        let found = aim
            .evaluate(&batch, stream, std::slice::from_ref(&tracked))
            .unwrap();
        let grads = found.slope.backward();
        let gradients = [
            tracked.down.grad(&grads).unwrap(),
            tracked.up.grad(&grads).unwrap(),
        ];
        for (side, gradient) in gradients.iter().enumerate() {
            let shape = gradient.dims();
            let data = TensorData::new(numbers(3.3, shape[0] * shape[1], 1.0), shape);
            let direction = Tensor::<2>::from_data(data, (model.device(), DType::F64));
            let along = (gradient.clone() * direction.clone()).sum();
            let along = along.into_data().iter::<f64>().next().unwrap();
            let moved = |step: f64| {
                let mut moved = update(1, 0.3, model.device());
                let part = if side == 0 {
                    &mut moved.down
                } else {
                    &mut moved.up
                };
                *part = part.clone() + direction.clone() * step;
                value(aim, &batch, batch.stream.clone(), &[moved])
            };
            let measured = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!(along.abs() > 1e-4, "{objective:?}: {along}");
            assert!(
                (measured - along).abs() < 1e-7 * along.abs().max(1.0),
                "{objective:?} {side}: {measured} {along}"
            );
        }
    }
}

#[test]
fn a_divergence_is_that_of_its_definition() {
    let (model, teacher) = (tiny(), other());
    let batch = batch(&model, &teacher, Objective::Distill, 2);
    let aim = aim(&model, &teacher, Objective::Distill, 2);
    let found = aim.evaluate(&batch, batch.stream.clone(), &[]).unwrap();
    // From whole rows of logits, by the definition.
    let own = batch.finals[0].clone().unwrap();
    let theirs = batch.finals[1].clone().unwrap();
    let logits = |model: &Model, x: Tensor<2>| {
        let rows = model.logits(x).into_data();
        rows.iter::<f64>().collect::<Vec<f64>>()
    };
    let (q, p) = (logits(&model, own), logits(&teacher, theirs));
    let width = model.config().d_vocab;
    let mut expected = 0.0;
    for (q, p) in q.chunks_exact(width).zip(p.chunks_exact(width)) {
        let sums = [q, p].map(|x| x.iter().map(|x| x.exp()).sum::<f64>().ln());
        let parts = q.iter().zip(p);
        expected += parts
            .map(|(q, p)| (p - sums[1]).exp() * (p - sums[1] - q + sums[0]))
            .sum::<f64>();
    }
    assert!(expected > 1e-3);
    // The final streams that are kept are in f32.
    assert!(
        (found.sum - expected).abs() < 1e-5 * expected.max(1.0),
        "{} {expected}",
        found.sum
    );
    // The model does not diverge from itself: only by the rounding of what is kept.
    assert!(found.divergence.abs() < 1e-9, "{}", found.divergence);
}

/// A dictionary of the tiny model's stream with nothing special about it.
fn dictionary() -> Arc<Sae> {
    let part = |seed: f64, count: usize| {
        let numbers = numbers(seed, count, 1.0);
        numbers.iter().map(|&x| x as f32).collect::<Vec<f32>>()
    };
    let (d, m) = (32, 40);
    let bias = part(2.0, m).iter().map(|b| b - 0.5).collect();
    let rows = (part(0.0, m * d), part(1.0, m * d));
    Arc::new(Sae::top_k(6, rows.0, bias, rows.1, part(3.0, d)).unwrap())
}

fn bases() -> Vec<Basis> {
    let bias = |active_only, sparsity| Basis::Bias {
        active_only,
        sparsity,
    };
    let gates = Sparsity::HardConcrete {
        weight: 1e-9,
        count: None,
    };
    let low_rank = |entries| Basis::LowRank { rank: 2, entries };
    vec![
        Basis::Residual {
            rank: 3,
            activation: Activation::Gelu,
        },
        Basis::Lora {
            rank: 2,
            alpha: 3.0,
            matrices: vec!["v".to_owned(), "down".to_owned()],
            blocks: vec![1, 2],
        },
        bias(false, Sparsity::None),
        bias(true, Sparsity::Top { count: 9 }),
        bias(false, gates),
        Basis::Sparse { weights: 30 },
        low_rank(None),
        low_rank(Some(40)),
    ]
}

/// The whole way from parameters to the objective, in `f32`, in which training runs. Along the gradient `g` the objective
/// changes by `‖g‖²` for a unit; the difference of two values that are rounded to 1e-7 of about 5, over a change of about
/// 0.02, allows 1e-4, and curvature is of second order in so small a step. The bound is 2e-3.
#[test]
fn gradients_of_parameters_are_those_of_finite_differences() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../pullback-model/tests/fixtures/tiny-llama.gguf");
    let model = Model::load(&path, &Device::flex()).unwrap();
    for basis in bases() {
        for objective in [Objective::NextToken, Objective::Orpo { weight: 0.5 }] {
            let lora = matches!(basis, Basis::Lora { .. });
            let mut config = TrainConfig::of(basis.clone(), Site::resid_post(1), 5);
            config.objective = objective;
            config.change_penalty = 0.0;
            let first = if lora { 1 } else { 2 };
            let mut source = Source::new(&model, first, objective, false);
            source.dictionary = Some(dictionary());
            let samples = [
                sample("a sea", "arr", "no sir"),
                sample("old", "ahoy", "yes"),
            ];
            let prepared: Vec<Prepared> = samples
                .iter()
                .flat_map(|sample| prepare(&model, sample, objective, 64).unwrap())
                .collect();
            let refs: Vec<&Prepared> = prepared.iter().collect();
            let batch = Batch::new(&source, &refs, model.device()).unwrap();
            let units = typical_sizes(&source, &refs, || Ok(())).unwrap();
            let aim = Aim {
                teacher: None,
                leash: 0.0,
                ..aim(&model, &model, objective, first)
            };
            let (mut learner, mut parameters) =
                Learner::start(&config, &model, Some(&dictionary()), units).unwrap();
            let at = |number: usize| Step { number, of: 300 };
            for step in 0..4 {
                let found = learner
                    .gradient(&config, aim, &batch, &mut parameters, at(step))
                    .unwrap();
                parameters.step(&found.parts, step, 0.03);
            }
            let gradient = learner
                .gradient(&config, aim, &batch, &mut parameters, at(4))
                .unwrap()
                .parts;
            let square: f64 = gradient
                .iter()
                .flatten()
                .map(|&g| f64::from(g).powi(2))
                .sum();
            let value = |step: f64| {
                let mut moved = parameters.clone();
                for (part, g) in moved.values.iter_mut().zip(&gradient) {
                    for (x, g) in part.iter_mut().zip(g) {
                        *x += (step * f64::from(*g)) as f32;
                    }
                }
                let (stream, updates) = match &learner {
                    // The same draws as in the step.
                    Learner::Feature(learner) => {
                        let noise = learner.noise(config.seed, 4);
                        (learner.apply(&moved, &batch, noise.as_deref()), Vec::new())
                    }
                    learner => learner.apply(&moved, &batch),
                };
                let found = aim.evaluate(&batch, stream, &updates).unwrap();
                found.sum / found.count
            };
            let step = 0.01 / square;
            let measured = (value(step) - value(-step)) / (2.0 * step);
            assert!(square > 1e-4, "{basis:?}: {square}");
            assert!(
                (measured - square).abs() < 2e-3 * square,
                "{basis:?} {objective:?}: {measured} {square}"
            );
        }
    }
}

/// The way of [`gradients_of_parameters_are_those_of_finite_differences`], with a dictionary between the blocks: updates below
/// it, above it, and on both sides. Half of its features are always active, the others never, so that none makes a jump or a
/// bend between the two values; `SplicedRows` is tested where they change.
#[test]
fn gradients_around_a_dictionary_are_those_of_finite_differences() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../pullback-model/tests/fixtures/tiny-llama.gguf");
    let model = Model::load(&path, &Device::flex()).unwrap();
    let mut parts = (*dictionary()).clone().into_parts();
    parts.selection = pullback_sae::Selection::Relu;
    for (feature, bias) in parts.encoder_bias.iter_mut().enumerate() {
        *bias = if feature % 2 == 0 { 60.0 } else { -60.0 };
    }
    // What the biases add is taken away again: the stream stays in its range.
    let d = parts.decoder_bias.len();
    for (feature, row) in parts.decoder.chunks_exact_mut(d).enumerate() {
        for (x, b) in row.iter_mut().zip(&mut parts.decoder_bias) {
            *x *= 0.1;
            if feature % 2 == 0 {
                *b -= 60.0 * *x;
            }
        }
    }
    let sae = Arc::new(Sae::new(parts).unwrap());
    for blocks in [vec![1], vec![0, 2], vec![2]] {
        for objective in [Objective::Distill, Objective::NextToken] {
            let first = blocks[0];
            let mut config = TrainConfig::of(
                Basis::Lora {
                    rank: 2,
                    alpha: 3.0,
                    matrices: vec!["q".to_owned(), "down".to_owned()],
                    blocks: blocks.clone(),
                },
                Site::resid_post(1),
                5,
            );
            config.objective = objective;
            config.around = true;
            let mut source = Source::new(&model, first, objective, false);
            source.teacher = Some(&model);
            source.around = (first > 1).then(|| (Arc::clone(&sae), 1));
            let samples = [sample("a sea", "arr", "no"), sample("old", "ahoy", "yes")];
            let prepared: Vec<Prepared> = samples
                .iter()
                .flat_map(|sample| prepare(&model, sample, objective, 64).unwrap())
                .collect();
            let refs: Vec<&Prepared> = prepared.iter().collect();
            let batch = Batch::new(&source, &refs, model.device()).unwrap();
            let units = typical_sizes(&source, &refs, || Ok(())).unwrap();
            let aim = Aim {
                leash: 0.0,
                around: (first <= 1).then_some((&*sae, 1)),
                ..aim(&model, &model, objective, first)
            };
            let (mut learner, mut parameters) =
                Learner::start(&config, &model, None, units).unwrap();
            let at = |number: usize| Step { number, of: 300 };
            for step in 0..4 {
                let found = learner
                    .gradient(&config, aim, &batch, &mut parameters, at(step))
                    .unwrap();
                parameters.step(&found.parts, step, 0.03);
            }
            let gradient = learner
                .gradient(&config, aim, &batch, &mut parameters, at(4))
                .unwrap()
                .parts;
            // Each side has a part of its own.
            assert!(gradient.iter().all(|part| part.iter().any(|&g| g != 0.0)));
            let square: f64 = gradient
                .iter()
                .flatten()
                .map(|&g| f64::from(g).powi(2))
                .sum();
            let value = |step: f64| {
                let mut moved = parameters.clone();
                for (part, g) in moved.values.iter_mut().zip(&gradient) {
                    for (x, g) in part.iter_mut().zip(g) {
                        *x += (step * f64::from(*g)) as f32;
                    }
                }
                let (stream, updates) = learner.apply(&moved, &batch);
                let found = aim.evaluate(&batch, stream, &updates).unwrap();
                found.sum / found.count
            };
            let step = 0.01 / square;
            let measured = (value(step) - value(-step)) / (2.0 * step);
            assert!(square > 1e-4, "{blocks:?}: {square}");
            assert!(
                (measured - square).abs() < 2e-3 * square,
                "{blocks:?} {objective:?}: {measured} {square}"
            );
        }
    }
}
