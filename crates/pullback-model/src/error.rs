//! What can go wrong with a model, and how it is said.

use std::path::{Path, PathBuf};

/// An error of this crate. Each one prints as a single sentence that names the file, the place in it and the value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A path that holds no model in a layout that is known here.
    #[error("{} is not a model: {problem}", path.display())]
    NotAModel {
        /// The path as given.
        path: PathBuf,
        /// What was looked for and not found.
        problem: String,
    },

    /// A file that contradicts its own format.
    #[error("{}: {field}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The key, tensor or part of the header.
        field: String,
        /// What is wrong with its value.
        problem: String,
    },

    /// A file that ends too early.
    #[error("{}: the file is cut short in {field}: {}{missing} of its bytes are missing (it has {length} bytes)",
        path.display(), if *at_least { "at least " } else { "" })]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The part of the file that runs past its end.
        field: String,
        /// How many bytes are missing.
        missing: u64,
        /// Whether more may be missing than `missing`, because the end of the file's header was not reached.
        at_least: bool,
        /// The length of the file in bytes.
        length: u64,
    },

    /// A model family that has no implementation here.
    #[error("{}: the architecture \"{found}\" is not supported (supported: {supported})", path.display())]
    UnsupportedArchitecture {
        /// The file.
        path: PathBuf,
        /// The architecture that the file names.
        found: String,
        /// The architectures that are supported.
        supported: String,
    },

    /// A well-formed file that asks for something that is not implemented, so that running it would give wrong numbers.
    #[error("{}: {field}: {problem}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key or tensor.
        field: String,
        /// What is not supported, and what is.
        problem: String,
    },

    /// A tensor in an element type that cannot be read.
    #[error("{}: tensor {tensor} has type {found}, which is not supported (supported: {supported})", path.display())]
    UnsupportedTensorType {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// Its type.
        found: String,
        /// The types that can be read.
        supported: String,
    },

    /// A tensor that the architecture needs and the file does not have.
    #[error("{}: tensor {tensor} is missing", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },

    /// A tensor whose shape does not follow from the configuration.
    #[error("{}: tensor {tensor} has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The shape in the file, `[out, in]` for a matrix.
        found: Vec<usize>,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
    },

    /// A tokenizer that cannot be built or a text that cannot be tokenized.
    #[error("tokenizer: {problem}")]
    Tokenizer {
        /// What went wrong.
        problem: String,
    },

    /// A name that is no site, or a site that this model or run does not have.
    #[error(transparent)]
    Site(#[from] crate::site::SiteError),

    /// A run, a prompt or a target that does not fit the model.
    #[error("{problem}")]
    Input {
        /// What does not fit, and what would.
        problem: String,
    },

    /// Work that its caller ended.
    #[error("stopped before the end")]
    Stopped,

    /// A chat template that is missing, does not parse, or refuses a conversation.
    #[error("chat template: {problem}")]
    ChatTemplate {
        /// What went wrong.
        problem: String,
    },
}

impl ModelError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn malformed(
        path: &Path,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            field: field.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn unsupported(
        path: &Path,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            field: field.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn tokenizer(problem: impl Into<String>) -> Self {
        Self::Tokenizer {
            problem: problem.into(),
        }
    }
}
