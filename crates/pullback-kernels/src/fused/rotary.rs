//! Rotary position embedding on slices (Su et al., arXiv 2104.09864, section 3.4.2).

use rayon::prelude::*;

use crate::Real;
use crate::simd::vectorized;

/// Which coordinates of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryPairs {
    /// `(2i, 2i + 1)`, as llama.cpp's files have them.
    Interleaved,
    /// `(i, i + r/2)`, as Hugging Face's files have them.
    HalfSplit,
}

/// What a rotary embedding needs beside the vectors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RotarySpec {
    /// Positions per sequence: the rows are `batch × time`.
    pub time: usize,
    /// Position of the first row of each sequence.
    pub start: usize,
    /// Size of a head.
    pub d_head: usize,
    /// How many of a head's coordinates turn; even.
    pub rotary_dim: usize,
    /// Base of the frequencies: pair `i` turns by `position · base^(−2i/rotary_dim)`.
    pub base: f64,
    /// Which coordinates form a pair.
    pub pairs: RotaryPairs,
}

/// Turns every head of `x [batch·time, heads·d_head]`; `inverse` turns back (the transpose, so also the
/// backward pass).
pub(super) fn rotate<T: Real>(x: &[T], width: usize, spec: &RotarySpec, inverse: bool) -> Vec<T> {
    let half = spec.rotary_dim / 2;
    let sign = if inverse { -1.0 } else { 1.0 };
    let mut cosines = vec![T::zero(); spec.time * half];
    let mut sines = vec![T::zero(); spec.time * half];
    let frequencies: Vec<f64> = (0..half)
        .map(|pair| spec.base.powf(-2.0 * pair as f64 / spec.rotary_dim as f64))
        .collect();
    for row in 0..spec.time {
        for (pair, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = ((spec.start + row) as f64 * frequency).sin_cos();
            cosines[row * half + pair] = T::of(cos);
            sines[row * half + pair] = T::of(sign * sin);
        }
    }
    let mut out = vec![T::zero(); x.len()];
    out.par_chunks_mut(spec.time * width)
        .zip(x.par_chunks(spec.time * width))
        .for_each(|(out, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for row in 0..spec.time {
                        let cosines = &cosines[row * half..(row + 1) * half];
                        let sines = &sines[row * half..(row + 1) * half];
                        let span = row * width..(row + 1) * width;
                        let heads = out[span.clone()].chunks_exact_mut(spec.d_head);
                        for (out, x) in heads.zip(x[span].chunks_exact(spec.d_head)) {
                            rotate_head(out, x, cosines, sines, spec.pairs);
                        }
                    }
                },
            );
        });
    out
}

#[inline(always)]
fn rotate_head<T: Real>(out: &mut [T], x: &[T], cosines: &[T], sines: &[T], pairs: RotaryPairs) {
    let half = cosines.len();
    match pairs {
        RotaryPairs::Interleaved => {
            let turned = out[..2 * half].chunks_exact_mut(2);
            let source = x[..2 * half].chunks_exact(2);
            for (((out, x), &cos), &sin) in turned.zip(source).zip(cosines).zip(sines) {
                out[0] = x[0] * cos - x[1] * sin;
                out[1] = x[0] * sin + x[1] * cos;
            }
        }
        RotaryPairs::HalfSplit => {
            let (first, rest) = out.split_at_mut(half);
            let second = &mut rest[..half];
            let (a, b) = (&x[..half], &x[half..2 * half]);
            for i in 0..half {
                first[i] = a[i] * cosines[i] - b[i] * sines[i];
                second[i] = a[i] * sines[i] + b[i] * cosines[i];
            }
        }
    }
    out[2 * half..].copy_from_slice(&x[2 * half..]);
}
