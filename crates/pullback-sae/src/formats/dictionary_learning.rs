//! `ae.pt` and `config.json` of [`dictionary_learning`](https://github.com/saprmarks/dictionary_learning) (commit
//! 60ec6bf).
//!
//! Read are `AutoEncoder`, `AutoEncoderNew`, `AutoEncoderTopK`, `BatchTopKSAE`, `MatryoshkaBatchTopKSAE`,
//! `JumpReluAutoEncoder` and `GatedAutoEncoder`, as their `encode` and `decode` are without options: `BatchTopK` selects by
//! its learned threshold. Written are `AutoEncoder` and `AutoEncoderNew`, `AutoEncoderTopK`, `JumpReluAutoEncoder`,
//! `GatedAutoEncoder`.

use std::path::{Path, PathBuf};

use pullback_artifact::{read_json, write_json};
use serde_json::{Value, json};

use super::arrays::{Arrays, transposed};
use super::origin::layer_of;
use super::rebase::{log_scales, refuse, with_input_bias};
use super::torch_file::{self, Numbers, TorchFile};
use super::{Format, Loaded, Origin};
use crate::{Dictionary, Normalization, Sae, SaeError, SaeParts, Selection};

pub(super) const WEIGHTS: &str = "ae.pt";
const CONFIG: &str = "config.json";

/// A class of `dictionary_learning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    AutoEncoder,
    AutoEncoderNew,
    TopK,
    BatchTopK,
    Matryoshka,
    JumpRelu,
    Gated,
}

impl Class {
    const ALL: [Self; 7] = [
        Self::AutoEncoder,
        Self::AutoEncoderNew,
        Self::TopK,
        Self::BatchTopK,
        Self::Matryoshka,
        Self::JumpRelu,
        Self::Gated,
    ];

    /// The class, and a trainer that makes it.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::AutoEncoder => ("AutoEncoder", "StandardTrainer"),
            Self::AutoEncoderNew => ("AutoEncoderNew", "StandardTrainerAprilUpdate"),
            Self::TopK => ("AutoEncoderTopK", "TopKTrainer"),
            Self::BatchTopK => ("BatchTopKSAE", "BatchTopKTrainer"),
            Self::Matryoshka => ("MatryoshkaBatchTopKSAE", "MatryoshkaBatchTopKTrainer"),
            Self::JumpRelu => ("JumpReluAutoEncoder", "JumpReluTrainer"),
            Self::Gated => ("GatedAutoEncoder", "GatedSAETrainer"),
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.names().0 == name)
    }
}

/// Reads the file of tensors; `config.json` is looked for beside it, and beside the directory `checkpoints`.
///
/// # Errors
/// A file is damaged, the pickle names functions, the class is not one of those above or cannot be told, or a shape is
/// wrong.
pub fn read(weights: &Path) -> Result<Loaded, SaeError> {
    let file = TorchFile::open(weights)?;
    if file.has_dictionary("ae") {
        return Err((&file as &dyn Arrays).wrong(
            "this is the state of a training that was not finished, with biases in its own units; the dictionary is written at its end",
        ));
    }
    let file: &dyn Arrays = &file;
    let config = config(weights)?;
    let class = class(file, config.as_ref())?;
    let trainer = config.as_ref().map(|(_, config)| &config["trainer"]);

    let rows = matches!(class, Class::Matryoshka | Class::JumpRelu);
    let [m, d] = if rows {
        [file.length("b_enc")?, file.length("b_dec")?]
    } else {
        let bias = match class {
            Class::AutoEncoder => "bias",
            Class::AutoEncoderNew => "decoder.bias",
            Class::Gated => "decoder_bias",
            _ => "b_dec",
        };
        let features = match class {
            Class::Gated => "gate_bias",
            _ => "encoder.bias",
        };
        [file.length(features)?, file.length(bias)?]
    };
    if let Some((path, config)) = &config {
        for (key, size) in [("activation_dim", d), ("dict_size", m)] {
            let promised = &config["trainer"][key];
            if !promised.is_null() && promised.as_u64() != Some(size as u64) {
                return Err(SaeError::File {
                    path: path.clone(),
                    problem: format!(
                        "`{key}` is {promised}, but {} holds {size}",
                        weights.display()
                    ),
                });
            }
        }
    }
    let (encoder, decoder) = if rows {
        (
            file.read_transposed("W_enc", d, m)?,
            file.read("W_dec", &[m, d])?,
        )
    } else {
        (
            file.read("encoder.weight", &[m, d])?,
            file.read_transposed("decoder.weight", d, m)?,
        )
    };
    let vector = |name: &str, length: usize| file.read(name, &[length]);
    let one_threshold = || -> Result<Selection, SaeError> {
        let thresholds = vec![file.scalar("threshold")?; m];
        Ok(Selection::Threshold { thresholds })
    };
    let (selection, encoder_bias, decoder_bias) = match class {
        Class::AutoEncoder => (Selection::Relu, "encoder.bias", "bias"),
        Class::AutoEncoderNew => (Selection::Relu, "encoder.bias", "decoder.bias"),
        Class::TopK => (
            Selection::TopK {
                k: k(file, trainer, m)?,
            },
            "encoder.bias",
            "b_dec",
        ),
        Class::BatchTopK => (one_threshold()?, "encoder.bias", "b_dec"),
        Class::Matryoshka => (one_threshold()?, "b_enc", "b_dec"),
        Class::JumpRelu => (
            Selection::Threshold {
                thresholds: vector("threshold", m)?,
            },
            "b_enc",
            "b_dec",
        ),
        Class::Gated => (
            Selection::Gated {
                scales: file.read_exp("r_mag", m)?,
                biases: vector("mag_bias", m)?,
            },
            "gate_bias",
            "decoder_bias",
        ),
    };
    let decoder_bias = vector(decoder_bias, d)?;
    let sae = file.build(SaeParts {
        selection,
        encoder,
        encoder_bias: vector(encoder_bias, m)?,
        decoder,
        input_bias: match class {
            Class::AutoEncoderNew | Class::JumpRelu => vec![0.0; d],
            _ => decoder_bias.clone(),
        },
        decoder_bias,
        normalization: Normalization::None,
        skip: None,
    })?;
    let origin = config.map_or_else(Origin::default, |(_, config)| origin(&config));
    Ok(Loaded { sae, origin })
}

