//! What a GGUF file says about a model of the `llama` architecture.

use std::collections::HashSet;

use super::{Gguf, Value};
use crate::config::{ModelConfig, Rotary, SizeKeys};
use crate::error::ModelError;
use crate::weights::WeightName;

const KEYS: SizeKeys = SizeKeys {
    n_layers: "llama.block_count",
    d_model: "llama.embedding_length",
    d_mlp: "llama.feed_forward_length",
    n_heads: "llama.attention.head_count",
    n_kv_heads: "llama.attention.head_count_kv",
    d_head: "llama.attention.key_length",
    d_vocab: "llama.vocab_size",
    n_ctx: "llama.context_length",
    rope_dim: "llama.rope.dimension_count",
    rope_base: "llama.rope.freq_base",
    norm_eps: "llama.attention.layer_norm_rms_epsilon",
};

impl Gguf {
    /// The configuration in the metadata of a GGUF file.
    ///
    /// # Errors
    /// When the architecture or one of its settings is not supported, a key is missing, or a value is absurd.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        let path = self.path();
        let keys = &KEYS;
        let architecture = self.string("general.architecture")?.ok_or_else(|| {
            ModelError::malformed(path, "general.architecture", "this metadata key is missing")
        })?;
        if architecture != "llama" {
            return Err(ModelError::UnsupportedArchitecture {
                path: path.to_owned(),
                found: architecture.to_owned(),
                supported: "llama".into(),
            });
        }
        refuse_variants(self)?;

        let size = |key: &str| -> Result<Option<usize>, ModelError> {
            Ok(self
                .unsigned(key)?
                .map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
        };
        let required = |key: &str| {
            size(key)?
                .ok_or_else(|| ModelError::malformed(path, key, "this metadata key is missing"))
        };
        // Some files state these as arrays, one number a block.
        for key in [keys.n_heads, keys.n_kv_heads, keys.d_mlp] {
            if let Some(Value::Array(_)) = self.value(key) {
                return Err(ModelError::unsupported(
                    path,
                    key,
                    "sizes that differ from block to block are not supported",
                ));
            }
        }
        let d_model = required(keys.d_model)?;
        let n_heads = required(keys.n_heads)?;
        let d_head = match size(keys.d_head)? {
            Some(d_head) => d_head,
            None if n_heads > 0 && d_model.is_multiple_of(n_heads) => d_model / n_heads,
            None => {
                return Err(ModelError::malformed(
                    path,
                    keys.n_heads,
                    format!("{n_heads} does not divide {d_model} of {}", keys.d_model),
                ));
            }
        };
        if let Some(value_length) = size("llama.attention.value_length")?
            && value_length != d_head
        {
            return Err(ModelError::unsupported(
                path,
                "llama.attention.value_length",
                format!(
                    "{value_length} differs from the head width {d_head}, which is not supported"
                ),
            ));
        }
        let embedding = WeightName::Embed.in_gguf();
        let d_vocab = match self.tensor(&embedding) {
            Some(record) => record.shape[0],
            None => {
                return Err(ModelError::MissingTensor {
                    path: path.to_owned(),
                    tensor: embedding,
                });
            }
        };
        let config = ModelConfig {
            name: match self.string("general.name")? {
                Some(name) if !name.is_empty() => name.to_owned(),
                _ => path
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            },
            architecture: architecture.to_owned(),
            n_layers: required(keys.n_layers)?,
            d_model,
            d_mlp: required(keys.d_mlp)?,
            n_heads,
            n_kv_heads: size(keys.n_kv_heads)?.unwrap_or(n_heads),
            d_head,
            d_vocab,
            n_ctx: required(keys.n_ctx)?,
            rope_base: self.float(keys.rope_base)?.unwrap_or(10_000.0) as f32,
            rope_dim: size(keys.rope_dim)?.unwrap_or(d_head),
            rotary: Rotary::Interleaved,
            norm_eps: self.float(keys.norm_eps)?.ok_or_else(|| {
                ModelError::malformed(path, keys.norm_eps, "this metadata key is missing")
            })? as f32,
            tied_embedding: self.tensor(&WeightName::Unembed.in_gguf()).is_none(),
        };
        config.check(path, keys)?;
        Ok(config)
    }

    /// Checks that the file has all tensors that a configuration asks for, in their shapes and in types that can be read,
    /// and no others.
    pub(crate) fn check_tensors(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let mut expected = HashSet::new();
        for weight in WeightName::all(config) {
            if weight == WeightName::Unembed && config.tied_embedding {
                continue;
            }
            let tensor = weight.in_gguf();
            let Some(record) = self.tensor(&tensor) else {
                return Err(ModelError::MissingTensor {
                    path: self.path().to_owned(),
                    tensor,
                });
            };
            let shape = weight.shape(config);
            if record.shape != shape {
                return Err(ModelError::Shape {
                    path: self.path().to_owned(),
                    tensor,
                    found: record.shape.clone(),
                    expected: shape,
                });
            }
            self.check_type(record)?;
            expected.insert(tensor);
        }
        match self
            .tensors()
            .iter()
            .find(|record| !expected.contains(&record.name))
        {
            None => Ok(()),
            Some(record) => Err(ModelError::unsupported(
                self.path(),
                format!("tensor {}", record.name),
                "the llama architecture as implemented here has no place for it, so running without it would give wrong \
                 numbers",
            )),
        }
    }
}

/// Settings of the llama architecture in GGUF that change the computation in ways that are not implemented.
fn refuse_variants(gguf: &Gguf) -> Result<(), ModelError> {
    let refuse =
        |key: &str, problem: String| Err(ModelError::unsupported(gguf.path(), key, problem));
    let key = "llama.rope.scaling.type";
    let scaling = gguf.string(key)?.unwrap_or("none");
    if scaling != "none" {
        return refuse(
            key,
            format!("rotary scaling \"{scaling}\" is not supported (supported: none)"),
        );
    }
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        if let Some(factor) = gguf.float(key)?
            && factor != 0.0
            && (factor - 1.0).abs() > f64::EPSILON
        {
            return refuse(key, format!("rotary scaling by {factor} is not supported"));
        }
    }
    let key = "llama.expert_count";
    if let Some(experts) = gguf.unsigned(key)?
        && experts > 0
    {
        return refuse(
            key,
            format!("a mixture of {experts} experts is not supported"),
        );
    }
    let key = "llama.attention.sliding_window";
    if let Some(window) = gguf.unsigned(key)?
        && window > 0
        && Some(window) < gguf.unsigned(KEYS.n_ctx)?
    {
        return refuse(
            key,
            format!("attention within a window of {window} tokens is not supported"),
        );
    }
    for key in ["llama.attention.causal"] {
        if gguf.boolean(key)? == Some(false) {
            return refuse(key, "attention to later tokens is not supported".into());
        }
    }
    let key = "split.count";
    if let Some(parts) = gguf.unsigned(key)?
        && parts > 1
    {
        return refuse(
            key,
            format!("a model split into {parts} files is not supported; merge them first"),
        );
    }
    Ok(())
}
