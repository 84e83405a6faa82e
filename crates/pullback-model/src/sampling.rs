//! Choosing the next token from logits, and stop strings.
//!
//! The rules are those of the logits processors of Hugging Face transformers (`generation/logits_process.py`), in its
//! order: repetition penalty, temperature, top-k, top-p, min-p.

mod stop;

use std::cmp::Ordering;

use rand::{Rng, RngExt};

pub use self::stop::{Piece, StopStrings};

use crate::error::ModelError;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Zero takes the likeliest token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep only this many of the likeliest tokens, and those as likely as the last of them.
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens until their probabilities sum to this.
    pub top_p: Option<f32>,
    /// Keep only tokens at least this many times as likely as the likeliest.
    pub min_p: Option<f32>,
    /// Positive logits of tokens that occur in the history are divided by this, negative ones multiplied; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Seed of the random choices.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks that the settings make sense.
    ///
    /// # Errors
    /// [`ModelError::Input`] that names the first setting out of its range.
    pub fn check(&self) -> Result<(), ModelError> {
        let refuse = |problem: String| Err(ModelError::Input { problem });
        let share = |name: &str, value: Option<f32>| match value {
            Some(p) if !(0.0..=1.0).contains(&p) => {
                refuse(format!("{name} is {p}, expected a number from 0 to 1"))
            }
            _ => Ok(()),
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refuse(format!(
                "the temperature is {}, expected 0 or more",
                self.temperature
            ));
        }
        if self.top_k == Some(0) {
            return refuse("top-k is 0, expected 1 or more".into());
        }
        share("top-p", self.top_p)?;
        share("min-p", self.min_p)?;
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return refuse(format!(
                "the repetition penalty is {}, expected more than 0",
                self.repetition_penalty
            ));
        }
        Ok(())
    }
}

/// The next token after `history`, the ids of prompt and text so far, from its logits `[d_vocab]`.
///
/// Of equal logits the lowest id is likeliest, and logits that are not numbers count as impossible. The choice hangs on
/// nothing but the arguments and the state of `rng`, which is asked for one number, and for none at temperature zero.
///
/// # Panics
/// When `logits` is empty.
pub fn choose(logits: &[f32], history: &[u32], sampling: &Sampling, rng: &mut impl Rng) -> u32 {
    if sampling.temperature <= 0.0 {
        return greedy(&penalised(logits, history, sampling.repetition_penalty));
    }
    let kept = distribution(logits, history, sampling);
    let mut point = rng.random::<f64>();
    for &(id, probability) in &kept {
        point -= probability;
        if point < 0.0 {
            return id;
        }
    }
    // Rounding may leave a little over after the last token that is possible at all.
    kept.iter()
        .rfind(|(_, probability)| *probability > 0.0)
        .unwrap_or(&kept[0])
        .0
}

/// The tokens that may come next and their probabilities, which sum to 1, in the order of their ids. At temperature zero
/// it is one token.
///
/// # Panics
/// When `logits` is empty.
pub fn distribution(logits: &[f32], history: &[u32], sampling: &Sampling) -> Vec<(u32, f64)> {
    let scores = penalised(logits, history, sampling.repetition_penalty);
    if sampling.temperature <= 0.0 {
        return vec![(greedy(&scores), 1.0)];
    }
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let temperature = f64::from(sampling.temperature);
    // Relative to the likeliest token. Equal scores are set apart because the difference of infinities is no number.
    let weight = |score: f32| {
        if score == top {
            1.0
        } else {
            ((f64::from(score) - f64::from(top)) / temperature).exp()
        }
    };
    let mut kept: Vec<(u32, f64)> = (0u32..)
        .zip(&scores)
        .map(|(id, &score)| (id, weight(score)))
        .collect();
    if let Some(k) = sampling.top_k
        && k < kept.len()
    {
        // By score: different scores may have equal weights.
        let mut sorted = scores.clone();
        let last = k.max(1) - 1;
        let (_, &mut threshold, _) = sorted.select_nth_unstable_by(last, |a, b| b.total_cmp(a));
        kept.retain(|&(id, _)| scores[id as usize] >= threshold);
    }
    if let Some(p) = sampling.top_p
        && p < 1.0
    {
        keep_nucleus(&mut kept, f64::from(p));
    }
    if let Some(share) = sampling.min_p {
        let share = f64::from(share.min(1.0));
        kept.retain(|(_, weight)| *weight >= share);
    }
    kept.sort_unstable_by_key(|(id, _)| *id);
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    for (_, weight) in &mut kept {
        *weight /= total;
    }
    kept
}

/// The logits with the repetition penalty; what is not a number becomes impossible.
fn penalised(logits: &[f32], history: &[u32], penalty: f32) -> Vec<f32> {
    let mut scores: Vec<f32> = logits
        .iter()
        .map(|&logit| {
            if logit.is_nan() {
                f32::NEG_INFINITY
            } else {
                logit
            }
        })
        .collect();
    if penalty != 1.0 {
        for &id in history {
            let id = id as usize;
            // From the logit itself, so that a token is penalised once, however often it occurs.
            if let (Some(score), Some(&logit)) = (scores.get_mut(id), logits.get(id))
                && logit.is_finite()
            {
                *score = if logit < 0.0 {
                    logit * penalty
                } else {
                    logit / penalty
                };
            }
        }
    }
    scores
}

fn greedy(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &score) in scores.iter().enumerate() {
        if score > scores[best] {
            best = id;
        }
    }
    best as u32
}

/// Keeps each token if those likelier than it hold less than the share `p` together, and the likeliest in any case.
///
/// Tokens are put in order in blocks that grow, from the likeliest on, so that a nucleus of few tokens in a large
/// vocabulary costs no sort.
fn keep_nucleus(kept: &mut Vec<(u32, f64)>, p: f64) {
    let likeliest_first =
        |a: &(u32, f64), b: &(u32, f64)| -> Ordering { b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)) };
    let share = p * kept.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut sum = 0.0;
    let mut count = 0;
    let mut block = 64;
    while count < kept.len() {
        let rest = &mut kept[count..];
        let length = block.min(rest.len());
        if length < rest.len() {
            rest.select_nth_unstable_by(length, likeliest_first);
        }
        rest[..length].sort_unstable_by(likeliest_first);
        for (_, weight) in &rest[..length] {
            if count > 0 && sum >= share {
                kept.truncate(count);
                return;
            }
            sum += weight;
            count += 1;
        }
        block *= 4;
    }
}

#[cfg(test)]
mod tests;
