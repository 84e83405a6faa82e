//! What a `config.json` says about a model of any of the families.

use std::path::Path;

use pullback_kernels::fused::Activation;
use serde_json::Value;

use super::fields::Fields;
use super::read_json;
use crate::config::{ModelConfig, RopeScaling, RotaryConfig, SizeKeys};
use crate::error::ModelError;
use crate::family::{FAMILIES, Family, Has, Windows};

/// Reads and checks the `config.json` of a directory.
///
/// # Errors
/// When it is missing or not JSON, the architecture or one of its settings is not supported, or a value is absurd.
pub(crate) fn read_config(directory: &Path) -> Result<ModelConfig, ModelError> {
    let path = directory.join("config.json");
    let json = read_json(&path)?;
    let fields = Fields {
        path: &path,
        json: &json,
    };
    let family = family_of(&fields)?;
    refuse_variants(&fields)?;
    let keys = size_keys(family);
    let d_model = fields.required(&keys.d_model)?;
    let n_heads = fields.required(&keys.n_heads)?;
    let d_head = match fields.size(&keys.d_head)? {
        Some(d_head) => d_head,
        // Gemma's classes fill in what their files leave out.
        None if family.embed_scale => 256,
        None if n_heads > 0 && d_model.is_multiple_of(n_heads) => d_model / n_heads,
        None => {
            return Err(ModelError::malformed(
                &path,
                keys.n_heads,
                format!("{n_heads} does not divide {d_model} of {}", keys.d_model),
            ));
        }
    };
    let n_layers = fields.required(&keys.n_layers)?;
    let mut config = ModelConfig {
        name: directory_name(directory),
        architecture: family.name.into(),
        n_layers,
        d_model,
        d_mlp: match fields.size(&keys.d_mlp)? {
            Some(d_mlp) => d_mlp,
            None if !family.rotary => d_model.saturating_mul(4),
            None => fields.required(&keys.d_mlp)?,
        },
        n_heads,
        n_kv_heads: fields.size(&keys.n_kv_heads)?.unwrap_or(n_heads),
        d_head,
        d_vocab: fields.required(&keys.d_vocab)?,
        n_ctx: match (fields.size(&keys.n_ctx)?, family.rotary) {
            (Some(n_ctx), _) => n_ctx,
            (None, true) => 2048,
            (None, false) => 1024,
        },
        norm: family.norm,
        norm_eps: match fields.number(&keys.norm_eps)? {
            Some(eps) => eps as f32,
            None if family.norm == crate::config::Norm::Layer => 1e-5,
            None => 1e-6,
        },
        activation: activation(&fields, family)?,
        gated_mlp: family.gated_mlp,
        parallel_blocks: has(&fields, family.parallel)?,
        post_norms: family.post_norms,
        qk_norms: family.qk_norms,
        qkv_bias: has(&fields, family.qkv_bias)?,
        attn_out_bias: has(&fields, family.attn_out_bias)?,
        mlp_bias: has(&fields, family.mlp_bias)?,
        rotary: if family.rotary {
            Some(rotary(&fields, family, d_head)?)
        } else {
            None
        },
        attention_scale: attention_scale(&fields, d_head)?,
        attention_softcap: softcap(&fields, "attn_logit_softcapping", family.softcaps.0)?,
        final_softcap: softcap(&fields, "final_logit_softcapping", family.softcaps.1)?,
        windows: Vec::new(),
        embed_scale: family.embed_scale.then_some((d_model as f64).sqrt() as f32),
        tied_embedding: fields.flag("tie_word_embeddings")?.unwrap_or(family.tied),
    };
    config.check(&path, &keys)?;
    config.windows = windows(&fields, family, n_layers)?;
    config.check(&path, &keys)?;
    Ok(config)
}

fn size_keys(family: &Family) -> SizeKeys {
    let keys = &family.keys;
    SizeKeys {
        n_layers: keys.n_layers.into(),
        d_model: keys.d_model.into(),
        d_mlp: keys.d_mlp.into(),
        n_heads: keys.n_heads.into(),
        n_kv_heads: "num_key_value_heads".into(),
        d_head: "head_dim".into(),
        d_vocab: "vocab_size".into(),
        n_ctx: keys.n_ctx.into(),
        rope_dim: "head_dim".into(),
        rope_base: "rope_theta".into(),
        norm_eps: keys.norm_eps.into(),
    }
}

