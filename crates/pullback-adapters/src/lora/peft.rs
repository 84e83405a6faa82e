//! LoRA in the files of the PEFT library: `adapter_config.json` and `adapter_model.safetensors`.

use std::path::Path;

use pullback_artifact::{read_json, write_json};
use pullback_model::{ModelConfig, WeightName};
use serde_json::{Map, Value, json};

use super::{LoraAdapter, LoraPart};
use crate::AdapterError;
use crate::tensor_file::{TensorFile, write_tensors};

/// The file that says what the tensors are.
pub(crate) const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// What names of modules begin with in PEFT's files.
const PREFIX: &str = "base_model.model.";

impl LoraAdapter {
    /// Writes the two files of PEFT into a directory. `base` is what `base_model_name_or_path` says.
    ///
    /// # Errors
    /// A file cannot be written, or the model holds a matrix as a part of another.
    pub fn save_peft(
        &self,
        dir: &Path,
        config: &ModelConfig,
        base: &str,
    ) -> Result<(), AdapterError> {
        let mut file = TensorFile::default();
        let (mut modules, mut ranks, mut alphas) = (Vec::new(), Map::new(), Map::new());
        let first = self.parts.first();
        let rank = first.map_or(1, |part| part.rank);
        let alpha = first.map_or(1.0, |part| part.scale * part.rank as f64);
        for part in &self.parts {
            let module = part.weight.module(config).ok_or_else(|| {
                AdapterError::Option(format!(
                    "{:?} is a part of another matrix in models of the family {}, for which PEFT has no name",
                    part.weight, config.architecture
                ))
            })?;
            let shape = part.weight.shape(config);
            let down = format!("{PREFIX}{module}.lora_A.weight");
            file.floats(down, vec![part.rank, shape[1]], part.down.clone());
            let up = format!("{PREFIX}{module}.lora_B.weight");
            file.floats(up, vec![shape[0], part.rank], part.up.clone());
            if part.rank != rank {
                ranks.insert(module.clone(), part.rank.into());
            }
            let own = part.scale * part.rank as f64;
            if (own - alpha).abs() > 1e-9 * alpha.abs() {
                alphas.insert(module.clone(), own.into());
            }
            modules.push(module);
        }
        let format = [("format".to_owned(), "pt".to_owned())];
        write_tensors(&dir.join(TENSORS), &file, Some(format.into()))?;
        let settings = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": true,
            "r": rank,
            "lora_alpha": whole(alpha),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "use_rslora": false,
            "use_dora": false,
            "init_lora_weights": true,
            "target_modules": modules,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "modules_to_save": null,
        });
        Ok(write_json(&dir.join(CONFIG), &settings)?)
    }

    /// Reads the two files of PEFT from a directory.
    ///
    /// # Errors
    /// A file is missing or damaged, is of another method than plain LoRA, or belongs to another model.
    pub fn load_peft(dir: &Path, config: &ModelConfig) -> Result<Self, AdapterError> {
        let settings_path = dir.join(CONFIG);
        let settings: Value = read_json(&settings_path)?;
        let refuse = |problem: String| AdapterError::File {
            path: settings_path.clone(),
            problem,
        };
        check_settings(&settings).map_err(refuse)?;
        let path = dir.join(TENSORS);
        let wrong = |problem: String| AdapterError::File {
            path: path.clone(),
            problem,
        };
        let file = TensorFile::read(&path)?;
        let modules: Vec<(String, WeightName)> = WeightName::all(config)
            .filter_map(|weight| Some((weight.module(config)?, weight)))
            .collect();
        let mut parts = Vec::new();
        for name in file.names() {
            let inner = name.strip_prefix(PREFIX).unwrap_or(name);
            let Some((module, side)) = inner.split_once(".lora_") else {
                return Err(wrong(format!(
                    "the tensor {name} is not of LoRA (names are {PREFIX}MODULE.lora_A.weight and MODULE.lora_B.weight)"
                )));
            };
            if !matches!(side, "A.weight" | "B.weight") {
                return Err(wrong(format!(
                    "the tensor {name} is not supported: only lora_A.weight and lora_B.weight are"
                )));
            }
            let weight = modules.iter().find(|(own, _)| {
                own == module
                    || own.ends_with(&format!(".{module}"))
                    || module.ends_with(&format!(".{own}"))
            });
            let Some(&(_, weight)) = weight else {
                return Err(wrong(format!(
                    "the tensor {name} belongs to the module {module}, which the model ({}, {} blocks) does not have or which cannot be updated",
                    config.architecture, config.n_layers
                )));
            };
            let stem = name.strip_suffix(side).unwrap_or(name);
            if side == "B.weight" {
                // It is read with its other half.
                let other = format!("{stem}A.weight");
                if file.tensor(&other).is_none() {
                    return Err(wrong(format!("the tensor {other} is missing")));
                }
                continue;
            }
            let matrix = |name: &str, rank: Option<usize>| {
                let (shape, values) = file
                    .tensor(name)
                    .ok_or_else(|| wrong(format!("the tensor {name} is missing")))?;
                let full = weight.shape(config);
                let expected = match rank {
                    None => [shape.first().copied().unwrap_or(0), full[1]],
                    Some(rank) => [full[0], rank],
                };
                if shape != expected || shape.contains(&0) {
                    return Err(wrong(format!(
                        "{name} has the shape {shape:?}, expected {expected:?}"
                    )));
                }
                Ok((shape[0], values.to_vec()))
            };
            let (rank, down) = matrix(name, None)?;
            let (_, up) = matrix(&format!("{stem}B.weight"), Some(rank))?;
            let alpha = alpha_of(&settings, module).map_err(refuse)?;
            let scale = if settings["use_rslora"] == true {
                alpha / (rank as f64).sqrt()
            } else {
                alpha / rank as f64
            };
            parts.push(LoraPart {
                weight,
                rank,
                down,
                up,
                scale,
            });
        }
        if parts.is_empty() {
            return Err(wrong("it holds no tensor of LoRA".to_owned()));
        }
        let order: Vec<WeightName> = WeightName::all(config).collect();
        parts.sort_by_key(|part| order.iter().position(|&weight| weight == part.weight));
        Ok(Self { parts })
    }
}

