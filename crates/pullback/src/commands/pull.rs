//! `pullback pull`: fetch a model or a corpus into the cache.

use std::fmt::Write;

use pullback_artifact::{Catalogue, fetch};
use serde_json::json;

use crate::context::App;

/// Options of `pull`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: pullback pull smollm2-135m-instruct\nWithout a name, lists the catalogue."
)]
pub(crate) struct Arguments {
    /// A name of the catalogue
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
