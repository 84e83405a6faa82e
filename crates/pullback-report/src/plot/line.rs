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

/// A line chart of one or two curves; the second is dashed.
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
    /// A logarithmic vertical axis; values at or below zero are left out.
    pub log_y: bool,
    /// A value that the vertical axis must reach, such as zero.
    pub reach: Option<f64>,
}

impl LineChart {
    /// The drawing, or `None` where no value can be drawn.
    pub fn draw(&self) -> Option<Markup> {
        let usable =
            |p: &(f64, f64)| drawable(p.0) && drawable(p.1) && (!self.log_y || p.1 > 1e-100);
        let all = || {
            self.series
                .iter()
                .flat_map(|s| s.points.iter())
                .filter(|p| usable(p))
        };
        let x = Scale::linear(all().map(|p| p.0));
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
        let layout = Layout {
            width: 460.0,
            height: 290.0,
            rows_above: if legend { 2.0 } else { 1.0 },
            lane: 0.0,
        };
        let frame = Frame::new(&layout, x, y);
        let content = html! {
            @for (i, series) in self.series.iter().enumerate() {
                @let points: Vec<(f64, f64)> = series.points.iter().filter(|p| usable(p))
                    .map(|p| (frame.x.at(p.0), frame.y.at(p.1))).collect();
                @if points.len() > 1 {
                    path class={ "curve " (class(i)) } d=(path(&points)) {}
                }
                @if points.len() <= 12 {
                    @for (px_, py_) in &points {
                        @if i == 0 {
                            circle class={ "dot " (class(i)) } cx=(px(*px_)) cy=(px(*py_)) r="3" {}
                        } @else {
                            rect class={ "dot " (class(i)) } x=(px(px_ - 3.0)) y=(px(py_ - 3.0)) width="6" height="6" {}
                        }
                    }
                }
            }
            @if legend { (self.legend()) }
        };
        Some(frame.draw(&self.caption, &self.x_name, &self.y_name, 0.0, content))
    }

    fn legend(&self) -> Markup {
        let mut at = 2.0;
        let places: Vec<f64> = self
            .series
            .iter()
            .map(|s| {
                let here = at;
                at += 26.0 + text_width(&s.name) + 18.0;
                here
            })
            .collect();
        html! {
            g.legend {
                @for (i, (series, x)) in self.series.iter().zip(&places).enumerate() {
                    line class={ "curve " (class(i)) } x1=(px(*x)) x2=(px(x + 20.0)) y1="10" y2="10" {}
                    text x=(px(x + 26.0)) y="14" { (series.name) }
                }
            }
        }
    }
}

fn class(i: usize) -> &'static str {
    if i == 0 { "series-a" } else { "series-b" }
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
            reach: None,
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
