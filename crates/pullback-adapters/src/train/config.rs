//! How an adapter is trained.

use pullback_model::{ModelConfig, Place, Site};
use serde::{Deserialize, Serialize};

use crate::lora::{lora_weights, numbers_a_rank};
use crate::{Activation, AdapterError, Objective};

/// In which terms the change is learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "basis", rename_all = "kebab-case")]
pub enum Basis {
    /// `x + W_out·act(W_in x + b_in)`.
    Residual {
        /// Hidden units.
        rank: usize,
        /// Between the matrices.
        activation: Activation,
    },
    /// `W + (alpha/rank)·B·A` for matrices of blocks.
    Lora {
        /// Columns of `B`.
        rank: usize,
        /// The numerator of the scale.
        alpha: f64,
        /// Names of [`pullback_model::WeightName::MATRICES`].
        matrices: Vec<String>,
        /// Blocks.
        blocks: Vec<usize>,
    },
    /// `g(z) = z + b` over features.
    Bias {
        /// Whether an entry acts only where its feature is active.
        active_only: bool,
        /// How many entries there are.
        sparsity: Sparsity,
    },
    /// `g(z)_j = z_j + Σ_i w_ij z_i` with so many weights.
    Sparse {
        /// Number of weights.
        weights: usize,
    },
    /// `g(z) = z + U Vᵀ z` with factors `[m, rank]`.
    LowRank {
        /// Columns of the factors.
        rank: usize,
        /// Entries of both factors together; none: all.
        entries: Option<usize>,
    },
}

/// How a bias over features is kept sparse.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Sparsity {
    /// Not at all: an entry a feature.
    None,
    /// So many entries, grown where the gradient is largest and pruned where the value is smallest.
    Top {
        /// Number of entries.
        count: usize,
    },
    /// All entries, each pulled towards zero by `weight` times the learning rate a step (in units of the mean active code);
    /// at the end the largest `count` that are not zero stay.
    L1 {
        /// Strength.
        weight: f64,
        /// Entries that stay at most.
        count: Option<usize>,
    },
    /// Hard-concrete gates (Louizos et al., arXiv 1712.01312, section 2.2), with `weight` times the expected number of open
    /// ones added to the objective; at the end the largest `count` open ones stay.
    HardConcrete {
        /// Strength.
        weight: f64,
        /// Entries that stay at most.
        count: Option<usize>,
    },
}

/// How long training goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Passes over the training samples.
    Epochs(usize),
    /// Steps.
    Steps(usize),
}

/// How an adapter is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Where it acts: a `hook_resid_post`. Updates of weights act in their blocks; this names the usual one.
    pub site: Site,
    /// In which terms the change is learned.
    #[serde(flatten)]
    pub basis: Basis,
    /// What is learned.
    pub objective: Objective,
    /// For updates of weights: they are trained with the activation at the site replaced by the reconstruction of a
    /// dictionary, which stays as it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub around: bool,
    /// Weight of `KL(model ‖ adapted)` on the counted tokens.
    pub leash: f64,
    /// How long.
    pub length: Length,
    /// Samples in a batch.
    pub batch: usize,
    /// Plain text is cut into windows of so many tokens.
    pub context: usize,
    /// Peak learning rate of Adam. Parameters are in units of the typical activation or code, those of LoRA as they are.
    pub lr: f64,
    /// Weight of the mean square of the change, relative to that of the activation: what does not help is not written.
    /// Zero for updates of weights.
    pub change_penalty: f64,
    /// Training ends after so many measurements of the held-out loss without a better one, and the best state is kept.
    pub patience: Option<usize>,
    /// Steps between measurements of the held-out loss; by default a pass over the samples.
    pub evaluate_every: Option<usize>,
    /// Seed of the start and of the order of samples.
    pub seed: u64,
}

/// Hidden units of a residual adapter, and columns of factors, when nothing is said.
const RANK: usize = 8;

impl TrainConfig {
    /// A residual adapter with the defaults: rank 8, GELU, 8 epochs of batches of 6, rate 0.01, change penalty 2.
    pub fn new(site: Site, seed: u64) -> Self {
        let basis = Basis::Residual {
            rank: RANK,
            activation: Activation::Gelu,
        };
        Self::of(basis, site, seed)
    }

