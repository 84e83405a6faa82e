//! How a model and its dictionaries are grown together.

use pullback_model::{NewModel, Place, Site};
use pullback_sae::{InputNorm, KindConfig, TrainConfig};
use serde::{Deserialize, Serialize};

use crate::AdapterError;

/// How models and dictionaries are grown and compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CotrainConfig {
    /// The sizes of a model that is trained from scratch; its seed is that of the run. `None`: a given one goes on.
    pub new: Option<NewModel>,
    /// Where dictionaries are: residual streams.
    pub sites: Vec<Site>,
    /// Weight of the mean over sites of the share of variance that a dictionary leaves unexplained, beside the
    /// cross-entropy in nats. At zero dictionaries learn beside a model that does not feel them.
    pub weight: f64,
    /// Training tokens that are taken from the text, at most; all of them are used again until the steps are done.
    pub tokens: usize,
    /// Held-out tokens that everything is measured on, at most.
    pub held_out_tokens: usize,
    /// Tokens in a sequence.
    pub context: usize,
    /// Sequences in a batch.
    pub batch: usize,
    /// Steps of each model, and of each dictionary that is trained afterwards.
    pub steps: usize,
    /// Peak learning rate of the model.
    pub lr: f64,
    /// Decay of weight matrices, as a share of the learning rate.
    pub weight_decay: f64,
    /// How every dictionary is trained; its batches, tokens, wiring and seed follow from the rest.
    pub dictionary: TrainConfig,
    /// The first seed.
    pub seed: u64,
    /// How many seeds, one after the other.
    pub seeds: usize,
}

/// Features and active features of a dictionary unless it is said otherwise.
const FEATURES: usize = 512;
const K: usize = 16;

impl CotrainConfig {
    /// The defaults for sites: weight 0.3, 600 steps of 32 sequences of 128 tokens, peak rate 3e-3, dictionaries of 512
    /// features of which 16 are active.
    pub fn new(sites: Vec<Site>, seed: u64) -> Self {
        let kind = KindConfig::TopK { k: K };
        Self {
            new: None,
            sites,
            weight: 0.3,
            tokens: 2_000_000,
            held_out_tokens: 24_576,
            context: 128,
            batch: 32,
            steps: 600,
            lr: 3e-3,
            weight_decay: 0.1,
            dictionary: TrainConfig {
                lr: 3e-3,
                input_norm: InputNorm::ConstantNorm,
                ..TrainConfig::new(FEATURES, kind, seed)
            },
            seed,
            seeds: 1,
        }
    }

    /// Rows of each batch that dictionaries see: all but the first of a sequence, and but the last, which nothing follows.
    pub(crate) fn rows(&self) -> usize {
        self.batch * (self.context - 2)
    }

    /// Active features a token.
    pub(crate) fn k(&self) -> usize {
        self.dictionary.kind.k().unwrap_or(K)
    }

    /// How the dictionary at a site is trained with a seed.
    pub(crate) fn dictionary_at(&self, site: Site, seed: u64) -> TrainConfig {
        TrainConfig {
            wiring: pullback_sae::Wiring::Autoencoder {
                site: Some(site.to_string()),
            },
            batch: self.rows(),
            tokens: Some(self.rows() * self.steps),
            seed,
            ..self.dictionary.clone()
        }
    }

    /// Share of the peak rate: up over a twentieth of the steps, then along a cosine to a tenth.
    pub(crate) fn rate(&self, step: usize) -> f64 {
        let place = (step as f64 + 0.5) / self.steps as f64;
        let up = (place / 0.05).min(1.0);
        self.lr * up * (0.55 + 0.45 * (std::f64::consts::PI * place).cos())
    }

    /// Refuses what makes no sense.
    pub(crate) fn check(&self) -> Result<(), AdapterError> {
        let refuse = |problem: String| Err(AdapterError::Option(problem));
        if let Some(new) = &self.new {
            new.check()?;
            if new.n_ctx < self.context {
                return refuse(format!(
                    "sequences of {} tokens are longer than the {} positions of the model",
                    self.context, new.n_ctx
                ));
            }
        }
        if self.sites.is_empty() {
            return refuse("no site is named where a dictionary could grow".to_owned());
        }
        for (number, site) in self.sites.iter().enumerate() {
            if !matches!(
                site.place(),
                Place::ResidPre | Place::ResidMid | Place::ResidPost
            ) {
                return refuse(format!(
                    "dictionaries grow in the residual stream (blocks.L.hook_resid_pre, _mid or _post), not at {site}"
                ));
            }
            if self.sites[..number].contains(site) {
                return refuse(format!("{site} is given more than once"));
            }
        }
        for (what, value, above) in [
            ("the weight of the dictionaries' losses", self.weight, false),
            ("the learning rate", self.lr, true),
            ("the weight decay", self.weight_decay, false),
        ] {
            if !(value.is_finite() && value >= 0.0 && (value > 0.0 || !above)) {
                let right = if above { "above zero" } else { "zero or above" };
                return refuse(format!("{what} is {value}, it must be {right}"));
            }
        }
        if self.context < 4 {
            return refuse(format!(
                "sequences of {} tokens are too short: at least 4 are needed",
                self.context
            ));
        }
        for (what, count) in [
            ("sequences in a batch", self.batch),
            ("steps", self.steps),
            ("seeds", self.seeds),
            ("training tokens", self.tokens),
            ("held-out tokens", self.held_out_tokens),
        ] {
            if count == 0 {
                return refuse(format!("0 {what} are asked for, at least one is needed"));
            }
        }
        Ok(())
    }
}
