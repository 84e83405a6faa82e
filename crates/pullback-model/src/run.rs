//! Running a model: any slice of its layers, from tokens or from a residual stream, with interventions and
//! recordings.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use pullback_kernels::fused::{
    AttentionSpec, RotaryPairs, RotarySpec, attention, cross_entropy, gated_silu, linear, rms_norm,
    rotary,
};

use crate::config::{ModelConfig, Rotary};
use crate::error::ModelError;
use crate::intervention::{Intervention, Rows};
use crate::model::{Block, Model};
use crate::site::{Place, Site, SiteError};

/// What a run starts from.
#[expect(
    clippy::large_enum_variant,
    reason = "made once a run, and both variants own large memory"
)]
#[derive(Clone, Debug)]
pub enum Input {
    /// Token ids of `batch` sequences of one length, one after the other.
    Tokens {
        /// The ids, `batch × time`.
        ids: Vec<u32>,
        /// Number of sequences.
        batch: usize,
    },
    /// A residual stream as it enters block `layer`: `[batch·time, d_model]`.
    Residual {
        /// The stream.
        stream: Tensor<2>,
        /// Number of sequences.
        batch: usize,
        /// The block that reads it; `n_layers` for the final norm.
        layer: usize,
    },
}

/// What a run does beside computing.
#[derive(Clone, Debug, Default)]
pub struct RunOptions<'a> {
    /// The run stops before this block (and computes no final norm); `None` runs to the end.
    pub stop_at: Option<usize>,
    /// Changes, applied in order at each site.
    pub interventions: &'a [Intervention],
    /// Sites whose activations are returned (after the interventions there).
    pub record: &'a [Site],
    /// Device of the run when it starts from tokens; default: the model's. An autodiff device makes
    /// gradients possible.
    pub device: Option<Device>,
}

/// What a run returns.
#[derive(Debug)]
pub struct RunOutput {
    /// The residual stream where the run stopped; after the final norm when it ran to the end.
    /// `[batch·time, d_model]`.
    pub stream: Tensor<2>,
    /// Recorded activations, `[batch·time, width of the site]`.
    pub recorded: HashMap<Site, Tensor<2>>,
}

impl RunOutput {
    /// Takes a recorded activation.
    ///
    /// # Errors
    /// The site was not asked for.
    pub fn take(&mut self, site: Site) -> Result<Tensor<2>, ModelError> {
        self.recorded.remove(&site).ok_or_else(|| {
            SiteError::NotReached {
                site,
                reached: "it was not among the sites to record".to_owned(),
            }
            .into()
        })
    }
}

/// Keys (after the rotary embedding) and values of the positions seen so far, one pair a block.
#[derive(Clone, Debug, Default)]
pub struct KeyValueCache {
    blocks: Vec<Option<(Tensor<2>, Tensor<2>)>>,
    length: usize,
}

impl KeyValueCache {
    /// An empty cache, for one sequence.
    pub fn new(n_layers: usize) -> Self {
        Self {
            blocks: vec![None; n_layers],
            length: 0,
        }
    }

    /// Positions it holds.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// One pass's bookkeeping.
struct Pass<'a> {
    rows: Rows,
    interventions: &'a [Intervention],
    record: &'a [Site],
    recorded: HashMap<Site, Tensor<2>>,
}

impl Pass<'_> {
    /// Lets interventions and recordings at a site have the activation.
    fn tap(&mut self, layer: usize, place: Place, mut x: Tensor<2>) -> Tensor<2> {
        let site = Site::at(layer, place);
        for intervention in self.interventions.iter().filter(|i| i.site() == site) {
            x = intervention.apply(x, &self.rows);
        }
        if self.record.contains(&site) {
            self.recorded.insert(site, x.clone());
        }
        x
    }
}

impl Model {
    /// Runs the model.
    ///
    /// # Errors
    /// The input is empty, ragged or longer than the context; a token is not in the vocabulary; a site does
    /// not exist or is not reached by this run.
    pub fn run(&self, input: Input, options: &RunOptions<'_>) -> Result<RunOutput, ModelError> {
        self.run_from(input, options, None)
    }

