//! Decoding token by token.

use super::{TextForm, Tokenizer};

/// Decodes ids one by one and never splits a character: bytes that begin one wait for the rest of it.
///
/// Made by [`Tokenizer::decode_stream`].
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    at_start: bool,
    pending: Vec<u8>,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        let at_start = tokenizer.form != TextForm::Bytes;
        Self {
            tokenizer,
            skip_special,
            at_start,
            pending: Vec::new(),
        }
    }

    /// For ids that go on a text: keeps a space at the start that a decoder of whole texts would leave out.
    #[must_use]
    pub fn continuing(mut self) -> Self {
        self.at_start = false;
        self
    }

    /// Takes the next id and returns the text that is now certain, which may be empty.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        let mut bytes = self.tokenizer.bytes_of(id);
        if self.at_start
            && let Some((first, rest)) = bytes.split_first()
        {
            self.at_start = false;
            if *first == b' ' {
                bytes = rest;
            }
        }
        self.pending.extend_from_slice(bytes);

        // An invalid chunk at the end may be the beginning of a character.
        let mut text = String::new();
        let mut kept = Vec::new();
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_incomplete(invalid) {
                kept = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending = kept;
        text
    }

    /// Ends the text: `U+FFFD` if the last character was left incomplete.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Whether more bytes could make this a character.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
