//! A residual adapter's hidden units in the basis of features.

use burn::tensor::{Tensor, TensorData};
use pullback_artifact::Control;
use pullback_model::symmetric_tangent;
use pullback_sae::{Dictionary, Sae};
use serde::{Deserialize, Serialize};

use super::decompose::{Matching, matching_pursuit};
use super::measure::{CHUNK, Measured};
use crate::residual::values;
use crate::{AdapterError, Pullback, ResidualAdapter};

/// One hidden unit of the adapter in the basis of features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HiddenUnit {
    /// The unit.
    pub unit: usize,
    /// `b_in + W_in·b_dec`.
    pub bias: f32,
    /// Mean activity on the text.
    pub mean_activity: f32,
    /// Mean derivative of its activation function on the text: how much of a small change of what it reads gets through.
    pub mean_slope: f32,
    /// The features that feed it most (by |entry of `W_dec·W_inᵀ`| × mean activation), with that entry.
    pub reads: Vec<(usize, f32)>,
    /// The features it writes most, as decoder rows in least squares, with their coefficient.
    pub writes: Vec<(usize, f32)>,
    /// What it writes as a sum of a few decoder rows with factors above zero; turned around where its mean activity is
    /// below zero.
    pub matching: Matching,
}

/// How features feed features through a nonlinear adapter: the first-order change of the pre-activation of the feature of a
/// column for a unit of the feature of a row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FeatureJacobian {
    /// The features, of rows and columns alike.
    pub features: Vec<usize>,
    /// From the weights alone, as if every unit let all through: `W_dec·W_inᵀ·W_outᵀ·W_enc`.
    pub weights: Vec<Vec<f32>>,
    /// Of the Jacobian averaged over the text: `W_dec·W_inᵀ·diag(E act′(u))·W_outᵀ·W_enc`.
    pub averaged: Vec<Vec<f32>>,
}

/// Features listed for each unit and direction.
const UNIT_FEATURES: usize = 5;

/// Means over the text of a residual adapter's hidden units.
pub(crate) struct Hidden {
    /// `E h`.
    pub(crate) mean: Vec<f64>,
    /// `E act′(u)`.
    pub(crate) slope: Vec<f64>,
}

impl Hidden {
    /// Over activations `[n, d]` of the adapter's site.
    pub(crate) fn of(
        adapter: &ResidualAdapter,
        x: &[f32],
        control: &Control,
    ) -> Result<Self, AdapterError> {
        let (d, rank) = (adapter.d(), adapter.rank());
        let (mut mean, mut slope) = (vec![0.0; rank], vec![0.0; rank]);
        let n = (x.len() / d) as f64;
        let device = adapter.w_in.device();
        for x in x.chunks(CHUNK * d) {
            control.check()?;
            let data = TensorData::new(x.to_vec(), [x.len() / d, d]);
            let u = adapter.pre_activation(Tensor::<2>::from_data(data, &device));
            let slopes = symmetric_tangent(|u| adapter.activation.apply(u), &u, u.ones_like());
            let h = adapter.activation.apply(u);
            for (sums, of) in [(&mut mean, values(&h)), (&mut slope, values(&slopes))] {
                for row in of.chunks_exact(rank) {
                    for (sum, &x) in sums.iter_mut().zip(row) {
                        *sum += f64::from(x) / n;
                    }
                }
            }
        }
        Ok(Self { mean, slope })
    }
}

/// The hidden units; `terms` decoder rows are matched to each.
pub(crate) fn units(
    adapter: &ResidualAdapter,
    sae: &Sae,
    pullback: &Pullback,
    (measured, hidden): (&Measured, &Hidden),
    terms: usize,
) -> Vec<HiddenUnit> {
    let rank = pullback.rank;
    let w_out = values(&adapter.w_out);
    (0..rank)
        .map(|unit| {
            let column = |matrix: &[f32], feature: usize| matrix[feature * rank + unit];
            let top = |matrix: &[f32], weight: &dyn Fn(usize) -> f32| {
                let mut order: Vec<usize> = measured.live.iter().map(|&i| i as usize).collect();
                order.sort_by(|&a, &b| {
                    let size = |i: usize| (column(matrix, i) * weight(i)).abs();
                    size(b).total_cmp(&size(a)).then(a.cmp(&b))
                });
                order.truncate(UNIT_FEATURES);
                order.into_iter().map(|i| (i, column(matrix, i))).collect()
            };
            let sign = if hidden.mean[unit] < 0.0 { -1.0 } else { 1.0 };
            let written: Vec<f64> = w_out
                .chunks_exact(rank)
                .map(|row| sign * f64::from(row[unit]))
                .collect();
            HiddenUnit {
                unit,
                bias: pullback.bias[unit],
                mean_activity: hidden.mean[unit] as f32,
                mean_slope: hidden.slope[unit] as f32,
                reads: top(&pullback.reads, &|i| measured.mean[i]),
                writes: top(&pullback.written_rows, &|_| 1.0),
                matching: matching_pursuit(sae.decoder(), &written, terms),
            }
        })
        .collect()
}

/// The Jacobian among some features, by weights and averaged.
pub(crate) fn jacobian(
    pullback: &Pullback,
    hidden: &Hidden,
    features: &[usize],
) -> FeatureJacobian {
    let through = |slope: &dyn Fn(usize) -> f64| -> Vec<Vec<f32>> {
        let of = |from: usize| {
            let to = features
                .iter()
                .map(|&to| pullback.path(from, to, slope) as f32);
            to.collect()
        };
        features.iter().map(|&from| of(from)).collect()
    };
    FeatureJacobian {
        features: features.to_vec(),
        weights: through(&|_| 1.0),
        averaged: through(&|unit| hidden.slope[unit]),
    }
}
