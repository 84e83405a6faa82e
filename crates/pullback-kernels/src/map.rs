//! Memory-mapped files.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a file for reading.
///
/// The file must not be shortened by another program while it is mapped: reading past its new end would
/// stop the process. Files that pullback maps (weights, activation shards) appear under their names only
/// when complete and are not written again.
///
/// # Errors
/// The file cannot be opened or mapped. The error does not name the path; the caller knows it.
pub fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is read-only; that nobody truncates the file is the documented condition, the same
    // one every memory-mapped reader of weights relies on.
    unsafe { Mmap::map(&file) }
}

/// The bytes of a file, mapped or in memory.
#[derive(Debug)]
pub enum FileBytes {
    /// Mapped by [`map_file`].
    Mapped(Mmap),
    /// Read, or made.
    Memory(Vec<u8>),
}

impl FileBytes {
    /// Gives the memory of mapped pages back to the system, which reads them again from the file when they are needed.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            // SAFETY: the map is of a file and read-only, so nothing is lost; the pages that come back are the same, on the
            // condition of `map_file`. That the system does not follow the advice is no error.
            _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}

impl AsRef<[u8]> for FileBytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FileBytes, map_file};

    #[test]
    fn released_bytes_are_read_again() {
        let path = std::env::temp_dir().join(format!("pullback-map-{}", std::process::id()));
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("a temporary file can be written");
        let mapped = FileBytes::Mapped(map_file(&path).expect("it can be mapped"));
        for file in [mapped, FileBytes::Memory(bytes.clone())] {
            assert_eq!(file.as_ref(), bytes);
            file.release();
            assert_eq!(file.as_ref(), bytes);
        }
        std::fs::remove_file(&path).expect("it can be removed");
    }
}
