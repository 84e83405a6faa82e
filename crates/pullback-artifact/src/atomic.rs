//! Files and directories that are there whole or not at all.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::digest::sha256_file;
use crate::error::{ArtifactError, IoContext};
use crate::manifest::{FileEntry, MANIFEST_FILE, Manifest};

/// Held while a process writes into a directory.
const LOCK_FILE: &str = ".pullback.lock";

/// What the names of temporary files begin and end with.
const TEMPORARY: (&str, &str) = (".pullback-", ".tmp");

/// Writes a file by way of a temporary one beside it, so that under its name there is the old content or the new, never
/// half of it. Missing directories are made. Something that is no regular file (a device, a pipe) is written to directly.
///
/// # Errors
/// When it cannot be written; the error names the path. The temporary file is then removed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), ArtifactError> {
    let path = &match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => fs::canonicalize(path).at("write", path)?,
        _ => path.to_path_buf(),
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            return Err(ArtifactError::io(
                "write",
                path,
                io::ErrorKind::IsADirectory.into(),
            ));
        }
        Ok(metadata) if !metadata.is_file() => {
            let mut file = OpenOptions::new()
                .write(true)
                .open(path)
                .at("write", path)?;
            return file
                .write_all(bytes)
                .and_then(|()| file.flush())
                .at("write", path);
        }
        _ => {}
    }
    let dir = parent_of(path);
    fs::create_dir_all(dir).at("create", dir)?;
    let mut file = new_temporary(dir).at("write", path)?;
    file.write_all(bytes).at("write", path)?;
    file.as_file().sync_all().at("write", path)?;
    file.persist(path)
        .map_err(|error| ArtifactError::io("write", path, error.error))?;
    sync_dir(dir)
}

/// Writes a value as indented JSON with a newline at its end, as [`write_atomic`] does.
///
/// # Errors
/// When the value has no JSON form, or as [`write_atomic`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), ArtifactError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| ArtifactError::Encode {
        path: path.to_path_buf(),
        error,
    })?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// Reads a value from a JSON file.
///
/// # Errors
/// When the file cannot be read or understood; the error names the file, the line and column, and what is wrong there.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ArtifactError> {
    let bytes = fs::read(path).at("read", path)?;
    serde_json::from_slice(&bytes).map_err(|error| ArtifactError::Json {
        path: path.to_path_buf(),
        error,
    })
}

/// A directory that appears under its final name only when it is complete. Until then work goes on in `<name>.partial`
/// beside it, which stays for a later run when this one ends early.
#[derive(Debug)]
pub struct PartialDir {
    path: PathBuf,
    final_path: PathBuf,
    resumed: bool,
    replace: bool,
    /// Released when dropped.
    _lock: File,
}

impl PartialDir {
    /// Creates `<final_path>.partial`, or opens the one an earlier run has left.
    ///
    /// # Errors
    /// When `final_path` exists already, another process works on it, or the directory cannot be made.
    pub fn open(final_path: &Path) -> Result<Self, ArtifactError> {
        Self::open_with(final_path, false)
    }

    /// As [`PartialDir::open`], but an artifact that is there already is no error: it stays until [`PartialDir::finish`]
    /// replaces it.
    ///
    /// # Errors
    /// As [`PartialDir::open`], and when what is there is not an artifact.
    pub fn open_replacing(final_path: &Path) -> Result<Self, ArtifactError> {
        Self::open_with(final_path, true)
    }

