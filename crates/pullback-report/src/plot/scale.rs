//! From values to places: linear and logarithmic scales with ticks at round values.

use crate::number;

/// A place on an axis with its label.
#[derive(Debug, Clone, PartialEq)]
pub struct Tick {
    /// The value.
    pub value: f64,
    /// How it is written.
    pub label: String,
}

/// A mapping from values to pixels.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    low: f64,
    high: f64,
    log: bool,
    whole: bool,
    from: f64,
    to: f64,
}

impl Scale {
    /// A linear scale that covers all the values (those that are finite), or `None` where there are none.
    pub fn linear(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (low, high) = extent(values.into_iter().filter(|v| super::drawable(*v)))?;
        Some(Self::between(low, high))
    }

    /// A linear scale between two values.
    pub fn between(low: f64, high: f64) -> Self {
        let (low, high) = widened(low.min(high), low.max(high));
        Self {
            low,
            high,
            log: false,
            whole: false,
            from: 0.0,
            to: 1.0,
        }
    }

    /// A logarithmic scale that covers all the values above zero, or `None` where there are none.
    pub fn log(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (low, high) = extent(
            values
                .into_iter()
                .filter(|v| super::drawable(*v) && *v > 1e-100),
        )?;
        let (low, high) = if high / low < 1.5 {
            (low / 1.5, high * 1.5)
        } else {
            (low, high)
        };
        Some(Self {
            low,
            high,
            log: true,
            whole: false,
            from: 0.0,
            to: 1.0,
        })
    }

    /// The same scale, reaching from pixel `from` (lowest value) to pixel `to` (highest).
    #[must_use]
    pub fn onto(mut self, from: f64, to: f64) -> Self {
        self.from = from;
        self.to = to;
        self
    }

    /// The same scale with a share of its length left free at each end (linear scales only).
    #[must_use]
    pub fn padded(mut self, share: f64) -> Self {
        if !self.log {
            let room = (self.high - self.low) * share;
            self.low -= room;
            self.high += room;
        }
        self
    }

    /// The same scale, stretched to reach down or up to a value.
    #[must_use]
    pub fn including(mut self, value: f64) -> Self {
        if super::drawable(value) && (!self.log || value > 0.0) {
            self.low = self.low.min(value);
            self.high = self.high.max(value);
        }
        self
    }

    /// The same scale with its ends moved out to round values.
    #[must_use]
    pub fn rounded(mut self, target: usize) -> Self {
        if !self.log {
            let step = nice_step(self.high - self.low, target);
            let low = (self.low / step).floor() * step;
            let high = (self.high / step).ceil() * step;
            if low.is_finite() && high.is_finite() && low < high {
                self.low = low;
                self.high = high;
            }
        }
        self
    }

    /// The same scale with ticks at whole numbers only.
    #[must_use]
    pub fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// The lowest and the highest value.
    pub fn domain(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// Whether a value lies on the scale.
    pub fn contains(&self, value: f64) -> bool {
        value >= self.low && value <= self.high
    }

    /// The pixel of a value; values beyond the ends are drawn at the ends.
    pub fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        let share = if share.is_nan() { 0.0 } else { share };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// About `target` ticks at round values.
    pub fn ticks(&self, target: usize) -> Vec<Tick> {
        if self.log {
            log_ticks(self.low, self.high, target)
        } else {
            let mut step = nice_step(self.high - self.low, target);
            let mut values = nice_ticks(self.low, self.high, target);
            if self.whole && step < 1.0 {
                values.retain(|v| v.fract() == 0.0);
                step = 1.0;
            }
            let labels: Vec<String> = values.iter().map(|v| tick_label(*v, step)).collect();
            values
                .into_iter()
                .zip(labels)
                .map(|(value, label)| Tick { value, label })
                .collect()
        }
    }
}

fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| match range {
        None => Some((v, v)),
        Some((low, high)) => Some((v.min(low), v.max(high))),
    })
}

