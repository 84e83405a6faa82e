//! A matrix in the bytes of a file.

use std::any::TypeId;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::decode::decode_rows;
use super::format::Format;
use crate::Real;

/// Values that one task decodes: enough to be worth a thread.
const TASK: usize = 1 << 16;
/// Values that are decoded to `f32` at a time where `f64` is wanted; they fit the first-level cache.
const PASS: usize = 1 << 12;

/// Why bytes are not the matrix they are said to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoredError {
    /// A matrix without elements.
    #[error("a stored matrix of {rows}×{columns} has no elements")]
    Empty {
        /// Number of rows.
        rows: usize,
        /// Number of columns.
        columns: usize,
    },

    /// Rows that are not whole blocks.
    #[error("rows of {columns} elements are not made of the blocks of {block} of format {format}")]
    PartialBlock {
        /// The format.
        format: Format,
        /// Number of columns.
        columns: usize,
        /// Elements in a block of the format.
        block: usize,
    },

    /// A range that is not within the bytes.
    #[error("bytes {} to {} are not within the {length} bytes there are", range.start, range.end)]
    Range {
        /// The range asked for.
        range: Range<usize>,
        /// How many bytes there are.
        length: usize,
    },

    /// A number of bytes that does not follow from shape and format.
    #[error("a matrix of {rows}×{columns} in format {format} has {} bytes, found {found}",
        expected.map_or_else(|| "more than 2^64".to_owned(), |bytes| bytes.to_string()))]
    Size {
        /// Number of rows.
        rows: usize,
        /// Number of columns.
        columns: usize,
        /// The format.
        format: Format,
        /// The bytes that the matrix would have; nothing where the number overflows.
        expected: Option<usize>,
        /// The bytes that were given.
        found: usize,
    },
}

/// A matrix `[rows, columns]`, row-major, in blocks along the columns, as a file stores it.
///
/// The bytes may lie in a mapped file; a clone shares them.
#[derive(Clone)]
pub struct StoredMatrix {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
    format: Format,
    rows: usize,
    columns: usize,
}

impl fmt::Debug for StoredMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredMatrix")
            .field("format", &self.format)
            .field("rows", &self.rows)
            .field("columns", &self.columns)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl StoredMatrix {
    /// The matrix `[rows, columns]` whose data are the bytes in `range`.
    ///
    /// # Errors
    /// When the matrix has no elements, the rows are not whole blocks, or the range is not within the bytes or not as
    /// long as the matrix is.
    pub fn new(
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
        format: Format,
        rows: usize,
        columns: usize,
    ) -> Result<Self, StoredError> {
        if rows == 0 || columns == 0 {
            return Err(StoredError::Empty { rows, columns });
        }
        let block = format.block_size();
        if !columns.is_multiple_of(block) {
            return Err(StoredError::PartialBlock {
                format,
                columns,
                block,
            });
        }
        let length = (*bytes).as_ref().len();
        if range.start > range.end || range.end > length {
            return Err(StoredError::Range { range, length });
        }
        let expected = (columns / block)
            .checked_mul(format.block_bytes())
            .and_then(|row| row.checked_mul(rows));
        if expected != Some(range.len()) {
            return Err(StoredError::Size {
                rows,
                columns,
                format,
                expected,
                found: range.len(),
            });
        }
        Ok(Self {
            bytes,
            range,
            format,
            rows,
            columns,
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The format of the elements.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of the matrix as stored.
    pub fn bytes_len(&self) -> usize {
        self.range.len()
    }

    /// Bytes of one row.
    fn row_bytes(&self) -> usize {
        self.columns / self.format.block_size() * self.format.block_bytes()
    }

    /// The matrix of these rows, in this order, in memory of its own.
    ///
    /// # Panics
    /// If a row does not exist.
    #[must_use]
    pub fn select_rows(&self, rows: impl Iterator<Item = usize>) -> Self {
        let bytes: Vec<u8> = rows
            .flat_map(|row| self.bytes_of(row..row + 1))
            .copied()
            .collect();
        Self {
            range: 0..bytes.len(),
            rows: bytes.len().checked_div(self.row_bytes()).unwrap_or(0),
            bytes: Arc::new(bytes),
            format: self.format,
            columns: self.columns,
        }
    }

    /// The bytes of some rows.
    pub(super) fn bytes_of(&self, rows: Range<usize>) -> &[u8] {
        let row = self.row_bytes();
        let bytes = &(*self.bytes).as_ref()[self.range.clone()];
        &bytes[rows.start * row..rows.end * row]
    }

    /// All values where they lie, if they lie there as `T`: in `f32`, at an address that suits.
    pub(super) fn in_place<T: Real>(&self) -> Option<&[T]> {
        let same = self.format == Format::F32 && TypeId::of::<T>() == TypeId::of::<f32>();
        if !same || cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice(self.bytes_of(0..self.rows)).ok()
    }

    /// All values, row-major. Formats other than `F64` are exact in `f32`; that one is rounded to it.
    pub fn to_vec<T: Real>(&self) -> Vec<T> {
        let mut out = vec![T::zero(); self.rows * self.columns];
        self.rows_into(0, &mut out);
        out
    }

    /// The values of as many rows as `out` holds, from row `first` on.
    ///
    /// # Panics
    /// If `out` is not whole rows, or they end past the matrix.
    pub fn rows_into<T: Real>(&self, first: usize, out: &mut [T]) {
        assert!(
            out.len().is_multiple_of(self.columns),
            "{} elements are not whole rows of {}",
            out.len(),
            self.columns
        );
        let end = first.saturating_add(out.len() / self.columns);
        assert!(
            end <= self.rows,
            "rows {first} to {end} are not within the {} rows there are",
            self.rows
        );
        let rows = (TASK / self.columns).max(1);
        if end - first <= rows {
            self.decode(first, out);
            return;
        }
        out.par_chunks_mut(rows * self.columns)
            .enumerate()
            .for_each(|(task, out)| self.decode(first + task * rows, out));
    }

    /// The values of whole rows from `first` on, on this thread.
    pub(super) fn decode<T: Real>(&self, first: usize, out: &mut [T]) {
        let rows = out.len() / self.columns;
        let bytes = self.bytes_of(first..first + rows);
        if TypeId::of::<T>() == TypeId::of::<f32>() {
            decode_rows(
                self.format,
                bytes,
                self.columns,
                bytemuck::cast_slice_mut(out),
            );
            return;
        }
        let rows = (PASS / self.columns).max(1);
        let mut buffer = vec![0.0; rows * self.columns];
        for (out, bytes) in out
            .chunks_mut(rows * self.columns)
            .zip(bytes.chunks(rows * self.row_bytes()))
        {
            let buffer = &mut buffer[..out.len()];
            decode_rows(self.format, bytes, self.columns, buffer);
            for (out, &x) in out.iter_mut().zip(buffer.iter()) {
                *out = T::of(f64::from(x));
            }
        }
    }

    /// The rows of the given numbers, one after another: `[ids.len(), columns]`.
    ///
    /// # Panics
    /// If an id is not below the number of rows.
    pub fn gather<T: Real>(&self, ids: &[u32]) -> Vec<T> {
        let mut out = vec![T::zero(); ids.len() * self.columns];
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(self.columns)) {
            assert!(
                (id as usize) < self.rows,
                "row {id} is not within the {} rows there are",
                self.rows
            );
            self.decode(id as usize, out);
        }
        out
    }
}
