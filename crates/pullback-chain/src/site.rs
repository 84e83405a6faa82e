//! The sites of a chain: what acts on one, by name.

use pullback_tensor::Mat;

use crate::dense;
use crate::dense::{I, Matrix, ONE, ZERO, adjoint, identity, scaled};
use crate::error::ChainError;
use pullback_tensor::c64;

/// The most states of a site; matrices of two sites are then 144 × 144.
pub const MAX_DIMENSION: usize = 12;

/// What a site is: how many states it has and which operators act on it by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// A spin; state 0 has the highest `Sz`. Holds twice the spin, so that its dimension is one more.
    Spin {
        /// Twice the spin: 1 for spin ½.
        twice: usize,
    },
    /// A clock with `dimension` positions: `X` moves the hand up by one, `Z` is `exp(2πi n / dimension)`.
    Clock {
        /// Positions of the hand.
        dimension: usize,
    },
    /// States without structure, such as blocks of smaller sites; only `I` and the projectors have names.
    Levels {
        /// How many.
        dimension: usize,
    },
}

impl Site {
    /// Spin ½.
    pub const QUBIT: Self = Self::Spin { twice: 1 };

    /// A spin from text: `1/2`, `0.5`, `1`, `3/2`, …
    ///
    /// # Errors
    /// It is no positive multiple of one half, or has more than [`MAX_DIMENSION`] states.
    pub fn spin(text: &str) -> Result<Self, ChainError> {
        let bad = || ChainError::value("the spin", text, "expected 1/2, 1, 3/2, … up to 11/2");
        let value = match text.split_once('/') {
            Some((over, under)) => {
                let over: f64 = over.trim().parse().map_err(|_| bad())?;
                let under: f64 = under.trim().parse().map_err(|_| bad())?;
                over / under
            }
            None => text.trim().parse().map_err(|_| bad())?,
        };
        let twice = 2.0 * value;
        if twice.fract() != 0.0 || !(1.0..MAX_DIMENSION as f64).contains(&twice) {
            return Err(bad());
        }
        Ok(Self::Spin {
            twice: twice as usize,
        })
    }

    /// A clock.
    ///
    /// # Errors
    /// It has less than two positions or more than [`MAX_DIMENSION`].
    pub fn clock(dimension: usize) -> Result<Self, ChainError> {
        if (2..=MAX_DIMENSION).contains(&dimension) {
            Ok(Self::Clock { dimension })
        } else {
            Err(ChainError::value(
                "the number of a clock's positions",
                dimension,
                format!("expected 2 to {MAX_DIMENSION}"),
            ))
        }
    }

    /// A site of which only the number of states is known.
    ///
    /// # Errors
    /// It has less than two states or more than [`MAX_DIMENSION`].
    pub fn of_dimension(dimension: usize) -> Result<Self, ChainError> {
        match dimension {
            2 => Ok(Self::QUBIT),
            3..=MAX_DIMENSION => Ok(Self::Levels { dimension }),
            _ => Err(ChainError::value(
                "the dimension of a site",
                dimension,
                format!("expected 2 to {MAX_DIMENSION}"),
            )),
        }
    }

    /// States of a site.
    pub fn dimension(self) -> usize {
        match self {
            Self::Spin { twice } => twice + 1,
            Self::Clock { dimension } | Self::Levels { dimension } => dimension,
        }
    }

    /// What it is, for messages.
    pub fn describe(self) -> String {
        match self {
            Self::Spin { twice } if twice % 2 == 0 => format!("a spin-{} site", twice / 2),
            Self::Spin { twice } => format!("a spin-{twice}/2 site"),
            Self::Clock { dimension } => format!("a clock of {dimension} positions"),
            Self::Levels { dimension } => format!("a site with {dimension} states"),
        }
    }

    /// Names of the operators, in the order in which people are told of them.
    pub fn names(self) -> Vec<String> {
        let mut names: Vec<&str> = vec!["I"];
        match self {
            Self::Spin { twice } => {
                if twice == 1 {
                    names.extend(["X", "Y", "Z"]);
                }
                names.extend(["Sx", "Sy", "Sz", "Sp", "Sm"]);
            }
            Self::Clock { .. } => names.extend(["X", "Xd", "Z", "Zd"]),
            Self::Levels { .. } => {}
        }
        let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        names.extend((0..self.dimension()).map(|n| format!("P{n}")));
        names
    }

    /// The operator of this name, `[d, d]`.
    pub fn operator(self, name: &str) -> Option<Matrix> {
        let d = self.dimension();
        if name == "I" {
            return Some(identity(d));
        }
        if let Some(level) = name.strip_prefix('P') {
            let level: usize = level.parse().ok().filter(|&n| n < d)?;
            let mut p = Matrix::zeros(d, d);
            p[(level, level)] = ONE;
            return Some(p);
        }
        match self {
            Self::Spin { twice } => spin_operator(twice, name),
            Self::Clock { dimension } => clock_operator(dimension, name),
            Self::Levels { .. } => None,
        }
    }
}

fn real(x: f64) -> c64 {
    c64::new(x, 0.0)
}

/// `⟨m+1|S⁺|m⟩ = √(s(s+1) − m(m+1))`.
fn spin_operator(twice: usize, name: &str) -> Option<Matrix> {
    let s = twice as f64 / 2.0;
    let d = twice + 1;
    let m = |i: usize| s - i as f64;
    let raise = || {
        Mat::from_fn(d, d, |i, j| {
            if i + 1 == j {
                real((s * (s + 1.0) - m(j) * (m(j) + 1.0)).sqrt())
            } else {
                ZERO
            }
        })
    };
    let sx = || scaled(&(raise() + raise().adjoint()), real(0.5));
    let sy = || scaled(&(raise() - raise().adjoint()), real(-0.5) * I);
    let sz = || Mat::from_fn(d, d, |i, j| if i == j { real(m(i)) } else { ZERO });
    let two = real(2.0);
    Some(match name {
        "Sx" => sx(),
        "Sy" => sy(),
        "Sz" => sz(),
        "Sp" => raise(),
        "Sm" => adjoint(&raise()),
        "X" if twice == 1 => scaled(&sx(), two),
        "Y" if twice == 1 => scaled(&sy(), two),
        "Z" if twice == 1 => scaled(&sz(), two),
        _ => return None,
    })
}

fn clock_operator(d: usize, name: &str) -> Option<Matrix> {
    let up = || Mat::from_fn(d, d, |i, j| if i == (j + 1) % d { ONE } else { ZERO });
    let phase = || {
        Mat::from_fn(d, d, |i, j| {
            if i == j {
                c64::from_polar(1.0, std::f64::consts::TAU * i as f64 / d as f64)
            } else {
                ZERO
            }
        })
    };
    Some(match name {
        "X" => up(),
        "Xd" => dense::adjoint(&up()),
        "Z" => phase(),
        "Zd" => dense::adjoint(&phase()),
        _ => return None,
    })
}
