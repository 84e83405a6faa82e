//! Dictionaries in the files of other programs: reading all of them, writing four.
//!
//! | format | files | read | written |
//! |---|---|---|---|
//! | [`saelens`] | `cfg.json`, `sae_weights.safetensors` | yes | yes |
//! | [`dictionary_learning`] | `ae.pt`, `config.json` | yes | yes |
//! | [`sparsify`] | `cfg.json`, `sae.safetensors` | yes | yes |
//! | [`gemma_scope`] | `params.npz` | yes | yes |
//! | [`gemma_scope_2`] | `params.safetensors`, `config.json` | yes | no |
//! | [`llama_scope`] | `hyperparams.json`, `checkpoints/final.safetensors` | yes | no |
//!
//! Matrices are checked against the sizes that the files promise before anything is computed; one that is transposed is
//! said to be so. Files come from strangers: no code in them is run, and nothing is allocated for numbers that are not
//! there.

pub(crate) mod arrays;
pub mod dictionary_learning;
pub mod gemma_scope;
pub mod gemma_scope_2;
pub mod llama_scope;
mod npz;
mod origin;
mod pickle;
mod rebase;
pub mod saelens;
mod safetensors_file;
pub mod sparsify;
mod torch_file;

use std::fmt;
use std::path::{Path, PathBuf};

pub use origin::Origin;
pub use pickle::PickleError;

use crate::{Sae, SaeError};

/// A layout of files that holds a dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// SAELens, version 6 and older; also pullback's own.
    SaeLens,
    /// `dictionary_learning` of Marks, Karvonen and Mueller.
    DictionaryLearning,
    /// sparsify of `EleutherAI`.
    Sparsify,
    /// Gemma Scope.
    GemmaScope,
    /// Gemma Scope 2.
    GemmaScope2,
    /// Llama Scope.
    LlamaScope,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::SaeLens,
        Self::DictionaryLearning,
        Self::Sparsify,
        Self::GemmaScope,
        Self::GemmaScope2,
        Self::LlamaScope,
    ];

    /// The name on the command line, as `gemma-scope`.
    pub fn name(self) -> &'static str {
        match self {
            Self::SaeLens => "saelens",
            Self::DictionaryLearning => "dictionary-learning",
            Self::Sparsify => "sparsify",
            Self::GemmaScope => "gemma-scope",
            Self::GemmaScope2 => "gemma-scope-2",
            Self::LlamaScope => "llama-scope",
        }
    }

    /// The file with the numbers, as a path inside the directory of the dictionary.
    fn weights(self) -> &'static str {
        match self {
            Self::SaeLens => saelens::WEIGHTS,
            Self::DictionaryLearning => dictionary_learning::WEIGHTS,
            Self::Sparsify => sparsify::WEIGHTS,
            Self::GemmaScope => gemma_scope::WEIGHTS,
            Self::GemmaScope2 => gemma_scope_2::WEIGHTS,
            Self::LlamaScope => llama_scope::WEIGHTS,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A dictionary that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The dictionary.
    pub sae: Sae,
    /// What the files say of where it comes from.
    pub origin: Origin,
}

/// Which format the files at `path` have: a directory, or the file with the numbers.
///
/// # Errors
/// Nothing is there, no format is recognised, or the files of several are there.
pub fn detect(path: &Path) -> Result<Format, SaeError> {
    Ok(locate(path)?.0)
}

/// The file with a dictionary's numbers: `path` itself, or a file in that directory.
///
/// # Errors
/// As [`detect`].
pub fn weights_of(path: &Path) -> Result<PathBuf, SaeError> {
    Ok(locate(path)?.1)
}

/// Reads a dictionary of any format: a directory, or the file with the numbers.
///
/// # Errors
/// As [`detect`], and as the format's own `read`.
pub fn load(path: &Path) -> Result<Loaded, SaeError> {
    let (format, weights) = locate(path)?;
    match format {
        Format::SaeLens => saelens::read(parent(&weights)),
        Format::DictionaryLearning => dictionary_learning::read(&weights),
        Format::Sparsify => sparsify::read(parent(&weights)),
        Format::GemmaScope => gemma_scope::read(&weights),
        Format::GemmaScope2 => gemma_scope_2::read(parent(&weights)),
        Format::LlamaScope => llama_scope::read(parent(parent(&weights))),
    }
}

/// Writes a dictionary into a directory.
///
/// # Errors
/// The format cannot express the dictionary or is only read, or a file cannot be written.
pub fn save(format: Format, sae: &Sae, origin: &Origin, dir: &Path) -> Result<(), SaeError> {
    match format {
        Format::SaeLens => saelens::write(sae, origin, dir),
        Format::DictionaryLearning => dictionary_learning::write(sae, origin, dir),
        Format::Sparsify => sparsify::write(sae, dir),
        Format::GemmaScope => gemma_scope::write(sae, dir),
        Format::GemmaScope2 | Format::LlamaScope => Err(SaeError::Inexpressible {
            format,
            reason: "this format can be read only".to_owned(),
        }),
    }
}

/// The format, and the file with the numbers.
fn locate(path: &Path) -> Result<(Format, PathBuf), SaeError> {
    let wrong = |problem: String| SaeError::File {
        path: path.to_owned(),
        problem,
    };
    let known = || {
        let names: Vec<String> = Format::ALL
            .iter()
            .map(|format| format!("{} ({format})", format.weights()))
            .collect();
        names.join(", ")
    };
    if path.is_dir() {
        let found: Vec<Format> = Format::ALL
            .into_iter()
            .filter(|format| path.join(format.weights()).is_file())
            .collect();
        return match found[..] {
            [format] => Ok((format, path.join(format.weights()))),
            [] => Err(wrong(format!(
                "no dictionary is here; known are {}",
                known()
            ))),
            _ => Err(wrong(format!(
                "files of several formats are here: {}; give the file itself",
                found
                    .iter()
                    .map(|format| format.weights())
                    .collect::<Vec<_>>()
                    .join(", ")
            ))),
        };
    }
    if !path.exists() {
        return Err(wrong("there is no such file or directory".to_owned()));
    }
    let by_name = Format::ALL
        .into_iter()
        .find(|format| path.ends_with(format.weights()));
    let by_extension = || match path.extension()?.to_str()? {
        "pt" | "pth" => Some(Format::DictionaryLearning),
        "npz" => Some(Format::GemmaScope),
        _ => None,
    };
    by_name
        .or_else(by_extension)
        .map(|format| (format, path.to_owned()))
        .ok_or_else(|| {
            wrong(format!(
                "this is no file of a dictionary; known are {}",
                known()
            ))
        })
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}
