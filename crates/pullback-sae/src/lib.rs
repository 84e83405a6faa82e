//! Sparse dictionaries: kinds, training, formats, metrics, feature pages.
//!
//! - [`Dictionary`]: everything with an encoder and a decoder; its codes are [`SparseCodes`].
//! - [`Sae`]: an autoencoder or transcoder of any kind; [`train()`] makes one from an activation store.
//! - [`codes_file`]: activations and codes as safetensors files.
//! - [`formats`]: the files of other programs; [`saelens`] is also pullback's own layout on disk.
//! - [`metrics`]: explained variance, L0, density; [`cross_entropy_score`] with the model.
//! - [`FeaturePages`]: top activating examples and logit weights of chosen features.
//! - [`SurveyConfig`]: the same and more of all features, in two passes.
//! - [`compare()`]: two dictionaries matched on the directions of their features.

pub mod codes_file;
mod compare;
mod dictionary;
mod error;
mod features;
pub mod formats;
mod kinds;
mod learn;
pub mod metrics;
mod sae;
mod splice;
mod train;

pub use compare::{
    Assignment, CompareConfig, Comparison, MatchedPair, Side, assign_dense, assign_sparse, compare,
};
pub use dictionary::Dictionary;
pub use error::SaeError;
pub use features::{
    Band, CoActive, Example, FeaturePage, FeaturePages, Passage, Survey, SurveyConfig,
    SurveyedFeature, SurveyedFeatures, TokenWeights,
};
pub use formats::saelens;
pub use kinds::{JumpReluSparsity, KindConfig};
pub use learn::AuxLoss;
pub use pullback_kernels::sparse::SparseCodes;
pub use sae::{Normalization, Sae, SaeParts, Selection};
pub use splice::{CrossEntropy, Splice, cross_entropy_score};
pub use train::{
    CurvePoint, SAE_KIND, SaeResult, Schedule, TrainConfig, Trained, Training,
    evaluate_reconstruction, load, load_training, train, train_watched,
};
