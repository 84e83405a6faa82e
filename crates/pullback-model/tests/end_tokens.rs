//! The tokens that end a text, and chat templates, in all the places where files keep them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::Path;

use common::{Builder, fixture};
use pullback_model::gguf::Gguf;
use pullback_model::{ChatTemplate, Message, ModelError, Tokenizer};

/// A directory with the tokenizer of three tokens `a`, `b`, `c`, of which `<end>` is a fourth and control, and these
/// files.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let tokenizer = r#"{"version": "1.0", "added_tokens": [{"id": 3, "content": "<end>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "<end>": 3}, "merges": []}}"#;
    std::fs::write(directory.path().join("tokenizer.json"), tokenizer).unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn ends(files: &[(&str, &str)]) -> Vec<u32> {
    let directory = directory(files);
    let tokenizer = Tokenizer::from_huggingface(directory.path()).unwrap();
    let ends = tokenizer.end_tokens().to_vec();
    for id in 0..5 {
        assert_eq!(tokenizer.is_end(id), ends.contains(&id));
    }
    ends
}

#[test]
fn end_tokens_of_a_directory_in_the_order_of_its_files() {
    let generation_one = ("generation_config.json", r#"{"eos_token_id": 1}"#);
    let generation_many = ("generation_config.json", r#"{"eos_token_id": [2, 0, 2]}"#);
    let config_one = ("config.json", r#"{"eos_token_id": 0}"#);
    let config_many = ("config.json", r#"{"eos_token_id": [0, 1]}"#);
    let settings = ("tokenizer_config.json", r#"{"eos_token": "<end>"}"#);
    let object = (
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "<end>"}}"#,
    );
    assert_eq!(ends(&[]), [0u32; 0]);
    assert_eq!(ends(&[generation_one]), [1]);
    assert_eq!(ends(&[generation_many]), [0, 2]);
    assert_eq!(ends(&[generation_one, config_many]), [1]);
    assert_eq!(ends(&[config_one]), [0]);
    assert_eq!(ends(&[config_many]), [0, 1]);
    assert_eq!(ends(&[settings]), [3]);
    assert_eq!(ends(&[object]), [3]);
    assert_eq!(
        ends(&[("special_tokens_map.json", r#"{"eos_token": "<end>"}"#)]),
        [3]
    );
    // The end of a text ends generation also where the settings name others.
    assert_eq!(ends(&[generation_many, config_one, settings]), [0, 2, 3]);
    assert_eq!(ends(&[config_one, settings]), [0, 3]);
    // No such token, by a negative number or one beyond the vocabulary.
    assert_eq!(
        ends(&[("config.json", r#"{"eos_token_id": -1}"#)]),
        [0u32; 0]
    );
    assert_eq!(
        ends(&[("config.json", r#"{"eos_token_id": 4}"#)]),
        [0u32; 0]
    );
    assert_eq!(
        ends(&[
            ("generation_config.json", r#"{"eos_token_id": null}"#),
            config_one
        ]),
        [0]
    );

    let directory = directory(&[config_many]);
    let tokenizer = Tokenizer::from_huggingface(directory.path()).unwrap();
    assert_eq!(tokenizer.eos(), Some(0));
}

#[test]
fn end_tokens_that_are_no_ids_are_refused() {
    for (name, json) in [
        ("generation_config.json", r#"{"eos_token_id": "<end>"}"#),
        ("generation_config.json", r#"{"eos_token_id": [0, 1.5]}"#),
        ("config.json", r#"{"eos_token_id": {"id": 3}}"#),
        ("config.json", r#"{"eos_token_id": 4294967296}"#),
    ] {
        let directory = directory(&[(name, json)]);
        let message = Tokenizer::from_huggingface(directory.path())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(&format!(
                "{name}: eos_token_id: expected a token id or a list of them, found "
            )),
            "{message}"
        );
    }
}

#[test]
fn end_tokens_of_a_gguf_file() {
    let ends = |builder: Builder| {
        let gguf = Gguf::from_bytes(Path::new("some.gguf"), builder.build()).unwrap();
        Tokenizer::from_gguf(&gguf).unwrap().end_tokens().to_vec()
    };
    assert_eq!(ends(Builder::llama()), [3]);
    assert_eq!(
        ends(
            Builder::llama()
                .u32("tokenizer.ggml.eot_token_id", 0)
                .u32("tokenizer.ggml.eom_token_id", 2)
        ),
        [0, 2, 3]
    );
    assert_eq!(
        ends(Builder::llama().without("tokenizer.ggml.eos_token_id")),
        [0u32; 0]
    );
}

fn template(files: &[(&str, &str)]) -> Result<Option<String>, ModelError> {
    let directory = directory(files);
    let tokenizer = Tokenizer::from_huggingface(directory.path()).unwrap();
    let template = ChatTemplate::from_huggingface(directory.path(), &tokenizer)?;
    Ok(template.map(|template| template.render(&[Message::user("hi")], false).unwrap()))
}

#[test]
fn chat_templates_in_all_places() {
    let text = |files: &[(&str, &str)]| template(files).unwrap().unwrap();
    let jinja = ("chat_template.jinja", "jinja {{ messages[0].content }}");
    let json = (
        "chat_template.json",
        r#"{"chat_template": "json {{ messages[0].role }}"}"#,
    );
    let settings = (
        "tokenizer_config.json",
        r#"{"chat_template": "settings{{ eos_token }}", "eos_token": "<end>"}"#,
    );
    assert_eq!(template(&[]).unwrap(), None);
    assert_eq!(text(&[jinja, json, settings]), "jinja hi");
    assert_eq!(text(&[json, settings]), "json user");
    assert_eq!(text(&[settings]), "settings<end>");
    assert_eq!(
        text(&[("chat_template.json", "{}"), settings]),
        "settings<end>"
    );
    let named = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#;
    let object = r#"{"chat_template": {"rag": "r", "default": "d"}}"#;
    let one = r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#;
    for name in ["chat_template.json", "tokenizer_config.json"] {
        assert_eq!(text(&[(name, named)]), "d");
        assert_eq!(text(&[(name, object)]), "d");
        assert_eq!(text(&[(name, one)]), "r");
        let refused = |json: &str| template(&[(name, json)]).unwrap_err().to_string();
        let several = r#"{"chat_template": {"rag": "r", "tool_use": "t"}}"#;
        assert_eq!(
            refused(several),
            format!(
                "chat template: {name}: none of the templates is called \"default\" (they are: rag, tool_use)"
            )
        );
        assert!(refused(r#"{"chat_template": 3}"#).contains(&format!(
            "{name}: chat_template is neither a text nor a list"
        )));
    }
    // The tiny model keeps its own in `tokenizer_config.json`.
    let tiny = fixture("tiny-llama");
    let tokenizer = Tokenizer::from_huggingface(&tiny).unwrap();
    assert!(
        ChatTemplate::from_huggingface(&tiny, &tokenizer)
            .unwrap()
            .is_some()
    );
}
