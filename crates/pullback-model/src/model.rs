//! A loaded model: configuration, weights as tensors, tokenizer, chat template.

use std::path::Path;
use std::sync::{Arc, Mutex};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use pullback_kernels::StoredMatrix;
use pullback_kernels::fused::{RotaryTable, is_fused, linear, linear_stored};

use crate::chat::ChatTemplate;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::files::ModelFiles;
use crate::tokenizer::Tokenizer;
use crate::weights::WeightName;

/// How weights are held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// Matrices stay as their file stores them, quantised or not, and are decoded when they are used: the file's own
    /// memory and no more. The numbers are the same.
    #[default]
    AsStored,
    /// Matrices become tensors in the element type of the model.
    Expanded,
}

/// A weight matrix `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) enum Matrix {
    /// In the element type of the model.
    Dense(Tensor<2>),
    /// Where it lies in its file.
    Stored(StoredMatrix, DType, Device),
}

impl Matrix {
    /// `x Wᵀ`.
    pub(crate) fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Dense(weight) => linear(x, weight.clone()),
            Self::Stored(weight, ..) => linear_stored(x, weight),
        }
    }

    /// The whole matrix as a tensor.
    pub(crate) fn dense(&self) -> Tensor<2> {
        match self {
            Self::Dense(weight) => weight.clone(),
            Self::Stored(weight, dtype, device) => {
                let shape = [weight.rows(), weight.columns()];
                let values: Vec<f32> = weight.to_vec();
                Tensor::from_data(TensorData::new(values, shape), (device, *dtype))
            }
        }
    }

    /// Some of its rows: `[ids, in]`.
    pub(crate) fn rows(&self, ids: &[u32], device: &Device) -> Tensor<2> {
        match self {
            Self::Dense(weight) => {
                let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
                let count = ids.len();
                let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), device);
                weight.clone().select(0, ids)
            }
            Self::Stored(weight, dtype, device) => {
                let values: Vec<f32> = weight.gather(ids);
                let data = TensorData::new(values, [ids.len(), weight.columns()]);
                Tensor::from_data(data, (device, *dtype))
            }
        }
    }
}

/// A matrix and the bias that is added to its products.
#[derive(Clone, Debug)]
pub(crate) struct Affine {
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Tensor<1>>,
}

/// Gain and bias of a norm.
#[derive(Clone, Debug)]
pub(crate) struct NormWeights {
    pub(crate) gain: Tensor<1>,
    pub(crate) bias: Option<Tensor<1>>,
}

/// Weights of one block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) attn_norm: NormWeights,
    pub(crate) q: Affine,
    pub(crate) k: Affine,
    pub(crate) v: Affine,
    pub(crate) qk_norms: Option<(NormWeights, NormWeights)>,
    pub(crate) o: Affine,
    pub(crate) attn_post_norm: Option<NormWeights>,
    pub(crate) mlp_norm: NormWeights,
    pub(crate) gate: Option<Affine>,
    pub(crate) up: Affine,
    pub(crate) down: Affine,
    pub(crate) mlp_post_norm: Option<NormWeights>,
}

/// A decoder-only language model, ready to run.
#[derive(Debug)]
pub struct Model {
    files: ModelFiles,
    device: Device,
    dtype: DType,
    embed: Matrix,
    positions: Option<Tensor<2>>,
    unembed: Matrix,
    final_norm: NormWeights,
    blocks: Vec<Block>,
    /// Angles of the rotary embedding, of blocks without and with a window, for as many positions as were needed.
    angles: Mutex<[Option<Arc<RotaryTable>>; 2]>,
}

/// What of a model holds weights.
pub(crate) struct PartsMut<'a> {
    pub(crate) embed: &'a mut Matrix,
    pub(crate) positions: &'a mut Option<Tensor<2>>,
    pub(crate) unembed: &'a mut Matrix,
    pub(crate) final_norm: &'a mut NormWeights,
    pub(crate) blocks: &'a mut [Block],
}

/// Reads weights into tensors.
struct Loader<'a> {
    files: &'a ModelFiles,
    device: &'a Device,
    dtype: DType,
    weights: Weights,
}

