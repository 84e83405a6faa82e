//! Checkpoints of llama2.c: a Llama in one file of 32-bit floats.
//!
//! Layouts, after `export.py` and `run.c` in its repository, all numbers little endian:
//!
//! - version 0: seven `i32` (width, width of the MLP, blocks, heads, key and value heads, vocabulary, context), the weights
//!   of each kind for all blocks together, and two tables of the rotary embedding that follow from the sizes. A negative
//!   vocabulary says that the output matrix is stored at the end; otherwise it is the embedding.
//! - version 1: the magic number `ak42`, the version, the seven sizes, one byte that says whether the output matrix is the
//!   embedding, zeros up to byte 256, then the weights in another order.
//!
//! The file names nothing, so its length must be exactly what its header asks for.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pullback_artifact::sha256_bytes;

use pullback_kernels::fused::Activation;
use pullback_kernels::{FileBytes, Format, StoredMatrix};

use crate::config::{ModelConfig, Norm, RopeScaling, RotaryConfig, SizeKeys};
use crate::error::ModelError;
use crate::family::{Family, Part};
use crate::files::TensorDescription;
use crate::tokenizer::Tokenizer;
use crate::weights::WeightName;

/// `ak42` as the number that versions from 1 on begin with.
const MAGIC: u32 = 0x616b_3432;
/// Bytes of the header in versions from 1 on.
const LONG_HEADER: usize = 256;
const SIZES: usize = 7;
const FLOAT: usize = size_of::<f32>();

fn keys() -> SizeKeys {
    SizeKeys {
        n_layers: "n_layers".into(),
        d_model: "dim".into(),
        d_mlp: "hidden_dim".into(),
        n_heads: "n_heads".into(),
        n_kv_heads: "n_kv_heads".into(),
        d_head: "dim / n_heads".into(),
        d_vocab: "vocab_size".into(),
        n_ctx: "seq_len".into(),
        rope_dim: "dim / n_heads".into(),
        rope_base: "the base of the rotary embedding".into(),
        norm_eps: "the constant of the norms".into(),
    }
}

/// The name under which a weight is listed.
fn tensor_name(weight: WeightName) -> String {
    let found = Family::named("llama").and_then(|family| family.in_huggingface(weight));
    let ([name, _], _) =
        found.unwrap_or_else(|| ([format!("{weight:?}"), String::new()], Part::Whole));
    name
}

/// A checkpoint of llama2.c: its sizes, and its weights where they lie in the file.
///
/// Tensors have the names of Hugging Face Llama checkpoints (`model.layers.0.self_attn.q_proj.weight`); queries and keys have
/// the coordinates that a rotary embedding turns together as neighbours.
pub struct Llama2c {
    path: PathBuf,
    bytes: Arc<FileBytes>,
    version: u32,
    config: ModelConfig,
    tensors: Vec<Tensor>,
    names: HashMap<String, usize>,
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    data: Range<usize>,
}

