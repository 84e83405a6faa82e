//! Products of dictionary learning that touch active features only.
//!
//! A batch of sparse codes is a compressed-row matrix, token × feature ([`SparseCodes`]). Matrices of a
//! dictionary are kept one row a feature, so that every touch reads neighbouring memory.

mod choose;
mod codes;
mod encode;
mod exact;
mod prepared;
mod product;
mod screen;
mod select;

pub use codes::{ByFeature, SparseCodes};
pub use encode::{Candidates, Encoded, Screening, encode_each, encode_top_k, encode_where};
pub use prepared::{PreparedEncoder, Way};
pub use product::{add_scaled, decode, dot, dots_with_rows};
pub use select::select_top;
