//! A gate as blocks of basis states that it mixes, and its product with pieces of a state.

use crate::dense::Matrix;

use super::real::Real;

/// Entries of a gate below this are rounding of the exponential that made it.
const NOTHING: f64 = f64::EPSILON;

/// Numbers that are worked on together: a vector or two of the processor.
pub(super) const STRIP: usize = 16;

/// Basis states that a gate mixes among themselves.
#[derive(Clone, Debug)]
struct Block<T> {
    /// The states.
    states: Vec<usize>,
    /// Real and imaginary parts, row by row.
    entries: Vec<(T, T)>,
}

/// A gate, taken apart.
#[derive(Clone, Debug)]
pub(super) struct Kernel<T> {
    /// Rows of the gate.
    pub(super) size: usize,
    blocks: Vec<Block<T>>,
}

impl<T: Real> Kernel<T> {
    /// Finds the blocks. Those that are the number one are left out.
    pub(super) fn new(gate: &Matrix) -> Self {
        let size = gate.nrows();
        // The lowest state that each is connected with.
        let mut root: Vec<usize> = (0..size).collect();
        for i in 0..size {
            for j in 0..size {
                if gate[(i, j)].norm() > NOTHING && root[i] != root[j] {
                    let (low, high) = (root[i].min(root[j]), root[i].max(root[j]));
                    for r in &mut root {
                        if *r == high {
                            *r = low;
                        }
                    }
                }
            }
        }
        let mut blocks = Vec::new();
        for first in 0..size {
            let states: Vec<usize> = (0..size).filter(|&i| root[i] == first).collect();
            if states.is_empty()
                || (states.len() == 1 && (gate[(first, first)] - 1.0).norm() == 0.0)
            {
                continue;
            }
            let entry = |(&i, &j): (&usize, &usize)| {
                let x = gate[(i, j)];
                (T::of(x.re), T::of(x.im))
            };
            let pairs = states
                .iter()
                .flat_map(|i| states.iter().map(move |j| (i, j)));
            let entries = pairs.map(entry).collect();
            blocks.push(Block { states, entries });
        }
        Self { size, blocks }
    }

    /// Applies the gate to a piece in which its index has stride `inner`: `[outer, size, inner]`.
    #[inline(always)]
    pub(super) fn apply(&self, re: &mut [T], im: &mut [T], inner: usize) {
        for (re, im) in re
            .chunks_exact_mut(self.size * inner)
            .zip(im.chunks_exact_mut(self.size * inner))
        {
            for block in &self.blocks {
                match block.states.len() {
                    1 => mixed::<T, 1>(block, re, im, inner),
                    2 => mixed::<T, 2>(block, re, im, inner),
                    3 => mixed::<T, 3>(block, re, im, inner),
                    4 => mixed::<T, 4>(block, re, im, inner),
                    _ => many(block, re, im, inner),
                }
            }
        }
    }
}

/// A block of `N` states.
#[inline(always)]
fn mixed<T: Real, const N: usize>(block: &Block<T>, re: &mut [T], im: &mut [T], inner: usize) {
    let (Some(starts), Some(entries)) = (
        block
            .states
            .first_chunk::<N>()
            .map(|states| states.map(|i| i * inner)),
        block.entries.get(..N * N),
    ) else {
        return;
    };
    let m: [[(T, T); N]; N] = std::array::from_fn(|i| std::array::from_fn(|j| entries[i * N + j]));
    let strips = inner / STRIP;
    for strip in 0..strips {
        let at = strip * STRIP;
        let mut x = [[T::default(); STRIP]; N];
        let mut y = [[T::default(); STRIP]; N];
        for n in 0..N {
            x[n].copy_from_slice(&re[starts[n] + at..][..STRIP]);
            y[n].copy_from_slice(&im[starts[n] + at..][..STRIP]);
        }
        for i in 0..N {
            let mut p = [T::default(); STRIP];
            let mut q = [T::default(); STRIP];
            for j in 0..N {
                let (a, b) = m[i][j];
                for k in 0..STRIP {
                    p[k] = a.fused(x[j][k], p[k]);
                    q[k] = a.fused(y[j][k], q[k]);
                }
                for k in 0..STRIP {
                    p[k] = (-b).fused(y[j][k], p[k]);
                    q[k] = b.fused(x[j][k], q[k]);
                }
            }
            re[starts[i] + at..][..STRIP].copy_from_slice(&p);
            im[starts[i] + at..][..STRIP].copy_from_slice(&q);
        }
    }
    for k in strips * STRIP..inner {
        let x: [(T, T); N] = std::array::from_fn(|n| (re[starts[n] + k], im[starts[n] + k]));
        for i in 0..N {
            let (mut p, mut q) = (T::default(), T::default());
            for j in 0..N {
                let (a, b) = m[i][j];
                p = (-b).fused(x[j].1, a.fused(x[j].0, p));
                q = b.fused(x[j].0, a.fused(x[j].1, q));
            }
            re[starts[i] + k] = p;
            im[starts[i] + k] = q;
        }
    }
}

/// A block of many states, strip by strip through a small store.
#[inline(always)]
fn many<T: Real>(block: &Block<T>, re: &mut [T], im: &mut [T], inner: usize) {
    let n = block.states.len();
    let mut x = vec![[T::default(); STRIP]; n];
    let mut y = vec![[T::default(); STRIP]; n];
    for at in (0..inner).step_by(STRIP) {
        let width = STRIP.min(inner - at);
        for (j, &state) in block.states.iter().enumerate() {
            let start = state * inner + at;
            x[j][..width].copy_from_slice(&re[start..start + width]);
            y[j][..width].copy_from_slice(&im[start..start + width]);
        }
        for (i, &state) in block.states.iter().enumerate() {
            let mut p = [T::default(); STRIP];
            let mut q = [T::default(); STRIP];
            for (j, &(a, b)) in block.entries[i * n..][..n].iter().enumerate() {
                for k in 0..STRIP {
                    p[k] = (-b).fused(y[j][k], a.fused(x[j][k], p[k]));
                    q[k] = b.fused(x[j][k], a.fused(y[j][k], q[k]));
                }
            }
            let start = state * inner + at;
            re[start..start + width].copy_from_slice(&p[..width]);
            im[start..start + width].copy_from_slice(&q[..width]);
        }
    }
}
