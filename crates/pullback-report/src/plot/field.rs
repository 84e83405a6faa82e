//! Space-time pictures: a value at every place and time, as colour alone.

use maud::{Markup, html};

use super::frame::svg;
use super::heat::Colours;
use super::{Caption, drawable, fit_text, px, text_width};
use crate::number::significant;

/// A picture of values over places (to the right) and times (upwards).
#[derive(Debug, Clone)]
pub struct Field {
    /// Title and description.
    pub caption: Caption,
    /// `rows[time][place]`; rows of one length. What is not finite has no colour.
    pub rows: Vec<Vec<f64>>,
    /// The times of the first and of the last row, and what time is called.
    pub times: (f64, f64),
    /// The name of the vertical axis.
    pub time_name: String,
    /// The place of the first column; columns are one apart.
    pub first_place: i64,
    /// The name of the horizontal axis.
    pub place_name: String,
    /// What the colours mean.
    pub colours: Colours,
    /// What the value is, with its unit.
    pub value_name: String,
    /// Lines drawn over the picture, from `(place, time)` to `(place, time)`.
    pub lines: Vec<((f64, f64), (f64, f64))>,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 52.0;
const TOP: f64 = 26.0;
/// More cells than these each way cannot be told apart; rows and columns between are left out.
const MOST: usize = 160;
/// Shades of a colour; neighbours of the same shade are one rectangle.
const SHADES: f64 = 24.0;

impl Field {
    /// The drawing, or `None` where no value can be drawn.
    pub fn draw(&self) -> Option<Markup> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let any = self.rows.iter().flatten().any(|x| drawable(*x));
        if columns == 0 || !any || !drawable(self.colours.full()) {
            return None;
        }
        let (across, up) = (columns.div_ceil(MOST), self.rows.len().div_ceil(MOST));
        let rows: Vec<&Vec<f64>> = self.rows.iter().step_by(up).collect();
        let shown = columns.div_ceil(across);
        let (w, h) = (WIDTH / shown as f64, HEIGHT / rows.len() as f64);
        let bottom = TOP + HEIGHT;
        let first = self.first_place as f64;
        let last = first + columns as f64 - 1.0;
        // Middles of the first and the last cell.
        let x_at = |place: f64| LEFT + (place - first + 0.5) / columns as f64 * WIDTH;
        let span = self.times.1 - self.times.0;
        let y_at = |time: f64| {
            let share = if span > 0.0 {
                (time - self.times.0) / span
            } else {
                0.0
            };
            bottom - h / 2.0 - share * (HEIGHT - h)
        };
        Some(svg(
            &self.caption,
            LEFT + WIDTH + 8.0,
            bottom + 66.0,
            html! {
                @for (i, row) in rows.iter().enumerate() {
                    @let y = bottom - h * (i + 1) as f64;
                    @for (from, to, class, opacity) in self.runs(row, across) {
                        // A hair wider, so that no gaps show between neighbours.
                        rect class={ "field " (class) } fill-opacity=(px(opacity)) x=(px(LEFT + w * from as f64)) y=(px(y))
                            width=(px(w * (to - from) as f64 + 0.15)) height=(px(h + 0.15)) {}
                    }
                }
                rect class="field-frame" x=(px(LEFT)) y=(px(TOP)) width=(px(WIDTH)) height=(px(HEIGHT)) fill="none" {}
                @for ((x1, t1), (x2, t2)) in &self.lines {
                    line class="guide" x1=(px(x_at(*x1))) y1=(px(y_at(*t1))) x2=(px(x_at(*x2))) y2=(px(y_at(*t2))) {}
                }
                g.ticks {
                    @for place in [first, f64::midpoint(first, last).round(), last] {
                        text x=(px(x_at(place))) y=(px(bottom + 17.0)) text-anchor="middle" { (significant(place, 5)) }
                    }
                    @for time in [self.times.0, f64::midpoint(self.times.0, self.times.1), self.times.1] {
                        text x=(px(LEFT - 6.0)) y=(px(y_at(time) + 4.0)) text-anchor="end" { (significant(time, 3)) }
                    }
                }
                text.axis-name x="2" y=(px(TOP - 10.0)) { (self.time_name) }
                text.axis-name x=(px(LEFT + WIDTH)) y=(px(bottom + 34.0)) text-anchor="end" { (fit_text(&self.place_name, WIDTH)) }
                (self.key(bottom + 44.0))
            },
        ))
    }

