//! What `cfg.json` says.

use std::path::{Path, PathBuf};

use pullback_artifact::read_json;
use serde_json::Value;

use super::{CONFIG, SCALER};
use crate::formats::Origin;
use crate::{Normalization, SaeError};

/// How codes are selected, by the files' names.
pub(super) enum Architecture {
    Standard,
    TopK { k: usize },
    JumpRelu,
    BatchTopK,
    Gated,
}

/// What reading the weights needs to know.
#[expect(clippy::struct_excessive_bools, reason = "they are the file's")]
pub(super) struct Config {
    pub(super) architecture: Architecture,
    pub(super) d: usize,
    pub(super) m: usize,
    pub(super) d_out: usize,
    /// Whether there is a skip matrix.
    pub(super) skip: bool,
    pub(super) apply_b_dec_to_input: bool,
    pub(super) normalization: Normalization,
    /// What activations are to be multiplied with.
    pub(super) input_factor: Option<f32>,
    pub(super) rescale_acts_by_decoder_norm: bool,
    /// Whether codes have factors of their own (`finetuning_scaling_factor`).
    pub(super) finetuned: bool,
    pub(super) origin: Origin,
}

impl Config {
    pub(super) fn read(dir: &Path) -> Result<Self, SaeError> {
        let path = dir.join(CONFIG);
        let value: Value = read_json(&path)?;
        Reader { path, value }.config(dir)
    }
}

struct Reader {
    path: PathBuf,
    value: Value,
}

impl Reader {
    fn wrong(&self, problem: impl Into<String>) -> SaeError {
        SaeError::File {
            path: self.path.clone(),
            problem: problem.into(),
        }
    }

    fn config(&self, dir: &Path) -> Result<Config, SaeError> {
        let name = self.architecture()?;
        let (d, m) = (self.size("d_in")?, self.size("d_sae")?);
        let transcoder = name.ends_with("transcoder");
        let d_out = if transcoder { self.size("d_out")? } else { d };
        let architecture = match name {
            "standard" | "transcoder" | "skip_transcoder" => Architecture::Standard,
            "topk" | "topk_transcoder" | "topk_skip_transcoder" => {
                Architecture::TopK { k: self.k(m)? }
            }
            "jumprelu" | "jumprelu_transcoder" | "jumprelu_skip_transcoder" => {
                Architecture::JumpRelu
            }
            "batchtopk" | "matryoshka_batchtopk" => Architecture::BatchTopK,
            "gated" => Architecture::Gated,
            _ => {
                return Err(self.wrong(format!(
                    "the architecture is `{name}`; those that can be read are `standard`, `topk`, `jumprelu`, `gated`, \
                     `batchtopk`, `matryoshka_batchtopk` and the transcoders"
                )));
            }
        };
        let apply = self.flag("apply_b_dec_to_input", !transcoder)?;
        let (normalization, input_factor) = self.normalization(dir)?;
        if transcoder {
            if apply {
                return Err(self.wrong(
                    "`apply_b_dec_to_input` is true, but a transcoder's b_dec belongs to its output",
                ));
            }
            if normalization != Normalization::None || input_factor.is_some() {
                return Err(self.wrong(format!(
                    "`normalize_activations` is {}, which a transcoder's output does not undo; only \"none\" can be read",
                    self.value["normalize_activations"]
                )));
            }
        }
        Ok(Config {
            d,
            m,
            d_out,
            skip: name.ends_with("skip_transcoder"),
            apply_b_dec_to_input: apply,
            normalization,
            input_factor,
            rescale_acts_by_decoder_norm: self.flag("rescale_acts_by_decoder_norm", false)?
                && matches!(
                    architecture,
                    Architecture::TopK { .. } | Architecture::BatchTopK
                ),
            architecture,
            finetuned: self.flag("finetuning_scaling_factor", false)?,
            origin: self.origin(),
        })
    }

    /// The name of the architecture, which flat configurations may leave to the activation function.
    fn architecture(&self) -> Result<&str, SaeError> {
        let config = &self.value;
        let function = [&config["activation_fn"], &config["activation_fn_str"]]
            .into_iter()
            .find(|value| !value.is_null());
        if self.is_flat()
            && let Some(function) = function
        {
            match function.as_str() {
                Some("topk") => return Ok("topk"),
                Some("relu") => {}
                _ => {
                    return Err(self.wrong(format!(
                        "the activation function is {function}; \"relu\" and \"topk\" can be read"
                    )));
                }
            }
        }
        match config.get("architecture") {
            None if self.is_flat() => Ok("standard"),
            None => Err(self.wrong("`architecture` is missing")),
            Some(Value::String(name)) => Ok(name),
            Some(other) => Err(self.wrong(format!("`architecture` is {other}, a name is needed"))),
        }
    }

