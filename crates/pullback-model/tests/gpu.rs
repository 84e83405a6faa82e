//! The model on the graphics card: against Hugging Face transformers, with the fixture and the tolerances of
//! `forward.rs`, and each operation against the fused one of the CPU. A software driver will do.
#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, DeviceKind, Tensor, TensorData};
use pullback_kernels::fused::{self, Activation, AttentionSpec, RotarySpec, RotaryTable, Span};
use pullback_model::{Input, Model, RunOptions, Site};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;

fn gpu() -> Device {
    Device::wgpu(DeviceKind::DefaultDevice)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn reference(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(fixture("tiny-llama.reference.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    bytemuck::pod_collect_to_vec(tensors.tensor(name).unwrap().data())
}

fn reference_ids(name: &str) -> Vec<u32> {
    let bytes = std::fs::read(fixture("tiny-llama.reference.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let ids: Vec<i64> = bytemuck::pod_collect_to_vec(tensors.tensor(name).unwrap().data());
    ids.into_iter()
        .map(|id| u32::try_from(id).unwrap())
        .collect()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(expected.iter().any(|&value| value != 0.0));
    assert!(found.iter().all(|value| value.is_finite()));
    found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    let worst = worst(found, expected);
    assert!(worst <= tolerance, "off by {worst}");
}

fn tokens(ids: &[u32]) -> Input {
    Input::tokens(ids)
}

#[test]
fn logits_residual_streams_and_losses_are_those_of_transformers() {
    let model = Model::load(&fixture("tiny-llama.gguf"), &gpu()).unwrap();
    assert_ne!(
        format!("{:?}", model.device()),
        format!("{:?}", Device::flex())
    );
    for prompt in 0..3 {
        let ids = reference_ids(&format!("prompt{prompt}.ids"));
        let sites: Vec<Site> = std::iter::once(Site::embed())
            .chain((0..3).map(Site::resid_post))
            .collect();
        let options = RunOptions {
            record: &sites,
            ..RunOptions::default()
        };
        let mut out = model.run(tokens(&ids), &options).unwrap();
        let expected = |what: &str| reference(&format!("prompt{prompt}.{what}"));
        let embed = values(out.take(Site::embed()).unwrap());
        assert_close(&embed, &expected("embed"), 0.0);
        for layer in 0..3 {
            let stream = values(out.take(Site::resid_post(layer)).unwrap());
            assert_close(&stream, &expected(&format!("resid_post.{layer}")), 1e-4);
        }
        let logits = values(model.logits(out.stream.clone()));
        assert_close(&logits, &expected("logits"), 1e-4);
        let rows = out.stream.narrow(0, 0, ids.len() - 1);
        let losses = values(model.cross_entropy(rows, &ids[1..]).unwrap());
        let mean = losses.iter().sum::<f32>() / losses.len() as f32;
        assert_close(&[mean], &expected("loss"), 1e-5);
    }
}

#[test]
fn gradients_through_the_layers_above_a_site_are_those_of_transformers() {
    let model = Model::load(&fixture("tiny-llama.gguf"), &gpu()).unwrap();
    for prompt in 0..3 {
        let ids = reference_ids(&format!("prompt{prompt}.ids"));
        let options = RunOptions {
            stop_at: Some(1),
            ..RunOptions::default()
        };
        let below = model.run(tokens(&ids), &options).unwrap();
        let stream = Tensor::<2>::from_inner(below.stream).require_grad();
        let input = Input::residual(stream.clone(), 1, 1);
        let out = model.run(input, &RunOptions::default()).unwrap();
        let rows = out.stream.narrow(0, 0, ids.len() - 1);
        let losses = model.cross_entropy(rows, &ids[1..]).unwrap();
        let grads = losses.mean().backward();
        let grad = values(stream.grad(&grads).unwrap());
        assert_close(
            &grad,
            &reference(&format!("prompt{prompt}.grad_resid_post.0")),
            1e-5,
        );
    }
}

#[test]
fn greedy_text_is_that_of_the_cpu() {
    use pullback_model::GenerateOptions;
    let ids = reference_ids("prompt0.ids");
    let text = |device: &Device| {
        let model = Model::load(&fixture("tiny-llama.gguf"), device).unwrap();
        let options = GenerateOptions {
            max_tokens: 20,
            ..GenerateOptions::default()
        };
        model.generate(&ids, &options, |_| true).unwrap()
    };
    // Steps of one query over a cache of keys, which a run over a whole prompt has not.
    let expected = text(&Device::flex());
    assert!(expected.len() > 5);
    assert_eq!(text(&gpu()), expected);
}

/// One operation on the same numbers, on the CPU with its fused kernel and on the graphics card: the values, and the
/// gradient of a random linear functional of them in every input. The tolerances are those of the kernels' own test
/// of `f32`.
fn compare<const N: usize, const D: usize>(
    seed: u64,
    shapes: [[usize; 2]; N],
    operation: impl Fn([Tensor<2>; N]) -> Tensor<D>,
) {
    let mut source = ChaCha8Rng::seed_from_u64(seed);
    let mut numbers = |count: usize| -> Vec<f32> {
        (0..count)
            .map(|_| source.random_range(-1.5_f32..1.5))
            .collect()
    };
    let inputs: Vec<Vec<f32>> = shapes
        .iter()
        .map(|shape| numbers(shape.iter().product()))
        .collect();
    let mut functional: Option<Vec<f32>> = None;
    let mut results: Vec<Vec<Vec<f32>>> = Vec::new();
    for device in [Device::flex().autodiff(), gpu().autodiff()] {
        let mut next = inputs.iter().zip(shapes);
        let tensors: [Tensor<2>; N] = std::array::from_fn(|_| {
            let (values, shape) = next.next().unwrap();
            Tensor::from_data(TensorData::new(values.clone(), shape), &device).require_grad()
        });
        let out = operation(tensors.clone());
        let weights = functional.get_or_insert_with(|| numbers(out.dims().iter().product()));
        let weights = TensorData::new(weights.clone(), out.dims());
        let weights = Tensor::<D>::from_data(weights, &device);
        let grads = (out.clone() * weights).sum().backward();
        let mut found = vec![values(out)];
        found.extend(
            tensors
                .iter()
                .map(|input| values(input.grad(&grads).unwrap())),
        );
        results.push(found);
    }
    for (i, (found, expected)) in results[1].iter().zip(&results[0]).enumerate() {
        let tolerance = if i == 0 { 2e-5 } else { 2e-4 };
        let off = worst(found, expected);
        assert!(off < tolerance, "values (0) or gradient {i}: off by {off}");
    }
}

#[test]
fn linear() {
    for rows in [1, 4, 70] {
        compare(1, [[rows, 33], [130, 33]], |[x, w]| fused::linear(x, w));
    }
}

#[test]
fn rms_norm() {
    compare(2, [[67, 50], [1, 50]], |[x, w]| {
        fused::rms_norm(x, w.squeeze_dim(0), 1e-5)
    });
}

#[test]
fn layer_norm() {
    compare(4, [[67, 50], [1, 50], [1, 50]], |[x, w, b]| {
        fused::layer_norm(x, w.squeeze_dim(0), b.squeeze_dim(0), 1e-5)
    });
}

#[test]
fn rotary() {
    for turning in [8, 6] {
        let frequencies: Vec<f64> = (0..turning / 2)
            .map(|pair| 1000f64.powf(-2.0 * f64::from(pair) / f64::from(turning)))
            .collect();
        let spec = RotarySpec {
            table: Arc::new(RotaryTable::new(12, &frequencies)),
            positions: (0..10).map(|row| 7 + row % 5).collect(),
            d_head: 8,
        };
        compare(3, [[10, 24]], |[x]| fused::rotary(x, spec.clone()));
    }
}

#[test]
fn attention() {
    for (window, softcap) in [(None, None), (Some(20), Some(1.5))] {
        let spans = [(70, 70), (1, 9), (5, 40)];
        let spec = AttentionSpec {
            sequences: spans
                .iter()
                .map(|&(queries, keys)| Span { queries, keys })
                .collect(),
            heads: 4,
            kv_heads: 2,
            d_head: 6,
            scale: 0.4,
            window,
            softcap,
        };
        compare(5, [[76, 24], [119, 12], [119, 12]], |[q, k, v]| {
            fused::attention(q, k, v, spec.clone())
        });
    }
}

#[test]
fn activations() {
    for kind in [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
    ] {
        compare(6, [[40, 37], [40, 37]], |[g, u]| fused::gated(g, u, kind));
        compare(7, [[40, 37]], |[x]| fused::activate(x, kind));
    }
}

#[test]
fn logits_of_every_family_are_those_of_the_processor() {
    for family in [
        "llama",
        "mistral",
        "gpt2",
        "gpt_neox",
        "gpt_neox_sequential",
        "gemma2",
        "gemma3_text",
        "qwen2",
        "qwen3",
    ] {
        let path = fixture("families").join(family);
        let logits = |device: &Device| {
            let model = Model::load(&path, device).unwrap();
            let input = Input::batch(&[&[3, 11, 7, 20, 5, 8, 9, 30], &[9, 2, 14]]);
            let site = Site::logits();
            values(model.record(input, &[site], &[]).unwrap()[&site].clone())
        };
        assert_close(&logits(&gpu()), &logits(&Device::flex()), 1e-4);
    }
}

#[test]
fn cross_entropy() {
    let targets: Arc<[u32]> = (0..150).map(|i| (i * 7) % 41).collect();
    compare(7, [[150, 12], [41, 12]], |[x, w]| {
        fused::cross_entropy(x, w, Arc::clone(&targets))
    });
}