    /// Neighbours of one shade: from, to, class, opacity. What has no colour is left out.
    fn runs(&self, row: &[f64], across: usize) -> Vec<(usize, usize, &'static str, f64)> {
        let mut out: Vec<(usize, usize, &'static str, f64)> = Vec::new();
        for (i, value) in row.iter().step_by(across).enumerate() {
            if !drawable(*value) {
                continue;
            }
            let (class, opacity) = self.colours.of(*value);
            let opacity = (opacity * SHADES).round() / SHADES;
            if opacity == 0.0 {
                continue;
            }
            match out.last_mut() {
                Some((_, to, c, o)) if *to == i && *c == class && *o == opacity => *to = i + 1,
                _ => out.push((i, i + 1, class, opacity)),
            }
        }
        out
    }

    fn key(&self, y: f64) -> Markup {
        let full = self.colours.full();
        let steps: Vec<f64> = match self.colours {
            Colours::From0To(_) => (0..=4).map(|i| full * f64::from(i) / 4.0).collect(),
            Colours::AboutZero(_) => (-4..=4).map(|i| full * f64::from(i) / 4.0).collect(),
        };
        let low = significant(steps[0], 2);
        let start = LEFT + text_width(&low) + 6.0;
        let end = start + 16.0 * steps.len() as f64;
        let high = significant(full, 2);
        html! {
            text.figure x=(px(LEFT)) y=(px(y + 12.0)) { (low) }
            @for (i, &value) in steps.iter().enumerate() {
                @let (class, opacity) = self.colours.of(value);
                rect class={ "heat " (class) } fill-opacity=(px(opacity)) x=(px(start + 16.0 * i as f64)) y=(px(y)) width="16" height="16" {}
            }
            text.figure x=(px(end + 6.0)) y=(px(y + 12.0)) { (high) }
            text.axis-name x=(px(end + 14.0 + text_width(&high))) y=(px(y + 12.0)) { (self.value_name) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(rows: Vec<Vec<f64>>) -> Field {
        Field {
            caption: Caption::new("field", "Field", "A field."),
            rows,
            times: (0.0, 2.0),
            time_name: "time".to_owned(),
            first_place: -1,
            place_name: "site".to_owned(),
            colours: Colours::AboutZero(1.0),
            value_name: "Z".to_owned(),
            lines: vec![((0.0, 0.0), (1.0, 2.0))],
        }
    }

    #[test]
    fn neighbours_of_one_shade_are_one_rectangle() {
        let picture = field(vec![vec![1.0, 1.0, -1.0], vec![0.0, f64::NAN, 0.0]]);
        let out = picture.draw().unwrap().0;
        assert_eq!(out.matches("class=\"field up\"").count(), 1, "{out}");
        assert_eq!(out.matches("class=\"field down\"").count(), 1, "{out}");
        assert_eq!(out.matches("class=\"guide\"").count(), 1);
    }

    #[test]
    fn large_fields_are_thinned_and_empty_ones_not_drawn() {
        let rows = (0..1000).map(|i| {
            (0..1000)
                .map(|j| f64::from((i * 7 + j * 13) % 10))
                .collect()
        });
        let out = field(rows.collect()).draw().unwrap().0;
        assert!(out.matches("<rect").count() < 160 * 160 + 20);
        assert!(field(Vec::new()).draw().is_none());
        assert!(field(vec![vec![f64::NAN]]).draw().is_none());
    }
}
