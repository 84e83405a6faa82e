//! Heat maps: a grid of cells, coloured by value and written on.

use maud::{Markup, html};

use super::frame::svg;
use super::{Caption, drawable, fit_text, px, text_width};
use crate::number::significant;

/// What the colours of a heat map mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Colours {
    /// From nothing at 0 to full at this value, in one colour.
    From0To(f64),
    /// The same above 0 and below it, in two colours.
    AboutZero(f64),
}

impl Colours {
    pub(super) fn full(self) -> f64 {
        match self {
            Self::From0To(full) | Self::AboutZero(full) => full,
        }
    }

    /// The class and the opacity of a cell.
    pub(super) fn of(self, value: f64) -> (&'static str, f64) {
        let class = match self {
            Self::From0To(_) => "series-a",
            Self::AboutZero(_) if value < 0.0 => "down",
            Self::AboutZero(_) => "up",
        };
        let full = self.full();
        let share = if full > 0.0 { value / full } else { 0.0 };
        let share = match self {
            Self::From0To(_) => share.clamp(0.0, 1.0),
            Self::AboutZero(_) => share.abs().min(1.0),
        };
        // Full colour still lets the writing be read.
        (class, share * 0.72)
    }
}

/// One cell.
#[derive(Debug, Clone, Default)]
pub struct HeatCell {
    /// Its colour; what is not finite has none.
    pub value: f64,
    /// What is written in it, cut to its width.
    pub text: String,
    /// What is said when a pointer rests on it.
    pub detail: String,
}

/// One row.
#[derive(Debug, Clone, Default)]
pub struct HeatRow {
    /// What stands left of it.
    pub label: String,
    /// Its cells; a row may be shorter than others.
    pub cells: Vec<HeatCell>,
}

/// A heat map.
#[derive(Debug, Clone)]
pub struct HeatMap {
    /// Title and description.
    pub caption: Caption,
    /// What stands above the columns.
    pub columns: Vec<String>,
    /// The rows from top to bottom.
    pub rows: Vec<HeatRow>,
    /// What the colours mean.
    pub colours: Colours,
    /// What the value is, with its unit, written at the colours' key.
    pub value_name: String,
    /// Width of a cell in pixels.
    pub cell_width: f64,
}

const ROW: f64 = 22.0;
const HEAD: f64 = 22.0;
const FOOT: f64 = 34.0;
const STEPS: usize = 4;

impl HeatMap {
    /// The drawing, or `None` where no value can be drawn.
    pub fn draw(&self) -> Option<Markup> {
        let cells = || self.rows.iter().flat_map(|row| &row.cells);
        if !cells().any(|cell| drawable(cell.value)) || !drawable(self.colours.full()) {
            return None;
        }
        let names = self.rows.iter().map(|row| text_width(&row.label));
        let left = 8.0 + names.fold(16.0, f64::max).min(160.0);
        let count = self.rows.iter().map(|row| row.cells.len()).max();
        let count = count.unwrap_or(0).max(self.columns.len());
        let key = self.key_width();
        let width = (left + self.cell_width * count as f64 + 2.0).max(key + 4.0);
        let bottom = HEAD + ROW * self.rows.len() as f64;
        let at = |column: usize| left + self.cell_width * column as f64;
        Some(svg(
            &self.caption,
            width,
            bottom + FOOT,
            html! {
                @for (i, column) in self.columns.iter().enumerate() {
                    text.label x=(px(at(i) + self.cell_width / 2.0)) y="14" text-anchor="middle" {
                        (fit_text(column, self.cell_width - 4.0))
                    }
                }
                @for (i, row) in self.rows.iter().enumerate() {
                    @let top = HEAD + ROW * i as f64;
                    text.detail x=(px(left - 8.0)) y=(px(top + 15.0)) text-anchor="end" {
                        (fit_text(&row.label, left - 8.0))
                    }
                    @for (j, cell) in row.cells.iter().enumerate() {
                        (self.cell(cell, at(j), top))
                    }
                }
                (self.key(bottom + 12.0))
            },
        ))
    }

