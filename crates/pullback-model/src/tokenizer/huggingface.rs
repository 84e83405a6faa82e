//! Reading the tokenizer of a Hugging Face directory.

use std::path::Path;

use serde_json::Value;

use super::check;
use super::roles::Settings;
use super::vocab_merges::{self, MERGES, VOCAB};
use super::{
    LooseBytes, Start, TextForm, Token, Tokenizer, byte_level_bytes, byte_token,
    sentencepiece_bytes,
};
use crate::error::ModelError;
use crate::huggingface::read_json;

/// An id may exceed the number of tokens by this much; vocabularies with larger holes are taken for damage.
const MAX_HOLES: usize = 1 << 16;

pub(super) fn build(directory: &Path) -> Result<Tokenizer, ModelError> {
    let has = |name: &str| directory.join(name).is_file();
    let path = directory.join("tokenizer.json");
    if has("tokenizer.json") || !directory.is_dir() {
        let mut document = read_json(&path)?;
        check::document(&path, &document)?;
        // Leaving out merges at random is for training; here the same text gives the same ids.
        if let Some(Value::Object(model)) = document.get_mut("model") {
            model.remove("dropout");
        }
        let tokenizer: tokenizers::Tokenizer = serde_json::from_value(document)
            .map_err(|error| ModelError::malformed(&path, "tokenizer", error.to_string()))?;
        return from_backend(&path, tokenizer, &Settings::read(directory)?);
    }
    if has(VOCAB) && has(MERGES) {
        let mut settings = Settings::read(directory)?;
        let tokenizer = vocab_merges::build(directory, &mut settings)?;
        return from_backend(&directory.join(VOCAB), tokenizer, &settings);
    }
    let needed = "a tokenizer.json is needed, or vocab.json and merges.txt";
    let other = [
        "tokenizer.model",
        "spiece.model",
        "tekken.json",
        "vocab.json",
        "merges.txt",
    ]
    .into_iter()
    .find(|name| has(name));
    Err(ModelError::NotAModel {
        path: directory.to_owned(),
        problem: match other {
            Some(name) => format!(
                "its tokenizer is there only as {name}, which cannot be read by itself; {needed} (the method \
                 save_pretrained of a tokenizer of transformers writes tokenizer.json)"
            ),
            None => format!("it has no tokenizer; {needed}"),
        },
    })
}

fn from_backend(
    path: &Path,
    tokenizer: tokenizers::Tokenizer,
    settings: &Settings,
) -> Result<Tokenizer, ModelError> {
    let vocab = tokenizer.get_vocab(true);
    let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
    if size > vocab.len() + MAX_HOLES {
        return Err(ModelError::malformed(
            path,
            "vocab",
            format!("the largest id is {} for {} tokens", size - 1, vocab.len()),
        ));
    }
    let style = Style::of(&tokenizer);
    let mut tokens = vec![Token::default(); size];
    for (text, &id) in &vocab {
        let token = &mut tokens[id as usize];
        token.bytes = match style {
            Style::ByteLevel => byte_level_bytes(text),
            Style::Pieces { fallback: true, .. } => {
                token.is_byte = byte_token(text).is_some();
                sentencepiece_bytes(text)
            }
            Style::Pieces { .. } => text.replace('▁', " ").into_bytes(),
            Style::Other => tokenizer
                .decode(&[id], false)
                .unwrap_or_default()
                .into_bytes(),
        }
        .into();
    }
    for (&id, added) in &tokenizer.get_added_tokens_decoder() {
        if let Some(token) = tokens.get_mut(id as usize) {
            token.special = added.special;
            if let Style::ByteLevel = style {
                token.bytes = added.content.as_bytes().into();
            }
        }
    }
    let form = match style {
        Style::ByteLevel => TextForm::Bytes,
        Style::Pieces { start, .. } => TextForm::Pieces {
            bytes: LooseBytes::WholeRun,
            start,
        },
        Style::Other => TextForm::Decoder,
    };
    let special = settings.special_ids(&tokenizer);
    Tokenizer::new(tokenizer, tokens, form, special)
}

/// How the vocabulary writes bytes and spaces, by the decoder.
#[derive(Clone, Copy)]
enum Style {
    ByteLevel,
    /// Spaces are written `▁`; with `fallback`, `<0x9F>` is a byte.
    Pieces {
        fallback: bool,
        start: Start,
    },
    Other,
}

impl Style {
    fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        let Ok(decoder) = serde_json::to_value(tokenizer.get_decoder()) else {
            return Self::Other;
        };
        let steps = match decoder["decoders"].as_array() {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(&decoder),
        };
        let is = |step: &Value, kind: &str| step["type"] == kind;
        let spaces = |step: &Value| {
            is(step, "Replace") && step["pattern"]["String"] == "▁" && step["content"] == " "
        };
        let left_strip = |step: &Value| {
            is(step, "Strip") && step["content"] == " " && step["start"] == 1 && step["stop"] == 0
        };
        match steps {
            [one] if is(one, "ByteLevel") => Self::ByteLevel,
            [one] if is(one, "Metaspace") && one["replacement"] == "▁" => Self::Pieces {
                fallback: false,
                start: match one["prepend_scheme"].as_str() {
                    Some("never") => Start::Whole,
                    _ => Start::WithoutSpacesOfToken,
                },
            },
            [first, bytes, fuse, rest @ ..]
                if spaces(first) && is(bytes, "ByteFallback") && is(fuse, "Fuse") =>
            {
                match rest {
                    [] => Self::Pieces {
                        fallback: true,
                        start: Start::Whole,
                    },
                    [strip] if left_strip(strip) => Self::Pieces {
                        fallback: true,
                        start: Start::WithoutSpace,
                    },
                    _ => Self::Other,
                }
            }
            _ => Self::Other,
        }
    }
}
