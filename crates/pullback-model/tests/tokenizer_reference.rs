//! Ids and texts of 10,000 strings, and texts of 2,000 lists of ids, against the `tokenizers` and `sentencepiece` packages.
//!
//! What they make of each is kept as hashes in `fixtures/tokenizers`; `make_tokenizers.py` says how, and shows with
//! `show NAME NUMBER` what the reference makes of one string.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fmt::Write;
use std::path::Path;
use std::sync::OnceLock;

use common::{Builder, fixture, json};
use pullback_model::gguf::Gguf;
use pullback_model::{Llama2c, Tokenizer};
use serde_json::{Value, json};

const STRINGS: usize = 10_000;
const LISTS: usize = 2_000;
const GROUP: usize = 10;

/// Knuth's linear congruential generator of 64 bits, of which the upper 31 are used.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// The strings, as `make_strings` of the script makes them.
fn strings() -> &'static [String] {
    static STRINGS_ONCE: OnceLock<Vec<String>> = OnceLock::new();
    STRINGS_ONCE.get_or_init(|| {
        let source = json("tokenizers/strings.json");
        let classes: Vec<Vec<String>> = source["parts"]
            .as_object()
            .unwrap()
            .values()
            .map(|words| serde_json::from_value(words.clone()).unwrap())
            .collect();
        let ranges: Vec<(usize, usize)> = serde_json::from_value(source["ranges"].clone()).unwrap();
        let mut draws = Draws(1);
        let part = |draws: &mut Draws| -> String {
            if draws.below(6) == 0 {
                let (low, high) = ranges[draws.below(ranges.len())];
                let code = low + draws.below(high - low);
                return char::from_u32(code as u32).unwrap().to_string();
            }
            let words = &classes[draws.below(classes.len())];
            words[draws.below(words.len())].clone()
        };
        let mut strings = vec![String::new()];
        while strings.len() < STRINGS {
            if draws.below(200) == 0 {
                let word = part(&mut draws);
                strings.push(word.repeat(20 + draws.below(300)));
                continue;
            }
            let mut text = String::new();
            for _ in 0..=draws.below(9) {
                text.push_str(&part(&mut draws));
                if draws.below(3) == 0 {
                    text.push(' ');
                }
            }
            strings.push(text);
        }
        strings
    })
}

/// Lists of ids, as `make_lists` of the script makes them.
fn lists(size: usize) -> Vec<Vec<u32>> {
    let mut draws = Draws(2);
    (0..LISTS)
        .map(|_| {
            let range = if draws.below(2) == 0 {
                size.min(300)
            } else {
                size
            };
            (0..=draws.below(10))
                .map(|_| draws.below(range) as u32)
                .collect()
        })
        .collect()
}

fn hash(items: &[Vec<u8>]) -> u32 {
    let bytes = items.iter().flat_map(|item| {
        item.iter()
            .copied()
            .chain((item.len() as u32).to_le_bytes())
    });
    let state = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    (state ^ (state >> 32)) as u32
}

/// Compares with the hashes of a fixture, one section after the other.
struct Reference {
    name: String,
    hashes: Vec<u32>,
    at: usize,
    problems: String,
}

impl Reference {
    fn open(name: &str) -> Self {
        let bytes = std::fs::read(fixture(&format!("tokenizers/{name}.bin"))).unwrap();
        let (words, rest) = bytes.as_chunks::<4>();
        assert_eq!(
            (words.len(), rest),
            ((4 * STRINGS + 2 * LISTS) / GROUP, &[][..])
        );
        Self {
            name: name.to_owned(),
            hashes: words.iter().map(|&word| u32::from_le_bytes(word)).collect(),
            at: 0,
            problems: String::new(),
        }
    }

    fn section(&mut self, what: &str, items: &[Vec<u8>], show: impl Fn(usize) -> String) {
        let groups = items.chunks(GROUP).enumerate();
        let wrong: Vec<usize> = groups
            .zip(&self.hashes[self.at..])
            .filter(|((_, items), expected)| hash(items) != **expected)
            .map(|((group, _), _)| group)
            .collect();
        self.at += items.len() / GROUP;
        if let Some(&first) = wrong.first() {
            let shown: Vec<String> = (first * GROUP..(first + 1) * GROUP).map(show).collect();
            let shown = shown.join("\n  ");
            writeln!(
                self.problems,
                "{}: {} groups of {what} differ; the first is {first}:\n  {shown}",
                self.name,
                wrong.len(),
            )
            .unwrap();
        }
    }

