//! One block: attention and MLP with their norms, the same code for every family.

use std::sync::Arc;

use burn::tensor::{Bool, Tensor, activation};
use pullback_kernels::fused::{AttentionSpec, RotaryTable, Span, attention, composed};

use crate::cache::LayerMemory;
use crate::config::Norm;
use crate::flow::{Flow, sum};
use crate::model::{Block, NormWeights};
use crate::pass::{Halt, Pass};
use crate::site::Place;
use crate::weights::WeightName as W;

/// What attention hides: a number so low that its exponential is zero, yet finite.
const HIDDEN: f64 = -1.0e30;

/// A block with its place in the model.
pub(crate) struct BlockRun<'a> {
    pub(crate) block: &'a Block,
    pub(crate) layer: usize,
    pub(crate) angles: Option<Arc<RotaryTable>>,
}

impl BlockRun<'_> {
    /// `x + attention(norm(x))`, then `x + mlp(norm(x))`; or both from the same `x`.
    pub(crate) fn run(
        &self,
        stream: Flow,
        pass: &mut Pass<'_>,
        memory: Option<&mut LayerMemory>,
    ) -> Result<Flow, Halt> {
        let stream = pass.tap(self.layer, Place::ResidPre, stream)?;
        let attn_out = self.attention(stream.clone(), pass, memory)?;
        let after = if pass.config.parallel_blocks {
            let mlp_out = self.mlp(stream.clone(), pass)?;
            stream.plus(attn_out).plus(mlp_out)
        } else {
            let middle = pass.tap(self.layer, Place::ResidMid, stream.plus(attn_out))?;
            let mlp_out = self.mlp(middle.clone(), pass)?;
            middle.plus(mlp_out)
        };
        pass.tap(self.layer, Place::ResidPost, after)
    }

    fn attention(
        &self,
        stream: Flow,
        pass: &mut Pass<'_>,
        memory: Option<&mut LayerMemory>,
    ) -> Result<Flow, Halt> {
        let (block, layer, config) = (self.block, self.layer, pass.config);
        let places = [Place::AttnScale, Place::AttnNormalized];
        let x = normalised(stream, &block.attn_norm, layer, places, pass)?;
        let q = pass.affine(x.clone(), &block.q, W::Q(layer));
        let mut q = pass.tap(layer, Place::Query, q)?;
        let k = pass.affine(x.clone(), &block.k, W::K(layer));
        let mut k = pass.tap(layer, Place::Key, k)?;
        let v = pass.affine(x, &block.v, W::V(layer));
        let v = pass.tap(layer, Place::Value, v)?;
        if let Some((q_norm, k_norm)) = &block.qk_norms {
            let heads = |flow: Flow, weights, heads| {
                let eps = f64::from(config.norm_eps);
                flow.split_heads(config.d_head)
                    .norm(weights, false, eps)
                    .join_heads(heads)
            };
            q = pass.tap(
                layer,
                Place::QueryNormalized,
                heads(q, q_norm, config.n_heads),
            )?;
            k = pass.tap(
                layer,
                Place::KeyNormalized,
                heads(k, k_norm, config.n_kv_heads),
            )?;
        }
        if let Some(table) = &self.angles {
            let positions = Arc::clone(&pass.positions);
            let turn = |flow: Flow| flow.rotary(table, &positions, config.d_head);
            q = pass.tap(layer, Place::RotaryQuery, turn(q))?;
            k = pass.tap(layer, Place::RotaryKey, turn(k))?;
        }
        let (k, v, keys) = match memory {
            Some(memory) => {
                let (k, v) = memory.extend(&pass.rows, k.x, v.x);
                (Flow::new(k), Flow::new(v), memory.lengths(&pass.rows))
            }
            None => (k, v, pass.rows.sequences().iter().map(|s| s.1).collect()),
        };
        let sequences = pass.rows.sequences().iter().zip(&keys);
        let spec = AttentionSpec {
            sequences: sequences
                .map(|(&(_, queries), &keys)| Span { queries, keys })
                .collect(),
            heads: config.n_heads,
            kv_heads: config.n_kv_heads,
            d_head: config.d_head,
            scale: f64::from(config.attention_scale),
            window: config.windows[layer],
            softcap: config.attention_softcap.map(f64::from),
        };
        let open = pass.wants(layer, Place::Scores)
            || pass.wants(layer, Place::Pattern)
            || [&q, &k, &v].iter().any(|flow| flow.dx.is_some());
        let z = if open {
            attend_openly(&q, &k, &v, &spec, layer, pass)?
        } else {
            Flow::new(attention(q.x, k.x, v.x, spec))
        };
        let z = pass.tap(layer, Place::Mixed, z)?;
        let out = if pass.wants(layer, Place::HeadResult) {
            let weight = pass.dense(&block.o, W::O(layer));
            let results = z.linear(|z| head_results(&z, &weight, config.n_heads));
            let results = pass.tap(layer, Place::HeadResult, results)?;
            let mut out = results.linear(|x| {
                let [rows, width] = x.dims();
                let heads: Tensor<3> = x.reshape([rows, config.n_heads, width / config.n_heads]);
                heads.sum_dim(1).squeeze_dim(1)
            });
            if let Some(bias) = &block.o.bias {
                out.x = out.x + bias.clone().unsqueeze();
            }
            out
        } else {
            pass.affine(z, &block.o, W::O(layer))
        };
        let out = match &block.attn_post_norm {
            Some(weights) => {
                let places = [Place::AttnPostScale, Place::AttnPostNormalized];
                normalised(out, weights, layer, places, pass)?
            }
            None => out,
        };
        pass.tap(layer, Place::AttnOut, out)
    }

    fn mlp(&self, stream: Flow, pass: &mut Pass<'_>) -> Result<Flow, Halt> {
        let (block, layer, config) = (self.block, self.layer, pass.config);
        let places = [Place::MlpScale, Place::MlpNormalized];
        let x = normalised(stream, &block.mlp_norm, layer, places, pass)?;
        let hidden = if let Some(gate) = &block.gate {
            let gate = pass.affine(x.clone(), gate, W::Gate(layer));
            let gate = pass.tap(layer, Place::MlpPre, gate)?;
            let up = pass.affine(x, &block.up, W::Up(layer));
            let up = pass.tap(layer, Place::MlpPreLinear, up)?;
            gate.gate(up, config.activation)
        } else {
            let up = pass.affine(x, &block.up, W::Up(layer));
            pass.tap(layer, Place::MlpPre, up)?
                .activate(config.activation)
        };
        let hidden = pass.tap(layer, Place::MlpPost, hidden)?;
        let out = pass.affine(hidden, &block.down, W::Down(layer));
        let out = match &block.mlp_post_norm {
            Some(weights) => {
                let places = [Place::MlpPostScale, Place::MlpPostNormalized];
                normalised(out, weights, layer, places, pass)?
            }
            None => out,
        };
        pass.tap(layer, Place::MlpOut, out)
    }
}