/// A range of no length gets some.
fn widened(low: f64, high: f64) -> (f64, f64) {
    let size = low.abs().max(high.abs());
    if high - low > size * 1e-12 && high > low {
        (low, high)
    } else if size == 0.0 {
        (-1.0, 1.0)
    } else {
        (low - size * 0.5, high + size * 0.5)
    }
}

/// The step of 1, 2 or 5 times a power of ten that cuts a length into about `target` parts.
///
/// ```
/// use pullback_report::plot::nice_step;
/// assert_eq!(nice_step(10.0, 5), 2.0);
/// assert_eq!(nice_step(0.7, 5), 0.1);
/// ```
pub fn nice_step(length: f64, target: usize) -> f64 {
    let raw = length / target.max(1) as f64;
    if !raw.is_finite() || raw <= f64::MIN_POSITIVE * 1e16 {
        return 1.0;
    }
    let power = 10_f64.powi(raw.log10().floor() as i32);
    let factor = raw / power;
    // The geometric means of neighbours, so that the nearest step wins.
    let nice = if factor < 2_f64.sqrt() {
        1.0
    } else if factor < 10_f64.sqrt() {
        2.0
    } else if factor < 50_f64.sqrt() {
        5.0
    } else {
        10.0
    };
    // Dividing by a whole power keeps 0.1 the number nearest to a tenth.
    if power < 1.0 {
        nice / (1.0 / power).round()
    } else {
        nice * power
    }
}

/// The multiples of a nice step between two values.
///
/// ```
/// use pullback_report::plot::nice_ticks;
/// assert_eq!(nice_ticks(0.0, 1.0, 5), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
/// ```
pub fn nice_ticks(low: f64, high: f64, target: usize) -> Vec<f64> {
    if !(super::drawable(low) && super::drawable(high)) || low >= high {
        return Vec::new();
    }
    let step = nice_step(high - low, target);
    let slack = 1e-9;
    let first = (low / step - slack).ceil();
    let last = (high / step + slack).floor();
    let n = (last - first).clamp(0.0, 4.0 * target.max(1) as f64 + 4.0) as usize;
    // Exact tenths: k·0.1 is not always the number nearest to k/10, k/10 is.
    let inverse = (1.0 / step).round();
    let tenths = step < 1.0 && (inverse * step - 1.0).abs() < 1e-12;
    (0..=n)
        .map(|i| {
            let k = first + i as f64;
            let value = if tenths { k / inverse } else { k * step };
            // No negative zero.
            value + 0.0
        })
        .filter(|v| *v <= high + step * slack)
        .collect()
}

fn tick_label(value: f64, step: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".to_owned();
    }
    if !(1e-5..1e15).contains(&step) {
        return number::significant(value, 3);
    }
    if step >= 1000.0 || (size >= 1e4 && step >= 100.0) {
        return number::compact(value);
    }
    let decimals = (-(step.log10() + 1e-9).floor()).max(0.0) as usize;
    number::fixed(value, decimals)
}

fn log_ticks(low: f64, high: f64, target: usize) -> Vec<Tick> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let decades = (last - first).max(1);
    let stride = (decades as usize).div_ceil(target.max(1)).max(1) as i32;
    let inside = |v: f64| v >= low * (1.0 - 1e-9) && v <= high * (1.0 + 1e-9);
    let make = |factors: &[f64]| -> Vec<Tick> {
        (first..=last)
            .filter(|e| e.rem_euclid(stride) == 0)
            .flat_map(|e| factors.iter().map(move |f| f * 10_f64.powi(e)))
            .filter(|v| inside(*v))
            .map(|value| Tick {
                value,
                label: log_label(value),
            })
            .collect()
    };
    let whole = make(&[1.0]);
    if whole.len() >= 3 || stride > 1 {
        return whole;
    }
    let finer = make(&[1.0, 2.0, 5.0]);
    if finer.len() >= 3 {
        return finer;
    }
    // Less than a decade: the ticks of a linear axis are as good.
    let step = nice_step(high - low, target);
    nice_ticks(low, high, target)
        .into_iter()
        .map(|value| Tick {
            value,
            label: tick_label(value, step),
        })
        .collect()
}