impl fmt::Debug for Llama2c {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Llama2c")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Llama2c {
    /// Maps a checkpoint, reads its header and finds its tensors.
    ///
    /// # Errors
    /// When the file cannot be read, its header is absurd or of a version that is not supported (supported: 0, 1), or its
    /// length is not what the header asks for.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let map =
            pullback_kernels::map_file(path).map_err(|source| ModelError::io(path, source))?;
        Self::parse(path, Arc::new(FileBytes::Mapped(map)))
    }

    /// [`Llama2c::open`] of a file that is already in memory; `path` is used in errors and for the model's name only.
    ///
    /// # Errors
    /// As [`Llama2c::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, ModelError> {
        Self::parse(path, Arc::new(FileBytes::Memory(bytes)))
    }

    fn parse(path: &Path, bytes: Arc<FileBytes>) -> Result<Self, ModelError> {
        let header = Header::read(path, (*bytes).as_ref())?;
        let config = header.config(path)?;
        header.check_length(path, &config, (*bytes).as_ref().len())?;

        let mut tensors = Vec::new();
        let mut at = header.bytes;
        for kind in header.order() {
            for weight in kind.of_all_blocks(&config) {
                let shape = weight.shape(&config);
                let end = at + FLOAT * shape.iter().product::<usize>();
                tensors.push(Tensor {
                    name: tensor_name(weight),
                    shape,
                    data: at..end,
                });
                at = end;
            }
            if matches!(kind, Kind::FinalNorm) && header.version == 0 {
                at += FLOAT * header.rotary_table();
            }
        }
        let names = tensors
            .iter()
            .enumerate()
            .map(|(index, tensor)| (tensor.name.clone(), index))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            bytes,
            version: header.version,
            config,
            tensors,
            names,
        })
    }

    /// The file that this is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the layout: 0 or 1.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Sizes and constants. The base of the rotary embedding and the constant of the norms are not in the file; they are
    /// those of `run.c`, 10,000 and 1e-5.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Gives the memory of what was read back to the system, where the file is mapped.
    pub(crate) fn release(&self) {
        self.bytes.release();
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// `sha256:` and the SHA-256 of the file in hexadecimal.
    pub fn digest(&self) -> String {
        format!("sha256:{}", sha256_bytes(self.bytes()))
    }

    /// What the file holds under a name.
    pub fn describe(&self, name: &str) -> Option<TensorDescription> {
        self.names
            .get(name)
            .map(|&index| self.tensors[index].describe())
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> Vec<TensorDescription> {
        self.tensors.iter().map(Tensor::describe).collect()
    }

    /// The elements of a tensor, row-major.
    ///
    /// # Errors
    /// When there is no such tensor.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let missing = || ModelError::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
        };
        let tensor = &self.tensors[*self.names.get(name).ok_or_else(missing)?];
        let data = (*self.bytes)
            .as_ref()
            .get(tensor.data.clone())
            .ok_or_else(missing)?;
        let (floats, _) = data.as_chunks::<FLOAT>();
        Ok(floats.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    /// A tensor as it lies in the file, which stays mapped as long as the result lives. A vector is one row.
    ///
    /// # Errors
    /// When there is no such tensor.
    pub(crate) fn stored(&self, name: &str) -> Result<StoredMatrix, ModelError> {
        let index = self
            .names
            .get(name)
            .ok_or_else(|| ModelError::MissingTensor {
                path: self.path.clone(),
                tensor: name.to_owned(),
            })?;
        let tensor = &self.tensors[*index];
        let columns = tensor.shape.last().copied().unwrap_or(1);
        let rows = tensor.shape.iter().rev().skip(1).product();
        StoredMatrix::new(
            Arc::clone(&self.bytes) as _,
            tensor.data.clone(),
            Format::F32,
            rows,
            columns,
        )
        .map_err(|error| {
            ModelError::malformed(&self.path, format!("tensor {name}"), error.to_string())
        })
    }

    /// The tokenizer beside the file: `tok512.bin` for a vocabulary of 512 tokens, else `tokenizer.bin`.
    ///
    /// # Errors
    /// When there is neither, it is malformed, or it does not have as many tokens as the model.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let own = format!("tok{}.bin", self.config.d_vocab);
        let directory = self.path.parent().unwrap_or(Path::new(""));
        let found = [own.as_str(), "tokenizer.bin"]
            .map(|name| directory.join(name))
            .into_iter()
            .find(|path| path.is_file());
        let Some(path) = found else {
            return Err(ModelError::NotAModel {
                path: self.path.clone(),
                problem: format!(
                    "its tokenizer, {own} or tokenizer.bin, is not in the same directory"
                ),
            });
        };
        let tokenizer = Tokenizer::from_llama2c(&path)?;
        if tokenizer.vocab_size() != self.config.d_vocab {
            return Err(ModelError::malformed(
                &path,
                "tokens",
                format!(
                    "{} tokens, but the model in {} has {}",
                    tokenizer.vocab_size(),
                    self.path.display(),
                    self.config.d_vocab
                ),
            ));
        }
        Ok(tokenizer)
    }
}

