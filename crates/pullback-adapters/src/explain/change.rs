//! A model as it was and as it became, run up to a site and from there on.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use pullback_artifact::{Control, Stage};
use pullback_model::{
    Edit, Input, Intervention, Model, ModelConfig, Place, Rows, RunOptions, Site, WeightUpdate,
};

use super::text::TextSequence;
use crate::residual::values;
use crate::{Adapter, AdapterError};

/// What became of a model.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// It got an adapter.
    Adapter(&'a Adapter),
    /// It became another checkpoint: one with the same tokens and the same shape.
    Checkpoint(&'a Model),
}

/// One of the two: a model with what acts in it.
pub(crate) struct Side<'a> {
    model: &'a Model,
    site: Site,
    /// All sites in the order in which they are computed.
    order: Vec<Site>,
    interventions: Vec<Intervention>,
    updates: Vec<WeightUpdate>,
    /// What errors call it.
    name: &'static str,
}

/// Rows that are run together, where sequences are not longer.
const ROWS: usize = 1024;

impl<'a> Side<'a> {
    /// The model as it was.
    pub(crate) fn before(model: &'a Model, site: Site) -> Self {
        Self {
            model,
            site,
            order: Site::all(model.config()),
            interventions: Vec::new(),
            updates: Vec::new(),
            name: "the model without the change",
        }
    }

    /// The model as it became; an adapter's change is `factor` times as large.
    ///
    /// # Errors
    /// The change acts above the site, or the models do not go together.
    pub(crate) fn after(
        model: &'a Model,
        change: Change<'a>,
        site: Site,
        factor: f32,
    ) -> Result<Self, AdapterError> {
        let mut side = Self::before(model, site);
        side.name = "the model with the change";
        match change {
            Change::Checkpoint(other) => {
                check_same_shape(model, other)?;
                side.model = other;
            }
            Change::Adapter(adapter) => {
                check_below(adapter, site, model.config())?;
                match adapter.scaled(factor)? {
                    Adapter::Residual(adapter) => {
                        let adapter = adapter.to_device(model.device());
                        let edit = Intervention::new(adapter.site, Arc::new(adapter));
                        side.interventions.push(edit);
                    }
                    Adapter::Feature(adapter) => {
                        let edit = Intervention::new(adapter.site, Arc::new(adapter));
                        side.interventions.push(edit);
                    }
                    Adapter::Lora(adapter) => {
                        side.updates = adapter.updates(1.0, model.device(), model.dtype());
                    }
                }
            }
        }
        Ok(side)
    }

    fn place(&self, site: Site) -> usize {
        let found = self.order.iter().position(|&other| other == site);
        found.unwrap_or(self.order.len())
    }

    /// What acts in some blocks, and the interventions that `wanted` lets through.
    fn acting(
        &self,
        blocks: Range<usize>,
        wanted: impl Fn(usize) -> bool,
    ) -> (Vec<Intervention>, Vec<WeightUpdate>) {
        let edits = self.interventions.iter();
        let edits = edits.filter(|edit| wanted(self.place(edit.site())));
        let inside = |update: &&WeightUpdate| {
            let layer = update.weight.layer();
            layer.is_some_and(|layer| blocks.contains(&layer))
        };
        let updates = self.updates.iter().filter(inside);
        (edits.cloned().collect(), updates.cloned().collect())
    }