    fn cell(&self, cell: &HeatCell, x: f64, y: f64) -> Markup {
        let (class, opacity) = if drawable(cell.value) {
            self.colours.of(cell.value)
        } else {
            ("series-a", 0.0)
        };
        html! {
            g {
                @if !cell.detail.is_empty() { title { (cell.detail) } }
                rect class={ "heat " (class) } fill-opacity=(px(opacity)) x=(px(x)) y=(px(y))
                    width=(px(self.cell_width)) height=(px(ROW)) {}
                text.cell x=(px(x + self.cell_width / 2.0)) y=(px(y + 15.0)) text-anchor="middle" {
                    (fit_text(&cell.text, self.cell_width - 4.0))
                }
            }
        }
    }

    /// The values of the key's boxes.
    fn steps(&self) -> Vec<f64> {
        let full = self.colours.full();
        let up = (0..=STEPS).map(|i| full * i as f64 / STEPS as f64);
        match self.colours {
            Colours::From0To(_) => up.collect(),
            Colours::AboutZero(_) => {
                let down = (1..=STEPS).rev().map(|i| -full * i as f64 / STEPS as f64);
                down.chain(up).collect()
            }
        }
    }

    fn ends(&self) -> (String, String) {
        let full = self.colours.full();
        let low = match self.colours {
            Colours::From0To(_) => "0".to_owned(),
            Colours::AboutZero(_) => significant(-full, 2),
        };
        (low, significant(full, 2))
    }

    fn key_width(&self) -> f64 {
        let (low, high) = self.ends();
        let texts = [&low, &high, &self.value_name];
        let texts: f64 = texts.iter().map(|text| text_width(text) + 8.0).sum();
        texts + 16.0 * self.steps().len() as f64
    }

    /// A row of boxes between the lowest and the highest value, and what they mean.
    fn key(&self, y: f64) -> Markup {
        let (low, high) = self.ends();
        let first = 2.0 + text_width(&low) + 6.0;
        let steps = self.steps();
        let end = first + 16.0 * steps.len() as f64;
        html! {
            text.figure x="2" y=(px(y + 12.0)) { (low) }
            @for (i, &value) in steps.iter().enumerate() {
                @let (class, opacity) = self.colours.of(value);
                rect class={ "heat " (class) } fill-opacity=(px(opacity)) x=(px(first + 16.0 * i as f64))
                    y=(px(y)) width="16" height="16" {}
            }
            text.figure x=(px(end + 6.0)) y=(px(y + 12.0)) { (high) }
            text.axis-name x=(px(end + 14.0 + text_width(&high))) y=(px(y + 12.0)) { (self.value_name) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(colours: Colours, values: &[f64]) -> HeatMap {
        let cells = values.iter().map(|&value| HeatCell {
            value,
            text: "<&>".to_owned(),
            detail: format!("value {value}"),
        });
        HeatMap {
            caption: Caption::new("map", "Map", "A map."),
            columns: vec!["a".to_owned(), "a column with a long name".to_owned()],
            rows: vec![HeatRow {
                label: "row".to_owned(),
                cells: cells.collect(),
            }],
            colours,
            value_name: "share".to_owned(),
            cell_width: 40.0,
        }
    }

    #[test]
    fn cells_are_coloured_by_sign_and_size() {
        let about = map(Colours::AboutZero(2.0), &[1.0, -4.0, f64::NAN]);
        let out = about.draw().unwrap().0;
        assert!(out.contains("heat up\" fill-opacity=\"0.36\""), "{out}");
        assert!(out.contains("heat down\" fill-opacity=\"0.72\""), "{out}");
        assert!(out.contains("&lt;&amp;&gt;") && !out.contains("<&>"));
        assert!(out.contains("value 1") && out.contains('…'));
        assert_eq!(
            Colours::From0To(1.0).of(-3.0),
            ("series-a", 0.0),
            "below zero there is no colour"
        );
        assert_eq!(Colours::From0To(0.0).of(0.0).1, 0.0);
    }

    #[test]
    fn a_map_of_nothing_is_not_drawn() {
        assert!(map(Colours::From0To(1.0), &[f64::NAN]).draw().is_none());
        assert!(map(Colours::From0To(1.0), &[]).draw().is_none());
        assert!(map(Colours::From0To(f64::NAN), &[1.0]).draw().is_none());
    }
}
