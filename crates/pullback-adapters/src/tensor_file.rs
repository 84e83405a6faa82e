//! Named numbers in a safetensors file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytemuck::{cast_slice, pod_collect_to_vec};
use pullback_artifact::write_atomic;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::AdapterError;

/// Tensors of `f32` and of `u32`, by name.
#[derive(Default)]
pub(crate) struct TensorFile {
    path: PathBuf,
    floats: HashMap<String, (Vec<usize>, Vec<f32>)>,
    integers: HashMap<String, Vec<u32>>,
    metadata: HashMap<String, String>,
}

fn wrong(path: &Path, problem: impl ToString) -> AdapterError {
    AdapterError::File {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

impl TensorFile {
    /// Adds a tensor of `f32`.
    pub(crate) fn floats(&mut self, name: String, shape: Vec<usize>, values: Vec<f32>) {
        self.floats.insert(name, (shape, values));
    }

    /// Adds a vector of `u32`.
    pub(crate) fn integers(&mut self, name: String, values: Vec<u32>) {
        self.integers.insert(name, values);
    }

    /// Reads a file whole.
    ///
    /// # Errors
    /// It cannot be read, or holds tensors of other types.
    pub(crate) fn read(path: &Path) -> Result<Self, AdapterError> {
        let bytes = std::fs::read(path).map_err(|error| wrong(path, error))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| wrong(path, error))?;
        let mut out = Self {
            path: path.to_owned(),
            ..Self::default()
        };
        for (name, view) in file.tensors() {
            match view.dtype() {
                Dtype::F32 => {
                    let values = pod_collect_to_vec::<u8, f32>(view.data());
                    out.floats(name, view.shape().to_vec(), values);
                }
                Dtype::BF16 | Dtype::F16 => {
                    let bf16 = view.dtype() == Dtype::BF16;
                    let halves = pod_collect_to_vec::<u8, u16>(view.data());
                    let values = halves.into_iter().map(|bits| from_half(bits, bf16));
                    out.floats(name, view.shape().to_vec(), values.collect());
                }
                Dtype::U32 => out.integers(name, pod_collect_to_vec::<u8, u32>(view.data())),
                other => {
                    return Err(wrong(
                        path,
                        format!("{name} is {other:?}, expected F32, F16, BF16 or U32"),
                    ));
                }
            }
        }
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| wrong(path, error))?;
        out.metadata = header.metadata().clone().unwrap_or_default();
        Ok(out)
    }

    /// An entry of the header.
    pub(crate) fn note(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(String::as_str)
    }

    /// Names of the tensors of `f32`, in order.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.floats.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// A tensor of `f32` with its shape.
    pub(crate) fn tensor(&self, name: &str) -> Option<(&[usize], &[f32])> {
        let (shape, values) = self.floats.get(name)?;
        Some((shape, values))
    }

    /// A matrix of this shape; `None` if the tensor is no matrix.
    ///
    /// # Errors
    /// It is missing, or a matrix of another shape.
    pub(crate) fn matrix(
        &self,
        name: &str,
        expected: [usize; 2],
    ) -> Result<Option<Vec<f32>>, AdapterError> {
        let (shape, values) = self
            .tensor(name)
            .ok_or_else(|| wrong(&self.path, format!("the tensor {name} is missing")))?;
        if shape.len() != 2 {
            return Ok(None);
        }
        if shape != expected {
            let problem = format!("{name} has the shape {shape:?}, expected {expected:?}");
            return Err(wrong(&self.path, problem));
        }
        Ok(Some(values.to_vec()))
    }

    /// A vector of `f32`.
    ///
    /// # Errors
    /// It is missing or no vector.
    pub(crate) fn vector(&self, name: &str) -> Result<Vec<f32>, AdapterError> {
        match self.tensor(name) {
            Some((shape, values)) if shape.len() == 1 => Ok(values.to_vec()),
            Some((shape, _)) => Err(wrong(
                &self.path,
                format!("{name} has the shape {shape:?}, expected a vector"),
            )),
            None => Err(wrong(&self.path, format!("the tensor {name} is missing"))),
        }
    }

    /// A vector of `u32` of a length.
    ///
    /// # Errors
    /// It is missing or of another length.
    pub(crate) fn integer_vector(
        &self,
        name: &str,
        length: usize,
    ) -> Result<Vec<u32>, AdapterError> {
        match self.integers.get(name) {
            Some(values) if values.len() == length => Ok(values.clone()),
            Some(values) => Err(wrong(
                &self.path,
                format!("{name} has {} numbers, expected {length}", values.len()),
            )),
            None => Err(wrong(&self.path, format!("the tensor {name} is missing"))),
        }
    }

    /// A vector of `u32` of any length.
    pub(crate) fn integer_list(&self, name: &str) -> Option<&[u32]> {
        self.integers.get(name).map(Vec::as_slice)
    }
}

/// A number of sixteen bits.
fn from_half(bits: u16, bf16: bool) -> f32 {
    if bf16 {
        return f32::from_bits(u32::from(bits) << 16);
    }
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    sign * match exponent {
        0 => fraction * 2.0_f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction / 1024.0) * 2.0_f32.powi(exponent - 15),
    }
}

/// Writes a file at once, tensors in the order of their names.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write_tensors(
    path: &Path,
    file: &TensorFile,
    metadata: Option<HashMap<String, String>>,
) -> Result<(), AdapterError> {
    let mut tensors = Vec::new();
    for (name, (shape, values)) in &file.floats {
        let view = TensorView::new(Dtype::F32, shape.clone(), cast_slice(values));
        tensors.push((name.as_str(), view.map_err(|error| wrong(path, error))?));
    }
    for (name, values) in &file.integers {
        let view = TensorView::new(Dtype::U32, vec![values.len()], cast_slice(values));
        tensors.push((name.as_str(), view.map_err(|error| wrong(path, error))?));
    }
    tensors.sort_by(|a, b| a.0.cmp(b.0));
    let bytes = safetensors::serialize(tensors, metadata).map_err(|error| wrong(path, error))?;
    Ok(write_atomic(path, &bytes)?)
}
