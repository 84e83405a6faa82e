//! A model on disk: its configuration, its tokenizer and its weights, whatever the file format.

use std::fmt;
use std::path::{Path, PathBuf};

use pullback_artifact::sha256_bytes;

use crate::chat::ChatTemplate;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::gguf::Gguf;
use crate::huggingface::{self, HuggingFaceFiles};
use crate::tokenizer::Tokenizer;

/// A weight by its role. Matrices are `[out, in]`, row-major, as the files store them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightName {
    /// Token embedding, `[d_vocab, d_model]`.
    Embed,
    /// Output matrix, `[d_vocab, d_model]`; the embedding itself where the two are tied.
    Unembed,
    /// Gain of the norm before the output matrix, `[d_model]`.
    FinalNorm,
    /// Gain of the norm before the attention of a block, `[d_model]`.
    AttnNorm(usize),
    /// Queries, `[n_heads · d_head, d_model]`.
    Q(usize),
    /// Keys, `[n_kv_heads · d_head, d_model]`.
    K(usize),
    /// Values, `[n_kv_heads · d_head, d_model]`.
    V(usize),
    /// Output of the attention, `[d_model, n_heads · d_head]`.
    O(usize),
    /// Gain of the norm before the MLP of a block, `[d_model]`.
    MlpNorm(usize),
    /// Gate of the MLP, `[d_mlp, d_model]`.
    Gate(usize),
    /// Input of the MLP, `[d_mlp, d_model]`.
    Up(usize),
    /// Output of the MLP, `[d_model, d_mlp]`.
    Down(usize),
}

impl WeightName {
    /// All weights of a model, the output matrix also where it is tied.
    pub fn all(config: &ModelConfig) -> impl Iterator<Item = Self> + use<> {
        let blocks = (0..config.n_layers).flat_map(|l| {
            [
                Self::AttnNorm(l),
                Self::Q(l),
                Self::K(l),
                Self::V(l),
                Self::O(l),
                Self::MlpNorm(l),
                Self::Gate(l),
                Self::Up(l),
                Self::Down(l),
            ]
        });
        [Self::Embed]
            .into_iter()
            .chain(blocks)
            .chain([Self::FinalNorm, Self::Unembed])
    }

    /// The shape that follows from a configuration, `[out, in]` for a matrix.
    pub fn shape(self, config: &ModelConfig) -> Vec<usize> {
        let d = config.d_model;
        match self {
            Self::Embed | Self::Unembed => vec![config.d_vocab, d],
            Self::FinalNorm | Self::AttnNorm(_) | Self::MlpNorm(_) => vec![d],
            Self::Q(_) => vec![config.d_q(), d],
            Self::K(_) | Self::V(_) => vec![config.d_kv(), d],
            Self::O(_) => vec![d, config.d_q()],
            Self::Gate(_) | Self::Up(_) => vec![config.d_mlp, d],
            Self::Down(_) => vec![d, config.d_mlp],
        }
    }

    /// The name of this weight in a GGUF file of the `llama` architecture.
    pub fn in_gguf(self) -> String {
        let (layer, role) = match self {
            Self::Embed => return "token_embd.weight".into(),
            Self::Unembed => return "output.weight".into(),
            Self::FinalNorm => return "output_norm.weight".into(),
            Self::AttnNorm(l) => (l, "attn_norm"),
            Self::Q(l) => (l, "attn_q"),
            Self::K(l) => (l, "attn_k"),
            Self::V(l) => (l, "attn_v"),
            Self::O(l) => (l, "attn_output"),
            Self::MlpNorm(l) => (l, "ffn_norm"),
            Self::Gate(l) => (l, "ffn_gate"),
            Self::Up(l) => (l, "ffn_up"),
            Self::Down(l) => (l, "ffn_down"),
        };
        format!("blk.{layer}.{role}.weight")
    }

    /// The name of this weight in a Hugging Face checkpoint of `LlamaForCausalLM`.
    pub fn in_huggingface(self) -> String {
        let (layer, role) = match self {
            Self::Embed => return "model.embed_tokens.weight".into(),
            Self::Unembed => return "lm_head.weight".into(),
            Self::FinalNorm => return "model.norm.weight".into(),
            Self::AttnNorm(l) => (l, "input_layernorm"),
            Self::Q(l) => (l, "self_attn.q_proj"),
            Self::K(l) => (l, "self_attn.k_proj"),
            Self::V(l) => (l, "self_attn.v_proj"),
            Self::O(l) => (l, "self_attn.o_proj"),
            Self::MlpNorm(l) => (l, "post_attention_layernorm"),
            Self::Gate(l) => (l, "mlp.gate_proj"),
            Self::Up(l) => (l, "mlp.up_proj"),
            Self::Down(l) => (l, "mlp.down_proj"),
        };
        format!("model.layers.{layer}.{role}.weight")
    }
}

