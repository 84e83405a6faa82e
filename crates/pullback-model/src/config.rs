//! The sizes and constants of a model, read from its file and checked against each other.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// Which coordinates of a head a rotary embedding turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotary {
    /// Pairs `(2i, 2i + 1)`: GGUF files of the `llama` architecture, whose Q and K rows are permuted for it.
    Interleaved,
    /// Pairs `(i, i + rope_dim / 2)`: Hugging Face checkpoints.
    HalfSplit,
}

/// Sizes and constants of a decoder-only language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The name that the file gives the model, or that of the file or directory.
    pub name: String,
    /// The model family: `llama`.
    pub architecture: String,
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the hidden layer of the gated MLP.
    pub d_mlp: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub d_head: usize,
    /// Number of rows of the embedding; at least the number of tokens of the tokenizer.
    pub d_vocab: usize,
    /// Number of positions that the model was made for.
    pub n_ctx: usize,
    /// Base of the rotary embedding: the pair `i` turns by `position / rope_base^(2i / rope_dim)` radians.
    pub rope_base: f32,
    /// How many coordinates of each head are turned; even and at most `d_head`.
    pub rope_dim: usize,
    /// Which coordinates are turned together.
    pub rotary: Rotary,
    /// What the root-mean-square norms add to the mean square.
    pub norm_eps: f32,
    /// Whether the output matrix is the embedding itself.
    pub tied_embedding: bool,
}

impl ModelConfig {
    /// Width of all query heads together, `n_heads · d_head`.
    pub fn d_q(&self) -> usize {
        self.n_heads * self.d_head
    }

    /// Width of all key (or value) heads together, `n_kv_heads · d_head`.
    pub fn d_kv(&self) -> usize {
        self.n_kv_heads * self.d_head
    }

    /// Number of weights, a tied embedding counted once.
    pub fn n_parameters(&self) -> u64 {
        let [d, mlp, q, kv, vocab] = [
            self.d_model,
            self.d_mlp,
            self.d_q(),
            self.d_kv(),
            self.d_vocab,
        ]
        .map(|n| n as u64);
        let block = 2 * d + 2 * d * q + 2 * d * kv + 3 * d * mlp;
        let matrices = if self.tied_embedding { 1 } else { 2 };
        matrices * vocab * d + d + self.n_layers as u64 * block
    }

    /// Checks the sizes against each other.
    ///
    /// `keys` gives the name under which the file states each of them, for the error.
    ///
    /// # Errors
    /// The first size that is zero, absurd or inconsistent with another.
    pub(crate) fn check(&self, path: &Path, keys: &SizeKeys) -> Result<(), ModelError> {
        let sizes = [
            (keys.n_layers, self.n_layers),
            (keys.d_model, self.d_model),
            (keys.d_mlp, self.d_mlp),
            (keys.n_heads, self.n_heads),
            (keys.n_kv_heads, self.n_kv_heads),
            (keys.d_head, self.d_head),
            (keys.d_vocab, self.d_vocab),
            (keys.n_ctx, self.n_ctx),
            (keys.rope_dim, self.rope_dim),
        ];
        for (key, size) in sizes {
            if size == 0 || size > MAX_SIZE {
                return Err(ModelError::malformed(
                    path,
                    key,
                    format!("{size} is not between 1 and {MAX_SIZE}"),
                ));
            }
        }
        if self.d_q() > MAX_SIZE {
            return Err(ModelError::malformed(
                path,
                keys.d_head,
                format!(
                    "{} heads of width {} are wider together than {MAX_SIZE}",
                    self.n_heads, self.d_head
                ),
            ));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(ModelError::malformed(
                path,
                keys.n_kv_heads,
                format!(
                    "{} does not divide the {} heads of {}",
                    self.n_kv_heads, self.n_heads, keys.n_heads
                ),
            ));
        }
        if self.rope_dim > self.d_head || !self.rope_dim.is_multiple_of(2) {
            return Err(ModelError::malformed(
                path,
                keys.rope_dim,
                format!(
                    "{} is not an even number up to the head width {}",
                    self.rope_dim, self.d_head
                ),
            ));
        }
        if !(self.rope_base.is_finite() && self.rope_base > 0.0) {
            return Err(ModelError::malformed(
                path,
                keys.rope_base,
                format!("{} is not positive", self.rope_base),
            ));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(ModelError::malformed(
                path,
                keys.norm_eps,
                format!("{} is negative", self.norm_eps),
            ));
        }
        Ok(())
    }
}

/// No size of a model is larger than this, so that the number of its weights fits in 64 bits.
const MAX_SIZE: usize = 1 << 20;

/// How a file format calls the sizes of [`ModelConfig`].
pub(crate) struct SizeKeys {
    pub(crate) n_layers: &'static str,
    pub(crate) d_model: &'static str,
    pub(crate) d_mlp: &'static str,
    pub(crate) n_heads: &'static str,
    pub(crate) n_kv_heads: &'static str,
    pub(crate) d_head: &'static str,
    pub(crate) d_vocab: &'static str,
    pub(crate) n_ctx: &'static str,
    pub(crate) rope_dim: &'static str,
    pub(crate) rope_base: &'static str,
    pub(crate) norm_eps: &'static str,
}
