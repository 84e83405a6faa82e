//! The files of a snapshot, one after the other: resumed, tried again, checked.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::atomic::sync_dir;
use crate::control::{Control, Stage};
use crate::digest::{BLOCK, Hasher, read_some};
use crate::error::{ArtifactError, IoContext};
use crate::fetch::{Failure, TRIES};

use super::web::Ask;
use super::{About, Job};

/// What is being fetched into one snapshot, with its progress.
pub(super) struct Download<'a> {
    job: &'a Job<'a>,
    commit: &'a str,
    stage: Option<Stage>,
    /// Of all files asked about so far that were not here.
    total: u64,
    /// Of the files that are here by now.
    done: u64,
}

impl<'a> Download<'a> {
    pub(super) fn new(job: &'a Job<'a>, commit: &'a str) -> Self {
        Self {
            job,
            commit,
            stage: None,
            total: 0,
            done: 0,
        }
    }

    /// Fetches the files that the snapshot lacks.
    pub(super) fn fetch(&mut self, names: Vec<String>) -> Result<(), ArtifactError> {
        let snapshot = self.job.folder.snapshot(self.commit);
        let mut wanted = Vec::new();
        for name in names {
            if !snapshot.join(&name).is_file() {
                wanted.push(self.job.about(self.commit, &name)?);
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        self.total += wanted.iter().map(|about| about.bytes).sum::<u64>();
        let stage = self.stage.take().unwrap_or_else(|| {
            let name = format!("fetch {}", self.job.reference.repository());
            self.job.control.stage(&name, self.total, "bytes")
        });
        // Shards are known only when their index is here.
        stage.set_total(self.total);
        for about in &wanted {
            stage.message(&about.name);
            self.fetch_one(about, &stage)?;
            self.done += about.bytes;
        }
        stage.message("");
        self.stage = Some(stage);
        Ok(())
    }

    /// Ends the progress; whether there was nothing to fetch.
    pub(super) fn finish(self) -> bool {
        match self.stage {
            Some(stage) => {
                stage.finish();
                false
            }
            None => true,
        }
    }

    fn fetch_one(&self, about: &About, stage: &Stage) -> Result<(), ArtifactError> {
        let (folder, control) = (&self.job.folder, self.job.control);
        let waiting = format!("{}: {}", self.job.reference.repository(), about.name);
        let _lock = folder.lock(&about.etag, &waiting, control)?;
        let blob = folder.blob(&about.etag);
        if fs::metadata(&blob).is_ok_and(|blob| blob.is_file() && blob.len() == about.bytes) {
            // Another revision has the same file, or another process was faster.
            stage.resume_from(self.done + about.bytes);
        } else {
            self.fetch_blob(about, &blob, stage)?;
        }
        folder.link(self.commit, &about.name, &about.etag)
    }

    fn fetch_blob(&self, about: &About, blob: &Path, stage: &Stage) -> Result<(), ArtifactError> {
        let path = self.job.folder.incomplete(&about.etag);
        let mut part = Part::open(path, about, self.job.control)?;
        if part.have > 0 {
            stage.resume_from(self.done + part.have);
        }
        let url = self.job.file_url(self.commit, &about.name);
        let mut failures = 0;
        loop {
            let before = part.have;
            let reason = match self.go_on(&url, about, &mut part, stage) {
                Ok(()) => break,
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Broken(reason)) => reason,
            };
            // A bad connection that brings something each time brings all of it in the end.
            failures = if part.have > before { 1 } else { failures + 1 };
            if failures == TRIES {
                return Err(ArtifactError::Fetch {
                    name: format!("{} of {}", about.name, self.job.reference),
                    origin: self.job.hub.endpoint.clone(),
                    tries: TRIES,
                    reason,
                });
            }
            self.job
                .control
                .say(&format!("{}: {reason}; trying again", about.name));
            self.job.pause(failures)?;
        }
        part.put(blob)
    }

    /// One connection: takes what comes, and checks it when all of it is there.
    fn go_on(
        &self,
        url: &str,
        about: &About,
        part: &mut Part,
        stage: &Stage,
    ) -> Result<(), Failure> {
        let control = self.job.control;
        if part.have < about.bytes {
            let ask = match part.have {
                0 => Ask::Whole,
                have => Ask::From(have),
            };
            let answer = self.job.web.ask(url, ask, control)?;
            match answer.status {
                206 if starts_at(answer.header("content-range"), part.have) => {}
                206 | 416 => {
                    part.start_anew()?;
                    stage.set(self.done);
                    return Err(Failure::Broken(
                        "the server gave another part than was asked for".to_owned(),
                    ));
                }
                _ => {
                    self.job.check(&answer, url)?;
                    // All of it from the start: this server cannot go on in the middle.
                    part.start_anew()?;
                    stage.set(self.done);
                }
            }
            while let Some(block) = answer.next_block(control)? {
                let room = about.bytes - part.have;
                if block.len() as u64 > room {
                    part.start_anew()?;
                    stage.set(self.done);
                    return Err(Failure::Broken(format!(
                        "more came than the {} bytes of the file",
                        about.bytes
                    )));
                }
                part.write(&block)?;
                stage.set(self.done + part.have);
            }
        }
        if part.have < about.bytes {
            return Err(Failure::Broken(format!(
                "the connection ended after {} of {} bytes",
                part.have, about.bytes
            )));
        }
        if let Some(found) = part.wrong_hash(about) {
            part.start_anew()?;
            stage.set(self.done);
            return Err(Failure::Broken(format!(
                "the download is broken (SHA-256 {} expected, {found} found)",
                about.etag
            )));
        }
        Ok(())
    }
}

/// Whether a `content-range` such as `bytes 5-9/10` begins at this byte.
fn starts_at(range: Option<&str>, start: u64) -> bool {
    range
        .and_then(|range| {
            range
                .trim()
                .strip_prefix("bytes")?
                .trim_start()
                .split_once('-')
        })
        .is_some_and(|(first, _)| first.parse() == Ok(start))
}

/// The part of a blob that has come so far.
struct Part {
    path: PathBuf,
    file: File,
    have: u64,
    /// Over what has come, where the name of the blob is its SHA-256.
    hasher: Option<Hasher>,
    /// Whether it may stay when the work ends early: only what can be checked can be gone on with.
    keep: bool,
}

impl Part {
    /// Opens what an earlier run has left, else starts at nothing.
    fn open(path: PathBuf, about: &About, control: &Control) -> Result<Self, ArtifactError> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).at("create", dir)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .at("create", &path)?;
        let keep = is_sha256(&about.etag);
        let mut part = Self {
            path,
            file,
            have: 0,
            hasher: keep.then(Hasher::new),
            keep,
        };
        let left = part.file.metadata().at("read", &part.path)?.len();
        if keep && left <= about.bytes {
            part.read_on(control)?;
        } else {
            part.start_anew()?;
        }
        Ok(part)
    }

    /// Takes in what the file holds.
    fn read_on(&mut self, control: &Control) -> Result<(), ArtifactError> {
        let mut block = vec![0; BLOCK];
        loop {
            control.check()?;
            let read = read_some(&mut self.file, &mut block).at("read", &self.path)?;
            if read == 0 {
                return Ok(());
            }
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&block[..read]);
            }
            self.have += read as u64;
        }
    }

    fn start_anew(&mut self) -> Result<(), ArtifactError> {
        if self.file.metadata().at("read", &self.path)?.len() > 0 {
            self.file.set_len(0).at("write", &self.path)?;
            self.file.seek(SeekFrom::Start(0)).at("write", &self.path)?;
        }
        self.have = 0;
        if self.keep {
            self.hasher = Some(Hasher::new());
        }
        Ok(())
    }

    fn write(&mut self, block: &[u8]) -> Result<(), ArtifactError> {
        self.file.write_all(block).at("write", &self.path)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(block);
        }
        self.have += block.len() as u64;
        Ok(())
    }

    /// The SHA-256 of what has come, if it is not that of the blob.
    fn wrong_hash(&mut self, about: &About) -> Option<String> {
        let found = self.hasher.take()?.finish();
        (found != about.etag.to_ascii_lowercase()).then_some(found)
    }

    /// Gives the whole file its name.
    fn put(mut self, blob: &Path) -> Result<(), ArtifactError> {
        self.file.sync_all().at("write", &self.path)?;
        fs::rename(&self.path, blob).at("create", blob)?;
        self.keep = true;
        match blob.parent() {
            Some(dir) => sync_dir(dir),
            None => Ok(()),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.keep {
            // It will be overwritten if it cannot be removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
}
