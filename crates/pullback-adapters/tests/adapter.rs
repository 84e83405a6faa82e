//! The adapter itself: its formula, its gradients through the model, what it leaves alone, its files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use bytemuck::cast_slice;
use common::base::{assert_close, assert_has, tiny, tiny_path, values};
use common::{ACTIVATIONS, Parts, act, random, usual};
use pullback_adapters::{ADAPTER_KIND, Activation, ResidualAdapter};
use pullback_artifact::{Manifest, PartialDir};
use pullback_model::{
    Edit, Input, Intervention, KeyValueCache, Model, ModelFiles, Replace, Rows, RunOptions, Site,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

fn bits<const D: usize>(tensor: Tensor<D>) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

#[test]
fn the_change_is_that_of_the_formula() {
    let (n, d, rank) = (37, 32, 5);
    let x: Vec<f32> = random(1, n * d).iter().map(|x| 5.0 * x).collect();
    let (_, parts) = usual(2, d, rank);
    for activation in ACTIVATIONS {
        let adapter = parts.adapter(activation, &Device::flex(), DType::F32);
        let tensor = Tensor::<2>::from_data(TensorData::new(x.clone(), [n, d]), &Device::flex());
        let hidden: Vec<f32> = x
            .chunks_exact(d)
            .flat_map(|x| parts.hidden(activation, x))
            .map(|h| h as f32)
            .collect();
        let change: Vec<f32> = x
            .chunks_exact(d)
            .flat_map(|x| parts.written(&parts.hidden(activation, x)))
            .map(|x| x as f32)
            .collect();
        assert_close(&values(adapter.hidden(tensor.clone())), &hidden, 2e-6);
        assert_close(&values(adapter.change(tensor.clone())), &change, 5e-6);
        // Two sequences of which the first has its rows from position 0 on.
        let rows = Rows::uniform(1, n, 0);
        let found = values(adapter.apply(tensor.clone(), &rows));
        let expected: Vec<f32> = x
            .iter()
            .zip(&change)
            .enumerate()
            .map(|(at, (x, c))| if at < d { *x } else { x + c })
            .collect();
        assert_close(&found, &expected, 5e-6);
        assert_eq!(found[..d], x[..d]);
        let later = Rows::uniform(1, n, 1);
        assert_ne!(values(adapter.apply(tensor, &later))[..d], x[..d]);
    }
    assert!((act(Activation::Gelu, 1.0) - 0.841_344_746_068_543).abs() < 1e-12);
}

#[test]
fn gradients_through_the_model_agree_with_finite_differences() {
    let files = ModelFiles::open(&tiny_path()).unwrap();
    let model = Model::from_files(files, &Device::flex(), DType::F64).unwrap();
    let (d, rank) = (32, 3);
    let ids = vec![5_u32, 60, 7, 100, 33, 9, 8, 120];
    let targets = [60_u32, 7, 100, 33, 9, 8, 120, 2];
    let device = Device::flex().autodiff();
    let loss_of = |adapter: ResidualAdapter| {
        let interventions = [Intervention::new(adapter.site, adapter.into())];
        let options = RunOptions {
            interventions: &interventions,
            device: Some(device.clone()),
            ..RunOptions::default()
        };
        let out = model.run(Input::uniform(ids.clone(), 2), &options).unwrap();
        model.cross_entropy(out.stream, &targets).unwrap().mean()
    };
    for activation in ACTIVATIONS {
        let parts = Parts::random(11, d, rank);
        let mut adapter = parts.adapter(activation, &device, DType::F64);
        adapter.w_in = adapter.w_in.require_grad();
        adapter.b_in = adapter.b_in.require_grad();
        adapter.w_out = adapter.w_out.require_grad();
        let grads = loss_of(adapter.clone()).backward();
        let numbers = |data: TensorData| data.iter::<f64>().collect::<Vec<f64>>();
        let found = [
            numbers(adapter.w_in.grad(&grads).unwrap().into_data()),
            numbers(adapter.b_in.grad(&grads).unwrap().into_data()),
            numbers(adapter.w_out.grad(&grads).unwrap().into_data()),
        ];
        let step = 1e-5;
        let mut largest = [0.0_f64; 3];
        for part in 0..3 {
            let places: Vec<usize> = if part == 1 {
                (0..rank).collect()
            } else {
                (0..rank * d).step_by(7).collect()
            };
            for at in places {
                let moved = |by: f64| {
                    let mut parts = parts.clone();
                    [&mut parts.w_in, &mut parts.b_in, &mut parts.w_out][part][at] += by;
                    loss_of(parts.adapter(activation, &device, DType::F64)).into_scalar::<f64>()
                };
                let measured = (moved(step) - moved(-step)) / (2.0 * step);
                let slope = found[part][at];
                assert!(
                    (slope - measured).abs() < 1e-8,
                    "{activation:?}, part {part}, place {at}: {slope} against {measured}"
                );
                largest[part] = largest[part].max(slope.abs());
            }
        }
        assert!(
            largest.iter().all(|&slope| slope > 1e-4),
            "{activation:?}: {largest:?} says nothing"
        );
    }
}

#[test]
fn an_adapter_that_writes_nothing_changes_no_bit() {
    let model = tiny();
    let (_, mut parts) = usual(3, 32, 4);
    parts.w_out.fill(0.0);
    let ids: Vec<u32> = (0..30).map(|i| 10 + i * 7 % 200).collect();
    let input = Input::uniform(ids, 3);
    let clean = model
        .run(input.clone(), &RunOptions::default())
        .unwrap()
        .stream;
    for activation in ACTIVATIONS {
        let adapter = parts.adapter(activation, &Device::flex(), DType::F32);
        let interventions = [Intervention::new(adapter.site, Arc::new(adapter))];
        let options = RunOptions {
            interventions: &interventions,
            ..RunOptions::default()
        };
        let changed = model.run(input.clone(), &options).unwrap().stream;
        assert_eq!(bits(changed), bits(clean.clone()));
    }
}

#[test]
fn the_first_position_of_each_sequence_is_left_alone_also_with_a_cache() {
    let model = tiny();
    let (adapter, _) = usual(3, 32, 4);
    let site = adapter.site;
    let ids: Vec<u32> = (0..24).map(|i| 10 + i * 11 % 200).collect();
    let interventions = [Intervention::new(site, Arc::new(adapter))];
    let record = [site];
    let run = |interventions: &[Intervention]| {
        let options = RunOptions {
            interventions,
            record: &record,
            ..RunOptions::default()
        };
        let input = Input::uniform(ids.clone(), 2);
        let mut out = model.run(input, &options).unwrap();
        (values(out.take(site).unwrap()), values(out.stream))
    };
    let (clean, changed) = (run(&[]), run(&interventions));
    for row in 0..24 {
        let span = row * 32..(row + 1) * 32;
        let untouched = row % 12 == 0;
        assert_eq!(
            clean.0[span.clone()] == changed.0[span.clone()],
            untouched,
            "row {row} at the site"
        );
        assert_eq!(
            clean.1[span.clone()] == changed.1[span],
            untouched,
            "row {row} at the end"
        );
    }
    // One sequence in pieces, as text is generated.
    let options = RunOptions {
        interventions: &interventions,
        ..RunOptions::default()
    };
    let whole = values(
        model
            .run(Input::uniform(ids.clone(), 1), &options)
            .unwrap()
            .stream,
    );
    let mut cache = KeyValueCache::new(3);
    let mut pieces = Vec::new();
    for piece in [&ids[..1], &ids[1..2], &ids[2..9], &ids[9..]] {
        pieces.extend(values(
            model
                .run_cached(piece, &options, &mut cache)
                .unwrap()
                .stream,
        ));
    }
    assert_close(&pieces, &whole, 1e-5);
}

/// An artifact with an adapter in it, and `change` made before its files are listed.
fn saved(adapter: &ResidualAdapter, out: &Path, change: impl Fn(&Path)) {
    let dir = PartialDir::open(out).unwrap();
    adapter.save(dir.path()).unwrap();
    change(dir.path());
    dir.finish(Manifest::new(ADAPTER_KIND, 0).with_site(adapter.site.to_string()))
        .unwrap();
}

fn write_weights(path: &Path, shapes: &[(&str, &[usize])]) {
    let zeros = vec![0.0_f32; 1024];
    let tensors: Vec<_> = shapes
        .iter()
        .map(|(name, shape)| {
            let size = shape.iter().product();
            (
                *name,
                TensorView::new(Dtype::F32, shape.to_vec(), cast_slice(&zeros[..size])).unwrap(),
            )
        })
        .collect();
    fs::write(
        path.join("adapter.safetensors"),
        safetensors::serialize(tensors, None).unwrap(),
    )
    .unwrap();
}

fn edit(path: &Path, from: &str, to: &str) {
    let path = path.join("adapter.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn what_was_saved_is_loaded_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (_, parts) = usual(3, 32, 4);
    for activation in ACTIVATIONS {
        let adapter = parts.adapter(activation, &Device::flex(), DType::F32);
        let out = dir.path().join(activation.name());
        saved(&adapter, &out, |_| ());
        let (loaded, manifest) = ResidualAdapter::load(&out).unwrap();
        assert_eq!(manifest.kind, ADAPTER_KIND);
        assert_eq!((loaded.site, loaded.activation), (adapter.site, activation));
        assert_eq!((loaded.rank(), loaded.d()), (4, 32));
        assert_eq!(bits(loaded.w_in), bits(adapter.w_in));
        assert_eq!(bits(loaded.b_in), bits(adapter.b_in));
        assert_eq!(bits(loaded.w_out), bits(adapter.w_out));
    }
}

#[test]
fn damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, _) = usual(3, 8, 2);
    let mut number = 0;
    let mut error_of = |change: &dyn Fn(&Path)| {
        number += 1;
        let out = dir.path().join(number.to_string());
        saved(&adapter, &out, change);
        ResidualAdapter::load(&out)
            .map(|_| ())
            .expect_err("a damaged adapter was loaded")
            .to_string()
    };
    let weights = "adapter.safetensors";
    let shapes = |w_in: &'static [usize], b_in: &'static [usize], w_out: &'static [usize]| {
        move |path: &Path| write_weights(path, &[("W_in", w_in), ("b_in", b_in), ("W_out", w_out)])
    };
    assert_has(
        &error_of(&shapes(&[8, 2], &[2], &[8, 2])),
        &[weights, "W_in", "[8, 2]", "[2, 8]"],
    );
    assert_has(
        &error_of(&shapes(&[2, 8], &[3], &[8, 2])),
        &[weights, "b_in", "[3]", "[2]"],
    );
    assert_has(
        &error_of(&shapes(&[2, 8], &[2], &[2, 8])),
        &[weights, "W_out", "[2, 8]", "[8, 2]"],
    );
    let error = error_of(&|path| write_weights(path, &[("W_in", &[2, 8]), ("W_out", &[8, 2])]));
    assert_has(&error, &[weights, "b_in"]);
    assert_has(
        &error_of(&|path| fs::write(path.join(weights), "short").unwrap()),
        &[weights],
    );
    assert_has(
        &error_of(&|path| fs::remove_file(path.join(weights)).unwrap()),
        &[weights],
    );
    assert_has(
        &error_of(&|path| fs::remove_file(path.join("adapter.json")).unwrap()),
        &["adapter.json"],
    );
    assert_has(
        &error_of(&|path| edit(path, "gelu", "tanh")),
        &["adapter.json", "tanh"],
    );
    assert_has(
        &error_of(&|path| edit(path, "hook_resid_post", "hook_nowhere")),
        &["adapter.json", "hook_nowhere"],
    );
    let other = dir.path().join("other");
    PartialDir::open(&other)
        .unwrap()
        .finish(Manifest::new("store", 0))
        .unwrap();
    assert_has(
        &ResidualAdapter::load(&other).unwrap_err().to_string(),
        &["store", ADAPTER_KIND],
    );
}

