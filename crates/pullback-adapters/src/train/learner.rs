//! An adapter in training: what its parameters are, what they do to a batch, and how a gradient reaches them.

mod feature;
mod lora;
mod residual;

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use pullback_model::{Model, WeightUpdate};
use pullback_sae::Sae;

use self::feature::FeatureLearner;
use self::lora::LoraLearner;
use self::residual::ResidualLearner;
use super::batch::{Aim, Batch, Evaluated};
use super::config::{Basis, TrainConfig};
use super::state::Parameters;
use crate::feature::map::Support;
use crate::{Adapter, AdapterError};

/// Sizes that parameters are measured in.
#[derive(Clone, Copy)]
pub(crate) struct Units {
    /// Root mean square of a coordinate of the stream.
    pub(crate) stream: f64,
    /// Mean of the active codes.
    pub(crate) code: f64,
    /// Active codes a token.
    pub(crate) active: f64,
}

/// An adapter in training, of any kind.
pub(crate) enum Learner {
    Residual(ResidualLearner),
    Feature(FeatureLearner),
    Lora(LoraLearner),
}

/// The gradient of a batch's objective.
pub(crate) struct Gradient {
    pub(crate) evaluated: Evaluated,
    /// One vector a part of the parameters.
    pub(crate) parts: Vec<Vec<f32>>,
}

impl Learner {
    /// The start of training, and its parameters: a change of nothing.
    ///
    /// # Errors
    /// The parts do not fit each other.
    pub(crate) fn start(
        config: &TrainConfig,
        model: &Model,
        dictionary: Option<&Arc<Sae>>,
        units: Units,
    ) -> Result<(Self, Parameters), AdapterError> {
        let missing = || {
            AdapterError::Option(format!(
                "the basis {} needs a dictionary: give it with --sae",
                config.basis.name()
            ))
        };
        Ok(match &config.basis {
            Basis::Residual { rank, activation } => {
                let d = model.config().d_model;
                let (learner, values) =
                    ResidualLearner::start(config, *rank, *activation, d, units.stream);
                (Self::Residual(learner), Parameters::new(values))
            }
            Basis::Lora { .. } => {
                let (learner, values) = LoraLearner::start(config, model)?;
                (Self::Lora(learner), Parameters::new(values))
            }
            Basis::Bias { .. } | Basis::Sparse { .. } | Basis::LowRank { .. } => {
                let dictionary = dictionary.ok_or_else(missing)?;
                let (learner, values) =
                    FeatureLearner::start(config, Arc::clone(dictionary), units)?;
                (Self::Feature(learner), Parameters::new(values))
            }
        })
    }

    /// The stream that enters the first block, and the updates of weights.
    pub(crate) fn apply(
        &self,
        parameters: &Parameters,
        batch: &Batch,
    ) -> (Tensor<2>, Vec<WeightUpdate>) {
        match self {
            Self::Residual(learner) => (learner.apply(parameters, batch), Vec::new()),
            Self::Feature(learner) => (learner.apply(parameters, batch, None), Vec::new()),
            Self::Lora(learner) => {
                let (device, dtype) = (batch.stream.device(), batch.stream.dtype());
                let updates = learner.updates(parameters, &device, dtype);
                (batch.stream.clone(), updates)
            }
        }
    }

