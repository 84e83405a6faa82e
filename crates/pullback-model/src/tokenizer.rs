//! Text to token ids and back, with the tokenizer that a model file brings.

mod bytes;
mod check;
mod divide;
mod gguf;
mod huggingface;
mod llama2c;
mod pre_tokenizer;
mod roles;
mod sentencepiece;
mod stream;
mod train;
mod vocab_merges;

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use self::bytes::{byte_level_bytes, byte_token, sentencepiece_bytes};
use self::divide::{PIECE_BYTES, divide, is_divisible};
pub use self::stream::DecodeStream;
pub(crate) use self::train::{END_OF_TEXT, train_byte_level};

use crate::error::ModelError;
use crate::gguf::Gguf;

/// The tokenizer of a model.
pub struct Tokenizer {
    /// Turns special tokens in the text into their ids.
    parsing: tokenizers::Tokenizer,
    /// Reads the text of special tokens as ordinary text; made when first asked for.
    plain: OnceLock<tokenizers::Tokenizer>,
    tokens: Vec<Token>,
    form: TextForm,
    special: SpecialIds,
    /// Whether a text may be cut between an ASCII letter and a space and its parts encoded one by one.
    divisible: bool,
}

/// One entry of the vocabulary; ids without an entry have no bytes.
#[derive(Clone, Debug, Default)]
struct Token {
    /// What the token stands for in decoded text.
    bytes: Box<[u8]>,
    special: bool,
    /// Whether it stands for one byte of a character that the vocabulary does not have.
    is_byte: bool,
}

/// How texts of tokens join to text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextForm {
    /// The bytes of the tokens joined; those that are not UTF-8 become `U+FFFD` as in [`String::from_utf8_lossy`].
    Bytes,
    /// Texts of tokens, and single bytes for characters that the vocabulary does not have.
    Pieces { bytes: LooseBytes, start: Start },
    /// Through the decoder of the tokenizer.
    Decoder,
}

/// What becomes of runs of byte tokens that are not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LooseBytes {
    /// Each byte that begins no character becomes `U+FFFD`: the decoder of the sentencepiece library.
    EachWrong,
    /// All bytes of the run become `U+FFFD`: the decoder `ByteFallback` of the tokenizers library.
    WholeRun,
}

/// What is left out at the start of a text, because it was put there when the text was encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Nothing.
    Whole,
    /// One space of the text: the decoder `Strip` of the tokenizers library.
    WithoutSpace,
    /// One space of the first token, if that is no byte token: the decoder of the sentencepiece library.
    WithoutSpaceOfToken,
    /// All spaces of the first token: the decoder `Metaspace` of the tokenizers library.
    WithoutSpacesOfToken,
}

/// Tokens with a role.
#[derive(Clone, Debug, Default)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    add_bos: bool,
    /// Tokens that end a text or a turn, `eos` among them.
    ends: Vec<u32>,
}

