//! Which parameters a map has: grown where the gradient is largest, pruned where the value is smallest (RigL, arXiv
//! 1911.11134, section 3). The gradients of all `m × m` possible weights are looked through in parts and never stand in
//! memory together.

use std::cmp::Ordering;

use pullback_kernels::sparse::SparseCodes;
use pullback_kernels::{Matrix, Real, Threads, product};

use super::map::{Decoder, Support, column_sums, sums_by_feature};

/// Sources whose gradients are made together.
const SOURCES: usize = 64;

/// A parameter that could be, and its gradient.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    size: f64,
    entry: (u32, u32),
}

impl Candidate {
    /// Largest first; of equal ones that with the smaller indices.
    fn order(&self, other: &Self) -> Ordering {
        other
            .size
            .total_cmp(&self.size)
            .then(self.entry.cmp(&other.entry))
    }
}

/// The largest of many candidates.
struct Largest {
    count: usize,
    kept: Vec<Candidate>,
    /// What is not above this cannot be among the largest.
    bound: f64,
}

impl Largest {
    fn new(count: usize) -> Self {
        Self {
            count,
            kept: Vec::new(),
            bound: 0.0,
        }
    }

    fn offer(&mut self, size: f64, entry: (u32, u32)) {
        // A gradient of zero, or one that is no number, is no reason to grow.
        if size > 0.0 && size >= self.bound && self.count > 0 {
            self.kept.push(Candidate { size, entry });
            if self.kept.len() >= 4 * self.count + SOURCES {
                self.cut();
            }
        }
    }

    fn cut(&mut self) {
        if self.kept.len() > self.count {
            self.kept
                .select_nth_unstable_by(self.count - 1, Candidate::order);
            self.kept.truncate(self.count);
            self.bound = self.kept.iter().map(|c| c.size).fold(f64::MAX, f64::min);
        }
    }

    fn finish(mut self) -> Vec<(u32, u32)> {
        self.cut();
        self.kept.sort_unstable_by(Candidate::order);
        self.kept.iter().map(|candidate| candidate.entry).collect()
    }
}

/// The entries of each part, as pairs; those of a bias have a zero beside the feature.
fn entries(support: &Support, part: usize) -> Vec<(u32, u32)> {
    match support {
        Support::Bias { features, .. } => features.iter().map(|&feature| (feature, 0)).collect(),
        Support::Sparse { pairs } => pairs.clone(),
        Support::LowRank { read, write, .. } => if part == 0 { read } else { write }.clone(),
    }
}

/// Puts entries in their place.
fn with_entries(support: &mut Support, part: usize, entries: Vec<(u32, u32)>) {
    match support {
        Support::Bias { features, .. } => {
            *features = entries.into_iter().map(|(feature, _)| feature).collect();
        }
        Support::Sparse { pairs } => *pairs = entries,
        Support::LowRank { read, write, .. } => *(if part == 0 { read } else { write }) = entries,
    }
}

