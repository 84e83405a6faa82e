//! Rank agreement.

/// Spearman's rank correlation: Pearson's of the ranks, equal values sharing their mean rank.
///
/// `NaN` when there are fewer than two pairs or one side is constant.
///
/// # Panics
/// If the lengths differ.
pub fn spearman(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(
        a.len(),
        b.len(),
        "spearman: one value of each kind a feature is needed"
    );
    let (a, b) = (ranks(a), ranks(b));
    let mean = f64::midpoint(a.len() as f64, 1.0);
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(&b) {
        ab += (a - mean) * (b - mean);
        aa += (a - mean) * (a - mean);
        bb += (b - mean) * (b - mean);
    }
    ab / (aa * bb).sqrt()
}

/// Ranks from one on; equal values share their mean rank.
fn ranks(x: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&i, &j| x[i].total_cmp(&x[j]));
    let mut ranks = vec![0.0; x.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        // Zero of either sign is one value.
        while end < order.len() && (x[order[end]] - x[order[start]]).abs() == 0.0 {
            end += 1;
        }
        for &place in &order[start..end] {
            ranks[place] = (start + 1 + end) as f64 / 2.0;
        }
        start = end;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::{ranks, spearman};

    #[test]
    fn closed_forms() {
        let x = [0.1, -3.0, 2.0, 7.5, 0.5];
        let up: Vec<f32> = x.iter().map(|x: &f32| x.powi(3) + 1.0).collect();
        let down: Vec<f32> = x.iter().map(|x| -x).collect();
        assert!((spearman(&x, &up) - 1.0).abs() < 1e-15);
        assert!((spearman(&x, &down) + 1.0).abs() < 1e-15);
        // Without ties: 1 − 6 Σ d² / (n (n² − 1)); here d² sums to 4.
        let swapped = [0.1, -3.0, 7.5, 2.0, 0.5];
        let by_formula = 1.0 - 6.0 * 2.0 / (5.0 * 24.0);
        assert!((spearman(&x, &swapped) - by_formula).abs() < 1e-15);
        assert!(spearman(&[1.0, 1.0], &[1.0, 2.0]).is_nan());
    }

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(
            ranks(&[2.0, 1.0, 2.0, 0.0, -0.0]),
            [4.5, 3.0, 4.5, 1.5, 1.5]
        );
    }
}
