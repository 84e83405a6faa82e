//! Suzuki-Trotter schemes: `exp(dt (A + B))` as a product of `exp(a_i dt A)` and `exp(b_i dt B)`.
//!
//! Coefficients of the optimised ones are those of Barthel and Zhang, arXiv:1901.04974; [`Scheme::order`] does not trust
//! them but works the order conditions out.

use crate::error::ChainError;
use crate::expression::parse_scalar;

/// A scheme. Factors alternate, beginning with the even bonds: `a_1, b_1, a_2, b_2, …`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheme {
    name: String,
    a: Vec<f64>,
    b: Vec<f64>,
}

/// Names of the schemes that have one.
pub const SCHEMES: [&str; 6] = [
    "first",
    "leapfrog2",
    "optimized2-5",
    "suzuki4",
    "optimized4-11",
    "symmetric6-19",
];

/// Words of up to this many letters are compared to find the order.
const DEGREE: u32 = 7;

impl Scheme {
    /// From a name of [`SCHEMES`], or from coefficients: `a=0.5,0.5;b=1` for the factors of a symmetric composition,
    /// `leapfrog=w1,w2,…` for the weights of leapfrog steps; both are written in full, and each kind sums to one.
    ///
    /// # Errors
    /// The name is unknown, or the coefficients are not finite, do not sum to one, or read otherwise backwards.
    pub fn parse(text: &str) -> Result<Self, ChainError> {
        let text = text.trim();
        if let Some(scheme) = Self::named(text) {
            return Ok(scheme);
        }
        let bad = |expected: String| ChainError::value("the scheme", format!("`{text}`"), expected);
        let list = |text: &str| -> Result<Vec<f64>, ChainError> {
            text.split(',').map(|x| parse_scalar(x.trim())).collect()
        };
        if let Some(weights) = text.strip_prefix("leapfrog=") {
            let weights = list(weights)?;
            check("weights", &weights)?;
            return Ok(Self::of_leapfrogs(text, &weights));
        }
        if let Some((a, b)) = text
            .strip_prefix("a=")
            .and_then(|rest| rest.split_once(';'))
        {
            let Some(b) = b.trim().strip_prefix("b=") else {
                return Err(bad("expected `a=…;b=…`".to_owned()));
            };
            let (a, b) = (list(a)?, list(b)?);
            check("a", &a)?;
            check("b", &b)?;
            if a.len() != b.len() + 1 {
                return Err(bad(format!(
                    "expected one more of a than of b, found {} and {}",
                    a.len(),
                    b.len()
                )));
            }
            return Ok(Self {
                name: text.to_owned(),
                a,
                b,
            });
        }
        Err(bad(format!(
            "expected {}, `a=…;b=…` or `leapfrog=…`",
            SCHEMES.join(", ")
        )))
    }

    fn named(name: &str) -> Option<Self> {
        let with = |a: &[f64], b: &[f64]| Self {
            name: name.to_owned(),
            a: a.to_vec(),
            b: b.to_vec(),
        };
        Some(match name {
            "first" => with(&[1.0], &[1.0]),
            "leapfrog2" => with(&[0.5, 0.5], &[1.0]),
            "optimized2-5" => {
                let a = 0.211_324_865_405_187;
                with(&[a, 1.0 - 2.0 * a, a], &[0.5, 0.5])
            }
            "suzuki4" => {
                let t = 1.0 / (4.0 - 4.0_f64.cbrt());
                Self::of_leapfrogs(name, &[t, t, 1.0 - 4.0 * t, t, t])
            }
            "optimized4-11" => {
                let (a1, a2) = (0.095_848_502_741_203_68, -0.078_111_158_921_637_92);
                let (b1, b2) = (0.426_524_661_315_876_2, -0.120_395_269_455_097_27);
                let (a3, b3) = (0.5 - a1 - a2, 1.0 - 2.0 * (b1 + b2));
                with(&[a1, a2, a3, a3, a2, a1], &[b1, b2, b3, b2, b1])
            }
            "symmetric6-19" => {
                let w = [
                    0.187_930_692_626_516_7,
                    0.5553,
                    0.128_370_358_884_236_54,
                    -0.843_152_753_574_712_6,
                ];
                let middle = 1.0 - 2.0 * w.iter().sum::<f64>();
                let mut all = w.to_vec();
                all.push(middle);
                all.extend(w.iter().rev());
                Self::of_leapfrogs(name, &all)
            }
            _ => return None,
        })
    }

