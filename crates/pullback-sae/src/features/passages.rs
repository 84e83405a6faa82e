//! Passages of text around activations, and histograms: what a second look at the rows brings.

use std::ops::Range;

use pullback_activations::ActivationStore;
use serde::{Deserialize, Serialize};

use super::statistics::Firing;

/// A stretch of a store's rows around an activation of a feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passage {
    /// The row of the activation.
    pub row: u32,
    /// The activation.
    pub activation: f32,
    /// The rows of the passage, all of one sequence.
    pub rows: Range<u32>,
    /// The feature's activation on each of them; zero on rows that were left out as abnormal.
    pub activations: Vec<f32>,
}

/// The rows `around` a row on each side, as far as its sequence goes.
pub(crate) fn span(store: &ActivationStore, row: u32, around: usize) -> Range<u32> {
    let row = row as usize;
    let first = row - store.position(row) as usize;
    let mut last = (first + store.info().context).min(store.len());
    // Of a text in memory, sequences may be shorter than the longest one.
    while store.sequence(last - 1) != store.sequence(row) {
        last -= 1;
    }
    let from = row.saturating_sub(around).max(first);
    let to = row.saturating_add(around).saturating_add(1).min(last);
    from as u32..to as u32
}

impl Passage {
    /// A passage whose activations are still to be filled in.
    pub(super) fn around(store: &ActivationStore, firing: &Firing, around: usize) -> Self {
        let rows = span(store, firing.row, around);
        Self {
            row: firing.row,
            activation: firing.value,
            activations: vec![0.0; rows.len()],
            rows,
        }
    }

    /// Takes note of the feature's activation on a row.
    pub(super) fn see(&mut self, row: u32, value: f32) {
        if self.rows.contains(&row) {
            self.activations[(row - self.rows.start) as usize] = value;
        }
    }
}

/// Adds a value to counts over `0..=largest` in bins of one width.
pub(super) fn count_in(histogram: &mut [u64], value: f32, largest: f32) {
    let bins = histogram.len();
    let place = (f64::from(value) / f64::from(largest) * bins as f64) as usize;
    if let Some(count) = histogram.get_mut(place.min(bins.saturating_sub(1))) {
        *count += 1;
    }
}
