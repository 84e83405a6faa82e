//! Batches of kinds in which each feature decides for itself whether it is active.
//!
//! At the start of training half of the features are active on a token, and dense products are fastest; later few are,
//! and only they are touched. The way is chosen by the share of entries that mattered in the batch before.

use pullback_kernels::sparse::{SparseCodes, decode, dots_with_rows, encode_where};
use pullback_kernels::{Matrix, MatrixMut, Real, Threads, matmul, product, vectorized};
use rayon::prelude::*;

use super::batch::Dense;
use super::{Batch, Parameters, Part, Rows, Step, add_row_sums, centred, differences, scale};

/// Share of entries above which dense products are faster.
const DENSE: f64 = 0.04;
/// Rows that one task works on.
const ROWS: usize = 64;
/// Numbers in a block of codes.
const BLOCK: usize = 1 << 22;

/// Gradients of one entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gradient<T> {
    /// In what the encoder makes of the activation.
    pub(crate) encoder: T,
    /// In the encoder bias.
    pub(crate) bias: T,
    /// In what the kind adds.
    pub(crate) extras: [T; 2],
}

/// What one kind makes of a feature's pre-activation.
pub(crate) trait Elementwise<T>: Sync {
    /// Whether there is a second reconstruction, by codes of its own and a decoder that is not differentiated.
    const FROZEN: bool = false;

    /// The code.
    fn code(&self, feature: usize, pre: T) -> T;

    /// The code of the second reconstruction.
    fn frozen_code(&self, _feature: usize, _pre: T) -> T
    where
        T: Real,
    {
        T::zero()
    }

    /// Whether an entry has a code, a loss or a gradient.
    fn matters(&self, feature: usize, pre: T) -> bool;

    /// Told before losses and gradients are asked for: active features a token, and tokens.
    fn counted(&mut self, _active: f64, _tokens: usize) {}

    /// The entry's share of the sparsity loss, in units of the loss, where it matters.
    fn penalty(&self, feature: usize, pre: T) -> T;

    /// What of the sparsity loss does not belong to an entry.
    fn shared_penalty(&self) -> f64 {
        0.0
    }

    /// Gradients, given those of the two reconstructions' losses in the two codes. The sparsity loss is included.
    fn gradient(&self, feature: usize, pre: T, code: T, frozen: T) -> Gradient<T>;
}

/// Losses and gradients of a batch. `share` is that of the entries that mattered in the last batch, and is brought up to
/// date.
pub(crate) fn elementwise_batch<T: Real, E: Elementwise<T>>(
    parameters: &Parameters<T>,
    rows: &Rows<'_, T>,
    step: &Step<'_>,
    kind: E,
    share: &mut f64,
) -> Batch<T> {
    let entries = (rows.x.len() / parameters.d * parameters.features()) as f64;
    let (batch, mattered) = if *share > DENSE {
        dense(parameters, rows, step, kind)
    } else {
        sparse(parameters, rows, step, kind)
    };
    *share = mattered as f64 / entries;
    batch
}

/// `Σ‖x − x̂‖²` becomes the loss, `x̂ − x` its gradient.
fn finish<T: Real>(reconstruction: &mut [T], x: &[T], d: usize, variance: f64) -> f64 {
    let n = (x.len() / d) as f64;
    let squares = differences(reconstruction, x, d);
    scale(reconstruction, 2.0 / (n * variance));
    squares / (n * variance)
}

