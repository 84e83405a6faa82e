//! `pullback show`: what is this artifact?

use std::fmt::Write as _;
use std::path::PathBuf;

use pullback_artifact::{Manifest, read_json};
use serde_json::{Value, json};

use crate::context::App;

/// Options of `show`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  pullback show pullback-quickstart/sae")]
pub(crate) struct Arguments {
    /// A directory that pullback made
    directory: PathBuf,
    /// Read every file and compare its SHA-256 with the recorded one
    #[arg(long)]
    verify: bool,
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let manifest = Manifest::load(&arguments.directory)?;
    if arguments.verify {
        manifest.verify_files(&arguments.directory, &app.control)?;
    } else {
        manifest.verify_sizes(&arguments.directory)?;
    }
    let result_path = arguments.directory.join("result.json");
    let result: Value = if result_path.exists() {
        read_json(&result_path)?
    } else {
        Value::Null
    };
    let whole = json!({ "manifest": manifest, "digest": manifest.digest(), "result": result });
    app.print(&whole, || describe(&manifest, &result, arguments.verify))
}

fn describe(manifest: &Manifest, result: &Value, verified: bool) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{label:10} {value}");
    };
    line(
        "kind",
        format!(
            "{} (made by pullback {}, seed {})",
            manifest.kind, manifest.program, manifest.seed
        ),
    );
    line("digest", manifest.digest());
    if let Some(site) = &manifest.site {
        line("site", site.clone());
    }
    if let Some(model) = &manifest.model {
        line("model", format!("{} {}", model.name, model.digest));
    }
    for parent in &manifest.parents {
        line(
            "made from",
            format!("{} {} {}", parent.kind, parent.path, parent.digest),
        );
    }
    for (name, file) in &manifest.files {
        line("file", format!("{name}, {:.1} MB", file.bytes as f64 / 1e6));
    }
    if verified {
        line("files", "all have the recorded SHA-256".to_owned());
    }
    for (label, value) in [("config", &manifest.config), ("result", result)] {
        let mut rows = Vec::new();
        flatten("", value, &mut rows);
        for (key, value) in rows {
            line(label, format!("{key} = {value}"));
        }
    }
    text
}

/// Nested objects as dotted keys.
fn flatten(prefix: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                flatten(&key, value, rows);
            }
        }
        Value::Null => {}
        other => rows.push((prefix.to_owned(), other.to_string())),
    }
}
