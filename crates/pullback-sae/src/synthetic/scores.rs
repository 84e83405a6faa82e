//! The scores of a dictionary beside the truth.

use pullback_artifact::Control;
use pullback_kernels::sparse::SparseCodes;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Sample, World};
use crate::features::largest::largest;
use crate::features::neighbours::{cosines, unit_rows};
use crate::metrics::Reconstruction;
use crate::{Dictionary, SaeError, assign_dense, assign_sparse};

/// Pairs of directions that are matched over a whole matrix; more are matched over near neighbours.
const MOST_PAIRS: usize = 5000 * 5000;
/// Near neighbours of each feature then.
const NEIGHBOURS: usize = 64;

/// One feature of a dictionary beside the true one it is nearest to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatentScore {
    /// The true feature of the largest `|cos|`.
    pub nearest: u32,
    /// That cosine, without its sign.
    pub cosine: f32,
    /// Share of this feature's firings in which the true one fires; zero when it never fires.
    pub precision: f64,
    /// Share of the true feature's firings in which this one fires; zero when the true one never fires.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// Where both fire: the sum of this feature's codes times the length of its decoder row, over the sum of true
    /// magnitudes. None where they never do.
    pub magnitude_ratio: Option<f64>,
}

/// How well a dictionary finds the true features. The names and definitions are those of `SynthSAEBench`
/// (arXiv 2602.14687, section 4) unless said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Activations judged on.
    pub rows: usize,
    /// Features of the dictionary active on one of them.
    pub l0: f64,
    /// True features that fire in one of them.
    pub true_l0: f64,
    /// `1 − E‖x − x̂‖² / E‖x − E x‖²`.
    pub explained_variance: f64,
    /// Mean `|cos|` of decoder rows and true directions in the one-to-one matching where it is greatest, over as many
    /// pairs as the smaller side has features.
    pub mcc: f64,
    /// Whether that matching is over all pairs of directions; otherwise it is over near neighbours, pairs not found
    /// count as zero, and the true figure may be a little higher.
    pub mcc_exact: bool,
    /// How many different true features are nearest to some feature, over the number of features.
    pub uniqueness: f64,
    /// Mean over features of [`LatentScore::precision`].
    pub precision: f64,
    /// Mean over features of [`LatentScore::recall`].
    pub recall: f64,
    /// Mean over features of [`LatentScore::f1`].
    pub f1: f64,
    /// Features that fired in none of the activations.
    pub dead: usize,
    /// `E ‖x̂‖ / ‖x‖`.
    pub shrinkage: f64,
    /// Mean over features of [`LatentScore::magnitude_ratio`], where there is one: below 1 where codes are too small.
    /// (Not in the benchmark that the others are from.)
    pub magnitude_ratio: f64,
}

/// Collects what [`Scores`] follow from.
pub struct Judge {
    d: usize,
    lengths: Vec<f64>,
    matched: (f64, bool),
    latents: Vec<LatentScore>,
    counts: Vec<Counts>,
    true_fired: Vec<u64>,
    true_active: u64,
    rows: u64,
    sums: Reconstruction,
}

/// What a feature did beside the true one it is nearest to.
#[derive(Clone, Copy, Default)]
struct Counts {
    fired: u64,
    both: u64,
    magnitude: f64,
    true_magnitude: f64,
}

