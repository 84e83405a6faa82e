//! Sequences side by side, and the objective of a batch from the stream at the site.

use std::ops::Range;
use std::rc::Rc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use pullback_kernels::sparse::SparseCodes;
use pullback_kernels::{Real, vectorized};
use pullback_model::{Input, Model, Rows, RunOptions, WeightUpdate};
use pullback_sae::{Sae, SplicedRows};
use rayon::prelude::*;

use super::learner::Units;
use super::prepare::{Frozen, Prepared, Source, targets};
use crate::residual::{FIRST_POSITION, values};
use crate::{AdapterError, Objective};

/// Sequences padded at their ends to one length: causal attention keeps padding out of what is counted.
pub(crate) struct Batch {
    /// `[batch·time, d]`: the frozen stream.
    pub(crate) stream: Tensor<2>,
    /// Codes of its rows, none where an adapter does not act.
    pub(crate) codes: Option<SparseCodes<f32>>,
    /// One where an adapter acts on text, divided by the number of such rows.
    pub(crate) mean_over_text: Vec<f32>,
    /// Sequences.
    pub(crate) count: usize,
    /// Positions of each.
    pub(crate) time: usize,
    /// Rows whose next token counts, sequence by sequence.
    pub(crate) rows: Tensor<1, Int>,
    /// Those tokens.
    pub(crate) targets: Vec<u32>,
    /// Which of them belong to each sequence.
    pub(crate) spans: Vec<Range<usize>>,
    /// Log-probability of each sequence without the adapter.
    pub(crate) reference: Vec<f64>,
    /// The final streams at the counted rows, of the model without the adapter and of the teacher.
    pub(crate) finals: [Option<Tensor<2>>; 2],
}

