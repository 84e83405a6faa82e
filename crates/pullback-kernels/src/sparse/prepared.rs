//! TopK in `f32`: screening, then the exact values of what is left.

use rayon::prelude::*;

use super::encode::{ROWS, among, width};
use super::exact::value;
#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    target_pointer_width = "64"
))]
use super::screen::tiles;
use super::screen::{Block, Bounds, Lengths, PANEL, from_products, units_of_value};
use super::{Candidates, Encoded, Screening, SparseCodes, select_top};
use crate::simd::{prefetch, vectorized};
use crate::{Matrix, MatrixMut, Threads, matmul};

/// Rows for which computing everything costs less than looking at the encoder twice.
const FEW: usize = 8;
/// Rows a task takes at most where products are cheap.
const TASK: usize = 512;

/// How features are screened. What comes out does not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Not at all.
    Everything,
    /// By the dense product in `f32`.
    Products,
    /// By one product of bf16 on the tile unit.
    #[cfg(all(
        target_arch = "x86_64",
        target_os = "linux",
        target_pointer_width = "64"
    ))]
    Tiles,
}

impl Way {
    /// The fastest one that this processor has.
    pub(super) fn for_shape(rows: usize, d: usize, m: usize, k: usize) -> Self {
        if rows <= FEW {
            return Self::Everything;
        }
        #[cfg(all(
            target_arch = "x86_64",
            target_os = "linux",
            target_pointer_width = "64"
        ))]
        if rows >= PANEL && d >= PANEL && m >= 16 * PANEL && k <= m / 8 && tiles::available() {
            return Self::Tiles;
        }
        let _ = (d, m, k);
        Self::Products
    }
}

/// An encoder that is ready to encode several times: what screening needs of it is kept, which is half its size.
#[derive(Clone, Debug)]
pub struct PreparedEncoder<'a> {
    encoder: &'a [f32],
    bias: &'a [f32],
    d: usize,
    screen: Screen,
}

impl<'a> PreparedEncoder<'a> {
    /// Of `encoder [m, d]` (one row a feature) and `bias [m]`.
    ///
    /// # Panics
    /// If the shapes do not agree.
    pub fn new(encoder: &'a [f32], bias: &'a [f32]) -> Self {
        let d = width(&[], encoder, bias);
        let way = Way::for_shape(usize::MAX, d, bias.len(), 1);
        Self {
            encoder,
            bias,
            d,
            screen: Screen::new(way, encoder, bias, d),
        }
    }

    /// What [`encode_top_k`](super::encode_top_k) of this encoder would give.
    ///
    /// # Panics
    /// If the rows of `x` are not of the encoder's width.
    pub fn encode_top_k(
        &self,
        x: &[f32],
        k: usize,
        candidates: Option<Candidates<'_>>,
    ) -> Encoded<f32> {
        let (encoder, bias, d) = (self.encoder, self.bias, self.d);
        width(x, encoder, bias);
        let Screened { codes, screening } = self.screen.encode(x, encoder, bias, d, k);
        Encoded {
            codes,
            among: candidates.map(|candidates| among(x, encoder, bias, d, candidates)),
            screening,
        }
    }
}

/// Codes, and what they took.
#[derive(Debug)]
pub(super) struct Screened {
    pub(super) codes: SparseCodes<f32>,
    pub(super) screening: Screening,
}

/// The `k` largest of each row.
pub(super) fn screened(way: Way, x: &[f32], encoder: &[f32], bias: &[f32], k: usize) -> Screened {
    let d = encoder.len() / bias.len();
    Screen::new(way, encoder, bias, d).encode(x, encoder, bias, d, k)
}

/// What a way needs of an encoder.
#[derive(Clone, Debug)]
enum Screen {
    Everything,
    Products(Bounds),
    #[cfg(all(
        target_arch = "x86_64",
        target_os = "linux",
        target_pointer_width = "64"
    ))]
    Tiles(tiles::Packed),
}

