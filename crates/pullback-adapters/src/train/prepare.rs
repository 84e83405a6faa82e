//! Samples as the model sees them, and what of the model does not change while an adapter is trained: computed once and
//! kept.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use pullback_kernels::sparse::SparseCodes;
use pullback_model::{Input, Message, Model, RunOptions};
use pullback_sae::{Sae, SplicedRows};

use crate::feature::codes_of;
use crate::residual::values;
use crate::samples::Sample;
use crate::train::batch::replaced;
use crate::{AdapterError, Objective};

/// Bytes of frozen activations that are kept; beyond, they are made again for each batch.
const CACHE: usize = 1 << 29;

/// One sequence of a sample.
pub(crate) struct Sequence {
    pub(crate) ids: Vec<u32>,
    /// Rows whose next token counts.
    pub(crate) counted: Vec<usize>,
    kept: OnceCell<Rc<Frozen>>,
}

/// A sample: one sequence, or the chosen and the rejected one.
pub(crate) struct Prepared {
    pub(crate) sequences: Vec<Sequence>,
}

/// What does not change about a sequence.
pub(crate) struct Frozen {
    /// `[time, d]`: the stream as it enters the first block that is run with gradients.
    pub(crate) stream: Vec<f32>,
    /// Codes of it under the dictionary, none at the positions adapters leave alone.
    pub(crate) codes: Option<SparseCodes<f32>>,
    /// The final, normalised stream at the counted rows without the adapter, and of the teacher.
    pub(crate) finals: [Option<Vec<f32>>; 2],
    /// The log-probability of the counted tokens without the adapter.
    pub(crate) log_probability: f64,
}

impl Frozen {
    fn bytes(&self) -> usize {
        let codes = self.codes.as_ref().map_or(0, SparseCodes::active);
        let finals = self.finals.iter().flatten().map(Vec::len).sum::<usize>();
        4 * (self.stream.len() + finals) + 8 * codes
    }
}

/// The frozen side of training.
pub(crate) struct Source<'a> {
    pub(crate) model: &'a Model,
    /// The first block that is run with gradients.
    pub(crate) first: usize,
    pub(crate) dictionary: Option<Arc<Sae>>,
    pub(crate) teacher: Option<&'a Model>,
    pub(crate) objective: Objective,
    pub(crate) leash: bool,
    /// The dictionary whose reconstruction stands in for the stream after a block, and that block, where all blocks that are run
    /// with gradients come after it.
    pub(crate) around: Option<(Arc<Sae>, usize)>,
    kept: Cell<usize>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(model: &'a Model, first: usize, objective: Objective, leash: bool) -> Self {
        Self {
            model,
            first,
            dictionary: None,
            teacher: None,
            objective,
            leash,
            around: None,
            kept: Cell::new(0),
        }
    }

    /// What does not change about a sequence.
    ///
    /// # Errors
    /// The model refused the sequence.
    pub(crate) fn frozen(&self, sequence: &Sequence) -> Result<Rc<Frozen>, AdapterError> {
        if let Some(kept) = sequence.kept.get() {
            return Ok(Rc::clone(kept));
        }
        let frozen = Rc::new(self.compute(sequence)?);
        if self.kept.get() + frozen.bytes() <= CACHE {
            self.kept.set(self.kept.get() + frozen.bytes());
            // It was empty just now.
            let _ = sequence.kept.set(Rc::clone(&frozen));
        }
        Ok(frozen)
    }

    fn compute(&self, sequence: &Sequence) -> Result<Frozen, AdapterError> {
        let model = self.model;
        let until = |block: usize| RunOptions {
            stop_at: Some(block),
            ..RunOptions::default()
        };
        let mut input = Input::tokens(&sequence.ids);
        if let Some((sae, layer)) = &self.around {
            let read = model.run(input, &until(layer + 1))?.stream;
            let rows = replaced(1, sequence.ids.len());
            let spliced = SplicedRows::new(sae, &values(&read), rows)?;
            let data = TensorData::new(spliced.values().to_vec(), read.dims());
            let options = (&read.device(), read.dtype());
            let made = Tensor::<2>::from_data(data.convert_dtype(options.1), options);
            input = Input::residual(made, 1, layer + 1);
        }
        let out = model.run(input, &until(self.first))?;
        let stream = values(&out.stream);
        let dictionary = self.dictionary.as_ref();
        let codes = dictionary.map(|dictionary| codes_of(dictionary, &stream, 0));
        let mut finals = [None, None];
        let mut log_probability = 0.0;
        let dpo = matches!(self.objective, Objective::Dpo { .. });
        if dpo || self.leash {
            let rest = Input::residual(out.stream, 1, self.first);
            let last = model.run(rest, &RunOptions::default())?.stream;
            let last = rows_of(last, &sequence.counted);
            if dpo {
                let losses = model.cross_entropy(last.clone(), &targets(sequence))?;
                log_probability = -values(&losses).iter().map(|&x| f64::from(x)).sum::<f64>();
            }
            if self.leash {
                finals[0] = Some(values(&last));
            }
        }
        if let (Some(teacher), Objective::Distill) = (self.teacher, self.objective) {
            let last = teacher.run(Input::tokens(&sequence.ids), &RunOptions::default())?;
            finals[1] = Some(values(&rows_of(last.stream, &sequence.counted)));
        }
        Ok(Frozen {
            stream,
            codes,
            finals,
            log_probability,
        })
    }
}

