//! A hook point's directory of [sparsify](https://github.com/EleutherAI/sparsify) (version 1.3): `cfg.json` and
//! `sae.safetensors`. All its dictionaries are TopK.

use std::path::Path;

use pullback_artifact::{read_json, write_json};
use serde_json::{Value, json};

use super::arrays::Arrays;
use super::origin::components;
use super::rebase::{refuse, with_input_bias};
use super::safetensors_file::{self, SafetensorsFile};
use super::{Format, Loaded, Origin};
use crate::{Dictionary, Normalization, Sae, SaeError, SaeParts, Selection};

pub(super) const WEIGHTS: &str = "sae.safetensors";
const CONFIG: &str = "cfg.json";
/// One directory up: what the training was told.
const TRAINING: &str = "config.json";

/// Reads the directory of a hook point. `config.json` one directory up names the model, if it is there.
///
/// `normalize_decoder` changes training only, so it is not looked at.
///
/// # Errors
/// A file is missing or damaged, codes are selected by another function than TopK, or a shape is wrong.
pub fn read(dir: &Path) -> Result<Loaded, SaeError> {
    let path = dir.join(CONFIG);
    let config: Value = read_json(&path)?;
    let wrong = |problem: String| SaeError::File {
        path: path.clone(),
        problem,
    };
    let size = |key: &str| {
        config[key]
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| {
                wrong(format!(
                    "`{key}` is {}, a whole number is needed",
                    config[key]
                ))
            })
    };
    let flag = |key: &str| match &config[key] {
        Value::Null => Ok(false),
        Value::Bool(value) => Ok(*value),
        other => Err(wrong(format!(
            "`{key}` is {other}, true or false is needed"
        ))),
    };
    let activation = &config["activation"];
    if !(activation.is_null() || activation == "topk") {
        return Err(wrong(format!(
            "`activation` is {activation}; \"topk\" can be read"
        )));
    }
    if flag("signed")? {
        return Err(wrong(
            "`signed` is true: codes below zero cannot be read".to_owned(),
        ));
    }
    let d = size("d_in")?;
    let m = match config["num_latents"].as_u64() {
        None | Some(0) => {
            let factor = size("expansion_factor")?;
            d.checked_mul(factor).ok_or_else(|| {
                wrong(format!(
                    "{d} times the `expansion_factor` {factor} is too large"
                ))
            })?
        }
        Some(_) => size("num_latents")?,
    };
    let k = size("k")?;
    if d == 0 || !(1..=m).contains(&k) {
        return Err(wrong(format!(
            "`d_in` is {d} and `k` is {k}; at least 1 and a number from 1 to {m} are needed"
        )));
    }
    let (transcode, skip) = (flag("transcode")?, flag("skip_connection")?);

    let file = SafetensorsFile::open(&dir.join(WEIGHTS))?;
    let file: &dyn Arrays = &file;
    let decoder_bias = file.read("b_dec", &[d])?;
    let sae = file.build(SaeParts {
        selection: Selection::TopK { k },
        encoder: file.read("encoder.weight", &[m, d])?,
        encoder_bias: file.read("encoder.bias", &[m])?,
        decoder: file.read("W_dec", &[m, d])?,
        input_bias: if transcode {
            vec![0.0; d]
        } else {
            decoder_bias.clone()
        },
        decoder_bias,
        normalization: Normalization::None,
        skip: if skip {
            Some(file.read("W_skip", &[d, d])?)
        } else {
            None
        },
    })?;
    Ok(Loaded {
        sae,
        origin: origin(dir, transcode)?,
    })
}

/// From the name of the directory, and the training's configuration if there is one.
fn origin(dir: &Path, transcode: bool) -> Result<Origin, SaeError> {
    let training = dir.join("..").join(TRAINING);
    let training: Value = if training.is_file() {
        read_json(&training)?
    } else {
        Value::Null
    };
    let names = components(dir);
    let (hook, hook_out) = hooks(names.first().map_or("", String::as_str), transcode);
    Ok(Origin {
        model: training["model"].as_str().map(str::to_owned),
        hook,
        hook_out,
        context: training["ctx_len"].as_u64().map(|size| size as usize),
        prepend_bos: None,
        dataset: training["dataset"].as_str().map(str::to_owned),
    })
}

/// Sparsify reads the output of the module that a directory is named after; a transcoder, its input and its output.
fn hooks(directory: &str, transcode: bool) -> (Option<String>, Option<String>) {
    if directory == "embed_tokens" || directory == "wte" {
        return (Some("hook_embed".to_owned()), None);
    }
    let rest = ["layers.", "h."]
        .iter()
        .find_map(|prefix| directory.strip_prefix(prefix));
    let Some(rest) = rest else {
        return (None, None);
    };
    let (layer, module) = rest.split_once('.').unwrap_or((rest, ""));
    if layer.parse::<usize>().is_err() {
        return (None, None);
    }
    let of = |place: &str| Some(format!("blocks.{layer}.{place}"));
    match (module, transcode) {
        ("", false) => (of("hook_resid_post"), None),
        ("", true) => (of("hook_resid_pre"), of("hook_resid_post")),
        ("mlp", false) => (of("hook_mlp_out"), None),
        ("mlp", true) => (of("ln2.hook_normalized"), of("hook_mlp_out")),
        ("self_attn" | "attn" | "attention", false) => (of("hook_attn_out"), None),
        _ => (None, None),
    }
}

/// Writes `cfg.json` and `sae.safetensors`. The directory has to get the hook point's name, as `layers.7`; the model's name
/// has no place in these files.
///
/// # Errors
/// The dictionary is not TopK, normalises or has two widths, or a file cannot be written.
pub(super) fn write(sae: &Sae, dir: &Path) -> Result<(), SaeError> {
    let format = Format::Sparsify;
    refuse(format, sae, true, false)?;
    let Selection::TopK { k } = *sae.selection() else {
        return Err(SaeError::Inexpressible {
            format,
            reason: format!(
                "it selects by `{}`, and sparsify by TopK alone",
                sae.selection().name()
            ),
        });
    };
    let (d, m) = (sae.d(), sae.n_features());
    // With zeros in `b_dec` the two say the same.
    let transcode =
        sae.input_bias() != sae.decoder_bias() && sae.input_bias().iter().all(|&b| b == 0.0);
    let parts = if transcode {
        sae.parts().clone()
    } else {
        with_input_bias(sae, sae.decoder_bias())
    };
    let unit = parts.decoder.chunks_exact(d).all(|row| {
        let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        (squares.sqrt() - 1.0).abs() < 1e-4
    });
    let config = json!({
        "activation": "topk",
        "expansion_factor": m.div_ceil(d),
        "normalize_decoder": unit,
        "num_latents": m,
        "k": k,
        "multi_topk": false,
        "skip_connection": parts.skip.is_some(),
        "transcode": transcode,
        "d_in": d,
    });
    let (tall, features, width, square) = ([m, d], [m], [d], [d, d]);
    let mut arrays: Vec<(&str, &[usize], &[f32])> = vec![
        ("encoder.weight", &tall, &parts.encoder),
        ("encoder.bias", &features, &parts.encoder_bias),
        ("W_dec", &tall, &parts.decoder),
        ("b_dec", &width, &parts.decoder_bias),
    ];
    if let Some(skip) = &parts.skip {
        arrays.push(("W_skip", &square, skip));
    }
    write_json(&dir.join(CONFIG), &config)?;
    safetensors_file::write(&dir.join(WEIGHTS), &arrays)
}
