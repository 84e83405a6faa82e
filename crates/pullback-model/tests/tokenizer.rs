//! Tokenizers from GGUF metadata and from `tokenizer.json`, against the reference implementations.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::Path;

use common::{Builder, fixture, ids, json};
use proptest::prelude::*;
use pullback_model::gguf::Gguf;
use pullback_model::{ModelError, Tokenizer};

fn from_builder(builder: &Builder) -> Result<Tokenizer, ModelError> {
    Tokenizer::from_gguf(&Gguf::from_bytes(Path::new("some.gguf"), builder.build()).unwrap())
}

fn build_error(builder: &Builder) -> String {
    from_builder(builder)
        .expect_err("the tokenizer is damaged")
        .to_string()
}

fn tiny() -> [Tokenizer; 2] {
    [
        Tokenizer::from_gguf(&Gguf::open(&fixture("tiny-llama.gguf")).unwrap()).unwrap(),
        Tokenizer::from_huggingface(&fixture("tiny-llama")).unwrap(),
    ]
}

/// Checks decoding in one go and id by id.
fn assert_decodes(tokenizer: &Tokenizer, ids: &[u32], expected: &str) {
    for skip_special in [false, true] {
        let mut stream = tokenizer.decode_stream(skip_special);
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        assert_eq!(text, tokenizer.decode(ids, skip_special), "{ids:?}");
    }
    assert_eq!(tokenizer.decode(ids, false), expected, "{ids:?}");
}

#[test]
fn the_tokenizer_of_the_real_model() {
    let Some(path) = common::smollm2() else {
        return;
    };
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    let reference = json("smollm2_tokenizer.json");
    let entries = reference["texts"].as_array().unwrap();
    assert!(entries.len() > 150);
    for entry in entries {
        let text = entry["text"].as_str().unwrap();
        assert_eq!(
            tokenizer.encode(text, true).unwrap(),
            ids(&entry["ids"]),
            "{text:?}"
        );
        assert_eq!(
            tokenizer.encode(text, false).unwrap(),
            ids(&entry["plain"]),
            "{text:?}, not parsed"
        );
        assert_decodes(
            &tokenizer,
            &ids(&entry["ids"]),
            entry["decoded"].as_str().unwrap(),
        );
    }
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!(
        (
            tokenizer.bos(),
            tokenizer.eos(),
            tokenizer.unk(),
            tokenizer.pad()
        ),
        (Some(1), Some(2), Some(0), Some(2))
    );
    assert!(!tokenizer.add_bos());
    assert_eq!(tokenizer.token_text(7042), " Paris");
    assert_eq!(tokenizer.token_text(2), "<|im_end|>");
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.token_id(" Paris"), Some(7042));
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(7042));
    assert!(tokenizer.is_end(0) && tokenizer.is_end(2) && !tokenizer.is_end(1));

    // Long texts are cut into pieces that are encoded in parallel.
    let one = "It's the whale's 12 ships, \u{1f40b} and  \n the sea;\n";
    let long = one.repeat(6000);
    let lines: Vec<u32> = tokenizer
        .encode(&one.repeat(20), false)
        .unwrap()
        .repeat(300);
    assert!(
        tokenizer.encode(&long, false).unwrap() == lines,
        "encoded otherwise in pieces"
    );
    assert!(tokenizer.decode(&lines, false) == long, "decoded otherwise");
    assert_eq!(
        tokenizer.encode_batch(&[one, "", "1"], false).unwrap()[0],
        lines[..lines.len() / 6000]
    );
}

#[test]
fn gguf_and_tokenizer_json_agree() {
    let [gguf, huggingface] = tiny();
    let entries = json("smollm2_tokenizer.json");
    for entry in entries["texts"].as_array().unwrap() {
        let text = entry["text"].as_str().unwrap();
        for parse_special in [false, true] {
            let found = gguf.encode(text, parse_special).unwrap();
            assert_eq!(
                found,
                huggingface.encode(text, parse_special).unwrap(),
                "{text:?}"
            );
            // All bytes are tokens, so nothing is lost.
            assert_decodes(&gguf, &found, text);
            assert_decodes(&huggingface, &found, text);
        }
    }
    for tokenizer in [&gguf, &huggingface] {
        assert_eq!(tokenizer.vocab_size(), 300);
        assert_eq!(
            (
                tokenizer.bos(),
                tokenizer.eos(),
                tokenizer.unk(),
                tokenizer.pad()
            ),
            (Some(1), Some(2), Some(0), Some(2))
        );
        assert!(!tokenizer.add_bos());
        assert_eq!(
            tokenizer.encode_with_bos("a", true).unwrap(),
            tokenizer.encode("a", true).unwrap()
        );
    }
    for id in 0..301 {
        assert_eq!(gguf.token_text(id), huggingface.token_text(id));
        assert_eq!(gguf.token_bytes(id), huggingface.token_bytes(id));
        assert_eq!(gguf.is_special(id), huggingface.is_special(id));
        assert_eq!(gguf.is_end(id), huggingface.is_end(id));
    }
}

