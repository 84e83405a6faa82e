//! Activations and sparse codes as safetensors files.
//!
//! Codes are three tensors in the layout of a compressed-row matrix, as `scipy.sparse.csr_matrix` takes them: `values`
//! (F32) and `indices` (I64) of all active features, token by token, and `offsets` (I64), one more than tokens.

use std::path::Path;

use bytemuck::cast_slice;
use pullback_artifact::write_atomic;
use pullback_kernels::sparse::SparseCodes;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::SaeError;
use crate::formats::arrays::Element;

/// Rows of numbers from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRows {
    /// The tensor.
    pub name: String,
    /// Its shape but for the last dimension.
    pub shape: Vec<usize>,
    /// Its last dimension.
    pub width: usize,
    /// The numbers, row by row.
    pub values: Vec<f32>,
}

fn wrong(path: &Path, problem: impl Into<String>) -> SaeError {
    SaeError::File {
        path: path.to_owned(),
        problem: problem.into(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SaeError> {
    std::fs::read(path).map_err(|error| wrong(path, error.to_string()))
}

/// Reads the tensor `name`, or the only one, as rows. Other numbers become F32.
///
/// # Errors
/// The file is damaged, the tensor is not there (or not the only one), is of another type, has no last dimension, or
/// holds a number that is not finite.
pub fn load_rows(path: &Path, name: Option<&str>) -> Result<StoredRows, SaeError> {
    let bytes = read(path)?;
    let tensors =
        SafeTensors::deserialize(&bytes).map_err(|error| wrong(path, error.to_string()))?;
    let mut names: Vec<&str> = tensors.names().into_iter().collect();
    names.sort_unstable();
    let name = match (name, &names[..]) {
        (Some(name), _) if names.contains(&name) => name,
        (Some(name), _) => {
            return Err(wrong(
                path,
                format!("there is no tensor `{name}`, but {}", names.join(", ")),
            ));
        }
        (None, [only]) => only,
        (None, _) => {
            return Err(wrong(
                path,
                format!("which of its {} tensors? {}", names.len(), names.join(", ")),
            ));
        }
    };
    let view = tensors
        .tensor(name)
        .map_err(|error| wrong(path, error.to_string()))?;
    let Some(element) = Element::of_safetensors(view.dtype()) else {
        return Err(wrong(
            path,
            format!(
                "{name} is {:?}, a tensor of F32, F64, F16, BF16, I32 or I64 is needed",
                view.dtype()
            ),
        ));
    };
    let values = element.decode(view.data());
    let Some((&width, shape)) = view.shape().split_last().filter(|(width, _)| **width > 0) else {
        return Err(wrong(
            path,
            format!("{name} has the shape {:?}, rows are needed", view.shape()),
        ));
    };
    if let Some(at) = values.iter().position(|x| !x.is_finite()) {
        return Err(wrong(
            path,
            format!(
                "{name} holds {} in row {}: activations are finite",
                values[at],
                at / width
            ),
        ));
    }
    Ok(StoredRows {
        name: name.to_owned(),
        shape: shape.to_vec(),
        width,
        values,
    })
}

/// Writes rows `[…, width]` as one tensor in F32.
///
/// # Errors
/// The file cannot be written, or the sizes do not agree.
pub fn save_rows(rows: &StoredRows, path: &Path) -> Result<(), SaeError> {
    let mut shape = rows.shape.clone();
    shape.push(rows.width);
    let view = TensorView::new(Dtype::F32, shape, cast_slice(&rows.values))
        .map_err(|error| wrong(path, error.to_string()))?;
    let bytes = safetensors::serialize([(&rows.name, view)], None)
        .map_err(|error| wrong(path, error.to_string()))?;
    Ok(write_atomic(path, &bytes)?)
}

/// Writes codes.
///
/// # Errors
/// The file cannot be written.
pub fn save_codes(codes: &SparseCodes<f32>, path: &Path) -> Result<(), SaeError> {
    let indices: Vec<i64> = codes.features().iter().map(|&i| i64::from(i)).collect();
    let offsets: Vec<i64> = std::iter::once(0)
        .chain((0..codes.tokens()).map(|token| codes.span(token).end as i64))
        .collect();
    let parts: [(&str, Dtype, usize, &[u8]); 3] = [
        ("indices", Dtype::I64, indices.len(), cast_slice(&indices)),
        ("offsets", Dtype::I64, offsets.len(), cast_slice(&offsets)),
        (
            "values",
            Dtype::F32,
            codes.active(),
            cast_slice(codes.values()),
        ),
    ];
    let mut tensors = Vec::with_capacity(parts.len());
    for (name, dtype, len, bytes) in parts {
        let view = TensorView::new(dtype, vec![len], bytes);
        tensors.push((name, view.map_err(|error| wrong(path, error.to_string()))?));
    }
    let bytes =
        safetensors::serialize(tensors, None).map_err(|error| wrong(path, error.to_string()))?;
    Ok(write_atomic(path, &bytes)?)
}

/// Reads codes of a dictionary with `n_features` features.
///
/// # Errors
/// The file is damaged, a tensor is missing or of another type, offsets do not ascend from zero to the number of values,
/// or a token's indices do not ascend below `n_features`.
pub fn load_codes(path: &Path, n_features: usize) -> Result<SparseCodes<f32>, SaeError> {
    let bytes = read(path)?;
    let tensors =
        SafeTensors::deserialize(&bytes).map_err(|error| wrong(path, error.to_string()))?;
    let part = |name: &str, dtype: Dtype| {
        let view = tensors
            .tensor(name)
            .map_err(|error| wrong(path, format!("{name}: {error}")))?;
        if view.dtype() != dtype || view.shape().len() != 1 {
            return Err(wrong(
                path,
                format!(
                    "{name} is {:?} of the shape {:?}, a vector of {dtype:?} is needed",
                    view.dtype(),
                    view.shape()
                ),
            ));
        }
        Ok(view.data().to_vec())
    };
    let whole = |name: &str| -> Result<Vec<i64>, SaeError> {
        let bytes = part(name, Dtype::I64)?;
        let numbers = bytes.as_chunks::<8>().0.iter();
        Ok(numbers.map(|&b| i64::from_le_bytes(b)).collect())
    };
    let (indices, offsets) = (whole("indices")?, whole("offsets")?);
    let bytes = part("values", Dtype::F32)?;
    let values: Vec<f32> = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&b| f32::from_le_bytes(b))
        .collect();
    if indices.len() != values.len() {
        return Err(wrong(
            path,
            format!("{} indices for {} values", indices.len(), values.len()),
        ));
    }
    let ascend = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    if offsets.first() != Some(&0) || !ascend || offsets.last() != Some(&(values.len() as i64)) {
        return Err(wrong(
            path,
            format!(
                "offsets must ascend from 0 to the number of values, {}",
                values.len()
            ),
        ));
    }
    let mut codes = SparseCodes::new();
    for (token, pair) in offsets.windows(2).enumerate() {
        let span = pair[0] as usize..pair[1] as usize;
        let mut features = Vec::with_capacity(span.len());
        for &index in &indices[span.clone()] {
            let feature = u32::try_from(index)
                .ok()
                .filter(|&feature| (feature as usize) < n_features)
                .ok_or_else(|| {
                    wrong(
                        path,
                        format!("token {token} has the feature {index}, there are {n_features}"),
                    )
                })?;
            features.push(feature);
        }
        if features.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(wrong(
                path,
                format!("the features of token {token} do not ascend"),
            ));
        }
        codes.push(&features, &values[span]);
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::{StoredRows, load_codes, load_rows, save_codes, save_rows};
    use pullback_kernels::sparse::SparseCodes;

    fn codes() -> SparseCodes<f32> {
        let mut codes = SparseCodes::new();
        codes.push(&[1, 4], &[0.5, 2.0]);
        codes.push(&[], &[]);
        codes.push(&[0, 2, 6], &[1.0, -3.0, 0.25]);
        codes
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("codes.safetensors");
        save_codes(&codes(), &path).expect("it is written");
        assert_eq!(load_codes(&path, 7).expect("it is read"), codes());
        let rows = StoredRows {
            name: "x".to_owned(),
            shape: vec![2, 3],
            width: 4,
            values: (0..24).map(|i| i as f32 / 3.0).collect(),
        };
        save_rows(&rows, &path).expect("it is written");
        assert_eq!(load_rows(&path, None).expect("it is read"), rows);
        assert_eq!(load_rows(&path, Some("x")).expect("it is read"), rows);
    }

    #[test]
    fn files_that_contradict_themselves_are_refused_in_words() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("codes.safetensors");
        save_codes(&codes(), &path).expect("it is written");
        let refused = |path: &std::path::Path, features: usize| {
            load_codes(path, features)
                .expect_err("it is refused")
                .to_string()
        };
        assert!(refused(&path, 6).contains("token 2 has the feature 6, there are 6"));
        assert!(
            load_rows(&path, None)
                .expect_err("three tensors")
                .to_string()
                .contains("indices, offsets, values")
        );
        let whole = load_rows(&path, Some("indices")).expect("whole numbers are numbers");
        assert_eq!(whole.values, [1.0, 4.0, 0.0, 2.0, 6.0]);
        assert!(
            load_rows(&path, Some("x"))
                .expect_err("no such tensor")
                .to_string()
                .contains("`x`")
        );
        let bytes = std::fs::read(&path).expect("it is there");
        for cut in [3, 60, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).expect("it is written");
            assert!(refused(&path, 7).contains("codes.safetensors"));
        }
        let rows = StoredRows {
            name: "x".to_owned(),
            shape: vec![1],
            width: 2,
            values: vec![1.0, f32::NAN],
        };
        save_rows(&rows, &path).expect("it is written");
        assert!(
            load_rows(&path, None)
                .expect_err("NaN")
                .to_string()
                .contains("row 0")
        );
        assert!(refused(&path, 7).contains("indices"));
    }
}
