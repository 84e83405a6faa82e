//! What all kinds share in training: parameters, a batch's losses and gradients, the update.

mod batch;
mod dead;
mod elementwise;
mod parameters;
mod skip;
mod update;

pub(crate) use batch::{Batch, Part, Rows, add_row_sums, centred, differences, scale};
pub use dead::AuxLoss;
pub(crate) use dead::{Aux, auxiliary};
pub(crate) use elementwise::{Elementwise, Gradient, elementwise_batch};
pub(crate) use parameters::{Adam, Lengths, Moments, Parameters, parts};
pub(crate) use skip::batch;
pub(crate) use update::update;
#[cfg(test)]
pub(crate) use update::{Sums, gradients};

/// What the losses of a batch hang on beside the parameters and the activations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'a> {
    /// Variance of what is reconstructed about its mean, summed over coordinates: the unit of all losses.
    pub(crate) variance: f64,
    /// Dead features, ascending.
    pub(crate) dead: &'a [u32],
    /// Share of the sparsity loss's weight that has been reached.
    pub(crate) sparsity: f64,
}
