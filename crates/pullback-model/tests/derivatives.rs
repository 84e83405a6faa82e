//! Derivatives in both directions, at every site of every family, in double precision: forward mode against finite
//! differences, and reverse mode as its adjoint.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use pullback_model::{
    AddVector, Edit, Input, Intervention, Model, ModelFiles, ProjectOut, Rows, Scale, Site,
};

const FAMILIES: [&str; 9] = [
    "llama",
    "mistral",
    "gpt2",
    "gpt_neox",
    "gpt_neox_sequential",
    "gemma2",
    "gemma3_text",
    "qwen2",
    "qwen3",
];

fn family(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/families")
        .join(name);
    let files = ModelFiles::open(&path).unwrap();
    Model::from_files(files, &Device::flex(), DType::F64).unwrap()
}

/// Numbers without a pattern, between −1 and 1.
fn numbers(dims: [usize; 2], phase: f64) -> Tensor<2> {
    let values: Vec<f64> = (0..dims[0] * dims[1])
        .map(|i| (i as f64 * 1.7 + phase).sin())
        .collect();
    Tensor::from_data(TensorData::new(values, dims), (&Device::flex(), DType::F64))
}

fn values(x: &Tensor<2>) -> Vec<f64> {
    x.to_data().iter::<f64>().collect()
}

fn dot(a: &Tensor<2>, b: &Tensor<2>) -> f64 {
    let (a, b) = (values(a), values(b));
    a.iter()
        .zip(&b)
        // A hidden score does not change.
        .filter(|(_, b)| b.is_finite())
        .map(|(a, b)| a * b)
        .sum()
}

/// Adds a tensor of the activation's own shape.
struct Add(Tensor<2>);

impl Edit for Add {
    fn apply(&self, x: Tensor<2>, _rows: &Rows) -> Tensor<2> {
        x + self.0.clone()
    }

    fn describe(&self) -> String {
        "adding a tensor".to_owned()
    }
}

/// Two texts of different lengths.
fn texts() -> Input {
    Input::batch(&[&[3, 11, 7, 20, 5], &[9, 2, 14]])
}

/// The sites that a change at one site can reach: from the site on, up to the logits.
fn later(model: &Model, site: Site) -> Vec<Site> {
    let all = model.config().sites();
    let first = all.iter().position(|&s| s == site).unwrap();
    all[first..].to_vec()
}

fn forward_mode_agrees_with_finite_differences(name: &str) {
    let model = family(name);
    let logits = Site::logits();
    for site in model.config().sites() {
        let shape = model.record(texts(), &[site], &[]).unwrap()[&site].dims();
        let direction = numbers(shape, 0.3);
        let out = model
            .jvp(texts(), site, direction.clone(), &[logits], &[])
            .unwrap();
        let slope = out.tangents[&logits].clone();
        let step = 1e-5;
        let at = |sign: f64| {
            let moved = Intervention::new(site, Arc::new(Add(direction.clone() * (sign * step))));
            model.record(texts(), &[logits], &[moved]).unwrap()[&logits].clone()
        };
        let measured = (at(1.0) - at(-1.0)) / (2.0 * step);
        let worst = values(&(slope.clone() - measured))
            .into_iter()
            .fold(0.0, |worst: f64, x| worst.max(x.abs()));
        let size = values(&slope)
            .into_iter()
            .fold(1.0, |s: f64, x| s.max(x.abs()));
        assert!(
            worst < 1e-6 * size,
            "{name}, {site}: off by {worst} of {size}"
        );
        // Pre-softmax numbers of single-token texts and the like aside, something must move.
        assert!(
            values(&slope).iter().any(|x| x.abs() > 1e-9),
            "{name}, {site}: nothing moves"
        );
    }
}

