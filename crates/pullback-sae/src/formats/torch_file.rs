//! Files that `torch.save` writes: a zip archive of a pickle and of the numbers it speaks of, uncompressed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use bytemuck::cast_slice;
use pullback_artifact::write_atomic;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::arrays::{Arrays, Element};
use super::pickle::{Entry, TensorView, read_dictionary};
use crate::SaeError;

/// The largest pickle that is read: that of a dictionary has a few kilobytes.
const LARGEST_PICKLE: u64 = 16 << 20;

/// A file whose value is a dictionary of tensors.
pub(super) struct TorchFile {
    path: PathBuf,
    /// The directory inside the archive, with its `/`.
    prefix: String,
    entries: BTreeMap<String, Entry>,
}

impl TorchFile {
    /// Reads the pickle of a file.
    ///
    /// # Errors
    /// It is missing or damaged, names functions, or holds no dictionary.
    pub(super) fn open(path: &Path) -> Result<Self, SaeError> {
        let wrong = |problem: String| SaeError::File {
            path: path.to_owned(),
            problem,
        };
        let mut archive = open_archive(path)?;
        let mut prefixes = archive.file_names().filter_map(|name| {
            name.strip_suffix("data.pkl")
                .filter(|prefix| prefix.is_empty() || prefix.ends_with('/'))
        });
        let prefix = match (prefixes.next(), prefixes.next()) {
            (Some(prefix), None) => prefix.to_owned(),
            (None, _) => {
                return Err(wrong(
                    "the archive holds no data.pkl, so it is no file of torch.save".to_owned(),
                ));
            }
            (Some(_), Some(_)) => {
                return Err(wrong("the archive holds more than one data.pkl".to_owned()));
            }
        };
        drop(prefixes);
        let order = format!("{prefix}byteorder");
        if archive.index_for_name(&order).is_some() {
            let order = record(path, &mut archive, &order, 64)?;
            if order != b"little" {
                return Err(wrong(
                    "its numbers are big-endian; little-endian ones can be read".to_owned(),
                ));
            }
        }
        let pickle = record(
            path,
            &mut archive,
            &format!("{prefix}data.pkl"),
            LARGEST_PICKLE,
        )?;
        let entries = read_dictionary(&pickle).map_err(|error| SaeError::Pickle {
            path: path.to_owned(),
            error,
        })?;
        Ok(Self {
            path: path.to_owned(),
            prefix,
            entries,
        })
    }

    /// Whether a dictionary stands under a name.
    pub(super) fn has_dictionary(&self, name: &str) -> bool {
        self.entries.get(name) == Some(&Entry::Dictionary)
    }
}

fn open_archive(path: &Path) -> Result<ZipArchive<BufReader<File>>, SaeError> {
    let wrong = |problem: String| SaeError::File {
        path: path.to_owned(),
        problem,
    };
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    ZipArchive::new(BufReader::new(file)).map_err(|error| {
        wrong(format!(
            "it is no zip archive ({error}); torch before 1.6 wrote other files: load it there and save it again"
        ))
    })
}

