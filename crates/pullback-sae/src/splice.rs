//! The model with its activations replaced by a dictionary's reconstruction.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Tensor, TensorData};
use pullback_activations::ActivationStore;
use pullback_artifact::Control;
use pullback_model::{Edit, Input, Intervention, Model, Place, Rows, RunOptions, Zero};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::judge::{columns, side_by_side};
use crate::{Dictionary, SaeError, Sites};

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

/// A transcoder in place of what it has learned to do: one edit keeps what it reads, another, at a later site of the same run,
/// writes what it makes of it.
#[derive(Clone)]
struct Passed {
    dictionary: Arc<dyn Dictionary>,
    first_position: usize,
    /// What the transcoder made of what was read last.
    made: Arc<Mutex<Vec<f32>>>,
}

/// Reads.
struct Read(Passed);
/// Writes.
struct Write(Passed);

/// The two edits by which a transcoder's output takes the place of an activation, from `first_position` on: the first belongs
/// at the site that it reads, the second at the one that it reconstructs, which must come later in the model.
pub fn splice_transcoder(
    dictionary: Arc<dyn Dictionary>,
    first_position: usize,
) -> (Arc<dyn Edit>, Arc<dyn Edit>) {
    let passed = Passed {
        dictionary,
        first_position,
        made: Arc::default(),
    };
    (Arc::new(Read(passed.clone())), Arc::new(Write(passed)))
}

impl Edit for Read {
    fn apply(&self, x: Tensor<2>, _: &Rows) -> Tensor<2> {
        let values: Vec<f32> = x.clone().into_data().iter::<f32>().collect();
        let codes = self.0.dictionary.encode(&values);
        let made = self.0.dictionary.reconstruct(&values, &codes);
        *self.0.made.lock().unwrap_or_else(PoisonError::into_inner) = made;
        x
    }

    fn describe(&self) -> String {
        "what a transcoder reads".to_owned()
    }
}

impl Edit for Write {
    fn apply(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let values = self.0.made.lock().unwrap_or_else(PoisonError::into_inner);
        Given {
            values: values.clone(),
            first_position: self.0.first_position,
        }
        .apply(x, rows)
    }

    fn describe(&self) -> String {
        "a transcoder's output".to_owned()
    }
}

/// Cross-entropies, and divergences of the predictions from those of the model as it is, in nats a token.
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
    /// `KL(clean ‖ spliced)`.
    pub kl_spliced: f64,
    /// `KL(clean ‖ zero)`.
    pub kl_zero: f64,
    /// `(kl_zero − kl_spliced) / kl_zero`.
    pub kl_score: f64,
}

impl CrossEntropy {
    /// Of the means.
    fn of([ce_clean, ce_spliced, ce_zero, kl_spliced, kl_zero]: [f64; 5]) -> Self {
        Self {
            ce_clean,
            ce_spliced,
            ce_zero,
            ce_score: (ce_zero - ce_spliced) / (ce_zero - ce_clean),
            kl_spliced,
            kl_zero,
            kl_score: (kl_zero - kl_spliced) / kl_zero,
        }
    }
}

/// Sequences run together.
const BATCH: usize = 8;
/// Rows whose logits stand in memory at a time, of all three runs.
const ROWS: usize = 128;

/// Replaces activations by given ones `[rows, d]`, from `first_position` on.
struct Given {
    values: Vec<f32>,
    first_position: usize,
}

impl Edit for Given {
    fn apply(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let [n, d] = x.dims();
        let mut values: Vec<f32> = x.clone().into_data().iter::<f32>().collect();
        for (row, position) in rows.positions().enumerate() {
            if position >= self.first_position {
                let span = row * d..(row + 1) * d;
                values[span.clone()].copy_from_slice(&self.values[span]);
            }
        }
        Tensor::from_data(TensorData::new(values, [n, d]), (&x.device(), x.dtype()))
    }

    fn describe(&self) -> String {
        "a dictionary's reconstruction".to_owned()
    }
}

