//! How well an explanation tells texts apart.

use pullback_artifact::Control;
use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Explainer, FeatureTexts, prompt};
use crate::SaeError;

/// Answers about texts of which half should be yes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Probability that a text for which yes is right is given a higher probability of yes than one for which no is; equal ones
    /// count half. 0.5 is guessing. An explainer that says yes, or no, to everything is not held to be right half of the time.
    pub auc: f64,
    /// Balanced accuracy of the answers themselves (yes from a probability of one half on).
    pub accuracy: f64,
    /// Texts.
    pub texts: usize,
}

impl Score {
    /// From the probabilities of yes where yes is right and where no is; none where either is missing.
    pub(super) fn of(right: &[f64], wrong: &[f64]) -> Option<Self> {
        if right.is_empty() || wrong.is_empty() {
            return None;
        }
        let mut wins = 0.0;
        for a in right {
            for b in wrong {
                wins += match a.total_cmp(b) {
                    std::cmp::Ordering::Greater => 1.0,
                    std::cmp::Ordering::Equal => 0.5,
                    std::cmp::Ordering::Less => 0.0,
                };
            }
        }
        let share = |found: &[f64], yes: bool| {
            let count = found.iter().filter(|&&p| (p >= 0.5) == yes).count();
            count as f64 / found.len() as f64
        };
        Some(Self {
            auc: wins / (right.len() * wrong.len()) as f64,
            accuracy: 0.5 * (share(right, true) + share(wrong, false)),
            texts: right.len() + wrong.len(),
        })
    }
}

/// What is asked about texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Whether the feature is active.
    Detection,
    /// Whether it is active on the marked tokens.
    Fuzzing,
}

/// Asks about all texts of a feature.
pub(super) fn judged(
    explainer: &dyn Explainer,
    asked: Asked,
    explanation: &str,
    texts: &FeatureTexts,
    seed: u64,
    control: &Control,
) -> Result<Option<Score>, SaeError> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(texts.feature as u64);
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    let ask = |messages: Vec<pullback_model::Message>| {
        control.check()?;
        explainer.agrees(&messages)
    };
    match asked {
        Asked::Detection => {
            for text in &texts.active {
                right.push(ask(prompt::detect(explanation, &text.tokens))?);
            }
            for text in &texts.quiet {
                wrong.push(ask(prompt::detect(explanation, &text.tokens))?);
            }
        }
        Asked::Fuzzing => {
            for text in &texts.active {
                let marked = text.marked();
                let count = marked.iter().filter(|&&mark| mark).count();
                let quiet: Vec<usize> = (0..marked.len())
                    .filter(|&at| text.activations[at] == 0.0)
                    .collect();
                if quiet.len() < count {
                    continue;
                }
                let mut others = vec![false; marked.len()];
                for at in sample(&mut random, quiet.len(), count) {
                    others[quiet[at]] = true;
                }
                right.push(ask(prompt::fuzz(explanation, &text.tokens, &marked))?);
                wrong.push(ask(prompt::fuzz(explanation, &text.tokens, &others))?);
            }
        }
    }
    Ok(Score::of(&right, &wrong))
}