impl Batch {
    /// Puts samples side by side.
    ///
    /// # Errors
    /// The model refused a sequence.
    pub(crate) fn new(
        source: &Source<'_>,
        samples: &[&Prepared],
        device: &Device,
    ) -> Result<Self, AdapterError> {
        let sequences: Vec<_> = samples.iter().flat_map(|s| &s.sequences).collect();
        let frozen = sequences
            .iter()
            .map(|sequence| source.frozen(sequence))
            .collect::<Result<Vec<Rc<Frozen>>, AdapterError>>()?;
        let d = source.model.config().d_model;
        let time = sequences.iter().map(|s| s.ids.len()).max().unwrap_or(0);
        let count = sequences.len();
        let mut stream = vec![0.0_f32; count * time * d];
        let (mut rows, mut wanted, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        let mut text = vec![0.0_f32; count * time];
        let mut codes = source.dictionary.as_ref().map(|_| SparseCodes::new());
        for (place, (sequence, frozen)) in sequences.iter().zip(&frozen).enumerate() {
            text[place * time + FIRST_POSITION..place * time + sequence.ids.len()].fill(1.0);
            let start = place * time * d;
            stream[start..start + frozen.stream.len()].copy_from_slice(&frozen.stream);
            let first = wanted.len();
            rows.extend(
                sequence
                    .counted
                    .iter()
                    .map(|row| (place * time + row) as i64),
            );
            wanted.extend(targets(sequence));
            spans.push(first..wanted.len());
            if let (Some(codes), Some(own)) = (&mut codes, &frozen.codes) {
                codes.append(own);
                for _ in sequence.ids.len()..time {
                    codes.push(&[], &[]);
                }
            }
        }
        let total = text.iter().sum::<f32>().max(1.0);
        for weight in &mut text {
            *weight /= total;
        }
        let counted = rows.len();
        let finals = [0, 1].map(|which: usize| {
            let parts: Option<Vec<&[f32]>> =
                frozen.iter().map(|f| f.finals[which].as_deref()).collect();
            let joined = parts.filter(|_| counted > 0)?.concat();
            let width = joined.len() / counted;
            let data = TensorData::new(joined, [counted, width]);
            Some(Tensor::from_data(data, device))
        });
        Ok(Self {
            stream: Tensor::from_data(TensorData::new(stream, [count * time, d]), device),
            codes,
            mean_over_text: text,
            count,
            time,
            rows: Tensor::from_data(TensorData::new(rows, [counted]), device),
            targets: wanted,
            spans,
            reference: frozen.iter().map(|f| f.log_probability).collect(),
            finals,
        })
    }

    /// Where its rows stand in their texts.
    pub(crate) fn places(&self) -> Rows {
        Rows::uniform(self.count, self.time, 0)
    }
}

/// The parts of the objective that hold for a whole training.
#[derive(Clone, Copy)]
pub(crate) struct Aim<'a> {
    pub(crate) model: &'a Model,
    pub(crate) teacher: Option<&'a Model>,
    pub(crate) objective: Objective,
    /// Weight of `KL(model ‖ adapted)`, the mean over counted tokens.
    pub(crate) leash: f64,
    /// The first block that is run.
    pub(crate) first: usize,
    /// The dictionary whose reconstruction stands in for the stream after a block, and that block, where one that is run with
    /// gradients comes before it.
    pub(crate) around: Option<(&'a Sae, usize)>,
}

/// The objective of a batch.
pub(crate) struct Evaluated {
    /// The objective, without the leash, as a sum over tokens or pairs.
    pub(crate) sum: f64,
    /// Their number.
    pub(crate) count: f64,
    /// Sum over tokens of `KL(model ‖ adapted)`, if there is a leash.
    pub(crate) divergence: f64,
    /// A number whose gradient is that of the mean objective with the leash; its own value means nothing.
    pub(crate) slope: Tensor<1>,
    /// Where a dictionary stands between the blocks: the stream that it reads, which hangs on the blocks below, and what it
    /// makes of it, where the graph above ends.
    pub(crate) between: Option<Between>,
}

/// The two sides of a dictionary between blocks.
pub(crate) struct Between {
    /// The stream after the blocks below, `[rows, d]`.
    pub(crate) read: Tensor<2>,
    /// The stream that the blocks above begin with.
    pub(crate) made: Tensor<2>,
}

impl Between {
    /// The slope of the objective below the dictionary, given the gradient in what it makes.
    ///
    /// # Errors
    /// The dictionary has no derivative.
    pub(crate) fn slope_below(
        &self,
        sae: &Sae,
        batch: &Batch,
        gradient: &[f32],
    ) -> Result<Tensor<1>, AdapterError> {
        let spliced =
            SplicedRows::new(sae, &values(&self.read), replaced(batch.count, batch.time))?;
        let pulled = TensorData::new(spliced.pull(gradient), self.read.dims());
        let options = (&self.read.device(), self.read.dtype());
        let pulled = Tensor::<2>::from_data(pulled.convert_dtype(options.1), options);
        Ok((self.read.clone() * pulled).sum())
    }
}

/// Which rows of a batch a dictionary stands in for: all but the first of each sequence.
pub(crate) fn replaced(count: usize, time: usize) -> Vec<bool> {
    let rows = 0..count * time;
    rows.map(|row| row % time >= FIRST_POSITION).collect()
}

impl Aim<'_> {
    /// The objective with `stream` entering the first block, and with updates of weights.
    ///
    /// The losses of single tokens are functions of the final stream; the objective's derivatives in them are computed on
    /// the side and enter the graph as constants.
    ///
    /// # Errors
    /// The model refused the batch.
    pub(crate) fn evaluate(
        self,
        batch: &Batch,
        stream: Tensor<2>,
        updates: &[WeightUpdate],
    ) -> Result<Evaluated, AdapterError> {
        let model = self.model;
        let (out, between) = match self.around {
            None => (self.run(stream, self.first, None, batch, updates)?, None),
            Some((sae, layer)) => {
                let read = self.run(stream, self.first, Some(layer + 1), batch, updates)?;
                let spliced =
                    SplicedRows::new(sae, &values(&read), replaced(batch.count, batch.time))?;
                let options = (&read.device(), read.dtype());
                let data = TensorData::new(spliced.values().to_vec(), read.dims());
                let mut made = Tensor::<2>::from_data(data.convert_dtype(options.1), options);
                if made.device().is_autodiff() {
                    made = made.require_grad();
                }
                let out = self.run(made.clone(), layer + 1, None, batch, updates)?;
                (out, Some(Between { read, made }))
            }
        };
        let last = out.select(0, batch.rows.clone());
        let options = (&last.device(), last.dtype());
        let constant = |values: Vec<f64>, shape| {
            Tensor::<1>::from_data(TensorData::new(values, shape), options)
        };
        let counted = batch.targets.len();
        let (value, mut slope) = if self.objective == Objective::Distill {
            let (Some(teacher), Some(theirs)) = (self.teacher, &batch.finals[1]) else {
                return Err(AdapterError::Option(
                    "distillation needs a teacher".to_owned(),
                ));
            };
            let (losses, gradient) = divergence(model, last.clone(), teacher, theirs);
            let value = self.objective.value(&losses, &batch.spans, &[]);
            let slope = (last.clone() * (gradient * value.count.recip())).sum();
            (value, slope)
        } else {
            let losses = model.cross_entropy(last.clone(), &batch.targets)?;
            let numbers: Vec<f64> = losses.to_data().iter::<f64>().collect();
            let value = self
                .objective
                .value(&numbers, &batch.spans, &batch.reference);
            let slopes = value.slopes.iter().map(|slope| slope / value.count);
            let slopes = constant(slopes.collect(), [counted]);
            (value, (losses * slopes).sum())
        };
        let mut total = 0.0;
        if let (true, Some(own)) = (self.leash > 0.0, &batch.finals[0]) {
            let (losses, gradient) = divergence(model, last.clone(), model, own);
            total = losses.iter().sum();
            slope = slope + (last * (gradient * (self.leash / counted as f64))).sum();
        }
        Ok(Evaluated {
            sum: value.sum,
            count: value.count,
            divergence: total,
            slope,
            between,
        })
    }

