//! numpy's `.npz`: a zip archive of arrays, each a text that describes it and its numbers.
//!
//! The layout is that of `numpy.lib.format`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use bytemuck::cast_slice;
use pullback_artifact::write_atomic;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::arrays::{Arrays, Element, names_of};
use crate::SaeError;

const MAGIC: &[u8] = b"\x93NUMPY";

/// The longest description that is read; a real one has about a hundred bytes.
const LONGEST_HEADER: usize = 1 << 16;

/// The most that deflate can shrink.
const LARGEST_RATIO: u64 = 1032;

/// What stands before the numbers of an array.
#[derive(Debug)]
struct Header {
    element: Element,
    shape: Vec<usize>,
    /// Whether the first index runs fastest.
    fortran: bool,
    /// Bytes up to the numbers.
    length: usize,
}

/// An archive of arrays.
#[derive(Debug)]
pub(super) struct NpzFile {
    path: PathBuf,
    /// Or why an array is not read.
    headers: BTreeMap<String, Result<Header, String>>,
}

impl NpzFile {
    /// Opens an archive and reads what its arrays are.
    ///
    /// # Errors
    /// It is missing or no archive of arrays.
    pub(super) fn open(path: &Path) -> Result<Self, SaeError> {
        let wrong = |problem: String| SaeError::File {
            path: path.to_owned(),
            problem,
        };
        let mut archive = open_archive(path)?;
        let mut headers = BTreeMap::new();
        for index in 0..archive.len() {
            let member = archive
                .by_index(index)
                .map_err(|error| wrong(error.to_string()))?;
            let Some(name) = member.name().strip_suffix(".npy").map(str::to_owned) else {
                continue;
            };
            let (size, packed) = (member.size(), member.compressed_size());
            let header = header(&mut BufReader::new(member)).and_then(|header| {
                let numbers = header
                    .shape
                    .iter()
                    .try_fold(header.element.size(), |all, &size| all.checked_mul(size));
                match numbers.and_then(|numbers| numbers.checked_add(header.length)) {
                    Some(needed) if needed as u64 == size => {}
                    _ => {
                        return Err(format!(
                            "its shape {:?} does not go with its {size} bytes",
                            header.shape
                        ));
                    }
                }
                if size / LARGEST_RATIO > packed {
                    return Err(format!("{packed} bytes cannot unpack to {size}"));
                }
                Ok(header)
            });
            headers.insert(name, header);
        }
        Ok(Self {
            path: path.to_owned(),
            headers,
        })
    }
}

fn open_archive(path: &Path) -> Result<ZipArchive<BufReader<File>>, SaeError> {
    let wrong = |problem: String| SaeError::File {
        path: path.to_owned(),
        problem,
    };
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    ZipArchive::new(BufReader::new(file))
        .map_err(|error| wrong(format!("it is no archive of arrays: {error}")))
}

/// Reads what stands before the numbers.
fn header(file: &mut impl Read) -> Result<Header, String> {
    let mut start = [0; 8];
    let mut fill = |bytes: &mut [u8]| file.read_exact(bytes).map_err(|error| error.to_string());
    fill(&mut start)?;
    if !start.starts_with(MAGIC) {
        return Err("it is no array of numpy".to_owned());
    }
    let (size, before) = match start[6] {
        1 => {
            let mut size = [0; 2];
            fill(&mut size)?;
            (usize::from(u16::from_le_bytes(size)), 10)
        }
        2 | 3 => {
            let mut size = [0; 4];
            fill(&mut size)?;
            (u32::from_le_bytes(size) as usize, 12)
        }
        version => return Err(format!("version {version} of numpy's format is not known")),
    };
    if size > LONGEST_HEADER {
        return Err(format!("its description has {size} bytes"));
    }
    let mut text = vec![0; size];
    fill(&mut text)?;
    let text = String::from_utf8(text).map_err(|_| "its description is no text".to_owned())?;
    described(&text)
        .map(|(element, fortran, shape)| Header {
            element,
            shape,
            fortran,
            length: before + size,
        })
        .ok_or_else(|| {
            let text: String = text.trim_end().chars().take(120).collect();
            format!("{text} is not read; numbers are '<f2', '<f4', '<f8', '<i4' or '<i8'")
        })
}