/// The tokens that count.
pub(crate) fn targets(sequence: &Sequence) -> Vec<u32> {
    let counted = sequence.counted.iter();
    counted.map(|&row| sequence.ids[row + 1]).collect()
}

impl Sequence {
    /// The rows of `x [time, _]` whose next token counts.
    pub(crate) fn rows_of(&self, x: Tensor<2>) -> Tensor<2> {
        rows_of(x, &self.counted)
    }
}

fn rows_of(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let count = rows.len();
    let rows = Tensor::from_data(TensorData::new(rows, [count]), &x.device());
    x.select(0, rows)
}

/// A sample's sequences: for preferences two, otherwise one; plain text is cut into windows, each a sample.
///
/// # Errors
/// The sample does not fit the model or the objective.
pub(crate) fn prepare(
    model: &Model,
    sample: &Sample,
    objective: Objective,
    context: usize,
) -> Result<Vec<Prepared>, AdapterError> {
    let Some(conversation) = sample.conversation() else {
        if objective.prefers() {
            return Err(no_rejected(sample, objective));
        }
        return windows(model, sample, context);
    };
    let mut sequences = vec![conversation_tokens(model, sample, &conversation)?];
    if objective.prefers() {
        let rejected = sample
            .rejected_conversation()
            .ok_or_else(|| no_rejected(sample, objective))?;
        let rejected = conversation_tokens(model, sample, &rejected)?;
        // Only the last answer differs; what is said before it is not preferred to itself.
        let answer = last_answer(model, &conversation)?;
        sequences.push(rejected);
        for sequence in &mut sequences {
            sequence.counted.retain(|&row| row + 1 >= answer);
        }
        if sequences.iter().any(|sequence| sequence.counted.is_empty()) {
            return Err(AdapterError::Option(format!(
                "an answer to `{}` has no tokens",
                sample.opening()
            )));
        }
    }
    Ok(vec![Prepared { sequences }])
}

fn no_rejected(sample: &Sample, objective: Objective) -> AdapterError {
    AdapterError::Option(format!(
        "the sample `{}` has no \"rejected\" answer, which the objective {} needs",
        sample.opening(),
        objective.name()
    ))
}

/// The position of the first token of the last answer.
fn last_answer(model: &Model, conversation: &[Message]) -> Result<usize, AdapterError> {
    let template = model.chat_template()?;
    let before = &conversation[..conversation.len() - 1];
    Ok(template.encode_chat(model.tokenizer(), before, true)?.len())
}

fn conversation_tokens(
    model: &Model,
    sample: &Sample,
    messages: &[Message],
) -> Result<Sequence, AdapterError> {
    let template = model.chat_template()?;
    let (mut ids, mask) = template.encode_chat_with_mask(model.tokenizer(), messages, false)?;
    let counted: Vec<usize> = (1..ids.len())
        .filter(|&at| mask[at])
        .map(|at| at - 1)
        .collect();
    let Some(&last) = counted.last() else {
        return Err(AdapterError::Option(format!(
            "the answer to `{}` has no tokens",
            sample.opening()
        )));
    };
    // Nothing after the last counted token is needed; the token that ends the answer is a target.
    ids.truncate(last + 2);
    let n_ctx = model.config().n_ctx;
    if ids.len() > n_ctx {
        return Err(AdapterError::Option(format!(
            "question and answer to `{}` have {} tokens, the model's context is {n_ctx}",
            sample.opening(),
            ids.len()
        )));
    }
    Ok(sequence(ids, counted))
}

fn sequence(ids: Vec<u32>, counted: Vec<usize>) -> Sequence {
    Sequence {
        ids,
        counted,
        kept: OnceCell::new(),
    }
}

/// Plain text in windows of at most `context` tokens, all of which but the first count.
fn windows(model: &Model, sample: &Sample, context: usize) -> Result<Vec<Prepared>, AdapterError> {
    let Sample::Text { text } = sample else {
        return Ok(Vec::new());
    };
    let ids = model.tokenizer().encode_with_bos(text, true)?;
    let context = context.min(model.config().n_ctx);
    let windows = ids.chunks(context).filter(|window| window.len() > 1);
    let prepared: Vec<Prepared> = windows
        .map(|window| Prepared {
            sequences: vec![sequence(window.to_vec(), (0..window.len() - 1).collect())],
        })
        .collect();
    if prepared.is_empty() {
        return Err(AdapterError::Option(format!(
            "the text `{}` has fewer than two tokens",
            sample.opening()
        )));
    }
    Ok(prepared)
}
