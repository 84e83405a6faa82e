//! Files damaged at random: each reader answers with a value or one error, and never panics.
//!
//! The inputs are made from small sound files by a generator with a fixed seed, so that a failure repeats. This is the short
//! form of the fuzz targets in `fuzz/`; `PULLBACK_DAMAGED_FILES=100000` tries as many inputs for each reader.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use common::{Builder, json};
use pullback_model::gguf::Gguf;
use pullback_model::{ChatTemplate, Llama2c, ModelFiles, Tokenizer, WeightName};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

fn iterations() -> usize {
    std::env::var("PULLBACK_DAMAGED_FILES").map_or(400, |text| text.parse().unwrap())
}

/// Numbers that are often mishandled.
const NUMBERS: [u64; 12] = [
    0,
    1,
    2,
    31,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Changes a few places of an input.
fn damage(rng: &mut impl Rng, seeds: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let mut data = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(1..5) {
        if data.is_empty() {
            break;
        }
        let at = rng.random_range(0..data.len());
        let until = (at + rng.random_range(1..40usize)).min(data.len());
        let number = NUMBERS[rng.random_range(0..NUMBERS.len())].to_le_bytes();
        match rng.random_range(0..9) {
            0 => data[at] = rng.random(),
            1 => data[at] ^= 1 << rng.random_range(0..8),
            2 => drop(data.drain(at..until)),
            3 => {
                let part = data[at..until].to_vec();
                let to = rng.random_range(0..=data.len());
                data.splice(to..to, part);
            }
            4 => data.truncate(at),
            width @ (5 | 6) => {
                let width = if width == 5 { 4 } else { 8 };
                let until = (at + width).min(data.len());
                data[at..until].copy_from_slice(&number[..until - at]);
            }
            7 => {
                let other = &seeds[rng.random_range(0..seeds.len())];
                let from = rng.random_range(0..other.len());
                let part = other[from..(from + until - at).min(other.len())].to_vec();
                data.splice(at..until, part);
            }
            _ if !words.is_empty() => {
                let word = words[rng.random_range(0..words.len())];
                data.splice(at..(at + word.len()).min(data.len()), word.bytes());
            }
            _ => data[at] = data[at].wrapping_add(1),
        }
    }
    data
}

/// Replaces a few values in a JSON document.
fn damage_json(rng: &mut impl Rng, value: &mut Value, words: &[&str], chance: f64) {
    if rng.random_bool(chance) {
        let word = words[rng.random_range(0..words.len())];
        let number = NUMBERS[rng.random_range(0..NUMBERS.len())];
        *value = match rng.random_range(0..9) {
            0 => Value::Null,
            1 => json!(rng.random_bool(0.5)),
            2 => json!(number),
            3 => json!(-(number as i64 >> 1)),
            4 => json!(0.5),
            5 => json!([]),
            6 => json!({}),
            7 => json!([[word, word]]),
            _ => json!(word),
        };
        return;
    }
    match value {
        Value::Array(items) => {
            for item in items.iter_mut() {
                damage_json(rng, item, words, chance);
            }
            if !items.is_empty() && rng.random_bool(chance) {
                let at = rng.random_range(0..items.len());
                if rng.random_bool(0.5) {
                    items.remove(at);
                } else {
                    items.push(items[at].clone());
                }
            }
        }
        Value::Object(map) => {
            for (_, item) in map.iter_mut() {
                damage_json(rng, item, words, chance);
            }
            if !map.is_empty() && rng.random_bool(chance) {
                let key = map
                    .keys()
                    .nth(rng.random_range(0..map.len()))
                    .unwrap()
                    .clone();
                let item = map.shift_remove(&key).unwrap();
                if rng.random_bool(0.5) {
                    map.insert(words[rng.random_range(0..words.len())].to_owned(), item);
                }
            }
        }
        _ => {}
    }
}

/// Runs a reader on many inputs and tells which one it could not bear.
fn try_all(
    name: &str,
    mut input: impl FnMut(&mut ChaCha8Rng) -> Vec<Vec<u8>>,
    read: impl Fn(&[Vec<u8>]) -> bool,
) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut read_well = 0;
    for number in 0..iterations() {
        let parts = input(&mut rng);
        let Ok(well) = catch_unwind(AssertUnwindSafe(|| read(&parts))) else {
            let shown: Vec<String> = parts
                .iter()
                .map(|part| String::from_utf8_lossy(part).chars().take(3000).collect())
                .collect();
            panic!("{name}: input {number} makes the reader panic: {shown:#?}");
        };
        read_well += usize::from(well);
    }
    // If all were refused at their first byte, nothing would have been tried.
    assert!(
        read_well > 0 && read_well < iterations(),
        "{name}: {read_well} were read"
    );
}

