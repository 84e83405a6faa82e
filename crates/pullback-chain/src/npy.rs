//! Complex and real matrices from `.npy` files of `NumPy`.
//!
//! The format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use pullback_tensor::c64;

use crate::error::ChainError;

/// The most numbers that are read; gates and tensors of operators have far fewer.
const MAX_ENTRIES: usize = 1 << 20;

/// An array: its shape and its entries with the last index fastest.
#[derive(Clone, Debug)]
pub struct Array {
    /// The length of each index.
    pub shape: Vec<usize>,
    /// The entries.
    pub entries: Vec<c64>,
}

/// Reads an array of `float32`, `float64`, `complex64` or `complex128`.
///
/// # Errors
/// The file cannot be read, is no such array, is cut short, or has more than about a million entries.
pub fn read(path: &Path) -> Result<Array, ChainError> {
    let fail = |message: String| ChainError::File {
        path: path.to_owned(),
        message,
    };
    let file = File::open(path).map_err(|error| fail(format!("cannot be opened: {error}")))?;
    let mut bytes = Vec::new();
    // Header and the largest entries; a longer file is refused below.
    let limit = (MAX_ENTRIES * 16 + (1 << 16)) as u64;
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| fail(format!("cannot be read: {error}")))?;
    parse(&bytes).map_err(fail)
}

/// Reads an array from the bytes of a file.
fn parse(bytes: &[u8]) -> Result<Array, String> {
    if !bytes.starts_with(b"\x93NUMPY") || bytes.len() < 12 {
        return Err("is no .npy file: it does not start with \\x93NUMPY".to_owned());
    }
    let (length, start) = match bytes[6] {
        1 => (usize::from(u16::from_le_bytes([bytes[8], bytes[9]])), 10),
        2 | 3 => (
            u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize,
            12,
        ),
        version => {
            return Err(format!(
                "has version {version} of the format: 1 to 3 can be read"
            ));
        }
    };
    let end = start + length;
    let header = bytes.get(start..end).ok_or("is cut short in its header")?;
    let header = std::str::from_utf8(header).map_err(|_| "has a header that is no text")?;
    let kind = after(header, "'descr'")
        .and_then(quoted)
        .ok_or("has no 'descr' in its header")?;
    let fortran = after(header, "'fortran_order'").ok_or("has no 'fortran_order' in its header")?;
    let fortran = fortran.trim_start().starts_with("True");
    let shape = after(header, "'shape'")
        .and_then(shape)
        .ok_or("has no 'shape' in its header")?;
    let count = shape.iter().try_fold(1_usize, |n, &x| n.checked_mul(x));
    let count = count
        .filter(|&n| n <= MAX_ENTRIES)
        .ok_or_else(|| format!("has shape {shape:?}: at most {MAX_ENTRIES} entries are read"))?;
    let data = &bytes[end..];
    let size = match kind {
        "<c16" => 16,
        "<c8" | "<f8" => 8,
        "<f4" => 4,
        _ => {
            return Err(format!(
                "has entries of type \"{kind}\": complex128, complex64, float64 or float32 (little endian) is needed"
            ));
        }
    };
    if data.len() != count * size {
        return Err(format!(
            "holds {} bytes of entries, and shape {shape:?} of \"{kind}\" needs {}",
            data.len(),
            count * size
        ));
    }
    let f8 = |b: &[u8]| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
    let f4 = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let mut entries: Vec<c64> = data
        .chunks_exact(size)
        .map(|b| match kind {
            "<c16" => c64::new(f8(b), f8(&b[8..])),
            "<c8" => c64::new(f4(b), f4(&b[4..])),
            "<f8" => c64::new(f8(b), 0.0),
            _ => c64::new(f4(b), 0.0),
        })
        .collect();
    if let Some(at) = entries.iter().position(|x| !x.is_finite()) {
        return Err(format!(
            "entry {at} is {}: entries must be finite",
            entries[at]
        ));
    }
    if fortran {
        entries = reordered(&entries, &shape);
    }
    Ok(Array { shape, entries })
}

/// From the first index fastest to the last index fastest.
fn reordered(entries: &[c64], shape: &[usize]) -> Vec<c64> {
    (0..entries.len())
        .map(|flat| {
            let (mut rest, mut strides, mut at) = (flat, entries.len(), 0);
            let mut stride = 1;
            for &n in shape {
                strides /= n;
                at += rest / strides * stride;
                rest %= strides;
                stride *= n;
            }
            entries[at]
        })
        .collect()
}

/// What follows a key and its colon.
fn after<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let at = header.find(key)? + key.len();
    header[at..].trim_start().strip_prefix(':')
}

fn quoted(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix('\'')?.split('\'').next()
}

fn shape(text: &str) -> Option<Vec<usize>> {
    let inside = text.trim_start().strip_prefix('(')?.split(')').next()?;
    let numbers = inside.split(',').map(str::trim).filter(|x| !x.is_empty());
    numbers.map(|x| x.parse().ok().filter(|&n| n > 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `numpy.save` writes.
    fn file(header: &str, data: &[f64]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data.iter().flat_map(|x| x.to_le_bytes()));
        bytes
    }

    #[test]
    fn both_orders_are_read() {
        let c = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }\n";
        let f = "{'descr': '<f8', 'fortran_order': True, 'shape': (2, 3), }\n";
        let rows = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let columns = [1.0, 4.0, 2.0, 5.0, 3.0, 6.0];
        let a = parse(&file(c, &rows)).unwrap();
        let b = parse(&file(f, &columns)).unwrap();
        assert_eq!(a.shape, [2, 3]);
        assert_eq!(a.entries, b.entries);
        assert_eq!(a.entries[4], c64::new(5.0, 0.0));
        let complex = "{'descr': '<c16', 'fortran_order': False, 'shape': (1,), }\n";
        assert_eq!(
            parse(&file(complex, &[3.0, -1.0])).unwrap().entries,
            [c64::new(3.0, -1.0)]
        );
    }

    #[test]
    fn damaged_files_are_refused() {
        let good = "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }\n";
        let whole = file(good, &[1.0, 2.0]);
        for cut in 0..whole.len() {
            assert!(parse(&whole[..cut]).is_err(), "{cut}");
        }
        for header in [
            "{'descr': '>f8', 'fortran_order': False, 'shape': (2,), }",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 99999999999), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
            "{'fortran_order': False}",
        ] {
            assert!(parse(&file(header, &[1.0, 2.0])).is_err(), "{header}");
        }
        assert!(
            parse(&file(good, &[1.0, f64::NAN]))
                .unwrap_err()
                .contains("entry 1")
        );
    }
}
