//! Activations whose true features are known, and how well a dictionary finds them.
//!
//! What can only be guessed at in a language model is given here. The design follows `SynthSAEBench` (Chanin and
//! Garriga-Alonso, arXiv 2602.14687); where it differs is said in [`World`].
//!
//! - [`World`]: an endless stream of activations of known features, made as [`WorldConfig`] says; it is a
//!   [`Feed`](pullback_activations::Feed) to train from.
//! - [`Forest`]: which feature fires only together with which, and how often each does.
//! - [`Judge`]: the scores of a dictionary beside the truth, [`Scores`]; [`score`] does it in one call.

mod config;
mod directions;
mod feed;
mod firing;
mod forest;
mod normal;
mod scores;
mod world;

pub use config::{Correlation, Hierarchy, Magnitudes, WorldConfig};
pub use forest::Forest;
pub use scores::{Judge, LatentScore, Scores, score};
pub use world::{PIECE_ROWS, Sample, World};
