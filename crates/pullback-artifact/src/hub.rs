//! Models of the Hugging Face hub, fetched into the hub's own cache.
//!
//! The cache has the layout of the hub's Python tools, with their locks: what they fetched is used as it lies, and they
//! use what is fetched here. A revision is noted only when all files of its snapshot are there, so that an interrupted
//! fetch leaves the one before in use.

mod download;
mod layout;
mod reference;
mod select;
mod web;

use std::env;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::control::Control;
use crate::error::ArtifactError;
use crate::fetch::{Failure, TRIES};

use download::Download;
use layout::{Folder, is_commit};
use reference::is_inner_path;
use select::{INDEX, Selection, Weights};
use web::{Answer, Ask, Web};

pub use reference::HubReference;
pub(crate) use web::may_carry_secret;

/// The hub, where nothing else is said.
const ENDPOINT: &str = "https://huggingface.co";
/// No listing of a repository is longer.
const LONGEST_LISTING: usize = 64 << 20;
/// The pause before the second try; each further one is twice as long.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The Hugging Face hub and its cache on this machine.
#[derive(Clone)]
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
    retry_pause: Duration,
}

/// A model of the hub, on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// The snapshot's directory, or the one file that was asked for.
    pub path: PathBuf,
    /// The commit that the revision is.
    pub commit: String,
    /// Whether all of it was here already.
    pub from_cache: bool,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// The hub as its other tools see it: the cache at `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else
    /// `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`; the token in `HF_TOKEN`, else in the file
    /// `$HF_TOKEN_PATH`, else in the file `token` of `$HF_HOME`; the server `$HF_ENDPOINT`; no network if
    /// `HF_HUB_OFFLINE` is `1`, `on`, `yes` or `true`.
    ///
    /// # Errors
    /// When no place for the cache is known.
    pub fn from_env() -> Result<Self, ArtifactError> {
        let text = |name: &str| {
            env::var(name)
                .ok()
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        };
        let directory = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let home = directory("HF_HOME")
            .or_else(|| directory("XDG_CACHE_HOME").map(|dir| dir.join("huggingface")))
            .or_else(|| {
                env::home_dir()
                    .filter(|dir| !dir.as_os_str().is_empty())
                    .map(|dir| dir.join(".cache/huggingface"))
            });
        let cache = directory("HF_HUB_CACHE")
            .or_else(|| Some(home.as_ref()?.join("hub")))
            .ok_or(ArtifactError::NoCacheDirectory)?;
        let token = text("HF_TOKEN").or_else(|| {
            let path = directory("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")))?;
            let token = fs::read_to_string(path).ok()?.trim().to_owned();
            (!token.is_empty()).then_some(token)
        });
        let offline = text("HF_HUB_OFFLINE").or_else(|| text("TRANSFORMERS_OFFLINE"));
        let offline = offline.is_some_and(|value| {
            ["1", "on", "yes", "true"]
                .iter()
                .any(|yes| value.eq_ignore_ascii_case(yes))
        });
        let hub = Self::new(
            text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            cache,
        );
        Ok(Self {
            token,
            offline,
            ..hub
        })
    }

    /// The hub at this address with its cache in this directory; no token.
    pub fn new(endpoint: impl Into<String>, cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: endpoint.into(),
            cache: cache.into(),
            token: None,
            offline: false,
            retry_pause: RETRY_PAUSE,
        }
    }

    /// Sends this token.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Uses no network, only what the cache holds.
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// The pause before something is tried again: one second, and twice as long each further time, if not set.
    #[must_use]
    pub fn with_retry_pause(mut self, pause: Duration) -> Self {
        self.retry_pause = pause;
        self
    }

    /// The directory of the cache.
    pub fn cache(&self) -> &std::path::Path {
        &self.cache
    }

    /// What the cache holds for a reference, if that is all that is needed. No network is used, so that a branch is what
    /// it was when it was last fetched: the model stays the same between the commands of one piece of work.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn find(&self, reference: &HubReference) -> Result<Option<HubModel>, ArtifactError> {
        let folder = Folder::new(&self.cache, reference);
        let Some(commit) = folder.commit_of(reference.revision())? else {
            return Ok(None);
        };
        if folder.missing(reference, &commit)?.is_empty() {
            return Ok(Some(model(&folder, reference, commit, true)));
        }
        Ok(None)
    }

    /// Makes sure that the model is in the cache as the hub has it now, and says where. What is there is not fetched
    /// again, and a fetch that was cut goes on where it ended. If the hub cannot be reached, what the cache holds is used,
    /// if it is all that is needed.
    ///
    /// # Errors
    /// When the repository, the revision or the file does not exist or is not shown; when the repository holds no model;
    /// when the hub cannot be reached, or is not to be, and the cache lacks something; when something cannot be written;
    /// on interruption.
    pub fn fetch(
        &self,
        reference: &HubReference,
        control: &Control,
    ) -> Result<HubModel, ArtifactError> {
        if self.offline || is_commit(reference.revision()) {
            if let Some(found) = self.find(reference)? {
                return Ok(found);
            }
            if self.offline {
                return Err(self.lacking(reference)?);
            }
        }
        let job = Job {
            hub: self,
            web: Web::new(&self.endpoint, self.token.as_deref())?,
            folder: Folder::new(&self.cache, reference),
            reference,
            control,
        };
        match job.run() {
            Err(error @ ArtifactError::HubUnreachable { .. }) => match self.find(reference)? {
                Some(found) => {
                    control.say(&format!("{error}; using what the cache holds"));
                    Ok(found)
                }
                None => Err(error),
            },
            other => other,
        }
    }

    /// What is missing in the cache.
    fn lacking(&self, reference: &HubReference) -> Result<ArtifactError, ArtifactError> {
        let folder = Folder::new(&self.cache, reference);
        let missing = match folder.commit_of(reference.revision())? {
            Some(commit) if folder.snapshot(&commit).is_dir() => {
                folder.missing(reference, &commit)?.join(", ")
            }
            _ => format!("the revision `{}`", reference.revision()),
        };
        Ok(ArtifactError::HubOffline {
            reference: reference.to_string(),
            folder: folder.root().to_owned(),
            missing,
        })
    }
}