impl Loader<'_> {
    fn data(&self, name: WeightName) -> Result<TensorData, ModelError> {
        Ok(TensorData::new(
            self.files.weight(name)?,
            name.shape(&self.files.config),
        ))
    }

    fn vector(&self, name: WeightName) -> Result<Tensor<1>, ModelError> {
        Ok(Tensor::from_data(
            self.data(name)?,
            (self.device, self.dtype),
        ))
    }

    fn optional(&self, name: WeightName) -> Result<Option<Tensor<1>>, ModelError> {
        name.exists(&self.files.config)
            .then(|| self.vector(name))
            .transpose()
    }

    fn matrix(&self, name: WeightName) -> Result<Matrix, ModelError> {
        if self.weights == Weights::AsStored
            && let Some(stored) = self.files.stored(name)?
        {
            return Ok(Matrix::Stored(stored, self.dtype, self.device.clone()));
        }
        let dense = Tensor::from_data(self.data(name)?, (self.device, self.dtype));
        Ok(Matrix::Dense(dense))
    }

    fn affine(&self, weight: WeightName, bias: WeightName) -> Result<Affine, ModelError> {
        Ok(Affine {
            weight: self.matrix(weight)?,
            bias: self.optional(bias)?,
        })
    }

    fn norm(&self, gain: WeightName, bias: Option<WeightName>) -> Result<NormWeights, ModelError> {
        Ok(NormWeights {
            gain: self.vector(gain)?,
            bias: match bias {
                Some(bias) => self.optional(bias)?,
                None => None,
            },
        })
    }

    /// Where weights are expanded, what was read of the files is not needed again.
    fn release(&self) {
        if self.weights == Weights::Expanded {
            self.files.release();
        }
    }

    fn block(&self, l: usize) -> Result<Block, ModelError> {
        use WeightName as W;
        let config = &self.files.config;
        let post = |name| config.post_norms.then(|| self.norm(name, None)).transpose();
        Ok(Block {
            attn_norm: self.norm(W::AttnNorm(l), Some(W::AttnNormBias(l)))?,
            q: self.affine(W::Q(l), W::QBias(l))?,
            k: self.affine(W::K(l), W::KBias(l))?,
            v: self.affine(W::V(l), W::VBias(l))?,
            qk_norms: if config.qk_norms {
                Some((self.norm(W::QNorm(l), None)?, self.norm(W::KNorm(l), None)?))
            } else {
                None
            },
            o: self.affine(W::O(l), W::OBias(l))?,
            attn_post_norm: post(W::AttnPostNorm(l))?,
            mlp_norm: self.norm(W::MlpNorm(l), Some(W::MlpNormBias(l)))?,
            gate: if config.gated_mlp {
                Some(self.affine(W::Gate(l), W::GateBias(l))?)
            } else {
                None
            },
            up: self.affine(W::Up(l), W::UpBias(l))?,
            down: self.affine(W::Down(l), W::DownBias(l))?,
            mlp_post_norm: post(W::MlpPostNorm(l))?,
        })
    }
}

impl Model {
    /// Loads a model to run in f32 from a `.gguf` file, a llama2.c file or a directory; see [`ModelFiles::open`].
    ///
    /// # Errors
    /// The files are missing, malformed or not supported.
    pub fn load(path: &Path, device: &Device) -> Result<Self, ModelError> {
        Self::from_files(ModelFiles::open(path)?, device, DType::F32)
    }

    /// Loads from opened files, to run in `f32`, or in `f64` for checks of gradients.
    ///
    /// # Errors
    /// A weight cannot be read.
    pub fn from_files(
        files: ModelFiles,
        device: &Device,
        dtype: DType,
    ) -> Result<Self, ModelError> {
        Self::with_weights(files, device, dtype, Weights::default())
    }

