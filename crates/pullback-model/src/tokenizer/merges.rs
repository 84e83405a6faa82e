//! Merges that fit their vocabulary.

use std::path::Path;

use serde_json::Value;

use crate::error::ModelError;

/// Checks that the two parts of each merge and what they make are tokens. The tokenizers library takes this for granted in
/// part: it panics where what is made would be longer than every token.
pub(super) fn check<'a>(
    path: &Path,
    field: &str,
    is_token: impl Fn(&str) -> bool,
    prefix: &str,
    merges: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), ModelError> {
    let mut made = String::new();
    for (index, (left, right)) in merges.into_iter().enumerate() {
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

/// [`check`] of a `tokenizer.json`. What has another form than expected here is left for the library to refuse.
pub(super) fn check_json(path: &Path, document: &Value) -> Result<(), ModelError> {
    let model = &document["model"];
    let (Some(vocab), Some(merges)) = (model["vocab"].as_object(), model["merges"].as_array())
    else {
        return Ok(());
    };
    let prefix = model["continuing_subword_prefix"].as_str();
    // Pairs, or in older files lines of two tokens with a space between.
    let pairs = merges.iter().filter_map(|merge| match merge {
        Value::String(line) => line
            .split_once(' ')
            .filter(|(_, right)| !right.contains(' ')),
        pair => Some((pair[0].as_str()?, pair[1].as_str()?)),
    });
    check(
        path,
        "model.merges",
        |token| vocab.contains_key(token),
        prefix.unwrap_or_default(),
        pairs,
    )
}