    /// The defaults for a basis.
    pub fn of(basis: Basis, site: Site, seed: u64) -> Self {
        let (lr, change_penalty) = match &basis {
            Basis::Residual { .. } | Basis::LowRank { entries: None, .. } => (0.01, 2.0),
            Basis::Lora { .. } => (5e-3, 0.0),
            // Entries that move together move the stream by as much as their number.
            Basis::Bias { sparsity, .. } => match sparsity {
                Sparsity::Top { count } => (feature_rate(*count), 2.0),
                _ => (0.002, 2.0),
            },
            Basis::Sparse { weights } => (feature_rate(*weights), 2.0),
            Basis::LowRank {
                entries: Some(entries),
                ..
            } => (feature_rate(*entries), 2.0),
        };
        Self {
            site,
            basis,
            objective: Objective::NextToken,
            around: false,
            leash: 0.0,
            length: Length::Epochs(8),
            batch: 6,
            context: 128,
            lr,
            change_penalty,
            patience: None,
            evaluate_every: None,
            seed,
        }
    }

    /// Share of the steps over which the rate rises; it then falls along a cosine.
    pub(crate) fn rate(&self, step: usize, steps: usize) -> f64 {
        let place = (step as f64 + 0.5) / steps as f64;
        let up = (place / 0.1).min(1.0);
        self.lr * up * 0.5 * (1.0 + (std::f64::consts::PI * place).cos()).max(0.02)
    }

    /// The block of the site.
    pub(crate) fn layer(&self) -> Result<usize, AdapterError> {
        layer_of(self.site)
    }

    /// Refuses what makes no sense.
    pub(crate) fn check(&self, model: &ModelConfig) -> Result<(), AdapterError> {
        let refuse = |problem: String| Err(AdapterError::Option(problem));
        self.site.check(model)?;
        layer_of(self.site)?;
        let some = match self.length {
            Length::Epochs(count) | Length::Steps(count) => count,
        };
        if some == 0 || self.batch == 0 {
            return refuse(
                "training needs at least one epoch or step and one pair in a batch".to_owned(),
            );
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return refuse(format!(
                "the learning rate is {}, it must be above zero",
                self.lr
            ));
        }
        if !(self.change_penalty.is_finite() && self.change_penalty >= 0.0) {
            return refuse(format!(
                "the change penalty is {}, it must be zero or above",
                self.change_penalty
            ));
        }
        if !(self.leash.is_finite() && self.leash >= 0.0) {
            return refuse(format!(
                "the weight of the leash is {}, it must be zero or above",
                self.leash
            ));
        }
        if self.around {
            if !matches!(self.basis, Basis::Lora { .. }) {
                return refuse(format!(
                    "only updates of weights (lora) are trained around a dictionary, not the basis {}",
                    self.basis.name()
                ));
            }
            if self.objective.prefers() || self.leash > 0.0 {
                return refuse(
                    "updates of weights are trained around a dictionary with the objectives distill and next-token, without a leash"
                        .to_owned(),
                );
            }
        }
        if self.context < 2 {
            return refuse(format!(
                "windows of {} tokens teach nothing: at least two are needed",
                self.context
            ));
        }
        if self.patience == Some(0) || self.evaluate_every == Some(0) {
            return refuse(
                "the patience and the steps between measurements must be at least one".to_owned(),
            );
        }
        if let Objective::Dpo { beta: weight } | Objective::Orpo { weight } = self.objective
            && !(weight.is_finite() && weight > 0.0)
        {
            return refuse(format!(
                "the strength of the preference is {weight}, it must be above zero"
            ));
        }
        match &self.basis {
            Basis::Residual { rank, .. } => {
                if *rank == 0 {
                    return refuse("an adapter needs at least one hidden unit".to_owned());
                }
                if *rank > model.d_model {
                    return refuse(format!(
                        "rank {rank} is above the width {} of the residual stream",
                        model.d_model
                    ));
                }
            }
            Basis::Lora {
                rank,
                alpha,
                matrices,
                blocks,
            } => {
                lora_weights(model, matrices, blocks)?;
                if *rank == 0 || *rank > model.d_model {
                    return refuse(format!(
                        "the rank of LoRA is {rank}, it must be between 1 and the width {} of the stream",
                        model.d_model
                    ));
                }
                if !(alpha.is_finite() && *alpha > 0.0) {
                    return refuse(format!("alpha of LoRA is {alpha}, it must be above zero"));
                }
                if self.change_penalty > 0.0 {
                    return refuse(
                        "the change penalty is for adapters at a site: updates of weights are held by --leash"
                            .to_owned(),
                    );
                }
            }
            Basis::Bias { sparsity, .. } => match *sparsity {
                Sparsity::L1 { weight, .. } | Sparsity::HardConcrete { weight, .. }
                    if !(weight.is_finite() && weight > 0.0) =>
                {
                    return refuse(format!(
                        "the strength of the sparsity is {weight}, it must be above zero"
                    ));
                }
                Sparsity::Top { count: 0 } => {
                    return refuse("a bias needs at least one entry".to_owned());
                }
                _ => {}
            },
            Basis::Sparse { weights: 0 } => {
                return refuse("a sparse matrix needs at least one weight".to_owned());
            }
            Basis::LowRank { rank: 0, .. } => {
                return refuse("low-rank factors need at least one column".to_owned());
            }
            Basis::LowRank {
                entries: Some(0 | 1),
                ..
            } => {
                return refuse("sparse factors need at least two entries".to_owned());
            }
            Basis::Sparse { .. } | Basis::LowRank { .. } => {}
        }
        Ok(())
    }
}

