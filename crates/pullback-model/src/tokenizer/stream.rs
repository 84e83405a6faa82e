//! Decoding token by token.

use super::{LooseBytes, Start, TextForm, Tokenizer};

/// Decodes ids one by one and never splits a character: bytes that begin one wait for the rest of it.
///
/// Made by [`Tokenizer::decode_stream`].
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    bytes: Option<LooseBytes>,
    /// What is still to be left out at the start.
    start: Start,
    pending: Vec<u8>,
    /// The last ids, where the decoder of the library makes the text of them.
    window: Option<Window>,
}

/// Ids of which the first ones have been written already; they are there because the text of the others may hang on them.
#[derive(Default)]
struct Window {
    ids: Vec<u32>,
    written: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        let (bytes, start) = match tokenizer.form {
            TextForm::Bytes | TextForm::Decoder => (None, Start::Whole),
            TextForm::Pieces { bytes, start } => (Some(bytes), start),
        };
        Self {
            tokenizer,
            skip_special,
            bytes,
            start,
            pending: Vec::new(),
            window: (tokenizer.form == TextForm::Decoder).then(Window::default),
        }
    }

    /// For ids that go on a text: keeps a space at the start that a decoder of whole texts would leave out.
    #[must_use]
    pub fn continuing(mut self) -> Self {
        self.start = Start::Whole;
        self
    }

    /// Takes the next id and returns the text that is now certain, which may be empty.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_onto(id, &mut text);
        text
    }

    /// [`DecodeStream::push`], its text put at the end of another.
    pub(super) fn push_onto(&mut self, id: u32, text: &mut String) {
        let Some(token) = self.tokenizer.tokens.get(id as usize) else {
            return;
        };
        if self.skip_special && token.special {
            return;
        }
        if let Some(window) = &mut self.window {
            window.ids.push(id);
            window.write(self.tokenizer, self.skip_special, false, text);
            return;
        }
        let Some(loose) = self.bytes else {
            self.pending.extend_from_slice(&token.bytes);
            take_lossy(&mut self.pending, text);
            return;
        };
        let from = text.len();
        if token.is_byte {
            self.pending.extend_from_slice(&token.bytes);
            if self.start != Start::WithoutSpace {
                self.start = Start::Whole;
            }
            if loose == LooseBytes::EachWrong {
                take_each(&mut self.pending, text, false);
            }
        } else {
            self.end_of_run(loose, text);
            let piece = String::from_utf8_lossy(&token.bytes);
            match self.start {
                Start::Whole | Start::WithoutSpace => text.push_str(&piece),
                Start::WithoutSpaceOfToken => {
                    text.push_str(piece.strip_prefix(' ').unwrap_or(&piece));
                    self.start = Start::Whole;
                }
                Start::WithoutSpacesOfToken => {
                    text.extend(piece.chars().filter(|&c| c != ' '));
                    self.start = Start::Whole;
                }
            }
        }
        self.leave_out_space(from, text);
    }

    /// Ends the text: `U+FFFD` if the last character was left incomplete.
    pub fn finish(mut self) -> String {
        let mut text = String::new();
        if let Some(window) = &mut self.window {
            window.write(self.tokenizer, self.skip_special, true, &mut text);
        }
        match self.bytes {
            Some(loose) => {
                self.end_of_run(loose, &mut text);
                self.leave_out_space(0, &mut text);
            }
            None => text.push_str(&String::from_utf8_lossy(&self.pending)),
        }
        text
    }

    fn leave_out_space(&mut self, from: usize, text: &mut String) {
        if self.start == Start::WithoutSpace && text.len() > from {
            self.start = Start::Whole;
            if text[from..].starts_with(' ') {
                text.remove(from);
            }
        }
    }

    fn end_of_run(&mut self, loose: LooseBytes, text: &mut String) {
        match loose {
            LooseBytes::EachWrong => take_each(&mut self.pending, text, true),
            LooseBytes::WholeRun => match std::str::from_utf8(&self.pending) {
                Ok(run) => text.push_str(run),
                Err(_) => text.extend(self.pending.iter().map(|_| char::REPLACEMENT_CHARACTER)),
            },
        }
        self.pending.clear();
    }
}

impl Window {
    /// Writes what the ids after the written ones add to the text of all, unless its last character is incomplete.
    fn write(&mut self, tokenizer: &Tokenizer, skip_special: bool, all: bool, text: &mut String) {
        let before = tokenizer.decode(&self.ids[..self.written], skip_special);
        let after = tokenizer.decode(&self.ids, skip_special);
        // The decoder may have changed text that is written already; then only what is longer now is new.
        let added = after.get(before.len()..).unwrap_or_default();
        if added.is_empty() || added.ends_with(char::REPLACEMENT_CHARACTER) && !all {
            return;
        }
        text.push_str(added);
        self.ids.drain(..self.written);
        self.written = self.ids.len();
    }
}

/// Takes all that is certain: an invalid chunk at the end may be the beginning of a character.
fn take_lossy(pending: &mut Vec<u8>, text: &mut String) {
    let mut kept = 0;
    let mut chunks = pending.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        let invalid = chunk.invalid();
        if chunks.peek().is_none() && is_incomplete(invalid) {
            kept = invalid.len();
        } else if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    pending.drain(..pending.len() - kept);
}

/// Takes characters and single wrong bytes; the beginning of a character at the end stays unless `all` are to be taken.
fn take_each(pending: &mut Vec<u8>, text: &mut String, all: bool) {
    let mut taken = 0;
    while taken < pending.len() {
        let rest = &pending[taken..];
        let error = match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                taken = pending.len();
                break;
            }
            Err(error) => error,
        };
        let (valid, wrong) = rest.split_at(error.valid_up_to());
        text.push_str(&String::from_utf8_lossy(valid));
        taken += valid.len();
        if !all && is_incomplete(wrong) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        taken += 1;
    }
    pending.drain(..taken);
}

/// Whether more bytes could make this a character.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
