//! Matrix-product unitaries: operators of a chain as one tensor repeated.

use std::path::Path;

use pullback_tensor::{Mat, c64, eigenvalues, singular_values};

use crate::dense::{Matrix, ONE, ZERO};
use crate::error::ChainError;
use crate::npy;

/// The widest matrix whose rank is looked for.
const MAX_ROWS: usize = 1100;

/// The largest part of an eigenvalue of a transfer matrix that is taken for rounding. Those that should be zero sit in
/// Jordan blocks, where rounding of 1e-16 moves them by its root.
const WITHIN: f64 = 1e-3;

/// The tensor of a matrix-product operator: `[left, right, out, in]`, the last index fastest.
#[derive(Clone, Debug)]
pub struct Mpu {
    bond: usize,
    dimension: usize,
    entries: Vec<c64>,
}

impl Mpu {
    /// From entries `[bond, bond, dimension, dimension]`.
    ///
    /// # Errors
    /// Their number is another.
    pub fn new(bond: usize, dimension: usize, entries: Vec<c64>) -> Result<Self, ChainError> {
        if bond == 0 || dimension == 0 || entries.len() != (bond * dimension).pow(2) {
            return Err(ChainError::value(
                "the number of entries of a matrix-product operator",
                entries.len(),
                format!("expected (bond · dimension)² with bond {bond} and dimension {dimension}"),
            ));
        }
        Ok(Self {
            bond,
            dimension,
            entries,
        })
    }

    /// From a `.npy` file `[bond, bond, dimension, dimension]`: left, right, out, in.
    ///
    /// # Errors
    /// The file cannot be read or has another shape.
    pub fn from_file(path: &Path) -> Result<Self, ChainError> {
        let array = npy::read(path)?;
        match array.shape.as_slice() {
            [l, r, o, i] if l == r && o == i => Self::new(*l, *o, array.entries),
            shape => Err(ChainError::File {
                path: path.to_owned(),
                message: format!(
                    "has shape {shape:?}: a matrix-product operator is [bond, bond, d, d] (left, right, out, in)"
                ),
            }),
        }
    }

    /// The shift by one site to the right, or to the left: the bond carries the state of the neighbour.
    pub fn shift(dimension: usize, right: bool) -> Self {
        let one = |l: usize, r: usize, o: usize, i: usize| {
            if right {
                l == o && r == i
            } else {
                r == o && l == i
            }
        };
        Self::from_fn(dimension, dimension, |l, r, o, i| {
            if one(l, r, o, i) { ONE } else { ZERO }
        })
    }

    /// A layer on even bonds and then one on odd bonds, each of one gate `[d², d²]`, for cells of two sites that begin at
    /// an even one. The bond is the operator Schmidt rank of the second gate.
    ///
    /// # Errors
    /// An entry is not finite.
    pub fn of_layers(even: &Matrix, odd: &Matrix, d: usize) -> Result<Self, ChainError> {
        let reshuffled = Mat::from_fn(d * d, d * d, |i, j| {
            odd[((i / d) * d + j / d, (i % d) * d + j % d)]
        });
        let svd = pullback_tensor::svd(reshuffled.as_ref())?;
        let most = svd.values.first().copied().unwrap_or(0.0);
        let bond = svd.values.iter().filter(|s| **s > 1e-12 * most).count();
        // The odd gate is Σ_s A_s ⊗ B_s; A acts on the right site of a cell, B on the left site of the next.
        let root = |s: usize| svd.values[s].sqrt();
        let a = |s: usize, o: usize, i: usize| svd.u[(o * d + i, s)] * root(s);
        let b = |s: usize, o: usize, i: usize| svd.v[(o * d + i, s)].conj() * root(s);
        Ok(Self::from_fn(bond, d * d, |l, r, o, i| {
            let mut sum = ZERO;
            for m in 0..d {
                for n in 0..d {
                    sum += b(l, o / d, m) * a(r, o % d, n) * even[(m * d + n, i)];
                }
            }
            sum
        }))
    }

    fn from_fn(
        bond: usize,
        dimension: usize,
        entry: impl Fn(usize, usize, usize, usize) -> c64,
    ) -> Self {
        let (b, d) = (bond, dimension);
        let entries = (0..b * b * d * d)
            .map(|k| entry(k / (b * d * d), k / (d * d) % b, k / d % d, k % d))
            .collect();
        Self {
            bond,
            dimension,
            entries,
        }
    }

    fn at(&self, l: usize, r: usize, o: usize, i: usize) -> c64 {
        self.entries[((l * self.bond + r) * self.dimension + o) * self.dimension + i]
    }

    /// The dimension of the bond.
    pub fn bond(&self) -> usize {
        self.bond
    }

    /// States of a site, or of a cell.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// `self` after `first`.
    #[must_use]
    pub fn after(&self, first: &Self) -> Self {
        let (d, b) = (self.dimension, first.bond);
        Self::from_fn(self.bond * b, d, |l, r, o, i| {
            (0..d)
                .map(|m| self.at(l / b, r / b, o, m) * first.at(l % b, r % b, m, i))
                .sum()
        })
    }

