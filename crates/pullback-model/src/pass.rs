//! One pass through the model: what interventions, recordings and directions want of each site.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::flow::{Flow, sum};
use crate::intervention::{Intervention, Rows};
use crate::model::Affine;
use crate::site::{Place, Site, SiteError};
use crate::weight_update::WeightUpdate;
use crate::weights::WeightName;

/// Why a pass ends before its last block.
pub(crate) enum Halt {
    /// Everything that was to be recorded is.
    Done,
    Error(ModelError),
}

impl From<ModelError> for Halt {
    fn from(error: ModelError) -> Self {
        Self::Error(error)
    }
}

/// A direction `[rows, width]` in which a pass takes derivatives, at one site.
#[derive(Clone, Debug)]
pub(crate) struct Direction {
    pub(crate) site: Site,
    pub(crate) vector: Tensor<2>,
}

/// One pass's bookkeeping.
pub(crate) struct Pass<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) rows: Rows,
    /// Positions of the rows, as the rotary embedding takes them.
    pub(crate) positions: Arc<[u32]>,
    pub(crate) interventions: &'a [Intervention],
    pub(crate) updates: &'a [WeightUpdate],
    pub(crate) record: &'a [Site],
    pub(crate) direction: Option<&'a Direction>,
    /// Whether the pass ends when all of `record` is there.
    pub(crate) only_record: bool,
    pub(crate) recorded: HashMap<Site, Tensor<2>>,
    pub(crate) tangents: HashMap<Site, Tensor<2>>,
}

impl Pass<'_> {
    /// Whether anyone wants the activation at a place, so that it has to be made.
    pub(crate) fn wants(&self, layer: usize, place: Place) -> bool {
        let site = Site::at(layer, place);
        self.interventions.iter().any(|i| i.site() == site)
            || self.record.contains(&site)
            || self.direction.is_some_and(|d| d.site == site)
    }

    /// `x Wᵀ + b` with the updates of the weight.
    pub(crate) fn affine(&self, flow: Flow, map: &Affine, weight: WeightName) -> Flow {
        if self.updates.is_empty() {
            return flow.affine(map);
        }
        let mut out = flow.clone().affine(map);
        for update in self.updates.iter().filter(|u| u.weight == weight) {
            out = out.plus(flow.clone().linear(|x| update.added(x)));
        }
        out
    }

    /// The matrix of a weight with its updates.
    pub(crate) fn dense(&self, map: &Affine, weight: WeightName) -> Tensor<2> {
        let updates = self.updates.iter().filter(|u| u.weight == weight);
        updates.fold(map.weight.dense(), |sum, update| sum + update.product())
    }

    /// Checks, before anything is computed, that all updates fit and that their blocks are run.
    pub(crate) fn check_updates(&self, blocks: Range<usize>) -> Result<(), ModelError> {
        for update in self.updates {
            update.check(self.config)?;
            if update
                .weight
                .layer()
                .is_none_or(|layer| !blocks.contains(&layer))
            {
                return Err(ModelError::Input {
                    problem: format!(
                        "{:?} is to be updated, and this run computes blocks {} to {} (exclusive)",
                        update.weight, blocks.start, blocks.end
                    ),
                });
            }
        }
        Ok(())
    }

    /// Lets interventions, directions and recordings at a site have the activation.
    pub(crate) fn tap(&mut self, layer: usize, place: Place, flow: Flow) -> Result<Flow, Halt> {
        self.tap_as(layer, place, flow, |x| x)
    }

    /// The same, with the activation recorded as `shown` makes it.
    pub(crate) fn tap_as(
        &mut self,
        layer: usize,
        place: Place,
        mut flow: Flow,
        shown: impl Fn(Tensor<2>) -> Tensor<2>,
    ) -> Result<Flow, Halt> {
        if self.interventions.is_empty() && self.record.is_empty() && self.direction.is_none() {
            return Ok(flow);
        }
        let site = Site::at(layer, place);
        let heads = place.heads(self.config);
        for intervention in self.interventions.iter().filter(|i| i.site() == site) {
            let (x, dx) = intervention
                .apply(flow.x, flow.dx, &self.rows, heads)
                .map_err(|problem| ModelError::Input { problem })?;
            flow = Flow { x, dx };
        }
        if let Some(direction) = self.direction.filter(|d| d.site == site) {
            if direction.vector.dims() != flow.x.dims() {
                return Err(ModelError::Input {
                    problem: format!(
                        "the direction at {site} has the shape {:?}, the activation there {:?}",
                        direction.vector.dims(),
                        flow.x.dims()
                    ),
                }
                .into());
            }
            flow.dx = sum(flow.dx, Some(direction.vector.clone()));
        }
        if self.record.contains(&site) {
            self.recorded.insert(site, shown(flow.x.clone()));
            if self.direction.is_some() {
                let dx = flow.dx.clone().unwrap_or_else(|| flow.x.zeros_like());
                self.tangents.insert(site, dx);
            }
            if self.only_record && self.record.iter().all(|s| self.recorded.contains_key(s)) {
                return Err(Halt::Done);
            }
        }
        Ok(flow)
    }

    /// Checks, before anything is computed, that all sites exist and are reached, heads exist, and every intervention
    /// has a row to act on.
    pub(crate) fn check(
        &self,
        reached: impl Fn(Site) -> bool,
        extent: &str,
    ) -> Result<(), ModelError> {
        let used = self.interventions.iter().map(Intervention::site);
        let used = used.chain(self.record.iter().copied());
        for site in used.chain(self.direction.map(|d| d.site)) {
            site.check(self.config)?;
            if !reached(site) {
                return Err(SiteError::NotReached {
                    site,
                    reached: extent.to_owned(),
                }
                .into());
            }
        }
        for intervention in self.interventions {
            let Some(chosen) = intervention.heads() else {
                continue;
            };
            let site = intervention.site();
            let problem = match site.place().heads(self.config) {
                None => format!("{site} is not divided into heads"),
                Some(heads) => match chosen.iter().find(|&&head| head >= heads) {
                    Some(head) => format!("{site} has the heads 0 to {}, not {head}", heads - 1),
                    None if chosen.is_empty() => format!("no heads of {site} are named"),
                    None => continue,
                },
            };
            return Err(ModelError::Input { problem });
        }
        Ok(())
    }

    /// An error for an intervention that has no row to act on in this pass.
    pub(crate) fn check_all_act(&self) -> Result<(), ModelError> {
        match self.interventions.iter().find(|i| !i.acts_in(&self.rows)) {
            None => Ok(()),
            Some(intervention) => Err(ModelError::Input {
                problem: format!(
                    "{} never acts: the text has {} sequences, with positions {}",
                    intervention.describe(),
                    self.rows.sequences().len(),
                    self.rows
                        .sequences()
                        .iter()
                        .map(|&(start, length)| format!(
                            "{start} to {}",
                            (start + length).saturating_sub(1)
                        ))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            }),
        }
    }
}
