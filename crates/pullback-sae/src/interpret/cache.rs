//! Answers that are kept.

use std::cell::Cell;
use std::path::PathBuf;

use pullback_artifact::{read_json, sha256_bytes, write_json};
use pullback_model::Message;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Explainer;
use crate::SaeError;

/// An explainer whose answers are kept in a directory, a file each, so that the same question is asked once.
pub struct CachedExplainer<E> {
    inner: E,
    dir: PathBuf,
    asked: Cell<usize>,
}

/// A file.
#[derive(Serialize, Deserialize)]
struct Kept<T> {
    explainer: String,
    question: serde_json::Value,
    answer: T,
}

impl<E: Explainer> CachedExplainer<E> {
    /// Keeps answers in `dir`, which need not exist yet.
    pub fn new(inner: E, dir: impl Into<PathBuf>) -> Self {
        Self {
            inner,
            dir: dir.into(),
            asked: Cell::new(0),
        }
    }

    /// Questions that were really asked.
    pub fn asked(&self) -> usize {
        self.asked.get()
    }

    fn kept<T: Serialize + for<'a> Deserialize<'a>>(
        &self,
        question: serde_json::Value,
        ask: impl FnOnce() -> Result<T, SaeError>,
    ) -> Result<T, SaeError> {
        let name = self.inner.name();
        let key = sha256_bytes(json!([name, question]).to_string().as_bytes());
        let path = self.dir.join(format!("{key}.json"));
        // A damaged file is an answer that is not kept.
        if path.exists()
            && let Ok(kept) = read_json::<Kept<T>>(&path)
        {
            return Ok(kept.answer);
        }
        let answer = ask()?;
        self.asked.set(self.asked.get() + 1);
        std::fs::create_dir_all(&self.dir).map_err(|error| SaeError::File {
            path: self.dir.clone(),
            problem: format!("cannot be made: {error}"),
        })?;
        let kept = Kept {
            explainer: name,
            question,
            answer,
        };
        write_json(&path, &kept)?;
        Ok(kept.answer)
    }
}

impl<E: Explainer> Explainer for CachedExplainer<E> {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn complete(&self, messages: &[Message], most: usize) -> Result<String, SaeError> {
        let question = json!({ "complete": messages, "most": most });
        self.kept(question, || self.inner.complete(messages, most))
    }

    fn agrees(&self, messages: &[Message]) -> Result<f64, SaeError> {
        self.kept(json!({ "agrees": messages }), || {
            self.inner.agrees(messages)
        })
    }
}
