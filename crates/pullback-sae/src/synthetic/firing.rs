//! Which features fire together, and how strongly.

use std::ops::Range;

use pullback_kernels::sparse::SparseCodes;
use pullback_kernels::{Matrix, Threads, product};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

use super::normal::tail_quantile;
use super::{Forest, Magnitudes, WorldConfig};

/// One feature that a draw can make fire.
struct Outcome {
    feature: u32,
    /// It fires where the variable is above this, and not above the bound of the outcome before.
    above: f64,
}

/// One normal variable `g = ⟨loading, factors⟩ + rest · noise`, which decides over a root, a child, or all children of a
/// parent that exclude each other.
struct Draw {
    /// One number a factor, among [`Firing::loadings`].
    loading: Range<usize>,
    rest: f64,
    outcomes: Vec<Outcome>,
}

/// How features fire.
///
/// The variable of a draw has the variance one, and variables correlate by the products of their loadings. Those of a
/// feature's ancestors are kept orthogonal to its own: jointly normal variables without correlation are independent, so
/// that the probabilities of a line of descent multiply, and each feature fires exactly as often as the forest says.
pub(super) struct Firing {
    loadings: Vec<f64>,
    rank: usize,
    draws: Vec<Draw>,
    /// How many of the draws have no parent; they come first.
    free: usize,
    /// The draws that a feature opens.
    opened: Vec<Range<usize>>,
    means: Vec<f64>,
    deviations: Vec<f64>,
    scaled: bool,
}

/// The most of a variable's variance that common factors may have.
const MOST_COMMON: f64 = 0.99;

impl Firing {
    pub(super) fn new(config: &WorldConfig, forest: &Forest, rng: &mut impl Rng) -> Self {
        let n = forest.features();
        let rank = config.correlation.rank;
        let p = forest.probabilities();
        let mut firing = Self {
            loadings: Vec::new(),
            rank,
            draws: Vec::new(),
            free: 0,
            opened: vec![0..0; n],
            means: (0..n)
                .map(|i| {
                    let place = i as f64 / (n - 1).max(1) as f64;
                    let Magnitudes { first, last, .. } = config.magnitudes;
                    first + (last - first) * place
                })
                .collect(),
            deviations: (0..n)
                .map(|_| {
                    let Magnitudes {
                        spread,
                        spread_deviation,
                        ..
                    } = config.magnitudes;
                    (spread + spread_deviation * normal(rng)).abs()
                })
                .collect(),
            scaled: config.hierarchy.scaled,
        };
        // The draw that each feature comes from, to find the loadings of its ancestors.
        let mut origin = vec![0; n];
        for feature in (0..n).filter(|&feature| forest.parent(feature).is_none()) {
            origin[feature] = firing.draws.len();
            firing.draw(config, &[], &[(feature as u32, p[feature])], rng);
        }
        firing.free = firing.draws.len();
        for parent in 0..n {
            let family = forest.children(parent);
            if family.is_empty() {
                continue;
            }
            let mut ancestors = vec![origin[parent]];
            let mut at = parent;
            while let Some(next) = forest.parent(at) {
                at = next as usize;
                ancestors.push(origin[at]);
            }
            let given = |child: u32| (child, p[child as usize] / p[parent]);
            let first = firing.draws.len();
            if forest.exclusive() {
                let outcomes: Vec<(u32, f64)> = family.clone().map(given).collect();
                family
                    .clone()
                    .for_each(|child| origin[child as usize] = first);
                firing.draw(config, &ancestors, &outcomes, rng);
            } else {
                for child in family {
                    origin[child as usize] = firing.draws.len();
                    firing.draw(config, &ancestors, &[given(child)], rng);
                }
            }
            firing.opened[parent] = first..firing.draws.len();
        }
        firing
    }

    /// Adds a draw with outcomes of these probabilities, whose loading is orthogonal to those of other draws.
    fn draw(
        &mut self,
        config: &WorldConfig,
        ancestors: &[usize],
        outcomes: &[(u32, f64)],
        rng: &mut impl Rng,
    ) {
        let start = self.loadings.len();
        let mut loading: Vec<f64> = (0..self.rank)
            .map(|_| config.correlation.scale * normal(rng))
            .collect();
        let length = dot(&loading, &loading).sqrt().min(MOST_COMMON.sqrt());
        if length > 0.0 {
            // Twice, so that what rounding left of the first time is gone as well.
            for _ in 0..2 {
                for &ancestor in ancestors {
                    let other = &self.loadings[self.draws[ancestor].loading.clone()];
                    let factor = dot(&loading, other) / dot(other, other);
                    for (x, y) in loading.iter_mut().zip(other) {
                        *x -= factor * y;
                    }
                }
            }
            let factor = length / dot(&loading, &loading).sqrt();
            for x in &mut loading {
                *x *= factor;
            }
        }
        self.loadings.extend(loading);
        let mut sum = 0.0;
        self.draws.push(Draw {
            loading: start..self.loadings.len(),
            rest: (1.0 - length * length).sqrt(),
            outcomes: outcomes
                .iter()
                .map(|&(feature, p)| {
                    sum += p;
                    Outcome {
                        feature,
                        above: tail_quantile(sum),
                    }
                })
                .collect(),
        });
    }

