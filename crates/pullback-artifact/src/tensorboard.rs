//! Curves as `TensorBoard` event files.
//!
//! A file is a sequence of records: the length of the data (u64), its masked CRC-32C, the data, their masked CRC-32C, all
//! little-endian (`tensorflow/core/lib/io/record_writer.cc`). The data are `Event` messages of protocol buffers
//! (`tensorflow/core/util/event.proto`): of their fields `wall_time`, `step`, `file_version` and `summary` are written, a
//! summary being pairs of a tag and a number.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::ArtifactError;

/// Writes one event file; `TensorBoard` shows what it holds while it grows.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Begins a new file in a directory, which is made where it is not there. A work that goes on later begins another
    /// one; `TensorBoard` joins them by their steps.
    ///
    /// # Errors
    /// The directory or the file cannot be made.
    pub fn create(dir: &Path) -> Result<Self, ArtifactError> {
        std::fs::create_dir_all(dir).map_err(|source| ArtifactError::io("create", dir, source))?;
        let seconds = now();
        // Two writers of one second must not share a file.
        for number in 0.. {
            let name = format!("events.out.tfevents.{seconds:.0}.pullback.{number}");
            let path = dir.join(name);
            match File::create_new(&path) {
                Ok(file) => {
                    let mut writer = Self { path, file };
                    let mut event = Vec::new();
                    double(&mut event, 1, seconds);
                    bytes(&mut event, 3, b"brain.Event:2");
                    writer.record(&event)?;
                    return Ok(writer);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(ArtifactError::io("create", &path, error)),
            }
        }
        unreachable!("there are more numbers than files")
    }

    /// Adds numbers with their tags at a step.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<(), ArtifactError> {
        let mut summary = Vec::new();
        for (tag, number) in scalars {
            let mut value = Vec::new();
            bytes(&mut value, 1, tag.as_bytes());
            float(&mut value, 2, *number as f32);
            bytes(&mut summary, 1, &value);
        }
        let mut event = Vec::new();
        double(&mut event, 1, now());
        key(&mut event, 2, VARINT);
        varint(&mut event, step);
        bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<(), ArtifactError> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked(data).to_le_bytes());
        // One call, so that a reader finds whole records.
        self.file
            .write_all(&record)
            .and_then(|()| self.file.flush())
            .map_err(|source| ArtifactError::io("write", &self.path, source))
    }
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// The checksum as the format stores it, so that the checksum of data that hold checksums is no special case.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// Wire types of protocol buffers.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const DELIMITED: u64 = 2;
const FOUR_BYTES: u64 = 5;

fn key(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn double(out: &mut Vec<u8>, field: u64, x: f64) {
    key(out, field, EIGHT_BYTES);
    out.extend(x.to_le_bytes());
}

fn float(out: &mut Vec<u8>, field: u64, x: f32) {
    key(out, field, FOUR_BYTES);
    out.extend(x.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, data: &[u8]) {
    key(out, field, DELIMITED);
    varint(out, data.len() as u64);
    out.extend(data);
}

#[cfg(test)]
mod tests {
    use super::{EventWriter, masked, varint};

    #[test]
    fn checksums_and_numbers_are_those_of_the_formats() {
        // RFC 3720, B.4: 32 bytes of zeros, and 0 to 31.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c::crc32c(&ascending), 0x46dd_794e);
        assert_eq!(
            masked(&[0; 32]),
            0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
        let mut out = Vec::new();
        varint(&mut out, 300);
        assert_eq!(out, [0xac, 0x02]);
    }

    #[test]
    fn records_follow_one_another() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut writer = EventWriter::create(dir.path()).expect("it is made");
        writer
            .scalars(300, &[("loss", 0.25), ("dead", 3.0)])
            .expect("it is written");
        let second = EventWriter::create(dir.path()).expect("another file is made");
        assert_ne!(writer.path, second.path);
        let file = std::fs::read(&writer.path).expect("it is there");
        let mut at = 0;
        let mut records = Vec::new();
        while at < file.len() {
            let length = u64::from_le_bytes(file[at..at + 8].try_into().expect("8 bytes"));
            let length = usize::try_from(length).expect("it is small");
            let check = |from: usize, of: &[u8]| {
                let found = file[from..from + 4].try_into().expect("4 bytes");
                assert_eq!(u32::from_le_bytes(found), masked(of));
            };
            check(at + 8, &file[at..at + 8]);
            let data = &file[at + 12..at + 12 + length];
            check(at + 12 + length, data);
            records.push(data.to_vec());
            at += length + 16;
        }
        assert_eq!(records.len(), 2);
        assert!(records[0].ends_with(b"\x1a\x0dbrain.Event:2"));
        // Step 300; a summary of two values, `loss` 0.25 and `dead` 3.
        let mut expected = b"\x10\xac\x02\x2a\x1a".to_vec();
        expected.extend(b"\x0a\x0b\x0a\x04loss\x15");
        expected.extend(0.25_f32.to_le_bytes());
        expected.extend(b"\x0a\x0b\x0a\x04dead\x15");
        expected.extend(3_f32.to_le_bytes());
        assert_eq!(records[1][9..], expected);
    }
}