/// Special tokens that end a turn or a text in the chat formats in use, whatever the file says of them.
const END_TOKENS: [&str; 11] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|end|>",
    "<|return|>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "</s>",
];

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.tokens.len())
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer that the metadata of a GGUF file describe: `tokenizer.ggml.model` `gpt2` (byte-level BPE
    /// with merges) or `llama` (SentencePiece BPE with scores).
    ///
    /// # Errors
    /// When a key is missing or inconsistent, or the kind of tokenizer or of pre-tokenizer is not known.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        gguf::build(gguf)
    }

    /// Reads the `tokenizer.json` of a directory, or else its `vocab.json` and `merges.txt` (GPT-2), with the roles of tokens from `tokenizer_config.json`,
    /// `special_tokens_map.json` or `config.json`, whichever names them first.
    ///
    /// # Errors
    /// When a file is malformed, or the directory has neither, be it that its tokenizer is only there as `tokenizer.model`;
    /// the error names what is needed.
    pub fn from_huggingface(directory: &Path) -> Result<Self, ModelError> {
        huggingface::build(directory)
    }

    /// Reads the tokenizer file of a llama2.c checkpoint (`tokenizer.bin`, `tok512.bin`): SentencePiece BPE with scores and
    /// byte tokens, whose first three tokens are the unknown one, the one that begins texts and the one that ends them.
    ///
    /// # Errors
    /// When the file cannot be read, is cut short, or is no such file.
    pub fn from_llama2c(path: &Path) -> Result<Self, ModelError> {
        llama2c::build(path)
    }

    /// [`Tokenizer::from_llama2c`] of a file that is already in memory; `path` is used in errors only.
    ///
    /// # Errors
    /// As [`Tokenizer::from_llama2c`].
    pub fn from_llama2c_bytes(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        llama2c::parse(path, bytes)
    }

    fn new(
        mut parsing: tokenizers::Tokenizer,
        tokens: Vec<Token>,
        form: TextForm,
        mut special: SpecialIds,
    ) -> Result<Self, ModelError> {
        parsing.with_padding(None);
        parsing
            .with_truncation(None)
            .map_err(|error| ModelError::tokenizer(error.to_string()))?
            .set_encode_special_tokens(false);
        special.ends.extend(special.eos);
        for name in END_TOKENS {
            if let Some(id) = parsing.token_to_id(name)
                && tokens.get(id as usize).is_some_and(|token| token.special)
            {
                special.ends.push(id);
            }
        }
        // A token that does not exist cannot end a text.
        special.ends.retain(|&id| (id as usize) < tokens.len());
        special.ends.sort_unstable();
        special.ends.dedup();
        let divisible = is_divisible(&parsing);
        Ok(Self {
            parsing,
            plain: OnceLock::new(),
            tokens,
            form,
            special,
            divisible,
        })
    }

    /// The ids of a text. No token is added at its start or end, see [`Tokenizer::encode_with_bos`].
    ///
    /// With `parse_special`, the text of a special token such as `<|im_end|>` becomes that token; without, it is
    /// ordinary text like any other. Use the latter for text that others wrote.
    ///
    /// # Errors
    /// When the tokenizer has no way to write a part of the text.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, ModelError> {
        let backend = self.backend(parse_special);
        if self.divisible && text.len() > 2 * PIECE_BYTES {
            let parts = backend
                .encode_batch_fast(divide(text), false)
                .map_err(cannot_encode)?;
            let mut ids = Vec::with_capacity(parts.iter().map(tokenizers::Encoding::len).sum());
            for part in &parts {
                ids.extend_from_slice(part.get_ids());
            }
            return Ok(ids);
        }
        Ok(backend
            .encode_fast(text, false)
            .map_err(cannot_encode)?
            .get_ids()
            .to_vec())
    }

    /// [`Tokenizer::encode`], after the token that begins texts if the model was trained with one
    /// ([`Tokenizer::add_bos`]).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_bos(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, ModelError> {
        let ids = self.encode(text, parse_special)?;
        Ok(self
            .special
            .bos
            .filter(|_| self.special.add_bos)
            .into_iter()
            .chain(ids)
            .collect())
    }

    /// The ids of many texts, in parallel.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_batch(
        &self,
        texts: &[&str],
        parse_special: bool,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        let encodings = self
            .backend(parse_special)
            .encode_batch_fast(texts.to_vec(), false)
            .map_err(cannot_encode)?;
        Ok(encodings
            .iter()
            .map(|encoding| encoding.get_ids().to_vec())
            .collect())
    }

    /// The ids of a text, each with the bytes of the text that it stands for. Where one character is written in several
    /// tokens, each of them stands for the whole character.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(
        &self,
        text: &str,
        parse_special: bool,
    ) -> Result<Vec<(u32, Range<usize>)>, ModelError> {
        let encoding = self
            .backend(parse_special)
            .encode(text, false)
            .map_err(cannot_encode)?;
        let ranges = encoding
            .get_offsets()
            .iter()
            .map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(ranges).collect())
    }

    fn backend(&self, parse_special: bool) -> &tokenizers::Tokenizer {
        if parse_special {
            return &self.parsing;
        }
        self.plain.get_or_init(|| {
            let mut plain = self.parsing.clone();
            plain.set_encode_special_tokens(true);
            plain
        })
    }

    /// The text of ids, without the special ones if `skip_special`. Bytes that are not UTF-8 become `U+FFFD`, ids outside
    /// of the vocabulary nothing. It is the text that the library gives which the tokenizer was made with: that of
    /// `tokenizer.json` by Hugging Face, or sentencepiece for scores in GGUF files and llama2.c.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        if matches!(self.form, TextForm::Pieces { .. }) {
            let mut stream = self.decode_stream(skip_special);
            let mut text = String::new();
            for &id in ids {
                stream.push_onto(id, &mut text);
            }
            return text + &stream.finish();
        }
        // Some decoders of the library count the tokens before the last one, so there must be one.
        let is_written = |&id: &u32| {
            !(skip_special && self.is_special(id)) && self.parsing.id_to_token(id).is_some()
        };
        if self.form == TextForm::Decoder
            && ids.iter().any(is_written)
            && let Ok(text) = self.parsing.decode(ids, skip_special)
        {
            return text;
        }
        let bytes: Vec<u8> = ids
            .iter()
            .filter(|&&id| !(skip_special && self.is_special(id)))
            .flat_map(|&id| self.bytes_of(id).iter().copied())
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Decodes one id after the other; the pieces joined are what [`Tokenizer::decode`] gives for all. Only where a
    /// `tokenizer.json` has a decoder that is neither byte-level nor of SentencePiece's manner may they differ, in that what
    /// it changes in earlier text is left as it was written.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special)
    }

    /// The bytes that a token stands for; none for an id outside of the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.bytes_of(id).to_vec()
    }

    fn bytes_of(&self, id: u32) -> &[u8] {
        self.tokens
            .get(id as usize)
            .map(|token| &*token.bytes)
            .unwrap_or_default()
    }

    /// The text of one token for a person to read: bytes that are not UTF-8 by themselves are written `<0x9F>`, an id
    /// outside of the vocabulary `<no token 123>`.
    pub fn token_text(&self, id: u32) -> String {
        use std::fmt::Write;
        if id as usize >= self.tokens.len() {
            return format!("<no token {id}>");
        }
        let mut text = String::new();
        for chunk in self.bytes_of(id).utf8_chunks() {
            text.push_str(chunk.valid());
            for byte in chunk.invalid() {
                // Writing to a string cannot fail.
                let _ = write!(text, "<0x{byte:02X}>");
            }
        }
        text
    }

    /// The id of a token, by its text: that of a special token as it is written, or of a token as it decodes. A token for
    /// a byte, such as `<0x41>`, counts only where no other token writes the same.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        let of = |special| {
            let mut found = (0u32..)
                .zip(&self.tokens)
                .filter(|(_, token)| token.special == special && &*token.bytes == text.as_bytes())
                .map(|(id, _)| id);
            let first = found.next()?;
            let is_byte = |id: u32| {
                let name = self.parsing.id_to_token(id);
                name.is_some_and(|name| byte_token(&name).is_some())
            };
            if is_byte(first) {
                return found.find(|&id| !is_byte(id)).or(Some(first));
            }
            Some(first)
        };
        of(true).or_else(|| of(false))
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// The token for what the vocabulary cannot write.
    pub fn unk(&self) -> Option<u32> {
        self.special.unk
    }

    /// The token that fills up short sequences.
    pub fn pad(&self) -> Option<u32> {
        self.special.pad
    }

    /// Whether texts begin with [`Tokenizer::bos`].
    pub fn add_bos(&self) -> bool {
        self.special.add_bos && self.special.bos.is_some()
    }

    /// Whether a token is a control token, which no ordinary text contains.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokens
            .get(id as usize)
            .is_some_and(|token| token.special)
    }

    /// The tokens that generation stops at, in the order of their ids: [`Tokenizer::eos`], those that the files name, and
    /// other control tokens that end a text or a turn in the formats in use (`<|im_end|>`, `<|endoftext|>` and the like).
    ///
    /// In a Hugging Face directory they are named by `eos_token_id` (a number or a list) of `generation_config.json`, else
    /// of `config.json`, else by the `eos_token` of `tokenizer_config.json`; in a GGUF file by
    /// `tokenizer.ggml.eos_token_id`, `eot_token_id` and `eom_token_id`.
    pub fn end_tokens(&self) -> &[u32] {
        &self.special.ends
    }

    /// Whether generation stops at this token, see [`Tokenizer::end_tokens`].
    pub fn is_end(&self, id: u32) -> bool {
        self.special.ends.binary_search(&id).is_ok()
    }

    /// Finds special tokens in a text: at each place the longest one.
    pub(crate) fn find_special(&self, text: &str) -> Vec<(u32, Range<usize>)> {
        let special: Vec<(u32, &[u8])> = (0u32..)
            .zip(&self.tokens)
            .filter(|(_, token)| token.special && !token.bytes.is_empty())
            .map(|(id, token)| (id, &*token.bytes))
            .collect();
        let bytes = text.as_bytes();
        let mut found = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let here = special
                .iter()
                .filter(|(_, name)| bytes[at..].starts_with(name))
                .max_by_key(|(_, name)| name.len());
            match here {
                Some((id, name)) => {
                    found.push((*id, at..at + name.len()));
                    at += name.len();
                }
                None => at += 1,
            }
        }
        found
    }
}

fn cannot_encode(error: tokenizers::Error) -> ModelError {
    ModelError::tokenizer(format!("the text cannot be encoded: {error}"))
}