#[test]
fn control_tokens_in_text_are_text_unless_asked_for() {
    for tokenizer in tiny() {
        let text = "a<|im_end|><|im_start|>b";
        let parsed = tokenizer.encode(text, true).unwrap();
        assert_eq!(
            parsed
                .iter()
                .filter(|&&id| tokenizer.is_special(id))
                .count(),
            2
        );
        let plain = tokenizer.encode(text, false).unwrap();
        assert!(plain.iter().all(|&id| !tokenizer.is_special(id)));
        assert_eq!(tokenizer.decode(&plain, true), text);
        assert_eq!(tokenizer.decode(&parsed, false), text);
        assert_eq!(tokenizer.decode(&parsed, true), "ab");
        assert_eq!(tokenizer.encode_batch(&[text], true).unwrap(), [parsed]);
        assert_eq!(tokenizer.encode_batch(&[text], false).unwrap(), [plain]);
    }
}

#[test]
fn tokens_that_are_part_of_a_character() {
    let [tokenizer, _] = tiny();
    let whale = tokenizer.encode("\u{1f40b}", false).unwrap();
    assert_eq!(whale.len(), 4);
    let texts: Vec<String> = whale.iter().map(|&id| tokenizer.token_text(id)).collect();
    assert_eq!(texts, ["<0xF0>", "<0x9F>", "<0x90>", "<0x8B>"]);
    let bytes: Vec<u8> = whale
        .iter()
        .flat_map(|&id| tokenizer.token_bytes(id))
        .collect();
    assert_eq!(bytes, "\u{1f40b}".as_bytes());

    let mut stream = tokenizer.decode_stream(false);
    let pieces: Vec<String> = whale.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(pieces, ["", "", "", "\u{1f40b}"]);
    assert_eq!(stream.finish(), "");

    // Left incomplete, or broken off by another character.
    let mut stream = tokenizer.decode_stream(false);
    assert_eq!(stream.push(whale[0]) + &stream.push(whale[1]), "");
    assert_eq!(stream.finish(), "\u{fffd}");
    let mut stream = tokenizer.decode_stream(false);
    let a = tokenizer.encode("a", false).unwrap()[0];
    assert_eq!(
        (stream.push(whale[0]), stream.push(a)),
        (String::new(), "\u{fffd}a".into())
    );
    assert_eq!(stream.push(whale[3]), "\u{fffd}");
    assert_eq!(
        tokenizer.decode(&[whale[0], a, whale[3]], false),
        "\u{fffd}a\u{fffd}"
    );
}

#[test]
fn ids_outside_of_the_vocabulary() {
    for tokenizer in tiny() {
        assert_eq!(tokenizer.token_text(300), "<no token 300>");
        assert!(tokenizer.token_bytes(u32::MAX).is_empty());
        assert_eq!(tokenizer.decode(&[300, u32::MAX], false), "");
        assert!(!tokenizer.is_special(300));
    }
}

#[test]
fn offsets_cover_the_text() {
    let [tokenizer, _] = tiny();
    let text = "the sea<|im_end|>\u{1f40b} 12";
    let tokens = tokenizer.encode_with_offsets(text, true).unwrap();
    assert_eq!(
        tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        tokenizer.encode(text, true).unwrap()
    );
    let whale = text.find('\u{1f40b}').unwrap();
    assert_eq!(
        tokens
            .iter()
            .filter(|(_, range)| *range == (whale..whale + 4))
            .count(),
        4
    );
    let end = tokens.iter().find(|(id, _)| *id == 2).unwrap();
    assert_eq!(&text[end.1.clone()], "<|im_end|>");
    for (id, range) in tokens.iter().filter(|(_, range)| range.start < 7) {
        assert_eq!(text[range.clone()], tokenizer.token_text(*id));
    }
}

