//! A GGUF file: its header, its configuration, and the values of all its tensors.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pullback_model::gguf::Gguf;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes(Path::new("fuzz.gguf"), data.to_vec()) else {
        return;
    };
    for record in gguf.tensors() {
        assert_eq!(gguf.tensor_bytes(record).len(), record.data.len());
        if let Ok(values) = gguf.read_f32(&record.name) {
            assert_eq!(values.len(), record.elements());
        }
    }
    for (key, value) in gguf.metadata() {
        assert!(gguf.value(key).is_some());
        let _ = value.summary();
    }
    if let Ok(config) = gguf.config() {
        let _ = config.n_parameters();
    }
});