    /// Leapfrog steps of these weights one after the other; half factors that meet are one.
    fn of_leapfrogs(name: &str, weights: &[f64]) -> Self {
        let mut a = Vec::with_capacity(weights.len() + 1);
        let mut before = 0.0;
        for &w in weights {
            a.push(0.5 * (before + w));
            before = w;
        }
        a.push(0.5 * before);
        Self {
            name: name.to_owned(),
            a,
            b: weights.to_vec(),
        }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The factors of one step in the order in which they act: whether on even bonds, and the coefficient of `dt`.
    pub fn factors(&self) -> Vec<(bool, f64)> {
        let mut out = Vec::with_capacity(self.a.len() + self.b.len());
        for i in 0..self.a.len().max(self.b.len()) {
            out.extend(self.a.get(i).map(|&a| (true, a)));
            out.extend(self.b.get(i).map(|&b| (false, b)));
        }
        out
    }

    /// The factors of several steps; neighbours on the same bonds are one.
    pub fn factors_of(&self, steps: usize) -> Vec<(bool, f64)> {
        let mut out: Vec<(bool, f64)> = Vec::new();
        for _ in 0..steps {
            for (even, x) in self.factors() {
                match out.last_mut() {
                    Some((before, sum)) if *before == even => *sum += x,
                    _ => out.push((even, x)),
                }
            }
        }
        out
    }

    /// The order: the error of a fixed time falls as `dt^order`. Found by expanding the product in words of two letters
    /// that do not commute and comparing with `exp(A + B)`; orders above 6 are called 7.
    pub fn order(&self) -> usize {
        let mut series = vec![0.0; (1 << (DEGREE + 1)) - 1];
        series[0] = 1.0;
        for (even, x) in self.factors() {
            series = times_exponential(&series, even, x);
        }
        let mut factorial = 1.0;
        for degree in 1..=DEGREE {
            factorial *= f64::from(degree);
            let words = &series[(1 << degree) - 1..(1 << (degree + 1)) - 1];
            if words.iter().any(|x| (x - 1.0 / factorial).abs() > 1e-11) {
                return degree as usize - 1;
            }
        }
        DEGREE as usize
    }
}

/// A series over words, those of `n` letters from index `2ⁿ − 1` on, times `exp(x L)`.
fn times_exponential(series: &[f64], even: bool, x: f64) -> Vec<f64> {
    let letter = usize::from(!even);
    let mut out = series.to_vec();
    for degree in 1..=DEGREE {
        for word in 0..1_usize << degree {
            let (mut rest, mut factor) = (word, 1.0);
            for taken in 1..=degree {
                if rest & 1 != letter {
                    break;
                }
                rest >>= 1;
                factor *= x / f64::from(taken);
                out[(1 << degree) - 1 + word] +=
                    factor * series[(1 << (degree - taken)) - 1 + rest];
            }
        }
    }
    out
}

fn check(name: &str, x: &[f64]) -> Result<(), ChainError> {
    let value = || format!("{x:?}");
    let sum: f64 = x.iter().sum();
    if (sum - 1.0).abs() > 1e-12 {
        return Err(ChainError::value(
            format!("`{name}` of the scheme"),
            value(),
            format!("the sum is {sum}, and must be 1"),
        ));
    }
    if x.iter()
        .zip(x.iter().rev())
        .any(|(x, y)| (x - y).abs() > 1e-14)
    {
        return Err(ChainError::value(
            format!("`{name}` of the scheme"),
            value(),
            "it must read the same backwards",
        ));
    }
    if x.len() > 1000 {
        return Err(ChainError::value(
            format!("the number of `{name}` of the scheme"),
            x.len(),
            "expected 1000 at most",
        ));
    }
    Ok(())
}
