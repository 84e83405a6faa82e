//! `pullback adapt merge`: one adapter that adds what several add.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use pullback_adapters::{ADAPTER_KIND, Adapter};
use pullback_artifact::{
    MANIFEST_FILE, Manifest, ParentRef, PartialDir, refuse_existing, write_json,
};
use pullback_sae::SAE_KIND;
use serde_json::json;

use super::explain::emptied;
use crate::context::App;

/// Options of `adapt merge`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    pullback adapt merge sailor polite --scale 1 --scale 0.5 -o both\n\
    Adapters must be of one kind, place and dictionary. Each reads what stands at the place before any of them; in\n\
    `run --adapter A --adapter B` the second reads what the first has made.")]
pub(crate) struct Arguments {
    /// Adapters, or LoRA in PEFT's files
    #[arg(required = true, num_args = 2..)]
    adapters: Vec<PathBuf>,
    /// Make their changes so many times as large: one number for all, or one each
    #[arg(long, allow_negative_numbers = true)]
    scale: Vec<f32>,
    /// The dictionary of adapters over features; default: the place that they record
    #[arg(long, value_name = "DIR")]
    sae: Option<PathBuf>,
    /// The model; default: the one that the first adapter records
    #[arg(long)]
    model: Option<String>,
    /// The directory to make
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Replace the directory if it is there
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let paths = &arguments.adapters;
    let scales = match &arguments.scale[..] {
        [] => vec![1.0; paths.len()],
        [all] => vec![*all; paths.len()],
        each if each.len() == paths.len() => each.to_vec(),
        each => bail!(
            "--scale is given {} times for {} adapters: give one, or one each",
            each.len(),
            paths.len()
        ),
    };
    if !arguments.force {
        refuse_existing(&arguments.output)?;
    }
    let mut manifests = Vec::new();
    for path in paths {
        if path.join(MANIFEST_FILE).exists() {
            manifests.push((path, Manifest::load_kind(path, ADAPTER_KIND)?));
        }
    }
    let named = match (&arguments.model, manifests.first()) {
        (name, Some((_, manifest))) => app.load_model_of(name.as_deref(), manifest)?,
        (Some(name), None) => app.load_model(name)?,
        (None, None) => bail!("none of the adapters records its model: name it with --model"),
    };
    let mut adapters = Vec::with_capacity(paths.len());
    for (path, scale) in paths.iter().zip(&scales) {
        let sae = arguments.sae.as_deref();
        let adapter = Adapter::load(path, &named.reference(), &named.model, sae)?;
        adapters.push(
            adapter
                .scaled(*scale)
                .with_context(|| path.display().to_string())?,
        );
    }
    let merged = Adapter::merged(&adapters)?;
    let dir = emptied(PartialDir::open_replacing(&arguments.output)?)?;
    merged.save(dir.path(), &named.model, &named.name)?;
    let result = json!({
        "basis": merged.basis(),
        "rank": merged.rank(),
        "parameters": merged.parameters(),
        "nonzero": merged.nonzero(),
        "adapters": paths,
        "scales": scales,
    });
    write_json(&dir.path().join("result.json"), &result)?;
    let mut manifest = Manifest::new(ADAPTER_KIND, 0)
        .with_model(named.reference())
        .with_config(json!({ "scales": scales }));
    if let Some(site) = merged.site() {
        manifest = manifest.with_site(site.to_string());
    }
    for (path, own) in &manifests {
        manifest = manifest.with_parent(ParentRef {
            kind: ADAPTER_KIND.to_owned(),
            digest: own.digest(),
            path: std::path::absolute(path)?.display().to_string(),
        });
    }
    // All are over the same dictionary, or they could not be merged.
    if let Some(sae) = manifests.iter().find_map(|(_, own)| own.parent(SAE_KIND)) {
        manifest = manifest.with_parent(sae.clone());
    }
    dir.finish(manifest)?;
    app.print(&result, || {
        format!(
            "{} adapters of the basis {} in one: {} parameters, {} of them not zero\n{}\n",
            paths.len(),
            merged.basis(),
            merged.parameters(),
            merged.nonzero(),
            arguments.output.display()
        )
    })
}