/// Takes `{'descr': '<f4', 'fortran_order': False, 'shape': (12, 40), }` apart.
fn described(text: &str) -> Option<(Element, bool, Vec<usize>)> {
    let text = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let after = |key: &str| {
        let at = text.find(&format!("'{key}'"))? + key.len() + 2;
        text[at..]
            .trim_start()
            .strip_prefix(':')
            .map(str::trim_start)
    };
    let element = match after("descr")?.strip_prefix('\'')?.split('\'').next()? {
        "<f2" => Element::F16,
        "<f4" => Element::F32,
        "<f8" => Element::F64,
        "<i4" => Element::I32,
        "<i8" => Element::I64,
        _ => return None,
    };
    let order = after("fortran_order")?;
    let fortran = match (order.starts_with("True"), order.starts_with("False")) {
        (true, false) => true,
        (false, true) => false,
        _ => return None,
    };
    let sizes = after("shape")?.strip_prefix('(')?;
    let sizes = sizes[..sizes.find(')')?].trim();
    let sizes = sizes.strip_suffix(',').unwrap_or(sizes);
    let shape = if sizes.is_empty() {
        Vec::new()
    } else {
        sizes
            .split(',')
            .map(|size| size.trim().parse().ok())
            .collect::<Option<Vec<usize>>>()?
    };
    Some((element, fortran, shape))
}

impl Arrays for NpzFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        names_of(&self.headers)
    }

    fn header(&self, name: &str) -> Option<(Element, &[usize])> {
        let header = self.headers.get(name)?.as_ref().ok()?;
        Some((header.element, &header.shape))
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, SaeError> {
        let wrong = |problem: String| SaeError::File {
            path: self.path.clone(),
            problem: format!("{name}: {problem}"),
        };
        let Some(Ok(header)) = self.headers.get(name) else {
            return Err(wrong("it is missing".to_owned()));
        };
        let mut archive = open_archive(&self.path)?;
        let member = archive
            .by_name(&format!("{name}.npy"))
            .map_err(|error| wrong(error.to_string()))?;
        let size = header.element.size();
        let numbers = size * header.shape.iter().product::<usize>();
        let mut bytes = Vec::new();
        // Grows with what really comes out of the archive. One byte more than there should be: the end brings the checksum.
        member
            .take((header.length + numbers) as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| wrong(error.to_string()))?;
        if bytes.len() != header.length + numbers {
            return Err(wrong(format!(
                "it holds {} bytes, {} are needed",
                bytes.len(),
                header.length + numbers
            )));
        }
        bytes.drain(..header.length);
        if let (true, &[rows, columns]) = (header.fortran, &header.shape[..]) {
            return Ok(Cow::Owned(by_rows(&bytes, rows, columns, size)));
        }
        if header.fortran && header.shape.len() > 2 {
            return Err(wrong(
                "its first index runs fastest, which is read for matrices only".to_owned(),
            ));
        }
        Ok(Cow::Owned(bytes))
    }
}

/// A matrix that stands column by column, row by row.
fn by_rows(bytes: &[u8], rows: usize, columns: usize, size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        for column in 0..columns {
            let at = size * (column * rows + row);
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    out
}

/// Writes arrays in `f32`, whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(path: &Path, arrays: &[(&str, &[usize], &[f32])]) -> Result<(), SaeError> {
    let wrong = |problem: String| SaeError::File {
        path: path.to_owned(),
        problem,
    };
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, shape, values) in arrays {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(4 * values.len() as u64 + 1024 >= u64::from(u32::MAX));
        archive
            .start_file(format!("{name}.npy"), options)
            .map_err(|error| wrong(error.to_string()))?;
        let mut sizes = String::new();
        for size in *shape {
            sizes += &format!("{size}, ");
        }
        // A tuple of one has a comma, longer ones need none.
        let sizes = match shape.len() {
            1 => sizes.trim_end(),
            _ => sizes.trim_end_matches(", "),
        };
        let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({sizes}), }}");
        // The numbers begin at a multiple of 64.
        while (10 + text.len() + 1) % 64 != 0 {
            text.push(' ');
        }
        text.push('\n');
        let mut head = MAGIC.to_vec();
        head.extend([1, 0]);
        head.extend((text.len() as u16).to_le_bytes());
        head.extend(text.bytes());
        for bytes in [&head[..], cast_slice(values)] {
            archive
                .write_all(bytes)
                .map_err(|error| wrong(error.to_string()))?;
        }
    }
    let bytes = archive
        .finish()
        .map_err(|error| wrong(error.to_string()))?
        .into_inner();
    Ok(write_atomic(path, &bytes)?)
}
