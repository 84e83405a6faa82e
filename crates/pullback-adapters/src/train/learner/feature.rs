//! Training in the basis of a dictionary.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use pullback_kernels::sparse::SparseCodes;
use pullback_model::Site;
use pullback_sae::{Dictionary, Sae};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Step, Units};
use crate::feature::grow::{active_features, every, exchange, largest_gradients};
use crate::feature::map::Support;
use crate::feature::{check_dictionary, decoder};
use crate::train::batch::Batch;
use crate::train::config::{Basis, Sparsity, TrainConfig};
use crate::train::state::Parameters;
use crate::{AdapterError, FeatureAdapter};

/// Temperature and ends of hard-concrete gates (arXiv 1712.01312, section 4.1).
const TEMPERATURE: f64 = 2.0 / 3.0;
const LOW: f64 = -0.1;
const HIGH: f64 = 1.1;
/// `log α` at the start: gates are mostly open.
const GATES_AT_START: f32 = 2.0;
/// The share of the entries that is exchanged at first; it falls along a cosine to nothing.
const EXCHANGED: f64 = 0.3;
/// The share of training in which entries are exchanged, and how often.
const EXCHANGE_UNTIL: f64 = 0.75;
const EXCHANGES: usize = 15;
/// What is drawn for a step comes from a stream of its own, far from those of the epochs.
const NOISE: u64 = 1 << 40;

/// How many entries each part is to have, where they are chosen in training.
enum Choice {
    /// The entries stand.
    Fixed,
    /// So many of each part.
    Grown(Vec<usize>),
}

/// A map of codes in training: parameters in units of the mean active code.
pub(crate) struct FeatureLearner {
    site: Site,
    dictionary: Arc<Sae>,
    support: Support,
    units: Units,
    sparsity: Option<Sparsity>,
    choice: Choice,
    seed: u64,
}

impl FeatureLearner {
    pub(crate) fn start(
        config: &TrainConfig,
        dictionary: Arc<Sae>,
        units: Units,
    ) -> Result<(Self, Vec<Vec<f32>>), AdapterError> {
        check_dictionary(&dictionary)?;
        let m = dictionary.n_features();
        let all: Vec<u32> = (0..m as u32).collect();
        let too_many = |count: usize, most: usize| {
            AdapterError::Option(format!(
                "{count} entries are more than the {most} that the basis {} has over {m} features",
                config.basis.name()
            ))
        };
        let mut sparsity_of = None;
        let (support, values, choice) = match &config.basis {
            Basis::Bias {
                active_only,
                sparsity,
            } => {
                sparsity_of = Some(*sparsity);
                let active_only = *active_only;
                if let Sparsity::Top { count } = *sparsity {
                    if count > m {
                        return Err(too_many(count, m));
                    }
                    let features = Vec::new();
                    let support = Support::Bias {
                        features,
                        active_only,
                    };
                    (support, vec![Vec::new()], Choice::Grown(vec![count]))
                } else {
                    let features = all;
                    let support = Support::Bias {
                        features,
                        active_only,
                    };
                    let mut values = vec![vec![0.0; m]];
                    if matches!(sparsity, Sparsity::HardConcrete { .. }) {
                        values.push(vec![GATES_AT_START; m]);
                    }
                    (support, values, Choice::Fixed)
                }
            }
            Basis::Sparse { weights } => {
                if *weights > m.saturating_mul(m) {
                    return Err(too_many(*weights, m * m));
                }
                let support = Support::Sparse { pairs: Vec::new() };
                (support, vec![Vec::new()], Choice::Grown(vec![*weights]))
            }
            Basis::LowRank { rank, entries } => {
                let rank = *rank;
                if rank > dictionary.d() {
                    return Err(AdapterError::Option(format!(
                        "rank {rank} is above the width {} of the residual stream",
                        dictionary.d()
                    )));
                }
                if let Some(entries) = *entries {
                    if entries > 2 * m * rank {
                        return Err(too_many(entries, 2 * m * rank));
                    }
                    let (read, write) = (Vec::new(), Vec::new());
                    let support = Support::LowRank { rank, read, write };
                    let counts = vec![entries / 2, entries - entries / 2];
                    (support, vec![Vec::new(); 2], Choice::Grown(counts))
                } else {
                    let read = every(&all, rank);
                    let write = read.clone();
                    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
                    let bound = (3.0 / units.active.max(1.0)).sqrt();
                    let values = (0..read.len()).map(|_| rng.random_range(-bound..bound) as f32);
                    let values = vec![values.collect(), vec![0.0; write.len()]];
                    let support = Support::LowRank { rank, read, write };
                    (support, values, Choice::Fixed)
                }
            }
            Basis::Residual { .. } | Basis::Lora { .. } => {
                return Err(AdapterError::Option(format!(
                    "the basis {} is not over features",
                    config.basis.name()
                )));
            }
        };
        let learner = Self {
            site: config.site,
            dictionary,
            support,
            units,
            sparsity: sparsity_of,
            choice,
            seed: config.seed,
        };
        Ok((learner, values))
    }

