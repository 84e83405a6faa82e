//! What is predicted of a change without looking at the model that it makes.

use pullback_artifact::Control;
use pullback_model::{Model, Site};
use pullback_sae::{Dictionary, Sae, Selection};
use serde::{Deserialize, Serialize};

use super::change::{Change, Side};
use super::measure::Measured;
use super::text::HeldOutText;
use crate::feature::map::Support;
use crate::{Adapter, AdapterError, FeatureAdapter};

/// Where the predicted change of features comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// An adapter's matrices read through the dictionary: density × `W_enc·W_out·E[h]`, with `h` its hidden activity.
    Weights,
    /// The map over features of an adapter in the basis of this dictionary: its own mean change of the codes,
    /// `E[g(z) − z]`.
    Map,
    /// First order in the size of the change, for what acts below the site: density × `W_enc·E[dx/ds]`, with `s` the scale
    /// of the adapter, at zero. The derivative is the difference of two runs with a small scale of either sign.
    FirstOrder,
    /// There is none: of two checkpoints only the measurement is known.
    None,
}

/// The scale at which derivatives are taken: their error is about its square, and rounding is far below.
const STEP: f32 = 0.0625;

/// The mean derivative `[d]` of the activations at the site by the scale of an adapter, at scale zero, over some rows.
///
/// # Errors
/// The model refused the text, or the work was interrupted.
pub(crate) fn mean_derivative(
    model: &Model,
    adapter: &Adapter,
    site: Site,
    (text, rows): (&HeldOutText, &[usize]),
    control: &Control,
) -> Result<Vec<f64>, AdapterError> {
    let stage = control.stage("first order", 2 * text.tokens() as u64, "tokens");
    let mut ends = Vec::with_capacity(2);
    for scale in [STEP, -STEP] {
        let side = Side::after(model, Change::Adapter(adapter), site, scale)?;
        ends.push(side.activations(text.sequences(), control, &stage)?);
    }
    stage.finish();
    let d = ends[0].len() / text.tokens();
    let mut mean = vec![0.0; d];
    for &row in rows {
        let row = row * d..(row + 1) * d;
        for ((sum, up), down) in mean
            .iter_mut()
            .zip(&ends[0][row.clone()])
            .zip(&ends[1][row])
        {
            *sum += f64::from(*up) - f64::from(*down);
        }
    }
    let scale = 2.0 * f64::from(STEP) * rows.len() as f64;
    for x in &mut mean {
        *x /= scale;
    }
    Ok(mean)
}

/// The first-order change of each feature's mean activation for a mean change of the stream.
pub(crate) fn through_encoder(sae: &Sae, measured: &Measured, change: &[f64]) -> Vec<f32> {
    let d = sae.d();
    let rows = sae.encoder().chunks_exact(d).zip(&measured.density);
    rows.enumerate()
        .map(|(feature, (row, &density))| {
            let dot: f64 = row.iter().zip(change).map(|(&w, x)| f64::from(w) * x).sum();
            (dot * f64::from(density * gain(sae, feature))) as f32
        })
        .collect()
}

/// By how much an active feature's code grows with its pre-activation.
pub(crate) fn gain(sae: &Sae, feature: usize) -> f32 {
    match &sae.parts().selection {
        Selection::Gated { scales, .. } => scales[feature],
        _ => 1.0,
    }
}

/// The mean change of each code under the map of an adapter in the dictionary's basis.
pub(crate) fn of_map(adapter: &FeatureAdapter, measured: &Measured) -> Vec<f32> {
    let mut change = vec![0.0_f64; measured.mean.len()];
    let mean = |feature: u32| f64::from(measured.mean[feature as usize]);
    let values = adapter.values();
    match adapter.support() {
        Support::Bias {
            features,
            active_only,
        } => {
            for (&feature, &b) in features.iter().zip(&values[0]) {
                let share = if *active_only {
                    f64::from(measured.density[feature as usize])
                } else {
                    1.0
                };
                change[feature as usize] += share * f64::from(b);
            }
        }
        Support::Sparse { pairs } => {
            for (&(from, to), &weight) in pairs.iter().zip(&values[0]) {
                change[to as usize] += f64::from(weight) * mean(from);
            }
        }
        Support::LowRank { rank, read, write } => {
            let mut hidden = vec![0.0; *rank];
            for (&(feature, column), &weight) in read.iter().zip(&values[0]) {
                hidden[column as usize] += f64::from(weight) * mean(feature);
            }
            for (&(feature, column), &weight) in write.iter().zip(&values[1]) {
                change[feature as usize] += f64::from(weight) * hidden[column as usize];
            }
        }
    }
    change.into_iter().map(|x| x as f32).collect()
}
