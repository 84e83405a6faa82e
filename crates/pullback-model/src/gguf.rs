//! The GGUF file format, versions 2 and 3, little endian.
//!
//! Layout, after the specification in the ggml repository (`docs/gguf.md`): magic `GGUF`, version, number of tensors,
//! number of metadata entries; the metadata; one record a tensor (name, dimensions, type, offset); padding up to
//! `general.alignment`; the tensors' data.
//!
//! A file is mapped into memory and its header is read once. Every number in it is checked against the length of the
//! file before anything is allocated or multiplied by it, so that a damaged file costs one error and no memory.

pub(crate) mod config;
mod reader;
mod tensor_type;
mod value;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pullback_kernels::{FileBytes, StoredMatrix};

pub use self::tensor_type::TensorType;
pub use self::value::{Array, Value};

use self::reader::Reader;
use crate::error::ModelError;

/// The alignment of tensor data where `general.alignment` does not say otherwise, in bytes.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The most dimensions that a tensor of ggml can have.
const MAX_DIMENSIONS: u32 = 4;
/// Bytes of the shortest metadata entry: an empty key, a type, one byte of value.
const MIN_ENTRY: u64 = 8 + 4 + 1;
/// Bytes of the shortest tensor record: an empty name, a count of dimensions, one dimension, a type, an offset.
const MIN_TENSOR_RECORD: u64 = 8 + 4 + 8 + 4 + 8;

/// What a GGUF header says about one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorRecord {
    /// The tensor's name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// The shape in row-major order, `[out, in]` for a matrix (GGUF itself lists the fastest dimension first).
    pub shape: Vec<usize>,
    /// The type of its elements.
    pub tensor_type: TensorType,
    /// Where its data lie in the file, in bytes from the start.
    pub data: Range<usize>,
}

impl TensorRecord {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A GGUF file: its metadata, the list of its tensors, and their data where they lie.
pub struct Gguf {
    path: PathBuf,
    bytes: Arc<FileBytes>,
    version: u32,
    metadata: Vec<(String, Value)>,
    keys: HashMap<String, usize>,
    tensors: Vec<TensorRecord>,
    names: HashMap<String, usize>,
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("metadata", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

impl Gguf {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// When the file cannot be read, is not GGUF of version 2 or 3, is cut short, or contradicts itself; the error names
    /// the field and its value.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let map =
            pullback_kernels::map_file(path).map_err(|source| ModelError::io(path, source))?;
        Self::parse(path, Arc::new(FileBytes::Mapped(map)))
    }

    /// Reads the header of a file that is already in memory; `path` is used in errors only.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, ModelError> {
        Self::parse(path, Arc::new(FileBytes::Memory(bytes)))
    }

    fn parse(path: &Path, bytes: Arc<FileBytes>) -> Result<Self, ModelError> {
        let mut reader = Reader::new(path, (*bytes).as_ref());
        let version = read_version(&mut reader)?;
        let tensor_count = reader.count("tensor_count", MIN_TENSOR_RECORD)?;
        let entry_count = reader.count("metadata_kv_count", MIN_ENTRY)?;

        let mut metadata = Vec::new();
        let mut keys = HashMap::new();
        for index in 0..entry_count {
            let key = reader.string(&format!("metadata key {index}"))?;
            let value = Value::read(&mut reader, &key)?;
            if keys.insert(key.clone(), index).is_some() {
                return Err(reader.malformed(&key, "this metadata key occurs twice"));
            }
            metadata.push((key, value));
        }
        let alignment = match keys.get("general.alignment").map(|&at| &metadata[at].1) {
            None => DEFAULT_ALIGNMENT,
            Some(&Value::U32(alignment)) if alignment.is_power_of_two() => u64::from(alignment),
            Some(value) => {
                return Err(reader.malformed(
                    "general.alignment",
                    format!("{} is not a power of two of type u32", value.summary()),
                ));
            }
        };

        let mut tensors = Vec::new();
        let mut names = HashMap::new();
        let mut next_offset = 0;
        for index in 0..tensor_count {
            let record = read_tensor_record(&mut reader, index, alignment, &mut next_offset)?;
            if names.insert(record.name.clone(), index).is_some() {
                return Err(reader.malformed(
                    format!("tensor {}", record.name),
                    "this tensor name occurs twice",
                ));
            }
            tensors.push(record);
        }

        // Offsets count from the first aligned byte after the header.
        let data_start = reader.position().next_multiple_of(alignment);
        let length = (*bytes).as_ref().len() as u64;
        let mut last: Option<(u64, &str)> = None;
        for record in &mut tensors {
            let shifted = |offset: usize| data_start.checked_add(offset as u64);
            let (Some(start), Some(end)) = (shifted(record.data.start), shifted(record.data.end))
            else {
                return Err(ModelError::malformed(
                    path,
                    format!("tensor {}", record.name),
                    "its offset overflows",
                ));
            };
            record.data = start as usize..end as usize;
            if end > length && last.is_none_or(|(so_far, _)| end > so_far) {
                last = Some((end, &record.name));
            }
        }
        if let Some((end, name)) = last {
            return Err(ModelError::Truncated {
                path: path.to_owned(),
                field: format!("the data of tensor {name}"),
                missing: end - length,
                at_least: false,
                length,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            bytes,
            version,
            metadata,
            keys,
            tensors,
            names,
        })
    }

    /// The file that this is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata in the order of the file.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[TensorRecord] {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&TensorRecord> {
        self.names.get(name).map(|&index| &self.tensors[index])
    }