    pub(crate) fn support(&self) -> &Support {
        &self.support
    }

    pub(crate) fn set_support(&mut self, support: Support) {
        self.support = support;
    }

    pub(crate) fn stream_unit(&self) -> f64 {
        self.units.stream
    }

    /// What each part of the parameters is multiplied with.
    fn factors(&self) -> Vec<f32> {
        let unit = self.units.code as f32;
        match &self.support {
            Support::Bias { .. } => vec![unit],
            Support::Sparse { .. } => vec![1.0],
            Support::LowRank { .. } => vec![unit.recip(), unit],
        }
    }

    /// The numbers of the map, in units of the codes.
    fn numbers(&self, parameters: &Parameters, noise: Option<&[f64]>) -> Vec<Vec<f32>> {
        let scaled = |(values, factor): (&Vec<f32>, f32)| {
            values.iter().map(|x| x * factor).collect::<Vec<f32>>()
        };
        let factors = self.factors();
        let count = factors.len();
        let parts = parameters.values[..count].iter().zip(factors);
        let mut numbers: Vec<Vec<f32>> = parts.map(scaled).collect();
        if let Some(Sparsity::HardConcrete { .. }) = self.sparsity {
            let logits = &parameters.values[1];
            for (at, (x, &logit)) in numbers[0].iter_mut().zip(logits).enumerate() {
                *x *= gate(logit, noise.map(|noise| noise[at])).0 as f32;
            }
        }
        numbers
    }

