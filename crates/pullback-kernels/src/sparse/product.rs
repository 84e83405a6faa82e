//! Products of sparse codes with the rows of a dictionary.

use rayon::prelude::*;

use super::SparseCodes;
use crate::simd::vectorized;
use crate::{Matrix, MatrixMut, Real, Threads, matmul};

/// Tokens worked on by one task.
const TOKENS: usize = 64;
/// Share of entries that are active from which a dense product is faster.
const DENSE: f64 = 0.1;
/// Tokens and features of one dense product.
const DENSE_BLOCK: [usize; 2] = [256, 2048];

/// Dot product in 32 running sums: enough independent chains to keep the vector units busy.
///
/// The sums are fused multiply-adds and their order is fixed, so the bits are the same on every processor.
#[inline(always)]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::zero(); 32];
    let (mut left, mut right) = (a.chunks_exact(32), b.chunks_exact(32));
    for (a, b) in (&mut left).zip(&mut right) {
        for i in 0..32 {
            sums[i] = a[i].mul_add(b[i], sums[i]);
        }
    }
    let mut total = T::zero();
    for (&a, &b) in left.remainder().iter().zip(right.remainder()) {
        total += a * b;
    }
    total + in_halves(sums)
}

/// The sum of 32 numbers: halves are added to each other.
///
/// Kept out of line so that the loop above is compiled for whole vectors and not for the pairs of the last step.
#[inline(never)]
fn in_halves<T: Real>(mut sums: [T; 32]) -> T {
    let mut width = 16;
    while width > 0 {
        let (low, high) = sums.split_at_mut(width);
        for (low, high) in low.iter_mut().zip(high) {
            *low += *high;
        }
        width /= 2;
    }
    sums[0]
}

/// `out += factor · row`.
#[inline(always)]
pub fn add_scaled<T: Real>(out: &mut [T], factor: T, row: &[T]) {
    for (out, &x) in out.iter_mut().zip(row) {
        *out = factor.mul_add(x, *out);
    }
}

/// `codes × rows + bias`: `rows [m, d]`, `bias [d]` → `[tokens, d]`.
///
/// # Panics
/// If a feature has no row.
pub fn decode<T: Real>(codes: &SparseCodes<T>, rows: &[T], bias: &[T]) -> Vec<T> {
    let d = bias.len();
    let m = rows.len() / d.max(1);
    if codes.active() as f64 > DENSE * (codes.tokens() * m) as f64
        && codes.tokens() >= TOKENS
        && m >= TOKENS
    {
        return decode_densely(codes, rows, bias);
    }
    let mut out = vec![T::zero(); codes.tokens() * d];
    out.par_chunks_mut(TOKENS * d)
        .enumerate()
        .for_each(|(chunk, out)| {
            vectorized(
                #[inline(always)]
                || {
                    for (place, out) in out.chunks_exact_mut(d).enumerate() {
                        out.copy_from_slice(bias);
                        let (features, values) = codes.token(chunk * TOKENS + place);
                        for (&feature, &value) in features.iter().zip(values) {
                            let start = feature as usize * d;
                            add_scaled(out, value, &rows[start..start + d]);
                        }
                    }
                },
            );
        });
    out
}

/// The same by dense products of blocks of tokens and features. Each is made by one thread, so that sums do not depend on
/// how many there are.
fn decode_densely<T: Real>(codes: &SparseCodes<T>, rows: &[T], bias: &[T]) -> Vec<T> {
    let (d, m) = (bias.len(), rows.len() / bias.len());
    let [tokens, width] = DENSE_BLOCK;
    let mut out = bias.repeat(codes.tokens());
    out.par_chunks_mut(tokens * d)
        .enumerate()
        .for_each_init(Vec::new, |dense, (chunk, out)| {
            let count = out.len() / d;
            let mut next = vec![0; count];
            for start in (0..m).step_by(width) {
                let width = width.min(m - start);
                dense.clear();
                dense.resize(count * width, T::zero());
                for (place, (next, dense)) in next
                    .iter_mut()
                    .zip(dense.chunks_exact_mut(width))
                    .enumerate()
                {
                    let (features, values) = codes.token(chunk * tokens + place);
                    while let Some(&feature) = features.get(*next)
                        && (feature as usize) < start + width
                    {
                        dense[feature as usize - start] = values[*next];
                        *next += 1;
                    }
                }
                matmul(
                    MatrixMut::new(out, count, d, d),
                    Matrix::new(dense, count, width, width),
                    Matrix::new(&rows[start * d..], width, d, d),
                    T::one(),
                    T::one(),
                    Threads::One,
                );
            }
            for (place, next) in next.into_iter().enumerate() {
                let (features, _) = codes.token(chunk * tokens + place);
                assert!(next == features.len(), "decode: a feature has no row");
            }
        });
    out
}

