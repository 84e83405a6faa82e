//! Direct logit attribution: the parts that a logit is the sum of.
//!
//! The last residual stream is the sum of what the embedding, each head and each MLP added to it. With the scale of the
//! final norm held at its value, norm and output matrix are linear (and a constant), so that a logit before its cap is a
//! sum over these parts too (Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021).

use std::collections::HashMap;
use std::fmt;

use burn::tensor::Tensor;
use serde::Serialize;

use super::check_token;
use crate::config::Norm;
use crate::error::ModelError;
use crate::intervention::Intervention;
use crate::model::{Model, NormWeights};
use crate::run::Input;
use crate::site::{Place, Site};

/// A part of a model that adds to the residual stream, or the constant that the final norm adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "part", rename_all = "snake_case")]
pub enum Part {
    /// The token's embedding.
    Embedding,
    /// The learned vector of the position.
    Position,
    /// A head of attention.
    Head {
        /// The block.
        layer: usize,
        /// The head.
        head: usize,
    },
    /// The bias of attention's output.
    AttentionBias {
        /// The block.
        layer: usize,
    },
    /// An MLP with its bias.
    Mlp {
        /// The block.
        layer: usize,
    },
    /// The bias of the final norm.
    FinalBias,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Position => f.write_str("position"),
            Self::Head { layer, head } => write!(f, "block {layer} head {head}"),
            Self::AttentionBias { layer } => write!(f, "block {layer} attention bias"),
            Self::Mlp { layer } => write!(f, "block {layer} MLP"),
            Self::FinalBias => f.write_str("final norm's bias"),
        }
    }
}

/// What a part gives to a logit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Contribution {
    /// The part.
    #[serde(flatten)]
    pub part: Part,
    /// What it gives.
    pub value: f64,
}

/// A logit, or the difference of two, as a sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribution {
    /// The position after which the token would come.
    pub position: usize,
    /// The token.
    pub token: u32,
    /// The token whose logit is subtracted.
    pub versus: Option<u32>,
    /// The model's logit before its cap, or the difference of the two.
    pub logit: f64,
    /// The parts, in the order of the computation.
    pub contributions: Vec<Contribution>,
    /// What the parts leave over: rounding, and what interventions on the residual stream itself put there.
    pub remainder: f64,
}

