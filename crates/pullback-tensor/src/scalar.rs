//! The numbers that matrices hold.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Mul, Neg, Sub, SubAssign};

use faer::c64;
use faer::traits::ComplexField;

/// `f64` or [`c64`].
pub trait Scalar:
    ComplexField<Real = f64>
    + Copy
    + Debug
    + PartialEq
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + Send
    + Sync
    + 'static
{
    /// A real number as this type.
    fn from_real(x: f64) -> Self;

    /// The complex conjugate.
    #[must_use]
    fn conjugate(self) -> Self;

    /// The real part.
    fn real(self) -> f64;

    /// `|x|²`.
    fn norm_squared(self) -> f64;

    /// `|x|`, without overflow on the way.
    fn modulus(self) -> f64;

    /// The product with a real number.
    #[must_use]
    fn times(self, x: f64) -> Self;

    /// Whether no part of it is infinite or not a number.
    fn finite(self) -> bool;
}

impl Scalar for f64 {
    fn from_real(x: f64) -> Self {
        x
    }

    fn conjugate(self) -> Self {
        self
    }

    fn real(self) -> f64 {
        self
    }

    fn norm_squared(self) -> f64 {
        self * self
    }

    fn modulus(self) -> f64 {
        self.abs()
    }

    fn times(self, x: f64) -> Self {
        self * x
    }

    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Scalar for c64 {
    fn from_real(x: f64) -> Self {
        Self::new(x, 0.0)
    }

    fn conjugate(self) -> Self {
        self.conj()
    }

    fn real(self) -> f64 {
        self.re
    }

    fn norm_squared(self) -> f64 {
        self.norm_sqr()
    }

    fn modulus(self) -> f64 {
        self.re.hypot(self.im)
    }

    fn times(self, x: f64) -> Self {
        Self::new(self.re * x, self.im * x)
    }

    fn finite(self) -> bool {
        self.re.is_finite() && self.im.is_finite()
    }
}