fn family_of(fields: &Fields<'_>) -> Result<&'static Family, ModelError> {
    let classes = fields.json.get("architectures").and_then(Value::as_array);
    let class = classes
        .and_then(|list| list.first())
        .and_then(Value::as_str);
    let model_type = fields.text("model_type")?.unwrap_or_default();
    let by_type = FAMILIES.iter().find(|f| f.model_type == model_type);
    match (by_type, class) {
        (Some(family), None) => return Ok(family),
        (Some(family), Some(class)) if class == family.class => return Ok(family),
        _ => {}
    }
    Err(ModelError::UnsupportedArchitecture {
        path: fields.path.to_owned(),
        found: match class {
            Some(class) => class.to_owned(),
            None if model_type.is_empty() => "none named".to_owned(),
            None => model_type.to_owned(),
        },
        supported: FAMILIES
            .iter()
            .map(|family| family.class)
            .collect::<Vec<_>>()
            .join(", "),
    })
}

fn has(fields: &Fields<'_>, has: Has) -> Result<bool, ModelError> {
    Ok(match has {
        Has::Never => false,
        Has::Always => true,
        Has::Key(key, default) => fields.flag(key)?.unwrap_or(default),
    })
}

fn activation(fields: &Fields<'_>, family: &Family) -> Result<Activation, ModelError> {
    let key = family.keys.activation;
    let Some(name) = fields.text(key)? else {
        return Ok(family.activation);
    };
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => {
            return Err(ModelError::unsupported(
                fields.path,
                key,
                format!(
                    "activation \"{other}\" is not supported (supported: silu, gelu, gelu_new, gelu_pytorch_tanh, relu)"
                ),
            ));
        }
    })
}

fn attention_scale(fields: &Fields<'_>, d_head: usize) -> Result<f32, ModelError> {
    let width = fields
        .number("query_pre_attn_scalar")?
        .unwrap_or(d_head as f64);
    Ok(width.powf(-0.5) as f32)
}

/// A cap that the file sets, or unsets with `null`, or leaves to the family.
fn softcap(
    fields: &Fields<'_>,
    key: &str,
    default: Option<f32>,
) -> Result<Option<f32>, ModelError> {
    Ok(match fields.json.get(key) {
        None => default,
        Some(_) => fields.number(key)?.map(|cap| cap as f32),
    })
}

/// The settings of the rotary embedding: in `rope_scaling`, or (transformers 5) in `rope_parameters`, there once for each
/// kind of block in families that have two; what they leave out stands at the top of the file.
fn rotary(fields: &Fields<'_>, family: &Family, d_head: usize) -> Result<RotaryConfig, ModelError> {
    let given = |key: &'static str| {
        let value = fields.json.get(key).filter(|value| !value.is_null());
        value.map(|value| (key, value))
    };
    let (key, group) = match given("rope_scaling").or_else(|| given("rope_parameters")) {
        Some((key, group)) => (key, Some(group)),
        None => ("rope_parameters", None),
    };
    let part = |name: &str| group.and_then(|group| group.get(name));
    let global = part("full_attention").or(group);
    let empty = Value::Null;
    let inner = |json| Fields {
        path: fields.path,
        json,
    };
    let settings = inner(global.unwrap_or(&empty));
    let number = |names: &[&str]| -> Result<Option<f64>, ModelError> {
        for place in [&settings, fields] {
            for name in names {
                if let Some(value) = place.number(name)? {
                    return Ok(Some(value));
                }
            }
        }
        Ok(None)
    };
    let default_base = if family.local_rope_base.is_some() {
        1_000_000.0
    } else {
        10_000.0
    };
    let base = number(&["rope_theta", "rotary_emb_base"])?.unwrap_or(default_base);
    let local_base = match part("sliding_attention") {
        Some(local) => inner(local).number("rope_theta")?,
        None => fields.number("rope_local_base_freq")?,
    };
    let share = number(&["partial_rotary_factor", "rotary_pct"])?;
    let share = share.or(family.rotary_share).unwrap_or(1.0);
    if family.rotary_share.is_none() && share < 1.0 {
        return Err(ModelError::unsupported(
            fields.path,
            "partial_rotary_factor",
            format!(
                "a rotary embedding of part of each head is not supported in {} models",
                family.name
            ),
        ));
    }
    if !(share > 0.0 && share <= 1.0) {
        return Err(ModelError::malformed(
            fields.path,
            "partial_rotary_factor",
            format!("{share} is not a share of the head above 0 and up to 1"),
        ));
    }
    Ok(RotaryConfig {
        dim: (share * d_head as f64) as usize,
        base: base as f32,
        scaling: scaling(fields, &settings, key)?,
        local_base: family
            .local_rope_base
            .map(|default| local_base.map_or(default, |base| base as f32)),
    })
}

