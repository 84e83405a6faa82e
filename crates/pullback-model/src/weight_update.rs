//! Low-rank updates of weight matrices.

use burn::tensor::Tensor;
use pullback_kernels::fused::linear;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::family::{Family, Part};
use crate::model::{Matrix, Model};
use crate::weights::WeightName;

/// `W ↦ W + scale·up·down` for a weight matrix of a block (LoRA, arXiv 2106.09685, section 4.1). Gradients flow to `down`
/// and `up`.
#[derive(Clone, Debug)]
pub struct WeightUpdate {
    /// The matrix `[out, in]`.
    pub weight: WeightName,
    /// `A`, `[rank, in]`.
    pub down: Tensor<2>,
    /// `B`, `[out, rank]`.
    pub up: Tensor<2>,
    /// `alpha / rank`, in LoRA's words.
    pub scale: f64,
}

impl WeightUpdate {
    /// Checks that the model has the matrix, and that the shapes agree.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let problem = |problem| Err(ModelError::Input { problem });
        let weight = self.weight;
        if !weight.is_block_matrix()
            || !weight.exists(config)
            || weight.layer().is_none_or(|layer| layer >= config.n_layers)
        {
            return problem(format!(
                "the model has no weight matrix {weight:?} in one of its {} blocks that could be updated",
                config.n_layers
            ));
        }
        let shape = weight.shape(config);
        let (down, up) = (self.down.dims(), self.up.dims());
        if down[1] != shape[1] || up[0] != shape[0] || down[0] != up[1] {
            return problem(format!(
                "the update of {weight:?} has factors of shapes {up:?} and {down:?}, whose product should be {shape:?}"
            ));
        }
        Ok(())
    }

    /// What it adds to `x Wᵀ`: `scale·(x Aᵀ) Bᵀ`.
    pub(crate) fn added(&self, x: Tensor<2>) -> Tensor<2> {
        linear(linear(x, self.down.clone()), self.up.clone()) * self.scale
    }

    /// `scale·up·down`, `[out, in]`.
    pub fn product(&self) -> Tensor<2> {
        self.up.clone().matmul(self.down.clone()) * self.scale
    }
}

/// The weight of that kind in a block.
type OfBlock = fn(usize) -> WeightName;

impl WeightName {
    /// The weight matrices that a block can have, by the names of options and files.
    pub const MATRICES: [(&'static str, OfBlock); 7] = [
        ("q", Self::Q),
        ("k", Self::K),
        ("v", Self::V),
        ("o", Self::O),
        ("gate", Self::Gate),
        ("up", Self::Up),
        ("down", Self::Down),
    ];

    /// The names of those that the blocks of a model have.
    pub fn of_blocks(config: &ModelConfig) -> Vec<String> {
        let all = Self::MATRICES.iter();
        all.filter(|(_, of)| of(0).exists(config))
            .map(|(name, _)| (*name).to_owned())
            .collect()
    }

    /// Whether it is a weight matrix of a block.
    pub fn is_block_matrix(self) -> bool {
        self.layer()
            .is_some_and(|layer| Self::MATRICES.iter().any(|(_, of)| of(layer) == self))
    }

    /// The module of Hugging Face transformers that holds a matrix of a block, as `model.layers.0.self_attn.q_proj`. `None`
    /// where it is a part of another matrix there, or transposed.
    pub fn module(self, config: &ModelConfig) -> Option<String> {
        let family = Family::named(&config.architecture)?;
        let (names, part) = family.in_huggingface(self)?;
        if part != Part::Whole || !self.is_block_matrix() {
            return None;
        }
        names[0].strip_suffix(".weight").map(str::to_owned)
    }
}

impl Model {
    /// Adds updates to the weights themselves; the matrices concerned become tensors in the element type of the model.
    ///
    /// # Errors
    /// As [`WeightUpdate::check`].
    pub fn merge(&mut self, updates: &[WeightUpdate]) -> Result<(), ModelError> {
        for update in updates {
            update.check(self.config())?;
        }
        for update in updates {
            let device = self.device().clone();
            let dtype = self.dtype();
            let Some(matrix) = self.block_matrix(update.weight) else {
                continue;
            };
            let product = update.product().into_data().convert_dtype(dtype);
            let product = Tensor::<2>::from_data(product, (&device, dtype));
            *matrix = Matrix::Dense(matrix.dense() + product);
        }
        Ok(())
    }

    fn block_matrix(&mut self, weight: WeightName) -> Option<&mut Matrix> {
        let block = self.blocks_mut().get_mut(weight.layer()?)?;
        let map = match weight {
            WeightName::Q(_) => &mut block.q,
            WeightName::K(_) => &mut block.k,
            WeightName::V(_) => &mut block.v,
            WeightName::O(_) => &mut block.o,
            WeightName::Gate(_) => block.gate.as_mut()?,
            WeightName::Up(_) => &mut block.up,
            WeightName::Down(_) => &mut block.down,
            _ => return None,
        };
        Some(&mut map.weight)
    }
}
