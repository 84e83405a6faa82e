//! Two figures of the same things against each other.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use maud::{Markup, html};

use super::frame::{Frame, Layout};
use super::{Caption, Scale, Tone, drawable, px, text_width};

/// A line to judge the points by.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Guide {
    /// None.
    #[default]
    None,
    /// The line through zero with this slope; slope one is where both figures are equal.
    Slope(f64),
}

/// A point that is pointed out.
#[derive(Debug, Clone, Default)]
pub struct Point {
    /// Horizontal value.
    pub x: f64,
    /// Vertical value.
    pub y: f64,
    /// Written beside the point where there is room.
    pub label: String,
    /// Shown when the pointer rests on the point.
    pub hint: String,
    /// Where a click leads; a place on the page such as `#f12`, or empty.
    pub href: String,
    /// Its colour and shape.
    pub tone: Tone,
}

/// A scatter plot.
#[derive(Debug, Clone, Default)]
pub struct Scatter {
    /// Title and description.
    pub caption: Caption,
    /// The name of the horizontal axis, with its unit.
    pub x_name: String,
    /// The name of the vertical axis, with its unit.
    pub y_name: String,
    /// All points.
    pub points: Vec<(f64, f64)>,
    /// Points pointed out, the most important first: where labels would collide the first keeps its own.
    pub annotated: Vec<Point>,
    /// The line to judge by.
    pub guide: Guide,
}

impl Scatter {
    /// The drawing, or `None` where no value can be drawn.
    pub fn draw(&self) -> Option<Markup> {
        let points: Vec<(f64, f64)> = self
            .points
            .iter()
            .copied()
            .filter(|p| drawable(p.0) && drawable(p.1))
            .collect();
        let annotated: Vec<&Point> = self
            .annotated
            .iter()
            .filter(|p| drawable(p.x) && drawable(p.y))
            .collect();
        let x = Scale::linear(
            points
                .iter()
                .map(|p| p.0)
                .chain(annotated.iter().map(|p| p.x)),
        );
        let y = Scale::linear(
            points
                .iter()
                .map(|p| p.1)
                .chain(annotated.iter().map(|p| p.y)),
        );
        let (x, y) = (x?, y?);
        let layout = Layout {
            width: 460.0,
            height: 380.0,
            rows_above: 1.0,
            lane: 0.0,
        };
        let frame = Frame::new(&layout, x.padded(0.04), y.padded(0.04));
        let labels = place_labels(&annotated, &frame);
        let content = html! {
            (zero_lines(&frame))
            (guide_line(self.guide, &frame))
            (cloud(&points, &frame))
            @for (point, label) in annotated.iter().zip(&labels) {
                @let (cx, cy) = (frame.x.at(point.x), frame.y.at(point.y));
                @let drawing = html! {
                    path class={ "mark " (point.tone.class()) } d=(diamond(cx, cy)) {
                        @if !point.hint.is_empty() { title { (point.hint) } }
                    }
                };
                @if point.href.is_empty() { (drawing) } @else { a href=(point.href) { (drawing) } }
                @if let Some((x, y)) = label {
                    text.note x=(px(*x)) y=(px(*y)) { (point.label) }
                }
            }
        };
        Some(frame.draw(&self.caption, &self.x_name, &self.y_name, 0.0, content))
    }
}

/// Thin lines where the values are zero, inside the drawing area only.
fn zero_lines(frame: &Frame) -> Markup {
    html! {
        g.zero {
            @if frame.x.contains(0.0) {
                line x1=(px(frame.x.at(0.0))) x2=(px(frame.x.at(0.0))) y1=(px(frame.top)) y2=(px(frame.bottom)) {}
            }
            @if frame.y.contains(0.0) {
                line x1=(px(frame.left)) x2=(px(frame.right)) y1=(px(frame.y.at(0.0))) y2=(px(frame.y.at(0.0))) {}
            }
        }
    }
}

fn guide_line(guide: Guide, frame: &Frame) -> Markup {
    let Guide::Slope(slope) = guide else {
        return html! {};
    };
    let (x0, x1) = frame.x.domain();
    let (y0, y1) = frame.y.domain();
    if !slope.is_finite() || slope == 0.0 {
        return html! {};
    }
    // The stretch of x for which slope·x is on the vertical axis too.
    let (a, b) = ((y0 / slope).min(y1 / slope), (y0 / slope).max(y1 / slope));
    let (from, to) = (x0.max(a), x1.min(b));
    if from >= to {
        return html! {};
    }
    html! {
        line.guide x1=(px(frame.x.at(from))) y1=(px(frame.y.at(from * slope)))
            x2=(px(frame.x.at(to))) y2=(px(frame.y.at(to * slope))) {}
    }
}

