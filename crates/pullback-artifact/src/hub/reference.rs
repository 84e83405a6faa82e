//! How a model of the hub is named: `owner/name[@revision][:file.gguf]`.

use std::fmt;
use std::str::FromStr;

use crate::error::ArtifactError;

/// What is taken when no revision is named.
const DEFAULT_REVISION: &str = "main";

/// The longest name of a repository that the hub allows.
const LONGEST_NAME: usize = 96;

/// A model in a repository of the Hugging Face hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubReference {
    owner: String,
    name: String,
    revision: Option<String>,
    file: Option<String>,
}

impl HubReference {
    /// Whether a text is meant as a repository: two words around one slash, with a revision or a file behind them or
    /// not. A `.gguf` file in a directory (`models/x.gguf`) is not.
    pub fn is_meant_by(text: &str) -> bool {
        let (repository, file) = split(text, ':');
        let (repository, _) = split(repository, '@');
        let words: Vec<&str> = repository.split('/').collect();
        words.len() == 2
            && words.iter().all(|word| is_word(word))
            && (file.is_some() || !has_extension(repository, "gguf"))
    }

    /// `owner/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The branch, tag or commit; `main` where none was named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// The one file that is wanted; none: the files of a model in safetensors.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The folder of the repository in the hub's cache.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.owner, self.name)
    }
}

impl fmt::Display for HubReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        Ok(())
    }
}

impl FromStr for HubReference {
    type Err = ArtifactError;

    fn from_str(text: &str) -> Result<Self, ArtifactError> {
        let refuse = |reason: &str| {
            Err(ArtifactError::HubReference {
                text: text.to_owned(),
                reason: reason.to_owned(),
            })
        };
        // A revision may hold slashes but no colon, so the file is cut off first.
        let (repository, file) = split(text, ':');
        let (repository, revision) = split(repository, '@');
        let Some((owner, name)) = repository.split_once('/') else {
            return refuse("the owner is missing");
        };
        if !(is_word(owner) && is_word(name)) || repository.len() > LONGEST_NAME {
            return refuse(
                "owner and name are made of letters, digits, `-`, `_` and `.`, and begin and end with a letter, a digit or `_`",
            );
        }
        if let Some(revision) = revision
            && !(is_inner_path(revision) && revision.chars().all(|c| c.is_ascii_graphic()))
        {
            return refuse("the revision after `@` is no name of a branch, a tag or a commit");
        }
        if let Some(file) = file
            && !(is_inner_path(file) && has_extension(file, "gguf"))
        {
            return refuse("the file after `:` is not a .gguf file inside the repository");
        }
        Ok(Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }
}

fn split(text: &str, mark: char) -> (&str, Option<&str>) {
    match text.split_once(mark) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

/// Whether the hub allows this as the name of an owner or of a repository.
fn is_word(word: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: char| c.is_ascii_alphanumeric() || c == '_';
    word.chars().all(inside)
        && word.starts_with(edge)
        && word.ends_with(edge)
        // Two dashes separate owner and name in the names of the cache's folders.
        && !word.contains("--")
        && !word.contains("..")
}

/// Whether this is a relative path with slashes that stays inside the directory it is joined to.
pub(crate) fn is_inner_path(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', ':', '\0'])
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Whether a path ends in `.extension`, in letters of either case.
pub(crate) fn has_extension(path: &str, extension: &str) -> bool {
    path.rsplit_once('.')
        .is_some_and(|(stem, end)| !stem.is_empty() && end.eq_ignore_ascii_case(extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart_and_put_together_again() {
        for (text, repository, revision, file) in [
            ("a/b", "a/b", "main", None),
            (
                "HuggingFaceTB/SmolLM2-135M",
                "HuggingFaceTB/SmolLM2-135M",
                "main",
                None,
            ),
            ("a/b@refs/pr/3", "a/b", "refs/pr/3", None),
            ("a/b:c.gguf", "a/b", "main", Some("c.gguf")),
            ("a/b.c@v1.0:Q4/x.GGUF", "a/b.c", "v1.0", Some("Q4/x.GGUF")),
        ] {
            let reference: HubReference = text.parse().unwrap();
            assert_eq!(reference.repository(), repository);
            assert_eq!(reference.revision(), revision);
            assert_eq!(reference.file(), file);
            assert_eq!(reference.to_string(), text);
            assert!(HubReference::is_meant_by(text), "{text}");
        }
        let reference: HubReference = "owner/na-me".parse().unwrap();
        assert_eq!(reference.folder(), "models--owner--na-me");
    }

    #[test]
    fn what_would_lead_out_of_the_cache_is_refused() {
        for text in [
            "a",
            "a/",
            "/b",
            "../b",
            "a/..",
            "a/b/c",
            "a--b/c",
            "-a/b",
            "a/b.",
            "a/b@",
            "a/b@../../x",
            "a/b@x y",
            "a/b@/x",
            "a/b:",
            "a/b:../x.gguf",
            "a/b:/x.gguf",
            "a/b:x.safetensors",
            "a/b:x\\y.gguf",
            "a/b:.gguf",
        ] {
            let error = text.parse::<HubReference>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
        assert!(
            format!("{}/b", "a".repeat(100))
                .parse::<HubReference>()
                .is_err()
        );
    }

    #[test]
    fn paths_are_not_taken_for_repositories() {
        for text in [
            "smollm2-135m-instruct",
            "models/x.gguf",
            "./x",
            "../x",
            "/x/y",
            "x/y/z",
            "C:\\x",
            "C:/x/y",
            "x/",
        ] {
            assert!(!HubReference::is_meant_by(text), "{text}");
        }
        // Meant as one, and then refused with the reason.
        assert!(HubReference::is_meant_by("a/b:model.safetensors"));
        assert!(HubReference::is_meant_by("a/b@"));
    }
}
