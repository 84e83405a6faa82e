//! TopK in `f32`: screening in the way the processor is good at, then the exact values of what is left.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::choose::{Screened, Wanted, Weights, choose};
use super::encode::{ROWS, among, width};
#[cfg(target_arch = "x86_64")]
use super::screen::bytes;
#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    target_pointer_width = "64"
))]
use super::screen::tiles;
use super::screen::{Block, Bounds, Lengths, PANEL, from_products, units_of_value};
use super::{Candidates, Encoded};
use crate::simd::vectorized;
use crate::{Matrix, MatrixMut, Threads, matmul};

/// Rows for which computing everything costs less than looking at the encoder twice.
const FEW: usize = 8;
/// Rows a task takes at most where products are cheap.
const TASK: usize = 512;
/// Where more than one row in so many is not screened, all are screened by better products.
const LOOSE: usize = 32;

/// How features are screened. The codes do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Not at all: all values are computed.
    Everything,
    /// By the dense product in `f32`.
    Products,
    /// By one product of 8-bit integers with AVX-VNNI, 256 bits wide.
    Bytes256,
    /// By one product of 8-bit integers with AVX-512 VNNI.
    Bytes512,
    /// By one product of bf16 on the tile unit (AMX-BF16).
    Tiles,
}

impl Way {
    /// All ways.
    pub const ALL: [Self; 5] = [
        Self::Everything,
        Self::Products,
        Self::Bytes256,
        Self::Bytes512,
        Self::Tiles,
    ];

    /// Whether this processor has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Self::Everything | Self::Products => true,
            #[cfg(target_arch = "x86_64")]
            Self::Bytes256 => bytes::Vectors::Avx2.available(),
            #[cfg(target_arch = "x86_64")]
            Self::Bytes512 => bytes::Vectors::Avx512.available(),
            #[cfg(all(
                target_arch = "x86_64",
                target_os = "linux",
                target_pointer_width = "64"
            ))]
            Self::Tiles => tiles::available(),
            #[allow(unreachable_patterns, reason = "on other processors these are left")]
            _ => false,
        }
    }

    /// The fastest one that this processor has.
    pub(super) fn for_shape(rows: usize, d: usize, m: usize, k: usize) -> Self {
        if rows <= FEW {
            return Self::Everything;
        }
        let large = rows >= PANEL && d >= PANEL && m >= 16 * PANEL && k <= m / 8;
        let ways = [Self::Tiles, Self::Bytes512, Self::Bytes256];
        let found = ways.into_iter().find(|way| large && way.is_available());
        found.unwrap_or(Self::Products)
    }
}

/// What screening keeps of an encoder, to encode several times: half its size with AMX, a quarter with VNNI.
#[derive(Clone, Debug)]
pub struct PreparedEncoder {
    d: usize,
    features: usize,
    screen: Screen,
}

impl PreparedEncoder {
    /// Of `encoder [m, d]` (one row a feature) and `bias [m]`.
    ///
    /// # Panics
    /// If the shapes do not agree.
    pub fn new(encoder: &[f32], bias: &[f32]) -> Self {
        let d = width(&[], encoder, bias);
        let way = Way::for_shape(usize::MAX, d, bias.len(), 1);
        Self::of_screen(
            Screen::new(way, Weights { encoder, bias, d }),
            bias.len(),
            d,
        )
    }

    /// The same with a way of screening; none where the processor lacks it.
    ///
    /// # Panics
    /// If the shapes do not agree.
    pub fn with_way(way: Way, encoder: &[f32], bias: &[f32]) -> Option<Self> {
        let d = width(&[], encoder, bias);
        way.is_available().then(|| {
            Self::of_screen(
                Screen::new(way, Weights { encoder, bias, d }),
                bias.len(),
                d,
            )
        })
    }

    fn of_screen(screen: Screen, features: usize, d: usize) -> Self {
        Self {
            d,
            features,
            screen,
        }
    }

    /// What [`encode_top_k`](super::encode_top_k) of this encoder gives; `encoder` and `bias` must hold the numbers that
    /// this was made of.
    ///
    /// # Panics
    /// If the shapes do not agree with each other or with those this was made of.
    pub fn encode_top_k(
        &self,
        x: &[f32],
        encoder: &[f32],
        bias: &[f32],
        k: usize,
        candidates: Option<Candidates<'_>>,
    ) -> Encoded<f32> {
        let d = width(x, encoder, bias);
        assert!(
            d == self.d && bias.len() == self.features,
            "encode: prepared for another encoder"
        );
        let Screened { codes, screening } = self.screen.encode(x, Weights { encoder, bias, d }, k);
        Encoded {
            codes,
            among: candidates.map(|candidates| among(x, encoder, bias, d, candidates)),
            screening,
        }
    }
}

/// The `k` largest of each row.
pub(super) fn screened(way: Way, x: &[f32], encoder: &[f32], bias: &[f32], k: usize) -> Screened {
    let d = encoder.len() / bias.len();
    let weights = Weights { encoder, bias, d };
    Screen::new(way, weights).encode(x, weights, k)
}

/// What a way needs of an encoder.
#[derive(Clone, Debug)]
enum Screen {
    Everything,
    Products(Bounds),
    /// Products of rounded numbers; where their bounds are too loose, those in `f32`.
    Rounded(Rounded, Bounds),
}

/// An encoder in fewer bits.
#[derive(Clone, Debug)]
enum Rounded {
    #[cfg(target_arch = "x86_64")]
    Bytes(bytes::Packed),
    #[cfg(all(
        target_arch = "x86_64",
        target_os = "linux",
        target_pointer_width = "64"
    ))]
    Tiles(tiles::Packed),
}

