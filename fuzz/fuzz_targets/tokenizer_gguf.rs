//! The tokenizer of a GGUF file.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pullback_fuzz::use_tokenizer;
use pullback_model::Tokenizer;
use pullback_model::gguf::Gguf;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes(Path::new("fuzz.gguf"), data.to_vec()) else {
        return;
    };
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
        use_tokenizer(&tokenizer, "Once upon  a time,\n12's \u{1f40b} <s>", true);
    }
});