    /// Runs the model on the continuation of one sequence, whose earlier positions are in `cache`.
    ///
    /// # Errors
    /// As [`Model::run`]; also when the input holds more than one sequence.
    pub fn run_cached(
        &self,
        ids: &[u32],
        options: &RunOptions<'_>,
        cache: &mut KeyValueCache,
    ) -> Result<RunOutput, ModelError> {
        let input = Input::Tokens {
            ids: ids.to_vec(),
            batch: 1,
        };
        self.run_from(input, options, Some(cache))
    }

    fn run_from(
        &self,
        input: Input,
        options: &RunOptions<'_>,
        mut cache: Option<&mut KeyValueCache>,
    ) -> Result<RunOutput, ModelError> {
        let config = self.config();
        let start = cache.as_ref().map_or(0, |cache| cache.length);
        let first = match &input {
            Input::Tokens { .. } => 0,
            Input::Residual { layer, .. } => *layer,
        };
        let last = options.stop_at.unwrap_or(config.n_layers);
        if first > last || last > config.n_layers {
            return Err(ModelError::Input {
                problem: format!(
                    "a run from block {first} to before block {last} is not within the model's {} blocks",
                    config.n_layers
                ),
            });
        }
        let from_tokens = matches!(input, Input::Tokens { .. });
        let reached = |site: Site| match site.place() {
            Place::Embed => from_tokens,
            Place::FinalNormalized => options.stop_at.is_none(),
            _ => site
                .layer()
                .is_some_and(|layer| (first..last).contains(&layer)),
        };
        let used = options.interventions.iter().map(Intervention::site);
        for site in used.chain(options.record.iter().copied()) {
            site.check(config.n_layers)?;
            if !reached(site) {
                return Err(SiteError::NotReached {
                    site,
                    reached: format!("this run computes blocks {first} to {last} (exclusive)"),
                }
                .into());
            }
        }
        let (stream, batch) = match input {
            Input::Tokens { ids, batch } => {
                let device = options
                    .device
                    .clone()
                    .unwrap_or_else(|| self.device().clone());
                (self.embed(&ids, batch, &device)?, batch)
            }
            Input::Residual { stream, batch, .. } => (stream, batch),
        };
        let total = stream.dims()[0];
        if batch == 0 || total == 0 || !total.is_multiple_of(batch) {
            return Err(ModelError::Input {
                problem: format!("{total} rows do not divide into {batch} sequences of one length"),
            });
        }
        let time = total / batch;
        if start + time > config.n_ctx {
            return Err(ModelError::Input {
                problem: format!(
                    "the text has {} tokens, the model's context is {}",
                    start + time,
                    config.n_ctx
                ),
            });
        }
        let mut pass = Pass {
            rows: Rows { batch, time, start },
            interventions: options.interventions,
            record: options.record,
            recorded: HashMap::new(),
        };
        let mut stream = if from_tokens {
            pass.tap(0, Place::Embed, stream)
        } else {
            stream
        };
        for layer in first..last {
            let block = &self.blocks()[layer];
            let memory = cache.as_deref_mut().map(|cache| &mut cache.blocks[layer]);
            stream = run_block(config, block, layer, stream, &mut pass, memory);
        }
        if let Some(cache) = cache {
            cache.length += time;
        }
        if options.stop_at.is_none() {
            let normalized = self.final_norm(stream);
            stream = pass.tap(0, Place::FinalNormalized, normalized);
        }
        Ok(RunOutput {
            stream,
            recorded: pass.recorded,
        })
    }