    /// The draws of a step for the gates.
    pub(crate) fn noise(&self, seed: u64, step: usize) -> Option<Vec<f64>> {
        let Some(Sparsity::HardConcrete { .. }) = self.sparsity else {
            return None;
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(NOISE + step as u64);
        let count = self.support.sizes()[0];
        let draw = |_| rng.random_range(1e-6..1.0 - 1e-6);
        Some((0..count).map(draw).collect())
    }

    pub(crate) fn apply(
        &self,
        parameters: &Parameters,
        batch: &Batch,
        noise: Option<&[f64]>,
    ) -> Tensor<2> {
        let Some(codes) = &batch.codes else {
            return batch.stream.clone();
        };
        let numbers = self.numbers(parameters, noise);
        let projected = self.support.project(&numbers, decoder(&self.dictionary));
        let mut change = projected.change(codes);
        let [rows, d] = batch.stream.dims();
        for (row, mean) in change.chunks_exact_mut(d).zip(&batch.mean_over_text) {
            if *mean == 0.0 {
                row.fill(0.0);
            }
        }
        let options = (&batch.stream.device(), batch.stream.dtype());
        let change = Tensor::from_data(TensorData::new(change, [rows, d]), options);
        batch.stream.clone() + change
    }

    /// The gradient of the parameters from that of the stream.
    pub(crate) fn parts(
        &self,
        parameters: &Parameters,
        codes: &SparseCodes<f32>,
        grad: &[f32],
        noise: Option<&[f64]>,
    ) -> Vec<Vec<f32>> {
        let numbers = self.numbers(parameters, noise);
        let decoder = decoder(&self.dictionary);
        let mut parts = self.support.gradients(&numbers, codes, decoder, grad);
        for (part, factor) in parts.iter_mut().zip(self.factors()) {
            for g in part.iter_mut() {
                *g *= factor;
            }
        }
        if let Some(Sparsity::HardConcrete { weight, .. }) = self.sparsity {
            let values = &parameters.values;
            let mut logits = Vec::with_capacity(parts[0].len());
            for (at, g) in parts[0].iter_mut().enumerate() {
                let (open, slope) = gate(values[1][at], noise.map(|noise| noise[at]));
                let penalty = weight * open_slope(values[1][at]);
                logits.push((f64::from(*g * values[0][at]) * slope + penalty) as f32);
                *g *= open as f32;
            }
            parts.push(logits);
        }
        parts
    }

    /// Chooses where the parameters stand: at the first step by the gradient, later by exchange.
    pub(crate) fn choose(
        &mut self,
        parameters: &mut Parameters,
        codes: &SparseCodes<f32>,
        grad: &[f32],
        step: Step,
    ) {
        let Choice::Grown(counts) = &self.choice else {
            return;
        };
        let counts = counts.clone();
        let until = step.of as f64 * EXCHANGE_UNTIL;
        let first = step.number == 0;
        let due = step.number.is_multiple_of((step.of / EXCHANGES).max(1));
        if !due || step.number as f64 >= until {
            return;
        }
        if first && counts.len() == 2 {
            self.read_the_most_active(parameters, codes, counts[0]);
        }
        let share =
            0.5 * EXCHANGED * (1.0 + (std::f64::consts::PI * step.number as f64 / until).cos());
        for (part, &count) in counts.iter().enumerate() {
            let own = self.support.sizes()[part];
            let out = (own as f64 * share) as usize;
            let wanted = count - own + out;
            let numbers = self.numbers(parameters, None);
            let new = largest_gradients(
                &self.support,
                part,
                &numbers,
                codes,
                decoder(&self.dictionary),
                grad,
                wanted,
            );
            // No more goes than comes.
            let out = (own + new.len()).saturating_sub(count);
            let Parameters {
                values,
                first,
                second,
            } = parameters;
            let mut vectors = [&mut values[part], &mut first[part], &mut second[part]];
            exchange(&mut self.support, part, &mut vectors, out, &new);
        }
    }

    /// Sparse factors start to read the features that are most active, each in one column, with random weights.
    fn read_the_most_active(
        &mut self,
        parameters: &mut Parameters,
        codes: &SparseCodes<f32>,
        count: usize,
    ) {
        let Support::LowRank { rank, read, .. } = &mut self.support else {
            return;
        };
        let active = active_features(codes);
        let by_feature = codes.by_feature(self.dictionary.n_features());
        let energy = |feature: u32| {
            let (_, entries) = by_feature.feature(feature as usize);
            let squares = entries
                .iter()
                .map(|&at| f64::from(codes.values()[at as usize]).powi(2));
            squares.sum::<f64>()
        };
        let mut order: Vec<(f64, u32)> = active.iter().map(|&i| (energy(i), i)).collect();
        order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let most = order.len();
        let place = |at: usize| {
            let (round, at) = (at / most, at % most);
            (order[at].1, ((at + round) % *rank) as u32)
        };
        let mut entries: Vec<(u32, u32)> = (0..count.min(most * *rank)).map(place).collect();
        entries.sort_unstable();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let bound = (3.0 / self.units.active.max(1.0)).sqrt();
        let draw = |_| rng.random_range(-bound..bound) as f32;
        parameters.values[0] = (0..entries.len()).map(draw).collect();
        parameters.first[0] = vec![0.0; entries.len()];
        parameters.second[0] = vec![0.0; entries.len()];
        *read = entries;
    }

    /// Pulls the entries of a bias towards zero (proximal step of L1).
    pub(crate) fn shrink(&self, parameters: &mut Parameters, lr: f64) {
        let Some(Sparsity::L1 { weight, .. }) = self.sparsity else {
            return;
        };
        let by = (lr * weight) as f32;
        for x in &mut parameters.values[0] {
            *x = x.signum() * (x.abs() - by).max(0.0);
        }
    }

    /// The adapter as it is now; entries that are zero are left out where entries were to become so.
    pub(crate) fn adapter(&self, parameters: &Parameters) -> Result<FeatureAdapter, AdapterError> {
        let mut support = self.support.clone();
        let mut values = self.numbers(parameters, None);
        let most = match self.sparsity {
            Some(Sparsity::L1 { count, .. } | Sparsity::HardConcrete { count, .. }) => {
                Some(count.unwrap_or(usize::MAX))
            }
            _ => None,
        };
        if let Some(most) = most {
            let zeros = values[0].iter().filter(|&&x| x == 0.0).count();
            let left = values[0].len() - zeros;
            let out = zeros + left.saturating_sub(most);
            exchange(&mut support, 0, &mut [&mut values[0]], out, &[]);
        }
        FeatureAdapter::new(self.site, Arc::clone(&self.dictionary), support, values)
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A gate from `log α` and a uniform draw, and its derivative in `log α`; without a draw the gate of use (equations 10 to
/// 13).
fn gate(logit: f32, draw: Option<f64>) -> (f64, f64) {
    let logit = f64::from(logit);
    let (inner, temperature) = match draw {
        Some(u) => (((u / (1.0 - u)).ln() + logit) / TEMPERATURE, TEMPERATURE),
        None => (logit, 1.0),
    };
    let s = sigmoid(inner);
    let stretched = s * (HIGH - LOW) + LOW;
    if stretched <= 0.0 || stretched >= 1.0 {
        return (stretched.clamp(0.0, 1.0), 0.0);
    }
    (stretched, (HIGH - LOW) * s * (1.0 - s) / temperature)
}

/// The derivative of the probability that a gate is open (equation 12), `σ(log α − β log(−γ/ζ))`.
fn open_slope(logit: f32) -> f64 {
    let p = sigmoid(f64::from(logit) - TEMPERATURE * (-LOW / HIGH).ln());
    p * (1.0 - p)
}

#[cfg(test)]
mod tests {
    use super::{HIGH, LOW, TEMPERATURE, gate, open_slope, sigmoid};

    #[test]
    fn gates_and_their_slopes() {
        for draw in [None, Some(0.2), Some(0.55), Some(0.93)] {
            for logit in [-0.7_f32, 0.1, 0.9] {
                let (open, slope) = gate(logit, draw);
                let step = 1e-3_f32;
                let (up, down) = (logit + step, logit - step);
                let measured = (gate(up, draw).0 - gate(down, draw).0) / f64::from(up - down);
                assert!((0.0..=1.0).contains(&open));
                assert!(
                    (measured - slope).abs() < 1e-5,
                    "{draw:?} {logit}: {measured} {slope}"
                );
            }
        }
        assert_eq!(
            (gate(9.0, None), gate(-9.0, None)),
            ((1.0, 0.0), (0.0, 0.0))
        );
        // The chance that a gate is open, by draws, and its slope by differences.
        let logit = 0.3_f32;
        let open = (1..20_000).filter(|&i| gate(logit, Some(f64::from(i) / 20_000.0)).0 > 0.0);
        let chance = |x: f64| sigmoid(x - TEMPERATURE * (-LOW / HIGH).ln());
        let found = open.count() as f64 / 20_000.0;
        assert!((found - chance(f64::from(logit))).abs() < 2e-4, "{found}");
        let x = f64::from(logit);
        let measured = (chance(x + 1e-6) - chance(x - 1e-6)) / 2e-6;
        assert!((measured - open_slope(logit)).abs() < 1e-9);
    }
}
