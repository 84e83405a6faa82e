//! A model on disk: its configuration, its tokenizer and its weights, whatever the file format.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pullback_artifact::sha256_bytes;
use pullback_kernels::StoredMatrix;

use crate::chat::ChatTemplate;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::family::{Family, Part};
use crate::gguf::Gguf;
use crate::gguf::config::ROPE_FACTORS;
use crate::huggingface::{self, HuggingFaceFiles};
use crate::llama2c::Llama2c;
use crate::tokenizer::Tokenizer;
use crate::weights::WeightName;

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
    Gguf(Arc<Gguf>),
    HuggingFace(HuggingFaceFiles),
    Llama2c(Box<Llama2c>),
}

impl Source {
    /// The names under which the files may hold a weight, the usual one first, and the part of the tensor that it is.
    fn names(&self, config: &ModelConfig, weight: WeightName) -> Option<(Vec<String>, Part)> {
        let family = Family::named(&config.architecture)?;
        let tied = config.tied_embedding;
        match self {
            Self::Gguf(_) => {
                let weight = if tied && weight == WeightName::Unembed {
                    WeightName::Embed
                } else {
                    weight
                };
                let (name, part) = family.in_gguf(weight)?;
                Some((vec![name], part))
            }
            // The files of llama2.c are listed under these names too.
            Self::HuggingFace(_) | Self::Llama2c(_) => {
                let (names, part) = family.in_huggingface(weight)?;
                let mut names = names.to_vec();
                // The one matrix may be stored under either name, or under both.
                if tied && matches!(weight, WeightName::Embed | WeightName::Unembed) {
                    names.clear();
                    for weight in [WeightName::Embed, WeightName::Unembed] {
                        names.extend(family.in_huggingface(weight)?.0);
                    }
                }
                let pairs = matches!(weight, WeightName::Q(_) | WeightName::K(_));
                let part = match self {
                    Self::Llama2c(_) if pairs => Part::Neighbours,
                    _ => part,
                };
                Some((names, part))
            }
        }
    }

    fn describe(&self, tensor: &str) -> Option<TensorDescription> {
        match self {
            Self::Gguf(gguf) => gguf.tensor(tensor).map(describe),
            Self::HuggingFace(files) => files.describe(tensor),
            Self::Llama2c(file) => file.describe(tensor),
        }
    }

    fn tensors(&self) -> Vec<TensorDescription> {
        match self {
            Self::Gguf(gguf) => gguf.tensors().iter().map(describe).collect(),
            Self::HuggingFace(files) => files.tensors(),
            Self::Llama2c(file) => file.tensors(),
        }
    }

    fn check_type(&self, tensor: &str) -> Result<(), ModelError> {
        match self {
            Self::Gguf(gguf) => gguf.tensor(tensor).map_or(Ok(()), |r| gguf.check_type(r)),
            Self::HuggingFace(files) => files.check_type(tensor),
            Self::Llama2c(_) => Ok(()),
        }
    }

    fn stored(&self, tensor: &str) -> Result<StoredMatrix, ModelError> {
        match self {
            Self::Gguf(gguf) => gguf.stored(tensor),
            Self::HuggingFace(files) => files.stored(tensor),
            Self::Llama2c(file) => file.stored(tensor),
        }
    }

    fn read_f32(&self, tensor: &str) -> Result<Vec<f32>, ModelError> {
        match self {
            Self::Gguf(gguf) => gguf.read_f32(tensor),
            Self::HuggingFace(files) => files.read_f32(tensor),
            Self::Llama2c(file) => file.read_f32(tensor),
        }
    }

    /// Gives the memory of what was read back to the system; it is read again when it is needed.
    fn release(&self) {
        match self {
            Self::Gguf(gguf) => gguf.release(),
            Self::HuggingFace(files) => files.release(),
            Self::Llama2c(file) => file.release(),
        }
    }