fn sparse<T: Real, E: Elementwise<T>>(
    parameters: &Parameters<T>,
    rows: &Rows<'_, T>,
    step: &Step<'_>,
    mut kind: E,
) -> (Batch<T>, usize) {
    let (d_out, m) = (parameters.d_out, parameters.features());
    let n = rows.x.len() / parameters.d;
    let centred = centred(parameters, rows.x);
    let pre = encode_where(
        &centred,
        &parameters.encoder,
        &parameters.encoder_bias,
        |feature, pre| kind.matters(feature, pre),
    );
    let map = |code: &dyn Fn(usize, T) -> T| -> Vec<T> {
        let entries = pre.features().iter().zip(pre.values());
        entries.map(|(&i, &pre)| code(i as usize, pre)).collect()
    };
    let codes = map(&|i, pre| kind.code(i, pre));
    let (mut fired, mut active) = (vec![false; m], 0);
    for (&feature, &code) in pre.features().iter().zip(&codes) {
        if code != T::zero() {
            fired[feature as usize] = true;
            active += 1;
        }
    }
    kind.counted(active as f64 / n as f64, n);
    let entries = pre.features().iter().zip(pre.values());
    let penalties: f64 = entries
        .clone()
        .map(|(&i, &pre)| kind.penalty(i as usize, pre).as_f64())
        .sum();
    let coded = pre.with_values(codes);
    let mut slope = decode(&coded, &parameters.decoder, &parameters.decoder_bias);
    let mut reconstruction = finish(&mut slope, rows.target, d_out, step.variance);
    let mut bias_slope = vec![0.0; d_out];
    add_row_sums(&mut bias_slope, &slope);
    let slopes = dots_with_rows(&coded, &parameters.decoder, &slope);
    let frozen_slopes = if E::FROZEN {
        let frozen = pre.with_values(map(&|i, pre| kind.frozen_code(i, pre)));
        let mut slope = decode(&frozen, &parameters.decoder, &parameters.decoder_bias);
        reconstruction += finish(&mut slope, rows.target, d_out, step.variance);
        dots_with_rows(&frozen, &parameters.decoder, &slope)
    } else {
        vec![T::zero(); slopes.len()]
    };
    let gradients: Vec<Gradient<T>> = entries
        .zip(slopes.iter().zip(&frozen_slopes))
        .map(|((&i, &pre), (&code, &frozen))| kind.gradient(i as usize, pre, code, frozen))
        .collect();
    let extras = (0..parameters.extras.len())
        .map(|e| gradients.iter().map(|g| g.extras[e]).collect())
        .collect();
    let mattered = pre.active();
    let whole = parameters.skip.is_some().then(|| slope.clone());
    let part = Part::of_entries(
        &pre,
        coded.values().to_vec(),
        slope,
        (
            gradients.iter().map(|g| g.encoder).collect(),
            Some(gradients.iter().map(|g| g.bias).collect()),
        ),
        extras,
        m,
    );
    let batch = Batch {
        reconstruction,
        sparsity: penalties + kind.shared_penalty(),
        auxiliary: 0.0,
        active,
        fired,
        centred,
        parts: vec![part],
        dense: None,
        bias_slope,
        slope: whole,
        skip: None,
    };
    (batch, mattered)
}

/// Of some rows: penalties, entries that matter, sums of gradients over the rows.
struct Columns<T> {
    penalties: f64,
    mattered: usize,
    encoder: Vec<T>,
    bias: Vec<T>,
    extras: Vec<Vec<T>>,
}

