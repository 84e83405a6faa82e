//! A plot as a file of its own: SVG, or a page.

use maud::{Markup, PreEscaped, html};

use super::{Caption, figure, px, text_width};
use crate::page::{Page, STYLE};
use crate::text::{flow, plain};

/// What a plot has from the page around it when it stands in one.
const ALONE: &str = "svg { background: var(--paper); \
    font-family: \"Segoe UI\", \"Helvetica Neue\", Helvetica, Roboto, Arial, \"Noto Sans\", system-ui, sans-serif; } \
    svg .file-title { font-size: 15px; font-weight: 600; fill: var(--ink); }";

const MARGIN: f64 = 14.0;
const TITLE: f64 = 30.0;
const NOTE: f64 = 20.0;

/// The drawing of a plot as a whole SVG file, with its style, a title above it and a note underneath (none where it is
/// empty).
pub fn file(title: &str, drawing: &Markup, note: &str) -> String {
    let (title, note) = (plain(title), plain(note));
    let (wide, high) = size(&drawing.0).unwrap_or((460.0, 300.0));
    let widest = wide.max(text_width(&title) * 1.25).max(text_width(&note));
    let width = widest + 2.0 * MARGIN;
    let below = if note.is_empty() { 0.0 } else { NOTE };
    let height = MARGIN + TITLE + high + below + MARGIN;
    let inner = drawing.0.replacen(
        "<svg ",
        &format!("<svg x=\"{}\" y=\"{}\" ", px(MARGIN), px(MARGIN + TITLE)),
        1,
    );
    let svg = html! {
        svg xmlns="http://www.w3.org/2000/svg" width=(px(width)) height=(px(height))
            viewBox={ "0 0 " (px(width)) " " (px(height)) } {
            style { (PreEscaped(STYLE)) (PreEscaped(ALONE)) }
            text.file-title x=(px(MARGIN)) y=(px(MARGIN + 14.0)) { (title) }
            (PreEscaped(inner))
            @if !note.is_empty() {
                text.detail x=(px(MARGIN)) y=(px(height - MARGIN)) { (note) }
            }
        }
    };
    svg.into_string() + "\n"
}

/// The drawing of a plot as a page, under its title and a line on what it was made from. A drawing that is wider than
/// the page can be moved.
pub fn page(caption: &Caption, drawing: &Markup, subtitle: &str, note: &str) -> String {
    let wide = html! { div.wide { (drawing) } };
    let untitled = Caption {
        title: String::new(),
        ..caption.clone()
    };
    Page::new(&caption.title)
        .subtitle(flow(subtitle))
        .lead(figure(&untitled, Some(wide), html! { (note) }))
        .render()
}

/// Width and height that a drawing states.
fn size(svg: &str) -> Option<(f64, f64)> {
    let (_, rest) = svg.split_once("viewBox=\"0 0 ")?;
    let (size, _) = rest.split_once('"')?;
    let (wide, high) = size.split_once(' ')?;
    Some((wide.parse().ok()?, high.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::{Bar, Bars, Caption};
    use super::*;

    #[test]
    fn a_file_holds_its_style_and_is_large_enough() {
        let bars = Bars {
            caption: Caption::new("bars", "Bars", "Some bars."),
            rows: vec![Bar {
                label: "<b>".to_owned(),
                value: 1.0,
                ..Bar::default()
            }],
            x_name: String::new(),
        };
        let out = file("A & B", &bars.draw().unwrap(), "a note");
        assert!(out.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"488\""));
        assert!(out.contains("A &amp; B") && out.contains("a note") && out.contains("--paper"));
        assert!(out.trim_end().ends_with("</svg>") && out.contains("<svg x=\"14\""));
        let caption = Caption::new("bars", "A & B", "Some bars.");
        let page = page(&caption, &bars.draw().unwrap(), "of <this>\n", "a note");
        assert!(page.starts_with("<!DOCTYPE html>") && page.contains("of &lt;this&gt;"));
        assert!(page.contains("<div class=\"wide\"><svg") && page.contains("a note"));
        // The style sheet stands in XML.
        assert!(!STYLE.contains(['<', '&']));
        assert_eq!(size("<svg viewBox=\"0 0 12.5 8\">"), Some((12.5, 8.0)));
        assert_eq!(size("<p>"), None);
    }
}