/// A learning rate for so many entries over features.
fn feature_rate(entries: usize) -> f64 {
    (1.2 / (entries.max(1) as f64).sqrt()).clamp(0.002, 0.05)
}

/// The block of a residual stream after a block.
pub(crate) fn layer_of(site: Site) -> Result<usize, AdapterError> {
    match (site.place(), site.layer()) {
        (Place::ResidPost, Some(layer)) => Ok(layer),
        _ => Err(AdapterError::Option(format!(
            "an adapter is trained at a residual stream after a block (blocks.L.hook_resid_post), not at {site}"
        ))),
    }
}

impl Basis {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Residual { .. } => "residual",
            Self::Lora { .. } => "lora",
            Self::Bias { .. } => "bias",
            Self::Sparse { .. } => "sparse",
            Self::LowRank { .. } => "low-rank",
        }
    }

    /// Whether it is that of a dictionary.
    pub fn needs_dictionary(&self) -> bool {
        matches!(
            self,
            Self::Bias { .. } | Self::Sparse { .. } | Self::LowRank { .. }
        )
    }

    /// The same basis with at most so many effective parameters: the budget sets the rank of a residual adapter, of LoRA and
    /// of dense factors, the entries of sparse factors, the weights of a sparse matrix and the entries of a bias.
    /// `features` is the size of the dictionary.
    ///
    /// # Errors
    /// The budget is too small for one unit of rank.
    pub fn with_budget(
        self,
        budget: usize,
        model: &ModelConfig,
        features: usize,
    ) -> Result<Self, AdapterError> {
        let of_rank = |each: usize| {
            let rank = budget / each.max(1);
            if rank == 0 {
                return Err(AdapterError::Option(format!(
                    "the budget is {budget}, but rank 1 in the basis {} has {each} parameters",
                    self.name()
                )));
            }
            Ok(rank)
        };
        Ok(match &self {
            Self::Residual { activation, .. } => Self::Residual {
                rank: of_rank(2 * model.d_model + 1)?,
                activation: *activation,
            },
            Self::Lora {
                rank,
                alpha,
                matrices,
                blocks,
            } => {
                let weights = lora_weights(model, matrices, blocks)?;
                let new = of_rank(numbers_a_rank(model, &weights))?;
                // The scale stays what it was.
                Self::Lora {
                    rank: new,
                    alpha: alpha / *rank as f64 * new as f64,
                    matrices: matrices.clone(),
                    blocks: blocks.clone(),
                }
            }
            Self::Bias {
                active_only,
                sparsity,
            } => {
                let count = budget.min(features);
                Self::Bias {
                    active_only: *active_only,
                    sparsity: match *sparsity {
                        Sparsity::Top { .. } | Sparsity::None => Sparsity::Top { count },
                        Sparsity::L1 { weight, .. } => Sparsity::L1 {
                            weight,
                            count: Some(count),
                        },
                        Sparsity::HardConcrete { weight, .. } => Sparsity::HardConcrete {
                            weight,
                            count: Some(count),
                        },
                    },
                }
            }
            Self::Sparse { .. } => Self::Sparse { weights: budget },
            Self::LowRank {
                rank,
                entries: Some(_),
            } => Self::LowRank {
                rank: *rank,
                entries: Some(budget),
            },
            Self::LowRank { entries: None, .. } => Self::LowRank {
                rank: of_rank(2 * features)?,
                entries: None,
            },
        })
    }
}