impl Tensor {
    fn describe(&self) -> TensorDescription {
        TensorDescription {
            name: self.name.clone(),
            dtype: "F32".into(),
            shape: self.shape.clone(),
            bytes: self.data.len() as u64,
        }
    }
}

/// Weights of one kind, which lie together for all blocks.
#[derive(Clone, Copy)]
enum Kind {
    Embed,
    Block(fn(usize) -> WeightName),
    FinalNorm,
    Unembed,
}

impl Kind {
    fn of_all_blocks(self, config: &ModelConfig) -> Vec<WeightName> {
        match self {
            Self::Embed => vec![WeightName::Embed],
            Self::Block(of) => (0..config.n_layers).map(of).collect(),
            Self::FinalNorm => vec![WeightName::FinalNorm],
            Self::Unembed if config.tied_embedding => Vec::new(),
            Self::Unembed => vec![WeightName::Unembed],
        }
    }
}

/// The order of the weights in version 0.
const ORDER_0: [Kind; 12] = [
    Kind::Embed,
    Kind::Block(WeightName::AttnNorm),
    Kind::Block(WeightName::Q),
    Kind::Block(WeightName::K),
    Kind::Block(WeightName::V),
    Kind::Block(WeightName::O),
    Kind::Block(WeightName::MlpNorm),
    Kind::Block(WeightName::Gate),
    Kind::Block(WeightName::Down),
    Kind::Block(WeightName::Up),
    Kind::FinalNorm,
    Kind::Unembed,
];

/// The order of the weights in version 1.
const ORDER_1: [Kind; 12] = [
    Kind::Block(WeightName::AttnNorm),
    Kind::Block(WeightName::MlpNorm),
    Kind::FinalNorm,
    Kind::Embed,
    Kind::Block(WeightName::Q),
    Kind::Block(WeightName::K),
    Kind::Block(WeightName::V),
    Kind::Block(WeightName::O),
    Kind::Block(WeightName::Gate),
    Kind::Block(WeightName::Down),
    Kind::Block(WeightName::Up),
    Kind::Unembed,
];

struct Header {
    version: u32,
    /// Bytes before the weights.
    bytes: usize,
    /// Width, width of the MLP, blocks, heads, key and value heads, vocabulary, context.
    sizes: [usize; SIZES],
    tied: bool,
}

impl Header {
    fn read(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let short = |wanted: usize| ModelError::Truncated {
            path: path.to_owned(),
            field: "the header".into(),
            missing: (wanted - bytes.len()) as u64,
            at_least: true,
            length: bytes.len() as u64,
        };
        let number = |index: usize| {
            let end = (index + 1) * FLOAT;
            bytes
                .get(index * FLOAT..end)
                .and_then(|number| number.first_chunk())
                .map(|&number| i32::from_le_bytes(number))
                .ok_or_else(|| short(end))
        };
        let versioned = number(0)? as u32 == MAGIC;
        let (version, first) = if versioned {
            (number(1)? as u32, 2)
        } else {
            (0, 0)
        };
        if versioned && version != 1 {
            return Err(ModelError::unsupported(
                path,
                "version",
                format!("llama2.c version {version} is not supported (supported: 0, 1)"),
            ));
        }
        let header = if versioned {
            LONG_HEADER
        } else {
            SIZES * FLOAT
        };
        if bytes.len() < header {
            return Err(short(header));
        }
        let keys = [
            "dim",
            "hidden_dim",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "vocab_size",
            "seq_len",
        ];
        let mut sizes = [0; SIZES];
        let mut tied = !versioned || bytes[(first + SIZES) * FLOAT] != 0;
        for (index, key) in keys.into_iter().enumerate() {
            let mut size = number(first + index)?;
            if key == "vocab_size" && !versioned && size < 0 {
                tied = false;
                size = size.checked_neg().unwrap_or(0);
            }
            sizes[index] = usize::try_from(size)
                .ok()
                .filter(|&size| size > 0)
                .ok_or_else(|| {
                    ModelError::malformed(
                        path,
                        key,
                        format!(
                            "{size} is not a size; this is not a checkpoint of llama2.c, or a damaged one"
                        ),
                    )
                })?;
        }
        Ok(Self {
            version,
            bytes: header,
            sizes,
            tied,
        })
    }

