//! The section of the changed features: an overview in plots, then one card a feature.

use std::collections::HashSet;

use maud::{Markup, html};

use super::data::{ChangeReport, Example, FeatureCard};
use super::plots;
use crate::number;
use crate::text::{flow, head, plain, tail, token};

/// How many examples a card shows before the rest is folded away.
const OPEN_EXAMPLES: usize = 4;
/// How many tokens a card shows on each side.
const CHIPS: usize = 10;
/// How many characters of context an example shows before and after its token.
const CONTEXT: (usize, usize) = (140, 110);

pub(super) fn section(report: &ChangeReport) -> Markup {
    html! {
        p {
            "The change of a feature is how much its mean activation on held-out text differs with the adapter from without it. "
            (most(&report.changes))
            @if !report.features.is_empty() { "The " (report.features.len()) " that move most are listed here and shown as cards below." }
        }
        (plots::changes(report))
        (list(report))
    }
}

/// The cards, with how to read them.
pub(super) fn list(report: &ChangeReport) -> Markup {
    html! {
        @if !report.features.is_empty() {
            h3 { "How to read a card" }
            p.aside {
                "Top right: the measured change, up (▲) or down (▼). Chips marked + are tokens that the feature makes likelier as the "
                "next one, chips marked − those it makes less likely, both read from its decoder row alone, as if no layer followed: in the "
                "middle of a model that is a rough guide, and the words it fires on say more. The passages are those in the "
                "corpus where it fires most: the token it peaks on is " mark { "marked" } ", tokens around it are "
                span.h3 { "shaded" } " by how strongly it fires there too, and the figure on the right is the peak activation. "
                span.ws { "␣" } " is a space and " span.ws { "↵" } " a line break."
            }
            div.cards { @for (card, id) in report.features.iter().zip(ids(&report.features)) { (self::card(card, id.as_deref())) } }
        } @else {
            p { (super::missing()) }
        }
    }
}

/// How far most features move, in words.
pub(super) fn most(changes: &[f32]) -> String {
    let sizes = || changes.iter().map(|c| c.abs()).filter(|c| c.is_finite());
    let largest = sizes().fold(0.0_f32, f32::max);
    let n = sizes().count();
    if largest <= 0.0 {
        return String::new();
    }
    let small = sizes().filter(|c| *c < 0.1 * largest).count();
    format!(
        "Of {} features, {} move less than a tenth as far as the one that moves most. ",
        number::count(n as u64),
        number::percent(small as f64 / n as f64)
    )
}

/// Each card's address; a feature that is listed twice keeps the first.
fn ids(cards: &[FeatureCard]) -> Vec<Option<String>> {
    let mut seen = HashSet::new();
    cards
        .iter()
        .map(|card| {
            seen.insert(card.feature)
                .then(|| format!("f{}", card.feature))
        })
        .collect()
}

/// The tone of a change in words, sign and class.
pub(super) fn direction(change: f32) -> (&'static str, &'static str, &'static str) {
    if change > 0.0 {
        ("up", "▲", "up")
    } else if change < 0.0 {
        ("down", "▼", "down")
    } else {
        ("still", "■", "unchanged")
    }
}

