//! SentencePiece BPE from tokens and scores.

use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence as NormalizerSequence};
use tokenizers::{AddedToken, NormalizerWrapper};

use super::{
    LooseBytes, SpecialIds, Start, TextForm, Token, Tokenizer, byte_token, sentencepiece_bytes,
};
use crate::error::ModelError;

/// `LLAMA_TOKEN_TYPE_*` of llama.cpp: the kinds of token that matter here.
pub(super) const NORMAL: i64 = 1;
pub(super) const UNKNOWN: i64 = 2;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
pub(super) const BYTE: i64 = 6;

/// Tokens of SentencePiece are words at most; finding the merges of much longer ones would take forever.
pub(super) const MAX_TOKEN_BYTES: usize = 1024;

/// A vocabulary of SentencePiece, and where it is from.
pub(super) struct Vocabulary<'a> {
    pub(super) path: &'a Path,
    /// The part of the file that holds the tokens, for errors.
    pub(super) field: &'a str,
    /// The tokens by their ids; spaces are written `▁`.
    pub(super) names: &'a [String],
    /// The kind of each token.
    pub(super) types: &'a [i64],
    pub(super) scores: &'a [f32],
}

/// Makes control and user-defined tokens known as such, in the order of their ids.
pub(super) fn add_tokens(
    vocabulary: (&Path, &str),
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
        .map_err(|error| ModelError::malformed(vocabulary.0, vocabulary.1, error.to_string()))?;
    Ok(())
}

/// Builds the tokenizer. Its merges are not stored: two tokens merge if their texts joined are a token, the one with the
/// highest score first. The list of merges that follows is that of `generate_merges` in the converters of Hugging Face
/// transformers.
pub(super) fn build(
    vocabulary: &Vocabulary<'_>,
    special: SpecialIds,
    add_space: bool,
) -> Result<Tokenizer, ModelError> {
    let &Vocabulary {
        path,
        field,
        names,
        types,
        scores,
    } = vocabulary;
    let vocab: Vocab = names.iter().cloned().zip(0..).collect();
    let mut merges = Vec::new();
    for (name, (&kind, &score)) in names.iter().zip(types.iter().zip(scores)) {
        if matches!(kind, UNKNOWN | CONTROL | BYTE) {
            continue;
        }
        if name.len() > MAX_TOKEN_BYTES {
            return Err(ModelError::malformed(
                path,
                field,
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
        .map_err(|error| ModelError::malformed(path, field, error.to_string()))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
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
    add_tokens((path, field), &mut tokenizer, names, types)?;
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
            is_byte: kind == BYTE && byte_token(name).is_some(),
        })
        .collect();
    let form = TextForm::Pieces {
        bytes: LooseBytes::EachWrong,
        start: if add_space {
            Start::WithoutSpaceOfToken
        } else {
            Start::Whole
        },
    };
    Tokenizer::new(tokenizer, tokens, form, special)
}
