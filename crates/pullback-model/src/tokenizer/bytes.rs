//! The bytes that tokens stand for, by how vocabularies write them.

use std::sync::OnceLock;

/// The byte that a character of byte-level vocabularies stands for: printable bytes for themselves, the others for the
/// characters from `U+0100` on (`bytes_to_unicode` of GPT-2's `encoder.py`).
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let printable = |code: u32| matches!(code, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if code < 0x100 {
        return printable(code).then_some(code as u8);
    }
    (0u8..=255)
        .filter(|&byte| !printable(u32::from(byte)))
        .nth((code - 0x100) as usize)
}

/// The bytes of a token of a byte-level vocabulary; those of its text where a character of it is not of the alphabet.
pub(super) fn byte_level_bytes(token: &str) -> Vec<u8> {
    static BYTES: OnceLock<Vec<Option<u8>>> = OnceLock::new();
    let table = BYTES.get_or_init(|| {
        (0..0x150)
            .map(|code| char::from_u32(code).and_then(byte_of))
            .collect()
    });
    token
        .chars()
        .map(|c| table.get(c as usize).copied().flatten())
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The bytes of a token of a SentencePiece vocabulary: `<0x9F>` is a byte, `▁` a space.
pub(super) fn sentencepiece_bytes(token: &str) -> Vec<u8> {
    byte_token(token).map_or_else(|| token.replace('▁', " ").into_bytes(), |byte| vec![byte])
}

/// The byte of a token `<0x9F>`.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}