fn card(card: &FeatureCard, id: Option<&str>) -> Markup {
    let (class, arrow, word) = direction(card.measured);
    let strongest = card
        .examples
        .iter()
        .flat_map(|e| e.context.iter().map(|t| t.1).chain([e.activation]))
        .filter(|a| a.is_finite())
        .fold(0.0_f32, f32::max);
    let (open, folded) = card
        .examples
        .split_at(card.examples.len().min(OPEN_EXAMPLES));
    html! {
        article.card id=[id] {
            div.card-head {
                span.rank { (card.rank) "." }
                h3 { "Feature " (card.feature) }
                @if card.measured.is_finite() {
                    span class={ "change num " (class) } title="measured change of the mean activation" aria-label={ (word) " " (number::signed(f64::from(card.measured), 3)) } {
                        (arrow) " " (number::signed(f64::from(card.measured), 3))
                    }
                } @else { span.change { (super::missing()) } }
            }
            div.card-facts {
                (fact("predicted", card.predicted, |v| number::signed(v, 3)))
                (fact("fires on", card.density, |v| format!("{} of tokens", number::percent(v))))
                @for (name, value) in [("read", card.reads), ("written", card.writes)] {
                    @if value.is_finite() { (fact(name, value, |v| number::significant(v, 3))) }
                }
                @for (name, effect) in [("alone", card.effect_alone), ("removed", card.effect_removed)] {
                    @if effect.is_finite() { (fact(name, effect as f32, |v| format!("{} nats", number::signed(v, 2)))) }
                }
            }
            @if !card.words.is_empty() { (in_words(card)) }
            (fires_on(&card.peak_words(5)))
            (chips("Promotes", "+", "up", &card.promoted))
            (chips("Suppresses", "−", "down", &card.suppressed))
            @if card.examples.is_empty() {
                p.aside { "Examples " (super::missing()) }
            } @else {
                (examples(open, strongest))
                @if !folded.is_empty() {
                    details {
                        summary { (folded.len()) " more " @if folded.len() == 1 { "example" } @else { "examples" } }
                        (examples(folded, strongest))
                    }
                }
            }
        }
    }
}

/// What a language model says of it, and how far that goes.
fn in_words(card: &FeatureCard) -> Markup {
    html! {
        p.words { "“" (plain(&card.words)) "”" }
        @for score in &card.scores {
            p.aside {
                (plain(&score.name)) ": " (super::figure_or_missing(score.own, |v| number::fixed(v, 2)))
                @if score.exchanged.is_finite() {
                    ", with another feature’s words " (number::fixed(score.exchanged, 2))
                }
            }
        }
    }
}

fn fact(name: &str, value: f32, write: impl Fn(f64) -> String) -> Markup {
    html! { span { (name) " " (super::figure_or_missing(f64::from(value), write)) } }
}

fn fires_on(words: &[String]) -> Markup {
    html! {
        @if !words.is_empty() {
            div.tokens-row {
                div.name { "Fires on" }
                div.tokens { @for word in words { span.chip.plain { (token(&head(word, 24))) } } }
            }
        }
    }
}

fn chips(name: &str, sign: &str, class: &str, tokens: &[(String, f32)]) -> Markup {
    html! {
        div.tokens-row {
            div.name { (name) }
            @if tokens.is_empty() { (super::missing()) } @else {
                ul.chips {
                    @for (text, value) in tokens.iter().take(CHIPS) {
                        li class={ "chip " (class) } title={ "logit " (number::signed(f64::from(*value), 3)) } {
                            (sign) " " (token(&head(text, 40)))
                        }
                    }
                }
            }
        }
    }
}

fn examples(examples: &[Example], strongest: f32) -> Markup {
    html! {
        ul.examples {
            @for example in examples {
                li {
                    div.text dir="auto" { (snippet(example, strongest)) }
                    div.act.num title="activation on the marked token" {
                        @if example.activation.is_finite() { (number::significant(f64::from(example.activation), 3)) } @else { "–" }
                    }
                    @if !example.source.trim().is_empty() { div.source { (head(&plain(&example.source), 80)) } }
                }
            }
        }
    }
}

/// An example's text: token by token where the activations are known, in three parts where not.
fn snippet(example: &Example, strongest: f32) -> Markup {
    let Some(peak) = peak_index(example) else {
        return html! {
            (flow(&tail(&example.before, CONTEXT.0))) (marked(&example.token)) (flow(&head(&example.after, CONTEXT.1)))
        };
    };
    // Whole tokens are kept on each side as far as the context reaches.
    let reach = |tokens: &mut dyn Iterator<Item = &(String, f32)>, limit: usize| {
        let mut used = 0;
        tokens
            .take_while(|t| {
                used += t.0.chars().count();
                used <= limit
            })
            .count()
    };
    let from = peak - reach(&mut example.context[..peak].iter().rev(), CONTEXT.0);
    let to = peak + 1 + reach(&mut example.context[peak + 1..].iter(), CONTEXT.1);
    html! {
        @if from > 0 { "…" }
        @for (i, (text, activation)) in example.context.iter().enumerate().take(to).skip(from) {
            @if i == peak { (marked(text)) } @else {
                @match shade(*activation, strongest) {
                    Some(class) => { (shaded(text, class)) },
                    None => { (flow(text)) },
                }
            }
        }
        @if to < example.context.len() { "…" }
    }
}

