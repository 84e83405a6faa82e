//! Plots as inline SVG.
//!
//! A plot carries no colours of its own: its marks have classes (`series-a`, `up`, `down`, …) that the page's style
//! sheet colours for light, dark and paper. The palette is Okabe and Ito's, which colour-blind readers can tell apart;
//! where two things share a plot they differ in shape or dash as well. Values that are not finite are left out; a
//! plot with nothing left to show is `None`, and its [`figure`] says so.

mod bars;
mod field;
mod file;
mod frame;
mod heat;
mod histogram;
mod line;
mod scale;
mod scatter;

use maud::{Markup, html};

pub use bars::{Bar, Bars, Tone};
pub use field::Field;
pub use file::{file, page};
pub use heat::{Colours, HeatCell, HeatMap, HeatRow};
pub use histogram::{Bins, Histogram, Mark, bins};
pub use line::{LineChart, Series};
pub use scale::{Scale, Tick, nice_step, nice_ticks};
pub use scatter::{Guide, Point, Scatter};

use crate::number::NOT_AVAILABLE;

/// What a plot is called and what it shows, for those who see it and for those who hear it read out.
#[derive(Debug, Clone, Default)]
pub struct Caption {
    /// Unique on its page; letters, digits and dashes.
    pub id: String,
    /// The short title above the plot.
    pub title: String,
    /// One sentence on what the plot shows, read out by screen readers.
    pub description: String,
}

impl Caption {
    /// A caption from its three parts.
    pub fn new(id: &str, title: &str, description: &str) -> Self {
        Self {
            id: crate::text::identifier(id),
            title: title.to_owned(),
            description: description.to_owned(),
        }
    }
}

/// A plot in its frame: title above, the drawing, and a note underneath. Without a drawing the frame says that it is
/// not available.
pub fn figure(caption: &Caption, drawing: Option<Markup>, note: Markup) -> Markup {
    html! {
        figure.plot {
            @if !caption.title.is_empty() { p.plot-title { (caption.title) } }
            @if let Some(drawing) = drawing {
                (drawing)
                @if !note.0.is_empty() { figcaption { (note) } }
            } @else {
                p.nothing { (NOT_AVAILABLE) }
            }
        }
    }
}

/// A coordinate with at most two decimals.
fn px(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

/// Whether a value can be drawn.
fn drawable(value: f64) -> bool {
    value.is_finite() && value.abs() < 1e100
}

/// About how wide a text is in the plots' 12-pixel type; on the wide side, since fonts differ.
fn text_width(text: &str) -> f64 {
    text.chars()
        .map(|c| match c {
            '0'..='9' => 7.2,
            'i' | 'l' | 'j' | 't' | 'f' | 'r' | 'I' | ' ' | '.' | ',' | '\'' | '(' | ')' => 5.0,
            'm' | 'w' | 'M' | 'W' | '@' | '%' => 10.8,
            '\u{1100}'..='\u{ffff}' => 12.5,
            'A'..='Z' => 8.6,
            _ if u32::from(c) > 0xffff => 15.0,
            _ => 7.2,
        })
        .sum()
}

/// The text cut to a width, with an ellipsis where something went.
fn fit_text(text: &str, width: f64) -> String {
    if text_width(text) <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = text_width("…");
    for c in text.chars() {
        used += text_width(c.encode_utf8(&mut [0; 4]));
        if used > width {
            break;
        }
        out.push(c);
    }
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_short() {
        assert_eq!(px(12.0), "12");
        assert_eq!(px(12.345), "12.35");
        assert_eq!(px(-0.001), "0");
    }

    #[test]
    fn text_is_cut_to_fit() {
        assert_eq!(fit_text("short", 100.0), "short");
        let cut = fit_text("a very long label that cannot stay", 60.0);
        assert!(cut.ends_with('…') && text_width(&cut) <= 61.0, "{cut}");
    }
}