    /// What fires in each of so many activations: features ascending, with their magnitudes.
    pub(super) fn sample(&self, rows: usize, rng: &mut impl Rng) -> SparseCodes<f32> {
        let mut codes = SparseCodes::new();
        let factors: Vec<f64> = (0..rows * self.rank).map(|_| normal(rng)).collect();
        // The common parts of all draws that are always made, at once.
        let common = product(
            Matrix::new(&factors, rows, self.rank, self.rank),
            Matrix::new(
                &self.loadings[..self.free * self.rank],
                self.free,
                self.rank,
                self.rank,
            )
            .transposed(),
            Threads::One,
        );
        let mut fired: Vec<(u32, f32)> = Vec::new();
        // Features whose children are still to be drawn, with the ratio of their magnitude to their mean.
        let mut open: Vec<(u32, f64)> = Vec::new();
        for row in 0..rows {
            fired.clear();
            let common = &common[row * self.free..(row + 1) * self.free];
            for (draw, &common) in self.draws.iter().zip(common) {
                self.decide(draw, (common, 1.0), rng, &mut fired, &mut open);
            }
            let factors = &factors[row * self.rank..(row + 1) * self.rank];
            while let Some((parent, ratio)) = open.pop() {
                for draw in &self.draws[self.opened[parent as usize].clone()] {
                    let common = dot(&self.loadings[draw.loading.clone()], factors);
                    self.decide(draw, (common, ratio), rng, &mut fired, &mut open);
                }
            }
            fired.sort_unstable_by_key(|(feature, _)| *feature);
            let (features, values): (Vec<u32>, Vec<f32>) = fired.iter().copied().unzip();
            codes.push(&features, &values);
        }
        codes
    }

    /// Makes a draw with this common part, for features whose parent has this ratio of its magnitude to its mean.
    fn decide(
        &self,
        draw: &Draw,
        (common, ratio): (f64, f64),
        rng: &mut impl Rng,
        fired: &mut Vec<(u32, f32)>,
        open: &mut Vec<(u32, f64)>,
    ) {
        let g = common + draw.rest * normal(rng);
        let Some(outcome) = draw.outcomes.iter().find(|outcome| g > outcome.above) else {
            return;
        };
        let feature = outcome.feature as usize;
        let (mean, deviation) = (self.means[feature], self.deviations[feature]);
        // A magnitude that rounds to zero would be no firing.
        let magnitude = loop {
            let magnitude = mean + deviation * normal(rng);
            if magnitude > 0.0 && (magnitude * ratio) as f32 > 0.0 {
                break magnitude * ratio;
            }
        };
        fired.push((outcome.feature, magnitude as f32));
        if !self.opened[feature].is_empty() {
            let ratio = if self.scaled { magnitude / mean } else { 1.0 };
            open.push((outcome.feature, ratio));
        }
    }

    /// The loading of a feature's draw, and between which bounds its variable makes it fire.
    #[cfg(test)]
    pub(super) fn bounds(&self, feature: u32) -> (&[f64], f64, f64) {
        let found = self.draws.iter().find_map(|draw| {
            let at = draw.outcomes.iter().position(|o| o.feature == feature)?;
            let below = at
                .checked_sub(1)
                .map_or(f64::INFINITY, |before| draw.outcomes[before].above);
            Some((
                &self.loadings[draw.loading.clone()],
                draw.outcomes[at].above,
                below,
            ))
        });
        found.unwrap_or((&[], f64::INFINITY, f64::INFINITY))
    }

    /// Mean and standard deviation of a feature's normal variable.
    #[cfg(test)]
    pub(super) fn magnitude(&self, feature: usize) -> (f64, f64) {
        (self.means[feature], self.deviations[feature])
    }
}

fn normal(rng: &mut impl Rng) -> f64 {
    StandardNormal.sample(rng)
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}