/// Measures how well the model runs on a dictionary's reconstructions, on held-out sequences: for each site that is
/// reconstructed, with the activations there replaced and all others as the model makes them. What is read are the stores'
/// activations, those of the model as it is.
///
/// The first position of each sequence keeps its activation in all three runs (it is an attention sink that
/// no dictionary is trained on) and its prediction is not counted; all other predictions are.
///
/// # Errors
/// The stores hold no held-out sequence; the model does not fit them; the work was interrupted.
pub fn cross_entropy_scores(
    model: &Model,
    sites: &Sites<'_>,
    dictionary: &Arc<dyn Dictionary>,
    max_sequences: usize,
    control: &Control,
) -> Result<Vec<CrossEntropy>, SaeError> {
    let store = sites.first();
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
    sites.check(&**dictionary)?;
    let context = store.info().context;
    let widths: Vec<usize> = sites.outputs.iter().map(|store| store.info().d).collect();
    // The model as it is, and twice for each site.
    let runs = (1 + 2 * widths.len()) * starts.len() * context;
    let stage = control.stage("cross-entropy", runs as u64, "tokens");
    let mut totals = vec![[0.0; 5]; widths.len()];
    let mut count = 0;
    for starts in starts.chunks(BATCH) {
        let rows: Vec<u32> = starts
            .iter()
            .flat_map(|&start| (start..start + context).map(|row| row as u32))
            .collect();
        let ids: Vec<u32> = rows.iter().map(|&row| store.token(row as usize)).collect();
        let x = side_by_side(&sites.inputs, &rows);
        let made = dictionary.reconstruct(&x, &dictionary.encode(&x));
        let run = |at: &ActivationStore, edit: Option<Arc<dyn Edit>>| {
            control.check()?;
            let stream = final_stream(model, at, starts, &ids, edit)?;
            stage.advance(ids.len() as u64);
            Ok::<_, SaeError>(stream)
        };
        let clean = run(sites.outputs[0], None)?;
        // All positions but the first and the last of each sequence.
        let counted: Vec<usize> = (0..starts.len())
            .flat_map(|sequence| (1..context - 1).map(move |at| sequence * context + at))
            .collect();
        for (site, (&at, total)) in sites.outputs.iter().zip(&mut totals).enumerate() {
            let given = Given {
                values: columns(&made, &widths, site),
                first_position: 1,
            };
            let streams = [
                clean.clone(),
                run(at, Some(Arc::new(given)))?,
                run(at, Some(Arc::new(Zero { first_position: 1 })))?,
            ];
            for rows in counted.chunks(ROWS) {
                control.check()?;
                let targets: Vec<u32> = rows.iter().map(|&row| ids[row + 1]).collect();
                let logits = streams.iter().map(|stream| {
                    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
                    let rows = TensorData::new(rows, [targets.len()]);
                    let rows = Tensor::from_data(rows, &stream.device());
                    let logits = model.logits(stream.clone().select(0, rows));
                    logits.into_data().iter::<f32>().collect::<Vec<f32>>()
                });
                let logits: Vec<Vec<f32>> = logits.collect();
                for (total, sum) in total.iter_mut().zip(compare(&logits, &targets)) {
                    *total += sum;
                }
            }
        }
        count += counted.len();
    }
    stage.finish();
    Ok(totals
        .into_iter()
        .map(|total| CrossEntropy::of(total.map(|total| total / count as f64)))
        .collect())
}

/// [`cross_entropy_scores`] of an autoencoder.
///
/// # Errors
/// As there.
pub fn cross_entropy_score(
    model: &Model,
    store: &ActivationStore,
    dictionary: Arc<dyn Dictionary>,
    max_sequences: usize,
    control: &Control,
) -> Result<CrossEntropy, SaeError> {
    let sites = Sites::of(store);
    let mut scores = cross_entropy_scores(model, &sites, &dictionary, max_sequences, control)?;
    Ok(scores.remove(0))
}

/// Sums over rows: the cross-entropies of the three predictions, and the divergences of the other two from the first.
fn compare(logits: &[Vec<f32>], targets: &[u32]) -> [f64; 5] {
    let width = logits[0].len() / targets.len();
    let of_rows: Vec<[f64; 5]> = targets
        .par_iter()
        .enumerate()
        .map(|(row, &target)| {
            let rows = [0, 1, 2].map(|run: usize| &logits[run][row * width..(row + 1) * width]);
            // Logarithms of the sums of the exponentials.
            let sums = rows.map(|logits| {
                let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = logits.iter().map(|&x| f64::from(x - top).exp()).sum();
                f64::from(top) + sum.ln()
            });
            let log = |run: usize, at: usize| f64::from(rows[run][at]) - sums[run];
            let losses = [0, 1, 2].map(|run| -log(run, target as usize));
            let mut divergences = [0.0; 2];
            for at in 0..width {
                let clean = log(0, at);
                let p = clean.exp();
                // Where the model's own probability is zero, so is the term.
                if p > 0.0 {
                    divergences[0] += p * (clean - log(1, at));
                    divergences[1] += p * (clean - log(2, at));
                }
            }
            [
                losses[0],
                losses[1],
                losses[2],
                divergences[0],
                divergences[1],
            ]
        })
        .collect();
    of_rows.iter().fold([0.0; 5], |mut total, row| {
        for (total, x) in total.iter_mut().zip(row) {
            *total += x;
        }
        total
    })
}

/// The normalised stream after the last block `[rows, d]`, with the activation at the site changed.
fn final_stream(
    model: &Model,
    store: &ActivationStore,
    starts: &[usize],
    ids: &[u32],
    edit: Option<Arc<dyn Edit>>,
) -> Result<Tensor<2>, SaeError> {
    let (batch, time) = (starts.len(), store.info().context);
    let site = store.info().site;
    // What the layers below made stands in the store.
    if let (Place::ResidPost, Some(layer)) = (site.place(), site.layer()) {
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
        Ok(model.run(input, &RunOptions::default())?.stream)
    } else {
        let interventions: Vec<Intervention> = edit
            .into_iter()
            .map(|edit| Intervention::new(site, edit))
            .collect();
        let options = RunOptions {
            interventions: &interventions,
            ..RunOptions::default()
        };
        let input = Input::uniform(ids.to_vec(), batch);
        Ok(model.run(input, &options)?.stream)
    }
}
