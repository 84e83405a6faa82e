//! Low-rank updates of chosen weight matrices (LoRA, arXiv 2106.09685).

pub(crate) mod peft;

use burn::tensor::{DType, Device, Tensor, TensorData};
use pullback_model::{ModelConfig, WeightName, WeightUpdate};

use crate::AdapterError;

/// The update of one matrix: `W ↦ W + scale·B·A`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPart {
    /// The matrix `[out, in]`.
    pub weight: WeightName,
    /// Columns of `B`.
    pub rank: usize,
    /// `A [rank, in]`.
    pub down: Vec<f32>,
    /// `B [out, rank]`.
    pub up: Vec<f32>,
    /// `alpha / rank`.
    pub scale: f64,
}

/// Low-rank updates of weight matrices of a model's blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraAdapter {
    /// The updates, block by block.
    pub parts: Vec<LoraPart>,
}

impl LoraAdapter {
    /// As updates for a run or for [`pullback_model::Model::merge`], `factor` times as large.
    pub fn updates(&self, factor: f64, device: &Device, dtype: DType) -> Vec<WeightUpdate> {
        let tensor = |values: &[f32], rows: usize| {
            let shape = [rows, values.len() / rows.max(1)];
            Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, dtype))
        };
        let parts = self.parts.iter();
        parts
            .map(|part| WeightUpdate {
                weight: part.weight,
                down: tensor(&part.down, part.rank),
                up: tensor(&part.up, part.up.len() / part.rank.max(1)),
                scale: part.scale * factor,
            })
            .collect()
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        let parts = self.parts.iter();
        parts.map(|part| part.down.len() + part.up.len()).sum()
    }
}

/// The matrices of some kinds in some blocks, in the order of blocks. `kinds` are names of
/// [`WeightName::MATRICES`].
///
/// # Errors
/// A name is not known, the model has no such matrix or block, or its files hold it as a part of another matrix.
pub fn lora_weights(
    config: &ModelConfig,
    kinds: &[String],
    blocks: &[usize],
) -> Result<Vec<WeightName>, AdapterError> {
    let known: Vec<&str> = WeightName::MATRICES.iter().map(|(name, _)| *name).collect();
    let mut weights = Vec::new();
    let (mut blocks, mut chosen) = (blocks.to_vec(), Vec::new());
    blocks.sort_unstable();
    blocks.dedup();
    for kind in kinds {
        let Some((_, of)) = WeightName::MATRICES.iter().find(|(name, _)| name == kind) else {
            return Err(AdapterError::Option(format!(
                "`{kind}` is no weight matrix of a block (they are {})",
                known.join(", ")
            )));
        };
        chosen.push(*of);
    }
    for &block in &blocks {
        if block >= config.n_layers {
            return Err(AdapterError::Option(format!(
                "the model has no block {block}, its blocks are 0 to {}",
                config.n_layers - 1
            )));
        }
        for (kind, of) in kinds.iter().zip(&chosen) {
            let weight = of(block);
            if !weight.exists(config) {
                return Err(AdapterError::Option(format!(
                    "blocks of the family {} have no matrix `{kind}`",
                    config.architecture
                )));
            }
            if weight.module(config).is_none() {
                return Err(AdapterError::Option(format!(
                    "models of the family {} hold `{kind}` as a part of a joint or transposed matrix, which LoRA here does not update",
                    config.architecture
                )));
            }
            if !weights.contains(&weight) {
                weights.push(weight);
            }
        }
    }
    if weights.is_empty() {
        return Err(AdapterError::Option(
            "no weight matrix is chosen for LoRA".to_owned(),
        ));
    }
    Ok(weights)
}

/// The matrices `A` and `B` have this many numbers together for one unit of rank.
pub(crate) fn numbers_a_rank(config: &ModelConfig, weights: &[WeightName]) -> usize {
    weights.iter().flat_map(|weight| weight.shape(config)).sum()
}
