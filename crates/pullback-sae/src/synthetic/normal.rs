//! The tail of the normal distribution.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// `P(g > t)` of a standard normal `g`.
pub(super) fn tail(t: f64) -> f64 {
    0.5 * libm::erfc(t * FRAC_1_SQRT_2)
}

/// The `t` with `P(g > t) = p`; infinite at 1, and where `p` is so small that it never happens (1e-300).
pub(super) fn tail_quantile(p: f64) -> f64 {
    if p <= 1e-300 {
        return f64::INFINITY;
    }
    if p >= 1.0 {
        return f64::NEG_INFINITY;
    }
    if p > 0.5 {
        return -tail_quantile(1.0 - p);
    }
    // Newton's method for the logarithm of the tail, which is concave. The tail is at most exp(-t²/2)/2, so that this start
    // is right of the solution, and from there the method does not overshoot.
    let mut t = (-2.0 * (2.0 * p).ln()).max(0.0).sqrt();
    for _ in 0..60 {
        let q = tail(t);
        let density = (-0.5 * t * t).exp() / (2.0 * PI).sqrt();
        let step = q / density * (q / p).ln();
        t += step;
        if step.abs() <= 1e-15 * t.abs().max(1.0) {
            break;
        }
    }
    t
}

#[cfg(test)]
mod tests {
    use super::{tail, tail_quantile};

    #[test]
    fn quantiles_are_those_of_tables() {
        // Abramowitz and Stegun, table 26.5, and its continuation in the tail.
        for (p, t) in [
            (0.5, 0.0),
            (0.25, 0.674_489_750_196_081_7),
            (0.025, 1.959_963_984_540_054),
            (1e-3, 3.090_232_306_167_813_5),
            (1e-9, 5.997_807_014_856_28),
        ] {
            let found: f64 = tail_quantile(p);
            assert!((found - t).abs() < 1e-9, "{p}: {found} is not {t}");
            assert!((tail_quantile(1.0 - p) + t).abs() < 1e-6);
        }
        for exponent in 1..300 {
            let p = 10.0_f64.powi(-exponent);
            let back = tail(tail_quantile(p));
            assert!((back / p - 1.0).abs() < 1e-9, "{p} became {back}");
        }
        assert_eq!(tail_quantile(0.0), f64::INFINITY);
        assert_eq!(tail_quantile(1.0), f64::NEG_INFINITY);
    }
}