/// Encodes and decodes a text, in one go and one by one.
fn use_tokenizer(tokenizer: &Tokenizer, exact: bool) {
    let text = "Once upon  a time,\n12's th the \u{1f40b} <s><|im_end|>▁";
    let mut lists: Vec<Vec<u32>> = vec![(0..40).collect(), text.bytes().map(u32::from).collect()];
    for parse_special in [false, true] {
        if let Ok(ids) = tokenizer.encode(text, parse_special) {
            let with_offsets = tokenizer.encode_with_offsets(text, parse_special).unwrap();
            assert_eq!(with_offsets.len(), ids.len());
            lists.push(ids);
        }
    }
    for ids in lists {
        for skip in [false, true] {
            let mut stream = tokenizer.decode_stream(skip);
            let mut joined: String = ids.iter().map(|&id| stream.push(id)).collect();
            joined.push_str(&stream.finish());
            let whole = tokenizer.decode(&ids, skip);
            assert!(!exact || joined == whole, "{joined:?} {whole:?}");
        }
        for &id in &ids {
            let _ = (tokenizer.token_text(id), tokenizer.is_end(id));
        }
    }
}

const TOKENS: [&str; 12] = [
    "<s>", "a", "t", "h", "e", "th", "the", "Ġ", "Ġthe", "1", "2", "12",
];

fn tokenizer_files() -> Vec<Vec<u8>> {
    let pieces = [
        "<unk>", "<s>", "▁", "a", "t", "h", "e", "th", "he", "the", "▁the", "<0x41>", "<0xF0>",
        "  ",
    ];
    let scores: Vec<f32> = (0..pieces.len()).map(|n| -(n as f32)).collect();
    let mut files: Vec<Vec<u8>> = ["gpt-2", "llama-bpe", "qwen2", "tekken", "smollm"]
        .iter()
        .map(|pre| {
            Builder::default()
                .string("tokenizer.ggml.model", "gpt2")
                .string("tokenizer.ggml.pre", pre)
                .strings("tokenizer.ggml.tokens", &TOKENS)
                .i32s(
                    "tokenizer.ggml.token_type",
                    &[3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
                )
                .strings("tokenizer.ggml.merges", &["t h", "th e", "Ġ the", "1 2"])
                .u32("tokenizer.ggml.eos_token_id", 0)
                .build()
        })
        .collect();
    for prefix in [false, true] {
        let builder = Builder::default()
            .string("tokenizer.ggml.model", "llama")
            .strings("tokenizer.ggml.tokens", &pieces)
            .f32s("tokenizer.ggml.scores", &scores)
            .i32s(
                "tokenizer.ggml.token_type",
                &[2, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 6, 6, 4],
            )
            .bool("tokenizer.ggml.add_space_prefix", prefix)
            .u32("tokenizer.ggml.unknown_token_id", 0);
        files.push(builder.build());
    }
    files
}

#[test]
fn gguf_files() {
    let mut types = Builder::llama();
    for (type_id, bytes) in [
        (1, 128),
        (2, 36),
        (3, 40),
        (6, 44),
        (7, 48),
        (8, 68),
        (30, 128),
    ] {
        types = types.tensor(&format!("t{type_id}"), &[64], type_id, None, vec![1; bytes]);
    }
    let mut seeds = tokenizer_files();
    seeds.extend([Builder::llama().build(), types.build()]);
    let words = [
        "llama",
        "gpt2",
        "tokenizer.ggml.model",
        "general.alignment",
        "a b",
    ];
    try_all(
        "GGUF",
        |rng| vec![damage(rng, &seeds, &words)],
        |parts| {
            let Ok(gguf) = Gguf::from_bytes(Path::new("some.gguf"), parts[0].clone()) else {
                return false;
            };
            for record in gguf.tensors() {
                if let Ok(values) = gguf.read_f32(&record.name) {
                    assert_eq!(values.len(), record.elements());
                }
            }
            let _ = gguf.config().map(|config| config.n_parameters());
            if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
                use_tokenizer(&tokenizer, true);
                let _ = ChatTemplate::from_gguf(&gguf, &tokenizer);
            }
            true
        },
    );
}