    /// The stream before block `to`, or after the final norm, from that before block `from`.
    fn run(
        self,
        stream: Tensor<2>,
        from: usize,
        to: Option<usize>,
        batch: &Batch,
        updates: &[WeightUpdate],
    ) -> Result<Tensor<2>, AdapterError> {
        let end = to.unwrap_or(self.model.config().n_layers);
        let own = |update: &&WeightUpdate| {
            let layer = update.weight.layer();
            layer.is_some_and(|layer| (from..end).contains(&layer))
        };
        let updates: Vec<WeightUpdate> = match self.around {
            None => updates.to_vec(),
            Some(_) => updates.iter().filter(own).cloned().collect(),
        };
        let options = RunOptions {
            stop_at: to,
            updates: &updates,
            ..RunOptions::default()
        };
        let input = Input::residual(stream, batch.count, from);
        Ok(self.model.run(input, &options)?.stream)
    }
}

/// Rows whose logits stand in memory at a time.
const ROWS: usize = 64;

/// `KL(p ‖ q)` in nats of each row and its derivative in `x`: `q` are the model's predictions from final streams
/// `x [n, d]`, `p` those of a model from its final streams.
fn divergence(
    model: &Model,
    x: Tensor<2>,
    other: &Model,
    theirs: &Tensor<2>,
) -> (Vec<f64>, Tensor<2>) {
    let x = if x.device().is_autodiff() {
        x.inner()
    } else {
        x
    };
    let count = x.dims()[0];
    let (mut losses, mut gradients) = (Vec::with_capacity(count), Vec::new());
    for first in (0..count).step_by(ROWS) {
        let rows = ROWS.min(count - first);
        let leaf = Tensor::<2>::from_inner(x.clone().narrow(0, first, rows)).require_grad();
        let logits = model.logits(leaf.clone());
        let reference = other.logits(theirs.clone().narrow(0, first, rows));
        let options = (&logits.device(), logits.dtype());
        let shape = logits.dims();
        let (own, data) = match logits.dtype() {
            burn::tensor::DType::F64 => compare::<f64>(&logits, &reference),
            _ => compare::<f32>(&logits, &reference),
        };
        losses.extend(own);
        let slopes = Tensor::<2>::from_data(data.convert_dtype(options.1), options);
        debug_assert_eq!(slopes.dims(), shape);
        let grads = (logits * slopes).sum().backward();
        gradients.push(
            leaf.grad(&grads)
                .unwrap_or_else(|| leaf.inner().zeros_like()),
        );
    }
    (losses, Tensor::cat(gradients, 0))
}

/// A tensor's numbers, which are of type `T`.
fn plain<T: Real>(x: &Tensor<2>) -> Vec<T> {
    let data = x.to_data();
    match data.as_slice::<T>() {
        Ok(values) => values.to_vec(),
        Err(_) => data.iter::<T>().collect(),
    }
}