impl Judge {
    /// Compares decoder rows `[m, d]` with true directions `[n, d]`.
    ///
    /// # Errors
    /// The sizes make no rows of width `d`, or the work was interrupted.
    pub fn new(
        decoder: &[f32],
        truth: &[f32],
        d: usize,
        control: &Control,
    ) -> Result<Self, SaeError> {
        if d == 0
            || decoder.is_empty()
            || truth.is_empty()
            || !decoder.len().is_multiple_of(d)
            || !truth.len().is_multiple_of(d)
        {
            return Err(SaeError::Option(format!(
                "{} and {} numbers are no decoder rows and directions of width {d}",
                decoder.len(),
                truth.len()
            )));
        }
        let (rows, unit_truth) = (unit_rows(decoder, d), unit_rows(truth, d));
        let (m, n) = (rows.len() / d, unit_truth.len() / d);
        let exact = m.saturating_mul(n) <= MOST_PAIRS;
        let near = near(&rows, &unit_truth, d, exact, control)?;
        let matched = if exact {
            all_pairs(&rows, &unit_truth, d, control)?
        } else {
            near_pairs(&near, n, control)?
        };
        let length = |row: &[f32]| {
            let squares = row.iter().map(|&x| f64::from(x) * f64::from(x));
            squares.sum::<f64>().sqrt()
        };
        Ok(Self {
            d,
            lengths: decoder.chunks_exact(d).map(length).collect(),
            matched: (matched / m.min(n) as f64, exact),
            latents: near
                .iter()
                .map(|near| {
                    let (nearest, cosine) = near[0];
                    LatentScore {
                        nearest,
                        cosine,
                        precision: 0.0,
                        recall: 0.0,
                        f1: 0.0,
                        magnitude_ratio: None,
                    }
                })
                .collect(),
            counts: vec![Counts::default(); m],
            true_fired: vec![0; n],
            true_active: 0,
            rows: 0,
            sums: Reconstruction::new(d, m),
        })
    }

    /// Adds activations with the dictionary's codes and reconstructions `[rows, d]` of them.
    ///
    /// # Panics
    /// If the sizes do not agree, or a feature is out of range.
    pub fn add(&mut self, sample: &Sample, codes: &SparseCodes<f32>, reconstruction: &[f32]) {
        assert_eq!(
            (codes.tokens(), sample.rows.len()),
            (sample.codes.tokens(), codes.tokens() * self.d),
            "one code and one row for each activation are needed"
        );
        self.sums.add(&sample.rows, codes, reconstruction);
        self.rows += codes.tokens() as u64;
        self.true_active += sample.codes.active() as u64;
        for &feature in sample.codes.features() {
            self.true_fired[feature as usize] += 1;
        }
        for token in 0..codes.tokens() {
            let (features, values) = codes.token(token);
            for (&feature, &value) in features.iter().zip(values) {
                let feature = feature as usize;
                let counts = &mut self.counts[feature];
                counts.fired += 1;
                let magnitude = sample.codes.value(token, self.latents[feature].nearest);
                if magnitude > 0.0 {
                    counts.both += 1;
                    counts.magnitude += f64::from(value) * self.lengths[feature];
                    counts.true_magnitude += f64::from(magnitude);
                }
            }
        }
    }

    /// The scores, and those of each feature.
    pub fn finish(mut self) -> (Scores, Vec<LatentScore>) {
        let share = |part: u64, whole: u64| {
            if whole > 0 {
                part as f64 / whole as f64
            } else {
                0.0
            }
        };
        for (latent, counts) in self.latents.iter_mut().zip(&self.counts) {
            latent.precision = share(counts.both, counts.fired);
            latent.recall = share(counts.both, self.true_fired[latent.nearest as usize]);
            let sum = latent.precision + latent.recall;
            if sum > 0.0 {
                latent.f1 = 2.0 * latent.precision * latent.recall / sum;
            }
            latent.magnitude_ratio =
                (counts.both > 0).then(|| counts.magnitude / counts.true_magnitude);
        }
        let m = self.latents.len() as f64;
        let mean =
            |of: fn(&LatentScore) -> f64| -> f64 { self.latents.iter().map(of).sum::<f64>() / m };
        let mut seen = vec![false; self.true_fired.len()];
        for latent in &self.latents {
            seen[latent.nearest as usize] = true;
        }
        let ratios: Vec<f64> = self
            .latents
            .iter()
            .filter_map(|latent| latent.magnitude_ratio)
            .collect();
        let metrics = self.sums.metrics();
        let scores = Scores {
            rows: self.rows as usize,
            l0: metrics.l0,
            true_l0: share(self.true_active, self.rows),
            explained_variance: metrics.explained_variance,
            mcc: self.matched.0,
            mcc_exact: self.matched.1,
            uniqueness: seen.iter().filter(|&&seen| seen).count() as f64 / m,
            precision: mean(|latent| latent.precision),
            recall: mean(|latent| latent.recall),
            f1: mean(|latent| latent.f1),
            dead: self
                .counts
                .iter()
                .filter(|counts| counts.fired == 0)
                .count(),
            shrinkage: metrics.l2_ratio,
            magnitude_ratio: ratios.iter().sum::<f64>() / ratios.len().max(1) as f64,
        };
        (scores, self.latents)
    }
}

