//! How figures are written: rounded for a reader, with a true minus sign, and never `NaN`.

/// What stands in place of a figure that is missing, infinite or not a number.
pub const NOT_AVAILABLE: &str = "not available";

/// The true minus sign.
const MINUS: char = '\u{2212}';

/// A figure with `digits` significant digits; very large and very small ones as a power of ten.
///
/// ```
/// use pullback_report::number::significant;
/// assert_eq!(significant(0.123_456, 3), "0.123");
/// assert_eq!(significant(-12.0, 3), "−12.0");
/// assert_eq!(significant(0.000_012, 2), "1.2×10⁻⁵");
/// assert_eq!(significant(f64::NAN, 3), "not available");
/// ```
pub fn significant(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return NOT_AVAILABLE.to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = digits.clamp(1, 15);
    // Rounding first tells the exponent of what will be printed: 9.996 with three digits is 10.0.
    let rounded = format!("{:.*e}", digits - 1, value.abs());
    let Some((mantissa, exponent)) = rounded.split_once('e') else {
        return NOT_AVAILABLE.to_owned();
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let body = if (-4..7).contains(&exponent) {
        let decimals = usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0);
        grouped(&format!("{:.*}", decimals, value.abs()))
    } else {
        format!("{mantissa}×10{}", superscript(exponent))
    };
    if value < 0.0 {
        format!("{MINUS}{body}")
    } else {
        body
    }
}

/// As [`significant`], with a plus sign in front of what is above zero.
pub fn signed(value: f64, digits: usize) -> String {
    let text = significant(value, digits);
    if value.is_finite() && value > 0.0 {
        format!("+{text}")
    } else {
        text
    }
}

/// A figure with a fixed number of decimals.
pub fn fixed(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return NOT_AVAILABLE.to_owned();
    }
    if value.abs() >= 1e12 {
        return significant(value, decimals + 1);
    }
    let body = format!("{:.*}", decimals, value.abs());
    let is_zero = body.bytes().all(|b| matches!(b, b'0' | b'.'));
    let body = grouped(&body);
    if value < 0.0 && !is_zero {
        format!("{MINUS}{body}")
    } else {
        body
    }
}

/// A share between zero and one as a percentage: `0.0123` is `1.23%`.
pub fn percent(share: f64) -> String {
    if !share.is_finite() {
        return NOT_AVAILABLE.to_owned();
    }
    let value = share * 100.0;
    let size = value.abs();
    if value == 0.0 {
        "0%".to_owned()
    } else if size < 0.001 {
        format!("{}<0.001%", if value < 0.0 { "−" } else { "" })
    } else if size < 0.095 {
        format!("{}%", fixed(value, 3))
    } else if size < 9.95 {
        format!("{}%", fixed(value, 2))
    } else {
        format!("{}%", fixed(value, 1))
    }
}

/// A whole number with its thousands apart: `203,000`.
pub fn count(n: u64) -> String {
    grouped(&n.to_string())
}

/// A whole number in the short form of tick marks and subtitles: `203k`, `134.5M`.
pub fn compact(n: f64) -> String {
    if !n.is_finite() {
        return NOT_AVAILABLE.to_owned();
    }
    let size = n.abs();
    for (unit, name) in [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")] {
        if size >= unit {
            if size >= unit * 1e4 {
                return significant(n, 3);
            }
            let text = fixed(n / unit, 1);
            let text = text.strip_suffix(".0").unwrap_or(&text);
            return format!("{text}{name}");
        }
    }
    let text = fixed(n, 1);
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// A time in words a reader takes in at a glance: `0.42 s`, `38 s`, `3 min 12 s`, `1 h 05 min`.
pub fn duration(seconds: f64) -> String {
    if !(0.0..=1e9).contains(&seconds) {
        return NOT_AVAILABLE.to_owned();
    }
    if seconds < 9.95 {
        return format!("{} s", significant(seconds, 2));
    }
    let whole = seconds.round() as u64;
    if whole < 60 {
        format!("{whole} s")
    } else if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", whole / 3600, (whole % 3600) / 60)
    }
}

/// An exponent in superscript digits.
fn superscript(n: i32) -> String {
    n.to_string()
        .chars()
        .map(|c| match c {
            '-' => '⁻',
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            '4' => '⁴',
            '5' => '⁵',
            '6' => '⁶',
            '7' => '⁷',
            '8' => '⁸',
            '9' => '⁹',
            _ => '⁰',
        })
        .collect()
}

/// Puts a comma between the thousands of the whole part.
fn grouped(text: &str) -> String {
    let (whole, rest) = match text.find('.') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let mut out = String::with_capacity(text.len() + whole.len() / 3);
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn significant_digits() {
        assert_eq!(significant(9.996, 3), "10.0");
        assert_eq!(significant(1234.5, 3), "1,234");
        assert_eq!(significant(0.999_96, 4), "1.000");
        assert_eq!(significant(12_345_678.0, 3), "1.23×10⁷");
        assert_eq!(significant(-0.004_56, 2), "−0.0046");
        assert_eq!(significant(0.0, 3), "0");
        assert_eq!(significant(f64::INFINITY, 3), NOT_AVAILABLE);
        assert_eq!(significant(f64::MIN_POSITIVE, 2), "2.2×10⁻³⁰⁸");
    }

    #[test]
    fn signs() {
        assert_eq!(signed(0.5, 2), "+0.50");
        assert_eq!(signed(-0.5, 2), "−0.50");
        assert_eq!(signed(0.0, 2), "0");
        assert_eq!(fixed(-0.001, 2), "0.00");
        assert_eq!(fixed(-1.5, 1), "−1.5");
    }

    #[test]
    fn counts_shares_times() {
        assert_eq!(count(203_000), "203,000");
        assert_eq!(count(12), "12");
        assert_eq!(compact(203_000.0), "203k");
        assert_eq!(compact(134_515_008.0), "134.5M");
        assert_eq!(compact(0.0), "0");
        assert_eq!(percent(0.0123), "1.23%");
        assert_eq!(percent(0.715), "71.5%");
        assert_eq!(percent(0.000_001), "<0.001%");
        assert_eq!(percent(f64::NAN), NOT_AVAILABLE);
        assert_eq!(duration(0.42), "0.42 s");
        assert_eq!(duration(59.7), "1 min 00 s");
        assert_eq!(duration(192.0), "3 min 12 s");
        assert_eq!(duration(3900.0), "1 h 05 min");
        assert_eq!(duration(f64::INFINITY), NOT_AVAILABLE);
    }
}