    /// The raw data of a tensor of this file.
    pub fn tensor_bytes(&self, record: &TensorRecord) -> &[u8] {
        self.bytes().get(record.data.clone()).unwrap_or_default()
    }

    /// Gives the memory of what was read back to the system, where the file is mapped.
    pub(crate) fn release(&self) {
        self.bytes.release();
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// The elements of a tensor as `f32`, row-major.
    ///
    /// # Errors
    /// When the tensor is missing, or its type cannot be converted; the error lists the types that can.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        Ok(self.stored(name)?.to_vec())
    }

    /// A tensor as it lies in the file, which stays mapped as long as the result lives.
    ///
    /// A vector is one row; of a tensor with more than two dimensions, all but the last are counted as rows.
    ///
    /// # Errors
    /// As [`Gguf::read_f32`].
    pub fn stored(&self, tensor: &str) -> Result<StoredMatrix, ModelError> {
        let record = self
            .tensor(tensor)
            .ok_or_else(|| ModelError::MissingTensor {
                path: self.path.clone(),
                tensor: tensor.to_owned(),
            })?;
        let format = record
            .tensor_type
            .format()
            .ok_or_else(|| self.unsupported_type(record))?;
        let columns = record.shape.last().copied().unwrap_or(1);
        StoredMatrix::new(
            Arc::clone(&self.bytes) as _,
            record.data.clone(),
            format,
            record.elements() / columns.max(1),
            columns,
        )
        .map_err(|error| {
            ModelError::malformed(&self.path, format!("tensor {tensor}"), error.to_string())
        })
    }

    /// Checks that the type of a tensor can be converted to `f32`.
    ///
    /// # Errors
    /// [`ModelError::UnsupportedTensorType`] when it cannot.
    pub fn check_type(&self, record: &TensorRecord) -> Result<(), ModelError> {
        if record.tensor_type.is_supported() {
            return Ok(());
        }
        Err(self.unsupported_type(record))
    }

    fn unsupported_type(&self, record: &TensorRecord) -> ModelError {
        ModelError::UnsupportedTensorType {
            path: self.path.clone(),
            tensor: record.name.clone(),
            found: record.tensor_type.to_string(),
            supported: TensorType::supported()
                .map(|t| t.to_string())
                .collect::<Vec<_>>()
                .join(", "),
        }
    }

    /// The value of a metadata key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&index| &self.metadata[index].1)
    }

    /// A metadata string.
    ///
    /// # Errors
    /// When the value has another type.
    pub fn string(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A metadata integer of any width that is not negative.
    ///
    /// # Errors
    /// When the value is negative or has another type.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.typed(key, "an integer that is not negative", Value::as_unsigned)
    }

