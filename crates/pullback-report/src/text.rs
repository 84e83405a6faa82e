//! How tokens and running text are written into a page.
//!
//! A token can be anything: a space, a line break, half a character, a mark that turns the direction of the text
//! around it. Whatever it is, the reader should see it and the page should stay whole. Markup characters are escaped
//! by the template; what this module adds is that white space and control characters become visible.

use maud::{Markup, html};

/// A stretch of text as it will be shown.
enum Piece {
    /// Plain text.
    Text(String),
    /// A stand-in for something that cannot be seen.
    Glyph(String),
}

/// What to do with ordinary spaces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spaces {
    Keep,
    Show,
}

/// A token by itself, with its spaces and line breaks visible: ` sea` is shown as `␣sea`.
pub fn token(text: &str) -> Markup {
    if text.is_empty() {
        return html! { span.ws { "(empty)" } };
    }
    html! { bdi { (markup(&pieces(text, Spaces::Show))) } }
}

/// The same as [`token`] without markup, for places that take plain text such as a plot's labels.
pub fn token_plain(text: &str) -> String {
    if text.is_empty() {
        return "(empty)".to_owned();
    }
    pieces(text, Spaces::Show)
        .into_iter()
        .map(|piece| match piece {
            Piece::Text(text) | Piece::Glyph(text) => text,
        })
        .collect()
}

/// Running text in which spaces stay spaces and line breaks become a small `↵`.
pub fn flow(text: &str) -> Markup {
    markup(&pieces(text, Spaces::Keep))
}

/// Text with its line breaks kept and everything that could disturb a page (control characters, direction
/// overrides, non-characters) replaced by the replacement character.
pub fn plain(text: &str) -> String {
    text.replace("\r\n", "\n")
        .chars()
        .map(|c| {
            if c != '\n' && c != '\t' && is_unseen(c) {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// The last `limit` characters, after an ellipsis where something was cut.
pub fn tail(text: &str, limit: usize) -> String {
    let n = text.chars().count();
    if n <= limit {
        text.to_owned()
    } else {
        let kept: String = text.chars().skip(n - limit).collect();
        format!("…{kept}")
    }
}

/// The first `limit` characters, before an ellipsis where something was cut.
pub fn head(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        text.to_owned()
    } else {
        let kept: String = text.chars().take(limit).collect();
        format!("{kept}…")
    }
}

/// A name that can stand in an `id` attribute or after `#`.
pub fn identifier(text: &str) -> String {
    let id: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    if id.is_empty() { "x".to_owned() } else { id }
}

fn markup(pieces: &[Piece]) -> Markup {
    html! {
        @for piece in pieces {
            @match piece {
                Piece::Text(text) => { (text) },
                Piece::Glyph(text) => { span.ws { (text) } },
            }
        }
    }
}

fn pieces(text: &str, spaces: Spaces) -> Vec<Piece> {
    let mut out = Vec::new();
    let mut plain = String::new();
    let mut chars = text.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        let mut glyph = match c {
            ' ' if spaces == Spaces::Show => "␣".to_owned(),
            '\r' if chars.peek() == Some(&'\n') => continue,
            '\n' => "↵".to_owned(),
            '\r' => "␍".to_owned(),
            '\t' => "⇥".to_owned(),
            '\u{a0}' => "⍽".to_owned(),
            // A mark that would sit on the letter before it gets a circle to sit on.
            '\u{300}'..='\u{36f}' if first => {
                plain.push('◌');
                plain.push(c);
                first = false;
                continue;
            }
            c if is_unseen(c) => format!("U+{:04X}", u32::from(c)),
            c => {
                plain.push(c);
                first = false;
                continue;
            }
        };
        first = false;
        // A long run of the same is counted, so that indentation does not fill a line.
        let mut run = 1_usize;
        while chars.peek() == Some(&c) {
            chars.next();
            run += 1;
        }
        if run > 3 {
            glyph = format!("{glyph}×{run}");
        } else {
            glyph = glyph.repeat(run);
        }
        if !plain.is_empty() {
            out.push(Piece::Text(std::mem::take(&mut plain)));
        }
        out.push(Piece::Glyph(glyph));
        if spaces == Spaces::Keep && matches!(c, '\n' | '\r' | '\t') {
            plain.push(' ');
        }
    }
    if !plain.is_empty() {
        out.push(Piece::Text(plain));
    }
    out
}

/// Characters with no picture of their own that could hide, reorder or break the text around them.
fn is_unseen(c: char) -> bool {
    let code = u32::from(c);
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fdd0}'..='\u{fdef}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
        || code & 0xfffe == 0xfffe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_visible() {
        assert_eq!(token_plain(" sea"), "␣sea");
        assert_eq!(token_plain("\n\n"), "↵↵");
        assert_eq!(token_plain("\r\n"), "↵");
        assert_eq!(token_plain("        x"), "␣×8x");
        assert_eq!(token_plain(""), "(empty)");
        assert_eq!(token_plain("a\u{0}b"), "aU+0000b");
        assert_eq!(token_plain("\u{301}"), "◌\u{301}");
        assert!(token("\u{202e}abc").0.contains("U+202E"));
        assert!(!token("\u{202e}abc").0.contains('\u{202e}'));
    }

    #[test]
    fn markup_is_escaped() {
        for text in [
            "<script>alert(1)</script>",
            "\"><img src=x onerror=y>",
            "a&b<",
        ] {
            for shown in [token(text).0, flow(text).0] {
                assert!(!shown.contains("<s") || shown.contains("<span"), "{shown}");
                assert!(!shown.contains("<img"), "{shown}");
                assert!(!shown.contains("<script"), "{shown}");
            }
        }
        assert_eq!(flow("a&b<c").0, "a&amp;b&lt;c");
    }

    #[test]
    fn plain_keeps_lines() {
        assert_eq!(plain("a\r\nb\tc\u{7}"), "a\nb\tc\u{fffd}");
    }

    #[test]
    fn cutting() {
        assert_eq!(tail("abcdef", 3), "…def");
        assert_eq!(head("日本語です", 2), "日本…");
        assert_eq!(head("ab", 2), "ab");
        assert_eq!(identifier("A b\"c"), "a-b-c");
    }
}
