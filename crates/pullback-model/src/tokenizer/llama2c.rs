//! Reading the tokenizer files of llama2.c (`tokenizer.py` and `build_tokenizer` of `run.c` in its repository).
//!
//! Layout, little endian: the length of the longest token; then for each token its score as `f32`, its length as `i32`,
//! and its bytes. Spaces are written as such, bytes as `<0x0A>`. The number of tokens is not stored: it is that of the
//! model, and here what the file holds.

use std::path::Path;

use super::sentencepiece::{self, BYTE, CONTROL, MAX_TOKEN_BYTES, NORMAL, UNKNOWN, Vocabulary};
use super::{SpecialIds, Tokenizer, byte_token};
use crate::error::ModelError;

const UNK: u32 = 0;
const BOS: u32 = 1;
const EOS: u32 = 2;
/// The three special tokens and one for each byte.
const FEWEST_TOKENS: usize = 3 + 256;

pub(super) fn build(path: &Path) -> Result<Tokenizer, ModelError> {
    let map = pullback_kernels::map_file(path).map_err(|source| ModelError::io(path, source))?;
    parse(path, &map)
}

pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Tokenizer, ModelError> {
    let mut rest = bytes;
    let longest = i32::from_le_bytes(take(path, bytes, &mut rest, "the longest length")?);
    let longest = usize::try_from(longest)
        .ok()
        .filter(|longest| (1..=MAX_TOKEN_BYTES).contains(longest))
        .ok_or_else(|| {
            ModelError::malformed(
                path,
                "the length of the longest token",
                format!(
                    "{longest} is not between 1 and {MAX_TOKEN_BYTES}; this is not a tokenizer of llama2.c"
                ),
            )
        })?;
    let mut names: Vec<String> = Vec::new();
    let mut scores = Vec::new();
    let mut types = Vec::new();
    while !rest.is_empty() {
        let id = names.len();
        let field = format!("token {id}");
        let score = f32::from_le_bytes(take(path, bytes, &mut rest, &field)?);
        let length = i32::from_le_bytes(take(path, bytes, &mut rest, &field)?);
        let damaged = |problem: String| ModelError::malformed(path, &field, problem);
        if !score.is_finite() {
            return Err(damaged(format!("its score is {score}")));
        }
        let length = usize::try_from(length)
            .ok()
            .filter(|&length| length <= longest)
            .ok_or_else(|| {
                damaged(format!(
                    "its length is {length} bytes, but the longest token has {longest}"
                ))
            })?;
        let text = rest
            .split_off(..length)
            .ok_or_else(|| cut_short(path, bytes, &field, length - rest.len()))?;
        let text = std::str::from_utf8(text)
            .map_err(|error| damaged(format!("its text is not UTF-8: {error}")))?;
        // The file frames the names of the two special tokens with line breaks.
        let (name, kind) = match id as u32 {
            UNK => (text.to_owned(), UNKNOWN),
            BOS | EOS => (text.trim().to_owned(), CONTROL),
            _ if byte_token(text).is_some() => (text.to_owned(), BYTE),
            _ => (text.replace(' ', "▁"), NORMAL),
        };
        names.push(name);
        scores.push(score);
        types.push(kind);
    }
    let in_place = |byte: u8| names.get(3 + usize::from(byte)).and_then(|n| byte_token(n));
    if names.len() < FEWEST_TOKENS || (0..=255).any(|byte| in_place(byte) != Some(byte)) {
        return Err(ModelError::malformed(
            path,
            "tokens",
            format!(
                "the file has {} tokens; expected three special ones, one for each byte (<0x00> to <0xFF>), and others",
                names.len()
            ),
        ));
    }
    let special = SpecialIds {
        bos: Some(BOS),
        eos: Some(EOS),
        unk: Some(UNK),
        pad: None,
        add_bos: true,
        // Stories follow each other in the training text with this token between them; `run.c` stops at it as well.
        ends: vec![BOS],
    };
    let vocabulary = Vocabulary {
        path,
        field: "tokens",
        names: &names,
        types: &types,
        scores: &scores,
    };
    sentencepiece::build(&vocabulary, special, true)
}

fn take<const N: usize>(
    path: &Path,
    all: &[u8],
    rest: &mut &[u8],
    field: &str,
) -> Result<[u8; N], ModelError> {
    let Some((first, after)) = rest.split_first_chunk::<N>() else {
        return Err(cut_short(path, all, field, N - rest.len()));
    };
    *rest = after;
    Ok(*first)
}

fn cut_short(path: &Path, all: &[u8], field: &str, missing: usize) -> ModelError {
    ModelError::Truncated {
        path: path.to_owned(),
        field: field.to_owned(),
        missing: missing as u64,
        at_least: true,
        length: all.len() as u64,
    }
}
