//! Learned changes of a model, and what they mean in the basis of a dictionary.
//!
//! - [`Adapter`]: one of [`ResidualAdapter`] (`x ↦ x + W_out·act(W_in x + b_in)`), [`FeatureAdapter`] (a bias, a sparse
//!   matrix or low-rank factors over the features of a dictionary) and [`LoraAdapter`] (updates of weight matrices).
//! - [`train()`]: trains one on [`Sample`]s for an [`Objective`], by gradient through the blocks above the site.
//! - [`compare()`]: trains bases with matched numbers of parameters and measures how good and how readable they are.
//! - [`cotrain()`]: grows a model and its dictionaries together, and judges what that is worth.
//! - [`Pullback`]: a residual adapter's matrices read through a dictionary.
//! - [`explain()`]: measures what each feature's activation really does, compares it with the linear
//!   prediction and picks the features that changed most. [`explain_change`] does so for any adapter and for two checkpoints
//!   of a model, and measures what each change does to the loss.

mod adapter;
mod compare;
mod cotrain;
mod error;
mod explain;
mod feature;
mod lora;
mod objective;
mod pullback;
mod residual;
mod samples;
mod statistics;
mod tensor_file;
mod train;

pub use adapter::Adapter;
pub use compare::{CompareConfig, CompareInput, ComparedRow, DataSet, compare};
pub use cotrain::{
    COTRAIN_KIND, CotrainConfig, CotrainInput, CotrainResult, DictionarySummary, GrowPoint,
    GrownSeed, JudgedDictionary, MODEL_KIND, ModelSummary, Spread, Summary, cotrain,
};
pub use error::AdapterError;
pub use explain::{
    Change, ChangedFeature, Decomposition, Effects, ExplainConfig, ExplainInput, Explanation,
    FeatureJacobian, HeldOutText, HiddenUnit, Matching, Prediction, TextSequence, Words,
    agreement_on, explain, explain_change, explain_in_words, explain_on, matching_pursuit,
};
pub use feature::FeatureAdapter;
pub use feature::map::{Decoder, Projected, Support};
pub use lora::{LoraAdapter, LoraPart, lora_weights};
pub use objective::Objective;
pub use pullback::Pullback;
pub use residual::{ADAPTER_KIND, Activation, ResidualAdapter};
pub use samples::{Pair, Sample, built_in_samples, read_samples, split};
pub use statistics::spearman;
pub use train::{
    AdapterResult, AdapterTraining, Basis, Gap, Length, Sparsity, TrainConfig, TrainInput,
    TrainedAdapter, data_digest, held_out_answers, load_training, train,
};