fn dense<T: Real, E: Elementwise<T>>(
    parameters: &Parameters<T>,
    of_batch: &Rows<'_, T>,
    step: &Step<'_>,
    mut kind: E,
) -> (Batch<T>, usize) {
    let (d, d_out, m) = (parameters.d, parameters.d_out, parameters.features());
    let n = of_batch.x.len() / d;
    let centred = centred(parameters, of_batch.x);
    let encoder = Matrix::new(&parameters.encoder, m, d, d);
    let decoder = Matrix::new(&parameters.decoder, m, d_out, d_out);
    let mut pre = product(
        Matrix::new(&centred, n, d, d),
        encoder.transposed(),
        Threads::All,
    );
    let (fired, active) = add_bias_and_count(&mut pre, &parameters.encoder_bias, &kind);
    kind.counted(active as f64 / n as f64, n);

    let mut total = Dense {
        encoder: vec![T::zero(); m * d],
        decoder: vec![T::zero(); m * d_out],
        encoder_sums: vec![T::zero(); m],
        bias: vec![T::zero(); m],
        extras: vec![vec![T::zero(); m]; parameters.extras.len()],
    };
    let mut bias_slope = vec![0.0; d_out];
    let mut whole = parameters.skip.is_some().then(Vec::new);
    let (mut reconstruction, mut penalties, mut mattered) = (0.0, 0.0, 0);
    let rows = (BLOCK / m).clamp(64, n.max(64));
    // The loss is a mean over all rows of the batch.
    let variance = step.variance * n as f64;
    let decoded = |codes: &[T], rows: usize| {
        let mut out: Vec<T> = parameters.decoder_bias.repeat(rows);
        matmul(
            MatrixMut::new(&mut out, rows, d_out, d_out),
            Matrix::new(codes, rows, m, m),
            decoder,
            T::one(),
            T::one(),
            Threads::All,
        );
        out
    };
    let mut codes = vec![T::zero(); rows.min(n) * m];
    for (number, pre) in pre.chunks(rows * m).enumerate() {
        let first = number * rows;
        let rows = pre.len() / m;
        let codes = &mut codes[..pre.len()];
        let centred = &centred[first * d..(first + rows) * d];
        let target = &of_batch.target[first * d_out..(first + rows) * d_out];
        let per_row = variance / rows as f64;
        map_into(
            codes,
            pre,
            m,
            #[inline(always)]
            |i, pre| kind.code(i, pre),
        );
        let mut slope = decoded(codes, rows);
        reconstruction += finish(&mut slope, target, d_out, per_row);
        add_row_sums(&mut bias_slope, &slope);
        if let Some(whole) = &mut whole {
            whole.extend_from_slice(&slope);
        }
        let back = |slope: &[T]| {
            product(
                Matrix::new(slope, rows, d_out, d_out),
                decoder.transposed(),
                Threads::All,
            )
        };
        let mut slopes = back(&slope);
        matmul(
            MatrixMut::new(&mut total.decoder, m, d_out, d_out),
            Matrix::new(codes, rows, m, m).transposed(),
            Matrix::new(&slope, rows, d_out, d_out),
            T::one(),
            T::one(),
            Threads::All,
        );
        let frozen = E::FROZEN.then(|| {
            map_into(
                codes,
                pre,
                m,
                #[inline(always)]
                |i, pre| kind.frozen_code(i, pre),
            );
            let mut slope = decoded(codes, rows);
            reconstruction += finish(&mut slope, target, d_out, per_row);
            back(&slope)
        });
        // From here on `slopes` are those of what the encoder makes.
        let columns = gradients(&kind, pre, &mut slopes, frozen.as_deref(), m, &total);
        for columns in columns {
            penalties += columns.penalties;
            mattered += columns.mattered;
            add(&mut total.encoder_sums, &columns.encoder);
            add(&mut total.bias, &columns.bias);
            for (total, extra) in total.extras.iter_mut().zip(&columns.extras) {
                add(total, extra);
            }
        }
        matmul(
            MatrixMut::new(&mut total.encoder, m, d, d),
            Matrix::new(&slopes, rows, m, m).transposed(),
            Matrix::new(centred, rows, d, d),
            T::one(),
            T::one(),
            Threads::All,
        );
    }
    let batch = Batch {
        reconstruction,
        sparsity: penalties + kind.shared_penalty(),
        auxiliary: 0.0,
        active,
        fired,
        centred,
        parts: Vec::new(),
        dense: Some(total),
        bias_slope,
        slope: whole,
        skip: None,
    };
    (batch, mattered)
}

fn add<T: Real>(total: &mut [T], more: &[T]) {
    for (total, &more) in total.iter_mut().zip(more) {
        *total += more;
    }
}

/// Adds the bias to what the encoder makes; which features have a code on some token, and how many codes there are.
fn add_bias_and_count<T: Real, E: Elementwise<T>>(
    pre: &mut [T],
    bias: &[T],
    kind: &E,
) -> (Vec<bool>, usize) {
    let m = bias.len();
    pre.par_chunks_mut(ROWS * m)
        .map(|rows| {
            vectorized(
                #[inline(always)]
                || {
                    let mut counts = vec![0_u32; m];
                    for row in rows.chunks_exact_mut(m) {
                        for (feature, pre) in row.iter_mut().enumerate() {
                            *pre += bias[feature];
                            let coded = kind.code(feature, *pre) != T::zero();
                            counts[feature] += u32::from(coded);
                        }
                    }
                    counts
                },
            )
        })
        .fold(
            || (vec![false; m], 0),
            |(mut fired, mut active), counts| {
                for (fired, count) in fired.iter_mut().zip(counts) {
                    *fired |= count > 0;
                    active += count as usize;
                }
                (fired, active)
            },
        )
        .reduce(
            || (vec![false; m], 0),
            |(mut left, active), (right, more)| {
                for (left, right) in left.iter_mut().zip(right) {
                    *left |= right;
                }
                (left, active + more)
            },
        )
}

