//! The logit lens: what the model would say if each block were its last (nostalgebraist, "interpreting GPT: the logit
//! lens", 2020).

use burn::tensor::Tensor;
use serde::Serialize;

use super::check_token;
use crate::error::ModelError;
use crate::generate::NextToken;
use crate::intervention::Intervention;
use crate::model::Model;
use crate::run::Input;
use crate::site::{Place, Site};

/// Rows whose logits stand in memory together.
const ROWS: usize = 64;

/// What the lens tells of each layer and position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LensOptions {
    /// So many of the likeliest tokens.
    pub top: usize,
    /// A token that is followed through all layers.
    pub follow: Option<u32>,
}

/// One token as a layer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Followed {
    /// Its logit.
    pub logit: f32,
    /// Its probability.
    pub probability: f32,
    /// Its place among all tokens, 1 for the likeliest; of equal logits the lowest id comes first.
    pub rank: usize,
}

/// What a layer would say next after a position.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LensCell {
    /// The likeliest tokens, likeliest first.
    pub top: Vec<NextToken>,
    /// The token that is followed, if one is.
    pub followed: Option<Followed>,
}

/// What all layers would say after all positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Lens {
    /// Where the residual stream was read: before the first block, then after each block.
    pub sites: Vec<Site>,
    /// For each site, a cell for each position.
    pub cells: Vec<Vec<LensCell>>,
}

/// Applies the final norm and the output matrix (and the cap of the logits, where the model has one) to the residual
/// stream before the first block and after each block. Only so many logits are in memory as 64 positions have.
///
/// # Errors
/// As [`Model::run`]; also when the followed token is not in the vocabulary, or an intervention acts above the residual
/// stream, where the lens would not show it.
pub fn logit_lens(
    model: &Model,
    ids: &[u32],
    interventions: &[Intervention],
    options: LensOptions,
) -> Result<Lens, ModelError> {
    if let Some(id) = options.follow {
        check_token(model, id)?;
    }
    let above = [Place::FinalScale, Place::FinalNormalized, Place::Logits];
    if let Some(last) = interventions
        .iter()
        .find(|i| above.contains(&i.site().place()))
    {
        return Err(ModelError::Input {
            problem: format!(
                "{} would not show: the lens reads residual streams, which end before it",
                last.describe()
            ),
        });
    }
    let layers = model.config().n_layers;
    let sites: Vec<Site> = [Site::at(0, Place::ResidPre)]
        .into_iter()
        .chain((0..layers).map(Site::resid_post))
        .collect();
    let mut recorded = model.record(Input::tokens(ids), &sites, interventions)?;
    let mut cells = Vec::with_capacity(sites.len());
    for &site in &sites {
        let stream = recorded.remove(&site).ok_or_else(|| ModelError::Input {
            problem: format!("{site} was not recorded"),
        })?;
        cells.push(read(model, &stream, options));
    }
    Ok(Lens { sites, cells })
}

/// The cells of a residual stream `[rows, d_model]`.
fn read(model: &Model, stream: &Tensor<2>, options: LensOptions) -> Vec<LensCell> {
    let rows = stream.dims()[0];
    let mut cells = Vec::with_capacity(rows);
    for first in (0..rows).step_by(ROWS) {
        let part = stream.clone().narrow(0, first, ROWS.min(rows - first));
        let logits = model.logits(model.final_norm(part));
        let width = logits.dims()[1];
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        cells.extend(logits.chunks_exact(width).map(|row| LensCell {
            top: model.rank_next(row, options.top),
            followed: options.follow.map(|id| follow(row, id)),
        }));
    }
    cells
}

fn follow(logits: &[f32], id: u32) -> Followed {
    let id = id as usize;
    let logit = logits[id];
    let likelier = |&(other, &value): &(usize, &f32)| {
        value.total_cmp(&logit).then(id.cmp(&other)) == std::cmp::Ordering::Greater
    };
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - top).exp()).sum();
    Followed {
        logit,
        probability: (f64::from(logit - top).exp() / sum) as f32,
        rank: 1 + logits.iter().enumerate().filter(likelier).count(),
    }
}
