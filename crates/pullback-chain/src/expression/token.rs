//! Text to tokens.

use crate::error::ChainError;

/// A piece of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Number(f64),
    Word(String),
    Sign(char),
    End,
}

/// A piece and its first character.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) at: usize,
}

/// Splits an expression; the last token is [`Kind::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, ChainError> {
    let chars: Vec<char> = text.chars().collect();
    let mut out = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        let start = at;
        let kind = if c.is_whitespace() {
            at += 1;
            continue;
        } else if c.is_ascii_digit() || c == '.' {
            at = number_end(&chars, at);
            let word: String = chars[start..at].iter().collect();
            let number = word.parse().ok().filter(|x: &f64| x.is_finite());
            Kind::Number(
                number.ok_or_else(|| error(text, start, format!("`{word}` is not a number")))?,
            )
        } else if c.is_ascii_alphabetic() {
            while at < chars.len() && chars[at].is_ascii_alphanumeric() {
                at += 1;
            }
            Kind::Word(chars[start..at].iter().collect())
        } else if "+-*/^()".contains(c) {
            at += 1;
            Kind::Sign(c)
        } else {
            return Err(error(
                text,
                start,
                format!(
                    "`{c}` has no meaning here: expected a number, an operator, or one of + - * / ^ ( )"
                ),
            ));
        };
        out.push(Token { kind, at: start });
    }
    out.push(Token {
        kind: Kind::End,
        at: chars.len(),
    });
    Ok(out)
}

/// Digits, a point, digits, and an exponent if digits follow its letter.
fn number_end(chars: &[char], mut at: usize) -> usize {
    let digits = |mut at: usize| {
        while chars.get(at).is_some_and(char::is_ascii_digit) {
            at += 1;
        }
        at
    };
    at = digits(at);
    if chars.get(at) == Some(&'.') {
        at = digits(at + 1);
    }
    if matches!(chars.get(at), Some('e' | 'E')) {
        let mut after = at + 1;
        if matches!(chars.get(after), Some('+' | '-')) {
            after += 1;
        }
        if chars.get(after).is_some_and(char::is_ascii_digit) {
            at = digits(after);
        }
    }
    at
}

/// An error that points at a character.
pub(super) fn error(text: &str, at: usize, message: impl Into<String>) -> ChainError {
    // Line breaks and tabs would move the caret.
    let text = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    ChainError::Expression {
        message: message.into(),
        text: text.collect(),
        at,
    }
}
