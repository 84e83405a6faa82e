//! What training lowers: a function of the losses of single tokens.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// What an adapter learns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Objective {
    /// The mean cross-entropy of the counted tokens, in nats.
    NextToken,
    /// Direct preference optimisation (arXiv 2305.18290, equation 7): the mean over pairs of
    /// `−log σ(β·(log π(y_w)/π₀(y_w) − log π(y_l)/π₀(y_l)))`, with the model without the adapter as `π₀`.
    Dpo {
        /// `β`.
        beta: f64,
    },
    /// Odds-ratio preference optimisation (arXiv 2403.07691, equations 6 and 7): the mean over pairs of the chosen answer's
    /// mean loss a token and of `−weight·log σ(log odds(y_w)/odds(y_l))`, where `odds = p/(1 − p)` and `log p` is the mean
    /// log-probability a token.
    Orpo {
        /// `λ`.
        weight: f64,
    },
    /// The mean over counted tokens of `KL(teacher ‖ adapted)` of the predictions, in nats.
    Distill,
}

impl Objective {
    /// Whether samples need a worse answer.
    pub fn prefers(self) -> bool {
        matches!(self, Self::Dpo { .. } | Self::Orpo { .. })
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::NextToken => "next-token",
            Self::Dpo { .. } => "dpo",
            Self::Orpo { .. } => "orpo",
            Self::Distill => "distill",
        }
    }

    /// The objective of a batch from the losses of its counted tokens (for [`Objective::Distill`]: from their
    /// divergences). `sequences` are the tokens of each sequence, chosen and rejected by turns for preferences;
    /// `reference` are the log-probabilities of the sequences without the adapter.
    pub(crate) fn value(
        self,
        losses: &[f64],
        sequences: &[Range<usize>],
        reference: &[f64],
    ) -> Value {
        let total = |span: &Range<usize>| losses[span.clone()].iter().sum::<f64>();
        let mut slopes = vec![0.0; losses.len()];
        let (mut sum, mut count) = (0.0, 0.0);
        match self {
            Self::NextToken | Self::Distill => {
                sum = losses.iter().sum();
                count = losses.len() as f64;
                slopes.fill(1.0);
            }
            Self::Dpo { beta } => {
                for (pair, reference) in sequences.chunks_exact(2).zip(reference.chunks_exact(2)) {
                    let gain = |side: usize| -total(&pair[side]) - reference[side];
                    let margin = beta * (gain(0) - gain(1));
                    sum += softplus(-margin);
                    count += 1.0;
                    // d/dmargin of −log σ(margin) is −σ(−margin); a token's loss enters the margin with −β or β.
                    let slope = beta * sigmoid(-margin);
                    slopes[pair[0].clone()].fill(slope);
                    slopes[pair[1].clone()].fill(-slope);
                }
            }
            Self::Orpo { weight } => {
                for pair in sequences.chunks_exact(2) {
                    let length = |side: usize| pair[side].len() as f64;
                    let mean = [total(&pair[0]) / length(0), total(&pair[1]) / length(1)];
                    // log odds = log p − log(1 − p) with log p = −mean.
                    let log_odds = |mean: f64| -mean - (-(-mean).exp_m1()).ln();
                    let margin = log_odds(mean[0]) - log_odds(mean[1]);
                    sum += mean[0] + weight * softplus(-margin);
                    count += 1.0;
                    // d log odds / d mean = −1/(1 − p).
                    let slope = |mean: f64| weight * sigmoid(-margin) / -(-mean).exp_m1();
                    slopes[pair[0].clone()].fill((1.0 + slope(mean[0])) / length(0));
                    slopes[pair[1].clone()].fill(-slope(mean[1]) / length(1));
                }
            }
        }
        Value { sum, count, slopes }
    }
}

/// An objective as a sum over what it is the mean of.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) sum: f64,
    /// Tokens, or pairs.
    pub(crate) count: f64,
    /// The derivative of `sum` in each token's loss.
    pub(crate) slopes: Vec<f64>,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `log(1 + e^x)`, also where `e^x` is too large.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::Objective;

    const LOSSES: [f64; 9] = [0.7, 1.9, 0.02, 3.0, 0.4, 1.1, 0.9, 2.2, 0.05];

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "one sequence")]
    fn slopes_are_those_of_finite_differences() {
        let sequences = [0..2, 2..5, 5..8, 8..9];
        let reference = [-2.0, -3.5, -4.9, -0.2];
        for objective in [
            Objective::NextToken,
            Objective::Dpo { beta: 0.4 },
            Objective::Orpo { weight: 0.7 },
            Objective::Distill,
        ] {
            let value = objective.value(&LOSSES, &sequences, &reference);
            for at in 0..LOSSES.len() {
                let moved = |by: f64| {
                    let mut losses = LOSSES;
                    losses[at] += by;
                    objective.value(&losses, &sequences, &reference).sum
                };
                let measured = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                assert!(
                    (measured - value.slopes[at]).abs() < 1e-8,
                    "{objective:?} {at}: {measured} {}",
                    value.slopes[at]
                );
            }
        }
        let whole = Objective::NextToken.value(&LOSSES, &[0..9], &[]);
        assert_eq!((whole.sum, whole.count), (LOSSES.iter().sum(), 9.0));
    }

    #[test]
    fn preferences_are_the_formulas_of_their_papers() {
        // DPO of the model itself is log 2.
        let sequences = [0..2, 2..5];
        let own = [-(0.7 + 1.9), -(0.02 + 3.0 + 0.4)];
        let value = Objective::Dpo { beta: 0.3 }.value(&LOSSES[..5], &sequences, &own);
        assert!((value.sum - std::f64::consts::LN_2).abs() < 1e-15);
        // ORPO with the odds spelt out.
        let p = [(-2.6_f64 / 2.0).exp(), (-3.42_f64 / 3.0).exp()];
        let odds = p.map(|p| p / (1.0 - p));
        let ratio = odds[0] / odds[1];
        let expected = 1.3 - 0.5 * (ratio / (1.0 + ratio)).ln();
        let value = Objective::Orpo { weight: 0.5 }.value(&LOSSES[..5], &sequences, &[]);
        assert!(
            (value.sum - expected).abs() < 1e-12,
            "{} {expected}",
            value.sum
        );
    }
}
