//! What an adapter does to a dictionary's features: predicted, measured, and the few that changed most.

use burn::tensor::{Tensor, TensorData};
use faer::Mat;
use pullback_activations::ActivationStore;
use pullback_artifact::Control;
use pullback_model::Model;
use pullback_sae::{Dictionary, Example, FeaturePages, Sae};
use serde::{Deserialize, Serialize};

use crate::pullback::{least_squares_rows, matrix};
use crate::residual::values;
use crate::{AdapterError, Pullback, ResidualAdapter, spearman};

/// A feature that the adapter changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangedFeature {
    /// The feature.
    pub feature: usize,
    /// Predicted mean change of its activation: its density on the text × the first-order change of its
    /// pre-activation at the mean hidden activity.
    pub predicted: f32,
    /// Measured mean change of its activation on the text.
    pub measured: f32,
    /// Share of the store's tokens on which it is active, without the adapter.
    pub density: f32,
    /// Length of its row of `W_dec·W_inᵀ`: how much a unit of it feeds into the adapter.
    pub reads: f32,
    /// First-order change of its pre-activation at the mean hidden activity.
    pub writes: f32,
    /// Tokens that its direction promotes, with their weight.
    pub promoted: Vec<(String, f32)>,
    /// Tokens that it suppresses.
    pub suppressed: Vec<(String, f32)>,
    /// Its strongest activations in the corpus.
    pub examples: Vec<Example>,
}

/// One hidden unit of the adapter in the basis of features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HiddenUnit {
    /// The unit.
    pub unit: usize,
    /// `b_in + W_in·b_dec`.
    pub bias: f32,
    /// Mean activity on the text.
    pub mean_activity: f32,
    /// The features that feed it most (by |entry of `W_dec·W_inᵀ`| × mean activation), with that entry.
    pub reads: Vec<(usize, f32)>,
    /// The features it writes most, as decoder rows in least squares, with their coefficient.
    pub writes: Vec<(usize, f32)>,
}

/// What [`explain`] returns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The most changed features, most changed first.
    pub features: Vec<ChangedFeature>,
    /// Spearman's rank correlation of prediction and measurement over all features that are active on the
    /// text, with the adapter or without; none when either does not vary.
    pub agreement_spearman: Option<f64>,
    /// Share of what the adapter writes on the text (`E‖Δ‖²`) that no combination of the listed
    /// features' decoder rows carries; none when it writes nothing.
    pub residual_fraction: Option<f64>,
    /// Measured mean change of every feature.
    pub measured: Vec<f32>,
    /// Predicted mean change of every feature.
    pub predicted: Vec<f32>,
    /// Features that are active on the text, with the adapter or without.
    pub live: Vec<u32>,
    /// The adapter's hidden units.
    pub units: Vec<HiddenUnit>,
}

/// Features listed for each unit and direction.
const UNIT_FEATURES: usize = 5;

/// Pulls the adapter back, measures each feature's mean change on the store's held-out rows with and without
/// the adapter, and interprets the `count` most changed.
///
/// # Errors
/// The store holds no held-out rows; the parts do not fit each other; the work was interrupted.
pub fn explain(
    adapter: &ResidualAdapter,
    sae: &Sae,
    store: &ActivationStore,
    model: &Model,
    count: usize,
    pages: FeaturePages,
    control: &Control,
) -> Result<Explanation, AdapterError> {
    let rows = store.normal_rows(true);
    if rows.is_empty() {
        return Err(AdapterError::Option(format!(
            "{} holds no held-out text: harvest with --held-out above 0",
            store.path().display()
        )));
    }
    let mut activations = vec![0.0; rows.len() * store.info().d];
    store.gather(&rows, &mut activations);
    explain_on(
        &activations,
        adapter,
        sae,
        store,
        model,
        count,
        pages,
        control,
    )
}

