//! The hub's own cache: `models--OWNER--NAME` with `blobs`, `refs` and `snapshots`, as its Python tools have it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::atomic::{sync_dir, write_atomic};
use crate::cache::wait_for_lock;
use crate::control::Control;
use crate::error::{ArtifactError, IoContext};

use super::reference::{HubReference, is_inner_path};
use super::select::{self, CONFIG, INDEX, TOKENIZER, WEIGHTS};

/// A repository's folder in the cache.
pub(super) struct Folder {
    root: PathBuf,
    locks: PathBuf,
}

impl Folder {
    pub(super) fn new(cache: &Path, reference: &HubReference) -> Self {
        let folder = reference.folder();
        Self {
            root: cache.join(&folder),
            locks: cache.join(".locks").join(folder),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Where the part of a blob lies that has come so far.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.root.join("refs").join(revision)
    }

    /// The commit that a revision was when it was last fetched.
    pub(super) fn commit_of(&self, revision: &str) -> Result<Option<String>, ArtifactError> {
        if is_commit(revision) {
            return Ok(Some(revision.to_owned()));
        }
        let path = self.reference(revision);
        match fs::read_to_string(&path) {
            Ok(text) if is_inner_path(text.trim()) => Ok(Some(text.trim().to_owned())),
            Ok(_) => Err(ArtifactError::bad_path(&path, "it holds no commit")),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(ArtifactError::io("read", path, error)),
        }
    }

    /// Notes which commit a revision is.
    pub(super) fn set_commit_of(&self, revision: &str, commit: &str) -> Result<(), ArtifactError> {
        if revision == commit || self.commit_of(revision)?.as_deref() == Some(commit) {
            return Ok(());
        }
        write_atomic(&self.reference(revision), commit.as_bytes())
    }

    /// What a snapshot lacks of what was asked for; nothing: it can be used.
    pub(super) fn missing(
        &self,
        reference: &HubReference,
        commit: &str,
    ) -> Result<Vec<String>, ArtifactError> {
        let dir = self.snapshot(commit);
        let lacks = |name: &str| !dir.join(name).is_file();
        let mut needed = Vec::new();
        if let Some(file) = reference.file() {
            needed.push(file.to_owned());
        } else {
            needed.push(CONFIG.to_owned());
            // An older tokenizer is fetched only where there is no other.
            if ["tokenizer.model", "vocab.json"].into_iter().all(lacks) {
                needed.push(TOKENIZER.to_owned());
            }
            if lacks(WEIGHTS) && !lacks(INDEX) {
                needed.extend(select::shards(&dir.join(INDEX))?);
            } else {
                needed.push(WEIGHTS.to_owned());
            }
        }
        needed.retain(|name| lacks(name));
        Ok(needed)
    }

    /// Keeps other processes, those of Python tools as well, from fetching the same blob.
    pub(super) fn lock(
        &self,
        etag: &str,
        waiting: &str,
        control: &Control,
    ) -> Result<File, ArtifactError> {
        wait_for_lock(&self.locks.join(format!("{etag}.lock")), waiting, control)
    }

    /// Puts a blob into a snapshot under its name.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<(), ArtifactError> {
        let path = self.snapshot(commit).join(name);
        let Some(dir) = path.parent() else {
            return Err(ArtifactError::bad_path(&path, "it is no file"));
        };
        fs::create_dir_all(dir).at("create", dir)?;
        match fs::symlink_metadata(&path) {
            // A link into a blob that is gone, or that was replaced.
            Ok(old) if old.is_symlink() || old.is_file() => {
                fs::remove_file(&path).at("replace", &path)?;
            }
            _ => {}
        }
        place(&self.blob(etag), &path, name)?;
        sync_dir(dir)
    }
}

/// Makes a link that still leads to the blob when the cache is moved: up from the file's folder to the snapshot, to
/// `snapshots`, to the repository.
#[cfg(unix)]
fn place(blob: &Path, path: &Path, name: &str) -> Result<(), ArtifactError> {
    let mut target = PathBuf::new();
    for _ in 0..=name.split('/').count() {
        target.push("..");
    }
    target.push("blobs");
    target.push(blob.file_name().unwrap_or_default());
    std::os::unix::fs::symlink(target, path).at("create", path)
}

/// Where links need rights that users have not, the file itself stands in the snapshot.
#[cfg(not(unix))]
fn place(blob: &Path, path: &Path, _name: &str) -> Result<(), ArtifactError> {
    fs::rename(blob, path).at("create", path)
}

/// Whether a revision is the full name of a commit.
pub(super) fn is_commit(revision: &str) -> bool {
    matches!(revision.len(), 40 | 64) && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}
