//! What a synthetic world is to be like.

use serde::{Deserialize, Serialize};

use super::Forest;
use crate::SaeError;

/// Trees of features: a child fires only when its parent does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Number of trees; zero makes all features independent of each other but for their correlation.
    pub roots: usize,
    /// Children of each feature above the leaves.
    pub branching: usize,
    /// Levels below the roots.
    pub depth: usize,
    /// Whether at most one child of a parent fires at a time.
    pub exclusive: bool,
    /// The most that children may take of their parent's firings: all together where they are exclusive, each alone
    /// where they are not. Children that are more frequent become rarer.
    pub share: f64,
    /// Whether a child's magnitude is multiplied by the ratio of its parent's magnitude to the parent's mean.
    pub scaled: bool,
}

/// Correlation of firing, by a Gaussian copula of low rank.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Correlation {
    /// Number of common factors; zero makes firing independent.
    pub rank: usize,
    /// Standard deviation of a feature's loading on a factor.
    pub scale: f64,
}

/// How strongly features fire: normal variables, drawn again until they are above zero.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Magnitudes {
    /// Mean of the first feature's normal variable; means fall in a straight line to `last`.
    pub first: f64,
    /// That of the last feature.
    pub last: f64,
    /// A feature's standard deviation is the absolute value of a normal variable with this mean …
    pub spread: f64,
    /// … and this standard deviation.
    pub spread_deviation: f64,
}

/// What a world is to be like. Features are numbered by falling probability, as it is before [`Hierarchy::share`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorldConfig {
    /// Width of the activations.
    pub d: usize,
    /// Number of true features.
    pub features: usize,
    /// Probability that the first feature fires.
    pub most_frequent: f64,
    /// Probability that the last one fires.
    pub rarest: f64,
    /// Exponent of the law of Zipf between them.
    pub exponent: f64,
    /// Which features fire only together.
    pub hierarchy: Hierarchy,
    /// How firing is correlated otherwise.
    pub correlation: Correlation,
    /// How strongly features fire.
    pub magnitudes: Magnitudes,
    /// Directions are moved apart until the mean over features of the largest `|cos|` with another one is at most this;
    /// without, they stay random.
    pub overlap: Option<f64>,
    /// Length of the vector that is added to all activations.
    pub bias: f64,
    /// Seed of everything.
    pub seed: u64,
}

/// Directions in memory, in numbers.
const MAX_NUMBERS: usize = 1 << 31;

impl WorldConfig {
    /// The published world where `features` is 16,384 and `d` 768, and smaller or larger ones in proportion: a tree for
    /// each 128 features, four children a parent, three levels below the roots, siblings that exclude each other,
    /// probabilities from 0.4 to 5e-4 with exponent 0.5, 25 factors of scale 0.1, magnitudes from 5 to 4.
    ///
    /// Children take at most nine tenths of their parent's firings here, so that each parent also fires alone.
    pub fn new(d: usize, features: usize, seed: u64) -> Self {
        Self {
            d,
            features,
            most_frequent: 0.4,
            rarest: 5e-4,
            exponent: 0.5,
            hierarchy: Hierarchy {
                roots: features / 128,
                branching: 4,
                depth: 3,
                exclusive: true,
                share: 0.9,
                scaled: true,
            },
            correlation: Correlation {
                rank: 25,
                scale: 0.1,
            },
            magnitudes: Magnitudes {
                first: 5.0,
                last: 4.0,
                spread: 0.5,
                spread_deviation: 0.5,
            },
            overlap: None,
            bias: 0.5,
            seed,
        }
    }

    /// The probabilities asked for: `low + (high − low)·(i^−e − n^−e) / (1 − n^−e)` for `i = 1 … n`.
    pub fn wanted_probabilities(&self) -> Vec<f64> {
        let (n, e) = (self.features as f64, self.exponent);
        let last = n.powf(-e);
        (1..=self.features)
            .map(|i| {
                let place = if self.features == 1 {
                    1.0
                } else {
                    ((i as f64).powf(-e) - last) / (1.0 - last)
                };
                self.rarest + (self.most_frequent - self.rarest) * place
            })
            .collect()
    }

    /// Mean number of features that fire at a time, among the first `features`.
    pub fn true_l0(&self, features: usize) -> f64 {
        Forest::new(self).l0(features)
    }

    /// Refuses what makes no world.
    ///
    /// # Errors
    /// A value is out of its range.
    pub fn check(&self) -> Result<(), SaeError> {
        let wrong = |problem: String| Err(SaeError::Option(problem));
        if self.d == 0 || self.features == 0 {
            return wrong(format!(
                "{} features of width {} are no world: at least one of each is needed",
                self.features, self.d
            ));
        }
        let numbers = self.d.checked_mul(self.features);
        if numbers.is_none_or(|numbers| numbers > MAX_NUMBERS) {
            return wrong(format!(
                "{} features of width {} are too many numbers: at most {MAX_NUMBERS}",
                self.features, self.d
            ));
        }
        if !(self.rarest > 0.0 && self.rarest <= self.most_frequent && self.most_frequent < 1.0) {
            return wrong(format!(
                "the probabilities go from {} to {}: they must be above 0 and below 1, the first not below the last",
                self.most_frequent, self.rarest
            ));
        }
        if !(self.exponent.is_finite() && self.exponent > 0.0) {
            return wrong(format!(
                "the exponent of the probabilities is {}, it must be above 0",
                self.exponent
            ));
        }
        let Hierarchy {
            roots,
            branching,
            depth,
            share,
            ..
        } = self.hierarchy;
        if roots > self.features {
            return wrong(format!("{roots} trees have no {} features", self.features));
        }
        if roots > 0 && depth > 0 && branching == 0 {
            return wrong("a tree with levels needs at least one child a parent".to_owned());
        }
        if !(share > 0.0 && share <= 1.0) {
            return wrong(format!(
                "children take {share} of their parent's firings, it must be above 0 and at most 1"
            ));
        }
        let Correlation { rank, scale } = self.correlation;
        if !(scale.is_finite() && scale >= 0.0) {
            return wrong(format!(
                "the scale of the correlation is {scale}, it must be 0 or above"
            ));
        }
        if rank > self.features.max(64) {
            return wrong(format!(
                "the correlation has {rank} factors, more than there are features"
            ));
        }
        if rank > 0 && roots > 0 && rank <= depth {
            return wrong(format!(
                "a correlation of rank {rank} cannot keep {depth} levels of a tree apart: at least {} are needed, or 0",
                depth + 1
            ));
        }
        let Magnitudes {
            first,
            last,
            spread,
            spread_deviation,
        } = self.magnitudes;
        for (what, value, above) in [
            ("the first magnitude", first, true),
            ("the last magnitude", last, true),
            ("the spread of magnitudes", spread, false),
            ("the deviation of the spread", spread_deviation, false),
            ("the length of the bias", self.bias, false),
        ] {
            if !(value.is_finite() && value >= 0.0 && (value > 0.0 || !above)) {
                let right = if above { "above 0" } else { "0 or above" };
                return wrong(format!("{what} is {value}, it must be {right}"));
            }
        }
        if let Some(overlap) = self.overlap
            && !(overlap > 0.0 && overlap <= 1.0)
        {
            return wrong(format!(
                "the overlap is {overlap}, it is a cosine above 0 and at most 1"
            ));
        }
        Ok(())
    }
}
