//! `--plot`: a picture as an SVG file or a page.

use std::path::Path;

use anyhow::{Context as _, bail};
use pullback_report::Markup;
use pullback_report::plot::{self, Caption};

/// Says what is wrong with the name of a picture.
pub(super) fn check(path: &Path, force: bool) -> anyhow::Result<()> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    if !matches!(extension, Some("svg" | "html")) {
        bail!(
            "--plot is {}: pictures are .svg or .html files",
            path.display()
        );
    }
    super::refuse_existing(path, force)
}

/// Writes a drawing with the text of its prompt.
pub(super) fn write(
    path: &Path,
    caption: &Caption,
    drawing: Option<Markup>,
    prompt: &str,
    note: &str,
) -> anyhow::Result<()> {
    let drawing =
        drawing.with_context(|| format!("there is nothing to draw in {}", path.display()))?;
    let text = if path.extension().is_some_and(|extension| extension == "svg") {
        plot::file(&caption.title, &drawing, note)
    } else {
        plot::page(caption, &drawing, prompt, note)
    };
    pullback_artifact::write_atomic(path, text.as_bytes())?;
    Ok(())
}
