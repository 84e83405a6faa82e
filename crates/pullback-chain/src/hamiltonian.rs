//! Hamiltonians that are sums over neighbouring sites.

use pullback_tensor::c64;

use crate::dense::{Matrix, ONE, distance, identity, kron, scaled};
use crate::error::ChainError;
use crate::expression::parse_operator;
use crate::named::{Named, find, names};
use crate::site::Site;

/// How a chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boundary {
    /// Two ends.
    Open,
    /// None: the last site is the neighbour of the first.
    Ring,
}

impl Boundary {
    /// Bonds of a chain; bond `j` joins sites `j` and `j + 1`, on a ring the last one the last site and the first.
    pub fn bonds(self, sites: usize) -> usize {
        match self {
            Self::Open => sites.saturating_sub(1),
            Self::Ring => sites,
        }
    }
}

/// The models that have names.
pub const MODELS: &[Named] = &[
    Named {
        name: "ising",
        parameters: &[("j", 1.0), ("g", 1.0), ("h", 0.0)],
        about: "-j ZZ - g X - h Z: transverse field g, longitudinal field h",
    },
    Named {
        name: "xx",
        parameters: &[("j", 1.0)],
        about: "j (SxSx + SySy)",
    },
    Named {
        name: "xxz",
        parameters: &[("j", 1.0), ("delta", 1.0)],
        about: "j (SxSx + SySy + delta SzSz)",
    },
    Named {
        name: "xyz",
        parameters: &[("jx", 1.0), ("jy", 1.0), ("jz", 1.0)],
        about: "jx SxSx + jy SySy + jz SzSz",
    },
    Named {
        name: "heisenberg",
        parameters: &[("j", 1.0)],
        about: "j (SxSx + SySy + SzSz), of any spin",
    },
    Named {
        name: "aklt",
        parameters: &[],
        about: "S·S + (S·S)²/3 of spin 1",
    },
    Named {
        name: "clock",
        parameters: &[("j", 1.0), ("g", 1.0)],
        about: "-j (Z Zd + Zd Z) - g (X + Xd), of a clock",
    },
    Named {
        name: "pxp",
        parameters: &[("omega", 1.0)],
        about: "omega Σ PXP of atoms that block their neighbours; a site is two atoms: 0 = both down, 1 = left up, 2 = right up",
    },
];

/// `H = Σ_bonds two + Σ_sites one`, with `one` shared evenly between the bonds of its site.
#[derive(Clone, Debug)]
pub struct Hamiltonian {
    name: String,
    site: Site,
    one: Option<Matrix>,
    two: Matrix,
    /// What acts on the first and on the last site of an open chain alone.
    ends: Option<(Matrix, Matrix)>,
}

impl Hamiltonian {
    /// From a named model ([`MODELS`]) or an expression. The model decides on the site where it has only one kind.
    ///
    /// # Errors
    /// The text cannot be read, or the terms are not Hermitian.
    pub fn parse(text: &str, site: Site) -> Result<Self, ChainError> {
        let Some((model, p)) = find(MODELS, text)? else {
            return Self::from_expression(text, text, site).map_err(|error| match error {
                ChainError::Expression { message, text, at } => {
                    let word = text.trim_start();
                    let lower = word.starts_with(|c: char| c.is_ascii_lowercase());
                    let known = ["exp", "sqrt", "sin", "cos", "pi", "i"];
                    let first: String = word
                        .chars()
                        .take_while(char::is_ascii_alphanumeric)
                        .collect();
                    let hint = if lower && !known.contains(&first.as_str()) {
                        format!("; models with names are {}", names(MODELS))
                    } else {
                        String::new()
                    };
                    ChainError::Expression {
                        message: message + &hint,
                        text,
                        at,
                    }
                }
                error => error,
            });
        };
        let (expression, site) = match model.name {
            "ising" => (
                format!("-({})*ZZ - ({})*X - ({})*Z", p[0], p[1], p[2]),
                Site::QUBIT,
            ),
            "xx" => (format!("({})*(SxSx + SySy)", p[0]), site),
            "xxz" => (format!("({})*(SxSx + SySy + ({})*SzSz)", p[0], p[1]), site),
            "xyz" => (
                format!("({})*SxSx + ({})*SySy + ({})*SzSz", p[0], p[1], p[2]),
                site,
            ),
            "heisenberg" => (format!("({})*(SxSx + SySy + SzSz)", p[0]), site),
            "aklt" => (
                "(SxSx + SySy + SzSz) + (SxSx + SySy + SzSz)^2/3".to_owned(),
                Site::Spin { twice: 2 },
            ),
            "clock" => (
                format!("-({})*(ZZd + ZdZ) - ({})*(X + Xd)", p[0], p[1]),
                site,
            ),
            _ => return Self::pxp(p[0]),
        };
        Self::from_expression(&expression, text, site)
    }