/// The nearest true directions of each row with their `|cos|`, the nearest first.
fn near(
    rows: &[f32],
    truth: &[f32],
    d: usize,
    exact: bool,
    control: &Control,
) -> Result<Vec<Vec<(u32, f32)>>, SaeError> {
    let (m, n) = (rows.len() / d, truth.len() / d);
    let count = if exact { 1 } else { NEIGHBOURS.min(n) };
    let all: Vec<usize> = (0..m).collect();
    let mut found: Vec<Vec<(u32, f32)>> = Vec::with_capacity(m);
    cosines(rows, &all, truth, d, control, |_, cosines| {
        found.par_extend(cosines.par_chunks_exact(n).map(|cosines| {
            let sizes: Vec<f32> = cosines.iter().map(|cosine| cosine.abs()).collect();
            let mut near = largest(&sizes, count, |_| true);
            if near.is_empty() {
                near.push((0, 0.0));
            }
            near
        }));
    })?;
    Ok(found)
}

/// The greatest sum of `|cos|` over one-to-one pairs.
fn all_pairs(rows: &[f32], truth: &[f32], d: usize, control: &Control) -> Result<f64, SaeError> {
    // The solver wants no more rows than columns.
    let (few, many) = if rows.len() <= truth.len() {
        (rows, truth)
    } else {
        (truth, rows)
    };
    let (n, m) = (few.len() / d, many.len() / d);
    let mut weights: Vec<f32> = Vec::with_capacity(n * m);
    let all: Vec<usize> = (0..n).collect();
    cosines(few, &all, many, d, control, |_, cosines| {
        weights.extend(cosines.iter().map(|cosine| cosine.abs()));
    })?;
    let assignment = assign_dense(&weights, n, m, control)?;
    let chosen = assignment.columns.iter().zip(weights.chunks_exact(m));
    Ok(chosen
        .filter_map(|(column, weights)| Some(f64::from(weights[(*column)? as usize])))
        .sum())
}

/// The same over pairs of which the true direction is among the nearest of the row.
fn near_pairs(near: &[Vec<(u32, f32)>], n: usize, control: &Control) -> Result<f64, SaeError> {
    let mut offers = near.to_vec();
    for offers in &mut offers {
        offers.sort_by_key(|(feature, _)| *feature);
    }
    let assignment = assign_sparse(&offers, n, control)?;
    let chosen = assignment.columns.iter().zip(&offers);
    Ok(chosen
        .filter_map(|(column, offers)| {
            let column = (*column)?;
            let at = offers
                .binary_search_by_key(&column, |(feature, _)| *feature)
                .ok()?;
            Some(f64::from(offers[at].1))
        })
        .sum())
}

/// Judges a dictionary on so many pieces of a world's second stream.
///
/// # Errors
/// The dictionary is of another width, no piece is asked for, or the work was interrupted.
pub fn score(
    dictionary: &dyn Dictionary,
    world: &World,
    pieces: usize,
    control: &Control,
) -> Result<(Scores, Vec<LatentScore>), SaeError> {
    let d = world.config().d;
    if dictionary.d() != d || dictionary.d_out() != d {
        return Err(SaeError::Option(format!(
            "the dictionary goes from width {} to {}, the activations are of width {d}",
            dictionary.d(),
            dictionary.d_out()
        )));
    }
    if pieces == 0 {
        return Err(SaeError::Option(
            "nothing to judge the dictionary on: at least one piece is needed".to_owned(),
        ));
    }
    let mut judge = Judge::new(dictionary.decoder(), world.directions(), d, control)?;
    let stage = control.stage("judge", pieces as u64, "pieces");
    for number in 0..pieces as u64 {
        control.check()?;
        let sample = world.held_out(number);
        let codes = dictionary.encode(&sample.rows);
        let reconstruction = dictionary.reconstruct(&sample.rows, &codes);
        judge.add(&sample, &codes, &reconstruction);
        stage.advance(1);
    }
    stage.finish();
    Ok(judge.finish())
}

#[cfg(test)]
mod tests;