    fn finish(self) -> String {
        assert_eq!(self.at, self.hashes.len());
        self.problems
    }
}

fn of_ids(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// All texts of a list of ids: at once, and id by id.
fn decode(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> Vec<u8> {
    let text = tokenizer.decode(ids, skip);
    let mut stream = tokenizer.decode_stream(skip);
    let mut joined: String = ids.iter().map(|&id| stream.push(id)).collect();
    joined.push_str(&stream.finish());
    assert_eq!(joined, text, "{ids:?}");
    text.into_bytes()
}

/// What differs from the reference; nothing if all is well.
fn compare(name: &str, tokenizer: &Tokenizer, size: usize) -> String {
    let strings = strings();
    let texts: Vec<&str> = strings.iter().map(String::as_str).collect();
    let mut reference = Reference::open(name);
    let parsed = tokenizer.encode_batch(&texts, true).unwrap();
    let plain = tokenizer.encode_batch(&texts, false).unwrap();
    for (what, all) in [("ids", &parsed), ("plain ids", &plain)] {
        let bytes: Vec<Vec<u8>> = all.iter().map(|ids| of_ids(ids)).collect();
        reference.section(what, &bytes, |i| {
            let (text, ids) = (&strings[i], &all[i]);
            let text: String = text.chars().take(80).collect();
            format!("{i} {text:?} {:?}", &ids[..ids.len().min(40)])
        });
    }
    for skip in [false, true] {
        let texts: Vec<Vec<u8>> = parsed
            .iter()
            .map(|ids| decode(tokenizer, ids, skip))
            .collect();
        let show = |i: usize| {
            let text: String = String::from_utf8_lossy(&texts[i])
                .chars()
                .take(80)
                .collect();
            format!("{i} {:?} {text:?}", &parsed[i][..parsed[i].len().min(40)])
        };
        reference.section(&format!("texts (skip {skip})"), &texts, show);
    }
    let lists = lists(size);
    for skip in [false, true] {
        let texts: Vec<Vec<u8>> = lists
            .iter()
            .map(|ids| decode(tokenizer, ids, skip))
            .collect();
        let show = |i: usize| {
            format!(
                "{i} {:?} {:?}",
                lists[i],
                String::from_utf8_lossy(&texts[i])
            )
        };
        reference.section(&format!("texts of lists (skip {skip})"), &texts, show);
    }
    reference.finish()
}

/// The tokenizer of an entry of `variants.json`.
fn variant(entry: &Value) -> Tokenizer {
    let vocabulary = |name: &str| json(&format!("tokenizers/{name}.json"));
    let words = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    let gguf = |builder: Builder| {
        Tokenizer::from_gguf(&Gguf::from_bytes(Path::new("some.gguf"), builder.build()).unwrap())
            .unwrap()
    };
    let common = |model: &str, base: &Value| {
        let tokens = words(&base["tokens"]);
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let types: Vec<i32> = serde_json::from_value(base["types"].clone()).unwrap();
        Builder::default()
            .string("tokenizer.ggml.model", model)
            .strings("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &types)
    };
    match entry["kind"].as_str().unwrap() {
        "gguf gpt2" => {
            let base = vocabulary("bytelevel");
            let merges: Vec<(String, String)> =
                serde_json::from_value(base["merges"].clone()).unwrap();
            let merges: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
            let merges: Vec<&str> = merges.iter().map(String::as_str).collect();
            gguf(
                common("gpt2", &base)
                    .string("tokenizer.ggml.pre", entry["pre"].as_str().unwrap())
                    .strings("tokenizer.ggml.merges", &merges),
            )
        }
        "gguf llama" => {
            let base = vocabulary("sentencepiece");
            let scores: Vec<f32> = serde_json::from_value(base["scores"].clone()).unwrap();
            gguf(
                common("llama", &base)
                    .f32s("tokenizer.ggml.scores", &scores)
                    .u32("tokenizer.ggml.unknown_token_id", 0)
                    .bool(
                        "tokenizer.ggml.add_space_prefix",
                        entry["add_space_prefix"].as_bool().unwrap(),
                    ),
            )
        }
        _ => {
            let base = vocabulary(entry["base"].as_str().unwrap());
            let mut document = entry["tokenizer"].clone();
            let vocab: serde_json::Map<String, Value> = words(&base["tokens"])
                .into_iter()
                .zip(0..)
                .map(|(token, id)| (token, json!(id)))
                .collect();
            document["model"]["vocab"] = vocab.into();
            document["model"]["merges"] = base["merges"].clone();
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(
                directory.path().join("tokenizer.json"),
                serde_json::to_vec(&document).unwrap(),
            )
            .unwrap();
            Tokenizer::from_huggingface(directory.path()).unwrap()
        }
    }
}

fn compare_variants(kind: &str) {
    let variants = json("tokenizers/variants.json");
    let mut problems = String::new();
    let mut compared = 0;
    for (name, entry) in variants.as_object().unwrap() {
        if entry["kind"] == kind {
            let size = entry["tokens"].as_u64().unwrap() as usize;
            problems.push_str(&compare(name, &variant(entry), size));
            compared += 1;
        }
    }
    assert!(compared > 1);
    assert!(problems.is_empty(), "{problems}");
}

#[test]
fn the_strings_are_of_all_kinds() {
    let strings = strings();
    assert_eq!(strings.len(), STRINGS);
    assert!(strings.iter().any(String::is_empty));
    assert!(strings.iter().any(|text| text.len() > 1000));
    for part in [
        "\u{200d}",
        "\u{301}",
        "\u{a0}",
        "\u{3000}",
        "\t",
        "\0",
        "한",
        "<|im_end|>",
    ] {
        assert!(
            strings.iter().filter(|text| text.contains(part)).count() > 20,
            "{part:?}"
        );
    }
}

#[test]
fn byte_level_of_gguf_with_each_pre_tokenizer() {
    compare_variants("gguf gpt2");
}

#[test]
fn sentencepiece_of_gguf() {
    compare_variants("gguf llama");
}

#[test]
fn tokenizer_json_of_each_kind() {
    compare_variants("json");
}

#[test]
fn vocab_json_and_merges_txt() {
    let base = json("tokenizers/bytelevel.json");
    let tokens: Vec<String> = serde_json::from_value(base["tokens"].clone()).unwrap();
    let merges: Vec<(String, String)> = serde_json::from_value(base["merges"].clone()).unwrap();
    let vocab: serde_json::Map<String, Value> = tokens
        .iter()
        .zip(0..)
        .map(|(token, id)| (token.clone(), json!(id)))
        .collect();
    let lines: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
    let lines = lines.concat();
    let added = |name: &str, special: bool| json!({"content": name, "special": special});
    let added_tokens = json!({
        "0": added("<|endoftext|>", true),
        "1": added("<|im_start|>", true),
        "2": added("<|im_end|>", true),
        "3": added("<think>", false),
    });
    for (name, class, bos) in [
        ("json-gpt-2", "GPT2Tokenizer", Some(0)),
        ("json-qwen2", "Qwen2TokenizerFast", None),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            std::fs::write(directory.path().join(name), text).unwrap();
        };
        write("vocab.json", json!(vocab).to_string());
        write("merges.txt", format!("#version: 0.2\n{lines}"));
        let settings = json!({"tokenizer_class": class, "added_tokens_decoder": added_tokens});
        write("tokenizer_config.json", settings.to_string());
        let tokenizer = Tokenizer::from_huggingface(directory.path()).unwrap();
        let problems = compare(name, &tokenizer, tokens.len());
        assert!(problems.is_empty(), "{problems}");
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (bos, Some(0)));
        assert!(!tokenizer.add_bos() && tokenizer.is_end(0));
    }
}

#[test]
fn published_models() {
    if let Some(path) = common::smollm2() {
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        let problems = compare("smollm2", &tokenizer, tokenizer.vocab_size());
        assert!(problems.is_empty(), "{problems}");
    }
    if let Some(directory) = common::small_model("tinystories-656k") {
        let tokenizer = Tokenizer::from_huggingface(&directory).unwrap();
        let problems = compare("tinystories-656k", &tokenizer, tokenizer.vocab_size());
        assert!(problems.is_empty(), "{problems}");
    }
    if let Some(directory) = common::small_model("stories260K") {
        let file = Llama2c::open(&directory.join("stories260K.bin")).unwrap();
        let tokenizer = file.tokenizer().unwrap();
        let problems = compare("stories260K", &tokenizer, tokenizer.vocab_size());
        assert!(problems.is_empty(), "{problems}");
    }
}