    /// This tensor and the next one as one.
    #[must_use]
    fn joined(&self, next: &Self) -> Self {
        let (d, e) = (self.dimension, next.dimension);
        Self::from_fn(self.bond, d * e, |l, r, o, i| {
            (0..self.bond)
                .map(|m| self.at(l, m, o / e, i / e) * next.at(m, r, o % e, i % e))
                .sum()
        })
    }

    /// The operator of a ring of so many sites as one matrix; its size is the dimension to the power of the sites.
    ///
    /// # Panics
    /// There are no sites.
    pub fn ring(&self, sites: usize) -> Matrix {
        assert!(sites > 0, "a ring has sites");
        let all = (1..sites).fold(self.clone(), |all, _| all.joined(self));
        Mat::from_fn(all.dimension, all.dimension, |o, i| {
            (0..all.bond).map(|b| all.at(b, b, o, i)).sum()
        })
    }

    fn adjoint(&self) -> Self {
        Self::from_fn(self.bond, self.dimension, |l, r, o, i| {
            self.at(l, r, i, o).conj()
        })
    }

    /// Whether rings of every length are unitary: `tr U U† = tr (U U†)² = dᴺ` for all lengths `N` forces every eigenvalue of
    /// `U U†` to be one, and both are powers of transfer matrices whose eigenvalues then are one 1 and zeros. Gives the
    /// largest distance of their eigenvalues from these.
    ///
    /// # Errors
    /// The bond is too wide (6 at most), or an entry is not finite.
    pub fn unitarity_defect(&self) -> Result<f64, ChainError> {
        if self.bond > 6 {
            return Err(ChainError::value(
                "the bond of a matrix-product operator",
                self.bond,
                "expected 6 at most",
            ));
        }
        let square = self.after(&self.adjoint());
        let mut worst = 0.0_f64;
        for m in [self, &square] {
            let (b, d) = (m.bond, m.dimension);
            let mut transfer = Mat::from_fn(b * b, b * b, |_, _| ZERO);
            for l in 0..b {
                for r in 0..b {
                    for k in 0..b {
                        for s in 0..b {
                            let mut sum = ZERO;
                            for o in 0..d {
                                for i in 0..d {
                                    sum += m.at(l, r, o, i) * m.at(k, s, o, i).conj();
                                }
                            }
                            transfer[(l * b + k, r * b + s)] = sum / d as f64;
                        }
                    }
                }
            }
            let values = eigenvalues(transfer.as_ref())?;
            for (k, value) in values.iter().enumerate() {
                let expected = if k == 0 { ONE } else { ZERO };
                worst = worst.max((value - expected).norm());
            }
        }
        Ok(worst)
    }

    /// The index in bits, `½ (log₂ r − log₂ ℓ)`, by the ranks of the two ways to cut a tensor in two (Cirac, Pérez-García,
    /// Schuch and Verstraete, arXiv:1703.09188): `r` that of left and in against right and out, `ℓ` that of left and out
    /// against right and in. Sites are joined until `r ℓ` is the square of the joined dimension, as it is for a simple
    /// tensor.
    ///
    /// # Errors
    /// That does not happen before the matrices become too large: the operator is not unitary, or its range is too long.
    pub fn index_by_ranks(&self) -> Result<f64, ChainError> {
        let mut joined = self.clone();
        loop {
            let (b, d) = (joined.bond, joined.dimension);
            if b * d > MAX_ROWS {
                return Err(ChainError::value(
                    "a matrix-product operator",
                    format!("bond {} and dimension {}", self.bond, self.dimension),
                    "no number of joined sites that can be handled makes it simple: it is not unitary, or its range is too long",
                ));
            }
            let r = rank(&Mat::from_fn(b * d, b * d, |x, y| {
                joined.at(x / d, y / d, y % d, x % d)
            }))?;
            let l = rank(&Mat::from_fn(b * d, b * d, |x, y| {
                joined.at(x / d, y / d, x % d, y % d)
            }))?;
            if r * l == d * d {
                return Ok(0.5 * ((r as f64).log2() - (l as f64).log2()));
            }
            joined = joined.joined(self);
        }
    }

    /// Refuses an operator that is not unitary.
    ///
    /// # Errors
    /// It is not, or its bond is too wide to tell.
    pub fn check_unitary(&self, name: &str) -> Result<f64, ChainError> {
        let defect = self.unitarity_defect()?;
        if defect > WITHIN {
            return Err(ChainError::NotUnitary {
                name: name.to_owned(),
                defect,
                allowed: WITHIN,
            });
        }
        Ok(defect)
    }
}

fn rank(a: &Matrix) -> Result<usize, ChainError> {
    let values = singular_values(a.as_ref())?;
    let most = values.first().copied().unwrap_or(0.0);
    Ok(values.iter().filter(|s| **s > 1e-9 * most).count())
}
