//! How often each value occurs.

use maud::{Markup, html};

use super::frame::{Frame, Layout};
use super::{Caption, Scale, Tone, drawable, nice_step, px};
use crate::number;

/// Counts of values in bins of one width; bin `i` holds the values from `start + i·width` up to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Bins {
    /// The lower edge of the first bin.
    pub start: f64,
    /// The width of every bin.
    pub width: f64,
    /// How many values each bin holds.
    pub counts: Vec<u64>,
}

/// Sorts the finite values into about `target` bins whose width is a round number and one of which is centred on
/// zero; `None` where there are no finite values.
pub fn bins(values: &[f64], target: usize) -> Option<Bins> {
    let finite = || values.iter().copied().filter(|v| drawable(*v));
    let (low, high) = Scale::linear(finite())?.domain();
    let width = nice_step(high - low, target.max(1));
    let place = |v: f64| (v / width + 0.5).floor();
    let (first, last) = finite()
        .map(place)
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), k| {
            (a.min(k), b.max(k))
        });
    let n = (last - first).clamp(0.0, 10_000.0) as usize + 1;
    let mut counts = vec![0_u64; n];
    for v in finite() {
        let i = (place(v) - first).clamp(0.0, (n - 1) as f64) as usize;
        if let Some(count) = counts.get_mut(i) {
            *count += 1;
        }
    }
    Some(Bins {
        start: (first - 0.5) * width,
        width,
        counts,
    })
}

/// A value pointed out below the bars.
#[derive(Debug, Clone, Default)]
pub struct Mark {
    /// Where.
    pub value: f64,
    /// What it is; shown when the pointer rests on it.
    pub label: String,
    /// Its colour and shape.
    pub tone: Tone,
}

/// A histogram.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    /// Title and description.
    pub caption: Caption,
    /// The name of the horizontal axis, with its unit.
    pub x_name: String,
    /// The name of the vertical axis.
    pub y_name: String,
    /// The values; those that are not finite are left out.
    pub values: Vec<f64>,
    /// Values pointed out in a lane below the bars.
    pub marks: Vec<Mark>,
    /// Counts on a logarithmic axis, so that single values in the tails can be seen; where no bin holds ten values the
    /// axis stays linear.
    pub log_count: bool,
    /// The height of the drawing, 290 where it is zero.
    pub height: f64,
}

impl Histogram {
    /// The drawing, or `None` where no value can be drawn.
    pub fn draw(&self) -> Option<Markup> {
        let bins = bins(&self.values, 56)?;
        let most = bins.counts.iter().copied().max().unwrap_or(1).max(1) as f64;
        let end = bins.start + bins.width * bins.counts.len() as f64;
        let marks: Vec<&Mark> = self.marks.iter().filter(|m| drawable(m.value)).collect();
        let mut x = Scale::between(bins.start, end);
        for mark in &marks {
            x = x.including(mark.value);
        }
        let x = x.padded(0.015);
        // Below ten there is nothing for a logarithm to bring out.
        let log = self.log_count && most >= 10.0;
        let y = if log {
            Scale::log([0.6, most * 1.3])?
        } else {
            Scale::between(0.0, most * 1.05).whole()
        };
        let lane = if marks.is_empty() { 0.0 } else { 16.0 };
        let layout = Layout {
            width: 460.0,
            height: if self.height > 120.0 {
                self.height
            } else {
                290.0
            },
            rows_above: 1.0,
            lane,
        };
        let frame = Frame::new(&layout, x, y);
        let content = html! {
            g.bars {
                @for (i, count) in bins.counts.iter().enumerate().filter(|(_, c)| **c > 0) {
                    @let low = bins.start + bins.width * i as f64;
                    @let (x0, x1) = (frame.x.at(low), frame.x.at(low + bins.width));
                    @let top = frame.y.at(*count as f64);
                    rect x=(px(x0)) y=(px(top)) width=(px((x1 - x0 - 0.6).max(0.8))) height=(px((frame.bottom - top).max(0.5))) {
                        title {
                            (number::count(*count)) " between " (number::significant(low, 3)) " and "
                            (number::significant(low + bins.width, 3))
                        }
                    }
                }
            }
            g.marks {
                @for mark in &marks {
                    @let at = frame.x.at(mark.value);
                    path class={ "mark " (mark.tone.class()) } d=(triangle(at, frame.bottom + 4.0, mark.tone)) {
                        title { (mark.label) }
                    }
                }
            }
        };
        let y_name = if log {
            format!("{}, logarithmic", self.y_name)
        } else {
            self.y_name.clone()
        };
        Some(frame.draw(&self.caption, &self.x_name, &y_name, lane, content))
    }
}

/// A small triangle pointing up or, for what went down, down.
fn triangle(x: f64, top: f64, tone: Tone) -> String {
    let (tip, base) = if tone == Tone::Down {
        (top + 8.0, top)
    } else {
        (top, top + 8.0)
    };
    format!(
        "M{} {}L{} {}L{} {}Z",
        px(x),
        px(tip),
        px(x - 4.0),
        px(base),
        px(x + 4.0),
        px(base)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_sum_to_n() {
        let mut seed = 1_u64;
        for n in [1_usize, 2, 17, 4000] {
            let values: Vec<f64> = (0..n)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let u = (seed >> 11) as f64 / (1_u64 << 53) as f64;
                    (u - 0.5).powi(5) * 40.0
                })
                .collect();
            for target in [1, 7, 56] {
                let bins = bins(&values, target).unwrap();
                assert_eq!(bins.counts.iter().sum::<u64>(), n as u64);
                assert!(
                    bins.counts.len() <= 4 * target + 4,
                    "{} bins",
                    bins.counts.len()
                );
            }
        }
    }

    #[test]
    fn bad_values_are_not_counted() {
        let bins = bins(&[f64::NAN, 1.0, f64::INFINITY, 2.0, f64::NEG_INFINITY], 10).unwrap();
        assert_eq!(bins.counts.iter().sum::<u64>(), 2);
        assert!(super::bins(&[f64::NAN], 10).is_none());
        assert!(super::bins(&[], 10).is_none());
    }

    #[test]
    fn zero_is_in_the_middle_of_a_bin() {
        let bins = bins(&[-0.3, -0.01, 0.0, 0.01, 0.4], 10).unwrap();
        let k = -bins.start / bins.width;
        assert!((k.fract() - 0.5).abs() < 1e-9);
        let middle = bins.counts[k.floor() as usize];
        assert_eq!(middle, 3);
    }

    #[test]
    fn all_the_same_value() {
        for v in [0.0, 3.5, -1e-30, 1e30] {
            let bins = bins(&[v; 10], 56).unwrap();
            assert_eq!(bins.counts.iter().sum::<u64>(), 10);
        }
    }
}