    fn open_with(final_path: &Path, replace: bool) -> Result<Self, ArtifactError> {
        let path = beside(final_path, ".partial")?;
        let check_final = || {
            if replace {
                check_removable(final_path).map(|_| ())
            } else if exists(final_path)? {
                Err(ArtifactError::Exists {
                    path: final_path.to_path_buf(),
                })
            } else {
                Ok(())
            }
        };
        check_final()?;
        fs::create_dir_all(&path).at("create", &path)?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .at("create", &lock_path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ArtifactError::InUse { path }),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                tracing::warn!(path = %path.display(), "this file system has no locks; going on without");
            }
            Err(TryLockError::Error(error)) => {
                return Err(ArtifactError::io("lock", &lock_path, error));
            }
        }
        // Another process may have finished between the first look and the lock.
        let resumed = !entries(&path)?.is_empty();
        if let Err(error) = check_final() {
            if !resumed {
                // Only what was made just now; a directory with anything in it stays.
                let _ = fs::remove_file(&lock_path);
                let _ = fs::remove_dir(&path);
            }
            return Err(error);
        }
        Ok(Self {
            path,
            final_path: final_path.to_path_buf(),
            resumed,
            replace,
            _lock: lock,
        })
    }

    /// Where to write until the artifact is finished.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name it will have.
    pub fn final_path(&self) -> &Path {
        &self.final_path
    }

    /// Whether an earlier run has left something here to go on from.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Throws away what is there, to start anew.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn clear(&mut self) -> Result<(), ArtifactError> {
        for name in entries(&self.path)? {
            remove(&self.path.join(name))?;
        }
        self.resumed = false;
        Ok(())
    }

    /// Records the size and SHA-256 of every file in `manifest`, writes it, and gives the directory its final name.
    ///
    /// # Errors
    /// When something cannot be read, written or renamed, or the final name has come into being meanwhile. What was
    /// written stays in `<name>.partial`.
    pub fn finish(self, manifest: Manifest) -> Result<Manifest, ArtifactError> {
        self.finish_skipping(manifest, &[])
    }

    /// As [`PartialDir::finish`], first removing the files and directories named in `working`, such as a checkpoint.
    ///
    /// # Errors
    /// As [`PartialDir::finish`].
    pub fn finish_skipping(
        self,
        mut manifest: Manifest,
        working: &[&str],
    ) -> Result<Manifest, ArtifactError> {
        for name in working {
            let path = crate::manifest::member_path(&self.path, name)?;
            if exists(&path)? {
                remove(&path)?;
            }
        }
        manifest.files = BTreeMap::new();
        record_files(&self.path, "", &mut manifest.files)?;
        write_json(&self.path.join(MANIFEST_FILE), &manifest)?;
        sync_dir(&self.path)?;
        if self.replace {
            remove_existing(&self.final_path)?;
        } else if exists(&self.final_path)? {
            return Err(ArtifactError::Exists {
                path: self.final_path,
            });
        }
        fs::rename(&self.path, &self.final_path).at("create", &self.final_path)?;
        // The lock goes last, so that no other process can have taken the old name in between.
        let lock_path = self.final_path.join(LOCK_FILE);
        fs::remove_file(&lock_path).at("remove", &lock_path)?;
        sync_dir(parent_of(&self.final_path))?;
        Ok(manifest)
    }
}

/// Refuses a final name that is taken, before work is done for it; [`PartialDir::open`] checks again.
///
/// # Errors
/// Something stands at the path.
pub fn refuse_existing(final_path: &Path) -> Result<(), ArtifactError> {
    if final_path.symlink_metadata().is_ok() {
        return Err(ArtifactError::Exists {
            path: final_path.to_owned(),
        });
    }
    Ok(())
}

/// Removes the artifact at `final_path`, for `--force`; nothing there is no error. Only a directory with a readable
/// `pullback.json` is removed, so that a mistyped name cannot cost anyone their data.
///
/// # Errors
/// When what is there is not an artifact, or cannot be removed.
pub fn remove_existing(final_path: &Path) -> Result<(), ArtifactError> {
    if !check_removable(final_path)? {
        return Ok(());
    }
    // Renamed first: an interrupted removal must not leave half an artifact under its name.
    let doomed = beside(final_path, &format!(".removing-{}", std::process::id()))?;
    fs::rename(final_path, &doomed).at("remove", final_path)?;
    fs::remove_dir_all(&doomed).at("remove", &doomed)
}

