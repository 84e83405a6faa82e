//! Activations on disk.
//!
//! A store is an artifact directory with shards `shard-00000.safetensors`, … Each holds `activations`
//! `[n, d]` in f32 and, per row, `tokens` (u32), `positions` (u32, within the sequence), `sequences` (u32,
//! over the whole store) and `flags` (u8, see [`Flags`]). Rows of a sequence are neighbours, in order.

use std::path::{Path, PathBuf};

use bytemuck::{cast_slice, pod_collect_to_vec};
use memmap2::Mmap;
use pullback_artifact::{Manifest, read_json, write_atomic};
use pullback_kernels::map_file;
use pullback_model::Site;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::ActivationError;

/// The `kind` of a store's manifest.
pub const STORE_KIND: &str = "store";

/// Marks of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// The first position of a sequence: an attention sink, whatever token stands there.
    pub const FIRST: Self = Self(1);
    /// The norm is more than ten times the median: another attention sink, or a defect.
    pub const OUTLIER: Self = Self(2);
    /// From a held-out document.
    pub const HELD_OUT: Self = Self(4);

    /// Whether it carries all marks of `other`.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether training should leave the row out for what it is (not for being held out).
    pub fn is_abnormal(self) -> bool {
        self.0 & (Self::FIRST.0 | Self::OUTLIER.0) != 0
    }
}

/// What a store says of itself beside its manifest: the file `store.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreInfo {
    /// The site.
    pub site: Site,
    /// Width of an activation.
    pub d: usize,
    /// Rows.
    pub rows: usize,
    /// Rows of each shard.
    pub shard_rows: Vec<usize>,
    /// Tokens in a sequence.
    pub context: usize,
    /// Whether each sequence starts with the model's beginning-of-text token.
    pub prepend_bos: bool,
    /// Median norm of the rows that are not first in their sequence (over the first shard).
    pub median_norm: f64,
    /// Rows marked as outliers.
    pub outliers: usize,
    /// Rows held out.
    pub held_out: usize,
}

/// A store, memory-mapped.
#[derive(Debug)]
pub struct ActivationStore {
    path: PathBuf,
    manifest: Manifest,
    info: StoreInfo,
    shards: Vec<Shard>,
    /// First row of each shard, and the number of rows at the end.
    starts: Vec<usize>,
}

#[derive(Debug)]
struct Shard {
    activations: Numbers,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    sequences: Vec<u32>,
    flags: Vec<u8>,
}

/// Activations of a shard.
#[derive(Debug)]
enum Numbers {
    /// Bytes of a file.
    Mapped(Mmap, std::ops::Range<usize>),
    /// Of a store that was never written.
    Owned(Vec<f32>),
}

impl Numbers {
    fn get(&self) -> &[f32] {
        match self {
            Self::Mapped(map, span) => cast_slice(&map[span.clone()]),
            Self::Owned(numbers) => numbers,
        }
    }
}

impl ActivationStore {
    /// A store that is not on disk; `path` is what errors call it.
    pub(crate) fn in_memory(
        path: PathBuf,
        manifest: Manifest,
        info: StoreInfo,
        rows: ShardRows,
    ) -> Self {
        let starts = vec![0, info.rows];
        let shard = Shard {
            activations: Numbers::Owned(rows.activations),
            tokens: rows.tokens,
            positions: rows.positions,
            sequences: rows.sequences,
            flags: rows.flags,
        };
        Self {
            path,
            manifest,
            info,
            shards: vec![shard],
            starts,
        }
    }