    /// A metadata number of any type.
    ///
    /// # Errors
    /// When the value has another type.
    pub fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a number", Value::as_float)
    }

    /// A metadata truth value.
    ///
    /// # Errors
    /// When the value has another type.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "a truth value", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// A metadata array.
    ///
    /// # Errors
    /// When the value has another type.
    pub fn array(&self, key: &str) -> Result<Option<&Array>, ModelError> {
        self.typed(key, "an array", |value| match value {
            Value::Array(array) => Some(array),
            _ => None,
        })
    }

    /// A metadata array of strings.
    ///
    /// # Errors
    /// When the value has another type.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, ModelError> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Array(Array::String(strings)) => Some(strings.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        self.value(key)
            .map(|value| {
                convert(value).ok_or_else(|| {
                    ModelError::malformed(
                        &self.path,
                        key,
                        format!("expected {wanted}, found {}", value.summary()),
                    )
                })
            })
            .transpose()
    }
}

fn read_version(reader: &mut Reader<'_>) -> Result<u32, ModelError> {
    let magic = reader.take(4, "magic")?;
    if magic != b"GGUF" {
        let found = magic.escape_ascii();
        return Err(reader.malformed(
            "magic",
            format!("this is not a GGUF file: it begins with \"{found}\""),
        ));
    }
    let version = reader.u32("version")?;
    match version {
        2 | 3 => Ok(version),
        1 => Err(reader.unsupported("version", "GGUF version 1 is not supported (supported: 2, 3)")),
        // A small number read with its bytes reversed.
        _ if version.swap_bytes() <= 0xff => Err(reader.unsupported(
            "version",
            format!(
                "this is a big-endian GGUF file (version {}), which is not supported (supported: little endian)",
                version.swap_bytes()
            ),
        )),
        _ => Err(reader.unsupported("version", format!("GGUF version {version} is not supported (supported: 2, 3)"))),
    }
}

/// Reads one tensor record; its data range is still relative to the start of the data section.
///
/// ggml writes the data of the tensors in the order of their records without gaps beyond the alignment, and reads only
/// such files; so does this: `next_offset` is where the data of this tensor must begin.
fn read_tensor_record(
    reader: &mut Reader<'_>,
    index: usize,
    alignment: u64,
    next_offset: &mut u64,
) -> Result<TensorRecord, ModelError> {
    let name = reader.string(&format!("name of tensor {index}"))?;
    let field = format!("tensor {name}");
    let dimensions = reader.u32(&field)?;
    if dimensions == 0 || dimensions > MAX_DIMENSIONS {
        return Err(reader.malformed(
            &field,
            format!("{dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}"),
        ));
    }
    let mut sizes = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        sizes.push(reader.u64(&field)?);
    }
    let type_id = reader.u32(&field)?;
    let offset = reader.u64(&field)?;

    let tensor_type = TensorType::from_id(type_id)
        .ok_or_else(|| reader.malformed(&field, format!("unknown tensor type {type_id}")))?;
    if sizes.contains(&0) {
        return Err(reader.malformed(&field, format!("a dimension of {sizes:?} is zero")));
    }
    let (block, block_bytes) = (tensor_type.block_elements(), tensor_type.block_bytes());
    if !sizes[0].is_multiple_of(block) {
        return Err(reader.malformed(
            &field,
            format!(
                "rows of {} elements are not made of the blocks of {block} of type {tensor_type}",
                sizes[0]
            ),
        ));
    }
    let overflows = || {
        reader.malformed(
            &field,
            format!("the size of {sizes:?} of type {tensor_type} overflows"),
        )
    };
    let (bytes, padded) = sizes
        .iter()
        .try_fold(1u64, |product, &size| product.checked_mul(size))
        .and_then(|elements| (elements / block).checked_mul(block_bytes))
        .and_then(|bytes| Some((bytes, bytes.checked_next_multiple_of(alignment)?)))
        .ok_or_else(overflows)?;
    if offset != *next_offset {
        return Err(reader.malformed(
            &field,
            format!("its data offset is {offset}, expected {next_offset}"),
        ));
    }
    *next_offset = offset
        .checked_add(padded)
        .filter(|&end| isize::try_from(end).is_ok())
        .ok_or_else(overflows)?;
    Ok(TensorRecord {
        name,
        shape: sizes.iter().rev().map(|&size| size as usize).collect(),
        tensor_type,
        data: offset as usize..(offset + bytes) as usize,
    })
}
