//! `pullback pull`: fetch a model or a corpus of the catalogue, or a model of the Hugging Face hub, into the cache.

use std::fmt::Write;

use pullback_artifact::{Catalogue, Hub, HubReference, fetch};
use serde_json::json;

use crate::context::App;

/// Options of `pull`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pullback pull smollm2-135m-instruct\n  pullback pull HuggingFaceTB/SmolLM2-135M\n  pullback pull owner/name@revision:file.gguf\n\n\
                  Without a name, lists the catalogue. Repositories of the hub are fetched into the hub's own cache,\n\
                  only the files that a model needs. HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_HUB_OFFLINE\n\
                  have their usual meaning."
)]
pub(crate) struct Arguments {
    /// A name of the catalogue, or a repository of the Hugging Face hub: `owner/name[@revision][:file.gguf]`
    name: Option<String>,
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let Some(name) = &arguments.name else {
        let catalogue = Catalogue::built_in()?;
        return app.print(&catalogue.entries, || {
            let mut text = String::new();
            for entry in &catalogue.entries {
                let size = entry.bytes as f64 / 1e6;
                // Writing to a string cannot fail.
                let _ = writeln!(
                    text,
                    "{:24} {:8} {size:>6.1} MB  {} ({})",
                    entry.name,
                    entry.kind.to_string(),
                    entry.title,
                    entry.licence
                );
            }
            text
        });
    };
    if HubReference::is_meant_by(name) {
        return pull_from_hub(app, &name.parse()?);
    }
    let fetched = fetch(name, &app.control)?;
    let result = json!({
        "name": fetched.entry.name,
        "kind": fetched.entry.kind,
        "licence": fetched.entry.licence,
        "path": fetched.path,
        "sha256": fetched.sha256,
        "from_cache": fetched.from_cache,
    });
    app.print(&result, || format!("{}\n", fetched.path.display()))
}

fn pull_from_hub(app: &App, reference: &HubReference) -> anyhow::Result<()> {
    let fetched = Hub::from_env()?.fetch(reference, &app.control)?;
    let result = json!({
        "name": reference.to_string(),
        "kind": "model",
        "repository": reference.repository(),
        "revision": reference.revision(),
        "commit": fetched.commit,
        "path": fetched.path,
        "from_cache": fetched.from_cache,
    });
    app.print(&result, || format!("{}\n", fetched.path.display()))
}