    /// Activations at the site `[rows, d]`, after what acts there, on all tokens of sequences.
    ///
    /// # Errors
    /// The model refused a sequence; a number is not finite; the work was interrupted.
    pub(crate) fn activations(
        &self,
        sequences: &[TextSequence],
        control: &Control,
        stage: &Stage,
    ) -> Result<Vec<f32>, AdapterError> {
        let own = self.place(self.site);
        let stop_at = self.site.layer().map(|layer| layer + 1);
        let blocks = 0..stop_at.unwrap_or(self.model.config().n_layers);
        let (interventions, updates) = self.acting(blocks, |place| place <= own);
        let options = RunOptions {
            stop_at,
            interventions: &interventions,
            record: &[self.site],
            updates: &updates,
            device: None,
        };
        let mut all = Vec::new();
        let all_sequences: Vec<&TextSequence> = sequences.iter().collect();
        for batch in batches(&all_sequences) {
            control.check()?;
            let ids: Vec<&[u32]> = batch.iter().map(|sequence| &sequence.ids[..]).collect();
            let mut out = self.model.run(Input::batch(&ids), &options)?;
            let found = values(&out.take(self.site)?);
            if found.iter().any(|x| !x.is_finite()) {
                return Err(AdapterError::Option(format!(
                    "activations of {} at {} are not finite: its weights are damaged or too large",
                    self.name, self.site
                )));
            }
            all.extend(found);
            stage.advance(ids.iter().map(|ids| ids.len() as u64).sum());
        }
        Ok(all)
    }

    /// For each sequence the sum of the losses of its counted positions, in nats, where the activations at the site are
    /// `x`, the concatenation of `[tokens, d]` of each sequence.
    ///
    /// # Errors
    /// The model refused a sequence; a loss is not finite; the work was interrupted.
    pub(crate) fn losses(
        &self,
        sequences: &[&TextSequence],
        x: &[f32],
        control: &Control,
        stage: &Stage,
    ) -> Result<Vec<f64>, AdapterError> {
        let tokens: usize = sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let d = x.len() / tokens.max(1);
        let mut start = 0;
        let mut losses = Vec::with_capacity(sequences.len());
        for batch in batches(sequences) {
            control.check()?;
            let rows: usize = batch.iter().map(|sequence| sequence.ids.len()).sum();
            let data = TensorData::new(x[start * d..(start + rows) * d].to_vec(), [rows, d]);
            let stream = Tensor::<2>::from_data(data, self.model.device());
            losses.extend(self.batch_losses(batch, stream)?);
            start += rows;
            stage.advance(rows as u64);
        }
        if let Some(wrong) = losses.iter().find(|loss| !loss.is_finite()) {
            return Err(AdapterError::Option(format!(
                "a loss of {} is {wrong}: its weights are damaged or too large",
                self.name
            )));
        }
        Ok(losses)
    }

    fn batch_losses(
        &self,
        batch: &[&TextSequence],
        at_site: Tensor<2>,
    ) -> Result<Vec<f64>, AdapterError> {
        let n_layers = self.model.config().n_layers;
        let lengths: Vec<usize> = batch.iter().map(|sequence| sequence.ids.len()).collect();
        let own = self.place(self.site);
        let goes_on_at = match (self.site.place(), self.site.layer()) {
            (Place::ResidPre, layer) => layer,
            (Place::ResidPost, Some(layer)) => Some(layer + 1),
            _ => None,
        };
        let (input, interventions, updates) = if let Some(layer) = goes_on_at {
            let (interventions, updates) = self.acting(layer..n_layers, |place| place > own);
            let input = Input::Residual {
                stream: at_site,
                lengths,
                layer,
            };
            (input, interventions, updates)
        } else {
            let (mut interventions, updates) = self.acting(0..n_layers, |_| true);
            interventions.push(Intervention::new(self.site, Arc::new(Given(at_site))));
            let ids: Vec<&[u32]> = batch.iter().map(|sequence| &sequence.ids[..]).collect();
            (Input::batch(&ids), interventions, updates)
        };
        let options = RunOptions {
            interventions: &interventions,
            updates: &updates,
            ..RunOptions::default()
        };
        let last = self.model.run(input, &options)?.stream;
        let (mut rows, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
        for sequence in batch {
            for &at in &sequence.counted {
                rows.push((start + at) as i64);
                targets.push(sequence.ids[at + 1]);
            }
            start += sequence.ids.len();
        }
        let count = rows.len();
        let rows = Tensor::from_data(TensorData::new(rows, [count]), &last.device());
        let of_rows = values(&self.model.cross_entropy(last.select(0, rows), &targets)?);
        let mut of_rows = of_rows.into_iter().map(f64::from);
        let sums = batch.iter().map(|sequence| {
            let own = of_rows.by_ref().take(sequence.counted.len());
            own.sum()
        });
        Ok(sums.collect())
    }
}

/// Consecutive sequences that are run together: so many that there are about [`ROWS`] tokens.
fn batches<'a, 's>(sequences: &'a [&'s TextSequence]) -> Vec<&'a [&'s TextSequence]> {
    let mut batches = Vec::new();
    let (mut first, mut rows) = (0, 0);
    for (number, sequence) in sequences.iter().enumerate() {
        if number > first && rows + sequence.ids.len() > ROWS {
            batches.push(&sequences[first..number]);
            (first, rows) = (number, 0);
        }
        rows += sequence.ids.len();
    }
    if first < sequences.len() {
        batches.push(&sequences[first..]);
    }
    batches
}

