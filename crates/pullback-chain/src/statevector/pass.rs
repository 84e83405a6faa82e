//! One walk through the state.

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::kernel::Kernel;
use super::plan::{Pass, Placed, Plan};
use super::real::{Real, vectorized};
use super::state::StateVector;

/// Columns of a piece: neighbouring amplitudes that are worked on together.
const COLUMNS: usize = 32;

/// Below so many amplitudes one thread is faster than several.
pub(super) const SERIAL: usize = 1 << 16;

impl<T: Real> StateVector<T> {
    /// Applies the gates of a plan.
    ///
    /// # Panics
    /// The plan is for another number of sites or another dimension.
    pub fn apply(&mut self, plan: &Plan<T>) {
        assert_eq!(
            (plan.sites, plan.dimension),
            (self.sites(), self.dimension()),
            "a plan is for one shape of chain"
        );
        for pass in &plan.passes {
            match pass {
                Pass::Window {
                    start,
                    width,
                    gates,
                } => self.window(*start, *width, gates),
                Pass::Far { low, high, kernel } => self.far(*low, *high, kernel),
            }
        }
    }

    fn window(&mut self, start: usize, width: usize, gates: &[Placed<T>]) {
        let d = self.dimension();
        let rows = d.pow(width as u32);
        let stride = d.pow((self.sites() - start - width) as u32);
        let window = Window {
            d,
            width,
            rows,
            gates,
        };
        let (re, im) = self.parts_mut();
        let parallel = re.len() >= SERIAL;
        if stride == 1 {
            let piece = rows * COLUMNS;
            if parallel {
                re.par_chunks_mut(piece)
                    .zip(im.par_chunks_mut(piece))
                    .for_each_init(Buffers::default, |buffers, (re, im)| {
                        window.contiguous(re, im, buffers);
                    });
            } else {
                let mut buffers = Buffers::default();
                for (re, im) in re.chunks_mut(piece).zip(im.chunks_mut(piece)) {
                    window.contiguous(re, im, &mut buffers);
                }
            }
            return;
        }
        // Every task gets a panel: the same columns of all rows.
        let outer = re.len() / (rows * stride);
        let panels = if parallel && outer < 16 {
            (64 / outer.max(1)).clamp(1, stride.div_ceil(COLUMNS))
        } else {
            1
        };
        let panel = stride
            .div_ceil(panels)
            .next_multiple_of(COLUMNS)
            .min(stride);
        let mut tasks: Vec<Panel<'_, T>> = Vec::new();
        for (re, im) in re
            .chunks_mut(rows * stride)
            .zip(im.chunks_mut(rows * stride))
        {
            let first = tasks.len();
            tasks.resize_with(first + stride.div_ceil(panel), Panel::default);
            for (re, im) in re.chunks_mut(stride).zip(im.chunks_mut(stride)) {
                let pieces = re.chunks_mut(panel).zip(im.chunks_mut(panel));
                for (task, (re, im)) in tasks[first..].iter_mut().zip(pieces) {
                    task.re.push(re);
                    task.im.push(im);
                }
            }
        }
        if parallel {
            tasks
                .into_par_iter()
                .for_each_init(Buffers::default, |buffers, task| {
                    window.panel(task, buffers);
                });
        } else {
            let mut buffers = Buffers::default();
            for task in tasks {
                window.panel(task, &mut buffers);
            }
        }
    }

    /// A gate on two sites that no window holds. The index between them is walked through one by one.
    fn far(&mut self, low: usize, high: usize, kernel: &Kernel<T>) {
        let (d, sites) = (self.dimension(), self.sites());
        let inner = d.pow((sites - high - 1) as u32);
        let middle = d.pow((high - low - 1) as u32);
        let (re, im) = self.parts_mut();
        let whole = d * middle * d * inner;
        let apply = |(re, im): (&mut [T], &mut [T])| {
            let mut piece = (
                vec![T::default(); d * d * inner],
                vec![T::default(); d * d * inner],
            );
            for m in 0..middle {
                let at = |a: usize, b: usize| ((a * middle + m) * d + b) * inner;
                for a in 0..d {
                    for b in 0..d {
                        let to = (a * d + b) * inner;
                        piece.0[to..to + inner].copy_from_slice(&re[at(a, b)..][..inner]);
                        piece.1[to..to + inner].copy_from_slice(&im[at(a, b)..][..inner]);
                    }
                }
                let (p, q) = (&mut piece.0[..], &mut piece.1[..]);
                vectorized(One {
                    kernel,
                    re: p,
                    im: q,
                    inner,
                });
                for a in 0..d {
                    for b in 0..d {
                        let from = (a * d + b) * inner;
                        re[at(a, b)..][..inner].copy_from_slice(&piece.0[from..from + inner]);
                        im[at(a, b)..][..inner].copy_from_slice(&piece.1[from..from + inner]);
                    }
                }
            }
        };
        if re.len() >= SERIAL {
            re.par_chunks_mut(whole)
                .zip(im.par_chunks_mut(whole))
                .for_each(apply);
        } else {
            re.chunks_mut(whole)
                .zip(im.chunks_mut(whole))
                .for_each(apply);
        }
    }
}

/// The same columns of all rows of a window.
#[derive(Debug)]
struct Panel<'a, T> {
    re: Vec<&'a mut [T]>,
    im: Vec<&'a mut [T]>,
}