    fn digest(&self) -> String {
        match self {
            Self::Gguf(gguf) => format!("sha256:{}", sha256_bytes(gguf.bytes())),
            Self::HuggingFace(files) => files.digest(),
            Self::Llama2c(file) => file.digest(),
        }
    }

    /// Whether a tensor that no weight needs follows from the configuration, so that it may be left alone.
    fn is_derived(&self, tensor: &str) -> bool {
        match self {
            Self::Gguf(_) => tensor == ROPE_FACTORS,
            Self::Llama2c(_) => false,
            // Old checkpoints hold the frequencies of the rotary embedding and the mask of the attention.
            Self::HuggingFace(_) => [
                ".rotary_emb.inv_freq",
                ".attn.bias",
                ".attn.masked_bias",
                ".attention.bias",
                ".attention.masked_bias",
            ]
            .iter()
            .any(|end| tensor.ends_with(end)),
        }
    }
}

/// Checks that the files have all tensors that a configuration asks for, in their shapes and in types that can be read,
/// and no others.
fn check_tensors(path: &Path, config: &ModelConfig, source: &Source) -> Result<(), ModelError> {
    let mut expected = HashSet::new();
    for weight in WeightName::all(config) {
        let missing = |tensor: String| ModelError::MissingTensor {
            path: path.to_owned(),
            tensor,
        };
        let (names, part) = source
            .names(config, weight)
            .ok_or_else(|| missing(format!("{weight:?}")))?;
        let found = names.iter().find_map(|name| source.describe(name));
        let Some(found) = found else {
            return Err(missing(names.into_iter().next().unwrap_or_default()));
        };
        let joint = !matches!(part, Part::Whole | Part::Transposed | Part::Neighbours);
        if joint && config.d_q() != config.d_kv() {
            return Err(ModelError::unsupported(
                path,
                format!("tensor {}", found.name),
                format!(
                    "queries, keys and values in one tensor need as many key-value heads ({}) as heads ({})",
                    config.n_kv_heads, config.n_heads
                ),
            ));
        }
        let shape = stored_shape(&weight.shape(config), part, config);
        if found.shape != shape {
            return Err(ModelError::Shape {
                path: path.to_owned(),
                tensor: found.name,
                found: found.shape,
                expected: shape,
            });
        }
        source.check_type(&found.name)?;
        expected.extend(names);
    }
    let extra = source
        .tensors()
        .into_iter()
        .find(|tensor| !expected.contains(&tensor.name) && !source.is_derived(&tensor.name));
    match extra {
        None => Ok(()),
        Some(tensor) => Err(ModelError::unsupported(
            path,
            format!("tensor {}", tensor.name),
            format!(
                "the {} architecture as implemented here has no place for it, so running without it would give wrong \
                 numbers",
                config.architecture
            ),
        )),
    }
}

/// The shape of the tensor that holds a weight of this shape as a part.
fn stored_shape(shape: &[usize], part: Part, config: &ModelConfig) -> Vec<usize> {
    let joint = config.d_q() + 2 * config.d_kv();
    match (part, shape) {
        (Part::Whole | Part::Neighbours, _) => shape.to_vec(),
        (Part::Transposed, _) => shape.iter().rev().copied().collect(),
        (Part::TransposedThird(_), [_, columns]) => vec![*columns, joint],
        (_, [_, columns]) => vec![joint, *columns],
        _ => vec![joint],
    }
}

/// The stored row of a weight whose heads have the coordinates that turn together as neighbours.
fn neighbour_row(row: usize, d_head: usize) -> usize {
    let (head, at) = (row / d_head, row % d_head);
    let half = d_head / 2;
    head * d_head + 2 * (at % half) + at / half
}