#[test]
fn llama2c_files() {
    let sizes: Vec<u8> = [8i32, 12, 1, 2, 1, 5, 4]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    let floats = 5 * 8 + 8 + 64 + 32 + 32 + 64 + 8 + 3 * 96 + 8;
    let version_0 = [sizes.clone(), vec![0; 4 * (floats + 16)]].concat();
    let mut version_1 = [b"24ka".to_vec(), vec![1, 0, 0, 0], sizes, vec![1]].concat();
    version_1.resize(256 + 4 * floats, 0);
    let mut tokenizer = 7i32.to_le_bytes().to_vec();
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let others = [" ", "t", "h", "e", "th", "the"].map(String::from);
    let special = ["<unk>", "\n<s>\n", "\n</s>\n"].map(String::from);
    for text in special.into_iter().chain(bytes).chain(others) {
        tokenizer.extend((-1f32).to_le_bytes());
        tokenizer.extend((text.len() as i32).to_le_bytes());
        tokenizer.extend(text.bytes());
    }
    let seeds = [version_0, version_1, tokenizer];
    try_all(
        "llama2.c",
        |rng| vec![damage(rng, &seeds, &[])],
        |parts| {
            let path = Path::new("some.bin");
            let file = Llama2c::from_bytes(path, parts[0].clone());
            if let Ok(file) = &file {
                for tensor in file.tensors() {
                    let values = file.read_f32(&tensor.name).unwrap();
                    assert_eq!(values.len(), tensor.shape.iter().product::<usize>());
                }
            }
            let tokenizer = Tokenizer::from_llama2c_bytes(path, &parts[0]);
            if let Ok(tokenizer) = &tokenizer {
                use_tokenizer(tokenizer, true);
            }
            file.is_ok() || tokenizer.is_ok()
        },
    );
}

#[test]
fn huggingface_models() {
    let tiny = common::fixture("tiny-llama");
    let config: Value =
        serde_json::from_slice(&std::fs::read(tiny.join("config.json")).unwrap()).unwrap();
    let model = std::fs::read(tiny.join("model.safetensors")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(
        tiny.join("tokenizer.json"),
        directory.path().join("tokenizer.json"),
    )
    .unwrap();
    let header = 8 + u64::from_le_bytes(*model.first_chunk().unwrap()) as usize;
    let words = ["F16", "BF16", "llama", "linear", "I64", "data_offsets"];
    try_all(
        "Hugging Face",
        |rng| {
            let mut config = config.clone();
            let chance = [0.0, 0.05][rng.random_range(0..2)];
            damage_json(rng, &mut config, &words, chance);
            // Damage to the weights themselves changes nothing that is checked.
            let damaged = if rng.random_bool(0.3) {
                model.clone()
            } else {
                let damaged = damage(rng, &[model[..header].to_vec()], &words);
                [damaged.as_slice(), &model[header..]].concat()
            };
            vec![config.to_string().into_bytes(), damaged]
        },
        |parts| {
            std::fs::write(directory.path().join("config.json"), &parts[0]).unwrap();
            std::fs::write(directory.path().join("model.safetensors"), &parts[1]).unwrap();
            let Ok(files) = ModelFiles::open(directory.path()) else {
                return false;
            };
            for weight in WeightName::all(&files.config) {
                let values = files.weight(weight).unwrap();
                assert_eq!(
                    values.len(),
                    weight.shape(&files.config).iter().product::<usize>()
                );
            }
            true
        },
    );
}

fn documents() -> Vec<Value> {
    let tokens = [
        "<unk>",
        "<s>",
        "</s>",
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<think>",
        "▁",
        "Ġ",
        "t",
        "h",
        "e",
        "th",
        "the",
    ];
    let mut documents: Vec<Value> = json("tokenizers/variants.json")
        .as_object()
        .unwrap()
        .values()
        .filter(|entry| entry["kind"] == "json")
        .map(|entry| {
            let mut document = entry["tokenizer"].clone();
            let vocab = tokens
                .iter()
                .zip(0..)
                .map(|(t, id)| ((*t).to_owned(), json!(id)));
            document["model"]["vocab"] = Value::Object(vocab.collect());
            document["model"]["merges"] = json!([["t", "h"], ["th", "e"]]);
            for token in document["added_tokens"].as_array_mut().unwrap() {
                let id = tokens.iter().position(|t| token["content"] == *t);
                token["id"] = json!(id.unwrap());
            }
            document
        })
        .collect();
    documents.push(json!({
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "the": 1, "##re": 2}},
    }));
    documents.push(json!({
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
            "vocab": [["<unk>", 0.0], ["▁the", -1.0], ["t", -2.0]]},
    }));
    documents.push(json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        "model": {"type": "BPE", "continuing_subword_prefix": "##", "end_of_word_suffix": "</w>",
            "vocab": {"t": 0, "##h": 1, "th": 2, "##e</w>": 3, "the</w>": 4},
            "merges": ["t ##h", "th ##e</w>"]},
    }));
    documents
}

