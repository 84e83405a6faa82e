//! Tokens on the command line and in tables.

use anyhow::bail;
use pullback_model::{Intervention, Model};
use serde_json::{Value, json};

/// The token that is meant: a text that is one token, or `#ID`.
pub(super) fn parse(model: &Model, text: &str) -> anyhow::Result<u32> {
    let tokenizer = model.tokenizer();
    if let Some(id) = text.strip_prefix('#').and_then(|id| id.parse::<u32>().ok()) {
        let vocabulary = model.config().d_vocab;
        if id as usize >= vocabulary {
            bail!(
                "token #{id} does not exist: the model's are #0 to #{}",
                vocabulary - 1
            );
        }
        return Ok(id);
    }
    let ids = tokenizer.encode(text, true)?;
    if let [id] = ids[..] {
        return Ok(id);
    }
    let pieces: Vec<String> = ids
        .iter()
        .map(|&id| format!("{:?} (#{id})", tokenizer.token_text(id)))
        .collect();
    if pieces.is_empty() {
        bail!("a token is needed, and {text:?} holds none: give a text that is one token, or #ID");
    }
    bail!(
        "{text:?} is not one token, it splits into {}: give a text that is one, or #ID",
        pieces.join(" ")
    )
}

/// A token in quotes, as tables show it.
pub(super) fn quoted(model: &Model, id: u32) -> String {
    format!("{:?}", model.tokenizer().token_text(id))
}

/// A token as JSON has it.
pub(super) fn value(model: &Model, id: u32) -> Value {
    json!({ "id": id, "token": model.tokenizer().token_text(id) })
}

/// The texts of all tokens.
pub(super) fn texts(model: &Model, ids: &[u32]) -> Vec<String> {
    ids.iter()
        .map(|&id| model.tokenizer().token_text(id))
        .collect()
}

/// The token that is named, or else the likeliest after a text.
pub(super) fn named_or_likeliest(
    model: &Model,
    named: Option<&str>,
    ids: &[u32],
    interventions: &[Intervention],
) -> anyhow::Result<u32> {
    if let Some(text) = named {
        return parse(model, text);
    }
    let logits = model.next_logits(ids, interventions)?;
    match model.rank_next(&logits, 1).first() {
        Some(likeliest) => Ok(likeliest.id),
        None => bail!("the model makes no logits"),
    }
}

/// A text cut or filled up to so many characters.
pub(super) fn cell(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return format!("{text:<width$}");
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// The position that is looked at.
pub(super) fn position(wanted: Option<usize>, ids: &[u32]) -> anyhow::Result<usize> {
    let last = ids.len().saturating_sub(1);
    match wanted {
        Some(position) if position > last => {
            bail!("--position is {position}, the text's positions are 0 to {last}")
        }
        _ => Ok(wanted.unwrap_or(last)),
    }
}