    fn embed(&self, ids: &[u32], batch: usize, device: &Device) -> Result<Tensor<2>, ModelError> {
        let vocabulary = self.config().d_vocab;
        if ids.is_empty() || batch == 0 || !ids.len().is_multiple_of(batch) {
            return Err(ModelError::Input {
                problem: format!(
                    "{} tokens do not divide into {batch} sequences of one length",
                    ids.len()
                ),
            });
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(ModelError::Input {
                problem: format!("token id {id} is not below the vocabulary size {vocabulary}"),
            });
        }
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let count = ids.len();
        let inner = self.device();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), inner);
        let rows = self.embedding().clone().select(0, ids);
        Ok(if device.is_autodiff() {
            Tensor::from_inner(rows)
        } else {
            rows
        })
    }

    /// The final norm of a residual stream `[n, d_model]`.
    pub fn final_norm(&self, stream: Tensor<2>) -> Tensor<2> {
        rms_norm(
            stream,
            self.final_gain().clone(),
            f64::from(self.config().norm_eps),
        )
    }

    /// Logits `[n, d_vocab]` of normalised streams `[n, d_model]` (what a run to the end returns).
    pub fn logits(&self, normalized: Tensor<2>) -> Tensor<2> {
        linear(normalized, self.unembedding().clone())
    }

    /// Cross-entropy in nats of each row's target, from normalised streams `[n, d_model]`; the logits are
    /// never in memory whole.
    ///
    /// # Errors
    /// A target is not in the vocabulary, or there is not one a row.
    pub fn cross_entropy(
        &self,
        normalized: Tensor<2>,
        targets: &[u32],
    ) -> Result<Tensor<1>, ModelError> {
        let vocabulary = self.config().d_vocab;
        if normalized.dims()[0] != targets.len() {
            return Err(ModelError::Input {
                problem: format!(
                    "{} targets for {} rows",
                    targets.len(),
                    normalized.dims()[0]
                ),
            });
        }
        if let Some(id) = targets.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(ModelError::Input {
                problem: format!("token id {id} is not below the vocabulary size {vocabulary}"),
            });
        }
        Ok(cross_entropy(
            normalized,
            self.unembedding().clone(),
            Arc::from(targets),
        ))
    }

    /// Element type of the weights.
    pub fn dtype(&self) -> DType {
        self.embedding().dtype()
    }
}

/// One block: `x + attention(norm(x))`, then `x + mlp(norm(x))`.
fn run_block(
    config: &ModelConfig,
    block: &Block,
    layer: usize,
    stream: Tensor<2>,
    pass: &mut Pass<'_>,
    memory: Option<&mut Option<(Tensor<2>, Tensor<2>)>>,
) -> Tensor<2> {
    let eps = f64::from(config.norm_eps);
    let stream = pass.tap(layer, Place::ResidPre, stream);
    let x = rms_norm(stream.clone(), block.attn_norm.clone(), eps);
    let x = pass.tap(layer, Place::AttnNormalized, x);
    let q = pass.tap(layer, Place::Query, linear(x.clone(), block.q.clone()));
    let k = pass.tap(layer, Place::Key, linear(x.clone(), block.k.clone()));
    let v = pass.tap(layer, Place::Value, linear(x, block.v.clone()));
    let turn = RotarySpec {
        time: pass.rows.time,
        start: pass.rows.start,
        d_head: config.d_head,
        rotary_dim: config.rope_dim,
        base: f64::from(config.rope_base),
        pairs: match config.rotary {
            Rotary::Interleaved => RotaryPairs::Interleaved,
            Rotary::HalfSplit => RotaryPairs::HalfSplit,
        },
    };
    let (q, mut k, mut v) = (rotary(q, turn), rotary(k, turn), v);
    if let Some(memory) = memory {
        if let Some((keys, values)) = memory.take() {
            k = Tensor::cat(vec![keys, k], 0);
            v = Tensor::cat(vec![values, v], 0);
        }
        *memory = Some((k.clone(), v.clone()));
    }
    let spec = AttentionSpec {
        batch: pass.rows.batch,
        heads: config.n_heads,
        kv_heads: config.n_kv_heads,
        d_head: config.d_head,
        scale: 1.0 / (config.d_head as f64).sqrt(),
    };
    let z = pass.tap(layer, Place::Mixed, attention(q, k, v, spec));
    let attn_out = pass.tap(layer, Place::AttnOut, linear(z, block.o.clone()));
    let stream = pass.tap(layer, Place::ResidMid, stream + attn_out);
    let x = rms_norm(stream.clone(), block.mlp_norm.clone(), eps);
    let x = pass.tap(layer, Place::MlpNormalized, x);
    let gate = pass.tap(layer, Place::MlpPre, linear(x.clone(), block.gate.clone()));
    let up = pass.tap(layer, Place::MlpPreLinear, linear(x, block.up.clone()));
    let hidden = pass.tap(layer, Place::MlpPost, gated_silu(gate, up));
    let mlp_out = pass.tap(layer, Place::MlpOut, linear(hidden, block.down.clone()));
    pass.tap(layer, Place::ResidPost, stream + mlp_out)
}
