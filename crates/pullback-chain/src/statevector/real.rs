//! The numbers amplitudes are made of.

use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Neg, Sub};
use std::sync::LazyLock;

use pulp::{Arch, NullaryFnOnce};

/// `f32` or `f64`.
pub trait Real:
    Copy
    + Debug
    + Default
    + PartialEq
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + Sum
    + Send
    + Sync
    + 'static
{
    /// The nearest value.
    fn of(x: f64) -> Self;

    /// The value as `f64`.
    fn f64(self) -> f64;

    /// `self · a + b`, rounded once.
    #[must_use]
    fn fused(self, a: Self, b: Self) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as Self
    }

    #[inline(always)]
    fn f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn fused(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
}

impl Real for f64 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }

    #[inline(always)]
    fn f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn fused(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
}

static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);

/// Runs work, and what is inlined into it, compiled for the widest vectors of this processor.
#[inline]
pub(super) fn vectorized<W: NullaryFnOnce>(work: W) -> W::Output {
    ARCH.dispatch(work)
}
