//! The state vector: all amplitudes of a chain, for any local dimension, in `f64` or `f32`.
//!
//! Real and imaginary parts are kept in two arrays, so that the products of complex numbers become plain loops over
//! vectors. Site 0 is the slowest index. Gates are not applied one by one: a [`Plan`] gathers those of neighbouring sites
//! into passes, each of which brings a piece of the state into the cache, applies all its gates there and writes it back.

mod kernel;
mod measure;
mod pass;
mod plan;
mod real;
mod state;

pub(crate) use measure::entropy as entropy_of;
pub use plan::Plan;
pub use real::Real;
pub(crate) use state::free_memory;
pub use state::{Precision, StateVector};
