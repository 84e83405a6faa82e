//! The SAELens layout: `cfg.json` and `sae_weights.safetensors` (version 6 keys; older flat configurations
//! are read as well).

use std::path::Path;

use bytemuck::{cast_slice, pod_collect_to_vec};
use pullback_artifact::{read_json, write_atomic, write_json};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::{Dictionary, Sae, SaeError};

const CONFIG: &str = "cfg.json";
const WEIGHTS: &str = "sae_weights.safetensors";

/// What other tools want to know of an autoencoder's origin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SaeLensMetadata {
    /// The model.
    pub model_name: Option<String>,
    /// The site.
    pub hook_name: String,
    /// Tokens in a sequence.
    pub context_size: usize,
    /// Whether each sequence starts with the beginning-of-text token.
    pub prepend_bos: bool,
}

/// Writes both files into a directory.
///
/// # Errors
/// A file cannot be written.
pub fn save(sae: &Sae, metadata: &SaeLensMetadata, dir: &Path) -> Result<(), SaeError> {
    let (d, m) = (sae.d(), sae.n_features());
    let Some(k) = sae.k() else {
        return Err(SaeError::Option(format!(
            "dictionaries of the kind `{}` cannot be written in this format",
            sae.selection().name()
        )));
    };
    let config = json!({
        "d_in": d,
        "d_sae": m,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": true,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "k": k,
        "rescale_acts_by_decoder_norm": false,
        "architecture": "topk",
        "metadata": {
            "sae_lens_version": "6.0.0",
            "sae_lens_training_version": null,
            "model_name": metadata.model_name,
            "hook_name": metadata.hook_name,
            "hook_head_index": null,
            "prepend_bos": metadata.prepend_bos,
            "context_size": metadata.context_size,
            "dataset_path": null,
            "exclude_special_tokens": false,
            "neuronpedia_id": null
        }
    });
    write_json(&dir.join(CONFIG), &config)?;
    let path = dir.join(WEIGHTS);
    let wrong = |error: safetensors::SafeTensorError| SaeError::File {
        path: path.clone(),
        problem: error.to_string(),
    };
    let encoder = transposed(sae.encoder(), m, d);
    let view = |shape: Vec<usize>, values: &[f32]| -> Result<(Vec<usize>, Vec<u8>), SaeError> {
        Ok((shape, cast_slice(values).to_vec()))
    };
    let parts = [
        ("W_enc", view(vec![d, m], &encoder)?),
        ("W_dec", view(vec![m, d], sae.decoder())?),
        ("b_enc", view(vec![m], sae.encoder_bias())?),
        ("b_dec", view(vec![d], sae.decoder_bias())?),
    ];
    let mut tensors = Vec::new();
    for (name, (shape, bytes)) in &parts {
        tensors.push((
            *name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(wrong)?,
        ));
    }
    let bytes = safetensors::serialize(tensors, None).map_err(wrong)?;
    Ok(write_atomic(&path, &bytes)?)
}