/// The `count` entries outside the support of a part whose gradient is largest, largest first.
pub(crate) fn largest_gradients<T: Real>(
    support: &Support,
    part: usize,
    values: &[Vec<T>],
    codes: &SparseCodes<T>,
    decoder: Decoder<'_, T>,
    grad: &[T],
    count: usize,
) -> Vec<(u32, u32)> {
    let d = decoder.d;
    let own = entries(support, part);
    let mut largest = Largest::new(count);
    let mut offer = |size: f64, entry: (u32, u32)| {
        if own.binary_search(&entry).is_err() {
            largest.offer(size.abs(), entry);
        }
    };
    match support {
        Support::Bias {
            active_only: false, ..
        } => {
            let total = column_sums(grad, d);
            let gradients = times_decoder(&total, decoder);
            for (feature, g) in gradients.iter().enumerate() {
                offer(g.as_f64(), (feature as u32, 0));
            }
        }
        Support::Bias {
            active_only: true, ..
        } => {
            let active = active_features(codes);
            let sums = sums_by_feature(&active, codes, decoder, grad, false);
            for (&feature, sum) in active.iter().zip(sums.chunks_exact(d)) {
                let row = &decoder.rows[feature as usize * d..(feature as usize + 1) * d];
                let g = pullback_kernels::sparse::dot(row, sum);
                offer(g.as_f64(), (feature, 0));
            }
        }
        Support::Sparse { .. } => {
            let active = active_features(codes);
            let sums = sums_by_feature(&active, codes, decoder, grad, true);
            let length = |row: &[T]| row.iter().map(|x| x.as_f64().powi(2)).sum::<f64>().sqrt();
            let longest_row = decoder.rows.chunks_exact(d).map(length).fold(0.0, f64::max);
            // |D_j · S_i| is at most the product of the lengths: sources with the longest sums first, until no other can
            // reach what is kept.
            let mut order: Vec<(f64, usize)> = sums
                .chunks_exact(d)
                .map(length)
                .zip(0..active.len())
                .collect();
            order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            for part in order.chunks(SOURCES) {
                // The product is rounded; a hair is left for it.
                if part[0].0 * longest_row * (1.0 + 1e-5) < largest.bound {
                    break;
                }
                let mut chunk = Vec::with_capacity(part.len() * d);
                for &(_, at) in part {
                    chunk.extend_from_slice(&sums[at * d..(at + 1) * d]);
                }
                let gradients = times_decoder(&chunk, decoder);
                let each = gradients.chunks_exact(decoder.features());
                for (&(_, at), row) in part.iter().zip(each) {
                    let from = active[at];
                    for (to, g) in row.iter().enumerate() {
                        let size = g.as_f64().abs();
                        if size >= largest.bound && own.binary_search(&(from, to as u32)).is_err() {
                            largest.offer(size, (from, to as u32));
                        }
                    }
                }
                largest.cut();
            }
        }
        Support::LowRank { rank, .. } => {
            let gradients = if part == 0 {
                // The gradient of every entry of the features that are active.
                let active = active_features(codes);
                let full = Support::LowRank {
                    rank: *rank,
                    read: every(&active, *rank),
                    write: entries(support, 1),
                };
                let read = full_values(&full, support, values);
                let all = full.gradients(&[read, values[1].clone()], codes, decoder, grad);
                (entries(&full, 0), all.into_iter().next())
            } else {
                let features: Vec<u32> = (0..decoder.features() as u32).collect();
                let full = Support::LowRank {
                    rank: *rank,
                    read: entries(support, 0),
                    write: every(&features, *rank),
                };
                let zeros = vec![T::zero(); features.len() * rank];
                let all = full.gradients(&[values[0].clone(), zeros], codes, decoder, grad);
                (entries(&full, 1), all.into_iter().nth(1))
            };
            let (places, gradients) = gradients;
            for (entry, g) in places.into_iter().zip(gradients.unwrap_or_default()) {
                offer(g.as_f64(), entry);
            }
        }
    }
    largest.finish()
}

/// The values of the read factor of `own` at the entries of `full`, zero elsewhere.
fn full_values<T: Real>(full: &Support, own: &Support, values: &[Vec<T>]) -> Vec<T> {
    let places = entries(own, 0);
    entries(full, 0)
        .iter()
        .map(|entry| {
            places
                .binary_search(entry)
                .map_or(T::zero(), |at| values[0][at])
        })
        .collect()
}

/// All entries of some features.
pub(crate) fn every(features: &[u32], rank: usize) -> Vec<(u32, u32)> {
    let columns = 0..rank as u32;
    features
        .iter()
        .flat_map(|&feature| columns.clone().map(move |column| (feature, column)))
        .collect()
}

/// The features that are active anywhere, ascending.
pub(crate) fn active_features<T: Real>(codes: &SparseCodes<T>) -> Vec<u32> {
    let mut features = codes.features().to_vec();
    features.sort_unstable();
    features.dedup();
    features
}

/// `rows·Dᵀ`: `[rows, m]`.
fn times_decoder<T: Real>(rows: &[T], decoder: Decoder<'_, T>) -> Vec<T> {
    let (d, m) = (decoder.d, decoder.features());
    product(
        Matrix::new(rows, rows.len() / d, d, d),
        Matrix::new(decoder.rows, m, d, d).transposed(),
        Threads::All,
    )
}

