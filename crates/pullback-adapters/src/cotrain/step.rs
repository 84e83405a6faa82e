//! The joint loss of a batch and its gradients.

use std::collections::HashMap;

use burn::tensor::{DType, Tensor, TensorData};
use pullback_model::{Input, Model, RunOptions, Site};
use pullback_sae::{Companion, Met};

use super::optimizer::Learned;
use crate::AdapterError;
use crate::residual::values;

/// The loss of a batch and what follows from it.
pub(super) struct Joint {
    /// Mean cross-entropy, in nats a token.
    pub(super) loss: f64,
    /// What each dictionary met, without the gradients.
    pub(super) met: Vec<Met>,
    /// Gradient of the loss with the dictionaries' in each weight.
    pub(super) gradients: Vec<Vec<f32>>,
}

/// The dictionaries that grow with a model.
pub(super) struct Companions {
    pub(super) sites: Vec<Site>,
    /// One a site; made at the first batch.
    pub(super) of_sites: Vec<Companion>,
    /// Weight of the mean of their losses.
    pub(super) weight: f64,
}

/// `CE + weight · mean over sites of Σ‖u − û‖²/Σ‖u − ū‖²` and its gradient in all weights; each dictionary makes a step of
/// its own on the way. `start` makes a dictionary from the first activations it meets.
///
/// The dictionaries' losses are functions of recorded activations. Their gradients there are computed beside the graph and
/// enter it as constants, so that one backward pass carries both parts to the weights.
///
/// # Errors
/// The model refused the batch; a dictionary's loss is not finite.
pub(super) fn joint_step(
    model: &mut Model,
    weights: &[Learned],
    sequences: &[&[u32]],
    companions: Option<&mut Companions>,
    start: impl Fn(Site, &[f32], usize) -> Result<Companion, AdapterError>,
) -> Result<Joint, AdapterError> {
    let plain = if model.device().is_autodiff() {
        model.device().clone().inner()
    } else {
        model.device().clone()
    };
    let device = plain.clone().autodiff();
    let tracked: Vec<Tensor<1>> = weights
        .iter()
        .map(|weight| {
            let data = TensorData::new(weight.values.clone(), [weight.values.len()]);
            Tensor::<1>::from_data(data, (&device, DType::F32)).require_grad()
        })
        .collect();
    let names = weights.iter().map(|weight| weight.name);
    model.set_weights(names.zip(tracked.iter().cloned()))?;
    let inputs: Vec<&[u32]> = sequences.iter().map(|s| &s[..s.len() - 1]).collect();
    let targets: Vec<u32> = sequences.iter().flat_map(|s| &s[1..]).copied().collect();
    let sites = companions.as_ref().map_or(&[][..], |c| &c.sites[..]);
    let options = RunOptions {
        record: sites,
        ..RunOptions::default()
    };
    let out = model.run(Input::batch(&inputs), &options)?;
    let losses = model.cross_entropy(out.stream, &targets)?;
    let mut slope = losses.mean();
    let loss = f64::from(values(&slope).first().copied().unwrap_or(f32::NAN));
    let mut met = Vec::new();
    if let Some(companions) = companions {
        let lengths: Vec<usize> = inputs.iter().map(|ids| ids.len()).collect();
        let share = companions.weight / companions.sites.len() as f64;
        let mut recorded: HashMap<Site, Tensor<2>> = out.recorded;
        for number in 0..companions.sites.len() {
            let site = companions.sites[number];
            let Some(x) = recorded.remove(&site) else {
                continue;
            };
            let [rows, d] = x.dims();
            let all = values(&x);
            let seen = without_first(&all, &lengths, d);
            if companions.of_sites.len() == number {
                companions.of_sites.push(start(site, &seen, d)?);
            }
            let mut of_site = companions.of_sites[number].step(&seen)?;
            let gradient = std::mem::take(&mut of_site.gradient);
            met.push(of_site);
            // At weight zero nothing enters the graph, and every bit is that of a model by itself.
            if share > 0.0 {
                let scattered = with_first(&gradient, &lengths, d, share as f32);
                let constant = Tensor::<2>::from_data(
                    TensorData::new(scattered, [rows, d]),
                    (&device, DType::F32),
                );
                slope = slope + (x * constant).sum();
            }
        }
    }
    let grads = slope.backward();
    let gradients = tracked
        .iter()
        .zip(weights)
        .map(|(tensor, weight)| {
            let zeros = || vec![0.0; weight.values.len()];
            tensor.grad(&grads).map_or_else(zeros, |g| values(&g))
        })
        .collect();
    Ok(Joint {
        loss,
        met,
        gradients,
    })
}

/// The rows of sequences but the first of each, where the model may keep an attention sink that no dictionary is asked for.
fn without_first(x: &[f32], lengths: &[usize], d: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    let mut start = 0;
    for length in lengths {
        out.extend_from_slice(&x[(start + 1) * d..(start + length) * d]);
        start += length;
    }
    out
}

/// The same rows at their places, times a factor, with zeros at the first of each sequence.
fn with_first(x: &[f32], lengths: &[usize], d: usize, factor: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len() + lengths.len() * d);
    let mut start = 0;
    for length in lengths {
        out.extend(std::iter::repeat_n(0.0, d));
        let rows = &x[start * d..(start + length - 1) * d];
        out.extend(rows.iter().map(|x| x * factor));
        start += length - 1;
    }
    out
}
