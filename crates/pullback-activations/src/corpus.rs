//! Documents to read: a text file, a JSON array or JSON Lines file of strings or objects with a `text`
//! field, or a directory of such files.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::ActivationError;

/// One text of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The file it came from, relative to the corpus, with the line or item number where a file holds many.
    pub name: String,
    /// The folder of the corpus it stands in (empty at the top): harvesting draws from all groups alike.
    pub group: String,
    /// The text.
    pub text: String,
}

/// Documents in a fixed order: by path.
#[derive(Clone, Debug)]
pub struct Corpus {
    path: PathBuf,
    documents: Vec<Document>,
}

impl Corpus {
    /// Reads a file or a directory (recursively: `.txt`, `.md`, `.json`, `.jsonl`).
    ///
    /// # Errors
    /// A file is missing, is not UTF-8 text (the place is named) or is not the JSON it claims to be; there
    /// is no document at all.
    pub fn open(path: &Path) -> Result<Self, ActivationError> {
        let mut files = Vec::new();
        let metadata = fs::metadata(path).map_err(|source| io(path, source))?;
        if metadata.is_dir() {
            collect(path, &mut files)?;
            files.sort();
        } else {
            files.push(path.to_owned());
        }
        let mut documents = Vec::new();
        for file in &files {
            let relative = file.strip_prefix(path).unwrap_or(file);
            let relative = if relative.as_os_str().is_empty() {
                Path::new(file.file_name().unwrap_or_default())
            } else {
                relative
            };
            let name = relative.to_string_lossy().replace('\\', "/");
            let group = name
                .split_once('/')
                .map_or("", |(group, _)| group)
                .to_owned();
            read_documents(file, &name, &group, &mut documents)?;
        }
        documents.retain(|document| !document.text.trim().is_empty());
        if documents.is_empty() {
            return Err(ActivationError::Corpus {
                path: path.to_owned(),
                problem: "holds no text: a .txt, .md, .json or .jsonl file is needed, or a directory of them"
                    .to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            documents,
        })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `sha256:…` of all names and texts, wherever the corpus lies.
    pub fn digest(&self) -> String {
        let mut digests = String::new();
        for document in &self.documents {
            for part in [&document.name, &document.text] {
                digests += &pullback_artifact::sha256_bytes(part.as_bytes());
            }
        }
        format!(
            "sha256:{}",
            pullback_artifact::sha256_bytes(digests.as_bytes())
        )
    }

    /// The documents.
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }
}

fn io(path: &Path, source: std::io::Error) -> ActivationError {
    ActivationError::Io {
        path: path.to_owned(),
        source,
    }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), ActivationError> {
    for entry in fs::read_dir(dir).map_err(|source| io(dir, source))? {
        let path = entry.map_err(|source| io(dir, source))?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if extension(&path).is_some() && !is_listing(&path) {
            files.push(path);
        }
    }
    Ok(())
}

/// The listing that a corpus from the catalogue carries of itself.
fn is_listing(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name == "pullback-corpus.json")
}

fn extension(path: &Path) -> Option<&str> {
    path.extension()
        .and_then(|extension| extension.to_str())
        .filter(|extension| ["txt", "md", "json", "jsonl"].contains(extension))
}

fn read_documents(
    path: &Path,
    name: &str,
    group: &str,
    documents: &mut Vec<Document>,
) -> Result<(), ActivationError> {
    let bytes = fs::read(path).map_err(|source| io(path, source))?;
    let not_text = |problem: String| ActivationError::NotText {
        path: path.to_owned(),
        problem,
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        not_text(format!(
            "byte {at} (0x{:02x}) is not valid UTF-8",
            error.as_bytes()[at]
        ))
    })?;
    if let Some(at) = text.find('\0') {
        return Err(not_text(format!(
            "byte {at} is zero, which no text file holds"
        )));
    }
    let mut push = |item: Option<usize>, text: String| {
        documents.push(Document {
            name: item.map_or_else(|| name.to_owned(), |item| format!("{name}#{item}")),
            group: group.to_owned(),
            text,
        });
    };
    let wrong = |place: String| {
        not_text(format!(
            "{place} is neither a string nor an object with a string field `text`"
        ))
    };
    match extension(path) {
        Some("json") => {
            let value: Value =
                serde_json::from_str(&text).map_err(|error| not_text(error.to_string()))?;
            match value {
                Value::Array(items) => {
                    for (item, value) in items.into_iter().enumerate() {
                        let text = text_of(value).ok_or_else(|| wrong(format!("item {item}")))?;
                        push(Some(item), text);
                    }
                }
                value => push(
                    None,
                    text_of(value).ok_or_else(|| wrong("the file".to_owned()))?,
                ),
            }
        }
        Some("jsonl") => {
            for (number, line) in text
                .lines()
                .enumerate()
                .filter(|(_, line)| !line.trim().is_empty())
            {
                let value: Value = serde_json::from_str(line)
                    .map_err(|error| not_text(format!("line {}: {error}", number + 1)))?;
                let text = text_of(value).ok_or_else(|| wrong(format!("line {}", number + 1)))?;
                push(Some(number + 1), text);
            }
        }
        _ => push(None, text),
    }
    Ok(())
}

fn text_of(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(mut fields) => match fields.remove("text") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Corpus;
    use std::fs;

    #[test]
    fn reads_folders_json_and_lines_in_the_order_of_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b/two.txt"), "second").unwrap();
        fs::write(dir.path().join("a.jsonl"), "{\"text\":\"x\"}\n\n\"y\"\n").unwrap();
        fs::write(
            dir.path().join("c.json"),
            "[\"z\", {\"text\": \"w\", \"n\": 1}]",
        )
        .unwrap();
        fs::write(dir.path().join("ignored.png"), [0xff, 0xd8]).unwrap();
        let corpus = Corpus::open(dir.path()).unwrap();
        let seen: Vec<_> = corpus
            .documents()
            .iter()
            .map(|d| (d.name.as_str(), d.group.as_str(), d.text.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                ("a.jsonl#1", "", "x"),
                ("a.jsonl#3", "", "y"),
                ("b/two.txt", "b", "second"),
                ("c.json#0", "", "z"),
                ("c.json#1", "", "w"),
            ]
        );
    }

    #[test]
    fn what_is_not_text_is_named_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("picture.txt");
        for (bytes, words) in [
            (&b"abc\xff\xfe"[..], "byte 3 (0xff) is not valid UTF-8"),
            (b"ab\0c", "byte 2 is zero"),
            (b"  \n", "holds no text"),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = Corpus::open(&path).unwrap_err().to_string();
            assert!(
                error.contains(words) && error.contains("picture.txt"),
                "{error}"
            );
        }
        let lines = dir.path().join("x.jsonl");
        fs::write(&lines, "\"fine\"\n{\"no\": 1}\n").unwrap();
        let error = Corpus::open(&lines).unwrap_err().to_string();
        assert!(
            error.contains("line 2") && error.contains("`text`"),
            "{error}"
        );
        let error = Corpus::open(&dir.path().join("nowhere"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("nowhere") && error.contains("No such file"),
            "{error}"
        );
    }
}