/// What one thread needs.
#[derive(Debug, Default)]
struct Scratch {
    block: Block,
    lengths: Vec<Lengths>,
    products: Vec<f32>,
    #[cfg(all(
        target_arch = "x86_64",
        target_os = "linux",
        target_pointer_width = "64"
    ))]
    tiles: tiles::Scratch,
    wanted: Wanted,
}

impl Screen {
    fn new(way: Way, encoder: &[f32], bias: &[f32], d: usize) -> Self {
        match way {
            Way::Everything => Self::Everything,
            #[cfg(all(
                target_arch = "x86_64",
                target_os = "linux",
                target_pointer_width = "64"
            ))]
            Way::Tiles => tiles::Packed::new(encoder, bias, d)
                .map_or_else(|| Self::new(Way::Products, encoder, bias, d), Self::Tiles),
            Way::Products => {
                let mut lengths = vec![Lengths::default(); bias.len()];
                lengths
                    .par_chunks_mut(ROWS)
                    .zip(encoder.par_chunks(ROWS * d))
                    .for_each(|(lengths, rows)| measure_whole(lengths, rows, d));
                // The tile unit's product of three parts, or one rounding for each position.
                let units = (200 + d) as f64 + units_of_value(d);
                Self::Products(Bounds::new(&lengths, bias, d, units))
            }
        }
    }

    fn encode(&self, x: &[f32], encoder: &[f32], bias: &[f32], d: usize, k: usize) -> Screened {
        let rows = x.len() / d;
        let a_task = match self {
            Self::Everything => rows.div_ceil(4 * rayon::current_num_threads()),
            Self::Products(_) => ROWS,
            #[cfg(all(
                target_arch = "x86_64",
                target_os = "linux",
                target_pointer_width = "64"
            ))]
            Self::Tiles(_) => rows
                .div_ceil(2 * rayon::current_num_threads())
                .next_multiple_of(PANEL)
                .min(TASK),
        };
        let parts: Vec<Screened> = x
            .par_chunks(a_task.max(1) * d)
            .map_init(Scratch::default, |scratch, x| {
                self.encode_part(scratch, x, encoder, bias, d, k)
            })
            .collect();
        let mut all = Screened {
            codes: SparseCodes::new(),
            screening: Screening::default(),
        };
        for part in &parts {
            all.codes.append(&part.codes);
            all.screening.add(part.screening);
        }
        all
    }

    fn encode_part(
        &self,
        scratch: &mut Scratch,
        x: &[f32],
        encoder: &[f32],
        bias: &[f32],
        d: usize,
        k: usize,
    ) -> Screened {
        let rows = x.len() / d;
        let block = &mut scratch.block;
        match self {
            Self::Everything => {
                return vectorized(
                    #[inline(always)]
                    || {
                        let nothing = (0..rows).map(|_| None);
                        choose(x, encoder, bias, d, k, nothing, &mut scratch.wanted)
                    },
                );
            }
            Self::Products(bounds) => {
                let (m, stride) = (bias.len(), bounds.panels() * PANEL);
                scratch.products.resize(rows * stride, 0.0);
                matmul(
                    MatrixMut::new(&mut scratch.products, rows, m, stride),
                    Matrix::new(x, rows, d, d),
                    Matrix::new(encoder, m, d, d).transposed(),
                    0.0,
                    1.0,
                    Threads::One,
                );
                scratch.lengths.resize(rows, Lengths::default());
                measure_whole(&mut scratch.lengths, x, d);
                block.begin(bounds, k, &scratch.lengths);
                from_products(block, bounds, &scratch.products);
            }
            #[cfg(all(
                target_arch = "x86_64",
                target_os = "linux",
                target_pointer_width = "64"
            ))]
            Self::Tiles(packed) => packed.screen(block, &mut scratch.tiles, x, k),
        }
        vectorized(
            #[inline(always)]
            || choose(x, encoder, bias, d, k, block.end(), &mut scratch.wanted),
        )
    }
}

