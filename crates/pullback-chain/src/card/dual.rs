//! Dual unitarity, and correlations on the light rays.

use pullback_tensor::{Mat, c64, eigenvalues};
use serde::Serialize;

use crate::dense::{Matrix, unitarity_defect};
use crate::error::ChainError;

use super::operators::{Movement, Stretch, basis, transfer};
use super::schmidt::dual;

/// The largest defect of the dual gate that is taken for rounding.
const WITHIN: f64 = 1e-9;

/// How a gate looks with space and time exchanged.
#[derive(Clone, Debug, Serialize)]
pub struct DualUnitarity {
    /// Whether the exchanged gate is unitary.
    pub dual_unitary: bool,
    /// The largest singular value of `Ũ†Ũ − 1`.
    pub defect: f64,
    /// What happens on the rays, for a dual-unitary gate.
    pub rays: Option<Rays>,
}

/// Correlations of a dual-unitary circuit at infinite temperature. They vanish off the two rays `x = ±2t`, and on them are
/// powers of a map of operators of one site (Bertini, Kos and Prosen, arXiv:1904.02140).
#[derive(Clone, Debug, Serialize)]
pub struct Rays {
    /// Moduli of the eigenvalues of the map of the right ray, that of the identity left out, largest first.
    pub right: Vec<f64>,
    /// The same of the left ray.
    pub left: Vec<f64>,
    /// `non-interacting`, `non-ergodic`, `ergodic but not mixing` or `ergodic and mixing`.
    pub class: String,
    /// Largest difference between powers of the maps and operators followed step by step, over `steps` steps.
    pub direct_difference: f64,
    /// Largest correlation off the rays that was found there.
    pub off_rays: f64,
    /// Steps that were followed.
    pub steps: usize,
}

/// `M₊(a) = 1/d Tr_1[U (a ⊗ 1) U†]` over the basis, and `M₋(a) = 1/d Tr_2[U (1 ⊗ a) U†]`: both are blocks of the matrix
/// that moves operators.
fn ray_maps(u: &Matrix, d: usize) -> [Matrix; 2] {
    let basis = basis(d);
    let n = basis.len();
    let r = transfer(u, &basis);
    [
        Mat::from_fn(n, n, |a, b| r[(a, b * n)]),
        Mat::from_fn(n, n, |a, b| r[(a * n, b)]),
    ]
}

/// Finds out whether the gate of a brickwork is dual unitary, and what follows.
///
/// # Errors
/// Memory is short.
pub fn dual_unitarity(
    u: &Matrix,
    d: usize,
    brickwork: &crate::qca::Qca,
) -> Result<DualUnitarity, ChainError> {
    let defect = unitarity_defect(&dual(u, d))?;
    let dual_unitary = defect < WITHIN;
    let rays = if dual_unitary {
        Some(rays(u, d, brickwork)?)
    } else {
        None
    };
    Ok(DualUnitarity {
        dual_unitary,
        defect,
        rays,
    })
}

fn rays(u: &Matrix, d: usize, brickwork: &crate::qca::Qca) -> Result<Rays, ChainError> {
    let maps = ray_maps(u, d);
    let mut moduli = Vec::new();
    let mut turning = false;
    for map in &maps {
        // The identity is kept by every such map, and nothing else comes from it.
        let n = map.nrows() - 1;
        let rest = Mat::from_fn(n, n, |i, j| map[(i + 1, j + 1)]);
        let values = eigenvalues(rest.as_ref())?;
        turning |= values
            .iter()
            .any(|x| x.norm() > 1.0 - 1e-9 && (x - 1.0).norm() > 1e-9);
        moduli.push(values.iter().map(|x| x.norm()).collect::<Vec<f64>>());
    }
    let stays = |x: &f64| *x > 1.0 - 1e-9;
    let all: Vec<f64> = moduli.iter().flatten().copied().collect();
    let fixed = !turning && all.iter().any(stays);
    let class = if all.iter().all(stays) {
        "non-interacting"
    } else if fixed {
        "non-ergodic"
    } else if turning {
        "ergodic but not mixing"
    } else {
        "ergodic and mixing"
    };
    let movement = Movement::new(brickwork);
    let n = movement.size();
    let steps = if n == 4 { 2 } else { 1 };
    let (mut direct_difference, mut off_rays) = (0.0_f64, 0.0_f64);
    for (start, map, direction) in [(0, &maps[0], 1), (1, &maps[1], -1)] {
        let first = start - 2 * steps;
        for level in 1..n {
            let mut stretch = Stretch::new(first, 4 * steps as usize + 1, n, &[(start, level)])?;
            let mut power = Mat::<c64>::identity(n, n);
            for t in 1..=steps {
                movement.step(&mut stretch)?;
                power = map * (map * &power);
                let ray = start + 2 * t * direction;
                for site in stretch.first()..=first + 4 * steps {
                    let place = n.pow((first + 4 * steps - site) as u32);
                    for a in 1..n {
                        let found = stretch.coefficients()[a * place];
                        if site == ray {
                            direct_difference =
                                direct_difference.max((found - power[(a, level)].re).abs());
                        } else {
                            off_rays = off_rays.max(found.abs());
                        }
                    }
                }
            }
        }
    }
    let left = moduli.pop().unwrap_or_default();
    let right = moduli.pop().unwrap_or_default();
    Ok(Rays {
        right,
        left,
        class: class.to_owned(),
        direct_difference,
        off_rays,
        steps: steps as usize,
    })
}