/// A norm with its two places: in one operation, or in two where someone wants to see or change the scale.
pub(crate) fn normalised(
    x: Flow,
    weights: &NormWeights,
    layer: usize,
    [scale_place, place]: [Place; 2],
    pass: &mut Pass<'_>,
) -> Result<Flow, Halt> {
    let is_layer = pass.config.norm == Norm::Layer;
    let eps = f64::from(pass.config.norm_eps);
    let out = if pass.wants(layer, scale_place) {
        let (scale, centred) = x.norm_scale(is_layer, eps);
        let scale = pass.tap(layer, scale_place, scale)?;
        centred.divided(scale, weights)
    } else {
        x.norm(weights, is_layer, eps)
    };
    pass.tap(layer, place, out)
}

/// What each head adds to the stream: `z [rows, heads·d]`, `weight [d_model, heads·d]` → `[rows, heads·d_model]`.
fn head_results(z: &Tensor<2>, weight: &Tensor<2>, heads: usize) -> Tensor<2> {
    let d = z.dims()[1] / heads;
    let parts = (0..heads).map(|h| {
        let z = z.clone().narrow(1, h * d, d);
        z.matmul(weight.clone().narrow(1, h * d, d).transpose())
    });
    Tensor::cat(parts.collect(), 1)
}

