//! A loaded model: configuration, weights as tensors, tokenizer, chat template.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::chat::ChatTemplate;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::tokenizer::Tokenizer;
use crate::weights::{ModelFiles, WeightName};

/// Weights of one block; matrices are `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) attn_norm: Tensor<1>,
    pub(crate) q: Tensor<2>,
    pub(crate) k: Tensor<2>,
    pub(crate) v: Tensor<2>,
    pub(crate) o: Tensor<2>,
    pub(crate) mlp_norm: Tensor<1>,
    pub(crate) gate: Tensor<2>,
    pub(crate) up: Tensor<2>,
    pub(crate) down: Tensor<2>,
}

/// A decoder-only language model, ready to run.
#[derive(Debug)]
pub struct Model {
    files: ModelFiles,
    device: Device,
    embed: Tensor<2>,
    unembed: Tensor<2>,
    final_gain: Tensor<1>,
    blocks: Vec<Block>,
}

impl Model {
    /// Loads a model in f32 from a `.gguf` file or a directory; see [`ModelFiles::open`].
    ///
    /// # Errors
    /// The files are missing, malformed or not supported.
    pub fn load(path: &Path, device: &Device) -> Result<Self, ModelError> {
        Self::from_files(ModelFiles::open(path)?, device, DType::F32)
    }

    /// Loads from opened files in `f32`, or in `f64` for checks of gradients.
    ///
    /// # Errors
    /// A weight is missing or has the wrong shape.
    pub fn from_files(
        files: ModelFiles,
        device: &Device,
        dtype: DType,
    ) -> Result<Self, ModelError> {
        let config = files.config.clone();
        let load = |name: WeightName| -> Result<TensorData, ModelError> {
            Ok(TensorData::new(files.weight(name)?, name.shape(&config)))
        };
        let vector = |name| -> Result<Tensor<1>, ModelError> {
            Ok(Tensor::from_data(load(name)?, (device, dtype)))
        };
        let matrix = |name| -> Result<Tensor<2>, ModelError> {
            Ok(Tensor::from_data(load(name)?, (device, dtype)))
        };
        let embed = matrix(WeightName::Embed)?;
        let unembed = if config.tied_embedding {
            embed.clone()
        } else {
            matrix(WeightName::Unembed)?
        };
        let blocks = (0..config.n_layers)
            .map(|layer| {
                Ok(Block {
                    attn_norm: vector(WeightName::AttnNorm(layer))?,
                    q: matrix(WeightName::Q(layer))?,
                    k: matrix(WeightName::K(layer))?,
                    v: matrix(WeightName::V(layer))?,
                    o: matrix(WeightName::O(layer))?,
                    mlp_norm: vector(WeightName::MlpNorm(layer))?,
                    gate: matrix(WeightName::Gate(layer))?,
                    up: matrix(WeightName::Up(layer))?,
                    down: matrix(WeightName::Down(layer))?,
                })
            })
            .collect::<Result<Vec<_>, ModelError>>()?;
        let final_gain = vector(WeightName::FinalNorm)?;
        Ok(Self {
            files,
            device: device.clone(),
            embed,
            unembed,
            final_gain,
            blocks,
        })
    }

    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.files.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.files.tokenizer
    }

    /// The chat template.
    ///
    /// # Errors
    /// The model has none.
    pub fn chat_template(&self) -> Result<&ChatTemplate, ModelError> {
        self.files.chat_template()
    }

    /// Digest of the weight file, `sha256:…`.
    pub fn digest(&self) -> &str {
        &self.files.digest
    }

    /// The files it was loaded from.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The token embedding `[d_vocab, d_model]`.
    pub fn embedding(&self) -> &Tensor<2> {
        &self.embed
    }

    /// The output matrix `[d_vocab, d_model]`.
    pub fn unembedding(&self) -> &Tensor<2> {
        &self.unembed
    }

    /// Gains of the final norm `[d_model]`.
    pub fn final_gain(&self) -> &Tensor<1> {
        &self.final_gain
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }
}