/// Reads a TopK autoencoder.
///
/// # Errors
/// A file is missing or damaged, the kind is another, or a shape is not the one that `cfg.json` promises
/// (a transposed matrix is named as such).
pub fn load(dir: &Path) -> Result<Sae, SaeError> {
    let config_path = dir.join(CONFIG);
    let config: Value = read_json(&config_path)?;
    let wrong_config = |problem: String| SaeError::File {
        path: config_path.clone(),
        problem,
    };
    let older_topk = config["activation_fn_str"] == "topk" || config["activation_fn"] == "topk";
    let architecture = config["architecture"].as_str().unwrap_or("standard");
    if architecture != "topk" && !older_topk {
        return Err(wrong_config(format!(
            "the architecture is `{architecture}`; `topk` is the kind that can be read"
        )));
    }
    let size = |key: &str| -> Result<usize, SaeError> {
        config[key]
            .as_u64()
            .map(|size| size as usize)
            .ok_or_else(|| {
                wrong_config(format!(
                    "`{key}` is {}, a whole number is needed",
                    config[key]
                ))
            })
    };
    let (d, m) = (size("d_in")?, size("d_sae")?);
    for (key, size) in [("d_in", d), ("d_sae", m)] {
        if size == 0 {
            return Err(wrong_config(format!("`{key}` is 0, it must be at least 1")));
        }
    }
    let k = if config["k"].is_null() {
        &config["activation_fn_kwargs"]["k"]
    } else {
        &config["k"]
    };
    if k.is_null() {
        return Err(wrong_config("`k` is missing".to_owned()));
    }
    let k = k
        .as_u64()
        .filter(|&k| (1..=m as u64).contains(&k))
        .ok_or_else(|| {
            wrong_config(format!(
                "`k` is {k}, a whole number from 1 to {m} is needed"
            ))
        })? as usize;
    let normalization = &config["normalize_activations"];
    if !(normalization.is_null() || normalization == "none" || normalization == false) {
        return Err(wrong_config(format!(
            "`normalize_activations` is {normalization}; only \"none\" can be read (fold it into the weights)"
        )));
    }
    let path = dir.join(WEIGHTS);
    let wrong = |problem: String| SaeError::File {
        path: path.clone(),
        problem,
    };
    let bytes = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
    let read = |name: &str, shape: &[usize]| -> Result<Vec<f32>, SaeError> {
        let view = tensors
            .tensor(name)
            .map_err(|error| wrong(format!("{name}: {error}")))?;
        if view.dtype() != Dtype::F32 {
            return Err(wrong(format!(
                "{name} is {:?}, F32 is needed",
                view.dtype()
            )));
        }
        if view.shape() != shape {
            let reversed: Vec<usize> = shape.iter().rev().copied().collect();
            let hint = if view.shape() == reversed {
                ": it is transposed"
            } else {
                ""
            };
            return Err(wrong(format!(
                "{name} has shape {:?}, expected {shape:?}{hint}",
                view.shape()
            )));
        }
        Ok(pod_collect_to_vec(view.data()))
    };
    if tensors.names().contains(&"scaling_factor")
        && read("scaling_factor", &[m])?
            .iter()
            .any(|&s| (s - 1.0).abs() > 0.0)
    {
        return Err(wrong(
            "scaling_factor is not all ones: fold it into W_dec (one factor a row) and take it out"
                .to_owned(),
        ));
    }
    let mut encoder = transposed(&read("W_enc", &[d, m])?, d, m);
    let mut decoder = read("W_dec", &[m, d])?;
    let b_dec = read("b_dec", &[d])?;
    let mut b_enc = read("b_enc", &[m])?;
    if config["apply_b_dec_to_input"] == false {
        // The encoder then reads x itself: (x − b_dec)·W + b' with b' = b + b_dec·W.
        for (bias, row) in b_enc.iter_mut().zip(encoder.chunks_exact(d)) {
            *bias += row.iter().zip(&b_dec).map(|(w, b)| w * b).sum::<f32>();
        }
    }
    if config["rescale_acts_by_decoder_norm"] == true {
        // Selection is then by activation × length of the decoder row; rows of length one say the same.
        let rows = encoder.chunks_exact_mut(d).zip(decoder.chunks_exact_mut(d));
        for ((encoder, decoder), bias) in rows.zip(&mut b_enc) {
            let length = decoder.iter().map(|x| x * x).sum::<f32>().sqrt();
            if length > 0.0 {
                for x in encoder.iter_mut() {
                    *x *= length;
                }
                for x in decoder.iter_mut() {
                    *x /= length;
                }
                *bias *= length;
            }
        }
    }
    Sae::top_k(k, encoder, b_enc, decoder, b_dec)
}

/// Writes `sparsity.safetensors`: the base-10 logarithm of each feature's density, plus 1e-10.
///
/// # Errors
/// The file cannot be written.
pub fn save_sparsity(densities: &[f32], dir: &Path) -> Result<(), SaeError> {
    let path = dir.join("sparsity.safetensors");
    let logs: Vec<f32> = densities
        .iter()
        .map(|density| (density + 1e-10).log10())
        .collect();
    let wrong = |error: safetensors::SafeTensorError| SaeError::File {
        path: path.clone(),
        problem: error.to_string(),
    };
    let view = TensorView::new(Dtype::F32, vec![logs.len()], cast_slice(&logs)).map_err(wrong)?;
    let bytes = safetensors::serialize([("sparsity", view)], None).map_err(wrong)?;
    Ok(write_atomic(&path, &bytes)?)
}

/// `[rows, columns]` → `[columns, rows]`.
fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (row, x) in x.chunks_exact(columns).enumerate() {
        for (column, &x) in x.iter().enumerate() {
            out[column * rows + row] = x;
        }
    }
    out
}
