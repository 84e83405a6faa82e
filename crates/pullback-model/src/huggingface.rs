//! Models in the Hugging Face layout: `config.json` and `model.safetensors`, whole or in shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use pullback_artifact::sha256_bytes;
use pullback_kernels::{Format, StoredMatrix};
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde_json::Value;

use crate::config::{ModelConfig, Rotary, SizeKeys};
use crate::error::ModelError;
use crate::weights::{TensorDescription, WeightName};

/// Bytes before the JSON header of a safetensors file: its length.
const LENGTH_BYTES: usize = 8;
/// The element types that are converted to `f32`.
const SUPPORTED_TYPES: &str = "F32, F16, BF16, F64";

const KEYS: SizeKeys = SizeKeys {
    n_layers: "num_hidden_layers",
    d_model: "hidden_size",
    d_mlp: "intermediate_size",
    n_heads: "num_attention_heads",
    n_kv_heads: "num_key_value_heads",
    d_head: "head_dim",
    d_vocab: "vocab_size",
    n_ctx: "max_position_embeddings",
    rope_dim: "head_dim",
    rope_base: "rope_theta",
    norm_eps: "rms_norm_eps",
};

/// Reads and checks the `config.json` of a directory.
///
/// # Errors
/// When it is missing or not JSON, the architecture or one of its settings is not supported, or a value is absurd.
pub(crate) fn read_config(directory: &Path) -> Result<ModelConfig, ModelError> {
    let path = directory.join("config.json");
    let json = read_json(&path)?;
    let fields = Fields {
        path: &path,
        json: &json,
    };
    let architectures = json
        .get("architectures")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let model_type = fields.text("model_type")?.unwrap_or_default();
    let architecture = architectures
        .first()
        .and_then(Value::as_str)
        .unwrap_or(model_type);
    if model_type != "llama" || !(architecture == "LlamaForCausalLM" || architecture == "llama") {
        let found = if architecture.is_empty() {
            "none named"
        } else {
            architecture
        };
        return Err(ModelError::UnsupportedArchitecture {
            path: path.clone(),
            found: found.to_owned(),
            supported: "LlamaForCausalLM".into(),
        });
    }
    refuse_variants(&fields)?;

    let d_model = fields.required(KEYS.d_model)?;
    let n_heads = fields.required(KEYS.n_heads)?;
    let d_head = match fields.size(KEYS.d_head)? {
        Some(d_head) => d_head,
        None if n_heads > 0 && d_model.is_multiple_of(n_heads) => d_model / n_heads,
        None => {
            return Err(ModelError::malformed(
                &path,
                KEYS.n_heads,
                format!("{n_heads} does not divide {d_model} of {}", KEYS.d_model),
            ));
        }
    };
    let rope = rope_parameters(&json);
    let rope_base = match fields.number(KEYS.rope_base)? {
        Some(base) => base,
        None => match rope {
            Some(rope) => Fields {
                path: &path,
                json: rope,
            }
            .number(KEYS.rope_base)?
            .unwrap_or(10_000.0),
            None => 10_000.0,
        },
    };
    let config = ModelConfig {
        name: directory_name(directory),
        architecture: "llama".into(),
        n_layers: fields.required(KEYS.n_layers)?,
        d_model,
        d_mlp: fields.required(KEYS.d_mlp)?,
        n_heads,
        n_kv_heads: fields.size(KEYS.n_kv_heads)?.unwrap_or(n_heads),
        d_head,
        d_vocab: fields.required(KEYS.d_vocab)?,
        n_ctx: fields.size(KEYS.n_ctx)?.unwrap_or(2048),
        rope_base: rope_base as f32,
        rope_dim: d_head,
        rotary: Rotary::HalfSplit,
        norm_eps: fields.number(KEYS.norm_eps)?.unwrap_or(1e-6) as f32,
        tied_embedding: fields.flag("tie_word_embeddings")?.unwrap_or(false),
    };
    config.check(&path, &KEYS)?;
    Ok(config)
}

/// The settings of the rotary embedding: `rope_parameters` in files of transformers 5, `rope_scaling` before.
fn rope_parameters(json: &Value) -> Option<&Value> {
    ["rope_parameters", "rope_scaling"]
        .iter()
        .find_map(|key| json.get(key).filter(|value| !value.is_null()))
}

