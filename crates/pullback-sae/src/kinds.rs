//! The kinds of dictionaries in training: how codes come from pre-activations, with which losses.
//!
//! A kind is one file with one implementation of [`Kind`]; [`KindConfig`] names it and holds its settings.

mod batch_top_k;
mod gated;
mod jump_relu;
mod matryoshka;
mod relu;
mod top_k;

use pullback_kernels::Real;
use serde::{Deserialize, Serialize};

use crate::learn::{Aux, Batch, Parameters, Rows, Step};
use crate::{SaeError, Selection};

pub(crate) use batch_top_k::BatchTopK;
pub(crate) use gated::Gated;
pub(crate) use jump_relu::JumpRelu;
pub(crate) use matryoshka::Matryoshka;
pub(crate) use relu::Relu;
pub(crate) use top_k::TopK;

/// How the sparsity of a `JumpReLU` dictionary is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "loss")]
pub enum JumpReluSparsity {
    /// `weight · Σ_i step(pre_i − θ_i)`: the number of active features (arXiv 2407.14435, equation 9).
    Step {
        /// The weight.
        weight: f64,
    },
    /// `weight · Σ_i tanh(scale · z_i)` (Anthropic, January 2025).
    Tanh {
        /// The weight.
        weight: f64,
        /// The scale.
        scale: f64,
    },
    /// `weight · (L0 / target − 1)²` (Gemma Scope 2).
    Quadratic {
        /// The weight.
        weight: f64,
        /// Active features a token that are aimed at.
        target: f64,
    },
}

/// A kind with its settings. Weights of losses are those of `SAELens`, where a token's error is summed over coordinates
/// and activations have the mean length `sqrt(d)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum KindConfig {
    /// `relu` with the L1 loss `weight · Σ_i z_i`.
    Relu {
        /// Weight of the L1 loss.
        weight: f64,
    },
    /// The `k` largest pre-activations of each token.
    TopK {
        /// How many.
        k: usize,
    },
    /// The `k · tokens` largest pre-activations of a batch (arXiv 2412.06410); a threshold is learned for use.
    BatchTopK {
        /// How many a token, on average.
        k: usize,
    },
    /// As `BatchTopK`, with a reconstruction by the first features of each of several widths (arXiv 2503.17547).
    Matryoshka {
        /// How many active features a token, on average.
        k: usize,
        /// The widths, ascending; the last is the number of features.
        widths: Vec<usize>,
    },
    /// A threshold a feature, learned (arXiv 2407.14435).
    JumpRelu {
        /// How sparsity is asked for.
        sparsity: JumpReluSparsity,
        /// Width of the window in which thresholds have a gradient.
        bandwidth: f64,
        /// Thresholds at the start, for activations of the mean length `sqrt(d)`; without, the one number at which
        /// `active` features a token are active at the start.
        threshold: Option<f64>,
        /// Active features a token at the start.
        active: usize,
        /// Weight of `Σ relu(θ − pre)` over dead features.
        revive: f64,
    },
    /// Gates and magnitudes apart (arXiv 2404.16014), the L1 loss on the gates.
    Gated {
        /// Weight of the L1 loss.
        weight: f64,
    },
}

impl KindConfig {
    /// The kinds by the names of the command line.
    pub const NAMES: [&'static str; 6] = [
        "topk",
        "batchtopk",
        "matryoshka",
        "jumprelu",
        "gated",
        "relu",
    ];

