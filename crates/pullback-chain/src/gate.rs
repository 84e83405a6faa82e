//! Two-site unitaries.

use std::f64::consts::{FRAC_PI_4, SQRT_2};
use std::path::Path;

use pullback_tensor::{Mat, c64, qr};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::dense::{I, Matrix, ONE, ZERO, exp, kron, scaled, unitarity_defect};
use crate::error::ChainError;
use crate::expression::parse_operator;
use crate::named::{Named, find};
use crate::npy;
use crate::site::Site;

/// The gates that have names; all but `haar`, `swap` and `identity` are of qubits.
pub const GATES: &[Named] = &[
    Named {
        name: "identity",
        parameters: &[],
        about: "does nothing",
    },
    Named {
        name: "swap",
        parameters: &[],
        about: "exchanges the sites",
    },
    Named {
        name: "cnot",
        parameters: &[],
        about: "flips the right qubit if the left one is 1",
    },
    Named {
        name: "cz",
        parameters: &[],
        about: "changes the sign of 11",
    },
    Named {
        name: "iswap",
        parameters: &[],
        about: "exchanges the qubits with a phase i",
    },
    Named {
        name: "sqrt-swap",
        parameters: &[],
        about: "the root of swap",
    },
    Named {
        name: "kicked-ising",
        parameters: &[("j", FRAC_PI_4), ("g", FRAC_PI_4), ("h", 0.0)],
        about: "D (K K) D with D = exp(-i (j ZZ + h (Z + Z)/2)), K = exp(-i g X): one step is two kicks",
    },
    Named {
        name: "haar",
        parameters: &[("seed", 1.0)],
        about: "random, by Haar's measure",
    },
];

/// The largest defect of a unitary that is taken for rounding; single precision and printed digits pass.
pub const UNITARY_WITHIN: f64 = 1e-6;

/// A unitary on two neighbouring sites.
#[derive(Clone, Debug)]
pub struct Gate {
    name: String,
    site: Site,
    matrix: Matrix,
    defect: f64,
}

impl Gate {
    /// From a matrix `[d², d²]`, the index of the left site slow.
    ///
    /// # Errors
    /// The matrix is no `d² × d²` matrix, or its defect is above [`UNITARY_WITHIN`].
    pub fn new(name: &str, site: Site, matrix: Matrix) -> Result<Self, ChainError> {
        let n = site.dimension() * site.dimension();
        if matrix.shape() != (n, n) {
            return Err(ChainError::value(
                format!("the shape of {name}"),
                format!("{} × {}", matrix.nrows(), matrix.ncols()),
                format!("expected {n} × {n} for two sites, each {}", site.describe()),
            ));
        }
        let defect = unitarity_defect(&matrix)?;
        if defect > UNITARY_WITHIN {
            return Err(ChainError::NotUnitary {
                name: name.to_owned(),
                defect,
                allowed: UNITARY_WITHIN,
            });
        }
        Ok(Self {
            name: name.to_owned(),
            site,
            matrix,
            defect,
        })
    }

