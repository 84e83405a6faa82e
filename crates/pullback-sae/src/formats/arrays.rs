//! Named arrays of a file, read as `f32` and checked for their shape.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;

use crate::{Sae, SaeError, SaeParts};

/// A type of numbers, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    F32,
    F64,
    I32,
    I64,
}

impl Element {
    /// That of a tensor in a safetensors file, where it is one of these.
    pub(crate) fn of_safetensors(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::Bf16,
            Dtype::F32 => Self::F32,
            Dtype::F64 => Self::F64,
            Dtype::I32 => Self::I32,
            Dtype::I64 => Self::I64,
            _ => return None,
        })
    }

    /// Bytes of a number.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    /// Every number of `bytes`.
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            let (chunks, _) = bytes.as_chunks::<N>();
            chunks.iter().map(|&chunk| number(chunk)).collect()
        }
        match self {
            Self::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            Self::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
            Self::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
        }
    }
}

/// A file of named arrays.
pub(super) trait Arrays {
    /// The file.
    fn path(&self) -> &Path;

    /// All names, for messages; with its type where an array is of one that is not read.
    fn names(&self) -> Vec<String>;

    /// The type and the shape of an array.
    fn header(&self, name: &str) -> Option<(Element, &[usize])>;

    /// The numbers of an array, in order of its rows; as many as its shape says.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, SaeError>;
}

/// The names of a file's arrays, with what is wrong where an array is not read.
pub(super) fn names_of<T>(headers: &BTreeMap<String, Result<T, String>>) -> Vec<String> {
    let name = |(name, header): (&String, &Result<T, String>)| match header {
        Ok(_) => name.clone(),
        Err(problem) => format!("{name} ({problem})"),
    };
    headers.iter().map(name).collect()
}

impl dyn Arrays + '_ {
    /// An error of this file.
    pub(super) fn wrong(&self, problem: impl Into<String>) -> SaeError {
        SaeError::File {
            path: self.path().to_owned(),
            problem: problem.into(),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.header(name).is_some()
    }

    /// The shape of an array that must be there.
    pub(super) fn shape(&self, name: &str) -> Result<&[usize], SaeError> {
        let (_, shape) = self.header(name).ok_or_else(|| {
            let mut names = self.names();
            names.sort_unstable();
            names.truncate(16);
            self.wrong(format!(
                "`{name}` is missing or not of numbers; there are {}",
                names.join(", ")
            ))
        })?;
        Ok(shape)
    }

    /// The length of a vector that must be there.
    pub(super) fn length(&self, name: &str) -> Result<usize, SaeError> {
        match self.shape(name)? {
            [0] => Err(self.wrong(format!("`{name}` is empty"))),
            &[length] => Ok(length),
            shape => Err(self.wrong(format!("{name} has shape {shape:?}, a vector is needed"))),
        }
    }

    /// The sizes of a matrix that must be there.
    pub(super) fn sizes(&self, name: &str) -> Result<[usize; 2], SaeError> {
        match *self.shape(name)? {
            [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
            ref shape => Err(self.wrong(format!("{name} has shape {shape:?}, a matrix is needed"))),
        }
    }

    /// An array of this shape.
    ///
    /// # Errors
    /// It is missing, has another shape, or holds what is no number; a threshold may be infinite.
    pub(super) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, SaeError> {
        let found = self.shape(name)?;
        if found != shape {
            let reversed: Vec<usize> = shape.iter().rev().copied().collect();
            let hint = if found == reversed {
                ": it is transposed"
            } else {
                ""
            };
            return Err(self.wrong(format!(
                "{name} has shape {found:?}, expected {shape:?}{hint}"
            )));
        }
        let Some((element, _)) = self.header(name) else {
            return Err(self.wrong(format!("`{name}` is missing")));
        };
        let bytes = self.bytes(name)?;
        let count = shape.iter().product::<usize>();
        if bytes.len() != count * element.size() {
            return Err(self.wrong(format!(
                "{name} holds {} bytes, {count} numbers of {} bytes are needed",
                bytes.len(),
                element.size()
            )));
        }
        let values = element.decode(&bytes);
        let allowed = |x: &f32| x.is_finite() || (*x == f32::INFINITY && name == "threshold");
        match values.iter().position(|x| !allowed(x)) {
            Some(place) => Err(self.wrong(format!(
                "{name} holds {} at place {place}; finite numbers are needed",
                values[place]
            ))),
            None => Ok(values),
        }
    }

    /// `[rows, columns]` in the file, one row a column in memory.
    pub(super) fn read_transposed(
        &self,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<f32>, SaeError> {
        Ok(transposed(
            &self.read(name, &[rows, columns])?,
            rows,
            columns,
        ))
    }

    /// `exp` of the numbers of a vector.
    pub(super) fn read_exp(&self, name: &str, length: usize) -> Result<Vec<f32>, SaeError> {
        let logs = self.read(name, &[length])?;
        let values: Vec<f32> = logs.iter().map(|&x| f64::from(x).exp() as f32).collect();
        match values.iter().position(|x| !x.is_finite()) {
            Some(place) => Err(self.wrong(format!(
                "{name} holds {} at place {place}, whose exponential is no number",
                logs[place]
            ))),
            None => Ok(values),
        }
    }

    /// A single number, with or without a dimension of one.
    pub(super) fn scalar(&self, name: &str) -> Result<f32, SaeError> {
        let shape = self.shape(name)?.to_vec();
        if shape.iter().any(|&size| size != 1) {
            return Err(self.wrong(format!("{name} has shape {shape:?}, one number is needed")));
        }
        Ok(self.read(name, &shape)?[0])
    }

    /// Makes the dictionary; what does not agree is an error of this file.
    pub(super) fn build(&self, parts: SaeParts) -> Result<Sae, SaeError> {
        Sae::new(parts).map_err(|error| match error {
            SaeError::Option(problem) => self.wrong(problem),
            error => error,
        })
    }
}

/// `[rows, columns]` → `[columns, rows]`.
pub(super) fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (row, x) in x.chunks_exact(columns).enumerate() {
        for (column, &x) in x.iter().enumerate() {
            out[column * rows + row] = x;
        }
    }
    out
}
