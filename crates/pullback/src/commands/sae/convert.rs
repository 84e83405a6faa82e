//! `pullback sae convert`: write a dictionary in the files of another program.

use std::fs;
use std::path::PathBuf;

use clap::ValueEnum;
use pullback_artifact::{
    MANIFEST_FILE, Manifest, ParentRef, PartialDir, refuse_existing, sha256_file,
};
use pullback_sae::formats::{self, Format, Loaded};
use pullback_sae::{Dictionary, SAE_KIND};
use serde_json::json;

use crate::context::App;

/// Options of `sae convert`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback sae convert sae gemma --format gemma-scope\n\
    Read are SAELens, dictionary_learning, sparsify, Gemma Scope, Gemma Scope 2 and Llama Scope;\n\
    which it is, the files tell. What the new format cannot hold is refused, not dropped."
)]
pub(crate) struct Arguments {
    /// A dictionary: its directory, or the file with its numbers
    from: PathBuf,
    /// The directory to make
    to: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    format: FormatName,
    /// Replace the directory if it is there
    #[arg(long)]
    force: bool,
}

/// Names on the command line of the [`Format`]s that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatName {
    Saelens,
    DictionaryLearning,
    Sparsify,
    GemmaScope,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Saelens => Self::SaeLens,
            FormatName::DictionaryLearning => Self::DictionaryLearning,
            FormatName::Sparsify => Self::Sparsify,
            FormatName::GemmaScope => Self::GemmaScope,
        }
    }
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let format = Format::from(arguments.format);
    if !arguments.force {
        refuse_existing(&arguments.to)?;
    }
    let source = formats::detect(&arguments.from)?;
    let made_from = if arguments.from.join(MANIFEST_FILE).is_file() {
        let manifest = Manifest::load(&arguments.from)?;
        manifest.verify_files(&arguments.from, &app.control)?;
        Some(manifest)
    } else {
        None
    };
    let Loaded { sae, mut origin } = formats::load(&arguments.from)?;

    // Only SAELens's layout is the one that the other commands read.
    let kind = match format {
        Format::SaeLens => SAE_KIND.to_owned(),
        _ => format!("{SAE_KIND}-{format}"),
    };
    let mut manifest = Manifest::new(kind, made_from.as_ref().map_or(0, |from| from.seed))
        .with_config(json!({ "convert": { "from": source.name(), "to": format.name() } }));
    let parent = match &made_from {
        Some(from) => {
            manifest.model.clone_from(&from.model);
            origin.hook = origin.hook.or_else(|| from.site.clone());
            (from.kind.clone(), from.digest())
        }
        None => (
            source.name().to_owned(),
            format!(
                "sha256:{}",
                sha256_file(&formats::weights_of(&arguments.from)?, Some(&app.control))?
            ),
        ),
    };
    manifest.site.clone_from(&origin.hook);
    let manifest = manifest.with_parent(ParentRef {
        kind: parent.0,
        digest: parent.1,
        path: arguments.from.display().to_string(),
    });

    // What stands there already stays until the new one is whole.
    let mut dir = if arguments.force {
        PartialDir::open_replacing(&arguments.to)?
    } else {
        PartialDir::open(&arguments.to)?
    };
    dir.clear()?;
    if let Err(error) = formats::save(format, &sae, &origin, dir.path()) {
        // Nothing can be gone on with.
        let path = dir.path().to_owned();
        drop(dir);
        let _ = fs::remove_dir_all(path);
        return Err(error.into());
    }
    let manifest = dir.finish(manifest)?;

    let (d, m, d_out) = (sae.d(), sae.n_features(), sae.d_out());
    let result = json!({
        "from": source.name(),
        "format": format.name(),
        "path": arguments.to,
        "kind": sae.selection().name(),
        "features": m,
        "d_in": d,
        "d_out": d_out,
        "k": sae.k(),
        "model": origin.model,
        "site": origin.hook,
        "files": manifest.files,
    });
    app.print(&result, || {
        let files: Vec<&str> = manifest.files.keys().map(String::as_str).collect();
        format!(
            "{source} → {format}: {} features, {}\n{} ({})\n",
            m,
            sae.selection().name(),
            arguments.to.display(),
            files.join(", ")
        )
    })
}
