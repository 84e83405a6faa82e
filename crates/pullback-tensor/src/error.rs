//! The error of this crate.

/// What can be wrong with a matrix, or with the way it was worked on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LinalgError {
    /// An entry is infinite or not a number.
    #[error(
        "the entry in row {row}, column {column} of a {rows} × {columns} matrix is {value}: entries must be finite"
    )]
    NotFinite {
        /// Row of the first such entry, from 0.
        row: usize,
        /// Its column, from 0.
        column: usize,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
        /// The entry as text.
        value: String,
    },
    /// A square matrix is needed.
    #[error("the matrix is {rows} × {columns}: a square one is needed")]
    NotSquare {
        /// Its rows.
        rows: usize,
        /// Its columns.
        columns: usize,
    },
    /// A matrix that was said to be Hermitian is not.
    #[error(
        "the matrix is not Hermitian: entries ({row}, {column}) and ({column}, {row}) differ by {defect:e} more than a conjugate may"
    )]
    NotHermitian {
        /// Row of the worst entry.
        row: usize,
        /// Its column.
        column: usize,
        /// `|a_ij − conj(a_ji)|`.
        defect: f64,
    },
    /// No method gave a result that passed its check.
    #[error("no method found the {what} of a {rows} × {columns} matrix")]
    NoConvergence {
        /// What was looked for.
        what: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Its columns.
        columns: usize,
    },
}
