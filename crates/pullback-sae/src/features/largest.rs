//! The few largest of many numbers.

/// The `count` largest of `values` with their places, largest first, equal ones by place. Only places that `keep`
/// allows count; numbers that are not finite never do.
pub(crate) fn largest(
    values: &[f32],
    count: usize,
    keep: impl Fn(usize) -> bool,
) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count.min(values.len()) + 1);
    if count == 0 {
        return best;
    }
    let mut bar = f32::NEG_INFINITY;
    for (place, &value) in values.iter().enumerate() {
        // Later places lose against equal values, so only what is above the bar can come in.
        if value > bar && value < f32::INFINITY && keep(place) {
            let at = best.partition_point(|(_, other)| *other >= value);
            best.insert(at, (place as u32, value));
            best.truncate(count);
            if best.len() == count {
                bar = best[count - 1].1;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::largest;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn they_are_those_of_sorting() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for n in [0, 1, 5, 300] {
            // Few different values, so that many are equal.
            let values: Vec<f32> = (0..n)
                .map(|_| rng.random_range(-6..6) as f32 * 0.5)
                .collect();
            let mut order: Vec<usize> = (0..n).filter(|place| place % 7 != 3).collect();
            order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
            for count in [0, 1, 4, 1000] {
                let expected: Vec<(u32, f32)> = order
                    .iter()
                    .take(count)
                    .map(|&place| (place as u32, values[place]))
                    .collect();
                assert_eq!(largest(&values, count, |place| place % 7 != 3), expected);
            }
        }
        let odd = [f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY, 2.0];
        assert_eq!(largest(&odd, 5, |_| true), [(4, 2.0), (1, 1.0)]);
    }
}
