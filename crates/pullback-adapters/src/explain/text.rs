//! The text that a change is measured on.

use pullback_activations::{ActivationStore, Corpus};
use pullback_model::Model;

use crate::samples::Sample;
use crate::train::prepare::prepare;
use crate::{AdapterError, Objective};

/// Tokens that are run together, and which of them count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextSequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Positions that count, ascending: features are measured there, and the loss is that of the token after each. Neither
    /// the first position, an attention sink that no adapter acts on, nor the last is among them.
    pub counted: Vec<usize>,
}

impl TextSequence {
    /// A sequence of which every position counts but the first and the last.
    pub fn plain(ids: Vec<u32>) -> Self {
        let counted = (1..ids.len().saturating_sub(1)).collect();
        Self { ids, counted }
    }
}

/// Text that a change is measured on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldOutText {
    sequences: Vec<TextSequence>,
    name: String,
}

impl HeldOutText {
    /// From sequences; `name` is what messages call it.
    ///
    /// # Errors
    /// No position counts, or one that counts is the first, the last, out of order or not there.
    pub fn new(name: &str, sequences: Vec<TextSequence>) -> Result<Self, AdapterError> {
        let refuse = |problem: String| Err(AdapterError::Option(format!("{name}: {problem}")));
        for (number, sequence) in sequences.iter().enumerate() {
            let last = sequence.ids.len().saturating_sub(1);
            let inside = sequence.counted.iter().all(|&at| at > 0 && at < last);
            if !inside || !sequence.counted.is_sorted_by(|a, b| a < b) {
                return refuse(format!(
                    "the positions that count in sequence {number} must ascend between 1 and {} (exclusive)",
                    last.max(1)
                ));
            }
        }
        let sequences: Vec<TextSequence> = sequences
            .into_iter()
            .filter(|sequence| !sequence.counted.is_empty())
            .collect();
        if sequences.is_empty() {
            return refuse(
                "is too short: no position has a token before it and one after it".to_owned(),
            );
        }
        Ok(Self {
            sequences,
            name: name.to_owned(),
        })
    }

    /// The first `tokens` tokens of a corpus, document by document, in windows of `context` tokens. A window is at least
    /// three tokens long.
    ///
    /// # Errors
    /// The corpus is too short, or cannot be tokenized.
    pub fn of_corpus(
        model: &Model,
        corpus: &Corpus,
        context: usize,
        tokens: usize,
    ) -> Result<Self, AdapterError> {
        let context = checked_context(model, context)?;
        let mut left = tokens;
        let mut sequences = Vec::new();
        for document in corpus.documents() {
            if left == 0 {
                break;
            }
            // Of a long document only as much is tokenized as is likely to be used.
            let end = left.saturating_mul(BYTES_A_TOKEN).min(document.text.len());
            let text = &document.text[..document.text.floor_char_boundary(end)];
            let mut ids = model.tokenizer().encode_with_bos(text, false)?;
            ids.truncate(left);
            left -= ids.len();
            let windows = ids.chunks(context).filter(|window| window.len() > 2);
            sequences.extend(windows.map(|window| TextSequence::plain(window.to_vec())));
        }
        Self::new(&corpus.path().display().to_string(), sequences)
    }

    /// Samples of the kinds that adapters learn from: of questions and conversations the positions before the tokens of
    /// answers count, of plain text all.
    ///
    /// # Errors
    /// A sample does not fit the model.
    pub fn of_samples(
        name: &str,
        model: &Model,
        samples: &[Sample],
        context: usize,
    ) -> Result<Self, AdapterError> {
        let context = checked_context(model, context)?;
        let mut sequences = Vec::new();
        for sample in samples {
            for prepared in prepare(model, sample, Objective::NextToken, context)? {
                for sequence in prepared.sequences {
                    let mut counted = sequence.counted;
                    counted.retain(|&at| at > 0 && at + 1 < sequence.ids.len());
                    let ids = sequence.ids;
                    sequences.push(TextSequence { ids, counted });
                }
            }
        }
        Self::new(name, sequences)
    }

    /// The held-out sequences of a store, `tokens` tokens at most (at least one sequence).
    ///
    /// # Errors
    /// The store holds no held-out text.
    pub fn of_store(store: &ActivationStore, tokens: usize) -> Result<Self, AdapterError> {
        let context = store.info().context;
        let starts = store.sequence_starts(true);
        if starts.is_empty() {
            return Err(AdapterError::Option(format!(
                "{} holds no held-out text: harvest with --held-out above 0",
                store.path().display()
            )));
        }
        let count = (tokens / context.max(1)).max(1);
        let sequences = starts.into_iter().take(count).map(|start| {
            let rows = start..start + context;
            TextSequence::plain(rows.map(|row| store.token(row)).collect())
        });
        Self::new(&store.path().display().to_string(), sequences.collect())
    }

    /// The sequences; at least one position counts in each.
    pub fn sequences(&self) -> &[TextSequence] {
        &self.sequences
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        let sequences = self.sequences.iter();
        sequences.map(|sequence| sequence.ids.len()).sum()
    }

    /// Positions that count.
    pub fn counted(&self) -> usize {
        let sequences = self.sequences.iter();
        sequences.map(|sequence| sequence.counted.len()).sum()
    }
}

/// Bytes of text that are read for a token that is wanted: far more than most have.
const BYTES_A_TOKEN: usize = 16;

fn checked_context(model: &Model, context: usize) -> Result<usize, AdapterError> {
    if context < 3 {
        return Err(AdapterError::Option(format!(
            "a context of {context} tokens holds no position with a token before it and one after it: at least 3 are needed"
        )));
    }
    Ok(context.min(model.config().n_ctx))
}
