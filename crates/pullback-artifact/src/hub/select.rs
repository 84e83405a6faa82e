//! Which files of a repository a model needs.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::atomic::read_json;
use crate::error::{ArtifactError, IoContext};

use super::reference::{HubReference, has_extension, is_inner_path};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// Read where they are there.
const SETTINGS: &[&str] = &[
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Tokenizers in older forms, wanted only where there is no `tokenizer.json`.
const OLD_TOKENIZERS: &[&str] = &["tokenizer.model", "vocab.json", "merges.txt"];

/// More named templates, as Python tools write them.
const MORE_TEMPLATES: &str = "additional_chat_templates/";

/// An index is larger than this only by mistake.
const LARGEST_INDEX: u64 = 64 << 20;

/// The files to fetch, in this order.
pub(crate) struct Selection {
    /// Settings and tokenizer, or nothing where one file is wanted.
    pub(crate) first: Vec<String>,
    /// The weights.
    pub(crate) weights: Weights,
}

pub(crate) enum Weights {
    /// One file.
    Whole(String),
    /// The files that an index names, which is fetched before.
    Sharded,
}

impl Selection {
    /// Chooses from the names of all files of a repository.
    pub(crate) fn new(reference: &HubReference, names: &[String]) -> Result<Self, ArtifactError> {
        let has = |name: &str| names.iter().any(|other| other == name);
        let refuse = |reason: String| {
            Err(ArtifactError::HubNoModel {
                repository: reference.repository(),
                revision: reference.revision().to_owned(),
                reason,
            })
        };
        if let Some(file) = reference.file() {
            if !has(file) {
                let found = match list_gguf(names) {
                    list if list.is_empty() => "it holds no .gguf file".to_owned(),
                    list => format!("its .gguf files are {list}"),
                };
                return refuse(format!("it does not hold {file}; {found}"));
            }
            return Ok(Self {
                first: Vec::new(),
                weights: Weights::Whole(file.to_owned()),
            });
        }
        let weights = if has(WEIGHTS) {
            Weights::Whole(WEIGHTS.to_owned())
        } else if has(INDEX) {
            Weights::Sharded
        } else {
            let gguf = list_gguf(names);
            return refuse(if gguf.is_empty() {
                format!(
                    "it holds neither {WEIGHTS} nor {INDEX} nor a .gguf file; other formats of weights are not read"
                )
            } else {
                format!(
                    "it holds weights as .gguf files only; name one, as in `{reference}:FILE`: {gguf}"
                )
            });
        };
        if !has(CONFIG) {
            return refuse(format!("it holds {WEIGHTS} but no {CONFIG}"));
        }
        let mut first = vec![CONFIG];
        first.extend(SETTINGS);
        first.push(TOKENIZER);
        if !has(TOKENIZER) {
            first.extend(OLD_TOKENIZERS);
        }
        if matches!(weights, Weights::Sharded) {
            first.push(INDEX);
        }
        let mut first: Vec<String> = first
            .into_iter()
            .filter(|name| has(name))
            .map(str::to_owned)
            .collect();
        first.extend(
            names
                .iter()
                .filter(|name| name.starts_with(MORE_TEMPLATES) && has_extension(name, "jinja"))
                .cloned(),
        );
        Ok(Self { first, weights })
    }
}

/// The `.gguf` files among these names, for a message.
fn list_gguf(names: &[String]) -> String {
    let mut gguf: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| has_extension(name, "gguf"))
        .collect();
    gguf.sort_unstable();
    gguf.join(", ")
}

/// The part of an index that says where the tensors are.
#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// The files that an index names, each once.
pub(crate) fn shards(index: &Path) -> Result<Vec<String>, ArtifactError> {
    let bytes = std::fs::metadata(index).at("read", index)?.len();
    if bytes > LARGEST_INDEX {
        return Err(ArtifactError::bad_path(
            index,
            format!("it has {bytes} bytes, which no list of weight files needs"),
        ));
    }
    let map = read_json::<Index>(index)?.weight_map;
    let names: BTreeSet<String> = map.into_values().collect();
    if names.is_empty() {
        return Err(ArtifactError::bad_path(index, "it names no weight files"));
    }
    match names.iter().find(|name| !is_inner_path(name)) {
        Some(name) => Err(ArtifactError::bad_path(
            index,
            format!("it names \"{name}\", which is no file inside the repository"),
        )),
        None => Ok(names.into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn select(text: &str, files: &[&str]) -> Result<(Vec<String>, Option<String>), String> {
        let reference: HubReference = text.parse().unwrap();
        Selection::new(&reference, &names(files))
            .map(|selection| {
                let whole = match selection.weights {
                    Weights::Whole(name) => Some(name),
                    Weights::Sharded => None,
                };
                (selection.first, whole)
            })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_a_model_needs_is_chosen() {
        let (first, whole) = select(
            "a/b",
            &[
                "README.md",
                "pytorch_model.bin",
                "model.safetensors",
                "onnx/model.onnx",
                "tokenizer.json",
                "vocab.json",
                "merges.txt",
                "config.json",
                "chat_template.jinja",
                "additional_chat_templates/tools.jinja",
                "model.safetensors.index.json",
                "model-q4.gguf",
            ],
        )
        .unwrap();
        assert_eq!(whole.as_deref(), Some("model.safetensors"));
        assert_eq!(
            first,
            [
                "config.json",
                "chat_template.jinja",
                "tokenizer.json",
                "additional_chat_templates/tools.jinja"
            ]
        );
        let (first, whole) = select(
            "a/b",
            &[
                "config.json",
                "model.safetensors.index.json",
                "vocab.json",
                "merges.txt",
            ],
        )
        .unwrap();
        assert_eq!(whole, None);
        assert_eq!(
            first,
            [
                "config.json",
                "vocab.json",
                "merges.txt",
                "model.safetensors.index.json"
            ]
        );
        let (first, whole) = select("a/b:q/x.gguf", &["config.json", "q/x.gguf"]).unwrap();
        assert!(first.is_empty());
        assert_eq!(whole.as_deref(), Some("q/x.gguf"));
    }

    #[test]
    fn repositories_without_a_model_say_what_they_hold() {
        let error = select("a/b@v1", &["y.gguf", "q/x.gguf", "config.json"]).unwrap_err();
        assert!(error.contains("`a/b@v1:FILE`: q/x.gguf, y.gguf"), "{error}");
        let error = select("a/b", &["pytorch_model.bin", "config.json"]).unwrap_err();
        assert!(error.contains("neither model.safetensors"), "{error}");
        let error = select("a/b", &["model.safetensors"]).unwrap_err();
        assert!(error.contains("no config.json"), "{error}");
        let error = select("a/b:z.gguf", &["y.gguf"]).unwrap_err();
        assert!(error.contains("not hold z.gguf") && error.contains("are y.gguf"));
        let error = select("a/b:z.gguf", &["y"]).unwrap_err();
        assert!(error.contains("no .gguf file"), "{error}");
    }

    #[test]
    fn an_index_that_leads_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.json");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write(r#"{"metadata": {}, "weight_map": {"a": "y", "b": "x", "c": "y"}}"#);
        assert_eq!(shards(&path).unwrap(), ["x", "y"]);
        for bad in [
            r#"{"weight_map": {"a": "../x"}}"#,
            r#"{"weight_map": {}}"#,
            r#"{"weight_map": 3}"#,
            "{",
        ] {
            write(bad);
            let error = shards(&path).unwrap_err().to_string();
            assert!(error.contains("index.json"), "{error}");
        }
    }
}