/// Settings that change the computation in ways that are not implemented.
fn refuse_variants(fields: &Fields<'_>) -> Result<(), ModelError> {
    let refuse =
        |key: &str, problem: String| Err(ModelError::unsupported(fields.path, key, problem));
    let activation = fields.text("hidden_act")?.unwrap_or("silu");
    if activation != "silu" {
        return refuse(
            "hidden_act",
            format!("activation \"{activation}\" is not supported (supported: silu)"),
        );
    }
    for key in ["attention_bias", "mlp_bias"] {
        if fields.flag(key)? == Some(true) {
            return refuse(
                key,
                "bias terms are not supported (supported: false)".into(),
            );
        }
    }
    if let Some(value) = fields.json.get("quantization_config")
        && !value.is_null()
    {
        return refuse(
            "quantization_config",
            "quantised checkpoints are not supported in this layout (use GGUF, or safetensors in F32, F16 or BF16)".into(),
        );
    }
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(rope) = fields.json.get(key).filter(|value| !value.is_null()) else {
            continue;
        };
        let rope_fields = Fields {
            path: fields.path,
            json: rope,
        };
        let kind = match rope_fields.text("rope_type")? {
            Some(kind) => kind,
            None => rope_fields.text("type")?.unwrap_or("default"),
        };
        if kind != "default" {
            return refuse(
                key,
                format!("rotary scaling \"{kind}\" is not supported (supported: default)"),
            );
        }
        if rope_fields
            .number("partial_rotary_factor")?
            .is_some_and(|factor| (factor - 1.0).abs() > f64::EPSILON)
        {
            return refuse(
                key,
                "a rotary embedding of part of each head is not supported".into(),
            );
        }
    }
    if fields
        .number("partial_rotary_factor")?
        .is_some_and(|factor| (factor - 1.0).abs() > f64::EPSILON)
    {
        return refuse(
            "partial_rotary_factor",
            "a rotary embedding of part of each head is not supported".into(),
        );
    }
    Ok(())
}

fn directory_name(directory: &Path) -> String {
    let full = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    full.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value, ModelError> {
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::io(path, source))?;
    serde_json::from_str(&text)
        .map_err(|error| ModelError::malformed(path, "JSON", error.to_string()))
}

