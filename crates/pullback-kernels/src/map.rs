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