fn model(folder: &Folder, reference: &HubReference, commit: String, from_cache: bool) -> HubModel {
    let mut path = folder.snapshot(&commit);
    if let Some(file) = reference.file() {
        path.push(file);
    }
    HubModel {
        path,
        commit,
        from_cache,
    }
}

/// One reference being fetched.
struct Job<'a> {
    hub: &'a Hub,
    web: Web,
    folder: Folder,
    reference: &'a HubReference,
    control: &'a Control,
}

/// A repository at one commit.
struct Listing {
    commit: String,
    names: Vec<String>,
}

/// What the hub says of a file.
struct About {
    name: String,
    /// The name of its content: the SHA-256 where that is kept apart from the repository, else a name that git gives.
    etag: String,
    bytes: u64,
}

impl Job<'_> {
    fn run(&self) -> Result<HubModel, ArtifactError> {
        let listing = self.listing()?;
        let selection = Selection::new(self.reference, &listing.names)?;
        let mut download = Download::new(self, &listing.commit);
        let mut names = selection.first;
        match selection.weights {
            Weights::Whole(name) => {
                names.push(name);
                download.fetch(names)?;
            }
            Weights::Sharded => {
                download.fetch(names)?;
                let index = self.folder.snapshot(&listing.commit).join(INDEX);
                let shards = select::shards(&index)?;
                if let Some(name) = shards.iter().find(|name| !listing.names.contains(name)) {
                    return Err(ArtifactError::HubNoModel {
                        repository: self.reference.repository(),
                        revision: self.reference.revision().to_owned(),
                        reason: format!("its {INDEX} names {name}, which it does not hold"),
                    });
                }
                download.fetch(shards)?;
            }
        }
        let from_cache = download.finish();
        self.folder
            .set_commit_of(self.reference.revision(), &listing.commit)?;
        Ok(model(
            &self.folder,
            self.reference,
            listing.commit,
            from_cache,
        ))
    }

    /// The commit of the revision and the names of its files.
    fn listing(&self) -> Result<Listing, ArtifactError> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let repository = self.reference.repository();
        let parts = ["api", "models"]
            .into_iter()
            .chain(repository.split('/'))
            .chain(["revision", self.reference.revision()]);
        let url = self.web.url(parts);
        self.patiently(|| {
            let answer = self.web.ask(&url, Ask::Whole, self.control)?;
            self.check(&answer, &url)?;
            let bytes = answer.read_whole(LONGEST_LISTING, self.control)?;
            let unusable = |reason: String| ArtifactError::HubAnswer {
                url: url.clone(),
                reason,
            };
            let info: Info =
                serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
            if !is_commit(&info.sha) {
                return Err(unusable(format!("\"{}\" is no commit", info.sha)).into());
            }
            let names = info.siblings.into_iter().map(|file| file.rfilename);
            Ok(Listing {
                commit: info.sha,
                // What would lead out of the snapshot is no file of a model.
                names: names.filter(|name| is_inner_path(name)).collect(),
            })
        })
    }

    fn file_url(&self, commit: &str, name: &str) -> String {
        let repository = self.reference.repository();
        let parts = repository.split('/').chain(["resolve", commit]);
        self.web.url(parts.chain(name.split('/')))
    }

    /// What the hub says of a file.
    fn about(&self, commit: &str, name: &str) -> Result<About, ArtifactError> {
        let url = self.file_url(commit, name);
        self.patiently(|| {
            let answer = self.web.ask(&url, Ask::About, self.control)?;
            if !(300..400).contains(&answer.status) {
                self.check(&answer, &url)?;
            }
            let unusable = |reason: String| {
                Failure::Fatal(ArtifactError::HubAnswer {
                    url: url.clone(),
                    reason,
                })
            };
            let etag = answer
                .any_header("x-linked-etag")
                .or_else(|| answer.any_header("etag"))
                .map(|etag| etag.trim_start_matches("W/").trim_matches('"'))
                .ok_or_else(|| unusable("it has no etag".to_owned()))?;
            if !is_blob_name(etag) {
                return Err(unusable(format!(
                    "its etag \"{etag}\" is no name of a file"
                )));
            }
            if let Some(found) = answer.any_header("x-repo-commit")
                && found != commit
            {
                return Err(unusable(format!("it is for commit {found}")));
            }
            // The length of a redirection is not that of the file.
            let bytes = answer.any_header("x-linked-size").or_else(|| {
                answer
                    .header("content-length")
                    .filter(|_| answer.status == 200)
            });
            let bytes = bytes
                .and_then(|bytes| bytes.parse().ok())
                .ok_or_else(|| unusable("it does not say how large the file is".to_owned()))?;
            Ok(About {
                name: name.to_owned(),
                etag: etag.to_owned(),
                bytes,
            })
        })
    }

    /// Turns an answer that is no success into what is wrong.
    fn check(&self, answer: &Answer, url: &str) -> Result<(), Failure> {
        if (200..300).contains(&answer.status) {
            return Ok(());
        }
        let endpoint = self.hub.endpoint.clone();
        let repository = self.reference.repository();
        let with_token = self.hub.token.is_some();
        let code = answer.header("x-error-code").unwrap_or_default();
        Err(match (answer.status, code) {
            (408 | 425 | 429 | 500..=599, _) => {
                return Err(Failure::Broken(format!(
                    "the server answered with status {}{}",
                    answer.status,
                    match answer.status {
                        429 => " (too many requests)",
                        503 => " (overloaded)",
                        _ => "",
                    }
                )));
            }
            (_, "RevisionNotFound") => ArtifactError::HubNoRevision {
                repository,
                revision: self.reference.revision().to_owned(),
            },
            (_, "GatedRepo") | (403, _) => ArtifactError::HubGated {
                endpoint,
                repository,
                with_token,
            },
            (404, "EntryNotFound") => ArtifactError::HubAnswer {
                url: url.to_owned(),
                reason: "the file is listed but not there".to_owned(),
            },
            (401 | 404, _) => ArtifactError::HubNotFound {
                endpoint,
                repository,
                with_token,
            },
            (status, _) => ArtifactError::HubAnswer {
                url: url.to_owned(),
                reason: match answer.header("x-error-message") {
                    Some(message) => format!("status {status}, \"{message}\""),
                    None => format!("status {status}"),
                },
            },
        }
        .into())
    }

    /// Tries something short until it succeeds, fails for good, or has failed too often.
    fn patiently<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, ArtifactError> {
        let mut tries = 1;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Broken(reason)) if tries == TRIES => {
                    return Err(ArtifactError::HubUnreachable {
                        endpoint: self.hub.endpoint.clone(),
                        tries,
                        reason,
                    });
                }
                Err(Failure::Broken(_)) => self.pause(tries)?,
            }
            tries += 1;
        }
    }

    /// Waits before the next try.
    fn pause(&self, failures: u32) -> Result<(), ArtifactError> {
        let long = self.hub.retry_pause * 2_u32.saturating_pow(failures - 1);
        let end = Instant::now() + long;
        while Instant::now() < end {
            self.control.check()?;
            std::thread::sleep(Duration::from_millis(50).min(long));
        }
        Ok(())
    }
}

/// Whether an etag can be the name of a file in the cache.
fn is_blob_name(etag: &str) -> bool {
    (1..=200).contains(&etag.len())
        && !etag.starts_with('.')
        && etag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}