/// As [`explain`], on other text than the store's: `activations [n, d]` of the site. Examples are still the
/// store's.
///
/// # Errors
/// There are no activations; the parts do not fit each other; the work was interrupted.
#[expect(
    clippy::too_many_arguments,
    reason = "the parts of one computation, each of another kind"
)]
pub fn explain_on(
    activations: &[f32],
    adapter: &ResidualAdapter,
    sae: &Sae,
    store: &ActivationStore,
    model: &Model,
    count: usize,
    pages: FeaturePages,
    control: &Control,
) -> Result<Explanation, AdapterError> {
    if adapter.site != store.info().site {
        return Err(AdapterError::Option(format!(
            "the adapter acts at {}, the store holds activations of {}",
            adapter.site,
            store.info().site
        )));
    }
    if adapter.d() != store.info().d {
        return Err(AdapterError::Option(format!(
            "the adapter is of width {}, the store's activations of width {}",
            adapter.d(),
            store.info().d
        )));
    }
    let pullback = Pullback::new(adapter, sae)?;
    let measured = measure(adapter, sae, activations, control)?;
    let writes = pullback.pre_activation_change(&measured.hidden_mean);
    let Agreement {
        predicted,
        live,
        spearman: agreement_spearman,
    } = agree(&writes, &measured);

    let mut order = live.clone();
    order.sort_by(|&a, &b| {
        let size = |i: u32| measured.change[i as usize].abs();
        size(b).total_cmp(&size(a)).then(a.cmp(&b))
    });
    let chosen: Vec<usize> = order.iter().take(count).map(|&i| i as usize).collect();
    let features = pages
        .make(sae, store, model, &chosen, control)?
        .into_iter()
        .map(|page| {
            let row =
                &pullback.reads[page.feature * pullback.rank..(page.feature + 1) * pullback.rank];
            ChangedFeature {
                feature: page.feature,
                predicted: predicted[page.feature],
                measured: measured.change[page.feature],
                density: page.density,
                reads: row.iter().map(|x| x * x).sum::<f32>().sqrt(),
                writes: writes[page.feature],
                promoted: page.promoted,
                suppressed: page.suppressed,
                examples: page.examples,
            }
        })
        .collect();
    Ok(Explanation {
        features,
        agreement_spearman,
        residual_fraction: residual_fraction(adapter, sae, &chosen, &measured.hidden_second),
        units: units(&pullback, &measured),
        measured: measured.change,
        predicted,
        live,
    })
}

/// Spearman's rank correlation of predicted and measured change on some activations `[n, d]` of the site.
///
/// # Errors
/// There are no activations; the parts do not fit each other; the work was interrupted.
pub fn agreement_on(
    activations: &[f32],
    adapter: &ResidualAdapter,
    sae: &Sae,
    control: &Control,
) -> Result<Option<f64>, AdapterError> {
    let pullback = Pullback::new(adapter, sae)?;
    let measured = measure(adapter, sae, activations, control)?;
    Ok(agree(
        &pullback.pre_activation_change(&measured.hidden_mean),
        &measured,
    )
    .spearman)
}

struct Agreement {
    predicted: Vec<f32>,
    live: Vec<u32>,
    spearman: Option<f64>,
}

/// The linear prediction from the change of pre-activations, and how it agrees with what was measured.
fn agree(writes: &[f32], measured: &Measured) -> Agreement {
    let predicted: Vec<f32> = writes
        .iter()
        .zip(&measured.density)
        .map(|(w, p)| w * p)
        .collect();
    let live: Vec<u32> = (0..writes.len() as u32)
        .filter(|&i| measured.live[i as usize])
        .collect();
    let of_live = |x: &[f32]| live.iter().map(|&i| x[i as usize]).collect::<Vec<f32>>();
    Agreement {
        spearman: Some(spearman(&of_live(&predicted), &of_live(&measured.change)))
            .filter(|rho| rho.is_finite()),
        predicted,
        live,
    }
}

/// What is seen on the text.
struct Measured {
    /// Mean activation of each feature without the adapter.
    mean: Vec<f32>,
    /// Mean change of each feature's activation.
    change: Vec<f32>,
    /// Share of rows on which each feature is active without the adapter.
    density: Vec<f32>,
    /// Whether each feature is ever active, with the adapter or without.
    live: Vec<bool>,
    /// `E h [rank]`.
    hidden_mean: Vec<f64>,
    /// `E h hᵀ [rank, rank]`.
    hidden_second: Mat<f64>,
}

