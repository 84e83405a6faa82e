//! Cutting long texts where that leaves their ids as they are.

use super::pre_tokenizer::PATTERNS;

/// Texts longer than this are encoded in parallel, in pieces of about this many bytes, where that changes nothing.
pub(super) const PIECE_BYTES: usize = 1 << 16;

/// Cuts a text into pieces of about [`PIECE_BYTES`], only ever between an ASCII letter and a space.
pub(super) fn divide(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut pieces = Vec::with_capacity(bytes.len() / PIECE_BYTES + 1);
    let mut start = 0;
    while bytes.len() - start > PIECE_BYTES {
        let from = start + PIECE_BYTES;
        let cut = bytes[from - 1..]
            .windows(2)
            .position(|pair| pair[0].is_ascii_alphabetic() && pair[1] == b' ');
        let Some(cut) = cut else { break };
        pieces.push(&text[start..from + cut]);
        start = from + cut;
    }
    pieces.push(&text[start..]);
    pieces
}

/// Whether a cut between an ASCII letter and a space leaves the encoding as it is.
///
/// It does where the text is split by one of the patterns known here, none of which matches a letter and a space after it
/// together or looks past the end of a run of letters, and where no added token could lie across the cut.
pub(super) fn is_divisible(tokenizer: &tokenizers::Tokenizer) -> bool {
    let by_pattern = |part: &serde_json::Value| match part["type"].as_str() {
        Some("ByteLevel") => part["add_prefix_space"] == false && part["use_regex"] == true,
        Some("Split") => {
            part["behavior"] == "Isolated"
                && part["invert"] == false
                && part["pattern"]["Regex"]
                    .as_str()
                    .is_some_and(|pattern| PATTERNS.contains(&pattern))
        }
        _ => false,
    };
    let harmless = |part: &serde_json::Value| match part["type"].as_str() {
        Some("ByteLevel") => part["add_prefix_space"] == false,
        Some("Digits") => true,
        _ => false,
    };
    let Ok(pre) = serde_json::to_value(tokenizer.get_pre_tokenizer()) else {
        return false;
    };
    let steps = match pre["pretokenizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(&pre),
    };
    let split =
        steps.iter().any(by_pattern) && steps.iter().all(|step| by_pattern(step) || harmless(step));
    split
        && tokenizer.get_normalizer().is_none()
        && tokenizer.get_added_tokens_decoder().values().all(|token| {
            !(token.lstrip
                || token.rstrip
                || token.single_word
                || token.content.contains(char::is_whitespace))
        })
}