/// The part of a stored tensor that a weight is, row-major `[out, in]`.
fn take_part(values: Vec<f32>, shape: &[usize], part: Part, d_head: usize) -> Vec<f32> {
    let columns = shape.get(1).copied().unwrap_or(1);
    let rows = shape.first().copied().unwrap_or(0);
    let transposed = |from: usize, to: usize| {
        let mut out = Vec::with_capacity((to - from) * rows);
        for column in from..to {
            out.extend((0..rows).map(|row| values[row * columns + column]));
        }
        out
    };
    match part {
        Part::Whole => values,
        Part::Transposed => transposed(0, columns),
        Part::Neighbours => (0..rows)
            .flat_map(|row| {
                let from = neighbour_row(row, d_head);
                &values[from * columns..(from + 1) * columns]
            })
            .copied()
            .collect(),
        Part::TransposedThird(which) => {
            let third = columns / 3;
            transposed(which * third, (which + 1) * third)
        }
        Part::Third(which) => {
            let third = values.len() / 3;
            values[which * third..(which + 1) * third].to_vec()
        }
        Part::HeadThird(which) => {
            let head = d_head * columns;
            values
                .chunks_exact(3 * head)
                .flat_map(|of_head| &of_head[which * head..(which + 1) * head])
                .copied()
                .collect()
        }
    }
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
    /// Opens a model: a `.gguf` file, a llama2.c `.bin` file with its tokenizer beside it, a directory in the Hugging Face
    /// layout (`config.json`, `model.safetensors` or its shards with `model.safetensors.index.json`, `tokenizer.json`), or
    /// a directory that holds exactly one file of the first two kinds.
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
            return Self::open_file(path);
        }
        if path.join("config.json").is_file() {
            return Self::open_huggingface(path);
        }
        let listing = std::fs::read_dir(path).map_err(|source| ModelError::io(path, source))?;
        let (mut ggufs, mut bins) = (Vec::new(), Vec::new());
        for entry in listing {
            let file = entry.map_err(|source| ModelError::io(path, source))?.path();
            let ends = |end: &str| {
                let extension = file.extension();
                extension.is_some_and(|extension| extension.eq_ignore_ascii_case(end))
            };
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if ends("gguf") {
                ggufs.push(file);
            } else if ends("bin") && !name.starts_with("tok") {
                bins.push(file);
            }
        }
        let (kind, mut found) = if ggufs.is_empty() {
            ("llama2.c .bin", bins)
        } else {
            (".gguf", ggufs)
        };
        found.sort();
        match found.as_slice() {
            [file] => Self::open_file(file),
            [] => Err(ModelError::NotAModel {
                path: path.to_owned(),
                problem: "the directory has neither a config.json nor a .gguf file nor a llama2.c .bin file"
                    .into(),
            }),
            several => Err(ModelError::NotAModel {
                path: path.to_owned(),
                problem: format!(
                    "the directory has {} {kind} files; name one of them: {}",
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

    fn open_file(path: &Path) -> Result<Self, ModelError> {
        if path.extension().is_some_and(|extension| extension == "bin") {
            return Self::open_llama2c(path);
        }
        Self::open_gguf(path)
    }

    fn open_llama2c(path: &Path) -> Result<Self, ModelError> {
        let file = Llama2c::open(path)?;
        let config = file.config().clone();
        let tokenizer = file.tokenizer()?;
        check_vocabulary(path, &tokenizer, &config)?;
        let source = Source::Llama2c(Box::new(file));
        check_tensors(path, &config, &source)?;
        Ok(Self {
            config,
            digest: source.digest(),
            tokenizer,
            chat_template: Ok(None),
            path: path.to_owned(),
            source,
        })
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let gguf = Arc::new(Gguf::open(path)?);
        let config = gguf.config()?;
        let source = Source::Gguf(Arc::clone(&gguf));
        check_tensors(path, &config, &source)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        check_vocabulary(path, &tokenizer, &config)?;
        let chat_template = set_aside(ChatTemplate::from_gguf(&gguf, &tokenizer))?;
        let digest = source.digest();
        Ok(Self {
            config,
            digest,
            tokenizer,
            chat_template,
            path: path.to_owned(),
            source,
        })
    }

    fn open_huggingface(path: &Path) -> Result<Self, ModelError> {
        let config = huggingface::read_config(path)?;
        let source = Source::HuggingFace(HuggingFaceFiles::open(path)?);
        check_tensors(path, &config, &source)?;
        let tokenizer = Tokenizer::from_huggingface(path)?;
        check_vocabulary(path, &tokenizer, &config)?;
        let chat_template = set_aside(ChatTemplate::from_huggingface(path, &tokenizer))?;
        let digest = source.digest();
        Ok(Self {
            config,
            digest,
            tokenizer,
            chat_template,
            path: path.to_owned(),
            source,
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
    /// When the model has no such weight or no such block.
    pub fn weight(&self, name: WeightName) -> Result<Vec<f32>, ModelError> {
        let (found, part) = self.locate(name)?;
        let mut values = take_part(
            self.source.read_f32(&found.name)?,
            &found.shape,
            part,
            self.config.d_head,
        );
        let less_one = matches!(self.source, Source::HuggingFace(_)) && name.is_gain();
        if less_one && Family::named(&self.config.architecture).is_some_and(|f| f.gain_less_one) {
            for value in &mut values {
                *value += 1.0;
            }
        }
        Ok(values)
    }

    /// Gives the memory of what was read of the weights back to the system; it is read again when it is needed.
    pub(crate) fn release(&self) {
        self.source.release();
    }

    /// A matrix where it lies in the file, which stays mapped; `None` for one that the file stores transposed.
    ///
    /// # Errors
    /// As [`ModelFiles::weight`].
    pub(crate) fn stored(&self, name: WeightName) -> Result<Option<StoredMatrix>, ModelError> {
        let (found, part) = self.locate(name)?;
        let rows = name.shape(&self.config)[0];
        let d_head = self.config.d_head;
        let whole = self.source.stored(&found.name)?;
        Ok(match part {
            Part::Whole => Some(whole),
            Part::Transposed | Part::TransposedThird(_) => None,
            Part::Neighbours => {
                Some(whole.select_rows((0..rows).map(|row| neighbour_row(row, d_head))))
            }
            Part::Third(which) => Some(whole.select_rows(which * rows..(which + 1) * rows)),
            Part::HeadThird(which) => Some(whole.select_rows(
                (0..rows).map(|row| (3 * (row / d_head) + which) * d_head + row % d_head),
            )),
        })
    }

    /// What the file says about the tensor that holds a weight.
    ///
    /// # Errors
    /// When the model has no such weight or no such block.
    pub fn describe_weight(&self, name: WeightName) -> Result<TensorDescription, ModelError> {
        self.locate(name).map(|(description, _)| description)
    }

    fn locate(&self, name: WeightName) -> Result<(TensorDescription, Part), ModelError> {
        let missing = || ModelError::MissingTensor {
            path: self.path.clone(),
            tensor: format!("{name:?}"),
        };
        if !name.exists(&self.config) {
            return Err(missing());
        }
        let (names, part) = self.source.names(&self.config, name).ok_or_else(missing)?;
        let found = names.iter().find_map(|name| self.source.describe(name));
        let description = found.ok_or_else(|| ModelError::MissingTensor {
            path: self.path.clone(),
            tensor: names.into_iter().next().unwrap_or_default(),
        })?;
        Ok((description, part))
    }

    /// All tensors of the files, in the order of the file (GGUF) or of their names.
    pub fn tensors(&self) -> Vec<TensorDescription> {
        self.source.tensors()
    }

    /// The format of the files, for a person: `GGUF version 3` or `Hugging Face safetensors`.
    pub fn format(&self) -> String {
        match &self.source {
            Source::Gguf(gguf) => format!("GGUF version {}", gguf.version()),
            Source::HuggingFace(_) => "Hugging Face safetensors".into(),
            Source::Llama2c(file) => format!("llama2.c version {}", file.version()),
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