/// Typed access to a JSON object; `null` counts as absent.
struct Fields<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl<'a> Fields<'a> {
    fn typed<T>(
        &self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| {
                let found: String = value.to_string().chars().take(60).collect();
                ModelError::malformed(self.path, key, format!("expected {wanted}, found {found}"))
            }),
        }
    }

    fn size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.typed(key, "an integer that is not negative", |value| {
            value
                .as_u64()
                .map(|n| usize::try_from(n).unwrap_or(usize::MAX))
        })
    }

    fn required(&self, key: &str) -> Result<usize, ModelError> {
        self.size(key)?
            .ok_or_else(|| ModelError::malformed(self.path, key, "this key is missing"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }
}

/// The safetensors files of a model.
pub(crate) struct HuggingFaceFiles {
    directory: PathBuf,
    shards: Vec<Shard>,
    /// The shard that each tensor is in.
    tensors: BTreeMap<String, usize>,
}

struct Shard {
    path: PathBuf,
    /// The file, which matrices share.
    map: Arc<Mmap>,
    /// Where the data begin in the file.
    data_start: usize,
    metadata: Metadata,
}

impl HuggingFaceFiles {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` lists, and checks their tensors
    /// against a configuration.
    ///
    /// # Errors
    /// When a file is missing, cut short or malformed, or a tensor is missing, not expected, or of the wrong shape or
    /// type.
    pub(crate) fn open(directory: &Path, config: &ModelConfig) -> Result<Self, ModelError> {
        let index = directory.join("model.safetensors.index.json");
        let whole = directory.join("model.safetensors");
        let (names, placed) = if whole.is_file() || !index.is_file() {
            (vec!["model.safetensors".to_owned()], None)
        } else {
            let placed = read_index(&index)?;
            (
                placed
                    .values()
                    .cloned()
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect(),
                Some(placed),
            )
        };
        if !whole.is_file() && placed.is_none() {
            return Err(ModelError::NotAModel {
                path: directory.to_owned(),
                problem: "the directory has a config.json but neither model.safetensors nor \
                          model.safetensors.index.json"
                    .into(),
            });
        }
        let mut shards = Vec::with_capacity(names.len());
        let mut tensors = BTreeMap::new();
        for name in &names {
            let shard = Shard::open(&directory.join(name))?;
            for tensor in shard.metadata.offset_keys() {
                if let Some(other) = tensors.insert(tensor.clone(), shards.len()) {
                    return Err(ModelError::malformed(
                        &shard.path,
                        format!("tensor {tensor}"),
                        format!("this tensor is also in {}", names[other]),
                    ));
                }
            }
            shards.push(shard);
        }
        if let Some(placed) = placed
            && let Some((tensor, name)) = placed
                .iter()
                .find(|(tensor, _)| !tensors.contains_key(*tensor))
        {
            return Err(ModelError::MissingTensor {
                path: directory.join(name),
                tensor: tensor.clone(),
            });
        }
        let files = Self {
            directory: directory.to_owned(),
            shards,
            tensors,
        };
        files.check(config)?;
        Ok(files)
    }

    fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let mut expected = BTreeSet::new();
        for weight in WeightName::all(config) {
            let mut tensor = weight.in_huggingface();
            if config.tied_embedding && matches!(weight, WeightName::Embed | WeightName::Unembed) {
                // The one matrix may be stored under either name, or under both.
                expected.insert(tensor);
                if weight == WeightName::Unembed {
                    continue;
                }
                tensor = self.embedding();
            }
            let Some(found) = self.describe(&tensor) else {
                return Err(ModelError::MissingTensor {
                    path: self.directory.clone(),
                    tensor,
                });
            };
            let shape = weight.shape(config);
            if found.shape != shape {
                return Err(ModelError::Shape {
                    path: self.directory.clone(),
                    tensor,
                    found: found.shape,
                    expected: shape,
                });
            }
            self.check_type(&tensor)?;
            expected.insert(tensor);
        }
        // Old checkpoints hold the frequencies of the rotary embedding, which follow from the configuration.
        let extra = self
            .tensors
            .keys()
            .find(|name| !expected.contains(*name) && !name.ends_with(".rotary_emb.inv_freq"));
        match extra {
            None => Ok(()),
            Some(name) => Err(ModelError::unsupported(
                &self.directory,
                format!("tensor {name}"),
                "LlamaForCausalLM as implemented here has no place for it, so running without it would give wrong \
                 numbers",
            )),
        }
    }

    /// The name of the embedding in these files: that of the output matrix where only this is stored.
    pub(crate) fn embedding(&self) -> String {
        [WeightName::Embed, WeightName::Unembed]
            .map(WeightName::in_huggingface)
            .into_iter()
            .find(|name| self.tensors.contains_key(name))
            .unwrap_or_else(|| WeightName::Embed.in_huggingface())
    }

    fn check_type(&self, name: &str) -> Result<(), ModelError> {
        match self.find(name) {
            Some((_, info)) => self.format(name, info.dtype).map(|_| ()),
            None => Ok(()),
        }
    }

    fn format(&self, name: &str, dtype: Dtype) -> Result<Format, ModelError> {
        match dtype {
            Dtype::F32 => Ok(Format::F32),
            Dtype::F16 => Ok(Format::F16),
            Dtype::BF16 => Ok(Format::BF16),
            Dtype::F64 => Ok(Format::F64),
            _ => Err(ModelError::UnsupportedTensorType {
                path: self.directory.clone(),
                tensor: name.to_owned(),
                found: format!("{dtype:?}"),
                supported: SUPPORTED_TYPES.into(),
            }),
        }
    }

    fn find(&self, name: &str) -> Option<(&Shard, &safetensors::tensor::TensorInfo)> {
        let shard = &self.shards[*self.tensors.get(name)?];
        Some((shard, shard.metadata.info(name)?))
    }

    /// What the files say about a tensor.
    pub(crate) fn describe(&self, name: &str) -> Option<TensorDescription> {
        let (_, info) = self.find(name)?;
        Some(TensorDescription {
            name: name.to_owned(),
            dtype: format!("{:?}", info.dtype),
            shape: info.shape.clone(),
            bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
        })
    }

    /// All tensors, in the order of their names.
    pub(crate) fn tensors(&self) -> Vec<TensorDescription> {
        self.tensors
            .keys()
            .filter_map(|name| self.describe(name))
            .collect()
    }

    /// The elements of a tensor as `f32`, row-major.
    ///
    /// # Errors
    /// When the tensor is missing or its type is not supported.
    pub(crate) fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        Ok(self.stored(name)?.to_vec())
    }

    /// A tensor as it lies in its file, which stays mapped as long as the result lives.
    ///
    /// A vector is one row; of a tensor with more than two dimensions, all but the last are counted as rows.
    ///
    /// # Errors
    /// When the tensor is missing or its type is not supported.
    pub(crate) fn stored(&self, name: &str) -> Result<StoredMatrix, ModelError> {
        let (shard, info) = self.find(name).ok_or_else(|| ModelError::MissingTensor {
            path: self.directory.clone(),
            tensor: name.to_owned(),
        })?;
        let format = self.format(name, info.dtype)?;
        let (start, end) = info.data_offsets;
        let columns = info.shape.last().copied().unwrap_or(1);
        let rows = info.shape.iter().rev().skip(1).product();
        StoredMatrix::new(
            Arc::clone(&shard.map) as _,
            shard.data_start + start..shard.data_start + end,
            format,
            rows,
            columns,
        )
        .map_err(|error| {
            ModelError::malformed(&shard.path, format!("tensor {name}"), error.to_string())
        })
    }

    /// The digest that [`crate::ModelFiles::digest`] describes.
    pub(crate) fn digest(&self) -> String {
        let hex = match self.shards.as_slice() {
            [shard] => sha256_bytes(&shard.map),
            shards => {
                let mut list = String::new();
                for shard in shards {
                    let name = shard.path.file_name().unwrap_or_default().to_string_lossy();
                    list.extend([&sha256_bytes(&shard.map), "  ", &name, "\n"]);
                }
                sha256_bytes(list.as_bytes())
            }
        };
        format!("sha256:{hex}")
    }
}

/// Reads which file each tensor is in.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    let json = read_json(path)?;
    let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
        return Err(ModelError::malformed(
            path,
            "weight_map",
            "this key is missing or not an object",
        ));
    };
    let mut placed = BTreeMap::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| {
            let mut parts = Path::new(name).components();
            matches!(
                (parts.next(), parts.next()),
                (Some(Component::Normal(_)), None)
            )
        });
        let Some(name) = name else {
            return Err(ModelError::malformed(
                path,
                format!("weight_map.{tensor}"),
                format!("{file} is not a file name"),
            ));
        };
        placed.insert(tensor.clone(), name.to_owned());
    }
    Ok(placed)
}

impl Shard {
    fn open(path: &Path) -> Result<Self, ModelError> {
        let map =
            pullback_kernels::map_file(path).map_err(|source| ModelError::io(path, source))?;
        match SafeTensors::read_metadata(&map) {
            Ok((header, metadata)) => Ok(Self {
                path: path.to_owned(),
                data_start: LENGTH_BYTES + header,
                metadata,
                map: Arc::new(map),
            }),
            Err(error) => Err(missing_bytes(path, &map).unwrap_or_else(|| {
                ModelError::malformed(path, "safetensors header", error.to_string())
            })),
        }
    }
}

/// The error for a file that is cut short, if that is what is wrong with it.
fn missing_bytes(path: &Path, bytes: &[u8]) -> Option<ModelError> {
    let length = bytes.len();
    let truncated = |field: &str, end: u64, at_least: bool| {
        (end > length as u64).then(|| ModelError::Truncated {
            path: path.to_owned(),
            field: field.to_owned(),
            missing: end - length as u64,
            at_least,
            length: length as u64,
        })
    };
    let Some(prefix) = bytes.first_chunk::<LENGTH_BYTES>() else {
        return truncated("the length of the header", LENGTH_BYTES as u64, true);
    };
    // Longer headers are refused by the format; a number beyond that is damage, not a short file.
    let header = u64::from_le_bytes(*prefix);
    if header > 100_000_000 {
        return None;
    }
    let data_start = header + LENGTH_BYTES as u64;
    let Some(json) = bytes.get(LENGTH_BYTES..data_start as usize) else {
        return truncated("the header", data_start, true);
    };
    let json: Value = serde_json::from_slice(json).ok()?;
    let end = json
        .as_object()?
        .values()
        .filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64())
        .max()?
        .checked_add(data_start)?;
    truncated("the data of its tensors", end, false)
}