/// A tensor as its file lists it.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorDescription {
    /// The name in the file.
    pub name: String,
    /// The element type, such as `F32` or `Q4_1`.
    pub dtype: String,
    /// The shape, `[out, in]` for a matrix.
    pub shape: Vec<usize>,
    /// Bytes that the data take in the file.
    pub bytes: u64,
}

/// An opened model: configuration, tokenizer, chat template, and the weights where they lie on disk.
pub struct ModelFiles {
    /// Sizes and constants.
    pub config: ModelConfig,
    /// `sha256:` and the SHA-256 of the weight file in hexadecimal. For a model in several files it is that of the
    /// text which lists them as `sha256sum` does, `<hex>  <name>\n` each, in order of their names.
    pub digest: String,
    /// The tokenizer that the files come with.
    pub tokenizer: Tokenizer,
    /// The chat template, or what is wrong with it: a model is useful without one.
    chat_template: Result<Option<ChatTemplate>, String>,
    path: PathBuf,
    source: Source,
}

enum Source {
    Gguf(Gguf),
    HuggingFace(HuggingFaceFiles),
}

impl fmt::Debug for ModelFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelFiles")
            .field("path", &self.path)
            .field("config", &self.config)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl ModelFiles {
    /// Opens a model: a `.gguf` file, a directory in the Hugging Face layout (`config.json`, `model.safetensors` or its
    /// shards with `model.safetensors.index.json`, `tokenizer.json`), or a directory that holds exactly one `.gguf` file.
    ///
    /// All tensors that the architecture needs are checked for presence, shape and type here; their data are read by
    /// [`ModelFiles::weight`].
    ///
    /// # Errors
    /// When a file is missing, cut short or malformed, when the architecture or a setting of it is not supported, or when
    /// a tensor is missing, is not expected, or does not have the shape that follows from the configuration.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let info = std::fs::metadata(path).map_err(|source| ModelError::io(path, source))?;
        if !info.is_dir() {
            return Self::open_gguf(path);
        }
        if path.join("config.json").is_file() {
            return Self::open_huggingface(path);
        }
        let listing = std::fs::read_dir(path).map_err(|source| ModelError::io(path, source))?;
        let mut found = Vec::new();
        for entry in listing {
            let file = entry.map_err(|source| ModelError::io(path, source))?.path();
            if file
                .extension()
                .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
            {
                found.push(file);
            }
        }
        found.sort();
        match found.as_slice() {
            [file] => Self::open_gguf(file),
            [] => Err(ModelError::NotAModel {
                path: path.to_owned(),
                problem: "the directory has neither a config.json nor a .gguf file".into(),
            }),
            several => Err(ModelError::NotAModel {
                path: path.to_owned(),
                problem: format!(
                    "the directory has {} .gguf files; name one of them: {}",
                    several.len(),
                    several
                        .iter()
                        .filter_map(|p| p.file_name()?.to_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            }),
        }
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let gguf = Gguf::open(path)?;
        let config = gguf.config()?;
        gguf.check_tensors(&config)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        check_vocabulary(path, &tokenizer, &config)?;
        let chat_template = set_aside(ChatTemplate::from_gguf(&gguf, &tokenizer))?;
        let digest = format!("sha256:{}", sha256_bytes(gguf.bytes()));
        Ok(Self {
            config,
            digest,
            tokenizer,
            chat_template,
            path: path.to_owned(),
            source: Source::Gguf(gguf),
        })
    }

    fn open_huggingface(path: &Path) -> Result<Self, ModelError> {
        let config = huggingface::read_config(path)?;
        let files = HuggingFaceFiles::open(path, &config)?;
        let tokenizer = Tokenizer::from_huggingface(path)?;
        check_vocabulary(path, &tokenizer, &config)?;
        let chat_template = set_aside(ChatTemplate::from_huggingface(path, &tokenizer))?;
        let digest = files.digest();
        Ok(Self {
            config,
            digest,
            tokenizer,
            chat_template,
            path: path.to_owned(),
            source: Source::HuggingFace(files),
        })
    }

    /// The file or directory that the model was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The chat template that the files come with, or `ChatML` where they bring none and the vocabulary has its tokens.
    ///
    /// # Errors
    /// When the model has neither, or its template does not parse.
    pub fn chat_template(&self) -> Result<&ChatTemplate, ModelError> {
        let problem = match &self.chat_template {
            Ok(Some(template)) => return Ok(template),
            Ok(None) => format!(
                "{} has none, and its vocabulary has not the tokens <|im_start|> and <|im_end|> of ChatML",
                self.path.display()
            ),
            Err(problem) => format!("{}: {problem}", self.path.display()),
        };
        Err(ModelError::ChatTemplate { problem })
    }

    /// The elements of a weight as `f32`, row-major in the shape [`WeightName::shape`].
    ///
    /// Each call reads (and dequantises) anew. The output matrix of a model with a tied embedding is the embedding.
    ///
    /// # Errors
    /// When a block index is out of range, or the tensor is missing, has another shape than the configuration asks for
    /// (the error names both), or has a type that is not supported.
    pub fn weight(&self, name: WeightName) -> Result<Vec<f32>, ModelError> {
        let found = self.describe_weight(name)?;
        let expected = name.shape(&self.config);
        if found.shape != expected {
            return Err(ModelError::Shape {
                path: self.path.clone(),
                tensor: found.name,
                found: found.shape,
                expected,
            });
        }
        match &self.source {
            Source::Gguf(gguf) => gguf.read_f32(&found.name),
            Source::HuggingFace(files) => files.read_f32(&found.name),
        }
    }

    /// What the file says about a weight.
    ///
    /// # Errors
    /// When the tensor is missing.
    pub fn describe_weight(&self, name: WeightName) -> Result<TensorDescription, ModelError> {
        let name = if self.config.tied_embedding && name == WeightName::Unembed {
            WeightName::Embed
        } else {
            name
        };
        let (tensor, description) = match &self.source {
            Source::Gguf(gguf) => {
                let tensor = name.in_gguf();
                let description = gguf.tensor(&tensor).map(describe);
                (tensor, description)
            }
            Source::HuggingFace(files) => {
                let tied = self.config.tied_embedding && name == WeightName::Embed;
                let tensor = if tied {
                    files.embedding()
                } else {
                    name.in_huggingface()
                };
                let description = files.describe(&tensor);
                (tensor, description)
            }
        };
        description.ok_or_else(|| ModelError::MissingTensor {
            path: self.path.clone(),
            tensor,
        })
    }

    /// All tensors of the files, in the order of the file (GGUF) or of their names.
    pub fn tensors(&self) -> Vec<TensorDescription> {
        match &self.source {
            Source::Gguf(gguf) => gguf.tensors().iter().map(describe).collect(),
            Source::HuggingFace(files) => files.tensors(),
        }
    }

    /// The format of the files, for a person: `GGUF version 3` or `Hugging Face safetensors`.
    pub fn format(&self) -> String {
        match &self.source {
            Source::Gguf(gguf) => format!("GGUF version {}", gguf.version()),
            Source::HuggingFace(_) => "Hugging Face safetensors".into(),
        }
    }
}

/// Keeps what is wrong with a template for when it is asked for; other errors stay errors.
fn set_aside(
    template: Result<Option<ChatTemplate>, ModelError>,
) -> Result<Result<Option<ChatTemplate>, String>, ModelError> {
    match template {
        Ok(template) => Ok(Ok(template)),
        Err(ModelError::ChatTemplate { problem }) => Ok(Err(problem)),
        Err(other) => Err(other),
    }
}

fn describe(record: &crate::gguf::TensorRecord) -> TensorDescription {
    TensorDescription {
        name: record.name.clone(),
        dtype: record.tensor_type.to_string(),
        shape: record.shape.clone(),
        bytes: record.data.len() as u64,
    }
}

/// An embedding has a row for every token; files may round the number of rows up.
fn check_vocabulary(
    path: &Path,
    tokenizer: &Tokenizer,
    config: &ModelConfig,
) -> Result<(), ModelError> {
    if tokenizer.vocab_size() > config.d_vocab {
        return Err(ModelError::malformed(
            path,
            "tokenizer",
            format!(
                "{} tokens, but the embedding has only {} rows",
                tokenizer.vocab_size(),
                config.d_vocab
            ),
        ));
    }
    Ok(())
}
