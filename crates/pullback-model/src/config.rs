//! The sizes and constants of a model, read from its file and checked against each other.

use std::path::Path;

use pullback_kernels::fused::Activation;
use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::site::Site;

/// How the frequencies of a rotary embedding differ from `base^(−2i/dim)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// They do not.
    None,
    /// All are divided by a factor (position interpolation, arXiv 2306.15595).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3's: waves longer than `original_context / low_freq_factor` are slowed by `factor`, those shorter than
    /// `original_context / high_freq_factor` are kept, and those between are blended.
    Llama3 {
        /// The factor of the longest waves.
        factor: f64,
        /// Bounds the long waves.
        low_freq_factor: f64,
        /// Bounds the short waves.
        high_freq_factor: f64,
        /// Context of the model before it was extended.
        original_context: f64,
    },
    /// Each frequency is divided by its own factor, as GGUF files store them in `rope_freqs.weight`.
    Factors(Vec<f32>),
}

/// A rotary embedding. It turns the coordinates `i` and `i + dim/2` of each head together; of files that store them as
/// neighbours the rows of queries and keys are put in this order when they are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RotaryConfig {
    /// How many coordinates of each head are turned; even and at most `d_head`.
    pub dim: usize,
    /// Base of the frequencies.
    pub base: f32,
    /// How they are changed.
    pub scaling: RopeScaling,
    /// Base in blocks with a sliding window, where it differs (Gemma 3); there without scaling.
    pub local_base: Option<f32>,
}

impl RotaryConfig {
    /// The angle in radians that each pair turns from one position to the next, `[dim / 2]`; `local` for a block with
    /// a sliding window.
    pub fn frequencies(&self, local: bool) -> Vec<f64> {
        let local_base = self.local_base.filter(|_| local);
        let base = f64::from(local_base.unwrap_or(self.base));
        let plain = (0..self.dim / 2).map(|i| base.powf(-2.0 * i as f64 / self.dim as f64));
        if local_base.is_some() {
            return plain.collect();
        }
        match &self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => plain
                .map(|f| {
                    let wave = 2.0 * std::f64::consts::PI / f;
                    if wave < original_context / high_freq_factor {
                        f
                    } else if wave > original_context / low_freq_factor {
                        f / factor
                    } else {
                        let keep = (original_context / wave - low_freq_factor)
                            / (high_freq_factor - low_freq_factor);
                        (1.0 - keep) * f / factor + keep * f
                    }
                })
                .collect(),
            RopeScaling::Factors(factors) => plain
                .zip(factors)
                .map(|(f, &factor)| f / f64::from(factor))
                .collect(),
        }
    }
}

/// How a model normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// By the root mean square, with a gain.
    Rms,
    /// By mean and variance, with a gain and a bias.
    Layer,
}