/// Scores or weights of the sequences of a batch, each `[heads, queries, keys]`.
struct ByHead {
    x: Vec<Tensor<3>>,
    dx: Option<Vec<Tensor<3>>>,
}

impl ByHead {
    /// As the sites have it: `[rows, heads·keys]`, the keys of shorter sequences filled up with `filling`.
    fn flat(&self, most: usize, filling: f64) -> Flow {
        let flat = |parts: &[Tensor<3>]| {
            let parts = parts.iter().map(|part| {
                let [heads, queries, keys] = part.dims();
                let part = if keys < most {
                    let rest = Tensor::full(
                        [heads, queries, most - keys],
                        filling,
                        (&part.device(), part.dtype()),
                    );
                    Tensor::cat(vec![part.clone(), rest], 2)
                } else {
                    part.clone()
                };
                part.swap_dims(0, 1).reshape([queries, heads * most])
            });
            Tensor::cat(parts.collect(), 0)
        };
        Flow {
            x: flat(&self.x),
            dx: self.dx.as_deref().map(flat),
        }
    }

    /// Undoes [`ByHead::flat`].
    fn from_flat(flow: Flow, spec: &AttentionSpec, most: usize) -> Self {
        let split = |x: Tensor<2>| {
            let mut first = 0;
            let mut parts = Vec::new();
            for span in spec.sequences.iter().filter(|span| span.queries > 0) {
                let part = x.clone().narrow(0, first, span.queries);
                first += span.queries;
                let part: Tensor<3> = part.reshape([span.queries, spec.heads, most]);
                parts.push(part.swap_dims(0, 1).narrow(2, 0, span.keys));
            }
            parts
        };
        Self {
            x: split(flow.x),
            dx: flow.dx.map(split),
        }
    }

    /// Each part changed together with its derivative.
    fn map(
        self,
        mut change: impl FnMut(usize, Tensor<3>, Option<Tensor<3>>) -> (Tensor<3>, Option<Tensor<3>>),
    ) -> Self {
        let count = self.x.len();
        let dx: Vec<Option<Tensor<3>>> = match self.dx {
            Some(dx) => dx.into_iter().map(Some).collect(),
            None => vec![None; count],
        };
        let pairs = self.x.into_iter().zip(dx).enumerate();
        let (x, dx): (Vec<_>, Vec<_>) = pairs.map(|(i, (x, dx))| change(i, x, dx)).unzip();
        Self {
            x,
            dx: dx.into_iter().collect(),
        }
    }
}