    /// A kind with its usual settings, about `k` features a token where it can be asked for.
    ///
    /// # Errors
    /// No kind has this name.
    pub fn named(name: &str, features: usize, k: usize) -> Result<Self, SaeError> {
        Ok(match name {
            "topk" => Self::TopK { k },
            "batchtopk" => Self::BatchTopK { k },
            "matryoshka" => Self::Matryoshka {
                k,
                // Each level twice as wide as the one before.
                widths: (0..4)
                    .rev()
                    .map(|level| (features >> level).max(1))
                    .filter(|&width| width >= k || width == features)
                    .collect(),
            },
            "jumprelu" => Self::JumpRelu {
                sparsity: JumpReluSparsity::Quadratic {
                    weight: 10.0,
                    target: k as f64,
                },
                bandwidth: 0.1,
                threshold: None,
                active: k,
                revive: 3e-6,
            },
            "gated" => Self::Gated { weight: 1.0 },
            "relu" => Self::Relu { weight: 1.0 },
            _ => {
                return Err(SaeError::Option(format!(
                    "`{name}` is no kind: {}",
                    Self::NAMES.join(", ")
                )));
            }
        })
    }

    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::TopK { .. } => "topk",
            Self::BatchTopK { .. } => "batchtopk",
            Self::Matryoshka { .. } => "matryoshka",
            Self::JumpRelu { .. } => "jumprelu",
            Self::Gated { .. } => "gated",
            Self::Relu { .. } => "relu",
        }
    }

    /// Active features a token, where their number is given.
    pub fn k(&self) -> Option<usize> {
        match self {
            Self::TopK { k } | Self::BatchTopK { k } | Self::Matryoshka { k, .. } => Some(*k),
            _ => None,
        }
    }

    /// Whether dead features have the auxiliary loss.
    fn has_auxiliary(&self) -> bool {
        self.k().is_some()
    }

    pub(crate) fn check(&self, features: usize) -> Result<(), SaeError> {
        let wrong = |problem: String| Err(SaeError::Option(problem));
        if let Some(k) = self.k()
            && (k == 0 || k > features)
        {
            return wrong(format!(
                "k is {k}, it must be between 1 and the {features} features"
            ));
        }
        let mut numbers: Vec<(&str, f64, bool)> = Vec::new();
        match self {
            Self::Matryoshka { widths, .. } => {
                let ascending = widths.windows(2).all(|pair| pair[0] < pair[1]);
                if !ascending || widths.first() == Some(&0) || widths.last() != Some(&features) {
                    return wrong(format!(
                        "the widths are {widths:?}: they must ascend from at least 1 to the {features} features"
                    ));
                }
            }
            Self::JumpRelu {
                sparsity,
                bandwidth,
                threshold,
                active,
                revive,
            } => {
                if *active == 0 || *active > features {
                    return wrong(format!(
                        "{active} features are to be active at the start, it must be between 1 and the {features} features"
                    ));
                }
                numbers.extend([
                    ("the bandwidth", *bandwidth, true),
                    ("the threshold", threshold.unwrap_or(0.0), false),
                    ("the weight for dead features", *revive, false),
                ]);
                match sparsity {
                    JumpReluSparsity::Step { weight } => {
                        numbers.push(("the sparsity weight", *weight, false));
                    }
                    JumpReluSparsity::Tanh { weight, scale } => numbers.extend([
                        ("the sparsity weight", *weight, false),
                        ("the scale", *scale, true),
                    ]),
                    JumpReluSparsity::Quadratic { weight, target } => numbers.extend([
                        ("the sparsity weight", *weight, false),
                        ("the number of active features aimed at", *target, true),
                    ]),
                }
            }
            Self::Relu { weight } | Self::Gated { weight } => {
                numbers.push(("the sparsity weight", *weight, false));
            }
            Self::TopK { .. } | Self::BatchTopK { .. } => {}
        }
        for (what, value, above) in numbers {
            if !(value.is_finite() && value >= 0.0 && (value > 0.0 || !above)) {
                let right = if above { "above zero" } else { "zero or above" };
                return wrong(format!("{what} is {value}, it must be {right}"));
            }
        }
        Ok(())
    }

    /// The kind at work.
    pub(crate) fn build<T: Real>(&self, aux: Aux) -> Box<dyn Kind<T>> {
        let aux = self.has_auxiliary().then_some(aux);
        match self.clone() {
            Self::TopK { k } => Box::new(TopK { k, aux }),
            Self::BatchTopK { k } => Box::new(BatchTopK::new(k, aux)),
            Self::Matryoshka { k, widths } => Box::new(Matryoshka::new(k, widths, aux)),
            Self::JumpRelu {
                sparsity,
                bandwidth,
                threshold,
                active,
                revive,
            } => Box::new(JumpRelu::new(
                sparsity,
                bandwidth,
                (threshold, active),
                revive,
            )),
            Self::Gated { weight } => Box::new(Gated::new(weight)),
            Self::Relu { weight } => Box::new(Relu::new(weight)),
        }
    }
}

/// A kind in training.
pub(crate) trait Kind<T: Real>: Send {
    /// What it adds to the parameters at the start: vectors of one number a feature.
    fn extras(&self, _features: usize) -> Vec<Vec<T>> {
        Vec::new()
    }

    /// Called once before training, with some activations `[n, d]`.
    fn prepare(&self, _parameters: &mut Parameters<T>, _x: &[T]) {}

    /// Losses and gradients of a batch.
    fn batch(
        &mut self,
        parameters: &Parameters<T>,
        rows: &Rows<'_, T>,
        step: &Step<'_>,
    ) -> Batch<T>;

    /// Called after an update: brings parameters back to where they must be.
    fn settle(&self, _parameters: &mut Parameters<T>) {}

    /// What the next batch hangs on beside the parameters, to go on later with the same bits.
    fn memory(&self) -> Vec<f64> {
        Vec::new()
    }

    /// Takes back what [`Kind::memory`] gave.
    fn remember(&mut self, _memory: &[f64]) {}

    /// The trained dictionary's selection, for activations divided by `scale`.
    fn selection(&self, parameters: &Parameters<T>, scale: f64) -> Selection;
}

/// Parameters as the dictionary's selection holds them.
pub(crate) fn numbers<T: Real>(x: &[T], map: impl Fn(f64) -> f64) -> Vec<f32> {
    x.iter().map(|x| map(x.as_f64()) as f32).collect()
}

#[cfg(test)]
mod shape_tests;
#[cfg(test)]
mod tests;
