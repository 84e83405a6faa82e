//! What the metadata of a GGUF file says about a model of any of the families.

use super::{Gguf, Value};
use crate::config::{ModelConfig, Norm, RopeScaling, RotaryConfig, SizeKeys};
use crate::error::ModelError;
use crate::family::{FAMILIES, Family, Has, Windows};
use crate::weights::WeightName;

/// The tensor in which llama.cpp stores the factors of Llama 3's frequencies.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

impl Gguf {
    /// The configuration in the metadata of a GGUF file.
    ///
    /// # Errors
    /// When the architecture or one of its settings is not supported, a key is missing, or a value is absurd.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        let path = self.path();
        let architecture = self.string("general.architecture")?.ok_or_else(|| {
            ModelError::malformed(path, "general.architecture", "this metadata key is missing")
        })?;
        let Some(family) = FAMILIES.iter().find(|family| family.gguf == architecture) else {
            return Err(ModelError::UnsupportedArchitecture {
                path: path.to_owned(),
                found: architecture.to_owned(),
                supported: FAMILIES
                    .iter()
                    .map(|family| family.gguf)
                    .collect::<Vec<_>>()
                    .join(", "),
            });
        };
        refuse_variants(self, architecture)?;
        let keys = size_keys(family, architecture);
        // Some files state these as arrays, one number a block.
        for key in [&keys.n_heads, &keys.n_kv_heads, &keys.d_mlp] {
            if let Some(Value::Array(_)) = self.value(key) {
                return Err(ModelError::unsupported(
                    path,
                    key,
                    "sizes that differ from block to block are not supported",
                ));
            }
        }
        let d_model = self.required(&keys.d_model)?;
        let n_heads = self.required(&keys.n_heads)?;
        let d_head = match self.size(&keys.d_head)? {
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
        let key = format!("{architecture}.attention.value_length");
        if let Some(value_length) = self.size(&key)?
            && value_length != d_head
        {
            return Err(ModelError::unsupported(
                path,
                key,
                format!(
                    "{value_length} differs from the head width {d_head}, which is not supported"
                ),
            ));
        }
        let name_of = |weight: WeightName| family.in_gguf(weight).map(|(name, _)| name);
        let embedding = name_of(WeightName::Embed).unwrap_or_default();
        let d_vocab = match self.tensor(&embedding) {
            Some(record) => record.shape[0],
            None => {
                return Err(ModelError::MissingTensor {
                    path: path.to_owned(),
                    tensor: embedding,
                });
            }
        };
        let stored = |weight| name_of(weight).is_some_and(|name| self.tensor(&name).is_some());
        let has = |has: Has, sign: WeightName| match has {
            Has::Never => false,
            Has::Always => true,
            Has::Key(..) => stored(sign),
        };
        let n_layers = self.required(&keys.n_layers)?;
        let parallel = format!("{architecture}.use_parallel_residual");
        let cap = |key: &str, default: Option<f32>| -> Result<Option<f32>, ModelError> {
            let found = self.float(&format!("{architecture}.{key}"))?;
            Ok(found.map(|cap| cap as f32).or(default))
        };
        let scaled_width = if family.gguf_wide_scale.contains(&n_layers) {
            d_model as f64 / n_heads.max(1) as f64
        } else {
            d_head as f64
        };
        let mut config = ModelConfig {
            name: match self.string("general.name")? {
                Some(name) if !name.is_empty() => name.to_owned(),
                _ => path
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            },
            architecture: family.name.to_owned(),
            n_layers,
            d_model,
            d_mlp: self.required(&keys.d_mlp)?,
            n_heads,
            n_kv_heads: self.size(&keys.n_kv_heads)?.unwrap_or(n_heads),
            d_head,
            d_vocab,
            n_ctx: self.required(&keys.n_ctx)?,
            norm: family.norm,
            norm_eps: self.float(&keys.norm_eps)?.ok_or_else(|| {
                ModelError::malformed(path, &keys.norm_eps, "this metadata key is missing")
            })? as f32,
            activation: family.activation,
            gated_mlp: family.gated_mlp,
            parallel_blocks: match family.parallel {
                Has::Key(_, default) => self.boolean(&parallel)?.unwrap_or(default),
                always => always == Has::Always,
            },
            post_norms: family.post_norms,
            qk_norms: family.qk_norms,
            qkv_bias: has(family.qkv_bias, WeightName::QBias(0)),
            attn_out_bias: has(family.attn_out_bias, WeightName::OBias(0)),
            mlp_bias: has(family.mlp_bias, WeightName::DownBias(0)),
            rotary: if family.rotary {
                Some(rotary(self, family, architecture, d_head)?)
            } else {
                None
            },
            attention_scale: scaled_width.powf(-0.5) as f32,
            attention_softcap: cap("attn_logit_softcapping", family.softcaps.0)?,
            final_softcap: cap("final_logit_softcapping", family.softcaps.1)?,
            windows: Vec::new(),
            embed_scale: family.embed_scale.then_some((d_model as f64).sqrt() as f32),
            tied_embedding: !stored(WeightName::Unembed),
        };
        config.check(path, &keys)?;
        config.windows = windows(self, family, architecture, n_layers)?;
        config.check(path, &keys)?;
        Ok(config)
    }

