//! Fused operations on the CPU, where measurement asked for them.
//!
//! Two families:
//!
//! - [`fused`]: the operations of a transformer block ([`fused::linear`], [`fused::rms_norm`],
//!   [`fused::layer_norm`], [`fused::rotary`], [`fused::attention`], [`fused::activate`], [`fused::gated`],
//!   [`fused::cross_entropy`]) on Burn tensors, with handwritten backward passes on the CPU backend; [`fused::composed`] is the same from
//!   Burn's own operations, for other devices and as the oracle of the tests.
//! - [`sparse`]: the products of dictionary learning that touch active features only.
//!
//! [`map_file`] maps a file into memory. This is the only crate that may use `unsafe`.

#[cfg(feature = "allocator")]
pub mod allocator;
pub mod fused;
mod map;
mod matmul;
mod real;
mod simd;
pub mod sparse;
pub mod stored;
mod team;

pub use map::{FileBytes, map_file};
pub use matmul::{Matrix, MatrixMut, Threads, matmul, product};
pub use real::Real;
pub use simd::{on_threads, vectorized};
pub use stored::{Format, StoredError, StoredMatrix};
pub use team::standing_by;