/// Attention with its scores and weights in the open, for those who want to read or change them, or want derivatives
/// in a direction.
fn attend_openly(
    q: &Flow,
    k: &Flow,
    v: &Flow,
    spec: &AttentionSpec,
    layer: usize,
    pass: &mut Pass<'_>,
) -> Result<Flow, Halt> {
    let forward_mode = [q, k, v].iter().any(|flow| flow.dx.is_some()) || pass.direction.is_some();
    let device = q.x.device();
    let spans: Vec<Span> = spec
        .sequences
        .iter()
        .copied()
        .filter(|span| span.queries > 0)
        .collect();
    let rows_of = |flow: &Flow, sizes: &dyn Fn(&Span) -> usize| {
        let mut first = 0;
        let mut parts = Vec::with_capacity(spans.len());
        for span in &spans {
            let size = sizes(span);
            let part = |x: &Tensor<2>| x.clone().narrow(0, first, size);
            parts.push((part(&flow.x), flow.dx.as_ref().map(part)));
            first += size;
        }
        parts
    };
    let queries = rows_of(q, &|span| span.queries);
    let keys = rows_of(k, &|span| span.keys);
    let values = rows_of(v, &|span| span.keys);
    let masks: Vec<Tensor<3, Bool>> = spans
        .iter()
        .map(|span| {
            let mask = composed::hidden(span.queries, span.keys, spec, &device);
            mask.unsqueeze::<3>()
                .expand([spec.heads as i64, span.queries as i64, span.keys as i64])
        })
        .collect();
    let products = AttentionSpec {
        softcap: None,
        ..spec.clone()
    };
    let (mut x, mut dx) = (Vec::new(), Vec::new());
    for ((q, dq), (k, dk)) in queries.iter().zip(&keys) {
        let score = |q: &Tensor<2>, k: &Tensor<2>| {
            composed::attention_scores(q.clone(), k.clone(), &products)
        };
        let raw = score(q, k);
        let slope = sum(
            dq.as_ref().map(|dq| score(dq, k)),
            dk.as_ref().map(|dk| score(q, dk)),
        );
        let capped = composed::softcap(raw, spec.softcap);
        let slope = match (slope, spec.softcap) {
            (Some(slope), Some(cap)) => {
                let ratio = capped.clone() * cap.recip();
                Some(slope.clone() - slope * ratio.powi_scalar(2))
            }
            (slope, _) => slope,
        };
        dx.push(slope.or_else(|| forward_mode.then(|| capped.zeros_like())));
        x.push(capped);
    }
    let most = spans.iter().map(|span| span.keys).max().unwrap_or(0);
    let mut scores = ByHead {
        x,
        dx: dx.into_iter().collect(),
    };
    if pass.wants(layer, Place::Scores) {
        // Edits see zeros at hidden keys, so that no infinity enters their arithmetic.
        let seen = scores.map(|i, x, dx| {
            let hide = |x: Tensor<3>| x.mask_fill(masks[i].clone(), 0.0);
            (hide(x), dx.map(hide))
        });
        let hidden = ByHead {
            x: masks.iter().map(|mask| mask.clone().float()).collect(),
            dx: None,
        };
        // Keys that do not exist are hidden too.
        let hidden = hidden.flat(most, 1.0).x;
        let flat = pass.tap_as(layer, Place::Scores, seen.flat(most, 0.0), |x| {
            let mask = hidden.clone().greater_elem(0.5);
            x.mask_fill(mask, f32::NEG_INFINITY)
        })?;
        scores = ByHead::from_flat(flat, spec, most);
    }
    let mut weights = scores.map(|i, x, dx| {
        let weights = activation::softmax(x.mask_fill(masks[i].clone(), HIDDEN), 2);
        let slope = dx.map(|dx| {
            let weighted = weights.clone() * dx;
            let total = weighted.clone().sum_dim(2);
            weighted - weights.clone() * total
        });
        (weights, slope)
    });
    if pass.wants(layer, Place::Pattern) {
        let flat = pass.tap(layer, Place::Pattern, weights.flat(most, 0.0))?;
        weights = ByHead::from_flat(flat, spec, most);
    }
    let mixed = weights.map(|i, p, dp| {
        let by_head = |v: &Tensor<2>| composed::by_query_head(v.clone(), spans[i].keys, spec);
        let (v, dv) = &values[i];
        let slope = sum(
            dp.map(|dp| dp.matmul(by_head(v))),
            dv.as_ref().map(|dv| p.clone().matmul(by_head(dv))),
        );
        (p.matmul(by_head(v)), slope)
    });
    let rows = |parts: Vec<Tensor<3>>| {
        let parts = parts.into_iter().map(|part| {
            let [heads, queries, d] = part.dims();
            part.swap_dims(0, 1).reshape([queries, heads * d])
        });
        Tensor::cat(parts.collect(), 0)
    };
    Ok(Flow {
        x: rows(mixed.x),
        dx: mixed.dx.map(rows),
    })
}
