//! What can go wrong with adapters.

use std::path::PathBuf;

use pullback_artifact::{ArtifactError, Interrupted};
use pullback_model::{ModelError, SiteError};
use pullback_sae::SaeError;

/// An error of this crate; each prints as one sentence that names the file and the value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A file that contradicts its format.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// An option that makes no sense.
    #[error("{0}")]
    Option(String),
    /// Training left the numbers that can be computed with.
    #[error("training diverged at step {step}; a smaller learning rate than {lr} is needed ({} is the adapter as it was at \
             step {kept_step}, where the held-out loss was lowest)", kept.display())]
    Diverged {
        /// The step.
        step: usize,
        /// The learning rate.
        lr: f64,
        /// The step of the state that was kept.
        kept_step: usize,
        /// Where it is.
        kept: PathBuf,
    },
    /// The dictionary of an adapter could not be loaded.
    #[error("the dictionary of {} could not be loaded from {} ({problem}): give its place with --sae", adapter.display(), sae.display())]
    Dictionary {
        /// The adapter.
        adapter: PathBuf,
        /// The place that was tried.
        sae: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A dictionary or its store could not be used.
    #[error(transparent)]
    Sae(#[from] SaeError),
    /// An artifact could not be read or written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The model refused.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A site that does not exist.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// The work was stopped and can be resumed.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}
