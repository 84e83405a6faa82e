//! Curves over steps or tokens.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::frame::{Frame, Layout};
use super::{Caption, Scale, drawable, px, text_width};

/// One curve.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, in the order they are joined.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// A named curve.
    pub fn new(name: &str, points: &[(f64, f64)]) -> Self {
        Self {
            name: name.to_owned(),
            points: points.to_vec(),
        }
    }
}

/// A line chart of up to six curves, told apart by colour, dashes and the shape of their points.
#[derive(Debug, Clone, Default)]
pub struct LineChart {
    /// Title and description.
    pub caption: Caption,
    /// The name of the horizontal axis, with its unit.
    pub x_name: String,
    /// The name of the vertical axis, with its unit.
    pub y_name: String,
    /// The curves.
    pub series: Vec<Series>,
    /// A logarithmic horizontal axis; values at or below zero are left out.
    pub log_x: bool,
    /// A logarithmic vertical axis; values at or below zero are left out.
    pub log_y: bool,
    /// Points alone, not joined.
    pub unjoined: bool,
    /// A value that the vertical axis must reach, such as zero.
    pub reach: Option<f64>,
}

impl LineChart {
    /// The drawing, or `None` where no value can be drawn.
    pub fn draw(&self) -> Option<Markup> {
        let fits = |value: f64, log: bool| drawable(value) && (!log || value > 1e-100);
        let usable = |p: &(f64, f64)| fits(p.0, self.log_x) && fits(p.1, self.log_y);
        let all = || {
            self.series
                .iter()
                .flat_map(|s| s.points.iter())
                .filter(|p| usable(p))
        };
        let x = if self.log_x {
            Scale::log(all().flat_map(|p| [p.0 / 1.1, p.0 * 1.1]))
        } else {
            Scale::linear(all().map(|p| p.0))
        };
        let y = if self.log_y {
            Scale::log(all().flat_map(|p| [p.1 / 1.1, p.1 * 1.1]))
        } else {
            Scale::linear(all().map(|p| p.1))
        };
        let (x, mut y) = (x?, y?);
        if let Some(value) = self.reach {
            y = y.including(value);
        }
        if !self.log_y {
            y = y.rounded(5);
        }
        let legend = self.series.len() > 1;
        let (legend_drawing, legend_rows) = self.legend();
        let layout = Layout {
            width: WIDTH,
            height: 290.0,
            rows_above: if legend { 1.0 + legend_rows } else { 1.0 },
            lane: 0.0,
        };
        let frame = Frame::new(&layout, x, y);
        let content = html! {
            @for (i, series) in self.series.iter().enumerate() {
                @let points: Vec<(f64, f64)> = series.points.iter().filter(|p| usable(p))
                    .map(|p| (frame.x.at(p.0), frame.y.at(p.1))).collect();
                @if points.len() > 1 && !self.unjoined {
                    path class={ "curve " (class(i)) } d=(path(&points)) {}
                }
                @if points.len() <= 12 || self.unjoined {
                    @for (x, y) in &points { (dot(i, *x, *y)) }
                }
            }
            @if legend { (legend_drawing) }
        };
        Some(frame.draw(&self.caption, &self.x_name, &self.y_name, 0.0, content))
    }

    /// The names, and how many rows they take.
    fn legend(&self) -> (Markup, f64) {
        let (mut at, mut row) = (2.0, 0.0);
        let places: Vec<(f64, f64)> = self
            .series
            .iter()
            .map(|s| {
                let needed = 26.0 + text_width(&s.name);
                if at > 2.0 && at + needed > WIDTH {
                    (at, row) = (2.0, row + 1.0);
                }
                let here = (at, row);
                at += needed + 18.0;
                here
            })
            .collect();
        let drawing = html! {
            g.legend {
                @for (i, (series, (x, row))) in self.series.iter().zip(&places).enumerate() {
                    @let y = 10.0 + 17.0 * row;
                    @if !self.unjoined {
                        line class={ "curve " (class(i)) } x1=(px(*x)) x2=(px(x + 20.0)) y1=(px(y)) y2=(px(y)) {}
                    }
                    @if self.series.len() > 2 || self.unjoined { (dot(i, x + 10.0, y)) }
                    text x=(px(x + 26.0)) y=(px(y + 4.0)) { (series.name) }
                }
            }
        };
        (drawing, row + 1.0)
    }
}

/// The width of the drawing.
const WIDTH: f64 = 460.0;

