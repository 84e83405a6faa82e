//! Horizontal bars, one row a thing.

use maud::{Markup, html};

use super::frame::svg;
use super::{Caption, Scale, drawable, fit_text, px, text_width};
use crate::number::NOT_AVAILABLE;

/// The colour and shape of a bar or a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// The plain colour of the plot.
    #[default]
    Plain,
    /// Something that grew.
    Up,
    /// Something that shrank.
    Down,
    /// Something in the background.
    Quiet,
}

impl Tone {
    /// Up for values above zero, down for those below.
    pub fn of(value: f64) -> Self {
        if value > 0.0 {
            Self::Up
        } else if value < 0.0 {
            Self::Down
        } else {
            Self::Plain
        }
    }

    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Plain => "series-a",
            Self::Up => "up",
            Self::Down => "down",
            Self::Quiet => "quiet",
        }
    }
}

/// One row.
#[derive(Debug, Clone, Default)]
pub struct Bar {
    /// What the row is about.
    pub label: String,
    /// A second, quieter part of the label.
    pub detail: String,
    /// How long the bar is; negative bars go left.
    pub value: f64,
    /// How the value is written at the end of the bar.
    pub text: String,
    /// A second value, shown as a small diamond.
    pub marker: Option<f64>,
    /// Where a click on the label leads; a place on the page such as `#f12`, or empty.
    pub href: String,
    /// Its colour.
    pub tone: Tone,
}

/// A horizontal bar chart.
#[derive(Debug, Clone, Default)]
pub struct Bars {
    /// Title and description.
    pub caption: Caption,
    /// The rows from top to bottom.
    pub rows: Vec<Bar>,
    /// What the length of a bar means, with its unit; left out where it is empty.
    pub x_name: String,
}

const WIDTH: f64 = 460.0;
const ROW: f64 = 18.5;
const TOP: f64 = 4.0;

impl Bars {
    /// The height of the drawing in its own units, so that a neighbour can be made as tall.
    pub fn height(&self) -> f64 {
        TOP + ROW * self.rows.len() as f64 + if self.x_name.is_empty() { 6.0 } else { 26.0 }
    }

    /// The drawing, or `None` where no value can be drawn.
    pub fn draw(&self) -> Option<Markup> {
        let values = self
            .rows
            .iter()
            .flat_map(|row| [Some(row.value), row.marker])
            .flatten()
            .filter(|v| drawable(*v));
        let scale = Scale::linear(values.chain([0.0]))?;
        if !self.rows.iter().any(|row| drawable(row.value)) {
            return None;
        }
        // Bars may all be zero: then the scale is the one around a single value.
        let (low, high) = scale.domain();
        let widest = |of: fn(&Bar) -> &str| {
            self.rows
                .iter()
                .map(|row| text_width(of(row)))
                .fold(0.0, f64::max)
        };
        let name_width = widest(|row| &row.label).clamp(16.0, WIDTH * 0.40);
        let detail_width = widest(|row| &row.detail)
            .min(WIDTH * 0.40 - name_width)
            .max(0.0);
        let label_width = name_width
            + if detail_width > 0.0 {
                8.0 + detail_width
            } else {
                0.0
            };
        let number_width = |keep: fn(f64) -> bool| {
            self.rows
                .iter()
                .filter(|row| keep(row.value))
                .map(|row| text_width(&row.text) + 8.0)
                .fold(0.0, f64::max)
        };
        // Room for the figures at the ends of the bars, on the side the bars go.
        let left = label_width
            + 10.0
            + if low < 0.0 {
                number_width(|v| v < 0.0)
            } else {
                0.0
            };
        let right = WIDTH - 4.0 - number_width(|v| v.is_nan() || v >= 0.0).max(6.0);
        let x = Scale::between(low, high).onto(left, right.max(left + 40.0));
        let zero = x.at(0.0);
        let bottom = TOP + ROW * self.rows.len() as f64;
        Some(svg(
            &self.caption,
            WIDTH,
            self.height(),
            html! {
                @for (i, row) in self.rows.iter().enumerate() {
                    @let top = TOP + ROW * i as f64;
                    @let middle = top + ROW / 2.0 + 4.0;
                    (label(row, name_width, detail_width, middle))
                    @if drawable(row.value) {
                        @let end = x.at(row.value);
                        rect class={ "bar " (row.tone.class()) } x=(px(end.min(zero))) y=(px(top + 3.0))
                            width=(px((end - zero).abs().max(0.8))) height=(px(ROW - 6.0)) {}
                        @let beyond = row.marker.filter(|m| drawable(*m)).map_or(end, |m| {
                            if row.value < 0.0 { end.min(x.at(m) - 4.0) } else { end.max(x.at(m) + 4.0) }
                        });
                        @if row.value < 0.0 {
                            text.figure x=(px(beyond - 4.0)) y=(px(middle)) text-anchor="end" { (row.text) }
                        } @else {
                            text.figure x=(px(beyond + 4.0)) y=(px(middle)) { (row.text) }
                        }
                    } @else {
                        text.figure x=(px(zero + 4.0)) y=(px(middle)) { (NOT_AVAILABLE) }
                    }
                    @if let Some(marker) = row.marker.filter(|m| drawable(*m)) {
                        @let cx = x.at(marker);
                        @let cy = top + ROW / 2.0;
                        path.marker d={
                            "M" (px(cx)) " " (px(cy - 4.0)) "L" (px(cx + 4.0)) " " (px(cy))
                            "L" (px(cx)) " " (px(cy + 4.0)) "L" (px(cx - 4.0)) " " (px(cy)) "Z"
                        } {}
                    }
                }
                g.axis { line x1=(px(zero)) x2=(px(zero)) y1=(px(TOP)) y2=(px(bottom)) {} }
                @if !self.x_name.is_empty() {
                    text.axis-name x=(px(WIDTH - 4.0)) y=(px(bottom + 18.0)) text-anchor="end" { (self.x_name) }
                }
            },
        ))
    }
}

/// The name right-aligned in its column, the detail left-aligned in the next.
fn label(row: &Bar, name_width: f64, detail_width: f64, y: f64) -> Markup {
    let text = html! {
        text.label x=(px(name_width)) y=(px(y)) text-anchor="end" { (fit_text(&row.label, name_width)) }
        @if !row.detail.is_empty() && detail_width > 24.0 {
            text.detail x=(px(name_width + 8.0)) y=(px(y)) { (fit_text(&row.detail, detail_width)) }
        }
    };
    if row.href.is_empty() {
        text
    } else {
        html! { a href=(row.href) { (text) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(value: f64) -> Bar {
        Bar {
            label: "row".to_owned(),
            value,
            text: "x".to_owned(),
            tone: Tone::of(value),
            ..Bar::default()
        }
    }

    #[test]
    fn bars_of_both_signs_and_none() {
        for values in [
            vec![1.0, -2.0],
            vec![0.0],
            vec![-1.0],
            vec![f64::NAN, 1.0],
            vec![1e-30],
        ] {
            let out = Bars {
                rows: values.iter().map(|v| bar(*v)).collect(),
                ..Bars::default()
            }
            .draw()
            .unwrap()
            .0;
            assert!(
                out.contains("<rect") && !out.contains("NaN") && !out.contains("inf"),
                "{out}"
            );
        }
        for rows in [vec![], vec![bar(f64::NAN)]] {
            let bars = Bars {
                rows,
                ..Bars::default()
            };
            assert!(bars.draw().is_none());
        }
    }
}
