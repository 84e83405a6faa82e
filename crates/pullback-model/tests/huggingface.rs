//! Models in the Hugging Face layout, whole and damaged.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::fixture;
use half::f16;
use pullback_model::{ModelFiles, Rotary, WeightName};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

/// A copy of the tiny model that a test may damage.
struct Copy(tempfile::TempDir);

impl Copy {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ] {
            std::fs::copy(
                fixture("tiny-llama").join(name),
                directory.path().join(name),
            )
            .unwrap();
        }
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn open(&self) -> Result<ModelFiles, pullback_model::ModelError> {
        ModelFiles::open(self.path())
    }

    #[track_caller]
    fn assert_error(&self, parts: &[&str]) {
        let message = self.open().expect_err("the model is damaged").to_string();
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }

    fn config(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path().join("config.json")).unwrap()).unwrap()
    }

    /// Sets a key of `config.json`; takes it out if the value is `null`.
    fn set(&self, key: &str, value: Value) -> &Self {
        let mut config = self.config();
        let fields = config.as_object_mut().unwrap();
        fields.remove(key);
        if !value.is_null() {
            fields.insert(key.into(), value);
        }
        self.write("config.json", config.to_string().as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> &Self {
        std::fs::write(self.path().join(name), bytes).unwrap();
        self
    }
}

/// Tensors that can be changed and written again.
#[derive(Clone)]
struct Tensors(BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn tiny() -> Self {
        let bytes = std::fs::read(fixture("tiny-llama/model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let entry = |(name, view): (&str, TensorView<'_>)| {
            (
                name.to_owned(),
                (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
            )
        };
        Self(tensors.iter().map(entry).collect())
    }

    fn bytes(&self) -> Vec<u8> {
        let views: BTreeMap<&str, TensorView<'_>> = self
            .0
            .iter()
            .map(|(name, (dtype, shape, data))| {
                (
                    name.as_str(),
                    TensorView::new(*dtype, shape.clone(), data).unwrap(),
                )
            })
            .collect();
        safetensors::serialize(views, None).unwrap()
    }

    /// Writes every tensor in another type.
    fn converted(&self, dtype: Dtype, convert: impl Fn(f32) -> Vec<u8>) -> Self {
        let entry = |(name, (old, shape, data)): (&String, &(Dtype, Vec<usize>, Vec<u8>))| {
            assert_eq!(*old, Dtype::BF16);
            let values = data
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&b| half::bf16::from_le_bytes(b).to_f32());
            (
                name.clone(),
                (dtype, shape.clone(), values.flat_map(&convert).collect()),
            )
        };
        Self(self.0.iter().map(entry).collect())
    }

    /// Those whose names are in the part or outside of it.
    fn part(&self, inside: bool, names: &str) -> Self {
        Self(
            self.0
                .clone()
                .into_iter()
                .filter(|(name, _)| name.contains(names) == inside)
                .collect(),
        )
    }
}

fn all_weights(files: &ModelFiles) -> Vec<f32> {
    WeightName::all(&files.config)
        .flat_map(|name| files.weight(name).unwrap())
        .collect()
}

#[test]
fn every_type_gives_the_same_weights() {
    let copy = Copy::new();
    let expected = all_weights(&copy.open().unwrap());
    let tensors = Tensors::tiny();
    let digest = copy.open().unwrap().digest;
    for (name, tensors) in [
        (
            "F32",
            tensors.converted(Dtype::F32, |x| x.to_le_bytes().to_vec()),
        ),
        (
            "F16",
            tensors.converted(Dtype::F16, |x| f16::from_f32(x).to_le_bytes().to_vec()),
        ),
        (
            "F64",
            tensors.converted(Dtype::F64, |x| f64::from(x).to_le_bytes().to_vec()),
        ),
    ] {
        copy.write("model.safetensors", &tensors.bytes());
        let files = copy.open().unwrap();
        assert!(all_weights(&files) == expected, "{name}");
        assert_eq!(
            files.describe_weight(WeightName::Down(0)).unwrap().dtype,
            name
        );
        assert_ne!(files.digest, digest);
    }
}

#[test]
fn what_the_files_say() {
    let files = ModelFiles::open(&fixture("tiny-llama")).unwrap();
    let q = files.describe_weight(WeightName::Q(1)).unwrap();
    assert_eq!(
        (q.name.as_str(), q.dtype.as_str()),
        ("model.layers.1.self_attn.q_proj.weight", "BF16")
    );
    assert_eq!((q.shape, q.bytes), (vec![32, 32], 2048));
    assert_eq!(files.tensors().len(), 3 * 9 + 3);
    assert_eq!(files.format(), "Hugging Face safetensors");
    assert_eq!(files.config.rotary, Rotary::HalfSplit);
    let message = files.weight(WeightName::Down(3)).unwrap_err().to_string();
    assert!(
        message.contains("tensor model.layers.3.mlp.down_proj.weight is missing"),
        "{message}"
    );
}

#[test]
fn shards() {
    let copy = Copy::new();
    let whole = copy.open().unwrap();
    let expected = all_weights(&whole);
    std::fs::remove_file(copy.path().join("model.safetensors")).unwrap();
    let tensors = Tensors::tiny();
    let parts = [
        ("b.safetensors", tensors.part(true, "layers.1.")),
        ("a.safetensors", tensors.part(false, "layers.1.")),
    ];
    let mut map = serde_json::Map::new();
    for (name, part) in &parts {
        copy.write(name, &part.bytes());
        map.extend(part.0.keys().map(|tensor| (tensor.clone(), json!(name))));
    }
    let index = |map: &serde_json::Map<String, Value>| json!({ "weight_map": map }).to_string();
    copy.write("model.safetensors.index.json", index(&map).as_bytes());
    let files = copy.open().unwrap();
    assert!(all_weights(&files) == expected);
    assert_eq!(files.tensors(), whole.tensors());
    assert_eq!(files.digest.len(), whole.digest.len());
    assert_ne!(files.digest, whole.digest);

    let mut outside = map.clone();
    outside.insert("model.norm.weight".into(), json!("../a.safetensors"));
    copy.write("model.safetensors.index.json", index(&outside).as_bytes());
    copy.assert_error(&["weight_map.model.norm.weight: \"../a.safetensors\" is not a file name"]);
    let mut wrong = map.clone();
    wrong.insert("model.extra".into(), json!("a.safetensors"));
    copy.write("model.safetensors.index.json", index(&wrong).as_bytes());
    copy.assert_error(&["a.safetensors: tensor model.extra is missing"]);
    copy.write("model.safetensors.index.json", b"{}");
    copy.assert_error(&["model.safetensors.index.json: weight_map: this key is missing"]);
    copy.write("model.safetensors.index.json", index(&map).as_bytes());
    copy.write("b.safetensors", &tensors.bytes());
    copy.assert_error(&[
        "b.safetensors: tensor ",
        "this tensor is also in a.safetensors",
    ]);
    std::fs::remove_file(copy.path().join("b.safetensors")).unwrap();
    copy.assert_error(&["cannot read", "b.safetensors"]);
}

#[test]
fn a_tied_matrix_under_either_name() {
    for kept in ["model.embed_tokens.weight", "lm_head.weight"] {
        let copy = Copy::new();
        copy.set("tie_word_embeddings", json!(true));
        let mut tensors = Tensors::tiny();
        let embedding = tensors.0.remove("model.embed_tokens.weight").unwrap();
        tensors.0.remove("lm_head.weight");
        tensors.0.insert(kept.into(), embedding);
        copy.write("model.safetensors", &tensors.bytes());
        let files = copy.open().unwrap();
        assert!(files.config.tied_embedding);
        let weights =
            [WeightName::Embed, WeightName::Unembed].map(|name| files.weight(name).unwrap());
        assert_eq!(weights[0], weights[1]);
        assert_eq!(files.describe_weight(WeightName::Embed).unwrap().name, kept);
    }
    // Without the tie both are needed.
    let copy = Copy::new();
    copy.write(
        "model.safetensors",
        &Tensors::tiny().part(false, "lm_head").bytes(),
    );
    copy.assert_error(&["tensor lm_head.weight is missing"]);
}

#[test]
fn settings_in_all_their_places() {
    let copy = Copy::new();
    let base = copy.open().unwrap().config;
    // transformers before version 5: at the top, `rope_scaling` null.
    copy.set("rope_parameters", Value::Null)
        .set("rope_theta", json!(5000.0));
    std::fs::write(
        copy.path().join("config.json"),
        copy.config().to_string().replacen(
            '{',
            "{\"rope_scaling\": null, \"quantization_config\": null, ",
            1,
        ),
    )
    .unwrap();
    let found = copy.open().unwrap().config;
    assert_eq!(
        pullback_model::ModelConfig {
            name: base.name.clone(),
            ..found
        },
        base
    );
    // What follows from other sizes where it is not said.
    let copy = Copy::new();
    copy.set("head_dim", Value::Null)
        .set("rope_parameters", Value::Null)
        .set("rms_norm_eps", Value::Null);
    let found = copy.open().unwrap().config;
    assert_eq!((found.d_head, found.rope_dim), (8, 8));
    assert_eq!(
        (found.rope_base.to_bits(), found.norm_eps.to_bits()),
        (10_000f32.to_bits(), 1e-6f32.to_bits())
    );
    copy.set("num_key_value_heads", Value::Null);
    copy.assert_error(&["k_proj.weight has shape [16, 32], expected [32, 32]"]);
}

#[test]
fn models_that_would_give_wrong_numbers_are_refused() {
    let refused = |key: &str, value: Value, parts: &[&str]| {
        Copy::new()
            .set(key, value)
            .assert_error(&[&["config.json: "], parts].concat());
    };
    refused(
        "architectures",
        json!(["MistralForCausalLM"]),
        &["the architecture \"MistralForCausalLM\" is not supported (supported: LlamaForCausalLM)"],
    );
    refused(
        "model_type",
        json!("gemma3_text"),
        &["is not supported (supported: LlamaForCausalLM)"],
    );
    refused(
        "hidden_act",
        json!("gelu"),
        &["hidden_act: activation \"gelu\" is not supported (supported: silu)"],
    );
    refused(
        "attention_bias",
        json!(true),
        &["attention_bias: bias terms are not supported"],
    );
    refused(
        "mlp_bias",
        json!(true),
        &["mlp_bias: bias terms are not supported"],
    );
    refused(
        "rope_scaling",
        json!({"type": "linear", "factor": 2.0}),
        &["rotary scaling \"linear\" is not supported"],
    );
    refused(
        "rope_parameters",
        json!({"rope_type": "llama3", "rope_theta": 5e5}),
        &["rope_parameters: rotary scaling \"llama3\" is not supported (supported: default)"],
    );
    refused(
        "partial_rotary_factor",
        json!(0.5),
        &["partial_rotary_factor: a rotary embedding of part of each head"],
    );
    refused(
        "quantization_config",
        json!({"bits": 4}),
        &["quantization_config: quantised checkpoints"],
    );
}

#[test]
fn sizes_that_are_wrong() {
    let wrong =
        |key: &str, value: Value, parts: &[&str]| Copy::new().set(key, value).assert_error(parts);
    for key in [
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_attention_heads",
        "vocab_size",
    ] {
        wrong(
            key,
            Value::Null,
            &["config.json: ", key, "this key is missing"],
        );
        wrong(
            key,
            json!("x"),
            &[key, "expected an integer that is not negative, found \"x\""],
        );
        wrong(
            key,
            json!(-1),
            &[key, "expected an integer that is not negative, found -1"],
        );
        wrong(
            key,
            json!(u64::MAX),
            &[key, "18446744073709551615 is not between 1 and 1048576"],
        );
    }
    wrong(
        "hidden_size",
        json!(64),
        &["tensor model.embed_tokens.weight has shape [300, 32], expected [300, 64]"],
    );
    wrong(
        "num_hidden_layers",
        json!(4),
        &["tensor model.layers.3.input_layernorm.weight is missing"],
    );
    wrong(
        "num_hidden_layers",
        json!(2),
        &["tensor model.layers.2.", "has no place for it"],
    );
    wrong(
        "num_key_value_heads",
        json!(3),
        &["num_key_value_heads: 3 does not divide the 4 heads"],
    );
    wrong("head_dim", json!(7), &["head_dim: 7 is not an even number"]);
    wrong(
        "vocab_size",
        json!(299),
        &["model.embed_tokens.weight has shape [300, 32], expected [299, 32]"],
    );
}

#[test]
fn files_that_are_missing_or_damaged() {
    let without = |name: &str, parts: &[&str]| {
        let copy = Copy::new();
        std::fs::remove_file(copy.path().join(name)).unwrap();
        copy.assert_error(parts);
    };
    without(
        "config.json",
        &["is not a model: the directory has neither a config.json nor a .gguf file"],
    );
    without(
        "model.safetensors",
        &["has a config.json but neither model.safetensors nor model.safetensors.index.json"],
    );
    without(
        "tokenizer.json",
        &["it has no tokenizer; a tokenizer.json is needed"],
    );
    Copy::new()
        .write("config.json", b"{\"hidden_size\": ")
        .assert_error(&["config.json: JSON: EOF while parsing"]);
    Copy::new()
        .write("config.json", b"\xff\xfe")
        .assert_error(&["cannot read", "config.json"]);
    Copy::new()
        .write("config.json", b"[]")
        .assert_error(&["config.json: the architecture \"none named\""]);

    let whole = std::fs::read(fixture("tiny-llama/model.safetensors")).unwrap();
    let damaged = |bytes: &[u8], parts: &[&str]| {
        Copy::new()
            .write("model.safetensors", bytes)
            .assert_error(parts);
    };
    damaged(
        &whole[..whole.len() - 1234],
        &[
            "model.safetensors: the file is cut short",
            ": 1234 of its bytes are missing",
        ],
    );
    damaged(
        &whole[..1000],
        &[
            "the file is cut short in the header: at least ",
            "(it has 1000 bytes)",
        ],
    );
    damaged(
        &whole[..5],
        &["the file is cut short in the length of the header: at least 3 of its bytes"],
    );
    damaged(
        &[&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
        &["model.safetensors: safetensors header: "],
    );
    damaged(
        &[&2u64.to_le_bytes()[..], b"{]"].concat(),
        &["model.safetensors: safetensors header: "],
    );
    damaged(
        &[&whole[..], b"more"].concat(),
        &["model.safetensors: safetensors header: "],
    );

    let mut tensors = Tensors::tiny();
    let entry = tensors.0.get_mut("model.norm.weight").unwrap();
    *entry = (Dtype::I64, vec![32], vec![0; 256]);
    damaged(
        &tensors.bytes(),
        &["tensor model.norm.weight has type I64, which is not supported (supported: F32, F16,"],
    );
    let mut tensors = Tensors::tiny();
    tensors.0.insert(
        "model.layers.0.self_attn.q_proj.bias".into(),
        (Dtype::F32, vec![32], vec![0; 128]),
    );
    damaged(
        &tensors.bytes(),
        &[
            "tensor model.layers.0.self_attn.q_proj.bias",
            "has no place for it",
        ],
    );
    let mut tensors = Tensors::tiny();
    tensors.0.insert(
        "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
        (Dtype::F32, vec![4], vec![0; 16]),
    );
    Copy::new()
        .write("model.safetensors", &tensors.bytes())
        .open()
        .unwrap();

    // Every cut, and every byte of the header damaged, is an error or a model, never a panic.
    let copy = Copy::new();
    for length in (0..whole.len()).step_by(997) {
        assert!(
            copy.write("model.safetensors", &whole[..length])
                .open()
                .is_err()
        );
    }
    let mut bytes = whole.clone();
    for at in (0..4000).step_by(13) {
        bytes[at] ^= 0x15;
        let _ = copy.write("model.safetensors", &bytes).open();
        bytes[at] = whole[at];
    }
}
