//! Models in the Hugging Face layout: `config.json` and `model.safetensors`, whole or in shards.

mod config;
mod fields;
pub(crate) mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use pullback_artifact::sha256_bytes;
use pullback_kernels::{FileBytes, Format, StoredMatrix};
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde_json::Value;

use crate::error::ModelError;
use crate::files::TensorDescription;

pub(crate) use config::read_config;

/// Bytes before the JSON header of a safetensors file: its length.
const LENGTH_BYTES: usize = 8;
/// The element types that are converted to `f32`.
const SUPPORTED_TYPES: &str = "F32, F16, BF16, F64";

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value, ModelError> {
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::io(path, source))?;
    serde_json::from_str(&text)
        .map_err(|error| ModelError::malformed(path, "JSON", error.to_string()))
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
    map: Arc<FileBytes>,
    /// Where the data begin in the file.
    data_start: usize,
    metadata: Metadata,
}

impl HuggingFaceFiles {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// When a file is missing, cut short or malformed, or a tensor that the index lists is missing.
    pub(crate) fn open(directory: &Path) -> Result<Self, ModelError> {
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
        Ok(Self {
            directory: directory.to_owned(),
            shards,
            tensors,
        })
    }

    pub(crate) fn check_type(&self, name: &str) -> Result<(), ModelError> {
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

    /// Gives the memory of what was read back to the system.
    pub(crate) fn release(&self) {
        for shard in &self.shards {
            shard.map.release();
        }
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
            [shard] => sha256_bytes((*shard.map).as_ref()),
            shards => {
                let mut list = String::new();
                for shard in shards {
                    let name = shard.path.file_name().unwrap_or_default().to_string_lossy();
                    list.extend([&sha256_bytes((*shard.map).as_ref()), "  ", &name, "\n"]);
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
                map: Arc::new(FileBytes::Mapped(map)),
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
