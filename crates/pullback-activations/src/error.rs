//! What can go wrong with corpora and stores.

use std::path::PathBuf;

use pullback_artifact::{ArtifactError, Interrupted};
use pullback_model::{ModelError, SiteError};

/// An error of this crate; each prints as one sentence that names the file and the value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A corpus that is not text.
    #[error("{} is not text: {problem}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Where and why.
        problem: String,
    },
    /// A corpus without a document, or with too little text.
    #[error("{} {problem}", path.display())]
    Corpus {
        /// The corpus.
        path: PathBuf,
        /// What is missing, and what would do.
        problem: String,
    },
    /// An option that makes no sense.
    #[error("{0}")]
    Option(String),
    /// A shard that contradicts its store.
    #[error("{}: {problem}", path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
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
