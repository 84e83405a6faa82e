//! Training in the coordinates of the residual stream.

use burn::tensor::{Device, Tensor, TensorData};
use pullback_model::{Edit, Site};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::residual::values;
use crate::train::batch::Batch;
use crate::train::config::TrainConfig;
use crate::train::state::Parameters;
use crate::{Activation, ResidualAdapter};

/// A residual adapter in training: `W_in`, `b_in`, `W_out` in units of the typical activation.
pub(crate) struct ResidualLearner {
    site: Site,
    activation: Activation,
    rank: usize,
    d: usize,
    scale: f64,
}

impl ResidualLearner {
    /// The start: `W_in` random, so that hidden pre-activations are of order one; `b_in` and `W_out` zero, so that the
    /// adapter changes nothing.
    pub(crate) fn start(
        config: &TrainConfig,
        rank: usize,
        activation: Activation,
        d: usize,
        scale: f64,
    ) -> (Self, Vec<Vec<f32>>) {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let bound = (3.0 / d as f64).sqrt();
        let w_in: Vec<f32> = (0..rank * d)
            .map(|_| rng.random_range(-bound..bound) as f32)
            .collect();
        let learner = Self {
            site: config.site,
            activation,
            rank,
            d,
            scale,
        };
        (learner, vec![w_in, vec![0.0; rank], vec![0.0; d * rank]])
    }

    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// The adapter in units of the activations: it reads `x/scale` and writes `scale ·`.
    pub(crate) fn adapter(&self, values: &[Vec<f32>], device: &Device) -> ResidualAdapter {
        let (rank, d, scale) = (self.rank, self.d, self.scale);
        let scaled = |x: &[f32], by: f64| {
            x.iter()
                .map(|x| (f64::from(*x) * by) as f32)
                .collect::<Vec<_>>()
        };
        ResidualAdapter {
            site: self.site,
            activation: self.activation,
            w_in: Tensor::from_data(
                TensorData::new(scaled(&values[0], 1.0 / scale), [rank, d]),
                device,
            ),
            b_in: Tensor::from_data(TensorData::new(values[1].clone(), [rank]), device),
            w_out: Tensor::from_data(
                TensorData::new(scaled(&values[2], scale), [d, rank]),
                device,
            ),
        }
    }

    pub(crate) fn apply(&self, parameters: &Parameters, batch: &Batch) -> Tensor<2> {
        let adapter = self.adapter(&parameters.values, &batch.stream.device());
        adapter.apply(batch.stream.clone(), &batch.places())
    }

    /// The gradient of the parameters from that of the stream.
    pub(crate) fn parts(
        &self,
        parameters: &Parameters,
        batch: &Batch,
        grad: &[f32],
    ) -> Vec<Vec<f32>> {
        let device = batch.stream.device().autodiff();
        let mut adapter = self.adapter(&parameters.values, &device);
        adapter.w_in = adapter.w_in.require_grad();
        adapter.b_in = adapter.b_in.require_grad();
        adapter.w_out = adapter.w_out.require_grad();
        let stream = Tensor::<2>::from_inner(batch.stream.clone());
        let shape = stream.dims();
        let grad = Tensor::<2>::from_data(TensorData::new(grad.to_vec(), shape), &device);
        let slope = (adapter.apply(stream, &batch.places()) * grad).sum();
        let grads = slope.backward();
        let take = |grad: Option<Vec<f32>>, len: usize, by: f64| {
            grad.map_or_else(
                || vec![0.0; len],
                |grad| grad.iter().map(|g| (f64::from(*g) * by) as f32).collect(),
            )
        };
        let (rank, d, scale) = (self.rank, self.d, self.scale);
        let w_in = adapter.w_in.grad(&grads).map(|g| values(&g));
        let b_in = adapter.b_in.grad(&grads).map(|g| values(&g));
        let w_out = adapter.w_out.grad(&grads).map(|g| values(&g));
        vec![
            take(w_in, rank * d, 1.0 / scale),
            take(b_in, rank, 1.0),
            take(w_out, rank * d, scale),
        ]
    }
}
