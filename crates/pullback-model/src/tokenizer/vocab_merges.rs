//! Byte-level BPE from `vocab.json` and `merges.txt`, as GPT-2 and older checkpoints bring it.

use std::path::Path;

use serde_json::Value;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer as Backend};

use super::pre_tokenizer::qwen2_steps;
use super::roles::Settings;
use crate::error::ModelError;
use crate::huggingface::read_json;

pub(super) const VOCAB: &str = "vocab.json";
pub(super) const MERGES: &str = "merges.txt";
/// The one special token of GPT-2, whose text no file names.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Builds the tokenizer of a directory with both files. What the files leave open follows from the class that
/// `tokenizer_config.json` names; without one it is that of GPT-2.
pub(super) fn build(directory: &Path, settings: &mut Settings) -> Result<Backend, ModelError> {
    let class = settings.setting("tokenizer_class").as_str();
    let class = class.map_or("GPT2Tokenizer", |name| {
        name.strip_suffix("Fast").unwrap_or(name)
    });
    let qwen2 = match class {
        "GPT2Tokenizer" => false,
        "Qwen2Tokenizer" => true,
        other => {
            return Err(ModelError::unsupported(
                &directory.join("tokenizer_config.json"),
                "tokenizer_class",
                format!(
                    "\"{other}\" is not supported without a tokenizer.json (supported: GPT2Tokenizer, Qwen2Tokenizer)"
                ),
            ));
        }
    };
    let vocab = read_vocab(&directory.join(VOCAB))?;
    let path = directory.join(MERGES);
    let merges = read_merges(&path)?;
    super::check::merges(
        &path,
        "merges",
        |token| vocab.contains_key(token),
        "",
        merges.iter().map(|(a, b)| (a.as_str(), b.as_str())),
    )?;
    let has_end = vocab.contains_key(END_OF_TEXT);
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .build()
        .map_err(|error| ModelError::malformed(&path, "merges", error.to_string()))?;
    let mut tokenizer = Backend::new(model);
    let add_prefix_space = settings.setting("add_prefix_space") == &Value::Bool(true);
    if qwen2 {
        tokenizer
            .with_normalizer(Some(NFC))
            .map_err(|error| ModelError::tokenizer(error.to_string()))?;
        tokenizer.with_pre_tokenizer(Some(Sequence::new(qwen2_steps(add_prefix_space)?)));
    } else {
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(add_prefix_space, true, true)));
    }
    tokenizer.with_decoder(Some(ByteLevel::default()));

    if has_end {
        let roles: &[&str] = if qwen2 {
            &["eos", "pad", "unk"]
        } else {
            &["bos", "eos", "unk"]
        };
        settings.name_if_missing(roles, END_OF_TEXT);
    }
    let mut added = added_tokens(directory, settings)?;
    for role in ["bos", "eos", "unk", "pad"] {
        if let Some(name) = settings.named(role)
            && !name.is_empty()
            && !added.iter().any(|token| token.content == name)
        {
            added.push(AddedToken::from(name, true).normalized(false));
        }
    }
    tokenizer
        .add_tokens(added)
        .map_err(|error| ModelError::tokenizer(error.to_string()))?;
    Ok(tokenizer)
}

fn read_vocab(path: &Path) -> Result<Vocab, ModelError> {
    let json = read_json(path)?;
    let Value::Object(map) = json else {
        return Err(ModelError::malformed(
            path,
            "vocabulary",
            "expected an object with an id for each token",
        ));
    };
    map.into_iter()
        .map(|(token, id)| match id.as_u64().map(u32::try_from) {
            Some(Ok(id)) => Ok((token, id)),
            _ => Err(ModelError::malformed(
                path,
                format!("token {token:?}"),
                format!("{id} is not a token id"),
            )),
        })
        .collect()
}

fn read_merges(path: &Path) -> Result<Merges, ModelError> {
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::io(path, source))?;
    let mut merges = Merges::new();
    // `str::lines` would also split at a carriage return, which no token of this alphabet holds.
    for (index, line) in text.split('\n').enumerate() {
        let line = line.trim_end_matches('\r');
        if line.is_empty() || index == 0 && line.starts_with("#version") {
            continue;
        }
        match line.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() => {
                merges.push((left.to_owned(), right.to_owned()));
            }
            _ => {
                return Err(ModelError::malformed(
                    path,
                    format!("line {}", index + 1),
                    format!("{line:?} is not two tokens with a space between"),
                ));
            }
        }
    }
    Ok(merges)
}

/// The tokens that `tokenizer_config.json` and `added_tokens.json` add, in the order of their ids.
fn added_tokens(directory: &Path, settings: &Settings) -> Result<Vec<AddedToken>, ModelError> {
    let mut added: Vec<(u64, AddedToken)> = Vec::new();
    if let Some(map) = settings.setting("added_tokens_decoder").as_object() {
        for (id, entry) in map {
            let flag = |key: &str| entry[key] == true;
            if let (Ok(id), Some(content)) = (id.parse(), entry["content"].as_str()) {
                let token = AddedToken::from(content, flag("special"))
                    .lstrip(flag("lstrip"))
                    .rstrip(flag("rstrip"))
                    .single_word(flag("single_word"))
                    .normalized(flag("normalized"));
                added.push((id, token));
            }
        }
    }
    let path = directory.join("added_tokens.json");
    if path.is_file()
        && let Value::Object(map) = read_json(&path)?
    {
        for (content, id) in map {
            let known = added.iter().any(|(_, token)| token.content == content);
            if let (Some(id), false) = (id.as_u64(), known) {
                let special = ["bos", "eos", "unk", "pad"]
                    .iter()
                    .any(|role| settings.named(role) == Some(content.as_str()));
                added.push((id, AddedToken::from(content, special).normalized(!special)));
            }
        }
    }
    added.sort_by_key(|(id, _)| *id);
    Ok(added.into_iter().map(|(_, token)| token).collect())
}
