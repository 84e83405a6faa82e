//! Reading the tokenizer of a Hugging Face directory.

use std::path::Path;

use serde_json::Value;

use super::roles::Settings;
use super::{TextForm, Token, Tokenizer, byte_level_bytes, sentencepiece_bytes};
use crate::error::ModelError;

/// An id may exceed the number of tokens by this much; vocabularies with larger holes are taken for damage.
const MAX_HOLES: usize = 1 << 16;

pub(super) fn build(directory: &Path) -> Result<Tokenizer, ModelError> {
    let path = directory.join("tokenizer.json");
    let bytes = std::fs::read(&path).map_err(|source| ModelError::io(&path, source))?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(&bytes)
        .map_err(|error| ModelError::malformed(&path, "tokenizer", error.to_string()))?;

    let vocab = tokenizer.get_vocab(true);
    let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
    if size > vocab.len() + MAX_HOLES {
        return Err(ModelError::malformed(
            &path,
            "vocab",
            format!("the largest id is {} for {} tokens", size - 1, vocab.len()),
        ));
    }
    let style = Style::of(&tokenizer);
    let mut tokens = vec![Token::default(); size];
    for (text, &id) in &vocab {
        tokens[id as usize].bytes = match style {
            Style::ByteLevel => byte_level_bytes(text),
            Style::SentencePiece { .. } => sentencepiece_bytes(text),
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
    let special = Settings::read(directory)?.special_ids(&tokenizer);
    let form = match style {
        Style::ByteLevel | Style::SentencePiece { strip: false } => TextForm::Bytes,
        Style::SentencePiece { strip: true } => TextForm::BytesAfterSpace,
        Style::Other => TextForm::Decoder,
    };
    Tokenizer::new(tokenizer, tokens, form, special)
}

/// How the vocabulary writes bytes and spaces.
#[derive(Clone, Copy)]
enum Style {
    ByteLevel,
    SentencePiece { strip: bool },
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
        if steps.iter().all(|step| is(step, "ByteLevel")) {
            return Self::ByteLevel;
        }
        let spaces = |step: &Value| {
            is(step, "Replace") && step["pattern"]["String"] == "▁" && step["content"] == " "
                || is(step, "Metaspace") && step["replacement"] == "▁"
        };
        let left_strip = |step: &Value| {
            is(step, "Strip") && step["content"] == " " && step["start"] == 1 && step["stop"] == 0
        };
        let known = |step: &Value| {
            spaces(step) || left_strip(step) || is(step, "ByteFallback") || is(step, "Fuse")
        };
        if steps.iter().any(spaces) && steps.iter().all(known) {
            let strip = steps.iter().any(|step| {
                left_strip(step) || is(step, "Metaspace") && step["prepend_scheme"] != "never"
            });
            return Self::SentencePiece { strip };
        }
        Self::Other
    }
}