/// All points as at most three paths: single points faint, crowded places stronger. Points that fall on the same
/// pixel are drawn once, so the page stays small however many there are.
fn cloud(points: &[(f64, f64)], frame: &Frame) -> Markup {
    let mut cells: BTreeMap<(i64, i64), usize> = BTreeMap::new();
    for (x, y) in points {
        let cell = (
            (frame.x.at(*x)).round() as i64,
            (frame.y.at(*y)).round() as i64,
        );
        *cells.entry(cell).or_default() += 1;
    }
    let mut paths = [String::new(), String::new(), String::new()];
    for ((x, y), n) in cells {
        let which = match n {
            1 => 0,
            2..=4 => 1,
            _ => 2,
        };
        let _ = write!(paths[which], "M{x} {y}h0");
    }
    html! {
        g.cloud {
            @for (i, path) in paths.iter().enumerate().filter(|(_, p)| !p.is_empty()) {
                path class={ "crowd-" (i + 1) } d=(path) {}
            }
        }
    }
}

fn diamond(x: f64, y: f64) -> String {
    format!(
        "M{} {}L{} {}L{} {}L{} {}Z",
        px(x),
        px(y - 5.0),
        px(x + 5.0),
        px(y),
        px(x),
        px(y + 5.0),
        px(x - 5.0),
        px(y)
    )
}

/// A place for each label, or none where every place is taken.
fn place_labels(points: &[&Point], frame: &Frame) -> Vec<Option<(f64, f64)>> {
    // Boxes already taken: left, top, right, bottom. The marks themselves come first.
    let mut taken: Vec<(f64, f64, f64, f64)> = points
        .iter()
        .map(|p| {
            let (x, y) = (frame.x.at(p.x), frame.y.at(p.y));
            (x - 5.0, y - 5.0, x + 5.0, y + 5.0)
        })
        .collect();
    points
        .iter()
        .map(|p| {
            if p.label.is_empty() {
                return None;
            }
            let width = text_width(&p.label) * 0.93;
            let (x, y) = (frame.x.at(p.x), frame.y.at(p.y));
            let places = [
                (x + 8.0, y + 4.0),
                (x - 8.0 - width, y + 4.0),
                (x + 5.0, y - 7.0),
                (x - 5.0 - width, y - 7.0),
                (x + 5.0, y + 15.0),
                (x - 5.0 - width, y + 15.0),
                (x - width / 2.0, y - 9.0),
                (x - width / 2.0, y + 18.0),
            ];
            let free = places.into_iter().find(|(lx, ly)| {
                let (l, t, r, b) = (lx - 1.0, ly - 10.0, lx + width + 1.0, ly + 3.0);
                l >= frame.left
                    && r <= frame.right + 10.0
                    && t >= frame.top - 4.0
                    && b <= frame.bottom
                    && taken
                        .iter()
                        .all(|o| r < o.0 || l > o.2 || b < o.1 || t > o.3)
            })?;
            taken.push((
                free.0 - 1.0,
                free.1 - 10.0,
                free.0 + width + 1.0,
                free.1 + 3.0,
            ));
            Some(free)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_do_not_overlap() {
        let annotated: Vec<Point> = (0..30)
            .map(|i| Point {
                x: f64::from(i % 6) * 0.1,
                y: f64::from(i / 6) * 0.1,
                label: format!("{}", 1000 + i),
                ..Point::default()
            })
            .collect();
        let refs: Vec<&Point> = annotated.iter().collect();
        let layout = Layout {
            width: 460.0,
            height: 380.0,
            rows_above: 1.0,
            lane: 0.0,
        };
        let frame = Frame::new(
            &layout,
            Scale::between(0.0, 10.0),
            Scale::between(0.0, 10.0),
        );
        let placed: Vec<(f64, f64)> = place_labels(&refs, &frame).into_iter().flatten().collect();
        assert!(!placed.is_empty());
        for (i, a) in placed.iter().enumerate() {
            for b in &placed[i + 1..] {
                let apart_x = (a.0 - b.0).abs() > text_width("1000") * 0.93;
                let apart_y = (a.1 - b.1).abs() > 12.0;
                assert!(apart_x || apart_y, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn bad_points_are_left_out() {
        let plot = Scatter {
            points: vec![
                (0.0, 0.0),
                (f64::NAN, 1.0),
                (1.0, f64::INFINITY),
                (2.0, 2.0),
            ],
            guide: Guide::Slope(1.0),
            ..Scatter::default()
        };
        let out = plot.draw().unwrap().0;
        assert!(out.contains("crowd-1") && out.contains("guide") && !out.contains("NaN"));
        assert!(Scatter::default().draw().is_none());
    }
}
