//! Writing a dictionary as SAELens 6 does.

use std::path::Path;

use pullback_artifact::write_json;
use serde_json::{Value, json};

use super::{CONFIG, WEIGHTS};
use crate::formats::arrays::transposed;
use crate::formats::rebase::{gated_as_thresholds, log_scales, refuse, with_input_bias};
use crate::formats::{Format, Origin, safetensors_file};
use crate::{Dictionary, Normalization, Sae, SaeError, SaeParts, Selection};

/// What every file says it was written by: the version whose layout this is.
const VERSION: &str = "6.0.0";

/// Writes both files into a directory. What is taken from the input is `b_dec` or nothing; another vector goes into the
/// encoder's biases.
///
/// # Errors
/// The format cannot express the dictionary (a TopK transcoder with a skip matrix or of two widths, a transcoder that
/// normalises), or a file cannot be written.
pub(in crate::formats) fn write(sae: &Sae, origin: &Origin, dir: &Path) -> Result<(), SaeError> {
    write_as(sae, origin, architecture(sae, origin, false)?, dir)
}

/// The same for pullback's own artifacts, which may be what SAELens has no architecture for: `topk_transcoder` and
/// `topk_skip_transcoder`.
///
/// # Errors
/// The format cannot express the dictionary, or a file cannot be written.
pub(super) fn write_own(sae: &Sae, origin: &Origin, dir: &Path) -> Result<(), SaeError> {
    write_as(sae, origin, architecture(sae, origin, true)?, dir)
}

fn write_as(
    sae: &Sae,
    origin: &Origin,
    (architecture, parts): (&'static str, SaeParts),
    dir: &Path,
) -> Result<(), SaeError> {
    let (d, m, d_out) = (sae.d(), sae.n_features(), sae.d_out());
    let SaeParts {
        decoder,
        decoder_bias,
        ..
    } = &parts;
    let mut config = json!({
        "d_in": d,
        "d_sae": m,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": parts.input_bias == *decoder_bias && !architecture.ends_with("transcoder"),
        "normalize_activations": match parts.normalization {
            Normalization::None => "none",
            Normalization::ConstantNorm => "constant_norm_rescale",
            Normalization::Layer => "layer_norm",
        },
        // Where heads are apart, SAELens joins them.
        "reshape_activations": match &origin.hook {
            Some(hook) if hook.ends_with("hook_z") => "hook_z",
            _ => "none",
        },
    });
    if let Selection::TopK { k } = parts.selection {
        config["k"] = json!(k);
        config["rescale_acts_by_decoder_norm"] = json!(false);
    }
    if architecture.ends_with("transcoder") {
        config["d_out"] = json!(d_out);
    }
    config["architecture"] = json!(architecture);
    config["metadata"] = metadata(origin);

    let encoder = transposed(&parts.encoder, m, d);
    let (wide, high, tall) = ([d, m], [m, d_out], [m]);
    let (out, skip_shape) = ([d_out], [d_out, d]);
    let mut arrays: Vec<(&str, &[usize], &[f32])> = vec![
        ("W_enc", &wide, &encoder),
        ("W_dec", &high, decoder),
        ("b_dec", &out, decoder_bias),
    ];
    let logs;
    match &parts.selection {
        Selection::Gated { scales, biases } => {
            logs = log_scales(Format::SaeLens, scales)?;
            arrays.push(("b_gate", &tall, &parts.encoder_bias));
            arrays.push(("r_mag", &tall, &logs));
            arrays.push(("b_mag", &tall, biases));
        }
        Selection::Threshold { thresholds } => {
            arrays.push(("b_enc", &tall, &parts.encoder_bias));
            arrays.push(("threshold", &tall, thresholds));
        }
        Selection::Relu | Selection::TopK { .. } => {
            arrays.push(("b_enc", &tall, &parts.encoder_bias));
        }
    }
    if let Some(skip) = &parts.skip {
        arrays.push(("W_skip", &skip_shape, skip));
    }
    write_json(&dir.join(CONFIG), &config)?;
    safetensors_file::write(&dir.join(WEIGHTS), &arrays)
}

/// The name of the architecture, and the dictionary in its terms.
fn architecture(
    sae: &Sae,
    origin: &Origin,
    own: bool,
) -> Result<(&'static str, SaeParts), SaeError> {
    let parts = sae.parts();
    let (d, d_out) = (sae.d(), sae.d_out());
    let needs_transcoder = d != d_out || parts.skip.is_some();
    let is_top_k = matches!(parts.selection, Selection::TopK { .. });
    if is_top_k && needs_transcoder && own {
        refuse_normalized(sae)?;
        let name = match parts.skip {
            None => "topk_transcoder",
            Some(_) => "topk_skip_transcoder",
        };
        return Ok((name, with_input_bias(sae, &vec![0.0; d])));
    }
    if is_top_k && needs_transcoder {
        return Err(SaeError::Inexpressible {
            format: Format::SaeLens,
            reason: "its TopK architecture has no skip matrix and one width, and its transcoders have no TopK"
                .to_owned(),
        });
    }
    // TopK has no transcoders of its own, but one without a skip matrix is an autoencoder that takes nothing from its input.
    if needs_transcoder || (origin.hook_out.is_some() && !is_top_k) {
        refuse_normalized(sae)?;
        let parts = gated_as_thresholds(Format::SaeLens, with_input_bias(sae, &vec![0.0; d]))?;
        let jump = matches!(parts.selection, Selection::Threshold { .. });
        let name = match (jump, parts.skip.is_some()) {
            (false, false) => "transcoder",
            (false, true) => "skip_transcoder",
            (true, false) => "jumprelu_transcoder",
            (true, true) => "jumprelu_skip_transcoder",
        };
        return Ok((name, parts));
    }
    let parts = if parts.input_bias == parts.decoder_bias {
        parts.clone()
    } else {
        with_input_bias(sae, &vec![0.0; d])
    };
    let name = match parts.selection {
        Selection::Relu => "standard",
        Selection::TopK { .. } => "topk",
        Selection::Threshold { .. } => "jumprelu",
        Selection::Gated { .. } => "gated",
    };
    Ok((name, parts))
}

/// A transcoder's output does not undo what was done to its input.
fn refuse_normalized(sae: &Sae) -> Result<(), SaeError> {
    refuse(Format::SaeLens, sae, true, true)
}

fn metadata(origin: &Origin) -> Value {
    let mut metadata = json!({
        "sae_lens_version": VERSION,
        "sae_lens_training_version": null,
        "model_name": origin.model,
        "hook_name": origin.hook,
        "hook_head_index": null,
        "prepend_bos": origin.prepend_bos,
        "context_size": origin.context,
        "dataset_path": origin.dataset,
        "exclude_special_tokens": false,
        "neuronpedia_id": null
    });
    if let Some(hook) = &origin.hook_out {
        metadata["hook_name_out"] = json!(hook);
        metadata["hook_head_index_out"] = Value::Null;
    }
    metadata
}
