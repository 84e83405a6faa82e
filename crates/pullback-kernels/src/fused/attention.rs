//! Causal attention with grouped heads on slices, one block of queries at a time, so that the scores never
//! stand in memory all at once (the recomputation in the backward pass follows Dao et al., arXiv
//! 2205.14135, algorithm 4, with the row sum of `dO ∘ O` in place of that of `dP ∘ P`).

use std::sync::Arc;

use rayon::prelude::*;

use crate::real::{largest, total};
use crate::simd::vectorized;
use crate::sparse::dot;
use crate::team::share_chunks;
use crate::{Matrix, MatrixMut, Real, Threads, matmul};

/// Queries in a block.
const BLOCK: usize = 64;
/// Multiply-adds below which starting threads costs more than they save.
const SMALL: usize = 1 << 18;

/// How many rows of a batch one sequence has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of queries: the last of its positions.
    pub queries: usize,
    /// Rows of keys and values: all of its positions.
    pub keys: usize,
}

/// Shapes of one attention call.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// The sequences, in the order of their rows; their lengths may differ.
    pub sequences: Arc<[Span]>,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`, and each serves `heads / kv_heads` neighbouring query heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub d_head: usize,
    /// Factor on the scores, usually `1/sqrt(d_head)`.
    pub scale: f64,
    /// A query sees this many positions, its own the last of them; `None`: all before it.
    pub window: Option<usize>,
    /// Scores `s` (after the scale) become `cap · tanh(s / cap)`.
    pub softcap: Option<f64>,
}

impl AttentionSpec {
    /// Query heads that a key-value head serves.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The keys `[first, end)` that the query at `position` sees.
    pub fn visible(&self, position: usize) -> (usize, usize) {
        let end = position + 1;
        (
            self.window.map_or(0, |window| end.saturating_sub(window)),
            end,
        )
    }

    /// Number of query rows and of key rows.
    pub(super) fn rows(&self) -> (usize, usize) {
        let sum = |length: fn(&Span) -> usize| self.sequences.iter().map(length).sum();
        (sum(|s| s.queries), sum(|s| s.keys))
    }
}

/// One sequence's place in the rows.
#[derive(Clone, Copy)]
struct Place {
    queries: usize,
    keys: usize,
    span: Span,
}

fn places(spec: &AttentionSpec) -> Vec<Place> {
    let (mut queries, mut keys) = (0, 0);
    spec.sequences
        .iter()
        .map(|&span| {
            let place = Place {
                queries,
                keys,
                span,
            };
            queries += span.queries;
            keys += span.keys;
            place
        })
        .collect()
}

/// A block of queries and the keys that any of them sees.
struct Block {
    start: usize,
    rows: usize,
    first_key: usize,
    columns: usize,
}

fn blocks(span: Span, spec: &AttentionSpec) -> impl Iterator<Item = Block> {
    (0..span.queries).step_by(BLOCK).map(move |start| {
        let rows = BLOCK.min(span.queries - start);
        let position = span.keys - span.queries + start;
        let (first_key, _) = spec.visible(position);
        let (_, end) = spec.visible(position + rows - 1);
        Block {
            start,
            rows,
            first_key,
            columns: end - first_key,
        }
    })
}

/// One head of rows that start at `row`, to the end of the slice.
fn head<T>(x: &[T], row: usize, width: usize, column: usize) -> &[T] {
    &x[(row * width + column).min(x.len())..]
}

/// Turns a block's products `q·k` into attention weights: scale, cap, mask and softmax of each row. With `slopes`,
/// also writes the derivative of the capped score by the product (there is one only with a cap).
fn weights<T: Real>(
    scores: &mut [T],
    block: &Block,
    span: Span,
    spec: &AttentionSpec,
    mut slopes: Option<&mut [T]>,
) {
    let scale = T::of(spec.scale);
    vectorized(
        #[inline(always)]
        || {
            if let Some(cap) = spec.softcap {
                let (cap, inner) = (T::of(cap), T::of(spec.scale / cap));
                let two = T::one() + T::one();
                for x in scores.iter_mut() {
                    // tanh(y) = 1 − 2 / (1 + e^{2y})
                    let y = *x * inner;
                    *x = cap * (T::one() - two / (T::one() + (two * y).exp_vector()));
                }
                if let Some(slopes) = &mut slopes {
                    for (slope, &x) in slopes.iter_mut().zip(scores.iter()) {
                        let ratio = x / cap;
                        *slope = scale * (T::one() - ratio * ratio);
                    }
                }
            }
            let factor = if spec.softcap.is_some() {
                T::one()
            } else {
                scale
            };
            let position = span.keys - span.queries + block.start;
            for (row, scores) in scores.chunks_exact_mut(block.columns).enumerate() {
                let (first, end) = spec.visible(position + row);
                let (seen, later) = scores.split_at_mut(end - block.first_key);
                let (earlier, seen) = seen.split_at_mut(first - block.first_key);
                let top = largest(seen);
                for x in seen.iter_mut() {
                    *x = ((*x - top) * factor).exp_vector();
                }
                let inverse = total(seen).recip();
                for x in seen.iter_mut() {
                    *x *= inverse;
                }
                later.fill(T::zero());
                earlier.fill(T::zero());
            }
        },
    );
}

/// Output of one head of one sequence, `[queries, d]` with rows `out_width` apart.
#[expect(
    clippy::too_many_arguments,
    reason = "three operands, where they start, and where to write"
)]
fn attend<T: Real>(
    q: &[T],
    k: &[T],
    v: &[T],
    place: Place,
    h: usize,
    spec: &AttentionSpec,
    out: &mut [T],
    out_width: usize,
) {
    let (d, span) = (spec.d_head, place.span);
    let (width, kv_width) = (spec.heads * d, spec.kv_heads * d);
    let q = head(q, place.queries, width, h * d);
    let k = head(k, place.keys, kv_width, h / spec.group() * d);
    let v = head(v, place.keys, kv_width, h / spec.group() * d);
    let mut scores = vec![T::zero(); BLOCK.min(span.queries) * span.keys];
    for block in blocks(span, spec) {
        let (rows, columns) = (block.rows, block.columns);
        let scores = &mut scores[..rows * columns];
        matmul(
            MatrixMut::new(scores, rows, columns, columns),
            Matrix::new(&q[block.start * width..], rows, d, width),
            Matrix::new(&k[block.first_key * kv_width..], columns, d, kv_width).transposed(),
            T::zero(),
            T::one(),
            Threads::One,
        );
        weights(scores, &block, span, spec, None);
        matmul(
            MatrixMut::new(&mut out[block.start * out_width..], rows, d, out_width),
            Matrix::new(scores, rows, columns, columns),
            Matrix::new(&v[block.first_key * kv_width..], columns, d, kv_width),
            T::zero(),
            T::one(),
            Threads::One,
        );
    }
}

/// Forward: `q [Σ queries, heads·d]`, `k` and `v [Σ keys, kv_heads·d]` → `[Σ queries, heads·d]`.
pub(super) fn forward<T: Real>(q: &[T], k: &[T], v: &[T], spec: &AttentionSpec) -> Vec<T> {
    let (d, heads) = (spec.d_head, spec.heads);
    let width = heads * d;
    let places = places(spec);
    let work: usize = places
        .iter()
        .map(|p| p.span.queries * p.span.keys * width)
        .sum();
    if work >= SMALL && places.len() < 2 * rayon::current_num_threads() {
        return by_head(q, k, v, spec, &places);
    }
    let mut out = vec![T::zero(); q.len()];
    // Each sequence's rows of the output are one task's alone.
    let mut rest = out.as_mut_slice();
    let mut tasks = Vec::with_capacity(places.len());
    for place in places {
        let (mine, others) = rest.split_at_mut(place.span.queries * width);
        rest = others;
        tasks.push((place, mine));
    }
    let one = |(place, out): (Place, &mut [T])| {
        if place.span.queries == 1 {
            return single(place, q, k, v, spec, out);
        }
        for h in 0..heads {
            attend(q, k, v, place, h, spec, &mut out[h * d..], width);
        }
    };
    if work < SMALL {
        tasks.into_iter().for_each(one);
    } else {
        tasks.into_par_iter().for_each(one);
    }
    out
}

/// The same with a task a head: for few, long sequences.
fn by_head<T: Real>(q: &[T], k: &[T], v: &[T], spec: &AttentionSpec, places: &[Place]) -> Vec<T> {
    let (d, heads) = (spec.d_head, spec.heads);
    let (rows, _) = spec.rows();
    let mut parts = vec![T::zero(); q.len()];
    // Written head by head, then put in the order of the rows: tasks share no memory.
    share_chunks(&mut parts, rows * d, |h, out| {
        for &place in places {
            attend(q, k, v, place, h, spec, &mut out[place.queries * d..], d);
        }
    });
    heads_to_rows(&parts, rows, heads, d)
}

/// The output for the one query of a sequence: a step of generation. No scores of other queries, no blocks.
fn single<T: Real>(place: Place, q: &[T], k: &[T], v: &[T], spec: &AttentionSpec, out: &mut [T]) {
    let (d, kv_width) = (spec.d_head, spec.kv_heads * spec.d_head);
    let span = place.span;
    let (first, end) = spec.visible(span.keys - 1);
    let block = Block {
        start: 0,
        rows: 1,
        first_key: first,
        columns: end - first,
    };
    let mut scores = vec![T::zero(); block.columns];
    let q = &q[place.queries * spec.heads * d..];
    for h in 0..spec.heads {
        let column = h / spec.group() * d;
        let k = head(k, place.keys + first, kv_width, column);
        let v = head(v, place.keys + first, kv_width, column);
        let q = &q[h * d..(h + 1) * d];
        let out = &mut out[h * d..(h + 1) * d];
        vectorized(
            #[inline(always)]
            || {
                for (score, key) in scores.iter_mut().zip(k.chunks(kv_width)) {
                    *score = dot(q, &key[..d]);
                }
            },
        );
        weights(&mut scores, &block, span, spec, None);
        vectorized(
            #[inline(always)]
            || {
                for (&weight, value) in scores.iter().zip(v.chunks(kv_width)) {
                    for (out, &value) in out.iter_mut().zip(&value[..d]) {
                        *out += weight * value;
                    }
                }
            },
        );
    }
}

/// Backward: gradients of `q`, `k` and `v`, from the output `out` and its gradient `grad`.
pub(super) fn backward<T: Real>(
    q: &[T],
    k: &[T],
    v: &[T],
    out: &[T],
    grad: &[T],
    spec: &AttentionSpec,
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let (d, heads, kv_heads, group) = (spec.d_head, spec.heads, spec.kv_heads, spec.group());
    let (width, kv_width) = (heads * d, kv_heads * d);
    let (rows, key_rows) = spec.rows();
    let places = places(spec);
    let mut dq = vec![T::zero(); q.len()];
    let mut dk = vec![T::zero(); k.len()];
    let mut dv = vec![T::zero(); v.len()];
    // One task per sequence and key-value head: its query heads add to the same dk and dv. The gradients are laid out
    // task by task, `[kv_heads, rows, d]` with the query heads of a group together.
    let mut tasks = Vec::with_capacity(places.len() * kv_heads);
    {
        let (mut dq, mut dk, mut dv) = (&mut dq[..], &mut dk[..], &mut dv[..]);
        for kv in 0..kv_heads {
            for &place in &places {
                let (q_size, k_size) = (group * place.span.queries * d, place.span.keys * d);
                let (a, rest) = dq.split_at_mut(q_size);
                dq = rest;
                let (b, rest) = dk.split_at_mut(k_size);
                dk = rest;
                let (c, rest) = dv.split_at_mut(k_size);
                dv = rest;
                tasks.push((kv, place, a, b, c));
            }
        }
    }
    tasks.into_par_iter().for_each(|(kv, place, dq, dk, dv)| {
        let span = place.span;
        let k = head(k, place.keys, kv_width, kv * d);
        let v = head(v, place.keys, kv_width, kv * d);
        let most = BLOCK.min(span.queries) * span.keys;
        let mut p = vec![T::zero(); most];
        let mut ds = vec![T::zero(); most];
        let mut cap_slopes = vec![T::zero(); if spec.softcap.is_some() { most } else { 0 }];
        for member in 0..group {
            let column = (kv * group + member) * d;
            let q = head(q, place.queries, width, column);
            let out = head(out, place.queries, width, column);
            let grad = head(grad, place.queries, width, column);
            let dq = &mut dq[member * span.queries * d..(member + 1) * span.queries * d];
            for block in blocks(span, spec) {
                let (rows, columns, first) = (block.rows, block.columns, block.first_key);
                let p = &mut p[..rows * columns];
                let ds = &mut ds[..rows * columns];
                let q = Matrix::new(&q[block.start * width..], rows, d, width);
                let grad_rows = &grad[block.start * width..];
                let out_rows = &out[block.start * width..];
                let grad = Matrix::new(grad_rows, rows, d, width);
                let keys = Matrix::new(&k[first * kv_width..], columns, d, kv_width);
                let values = Matrix::new(&v[first * kv_width..], columns, d, kv_width);
                let product = |out: &mut [T], left, right: Matrix<'_, T>| {
                    matmul(
                        MatrixMut::new(out, rows, columns, columns),
                        left,
                        right.transposed(),
                        T::zero(),
                        T::one(),
                        Threads::One,
                    );
                };
                product(p, q, keys);
                let slopes = spec
                    .softcap
                    .is_some()
                    .then_some(&mut cap_slopes[..])
                    .map(|slopes| &mut slopes[..rows * columns]);
                weights(p, &block, span, spec, slopes);
                product(ds, grad, values);
                matmul(
                    MatrixMut::new(&mut dv[first * d..], columns, d, d),
                    Matrix::new(p, rows, columns, columns).transposed(),
                    grad,
                    T::one(),
                    T::one(),
                    Threads::One,
                );
                let scale = T::of(spec.scale);
                vectorized(
                    #[inline(always)]
                    || {
                        for row in 0..rows {
                            let of_row = row * width..row * width + d;
                            let shift: T = dot(&grad_rows[of_row.clone()], &out_rows[of_row]);
                            let of_row = row * columns..(row + 1) * columns;
                            let ds = &mut ds[of_row.clone()];
                            for (ds, &p) in ds.iter_mut().zip(&p[of_row.clone()]) {
                                *ds = p * (*ds - shift);
                            }
                            if spec.softcap.is_some() {
                                for (ds, &slope) in ds.iter_mut().zip(&cap_slopes[of_row]) {
                                    *ds *= slope;
                                }
                            } else {
                                for ds in ds {
                                    *ds *= scale;
                                }
                            }
                        }
                    },
                );
                let ds = Matrix::new(ds, rows, columns, columns);
                matmul(
                    MatrixMut::new(&mut dq[block.start * d..], rows, d, d),
                    ds,
                    keys,
                    T::zero(),
                    T::one(),
                    Threads::One,
                );
                matmul(
                    MatrixMut::new(&mut dk[first * d..], columns, d, d),
                    ds.transposed(),
                    q,
                    T::one(),
                    T::one(),
                    Threads::One,
                );
            }
        }
    });
    let dk = heads_to_rows(&dk, key_rows, kv_heads, d);
    let dv = heads_to_rows(&dv, key_rows, kv_heads, d);
    (groups_to_rows(&dq, rows, &places, spec), dk, dv)
}

/// `[heads, rows, d]` → `[rows, heads·d]`.
fn heads_to_rows<T: Real>(x: &[T], rows: usize, heads: usize, d: usize) -> Vec<T> {
    let width = heads * d;
    let mut out = vec![T::zero(); rows * width];
    out.par_chunks_mut(width)
        .enumerate()
        .for_each(|(row, out)| {
            for (h, out) in out.chunks_exact_mut(d).enumerate() {
                let start = (h * rows + row) * d;
                out.copy_from_slice(&x[start..start + d]);
            }
        });
    out
}

/// `[kv_heads, sequences, group, queries, d]` → `[rows, heads·d]`.
fn groups_to_rows<T: Real>(x: &[T], rows: usize, places: &[Place], spec: &AttentionSpec) -> Vec<T> {
    let (d, group) = (spec.d_head, spec.group());
    let width = spec.heads * d;
    let mut out = vec![T::zero(); rows * width];
    let mut start = 0;
    for kv in 0..spec.kv_heads {
        for place in places {
            for member in 0..group {
                let column = (kv * group + member) * d;
                for query in 0..place.span.queries {
                    let into = (place.queries + query) * width + column;
                    out[into..into + d].copy_from_slice(&x[start..start + d]);
                    start += d;
                }
            }
        }
    }
    out
}
