//! The language in which operators and Hamiltonians are written.
//!
//! ```text
//! sum     = product (("+" | "-") product)*
//! product = factor (("*" | "/") factor)*          a number may stand right before a factor: 2ZZ
//! factor  = ("-" | "+") factor | atom ("^" whole number)?
//! atom    = number | "i" | "pi" | operators | function "(" sum ")" | "(" sum ")"
//! ```
//!
//! `operators` is one name, an operator on a site, or two written together, a product on two neighbouring sites: `ZZ`,
//! `SxSx`, `XI`. `*` between operators of one site is their product on that site, and between operators of two sites that
//! on those two. Functions are `exp`, `sqrt`, `sin` and `cos`; `exp` takes operators too. Where an exponent has terms on
//! one site beside those on two, each is shared evenly between both sites' bonds, as in the bulk of a Hamiltonian.

mod local;
mod parse;
mod token;

pub use local::Local;
pub use parse::{parse_operator, parse_scalar};
