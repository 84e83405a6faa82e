//! Text in, activations on disk out.
//!
//! - [`Corpus`]: documents from text files, JSON or JSON Lines, in named groups.
//! - [`Plan`]: which sequences of tokens are harvested, and which are held out.
//! - [`harvest`]: runs a model up to a site and writes an [`ActivationStore`]; [`harvest_sites`] one for each of several.
//! - [`ActivationStore`]: activations on disk, memory-mapped, with token, position, sequence and flags of
//!   each row.
//! - [`Feed`]: rows to train on, in order: of stores however large ([`StoreFeed`]), or of a running model ([`ModelFeed`]);
//!   [`read_ahead`] makes them while others are used.

mod corpus;
mod error;
mod feed;
mod harvest;
mod model_feed;
mod plan;
mod sequences;
mod store;
mod store_feed;
mod text_store;

pub use corpus::{Corpus, Document};
pub use error::ActivationError;
pub use feed::{Extent, Feed, FeedOrigin, FeedSite, Piece, Position, RowReader, read_ahead};
pub use harvest::{HarvestConfig, HarvestResult, STORES_KIND, harvest, harvest_sites, open_stores};
pub use model_feed::ModelFeed;
pub use plan::{Plan, PlanConfig, Sequence};
pub use store::{ActivationStore, Flags, STORE_KIND, StoreInfo};
pub use store_feed::StoreFeed;