    fn size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        Ok(self
            .unsigned(key)?
            .map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    }

    fn required(&self, key: &str) -> Result<usize, ModelError> {
        self.size(key)?
            .ok_or_else(|| ModelError::malformed(self.path(), key, "this metadata key is missing"))
    }
}

fn size_keys(family: &Family, architecture: &str) -> SizeKeys {
    let key = |name: &str| format!("{architecture}.{name}");
    SizeKeys {
        n_layers: key("block_count"),
        d_model: key("embedding_length"),
        d_mlp: key("feed_forward_length"),
        n_heads: key("attention.head_count"),
        n_kv_heads: key("attention.head_count_kv"),
        d_head: key("attention.key_length"),
        d_vocab: key("vocab_size"),
        n_ctx: key("context_length"),
        rope_dim: key("rope.dimension_count"),
        rope_base: key("rope.freq_base"),
        norm_eps: key(match family.norm {
            Norm::Rms => "attention.layer_norm_rms_epsilon",
            Norm::Layer => "attention.layer_norm_epsilon",
        }),
    }
}

fn rotary(
    gguf: &Gguf,
    family: &Family,
    architecture: &str,
    d_head: usize,
) -> Result<RotaryConfig, ModelError> {
    let key = |name: &str| format!("{architecture}.{name}");
    let dim = gguf.size(&key("rope.dimension_count"))?.unwrap_or(d_head);
    let kind_key = key("rope.scaling.type");
    let kind = gguf.string(&kind_key)?;
    let mut factor = None;
    for name in ["rope.scaling.factor", "rope.scale_linear"] {
        let found = gguf.float(&key(name))?;
        factor = factor.or(found.filter(|&f| f != 0.0 && (f - 1.0).abs() > f64::EPSILON));
    }
    let factors = gguf.tensor(ROPE_FACTORS);
    let scaling = match (kind, factor, factors) {
        (None | Some("none" | "linear"), None, None) => RopeScaling::None,
        (None | Some("linear"), Some(factor), None) => RopeScaling::Linear { factor },
        (None | Some("none"), None, Some(record)) => {
            if record.shape != [dim / 2] {
                return Err(ModelError::Shape {
                    path: gguf.path().to_owned(),
                    tensor: ROPE_FACTORS.into(),
                    found: record.shape.clone(),
                    expected: vec![dim / 2],
                });
            }
            let values = gguf.read_f32(ROPE_FACTORS)?;
            if let Some(bad) = values.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
                return Err(ModelError::malformed(
                    gguf.path(),
                    format!("tensor {ROPE_FACTORS}"),
                    format!("the factor {bad} is not positive"),
                ));
            }
            RopeScaling::Factors(values)
        }
        (kind, _, _) => {
            return Err(ModelError::unsupported(
                gguf.path(),
                kind_key,
                format!(
                    "rotary scaling \"{}\" {}is not supported (supported: none, linear, or factors in {ROPE_FACTORS})",
                    kind.unwrap_or("none"),
                    if factors.is_some() {
                        "together with stored factors "
                    } else {
                        ""
                    }
                ),
            ));
        }
    };
    let local = gguf.float(&key("rope.freq_base_swa"))?;
    Ok(RotaryConfig {
        dim,
        base: gguf.float(&key("rope.freq_base"))?.unwrap_or(10_000.0) as f32,
        scaling,
        local_base: family
            .local_rope_base
            .map(|default| local.map_or(default, |base| base as f32)),
    })
}

fn windows(
    gguf: &Gguf,
    family: &Family,
    architecture: &str,
    n_layers: usize,
) -> Result<Vec<Option<usize>>, ModelError> {
    let window = gguf.size(&format!("{architecture}.attention.sliding_window"))?;
    let window = window.filter(|&window| window > 0);
    let key = format!("{architecture}.attention.sliding_window_pattern");
    if let Some(Value::Array(_)) = gguf.value(&key) {
        return Err(ModelError::unsupported(
            gguf.path(),
            key,
            "windows listed block by block are not supported",
        ));
    }
    let every = match family.windows {
        Windows::AllButEvery(n) => gguf.size(&key)?.unwrap_or(n).max(1),
        // A file of another family that states a window means every block.
        _ => usize::MAX,
    };
    Ok((0..n_layers)
        .map(|layer| window.filter(|_| !(layer + 1).is_multiple_of(every)))
        .collect())
}

/// Settings in GGUF that change the computation in ways that are not implemented.
fn refuse_variants(gguf: &Gguf, architecture: &str) -> Result<(), ModelError> {
    let refuse =
        |key: &str, problem: String| Err(ModelError::unsupported(gguf.path(), key, problem));
    let key = format!("{architecture}.expert_count");
    if let Some(experts) = gguf.unsigned(&key)?
        && experts > 0
    {
        return refuse(
            &key,
            format!("a mixture of {experts} experts is not supported"),
        );
    }
    let key = format!("{architecture}.attention.causal");
    if gguf.boolean(&key)? == Some(false) {
        return refuse(&key, "attention to later tokens is not supported".into());
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