/// Decomposes the logit of `token` (minus that of `versus`) after `position` into what each part of the model gives to it
/// directly. The scale of the final norm is held at its value; so is, for heads, that of the norm after attention, in
/// families that have one.
///
/// # Errors
/// As [`Model::run`]; also when the position is not in the text or a token not in the vocabulary.
pub fn attribute_logit(
    model: &Model,
    ids: &[u32],
    position: usize,
    token: u32,
    versus: Option<u32>,
    interventions: &[Intervention],
) -> Result<Attribution, ModelError> {
    check_token(model, token)?;
    versus.map_or(Ok(()), |id| check_token(model, id))?;
    if position >= ids.len() {
        return Err(ModelError::Input {
            problem: format!(
                "position {position} is not in the text, whose positions are 0 to {}",
                ids.len().saturating_sub(1)
            ),
        });
    }
    let config = model.config();
    // Head results are large; they are made only where someone changes them.
    let changes_results = |layer| {
        let site = Site::at(layer, Place::HeadResult);
        interventions.iter().any(|i| i.site() == site)
    };
    let mut sites = vec![Site::embed()];
    let outer = |place| Site::at(0, place);
    if Place::PosEmbed.exists(config) {
        sites.push(outer(Place::PosEmbed));
    }
    for layer in 0..config.n_layers {
        let heads = if changes_results(layer) {
            Place::HeadResult
        } else {
            Place::Mixed
        };
        sites.extend([heads, Place::MlpOut].map(|place| Site::at(layer, place)));
        if Place::AttnPostScale.exists(config) {
            sites.push(Site::at(layer, Place::AttnPostScale));
        }
    }
    sites.extend([Place::FinalScale, Place::FinalNormalized].map(outer));
    let recorded = model.record(Input::tokens(ids), &sites, interventions)?;
    let rows = Recorded { recorded, position };

    let output = |id: u32| model.output_matrix().rows(&[id], model.device());
    let mut wanted = output(token);
    if let Some(versus) = versus {
        wanted = wanted - output(versus);
    }
    let logit = dot(&rows.at(outer(Place::FinalNormalized))?, &wanted);
    let final_norm = model.final_norm_weights();
    let scale = rows.at(outer(Place::FinalScale))?;
    let direction = through_norm(&wanted, final_norm, &scale, config.norm);

    let mut contributions = Vec::new();
    let mut add = |part, value| contributions.push(Contribution { part, value });
    add(Part::Embedding, dot(&rows.at(Site::embed())?, &direction));
    if Place::PosEmbed.exists(config) {
        let learned = rows.at(outer(Place::PosEmbed))?;
        add(Part::Position, dot(&learned, &direction));
    }
    for (layer, block) in model.blocks().iter().enumerate() {
        // What a change of attention's output before its own norm does.
        let inner = match &block.attn_post_norm {
            Some(weights) => {
                let scale = rows.at(Site::at(layer, Place::AttnPostScale))?;
                through_norm(&direction, weights, &scale, config.norm)
            }
            None => direction.clone(),
        };
        let (values, seen) = if changes_results(layer) {
            let seen = inner.clone().repeat(&[1, config.n_heads]);
            (rows.at(Site::at(layer, Place::HeadResult))?, seen)
        } else {
            let seen = inner.clone().matmul(block.o.weight.dense());
            (rows.at(Site::at(layer, Place::Mixed))?, seen)
        };
        let products = numbers(values * seen);
        let each = products.len() / config.n_heads;
        for (head, products) in products.chunks_exact(each).enumerate() {
            add(Part::Head { layer, head }, products.iter().sum());
        }
        let bias = block.o.bias.as_ref().map(|bias| product(bias, &inner));
        let post = block.attn_post_norm.as_ref();
        let post = post.and_then(|norm| norm.bias.as_ref());
        let post = post.map(|bias| product(bias, &direction));
        if bias.is_some() || post.is_some() {
            let value = bias.unwrap_or(0.0) + post.unwrap_or(0.0);
            add(Part::AttentionBias { layer }, value);
        }
        let mlp = rows.at(Site::at(layer, Place::MlpOut))?;
        add(Part::Mlp { layer }, dot(&mlp, &direction));
    }
    if let Some(bias) = &final_norm.bias {
        add(Part::FinalBias, product(bias, &wanted));
    }
    let sum: f64 = contributions.iter().map(|c| c.value).sum();
    Ok(Attribution {
        position,
        token,
        versus,
        logit,
        remainder: logit - sum,
        contributions,
    })
}

/// Recorded activations at one position.
struct Recorded {
    recorded: HashMap<Site, Tensor<2>>,
    position: usize,
}

impl Recorded {
    fn at(&self, site: Site) -> Result<Tensor<2>, ModelError> {
        let whole = self.recorded.get(&site).ok_or_else(|| ModelError::Input {
            problem: format!("{site} was not recorded"),
        })?;
        Ok(whole.clone().narrow(0, self.position, 1))
    }
}

/// The direction before a norm, its scale held, whose product with a part is that of `after` with the part's image:
/// `[1, d_model]`.
fn through_norm(
    after: &Tensor<2>,
    weights: &NormWeights,
    scale: &Tensor<2>,
    norm: Norm,
) -> Tensor<2> {
    let before = after.clone() * weights.gain.clone().unsqueeze() / scale.clone();
    match norm {
        Norm::Rms => before,
        // Taking the mean out of a part is a symmetric map: it can be done to the direction instead.
        Norm::Layer => before.clone() - before.mean_dim(1),
    }
}

fn numbers(x: Tensor<2>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

fn dot(a: &Tensor<2>, b: &Tensor<2>) -> f64 {
    numbers(a.clone() * b.clone()).iter().sum()
}

fn product(vector: &Tensor<1>, row: &Tensor<2>) -> f64 {
    dot(&vector.clone().unsqueeze(), row)
}
