//! Which gates are applied together.

use std::collections::HashMap;
use std::sync::Arc;

use crate::circuit::PlacedGate;
use crate::error::ChainError;

use super::kernel::Kernel;
use super::real::Real;

/// Amplitudes of a window of sites: so many rows of the piece that is worked on in the cache.
const WINDOW: usize = 1 << 7;

/// A gate inside a window.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    /// Its left site, counted from the start of the window.
    pub(super) site: usize,
    pub(super) kernel: Arc<Kernel<T>>,
}

/// One walk through the state.
#[derive(Clone, Debug)]
pub(super) enum Pass<T> {
    /// Gates on the sites `start..start + width`.
    Window {
        start: usize,
        width: usize,
        gates: Vec<Placed<T>>,
    },
    /// One gate on two sites that are far apart; its matrix is for the lower site first.
    Far {
        low: usize,
        high: usize,
        kernel: Arc<Kernel<T>>,
    },
}

/// The gates of a circuit in passes. Made once for a circuit, used for every repetition of it.
#[derive(Clone, Debug)]
pub struct Plan<T> {
    pub(super) dimension: usize,
    pub(super) sites: usize,
    pub(super) passes: Vec<Pass<T>>,
    gates: usize,
}

impl<T: Real> Plan<T> {
    /// Gathers gates into passes; their order is kept wherever they share a site.
    ///
    /// # Errors
    /// A gate is on a site that does not exist, or its matrix has another shape.
    pub fn new(dimension: usize, sites: usize, gates: &[PlacedGate]) -> Result<Self, ChainError> {
        let size = dimension * dimension;
        let mut kernels: HashMap<*const crate::dense::Matrix, Arc<Kernel<T>>> = HashMap::new();
        let mut pending: Vec<Waiting<T>> = Vec::with_capacity(gates.len());
        for gate in gates {
            let (a, b) = gate.sites;
            if a == b || a.max(b) >= sites || gate.matrix.shape() != (size, size) {
                return Err(ChainError::value(
                    "a gate",
                    format!("on sites {a} and {b} with {} rows", gate.matrix.nrows()),
                    format!("expected two of {sites} sites and {size} rows"),
                ));
            }
            if a < b {
                let kernel = kernels
                    .entry(Arc::as_ptr(&gate.matrix))
                    .or_insert_with(|| Arc::new(Kernel::new(&gate.matrix)));
                pending.push((a, b, kernel.clone()));
            } else {
                let turned = crate::dense::exchanged(&gate.matrix, dimension);
                pending.push((b, a, Arc::new(Kernel::new(&turned))));
            }
        }
        let mut width = 2;
        while width < sites && dimension.pow(width as u32 + 1) <= WINDOW {
            width += 1;
        }
        let mut passes = Vec::new();
        while !pending.is_empty() {
            passes.push(next_pass(&mut pending, sites, width.min(sites)));
        }
        Ok(Self {
            dimension,
            sites,
            passes,
            gates: gates.len(),
        })
    }

    /// Gates of the circuit.
    pub fn gates(&self) -> usize {
        self.gates
    }

    /// Walks through the state.
    pub fn passes(&self) -> usize {
        self.passes.len()
    }
}

/// A gate that waits: its sites and what it does.
type Waiting<T> = (usize, usize, Arc<Kernel<T>>);

/// Takes the window in which most gates can be applied now.
fn next_pass<T>(pending: &mut Vec<Waiting<T>>, sites: usize, width: usize) -> Pass<T> {
    let mut start = 0;
    let mut taken = Vec::new();
    for candidate in 0..=sites - width {
        let possible = possible(pending, sites, candidate, width);
        if possible.len() > taken.len() {
            (start, taken) = (candidate, possible);
        }
    }
    if taken.is_empty() {
        // The first gate of all can always be applied; no window holds it.
        let (low, high, kernel) = pending.remove(0);
        return Pass::Far { low, high, kernel };
    }
    let gates = taken
        .iter()
        .map(|&i| Placed {
            site: pending[i].0 - start,
            kernel: pending[i].2.clone(),
        })
        .collect();
    let mut index = 0;
    let mut next = taken.iter().peekable();
    pending.retain(|_| {
        let take = next.next_if(|&&i| i == index).is_some();
        index += 1;
        !take
    });
    Pass::Window {
        start,
        width,
        gates,
    }
}

/// Indices of the gates that a window can apply before all others: those on neighbours inside it that come after no
/// gate outside it on one of their sites.
fn possible<T>(pending: &[Waiting<T>], sites: usize, start: usize, width: usize) -> Vec<usize> {
    let mut blocked = vec![false; sites];
    let inside = start..start + width;
    let mut free = width;
    let mut out = Vec::new();
    for (i, (a, b, _)) in pending.iter().enumerate() {
        let fits = *b == a + 1 && inside.contains(a) && inside.contains(b);
        if fits && !blocked[*a] && !blocked[*b] {
            out.push(i);
            continue;
        }
        for site in [*a, *b] {
            if !blocked[site] && inside.contains(&site) {
                free -= 1;
            }
            blocked[site] = true;
        }
        if free == 0 {
            break;
        }
    }
    out
}