#[test]
fn sentencepiece_against_its_rule() {
    let tokenizer =
        Tokenizer::from_gguf(&Gguf::open(&fixture("sentencepiece.gguf")).unwrap()).unwrap();
    for entry in json("sentencepiece.json")["texts"].as_array().unwrap() {
        let text = entry["text"].as_str().unwrap();
        let expected = ids(&entry["plain"]);
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
        // The vocabulary writes `▁` as a space.
        assert_decodes(&tokenizer, &expected, &text.replace('▁', " "));
    }
    assert!(tokenizer.add_bos());
    let whale = tokenizer.encode_with_bos("the whale", true).unwrap();
    assert_eq!(whale[0], 1);
    assert_eq!(tokenizer.decode(&whale, true), "the whale");
    assert_eq!(tokenizer.encode("<s>the", true).unwrap()[0], 1);
    assert!(tokenizer.encode("<s>the", false).unwrap()[0] != 1);
    assert_eq!(tokenizer.token_text(whale[1]), " the");
    assert_eq!(tokenizer.token_text(3 + 0x9f), "<0x9F>");
    assert_eq!(tokenizer.token_bytes(3 + 0x41), b"A");
    assert!(tokenizer.is_end(2));

    // A continuation keeps the space at its start.
    let mut stream = tokenizer.decode_stream(true).continuing();
    assert_eq!(stream.push(whale[1]), " the");
}

#[test]
fn metadata_that_do_not_make_a_tokenizer() {
    let assert_has = |builder: &Builder, parts: &[&str]| {
        let message = build_error(builder);
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    };
    let llama = Builder::llama;
    for key in [
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ] {
        assert_has(
            &llama().without(key),
            &["some.gguf: ", key, "this metadata key is missing"],
        );
    }
    assert_has(
        &llama()
            .without("tokenizer.ggml.model")
            .string("tokenizer.ggml.model", "bert"),
        &["tokenizer.ggml.model: the tokenizer \"bert\" is not supported (supported: gpt2, llama)"],
    );
    assert_has(
        &llama()
            .without("tokenizer.ggml.pre")
            .string("tokenizer.ggml.pre", "bloom"),
        &[
            "tokenizer.ggml.pre: the pre-tokenizer \"bloom\" is not supported (supported: default, gpt-2, phi-2,",
        ],
    );
    let tokens = |tokens: &[&str]| {
        llama()
            .without("tokenizer.ggml.tokens")
            .strings("tokenizer.ggml.tokens", tokens)
    };
    assert_has(
        &tokens(&[]),
        &["tokenizer.ggml.tokens: the vocabulary is empty"],
    );
    assert_has(
        &tokens(&["a", "b"]),
        &["tokenizer.ggml.token_type: 4 entries for 2 tokens"],
    );
    let merges = |merges: &[&str]| {
        llama()
            .without("tokenizer.ggml.merges")
            .strings("tokenizer.ggml.merges", merges)
    };
    assert_has(
        &merges(&["a b", "ab"]),
        &["tokenizer.ggml.merges: entry 1, \"ab\", is not two tokens"],
    );
    assert_has(&merges(&["a c"]), &["tokenizer.ggml.merges: "]);
    assert_has(&merges(&["b a"]), &["tokenizer.ggml.merges: "]);
    assert_has(
        &llama().u32("tokenizer.ggml.bos_token_id", 4),
        &["tokenizer.ggml.bos_token_id: 4 is not in the vocabulary of 4 tokens"],
    );
    assert_has(
        &llama()
            .without("tokenizer.ggml.model")
            .string("tokenizer.ggml.model", "llama"),
        &["tokenizer.ggml.scores: this metadata key is missing"],
    );
    let none = llama().u32("tokenizer.ggml.bos_token_id", u32::MAX);
    assert_eq!(from_builder(&none).unwrap().bos(), None);
}

#[test]
fn pre_tokenizers_by_name() {
    // With the merges of ` 1`, `12` and `a!`, what is split before the merges shows in the ids.
    let tokens = [
        "a", "!", "1", "2", "Ġ", "12", "Ġ1", "a!", "Ġa", "A", "'", "s", "'s", "S", "'S", "Ċ", "!Ċ",
        "<e>",
    ];
    let merges = ["1 2", "Ġ 1", "a !", "Ġ a", "' s", "' S", "! Ċ"];
    let encode = |pre: &str, text: &str| {
        let builder = Builder::default()
            .string("tokenizer.ggml.model", "gpt2")
            .string("tokenizer.ggml.pre", pre)
            .strings("tokenizer.ggml.tokens", &tokens)
            .strings("tokenizer.ggml.merges", &merges);
        let tokenizer = from_builder(&builder).unwrap();
        let ids = tokenizer.encode(text, false).unwrap();
        ids.iter()
            .map(|&id| tokens[id as usize])
            .collect::<Vec<_>>()
    };
    for pre in ["gpt-2", "default"] {
        assert_eq!(encode(pre, " 12 a!\n"), ["Ġ", "12", "Ġa", "!", "Ċ"]);
        assert_eq!(encode(pre, "a'S"), ["a", "'", "S"]);
    }
    assert_eq!(encode("smollm", " 12 a!"), ["Ġ", "1", "2", "Ġa", "!"]);
    for pre in ["llama-bpe", "qwen2"] {
        assert_eq!(encode(pre, "a'S!\n"), ["a", "'S", "!Ċ"]);
    }
    assert_eq!(encode("llama-bpe", " 12"), ["Ġ", "12"]);
    assert_eq!(encode("qwen2", " 12"), ["Ġ", "1", "2"]);
}

