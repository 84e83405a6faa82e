//! Dense linear algebra in `f64` and complex `f64` for tensor networks and quantum chains.
//!
//! Libraries for decompositions fail now and then: an iteration does not converge, or a result is wrong without saying so.
//! Here each decomposition is a ladder: the fastest method first, its result checked at the price of a few products with
//! vectors, and the next method where the check fails. Input that is not finite is refused before anything is computed.
//!
//! - [`svd()`] and [`Svd`]: singular values with vectors; [`singular_values`] without.
//! - [`eigh`] and [`Eigh`]: eigenvalues and vectors of a Hermitian matrix.
//! - [`eigenvalues`]: those of any square matrix.
//! - [`qr`] and [`Qr`]: the thin decomposition.
//! - [`multiply`], [`GramWork`]: products into memory that is there, and right singular vectors from the Gram matrix.
//! - [`Rung`]: which method gave a result. [`svd_by`] and [`eigh_by`] ask for one.
//! - [`Scalar`]: `f64` or [`c64`]; [`Mat`] and [`MatRef`] are faer's matrices.

mod check;
mod eigh;
mod error;
mod general;
mod jacobi;
mod product;
mod qr;
mod scalar;
mod svd;

pub use eigh::{Eigh, eigh, eigh_by};
pub use error::LinalgError;
pub use faer::{Mat, MatMut, MatRef, c64};
pub use general::eigenvalues;
pub use product::{GramWork, Threads, multiply, multiply_add, multiply_adjoint};
pub use qr::{Qr, qr};
pub use scalar::Scalar;
pub use svd::{Rung, Svd, singular_values, svd, svd_by};
