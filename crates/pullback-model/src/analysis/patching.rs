//! Activation patching: the corrupted text is run with one activation taken from the run of the clean text (Meng et al.,
//! "Locating and Editing Factual Associations in GPT", 2022; Zhang and Nanda, arXiv 2309.16042).

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use burn::tensor::{Bool, Tensor, TensorData};
use serde::Serialize;

use super::check_token;
use crate::error::ModelError;
use crate::intervention::{Intervention, Replace};
use crate::model::Model;
use crate::run::{Input, RunOptions};
use crate::site::{Place, Site};

/// Rows that are run together: patches of one layer are run in as many batches as this asks for.
const ROWS: usize = 2048;

/// What is patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchPlace {
    /// The residual stream before a block, position by position.
    ResidPre,
    /// What attention adds to it, position by position.
    AttnOut,
    /// What the MLP adds to it, position by position.
    MlpOut,
    /// The output of a head at all positions, head by head.
    Z,
}

impl PatchPlace {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ResidPre, Self::AttnOut, Self::MlpOut, Self::Z];

    /// Its name: `resid_pre`, `attn_out`, `mlp_out` or `z`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ResidPre => "resid_pre",
            Self::AttnOut => "attn_out",
            Self::MlpOut => "mlp_out",
            Self::Z => "z",
        }
    }

    /// Whether single heads are patched, and not positions.
    pub fn by_head(self) -> bool {
        self == Self::Z
    }

    /// The site in a block.
    pub fn site(self, layer: usize) -> Site {
        let place = match self {
            Self::ResidPre => Place::ResidPre,
            Self::AttnOut => Place::AttnOut,
            Self::MlpOut => Place::MlpOut,
            Self::Z => Place::Mixed,
        };
        Site::at(layer, place)
    }
}

impl fmt::Display for PatchPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PatchPlace {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let found = Self::ALL.into_iter().find(|place| place.name() == name);
        found.ok_or_else(|| ModelError::Input {
            problem: format!(
                "`{name}` cannot be patched; places are resid_pre, attn_out, mlp_out and z"
            ),
        })
    }
}

/// The effects of all patches of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchGrid {
    /// What is patched.
    pub place: PatchPlace,
    /// The metric after each patch: for each block, one number a position or head.
    pub metrics: Vec<Vec<f64>>,
}

/// A clean and a corrupted text of one length, run and recorded once, from which patched runs start.
///
/// The metric is the logit of `answer` minus that of `other` after the last position.
pub struct Patcher<'a> {
    model: &'a Model,
    interventions: &'a [Intervention],
    tokens: usize,
    place: PatchPlace,
    answer: u32,
    other: u32,
    clean: HashMap<Site, Tensor<2>>,
    corrupted: HashMap<Site, Tensor<2>>,
    clean_metric: f64,
    corrupted_metric: f64,
}

impl fmt::Debug for Patcher<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patcher")
            .field("place", &self.place)
            .field("tokens", &self.tokens)
            .field("clean_metric", &self.clean_metric)
            .field("corrupted_metric", &self.corrupted_metric)
            .finish_non_exhaustive()
    }
}

impl<'a> Patcher<'a> {
    /// Runs both texts. The interventions act in every run, before the patch where they share its site.
    ///
    /// # Errors
    /// As [`Model::run`]; also when the texts differ in length, a token is not in the vocabulary, or an intervention is
    /// meant for one sequence of a batch.
    pub fn new(
        model: &'a Model,
        [clean, corrupted]: [&[u32]; 2],
        place: PatchPlace,
        [answer, other]: [u32; 2],
        interventions: &'a [Intervention],
    ) -> Result<Self, ModelError> {
        check_token(model, answer)?;
        check_token(model, other)?;
        if let Some(one) = interventions.iter().find(|i| i.sequence().is_some()) {
            return Err(ModelError::Input {
                problem: format!(
                    "{}: patches run as sequences of one batch, in all of which an intervention must act",
                    one.describe()
                ),
            });
        }
        if clean.len() != corrupted.len() {
            return Err(ModelError::Input {
                problem: format!(
                    "patching needs two texts of as many tokens, and these have {} and {}: {} and {}",
                    clean.len(),
                    corrupted.len(),
                    shown(model, clean),
                    shown(model, corrupted)
                ),
            });
        }
        let layers = model.config().n_layers;
        let of_clean: Vec<Site> = (0..layers).map(|layer| place.site(layer)).collect();
        let mut of_corrupted = of_clean.clone();
        if place != PatchPlace::ResidPre {
            of_corrupted.extend((0..layers).map(|l| PatchPlace::ResidPre.site(l)));
        }
        let mut patcher = Self {
            model,
            interventions,
            tokens: clean.len(),
            place,
            answer,
            other,
            clean: HashMap::new(),
            corrupted: HashMap::new(),
            clean_metric: f64::NAN,
            corrupted_metric: f64::NAN,
        };
        (patcher.clean, patcher.clean_metric) = patcher.whole(clean, &of_clean)?;
        (patcher.corrupted, patcher.corrupted_metric) = patcher.whole(corrupted, &of_corrupted)?;
        Ok(patcher)
    }

