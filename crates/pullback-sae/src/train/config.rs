//! How a dictionary is trained.

use serde::{Deserialize, Serialize};

use super::{InputNorm, Wiring};
use crate::kinds::KindConfig;
use crate::learn::Aux;
use crate::{AuxLoss, SaeError};

/// What is asked of the lengths of decoder rows in training. In what is saved they are one, where one factor normalises all
/// that is reconstructed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecoderNorm {
    /// They are one; gradients along a row are taken out.
    #[default]
    Unit,
    /// They are free, and every code is judged and penalised by its product with the length of its row (`SAELens`); of a
    /// crosscoder's row the length is the sum of those of its sites.
    Free,
}

/// The course of the learning rate between warm-up and decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// The peak rate throughout.
    #[default]
    Constant,
    /// Half a cosine from the peak rate to a tenth of it.
    Cosine,
}

/// How a dictionary is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Number of features.
    pub features: usize,
    /// What is read and what is reconstructed.
    #[serde(default)]
    pub wiring: Wiring,
    /// What is done to activations first.
    #[serde(default)]
    pub input_norm: InputNorm,
    /// The lengths of decoder rows.
    #[serde(default)]
    pub decoder_norm: DecoderNorm,
    /// The kind and its settings.
    pub kind: KindConfig,
    /// Passes over the rows.
    pub passes: usize,
    /// Tokens to train on, in as many passes as it takes; `None` leaves it to `passes`, where the rows of a pass are known.
    pub tokens: Option<usize>,
    /// Rows in a batch.
    pub batch: usize,
    /// Peak learning rate of Adam.
    pub lr: f64,
    /// Decay rates of Adam's moments.
    pub betas: (f64, f64),
    /// The course of the learning rate.
    pub schedule: Schedule,
    /// Share of the steps over which the rate rises linearly from zero.
    pub warmup: f64,
    /// Share of the steps, at the end, over which it falls linearly to zero.
    pub decay: f64,
    /// Share of the steps over which the weight of the sparsity loss rises linearly from zero.
    pub sparsity_warmup: f64,
    /// A gradient longer than this is shortened to it.
    pub clip: Option<f64>,
    /// Which auxiliary loss dead features have, in the kinds with a given number of active features.
    pub aux_loss: AuxLoss,
    /// Weight of the auxiliary loss for dead features.
    pub aux_coefficient: f64,
    /// Dead features that the auxiliary loss uses a token; `None` is half the width of the activations.
    pub aux_k: Option<usize>,
    /// A feature is dead when it has not fired for so many tokens; `None` is a twentieth of the training, and
    /// ten batches at least.
    pub dead_after_tokens: Option<usize>,
    /// Seed of the start and of the order of rows.
    pub seed: u64,
}

/// More features than any published dictionary has; beyond it a typing error would exhaust the memory.
const MAX_FEATURES: usize = 1 << 24;

impl TrainConfig {
    /// The defaults: four passes, batches of 1024, rate 1e-3 with 5 % warm-up and 30 % decay, auxiliary
    /// loss 1/32, sparsity losses growing over the first fifth.
    pub fn new(features: usize, kind: KindConfig, seed: u64) -> Self {
        Self {
            features,
            wiring: Wiring::default(),
            input_norm: InputNorm::default(),
            decoder_norm: DecoderNorm::default(),
            kind,
            passes: 4,
            tokens: None,
            batch: 1024,
            lr: 1e-3,
            betas: (0.9, 0.999),
            schedule: Schedule::default(),
            warmup: 0.05,
            decay: 0.3,
            sparsity_warmup: 0.2,
            clip: None,
            aux_loss: AuxLoss::default(),
            aux_coefficient: AuxLoss::default().usual_weight(),
            aux_k: None,
            dead_after_tokens: None,
            seed,
        }
    }

    /// Steps of a training on so many rows a pass, where they are known.
    ///
    /// # Errors
    /// They are not, and the number of tokens is not given.
    pub(super) fn steps(&self, pass: Option<usize>) -> Result<usize, SaeError> {
        match (self.tokens, pass) {
            (Some(tokens), _) => Ok((tokens / self.batch).max(1)),
            (None, Some(rows)) => Ok(rows * self.passes / self.batch),
            (None, None) => Err(SaeError::Option(
                "how many rows a pass has is not known before they are made: say how many tokens to train on"
                    .to_owned(),
            )),
        }
    }

