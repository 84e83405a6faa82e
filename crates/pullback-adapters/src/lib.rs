//! Learned changes of a model, and what they mean in the basis of a dictionary.
//!
//! - [`ResidualAdapter`]: `x ↦ x + W_out·act(W_in x + b_in)` at a site of the residual stream.
//! - [`train()`]: trains one on question-answer [`Pair`]s by gradient through the layers above the site.
//! - [`Pullback`]: the adapter's matrices read through a dictionary.
//! - [`explain()`]: measures what each feature's activation really does, compares it with the linear
//!   prediction and picks the features that changed most.

mod error;
mod explain;
mod instruct;
mod pullback;
mod residual;
mod statistics;
mod train;

pub use error::AdapterError;
pub use explain::{ChangedFeature, Explanation, HiddenUnit, agreement_on, explain, explain_on};
pub use instruct::{Pair, built_in_pairs, read_pairs, split_pairs};
pub use pullback::Pullback;
pub use residual::{ADAPTER_KIND, Activation, ResidualAdapter};
pub use statistics::spearman;
pub use train::{
    AdapterResult, AdapterTraining, TrainConfig, TrainedAdapter, data_digest, held_out_answers,
    load_training, train,
};