/// Whether there is an artifact to remove; an error when there is something else.
fn check_removable(path: &Path) -> Result<bool, ArtifactError> {
    let refuse = |reason: String| {
        Err(ArtifactError::NotRemovable {
            path: path.to_path_buf(),
            reason,
        })
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(ArtifactError::io("read", path, error)),
        Ok(metadata) if metadata.is_symlink() => refuse("it is a symbolic link".to_owned()),
        Ok(metadata) if !metadata.is_dir() => refuse("it is not a directory".to_owned()),
        Ok(_) => match read_json::<serde_json::Value>(&path.join(MANIFEST_FILE)) {
            Ok(manifest) if manifest.get("kind").is_some() && manifest.get("format").is_some() => {
                Ok(true)
            }
            Ok(_) => refuse(format!("its {MANIFEST_FILE} is not that of an artifact")),
            Err(ArtifactError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                refuse(format!(
                    "it holds no {MANIFEST_FILE}, so it is not a pullback artifact"
                ))
            }
            Err(error) => refuse(error.to_string()),
        },
    }
}

/// Records every file under `dir`, whose names begin with `prefix`, and makes sure that it is on the disk.
fn record_files(
    dir: &Path,
    prefix: &str,
    files: &mut BTreeMap<String, FileEntry>,
) -> Result<(), ArtifactError> {
    for name in entries(dir)? {
        let path = dir.join(&name);
        let Some(name) = name.to_str() else {
            return Err(ArtifactError::bad_path(
                &path,
                "file names in an artifact must be UTF-8",
            ));
        };
        if prefix.is_empty() && name == MANIFEST_FILE {
            continue;
        }
        let metadata = fs::symlink_metadata(&path).at("read", &path)?;
        if metadata.is_file() && name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1) {
            // Left by a run that was killed while it wrote a file.
            remove(&path)?;
            continue;
        }
        let name = format!("{prefix}{name}");
        if metadata.is_dir() {
            record_files(&path, &format!("{name}/"), files)?;
        } else if metadata.is_file() {
            sync_file(&path)?;
            files.insert(
                name,
                FileEntry {
                    bytes: metadata.len(),
                    sha256: sha256_file(&path, None)?,
                },
            );
        } else {
            return Err(ArtifactError::bad_path(
                &path,
                "an artifact holds only files and directories",
            ));
        }
    }
    sync_dir(dir)
}

/// What is in a directory, but for our lock.
fn entries(dir: &Path) -> Result<Vec<OsString>, ArtifactError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).at("read", dir)? {
        let name = entry.at("read", dir)?.file_name();
        if name != LOCK_FILE {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Removes a file or a whole directory; links are not followed.
pub(crate) fn remove(path: &Path) -> Result<(), ArtifactError> {
    let metadata = fs::symlink_metadata(path).at("remove", path)?;
    if metadata.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
    .at("remove", path)
}

/// Whether there is anything under this name, be it a broken link.
fn exists(path: &Path) -> Result<bool, ArtifactError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(ArtifactError::io("read", path, error)),
    }
}

/// `path` with something added to its last part.
fn beside(path: &Path, suffix: &str) -> Result<PathBuf, ArtifactError> {
    let Some(name) = path.file_name() else {
        return Err(ArtifactError::bad_path(
            path,
            "it does not end in a name for the new directory",
        ));
    };
    let mut name = name.to_owned();
    name.push(suffix);
    Ok(path.with_file_name(name))
}

/// The directory a path is in.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A temporary file with the permissions of an ordinary one.
fn new_temporary(dir: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(dir)
}

/// Makes sure that a file's content is on the disk.
pub(crate) fn sync_file(path: &Path) -> Result<(), ArtifactError> {
    // Windows syncs only what is open for writing.
    let file = OpenOptions::new()
        .read(true)
        .write(cfg!(windows))
        .open(path)
        .at("read", path)?;
    file.sync_all().at("write", path)
}

/// Makes sure that a directory's entries are on the disk, where the system has that.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), ArtifactError> {
    if cfg!(unix) {
        match File::open(dir).at("read", dir)?.sync_all() {
            // Some network file systems cannot sync directories.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
                ) =>
            {
                Ok(())
            }
            other => other.at("write", dir),
        }
    } else {
        Ok(())
    }
}
