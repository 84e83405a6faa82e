//! Training of low-rank updates of weights.

use burn::tensor::{DType, Device, Tensor, TensorData};
use pullback_model::{Model, WeightName, WeightUpdate};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Gradient;
use crate::lora::lora_weights;
use crate::residual::values;
use crate::train::batch::{Aim, Batch, numbers};
use crate::train::config::{Basis, TrainConfig};
use crate::train::state::Parameters;
use crate::{AdapterError, LoraAdapter, LoraPart};

/// Updates of weights in training: for each matrix `A`, then `B`.
pub(crate) struct LoraLearner {
    weights: Vec<(WeightName, [usize; 2])>,
    rank: usize,
    scale: f64,
}

impl LoraLearner {
    /// The start of PEFT: `A` uniform within `1/√in`, `B` zero, so that nothing changes.
    pub(crate) fn start(
        config: &TrainConfig,
        model: &Model,
    ) -> Result<(Self, Vec<Vec<f32>>), AdapterError> {
        let Basis::Lora {
            rank,
            alpha,
            matrices,
            blocks,
        } = &config.basis
        else {
            return Err(AdapterError::Option(format!(
                "the basis {} is no update of weights",
                config.basis.name()
            )));
        };
        let names = lora_weights(model.config(), matrices, blocks)?;
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let (mut weights, mut start) = (Vec::new(), Vec::new());
        for name in names {
            let shape = name.shape(model.config());
            let [out, width] = [shape[0], shape[1]];
            let bound = (width as f64).sqrt().recip();
            let down = (0..rank * width).map(|_| rng.random_range(-bound..bound) as f32);
            start.push(down.collect());
            start.push(vec![0.0; out * rank]);
            weights.push((name, [out, width]));
        }
        let learner = Self {
            weights,
            rank: *rank,
            scale: alpha / *rank as f64,
        };
        Ok((learner, start))
    }

    pub(crate) fn updates(
        &self,
        parameters: &Parameters,
        device: &Device,
        dtype: DType,
    ) -> Vec<WeightUpdate> {
        let tensor = |values: &[f32], shape: [usize; 2]| {
            Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, dtype))
        };
        let parts = self.weights.iter().zip(parameters.values.chunks_exact(2));
        parts
            .map(|(&(weight, [out, width]), values)| WeightUpdate {
                weight,
                down: tensor(&values[0], [self.rank, width]),
                up: tensor(&values[1], [out, self.rank]),
                scale: self.scale,
            })
            .collect()
    }

    pub(crate) fn gradient(
        &self,
        aim: Aim<'_>,
        batch: &Batch,
        parameters: &Parameters,
    ) -> Result<Gradient, AdapterError> {
        let device = batch.stream.device().autodiff();
        let mut updates = self.updates(parameters, &device, batch.stream.dtype());
        for update in &mut updates {
            update.down = update.down.clone().require_grad();
            update.up = update.up.clone().require_grad();
        }
        let stream = Tensor::<2>::from_inner(batch.stream.clone());
        let evaluated = aim.evaluate(batch, stream, &updates)?;
        let grads = evaluated.slope.clone().backward();
        // Where a dictionary stands between the blocks, the graph above it ends there, and another one goes on below.
        let below = match (&evaluated.between, aim.around) {
            (Some(between), Some((sae, layer))) => {
                let made = numbers(between.made.grad(&grads), values(&between.made).len());
                let slope = between.slope_below(sae, batch, &made)?;
                Some((slope.backward(), layer))
            }
            _ => None,
        };
        let mut parts = Vec::with_capacity(2 * updates.len());
        for update in &updates {
            let grads = match &below {
                Some((below, layer)) if update.weight.layer() <= Some(*layer) => below,
                _ => &grads,
            };
            for tensor in [&update.down, &update.up] {
                let zeros = || vec![0.0; tensor.dims().iter().product()];
                parts.push(tensor.grad(grads).map_or_else(zeros, |g| values(&g)));
            }
        }
        Ok(Gradient { evaluated, parts })
    }

    pub(crate) fn adapter(&self, parameters: &Parameters) -> LoraAdapter {
        let parts = self.weights.iter().zip(parameters.values.chunks_exact(2));
        let parts = parts.map(|(&(weight, _), values)| LoraPart {
            weight,
            rank: self.rank,
            down: values[0].clone(),
            up: values[1].clone(),
            scale: self.scale,
        });
        LoraAdapter {
            parts: parts.collect(),
        }
    }
}
