//! The model with its activations replaced by a dictionary's reconstruction.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use pullback_activations::ActivationStore;
use pullback_artifact::Control;
use pullback_model::{Edit, Input, Intervention, Model, Place, Rows, RunOptions, Site, Zero};
use serde::{Deserialize, Serialize};

use crate::{Dictionary, SaeError};

/// Replaces activations by their reconstruction, from `first_position` on. Gradients do not flow through
/// the dictionary.
pub struct Splice {
    /// The dictionary.
    pub dictionary: Arc<dyn Dictionary>,
    /// The first position that is replaced.
    pub first_position: usize,
}

impl Edit for Splice {
    fn apply(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let [n, d] = x.dims();
        let mut values: Vec<f32> = x.clone().into_data().iter::<f32>().collect();
        let codes = self.dictionary.encode(&values);
        let reconstruction = self.dictionary.reconstruct(&values, &codes);
        for (row, position) in rows.positions().enumerate() {
            if position >= self.first_position {
                let span = row * d..(row + 1) * d;
                values[span.clone()].copy_from_slice(&reconstruction[span]);
            }
        }
        Tensor::from_data(TensorData::new(values, [n, d]), (&x.device(), x.dtype()))
    }

    fn describe(&self) -> String {
        "a dictionary's reconstruction".to_owned()
    }
}

/// Cross-entropies in nats a token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CrossEntropy {
    /// Of the model as it is.
    pub ce_clean: f64,
    /// With the reconstruction in place of the activation.
    pub ce_spliced: f64,
    /// With zero in place of the activation.
    pub ce_zero: f64,
    /// `(ce_zero − ce_spliced) / (ce_zero − ce_clean)`.
    pub ce_score: f64,
}

/// Sequences run together.
const BATCH: usize = 8;

/// Measures how well the model runs on a dictionary's reconstructions, on held-out sequences of a store.
///
/// The first position of each sequence keeps its activation in all three runs (it is an attention sink that
/// no dictionary is trained on) and its prediction is not counted; all other predictions are.
///
/// # Errors
/// The store holds no held-out sequence; the model does not fit the store; the work was interrupted.
pub fn cross_entropy_score(
    model: &Model,
    store: &ActivationStore,
    dictionary: Arc<dyn Dictionary>,
    max_sequences: usize,
    control: &Control,
) -> Result<CrossEntropy, SaeError> {
    let site = store.info().site;
    let starts: Vec<usize> = store
        .sequence_starts(true)
        .into_iter()
        .take(max_sequences)
        .collect();
    if starts.is_empty() {
        return Err(SaeError::Option(format!(
            "{} holds no held-out text: harvest with --held-out above 0",
            store.path().display()
        )));
    }
    if dictionary.d() != store.info().d {
        return Err(SaeError::Option(format!(
            "the dictionary is of width {}, the store's activations of width {}",
            dictionary.d(),
            store.info().d
        )));
    }
    let edits: [Option<Arc<dyn Edit>>; 3] = [
        None,
        Some(Arc::new(Splice {
            dictionary,
            first_position: 1,
        })),
        Some(Arc::new(Zero { first_position: 1 })),
    ];
    let context = store.info().context;
    let stage = control.stage(
        "cross-entropy",
        (3 * starts.len() * context) as u64,
        "tokens",
    );
    let mut totals = [0.0; 3];
    let mut count = 0;
    for starts in starts.chunks(BATCH) {
        for (total, edit) in totals.iter_mut().zip(&edits) {
            control.check()?;
            *total += batch_loss(model, store, site, starts, edit.clone())?;
            stage.advance((starts.len() * context) as u64);
        }
        count += starts.len() * (context - 2);
    }
    stage.finish();
    let [ce_clean, ce_spliced, ce_zero] = totals.map(|total| total / count as f64);
    Ok(CrossEntropy {
        ce_clean,
        ce_spliced,
        ce_zero,
        ce_score: (ce_zero - ce_spliced) / (ce_zero - ce_clean),
    })
}

/// Sum of the losses at all positions but the first and the last.
fn batch_loss(
    model: &Model,
    store: &ActivationStore,
    site: Site,
    starts: &[usize],
    edit: Option<Arc<dyn Edit>>,
) -> Result<f64, SaeError> {
    let (batch, time) = (starts.len(), store.info().context);
    let ids: Vec<u32> = starts
        .iter()
        .flat_map(|&start| (start..start + time).map(|row| store.token(row)))
        .collect();
    // What the layers below made stands in the store.
    let stream = if let (Place::ResidPost, Some(layer)) = (site.place(), site.layer()) {
        let mut values = Vec::with_capacity(ids.len() * store.info().d);
        for &start in starts {
            for row in start..start + time {
                values.extend_from_slice(store.row(row));
            }
        }
        let data = TensorData::new(values, [ids.len(), store.info().d]);
        let mut stream = Tensor::<2>::from_data(data, model.device());
        if let Some(edit) = &edit {
            stream = edit.apply(stream, &Rows::uniform(batch, time, 0));
        }
        let input = Input::residual(stream, batch, layer + 1);
        model.run(input, &RunOptions::default())?.stream
    } else {
        let interventions: Vec<Intervention> = edit
            .into_iter()
            .map(|edit| Intervention::new(site, edit))
            .collect();
        let options = RunOptions {
            interventions: &interventions,
            ..RunOptions::default()
        };
        let input = Input::uniform(ids.clone(), batch);
        model.run(input, &options)?.stream
    };
    let counted: Vec<usize> = (0..batch)
        .flat_map(|sequence| (1..time - 1).map(move |position| sequence * time + position))
        .collect();
    let targets: Vec<u32> = counted.iter().map(|&row| ids[row + 1]).collect();
    let rows: Vec<i64> = counted.iter().map(|&row| row as i64).collect();
    let rows = Tensor::from_data(TensorData::new(rows, [counted.len()]), &stream.device());
    let losses = model.cross_entropy(stream.select(0, rows), &targets)?;
    Ok(losses.into_data().iter::<f64>().sum())
}
