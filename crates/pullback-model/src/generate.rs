//! Next tokens: greedy and sampled text with a cache of keys and values, under interventions.

use burn::tensor::Tensor;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::error::ModelError;
use crate::intervention::Intervention;
use crate::model::Model;
use crate::run::{KeyValueCache, RunOptions};

/// One candidate for the next token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NextToken {
    /// Token id.
    pub id: u32,
    /// Its text.
    pub token: String,
    /// Its logit.
    pub logit: f32,
    /// Its probability.
    pub probability: f32,
}

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Zero is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep only this many of the likeliest tokens.
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens until their probabilities sum to this.
    pub top_p: Option<f32>,
    /// Seed of the random choices.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            seed: 0,
        }
    }
}

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions<'a> {
    /// At most this many tokens.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Token ids that end the text (they are not part of it).
    pub stop: Vec<u32>,
    /// Changes, applied at the prompt and at every generated token.
    pub interventions: &'a [Intervention],
}

impl Model {
    /// Logits `[d_vocab]` after the last of `ids`.
    ///
    /// # Errors
    /// As [`Model::run`].
    pub fn next_logits(
        &self,
        ids: &[u32],
        interventions: &[Intervention],
    ) -> Result<Vec<f32>, ModelError> {
        let mut cache = KeyValueCache::new(self.config().n_layers);
        self.advance(ids, interventions, &mut cache)
    }

    fn advance(
        &self,
        ids: &[u32],
        interventions: &[Intervention],
        cache: &mut KeyValueCache,
    ) -> Result<Vec<f32>, ModelError> {
        let options = RunOptions {
            interventions,
            ..RunOptions::default()
        };
        let out = self.run_cached(ids, &options, cache)?;
        let last: Tensor<2> = out.stream.narrow(0, ids.len() - 1, 1);
        Ok(self.logits(last).into_data().iter::<f32>().collect())
    }

    /// The `count` likeliest next tokens, likeliest first.
    pub fn rank_next(&self, logits: &[f32], count: usize) -> Vec<NextToken> {
        let log_total = log_sum_exp(logits);
        ranked(logits)
            .into_iter()
            .take(count)
            .map(|id| NextToken {
                id: id as u32,
                token: self.tokenizer().token_text(id as u32),
                logit: logits[id],
                probability: (f64::from(logits[id]) - log_total).exp() as f32,
            })
            .collect()
    }

    /// Generates after `ids`, handing each token to `emit` as it comes; `emit` returning false stops, and so
    /// does the end of the model's context.
    ///
    /// # Errors
    /// As [`Model::run`]; also when the prompt alone is empty or longer than the context.
    pub fn generate(
        &self,
        ids: &[u32],
        options: &GenerateOptions<'_>,
        mut emit: impl FnMut(u32) -> bool,
    ) -> Result<Vec<u32>, ModelError> {
        if ids.is_empty() {
            return Err(ModelError::Input {
                problem: "the prompt holds no tokens".to_owned(),
            });
        }
        let mut cache = KeyValueCache::new(self.config().n_layers);
        let mut rng = ChaCha8Rng::seed_from_u64(options.sampling.seed);
        let mut generated = Vec::new();
        let mut logits = self.advance(ids, options.interventions, &mut cache)?;
        while generated.len() < options.max_tokens {
            let next = choose(&logits, &options.sampling, &mut rng);
            if options.stop.contains(&next) {
                break;
            }
            generated.push(next);
            let full = cache.len() >= self.config().n_ctx;
            if !emit(next) || generated.len() == options.max_tokens || full {
                break;
            }
            logits = self.advance(&[next], options.interventions, &mut cache)?;
        }
        Ok(generated)
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - top).exp()).sum();
    f64::from(top) + sum.ln()
}

/// Ids from the likeliest on; equal logits in the order of their ids.
fn ranked(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order
}

/// One token by the sampling rule.
fn choose(logits: &[f32], sampling: &Sampling, rng: &mut ChaCha8Rng) -> u32 {
    if sampling.temperature <= 0.0 {
        let mut best = 0;
        for (id, &logit) in logits.iter().enumerate() {
            if logit > logits[best] {
                best = id;
            }
        }
        return best as u32;
    }
    let mut order = ranked(logits);
    order.truncate(sampling.top_k.unwrap_or(logits.len()).max(1));
    let top = logits[order[0]];
    let weights: Vec<f64> = order
        .iter()
        .map(|&id| f64::from((logits[id] - top) / sampling.temperature).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    // The nucleus: the shortest run of likeliest tokens that reaches the share top_p.
    let share = f64::from(sampling.top_p.unwrap_or(1.0)) * total;
    let mut kept = 0.0;
    let mut count = 0;
    for &weight in &weights {
        kept += weight;
        count += 1;
        if kept >= share {
            break;
        }
    }
    let mut point = rng.random::<f64>() * kept;
    for (&id, &weight) in order.iter().zip(&weights).take(count) {
        point -= weight;
        if point <= 0.0 {
            return id as u32;
        }
    }
    order[count - 1] as u32
}

#[cfg(test)]
mod tests {
    use super::{Sampling, choose};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn frequencies(sampling: &Sampling) -> [f64; 4] {
        let logits = [1.0_f32, 3.0, 2.0, 0.0];
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut counts = [0.0; 4];
        for _ in 0..40_000 {
            counts[choose(&logits, sampling, &mut rng) as usize] += 1.0 / 40_000.0;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_largest() {
        assert!(frequencies(&Sampling::default())[1] > 0.999);
    }

    #[test]
    fn sampling_follows_the_softmax() {
        let sampling = Sampling {
            temperature: 2.0,
            ..Sampling::default()
        };
        let weights = [0.5_f64, 1.5, 1.0, 0.0].map(f64::exp);
        let total: f64 = weights.iter().sum();
        for (seen, weight) in frequencies(&sampling).iter().zip(weights) {
            // Five standard errors of 40,000 draws.
            assert!((seen - weight / total).abs() < 0.0125);
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let two = Sampling {
            temperature: 1.0,
            top_k: Some(2),
            ..Sampling::default()
        };
        let seen = frequencies(&two);
        assert!(seen[0] == 0.0 && seen[3] == 0.0 && seen[2] > 0.2);
        // The likeliest alone holds 64 %.
        let nucleus = Sampling {
            temperature: 1.0,
            top_p: Some(0.6),
            ..Sampling::default()
        };
        assert!(frequencies(&nucleus)[1] > 0.999);
    }
}