/// Takes the `count` entries with the smallest values out of a part and puts new ones with value zero in their place.
/// `vectors` are the values of the part and whatever else has a number an entry; all are kept in step.
pub(crate) fn exchange(
    support: &mut Support,
    part: usize,
    vectors: &mut [&mut Vec<f32>],
    out: usize,
    new: &[(u32, u32)],
) {
    let own = entries(support, part);
    let mut order: Vec<usize> = (0..own.len()).collect();
    order.sort_unstable_by(|&a, &b| {
        let size = |at: usize| vectors[0][at].abs();
        size(a).total_cmp(&size(b)).then(b.cmp(&a))
    });
    let gone = &order[..out.min(order.len())];
    let mut stays = vec![true; own.len()];
    for &at in gone {
        stays[at] = false;
    }
    // The place of each entry's numbers among the old ones; none for a new entry.
    let kept = (0..own.len()).filter(|&at| stays[at]);
    let mut next: Vec<((u32, u32), Option<usize>)> = kept.map(|at| (own[at], Some(at))).collect();
    next.extend(new.iter().map(|&entry| (entry, None)));
    next.sort_unstable_by_key(|&(entry, _)| entry);
    for vector in vectors.iter_mut() {
        **vector = next
            .iter()
            .map(|&(_, place)| place.map_or(0.0, |at| vector[at]))
            .collect();
    }
    with_entries(
        support,
        part,
        next.into_iter().map(|(entry, _)| entry).collect(),
    );
}

#[cfg(test)]
mod tests {
    use pullback_kernels::sparse::SparseCodes;

    use super::{exchange, largest_gradients};
    use crate::feature::map::{Decoder, Support};

    fn numbers(seed: f64, count: usize) -> Vec<f64> {
        (0..count)
            .map(|i| (seed + 1.7 * i as f64 + 0.1 * (i * i) as f64).sin())
            .collect()
    }

    #[test]
    fn what_is_grown_has_the_largest_gradients_of_all() {
        let (m, d, tokens) = (150, 6, 9);
        let rows = numbers(0.3, m * d);
        let decoder = Decoder { rows: &rows, d };
        let grad = numbers(1.1, tokens * d);
        let mut codes = SparseCodes::new();
        for token in 0..tokens as u32 {
            let features: Vec<u32> = (0..12).map(|k| k * 12 + token).collect();
            let values: Vec<f64> = numbers(f64::from(token), 12)
                .iter()
                .map(|x| x.abs())
                .collect();
            codes.push(&features, &values);
        }
        let support = Support::Sparse {
            pairs: vec![(3, 4), (13, 0)],
        };
        // Every possible weight by itself.
        let mut all: Vec<(f64, (u32, u32))> = Vec::new();
        for i in 0..m as u32 {
            let pairs: Vec<(u32, u32)> = (0..m as u32).map(|j| (i, j)).collect();
            let one = Support::Sparse {
                pairs: pairs.clone(),
            };
            let g = one.gradients(&[vec![0.0; m]], &codes, decoder, &grad);
            all.extend(g[0].iter().map(|g| g.abs()).zip(pairs));
        }
        all.retain(|(g, entry)| *g > 0.0 && ![(3, 4), (13, 0)].contains(entry));
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for count in [1, 7, 40, 900] {
            let found = largest_gradients(
                &support,
                0,
                &[vec![0.5, 0.5]],
                &codes,
                decoder,
                &grad,
                count,
            );
            let expected: Vec<(u32, u32)> = all.iter().take(count).map(|x| x.1).collect();
            assert_eq!(found, expected, "{count}");
        }
    }

    #[test]
    fn the_smallest_go_and_their_numbers_with_them() {
        let mut support = Support::Sparse {
            pairs: vec![(0, 1), (2, 5), (2, 7), (4, 0)],
        };
        let (mut values, mut moments) = (vec![0.3, -0.1, 0.2, -0.9], vec![1.0, 2.0, 3.0, 4.0]);
        exchange(
            &mut support,
            0,
            &mut [&mut values, &mut moments],
            2,
            &[(3, 3), (0, 0)],
        );
        assert_eq!(
            support,
            Support::Sparse {
                pairs: vec![(0, 0), (0, 1), (3, 3), (4, 0)]
            }
        );
        assert_eq!(values, [0.0, 0.3, 0.0, -0.9]);
        assert_eq!(moments, [0.0, 1.0, 0.0, 4.0]);
    }
}