impl Rounded {
    /// None where the way has no such form, or this processor or shape lacks it.
    fn new(way: Way, Weights { encoder, bias, d }: Weights<'_>) -> Option<Self> {
        match way {
            #[cfg(target_arch = "x86_64")]
            Way::Bytes256 | Way::Bytes512 => {
                let vectors = if way == Way::Bytes512 {
                    bytes::Vectors::Avx512
                } else {
                    bytes::Vectors::Avx2
                };
                bytes::Packed::new(vectors, encoder, bias, d).map(Self::Bytes)
            }
            #[cfg(all(
                target_arch = "x86_64",
                target_os = "linux",
                target_pointer_width = "64"
            ))]
            Way::Tiles => tiles::Packed::new(encoder, bias, d).map(Self::Tiles),
            _ => {
                let _ = (encoder, bias, d);
                None
            }
        }
    }

    fn screen(&self, scratch: &mut Scratch, x: &[f32], k: usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Bytes(packed) => packed.screen(&mut scratch.block, &mut scratch.bytes, x, k),
            #[cfg(all(
                target_arch = "x86_64",
                target_os = "linux",
                target_pointer_width = "64"
            ))]
            Self::Tiles(packed) => packed.screen(&mut scratch.block, &mut scratch.tiles, x, k),
        }
    }
}

/// What one thread needs.
#[derive(Debug, Default)]
struct Scratch {
    block: Block,
    lengths: Vec<Lengths>,
    products: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    bytes: bytes::Scratch,
    #[cfg(all(
        target_arch = "x86_64",
        target_os = "linux",
        target_pointer_width = "64"
    ))]
    tiles: tiles::Scratch,
    wanted: Wanted,
}

impl Screen {
    fn new(way: Way, weights: Weights<'_>) -> Self {
        if way == Way::Everything {
            return Self::Everything;
        }
        let Weights { encoder, bias, d } = weights;
        let mut lengths = vec![Lengths::default(); bias.len()];
        lengths
            .par_chunks_mut(ROWS)
            .zip(encoder.par_chunks(ROWS * d))
            .for_each(|(lengths, rows)| measure_whole(lengths, rows, d));
        // The tile unit's product of three parts, or one rounding for each position.
        let units = (200 + d) as f64 + units_of_value(d);
        let bounds = Bounds::new(&lengths, bias, d, units);
        match Rounded::new(way, weights) {
            Some(rounded) => Self::Rounded(rounded, bounds),
            None => Self::Products(bounds),
        }
    }

    fn encode(&self, x: &[f32], weights: Weights<'_>, k: usize) -> Screened {
        let d = weights.d;
        let rows = x.len() / d;
        let threads = rayon::current_num_threads();
        let a_task = match self {
            Self::Everything => rows.div_ceil(4 * threads),
            Self::Products(_) => ROWS,
            Self::Rounded(..) => rows.div_ceil(2 * threads).next_multiple_of(PANEL).min(TASK),
        };
        let loose = AtomicBool::new(false);
        let parts: Vec<Screened> = x
            .par_chunks(a_task.max(1) * d)
            .map_init(Scratch::default, |scratch, x| {
                self.encode_part(scratch, x, weights, k, &loose)
            })
            .collect();
        let mut all = Screened::none();
        for part in &parts {
            all.append(part);
        }
        all
    }

    /// Sets `loose`, or finds it set, where rounded products leave too much.
    fn encode_part(
        &self,
        scratch: &mut Scratch,
        x: &[f32],
        weights: Weights<'_>,
        k: usize,
        loose: &AtomicBool,
    ) -> Screened {
        let rows = x.len() / weights.d;
        match self {
            Self::Everything => vectorized(
                #[inline(always)]
                || {
                    let nothing = (0..rows).map(|_| None);
                    choose(x, weights, k, nothing, &mut scratch.wanted)
                },
            ),
            Self::Products(bounds) => by_products(bounds, scratch, x, weights, k),
            Self::Rounded(rounded, bounds) => {
                if !loose.load(Ordering::Relaxed) {
                    rounded.screen(scratch, x, k);
                    let dense = scratch.block.dense_rows();
                    if dense * LOOSE <= rows {
                        return chosen(scratch, x, weights, k);
                    }
                    if 2 * dense > rows {
                        loose.store(true, Ordering::Relaxed);
                    }
                }
                let mut all = Screened::none();
                for x in x.chunks(ROWS * weights.d) {
                    all.append(&by_products(bounds, scratch, x, weights, k));
                }
                all
            }
        }
    }
}

/// A few rows screened by the dense product in `f32`.
fn by_products(
    bounds: &Bounds,
    scratch: &mut Scratch,
    x: &[f32],
    weights: Weights<'_>,
    k: usize,
) -> Screened {
    let Weights { encoder, bias, d } = weights;
    let (rows, m, stride) = (x.len() / d, bias.len(), bounds.panels() * PANEL);
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
    scratch.block.begin(bounds, k, &scratch.lengths);
    from_products(&mut scratch.block, bounds, &scratch.products);
    chosen(scratch, x, weights, k)
}

/// The choice from what the block has left.
fn chosen(scratch: &mut Scratch, x: &[f32], weights: Weights<'_>, k: usize) -> Screened {
    vectorized(
        #[inline(always)]
        || choose(x, weights, k, scratch.block.end(), &mut scratch.wanted),
    )
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

#[cfg(test)]
mod tests;
