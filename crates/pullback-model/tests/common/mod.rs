//! What the tests of this crate share: where the fixtures are, and files made to order.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and tells why it is skipped"
)]

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A file beside the tests.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// A JSON fixture.
pub fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

/// A list of ids in a JSON fixture.
pub fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The real model, if it is on this machine: named by `PULLBACK_TEST_GGUF`, or in the cache of pullback.
///
/// Tests that need it return at once where it is not.
pub fn smollm2() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    if let Some(path) = variable("PULLBACK_TEST_GGUF") {
        assert!(
            path.is_file(),
            "PULLBACK_TEST_GGUF names {}, which is no file",
            path.display()
        );
        return Some(path);
    }
    let cache = variable("PULLBACK_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|path| path.join("pullback")))
        .or_else(|| variable("HOME").map(|path| path.join(".cache/pullback")))?;
    let found = find(&cache, "SmolLM2-135M-Instruct.Q4_1.gguf", 4);
    if found.is_none() {
        eprintln!("SmolLM2 is not in {}: skipped", cache.display());
    }
    found
}

/// One of the small published models `stories260K` and `tinystories-656k`, if they are on this machine: in the directory
/// that `PULLBACK_TEST_MODELS` names, or in `shared/data/models` beside the checkout.
///
/// Tests that need it return at once where it is not.
pub fn small_model(name: &str) -> Option<PathBuf> {
    let models = std::env::var_os("PULLBACK_TEST_MODELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/models"),
        PathBuf::from,
    );
    let path = models.join(name);
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("{name} is not in {}: skipped", models.display());
    None
}

fn find(directory: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    let path = directory.join(name);
    if path.is_file() {
        return Some(path);
    }
    let entries = std::fs::read_dir(directory).ok().filter(|_| depth > 0)?;
    entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .find_map(|entry| find(&entry.path(), name, depth - 1))
}

/// A GGUF file made to order.
#[derive(Clone, Default)]
pub struct Builder {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    tensors: Vec<TensorSpec>,
}

#[derive(Clone)]
struct TensorSpec {
    name: String,
    dimensions: Vec<u64>,
    type_id: u32,
    offset: Option<u64>,
    data: Vec<u8>,
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

impl Builder {
    /// An entry of any type, its value given as the bytes after the type.
    pub fn raw(mut self, key: impl AsRef<[u8]>, type_id: u32, value: &[u8]) -> Self {
        self.entries.push((
            key.as_ref().to_vec(),
            [&type_id.to_le_bytes()[..], value].concat(),
        ));
        self
    }

    /// A string.
    pub fn string(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &sized(value.as_bytes()))
    }

    /// A number of 32 bits.
    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    /// A number of 32 bits with a fraction.
    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    /// A truth value.
    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    /// An array of strings.
    pub fn strings(self, key: &str, values: &[&str]) -> Self {
        let mut bytes = [
            &8u32.to_le_bytes()[..],
            &(values.len() as u64).to_le_bytes(),
        ]
        .concat();
        for value in values {
            bytes.extend(sized(value.as_bytes()));
        }
        self.raw(key, 9, &bytes)
    }

    /// An array of integers.
    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let mut bytes = [
            &5u32.to_le_bytes()[..],
            &(values.len() as u64).to_le_bytes(),
        ]
        .concat();
        for value in values {
            bytes.extend(value.to_le_bytes());
        }
        self.raw(key, 9, &bytes)
    }

    /// An array of numbers with a fraction.
    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        let mut bytes = [
            &6u32.to_le_bytes()[..],
            &(values.len() as u64).to_le_bytes(),
        ]
        .concat();
        for value in values {
            bytes.extend(value.to_le_bytes());
        }
        self.raw(key, 9, &bytes)
    }

    /// A tensor of `f32` zeros; the dimensions as in the file, the fastest first.
    pub fn zeros(self, name: &str, dimensions: &[u64]) -> Self {
        let elements: u64 = dimensions.iter().product();
        self.tensor(name, dimensions, 0, None, vec![0; elements as usize * 4])
    }

    /// A tensor of any type, at an offset of one's own if one is given.
    pub fn tensor(
        mut self,
        name: &str,
        dimensions: &[u64],
        type_id: u32,
        offset: Option<u64>,
        data: Vec<u8>,
    ) -> Self {
        let (name, dimensions) = (name.to_owned(), dimensions.to_vec());
        self.tensors.push(TensorSpec {
            name,
            dimensions,
            type_id,
            offset,
            data,
        });
        self
    }

    /// Takes out an entry or a tensor.
    pub fn without(mut self, name: &str) -> Self {
        let before = self.entries.len() + self.tensors.len();
        self.entries.retain(|(key, _)| key != name.as_bytes());
        self.tensors.retain(|tensor| tensor.name != name);
        assert_eq!(
            self.entries.len() + self.tensors.len() + 1,
            before,
            "{name}"
        );
        self
    }

    /// The file.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            bytes.extend(sized(key));
            bytes.extend(value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            bytes.extend(sized(tensor.name.as_bytes()));
            bytes.extend((tensor.dimensions.len() as u32).to_le_bytes());
            for size in &tensor.dimensions {
                bytes.extend(size.to_le_bytes());
            }
            bytes.extend(tensor.type_id.to_le_bytes());
            bytes.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(data);
        bytes
    }

    /// A Llama of one block with all weights zero and a vocabulary of four tokens.
    pub fn llama() -> Self {
        Self::default()
            .string("general.architecture", "llama")
            .u32("llama.block_count", 1)
            .u32("llama.context_length", 16)
            .u32("llama.embedding_length", 8)
            .u32("llama.feed_forward_length", 12)
            .u32("llama.attention.head_count", 2)
            .u32("llama.attention.head_count_kv", 1)
            .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
            .string("tokenizer.ggml.model", "gpt2")
            .string("tokenizer.ggml.pre", "gpt-2")
            .strings("tokenizer.ggml.tokens", &["a", "b", "ab", "<end>"])
            .i32s("tokenizer.ggml.token_type", &[1, 1, 1, 3])
            .strings("tokenizer.ggml.merges", &["a b"])
            .u32("tokenizer.ggml.eos_token_id", 3)
            .zeros("token_embd.weight", &[8, 4])
            .zeros("blk.0.attn_norm.weight", &[8])
            .zeros("blk.0.attn_q.weight", &[8, 8])
            .zeros("blk.0.attn_k.weight", &[8, 4])
            .zeros("blk.0.attn_v.weight", &[8, 4])
            .zeros("blk.0.attn_output.weight", &[8, 8])
            .zeros("blk.0.ffn_norm.weight", &[8])
            .zeros("blk.0.ffn_gate.weight", &[8, 12])
            .zeros("blk.0.ffn_up.weight", &[8, 12])
            .zeros("blk.0.ffn_down.weight", &[12, 8])
            .zeros("output_norm.weight", &[8])
    }
}
