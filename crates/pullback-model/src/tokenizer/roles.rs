//! Which tokens begin, end and fill texts, as the files of a Hugging Face directory say.

use std::path::Path;

use serde_json::Value;

use super::SpecialIds;
use crate::error::ModelError;
use crate::huggingface::read_json;

/// The files of a directory that name tokens, each `null` if it does not exist.
pub(super) struct Settings {
    tokenizer: Value,
    map: Value,
    config: Value,
    generation: Value,
}

impl Settings {
    /// # Errors
    /// When one of the files cannot be read or is not JSON, or states the tokens that end a text in another way than by a
    /// number or a list of numbers.
    pub(super) fn read(directory: &Path) -> Result<Self, ModelError> {
        let read = |name: &str| {
            let path = directory.join(name);
            if path.is_file() {
                read_json(&path)
            } else {
                Ok(Value::Null)
            }
        };
        let settings = Self {
            tokenizer: read("tokenizer_config.json")?,
            map: read("special_tokens_map.json")?,
            config: read("config.json")?,
            generation: read("generation_config.json")?,
        };
        for (name, json) in [
            ("config.json", &settings.config),
            ("generation_config.json", &settings.generation),
        ] {
            check_ids(&directory.join(name), &json["eos_token_id"])?;
        }
        Ok(settings)
    }

    /// What `tokenizer_config.json` says under a key.
    pub(super) fn setting(&self, key: &str) -> &Value {
        &self.tokenizer[key]
    }

    /// Gives roles that no file names to a token; a role that a file sets to `null` stays empty.
    pub(super) fn name_if_missing(&mut self, roles: &[&str], token: &str) {
        if self.tokenizer.is_null() {
            self.tokenizer = Value::Object(serde_json::Map::new());
        }
        for role in roles {
            let key = format!("{role}_token");
            if self.named(role).is_none()
                && let Some(map) = self.tokenizer.as_object_mut()
                && !map.contains_key(&key)
            {
                map.insert(key, token.into());
            }
        }
    }

    /// The text of the token of a role such as `bos`.
    pub(super) fn named(&self, role: &str) -> Option<&str> {
        let key = format!("{role}_token");
        [&self.tokenizer, &self.map].into_iter().find_map(|json| {
            let entry = &json[&key];
            entry.as_str().or_else(|| entry["content"].as_str())
        })
    }

    /// The tokens with a role. Those that end a text are the ones that `generation_config.json` names, else
    /// `config.json`, else the one of `tokenizer_config.json`.
    pub(super) fn special_ids(&self, tokenizer: &tokenizers::Tokenizer) -> SpecialIds {
        let id_of = |role: &str| match self.named(role) {
            Some(name) => tokenizer.token_to_id(name),
            None => ids(&self.config[format!("{role}_token_id")])
                .first()
                .copied(),
        };
        let bos = id_of("bos");
        // Without a word in the settings, the post-processor tells: it puts the token before every text.
        let add_bos = match self.tokenizer["add_bos_token"].as_bool() {
            Some(add_bos) => add_bos,
            None => tokenizer
                .encode_fast("a", true)
                .is_ok_and(|encoding| bos.is_some() && encoding.get_ids().first() == bos.as_ref()),
        };
        let eos = self
            .named("eos")
            .and_then(|name| tokenizer.token_to_id(name));
        let mut ends = ids(&self.generation["eos_token_id"]);
        if ends.is_empty() {
            ends = ids(&self.config["eos_token_id"]);
        }
        if ends.is_empty() {
            ends.extend(eos);
        }
        SpecialIds {
            bos,
            eos: eos.or(ends.first().copied()),
            unk: id_of("unk"),
            pad: id_of("pad"),
            add_bos,
            ends,
        }
    }
}

/// An id or a list of ids; a negative number says that there is none.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}

fn check_ids(path: &Path, value: &Value) -> Result<(), ModelError> {
    let is_id = |value: &Value| {
        value
            .as_i64()
            .is_some_and(|id| id < i64::from(u32::MAX) + 1)
    };
    let good = match value {
        Value::Null => true,
        Value::Array(list) => list.iter().all(is_id),
        value => is_id(value),
    };
    if good {
        return Ok(());
    }
    let found: String = value.to_string().chars().take(60).collect();
    Err(ModelError::malformed(
        path,
        "eos_token_id",
        format!("expected a token id or a list of them, found {found}"),
    ))
}
