//! Reading GGUF files: values and weights against the `gguf` package, and damaged files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::Path;

use common::{Builder, fixture};
use proptest::prelude::*;
use pullback_model::gguf::{Array, Gguf, TensorType, Value};
use pullback_model::{ModelError, ModelFiles, RopeScaling, Tokenizer, WeightName};
use safetensors::SafeTensors;

fn parse(bytes: Vec<u8>) -> Result<Gguf, ModelError> {
    Gguf::from_bytes(Path::new("some.gguf"), bytes)
}

/// The message of the error that a file gives when its header is read.
fn parse_error(builder: &Builder) -> String {
    parse(builder.build())
        .expect_err("the file is damaged")
        .to_string()
}

/// Opens a file made to order as a model.
fn open(builder: &Builder) -> Result<ModelFiles, ModelError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("some.gguf");
    std::fs::write(&path, builder.build()).unwrap();
    ModelFiles::open(&path)
}

fn open_error(builder: &Builder) -> String {
    let message = open(builder).expect_err("the model is damaged").to_string();
    assert!(
        message.contains("some.gguf: "),
        "the error names no file: {message}"
    );
    message
}

fn assert_has(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn every_type_converts_as_the_gguf_package_does() {
    let gguf = Gguf::open(&fixture("quant_blocks.gguf")).unwrap();
    let bytes = std::fs::read(fixture("quant_blocks.reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.len(), TensorType::supported().count());
    for name in reference.names() {
        let tensor = reference.tensor(name).unwrap();
        let expected: Vec<f32> = tensor
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect();
        let found = gguf.read_f32(name).unwrap();
        assert_eq!(gguf.tensor(name).unwrap().shape, tensor.shape(), "{name}");
        assert_eq!(gguf.tensor(name).unwrap().elements(), found.len(), "{name}");
        assert_eq!(found.len(), expected.len(), "{name}");
        let different = found
            .iter()
            .zip(&expected)
            .position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(different, None, "{name} at the element");
    }
}

#[test]
fn a_stored_matrix_outlives_the_reader() {
    let gguf = Gguf::open(&fixture("quant_blocks.gguf")).unwrap();
    for tensor_type in TensorType::supported() {
        let name = format!("tensor.{}", tensor_type.name().to_lowercase());
        let stored = gguf.stored(&name).unwrap();
        let record = gguf.tensor(&name).unwrap();
        assert_eq!([stored.rows(), stored.columns()], record.shape[..]);
        assert_eq!(stored.bytes_len(), record.data.len());
        assert_eq!(stored.format().name(), tensor_type.name());
    }
    let (stored, values) = (
        gguf.stored("tensor.q4_1").unwrap(),
        gguf.read_f32("tensor.q4_1").unwrap(),
    );
    drop(gguf);
    let row = stored.columns();
    assert_eq!(
        stored.gather::<f32>(&[4, 0])[..row],
        values[4 * row..5 * row]
    );
}

#[test]
fn a_type_that_cannot_be_converted_is_named_with_those_that_can() {
    let gguf = Gguf::open(&fixture("quant_blocks.gguf")).unwrap();
    let message = gguf.read_f32("extra.q3_k").unwrap_err().to_string();
    assert_has(
        &message,
        &[
            "quant_blocks.gguf",
            "tensor extra.q3_k has type Q3_K",
            "F32, F16, BF16, F64, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K",
        ],
    );
    let message = gguf.read_f32("nothing").unwrap_err().to_string();
    assert_has(&message, &["tensor nothing is missing"]);
}

#[test]
fn metadata_of_every_type() {
    let gguf = Gguf::open(&fixture("quant_blocks.gguf")).unwrap();
    let expected = [
        ("value.u8", Value::U8(200)),
        ("value.i8", Value::I8(-100)),
        ("value.u16", Value::U16(60000)),
        ("value.i16", Value::I16(-30000)),
        ("value.u32", Value::U32(4_000_000_000)),
        ("value.i32", Value::I32(-2_000_000_000)),
        ("value.f32", Value::F32(0.5)),
        ("value.bool", Value::Bool(true)),
        ("value.string", Value::String("grüße".into())),
        ("value.u64", Value::U64((1 << 63) + 1)),
        ("value.i64", Value::I64(-(1 << 62))),
        ("value.f64", Value::F64(0.1)),
        ("value.integers", Value::Array(Array::I32(vec![1, -2, 3]))),
        ("value.floats", Value::Array(Array::F32(vec![0.5, -1.5]))),
        (
            "value.bools",
            Value::Array(Array::Bool(vec![true, false, true])),
        ),
        (
            "value.strings",
            Value::Array(Array::String(vec!["a".into(), String::new(), "c d".into()])),
        ),
        (
            "value.nested",
            Value::Array(Array::Array(vec![
                Array::I32(vec![1, 2]),
                Array::I32(vec![3]),
            ])),
        ),
    ];
    for (key, value) in &expected {
        assert_eq!(gguf.value(key), Some(value), "{key}");
    }
    assert_eq!(gguf.unsigned("value.u8").unwrap(), Some(200));
    assert_eq!(gguf.float("value.i32").unwrap(), Some(-2e9));
    assert_eq!(gguf.string("value.nothing").unwrap(), None);
    let message = gguf.unsigned("value.i8").unwrap_err().to_string();
    assert_has(
        &message,
        &["value.i8: expected an integer that is not negative, found -100"],
    );
    let message = gguf.string("value.strings").unwrap_err().to_string();
    assert_has(
        &message,
        &["value.strings: expected a string, found an array of 3 strings"],
    );
}

#[test]
fn version_2_is_read_like_version_3() {
    let mut bytes = Builder::llama().build();
    bytes[4] = 2;
    let gguf = parse(bytes).unwrap();
    assert_eq!(gguf.version(), 2);
    assert_eq!(gguf.config().unwrap().d_model, 8);
}

#[test]
fn the_tiny_llama_has_the_sizes_and_weights_it_was_written_with() {
    let files = ModelFiles::open(&fixture("tiny-llama.gguf")).unwrap();
    let twin = ModelFiles::open(&fixture("tiny-llama")).unwrap();
    let config = &files.config;
    assert_eq!(config.name, "Tiny Llama");
    assert_eq!(twin.config.name, "tiny-llama");
    let same = pullback_model::ModelConfig {
        name: config.name.clone(),
        ..twin.config.clone()
    };
    assert_eq!(*config, same);
    assert_eq!(
        (
            config.n_layers,
            config.d_model,
            config.d_mlp,
            config.d_vocab,
            config.n_ctx
        ),
        (3, 32, 48, 300, 64)
    );
    assert_eq!(
        (
            config.n_heads,
            config.n_kv_heads,
            config.d_head,
            config.rotary.as_ref().unwrap().dim
        ),
        (4, 2, 8, 8)
    );
    assert!(!config.tied_embedding);
    let elements: usize = WeightName::all(config)
        .map(|name| files.weight(name).unwrap().len())
        .sum();
    assert_eq!(elements as u64, config.n_parameters());

    for name in WeightName::all(config) {
        // Also queries and keys, whose rows are stored in another order.
        let (found, expected) = (files.weight(name).unwrap(), twin.weight(name).unwrap());
        assert_eq!(found, expected, "{name:?}");
    }
}

#[test]
fn what_a_file_says_about_its_tensors() {
    let files = ModelFiles::open(&fixture("tiny-llama.gguf")).unwrap();
    let found = files.describe_weight(WeightName::Gate(2)).unwrap();
    assert_eq!(
        (found.name.as_str(), found.dtype.as_str()),
        ("blk.2.ffn_gate.weight", "F16")
    );
    assert_eq!((found.shape, found.bytes), (vec![48, 32], 48 * 32 * 2));
    assert_eq!(files.tensors().len(), 3 * 9 + 3);
    assert_eq!(files.format(), "GGUF version 3");
    let message = files.weight(WeightName::Q(3)).unwrap_err().to_string();
    assert_has(&message, &["tensor blk.3.attn_q.weight is missing"]);
}

#[test]
fn digests_are_those_of_the_file() {
    let files = open(&Builder::llama()).unwrap();
    assert_eq!(files.digest.len(), "sha256:".len() + 64);
    assert_eq!(files.digest, open(&Builder::llama()).unwrap().digest);
    assert_ne!(
        files.digest,
        open(&Builder::llama().u32("general.file_type", 0))
            .unwrap()
            .digest
    );
}

#[test]
fn a_directory_with_one_gguf_file_is_that_model() {
    let directory = tempfile::tempdir().unwrap();
    let message = ModelFiles::open(directory.path()).unwrap_err().to_string();
    assert_has(
        &message,
        &["is not a model", "neither a config.json nor a .gguf file"],
    );
    std::fs::write(directory.path().join("one.gguf"), Builder::llama().build()).unwrap();
    assert_eq!(
        ModelFiles::open(directory.path()).unwrap().config.name,
        "one"
    );
    std::fs::write(directory.path().join("two.gguf"), Builder::llama().build()).unwrap();
    let message = ModelFiles::open(directory.path()).unwrap_err().to_string();
    assert_has(&message, &["has 2 .gguf files", "one.gguf, two.gguf"]);
    let message = ModelFiles::open(&directory.path().join("none.gguf"))
        .unwrap_err()
        .to_string();
    assert_has(&message, &["cannot read", "none.gguf"]);
}

#[test]
fn files_that_are_not_gguf_of_a_known_version() {
    let message = parse(b"PK\x03\x04 something else".to_vec())
        .unwrap_err()
        .to_string();
    assert_has(
        &message,
        &[
            "some.gguf: magic",
            "this is not a GGUF file",
            r#""PK\x03\x04""#,
        ],
    );
    let with_version = |version: [u8; 4]| {
        let mut bytes = Builder::llama().build();
        bytes[4..8].copy_from_slice(&version);
        parse(bytes).unwrap_err().to_string()
    };
    assert_has(
        &with_version([1, 0, 0, 0]),
        &["version: GGUF version 1 is not supported (supported: 2, 3)"],
    );
    assert_has(
        &with_version([4, 0, 0, 0]),
        &["version: GGUF version 4 is not supported"],
    );
    assert_has(&with_version([0, 0, 0, 3]), &["big-endian", "version 3"]);
    assert_has(
        &with_version([1, 2, 3, 4]),
        &["GGUF version 67305985 is not supported"],
    );
}

#[test]
fn a_truncated_file_says_how_much_is_missing() {
    let whole = std::fs::read(fixture("tiny-llama.gguf")).unwrap();
    for cut in [1, 32, 1000, 20_000] {
        let message = parse(whole[..whole.len() - cut].to_vec())
            .unwrap_err()
            .to_string();
        let length = whole.len() - cut;
        assert_has(
            &message,
            &[
                "some.gguf: the file is cut short in the data of tensor ",
                &format!(": {cut} of its bytes are missing (it has {length} bytes)"),
            ],
        );
    }
    // Within the header the end is not known.
    let message = parse(whole[..100].to_vec()).unwrap_err().to_string();
    assert_has(
        &message,
        &[
            "the file is cut short in ",
            ": at least ",
            "(it has 100 bytes)",
        ],
    );
    assert_has(
        &parse(Vec::new()).unwrap_err().to_string(),
        &["cut short in magic: at least 4 of its bytes"],
    );
    for length in 0..6000 {
        assert!(
            parse(whole[..length].to_vec()).is_err(),
            "{length} bytes of a file of {}",
            whole.len()
        );
    }
}

#[test]
fn absurd_counts_are_named() {
    let damaged = |at: usize, value: u64| {
        let mut bytes = Builder::llama().build();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        parse(bytes).unwrap_err().to_string()
    };
    for count in [u64::MAX, 1 << 60, 1 << 32] {
        assert_has(
            &damaged(8, count),
            &[
                "tensor_count",
                &format!("a count of {count} cannot be true of a file of"),
            ],
        );
        assert_has(
            &damaged(16, count),
            &[
                "metadata_kv_count",
                &format!("a count of {count} cannot be true"),
            ],
        );
        // The length of the first key.
        assert_has(
            &damaged(24, count),
            &[
                "metadata key 0",
                &format!("a count of {count} cannot be true"),
            ],
        );
    }
    let array = |element: u32, count: u64| {
        let value = [&element.to_le_bytes()[..], &count.to_le_bytes()].concat();
        parse_error(&Builder::default().raw("list", 9, &value))
    };
    for element in [0, 5, 7, 8, 9, 12] {
        for count in [u64::MAX, 1 << 61, 1 << 40] {
            assert_has(
                &array(element, count),
                &["some.gguf: list: ", &format!("a count of {count}")],
            );
        }
    }
    assert_has(
        &parse_error(&Builder::default().raw("text", 8, &u64::MAX.to_le_bytes())),
        &["some.gguf: text: a count of 18446744073709551615"],
    );
}

#[test]
fn absurd_metadata_is_named() {
    let twice = Builder::llama().u32("llama.block_count", 1);
    assert_has(
        &parse_error(&twice),
        &["llama.block_count: this metadata key occurs twice"],
    );
    let not_utf8 = Builder::default().raw(b"ke\xffy", 4, &[0; 4]);
    assert_has(
        &parse_error(&not_utf8),
        &["metadata key 0", r#""ke\xffy""#, "is not UTF-8"],
    );
    let not_utf8 = Builder::default().raw("key", 8, b"\x02\0\0\0\0\0\0\0\xc3\x28");
    assert_has(
        &parse_error(&not_utf8),
        &["key: the string", "is not UTF-8"],
    );
    assert_has(
        &parse_error(&Builder::default().raw("key", 13, &[0; 8])),
        &["key: unknown metadata type 13"],
    );
    assert_has(
        &parse_error(&Builder::default().raw("key", 7, &[2])),
        &["key: the truth value 2"],
    );
    let mut nested = Vec::new();
    for _ in 0..1000 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    assert_has(
        &parse_error(&Builder::default().raw("key", 9, &nested)),
        &["key: arrays are nested more than 8 deep"],
    );
    for alignment in [0, 3, 33, u32::MAX] {
        let message = parse_error(&Builder::llama().u32("general.alignment", alignment));
        assert_has(
            &message,
            &[&format!(
                "general.alignment: {alignment} is not a power of two"
            )],
        );
    }
    let message = parse_error(&Builder::llama().string("general.alignment", "x"));
    assert_has(
        &message,
        &["general.alignment: \"x\" is not a power of two"],
    );
}

#[test]
fn absurd_tensors_are_named() {
    let one = |dimensions: &[u64], type_id: u32, offset: Option<u64>| {
        parse_error(&Builder::default().tensor("t", dimensions, type_id, offset, vec![0; 128]))
    };
    assert_has(
        &one(&[], 0, None),
        &["some.gguf: tensor t: 0 dimensions, expected 1 to 4"],
    );
    assert_has(&one(&[1, 1, 1, 1, 1], 0, None), &["tensor t: 5 dimensions"]);
    assert_has(
        &one(&[4, 0], 0, None),
        &["tensor t: a dimension of [4, 0] is zero"],
    );
    assert_has(&one(&[4], 77, None), &["tensor t: unknown tensor type 77"]);
    assert_has(
        &one(&[33], 8, None),
        &["tensor t: rows of 33 elements are not made of the blocks of 32 of type Q8_0"],
    );
    assert_has(
        &one(&[1 << 32, 1 << 32], 0, None),
        &[
            "tensor t: the size of [4294967296, 4294967296]",
            "overflows",
        ],
    );
    assert_has(
        &one(&[1 << 62], 0, None),
        &["tensor t: the size of", "overflows"],
    );
    assert_has(
        &one(&[u64::MAX], 24, None),
        &["tensor t: the size of", "overflows"],
    );
    assert_has(
        &one(&[1 << 40], 0, None),
        &["cut short in the data of tensor t", "bytes are missing"],
    );
    for offset in [1, 32, 1 << 40, u64::MAX] {
        assert_has(
            &one(&[4], 0, Some(offset)),
            &[&format!(
                "tensor t: its data offset is {offset}, expected 0"
            )],
        );
    }
    let twice = Builder::default().zeros("t", &[4]).zeros("t", &[4]);
    assert_has(
        &parse_error(&twice),
        &["tensor t: this tensor name occurs twice"],
    );
}

#[test]
fn models_that_would_give_wrong_numbers_are_refused() {
    open(&Builder::llama()).unwrap();
    let message = open_error(
        &Builder::llama()
            .without("general.architecture")
            .string("general.architecture", "mamba"),
    );
    assert_has(
        &message,
        &["the architecture \"mamba\" is not supported (supported: llama, mistral3,"],
    );
    let message = open_error(&Builder::llama().without("general.architecture"));
    assert_has(
        &message,
        &["general.architecture: this metadata key is missing"],
    );
    let message = open_error(&Builder::llama().string("llama.rope.scaling.type", "yarn"));
    assert_has(
        &message,
        &[
            "llama.rope.scaling.type: rotary scaling \"yarn\" is not supported (supported: none, linear,",
        ],
    );
    open(&Builder::llama().string("llama.rope.scaling.type", "none")).unwrap();
    let files = open(&Builder::llama().f32("llama.rope.scale_linear", 4.0)).unwrap();
    assert_eq!(
        files.config.rotary.unwrap().scaling,
        RopeScaling::Linear { factor: 4.0 }
    );
    let message = open_error(&Builder::llama().u32("llama.expert_count", 8));
    assert_has(
        &message,
        &["llama.expert_count: a mixture of 8 experts is not supported"],
    );
    let files = open(&Builder::llama().u32("llama.attention.sliding_window", 4)).unwrap();
    assert!(files.config.windows.iter().all(|window| *window == Some(4)));
    let message = open_error(&Builder::llama().u32("split.count", 2));
    assert_has(&message, &["split.count: a model split into 2 files"]);
    let message = open_error(&Builder::llama().u32("llama.attention.value_length", 2));
    assert_has(
        &message,
        &["llama.attention.value_length: 2 differs from the head width 4"],
    );
    let message = open_error(&Builder::llama().zeros("rope_freqs.weight", &[8]));
    assert_has(
        &message,
        &["tensor rope_freqs.weight has shape [8], expected [2]"],
    );
    let message = open_error(&Builder::llama().zeros("rope_freqs.weight", &[2]));
    assert_has(
        &message,
        &["tensor rope_freqs.weight: the factor 0 is not positive"],
    );
    for name in ["blk.0.ffn_gate.bias", "blk.1.attn_q.weight"] {
        let message = open_error(&Builder::llama().zeros(name, &[8]));
        assert_has(
            &message,
            &[&format!("tensor {name}: "), "has no place for it"],
        );
    }
    let message = open_error(&Builder::llama().without("output_norm.weight").tensor(
        "output_norm.weight",
        &[256],
        12,
        None,
        vec![0; 144],
    ));
    assert_has(
        &message,
        &["tensor output_norm.weight has shape [256], expected [8]"],
    );
}

#[test]
fn sizes_that_do_not_fit_together_are_named() {
    let with = |key: &str, value: u32| open_error(&Builder::llama().without(key).u32(key, value));
    let without = |key: &str| open_error(&Builder::llama().without(key));
    for key in [
        "llama.block_count",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.context_length",
    ] {
        assert_has(&without(key), &[key, "this metadata key is missing"]);
        assert_has(&with(key, 0), &[key, "0 is not between 1 and "]);
        assert_has(
            &with(key, u32::MAX - 1),
            &[key, "4294967294 is not between 1 and "],
        );
    }
    assert_has(
        &with("llama.block_count", 2),
        &["tensor blk.1.attn_norm.weight is missing"],
    );
    assert_has(
        &with("llama.embedding_length", 12),
        &["tensor token_embd.weight has shape [4, 8], expected [4, 12]"],
    );
    assert_has(
        &with("llama.feed_forward_length", 13),
        &["tensor blk.0.ffn_gate.weight has shape [12, 8], expected [13, 8]"],
    );
    assert_has(
        &with("llama.attention.head_count", 3),
        &["llama.attention.head_count: 3 does not divide 8"],
    );
    assert_has(
        &with("llama.attention.head_count", 0),
        &["llama.attention.head_count: 0 does not divide 8"],
    );
    assert_has(
        &with("llama.attention.head_count_kv", 0),
        &["llama.attention.head_count_kv: 0 is not between"],
    );
    assert_has(
        &with("llama.attention.head_count_kv", 4),
        &["llama.attention.head_count_kv: 4 does not divide the 2"],
    );
    assert_has(
        &open_error(&Builder::llama().u32("llama.attention.key_length", 1 << 20)),
        &["llama.attention.key_length: 2 heads of width 1048576 are wider together than 1048576"],
    );
    assert_has(
        &open_error(&Builder::llama().u32("llama.rope.dimension_count", 3)),
        &["llama.rope.dimension_count: 3 is not an even number from 2 up to the head width 4"],
    );
    assert_has(
        &open_error(&Builder::llama().f32("llama.rope.freq_base", -1.0)),
        &["freq_base: -1 is not positive"],
    );
    assert_has(
        &open_error(&Builder::llama().f32("llama.rope.freq_base", f32::NAN)),
        &["freq_base: NaN is not positive"],
    );
    let message = open_error(
        &Builder::llama()
            .without("llama.attention.head_count_kv")
            .i32s("llama.attention.head_count_kv", &[1]),
    );
    assert_has(
        &message,
        &["llama.attention.head_count_kv: sizes that differ from block to block"],
    );
    assert_has(
        &without("token_embd.weight"),
        &["tensor token_embd.weight is missing"],
    );
    assert_has(
        &without("blk.0.ffn_up.weight"),
        &["tensor blk.0.ffn_up.weight is missing"],
    );
    let message = open_error(
        &Builder::llama()
            .without("llama.block_count")
            .string("llama.block_count", "three"),
    );
    assert_has(
        &message,
        &["llama.block_count: expected an integer that is not negative, found \"three\""],
    );
    let small = Builder::llama()
        .without("token_embd.weight")
        .zeros("token_embd.weight", &[8, 3]);
    assert_has(
        &open_error(&small),
        &["tokenizer: 4 tokens, but the embedding has only 3 rows"],
    );
}

#[test]
fn a_quantised_type_without_support_is_refused_when_the_model_is_opened() {
    let wide = Builder::default()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 16)
        .u32("llama.embedding_length", 256)
        .u32("llama.feed_forward_length", 4)
        .u32("llama.attention.head_count", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .tensor("token_embd.weight", &[256, 1], 11, None, vec![0; 110]);
    assert_has(
        &open_error(&wide),
        &["tensor token_embd.weight has type Q3_K, which is not supported (supported: F32,"],
    );
}

#[test]
fn the_real_model() {
    let Some(path) = common::smollm2() else {
        return;
    };
    let files = ModelFiles::open(&path).unwrap();
    let config = &files.config;
    assert_eq!(
        (
            config.n_layers,
            config.d_model,
            config.d_mlp,
            config.d_vocab,
            config.n_ctx
        ),
        (30, 576, 1536, 49152, 8192)
    );
    assert_eq!(
        (
            config.n_heads,
            config.n_kv_heads,
            config.d_head,
            config.rotary.as_ref().unwrap().dim
        ),
        (9, 3, 64, 64)
    );
    assert_eq!(
        (
            config.rotary.as_ref().unwrap().base.to_bits(),
            config.norm_eps.to_bits()
        ),
        (100_000f32.to_bits(), 1e-5f32.to_bits())
    );
    assert!(config.tied_embedding);
    assert_eq!(
        files.digest,
        "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    );
    assert_eq!(config.n_parameters(), 134_515_008);
    let down = files.weight(WeightName::Down(29)).unwrap();
    assert_eq!(down.len(), 576 * 1536);
    assert!(down.iter().all(|x| x.abs() < 10.0));
    assert_eq!(
        files.describe_weight(WeightName::Unembed).unwrap().name,
        "token_embd.weight"
    );
}

/// Everything that is read from a file that may be damaged.
fn read_all(bytes: Vec<u8>) {
    let Ok(gguf) = parse(bytes) else { return };
    for record in gguf.tensors() {
        let _ = gguf.read_f32(&record.name);
    }
    let _ = gguf.config();
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
        let ids = tokenizer.encode("abba <end> ab", true).unwrap_or_default();
        tokenizer.decode(&ids, false);
        let _ = pullback_model::ChatTemplate::from_gguf(&gguf, &tokenizer);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        numbers in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            Just(u64::MAX), Just(1 << 63), Just(1 << 31), Just(0), any::<u64>(),
        ]), 0..2),
        keep in prop_oneof![3 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)],
    ) {
        let mut bytes = Builder::llama().string("tokenizer.chat_template", "{{ messages[0]['content'] }}").build();
        let header = 1400.min(bytes.len() - 8);
        for (at, value) in changes {
            bytes[at.index(header)] = value;
        }
        for (at, value) in numbers {
            let at = at.index(header);
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if let Some(keep) = keep {
            let length = keep.index(bytes.len());
            bytes.truncate(length);
        }
        read_all(bytes);
    }

    #[test]
    fn random_bytes_after_the_magic_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        read_all([b"GGUF\x03\0\0\0", bytes.as_slice()].concat());
    }
}