    /// Whether it is of a version before 6.
    fn is_flat(&self) -> bool {
        let version = [
            &self.value["sae_lens_version"],
            &self.value["metadata"]["sae_lens_version"],
        ];
        let major = version
            .into_iter()
            .find_map(Value::as_str)
            .and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        major.is_none_or(|major| major < 6)
    }

    fn size(&self, key: &str) -> Result<usize, SaeError> {
        let value = &self.value[key];
        match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
            Some(0) => Err(self.wrong(format!("`{key}` is 0, it must be at least 1"))),
            Some(size) => Ok(size),
            None => Err(self.wrong(format!("`{key}` is {value}, a whole number is needed"))),
        }
    }

    fn k(&self, m: usize) -> Result<usize, SaeError> {
        let k = if self.value["k"].is_null() {
            &self.value["activation_fn_kwargs"]["k"]
        } else {
            &self.value["k"]
        };
        if k.is_null() {
            return Err(self.wrong("`k` is missing"));
        }
        k.as_u64()
            .and_then(|k| usize::try_from(k).ok())
            .filter(|k| (1..=m).contains(k))
            .ok_or_else(|| {
                self.wrong(format!(
                    "`k` is {k}, a whole number from 1 to {m} is needed"
                ))
            })
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, SaeError> {
        match &self.value[key] {
            Value::Null => Ok(default),
            Value::Bool(value) => Ok(*value),
            other => Err(self.wrong(format!("`{key}` is {other}, true or false is needed"))),
        }
    }

    /// What is done to each activation, and the factor that all are multiplied with.
    fn normalization(&self, dir: &Path) -> Result<(Normalization, Option<f32>), SaeError> {
        let value = &self.value["normalize_activations"];
        match value {
            Value::Null | Value::Bool(false) => return Ok((Normalization::None, None)),
            Value::String(name) => match name.as_str() {
                "none" => return Ok((Normalization::None, None)),
                "constant_norm_rescale" => return Ok((Normalization::ConstantNorm, None)),
                "layer_norm" => return Ok((Normalization::Layer, None)),
                "expected_average_only_in" => {}
                _ => return Err(self.unknown_normalization()),
            },
            // How versions before 4 said `expected_average_only_in`.
            Value::Bool(true) => {}
            _ => return Err(self.unknown_normalization()),
        }
        let path = dir.join(SCALER);
        let scaler: Value = if path.is_file() {
            read_json(&path)?
        } else {
            Value::Null
        };
        let factor = &scaler["scaling_factor"];
        if factor.is_null() {
            return Err(self.wrong(format!(
                "`normalize_activations` is {value}, so activations are to be multiplied by a factor, and no {SCALER} says \
                 which: multiply W_enc by it, divide W_dec and b_dec by it, and say \"none\""
            )));
        }
        match factor.as_f64().map(|factor| factor as f32) {
            Some(factor) if factor.is_normal() && factor > 0.0 => {
                Ok((Normalization::None, Some(factor)))
            }
            _ => Err(SaeError::File {
                path,
                problem: format!("`scaling_factor` is {factor}, a number above zero is needed"),
            }),
        }
    }

    fn unknown_normalization(&self) -> SaeError {
        self.wrong(format!(
            "`normalize_activations` is {}; \"none\", \"constant_norm_rescale\", \"layer_norm\" and \
             \"expected_average_only_in\" can be read",
            self.value["normalize_activations"]
        ))
    }

    /// Of version 6 under `metadata`, before it beside the rest, with names that have changed.
    fn origin(&self) -> Origin {
        let of = |names: &[&str]| {
            let places = [&self.value["metadata"], &self.value];
            names
                .iter()
                .flat_map(|name| places.map(|place| &place[*name]))
                .find(|value| !value.is_null())
        };
        let text = |names: &[&str]| of(names).and_then(Value::as_str).map(str::to_owned);
        Origin {
            model: text(&["model_name"]),
            hook: text(&["hook_name", "hook_point"]),
            hook_out: text(&["hook_name_out"]),
            context: of(&["context_size"])
                .and_then(Value::as_u64)
                .map(|size| size as usize),
            // What SAELens takes for granted in flat configurations.
            prepend_bos: of(&["prepend_bos"])
                .and_then(Value::as_bool)
                .or_else(|| self.is_flat().then_some(true)),
            dataset: text(&["dataset_path"]),
        }
    }
}