fn reverse_mode_is_the_adjoint_of_forward_mode(name: &str) {
    let model = family(name);
    let sites = model.config().sites();
    // From the first site to every other, and from every site to the logits.
    let embed = Site::embed();
    let shapes = model.record(texts(), &sites, &[]).unwrap();
    let forward = numbers(shapes[&embed].dims(), 1.1);
    let mut moved = model
        .jvp(texts(), embed, forward.clone(), &later(&model, embed), &[])
        .unwrap();
    for &site in &sites {
        if site.to_string() == "hook_pos_embed" {
            continue;
        }
        let u = numbers(shapes[&site].dims(), 2.3);
        let u = u.mask_fill(shapes[&site].clone().is_inf(), 0.0);
        let back = model.vjp(texts(), &[embed], site, u.clone(), &[]).unwrap();
        let (a, b) = (
            dot(&u, &moved.take(site).unwrap()),
            dot(&forward, &back[&embed]),
        );
        assert!(
            (a - b).abs() < 1e-9 * a.abs().max(1.0),
            "{name}, to {site}: {a} against {b}"
        );
    }
    let u = numbers(shapes[&Site::logits()].dims(), 0.9);
    let back = model
        .vjp(texts(), &sites, Site::logits(), u.clone(), &[])
        .unwrap();
    for &site in &sites {
        let direction = numbers(shapes[&site].dims(), 0.2);
        let mut out = model
            .jvp(texts(), site, direction.clone(), &[Site::logits()], &[])
            .unwrap();
        let (a, b) = (
            dot(&u, &out.take(Site::logits()).unwrap()),
            dot(&direction, &back[&site]),
        );
        assert!(
            (a - b).abs() < 1e-9 * a.abs().max(1.0),
            "{name}, from {site}: {a} against {b}"
        );
    }
}

#[test]
fn forward_mode_at_every_site_of_every_family() {
    for name in FAMILIES {
        forward_mode_agrees_with_finite_differences(name);
    }
}

#[test]
fn reverse_mode_between_all_sites_of_every_family() {
    for name in FAMILIES {
        reverse_mode_is_the_adjoint_of_forward_mode(name);
    }
}

#[test]
fn derivatives_pass_through_edits() {
    let model = family("qwen3");
    let at: Site = "0.resid_post".parse().unwrap();
    let edited: Site = "1.mlp_out".parse().unwrap();
    let width = model.config().d_model;
    let vector = Tensor::<1>::from_data(
        TensorData::new((0..width).map(|i| (i as f64).cos()).collect(), [width]),
        (&Device::flex(), DType::F64),
    );
    let edits: [Arc<dyn Edit>; 3] = [
        Arc::new(AddVector {
            vector: vector.clone(),
            first_position: 0,
        }),
        Arc::new(Scale(0.4)),
        Arc::new(ProjectOut { direction: vector }),
    ];
    for edit in edits {
        let edits = [
            Intervention::new(edited, edit).at_positions(pullback_model::Positions::Range(1..3))
        ];
        let direction = numbers([8, width], 0.3);
        let mut out = model
            .jvp(texts(), at, direction.clone(), &[Site::logits()], &edits)
            .unwrap();
        let slope = out.take(Site::logits()).unwrap();
        let step = 1e-5;
        let moved = |sign: f64| {
            let add = Intervention::new(at, Arc::new(Add(direction.clone() * (sign * step))));
            let all = [edits[0].clone(), add];
            model.record(texts(), &[Site::logits()], &all).unwrap()[&Site::logits()].clone()
        };
        let measured = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        for (a, b) in values(&slope).iter().zip(values(&measured)) {
            assert!((a - b).abs() < 1e-6 * b.abs().max(1.0), "{a} against {b}");
        }
    }
}

#[test]
fn what_has_no_derivative_says_so() {
    let model = family("llama");
    let site = Site::resid_post(0);
    let run = |direction: Tensor<2>, edits: &[Intervention]| {
        model
            .jvp(texts(), site, direction, &[Site::logits()], edits)
            .unwrap_err()
            .to_string()
    };
    let width = model.config().d_model;
    let message = run(numbers([7, width], 0.0), &[]);
    assert!(
        message.contains("the direction at blocks.0.hook_resid_post has the shape"),
        "{message}"
    );
    let add = |at: Site| Intervention::new(at, Arc::new(Add(numbers([8, width], 0.0))));
    let message = run(numbers([8, width], 0.0), &[add(Site::resid_post(1))]);
    assert!(
        message.contains("at blocks.1.hook_resid_post has no forward derivative"),
        "{message}"
    );
    // Before the direction nothing moves, so an edit there needs no derivative.
    let before = add("0.mlp_out".parse().unwrap());
    let out = model.jvp(
        texts(),
        site,
        numbers([8, width], 0.0),
        &[Site::logits()],
        &[before],
    );
    assert!(out.is_ok());
}
