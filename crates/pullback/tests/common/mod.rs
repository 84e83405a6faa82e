//! What tests of the program from outside share.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// The program in a directory of its own, with a cache that holds nothing and clients that fetch nothing.
pub fn run(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("pullback"))
        .current_dir(dir)
        .env("PULLBACK_CACHE", dir.join("cache"))
        .env("PULLBACK_PIP", "false")
        .env("PULLBACK_NPM", "false")
        .env("HF_HOME", dir.join("huggingface"))
        .env("HF_HUB_OFFLINE", "1")
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
pub fn text(dir: &Path, arguments: &[&str]) -> String {
    let output = run(dir, arguments);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
pub fn parsed(dir: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&text(dir, arguments)).unwrap()
}

/// Fails with status 1 and one line that holds all the words.
#[track_caller]
pub fn fails(dir: &Path, arguments: &[&str], words: &[&str]) {
    let output = run(dir, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let line = errors.lines().last().unwrap_or_default();
    assert!(line.starts_with("error: "), "{errors}");
    for word in words {
        assert!(line.contains(word), "`{word}` is not in: {line}");
    }
}
