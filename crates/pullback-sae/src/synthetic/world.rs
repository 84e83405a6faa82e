//! An endless stream of activations of known features.

use pullback_activations::FeedSite;
use pullback_artifact::Control;
use pullback_kernels::sparse::{SparseCodes, decode};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use super::directions::{directions, mean_largest};
use super::feed::SITE;
use super::firing::Firing;
use super::{Forest, WorldConfig};
use crate::SaeError;

/// Rows of a piece of the stream.
pub const PIECE_ROWS: usize = 4096;
/// Rows that one random sequence makes.
const BLOCK_ROWS: usize = 128;

/// Activations with the features that they were made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The activations `[n, d]`.
    pub rows: Vec<f32>,
    /// Which features fire in each, and how strongly.
    pub codes: SparseCodes<f32>,
}

/// What random numbers are for; each purpose has sequences of its own.
#[derive(Clone, Copy)]
enum Purpose {
    Directions = 1,
    Firing = 2,
    Bias = 3,
    Training = 4,
    HeldOut = 5,
}

/// Known features and the activations they make: `x = Σ_i a_i v_i + b`, with unit directions `v_i` and magnitudes `a_i`
/// of which few are above zero.
///
/// As in `SynthSAEBench` (arXiv 2602.14687, section 3), how often features fire follows the law of Zipf, firing is
/// correlated by a Gaussian copula of low rank, children fire only with their parent and exclude each other. Other than
/// there, a feature's probability is exact: [`Forest::probabilities`] are those of the activations, where there a
/// correction of first order is made. For that, children that exclude each other share one variable of the copula,
/// whose range is split between them, instead of one that is chosen among those that fire; and the variables of a
/// feature's line of descent are kept independent of each other. Magnitudes are normal and above zero, where
/// there they are cut off at zero.
///
/// Everything follows from the configuration: the same piece of the stream is the same whenever and in whatever order it
/// is asked for.
pub struct World {
    config: WorldConfig,
    forest: Forest,
    firing: Firing,
    directions: Vec<f32>,
    bias: Vec<f32>,
    overlap: f64,
    site: FeedSite,
}

impl World {
    /// Makes the directions and how they fire.
    ///
    /// # Errors
    /// The configuration makes no world, its overlap is not reached, or the work was interrupted.
    pub fn new(config: &WorldConfig, control: &Control) -> Result<Self, SaeError> {
        config.check()?;
        let rng = |purpose| random(config.seed, purpose, 0);
        let directions = directions(
            config.features,
            config.d,
            config.overlap,
            &mut rng(Purpose::Directions),
            control,
        )?;
        let forest = Forest::new(config);
        let firing = Firing::new(config, &forest, &mut rng(Purpose::Firing));
        let bias_rng = &mut rng(Purpose::Bias);
        let bias: Vec<f64> = (0..config.d)
            .map(|_| StandardNormal.sample(bias_rng))
            .collect();
        let length = bias.iter().map(|x| x * x).sum::<f64>().sqrt();
        Ok(Self {
            overlap: mean_largest(&directions, config.d),
            bias: bias
                .iter()
                .map(|x| (x / length * config.bias) as f32)
                .collect(),
            site: FeedSite {
                name: SITE.to_owned(),
                d: config.d,
            },
            config: config.clone(),
            forest,
            firing,
            directions,
        })
    }

    /// What it was made from.
    pub fn config(&self) -> &WorldConfig {
        &self.config
    }

    /// Which feature fires only with which, and how often.
    pub fn forest(&self) -> &Forest {
        &self.forest
    }

    /// The true directions, one row a feature: `[features, d]`, each of length one.
    pub fn directions(&self) -> &[f32] {
        &self.directions
    }

    /// What is added to all activations, `[d]`.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Mean over features of the largest `|cos|` with another one.
    pub fn overlap(&self) -> f64 {
        self.overlap
    }

    /// A piece of the stream to train on: [`PIECE_ROWS`] activations.
    pub fn piece(&self, number: u64) -> Sample {
        self.sample(Purpose::Training, number)
    }

    /// A piece of another stream, to judge with: as many activations, none of which is in the first stream.
    pub fn held_out(&self, number: u64) -> Sample {
        self.sample(Purpose::HeldOut, number)
    }

    fn sample(&self, purpose: Purpose, number: u64) -> Sample {
        const BLOCKS: usize = PIECE_ROWS / BLOCK_ROWS;
        let first = number.wrapping_mul(BLOCKS as u64);
        let blocks: Vec<SparseCodes<f32>> = (0..BLOCKS as u64)
            .into_par_iter()
            .map(|block| {
                let mut rng = random(self.config.seed, purpose, first.wrapping_add(block));
                self.firing.sample(BLOCK_ROWS, &mut rng)
            })
            .collect();
        let mut codes = SparseCodes::new();
        for block in &blocks {
            codes.append(block);
        }
        Sample {
            rows: decode(&codes, &self.directions, &self.bias),
            codes,
        }
    }

    /// The only place that activations are of.
    pub(super) fn site(&self) -> &FeedSite {
        &self.site
    }

    #[cfg(test)]
    pub(super) fn firing(&self) -> &Firing {
        &self.firing
    }
}

/// The random sequence of a purpose with a number below 2^56.
fn random(seed: u64, purpose: Purpose, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((purpose as u64) << 56 | (number & ((1 << 56) - 1)));
    rng
}

#[cfg(test)]
mod tests;