    /// The metric of the clean text.
    pub fn clean_metric(&self) -> f64 {
        self.clean_metric
    }

    /// The metric of the corrupted text, nothing patched.
    pub fn corrupted_metric(&self) -> f64 {
        self.corrupted_metric
    }

    /// A metric on the scale on which the corrupted text is 0 and the clean one 1; `None` where both have the same.
    pub fn normalised(&self, metric: f64) -> Option<f64> {
        let whole = self.clean_metric - self.corrupted_metric;
        (whole != 0.0).then(|| (metric - self.corrupted_metric) / whole)
    }

    /// How many patches a layer has: positions, or heads.
    pub fn width(&self) -> usize {
        if self.place.by_head() {
            self.model.config().n_heads
        } else {
            self.tokens
        }
    }

    /// The metric after each patch alone, for all blocks. `go_on` hears how many blocks of how many are done, and ends
    /// the work by returning false.
    ///
    /// # Errors
    /// As [`Patcher::patch`]; [`ModelError::Stopped`] when `go_on` returned false.
    pub fn grid(
        &self,
        mut go_on: impl FnMut(usize, usize) -> bool,
    ) -> Result<PatchGrid, ModelError> {
        let layers = self.model.config().n_layers;
        let patches: Vec<Vec<usize>> = (0..self.width()).map(|index| vec![index]).collect();
        let mut metrics = Vec::with_capacity(layers);
        for layer in 0..layers {
            if !go_on(layer, layers) {
                return Err(ModelError::Stopped);
            }
            metrics.push(self.patch(layer, &patches)?);
        }
        Ok(PatchGrid {
            place: self.place,
            metrics,
        })
    }

    /// The metric after each of some patches in one block; a patch is a list of positions, or of heads, that are taken
    /// from the clean text together. All patches run as sequences of a batch, from the residual stream before the block.
    ///
    /// # Errors
    /// The block does not exist, or a patch names a position or head that does not; otherwise as [`Model::run`].
    pub fn patch(&self, layer: usize, patches: &[Vec<usize>]) -> Result<Vec<f64>, ModelError> {
        let site = self.place.site(layer).check(self.model.config())?;
        let width = self.width();
        if let Some(index) = patches.iter().flatten().find(|&&index| index >= width) {
            let what = if self.place.by_head() {
                "head"
            } else {
                "position"
            };
            return Err(ModelError::Input {
                problem: format!("there is no {what} {index}: they are 0 to {}", width - 1),
            });
        }
        let mut metrics = Vec::with_capacity(patches.len());
        for patches in patches.chunks((ROWS / self.tokens).max(1)) {
            let patched = self.patched(site, patches)?;
            metrics.extend(self.run_from(layer, site, patched, patches.len())?);
        }
        Ok(metrics)
    }