impl<T> Default for Panel<'_, T> {
    fn default() -> Self {
        Self {
            re: Vec::new(),
            im: Vec::new(),
        }
    }
}

/// What a thread works in: `[rows, columns]`.
#[derive(Debug)]
struct Buffers<T> {
    re: Vec<T>,
    im: Vec<T>,
}

impl<T> Default for Buffers<T> {
    fn default() -> Self {
        Self {
            re: Vec::new(),
            im: Vec::new(),
        }
    }
}

impl<T: Real> Buffers<T> {
    /// The two parts, so long.
    fn of(&mut self, len: usize) -> (&mut [T], &mut [T]) {
        if self.re.len() < len {
            self.re.resize(len, T::default());
            self.im.resize(len, T::default());
        }
        (&mut self.re[..len], &mut self.im[..len])
    }
}

struct Window<'a, T> {
    d: usize,
    width: usize,
    rows: usize,
    gates: &'a [Placed<T>],
}

impl<T: Real> Window<'_, T> {
    /// All gates on a piece `[rows, columns]`.
    #[inline(always)]
    fn gates(&self, re: &mut [T], im: &mut [T], columns: usize) {
        for gate in self.gates {
            let inner = self.d.pow((self.width - gate.site - 2) as u32) * columns;
            gate.kernel.apply(re, im, inner);
        }
    }

    /// The window ends with the chain: up to so many of its pieces lie one after the other, `[columns, rows]`.
    fn contiguous(&self, re: &mut [T], im: &mut [T], buffers: &mut Buffers<T>) {
        let columns = re.len() / self.rows;
        let (p, q) = buffers.of(re.len());
        let columns_first = Turned {
            re,
            im,
            p,
            q,
            window: self,
            columns,
        };
        vectorized(columns_first);
    }

    fn panel(&self, mut panel: Panel<'_, T>, buffers: &mut Buffers<T>) {
        let len = panel.re.first().map_or(0, |row| row.len());
        for at in (0..len).step_by(COLUMNS) {
            let columns = COLUMNS.min(len - at);
            let (p, q) = buffers.of(self.rows * columns);
            let places = p.chunks_exact_mut(columns).zip(q.chunks_exact_mut(columns));
            for ((p, q), (re, im)) in places.zip(panel.re.iter().zip(&panel.im)) {
                p.copy_from_slice(&re[at..at + columns]);
                q.copy_from_slice(&im[at..at + columns]);
            }
            vectorized(Piece {
                window: self,
                re: p,
                im: q,
                columns,
            });
            let places = p.chunks_exact(columns).zip(q.chunks_exact(columns));
            for ((p, q), (re, im)) in places.zip(panel.re.iter_mut().zip(&mut panel.im)) {
                re[at..at + columns].copy_from_slice(p);
                im[at..at + columns].copy_from_slice(q);
            }
        }
    }
}

/// The gates of a window on a piece. Work that is compiled for the processor's vectors is a type with a function that is
/// always inlined; a closure of this size would be left out of line, and its loops compiled for the baseline.
struct Piece<'a, 'b, T> {
    window: &'a Window<'b, T>,
    re: &'a mut [T],
    im: &'a mut [T],
    columns: usize,
}

impl<T: Real> NullaryFnOnce for Piece<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.window.gates(self.re, self.im, self.columns);
    }
}

/// The same on a piece that lies the other way round, by way of a store.
struct Turned<'a, 'b, T> {
    window: &'a Window<'b, T>,
    re: &'a mut [T],
    im: &'a mut [T],
    p: &'a mut [T],
    q: &'a mut [T],
    columns: usize,
}

impl<T: Real> NullaryFnOnce for Turned<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (rows, columns) = (self.window.rows, self.columns);
        transpose(self.re, self.p, columns, rows);
        transpose(self.im, self.q, columns, rows);
        self.window.gates(self.p, self.q, columns);
        transpose(self.p, self.re, rows, columns);
        transpose(self.q, self.im, rows, columns);
    }
}

/// One gate on a piece.
struct One<'a, T> {
    kernel: &'a Kernel<T>,
    re: &'a mut [T],
    im: &'a mut [T],
    inner: usize,
}

impl<T: Real> NullaryFnOnce for One<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.kernel.apply(self.re, self.im, self.inner);
    }
}

/// From `[rows, columns]` to `[columns, rows]`, in squares that the registers hold.
#[inline(always)]
fn transpose<T: Real>(from: &[T], to: &mut [T], rows: usize, columns: usize) {
    const SIDE: usize = 8;
    if !rows.is_multiple_of(SIDE) || !columns.is_multiple_of(SIDE) {
        for i in 0..rows {
            for j in 0..columns {
                to[j * rows + i] = from[i * columns + j];
            }
        }
        return;
    }
    for i in (0..rows).step_by(SIDE) {
        for j in (0..columns).step_by(SIDE) {
            let mut square = [[T::default(); SIDE]; SIDE];
            for (k, line) in square.iter_mut().enumerate() {
                line.copy_from_slice(&from[(i + k) * columns + j..][..SIDE]);
            }
            for l in 0..SIDE {
                let line: [T; SIDE] = std::array::from_fn(|k| square[k][l]);
                to[(j + l) * rows + i..][..SIDE].copy_from_slice(&line);
            }
        }
    }
}