/// `KL(p ‖ q)` of each row from both logits, and `q − p`, its derivative in the logits of `q`.
fn compare<T: Real>(logits: &Tensor<2>, reference: &Tensor<2>) -> (Vec<f64>, TensorData) {
    let [rows, width] = logits.dims();
    let (mut q, mut p) = (plain::<T>(logits), plain::<T>(reference));
    let losses = q
        .par_chunks_mut(width)
        .zip(p.par_chunks_mut(width))
        .map(|(q, p)| {
            vectorized(
                #[inline(always)]
                || row_divergence(q, p),
            )
        })
        .collect();
    (losses, TensorData::new(q, [rows, width]))
}

/// One row: logits become `q − p`.
#[inline(always)]
fn row_divergence<T: Real>(q: &mut [T], p: &mut [T]) -> f64 {
    // Σ p (log p − log q) with both as logits less the logarithm of the sum of their exponentials.
    let top = |x: &[T]| x.iter().copied().fold(T::neg_infinity(), T::max);
    let (top_q, top_p) = (top(q), top(p));
    let (mut sum_q, mut sum_p, mut mean) = (0.0, 0.0, 0.0);
    for (qs, ps) in q.chunks_mut(64).zip(p.chunks_mut(64)) {
        // Parts of a few numbers in the elements' type, their sums in f64.
        let (mut part_q, mut part_p, mut part_mean) = (T::zero(), T::zero(), T::zero());
        for (q, p) in qs.iter_mut().zip(ps) {
            let (l, r) = (*q - top_q, *p - top_p);
            let (e, f) = (l.exp_vector(), r.exp_vector());
            part_q += e;
            part_p += f;
            // Far below the top both are zero, and so is the product.
            part_mean += if f > T::zero() {
                f * (r - l)
            } else {
                T::zero()
            };
            *q = e;
            *p = f;
        }
        sum_q += part_q.as_f64();
        sum_p += part_p.as_f64();
        mean += part_mean.as_f64();
    }
    let (inverse_q, inverse_p) = (T::of(sum_q.recip()), T::of(sum_p.recip()));
    for (q, p) in q.iter_mut().zip(p) {
        *q = *q * inverse_q - *p * inverse_p;
    }
    mean / sum_p - sum_p.ln() + sum_q.ln()
}

/// The mean of an objective over a set, without the leash.
pub(crate) fn mean_over(
    aim: Aim<'_>,
    source: &Source<'_>,
    set: &[Prepared],
    apply: impl Fn(&Batch) -> (Tensor<2>, Vec<WeightUpdate>),
    check: impl Fn() -> Result<(), AdapterError>,
) -> Result<f64, AdapterError> {
    let (mut total, mut count) = (0.0, 0.0);
    let aim = Aim { leash: 0.0, ..aim };
    for samples in set.chunks(4) {
        check()?;
        let samples: Vec<&Prepared> = samples.iter().collect();
        let batch = Batch::new(source, &samples, aim.model.device())?;
        let (stream, updates) = apply(&batch);
        let evaluated = aim.evaluate(&batch, stream, &updates)?;
        total += evaluated.sum;
        count += evaluated.count;
    }
    Ok(total / f64::max(count, 1.0))
}

/// Typical sizes of the frozen streams and codes, at positions from the second on.
pub(crate) fn typical_sizes(
    source: &Source<'_>,
    set: &[&Prepared],
    mut each: impl FnMut() -> Result<(), AdapterError>,
) -> Result<Units, AdapterError> {
    let d = source.model.config().d_model;
    let (mut squares, mut count) = (0.0, 0.0);
    let (mut codes, mut active) = (0.0, 0.0);
    for sample in set {
        each()?;
        for sequence in &sample.sequences {
            let frozen = source.frozen(sequence)?;
            for &x in &frozen.stream[d..] {
                squares += f64::from(x) * f64::from(x);
                count += 1.0;
            }
            for &z in frozen.codes.iter().flat_map(SparseCodes::values) {
                codes += f64::from(z);
                active += 1.0;
            }
        }
    }
    let tokens = count / d as f64;
    Ok(Units {
        stream: (squares / f64::max(count, 1.0))
            .sqrt()
            .max(f64::MIN_POSITIVE),
        code: (codes / f64::max(active, 1.0)).max(f64::from(f32::MIN_POSITIVE)),
        active: active / f64::max(tokens, 1.0),
    })
}

/// A tensor's numbers, in `f32`.
pub(crate) fn numbers(tensor: Option<Tensor<2>>, count: usize) -> Vec<f32> {
    tensor.map_or_else(|| vec![0.0; count], |tensor| values(&tensor))
}