    fn order(&self) -> [Kind; 12] {
        if self.version == 0 { ORDER_0 } else { ORDER_1 }
    }

    fn config(&self, path: &Path) -> Result<ModelConfig, ModelError> {
        let [
            d_model,
            d_mlp,
            n_layers,
            n_heads,
            n_kv_heads,
            d_vocab,
            n_ctx,
        ] = self.sizes;
        if !d_model.is_multiple_of(n_heads) {
            return Err(ModelError::malformed(
                path,
                "n_heads",
                format!("{n_heads} does not divide {d_model} of {}", "dim"),
            ));
        }
        let d_head = d_model / n_heads;
        let mut config = ModelConfig {
            name: path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            architecture: "llama".into(),
            n_layers,
            d_model,
            d_mlp,
            n_heads,
            n_kv_heads,
            d_head,
            d_vocab,
            n_ctx,
            norm: Norm::Rms,
            norm_eps: 1e-5,
            activation: Activation::Silu,
            gated_mlp: true,
            parallel_blocks: false,
            post_norms: false,
            qk_norms: false,
            qkv_bias: false,
            attn_out_bias: false,
            mlp_bias: false,
            rotary: Some(RotaryConfig {
                dim: d_head,
                base: 10_000.0,
                scaling: RopeScaling::None,
                local_base: None,
            }),
            attention_scale: (d_head as f32).powf(-0.5),
            attention_softcap: None,
            final_softcap: None,
            windows: Vec::new(),
            embed_scale: None,
            tied_embedding: self.tied,
        };
        config.check(path, &keys())?;
        config.windows = vec![None; n_layers];
        Ok(config)
    }

    /// Elements of the cosines and sines of the rotary embedding that version 0 stores.
    fn rotary_table(&self) -> usize {
        let [d_model, _, _, n_heads, _, _, n_ctx] = self.sizes;
        n_ctx * (d_model / n_heads)
    }

    /// Checks the length of the file. The sizes have passed [`ModelConfig::check`], so that nothing overflows 128 bits.
    fn check_length(
        &self,
        path: &Path,
        config: &ModelConfig,
        length: usize,
    ) -> Result<(), ModelError> {
        let floats = |weight: WeightName, count: usize| {
            let elements: u128 = weight.shape(config).iter().map(|&n| n as u128).product();
            elements * count as u128
        };
        let mut elements = 0;
        for kind in self.order() {
            elements += match kind {
                Kind::Embed => floats(WeightName::Embed, 1),
                Kind::Block(of) => floats(of(0), config.n_layers),
                Kind::FinalNorm => floats(WeightName::FinalNorm, 1),
                Kind::Unembed => floats(WeightName::Unembed, usize::from(!config.tied_embedding)),
            };
        }
        if self.version == 0 {
            elements += self.rotary_table() as u128;
        }
        let expected = self.bytes as u128 + elements * FLOAT as u128;
        if expected == length as u128 {
            return Ok(());
        }
        if let Ok(expected) = u64::try_from(expected)
            && expected > length as u64
        {
            return Err(ModelError::Truncated {
                path: path.to_owned(),
                field: "the weights that its header asks for".into(),
                missing: expected - length as u64,
                at_least: false,
                length: length as u64,
            });
        }
        Err(ModelError::malformed(
            path,
            "header",
            format!(
                "its sizes ask for {expected} bytes, but the file has {length}; this is not a checkpoint of llama2.c, or \
                 a damaged one"
            ),
        ))
    }
}