/// The style of a curve.
fn class(i: usize) -> &'static str {
    const CLASSES: [&str; 6] = [
        "series-a", "series-b", "series-c", "series-d", "series-e", "series-f",
    ];
    CLASSES[i % CLASSES.len()]
}

/// A point of a curve.
fn dot(i: usize, x: f64, y: f64) -> Markup {
    let shape = |corners: &[(f64, f64)]| -> String {
        let corners = corners.iter().enumerate().map(|(i, (dx, dy))| {
            let letter = if i == 0 { "M" } else { "L" };
            format!("{letter}{} {}", px(x + dx), px(y + dy))
        });
        corners.collect::<String>() + "Z"
    };
    let path = match i % 6 {
        0 => {
            return html! { circle class={ "dot " (class(i)) } cx=(px(x)) cy=(px(y)) r="3" {} };
        }
        1 => shape(&[(-3.0, -3.0), (3.0, -3.0), (3.0, 3.0), (-3.0, 3.0)]),
        2 => shape(&[(0.0, -4.0), (4.0, 3.0), (-4.0, 3.0)]),
        3 => shape(&[(0.0, -4.2), (4.2, 0.0), (0.0, 4.2), (-4.2, 0.0)]),
        4 => shape(&[(0.0, 4.0), (4.0, -3.0), (-4.0, -3.0)]),
        _ => shape(&[(-4.0, -1.4), (4.0, -1.4), (4.0, 1.4), (-4.0, 1.4)]),
    };
    html! { path class={ "dot " (class(i)) } d=(path) {} }
}

/// A path through the points; where there are more than the eye can tell apart, only those that move it.
fn path(points: &[(f64, f64)]) -> String {
    let mut out = String::new();
    let mut last: Option<(f64, f64)> = None;
    for (i, (x, y)) in points.iter().enumerate() {
        if let Some((lx, ly)) = last
            && i + 1 < points.len()
            && (x - lx).abs() < 0.4
            && (y - ly).abs() < 0.4
        {
            continue;
        }
        let _ = write!(
            out,
            "{}{} {}",
            if last.is_none() { "M" } else { "L" },
            px(*x),
            px(*y)
        );
        last = Some((*x, *y));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)], log_y: bool) -> String {
        LineChart {
            caption: Caption::new("c", "A curve", "what it shows"),
            x_name: "steps".to_owned(),
            y_name: "loss".to_owned(),
            series: vec![Series::new("train", points)],
            log_y,
            ..LineChart::default()
        }
        .draw()
        .map(|drawing| drawing.0)
        .unwrap_or_default()
    }

    #[test]
    fn nothing_to_show_is_nothing_drawn() {
        assert_eq!(chart(&[], false), "");
        assert_eq!(chart(&[(f64::NAN, 1.0), (1.0, f64::INFINITY)], false), "");
        assert_eq!(chart(&[(1.0, -1.0)], true), "");
        let framed = super::super::figure(&Caption::default(), None, html! {}).0;
        assert!(framed.contains("not available"), "{framed}");
    }

    #[test]
    fn six_curves_are_told_apart_and_named_within_the_width() {
        let names: Vec<String> = (0..6).map(|i| format!("a long name, number {i}")).collect();
        let out = LineChart {
            series: names
                .iter()
                .enumerate()
                .map(|(i, name)| Series::new(name, &[(10.0, i as f64), (1000.0, 2.0)]))
                .collect(),
            log_x: true,
            ..LineChart::default()
        }
        .draw()
        .unwrap()
        .0;
        for class in ["series-a", "series-c", "series-f"] {
            assert!(out.contains(class), "{class}");
        }
        for name in &names {
            assert!(out.contains(name.as_str()));
        }
        // Two names fit beside each other, so there are three rows.
        assert_eq!(out.matches("x=\"28\"").count(), 3, "{out}");
    }

    #[test]
    fn one_point_is_a_dot() {
        let out = chart(&[(5.0, 2.0)], false);
        assert!(
            out.contains("<circle") && !out.contains("NaN") && !out.contains("inf"),
            "{out}"
        );
    }

    #[test]
    fn bad_points_are_left_out() {
        let out = chart(
            &[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0), (3.0, 1e300)],
            false,
        );
        assert!(out.contains("<path") && !out.contains("NaN"), "{out}");
        assert_eq!(out.matches("<circle").count(), 2);
    }
}
