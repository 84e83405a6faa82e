//! The gradient of the joint loss against finite differences, through model and dictionaries.

use burn::tensor::{DType, Device};
use pullback_model::{Model, ModelFiles, NewModel, Site, Weights};
use pullback_sae::{Companion, InputNorm, KindConfig, TrainConfig};

use super::optimizer::Learned;
use super::step::{Companions, joint_step};
use crate::AdapterError;

const WEIGHT: f64 = 2.0;

fn companions(sites: &[Site]) -> Companions {
    Companions {
        sites: sites.to_vec(),
        of_sites: Vec::new(),
        weight: WEIGHT,
    }
}

/// The same dictionaries each time, whatever the activations: those that the first weights gave.
fn start(x: &[f32], d: usize) -> Result<Companion, AdapterError> {
    let config = TrainConfig {
        aux_coefficient: 0.0,
        input_norm: InputNorm::ConstantNorm,
        ..TrainConfig::new(24, KindConfig::TopK { k: 24 }, 3)
    };
    Ok(Companion::start(&config, 10, x, d)?)
}

/// In `f32`, in which training runs. Along its gradient `g` the loss changes by `‖g‖²` for a unit; a change of 0.02, where
/// the loss is rounded to 1e-6, allows 1e-4 of that; curvature is of second order, and features that begin or cease to be
/// active bend the loss but do not break it, since all are taken (`k` is their number). The bound is 5e-3.
#[test]
fn the_gradient_of_the_joint_loss_is_that_of_finite_differences() {
    let dir = tempfile::tempdir().unwrap();
    let new = NewModel {
        d_model: 16,
        n_layers: 2,
        n_heads: 2,
        d_mlp: 24,
        n_ctx: 16,
        vocabulary: 262,
        seed: 5,
    };
    let text = "the sea and the wind, the sea and the ship, the wind and the captain of the ship";
    new.create([text].into_iter(), dir.path()).unwrap();
    let files = ModelFiles::open(dir.path()).unwrap();
    let ids = files.tokenizer.encode(text, false).unwrap();
    let sequences: Vec<&[u32]> = ids.chunks_exact(8).collect();
    assert!(sequences.len() > 3);
    let mut model =
        Model::with_weights(files, &Device::flex(), DType::F32, Weights::Expanded).unwrap();
    let weights: Vec<Learned> = model
        .weights()
        .into_iter()
        .map(|(name, values)| Learned::new(name, values))
        .collect();
    let sites = [Site::resid_post(0), Site::resid_post(1)];
    // The dictionaries of the start are kept by the activations that they were made from.
    let mut firsts: Vec<Vec<f32>> = Vec::new();
    {
        let made = std::cell::RefCell::new(&mut firsts);
        let start = |_: Site, x: &[f32], d: usize| {
            made.borrow_mut().push(x.to_vec());
            start(x, d)
        };
        let mut at = companions(&sites);
        joint_step(&mut model, &weights, &sequences, Some(&mut at), start).unwrap();
    }
    let again = |site: Site, _: &[f32], d: usize| {
        let number = sites.iter().position(|&own| own == site).unwrap();
        start(&firsts[number], d)
    };
    let mut joint = |weights: &[Learned]| {
        let mut at = companions(&sites);
        joint_step(&mut model, weights, &sequences, Some(&mut at), again).unwrap()
    };
    let found = joint(&weights);
    let squares = found
        .gradients
        .iter()
        .flatten()
        .map(|&g| f64::from(g).powi(2));
    let square: f64 = squares.sum();
    assert!(square > 1e-2, "{square}");
    let mut value = |by: f64| {
        let mut moved = weights.clone();
        for (weight, gradient) in moved.iter_mut().zip(&found.gradients) {
            for (x, g) in weight.values.iter_mut().zip(gradient) {
                *x += (by * f64::from(*g)) as f32;
            }
        }
        let joint = joint(&moved);
        let shares = joint.met.iter().map(|met| met.unexplained);
        joint.loss + WEIGHT * shares.sum::<f64>() / sites.len() as f64
    };
    let step = 0.01 / square;
    let measured = (value(step) - value(-step)) / (2.0 * step);
    assert!(
        (measured - square).abs() < 5e-3 * square,
        "{measured} {square}"
    );
    // The dictionaries' part is not small beside the other.
    let plain = joint_step(&mut model, &weights, &sequences, None, again).unwrap();
    let parts = plain.gradients.iter().zip(&found.gradients);
    let other: f64 = parts
        .flat_map(|(a, b)| a.iter().zip(b))
        .map(|(a, b)| f64::from(a - b).powi(2))
        .sum();
    assert!(other > 0.05 * square, "{other} {square}");
    assert_eq!(plain.loss, found.loss);
    assert_eq!(found.met.len(), 2);
}
