//! What the tokenizers library takes for granted, and panics at where it is not so.

use std::path::Path;

use serde_json::Value;

use crate::error::ModelError;

/// Checks that the two parts of each merge and what they make are tokens. The tokenizers library takes this for granted in
/// part: it panics where what is made would be longer than every token.
pub(super) fn merges<'a>(
    path: &Path,
    field: &str,
    is_token: impl Fn(&str) -> bool,
    prefix: &str,
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), ModelError> {
    let mut made = String::new();
    for (index, (left, right)) in pairs.into_iter().enumerate() {
        let refuse = |problem: String| {
            Err(ModelError::malformed(
                path,
                field,
                format!("entry {index}, {left:?} and {right:?}: {problem}"),
            ))
        };
        if let Some(part) = [left, right].into_iter().find(|part| !is_token(part)) {
            return refuse(format!("{part:?} is not a token"));
        }
        // The library cuts off as many bytes, whatever they are.
        let Some(rest) = right.get(prefix.len()..) else {
            return refuse(format!("the second does not begin with {prefix:?}"));
        };
        made.clear();
        made.extend([left, rest]);
        if !is_token(&made) {
            return refuse(format!("{made:?} is not a token"));
        }
    }
    Ok(())
}

/// Checks a `tokenizer.json`. What has another form than expected here is left for the library to refuse.
pub(super) fn document(path: &Path, document: &Value) -> Result<(), ModelError> {
    decoder(path, &document["decoder"])?;
    let model = &document["model"];
    let (Some(vocab), Some(lines)) = (model["vocab"].as_object(), model["merges"].as_array())
    else {
        return Ok(());
    };
    let prefix = model["continuing_subword_prefix"].as_str();
    // Pairs, or in older files lines of two tokens with a space between.
    let pairs = lines.iter().filter_map(|merge| match merge {
        Value::String(line) => line
            .split_once(' ')
            .filter(|(_, right)| !right.contains(' ')),
        pair => Some((pair[0].as_str()?, pair[1].as_str()?)),
    });
    merges(
        path,
        "model.merges",
        |token| vocab.contains_key(token),
        prefix.unwrap_or_default(),
        pairs,
    )
}

/// Checks that no decoder strips characters at the end: the library strips those that it has stripped at the start again,
/// or ones before the start.
fn decoder(path: &Path, value: &Value) -> Result<(), ModelError> {
    let stop = value["stop"].as_u64().unwrap_or(0);
    if value["type"] == "Strip" && stop > 0 {
        return Err(ModelError::unsupported(
            path,
            "decoder",
            format!("Strip with {stop} characters at the end is not supported (supported: 0)"),
        ));
    }
    for step in value["decoders"].as_array().into_iter().flatten() {
        decoder(path, step)?;
    }
    Ok(())
}
