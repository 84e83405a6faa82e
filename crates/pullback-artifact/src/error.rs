//! The error of this crate.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use crate::control::Interrupted;

/// Everything that can go wrong with artifacts, the cache and downloads. Each case names the file or value and, where
/// there is something to be done about it, says what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The operating system refused something.
    #[error("cannot {action} {}: {}", path.display(), describe_io(error))]
    Io {
        /// What was tried, as a verb: `read`, `write`, `create`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A JSON file cannot be understood.
    #[error("cannot read {}: {error}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong and where (line and column).
        error: serde_json::Error,
    },
    /// A value cannot be written as JSON.
    #[error("cannot write {} as JSON: {error}", path.display())]
    Encode {
        /// The file that was to be written.
        path: PathBuf,
        /// Why not.
        error: serde_json::Error,
    },
    /// The output is there already.
    #[error("{} already exists: use --force to replace it, or give another name with -o", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// A path cannot be used for what it was given for.
    #[error("cannot use {}: {reason}", path.display())]
    BadPath {
        /// The path.
        path: PathBuf,
        /// Why not, and what would be right.
        reason: String,
    },
    /// `--force` was asked to remove something that is not an artifact.
    #[error("will not remove {}: {reason}; remove it yourself or give another name with -o", path.display())]
    NotRemovable {
        /// The path.
        path: PathBuf,
        /// Why it is not touched.
        reason: String,
    },
    /// Another process writes into the same directory.
    #[error("{} is being written by another pullback process: wait for it, or give another name with -o", path.display())]
    InUse {
        /// The directory that is locked.
        path: PathBuf,
    },
    /// A server that questions go to.
    #[error("{url}: {reason}")]
    Server {
        /// The address.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A directory is not an artifact.
    #[error("{} is not a pullback artifact: {reason}", path.display())]
    NotAnArtifact {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The artifact was written by a newer program.
    #[error(
        "{} has format {found}, this program reads formats up to {supported}: use a newer pullback", path.display()
    )]
    NewerFormat {
        /// The manifest.
        path: PathBuf,
        /// Its format number.
        found: u64,
        /// The newest format known here.
        supported: u32,
    },
    /// The artifact is of another kind than the one needed.
    #[error("{} is a `{found}`, a `{needed}` is needed here", path.display())]
    WrongKind {
        /// The artifact.
        path: PathBuf,
        /// Its kind.
        found: String,
        /// The kind needed.
        needed: String,
    },
    /// A file named in a manifest or listing is not there.
    #[error("{} is missing, though its artifact lists it: the artifact is incomplete, make it again", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A file has not the size it was recorded with.
    #[error("{} has {found} bytes where {expected} were recorded: it was cut short or altered, make it again", path.display())]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// The recorded size.
        expected: u64,
        /// The size found.
        found: u64,
    },
    /// A file has not the SHA-256 it was recorded with.
    #[error("{} was altered: SHA-256 {expected} was recorded, {found} was found", path.display())]
    WrongHash {
        /// The file.
        path: PathBuf,
        /// The recorded SHA-256.
        expected: String,
        /// The SHA-256 found.
        found: String,
    },
    /// An artifact was made for something else than what it is used with.
    #[error("this `{kind}` was made for {what} {expected}, not for {found}")]
    Mismatch {
        /// The kind of the artifact.
        kind: String,
        /// What disagrees: `the model`, `the site`, `the sae`.
        what: String,
        /// What it was made for.
        expected: String,
        /// What it is used with.
        found: String,
    },
    /// An artifact says nothing about something that is needed.
    #[error(
        "this `{kind}` does not record {what} it was made for, so it cannot be used with {found}"
    )]
    NotRecorded {
        /// The kind of the artifact.
        kind: String,
        /// What is not recorded: `the model`, `the site`, `the sae`.
        what: String,
        /// What it is used with.
        found: String,
    },
    /// A name is not in the catalogue.
    #[error("`{name}` is not in the catalogue; it holds: {known}")]
    UnknownName {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The catalogue itself is wrong.
    #[error("the catalogue is wrong: {reason}")]
    Catalogue {
        /// What is wrong.
        reason: String,
    },
    /// No place for the cache is known.
    #[error(
        "no place for the cache: set PULLBACK_CACHE (or XDG_CACHE_HOME, or HOME) to a directory"
    )]
    NoCacheDirectory,
    /// The registry's client is not installed.
    #[error("{program} is needed to fetch {name} and was not found: {how}, or place {file} by hand at {}", path.display())]
    MissingProgram {
        /// The program.
        program: String,
        /// What was to be fetched.
        name: String,
        /// How to get the program.
        how: &'static str,
        /// What can be placed by hand.
        file: String,
        /// Where it can be placed.
        path: PathBuf,
    },
    /// A download failed for good.
    #[error("cannot fetch {name} ({origin}) after {tries} tries: {reason}")]
    Fetch {
        /// The catalogue name.
        name: String,
        /// Package and version.
        origin: String,
        /// How often it was tried.
        tries: u32,
        /// What went wrong the last time; the hashes expected and found where it was that.
        reason: String,
    },
    /// A download holds something it must not hold.
    #[error("refused to unpack {name} ({origin}): {reason}")]
    UnsafeArchive {
        /// The catalogue name.
        name: String,
        /// Package and version.
        origin: String,
        /// What is wrong with the archive.
        reason: String,
    },
    /// The name of a repository cannot be understood.
    #[error(
        "cannot use `{text}` as a repository of the Hugging Face hub: {reason}; the form is owner/name[@revision][:file.gguf]"
    )]
    HubReference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The address of the hub cannot be used.
    #[error(
        "cannot use `{endpoint}` as the hub's address: set HF_ENDPOINT to one such as https://huggingface.co"
    )]
    HubEndpoint {
        /// The address.
        endpoint: String,
    },
    /// The token cannot be sent.
    #[error(
        "cannot use the hub's token: it holds blanks or other characters that no token has; check HF_TOKEN, or the file that `hf auth login` writes"
    )]
    HubToken,
    /// The hub shows no such repository.
    #[error("{endpoint} shows no repository `{repository}`: it may not exist, or it is private or gated; {}", advise_token(*with_token))]
    HubNotFound {
        /// The hub's address.
        endpoint: String,
        /// `owner/name`.
        repository: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The repository is there, but its files are given only to those who were granted access.
    #[error("`{repository}` is gated: ask for access at {endpoint}/{repository}; {}", advise_token(*with_token))]
    HubGated {
        /// The hub's address.
        endpoint: String,
        /// `owner/name`.
        repository: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error(
        "`{repository}` has no revision `{revision}`: give a branch, a tag or a commit after `@`"
    )]
    HubNoRevision {
        /// `owner/name`.
        repository: String,
        /// The revision asked for.
        revision: String,
    },
    /// The repository holds no model that can be used.
    #[error("cannot use `{repository}` at revision `{revision}`: {reason}")]
    HubNoModel {
        /// `owner/name`.
        repository: String,
        /// The revision.
        revision: String,
        /// What is missing, and what there is.
        reason: String,
    },
    /// The network was not to be used, and the cache does not hold all that is needed.
    #[error("HF_HUB_OFFLINE is set, and {} lacks {missing} of `{reference}`: unset it and run `pullback pull {reference}`, or copy the folder from a machine that has it", folder.display())]
    HubOffline {
        /// What was asked for.
        reference: String,
        /// The repository's folder in the cache.
        folder: PathBuf,
        /// What is not there.
        missing: String,
    },
    /// The hub cannot be reached.
    #[error(
        "cannot reach {endpoint} after {tries} tries: {reason}; check the network connection, or set HF_HUB_OFFLINE=1 to use what the cache holds"
    )]
    HubUnreachable {
        /// The hub's address.
        endpoint: String,
        /// How often it was tried.
        tries: u32,
        /// What went wrong the last time.
        reason: String,
    },
    /// The hub answered something that cannot be used.
    #[error("{url} gave an answer that cannot be used: {reason}")]
    HubAnswer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The handler for Ctrl-C cannot be set.
    #[error("cannot handle Ctrl-C: {reason}")]
    Signal {
        /// Why not.
        reason: String,
    },
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl ArtifactError {
    /// An error of the operating system: `action` is a verb (`write`), `path` what it was tried on.
    pub fn io(action: &'static str, path: impl AsRef<Path>, error: io::Error) -> Self {
        Self::Io {
            action,
            path: path.as_ref().to_path_buf(),
            error,
        }
    }

    /// Whether this is an interruption by the user and no failure.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted(_))
    }

    pub(crate) fn bad_path(path: &Path, reason: impl Display) -> Self {
        Self::BadPath {
            path: path.to_path_buf(),
            reason: reason.to_string(),
        }
    }
}

/// What can be done about a repository that is not shown.
fn advise_token(with_token: bool) -> &'static str {
    if with_token {
        "the token that was sent (HF_TOKEN, or that of `hf auth login`) is not valid or has no access to it"
    } else {
        "if you have access, give a token with HF_TOKEN or `hf auth login`"
    }
}

/// The reason in plain words where the system's own are hard to recognise.
fn describe_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull => "no space left on device".to_owned(),
        io::ErrorKind::QuotaExceeded => "disk quota exceeded".to_owned(),
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::ReadOnlyFilesystem => "read-only file system".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        io::ErrorKind::NotADirectory => "a part of the path is not a directory".to_owned(),
        _ => error.to_string(),
    }
}

/// Shorthand for `map_err` on results of `std::io`.
pub(crate) trait IoContext<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, ArtifactError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, ArtifactError> {
        self.map_err(|error| ArtifactError::io(action, path, error))
    }
}
