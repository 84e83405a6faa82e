//! Building a tokenizer from GGUF metadata.

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::sequence::Sequence;

use super::check;
use super::pre_tokenizer::PreTokenization;
use super::sentencepiece::{self, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary, add_tokens};
use super::{SpecialIds, TextForm, Token, Tokenizer, byte_level_bytes};
use crate::error::ModelError;
use crate::gguf::{Array, Gguf};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const MODEL: &str = "tokenizer.ggml.model";

pub(super) fn build(gguf: &Gguf) -> Result<Tokenizer, ModelError> {
    let model = gguf.string(MODEL)?.ok_or_else(|| missing(gguf, MODEL))?;
    let names = gguf.strings(TOKENS)?.ok_or_else(|| missing(gguf, TOKENS))?;
    if names.is_empty() {
        return Err(ModelError::malformed(
            gguf.path(),
            TOKENS,
            "the vocabulary is empty",
        ));
    }
    let types = token_types(gguf, names.len())?;
    match model {
        "gpt2" => byte_level(gguf, names, &types),
        "llama" => sentencepiece(gguf, names, &types),
        other => Err(ModelError::unsupported(
            gguf.path(),
            MODEL,
            format!("the tokenizer \"{other}\" is not supported (supported: gpt2, llama)"),
        )),
    }
}

fn missing(gguf: &Gguf, key: &str) -> ModelError {
    ModelError::malformed(gguf.path(), key, "this metadata key is missing")
}

fn token_types(gguf: &Gguf, count: usize) -> Result<Vec<i64>, ModelError> {
    let types = match gguf.array(TOKEN_TYPES)? {
        None => vec![NORMAL; count],
        Some(Array::I32(types)) => types.iter().map(|&t| t.into()).collect(),
        Some(Array::U32(types)) => types.iter().map(|&t| t.into()).collect(),
        Some(_) => {
            return Err(ModelError::malformed(
                gguf.path(),
                TOKEN_TYPES,
                "expected an array of 32-bit integers",
            ));
        }
    };
    same_length(gguf, TOKEN_TYPES, types.len(), count)?;
    Ok(types)
}

fn same_length(gguf: &Gguf, key: &str, found: usize, tokens: usize) -> Result<(), ModelError> {
    if found == tokens {
        return Ok(());
    }
    Err(ModelError::malformed(
        gguf.path(),
        key,
        format!("{found} entries for {tokens} tokens"),
    ))
}

/// The roles of tokens; `add_bos` where the file does not say.
fn special_ids(gguf: &Gguf, count: usize, add_bos: bool) -> Result<SpecialIds, ModelError> {
    let id = |role: &str| -> Result<Option<u32>, ModelError> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        match gguf.unsigned(&key)? {
            Some(id) if id < count as u64 => Ok(Some(id as u32)),
            // Files say "no such token" with the largest number of 32 bits.
            Some(id) if id == u64::from(u32::MAX) => Ok(None),
            Some(id) => Err(ModelError::malformed(
                gguf.path(),
                key,
                format!("{id} is not in the vocabulary of {count} tokens"),
            )),
            None => Ok(None),
        }
    };
    Ok(SpecialIds {
        bos: id("bos")?,
        eos: id("eos")?,
        unk: id("unknown")?,
        pad: id("padding")?,
        add_bos: gguf
            .boolean("tokenizer.ggml.add_bos_token")?
            .unwrap_or(add_bos),
        // The end of a turn, and of a message after which the turn goes on (a call of a tool).
        ends: id("eot")?.into_iter().chain(id("eom")?).collect(),
    })
}

fn byte_level(gguf: &Gguf, names: &[String], types: &[i64]) -> Result<Tokenizer, ModelError> {
    let pre = PreTokenization::of(gguf)?;
    let lines = gguf.strings(MERGES)?.ok_or_else(|| missing(gguf, MERGES))?;
    let mut merges: Merges = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        // A token can itself contain no space: the byte-level alphabet writes it `Ġ`.
        let Some((left, right)) = line.split_once(' ') else {
            return Err(ModelError::malformed(
                gguf.path(),
                MERGES,
                format!("entry {index}, {line:?}, is not two tokens with a space between"),
            ));
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    let vocab: Vocab = names.iter().cloned().zip(0..).collect();
    check::merges(
        gguf.path(),
        MERGES,
        |token| vocab.contains_key(token),
        "",
        merges.iter().map(|(a, b)| (a.as_str(), b.as_str())),
    )?;
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(|error| ModelError::malformed(gguf.path(), MERGES, error.to_string()))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    if pre.normalize {
        tokenizer
            .with_normalizer(Some(NFC))
            .map_err(|error| ModelError::tokenizer(error.to_string()))?;
    }
    tokenizer.with_pre_tokenizer(Some(Sequence::new(pre.steps)));
    add_tokens((gguf.path(), TOKENS), &mut tokenizer, names, types)?;
    let tokens = names
        .iter()
        .zip(types)
        .map(|(name, &kind)| Token {
            bytes: match kind {
                UNKNOWN | CONTROL | USER_DEFINED => name.as_bytes().into(),
                _ => byte_level_bytes(name).into(),
            },
            special: matches!(kind, UNKNOWN | CONTROL),
            is_byte: false,
        })
        .collect();
    Tokenizer::new(
        tokenizer,
        tokens,
        TextForm::Bytes,
        special_ids(gguf, names.len(), pre.add_bos)?,
    )
}

/// SentencePiece BPE, with the scores of its tokens.
fn sentencepiece(gguf: &Gguf, names: &[String], types: &[i64]) -> Result<Tokenizer, ModelError> {
    let scores = match gguf.array(SCORES)? {
        Some(Array::F32(scores)) => scores,
        Some(_) => {
            return Err(ModelError::malformed(
                gguf.path(),
                SCORES,
                "expected an array of 32-bit floats",
            ));
        }
        None => return Err(missing(gguf, SCORES)),
    };
    same_length(gguf, SCORES, scores.len(), names.len())?;
    let special = special_ids(gguf, names.len(), true)?;
    let add_space = gguf
        .boolean("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let vocabulary = Vocabulary {
        path: gguf.path(),
        field: TOKENS,
        names,
        types,
        scores,
    };
    sentencepiece::build(&vocabulary, special, add_space)
}