/// The configuration and where it stands, if there is one.
fn config(weights: &Path) -> Result<Option<(PathBuf, Value)>, SaeError> {
    let dir = weights.parent();
    let above = dir
        .filter(|dir| dir.ends_with("checkpoints"))
        .and_then(Path::parent);
    for dir in [dir, above].into_iter().flatten() {
        let path = dir.join(CONFIG);
        if path.is_file() {
            let value: Value = read_json(&path)?;
            // Another program's file may have this name.
            if value["trainer"].is_object() {
                return Ok(Some((path, value)));
            }
        }
    }
    Ok(None)
}

/// The class that the configuration names, or else the only one with these tensors.
fn class(file: &dyn Arrays, config: Option<&(PathBuf, Value)>) -> Result<Class, SaeError> {
    if let Some((path, config)) = config {
        let name = &config["trainer"]["dict_class"];
        if !name.is_null() {
            return name.as_str().and_then(Class::named).ok_or_else(|| {
                let known: Vec<&str> = Class::ALL.iter().map(|class| class.names().0).collect();
                SaeError::File {
                    path: path.clone(),
                    problem: format!(
                        "`dict_class` is {name}; those that can be read are {}",
                        known.join(", ")
                    ),
                }
            });
        }
    }
    let telling = [
        ("gate_bias", Class::Gated),
        ("group_sizes", Class::Matryoshka),
        ("W_enc", Class::JumpRelu),
        ("decoder.bias", Class::AutoEncoderNew),
        ("bias", Class::AutoEncoder),
    ];
    telling
        .into_iter()
        .find(|(name, _)| file.has(name))
        .map(|(_, class)| class)
        .ok_or_else(|| {
            file.wrong(format!(
                "its tensors do not tell its class: a {CONFIG} beside it has to say `trainer.dict_class`"
            ))
        })
}

/// The number of codes: the tensor `k`, which older files lack, and the configuration's.
fn k(file: &dyn Arrays, trainer: Option<&Value>, m: usize) -> Result<usize, SaeError> {
    let promised = trainer.map_or(&Value::Null, |trainer| &trainer["k"]);
    let k = if file.has("k") {
        let k = file.scalar("k")?;
        if !promised.is_null() && promised.as_f64() != Some(f64::from(k)) {
            return Err(file.wrong(format!("`k` is {k}, but {CONFIG} says {promised}")));
        }
        f64::from(k)
    } else {
        promised
            .as_f64()
            .ok_or_else(|| file.wrong(format!("`k` is missing, and {CONFIG} does not say it")))?
    };
    if k.fract() != 0.0 || k < 1.0 || k > m as f64 {
        return Err(file.wrong(format!(
            "`k` is {k}, a whole number from 1 to {m} is needed"
        )));
    }
    Ok(k as usize)
}

/// Names of submodules up to the number of the layer, and TransformerLens's.
const SUBMODULES: [(&str, &str); 3] = [
    ("resid_post_layer_", "hook_resid_post"),
    ("mlp_out_layer_", "hook_mlp_out"),
    ("attention_out_layer_", "hook_attn_out"),
];