    /// From a name of [`GATES`], a `.npy` file (`[d², d²]` or `[d, d, d, d]`: outputs, then inputs) or an expression.
    ///
    /// # Errors
    /// It cannot be read, or is not unitary.
    pub fn parse(text: &str, site: Site) -> Result<Self, ChainError> {
        if Path::new(text.trim())
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("npy"))
        {
            return Self::from_file(Path::new(text.trim()));
        }
        let Some((gate, p)) = find(GATES, text)? else {
            let local = parse_operator(text, site)?;
            let d = site.dimension();
            if local.as_number().is_none() && local.one_site(d).is_some() {
                return Err(ChainError::Expression {
                    message: "this acts on one site, a gate acts on two: write the identity where nothing happens, as XI".to_owned(),
                    text: text.to_owned(),
                    at: 0,
                });
            }
            return Self::new(&format!("`{text}`"), site, local.bond(d));
        };
        let d = site.dimension();
        let permutation = |to: fn(usize, usize, usize) -> usize| {
            Mat::from_fn(d * d, d * d, |i, j| {
                if i == to(j / d, j % d, d) { ONE } else { ZERO }
            })
        };
        let (site, matrix) = match gate.name {
            "identity" => (site, Mat::identity(d * d, d * d)),
            "swap" => (site, permutation(|a, b, d| b * d + a)),
            "cnot" => (
                Site::QUBIT,
                rows([
                    [ONE, ZERO, ZERO, ZERO],
                    [ZERO, ONE, ZERO, ZERO],
                    [ZERO, ZERO, ZERO, ONE],
                    [ZERO, ZERO, ONE, ZERO],
                ]),
            ),
            "cz" => (
                Site::QUBIT,
                rows([
                    [ONE, ZERO, ZERO, ZERO],
                    [ZERO, ONE, ZERO, ZERO],
                    [ZERO, ZERO, ONE, ZERO],
                    [ZERO, ZERO, ZERO, -ONE],
                ]),
            ),
            "iswap" => (
                Site::QUBIT,
                rows([
                    [ONE, ZERO, ZERO, ZERO],
                    [ZERO, ZERO, I, ZERO],
                    [ZERO, I, ZERO, ZERO],
                    [ZERO, ZERO, ZERO, ONE],
                ]),
            ),
            "sqrt-swap" => {
                let (p, m) = (c64::new(0.5, 0.5), c64::new(0.5, -0.5));
                (
                    Site::QUBIT,
                    rows([
                        [ONE, ZERO, ZERO, ZERO],
                        [ZERO, p, m, ZERO],
                        [ZERO, m, p, ZERO],
                        [ZERO, ZERO, ZERO, ONE],
                    ]),
                )
            }
            "kicked-ising" => (Site::QUBIT, kicked_ising(p[0], p[1], p[2])?),
            _ => (site, haar(d * d, seed(p[0])?)?),
        };
        Self::new(&gate.signature_with(&p), site, matrix)
    }

    fn from_file(path: &Path) -> Result<Self, ChainError> {
        let array = npy::read(path)?;
        let fail = |message: String| ChainError::File {
            path: path.to_owned(),
            message,
        };
        let n = match array.shape.as_slice() {
            [a, b] if a == b => *a,
            [a, b, c, d] if a == b && b == c && c == d => a * a,
            shape => {
                return Err(fail(format!(
                    "has shape {shape:?}: a gate is [d², d²] or [d, d, d, d]"
                )));
            }
        };
        let d = n.isqrt();
        if d * d != n {
            return Err(fail(format!(
                "is a {n} × {n} matrix: a gate of two sites has d² rows"
            )));
        }
        let matrix = Mat::from_fn(n, n, |i, j| array.entries[i * n + j]);
        Self::new(&path.display().to_string(), Site::of_dimension(d)?, matrix)
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What stands on each site.
    pub fn site(&self) -> Site {
        self.site
    }

    /// The matrix, `[d², d²]`.
    pub fn matrix(&self) -> &Matrix {
        &self.matrix
    }

    /// The largest singular value of `U†U − 1`.
    pub fn defect(&self) -> f64 {
        self.defect
    }
}

impl Named {
    /// How it is written with these values of its parameters.
    pub(crate) fn signature_with(&self, values: &[f64]) -> String {
        if self.parameters.is_empty() {
            return self.name.to_owned();
        }
        let parameters = self
            .parameters
            .iter()
            .zip(values)
            .map(|((p, _), x)| format!("{p}={x}"));
        format!(
            "{}({})",
            self.name,
            parameters.collect::<Vec<_>>().join(", ")
        )
    }
}

fn seed(x: f64) -> Result<u64, ChainError> {
    if x.fract() == 0.0 && (0.0..9e15).contains(&x) {
        Ok(x as u64)
    } else {
        Err(ChainError::value(
            "the seed",
            x,
            "expected a whole number from 0",
        ))
    }
}

fn rows(rows: [[c64; 4]; 4]) -> Matrix {
    Mat::from_fn(4, 4, |i, j| rows[i][j])
}

/// Every site is kicked twice in a step of this gate's brickwork, and between two kicks every bond has its `ZZ` once and
/// every site its `Z` once, half of it from each of its two bonds.
fn kicked_ising(j: f64, g: f64, h: f64) -> Result<Matrix, ChainError> {
    let signs = [1.0, -1.0];
    let d = Mat::from_fn(4, 4, |i, k| {
        let (a, b) = (signs[i / 2], signs[i % 2]);
        if i == k {
            c64::from_polar(1.0, -(j * a * b + h * (a + b) / 2.0))
        } else {
            ZERO
        }
    });
    let x = Mat::from_fn(2, 2, |i, k| if i == k { ZERO } else { ONE });
    let kick = exp(&scaled(&x, c64::new(0.0, -g)))?;
    Ok(&d * kron(&kick, &kick) * &d)
}

/// A random unitary: QR of a Gaussian matrix, with the phases of the triangle's diagonal taken back into it
/// (Mezzadri, arXiv:math-ph/0609050).
///
/// # Errors
/// None that can be met: the entries are finite.
pub fn haar(n: usize, seed: u64) -> Result<Matrix, ChainError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut gaussian = || {
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        let radius = (-2.0 * (1.0 - u).ln()).sqrt() / SQRT_2;
        c64::from_polar(radius, std::f64::consts::TAU * v)
    };
    let mut a = Matrix::zeros(n, n);
    for i in 0..n {
        for j in 0..n {
            a[(i, j)] = gaussian();
        }
    }
    let qr = qr(a.as_ref())?;
    Ok(Mat::from_fn(n, n, |i, j| {
        let x = qr.r[(j, j)];
        qr.q[(i, j)] * x / x.norm()
    }))
}
