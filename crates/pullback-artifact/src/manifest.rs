//! `pullback.json`: what an artifact is, what it was made from and which files belong to it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::atomic::read_json;
use crate::control::Control;
use crate::digest::{sha256_bytes, sha256_file};
use crate::error::{ArtifactError, IoContext};

/// The name of the manifest in an artifact's directory.
pub const MANIFEST_FILE: &str = "pullback.json";

/// The format this program writes, and the newest it reads.
pub const FORMAT: u32 = 1;

/// What an artifact is and where it comes from. It holds no time stamps: the same input and seed give the same manifest.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Manifest {
    /// What the artifact is: `store`, `sae`, `adapter`.
    pub kind: String,
    /// The version of this file's layout.
    pub format: u32,
    /// The version of the program that wrote it.
    pub program: String,
    /// The seed of all random choices.
    pub seed: u64,
    /// The place in the model it belongs to, as `blocks.15.hook_resid_post`.
    #[serde(default)]
    pub site: Option<String>,
    /// The model it was made with.
    #[serde(default)]
    pub model: Option<ModelRef>,
    /// The artifacts it was made from.
    #[serde(default)]
    pub parents: Vec<ParentRef>,
    /// The full configuration of the command. It enters the digest, so places of files should stay out of it.
    #[serde(default)]
    pub config: Value,
    /// The files beside this one, with `/` between directories. Filled when the artifact is finished.
    #[serde(default)]
    pub files: BTreeMap<String, FileEntry>,
}

/// A model, by name and content.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ModelRef {
    /// The name it is known by.
    pub name: String,
    /// `sha256:` and the SHA-256 of the weights.
    pub digest: String,
}

/// An artifact that another was made from.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    /// Its kind.
    pub kind: String,
    /// Its [`Manifest::digest`].
    pub digest: String,
    /// Where it was; for people to read, it does not enter digests.
    pub path: String,
}

