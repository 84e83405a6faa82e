//! The SAELens layout: `cfg.json` and `sae_weights.safetensors`, as version 6.54 has it; flat configurations of versions
//! before 6 are read as well.
//!
//! Read are the architectures `standard`, `topk`, `jumprelu`, `gated`, `transcoder`, `skip_transcoder`,
//! `jumprelu_transcoder` and `jumprelu_skip_transcoder`, and checkpoints of `batchtopk` and `matryoshka_batchtopk`, which
//! SAELens turns into `jumprelu` when it is done. TopK transcoders that SAELens has no name for are `topk_transcoder` and
//! `topk_skip_transcoder` in pullback's own artifacts.
//!
//! With `normalize_activations: expected_average_only_in` activations were multiplied by one factor in training. SAELens
//! folds the factor into the weights at the end and writes `none`; until then the factor is in `activation_scaler.json`
//! beside the weights, and it is folded here. Where it is not there, SAELens itself uses the weights as if there were no
//! factor; here they are refused.

mod config;
mod write;

use std::path::Path;

use self::config::{Architecture, Config};
pub(super) use self::write::write;
use self::write::write_own;
use super::arrays::Arrays;
use super::rebase::with_unit_rows;
use super::safetensors_file::{self, SafetensorsFile};
use super::{Loaded, Origin};
use crate::{Sae, SaeError, SaeParts, Selection};

const CONFIG: &str = "cfg.json";
pub(super) const WEIGHTS: &str = "sae_weights.safetensors";
/// Where a checkpoint keeps the factor that activations are multiplied with.
const SCALER: &str = "activation_scaler.json";

/// What other tools want to know of an autoencoder's origin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SaeLensMetadata {
    /// The model.
    pub model_name: Option<String>,
    /// The site.
    pub hook_name: String,
    /// The site that is reconstructed, of a transcoder.
    pub hook_name_out: Option<String>,
    /// Tokens in a sequence.
    pub context_size: usize,
    /// Whether each sequence starts with the beginning-of-text token.
    pub prepend_bos: bool,
}

/// Writes both files into a directory, as pullback's own artifacts have them: SAELens reads them but for TopK transcoders
/// with a skip matrix or of two widths (`topk_transcoder`, `topk_skip_transcoder`), for which it has no architecture.
///
/// # Errors
/// The format cannot express the dictionary, or a file cannot be written.
pub fn save(sae: &Sae, metadata: &SaeLensMetadata, dir: &Path) -> Result<(), SaeError> {
    let origin = Origin {
        model: metadata.model_name.clone(),
        hook: Some(metadata.hook_name.clone()),
        hook_out: metadata.hook_name_out.clone(),
        context: Some(metadata.context_size),
        prepend_bos: Some(metadata.prepend_bos),
        ..Origin::default()
    };
    write_own(sae, &origin, dir)
}

/// Reads a dictionary.
///
/// # Errors
/// A file is missing or damaged, the architecture is not one of those above, or a shape is not the one that `cfg.json`
/// promises (a transposed matrix is named as such).
pub fn load(dir: &Path) -> Result<Sae, SaeError> {
    Ok(read(dir)?.sae)
}

/// Reads a dictionary and what its configuration says of its origin.
///
/// # Errors
/// As [`load`].
pub fn read(dir: &Path) -> Result<Loaded, SaeError> {
    let config = Config::read(dir)?;
    let file = SafetensorsFile::open(&dir.join(WEIGHTS))?;
    let file: &dyn Arrays = &file;
    let Config { d, m, d_out, .. } = config;

    let encoder = file.read_transposed("W_enc", d, m)?;
    let decoder = file.read("W_dec", &[m, d_out])?;
    let decoder_bias = file.read("b_dec", &[d_out])?;
    let (bias, selection) = match config.architecture {
        Architecture::Standard => ("b_enc", Selection::Relu),
        Architecture::TopK { k } => ("b_enc", Selection::TopK { k }),
        Architecture::JumpRelu => {
            // Checkpoints of versions before 6.48 may hold the logarithm.
            let thresholds = if !file.has("threshold") && file.has("log_threshold") {
                file.read_exp("log_threshold", m)?
            } else {
                file.read("threshold", &[m])?
            };
            ("b_enc", Selection::Threshold { thresholds })
        }
        Architecture::BatchTopK => {
            let threshold = file.scalar("topk_threshold")?;
            let thresholds = vec![threshold; m];
            ("b_enc", Selection::Threshold { thresholds })
        }
        Architecture::Gated => {
            let scales = file.read_exp("r_mag", m)?;
            let biases = file.read("b_mag", &[m])?;
            ("b_gate", Selection::Gated { scales, biases })
        }
    };
    let mut parts = SaeParts {
        selection,
        encoder,
        encoder_bias: file.read(bias, &[m])?,
        decoder,
        input_bias: if config.apply_b_dec_to_input {
            decoder_bias.clone()
        } else {
            vec![0.0; d]
        },
        decoder_bias,
        normalization: config.normalization,
        skip: if config.skip {
            Some(file.read("W_skip", &[d_out, d])?)
        } else {
            None
        },
    };
    if let Some(factor) = config.input_factor {
        fold_factor(&mut parts, factor, &config);
    }
    if config.rescale_acts_by_decoder_norm {
        with_unit_rows(&mut parts);
    }
    if file.has("scaling_factor") {
        let factors = file.read("scaling_factor", &[m])?;
        scale_codes(file, &mut parts, &factors, config.finetuned)?;
    }
    Ok(Loaded {
        sae: file.build(parts)?,
        origin: config.origin,
    })
}

/// Takes activations as they are where the weights want them multiplied by `factor`.
fn fold_factor(parts: &mut SaeParts, factor: f32, config: &Config) {
    for x in &mut parts.encoder {
        *x *= factor;
    }
    let outputs = [
        &mut parts.decoder,
        &mut parts.decoder_bias,
        &mut parts.input_bias,
    ];
    for x in outputs.into_iter().flatten() {
        *x /= factor;
    }
    // The threshold of a batch is one of codes times the length of the decoder row.
    if let (Architecture::BatchTopK, true, Selection::Threshold { thresholds }) = (
        &config.architecture,
        config.rescale_acts_by_decoder_norm,
        &mut parts.selection,
    ) {
        for threshold in thresholds {
            *threshold /= factor;
        }
    }
}

/// Before version 6 the decoder may multiply each code by a factor that was trained after all else.
fn scale_codes(
    file: &dyn Arrays,
    parts: &mut SaeParts,
    factors: &[f32],
    finetuned: bool,
) -> Result<(), SaeError> {
    // What SAELens takes for ones and leaves out.
    if factors.iter().all(|factor| (factor - 1.0).abs() < 1e-5) {
        return Ok(());
    }
    if !finetuned {
        return Err(file.wrong(
            "scaling_factor is not all ones, but cfg.json does not say `finetuning_scaling_factor: true`: say so, or take it out",
        ));
    }
    let d_out = parts.decoder_bias.len();
    for (row, factor) in parts.decoder.chunks_exact_mut(d_out).zip(factors) {
        for x in row {
            *x *= factor;
        }
    }
    Ok(())
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
    safetensors_file::write(&path, &[("sparsity", &[logs.len()], &logs)])
}
