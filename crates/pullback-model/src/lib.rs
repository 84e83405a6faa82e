//! Decoder-only language models: load, tokenize, run, hook, differentiate, generate.
//!
//! - [`ModelFiles`]: a GGUF file or a Hugging Face directory, checked; [`ModelConfig`], [`Tokenizer`],
//!   [`ChatTemplate`] come from it.
//! - [`Llama2c`]: a checkpoint of llama2.c and its tokenizer.
//! - [`Model`]: the weights as tensors. [`Model::run`] runs any slice of layers with [`Intervention`]s and
//!   recordings at [`Site`]s, differentiably; [`Model::generate`] makes text.
//! - [`NewModel`] and [`Model::set_weights`]: models that are to be trained; [`save_like`] writes them.
//! - [`WeightUpdate`]: low-rank changes of weight matrices, beside the weights in a run or merged into them.
//! - [`analysis`]: logit lens, direct logit attribution and activation patching.

pub mod analysis;
mod block;
mod cache;
mod chat;
mod config;
mod derivatives;
mod error;
mod family;
mod files;
mod flow;
mod generate;
pub mod gguf;
mod huggingface;
mod intervention;
mod llama2c;
mod model;
mod pass;
mod run;
mod sampling;
mod site;
mod tokenizer;
mod weight_update;
mod weights;
mod weights_in_memory;

pub use cache::KeyValueCache;
pub use chat::{ChatTemplate, Message};
pub use config::{ModelConfig, Norm, RopeScaling, RotaryConfig};
pub use derivatives::ForwardMode;
pub use error::ModelError;
pub use files::{ModelFiles, TensorDescription};
pub use flow::symmetric_tangent;
pub use generate::{Emission, Ending, GenerateOptions, Generated, NextToken};
pub use huggingface::write::{NewModel, save_like};
pub use intervention::{
    AddVector, Edit, Intervention, Positions, ProjectOut, Replace, Rows, Scale, Zero,
};
pub use llama2c::Llama2c;
pub use model::{Model, Weights};
pub use run::{Input, RunOptions, RunOutput};
pub use sampling::{Piece, Sampling, StopStrings, choose, distribution};
pub use site::{Place, Site, SiteError};
pub use tokenizer::{DecodeStream, Tokenizer};
pub use weight_update::WeightUpdate;
pub use weights::WeightName;