fn measure(
    adapter: &ResidualAdapter,
    sae: &Sae,
    activations: &[f32],
    control: &Control,
) -> Result<Measured, AdapterError> {
    let (d, m, rank) = (adapter.d(), sae.n_features(), adapter.rank());
    if activations.is_empty() || !activations.len().is_multiple_of(d) || sae.d() != d {
        return Err(AdapterError::Option(format!(
            "{} numbers are not activations of width {d} for a dictionary of width {}",
            activations.len(),
            sae.d()
        )));
    }
    let rows = activations.len() / d;
    let mut before = vec![0.0_f64; m];
    let mut after = vec![0.0_f64; m];
    let mut fired = vec![0_u64; m];
    let mut live = vec![false; m];
    let mut hidden_mean = vec![0.0; rank];
    let mut hidden_second = Mat::<f64>::zeros(rank, rank);
    let device = adapter.w_in.device();
    let n = rows as f64;
    let stage = control.stage("measure change", rows as u64, "tokens");
    for x in activations.chunks(2048 * d) {
        control.check()?;
        let data = TensorData::new(x.to_vec(), [x.len() / d, d]);
        let tensor = Tensor::<2>::from_data(data, &device);
        let hidden = values(&adapter.hidden(tensor.clone()));
        for h in hidden.chunks_exact(rank) {
            for i in 0..rank {
                hidden_mean[i] += f64::from(h[i]) / n;
                for j in 0..rank {
                    hidden_second[(i, j)] += f64::from(h[i]) * f64::from(h[j]) / n;
                }
            }
        }
        let changed = values(&(tensor.clone() + adapter.change(tensor)));
        let clean = sae.encode(x);
        for (&feature, &value) in clean.features().iter().zip(clean.values()) {
            before[feature as usize] += f64::from(value);
            fired[feature as usize] += 1;
            live[feature as usize] = true;
        }
        let moved = sae.encode(&changed);
        for (&feature, &value) in moved.features().iter().zip(moved.values()) {
            after[feature as usize] += f64::from(value);
            live[feature as usize] = true;
        }
        stage.advance((x.len() / d) as u64);
    }
    stage.finish();
    Ok(Measured {
        mean: before.iter().map(|sum| (sum / n) as f32).collect(),
        change: before
            .iter()
            .zip(&after)
            .map(|(b, a)| ((a - b) / n) as f32)
            .collect(),
        density: fired
            .iter()
            .map(|&count| (count as f64 / n) as f32)
            .collect(),
        live,
        hidden_mean,
        hidden_second,
    })
}

/// `E‖(1 − P) Δ‖² / E‖Δ‖²` with `P` the projection on the chosen decoder rows: since `Δ = W_out h`, both are
/// traces with `E h hᵀ`.
fn residual_fraction(
    adapter: &ResidualAdapter,
    sae: &Sae,
    chosen: &[usize],
    hidden_second: &Mat<f64>,
) -> Option<f64> {
    let d = adapter.d();
    let w_out = matrix(&values(&adapter.w_out), d, adapter.rank());
    let rows = Mat::from_fn(chosen.len(), d, |i, j| {
        f64::from(sae.direction(chosen[i])[j])
    });
    let energy = |w: &Mat<f64>| -> f64 {
        let product = w * hidden_second;
        (0..d)
            .map(|i| {
                (0..w.ncols())
                    .map(|j| product[(i, j)] * w[(i, j)])
                    .sum::<f64>()
            })
            .sum()
    };
    let left = if chosen.is_empty() {
        w_out.clone()
    } else {
        &w_out - rows.transpose() * least_squares_rows(&rows, &w_out)
    };
    let all = energy(&w_out);
    (all > 0.0).then(|| energy(&left) / all)
}

fn units(pullback: &Pullback, measured: &Measured) -> Vec<HiddenUnit> {
    let rank = pullback.rank;
    (0..rank)
        .map(|unit| {
            let column = |matrix: &[f32], feature: usize| matrix[feature * rank + unit];
            let top = |matrix: &[f32], weight: &dyn Fn(usize) -> f32| {
                let mut order: Vec<usize> = (0..pullback.features)
                    .filter(|&i| measured.live[i])
                    .collect();
                order.sort_by(|&a, &b| {
                    let size = |i: usize| (column(matrix, i) * weight(i)).abs();
                    size(b).total_cmp(&size(a)).then(a.cmp(&b))
                });
                order.truncate(UNIT_FEATURES);
                order.into_iter().map(|i| (i, column(matrix, i))).collect()
            };
            HiddenUnit {
                unit,
                bias: pullback.bias[unit],
                mean_activity: measured.hidden_mean[unit] as f32,
                reads: top(&pullback.reads, &|i| measured.mean[i]),
                writes: top(&pullback.written_rows, &|_| 1.0),
            }
        })
        .collect()
}