/// Writes the codes of pre-activations `[rows, m]`.
fn map_into<T: Real>(codes: &mut [T], pre: &[T], m: usize, code: impl Fn(usize, T) -> T + Sync) {
    codes
        .par_chunks_mut(ROWS * m)
        .zip(pre.par_chunks(ROWS * m))
        .for_each(|(codes, pre)| {
            vectorized(
                #[inline(always)]
                || {
                    for (codes, pre) in codes.chunks_exact_mut(m).zip(pre.chunks_exact(m)) {
                        for (feature, (z, &pre)) in codes.iter_mut().zip(pre).enumerate() {
                            *z = code(feature, pre);
                        }
                    }
                },
            );
        });
}

/// Turns gradients in the codes into those in what the encoder makes, in place; the sums of groups of rows.
fn gradients<T: Real, E: Elementwise<T>>(
    kind: &E,
    pre: &[T],
    slopes: &mut [T],
    frozen: Option<&[T]>,
    m: usize,
    like: &Dense<T>,
) -> Vec<Columns<T>> {
    let extras = like.extras.len();
    slopes
        .par_chunks_mut(ROWS * m)
        .zip(pre.par_chunks(ROWS * m))
        .enumerate()
        .map(|(group, (slopes, pre))| {
            let mut sums = Columns {
                penalties: 0.0,
                mattered: 0,
                encoder: vec![T::zero(); m],
                bias: vec![T::zero(); m],
                extras: vec![vec![T::zero(); m]; extras],
            };
            // Two places, whether the kind uses them or not, so that the loop has no choices.
            let mut more = [vec![T::zero(); m], vec![T::zero(); m]];
            let nothing = vec![T::zero(); m];
            vectorized(
                #[inline(always)]
                || {
                    let [first, second] = &mut more;
                    let rows = slopes.chunks_exact_mut(m).zip(pre.chunks_exact(m));
                    for (row, (slopes, pre)) in rows.enumerate() {
                        let frozen = frozen.map_or(&nothing[..], |frozen| {
                            &frozen[(group * ROWS + row) * m..][..m]
                        });
                        let (mut penalty, mut mattered) = (T::zero(), 0_u32);
                        for feature in 0..m {
                            let pre = pre[feature];
                            let keep = kind.matters(feature, pre);
                            let found =
                                kind.gradient(feature, pre, slopes[feature], frozen[feature]);
                            let kept = |x: T| if keep { x } else { T::zero() };
                            penalty += kept(kind.penalty(feature, pre));
                            mattered += u32::from(keep);
                            slopes[feature] = kept(found.encoder);
                            sums.encoder[feature] += slopes[feature];
                            sums.bias[feature] += kept(found.bias);
                            first[feature] += kept(found.extras[0]);
                            second[feature] += kept(found.extras[1]);
                        }
                        sums.penalties += penalty.as_f64();
                        sums.mattered += mattered as usize;
                    }
                },
            );
            for (extra, more) in sums.extras.iter_mut().zip(more) {
                *extra = more;
            }
            sums
        })
        .collect()
}

/// Sparse codes with their values replaced, one an entry.
trait WithValues<T> {
    fn with_values(&self, values: Vec<T>) -> SparseCodes<T>;
}

impl<T: Real> WithValues<T> for SparseCodes<T> {
    fn with_values(&self, values: Vec<T>) -> Self {
        let mut codes = Self::new();
        for token in 0..self.tokens() {
            codes.push(self.token(token).0, &values[self.span(token)]);
        }
        codes
    }
}
