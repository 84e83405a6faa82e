//! What an expression means: a number, operators on one site and on two neighbouring ones.

use pullback_tensor::c64;

use crate::dense::{Matrix, ZERO, identity, kron, scaled};

/// `constant + one + two`: what stands at each site and each bond of a chain.
#[derive(Clone, Debug)]
pub struct Local {
    /// The number; it goes with the two-site term if there is one, else with the one-site term.
    pub constant: c64,
    /// The term of one site, `[d, d]`.
    pub one: Option<Matrix>,
    /// The term of two neighbouring sites, `[d², d²]`, the index of the left one slow.
    pub two: Option<Matrix>,
}

impl Local {
    pub(super) fn number(x: c64) -> Self {
        Self {
            constant: x,
            one: None,
            two: None,
        }
    }

    pub(super) fn on_one(a: Matrix) -> Self {
        Self {
            constant: ZERO,
            one: Some(a),
            two: None,
        }
    }

    pub(super) fn on_two(a: Matrix) -> Self {
        Self {
            constant: ZERO,
            one: None,
            two: Some(a),
        }
    }

    /// Whether it is a number alone.
    pub fn as_number(&self) -> Option<c64> {
        (self.one.is_none() && self.two.is_none()).then_some(self.constant)
    }

    pub(super) fn times(&self, x: c64) -> Self {
        Self {
            constant: self.constant * x,
            one: self.one.as_ref().map(|a| scaled(a, x)),
            two: self.two.as_ref().map(|a| scaled(a, x)),
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        let add = |a: Option<Matrix>, b: Option<Matrix>| match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (a, None) => a,
            (None, b) => b,
        };
        Self {
            constant: self.constant + other.constant,
            one: add(self.one, other.one),
            two: add(self.two, other.two),
        }
    }

    /// The operator on one site with its constant, where nothing acts on two.
    pub fn one_site(&self, d: usize) -> Option<Matrix> {
        if self.two.is_some() {
            return None;
        }
        let constant = scaled(&identity(d), self.constant);
        Some(match &self.one {
            Some(one) => one + constant,
            None => constant,
        })
    }

    /// The term of a bond in the bulk: the one-site terms shared evenly between the two bonds of each site.
    pub fn bond(&self, d: usize) -> Matrix {
        let mut sum = scaled(&identity(d * d), self.constant);
        if let Some(one) = &self.one {
            let half = scaled(one, c64::new(0.5, 0.0));
            sum += kron(&half, &identity(d)) + kron(&identity(d), &half);
        }
        if let Some(two) = &self.two {
            sum += two;
        }
        sum
    }
}
