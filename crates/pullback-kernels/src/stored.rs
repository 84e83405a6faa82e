//! Weight matrices that stay as their file stores them, and products with them.
//!
//! [`StoredMatrix`] is a view of bytes, which may lie in a mapped file, as a matrix in one of the [`Format`]s. Its
//! values are worked out when they are used: [`StoredMatrix::to_vec`], [`StoredMatrix::rows_into`] and
//! [`StoredMatrix::gather`] write them down, and [`crate::fused::linear_stored`] and
//! [`crate::fused::cross_entropy_stored`] compute with them. A value in `f32` has the same bits whichever way it is
//! come by.
//!
//! The layouts are in `decode`, written once over the vector operations of `lanes`; the products are in `product`.

mod decode;
mod format;
mod lanes;
mod matrix;
pub(crate) mod product;
#[cfg(test)]
mod tests;

pub use format::Format;
pub use matrix::{StoredError, StoredMatrix};
pub use product::linear;