#[test]
fn an_adapter_that_contradicts_its_manifest_or_this_program_is_refused() {
    type Change<'a> = (&'a str, &'a dyn Fn(&Path));
    let dir = tempfile::tempdir().unwrap();
    let (adapter, _) = usual(3, 8, 2);
    let mut accepted = Vec::new();
    let changes: [Change<'_>; 3] = [
        ("another site than the manifest's", &|path| {
            edit(path, "blocks.1", "blocks.0");
        }),
        ("another first position than this program's", &|path| {
            edit(path, "\"first_position\": 1", "\"first_position\": 0");
        }),
        ("no hidden units", &|path| {
            edit(path, "\"rank\": 2", "\"rank\": 0");
            write_weights(
                path,
                &[("W_in", &[0, 8]), ("b_in", &[0]), ("W_out", &[8, 0])],
            );
        }),
    ];
    for (number, (name, change)) in changes.into_iter().enumerate() {
        let out = dir.path().join(number.to_string());
        saved(&adapter, &out, change);
        if ResidualAdapter::load(&out).is_ok() {
            accepted.push(name);
        }
    }
    assert!(accepted.is_empty(), "accepted: {accepted:?}");
}

#[test]
fn forward_mode_through_an_adapter_agrees_with_finite_differences() {
    let files = ModelFiles::open(&tiny_path()).unwrap();
    let model = Model::from_files(files, &Device::flex(), DType::F64).unwrap();
    let d = model.config().d_model;
    let ids = [5_u32, 60, 7, 100, 33];
    let (at, logits): (Site, Site) = (Site::resid_post(0), Site::logits());
    let numbers: Vec<f64> = (0..5 * d).map(|i| (i as f64 * 1.3).sin()).collect();
    let direction = |scale: f64| {
        let values: Vec<f64> = numbers.iter().map(|x| x * scale).collect();
        Tensor::<2>::from_data(
            TensorData::new(values, [5, d]),
            (&Device::flex(), DType::F64),
        )
    };
    for activation in ACTIVATIONS {
        let adapter = Parts::random(11, d, 3).adapter(activation, &Device::flex(), DType::F64);
        let site = adapter.site;
        let edit = Intervention::new(site, adapter.into());
        let slope = model
            .jvp(
                Input::tokens(&ids),
                at,
                direction(1.0),
                &[logits],
                std::slice::from_ref(&edit),
            )
            .unwrap()
            .take(logits)
            .unwrap();
        let moved = |step: f64| {
            let with = model.record(Input::tokens(&ids), &[at], &[]).unwrap()[&at].clone();
            let with = with + direction(step);
            let move_it = Intervention::new(at, Arc::new(Replace { with }));
            let edits = [move_it, edit.clone()];
            model
                .record(Input::tokens(&ids), &[logits], &edits)
                .unwrap()[&logits]
                .clone()
        };
        let measured = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        let worst = (slope - measured).abs().max().into_scalar::<f64>();
        assert!(worst < 1e-7, "{activation:?}: off by {worst}");
    }
}
