//! The error of this crate.

use std::path::PathBuf;

use pullback_artifact::{ArtifactError, Interrupted};
use pullback_tensor::LinalgError;

/// Everything that can be wrong with what describes a chain, and with work on one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// An expression cannot be read; the second and third line point at the character.
    #[error("{message}\n  {text}\n  {}^", " ".repeat(*at))]
    Expression {
        /// What is wrong, and what would be right.
        message: String,
        /// The whole expression on one line.
        text: String,
        /// The character, counted from 0.
        at: usize,
    },
    /// A gate is not unitary.
    #[error("{name} is not unitary: ‖U†U − 1‖ = {defect:.3e}, where rounding allows {allowed:e}")]
    NotUnitary {
        /// What the gate is called.
        name: String,
        /// The largest singular value of `U†U − 1`.
        defect: f64,
        /// The largest defect that is taken for rounding.
        allowed: f64,
    },
    /// A Hamiltonian is not Hermitian.
    #[error("{name} is not Hermitian: ‖H − H†‖ = {defect:.3e} for its terms")]
    NotHermitian {
        /// The Hamiltonian.
        name: String,
        /// The Frobenius norm of the anti-Hermitian part of its terms, twice.
        defect: f64,
    },
    /// A value is out of its range.
    #[error("{what} is {value}: {expected}")]
    Value {
        /// What the value is of.
        what: String,
        /// The value.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A file does not hold what is needed.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// A state does not fit into memory.
    #[error(
        "{sites} sites of dimension {dimension} take {needed} of memory, and {available} are free: use fewer sites or single precision"
    )]
    Memory {
        /// Sites of the chain.
        sites: usize,
        /// States of a site.
        dimension: usize,
        /// Memory that the state needs, with its unit.
        needed: String,
        /// Memory that is free, with its unit.
        available: String,
    },
    /// Linear algebra refused a matrix.
    #[error(transparent)]
    Linalg(#[from] LinalgError),
    /// A file could not be read or written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl ChainError {
    /// A value that is out of its range.
    pub(crate) fn value(
        what: impl Into<String>,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Value {
            what: what.into(),
            value: value.to_string(),
            expected: expected.into(),
        }
    }
}
