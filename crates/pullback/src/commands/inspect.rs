//! `pullback inspect`: what a model is made of.

use std::fmt::Write;

use pullback_model::ModelFiles;
use serde_json::json;

use crate::context::App;

/// Options of `inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: pullback inspect smollm2-135m-instruct")]
pub(crate) struct Arguments {
    /// A catalogue name, a .gguf file, a model directory, or `owner/name[@revision][:file.gguf]` of the hub
    model: String,
    /// List every tensor of the file
    #[arg(long)]
    tensors: bool,
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let (name, path) = app.model_path(&arguments.model)?;
    let files = ModelFiles::open(&path)?;
    let config = &files.config;
    let tokenizer = &files.tokenizer;
    let sites: Vec<String> = config.sites().iter().map(ToString::to_string).collect();
    let tensors = files.tensors();
    let result = json!({
        "name": name,
        "path": path,
        "format": files.format(),
        "digest": files.digest,
        "architecture": config.architecture,
        "layers": config.n_layers,
        "d_model": config.d_model,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "d_head": config.d_head,
        "d_mlp": config.d_mlp,
        "vocab": config.d_vocab,
        "context": config.n_ctx,
        "parameters": config.n_parameters(),
        "config": config,
        "tokenizer": {
            "tokens": tokenizer.vocab_size(),
            "bos": tokenizer.bos(),
            "eos": tokenizer.eos(),
            "add_bos": tokenizer.add_bos(),
            "chat_template": files.chat_template().is_ok(),
        },
        "sites": sites,
        "tensors": tensors.iter().map(|tensor| json!({
            "name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "bytes": tensor.bytes,
        })).collect::<Vec<_>>(),
    });
    app.print(&result, || {
        let mut text = String::new();
        let mut line = |label: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{label:14} {value}");
        };
        line("model", format!("{name} ({})", config.name));
        line("file", format!("{} ({})", path.display(), files.format()));
        line("digest", files.digest.clone());
        line("architecture", config.architecture.clone());
        line(
            "parameters",
            format!("{:.1} M", config.n_parameters() as f64 / 1e6),
        );
        line("blocks", config.n_layers.to_string());
        line(
            "widths",
            format!("residual {}, MLP {}", config.d_model, config.d_mlp),
        );
        line(
            "heads",
            format!(
                "{} query, {} key-value, of {}",
                config.n_heads, config.n_kv_heads, config.d_head
            ),
        );
        line("context", config.n_ctx.to_string());
        line(
            "positions",
            match &config.rotary {
                Some(rotary) => format!(
                    "rotary, base {}, {} of {} coordinates of a head",
                    rotary.base, rotary.dim, config.d_head
                ),
                None => "learned vectors".to_owned(),
            },
        );
        let windows: Vec<usize> = config.windows.iter().flatten().copied().collect();
        if let Some(window) = windows.first() {
            line(
                "windows",
                format!(
                    "{window} tokens in {} of {} blocks",
                    windows.len(),
                    config.n_layers
                ),
            );
        }
        line(
            "embedding",
            if config.tied_embedding {
                "tied"
            } else {
                "separate output matrix"
            }
            .to_owned(),
        );
        line(
            "tokenizer",
            format!(
                "{} tokens, model vocabulary {}",
                tokenizer.vocab_size(),
                config.d_vocab
            ),
        );
        let chat = if files.chat_template().is_ok() {
            "has a template"
        } else {
            "no template"
        };
        line("chat", chat.to_owned());
        line(
            "sites",
            format!("{}, {}, …, {}", sites[0], sites[1], sites[sites.len() - 1]),
        );
        for site in sites.iter().filter(|site| site.starts_with("blocks.0.")) {
            line("", site.replacen("blocks.0.", "blocks.L.", 1));
        }
        if arguments.tensors {
            for tensor in &tensors {
                let _ = writeln!(
                    text,
                    "{:32} {:6} {:?} {} bytes",
                    tensor.name, tensor.dtype, tensor.shape, tensor.bytes
                );
            }
        }
        text
    })
}
