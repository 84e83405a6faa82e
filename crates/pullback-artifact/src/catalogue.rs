//! What can be fetched by name: source, version, licence and digest of each model and corpus.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::ArtifactError;

/// The entries that come with the program.
const BUILT_IN: &str = include_str!("catalogue.json");

/// The models and corpora that have a name.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Catalogue {
    /// The entries, in the order they are shown.
    pub entries: Vec<Entry>,
}

/// One model or corpus.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name it is asked for by.
    pub name: String,
    /// Model or corpus.
    pub kind: EntryKind,
    /// A title for people.
    pub title: String,
    /// Its licence.
    pub licence: String,
    /// Where it comes from.
    pub source: Source,
    /// The size of what is downloaded.
    pub archive_bytes: u64,
    /// The size of what `sha256` belongs to.
    pub bytes: u64,
    /// For a model the SHA-256 of its file, for a corpus that of the downloaded archive.
    pub sha256: String,
}

/// What an entry is.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A model: one file.
    Model,
    /// A corpus: a directory of text files.
    Corpus,
}

/// A package in a registry, and what of it is wanted.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "registry", rename_all = "lowercase")]
pub enum Source {
    /// One file of a Python wheel.
    PyPi {
        /// The package.
        package: String,
        /// Its version.
        version: String,
        /// The file's path in the wheel.
        member: String,
    },
    /// Folders of an npm package.
    Npm {
        /// The package.
        package: String,
        /// Its version.
        version: String,
        /// The folders to unpack.
        folders: Vec<Folder>,
    },
}

/// A folder of an archive, and what its files become.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// The folder in the archive; only files directly in it are taken.
    pub from: String,
    /// The folder they are unpacked into.
    pub to: String,
    /// What the names of the files end with.
    pub suffix: String,
    /// Files to leave out.
    #[serde(default)]
    pub skip: Vec<String>,
    /// Digits that a number at the end of a name is padded to, so that files sort in reading order (0: names stay).
    #[serde(default)]
    pub pad_numbers: usize,
}

impl Catalogue {
    /// The catalogue that comes with the program.
    ///
    /// # Errors
    /// When it is broken, which a test rules out.
    pub fn built_in() -> Result<Self, ArtifactError> {
        serde_json::from_str(BUILT_IN).map_err(|error| ArtifactError::Catalogue {
            reason: error.to_string(),
        })
    }

    /// The entry of this name.
    ///
    /// # Errors
    /// When there is none; the error lists the names there are.
    pub fn find(&self, name: &str) -> Result<&Entry, ArtifactError> {
        self.entries
            .iter()
            .find(|entry| entry.name == name)
            .ok_or_else(|| {
                let known: Vec<_> = self
                    .entries
                    .iter()
                    .map(|entry| entry.name.as_str())
                    .collect();
                ArtifactError::UnknownName {
                    name: name.to_owned(),
                    known: known.join(", "),
                }
            })
    }

    /// The entries of one kind.
    pub fn of_kind(&self, kind: EntryKind) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.kind == kind)
    }
}

impl Entry {
    /// The name of the model's file in the cache; empty for a corpus.
    pub(crate) fn file_name(&self) -> &str {
        match &self.source {
            Source::PyPi { member, .. } => member.rsplit('/').next().unwrap_or_default(),
            Source::Npm { .. } => "",
        }
    }

    /// Checks what would otherwise make paths outside the cache.
    pub(crate) fn check(&self) -> Result<(), ArtifactError> {
        let mut names = vec![self.name.as_str()];
        match &self.source {
            Source::PyPi { .. } => names.push(self.file_name()),
            Source::Npm { folders, .. } => {
                names.extend(folders.iter().map(|folder| folder.to.as_str()));
            }
        }
        match (self.kind, &self.source) {
            (EntryKind::Model, Source::PyPi { .. }) | (EntryKind::Corpus, Source::Npm { .. }) => {}
            _ => {
                let reason = format!(
                    "`{}`: a model comes from PyPI, a corpus from npm",
                    self.name
                );
                return Err(ArtifactError::Catalogue { reason });
            }
        }
        match names.into_iter().find(|name| !is_plain_name(name)) {
            Some(bad) => Err(ArtifactError::Catalogue {
                reason: format!("`{bad}` is not a plain file name"),
            }),
            None => Ok(()),
        }
    }
}

