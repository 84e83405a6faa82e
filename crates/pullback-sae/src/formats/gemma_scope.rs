//! `params.npz` of Gemma Scope (Lieberum et al., arXiv 2408.05147): `JumpReLU` without anything taken from the input.

use std::path::Path;

use super::arrays::{Arrays, transposed};
use super::npz::{self, NpzFile};
use super::origin::components;
use super::rebase::{gated_as_thresholds, refuse, with_input_bias};
use super::{Format, Loaded, Origin};
use crate::{Dictionary, Normalization, Sae, SaeError, SaeParts, Selection};

pub(super) const WEIGHTS: &str = "params.npz";

/// Reads the file. What it was trained on is told by its place, as in
/// `gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82/params.npz`.
///
/// Under a directory `embedding` activations are those that the published weights expect to be divided by `sqrt(d)`; the
/// factor is folded into both matrices, as SAELens does.
///
/// # Errors
/// The file is missing or damaged, or a shape is wrong.
pub fn read(weights: &Path) -> Result<Loaded, SaeError> {
    let file = NpzFile::open(weights)?;
    let names = components(weights);
    let mut parts = parts(&file)?;
    if names.iter().take(5).any(|name| name == "embedding") {
        let factor = (parts.input_bias.len() as f32).sqrt();
        for x in &mut parts.encoder {
            *x /= factor;
        }
        for x in &mut parts.decoder {
            *x *= factor;
        }
    }
    Ok(Loaded {
        sae: (&file as &dyn Arrays).build(parts)?,
        origin: origin(&names),
    })
}

/// The tensors of both Gemma Scopes, whatever the case of their names.
pub(super) fn parts(file: &dyn Arrays) -> Result<SaeParts, SaeError> {
    let names = file.names();
    let named = |name: &'static str| {
        names
            .iter()
            .find(|other| other.eq_ignore_ascii_case(name))
            .map_or(name, String::as_str)
    };
    let (m, d_out) = (file.length(named("b_enc"))?, file.length(named("b_dec"))?);
    // The width of the input is told by the matrix alone; where its other size is wrong, it is compared with the output's.
    let d = match file.sizes(named("W_enc"))? {
        [d, columns] if columns == m => d,
        _ => d_out,
    };
    Ok(SaeParts {
        selection: Selection::Threshold {
            thresholds: file.read(named("threshold"), &[m])?,
        },
        encoder: file.read_transposed(named("W_enc"), d, m)?,
        encoder_bias: file.read(named("b_enc"), &[m])?,
        decoder: file.read(named("W_dec"), &[m, d_out])?,
        decoder_bias: file.read(named("b_dec"), &[d_out])?,
        input_bias: vec![0.0; d],
        normalization: Normalization::None,
        skip: None,
    })
}

fn origin(names: &[String]) -> Origin {
    let release = names
        .iter()
        .find_map(|name| name[name.find("gemma-scope-")?..].strip_prefix("gemma-scope-"));
    // `2b-pt-res`: size, base or instructed, place.
    let mut words = release.unwrap_or_default().split('-');
    let (size, tuned, place) = (words.next(), words.next(), words.next());
    let model = match (size, tuned) {
        (Some(size), Some("pt")) => Some(format!("gemma-2-{size}")),
        (Some(size), Some("it")) => Some(format!("gemma-2-{size}-it")),
        _ => None,
    };
    let layer = names
        .iter()
        .find_map(|name| name.strip_prefix("layer_")?.parse::<usize>().ok());
    let of = |place: &str| layer.map(|layer| format!("blocks.{layer}.{place}"));
    let (hook, hook_out) = match place {
        Some("res") if names.iter().any(|name| name == "embedding") => {
            (Some("hook_embed".to_owned()), None)
        }
        Some("res") => (of("hook_resid_post"), None),
        Some("mlp") => (of("hook_mlp_out"), None),
        Some("att") => (of("attn.hook_z"), None),
        Some("transcoders") => (of("ln2.hook_normalized"), of("hook_mlp_out")),
        _ => (None, None),
    };
    Origin {
        model,
        hook,
        hook_out,
        // Section 3.1 of the paper.
        context: Some(1024),
        prepend_bos: Some(true),
        dataset: None,
    }
}

/// Writes `params.npz`. `ReLU` becomes thresholds of zero, and a gated dictionary one with thresholds, which selects the
/// same; what is taken from the input goes into the encoder's bias. Where the dictionary comes from has no place in the
/// file.
///
/// # Errors
/// The dictionary is TopK, normalises or has a skip matrix, or the file cannot be written.
pub(super) fn write(sae: &Sae, dir: &Path) -> Result<(), SaeError> {
    let format = Format::GemmaScope;
    refuse(format, sae, false, true)?;
    let (d, m, d_out) = (sae.d(), sae.n_features(), sae.d_out());
    let parts = gated_as_thresholds(format, with_input_bias(sae, &vec![0.0; d]))?;
    let thresholds = match &parts.selection {
        Selection::Threshold { thresholds } => thresholds.clone(),
        Selection::Relu => vec![0.0; m],
        other => {
            return Err(SaeError::Inexpressible {
                format,
                reason: format!(
                    "it selects by `{}`, and the format by a threshold for each feature",
                    other.name()
                ),
            });
        }
    };
    let encoder = transposed(&parts.encoder, m, d);
    npz::write(
        &dir.join(WEIGHTS),
        &[
            ("W_enc", &[d, m], &encoder),
            ("W_dec", &[m, d_out], &parts.decoder),
            ("b_enc", &[m], &parts.encoder_bias),
            ("b_dec", &[d_out], &parts.decoder_bias),
            ("threshold", &[m], &thresholds),
        ],
    )
}