/// The bytes of an uncompressed record of no more than `largest` bytes.
fn record(
    path: &Path,
    archive: &mut ZipArchive<BufReader<File>>,
    name: &str,
    largest: u64,
) -> Result<Vec<u8>, SaeError> {
    let wrong = |problem: String| SaeError::File {
        path: path.to_owned(),
        problem: format!("{name}: {problem}"),
    };
    let length = std::fs::metadata(path)
        .map_err(|error| wrong(error.to_string()))?
        .len();
    let record = archive
        .by_name(name)
        .map_err(|error| wrong(error.to_string()))?;
    if record.compression() != CompressionMethod::Stored {
        return Err(wrong(
            "it is compressed, which torch.save does not do".to_owned(),
        ));
    }
    let size = record.size();
    if size > largest || size > length {
        return Err(wrong(format!(
            "it has {size} bytes, at most {} can be",
            largest.min(length)
        )));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // One byte more than there should be: the end brings the checksum.
    record
        .take(size + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 != size {
        return Err(wrong(format!(
            "it has {} bytes instead of {size}",
            bytes.len()
        )));
    }
    Ok(bytes)
}

impl Arrays for TorchFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.entries
            .iter()
            .map(|(name, entry)| match entry {
                Entry::Tensor(_) => name.clone(),
                _ => format!("{name} (no tensor)"),
            })
            .collect()
    }

    fn header(&self, name: &str) -> Option<(Element, &[usize])> {
        match self.entries.get(name)? {
            Entry::Tensor(view) => Some((view.element, &view.shape)),
            _ => None,
        }
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, SaeError> {
        let Some(Entry::Tensor(view)) = self.entries.get(name) else {
            return Err(SaeError::File {
                path: self.path.clone(),
                problem: format!("`{name}` is missing"),
            });
        };
        let storage = format!("{}data/{}", self.prefix, view.storage);
        let mut archive = open_archive(&self.path)?;
        let bytes = record(&self.path, &mut archive, &storage, u64::MAX)?;
        let size = view.element.size();
        if view.count.checked_mul(size) != Some(bytes.len()) {
            return Err(SaeError::File {
                path: self.path.clone(),
                problem: format!(
                    "{storage} holds {} bytes, the pickle says {} numbers of {size} bytes",
                    bytes.len(),
                    view.count
                ),
            });
        }
        Ok(Cow::Owned(gathered(view, bytes)))
    }
}

/// The numbers of a view, row by row.
fn gathered(view: &TensorView, bytes: Vec<u8>) -> Vec<u8> {
    let size = view.element.size();
    let elements: usize = view.shape.iter().product();
    let mut step = 1;
    let mut contiguous = true;
    for (&length, &stride) in view.shape.iter().zip(&view.strides).rev() {
        contiguous &= length <= 1 || stride == step;
        step *= length;
    }
    if contiguous {
        if view.offset == 0 && bytes.len() == elements * size {
            return bytes;
        }
        return bytes[view.offset * size..(view.offset + elements) * size].to_vec();
    }
    let mut out = Vec::with_capacity(elements * size);
    let mut place = vec![0_usize; view.shape.len()];
    for _ in 0..elements {
        let steps = place
            .iter()
            .zip(&view.strides)
            .map(|(&i, &stride)| i * stride);
        let at = size * (view.offset + steps.sum::<usize>());
        out.extend_from_slice(&bytes[at..at + size]);
        for (i, &length) in place.iter_mut().zip(&view.shape).rev() {
            *i += 1;
            if *i < length {
                break;
            }
            *i = 0;
        }
    }
    out
}

/// The numbers of an array that is written.
pub(super) enum Numbers<'a> {
    F32(&'a [f32]),
    I32(&'a [i32]),
}

impl Numbers<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(values) => cast_slice(values),
            Self::I32(values) => cast_slice(values),
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I32(values) => values.len(),
        }
    }

    /// The storage class of torch.
    fn class(&self) -> &'static str {
        match self {
            Self::F32(_) => "FloatStorage",
            Self::I32(_) => "IntStorage",
        }
    }
}

/// Writes a dictionary of tensors as `torch.save` does, whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(path: &Path, arrays: &[(&str, &[usize], Numbers<'_>)]) -> Result<(), SaeError> {
    let wrong = |problem: String| SaeError::File {
        path: path.to_owned(),
        problem,
    };
    let prefix = path.file_stem().map_or_else(
        || "archive".to_owned(),
        |stem| stem.to_string_lossy().into_owned(),
    );
    let mut records: Vec<(String, Cow<'_, [u8]>)> = vec![
        ("data.pkl".to_owned(), Cow::Owned(pickled(arrays))),
        ("byteorder".to_owned(), Cow::Borrowed(b"little")),
    ];
    for (index, (_, _, numbers)) in arrays.iter().enumerate() {
        records.push((format!("data/{index}"), Cow::Borrowed(numbers.bytes())));
    }
    records.push(("version".to_owned(), Cow::Borrowed(b"3\n")));

    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in &records {
        // torch maps the numbers where they begin at a multiple of 64.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(bytes.len() as u64 >= u64::from(u32::MAX))
            .with_alignment(64);
        archive
            .start_file(format!("{prefix}/{name}"), options)
            .map_err(|error| wrong(error.to_string()))?;
        archive
            .write_all(bytes)
            .map_err(|error| wrong(error.to_string()))?;
    }
    let bytes = archive
        .finish()
        .map_err(|error| wrong(error.to_string()))?
        .into_inner();
    Ok(write_atomic(path, &bytes)?)
}

/// The pickle, protocol 2, with the operations that torch's own restricted reader knows.
fn pickled(arrays: &[(&str, &[usize], Numbers<'_>)]) -> Vec<u8> {
    let mut out = vec![0x80, 2, b'}', b'('];
    for (index, (name, shape, numbers)) in arrays.iter().enumerate() {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{}\n", numbers.class()).bytes());
        text(&mut out, &index.to_string());
        text(&mut out, "cpu");
        integer(&mut out, numbers.count());
        out.extend(b"tQ");
        integer(&mut out, 0);
        out.push(b'(');
        for &size in *shape {
            integer(&mut out, size);
        }
        out.extend(b"t(");
        for place in 0..shape.len() {
            integer(&mut out, shape[place + 1..].iter().product());
        }
        // Strides; no gradient; no hooks; the call; and its end.
        out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn integer(out: &mut Vec<u8>, value: usize) {
    if let Ok(value) = i32::try_from(value) {
        out.push(b'J');
        out.extend(value.to_le_bytes());
    } else {
        out.extend([0x8a, 8]);
        out.extend((value as u64).to_le_bytes());
    }
}