fn log_label(value: f64) -> String {
    if (1e-4..9.5e3).contains(&value) {
        let text = number::significant(value, 1);
        return text;
    }
    if (9.5e3..1e15).contains(&value) {
        return number::compact(value);
    }
    number::significant(value, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_one_two_five() {
        for (length, target, step) in [
            (1.0, 5, 0.2),
            (10.0, 10, 1.0),
            (7.0, 5, 1.0),
            (203_000.0, 5, 50_000.0),
            (0.000_3, 5, 0.000_05),
            (1e-9, 4, 2e-10),
        ] {
            let got = nice_step(length, target);
            assert!((got / step - 1.0).abs() < 1e-9, "{length}/{target}: {got}");
        }
        assert!((nice_step(0.0, 5) - 1.0).abs() < 1e-12);
        assert!((nice_step(f64::NAN, 5) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn steps_over_many_lengths() {
        let mut length = 1e-12;
        while length < 1e12 {
            let step = nice_step(length, 6);
            let mantissa = step / 10_f64.powf(step.log10().floor() + 0.0);
            let near = |m: f64| (mantissa - m).abs() < 1e-6 || (mantissa - m * 10.0).abs() < 1e-6;
            assert!(near(1.0) || near(2.0) || near(5.0), "{length}: {step}");
            let parts = length / step;
            assert!((3.5..=10.0).contains(&parts), "{length}: {parts}");
            length *= 1.37;
        }
    }

    #[test]
    fn ticks_lie_inside_and_are_exact() {
        assert_eq!(
            nice_ticks(0.0, 0.7, 7),
            [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
        );
        assert_eq!(nice_ticks(-1.0, 1.0, 4), [-1.0, -0.5, 0.0, 0.5, 1.0]);
        assert!(nice_ticks(1.0, 1.0, 5).is_empty());
        assert!(nice_ticks(f64::NAN, 1.0, 5).is_empty());
        assert!(nice_ticks(1e16, 1e16 + 2.0, 5).len() < 30);
        for v in nice_ticks(3.3, 97.1, 6) {
            assert!((3.3..=97.1).contains(&v));
        }
    }

    #[test]
    fn labels_are_distinct() {
        for (low, high) in [
            (0.0, 1.0),
            (1e-7, 3e-7),
            (100.0, 100.4),
            (-5e6, 2e6),
            (0.0, 12_345.0),
            (9500.0, 10_500.0),
        ] {
            let ticks = Scale::between(low, high).ticks(5);
            assert!(ticks.len() >= 3, "{low}..{high}: {ticks:?}");
            for pair in ticks.windows(2) {
                assert_ne!(pair[0].label, pair[1].label, "{low}..{high}");
            }
        }
    }

    #[test]
    fn log_scale_has_decades() {
        let labels = |low: f64, high: f64| -> Vec<String> {
            Scale::log([low, high])
                .map(|s| s.ticks(5).into_iter().map(|t| t.label).collect())
                .unwrap_or_default()
        };
        assert_eq!(labels(1.0, 1000.0), ["1", "10", "100", "1,000"]);
        assert_eq!(labels(1.0, 20.0), ["1", "2", "5", "10", "20"]);
        assert!(labels(3.1, 3.9).len() >= 2);
        assert!(labels(1e-20, 1e20).len() <= 8);
        assert!(Scale::log([0.0, -1.0, f64::NAN]).is_none());
    }

    #[test]
    fn degenerate_ranges() {
        let scale = Scale::linear([2.0, 2.0]).unwrap().onto(0.0, 100.0);
        assert!((scale.at(2.0) - 50.0).abs() < 1e-9);
        assert!(Scale::linear([f64::NAN, f64::INFINITY]).is_none());
        assert!(scale.at(f64::NAN).is_finite());
        let flat = Scale::linear([0.0]).unwrap();
        assert!(flat.ticks(5).len() >= 3);
    }
}
