//! What can go wrong with dictionaries.

use std::path::PathBuf;

use pullback_activations::ActivationError;
use pullback_artifact::{ArtifactError, Interrupted};
use pullback_model::ModelError;

use crate::formats::{Format, PickleError};

/// An error of this crate; each prints as one sentence that names the file and the value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaeError {
    /// A file that contradicts its format.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A pickle that would have to be run, or is broken.
    #[error("{}: {error}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: PickleError,
    },
    /// A dictionary that a format has no words for.
    #[error("the format {format} cannot hold this dictionary: {reason}")]
    Inexpressible {
        /// The format.
        format: Format,
        /// What it cannot say.
        reason: String,
    },
    /// An option that makes no sense.
    #[error("{0}")]
    Option(String),
    /// Training left the numbers that can be computed with.
    #[error(
        "training diverged at step {step}: the loss is {loss}; a smaller learning rate than {lr} is needed"
    )]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f64,
        /// The learning rate.
        lr: f64,
    },
    /// A store could not be used.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// An artifact could not be read or written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The model refused.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The work was stopped and can be resumed.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}