    /// The gradient of the mean objective of a batch. Adapters that choose where their parameters stand may choose anew.
    ///
    /// # Errors
    /// The model refused the batch.
    pub(crate) fn gradient(
        &mut self,
        config: &TrainConfig,
        aim: Aim<'_>,
        batch: &Batch,
        parameters: &mut Parameters,
        step: Step,
    ) -> Result<Gradient, AdapterError> {
        let penalty = |scale: f64, d: usize| config.change_penalty / (d as f64 * scale * scale);
        match self {
            Self::Lora(learner) => learner.gradient(aim, batch, parameters),
            Self::Residual(learner) => {
                let stream = learner.apply(parameters, batch);
                let weight = penalty(learner.scale(), batch.stream.dims()[1]);
                let (evaluated, grad) = at_site(aim, batch, &stream, weight)?;
                let parts = learner.parts(parameters, batch, &grad);
                Ok(Gradient { evaluated, parts })
            }
            Self::Feature(learner) => {
                let noise = learner.noise(config.seed, step.number);
                let stream = learner.apply(parameters, batch, noise.as_deref());
                let weight = penalty(learner.stream_unit(), batch.stream.dims()[1]);
                let (evaluated, mut grad) = at_site(aim, batch, &stream, weight)?;
                // The map does not act where there is no text, nor at the first position.
                let rows = grad.chunks_exact_mut(batch.stream.dims()[1]);
                for (row, _) in rows.zip(&batch.mean_over_text).filter(|(_, m)| **m == 0.0) {
                    row.fill(0.0);
                }
                let codes = batch.codes.as_ref().ok_or_else(no_codes)?;
                learner.choose(parameters, codes, &grad, step);
                let parts = learner.parts(parameters, codes, &grad, noise.as_deref());
                Ok(Gradient { evaluated, parts })
            }
        }
    }

    /// What happens to the parameters after a step of Adam.
    pub(crate) fn after_step(&self, parameters: &mut Parameters, lr: f64) {
        if let Self::Feature(learner) = self {
            learner.shrink(parameters, lr);
        }
    }

    /// The adapter as it is now.
    ///
    /// # Errors
    /// Never for parameters of this learner.
    pub(crate) fn adapter(
        &self,
        parameters: &Parameters,
        model: &Model,
    ) -> Result<Adapter, AdapterError> {
        Ok(match self {
            Self::Residual(learner) => {
                Adapter::Residual(learner.adapter(&parameters.values, model.device()))
            }
            Self::Feature(learner) => Adapter::Feature(learner.adapter(parameters)?),
            Self::Lora(learner) => Adapter::Lora(learner.adapter(parameters)),
        })
    }

    /// Where the parameters stand, if that changes in training.
    pub(crate) fn support(&self) -> Option<&Support> {
        match self {
            Self::Feature(learner) => Some(learner.support()),
            _ => None,
        }
    }

    /// Takes up a support that was kept.
    pub(crate) fn set_support(&mut self, support: Support) {
        if let Self::Feature(learner) = self {
            learner.set_support(support);
        }
    }
}

/// Which step it is.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) number: usize,
    pub(crate) of: usize,
}

fn no_codes() -> AdapterError {
    AdapterError::Option("a batch without codes cannot train over features".to_owned())
}

/// The objective with a changed stream at the site, and its gradient there `[rows, d]`, to which that of the penalty
/// `weight · mean ‖change‖²` is added.
fn at_site(
    aim: Aim<'_>,
    batch: &Batch,
    stream: &Tensor<2>,
    weight: f64,
) -> Result<(Evaluated, Vec<f32>), AdapterError> {
    let leaf = Tensor::<2>::from_inner(stream.clone()).require_grad();
    let [rows, d] = stream.dims();
    let penalty = (weight > 0.0).then(|| {
        let change = leaf.clone() - Tensor::from_inner(batch.stream.clone());
        let mean = TensorData::new(batch.mean_over_text.clone(), [rows, 1]);
        let mean = Tensor::<2>::from_data(mean, (&leaf.device(), leaf.dtype()));
        (change.clone() * change * mean).sum() * weight
    });
    let evaluated = aim.evaluate(batch, leaf.clone(), &[])?;
    let slope = evaluated.slope.clone();
    let grads = match penalty {
        Some(penalty) => (slope + penalty).backward(),
        None => slope.backward(),
    };
    let grad = super::batch::numbers(leaf.grad(&grads), rows * d);
    Ok((evaluated, grad))
}