fn origin(config: &Value) -> Origin {
    let trainer = &config["trainer"];
    let hook = match trainer["submodule_name"].as_str() {
        Some(name) if name.starts_with("blocks.") || name.starts_with("hook_") => {
            Some(name.to_owned())
        }
        Some(name) => SUBMODULES.iter().find_map(|(prefix, hook)| {
            let layer: usize = name.strip_prefix(prefix)?.parse().ok()?;
            Some(format!("blocks.{layer}.{hook}"))
        }),
        // What the library's own loaders take for granted.
        None => trainer["layer"]
            .as_u64()
            .map(|layer| format!("blocks.{layer}.hook_resid_post")),
    };
    Origin {
        model: trainer["lm_name"].as_str().map(str::to_owned),
        hook,
        context: config["buffer"]["ctx_len"].as_u64().map(|n| n as usize),
        ..Origin::default()
    }
}

/// Writes `ae.pt` and `config.json`. Classes that take `b_dec` from the input, or nothing, get what differs in the
/// encoder's bias.
///
/// # Errors
/// The dictionary normalises, is a transcoder with a skip matrix or of two widths, or a file cannot be written.
pub(super) fn write(sae: &Sae, origin: &Origin, dir: &Path) -> Result<(), SaeError> {
    let format = Format::DictionaryLearning;
    refuse(format, sae, false, false)?;
    let (d, m) = (sae.d(), sae.n_features());
    let zeros = vec![0.0; d];
    let class = match sae.selection() {
        Selection::Relu if sae.input_bias() == zeros && sae.decoder_bias() != zeros => {
            Class::AutoEncoderNew
        }
        Selection::Relu => Class::AutoEncoder,
        Selection::TopK { .. } => Class::TopK,
        Selection::Threshold { .. } => Class::JumpRelu,
        Selection::Gated { .. } => Class::Gated,
    };
    let parts = match class {
        Class::AutoEncoderNew | Class::JumpRelu => with_input_bias(sae, &zeros),
        _ => with_input_bias(sae, sae.decoder_bias()),
    };
    let (tall, wide) = ([m, d], [d, m]);
    let (features, width) = ([m], [d]);
    let flipped = if class == Class::JumpRelu {
        transposed(&parts.encoder, m, d)
    } else {
        transposed(&parts.decoder, m, d)
    };
    let (encoder_bias, decoder_bias) = (
        Numbers::F32(&parts.encoder_bias),
        Numbers::F32(&parts.decoder_bias),
    );
    let logs;
    let k;
    let mut arrays: Vec<(&str, &[usize], Numbers<'_>)> = match &parts.selection {
        Selection::Threshold { thresholds } => vec![
            ("W_enc", &wide, Numbers::F32(&flipped)),
            ("b_enc", &features, encoder_bias),
            ("W_dec", &tall, Numbers::F32(&parts.decoder)),
            ("b_dec", &width, decoder_bias),
            ("threshold", &features, Numbers::F32(thresholds)),
        ],
        Selection::Gated { scales, biases } => {
            logs = log_scales(format, scales)?;
            vec![
                ("decoder_bias", &width, decoder_bias),
                ("r_mag", &features, Numbers::F32(&logs)),
                ("gate_bias", &features, encoder_bias),
                ("mag_bias", &features, Numbers::F32(biases)),
            ]
        }
        Selection::Relu => vec![
            (
                if class == Class::AutoEncoder {
                    "bias"
                } else {
                    "decoder.bias"
                },
                &width,
                decoder_bias,
            ),
            ("encoder.bias", &features, encoder_bias),
        ],
        Selection::TopK { k: active } => {
            k = [*active as i32];
            vec![
                ("b_dec", &width, decoder_bias),
                ("k", &[], Numbers::I32(&k)),
                // Below zero: not learned.
                ("threshold", &[], Numbers::F32(&[-1.0])),
                ("encoder.bias", &features, encoder_bias),
            ]
        }
    };
    if class != Class::JumpRelu {
        arrays.push(("encoder.weight", &tall, Numbers::F32(&parts.encoder)));
        arrays.push(("decoder.weight", &wide, Numbers::F32(&flipped)));
    }
    write_json(&dir.join(CONFIG), &described(sae, class, origin))?;
    torch_file::write(&dir.join(WEIGHTS), &arrays)
}

fn described(sae: &Sae, class: Class, origin: &Origin) -> Value {
    let (dict_class, trainer_class) = class.names();
    let hook = origin.hook.as_deref().unwrap_or_default();
    let layer = layer_of(hook);
    let submodule = layer.and_then(|layer| {
        let rest = hook.strip_prefix(&format!("blocks.{layer}."))?;
        let (prefix, _) = SUBMODULES.iter().find(|(_, name)| *name == rest)?;
        Some(format!("{prefix}{layer}"))
    });
    let submodule = submodule.or_else(|| origin.hook.clone());
    let mut config = json!({
        "trainer": {
            "trainer_class": trainer_class,
            "dict_class": dict_class,
            "activation_dim": sae.d(),
            "dict_size": sae.n_features(),
            "layer": layer,
            "lm_name": origin.model,
            "submodule_name": submodule,
        },
        "buffer": { "d_submodule": sae.d(), "ctx_len": origin.context },
    });
    if let Some(k) = sae.k() {
        config["trainer"]["k"] = json!(k);
    }
    config
}