/// Size and digest of one file of an artifact.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// The size.
    pub bytes: u64,
    /// The SHA-256 in hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// A manifest of this program's version and format, with nothing else known yet.
    pub fn new(kind: impl Into<String>, seed: u64) -> Self {
        Self {
            kind: kind.into(),
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            seed,
            site: None,
            model: None,
            parents: Vec::new(),
            config: Value::Null,
            files: BTreeMap::new(),
        }
    }

    /// Sets the site.
    #[must_use]
    pub fn with_site(mut self, site: impl Into<String>) -> Self {
        self.site = Some(site.into());
        self
    }

    /// Sets the model.
    #[must_use]
    pub fn with_model(mut self, model: ModelRef) -> Self {
        self.model = Some(model);
        self
    }

    /// Adds a parent.
    #[must_use]
    pub fn with_parent(mut self, parent: ParentRef) -> Self {
        self.parents.push(parent);
        self
    }

    /// Sets the configuration.
    #[must_use]
    pub fn with_config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// Reads the manifest of the artifact in `dir`.
    ///
    /// # Errors
    /// When there is no such directory, it holds no manifest, or the manifest is broken or of a newer format.
    pub fn load(dir: &Path) -> Result<Self, ArtifactError> {
        let not_an_artifact = |reason: &str| ArtifactError::NotAnArtifact {
            path: dir.to_path_buf(),
            reason: reason.to_owned(),
        };
        match fs::metadata(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(not_an_artifact("there is no such directory"));
            }
            Err(error) => return Err(ArtifactError::io("read", dir, error)),
            Ok(metadata) if !metadata.is_dir() => {
                return Err(not_an_artifact("it is a file, not a directory"));
            }
            Ok(_) => {}
        }
        let path = dir.join(MANIFEST_FILE);
        if !path.try_exists().at("read", &path)? {
            return Err(not_an_artifact("it holds no pullback.json"));
        }
        // The format comes first: a newer manifest may hold things that cannot be understood here.
        let value: Value = read_json(&path)?;
        if let Some(found) = value.get("format").and_then(Value::as_u64)
            && found > u64::from(FORMAT)
        {
            return Err(ArtifactError::NewerFormat {
                path,
                found,
                supported: FORMAT,
            });
        }
        // Read from the text once more, since only that way an error has a position.
        read_json(&path)
    }

    /// As [`Manifest::load`], and the artifact must be of this kind.
    ///
    /// # Errors
    /// As [`Manifest::load`], and when it is of another kind.
    pub fn load_kind(dir: &Path, kind: &str) -> Result<Self, ArtifactError> {
        let manifest = Self::load(dir)?;
        if manifest.kind == kind {
            return Ok(manifest);
        }
        Err(ArtifactError::WrongKind {
            path: dir.to_path_buf(),
            found: manifest.kind,
            needed: kind.to_owned(),
        })
    }

    /// `sha256:` and the SHA-256 of this manifest in a fixed form (keys in order, no spaces) without the places of the
    /// parents, so that an artifact keeps its digest when it is moved. Since it holds the hashes of all files, it stands
    /// for the whole artifact.
    pub fn digest(&self) -> String {
        let files: serde_json::Map<String, Value> = self
            .files
            .iter()
            .map(|(name, file)| {
                (
                    name.clone(),
                    serde_json::json!({ "bytes": file.bytes, "sha256": file.sha256 }),
                )
            })
            .collect();
        let parents: Vec<Value> = self
            .parents
            .iter()
            .map(|parent| serde_json::json!({ "kind": parent.kind, "digest": parent.digest }))
            .collect();
        let model = self
            .model
            .as_ref()
            .map(|model| serde_json::json!({ "name": model.name, "digest": model.digest }));
        let value = serde_json::json!({
            "kind": self.kind,
            "format": self.format,
            "program": self.program,
            "seed": self.seed,
            "site": self.site,
            "model": model,
            "parents": parents,
            "config": self.config,
            "files": files,
        });
        let mut text = String::new();
        canonical(&value, &mut text);
        format!("sha256:{}", sha256_bytes(text.as_bytes()))
    }

    /// Checks that every file is there with the recorded size. Cheap: nothing is read.
    ///
    /// # Errors
    /// When a file is missing or has another size.
    pub fn verify_sizes(&self, dir: &Path) -> Result<(), ArtifactError> {
        for (name, file) in &self.files {
            let path = member_path(dir, name)?;
            match fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(ArtifactError::MissingFile { path });
                }
                Err(error) => return Err(ArtifactError::io("read", path, error)),
                Ok(metadata) if metadata.len() != file.bytes => {
                    return Err(ArtifactError::WrongSize {
                        path,
                        expected: file.bytes,
                        found: metadata.len(),
                    });
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Checks that every file is there with the recorded content. Reads everything.
    ///
    /// # Errors
    /// When a file is missing, cut short or altered, and on interruption.
    pub fn verify_files(&self, dir: &Path, control: &Control) -> Result<(), ArtifactError> {
        self.verify_sizes(dir)?;
        let stage = control.stage(
            "check files",
            self.files.values().map(|file| file.bytes).sum(),
            "bytes",
        );
        for (name, file) in &self.files {
            control.check()?;
            let path = member_path(dir, name)?;
            let found = sha256_file(&path, None)?;
            if found != file.sha256 {
                return Err(ArtifactError::WrongHash {
                    path,
                    expected: file.sha256.clone(),
                    found,
                });
            }
            stage.advance(file.bytes);
        }
        stage.finish();
        Ok(())
    }

    /// The first parent of this kind.
    pub fn parent(&self, kind: &str) -> Option<&ParentRef> {
        self.parents.iter().find(|parent| parent.kind == kind)
    }

    /// Checks that this artifact was made from the artifact of this kind and digest; `what` names that one for people,
    /// usually by its path.
    ///
    /// # Errors
    /// When it was made from another one, or records none of this kind.
    pub fn check_parent(&self, kind: &str, digest: &str, what: &str) -> Result<(), ArtifactError> {
        let found = format!("{what} ({})", short(digest));
        let mut of_kind = self
            .parents
            .iter()
            .filter(|parent| parent.kind == kind)
            .peekable();
        let Some(first) = of_kind.peek().copied() else {
            return Err(self.not_recorded(format!("the `{kind}`"), found));
        };
        if of_kind.any(|parent| parent.digest == digest) {
            return Ok(());
        }
        let expected = format!("{} ({})", first.path, short(&first.digest));
        Err(self.mismatch(format!("the `{kind}`"), expected, found))
    }

    /// Checks that this artifact was made with this model (the digests decide; names are for people).
    ///
    /// # Errors
    /// When it was made with another one, or records none.
    pub fn check_model(&self, model: &ModelRef) -> Result<(), ArtifactError> {
        let named = |model: &ModelRef| format!("{} ({})", model.name, short(&model.digest));
        match &self.model {
            Some(own) if own.digest == model.digest => Ok(()),
            Some(own) => Err(self.mismatch("the model".to_owned(), named(own), named(model))),
            None => Err(self.not_recorded("the model".to_owned(), named(model))),
        }
    }

    /// Checks that this artifact was made for this site.
    ///
    /// # Errors
    /// When it was made for another one, or records none.
    pub fn check_site(&self, site: &str) -> Result<(), ArtifactError> {
        match &self.site {
            Some(own) if own == site => Ok(()),
            Some(own) => Err(self.mismatch("the site".to_owned(), own.clone(), site.to_owned())),
            None => Err(self.not_recorded("the site".to_owned(), site.to_owned())),
        }
    }

    fn mismatch(&self, what: String, expected: String, found: String) -> ArtifactError {
        ArtifactError::Mismatch {
            kind: self.kind.clone(),
            what,
            expected,
            found,
        }
    }

    fn not_recorded(&self, what: String, found: String) -> ArtifactError {
        ArtifactError::NotRecorded {
            kind: self.kind.clone(),
            what,
            found,
        }
    }
}

/// The path of a listed file; a listing must not lead out of its directory.
pub(crate) fn member_path(dir: &Path, name: &str) -> Result<PathBuf, ArtifactError> {
    let relative = Path::new(name);
    let inside = !name.is_empty()
        && relative
            .components()
            .all(|component| matches!(component, Component::Normal(_)));
    if inside {
        Ok(dir.join(relative))
    } else {
        Err(ArtifactError::bad_path(
            dir,
            format!("its listing names `{name}`, which is not a file inside it"),
        ))
    }
}

/// Enough of a digest to tell two apart.
fn short(digest: &str) -> &str {
    let end = if digest.starts_with("sha256:") {
        19
    } else {
        12
    };
    digest.get(..end).unwrap_or(digest)
}

/// JSON with keys in order and without spaces.
fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            text.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(values) => {
            text.push('[');
            for (i, value) in values.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                canonical(value, text);
            }
            text.push(']');
        }
        simple => text.push_str(&simple.to_string()),
    }
}