/// Puts given activations in the place of those of a run.
struct Given(Tensor<2>);

impl Edit for Given {
    fn apply(&self, _x: Tensor<2>, _rows: &Rows) -> Tensor<2> {
        self.0.clone()
    }

    fn describe(&self) -> String {
        "given activations".to_owned()
    }
}

/// Whether what an adapter does can be seen at the site.
///
/// # Errors
/// It acts above.
fn check_below(adapter: &Adapter, site: Site, config: &ModelConfig) -> Result<(), AdapterError> {
    let order = Site::all(config);
    let place = |site: Site| order.iter().position(|&other| other == site);
    let above = match adapter {
        Adapter::Lora(adapter) => {
            let first = adapter.parts.iter().filter_map(|part| part.weight.layer());
            let first = first.min();
            let layer = match site.place() {
                Place::FinalNormalized | Place::FinalScale | Place::Logits => Some(config.n_layers),
                _ => site.layer(),
            };
            first
                .filter(|&first| layer.is_none_or(|layer| first > layer))
                .map(|first| format!("updates weights of block {first} and above"))
        }
        _ => adapter
            .site()
            .filter(|&own| place(own) > place(site))
            .map(|own| format!("acts at {own}")),
    };
    match above {
        Some(does) => Err(AdapterError::Option(format!(
            "the adapter {does}, above the dictionary's site {site}: nothing changes there; a dictionary of a site at or above it is needed"
        ))),
        None => Ok(()),
    }
}

/// Whether two models are checkpoints of one.
///
/// # Errors
/// Their shapes or tokens differ.
fn check_same_shape(from: &Model, to: &Model) -> Result<(), AdapterError> {
    let (a, b) = (from.config(), to.config());
    let names = [from, to].map(|model| model.files().path().display().to_string());
    let refuse = |what: &str, of: [&dyn std::fmt::Display; 2]| {
        Err(AdapterError::Option(format!(
            "{} and {} are no checkpoints of one model: {what} is {} in the first and {} in the second",
            names[0], names[1], of[0], of[1]
        )))
    };
    if a.architecture != b.architecture {
        return refuse("the family", [&a.architecture, &b.architecture]);
    }
    for (what, own, others) in [
        ("the number of blocks", a.n_layers, b.n_layers),
        ("the width of the stream", a.d_model, b.d_model),
        ("the number of heads", a.n_heads, b.n_heads),
        ("the width of the MLP", a.d_mlp, b.d_mlp),
        ("the number of tokens", a.d_vocab, b.d_vocab),
    ] {
        if own != others {
            return refuse(what, [&own, &others]);
        }
    }
    let (own, others) = (from.tokenizer(), to.tokenizer());
    if own.vocab_size() != others.vocab_size() {
        let sizes = [own.vocab_size(), others.vocab_size()];
        return refuse("the size of the vocabulary", [&sizes[0], &sizes[1]]);
    }
    for id in 0..own.vocab_size() as u32 {
        if own.token_bytes(id) != others.token_bytes(id) {
            let texts = [own.token_text(id), others.token_text(id)].map(|text| format!("{text:?}"));
            return refuse(&format!("token {id}"), [&texts[0], &texts[1]]);
        }
    }
    Ok(())
}
