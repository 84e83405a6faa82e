//! An orthogonal map that spreads large coordinates over all.
//!
//! A few coordinates of a model's activations are far larger than the rest, and 8 bits a number with one scale a row
//! would lose all others. Products do not change when both vectors are rotated, and after signs that look random and a
//! Hadamard transform all coordinates are of about one size (as in `QuIP#`, arXiv 2402.04396, section 3). Where the width
//! is no power of two, the first and the last coordinates of the largest power that fits are transformed one after the
//! other.

/// The map for vectors of one width.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotation {
    d: usize,
    /// Coordinates that are transformed together.
    width: usize,
}

impl Rotation {
    pub(super) fn new(d: usize) -> Self {
        Self {
            d,
            width: 1 << d.ilog2(),
        }
    }

    /// Rotates `x [d]`, whose square's sum must be far from overflow.
    #[inline(always)]
    pub(super) fn apply(&self, x: &mut [f32], spare: &mut Vec<f32>) {
        spare.resize(self.width, 0.0);
        flip(x, 0);
        transform(&mut x[..self.width], spare);
        if self.width < self.d {
            flip(x, 1 << 20);
            transform(&mut x[self.d - self.width..], spare);
        }
    }

    /// How far the result lies from that of the exact map, at most: in units of 2⁻²⁴ of the vector's length.
    ///
    /// Each addition of a level is rounded once, so a level adds one unit; the factor is rounded itself and rounds once.
    pub(super) fn units(&self) -> f64 {
        let transforms = if self.width < self.d { 2 } else { 1 };
        f64::from(transforms * (self.width.ilog2() + 2))
    }
}

/// Changes signs by a fixed pattern without structure.
#[inline(always)]
fn flip(x: &mut [f32], pattern: u32) {
    const SIGN: u32 = 1 << 31;
    for (i, x) in x.iter_mut().enumerate() {
        let mut bits = (i as u32 + pattern + 1).wrapping_mul(0x9e37_79b9);
        bits = (bits ^ bits >> 15).wrapping_mul(0x85eb_ca6b);
        bits = (bits ^ bits >> 13).wrapping_mul(0xc2b2_ae35);
        *x = f32::from_bits(x.to_bits() ^ bits & SIGN);
    }
}

/// The Hadamard transform of a power of two of numbers, of length one. All levels read neighbours and write to the two
/// halves, which vectors do well.
#[inline(always)]
fn transform(x: &mut [f32], spare: &mut [f32]) {
    let n = x.len();
    let levels = n.ilog2();
    for _ in 0..levels / 2 {
        level(x, spare);
        level(spare, x);
    }
    if !levels.is_multiple_of(2) {
        level(x, spare);
        x.copy_from_slice(spare);
    }
    let factor = (n as f64).sqrt().recip() as f32;
    for x in x {
        *x *= factor;
    }
}

/// One level of the transform.
#[inline(always)]
fn level(from: &[f32], to: &mut [f32]) {
    let (sums, differences) = to.split_at_mut(from.len() / 2);
    let pairs = from.as_chunks::<2>().0;
    for ((sum, difference), &[a, b]) in sums.iter_mut().zip(differences).zip(pairs) {
        *sum = a + b;
        *difference = a - b;
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::Rotation;

    fn rotated(x: &[f32]) -> Vec<f32> {
        let mut out = x.to_vec();
        Rotation::new(x.len()).apply(&mut out, &mut Vec::new());
        out
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        let terms = a.iter().zip(b);
        terms.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    }

    #[test]
    fn products_stay() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for d in [1, 2, 3, 31, 64, 75, 576, 768, 2048] {
            let mut vector =
                || -> Vec<f32> { (0..d).map(|_| random.random_range(-1.0_f32..1.0)).collect() };
            let (a, b) = (vector(), vector());
            let length = (dot(&a, &a) * dot(&b, &b)).sqrt();
            let bound = 2.0 * Rotation::new(d).units() * 2.0_f64.powi(-24) * length;
            let off = (dot(&a, &b) - dot(&rotated(&a), &rotated(&b))).abs();
            assert!(off <= bound, "{d}: {off} > {bound}");
        }
    }

    #[test]
    fn one_coordinate_is_spread_over_all() {
        for d in [64, 576, 2048] {
            for place in [0, 7, d / 2, d - 1] {
                let mut x = vec![0.0; d];
                x[place] = 1.0;
                let top = rotated(&x).iter().fold(0.0_f32, |top, x| top.max(x.abs()));
                assert!(top <= 5.0 / (d as f32).sqrt(), "{d} {place}: {top}");
            }
        }
    }
}
