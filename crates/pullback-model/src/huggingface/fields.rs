//! Typed reading of a JSON object, with errors that name the file, the key and the value.

use std::path::Path;

use serde_json::Value;

use crate::error::ModelError;

/// Typed access to a JSON object; `null` counts as absent.
pub(super) struct Fields<'a> {
    pub(super) path: &'a Path,
    pub(super) json: &'a Value,
}

impl<'a> Fields<'a> {
    pub(super) fn typed<T>(
        &self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| {
                let found: String = value.to_string().chars().take(60).collect();
                ModelError::malformed(self.path, key, format!("expected {wanted}, found {found}"))
            }),
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.typed(key, "an integer that is not negative", |value| {
            value
                .as_u64()
                .map(|n| usize::try_from(n).unwrap_or(usize::MAX))
        })
    }

    pub(super) fn required(&self, key: &str) -> Result<usize, ModelError> {
        self.size(key)?
            .ok_or_else(|| ModelError::malformed(self.path, key, "this key is missing"))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }
}