    /// Opens a store.
    ///
    /// # Errors
    /// The directory is no store, or a shard is missing, short or contradicts `store.json`.
    pub fn open(path: &Path) -> Result<Self, ActivationError> {
        let manifest = Manifest::load_kind(path, STORE_KIND)?;
        manifest.verify_sizes(path)?;
        let info: StoreInfo = read_json(&path.join("store.json"))?;
        let total: usize = info.shard_rows.iter().sum();
        if info.rows != total
            || info.context == 0
            || !info.rows.is_multiple_of(info.context)
            || info.d == 0
        {
            return Err(ActivationError::Shard {
                path: path.join("store.json"),
                problem: format!(
                    "{} rows of width {} in sequences of {} contradict shards of {total} rows in all",
                    info.rows, info.d, info.context
                ),
            });
        }
        let mut shards = Vec::with_capacity(info.shard_rows.len());
        let mut starts = vec![0];
        for (number, &rows) in info.shard_rows.iter().enumerate() {
            shards.push(Shard::open(&path.join(shard_name(number)), rows, info.d)?);
            starts.push(starts[number] + rows);
        }
        let shards_of = shards.iter().zip(&starts);
        for (number, (shard, &start)) in shards_of.enumerate() {
            let wrong = |&(row, &position): &(usize, &u32)| {
                (start + row) % info.context != position as usize
            };
            if let Some((row, position)) = shard.positions.iter().enumerate().find(wrong) {
                return Err(ActivationError::Shard {
                    path: path.join(shard_name(number)),
                    problem: format!(
                        "row {row} has position {position}, which does not fit sequences of {} tokens",
                        info.context
                    ),
                });
            }
        }
        Ok(Self {
            path: path.to_owned(),
            manifest,
            info,
            shards,
            starts,
        })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What it holds.
    pub fn info(&self) -> &StoreInfo {
        &self.info
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.info.rows
    }

    /// Whether it holds no rows.
    pub fn is_empty(&self) -> bool {
        self.info.rows == 0
    }

    fn locate(&self, row: usize) -> (&Shard, usize) {
        let shard = self.starts.partition_point(|&start| start <= row) - 1;
        (&self.shards[shard], row - self.starts[shard])
    }

    /// Activation `[d]` of a row.
    ///
    /// # Panics
    /// If the row is not below [`len`](Self::len).
    pub fn row(&self, row: usize) -> &[f32] {
        let (shard, row) = self.locate(row);
        let d = self.info.d;
        &shard.activations.get()[row * d..(row + 1) * d]
    }

    /// Token id of a row.
    pub fn token(&self, row: usize) -> u32 {
        let (shard, row) = self.locate(row);
        shard.tokens[row]
    }

    /// Position of a row in its sequence.
    pub fn position(&self, row: usize) -> u32 {
        let (shard, row) = self.locate(row);
        shard.positions[row]
    }

    /// Sequence of a row.
    pub fn sequence(&self, row: usize) -> u32 {
        let (shard, row) = self.locate(row);
        shard.sequences[row]
    }

    /// Marks of a row.
    pub fn flags(&self, row: usize) -> Flags {
        let (shard, row) = self.locate(row);
        Flags(shard.flags[row])
    }

    /// Rows that are neither first in their sequence nor outliers, held out or not.
    pub fn normal_rows(&self, held_out: bool) -> Vec<u32> {
        (0..self.len())
            .filter(|&row| {
                let flags = self.flags(row);
                !flags.is_abnormal() && flags.has(Flags::HELD_OUT) == held_out
            })
            .map(|row| row as u32)
            .collect()
    }

    /// First rows of the sequences, held out or not; each is [`StoreInfo::context`] rows long.
    pub fn sequence_starts(&self, held_out: bool) -> Vec<usize> {
        (0..self.len())
            .step_by(self.info.context.max(1))
            .filter(|&row| self.flags(row).has(Flags::HELD_OUT) == held_out)
            .collect()
    }

    /// Copies rows `[rows.len(), d]` into one slice.
    ///
    /// # Panics
    /// If `out` has another size.
    pub fn gather(&self, rows: &[u32], out: &mut [f32]) {
        let d = self.info.d;
        assert_eq!(
            out.len(),
            rows.len() * d,
            "gather: the slice has another size"
        );
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(d)) {
            out.copy_from_slice(self.row(row as usize));
        }
    }
}

/// File name of a shard.
pub(crate) fn shard_name(number: usize) -> String {
    format!("shard-{number:05}.safetensors")
}

/// Rows on their way to disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShardRows {
    pub(crate) activations: Vec<f32>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) sequences: Vec<u32>,
    pub(crate) flags: Vec<u8>,
}

impl ShardRows {
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn write(&self, path: &Path, d: usize) -> Result<(), ActivationError> {
        let n = self.len();
        let wrong = |error: safetensors::SafeTensorError| ActivationError::Shard {
            path: path.to_owned(),
            problem: error.to_string(),
        };
        let view =
            |dtype, shape: Vec<usize>, bytes| TensorView::new(dtype, shape, bytes).map_err(wrong);
        let tensors = [
            (
                "activations",
                view(Dtype::F32, vec![n, d], cast_slice(&self.activations))?,
            ),
            (
                "tokens",
                view(Dtype::U32, vec![n], cast_slice(&self.tokens))?,
            ),
            (
                "positions",
                view(Dtype::U32, vec![n], cast_slice(&self.positions))?,
            ),
            (
                "sequences",
                view(Dtype::U32, vec![n], cast_slice(&self.sequences))?,
            ),
            ("flags", view(Dtype::U8, vec![n], &self.flags)?),
        ];
        let bytes = safetensors::serialize(tensors, None).map_err(wrong)?;
        Ok(write_atomic(path, &bytes)?)
    }
}

impl Shard {
    fn open(path: &Path, rows: usize, d: usize) -> Result<Self, ActivationError> {
        let wrong = |problem: String| ActivationError::Shard {
            path: path.to_owned(),
            problem,
        };
        let map = map_file(path).map_err(|source| ActivationError::Io {
            path: path.to_owned(),
            source,
        })?;
        let tensors = SafeTensors::deserialize(&map).map_err(|error| wrong(error.to_string()))?;
        let find = |name: &str, dtype: Dtype, shape: &[usize]| -> Result<&[u8], ActivationError> {
            let view = tensors
                .tensor(name)
                .map_err(|error| wrong(format!("{name}: {error}")))?;
            if view.dtype() != dtype || view.shape() != shape {
                return Err(wrong(format!(
                    "{name} is {:?} {:?}, expected {dtype:?} {shape:?}",
                    view.dtype(),
                    view.shape()
                )));
            }
            Ok(view.data())
        };
        let bytes = find("activations", Dtype::F32, &[rows, d])?;
        let start = bytes.as_ptr() as usize - map.as_ptr() as usize;
        let activations = start..start + bytes.len();
        if bytemuck::try_cast_slice::<u8, f32>(bytes).is_err() {
            return Err(wrong(
                "activations do not start at a multiple of 4 bytes".to_owned(),
            ));
        }
        let words =
            |name| Ok::<_, ActivationError>(pod_collect_to_vec(find(name, Dtype::U32, &[rows])?));
        let (tokens, positions, sequences) =
            (words("tokens")?, words("positions")?, words("sequences")?);
        let flags = find("flags", Dtype::U8, &[rows])?.to_vec();
        Ok(Self {
            activations: Numbers::Mapped(map, activations),
            tokens,
            positions,
            sequences,
            flags,
        })
    }
}
