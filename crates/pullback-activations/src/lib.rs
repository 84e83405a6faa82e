//! Text in, activations on disk out.
//!
//! - [`Corpus`]: documents from text files, JSON or JSON Lines, in named groups.
//! - [`Plan`]: which sequences of tokens are harvested, and which are held out.
//! - [`harvest`]: runs a model up to a site and writes an [`ActivationStore`].
//! - [`ActivationStore`]: activations on disk, memory-mapped, with token, position, sequence and flags of
//!   each row.

mod corpus;
mod error;
mod harvest;
mod plan;
mod store;

pub use corpus::{Corpus, Document};
pub use error::ActivationError;
pub use harvest::{HarvestConfig, HarvestResult, harvest};
pub use plan::{Plan, PlanConfig, Sequence};
pub use store::{ActivationStore, Flags, STORE_KIND, StoreInfo};
