//! The largest `k` of many without sorting.

use std::cmp::Ordering;

use crate::Real;

/// Values that share one maximum in the first scan.
const GROUP: usize = 16;

/// Pushes the `k` largest positive values of `row` and their places, places ascending; of equal values the
/// earlier places win. Fewer than `k` when fewer are positive; `NaN` is never chosen.
///
/// The `k`-th largest of the maxima of groups of 16 is a bound that at least `k` values reach, and few
/// others do: one pass over the row finds it, and only groups that reach it are looked at again.
pub fn select_top<T: Real>(row: &[T], k: usize, places: &mut Vec<u32>, values: &mut Vec<T>) {
    if k == 0 {
        return;
    }
    let mut maxima = Vec::with_capacity(row.len().div_ceil(GROUP));
    for group in row.chunks(GROUP) {
        let mut top = T::zero();
        for &x in group {
            top = if x > top { x } else { top };
        }
        maxima.push(top);
    }
    let bound = if maxima.len() > k {
        let mut order = maxima.clone();
        let (_, bound, _) = order.select_nth_unstable_by(k - 1, |a, b| descending(*a, *b));
        *bound
    } else {
        T::zero()
    };
    let mut found: Vec<(T, u32)> = Vec::with_capacity(2 * k);
    for (number, (group, &top)) in row.chunks(GROUP).zip(&maxima).enumerate() {
        if top < bound || top <= T::zero() {
            continue;
        }
        for (place, &x) in group.iter().enumerate() {
            if x >= bound && x > T::zero() {
                found.push((x, (number * GROUP + place) as u32));
            }
        }
    }
    if found.len() > k {
        found.select_nth_unstable_by(k - 1, |a, b| descending(a.0, b.0).then(a.1.cmp(&b.1)));
        found.truncate(k);
        found.sort_unstable_by_key(|(_, place)| *place);
    }
    places.extend(found.iter().map(|(_, place)| *place));
    values.extend(found.iter().map(|(value, _)| *value));
}

/// Larger first; only called on values that are not NaN.
fn descending<T: Real>(a: T, b: T) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::select_top;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn by_sorting(row: &[f32], k: usize) -> (Vec<u32>, Vec<f32>) {
        let mut order: Vec<usize> = (0..row.len()).filter(|&i| row[i] > 0.0).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        order.truncate(k);
        order.sort_unstable();
        (
            order.iter().map(|&i| i as u32).collect(),
            order.iter().map(|&i| row[i]).collect(),
        )
    }

    #[test]
    fn agrees_with_sorting() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for n in [1, 5, 16, 17, 100, 1000, 4611] {
            for k in [1, 2, 7, 32, 64, 5000] {
                for case in 0..4 {
                    let row: Vec<f32> = (0..n)
                        .map(|_| match case {
                            0 => rng.random_range(-1.0..1.0),
                            // Many ties, many zeros, few positive.
                            1 => f32::from(rng.random_range(-2_i8..4)),
                            2 => 1.0,
                            _ => rng.random_range(-1.0..0.01),
                        })
                        .collect();
                    let (mut places, mut values) = (Vec::new(), Vec::new());
                    select_top(&row, k, &mut places, &mut values);
                    assert_eq!(
                        (places, values),
                        by_sorting(&row, k),
                        "n {n}, k {k}, case {case}"
                    );
                }
            }
        }
    }

    #[test]
    fn nan_is_never_chosen() {
        let row = [f32::NAN, 1.0, f32::NAN, 2.0, -1.0, f32::INFINITY];
        let (mut places, mut values) = (Vec::new(), Vec::new());
        select_top(&row, 4, &mut places, &mut values);
        assert_eq!(places, [1, 3, 5]);
    }
}