    /// What stands at the site in each patched sequence: `[patches · tokens, width of the site]`.
    fn patched(&self, site: Site, patches: &[Vec<usize>]) -> Result<Tensor<2>, ModelError> {
        let clean = recorded(&self.clean, site)?;
        let corrupted = recorded(&self.corrupted, site)?;
        let [tokens, width] = clean.dims();
        let d_head = self.model.config().d_head;
        let mut mask = Vec::with_capacity(patches.len() * tokens * width);
        for patch in patches {
            if self.place.by_head() {
                let row: Vec<bool> = (0..width).map(|c| patch.contains(&(c / d_head))).collect();
                (0..tokens).for_each(|_| mask.extend(&row));
            } else {
                for position in 0..tokens {
                    let taken = patch.contains(&position);
                    mask.extend(std::iter::repeat_n(taken, width));
                }
            }
        }
        let mask = TensorData::new(mask, [patches.len() * tokens, width]);
        let mask = Tensor::<2, Bool>::from_data(mask, &clean.device());
        let each = |x: &Tensor<2>| x.clone().repeat(&[patches.len(), 1]);
        Ok(each(corrupted).mask_where(mask, each(clean)))
    }

    /// Runs a batch of `count` patched texts from a block on.
    fn run_from(
        &self,
        layer: usize,
        site: Site,
        patched: Tensor<2>,
        count: usize,
    ) -> Result<Vec<f64>, ModelError> {
        let before = PatchPlace::ResidPre.site(layer);
        // What acted below is in the recorded stream already.
        let mut interventions: Vec<Intervention> = self
            .interventions
            .iter()
            .filter(|i| match i.site().place() {
                Place::Embed | Place::PosEmbed => false,
                Place::FinalScale | Place::FinalNormalized | Place::Logits => true,
                _ => i.site() != before && i.site().layer() >= Some(layer),
            })
            .cloned()
            .collect();
        let stream = if site == before {
            patched
        } else {
            interventions.push(Intervention::new(site, Arc::new(Replace { with: patched })));
            recorded(&self.corrupted, before)?
                .clone()
                .repeat(&[count, 1])
        };
        let input = Input::residual(stream, count, layer);
        Ok(self.metrics(input, &interventions, &[], count)?.1)
    }

    /// Runs a text whole.
    fn whole(
        &self,
        ids: &[u32],
        sites: &[Site],
    ) -> Result<(HashMap<Site, Tensor<2>>, f64), ModelError> {
        let (recorded, metrics) = self.metrics(Input::tokens(ids), self.interventions, sites, 1)?;
        Ok((recorded, metrics[0]))
    }

    /// The recorded activations and the metric after the last position of each of `count` sequences.
    fn metrics(
        &self,
        input: Input,
        interventions: &[Intervention],
        sites: &[Site],
        count: usize,
    ) -> Result<(HashMap<Site, Tensor<2>>, Vec<f64>), ModelError> {
        // Logits are made whole only for an intervention that wants to see them.
        let change_logits = interventions.iter().any(|i| i.site() == Site::logits());
        let mut record = sites.to_vec();
        if change_logits {
            record.push(Site::logits());
        }
        let options = RunOptions {
            interventions,
            record: &record,
            ..RunOptions::default()
        };
        let mut out = self.model.run(input, &options)?;
        let last = |x: Tensor<2>| {
            let [_, width] = x.dims();
            let x: Tensor<3> = x.reshape([count, self.tokens, width]);
            x.narrow(1, self.tokens - 1, 1).reshape([count, width])
        };
        let pairs: Vec<f64> = if change_logits {
            let logits = last(out.take(Site::logits())?);
            let column = |id: u32| logits.clone().narrow(1, id as usize, 1);
            numbers(Tensor::cat(
                vec![column(self.answer), column(self.other)],
                1,
            ))
        } else {
            let rows = [self.answer, self.other];
            let rows = self.model.output_matrix().rows(&rows, self.model.device());
            let logits = last(out.stream).matmul(rows.transpose());
            numbers(self.model.capped(logits))
        };
        let metrics = pairs.chunks_exact(2).map(|pair| pair[0] - pair[1]);
        Ok((out.recorded, metrics.collect()))
    }
}

fn numbers(x: Tensor<2>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

fn recorded(all: &HashMap<Site, Tensor<2>>, site: Site) -> Result<&Tensor<2>, ModelError> {
    all.get(&site).ok_or_else(|| ModelError::Input {
        problem: format!("{site} was not recorded"),
    })
}

/// The tokens of a text, apart from each other.
fn shown(model: &Model, ids: &[u32]) -> String {
    let texts: Vec<String> = ids
        .iter()
        .map(|&id| model.tokenizer().token_text(id))
        .collect();
    format!("{texts:?}")
}
