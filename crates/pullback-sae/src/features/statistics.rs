//! What each feature does over all rows: counts, sums, its strongest activations and a sample of all of them.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// An activation of a feature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Firing {
    pub(super) row: u32,
    pub(super) sequence: u32,
    pub(super) value: f32,
}

/// What was seen of one feature.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) count: u64,
    pub(super) sum: f64,
    pub(super) largest: f32,
    /// The strongest, strongest first, at most one a sequence.
    pub(super) top: Vec<Firing>,
    /// A uniform sample of all, in no order.
    pub(super) sample: Vec<Firing>,
}

/// What was seen of all features; rows are added in ascending order.
pub(super) struct Statistics {
    top: usize,
    sample: usize,
    rng: ChaCha8Rng,
    pub(super) features: Vec<Seen>,
}

/// Memory that the samples of all features may take together, in bytes.
const SAMPLE_BYTES: usize = 96 << 20;
/// Activations in a feature's sample, at most.
const SAMPLE: usize = 512;

/// How many activations of each feature are kept so that those of all fit into memory.
pub(super) fn sample_size(n_features: usize) -> usize {
    (SAMPLE_BYTES / size_of::<Firing>() / n_features.max(1)).clamp(16, SAMPLE)
}

impl Statistics {
    pub(super) fn new(n_features: usize, top: usize, sample: usize, seed: u64) -> Self {
        Self {
            top,
            sample,
            rng: ChaCha8Rng::seed_from_u64(seed),
            features: vec![Seen::default(); n_features],
        }
    }

    /// Adds the activation of a feature, which is above zero.
    pub(super) fn add(&mut self, feature: usize, firing: Firing) {
        let seen = &mut self.features[feature];
        seen.count += 1;
        seen.sum += f64::from(firing.value);
        seen.largest = seen.largest.max(firing.value);
        keep_top(&mut seen.top, self.top, firing);
        // Vitter, "Random sampling with a reservoir", ACM TOMS 11 (1985), algorithm R.
        if seen.sample.len() < self.sample {
            seen.sample.push(firing);
        } else {
            let place = self.rng.random_range(0..seen.count);
            if let Some(kept) = seen.sample.get_mut(place as usize) {
                *kept = firing;
            }
        }
    }
}

/// Keeps `top` the strongest of those seen with at most one a sequence; of equals the first stays.
fn keep_top(top: &mut Vec<Firing>, count: usize, firing: Firing) {
    if top.len() == count && top.last().is_none_or(|last| last.value >= firing.value) {
        return;
    }
    if let Some(same) = top
        .iter()
        .position(|other| other.sequence == firing.sequence)
    {
        if top[same].value >= firing.value {
            return;
        }
        top.remove(same);
    }
    let at = top.partition_point(|other| other.value >= firing.value);
    top.insert(at, firing);
    top.truncate(count);
}

/// A quantile band of a sample: its share of the active tokens, its values, and which of them were chosen.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub(super) from: f32,
    pub(super) to: f32,
    pub(super) low: f32,
    pub(super) high: f32,
    pub(super) firings: Vec<Firing>,
}

impl Seen {
    /// Cuts the sample into `bands` of equal counts, lowest activations first, and draws `each` activations from every
    /// band, none of them among the strongest. Bands that hold nothing are left out.
    pub(super) fn bands(&self, bands: usize, each: usize, rng: &mut ChaCha8Rng) -> Vec<Chosen> {
        let mut sorted = self.sample.clone();
        sorted.sort_by(|a, b| a.value.total_cmp(&b.value).then(a.row.cmp(&b.row)));
        let n = sorted.len();
        (0..bands)
            .filter_map(|band| {
                let members = &sorted[band * n / bands..(band + 1) * n / bands];
                let (low, high) = (members.first()?.value, members.last()?.value);
                let mut left: Vec<Firing> = members
                    .iter()
                    .filter(|firing| self.top.iter().all(|top| top.row != firing.row))
                    .copied()
                    .collect();
                let mut firings = Vec::new();
                while firings.len() < each && !left.is_empty() {
                    firings.push(left.swap_remove(rng.random_range(0..left.len())));
                }
                firings.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.row.cmp(&b.row)));
                Some(Chosen {
                    from: band as f32 / bands as f32,
                    to: (band + 1) as f32 / bands as f32,
                    low,
                    high,
                    firings,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_that_is_smaller_than_what_is_seen_is_uniform() {
        let (kept, seen, times) = (8, 40_usize, 4000);
        let mut chosen = vec![0_u64; seen];
        for seed in 0..times {
            let mut statistics = Statistics::new(1, 0, kept, seed);
            for row in 0..seen as u32 {
                statistics.add(
                    0,
                    Firing {
                        row,
                        sequence: 0,
                        value: 1.0,
                    },
                );
            }
            assert_eq!(statistics.features[0].sample.len(), kept);
            for firing in &statistics.features[0].sample {
                chosen[firing.row as usize] += 1;
            }
        }
        // Each is chosen with probability p = 1/5: five standard errors of a count are 5·sqrt(times·p·(1 − p)).
        let p = kept as f64 / seen as f64;
        let bound = 5.0 * (times as f64 * p * (1.0 - p)).sqrt();
        for count in chosen {
            assert!((count as f64 - times as f64 * p).abs() < bound, "{count}");
        }
    }

    #[test]
    fn samples_of_many_features_stay_within_memory() {
        assert_eq!(sample_size(1000), SAMPLE);
        assert!(sample_size(131_072) * 131_072 * size_of::<Firing>() <= SAMPLE_BYTES);
        assert_eq!(sample_size(usize::MAX), 16);
    }
}
