//! Sparse dictionaries: kinds, training, formats, metrics, feature pages.
//!
//! - [`Dictionary`]: everything with an encoder and a decoder; its codes are [`SparseCodes`].
//! - [`Sae`]: an autoencoder, transcoder or crosscoder of any kind; [`train()`] makes one from an activation store,
//!   [`train_all`] several from one pass over rows.
//! - [`Companion`]: a dictionary that learns together with the model beneath it.
//! - [`Sites`]: what a dictionary is judged on, by [`evaluate_reconstruction`] and [`cross_entropy_scores`].
//! - [`codes_file`]: activations and codes as safetensors files.
//! - [`formats`]: the files of other programs; [`saelens`] is also pullback's own layout on disk.
//! - [`metrics`]: explained variance, L0, density; [`cross_entropy_score`] with the model.
//! - [`FeaturePages`]: top activating examples and logit weights of chosen features.
//! - [`SurveyConfig`]: the same and more of all features, in two passes.
//! - [`interpret`]: features in words, and how far the words go.
//! - [`compare()`]: two dictionaries matched on the directions of their features.
//! - [`synthetic`]: activations of known features, and how well a dictionary finds them.

pub mod codes_file;
mod compare;
mod dictionary;
mod error;
mod features;
pub mod formats;
pub mod interpret;
mod judge;
mod kinds;
mod learn;
pub mod metrics;
mod sae;
mod sparsity;
mod splice;
mod splice_rows;
pub mod synthetic;
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
pub use judge::{Judged, Sites, evaluate_reconstruction};
pub use kinds::{JumpReluSparsity, KindConfig};
pub use learn::AuxLoss;
pub use pullback_kernels::sparse::SparseCodes;
pub use sae::{Normalization, Sae, SaeParts, Selection};
pub use splice::{
    CrossEntropy, Splice, cross_entropy_score, cross_entropy_scores, splice_transcoder,
};
pub use splice_rows::SplicedRows;
pub use train::{
    Companion, CompanionState, CurvePoint, DecoderNorm, InputNorm, Job, Met, SAE_KIND, SaeResult,
    Schedule, SiteResult, TrainConfig, Trained, Training, Wiring, load, load_training, train,
    train_all,
};
