//! SHA-256 of bytes and files, as lower-case hexadecimal.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::control::Control;
use crate::error::{ArtifactError, IoContext};

/// Bytes read at a time; large enough that the time goes into hashing.
pub(crate) const BLOCK: usize = 1 << 20;

/// The SHA-256 of `bytes`, in hexadecimal.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    hasher.finish()
}

/// The SHA-256 of a file, in hexadecimal. With a control a progress bar is shown and the work can be interrupted.
///
/// # Errors
/// When the file cannot be read, or on interruption.
pub fn sha256_file(path: &Path, control: Option<&Control>) -> Result<String, ArtifactError> {
    let mut file = File::open(path).at("read", path)?;
    let stage = match control {
        Some(control) => {
            let size = file.metadata().at("read", path)?.len();
            let name = path
                .file_name()
                .map_or_else(String::new, |name| format!(" {}", name.to_string_lossy()));
            Some(control.stage(&format!("check{name}"), size, "bytes"))
        }
        None => None,
    };
    let mut hasher = Hasher::new();
    let mut block = vec![0; BLOCK];
    loop {
        if let Some(control) = control {
            control.check()?;
        }
        let read = read_some(&mut file, &mut block).at("read", path)?;
        if read == 0 {
            break;
        }
        hasher.update(&block[..read]);
        if let Some(stage) = &stage {
            stage.advance(read as u64);
        }
    }
    if let Some(stage) = stage {
        stage.finish();
    }
    Ok(hasher.finish())
}

/// `read`, started anew when a signal came in between.
pub(crate) fn read_some(reader: &mut impl Read, block: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match reader.read(block) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// A running SHA-256.
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(Sha256::new())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> String {
        let mut hex = String::with_capacity(64);
        for byte in self.0.finalize() {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests() {
        assert_eq!(
            sha256_bytes(b""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            sha256_bytes(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn file_longer_than_a_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..2 * BLOCK + 17).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(sha256_file(&path, None).unwrap(), sha256_bytes(&bytes));
        assert_eq!(
            sha256_file(&path, Some(&Control::hidden())).unwrap(),
            sha256_bytes(&bytes)
        );
    }

    #[test]
    fn interruption_and_missing_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(
            sha256_file(&path, None)
                .unwrap_err()
                .to_string()
                .contains("no such file")
        );
        std::fs::write(&path, b"x").unwrap();
        let control = Control::hidden();
        control.interrupt();
        assert!(
            sha256_file(&path, Some(&control))
                .unwrap_err()
                .is_interrupted()
        );
    }
}