/// Where in the context the example's token stands: where the text before it ends, or else the strongest token of the
/// same text, or else the strongest of all.
fn peak_index(example: &Example) -> Option<usize> {
    let mut length = 0;
    for (i, (text, _)) in example.context.iter().enumerate() {
        if length == example.before.len() && *text == example.token {
            return Some(i);
        }
        length += text.len();
    }
    let strongest = |same: bool| {
        example
            .context
            .iter()
            .enumerate()
            .filter(|(_, (text, a))| a.is_finite() && (!same || *text == example.token))
            .max_by(|a, b| a.1.1.total_cmp(&b.1.1))
            .map(|(i, _)| i)
    };
    strongest(true).or_else(|| strongest(false))
}

/// The marked token; the space before a word stays outside the mark.
fn marked(text: &str) -> Markup {
    let trimmed = text.trim_start_matches(' ');
    if trimmed.trim().is_empty() {
        return html! { mark { (token(text)) } };
    }
    html! { @if trimmed.len() < text.len() { " " } mark { (flow(trimmed)) } }
}

/// A token around the marked one; the space before a word stays outside the shade.
fn shaded(text: &str, class: &str) -> Markup {
    let trimmed = text.trim_start_matches(' ');
    if trimmed.is_empty() {
        return html! { span class=(class) { (flow(text)) } };
    }
    html! { @if trimmed.len() < text.len() { " " } span class=(class) { (flow(trimmed)) } }
}

fn shade(activation: f32, strongest: f32) -> Option<&'static str> {
    let share = activation / strongest;
    if !share.is_finite() || share < 0.04 {
        return None;
    }
    Some(match share {
        s if s < 0.2 => "h1",
        s if s < 0.4 => "h2",
        s if s < 0.6 => "h3",
        s if s < 0.8 => "h4",
        _ => "h5",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(context: &[(&str, f32)]) -> Example {
        Example {
            before: "the ".to_owned(),
            token: "sea".to_owned(),
            after: " and sea".to_owned(),
            activation: 2.0,
            source: String::new(),
            context: context.iter().map(|(t, a)| ((*t).to_owned(), *a)).collect(),
        }
    }

    #[test]
    fn the_peak_is_found_by_place_then_by_strength() {
        assert_eq!(
            peak_index(&example(&[
                ("the ", 0.0),
                ("sea", 2.0),
                (" and ", 0.0),
                ("sea", 9.0)
            ])),
            Some(1)
        );
        assert_eq!(
            peak_index(&example(&[("th\u{fffd}", 0.0), ("sea", 2.0), ("x", 9.0)])),
            Some(1)
        );
        assert_eq!(peak_index(&example(&[("a", 0.0), ("b", 2.0)])), Some(1));
        assert_eq!(peak_index(&example(&[("a", f32::NAN)])), None);
        assert_eq!(peak_index(&example(&[])), None);
    }

    #[test]
    fn the_marked_token_stands_in_its_text() {
        assert_eq!(
            snippet(&example(&[]), 2.0).0,
            "the <mark>sea</mark> and sea"
        );
        assert_eq!(marked(" sea").0, " <mark>sea</mark>");
        assert!(marked("\n").0.contains('↵'));
    }

    #[test]
    fn shades() {
        assert_eq!(shade(1.0, 0.0), None);
        assert_eq!(shade(f32::NAN, 1.0), None);
        assert_eq!(shade(0.01, 1.0), None);
        assert_eq!(shade(1.0, 1.0), Some("h5"));
    }
}
