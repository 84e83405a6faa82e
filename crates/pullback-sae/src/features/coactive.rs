//! Which features are active together.

use pullback_artifact::Control;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::largest::largest;
use crate::SaeError;

/// A feature that is active together with another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoActive {
    /// The feature.
    pub feature: u32,
    /// `n_ij / (n_i + n_j − n_ij)`, with `n_i` and `n_j` the tokens on which each is active and `n_ij` those on which
    /// both are (Jaccard's index).
    pub jaccard: f32,
    /// Tokens on which both are active, of those looked at.
    pub together: u32,
}

/// The active features of some tokens: of all of them while they fit, then of every second one, every fourth, and so
/// on, so that memory is bounded.
pub(super) struct Kept {
    budget: usize,
    stride: usize,
    seen: usize,
    /// Where each kept token's features end.
    ends: Vec<usize>,
    features: Vec<u32>,
}

impl Kept {
    /// Keeps at most about `budget` active features in all.
    pub(super) fn new(budget: usize) -> Self {
        Self {
            budget,
            stride: 1,
            seen: 0,
            ends: Vec::new(),
            features: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, features: &[u32]) {
        if self.seen.is_multiple_of(self.stride) {
            self.features.extend_from_slice(features);
            self.ends.push(self.features.len());
        }
        self.seen += 1;
        if self.features.len() > self.budget && self.ends.len() > 1 {
            self.halve();
        }
    }

    /// Tokens kept.
    pub(super) fn tokens(&self) -> usize {
        self.ends.len()
    }

    fn span(&self, token: usize) -> std::ops::Range<usize> {
        token.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[token]
    }

    fn halve(&mut self) {
        let (mut features, mut ends) = (Vec::new(), Vec::new());
        for token in (0..self.tokens()).step_by(2) {
            features.extend_from_slice(&self.features[self.span(token)]);
            ends.push(features.len());
        }
        (self.features, self.ends) = (features, ends);
        self.stride *= 2;
    }

    /// For each feature of `wanted` the `count` others of largest Jaccard index.
    pub(super) fn coactive(
        &self,
        wanted: &[usize],
        n_features: usize,
        count: usize,
        control: &Control,
    ) -> Result<Vec<Vec<CoActive>>, SaeError> {
        // The tokens of each feature, one after the other.
        let mut starts = vec![0_usize; n_features + 1];
        for &feature in &self.features {
            starts[feature as usize + 1] += 1;
        }
        for feature in 0..n_features {
            starts[feature + 1] += starts[feature];
        }
        let mut tokens = vec![0_u32; self.features.len()];
        let mut next = starts.clone();
        for token in 0..self.tokens() {
            for &feature in &self.features[self.span(token)] {
                let place = &mut next[feature as usize];
                tokens[*place] = token as u32;
                *place += 1;
            }
        }
        let total = |feature: usize| starts[feature + 1] - starts[feature];
        let stage = control.stage("co-active features", wanted.len() as u64, "features");
        let mut found = Vec::with_capacity(wanted.len());
        for block in wanted.chunks(512) {
            control.check()?;
            found.par_extend(block.par_iter().map_init(
                || (vec![0_u32; n_features], Vec::new()),
                |(together, touched), &feature| {
                    for &token in &tokens[starts[feature]..starts[feature + 1]] {
                        for &other in &self.features[self.span(token as usize)] {
                            if together[other as usize] == 0 {
                                touched.push(other);
                            }
                            together[other as usize] += 1;
                        }
                    }
                    touched.sort_unstable();
                    let scores: Vec<f32> = touched
                        .iter()
                        .map(|&other| {
                            let both = together[other as usize] as usize;
                            let either = total(feature) + total(other as usize) - both;
                            (both as f64 / either as f64) as f32
                        })
                        .collect();
                    let best = largest(&scores, count, |at| touched[at] as usize != feature)
                        .into_iter()
                        .map(|(at, jaccard)| CoActive {
                            feature: touched[at as usize],
                            jaccard,
                            together: together[touched[at as usize] as usize],
                        })
                        .collect();
                    for other in touched.drain(..) {
                        together[other as usize] = 0;
                    }
                    best
                },
            ));
            stage.advance(block.len() as u64);
        }
        stage.finish();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_memory_ends_every_second_token_is_kept() {
        let mut kept = Kept::new(20);
        for token in 0..37_u32 {
            kept.add(&[token, token + 100]);
        }
        assert!(kept.features.len() <= 22);
        assert_eq!(kept.stride, 4);
        let tokens: Vec<u32> = (0..kept.tokens())
            .map(|token| kept.features[kept.span(token)][0])
            .collect();
        assert_eq!(tokens, (0..37).step_by(4).collect::<Vec<_>>());
    }
}
