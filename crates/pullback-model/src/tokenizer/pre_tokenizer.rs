//! How byte-level vocabularies split a text before the merges, by the names that llama.cpp's converter writes.
//!
//! Names are grouped as in `llama-vocab.cpp` of llama.cpp. The patterns and normal forms are those of the `tokenizer.json`
//! of the models that a name was made for, which llama.cpp only approximates here and there.

use tokenizers::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use crate::error::ModelError;
use crate::gguf::Gguf;

const PRE: &str = "tokenizer.ggml.pre";

/// The pattern of Llama 3, after that of GPT-4 (`cl100k_base` of tiktoken).
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with marks as parts of words.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The pattern of Mistral's Tekken: words are split before capitals.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The pattern of GPT-4o (`o200k_base` of tiktoken) and Llama 4.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// All patterns. None of them matches an ASCII letter and a space after it together, or looks past the end of a run of
/// ASCII letters.
pub(super) const PATTERNS: [&str; 5] = [LLAMA3, QWEN2, QWEN35, TEKKEN, GPT4O];

/// A split by a pattern, then the alphabet of bytes.
fn split_by(pattern: &str, add_prefix_space: bool) -> Result<Vec<PreTokenizerWrapper>, ModelError> {
    let split = Split::new(
        SplitPattern::Regex(pattern.to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(|error| ModelError::tokenizer(error.to_string()))?;
    Ok(vec![
        split.into(),
        ByteLevel::new(add_prefix_space, true, false).into(),
    ])
}

/// The steps of Qwen 2 and 3.
pub(super) fn qwen2_steps(add_prefix_space: bool) -> Result<Vec<PreTokenizerWrapper>, ModelError> {
    split_by(QWEN2, add_prefix_space)
}

/// How a text is split before the merges.
pub(super) struct PreTokenization {
    pub(super) steps: Vec<PreTokenizerWrapper>,
    /// Whether a split part that is a token is taken whole.
    pub(super) ignore_merges: bool,
    /// Whether the text is brought into the normal form NFC.
    pub(super) normalize: bool,
    /// Whether texts begin with the token for it where the file does not say.
    pub(super) add_bos: bool,
}

impl PreTokenization {
    /// The one that a file names; that of GPT-2 if it names none.
    pub(super) fn of(gguf: &Gguf) -> Result<Self, ModelError> {
        let byte_level = || PreTokenizerWrapper::from(ByteLevel::new(false, true, true));
        let plain = |steps| Self {
            steps,
            ignore_merges: false,
            normalize: false,
            add_bos: false,
        };
        let split = |pattern: &str| split_by(pattern, false).map(plain);
        Ok(match gguf.string(PRE)?.unwrap_or("default") {
            "default" | "gpt-2" | "phi-2" => plain(vec![byte_level()]),
            // GPT-NeoX, Pythia, MPT and the first OLMo share a vocabulary that was made from text in normal form.
            "olmo" | "mpt" => Self {
                normalize: true,
                ..plain(vec![byte_level()])
            },
            "smollm" | "starcoder" | "codeshell" | "refact" => {
                plain(vec![Digits::new(true).into(), byte_level()])
            }
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral"
            | "midm-2.0" | "lfm2" => Self {
                ignore_merges: true,
                add_bos: true,
                ..split(LLAMA3)?
            },
            "dbrx" | "smaug-bpe" => split(LLAMA3)?,
            "qwen2" | "deepseek-r1-qwen" | "megrez" => Self {
                normalize: true,
                ..split(QWEN2)?
            },
            "qwen35" => Self {
                normalize: true,
                ..split(QWEN35)?
            },
            "tekken" => Self {
                ignore_merges: true,
                add_bos: true,
                ..split(TEKKEN)?
            },
            "gpt-4o" | "llama4" => split(GPT4O)?,
            other => {
                return Err(ModelError::unsupported(
                    gguf.path(),
                    PRE,
                    format!(
                        "the pre-tokenizer \"{other}\" is not supported (supported: default, gpt-2, phi-2, olmo, mpt, \
                         smollm, starcoder, codeshell, refact, llama-bpe, falcon3, falcon-h1, pixtral, midm-2.0, lfm2, \
                         dbrx, smaug-bpe, qwen2, deepseek-r1-qwen, megrez, qwen35, tekken, gpt-4o, llama4)"
                    ),
                ));
            }
        })
    }
}
