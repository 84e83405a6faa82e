//! Products into memory that is there, and the spectral decomposition of a Gram matrix with kept work space.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par, c64};

use crate::check::orthonormal;

/// Threads that one product or decomposition uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling one alone: where many matrices are worked on at once.
    One,
    /// Those of rayon.
    All,
}

impl Threads {
    fn par(self) -> Par {
        match self {
            Self::One => Par::Seq,
            Self::All => faer::get_global_parallelism(),
        }
    }
}

/// `out = a b`.
pub fn multiply(out: MatMut<'_, c64>, a: MatRef<'_, c64>, b: MatRef<'_, c64>, threads: Threads) {
    matmul(out, Accum::Replace, a, b, c64::new(1.0, 0.0), threads.par());
}

/// `out += a b`.
pub fn multiply_add(
    out: MatMut<'_, c64>,
    a: MatRef<'_, c64>,
    b: MatRef<'_, c64>,
    threads: Threads,
) {
    matmul(out, Accum::Add, a, b, c64::new(1.0, 0.0), threads.par());
}

/// `out = a† b`.
pub fn multiply_adjoint(
    out: MatMut<'_, c64>,
    a: MatRef<'_, c64>,
    b: MatRef<'_, c64>,
    threads: Threads,
) {
    let one = c64::new(1.0, 0.0);
    matmul(out, Accum::Replace, a.adjoint(), b, one, threads.par());
}

/// The right singular vectors of a matrix `θ` from its Gram matrix `θ† θ`: about a third of the work of a singular value
/// decomposition. Singular values below `1e-8` of the largest are noise, but the vectors are orthonormal in any case.
pub struct GramWork {
    size: usize,
    gram: Mat<c64>,
    vectors: Mat<c64>,
    memory: Option<MemBuffer>,
    weights: Vec<f64>,
}

impl Default for GramWork {
    fn default() -> Self {
        Self {
            size: 0,
            gram: Mat::new(),
            vectors: Mat::new(),
            memory: None,
            weights: Vec::new(),
        }
    }
}

impl std::fmt::Debug for GramWork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GramWork")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl GramWork {
    /// Decomposes; `false` where the method did not converge or its vectors are not orthonormal.
    pub fn decompose(&mut self, theta: MatRef<'_, c64>, threads: Threads) -> bool {
        let n = theta.ncols();
        let par = threads.par();
        if self.size != n {
            self.size = n;
            self.gram = Mat::zeros(n, n);
            self.vectors = Mat::zeros(n, n);
            self.memory = None;
        }
        triangular::matmul(
            self.gram.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Replace,
            theta.adjoint(),
            BlockStructure::Rectangular,
            theta,
            BlockStructure::Rectangular,
            c64::new(1.0, 0.0),
            par,
        );
        let memory = self.memory.get_or_insert_with(|| {
            let vectors = ComputeEigenvectors::Yes;
            let spec = faer::Spec::default();
            MemBuffer::new(self_adjoint_evd_scratch::<c64>(n, vectors, par, spec))
        });
        let mut values = Diag::<c64>::zeros(n);
        let done = self_adjoint_evd(
            self.gram.as_ref(),
            values.as_mut(),
            Some(self.vectors.as_mut()),
            par,
            MemStack::new(memory),
            faer::Spec::default(),
        );
        self.weights.clear();
        let column = values.column_vector();
        self.weights
            .extend((0..n).rev().map(|i| column[i].re.max(0.0)));
        done.is_ok()
            && self.weights.iter().all(|x| x.is_finite())
            && orthonormal(self.vectors.as_ref())
    }

    /// The squares of the singular values, largest first.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The first vectors as columns, largest singular value first.
    pub fn vectors(&self, count: usize) -> MatRef<'_, c64> {
        let n = self.size;
        self.vectors
            .as_ref()
            .subcols(n - count, count)
            .reverse_cols()
    }
}