    pub(super) fn aux(&self, d: usize) -> Aux {
        Aux {
            loss: self.aux_loss,
            weight: self.aux_coefficient,
            k: self.aux_k.unwrap_or(d / 2),
        }
    }

    pub(super) fn check(&self, pass: Option<usize>) -> Result<(), SaeError> {
        let wrong = |problem: String| Err(SaeError::Option(problem));
        if self.features > MAX_FEATURES {
            return wrong(format!(
                "{} features are too many: at most {MAX_FEATURES}",
                self.features
            ));
        }
        if self.features == 0 {
            return wrong("a dictionary of 0 features is none".to_owned());
        }
        self.kind.check(self.features)?;
        if self.passes == 0 || self.batch == 0 || self.tokens == Some(0) {
            return wrong(
                "at least one pass, one token and one row in a batch are needed".to_owned(),
            );
        }
        if let Some(rows) = pass
            && rows < self.batch
        {
            return wrong(format!(
                "the store has {rows} rows to train on, a batch is {}: harvest more tokens or make --batch smaller",
                self.batch
            ));
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return wrong(format!(
                "the learning rate is {}, it must be above zero",
                self.lr
            ));
        }
        for beta in [self.betas.0, self.betas.1] {
            if !(0.0..1.0).contains(&beta) {
                return wrong(format!(
                    "a decay rate of Adam's moments is {beta}, it must be from 0 to below 1"
                ));
            }
        }
        if let Some(clip) = self.clip
            && !(clip.is_finite() && clip > 0.0)
        {
            return wrong(format!(
                "gradients are clipped to {clip}, it must be above zero"
            ));
        }
        if !(self.aux_coefficient.is_finite() && self.aux_coefficient >= 0.0) {
            return wrong(format!(
                "the auxiliary coefficient is {}, it must be zero or above",
                self.aux_coefficient
            ));
        }
        if !(self.warmup >= 0.0 && self.decay >= 0.0 && self.warmup + self.decay <= 1.0) {
            return wrong(format!(
                "warm-up {} and decay {} are shares of the training, together at most 1",
                self.warmup, self.decay
            ));
        }
        if !(0.0..=1.0).contains(&self.sparsity_warmup) {
            return wrong(format!(
                "the sparsity warm-up is {}, it is a share of the training from 0 to 1",
                self.sparsity_warmup
            ));
        }
        self.check_shape()
    }

    /// What only some shapes can have.
    fn check_shape(&self) -> Result<(), SaeError> {
        let wrong = |problem: &str| Err(SaeError::Option(problem.to_owned()));
        let by_factors = matches!(self.input_norm, InputNorm::None | InputNorm::Average);
        match &self.wiring {
            Wiring::Autoencoder { .. } => Ok(()),
            _ if !by_factors => wrong(
                "only an autoencoder's activations can be normalised by other than factors: average or none",
            ),
            Wiring::Crosscoder { .. } if self.decoder_norm == DecoderNorm::Unit => wrong(
                "a crosscoder's decoder rows have free lengths: how long they are at each site is what it tells",
            ),
            _ => Ok(()),
        }
    }

    /// Learning rate at a step, counted from zero.
    pub(super) fn rate(&self, step: usize, steps: usize) -> f64 {
        let place = (step as f64 + 0.5) / steps as f64;
        let up = if self.warmup > 0.0 {
            place / self.warmup
        } else {
            1.0
        };
        let down = if self.decay > 0.0 {
            (1.0 - place) / self.decay
        } else {
            1.0
        };
        let course = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Cosine => 0.55 + 0.45 * (std::f64::consts::PI * place).cos(),
        };
        self.lr * up.min(down).min(1.0) * course
    }

    /// Share of the sparsity loss's weight at a step, counted from zero.
    pub(super) fn sparsity(&self, step: usize, steps: usize) -> f64 {
        if self.sparsity_warmup > 0.0 {
            ((step as f64 + 0.5) / steps as f64 / self.sparsity_warmup).min(1.0)
        } else {
            1.0
        }
    }
}
