//! Building a tokenizer from GGUF metadata.

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, SplitDelimiterBehavior};

use super::{
    LLAMA3_PATTERN, QWEN2_PATTERN, SpecialIds, TextForm, Token, Tokenizer, byte_level_bytes,
    byte_token, sentencepiece_bytes,
};
use crate::error::ModelError;
use crate::gguf::{Array, Gguf};

/// `LLAMA_TOKEN_TYPE_*` of llama.cpp: the kinds of token that matter here.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// Tokens of SentencePiece are words at most; finding the merges of much longer ones would take forever.
const MAX_TOKEN_BYTES: usize = 1024;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";

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
        None => vec![1; count],
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
        ends: id("eot")?.into_iter().collect(),
    })
}

/// Makes control and user-defined tokens known as such, in the order of their ids.
fn add_tokens(
    gguf: &Gguf,
    tokenizer: &mut tokenizers::Tokenizer,
    names: &[String],
    types: &[i64],
) -> Result<(), ModelError> {
    let added: Vec<AddedToken> = names
        .iter()
        .zip(types)
        .filter(|(name, kind)| {
            matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED) && !name.is_empty()
        })
        .map(|(name, &kind)| {
            AddedToken::from(name.as_str(), kind != USER_DEFINED).normalized(false)
        })
        .collect();
    tokenizer
        .add_tokens(added)
        .map_err(|error| ModelError::malformed(gguf.path(), TOKENS, error.to_string()))?;
    Ok(())
}

fn byte_level(gguf: &Gguf, names: &[String], types: &[i64]) -> Result<Tokenizer, ModelError> {
    let pre = PreTokenization::named(gguf)?;
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
    add_tokens(gguf, &mut tokenizer, names, types)?;
    let tokens = names
        .iter()
        .zip(types)
        .map(|(name, &kind)| Token {
            bytes: match kind {
                UNKNOWN | CONTROL | USER_DEFINED => name.as_bytes().into(),
                _ => byte_level_bytes(name).into(),
            },
            special: matches!(kind, UNKNOWN | CONTROL),
        })
        .collect();
    Tokenizer::new(
        tokenizer,
        tokens,
        TextForm::Bytes,
        special_ids(gguf, names.len(), pre.add_bos)?,
    )
}

/// How a text is split before the merges, by the names that llama.cpp's converter writes.
struct PreTokenization {
    steps: Vec<PreTokenizerWrapper>,
    /// Whether a split part that is a token is taken whole.
    ignore_merges: bool,
    normalize: bool,
    add_bos: bool,
}

impl PreTokenization {
    fn named(gguf: &Gguf) -> Result<Self, ModelError> {
        let byte_level =
            |use_regex| PreTokenizerWrapper::from(ByteLevel::new(false, true, use_regex));
        let split = |pattern: &str| -> Result<PreTokenizerWrapper, ModelError> {
            Split::new(
                SplitPattern::Regex(pattern.to_owned()),
                SplitDelimiterBehavior::Isolated,
                false,
            )
            .map(PreTokenizerWrapper::from)
            .map_err(|error| ModelError::tokenizer(error.to_string()))
        };
        let plain = |steps| Self {
            steps,
            ignore_merges: false,
            normalize: false,
            add_bos: false,
        };
        Ok(match gguf.string(PRE)?.unwrap_or("default") {
            "default" | "gpt-2" => plain(vec![byte_level(true)]),
            "smollm" | "starcoder" | "codeshell" | "refact" => {
                plain(vec![Digits::new(true).into(), byte_level(true)])
            }
            "llama-bpe" | "llama3" | "llama-v3" => Self {
                ignore_merges: true,
                add_bos: true,
                ..plain(vec![split(LLAMA3_PATTERN)?, byte_level(false)])
            },
            "qwen2" => Self {
                normalize: true,
                ..plain(vec![split(QWEN2_PATTERN)?, byte_level(false)])
            },
            other => {
                return Err(ModelError::unsupported(
                    gguf.path(),
                    PRE,
                    format!(
                        "the pre-tokenizer \"{other}\" is not supported (supported: default, gpt-2, smollm, \
                         starcoder, codeshell, refact, llama-bpe, qwen2)"
                    ),
                ));
            }
        })
    }
}

/// SentencePiece BPE. Its merges are not stored: two tokens merge if their texts joined are a token, the one with the
/// highest score first. The list of merges that follows is that of `generate_merges` in the converters of Hugging Face
/// transformers.
fn sentencepiece(gguf: &Gguf, names: &[String], types: &[i64]) -> Result<Tokenizer, ModelError> {
    let scores: Vec<f32> = match gguf.array(SCORES)? {
        Some(Array::F32(scores)) => scores.clone(),
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

    let vocab: Vocab = names.iter().cloned().zip(0..).collect();
    let mut merges = Vec::new();
    for (name, (&kind, &score)) in names.iter().zip(types.iter().zip(&scores)) {
        if matches!(kind, UNKNOWN | CONTROL | BYTE) {
            continue;
        }
        if name.len() > MAX_TOKEN_BYTES {
            return Err(ModelError::malformed(
                gguf.path(),
                TOKENS,
                format!(
                    "a token is {} bytes long, more than {MAX_TOKEN_BYTES}",
                    name.len()
                ),
            ));
        }
        let mut splits: Vec<(u32, u32, &str, &str)> = name
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = name.split_at(at);
                Some((*vocab.get(left)?, *vocab.get(right)?, left, right))
            })
            .collect();
        splits.sort_unstable();
        merges.extend(
            splits
                .into_iter()
                .map(|(_, _, left, right)| (score, left, right)),
        );
    }
    merges.sort_by(|a, b| {
        let lengths = |left: &str, right: &str| (left.chars().count(), right.chars().count());
        b.0.total_cmp(&a.0)
            .then_with(|| lengths(b.1, b.2).cmp(&lengths(a.1, a.2)))
    });
    let merges = merges
        .into_iter()
        .map(|(_, left, right)| (left.to_owned(), right.to_owned()))
        .collect();

    let mut builder = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(unk) = special.unk {
        builder = builder.unk_token(names[unk as usize].clone());
    }
    let model = builder
        .build()
        .map_err(|error| ModelError::malformed(gguf.path(), TOKENS, error.to_string()))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let add_space = gguf
        .boolean("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if add_space {
        steps.push(Prepend::new("▁".into()).into());
    }
    let spaces =
        Replace::new(" ", "▁").map_err(|error| ModelError::tokenizer(error.to_string()))?;
    steps.push(spaces.into());
    tokenizer
        .with_normalizer(Some(NormalizerSequence::new(steps)))
        .map_err(|error| ModelError::tokenizer(error.to_string()))?;
    add_tokens(gguf, &mut tokenizer, names, types)?;
    let tokens = names
        .iter()
        .zip(types)
        .map(|(name, &kind)| Token {
            bytes: match kind {
                CONTROL | UNKNOWN => name.as_bytes().into(),
                BYTE => {
                    byte_token(name).map_or_else(|| name.as_bytes().into(), |byte| [byte].into())
                }
                _ => sentencepiece_bytes(name).into(),
            },
            special: matches!(kind, CONTROL | UNKNOWN),
        })
        .collect();
    let form = if add_space {
        TextForm::BytesAfterSpace
    } else {
        TextForm::Bytes
    };
    Tokenizer::new(tokenizer, tokens, form, special)
}
