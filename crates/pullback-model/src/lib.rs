//! Decoder-only language models: load, tokenize, run, hook, differentiate, generate.
//!
//! - [`ModelFiles`]: a GGUF file or a Hugging Face directory, checked; [`ModelConfig`], [`Tokenizer`],
//!   [`ChatTemplate`] come from it.
//! - [`Llama2c`]: a checkpoint of llama2.c and its tokenizer.
//! - [`Model`]: the weights as tensors. [`Model::run`] runs any slice of layers with [`Intervention`]s and
//!   recordings at [`Site`]s, differentiably; [`Model::generate`] makes text.

mod chat;
mod config;
mod error;
mod generate;
pub mod gguf;
mod huggingface;
mod intervention;
mod llama2c;
mod model;
mod run;
pub mod sampling;
mod site;
mod tokenizer;
mod weights;

pub use chat::{ChatTemplate, Message};
pub use config::{ModelConfig, Rotary};
pub use error::ModelError;
pub use generate::{GenerateOptions, NextToken, Sampling};
pub use intervention::{AddVector, Edit, Intervention, Rows, Zero};
pub use llama2c::Llama2c;
pub use model::Model;
pub use run::{Input, KeyValueCache, RunOptions, RunOutput};
pub use site::{Place, Site, SiteError};
pub use tokenizer::{DecodeStream, Tokenizer};
pub use weights::{ModelFiles, TensorDescription, WeightName};