    fn from_expression(expression: &str, name: &str, site: Site) -> Result<Self, ChainError> {
        let local = parse_operator(expression, site)?;
        let d = site.dimension();
        let constant = |n: usize| scaled(&identity(n), local.constant);
        let (one, two) = match (&local.one, &local.two) {
            (one, Some(two)) => (one.clone(), two + constant(d * d)),
            (Some(one), None) => (Some(one + constant(d)), Matrix::zeros(d * d, d * d)),
            (None, None) => {
                return Err(ChainError::Expression {
                    message: "a Hamiltonian needs an operator".to_owned(),
                    text: expression.to_owned(),
                    at: 0,
                });
            }
        };
        Self::new(name, site, one, two)
    }

    /// From its terms: `one` is `[d, d]`, `two` is `[d², d²]` with the left site's index slow.
    ///
    /// # Errors
    /// A term has another shape or is not Hermitian.
    pub fn new(
        name: &str,
        site: Site,
        one: Option<Matrix>,
        two: Matrix,
    ) -> Result<Self, ChainError> {
        let d = site.dimension();
        let mut defect = 0.0;
        for (what, term, n) in [
            ("one-site", one.as_ref(), d),
            ("two-site", Some(&two), d * d),
        ] {
            let Some(term) = term else { continue };
            if term.shape() != (n, n) {
                return Err(ChainError::value(
                    format!("the shape of the {what} term"),
                    format!("{} × {}", term.nrows(), term.ncols()),
                    format!("expected {n} × {n} for {}", site.describe()),
                ));
            }
            defect += distance(term, &term.adjoint().to_owned());
        }
        let size = two.norm_l2() + one.as_ref().map_or(0.0, faer_norm);
        if defect.is_nan() || defect > 1e-12 * size.max(1e-300) {
            return Err(ChainError::NotHermitian {
                name: format!("`{name}`"),
                defect,
            });
        }
        Ok(Self {
            name: name.to_owned(),
            site,
            one,
            two,
            ends: None,
        })
    }

    /// Blocks of two atoms: the right atom of the left block may flip if the left one of the right block is down, and the
    /// other way round. At the ends there is no neighbour to ask.
    fn pxp(omega: f64) -> Result<Self, ChainError> {
        let site = Site::Levels { dimension: 3 };
        let flip = |level: usize| {
            let mut a = Matrix::zeros(3, 3);
            a[(0, level)] = c64::new(omega, 0.0);
            a[(level, 0)] = c64::new(omega, 0.0);
            a
        };
        let unless = |level: usize| {
            let mut a = identity(3);
            a[(level, level)] -= ONE;
            a
        };
        let two = kron(&flip(2), &unless(1)) + kron(&unless(2), &flip(1));
        let mut h = Self::new("pxp", site, None, two)?;
        h.ends = Some((flip(1), flip(2)));
        Ok(h)
    }

    /// What it was made from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What stands on each site.
    pub fn site(&self) -> Site {
        self.site
    }

    /// The term of bond `bond` of a chain, `[d², d²]`: the two-site term and the shares of its sites' one-site terms, half
    /// each in the bulk and whole at an open end.
    pub fn bond_term(&self, bond: usize, sites: usize, boundary: Boundary) -> Matrix {
        let d = self.site.dimension();
        let (first, last) = match boundary {
            Boundary::Open => (bond == 0, bond + 2 == sites),
            Boundary::Ring => (false, false),
        };
        let mut term = self.two.clone();
        let one = identity(d);
        if let Some(a) = &self.one {
            let share = |whole: bool| scaled(a, c64::new(if whole { 1.0 } else { 0.5 }, 0.0));
            term += kron(&share(first), &one) + kron(&one, &share(last));
        }
        if let Some((left, right)) = &self.ends {
            if first {
                term += kron(left, &one);
            }
            if last {
                term += kron(&one, right);
            }
        }
        term
    }

    /// The term of a bond in the bulk.
    pub fn bulk_term(&self) -> Matrix {
        self.bond_term(1, 4, Boundary::Ring)
    }
}

fn faer_norm(a: &Matrix) -> f64 {
    a.norm_l2()
}
