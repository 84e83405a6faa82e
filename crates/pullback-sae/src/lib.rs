//! Sparse dictionaries: kinds, training, formats, metrics, feature pages.
//!
//! - [`Dictionary`]: everything with an encoder and a decoder; its codes are [`SparseCodes`].
//! - [`Sae`]: an autoencoder or transcoder of any kind; [`train()`] makes one from an activation store.
//! - [`saelens`]: the SAELens layout on disk.
//! - [`metrics`]: explained variance, L0, density; [`cross_entropy_score`] with the model.
//! - [`FeaturePages`]: top activating examples and logit weights of chosen features.
//! - [`SurveyConfig`]: the same and more of all features, in two passes.
//! - [`compare()`]: two dictionaries matched on the directions of their features.

mod compare;
mod dictionary;
mod error;
mod features;
pub mod metrics;
mod sae;
pub mod saelens;
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
pub use pullback_kernels::sparse::SparseCodes;
pub use sae::{Normalization, Sae, SaeParts, Selection};
pub use splice::{CrossEntropy, Splice, cross_entropy_score};
pub use train::{
    CurvePoint, SAE_KIND, SaeResult, TrainConfig, Trained, Training, evaluate_reconstruction, load,
    load_training, train,
};
