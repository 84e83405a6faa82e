//! Llama Scope (He et al., arXiv 2410.20526): `hyperparams.json` and `checkpoints/final.safetensors`, as the library of its
//! authors read them in 2024 (`OpenMOSS`, Language-Model-SAEs at 8d579649).
//!
//! Activations are multiplied by `s = sqrt(d) / dataset_average_activation_norm.in` before the encoder, and outputs divided by
//! the like of `out`. Both factors are folded into the matrices. The threshold is one of pre-activations in the model's own
//! units, so here, where codes are in the units of the training (as in SAELens), it is multiplied by `s`.

use std::path::{Path, PathBuf};

use pullback_artifact::read_json;
use serde_json::Value;

use super::arrays::{Arrays, transposed};
use super::rebase::with_unit_rows;
use super::safetensors_file::SafetensorsFile;
use super::{Loaded, Origin};
use crate::{Normalization, SaeError, SaeParts, Selection};

pub(super) const WEIGHTS: &str = "checkpoints/final.safetensors";
const CONFIG: &str = "hyperparams.json";

struct Hyperparameters {
    path: PathBuf,
    value: Value,
}

impl Hyperparameters {
    fn wrong(&self, problem: impl Into<String>) -> SaeError {
        SaeError::File {
            path: self.path.clone(),
            problem: problem.into(),
        }
    }

    fn size(&self, key: &str) -> Result<usize, SaeError> {
        let value = &self.value[key];
        value
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .filter(|&size| size > 0)
            .ok_or_else(|| {
                self.wrong(format!(
                    "`{key}` is {value}, a whole number from 1 on is needed"
                ))
            })
    }

    /// A choice of the library's defaults.
    fn flag(&self, key: &str, default: bool) -> Result<bool, SaeError> {
        match &self.value[key] {
            Value::Null => Ok(default),
            Value::Bool(value) => Ok(*value),
            other => Err(self.wrong(format!("`{key}` is {other}, true or false is needed"))),
        }
    }

    fn threshold(&self) -> Result<f64, SaeError> {
        let value = &self.value["jump_relu_threshold"];
        match value {
            Value::Null => Ok(0.0),
            value => value.as_f64().ok_or_else(|| {
                self.wrong(format!(
                    "`jump_relu_threshold` is {value}, a number is needed"
                ))
            }),
        }
    }

    /// `sqrt(d)` over the mean length of activations, of inputs and of outputs, or how each activation is normalised.
    fn factors(&self, d: usize) -> Result<(Normalization, [f64; 2]), SaeError> {
        let norm = &self.value["norm_activation"];
        match norm.as_str() {
            Some("dataset-wise") => {}
            Some("token-wise") => return Ok((Normalization::ConstantNorm, [1.0; 2])),
            // What the library writes once factors are folded in.
            Some("none" | "inference") => return Ok((Normalization::None, [1.0; 2])),
            _ => {
                return Err(self.wrong(format!(
                    "`norm_activation` is {norm}; \"dataset-wise\", \"token-wise\", \"none\" and \"inference\" can be read"
                )));
            }
        }
        let factor = |side: &str| {
            let mean = &self.value["dataset_average_activation_norm"][side];
            mean.as_f64()
                .filter(|mean| mean.is_normal() && *mean > 0.0)
                .map(|mean| (d as f64).sqrt() / mean)
                .ok_or_else(|| {
                    self.wrong(format!(
                        "`dataset_average_activation_norm.{side}` is {mean}, a number above zero is needed"
                    ))
                })
        };
        Ok((Normalization::None, [factor("in")?, factor("out")?]))
    }
}

/// Reads the directory of a dictionary.
///
/// # Errors
/// A file is missing or damaged, the encoder is gated by a second matrix, a setting is unknown, or a shape is wrong.
pub fn read(dir: &Path) -> Result<Loaded, SaeError> {
    let path = dir.join(CONFIG);
    let value: Value = read_json(&path)?;
    let config = Hyperparameters { path, value };
    let (d, m) = (config.size("d_model")?, config.size("d_sae")?);
    if config.flag("use_glu_encoder", false)? {
        return Err(config.wrong("`use_glu_encoder` is true: such encoders cannot be read"));
    }
    let threshold = config.threshold()?;
    let (normalization, [input, output]) = config.factors(d)?;
    let function = &config.value["act_fn"];
    let selection = match function.as_str().map(str::to_lowercase).as_deref() {
        Some("relu") => Selection::Relu,
        Some("topk") if threshold <= 0.0 => {
            let k = config.size("top_k")?;
            if k > m {
                return Err(config.wrong(format!("`top_k` is {k}, at most {m} can be")));
            }
            Selection::TopK { k }
        }
        // With a threshold, the library reads TopK as JumpReLU.
        Some("topk" | "jumprelu") => Selection::Threshold {
            thresholds: vec![(threshold * input) as f32; m],
        },
        _ => {
            return Err(config.wrong(format!(
                "`act_fn` is {function}; \"relu\", \"topk\" and \"jumprelu\" can be read"
            )));
        }
    };

    let file = SafetensorsFile::open(&dir.join(WEIGHTS))?;
    let file: &dyn Arrays = &file;
    let scaled = |mut values: Vec<f32>, factor: f64| {
        for x in &mut values {
            *x = (f64::from(*x) * factor) as f32;
        }
        values
    };
    let has_bias = config.flag("use_decoder_bias", true)?;
    let decoder_bias = if has_bias {
        file.read("decoder.bias", &[d])?
    } else {
        vec![0.0; d]
    };
    let takes_bias = has_bias && config.flag("apply_decoder_bias_to_pre_encoder", true)?;
    let decoder = file.read("decoder.weight", &[d, m])?;
    let mut parts = SaeParts {
        selection,
        encoder: scaled(file.read("encoder.weight", &[m, d])?, input),
        encoder_bias: file.read("encoder.bias", &[m])?,
        decoder: scaled(transposed(&decoder, d, m), output.recip()),
        input_bias: if takes_bias {
            scaled(decoder_bias.clone(), input.recip())
        } else {
            vec![0.0; d]
        },
        decoder_bias: scaled(decoder_bias, output.recip()),
        normalization,
        skip: None,
    };
    if config.flag("sparsity_include_decoder_norm", true)? {
        // The library makes the decoder's rows unit vectors in the model's units of codes, `input` times ours.
        for x in &mut parts.decoder {
            *x = (f64::from(*x) * input) as f32;
        }
        with_unit_rows(&mut parts);
        for x in &mut parts.decoder {
            *x = (f64::from(*x) / input) as f32;
        }
    }
    let text = |key: &str| config.value[key].as_str().map(str::to_owned);
    let hook = text("hook_point_in");
    let hook_out = text("hook_point_out").filter(|out| Some(out) != hook.as_ref());
    Ok(Loaded {
        sae: file.build(parts)?,
        origin: Origin {
            // All of Llama Scope is of this model.
            model: Some("meta-llama/Llama-3.1-8B".to_owned()),
            hook,
            hook_out,
            context: Some(1024),
            prepend_bos: Some(true),
            dataset: None,
        },
    })
}