#[test]
fn directories_without_a_usable_tokenizer() {
    let directory = tempfile::tempdir().unwrap();
    let message = || {
        Tokenizer::from_huggingface(directory.path())
            .unwrap_err()
            .to_string()
    };
    let write = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).unwrap();
    };
    assert!(
        message().contains(
            "it has no tokenizer; a tokenizer.json is needed, or vocab.json and merges.txt"
        ),
        "{}",
        message()
    );
    write("tokenizer.model", "SentencePiece");
    assert!(
        message().contains("its tokenizer is there only as tokenizer.model, which cannot be read by itself; a tokenizer.json"),
        "{}",
        message()
    );
    write("merges.txt", "#version: 0.2\na b\n");
    assert!(message().contains("only as tokenizer.model"));
    for (vocab, expected) in [
        ("[]", "vocab.json: vocabulary: expected an object"),
        (
            r#"{"a": -1}"#,
            "vocab.json: token \"a\": -1 is not a token id",
        ),
        (
            r#"{"a": 0, "b": 1}"#,
            "merges.txt: merges: entry 0, \"a\" and \"b\": \"ab\" is not a token",
        ),
        (
            r#"{"a": 4000000000, "b": 0, "ab": 1}"#,
            "vocab: the largest id is 4000000000",
        ),
    ] {
        write("vocab.json", vocab);
        assert!(message().contains(expected), "{}", message());
    }
    write("vocab.json", r#"{"a": 0, "b": 1, "ab": 2}"#);
    assert!(Tokenizer::from_huggingface(directory.path()).is_ok());
    write("merges.txt", "a b\nab\n");
    assert!(
        message().contains("merges.txt: line 2: \"ab\" is not two tokens"),
        "{}",
        message()
    );
    write(
        "tokenizer_config.json",
        r#"{"tokenizer_class": "RobertaTokenizerFast"}"#,
    );
    assert!(
        message().contains(
            "tokenizer_class: \"RobertaTokenizer\" is not supported without a tokenizer.json"
        ),
        "{}",
        message()
    );
    std::fs::remove_file(directory.path().join("tokenizer_config.json")).unwrap();

    std::fs::write(directory.path().join("tokenizer.json"), "{\"model\": 3").unwrap();
    let message = Tokenizer::from_huggingface(directory.path())
        .unwrap_err()
        .to_string();
    assert!(message.contains("tokenizer.json: JSON: "), "{message}");
    let huge = r#"{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}"#;
    std::fs::write(directory.path().join("tokenizer.json"), huge).unwrap();
    let message = Tokenizer::from_huggingface(directory.path())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("vocab: the largest id is 4000000000 for 1 tokens"),
        "{message}"
    );
}

#[test]
fn other_decoders_are_those_of_the_library() {
    let directory = tempfile::tempdir().unwrap();
    let word_piece = r###"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "the": 1, "##re": 2, "sea": 3}}}"###;
    std::fs::write(directory.path().join("tokenizer.json"), word_piece).unwrap();
    let tokenizer = Tokenizer::from_huggingface(directory.path()).unwrap();
    let found = tokenizer.encode("the there sea", false).unwrap();
    assert_eq!(found, [1, 1, 2, 3]);
    assert_decodes(&tokenizer, &found, "the there sea");
    let mut stream = tokenizer.decode_stream(false);
    let pieces: Vec<String> = found.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(pieces, ["the", " the", "re", " sea"]);
    assert_eq!(stream.finish(), "");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_comes_back(text in "\\PC{0,40}|[ \n\t\ra-c0-9'!é\u{1f40b}]{0,60}") {
        for tokenizer in tiny_once() {
            let ids = tokenizer.encode(&text, false).unwrap();
            prop_assert!(ids.iter().all(|&id| !tokenizer.is_special(id)));
            assert_decodes(tokenizer, &ids, &text);
        }
    }

    #[test]
    fn any_ids_decode(ids in prop::collection::vec(0u32..310, 0..40)) {
        for tokenizer in tiny_once() {
            let text = tokenizer.decode(&ids, false);
            assert_decodes(tokenizer, &ids, &text);
        }
    }
}

fn tiny_once() -> &'static [Tokenizer; 2] {
    static TINY: std::sync::OnceLock<[Tokenizer; 2]> = std::sync::OnceLock::new();
    TINY.get_or_init(tiny)
}