/// For every entry of the codes, the dot product of its feature's row with its token's vector:
/// `rows [m, d]`, `vectors [tokens, d]` → one number an entry, in the order of [`SparseCodes::values`].
///
/// # Panics
/// If a feature has no row or a token no vector.
pub fn dots_with_rows<T: Real>(codes: &SparseCodes<T>, rows: &[T], vectors: &[T]) -> Vec<T> {
    let tokens = codes.tokens();
    let d = vectors.len() / tokens.max(1);
    let parts: Vec<Vec<T>> = (0..tokens.div_ceil(TOKENS))
        .into_par_iter()
        .map(|chunk| {
            vectorized(
                #[inline(always)]
                || {
                    let mut out = Vec::new();
                    for token in chunk * TOKENS..((chunk + 1) * TOKENS).min(tokens) {
                        let vector = &vectors[token * d..(token + 1) * d];
                        for &feature in codes.token(token).0 {
                            let start = feature as usize * d;
                            out.push(dot(&rows[start..start + d], vector));
                        }
                    }
                    out
                },
            )
        })
        .collect();
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::{decode, dots_with_rows};
    use crate::sparse::{Candidates, SparseCodes, encode_top_k};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn sparse_products_agree_with_dense_ones() {
        let (n, m, d, k) = (150, 90, 37, 5);
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut random = |count: usize| -> Vec<f64> {
            (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
        };
        let (x, encoder, bias) = (random(n * d), random(m * d), random(m));
        let (rows, offset, vectors) = (random(m * d), random(d), random(n * d));
        let dead: Vec<u32> = (0..m as u32).step_by(3).collect();
        let candidates = Candidates {
            features: &dead,
            k: 4,
        };
        let encoded = encode_top_k(&x, &encoder, &bias, k, Some(candidates));

        let mut expected = SparseCodes::new();
        let mut expected_among = SparseCodes::new();
        for x in x.chunks_exact(d) {
            let pre: Vec<f64> = (0..m)
                .map(|i| bias[i] + (0..d).map(|j| x[j] * encoder[i * d + j]).sum::<f64>())
                .collect();
            let choose = |among: &[u32], k: usize| {
                let mut order: Vec<u32> = among
                    .iter()
                    .copied()
                    .filter(|&i| pre[i as usize] > 0.0)
                    .collect();
                order.sort_by(|&a, &b| pre[b as usize].total_cmp(&pre[a as usize]));
                order.truncate(k);
                order.sort_unstable();
                let values: Vec<f64> = order.iter().map(|&i| pre[i as usize]).collect();
                (order, values)
            };
            let (features, values) = choose(&(0..m as u32).collect::<Vec<_>>(), k);
            expected.push(&features, &values);
            let (features, values) = choose(&dead, 4);
            expected_among.push(&features, &values);
        }
        let close = |a: &SparseCodes<f64>, b: &SparseCodes<f64>| {
            assert_eq!(a.features(), b.features());
            assert!(
                a.values()
                    .iter()
                    .zip(b.values())
                    .all(|(a, b)| (a - b).abs() < 1e-12)
            );
        };
        close(&encoded.codes, &expected);
        close(encoded.among.as_ref().unwrap(), &expected_among);

        let decoded = decode(&encoded.codes, &rows, &offset);
        let dots = dots_with_rows(&encoded.codes, &rows, &vectors);
        let by_feature = encoded.codes.by_feature(m);
        let mut entry = 0;
        for t in 0..n {
            for j in 0..d {
                let dense: f64 = offset[j]
                    + (0..m)
                        .map(|i| encoded.codes.value(t, i as u32) * rows[i * d + j])
                        .sum::<f64>();
                assert!((decoded[t * d + j] - dense).abs() < 1e-12);
            }
            for &i in encoded.codes.token(t).0 {
                let i = i as usize;
                let dense: f64 = (0..d).map(|j| rows[i * d + j] * vectors[t * d + j]).sum();
                assert!((dots[entry] - dense).abs() < 1e-12);
                let (tokens, entries) = by_feature.feature(i);
                let at = tokens.binary_search(&(t as u32)).unwrap();
                assert_eq!(entries[at] as usize, entry);
                entry += 1;
            }
        }
        assert_eq!(entry, encoded.codes.active());
    }

    #[test]
    fn codes_that_are_not_sparse_decode_as_others_do() {
        let (n, m, d) = (300, 2100, 20);
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut random = |count: usize| -> Vec<f64> {
            (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
        };
        let (rows, offset, dense) = (random(m * d), random(d), random(n * m));
        let mut codes = SparseCodes::new();
        for row in dense.chunks_exact(m) {
            let active = (0..m as u32).filter(|&i| row[i as usize] > 0.0);
            let features: Vec<u32> = active.collect();
            let values: Vec<f64> = features.iter().map(|&i| row[i as usize]).collect();
            codes.push(&features, &values);
        }
        let decoded = decode(&codes, &rows, &offset);
        for t in 0..n {
            for j in 0..d {
                let sum: f64 = (0..m)
                    .map(|i| dense[t * m + i].max(0.0) * rows[i * d + j])
                    .sum();
                assert!((decoded[t * d + j] - offset[j] - sum).abs() < 1e-10);
            }
        }
    }
}
