//! `BatchTopK` (Bussmann et al., arXiv 2412.06410): tokens share a budget of active features.

use std::cmp::Ordering;

use pullback_kernels::Real;
use pullback_kernels::sparse::{SparseCodes, encode_where};

use super::Kind;
use super::top_k::reconstruct;
use crate::Selection;
use crate::learn::{Aux, Batch, Parameters, Rows, Step, centred};

/// What the threshold moves towards that of a batch (`SAELens`'s rate).
const RATE: f64 = 0.01;
/// Where the next batch's smallest code is looked for, as a share of the last batch's.
const CAUTION: f64 = 0.8;

/// The selection, with what it learns.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Budget {
    pub(super) k: usize,
    /// For use: the moving average of the smallest codes of batches. It starts with the first, not with zero: from there
    /// it would take hundreds of batches to come near.
    threshold: Option<f64>,
    /// The smallest code of the last batch. It speeds the search up; what is found does not hang on it.
    smallest: f64,
}

impl Budget {
    pub(super) fn new(k: usize) -> Self {
        Self {
            k,
            threshold: None,
            smallest: 0.0,
        }
    }

    /// The `k · tokens` largest positive pre-activations of a batch; of equal ones the earlier tokens and features.
    pub(super) fn select<T: Real>(
        &mut self,
        parameters: &Parameters<T>,
        centred: &[T],
    ) -> SparseCodes<T> {
        let budget = self.k * (centred.len() / parameters.d);
        let above = |bound: f64| {
            let bound = T::of(bound);
            encode_where(
                centred,
                &parameters.encoder,
                &parameters.encoder_bias,
                |_, pre| pre > bound,
            )
        };
        let guess = CAUTION * self.smallest;
        let mut found = above(guess);
        if found.active() < budget && guess > 0.0 {
            found = above(0.0);
        }
        let codes = largest(&found, budget);
        let smallest = codes.values().iter().fold(f64::INFINITY, |least, x| {
            let x = x.as_f64();
            if x < least { x } else { least }
        });
        if smallest.is_finite() {
            self.smallest = smallest;
            self.threshold = Some(self.threshold.map_or(smallest, |threshold| {
                threshold + RATE * (smallest - threshold)
            }));
        }
        codes
    }

    pub(super) fn memory(&self) -> Vec<f64> {
        self.threshold
            .map_or_else(Vec::new, |threshold| vec![threshold, self.smallest])
    }

    pub(super) fn remember(&mut self, memory: &[f64]) {
        if let [threshold, smallest] = memory {
            self.threshold = Some(*threshold);
            self.smallest = *smallest;
        }
    }

    pub(super) fn selection(&self, features: usize, scale: f64) -> Selection {
        Selection::Threshold {
            thresholds: vec![(self.threshold.unwrap_or(0.0) / scale) as f32; features],
        }
    }
}

/// The `budget` largest codes of all tokens; of equal ones those that come first.
fn largest<T: Real>(codes: &SparseCodes<T>, budget: usize) -> SparseCodes<T> {
    if codes.active() <= budget {
        return codes.clone();
    }
    let mut values = codes.values().to_vec();
    let descending = |a: &T, b: &T| b.partial_cmp(a).unwrap_or(Ordering::Equal);
    let (larger, bound, _) = values.select_nth_unstable_by(budget - 1, descending);
    let bound = *bound;
    let mut equal = budget - larger.iter().filter(|&&x| x > bound).count();
    let mut kept = SparseCodes::new();
    let (mut places, mut of_token) = (Vec::new(), Vec::new());
    for token in 0..codes.tokens() {
        places.clear();
        of_token.clear();
        let (features, values) = codes.token(token);
        for (&feature, &value) in features.iter().zip(values) {
            let keep = value > bound || (value == bound && equal > 0);
            if value == bound && keep {
                equal -= 1;
            }
            if keep {
                places.push(feature);
                of_token.push(value);
            }
        }
        kept.push(&places, &of_token);
    }
    kept
}

pub(crate) struct BatchTopK {
    budget: Budget,
    aux: Option<Aux>,
}

impl BatchTopK {
    pub(crate) fn new(k: usize, aux: Option<Aux>) -> Self {
        Self {
            budget: Budget::new(k),
            aux,
        }
    }
}

impl<T: Real> Kind<T> for BatchTopK {
    fn batch(
        &mut self,
        parameters: &Parameters<T>,
        rows: &Rows<'_, T>,
        step: &Step<'_>,
    ) -> Batch<T> {
        let centred = centred(parameters, rows.x);
        let codes = self.budget.select(parameters, &centred);
        reconstruct(parameters, (rows, centred), codes, (self.aux, None), step)
    }

    fn memory(&self) -> Vec<f64> {
        self.budget.memory()
    }

    fn remember(&mut self, memory: &[f64]) {
        self.budget.remember(memory);
    }

    fn selection(&self, parameters: &Parameters<T>, scale: f64) -> Selection {
        self.budget.selection(parameters.features(), scale)
    }
}