/// Lengths of rows of which everything is kept.
fn measure_whole(lengths: &mut [Lengths], rows: &[f32], d: usize) {
    vectorized(
        #[inline(always)]
        || {
            for (lengths, row) in lengths.iter_mut().zip(rows.chunks_exact(d)) {
                *lengths = Lengths::of(row, |x| x);
            }
        },
    );
}

/// Values that are to be computed for a few rows.
#[derive(Debug, Default)]
struct Wanted {
    /// Features, one row after the other.
    features: Vec<u32>,
    /// The row of each.
    rows: Vec<u32>,
    /// Their places, by feature: neighbours share rows of the encoder.
    order: Vec<u32>,
    values: Vec<f32>,
    /// Where each bucket of `order` goes on.
    next: Vec<u32>,
}

/// Values before one is computed that its numbers are asked for.
const AHEAD: usize = 3;
/// Buckets of features by which values are ordered.
const BUCKETS: usize = 4096;

impl Wanted {
    /// Computes all values, those of a bucket of neighbouring features together: a row of the encoder then comes from
    /// memory once for several rows of `x`.
    #[inline(always)]
    fn compute(&mut self, x: &[f32], encoder: &[f32], bias: &[f32], d: usize) {
        let width = bias.len().div_ceil(BUCKETS).next_power_of_two();
        let shift = width.trailing_zeros();
        self.next.clear();
        self.next.resize(BUCKETS + 1, 0);
        for &feature in &self.features {
            self.next[(feature >> shift) as usize + 1] += 1;
        }
        for i in 0..BUCKETS {
            self.next[i + 1] += self.next[i];
        }
        self.order.resize(self.features.len(), 0);
        for (place, &feature) in self.features.iter().enumerate() {
            let next = &mut self.next[(feature >> shift) as usize];
            self.order[*next as usize] = place as u32;
            *next += 1;
        }
        self.values.resize(self.features.len(), 0.0);
        for (number, &place) in self.order.iter().enumerate() {
            if let Some(&soon) = self.order.get(number + AHEAD) {
                let (row, i) = (self.rows[soon as usize], self.features[soon as usize]);
                prefetch(&encoder[i as usize * d..][..d]);
                prefetch(&x[row as usize * d..][..d]);
            }
            let place = place as usize;
            let (row, i) = (self.rows[place] as usize, self.features[place] as usize);
            self.values[place] = value(&x[row * d..][..d], &encoder[i * d..][..d], bias[i]);
        }
    }
}

/// Computes what is left of each row, all of it where nothing was left out, and chooses.
#[inline(always)]
fn choose<'a>(
    x: &[f32],
    encoder: &[f32],
    bias: &[f32],
    d: usize,
    k: usize,
    left: impl Iterator<Item = Option<&'a [u32]>>,
    wanted: &mut Wanted,
) -> Screened {
    let mut ends = Vec::new();
    wanted.features.clear();
    wanted.rows.clear();
    for (row, left) in left.enumerate() {
        if let Some(features) = left {
            wanted.features.extend_from_slice(features);
            wanted.rows.resize(wanted.features.len(), row as u32);
        }
        ends.push(left.map(|_| wanted.features.len()));
    }
    wanted.compute(x, encoder, bias, d);
    let mut screening = Screening {
        rows: ends.len(),
        candidates: wanted.features.len(),
        dense_rows: 0,
    };
    let mut codes = SparseCodes::new();
    let (mut places, mut chosen, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    let mut start = 0;
    for (x, end) in x.chunks_exact(d).zip(ends) {
        places.clear();
        chosen.clear();
        if let Some(end) = end {
            select_top(&wanted.values[start..end], k, &mut places, &mut chosen);
            for place in &mut places {
                *place = wanted.features[start + *place as usize];
            }
            start = end;
        } else {
            screening.dense_rows += 1;
            whole.clear();
            for (row, &bias) in encoder.chunks_exact(d).zip(bias) {
                whole.push(value(x, row, bias));
            }
            select_top(&whole, k, &mut places, &mut chosen);
        }
        codes.push(&places, &chosen);
    }
    Screened { codes, screening }
}

#[cfg(test)]
mod tests;
