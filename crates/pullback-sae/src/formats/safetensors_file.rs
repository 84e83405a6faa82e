//! Files in the safetensors format.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytemuck::cast_slice;
use pullback_artifact::write_atomic;
use pullback_kernels::{FileBytes, map_file};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::arrays::{Arrays, Element, names_of};
use crate::SaeError;

/// A mapped file.
pub(super) struct SafetensorsFile {
    path: PathBuf,
    data: FileBytes,
    /// Type and shape, or the name of a type that is not read.
    headers: BTreeMap<String, Result<(Element, Vec<usize>), String>>,
}

impl SafetensorsFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// It is missing, cut short or no safetensors file.
    pub(super) fn open(path: &Path) -> Result<Self, SaeError> {
        let wrong = |problem: String| SaeError::File {
            path: path.to_owned(),
            problem,
        };
        let data = FileBytes::Mapped(map_file(path).map_err(|error| wrong(error.to_string()))?);
        let tensors =
            SafeTensors::deserialize(data.as_ref()).map_err(|error| wrong(error.to_string()))?;
        let headers = tensors
            .iter()
            .map(|(name, view)| {
                let dtype = view.dtype();
                let header = Element::of_safetensors(dtype).ok_or_else(|| format!("{dtype:?}"));
                (
                    name.to_owned(),
                    header.map(|element| (element, view.shape().to_vec())),
                )
            })
            .collect();
        Ok(Self {
            path: path.to_owned(),
            data,
            headers,
        })
    }
}

impl Arrays for SafetensorsFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        names_of(&self.headers)
    }

    fn header(&self, name: &str) -> Option<(Element, &[usize])> {
        let (element, shape) = self.headers.get(name)?.as_ref().ok()?;
        Some((*element, shape))
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, SaeError> {
        let wrong = |error: safetensors::SafeTensorError| SaeError::File {
            path: self.path.clone(),
            problem: error.to_string(),
        };
        let tensors = SafeTensors::deserialize(self.data.as_ref()).map_err(wrong)?;
        Ok(Cow::Borrowed(tensors.tensor(name).map_err(wrong)?.data()))
    }
}

/// Writes arrays in `f32`, whole or not at all.
///
/// # Errors
/// A shape is not that of its numbers, or the file cannot be written.
pub(super) fn write(path: &Path, arrays: &[(&str, &[usize], &[f32])]) -> Result<(), SaeError> {
    let wrong = |error: safetensors::SafeTensorError| SaeError::File {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    let mut tensors = Vec::new();
    for (name, shape, values) in arrays {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), cast_slice(values));
        tensors.push((*name, view.map_err(wrong)?));
    }
    let bytes = safetensors::serialize(tensors, None).map_err(wrong)?;
    Ok(write_atomic(path, &bytes)?)
}
