//! Which features can be among the `k` largest, from scores that are only nearly right.
//!
//! A cheap product gives each pre-activation a score `s` with a bound `e` on its error. At least `k` features reach
//! the `k`-th largest `s − e`, so one whose `s + e` lies below it is not among the `k` largest. The few others are
//! computed anew ([`super::exact`]).
//!
//! # The bound
//!
//! The cheap product is that of rounded vectors `x̂`, `ŵ`, so that by Cauchy and Schwarz
//!
//! `|x·w − x̂·ŵ| = |(x − x̂)·w + x̂·(w − ŵ)| ≤ ‖x − x̂‖‖w‖ + ‖x̂‖‖w − ŵ‖`.
//!
//! Roundings of sums, those of the cheap product and those of the value that the score stands for, add
//! `γ·max(‖x‖, ‖x̂‖)·max(‖w‖, ‖ŵ‖)`; what is made of the sum adds `2⁻²¹|b|`, and what is below the normal
//! numbers of `f32` a few times `2⁻¹²⁶` a term. Norms are rounded up.
//!
//! With `p ≥ ‖w‖, ‖ŵ‖`, `q ≥ ‖w − ŵ‖` and `c` of each feature, `α ≥ ‖x − x̂‖ + γ·max(‖x‖, ‖x̂‖)` and `β ≥ ‖x̂‖` of
//! each row, the bound is `e = αp + βq + c`. Features whose numbers are not finite have an infinite bound; rows
//! whose bounds could overflow are not screened.

mod block;
mod bounds;
#[cfg(target_arch = "x86_64")]
pub(super) mod bytes;
mod reached;
#[cfg(target_arch = "x86_64")]
mod rotation;
#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    target_pointer_width = "64"
))]
pub(super) mod tiles;

use crate::simd::vectorized;
pub(super) use block::Block;
pub(super) use bounds::{Bounds, Lengths, units_of_value};
use reached::Plain;

/// Features that are screened together, and rows of a product's block.
pub(super) const PANEL: usize = 32;
/// Groups that share a vector.
const LANES: usize = 16;

/// Features that can be among the `k` largest of each row, where products of all rows with all features are there:
/// `sums`, one row after `bounds.panels() · 32` numbers.
pub(super) fn from_products(block: &mut Block, bounds: &Bounds, sums: &[f32]) {
    let stride = bounds.panels() * PANEL;
    let rows = sums.len() / stride;
    vectorized(
        #[inline(always)]
        || {
            for panel in 0..bounds.panels() {
                for row in (0..rows).step_by(PANEL) {
                    let sums = &sums[row * stride + panel * PANEL..];
                    block.take(bounds, panel, row, sums, stride, Plain);
                }
                block.done(panel, Plain);
            }
        },
    );
}

#[cfg(all(
    test,
    target_arch = "x86_64",
    target_os = "linux",
    target_pointer_width = "64"
))]
mod tests;