/// A number without a point where it has no fraction, as PEFT writes it.
fn whole(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 {
        (x as i64).into()
    } else {
        x.into()
    }
}

/// Refuses what would be computed otherwise.
fn check_settings(settings: &Value) -> Result<(), String> {
    let method = settings["peft_type"].as_str().unwrap_or("");
    if method != "LORA" {
        return Err(format!(
            "peft_type is \"{method}\", only \"LORA\" is supported"
        ));
    }
    let bias = &settings["bias"];
    if !bias.is_null() && bias != "none" {
        return Err(format!("bias is {bias}, only \"none\" is supported"));
    }
    for key in ["use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"] {
        if settings[key] == true {
            return Err(format!("{key} is true, which is not supported"));
        }
    }
    for key in [
        "modules_to_save",
        "trainable_token_indices",
        "target_parameters",
        "layer_replication",
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "velora_config",
        "use_bdlora",
    ] {
        let empty = match &settings[key] {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !empty {
            return Err(format!(
                "{key} is {}, which is not supported",
                settings[key]
            ));
        }
    }
    Ok(())
}

/// `lora_alpha`, or what `alpha_pattern` says of the module. Patterns are names of modules or their ends.
fn alpha_of(settings: &Value, module: &str) -> Result<f64, String> {
    let mut alpha = settings["lora_alpha"].as_f64();
    for (pattern, value) in settings["alpha_pattern"].as_object().into_iter().flatten() {
        let plain = |c: char| c.is_alphanumeric() || c == '.' || c == '_';
        if !pattern.chars().all(plain) {
            return Err(format!(
                "alpha_pattern has the regular expression {pattern:?}: only names of modules are supported"
            ));
        }
        if module == pattern || module.ends_with(&format!(".{pattern}")) {
            alpha = value.as_f64();
        }
    }
    alpha.filter(|alpha| alpha.is_finite()).ok_or_else(|| {
        format!(
            "lora_alpha is {}, a number is needed",
            settings["lora_alpha"]
        )
    })
}