/// Whether this is the name of something in a directory, not a path.
pub(crate) fn is_plain_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|last| last == name) && !name.contains(['/', '\\', ':'])
}

impl Folder {
    /// What a file of the archive is called once unpacked, with its folder; none when it is not wanted.
    pub(crate) fn target(&self, path: &str) -> Option<String> {
        let name = path.strip_prefix(&self.from)?.strip_prefix('/')?;
        let stem = name.strip_suffix(&self.suffix)?;
        if !is_plain_name(name) || self.skip.iter().any(|skipped| skipped == name) {
            return None;
        }
        let digits = stem.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (text, number) = stem.split_at(stem.len() - digits);
        let width = self.pad_numbers;
        if digits == 0 || width == 0 {
            return Some(format!("{}/{name}", self.to));
        }
        Some(format!(
            "{}/{text}{number:0>width$}{}",
            self.to, self.suffix
        ))
    }
}

impl fmt::Display for EntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model => "model",
            Self::Corpus => "corpus",
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PyPi {
                package, version, ..
            } => write!(f, "Python package {package} {version}"),
            Self::Npm {
                package, version, ..
            } => write!(f, "npm package {package} {version}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalogue_is_sound() {
        let catalogue = Catalogue::built_in().unwrap();
        for entry in &catalogue.entries {
            entry.check().unwrap();
            assert_eq!(entry.sha256.len(), 64);
            assert!(entry.bytes > 0 && entry.archive_bytes > 0);
            assert!(!entry.licence.is_empty());
        }
        assert_eq!(catalogue.of_kind(EntryKind::Model).count(), 1);
        assert_eq!(
            catalogue.find("smollm2-135m-instruct").unwrap().file_name(),
            "SmolLM2-135M-Instruct.Q4_1.gguf"
        );
        let error = catalogue.find("gpt-5").unwrap_err().to_string();
        assert_eq!(
            error,
            "`gpt-5` is not in the catalogue; it holds: smollm2-135m-instruct, sotu-moby-dick"
        );
    }

    #[test]
    fn names_of_unpacked_files() {
        let catalogue = Catalogue::built_in().unwrap();
        let Source::Npm { folders, .. } = &catalogue.find("sotu-moby-dick").unwrap().source else {
            panic!()
        };
        let target = |path: &str| folders.iter().find_map(|folder| folder.target(path));
        assert_eq!(
            target("package/moby-dick/data/chapter_7.txt").unwrap(),
            "moby-dick/chapter_007.txt"
        );
        assert_eq!(
            target("package/moby-dick/data/chapter_135.txt").unwrap(),
            "moby-dick/chapter_135.txt"
        );
        assert_eq!(
            target("package/moby-dick/data/epilogue.txt").unwrap(),
            "moby-dick/epilogue.txt"
        );
        assert_eq!(
            target("package/sotu/data/1790_george_washington_n.txt").unwrap(),
            "sotu/1790_george_washington_n.txt"
        );
        for unwanted in [
            "package/moby-dick/data/data.txt",
            "package/moby-dick/data/contents.txt",
            "package/moby-dick/data/chapter_7.json",
            "package/moby-dick/LICENSE",
            "package/sotu/data/../x.txt",
            "package/sotu/data/deeper/x.txt",
            "package/sotu/database/x.txt",
        ] {
            assert_eq!(target(unwanted), None, "{unwanted}");
        }
    }

    #[test]
    fn entries_that_lead_out_of_the_cache_are_refused() {
        let entry = Catalogue::built_in().unwrap().entries.remove(0);
        for name in ["../x", "", ".", "..", "a/b", "a\\b", "/etc"] {
            assert!(
                Entry {
                    name: name.to_owned(),
                    ..entry.clone()
                }
                .check()
                .is_err(),
                "{name}"
            );
        }
    }
}
