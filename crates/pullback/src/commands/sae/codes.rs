//! `pullback sae encode` and `pullback sae decode`: activations to sparse codes and back, as safetensors files.

use std::path::PathBuf;

use anyhow::bail;
use pullback_sae::codes_file::{StoredRows, load_codes, load_rows, save_codes, save_rows};
use pullback_sae::{Dictionary, SparseCodes, load};
use serde_json::json;

use crate::context::App;

/// Rows that are encoded together.
const ROWS: usize = 4096;

/// Options of `sae encode`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback run smollm2-135m-instruct --prompt \"Paris is\" --record 15.resid_post -o x.safetensors\n  \
    pullback sae encode sae --input x.safetensors -o codes.safetensors\n\
    The codes are the tensors `indices`, `values` and `offsets` of a compressed-row matrix, token × feature."
)]
pub(crate) struct Encode {
    /// A dictionary
    sae: PathBuf,
    /// Activations, one row a token
    #[arg(long, value_name = "FILE.safetensors")]
    input: PathBuf,
    /// The tensor to read; default: the only one
    #[arg(long)]
    tensor: Option<String>,
    /// The file to write
    #[arg(long, short, value_name = "FILE.safetensors")]
    output: PathBuf,
}

/// Options of `sae decode`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback sae decode sae --input codes.safetensors -o y.safetensors\n\
    The result is the tensor `reconstruction`, one row a token."
)]
pub(crate) struct Decode {
    /// A dictionary
    sae: PathBuf,
    /// Codes, as `sae encode` writes them
    #[arg(long, value_name = "FILE.safetensors")]
    input: PathBuf,
    /// The file to write
    #[arg(long, short, value_name = "FILE.safetensors")]
    output: PathBuf,
}

pub(crate) fn encode(app: &App, arguments: &Encode) -> anyhow::Result<()> {
    let (sae, _) = load(&arguments.sae)?;
    let rows = load_rows(&arguments.input, arguments.tensor.as_deref())?;
    let d = sae.d();
    if rows.width != d {
        bail!(
            "{}: {} has rows of width {}, the dictionary reads width {d}",
            arguments.input.display(),
            rows.name,
            rows.width
        );
    }
    let tokens = rows.values.len() / d;
    let stage = app.control.stage("encode", tokens as u64, "tokens");
    let mut codes = SparseCodes::new();
    for x in rows.values.chunks(ROWS * d) {
        app.control.check()?;
        codes.append(&sae.encode(x));
        stage.advance((x.len() / d) as u64);
    }
    stage.finish();
    save_codes(&codes, &arguments.output)?;
    let l0 = codes.active() as f64 / tokens.max(1) as f64;
    let result = json!({
        "file": arguments.output,
        "tensor": rows.name,
        "tokens": tokens,
        "features": sae.n_features(),
        "active": codes.active(),
        "l0": l0,
    });
    app.print(&result, || {
        format!(
            "{tokens} tokens, {l0:.1} active features a token\n{}\n",
            arguments.output.display()
        )
    })
}

pub(crate) fn decode(app: &App, arguments: &Decode) -> anyhow::Result<()> {
    let (sae, _) = load(&arguments.sae)?;
    let parts = sae.parts();
    if parts.skip.is_some() || parts.normalization != pullback_sae::Normalization::None {
        bail!(
            "{}: this dictionary's output needs the activations beside the codes, since it normalises them or adds a part \
             of them",
            arguments.sae.display()
        );
    }
    let codes = load_codes(&arguments.input, sae.n_features())?;
    let rows = StoredRows {
        name: "reconstruction".to_owned(),
        shape: vec![codes.tokens()],
        width: sae.d_out(),
        values: sae.decode(&codes),
    };
    save_rows(&rows, &arguments.output)?;
    let result = json!({
        "file": arguments.output,
        "tensor": rows.name,
        "tokens": codes.tokens(),
        "width": rows.width,
    });
    app.print(&result, || {
        format!(
            "{} tokens\n{}\n",
            codes.tokens(),
            arguments.output.display()
        )
    })
}
