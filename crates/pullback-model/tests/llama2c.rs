//! Checkpoints of llama2.c: files made to order, and the published model `stories260K` run by a plain forward pass.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::Path;

use pullback_model::{Llama2c, ModelError, Tokenizer};

/// Width, width of the MLP, blocks, heads, key and value heads, vocabulary, context.
const SIZES: [i32; 7] = [8, 12, 2, 4, 2, 5, 6];
const D: usize = 8;
const KV: usize = 4;
const MLP: usize = 12;
const VOCAB: usize = 5;
/// Cosines and sines for six positions and the one pair of each head.
const TABLES: usize = 2 * 6;

fn header_0(sizes: [i32; 7]) -> Vec<u8> {
    sizes.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn header_1(sizes: [i32; 7], tied: u8) -> Vec<u8> {
    let mut bytes = b"24ka".to_vec();
    bytes.extend(1i32.to_le_bytes());
    bytes.extend(header_0(sizes));
    bytes.push(tied);
    bytes.resize(256, 0);
    bytes
}

/// Floats that count up from zero after a header, so that each element tells where it lies.
fn counted(mut header: Vec<u8>, floats: usize) -> Vec<u8> {
    header.extend((0..floats).flat_map(|n| (n as f32).to_le_bytes()));
    header
}

fn parse(bytes: Vec<u8>) -> Result<Llama2c, ModelError> {
    Llama2c::from_bytes(Path::new("some/tiny.bin"), bytes)
}

fn message(bytes: Vec<u8>) -> String {
    parse(bytes).unwrap_err().to_string()
}

/// The kinds of weights: name with `L` for the number of the block, rows, columns (zero for a vector).
const EMBED: (&str, usize, usize) = ("model.embed_tokens.weight", VOCAB, D);
const UNEMBED: (&str, usize, usize) = ("lm_head.weight", VOCAB, D);
const NORM: (&str, usize, usize) = ("model.norm.weight", D, 0);
const ATTN_NORM: (&str, usize, usize) = ("model.layers.L.input_layernorm.weight", D, 0);
const MLP_NORM: (&str, usize, usize) = ("model.layers.L.post_attention_layernorm.weight", D, 0);
const Q: (&str, usize, usize) = ("model.layers.L.self_attn.q_proj.weight", D, D);
const K: (&str, usize, usize) = ("model.layers.L.self_attn.k_proj.weight", KV, D);
const V: (&str, usize, usize) = ("model.layers.L.self_attn.v_proj.weight", KV, D);
const O: (&str, usize, usize) = ("model.layers.L.self_attn.o_proj.weight", D, D);
const GATE: (&str, usize, usize) = ("model.layers.L.mlp.gate_proj.weight", MLP, D);
const UP: (&str, usize, usize) = ("model.layers.L.mlp.up_proj.weight", MLP, D);
const DOWN: (&str, usize, usize) = ("model.layers.L.mlp.down_proj.weight", D, MLP);
const TABLE: (&str, usize, usize) = ("", TABLES, 0);

/// The layouts as `legacy_export` and `version1_export` of llama2.c's `export.py` write them.
const VERSION_0: [(&str, usize, usize); 13] = [
    EMBED, ATTN_NORM, Q, K, V, O, MLP_NORM, GATE, DOWN, UP, NORM, TABLE, UNEMBED,
];
const VERSION_1: [(&str, usize, usize); 12] = [
    ATTN_NORM, MLP_NORM, NORM, EMBED, Q, K, V, O, GATE, DOWN, UP, UNEMBED,
];

#[track_caller]
fn assert_layout(file: &Llama2c, layout: &[(&str, usize, usize)]) -> usize {
    let mut at = 0;
    let mut names = Vec::new();
    for &(name, rows, columns) in layout {
        let blocks = if name.contains('L') { 2 } else { 1 };
        for block in 0..blocks {
            let elements = rows * columns.max(1);
            let expected: Vec<f32> = (at..at + elements).map(|n| n as f32).collect();
            at += elements;
            if name.is_empty() {
                continue;
            }
            let name = name.replace('L', &block.to_string());
            assert_eq!(file.read_f32(&name).unwrap(), expected, "{name}");
            let found = file.describe(&name).unwrap();
            let shape = if columns == 0 {
                vec![rows]
            } else {
                vec![rows, columns]
            };
            assert_eq!(
                (found.shape, found.bytes, found.dtype.as_str()),
                (shape, 4 * elements as u64, "F32")
            );
            names.push(name);
        }
    }
    let listed: Vec<String> = file.tensors().into_iter().map(|t| t.name).collect();
    assert_eq!(listed, names);
    at
}

fn floats(layout: &[(&str, usize, usize)]) -> usize {
    layout
        .iter()
        .map(|&(name, rows, columns)| {
            rows * columns.max(1) * if name.contains('L') { 2 } else { 1 }
        })
        .sum()
}

#[test]
fn the_weights_of_both_versions_lie_where_the_exporter_puts_them() {
    let untied = [8, 12, 2, 4, 2, -5, 6];
    let cases = [
        (header_0(SIZES), &VERSION_0[..12], 0, true),
        (header_0(untied), &VERSION_0[..], 0, false),
        (header_1(SIZES, 1), &VERSION_1[..11], 1, true),
        (header_1(SIZES, 0), &VERSION_1[..], 1, false),
    ];
    for (header, layout, version, tied) in cases {
        let bytes = counted(header, floats(layout));
        let file = parse(bytes.clone()).unwrap();
        assert_eq!(file.version(), version);
        assert_eq!(assert_layout(&file, layout), floats(layout));
        assert_eq!(file.bytes(), bytes);
        let config = file.config();
        assert_eq!(
            (config.name.as_str(), config.architecture.as_str()),
            ("tiny", "llama")
        );
        assert_eq!(
            (config.d_model, config.d_mlp, config.n_layers, config.n_ctx),
            (8, 12, 2, 6)
        );
        assert_eq!(
            (config.n_heads, config.n_kv_heads, config.d_head),
            (4, 2, 2)
        );
        assert_eq!((config.d_vocab, config.tied_embedding), (5, tied));
        let rotary = config.rotary.as_ref().unwrap();
        assert_eq!(rotary.dim, 2);
        assert_eq!((rotary.base, config.norm_eps), (10_000.0, 1e-5));

        let missing = file.read_f32("model.layers.2.mlp.up_proj.weight");
        assert!(matches!(missing, Err(ModelError::MissingTensor { .. })));
        assert!(file.describe("lm_head.weight").is_none() == tied);
    }
}

#[test]
fn damaged_checkpoints_are_refused_before_memory_is_asked_for() {
    let whole = counted(header_0(SIZES), floats(&VERSION_0[..12]));
    for length in [0, 3, 27] {
        let found = message(whole[..length].to_vec());
        assert!(
            found.contains("tiny.bin: the file is cut short in the header"),
            "{found}"
        );
    }
    let found = message(whole[..whole.len() - 8].to_vec());
    assert!(found.contains("8 of its bytes are missing"), "{found}");
    let found = message([whole.as_slice(), &[0; 4]].concat());
    assert!(
        found.contains(&format!(
            "ask for {} bytes, but the file has {}",
            whole.len(),
            whole.len() + 4
        )),
        "{found}"
    );

    let with = |index: usize, size: i32| {
        let mut sizes = SIZES;
        sizes[index] = size;
        message(counted(header_0(sizes), floats(&VERSION_0)))
    };
    for (index, key) in [
        (0, "dim: 0"),
        (1, "hidden_dim: 0"),
        (2, "n_layers: 0"),
        (3, "n_heads: 0"),
        (4, "n_kv_heads: 0"),
        (5, "vocab_size: 0"),
        (6, "seq_len: 0"),
    ] {
        assert!(with(index, 0).contains(key), "{}", with(index, 0));
        assert!(with(index, i32::MAX).contains("tiny.bin: "));
        assert!(with(index, i32::MIN).contains("is not a size"));
    }
    assert!(with(3, 3).contains("n_heads: 3 does not divide 8 of dim"));
    assert!(with(4, 3).contains("n_kv_heads: 3 does not divide the 4 heads"));
    assert!(with(3, 8).contains("1 is not an even number from 2 up to the head width 1"));
    // Sizes that are each allowed, and together larger than any file.
    let largest = 1 << 20;
    let layers = 1 << 14;
    let mut sizes = [largest; 7];
    sizes[2] = layers;
    let found = message(header_0(sizes));
    assert!(found.contains("dim / n_heads: 1 is not an even"), "{found}");
    let found = message(header_0([
        largest,
        largest,
        layers,
        largest / 2,
        1,
        largest,
        largest,
    ]));
    assert!(
        found.contains("ask for") || found.contains("missing"),
        "{found}"
    );

    let mut next = header_1(SIZES, 1);
    next[4] = 2;
    assert!(
        message(next).contains("version: llama2.c version 2 is not supported (supported: 0, 1)")
    );
    assert!(message(header_1(SIZES, 1)[..255].to_vec()).contains("cut short in the header"));
}

/// A tokenizer file of these tokens after the special ones and the bytes.
fn tokenizer_file(others: &[(&str, f32)]) -> Vec<u8> {
    let mut bytes = 7i32.to_le_bytes().to_vec();
    let mut push = |text: &str, score: f32| {
        bytes.extend(score.to_le_bytes());
        bytes.extend((text.len() as i32).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    for name in ["<unk>", "\n<s>\n", "\n</s>\n"] {
        push(name, 0.0);
    }
    for byte in 0..=255 {
        push(&format!("<0x{byte:02X}>"), 0.0);
    }
    for &(text, score) in others {
        push(text, score);
    }
    bytes
}

fn tokenizer(bytes: &[u8]) -> Result<Tokenizer, ModelError> {
    Tokenizer::from_llama2c_bytes(Path::new("tok.bin"), bytes)
}

#[test]
fn the_tokens_with_the_highest_score_are_merged_first() {
    let tokens = [
        (" ", -9.0),
        ("a", -9.0),
        ("b", -9.0),
        ("ab", -2.0),
        (" a", -1.0),
        ("ba", -3.0),
    ];
    let tokenizer = tokenizer(&tokenizer_file(&tokens)).unwrap();
    assert_eq!(tokenizer.vocab_size(), 259 + 6);
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.unk()),
        (Some(1), Some(2), Some(0))
    );
    assert!(tokenizer.add_bos() && tokenizer.is_end(1) && tokenizer.is_end(2));
    let of = |text: &str| tokenizer.token_id(text).unwrap();
    let encode = |text: &str| tokenizer.encode(text, false).unwrap();
    assert_eq!(encode(""), [0u32; 0]);
    assert_eq!(encode("ab"), [of(" a"), of("b")]);
    assert_eq!(encode("bab"), [of(" "), of("b"), of("ab")]);
    assert_eq!(encode("bé"), [of(" "), of("b"), 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(
        tokenizer.encode_with_bos("<s>", false).unwrap(),
        [&[1, of(" ")][..], &[3 + 0x3c, 3 + 0x73, 3 + 0x3e]].concat()
    );
    assert_eq!(tokenizer.encode("<s>a", true).unwrap(), [1, of(" a")]);
    assert_eq!(tokenizer.decode(&encode("bé ab"), true), "bé ab");
}

#[test]
fn damaged_tokenizer_files_are_refused() {
    let whole = tokenizer_file(&[("a", -1.0)]);
    let error = |bytes: &[u8]| tokenizer(bytes).unwrap_err().to_string();
    assert!(error(&[]).contains("tok.bin: the file is cut short in the longest length"));
    assert!(error(&whole[..whole.len() - 1]).contains("cut short in token 259"));
    assert!(tokenizer(&whole[..whole.len() - 9]).is_ok());
    assert!(error(&whole[..whole.len() - 9 - 14]).contains("the file has 258 tokens; expected"));
    assert!(error(&whole[..4]).contains("the file has 0 tokens; expected three special ones"));
    let mut long = whole.clone();
    long[..4].copy_from_slice(&3i32.to_le_bytes());
    assert!(error(&long).contains("token 0: its length is 5 bytes, but the longest token has 3"));
    long[..4].copy_from_slice(&(-3i32).to_le_bytes());
    assert!(error(&long).contains("-3 is not between 1 and 1024"));
    let mut negative = whole.clone();
    negative[8..12].copy_from_slice(&(-1i32).to_le_bytes());
    assert!(error(&negative).contains("token 0: its length is -1 bytes"));
    let mut score = whole.clone();
    score[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(error(&score).contains("token 0: its score is NaN"));
    let mut bytes = whole;
    *bytes.last_mut().unwrap() = 0xff;
    assert!(error(&bytes).contains("token 259: its text is not UTF-8"));
}

fn matmul(matrix: &[f32], x: &[f64]) -> Vec<f64> {
    matrix
        .chunks_exact(x.len())
        .map(|row| row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum())
        .collect()
}

fn rms_norm(gain: &[f32], x: &[f64]) -> Vec<f64> {
    let mean: f64 = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = (mean + 1e-5).sqrt().recip();
    x.iter()
        .zip(gain)
        .map(|(x, &g)| x * scale * f64::from(g))
        .collect()
}

/// Turns the pairs `(2i, 2i + 1)` of each head.
fn rotate(x: &mut [f64], d_head: usize, position: usize) {
    for head in x.chunks_exact_mut(d_head) {
        for pair in 0..d_head / 2 {
            let angle = position as f64 / 10_000f64.powf(2.0 * pair as f64 / d_head as f64);
            let (a, b) = (head[2 * pair], head[2 * pair + 1]);
            head[2 * pair] = a * angle.cos() - b * angle.sin();
            head[2 * pair + 1] = a * angle.sin() + b * angle.cos();
        }
    }
}

/// Logits after each token, computed one token at a time without anything of this project but the weights.
struct Plain<'a> {
    file: &'a Llama2c,
    keys: Vec<Vec<Vec<f64>>>,
    values: Vec<Vec<Vec<f64>>>,
}

impl Plain<'_> {
    fn advance(&mut self, token: u32) -> Vec<f64> {
        let config = self.file.config();
        let read = |name: &str| self.file.read_f32(name).unwrap();
        let embed = read("model.embed_tokens.weight");
        let (d, d_head) = (config.d_model, config.d_head);
        let mut x: Vec<f64> = embed[token as usize * d..][..d]
            .iter()
            .map(|&w| w.into())
            .collect();
        for layer in 0..config.n_layers {
            let weight = |role: &str| read(&format!("model.layers.{layer}.{role}.weight"));
            let normed = rms_norm(&weight("input_layernorm"), &x);
            let mut q = matmul(&weight("self_attn.q_proj"), &normed);
            let mut k = matmul(&weight("self_attn.k_proj"), &normed);
            let position = self.keys[layer].len();
            rotate(&mut q, d_head, position);
            rotate(&mut k, d_head, position);
            self.keys[layer].push(k);
            self.values[layer].push(matmul(&weight("self_attn.v_proj"), &normed));
            let mut mixed = vec![0.0; d];
            for head in 0..config.n_heads {
                let shared = head * config.n_kv_heads / config.n_heads * d_head;
                let own = head * d_head..(head + 1) * d_head;
                let scores: Vec<f64> = self.keys[layer]
                    .iter()
                    .map(|k| {
                        let dot: f64 = q[own.clone()]
                            .iter()
                            .zip(&k[shared..])
                            .map(|(a, b)| a * b)
                            .sum();
                        (dot / (d_head as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = scores.iter().sum();
                for (score, v) in scores.iter().zip(&self.values[layer]) {
                    for (out, v) in mixed[own.clone()].iter_mut().zip(&v[shared..]) {
                        *out += score / total * v;
                    }
                }
            }
            let out = matmul(&weight("self_attn.o_proj"), &mixed);
            x.iter_mut().zip(out).for_each(|(x, y)| *x += y);
            let normed = rms_norm(&weight("post_attention_layernorm"), &x);
            let gate = matmul(&weight("mlp.gate_proj"), &normed);
            let up = matmul(&weight("mlp.up_proj"), &normed);
            let hidden: Vec<f64> = gate
                .iter()
                .zip(up)
                .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                .collect();
            let out = matmul(&weight("mlp.down_proj"), &hidden);
            x.iter_mut().zip(out).for_each(|(x, y)| *x += y);
        }
        matmul(&embed, &rms_norm(&read("model.norm.weight"), &x))
    }
}

#[test]
fn the_published_model_tells_its_story() {
    let Some(directory) = common::small_model("stories260K") else {
        return;
    };
    let file = Llama2c::open(&directory.join("stories260K.bin")).unwrap();
    let config = file.config();
    assert_eq!(config.name, "stories260K");
    assert_eq!(
        (config.d_vocab, config.n_ctx, config.tied_embedding),
        (512, 512, true)
    );
    assert!(file.digest().starts_with("sha256:") && file.digest().len() == 7 + 64);
    let stored: u64 = file.tensors().iter().map(|t| t.bytes).sum();
    assert_eq!(stored, 4 * config.n_parameters());
    let tokenizer = file.tokenizer().unwrap();
    let mut plain = Plain {
        file: &file,
        keys: vec![Vec::new(); config.n_layers],
        values: vec![Vec::new(); config.n_layers],
    };
    let mut token = tokenizer.bos().unwrap();
    let mut ids = Vec::new();
    for _ in 0..40 {
        let logits = plain.advance(token);
        let best = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        token = logits.iter().position(|&l| l == best).unwrap() as u32;
        ids.push(token);
    }
    let text = tokenizer.decode(&ids, true);
    assert!(
        text.starts_with("Once upon a time, there was a little girl named Lily."),
        "{text}"
    );
    // The model writes what the tokenizer would have written.
    assert!(
        ids.starts_with(
            &tokenizer
                .encode(
                    "Once upon a time, there was a little girl named Lily.",
                    false
                )
                .unwrap()
        )
    );
}

#[test]
fn a_checkpoint_needs_its_tokenizer_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.bin");
    let mut sizes = SIZES;
    sizes[5] = 260;
    let layout = floats(&VERSION_0[..12]) + (260 - VOCAB) * D;
    std::fs::write(&path, counted(header_0(sizes), layout)).unwrap();
    let file = Llama2c::open(&path).unwrap();
    let found = file.tokenizer().unwrap_err().to_string();
    assert!(
        found.contains("tok260.bin or tokenizer.bin, is not in the same directory"),
        "{found}"
    );
    std::fs::write(directory.path().join("tokenizer.bin"), tokenizer_file(&[])).unwrap();
    let found = file.tokenizer().unwrap_err().to_string();
    assert!(found.contains("259 tokens, but the model in"), "{found}");
    std::fs::write(
        directory.path().join("tok260.bin"),
        tokenizer_file(&[("a", 0.0)]),
    )
    .unwrap();
    assert_eq!(file.tokenizer().unwrap().vocab_size(), 260);
}
