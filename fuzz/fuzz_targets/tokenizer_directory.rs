//! The tokenizer of a Hugging Face directory: `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`,
//! `vocab.json`, `merges.txt` and a text, with bytes 0xFF between them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pullback_fuzz::{directory, use_tokenizer, write_parts};
use pullback_model::{ChatTemplate, Tokenizer};

fuzz_target!(|data: &[u8]| {
    let text = write_parts(
        data,
        &[
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "vocab.json",
            "merges.txt",
        ],
    );
    let Ok(tokenizer) = Tokenizer::from_huggingface(directory()) else {
        return;
    };
    use_tokenizer(&tokenizer, &String::from_utf8_lossy(text), false);
    let _ = ChatTemplate::from_huggingface(directory(), &tokenizer);
});
