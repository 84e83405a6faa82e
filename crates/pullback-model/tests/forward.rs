//! The forward pass, recordings, interventions and gradients against Hugging Face transformers (fixture
//! `tiny-llama.reference.safetensors`, made by `make_tiny_llama.py`) and against each other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use pullback_model::{
    AddVector, Edit, GenerateOptions, Input, Intervention, KeyValueCache, Model, ModelFiles, Place,
    Rows, RunOptions, Site, Zero,
};
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn tiny(name: &str) -> Model {
    Model::load(&fixture(name), &Device::flex()).unwrap()
}

struct Reference(Vec<u8>);

impl Reference {
    fn load() -> Self {
        Self(std::fs::read(fixture("tiny-llama.reference.safetensors")).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        bytemuck::pod_collect_to_vec(tensors.tensor(name).unwrap().data())
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let ids: Vec<i64> = bytemuck::pod_collect_to_vec(tensors.tensor(name).unwrap().data());
        ids.into_iter()
            .map(|id| u32::try_from(id).unwrap())
            .collect()
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let worst = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(worst <= tolerance, "off by {worst}");
}

fn tokens(ids: &[u32]) -> Input {
    Input::tokens(ids)
}

#[test]
fn logits_residual_streams_and_losses_are_those_of_transformers_in_both_layouts() {
    let reference = Reference::load();
    for name in ["tiny-llama.gguf", "tiny-llama"] {
        let model = tiny(name);
        for prompt in 0..3 {
            let ids = reference.ids(&format!("prompt{prompt}.ids"));
            let sites: Vec<Site> = std::iter::once(Site::embed())
                .chain((0..3).map(Site::resid_post))
                .collect();
            let options = RunOptions {
                record: &sites,
                ..RunOptions::default()
            };
            let mut out = model.run(tokens(&ids), &options).unwrap();
            let embed = values(out.take(Site::embed()).unwrap());
            assert_close(
                &embed,
                &reference.floats(&format!("prompt{prompt}.embed")),
                0.0,
            );
            for layer in 0..3 {
                let stream = values(out.take(Site::resid_post(layer)).unwrap());
                assert_close(
                    &stream,
                    &reference.floats(&format!("prompt{prompt}.resid_post.{layer}")),
                    1e-4,
                );
            }
            let logits = values(model.logits(out.stream.clone()));
            assert_close(
                &logits,
                &reference.floats(&format!("prompt{prompt}.logits")),
                1e-4,
            );
            let rows = out.stream.narrow(0, 0, ids.len() - 1);
            let losses = values(model.cross_entropy(rows, &ids[1..]).unwrap());
            let mean = losses.iter().sum::<f32>() / losses.len() as f32;
            assert_close(
                &[mean],
                &reference.floats(&format!("prompt{prompt}.loss")),
                1e-5,
            );
        }
    }
}

#[test]
fn gradients_through_the_layers_above_a_site_are_those_of_transformers() {
    let reference = Reference::load();
    let model = tiny("tiny-llama.gguf");
    for prompt in 0..3 {
        let ids = reference.ids(&format!("prompt{prompt}.ids"));
        let below = model
            .run(
                tokens(&ids),
                &RunOptions {
                    stop_at: Some(1),
                    ..RunOptions::default()
                },
            )
            .unwrap();
        let stream = Tensor::<2>::from_inner(below.stream).require_grad();
        let input = Input::residual(stream.clone(), 1, 1);
        let out = model.run(input, &RunOptions::default()).unwrap();
        let rows = out.stream.narrow(0, 0, ids.len() - 1);
        let grads = model
            .cross_entropy(rows, &ids[1..])
            .unwrap()
            .mean()
            .backward();
        let grad = values(stream.grad(&grads).unwrap());
        assert_close(
            &grad,
            &reference.floats(&format!("prompt{prompt}.grad_resid_post.0")),
            1e-5,
        );
    }
}

#[test]
fn the_gradient_at_every_site_agrees_with_finite_differences() {
    let files = ModelFiles::open(&fixture("tiny-llama.gguf")).unwrap();
    let model = Model::from_files(files, &Device::flex(), DType::F64).unwrap();
    let ids = [5_u32, 60, 7, 100, 33];
    let targets = [60_u32, 7, 100, 33, 2];
    let device = Device::flex().autodiff();
    for site in Site::all(model.config()) {
        // The loss is made from the last stream, and the logits have no part in that.
        if site == Site::logits() {
            continue;
        }
        let width = {
            let options = RunOptions {
                record: &[site],
                ..RunOptions::default()
            };
            let mut out = model.run(tokens(&ids), &options).unwrap();
            out.take(site).unwrap().dims()[1]
        };
        let loss = |vector: Tensor<1>| {
            let edit = Intervention::new(
                site,
                Arc::new(AddVector {
                    vector,
                    first_position: 1,
                }),
            );
            let interventions = [edit];
            let options = RunOptions {
                interventions: &interventions,
                device: Some(device.clone()),
                ..RunOptions::default()
            };
            let out = model.run(tokens(&ids), &options).unwrap();
            model.cross_entropy(out.stream, &targets).unwrap().mean()
        };
        let at = |values: Vec<f64>| {
            Tensor::<1>::from_data(TensorData::new(values, [width]), (&device, DType::F64))
        };
        let direction: Vec<f64> = (0..width).map(|i| ((i * 7 + 3) as f64).sin()).collect();
        let zero = at(vec![0.0; width]).require_grad();
        let grads = loss(zero.clone()).backward();
        let grad: Vec<f64> = zero
            .grad(&grads)
            .unwrap()
            .into_data()
            .iter::<f64>()
            .collect();
        let slope: f64 = grad.iter().zip(&direction).map(|(g, v)| g * v).sum();
        let step = 1e-5;
        let moved = |sign: f64| {
            let vector = direction.iter().map(|v| v * step * sign).collect();
            loss(at(vector)).into_scalar::<f64>()
        };
        let measured = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        assert!(
            (slope - measured).abs() < 1e-7,
            "{site}: {slope} against {measured}"
        );
        assert!(
            slope.abs() > 1e-9,
            "{site}: the change does not reach the loss"
        );
    }
}

#[test]
fn a_run_in_two_slices_is_the_run_in_one() {
    let model = tiny("tiny-llama.gguf");
    let ids: Vec<u32> = (0..20).map(|i| 10 + i * 7 % 200).collect();
    let input = Input::uniform(ids.clone(), 4);
    let whole = values(
        model
            .run(input.clone(), &RunOptions::default())
            .unwrap()
            .stream,
    );
    for layer in 0..=3 {
        let below = model
            .run(
                input.clone(),
                &RunOptions {
                    stop_at: Some(layer),
                    ..RunOptions::default()
                },
            )
            .unwrap();
        let rest = Input::residual(below.stream, 4, layer);
        let above = model.run(rest, &RunOptions::default()).unwrap();
        assert_eq!(values(above.stream), whole, "cut before block {layer}");
    }
    // Sequences of a batch do not see each other.
    let alone = model
        .run(tokens(&ids[5..10]), &RunOptions::default())
        .unwrap();
    let width = model.config().d_model;
    assert_close(&values(alone.stream), &whole[5 * width..10 * width], 1e-5);
}

#[test]
fn a_cached_run_is_the_recomputed_one_also_under_interventions() {
    let model = tiny("tiny-llama.gguf");
    let ids: Vec<u32> = (0..17).map(|i| 10 + i * 11 % 200).collect();
    let vector = Tensor::from_data(TensorData::new(vec![0.3_f32; 32], [32]), &Device::flex());
    let interventions = [Intervention::new(
        Site::resid_post(1),
        Arc::new(AddVector {
            vector,
            first_position: 3,
        }),
    )];
    for interventions in [&[][..], &interventions[..]] {
        let options = RunOptions {
            interventions,
            ..RunOptions::default()
        };
        let whole = values(model.run(tokens(&ids), &options).unwrap().stream);
        let mut cache = KeyValueCache::new(3);
        let mut pieces = Vec::new();
        for piece in [&ids[..2], &ids[2..9], &ids[9..10], &ids[10..]] {
            pieces.extend(values(
                model
                    .run_cached(piece, &options, &mut cache)
                    .unwrap()
                    .stream,
            ));
        }
        assert_eq!(cache.len(), 17);
        assert_close(&pieces, &whole, 1e-4);
    }
}

#[test]
fn greedy_text_follows_the_largest_logit_and_stops_where_told() {
    let model = tiny("tiny-llama.gguf");
    let ids = [5_u32, 60, 7];
    let options = GenerateOptions {
        max_tokens: 12,
        ..GenerateOptions::default()
    };
    let text = model.generate(&ids, &options, |_| true).unwrap();
    let mut so_far = ids.to_vec();
    for &next in &text {
        let logits = model.next_logits(&so_far, &[]).unwrap();
        assert_eq!(model.rank_next(&logits, 1)[0].id, next);
        so_far.push(next);
    }
    assert_eq!(text.len(), 12);
    let stop = GenerateOptions {
        stop: vec![text[4]],
        ..options
    };
    let first = text.iter().position(|id| *id == text[4]).unwrap();
    assert_eq!(
        model.generate(&ids, &stop, |_| true).unwrap(),
        text[..first]
    );
}

#[test]
fn text_ends_where_the_context_does() {
    let model = tiny("tiny-llama.gguf");
    let n_ctx = model.config().n_ctx;
    let prompt = vec![5; n_ctx - 3];
    let options = GenerateOptions {
        max_tokens: 1000,
        ..GenerateOptions::default()
    };
    // Three positions are left to be filled, and the last one still says what comes next.
    let text = model.generate(&prompt, &options, |_| true).unwrap();
    assert_eq!(text.len(), 4);
}

struct Double;

impl Edit for Double {
    fn apply(&self, x: Tensor<2>, _rows: &Rows) -> Tensor<2> {
        x * 2.0
    }

    fn describe(&self) -> String {
        "doubling".to_owned()
    }
}

#[test]
fn interventions_compose_in_the_order_given() {
    let model = tiny("tiny-llama.gguf");
    let site = Site::resid_post(0);
    let vector = Tensor::from_data(TensorData::new(vec![1.0_f32; 32], [32]), &Device::flex());
    let add = Intervention::new(
        site,
        Arc::new(AddVector {
            vector,
            first_position: 0,
        }),
    );
    let double = Intervention::new(site, Arc::new(Double));
    let at_site = |interventions: &[Intervention]| {
        let options = RunOptions {
            interventions,
            record: &[site],
            stop_at: Some(1),
            ..RunOptions::default()
        };
        values(
            model
                .run(tokens(&[9, 8, 7]), &options)
                .unwrap()
                .take(site)
                .unwrap(),
        )
    };
    let clean = at_site(&[]);
    let expected: Vec<f32> = clean.iter().map(|x| (x + 1.0) * 2.0).collect();
    assert_eq!(at_site(&[add.clone(), double.clone()]), expected);
    let expected: Vec<f32> = clean.iter().map(|x| x * 2.0 + 1.0).collect();
    assert_eq!(at_site(&[double, add]), expected);
    let zero = Intervention::new(site, Arc::new(Zero { first_position: 1 }));
    let zeroed = at_site(&[zero]);
    assert_eq!(zeroed[..32], clean[..32]);
    assert!(zeroed[32..].iter().all(|&x| x == 0.0));
}

#[test]
fn a_hook_that_would_never_fire_is_an_error() {
    let model = tiny("tiny-llama.gguf");
    let run =
        |options: &RunOptions<'_>| model.run(tokens(&[1, 2]), options).unwrap_err().to_string();
    let site = Site::resid_post(2);
    let error = run(&RunOptions {
        record: &[site],
        stop_at: Some(2),
        ..RunOptions::default()
    });
    assert!(
        error.contains("blocks.2.hook_resid_post is not reached"),
        "{error}"
    );
    let error = run(&RunOptions {
        record: &[Site::resid_post(3)],
        ..RunOptions::default()
    });
    assert!(
        error.contains("the model's blocks are blocks.0 to blocks.2"),
        "{error}"
    );
    let error = run(&RunOptions {
        record: &[Site::final_normalized()],
        stop_at: Some(3),
        ..RunOptions::default()
    });
    assert!(error.contains("not reached"), "{error}");
    assert!(Site::in_block(0, Place::Embed).is_err());
}

#[test]
fn inputs_that_do_not_fit_are_refused_in_words() {
    let model = tiny("tiny-llama.gguf");
    let refused = |ids: Vec<u32>, batch| {
        let input = Input::uniform(ids, batch);
        model
            .run(input, &RunOptions::default())
            .unwrap_err()
            .to_string()
    };
    assert!(refused(vec![], 1).contains("do not divide"));
    assert!(refused(vec![1, 2, 3], 2).contains("do not divide"));
    assert!(refused(vec![100_000], 1).contains("token id 100000"));
    let too_long = model.config().n_ctx + 1;
    assert!(refused(vec![1; too_long], 1).contains("context is"));
}

#[test]
fn smollm2_says_paris() {
    let Some(path) = real_model() else { return };
    let model = Model::load(&path, &Device::flex()).unwrap();
    let ids = model
        .tokenizer()
        .encode("The capital of France is", true)
        .unwrap();
    assert_eq!(ids, [504, 3575, 282, 4649, 314]);
    let logits = model.next_logits(&ids, &[]).unwrap();
    let best = model.rank_next(&logits, 5);
    assert_eq!(
        best.iter().map(|next| next.id).collect::<Vec<_>>(),
        [7042, 260, 4528, 2250, 1315]
    );
    assert_eq!(best[0].token, " Paris");
    assert!((best[0].logit - 17.371).abs() < 0.005, "{}", best[0].logit);
}

/// SmolLM2 where `pullback pull` or `PULLBACK_TEST_GGUF` put it; these tests are left out without it.
fn real_model() -> Option<PathBuf> {
    let cached = pullback_artifact::Fetcher::from_env()
        .ok()
        .and_then(|fetcher| {
            let entry = fetcher.catalogue.find("smollm2-135m-instruct").ok()?;
            Some(fetcher.cache.path_of(entry))
        });
    std::env::var_os("PULLBACK_TEST_GGUF")
        .map(PathBuf::from)
        .or(cached)
        .filter(|path| path.exists())
}
