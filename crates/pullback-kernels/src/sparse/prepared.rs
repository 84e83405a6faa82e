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
use crate::simd::vectorized;
use crate::{Matrix, MatrixMut, Threads, matmul};

/// Rows for which computing everything costs less than looking at the encoder twice.
const FEW: usize = 8;
/// Rows a task takes at most where products are cheap.
const TASK: usize = 256;

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
    values: Vec<f32>,
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
                .min(std::env::var("TASK").map_or(TASK,|x|x.parse().unwrap())),
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
                        choose(x, encoder, bias, d, k, nothing, &mut scratch.values)
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
            || choose(x, encoder, bias, d, k, block.end(), &mut scratch.values),
        )
    }
}

/// Lengths of rows of which everything is kept.
fn measure_whole(lengths: &mut [Lengths], rows: &[f32], d: usize) {
    vectorized(
        #[inline(always)]
        || {
            for (lengths, row) in lengths.iter_mut().zip(rows.chunks_exact(d)) {
                *lengths = Lengths::of(row, f64::from);
            }
        },
    );
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
    values: &mut Vec<f32>,
) -> Screened {
    let mut screening = Screening::default();
    let mut codes = SparseCodes::new();
    let (mut places, mut chosen) = (Vec::new(), Vec::new());
    for (x, left) in x.chunks_exact(d).zip(left) {
        screening.rows += 1;
        values.clear();
        places.clear();
        chosen.clear();
        if let Some(features) = left {
            screening.candidates += features.len();
            for &feature in features {
                let i = feature as usize;
                values.push(value(x, &encoder[i * d..][..d], bias[i]));
            }
            select_top(values, k, &mut places, &mut chosen);
            for place in &mut places {
                *place = features[*place as usize];
            }
        } else {
            screening.dense_rows += 1;
            for (row, &bias) in encoder.chunks_exact(d).zip(bias) {
                values.push(value(x, row, bias));
            }
            select_top(values, k, &mut places, &mut chosen);
        }
        codes.push(&places, &chosen);
    }
    Screened { codes, screening }
}
