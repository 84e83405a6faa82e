//! How far operators of one site grow.

use serde::Serialize;

use crate::error::ChainError;
use crate::qca::Qca;

use super::operators::{Movement, Stretch};

/// The most coefficients of an operator that are kept.
const COEFFICIENTS: f64 = 2_000_000.0;

/// Where operators of one site can get to.
#[derive(Clone, Debug, Serialize)]
pub struct LightCone {
    /// The cone's edge to the right, in sites a step: no operator is found beyond it.
    pub right: f64,
    /// The same to the left; negative where everything moves to the right.
    pub left: f64,
    /// The most sites that an operator which began on one covers after 1, 2, … steps.
    pub support: Vec<usize>,
    /// Steps that were followed; 0 where the automaton has too many layers, and the fronts are the bound that the number
    /// of layers gives.
    pub steps: usize,
}

/// Follows all operators of one site, on an even and on an odd site, for two steps where they fit into memory.
///
/// # Errors
/// Memory is short.
pub fn light_cone(qca: &Qca) -> Result<LightCone, ChainError> {
    let movement = Movement::new(qca);
    let reach = movement.reach();
    let width = |steps: usize| 2 * reach * steps + 2;
    let fits = |steps: usize| (movement.size() as f64).powi(width(steps) as i32) <= COEFFICIENTS;
    let steps = (1..=2).take_while(|&steps| fits(steps)).last().unwrap_or(0);
    if steps == 0 {
        let shift = qca.shift() as f64;
        return Ok(LightCone {
            right: reach as f64 + shift,
            left: reach as f64 - shift,
            support: Vec::new(),
            steps,
        });
    }
    // The farthest sites after each step, from either sublattice, and the sites covered.
    let mut right = vec![isize::MIN; steps + 1];
    let mut left = vec![isize::MAX; steps + 1];
    let mut support = vec![1; steps + 1];
    for start in [0, 1] {
        for level in 1..movement.size() {
            let first = start - (reach * steps) as isize;
            let mut stretch =
                Stretch::new(first, width(steps) - 1, movement.size(), &[(start, level)])?;
            for t in 0..=steps {
                if t > 0 {
                    movement.step(&mut stretch)?;
                }
                if let Some((low, high)) = stretch.support() {
                    right[t] = right[t].max(high - start);
                    left[t] = left[t].min(low - start);
                    support[t] = support[t].max((high - low) as usize + 1);
                }
            }
        }
    }
    // The smallest cone that holds all of it: a front may also draw back.
    let fastest = |reach: &dyn Fn(usize) -> isize| {
        let speeds = (1..=steps).map(|t| reach(t) as f64 / t as f64);
        speeds.fold(f64::NEG_INFINITY, f64::max)
    };
    Ok(LightCone {
        right: fastest(&|t| right[t]),
        left: fastest(&|t| -left[t]),
        support: support[1..].to_vec(),
        steps,
    })
}
