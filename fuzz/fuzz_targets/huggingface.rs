//! A directory in the Hugging Face layout: `config.json`, up to a byte 0xFF, then `model.safetensors`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pullback_fuzz::{directory, write_part, write_parts};
use pullback_model::{ModelFiles, WeightName};

/// Three tokens, so that any model may have this vocabulary.
const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [], "decoder": {"type": "ByteLevel",
    "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}"#;

fuzz_target!(|data: &[u8]| {
    write_part("tokenizer.json", TOKENIZER.as_bytes());
    let rest = write_parts(data, &["config.json"]);
    write_part("model.safetensors", rest);
    let Ok(files) = ModelFiles::open(directory()) else {
        return;
    };
    for weight in WeightName::all(&files.config) {
        let values = files.weight(weight).expect("a weight that was checked");
        assert_eq!(
            values.len(),
            weight.shape(&files.config).iter().product::<usize>()
        );
    }
    assert!(!files.tensors().is_empty());
});
