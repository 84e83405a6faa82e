//! Reading little-endian numbers and strings from a slice, with every length checked first.

use std::path::Path;

use crate::error::ModelError;

/// No header is as long as this, in bytes.
const MAX_HEADER: u64 = 1 << 32;

/// A position in the header of a file.
pub(super) struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self {
            path,
            bytes,
            position: 0,
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.position as u64
    }

    fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    pub(super) fn malformed(
        &self,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> ModelError {
        ModelError::malformed(self.path, field, problem)
    }

    pub(super) fn unsupported(
        &self,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> ModelError {
        ModelError::unsupported(self.path, field, problem)
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: u64, field: &str) -> Result<&'a [u8], ModelError> {
        let remaining = self.remaining();
        if length > remaining {
            return Err(ModelError::Truncated {
                path: self.path.to_owned(),
                field: field.to_owned(),
                missing: length - remaining,
                at_least: true,
                length: self.bytes.len() as u64,
            });
        }
        let start = self.position;
        self.position += length as usize;
        Ok(&self.bytes[start..self.position])
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], ModelError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, field)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self, field: &str) -> Result<u8, ModelError> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u32(&mut self, field: &str) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u64(&mut self, field: &str) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A number of things that take at least `item_bytes` each in the rest of the file.
    pub(super) fn count(&mut self, field: &str, item_bytes: u64) -> Result<usize, ModelError> {
        let count = self.u64(field)?;
        self.check_length(count, item_bytes, field)?;
        Ok(count as usize)
    }

    /// Checks that `count` items of at least `item_bytes` can follow. Counts beyond what any header holds are called
    /// absurd; smaller ones are put down to a truncated file.
    pub(super) fn check_length(
        &self,
        count: u64,
        item_bytes: u64,
        field: &str,
    ) -> Result<(), ModelError> {
        let length = self.bytes.len() as u64;
        match count
            .checked_mul(item_bytes)
            .filter(|&bytes| bytes < MAX_HEADER)
        {
            Some(bytes) if bytes <= self.remaining() => Ok(()),
            Some(bytes) => Err(ModelError::Truncated {
                path: self.path.to_owned(),
                field: field.to_owned(),
                missing: bytes - self.remaining(),
                at_least: true,
                length,
            }),
            None => Err(self.malformed(
                field,
                format!("a count of {count} cannot be true of a file of {length} bytes"),
            )),
        }
    }

    /// A length and that many bytes of UTF-8.
    pub(super) fn string(&mut self, field: &str) -> Result<String, ModelError> {
        let length = self.u64(field)?;
        self.check_length(length, 1, field)?;
        let bytes = self.take(length, field)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => {
                let start = bytes[..bytes.len().min(32)].escape_ascii();
                Err(self.malformed(
                    field,
                    format!("the string \"{start}\" is not UTF-8: {error}"),
                ))
            }
        }
    }
}