/// Sizes and constants of a decoder-only language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says whether the family has a part"
)]
pub struct ModelConfig {
    /// The name that the file gives the model, or that of the file or directory.
    pub name: String,
    /// The model family: `llama`, `mistral`, `gpt2`, `gpt_neox`, `gemma2`, `gemma3`, `qwen2` or `qwen3`.
    pub architecture: String,
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the hidden layer of the MLP.
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
    /// The kind of its norms.
    pub norm: Norm,
    /// What the norms add to the mean square or the variance.
    pub norm_eps: f32,
    /// Activation function of the MLP.
    pub activation: Activation,
    /// Whether the MLP has a second factor, `f(gate) ∘ up`.
    pub gated_mlp: bool,
    /// Whether attention and MLP of a block both read the stream before the block.
    pub parallel_blocks: bool,
    /// Whether attention and MLP outputs are normalised before they are added to the stream.
    pub post_norms: bool,
    /// Whether queries and keys are normalised head by head.
    pub qk_norms: bool,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output of attention has a bias.
    pub attn_out_bias: bool,
    /// Whether the matrices of the MLP have biases.
    pub mlp_bias: bool,
    /// The rotary embedding; `None`: positions have learned vectors that are added to the embedding.
    pub rotary: Option<RotaryConfig>,
    /// Factor on the products of queries and keys.
    pub attention_scale: f32,
    /// Attention scores `s` become `cap · tanh(s / cap)`.
    pub attention_softcap: Option<f32>,
    /// So do the logits.
    pub final_softcap: Option<f32>,
    /// For each block, how many positions a query sees, its own the last of them; `None`: all before it.
    pub windows: Vec<Option<usize>>,
    /// Factor on the token embedding.
    pub embed_scale: Option<f32>,
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
        crate::weights::WeightName::all(self)
            .filter(|&name| !(self.tied_embedding && name == crate::weights::WeightName::Unembed))
            .map(|name| name.shape(self).iter().map(|&n| n as u64).product::<u64>())
            .sum()
    }

    /// All sites of the model, in the order in which they are computed.
    pub fn sites(&self) -> Vec<Site> {
        Site::all(self)
    }

    /// Checks the sizes against each other.
    ///
    /// `keys` gives the name under which the file states each of them, for the error.
    ///
    /// # Errors
    /// The first size that is zero, absurd or inconsistent with another.
    pub(crate) fn check(&self, path: &Path, keys: &SizeKeys) -> Result<(), ModelError> {
        let sizes = [
            (&keys.n_layers, self.n_layers, MAX_LAYERS),
            (&keys.d_model, self.d_model, MAX_SIZE),
            (&keys.d_mlp, self.d_mlp, MAX_SIZE),
            (&keys.n_heads, self.n_heads, MAX_SIZE),
            (&keys.n_kv_heads, self.n_kv_heads, MAX_SIZE),
            (&keys.d_head, self.d_head, MAX_SIZE),
            (&keys.d_vocab, self.d_vocab, MAX_SIZE),
            (&keys.n_ctx, self.n_ctx, MAX_CONTEXT),
        ];
        let malformed = |key: &str, problem: String| Err(ModelError::malformed(path, key, problem));
        for (key, size, most) in sizes {
            if size == 0 || size > most {
                return malformed(key, format!("{size} is not between 1 and {most}"));
            }
        }
        if self.d_q() > MAX_SIZE {
            return malformed(
                &keys.d_head,
                format!(
                    "{} heads of width {} are wider together than {MAX_SIZE}",
                    self.n_heads, self.d_head
                ),
            );
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return malformed(
                &keys.n_kv_heads,
                format!(
                    "{} does not divide the {} heads of {}",
                    self.n_kv_heads, self.n_heads, keys.n_heads
                ),
            );
        }
        if let Some(rotary) = &self.rotary {
            if rotary.dim > self.d_head || rotary.dim == 0 || !rotary.dim.is_multiple_of(2) {
                return malformed(
                    &keys.rope_dim,
                    format!(
                        "{} is not an even number from 2 up to the head width {}",
                        rotary.dim, self.d_head
                    ),
                );
            }
            for base in [Some(rotary.base), rotary.local_base].into_iter().flatten() {
                if !(base.is_finite() && base > 0.0) {
                    return malformed(&keys.rope_base, format!("{base} is not positive"));
                }
            }
            if rotary.frequencies(false).iter().any(|f| !f.is_finite()) {
                return malformed(
                    &keys.rope_base,
                    format!("{:?} gives no finite frequencies", rotary.scaling),
                );
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return malformed(&keys.norm_eps, format!("{} is negative", self.norm_eps));
        }
        if !(self.attention_scale.is_finite() && self.attention_scale > 0.0) {
            return malformed(
                "attention scale",
                format!("{} is not positive", self.attention_scale),
            );
        }
        for cap in [self.attention_softcap, self.final_softcap]
            .into_iter()
            .flatten()
        {
            if !(cap.is_finite() && cap > 0.0) {
                return malformed("soft cap", format!("{cap} is not positive"));
            }
        }
        if self.windows.contains(&Some(0)) {
            return malformed("sliding window", "a window of 0 tokens sees nothing".into());
        }
        Ok(())
    }
}

/// No size of a model is larger than this, so that the number of its weights fits in 64 bits.
const MAX_SIZE: usize = 1 << 20;
/// No model has more blocks than this.
const MAX_LAYERS: usize = 1 << 14;
/// Contexts of millions of positions are stated by real files.
const MAX_CONTEXT: usize = 1 << 30;

/// How a file calls the sizes of [`ModelConfig`].
pub(crate) struct SizeKeys {
    pub(crate) n_layers: String,
    pub(crate) d_model: String,
    pub(crate) d_mlp: String,
    pub(crate) n_heads: String,
    pub(crate) n_kv_heads: String,
    pub(crate) d_head: String,
    pub(crate) d_vocab: String,
    pub(crate) n_ctx: String,
    pub(crate) rope_dim: String,
    pub(crate) rope_base: String,
    pub(crate) norm_eps: String,
}