#[test]
fn tokenizer_directories() {
    let documents = documents();
    let settings = json!({
        "eos_token": "<s>", "bos_token": {"content": "<s>"}, "tokenizer_class": "GPT2Tokenizer",
        "added_tokens_decoder": {"1": {"content": "<s>", "special": true}},
        "chat_template": [{"name": "default", "template": "{{ bos_token }}"}],
    });
    let vocab = json!({"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4});
    let merges = b"#version: 0.2\na b\n".to_vec();
    let directory = tempfile::tempdir().unwrap();
    let names = [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "vocab.json",
        "merges.txt",
    ];
    let words = [
        "",
        " ",
        "▁",
        "Ġ",
        "the",
        "th",
        "<s>",
        "##",
        "BPE",
        "Unigram",
        "WordLevel",
        "ByteLevel",
        "Metaspace",
        "Split",
        "Replace",
        "Strip",
        "Fuse",
        "ByteFallback",
        "CTC",
        "Sequence",
        "é",
        "\u{1f40b}",
        "(?!x",
        "(a*)*b",
        "a|",
        "content",
        "type",
        "always",
        "Isolated",
        "MergedWithNext",
    ];
    try_all(
        "tokenizer directory",
        |rng| {
            let mut document = documents[rng.random_range(0..documents.len())].clone();
            let mut settings = settings.clone();
            let mut vocab = vocab.clone();
            damage_json(rng, &mut document, &words, 0.02);
            damage_json(rng, &mut settings, &words, 0.05);
            damage_json(rng, &mut vocab, &words, 0.05);
            let with_document = rng.random_bool(0.8);
            vec![
                if with_document {
                    document.to_string().into_bytes()
                } else {
                    Vec::new()
                },
                settings.to_string().into_bytes(),
                br#"{"eos_token_id": [0, 1]}"#.to_vec(),
                vocab.to_string().into_bytes(),
                damage(rng, std::slice::from_ref(&merges), &words),
            ]
        },
        |parts| {
            for (name, part) in names.iter().zip(parts) {
                let path = directory.path().join(name);
                if part.is_empty() {
                    let _ = std::fs::remove_file(path);
                } else {
                    std::fs::write(path, part).unwrap();
                }
            }
            let Ok(tokenizer) = Tokenizer::from_huggingface(directory.path()) else {
                return false;
            };
            use_tokenizer(&tokenizer, false);
            let _ = ChatTemplate::from_huggingface(directory.path(), &tokenizer);
            true
        },
    );
}

/// The tokenizer of a directory with this `tokenizer.json` alone.
fn from_document(document: &Value) -> Result<Tokenizer, String> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("tokenizer.json"),
        document.to_string(),
    )
    .unwrap();
    Tokenizer::from_huggingface(directory.path()).map_err(|error| error.to_string())
}

#[test]
fn inputs_that_once_went_wrong() {
    // No object at all.
    assert!(
        from_document(&json!(3))
            .unwrap_err()
            .contains("tokenizer.json: tokenizer: ")
    );

    let bpe = |merges: Value, more: Value| {
        let mut model = json!({
            "type": "BPE", "vocab": {"t": 0, "h": 1, "th": 2, "ééh": 3}, "merges": merges,
        });
        for (key, value) in more.as_object().unwrap() {
            model[key] = value.clone();
        }
        json!({"version": "1.0", "added_tokens": [], "model": model})
    };
    // Merges that make no token, be it that a prefix is cut off which is not there.
    for (merges, more) in [
        (json!([["ééh", "ééh"]]), json!({})),
        (json!(["ééh ééh"]), json!({})),
        (
            json!([["t", "h"]]),
            json!({"continuing_subword_prefix": "##"}),
        ),
        (
            json!([["t", "ééh"]]),
            json!({"continuing_subword_prefix": "x"}),
        ),
    ] {
        let message = from_document(&bpe(merges, more)).unwrap_err();
        assert!(message.contains("model.merges: entry 0, "), "{message}");
    }
    // A decoder that strips more characters than there are.
    let mut document = bpe(json!([["t", "h"]]), json!({}));
    document["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Strip", "content": "t", "start": 1, "stop": 1},
    ]});
    let message = from_document(&document).unwrap_err();
    assert!(
        message.contains("decoder: Strip with 1 characters at the end"),
        "{message}"
    );
    // Merges left out at random.
    let random = from_document(&bpe(json!([["t", "h"]]), json!({"dropout": 0.5}))).unwrap();
    for _ in 0..50 {
        assert_eq!(random.encode("thth", false).unwrap(), [2, 2]);
    }
    // A decoder that counts the tokens before the last one, and no token.
    let mut document = bpe(json!([["t", "h"]]), json!({}));
    document["decoder"] = json!({"type": "BPEDecoder", "suffix": "h"});
    let suffix = from_document(&document).unwrap();
    assert_eq!(suffix.decode(&[], true), "");
    assert_eq!(suffix.decode(&[4, 5], false), "");
    assert_eq!(suffix.decode(&[2, 2], false), "t t");
}