fn scaling(file: &Fields<'_>, settings: &Fields<'_>, key: &str) -> Result<RopeScaling, ModelError> {
    let kind = match settings.text("rope_type")? {
        Some(kind) => kind,
        None => settings.text("type")?.unwrap_or("default"),
    };
    let required = |name: &str| {
        settings.number(name)?.ok_or_else(|| {
            ModelError::malformed(
                settings.path,
                format!("{key}.{name}"),
                format!("this key is missing, and \"{kind}\" needs it"),
            )
        })
    };
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: required("factor")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_context: match settings.number("original_max_position_embeddings")? {
                Some(context) => context,
                None => file
                    .number("original_max_position_embeddings")?
                    .ok_or_else(|| {
                        ModelError::malformed(
                            settings.path,
                            format!("{key}.original_max_position_embeddings"),
                            "this key is missing, and \"llama3\" needs it",
                        )
                    })?,
            },
        },
        other => {
            return Err(ModelError::unsupported(
                settings.path,
                key,
                format!(
                    "rotary scaling \"{other}\" is not supported (supported: default, linear, llama3)"
                ),
            ));
        }
    })
}

/// The window of each block.
fn windows(
    fields: &Fields<'_>,
    family: &Family,
    n_layers: usize,
) -> Result<Vec<Option<usize>>, ModelError> {
    let none = vec![None; n_layers];
    if family.windows == Windows::None {
        return Ok(none);
    }
    let on = match family.windows {
        Windows::Above => fields.flag("use_sliding_window")?.unwrap_or(false),
        _ => true,
    };
    let Some(window) = fields.size("sliding_window")?.filter(|_| on) else {
        return Ok(none);
    };
    if let Some(listed) = fields
        .json
        .get("layer_types")
        .filter(|list| !list.is_null())
    {
        let list = listed.as_array().filter(|list| list.len() == n_layers);
        let kinds = list.into_iter().flatten().map(|kind| match kind.as_str() {
            Some("sliding_attention") => Some(Some(window)),
            Some("full_attention") => Some(None),
            _ => None,
        });
        return match (list, kinds.collect::<Option<Vec<_>>>()) {
            (Some(_), Some(windows)) => Ok(windows),
            _ => Err(ModelError::malformed(
                fields.path,
                "layer_types",
                format!(
                    "expected {n_layers} of \"sliding_attention\" and \"full_attention\", one a block"
                ),
            )),
        };
    }
    let has_window = |layer: usize| -> Result<bool, ModelError> {
        Ok(match family.windows {
            Windows::None => false,
            Windows::All => true,
            Windows::Above => layer >= fields.size("max_window_layers")?.unwrap_or(28),
            Windows::AllButEvery(n) => {
                let n = fields.size("sliding_window_pattern")?.unwrap_or(n).max(1);
                !(layer + 1).is_multiple_of(n)
            }
        })
    };
    (0..n_layers)
        .map(|layer| Ok(has_window(layer)?.then_some(window)))
        .collect()
}

/// Settings that change the computation in ways that are not implemented.
fn refuse_variants(fields: &Fields<'_>) -> Result<(), ModelError> {
    if let Some(value) = fields.json.get("quantization_config")
        && !value.is_null()
    {
        return Err(ModelError::unsupported(
            fields.path,
            "quantization_config",
            "quantised checkpoints are not supported in this layout (use GGUF, or safetensors in F32, F16 or BF16)",
        ));
    }
    // GPT-2's rarely used ways of scaling the scores.
    for (key, usual) in [
        ("scale_attn_by_inverse_layer_idx", false),
        ("scale_attn_weights", true),
        ("add_cross_attention", false),
        ("use_bidirectional_attention", false),
    ] {
        if let Some(value) = fields.flag(key)?
            && value != usual
        {
            return Err(ModelError::unsupported(
                fields.path,
                key,
                format!("{value} is not supported (supported: {usual})"),
            ));
        }
    }
    Ok(())
}

fn directory_name(directory: &Path) -> String {
    let full = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    full.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