    /// The same, with a say in how weights are held. On other devices than the CPU they are expanded in any case.
    ///
    /// # Errors
    /// A weight cannot be read.
    pub fn with_weights(
        files: ModelFiles,
        device: &Device,
        dtype: DType,
        weights: Weights,
    ) -> Result<Self, ModelError> {
        let weights = if is_fused(device) {
            weights
        } else {
            Weights::Expanded
        };
        let loader = Loader {
            files: &files,
            device,
            dtype,
            weights,
        };
        loader.release();
        let embed = loader.matrix(WeightName::Embed)?;
        loader.release();
        let positions = if files.config.rotary.is_none() {
            Some(loader.matrix(WeightName::Positions)?.dense())
        } else {
            None
        };
        let unembed = if files.config.tied_embedding {
            embed.clone()
        } else {
            loader.matrix(WeightName::Unembed)?
        };
        let blocks = (0..files.config.n_layers)
            .map(|layer| {
                let block = loader.block(layer);
                loader.release();
                block
            })
            .collect::<Result<Vec<_>, ModelError>>()?;
        let final_norm = loader.norm(WeightName::FinalNorm, Some(WeightName::FinalNormBias))?;
        Ok(Self {
            files,
            device: device.clone(),
            dtype,
            embed,
            positions,
            unembed,
            final_norm,
            blocks,
            angles: Mutex::new([None, None]),
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

    /// Element type in which the model runs.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The token embedding `[d_vocab, d_model]`, before any scaling, made anew where the weights stay as stored.
    pub fn embedding(&self) -> Tensor<2> {
        self.embed.dense()
    }

    /// The output matrix `[d_vocab, d_model]`, made anew where the weights stay as stored.
    pub fn unembedding(&self) -> Tensor<2> {
        self.unembed.dense()
    }

    /// `x Wᵀ` with the output matrix: `[n, d_model]` → `[n, d_vocab]`, no norm before it and no cap after it.
    pub fn unembed(&self, x: Tensor<2>) -> Tensor<2> {
        self.unembed.apply(x)
    }

    /// Gains of the final norm `[d_model]`.
    pub fn final_gain(&self) -> &Tensor<1> {
        &self.final_norm.gain
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub(crate) fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks
    }

    /// What holds the weights, to change them.
    pub(crate) fn parts_mut(&mut self) -> PartsMut<'_> {
        PartsMut {
            embed: &mut self.embed,
            positions: &mut self.positions,
            unembed: &mut self.unembed,
            final_norm: &mut self.final_norm,
            blocks: &mut self.blocks,
        }
    }

    pub(crate) fn set_unembed(&mut self, unembed: Matrix) {
        self.unembed = unembed;
    }

    pub(crate) fn set_device(&mut self, device: Device) {
        self.device = device;
    }

    pub(crate) fn final_norm_weights(&self) -> &NormWeights {
        &self.final_norm
    }

    pub(crate) fn output_matrix(&self) -> &Matrix {
        &self.unembed
    }

    /// Rows of the embedding, scaled where the model scales them: `[ids, d_model]`.
    pub(crate) fn embed_rows(&self, ids: &[u32]) -> Tensor<2> {
        let rows = self.embed.rows(ids, &self.device);
        match self.config().embed_scale {
            Some(scale) => rows * scale,
            None => rows,
        }
    }

    /// The learned vectors of positions, where the model has them: `[positions, d_model]`.
    pub(crate) fn position_rows(&self, positions: &[u32]) -> Option<Tensor<2>> {
        let table = Matrix::Dense(self.positions.clone()?);
        Some(table.rows(positions, &self.device))
    }

    /// The angles of at least so many positions, for blocks without or with a window.
    pub(crate) fn angles(&self, positions: usize, local: bool) -> Option<Arc<RotaryTable>> {
        let rotary = self.config().rotary.as_ref()?;
        let local = local && rotary.local_base.is_some();
        // A thread that panicked here left a whole table or none.
        let mut tables = self
            .angles
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let slot = &mut tables[usize::from(local)];
        if let Some(table) = slot
            && table.positions() >= positions
        {
            return Some(Arc::clone(table));
        }
        // Doubling, so that generation makes few tables.
        let size = positions
            .next_power_of_two()
            .max(128)
            .min(self.config().n_ctx.max(positions));
        let table = Arc::new(RotaryTable::new(size, &rotary.frequencies(local)));
        *slot = Some(Arc::clone(&table));
        Some(table)
    }
}
