//! What the fuzz targets share: a directory in memory, and texts through a tokenizer.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use pullback_model::Tokenizer;

/// A directory of this process, in memory where the system offers it.
pub fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() {
            memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        let directory = root.join(format!("pullback-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for the inputs");
        directory
    })
}

/// Writes one file after the other from the parts of an input, which bytes 0xFF separate: no text holds them. Empty parts
/// are files that do not exist. Returns what is left.
pub fn write_parts<'a>(data: &'a [u8], names: &[&str]) -> &'a [u8] {
    let mut rest = data;
    for name in names {
        let (part, after) = match rest.iter().position(|&byte| byte == 0xff) {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => (rest, &[][..]),
        };
        rest = after;
        write_part(name, part);
    }
    rest
}

/// Writes a file, or takes it away if it is empty.
pub fn write_part(name: &str, part: &[u8]) {
    let path = directory().join(name);
    if part.is_empty() {
        let _ = std::fs::remove_file(path);
    } else {
        std::fs::write(path, part).expect("a file for the input");
    }
}

/// Encodes a text in all ways, and decodes the ids at once and one by one, which must give the same if `exact`.
pub fn use_tokenizer(tokenizer: &Tokenizer, text: &str, exact: bool) {
    for parse_special in [false, true] {
        let Ok(ids) = tokenizer.encode(text, parse_special) else {
            continue;
        };
        let offsets = tokenizer.encode_with_offsets(text, parse_special);
        let offsets = offsets.expect("what can be encoded can be encoded with its places");
        assert_eq!(offsets.len(), ids.len());
        decode(tokenizer, &ids, exact);
    }
    let ids: Vec<u32> = text.bytes().map(u32::from).collect();
    decode(tokenizer, &ids, exact);
    let _ = (
        tokenizer.token_id(text),
        tokenizer.end_tokens(),
        tokenizer.bos(),
    );
}

fn decode(tokenizer: &Tokenizer, ids: &[u32], exact: bool) {
    for skip in [false, true] {
        let mut stream = tokenizer.decode_stream(skip);
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        let whole = tokenizer.decode(ids, skip);
        assert!(text == whole || !exact, "{text:?} {whole:?}");
        for &id in ids {
            let _ = (tokenizer.token_text(id), tokenizer.is_special(id));
        }
    }
}
