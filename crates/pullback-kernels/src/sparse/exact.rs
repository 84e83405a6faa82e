//! The values that codes have: one dot product of fixed order for each.
//!
//! What [`super::encode_top_k`] chooses in `f32`, it chooses by these values, however it came to look at them. So
//! codes are the same bits on every processor.

use super::dot;
use crate::Real;

/// The pre-activation `w·x + b`, the product by [`dot`].
#[inline(always)]
pub(super) fn value<T: Real>(x: &[T], weights: &[T], bias: T) -> T {
    dot(weights, x) + bias
}
