//! A checkpoint of llama2.c with the values of all its tensors, and a tokenizer of llama2.c.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pullback_fuzz::use_tokenizer;
use pullback_model::{Llama2c, Tokenizer};

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = Llama2c::from_bytes(Path::new("fuzz.bin"), data.to_vec()) {
        for tensor in file.tensors() {
            let values = file.read_f32(&tensor.name).expect("a tensor of the list");
            assert_eq!(values.len(), tensor.shape.iter().product::<usize>());
        }
    }
    if let Ok(tokenizer) = Tokenizer::from_llama2c_bytes(Path::new("fuzz.bin"), data) {
        use_tokenizer(&tokenizer, "Once upon  a time,\n\u{1f40b} <s>", true);
    }
});
