//! Gemma Scope 2: `params.safetensors` and, mostly, `config.json`, in directories as
//! `resid_post/layer_17_width_16k_l0_medium`.
//!
//! Transcoders may have an affine part, `affine_skip_connection [d, d_out]`.

use std::path::Path;

use pullback_artifact::read_json;
use serde_json::Value;

use super::arrays::{Arrays, transposed};
use super::gemma_scope;
use super::origin::components;
use super::safetensors_file::SafetensorsFile;
use super::{Loaded, Origin};
use crate::SaeError;

pub(super) const WEIGHTS: &str = "params.safetensors";
const CONFIG: &str = "config.json";
const SKIP: &str = "affine_skip_connection";

/// Reads the directory of a dictionary.
///
/// # Errors
/// A file is damaged, the architecture is not `jump_relu`, or a shape is wrong; transcoders to several layers, whose decoders
/// have a third dimension, are not read.
pub fn read(dir: &Path) -> Result<Loaded, SaeError> {
    let path = dir.join(CONFIG);
    let config: Value = if path.is_file() {
        read_json(&path)?
    } else {
        Value::Null
    };
    let architecture = &config["architecture"];
    if !(architecture.is_null() || architecture == "jump_relu") {
        return Err(SaeError::File {
            path,
            problem: format!("`architecture` is {architecture}; \"jump_relu\" can be read"),
        });
    }
    let file = SafetensorsFile::open(&dir.join(WEIGHTS))?;
    let file: &dyn Arrays = &file;
    let mut parts = gemma_scope::parts(file)?;
    let (d, d_out) = (parts.input_bias.len(), parts.decoder_bias.len());
    if file.has(SKIP) {
        let skip = file.read(SKIP, &[d, d_out])?;
        parts.skip = Some(transposed(&skip, d, d_out));
    } else if config["affine_connection"] == true {
        return Err(file.wrong(format!(
            "{CONFIG} says `affine_connection: true`, but `{SKIP}` is missing"
        )));
    }
    Ok(Loaded {
        sae: file.build(parts)?,
        origin: origin(&config, &components(dir)),
    })
}

/// From the names of modules in the configuration, or else those of directories.
fn origin(config: &Value, names: &[String]) -> Origin {
    let (hook, hook_out) = match (
        config["hf_hook_point_in"].as_str(),
        config["hf_hook_point_out"].as_str(),
    ) {
        (Some(from), to) => (site(from), to.and_then(site)),
        (None, _) => from_directories(names),
    };
    Origin {
        model: config["model_name"]
            .as_str()
            .map(|name| name.replace("-v3", "-3")),
        hook,
        // An autoencoder's output belongs where its input is.
        hook_out: hook_out.filter(|_| config["hf_hook_point_out"] != config["hf_hook_point_in"]),
        context: Some(1024),
        prepend_bos: Some(true),
        dataset: None,
    }
}

/// TransformerLens's name of a module's output or input, as `model.layers.17.output`.
fn site(module: &str) -> Option<String> {
    let (layer, place) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let place = match place {
        "output" => "hook_resid_post",
        "self_attn.o_proj.input" => "attn.hook_z",
        "pre_feedforward_layernorm.output" => "ln2.hook_normalized",
        "post_feedforward_layernorm.output" => "hook_mlp_out",
        _ => return None,
    };
    Some(format!("blocks.{layer}.{place}"))
}

fn from_directories(names: &[String]) -> (Option<String>, Option<String>) {
    let layer = names.iter().find_map(|name| {
        let rest = name.strip_prefix("layer_")?;
        rest.split('_').next()?.parse::<usize>().ok()
    });
    let of = |place: &str| layer.map(|layer| format!("blocks.{layer}.{place}"));
    let kind = |word: &str| names.iter().take(3).any(|name| name.starts_with(word));
    if kind("resid_post") {
        (of("hook_resid_post"), None)
    } else if kind("attn_out") {
        (of("attn.hook_z"), None)
    } else if kind("mlp_out") {
        (of("hook_mlp_out"), None)
    } else if kind("transcoder") {
        (of("ln2.hook_normalized"), of("hook_mlp_out"))
    } else {
        (None, None)
    }
}
