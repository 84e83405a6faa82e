//! The page that shows what a learned change did to a model, feature by feature.
//!
//! Fill a [`ChangeReport`] and call [`render`]; [`render_explanation`] makes the page of one explanation alone. The page is written for two readers: a researcher who opens it without
//! having seen the run, and a student who has not met sparse dictionaries before.

mod cards;
mod data;
mod explanation;
mod lenient;
mod method;
mod plots;
mod units;

use maud::{Markup, html};

pub use data::{
    AdapterFacts, Answer, ChangeReport, CorpusFacts, Example, FeatureCard, HiddenUnit, ModelFacts,
    SaeFacts, UnitFeature, WordScore, most_frequent,
};

pub use explanation::{ChangeExplanation, LossFigures, render_explanation};

use crate::number::{self, NOT_AVAILABLE};
use crate::page::Page;
use crate::text::plain;

/// The whole page as HTML.
pub fn render(report: &ChangeReport) -> String {
    let title = if report.title.trim().is_empty() {
        "What changed in the model"
    } else {
        &report.title
    };
    Page::new(title)
        .subtitle(subtitle(report))
        .lead(html! { (summary(report)) (tiles(report)) (primer()) })
        .section("answers", "The same question, before and after", answers(report))
        .section("features", "What changed, feature by feature", cards::section(report))
        .section("adapter", "The adapter, unit by unit", units::section(report))
        .section("training", "Training", plots::training(report))
        .section("dictionary", "How faithful the dictionary is", plots::fidelity(report))
        .section("method", "Method", method::method(report))
        .section("again", "Time, and how to do it again", method::again(report))
        .section("caveats", "What not to conclude", method::caveats(report))
        .foot(html! {
            "Made by pullback " (env!("CARGO_PKG_VERSION")) ". This file stands alone: it loads nothing and runs no scripts."
        })
        .render()
}

/// A text, or that it is not there.
fn or_missing(text: &str) -> Markup {
    if text.trim().is_empty() {
        missing()
    } else {
        html! { (plain(text)) }
    }
}

fn missing() -> Markup {
    html! { span.missing { (NOT_AVAILABLE) } }
}

/// A figure that is kept on one line, or that it is not there.
fn figure_or_missing(value: f64, write: impl Fn(f64) -> String) -> Markup {
    if value.is_finite() {
        html! { span.num { (write(value)) } }
    } else {
        missing()
    }
}

fn count_or_missing(n: u64) -> Markup {
    if n == 0 {
        missing()
    } else {
        html! { span.num { (number::count(n)) } }
    }
}

fn subtitle(report: &ChangeReport) -> Markup {
    let model = &report.model;
    let mut parts: Vec<Markup> = Vec::new();
    if !model.name.trim().is_empty() {
        parts.push(html! { strong { (plain(&model.name)) } });
    }
    if model.parameters > 0 {
        parts.push(html! { (number::compact(model.parameters as f64)) " parameters" });
    }
    if !report.site.trim().is_empty() {
        parts.push(html! { code { (plain(&report.site)) } });
    }
    if report.sae.features > 0 {
        parts.push(html! { (number::count(report.sae.features as u64)) " features" });
    }
    if report.adapter.rank > 0 {
        parts.push(html! { "adapter of rank " (report.adapter.rank) });
    }
    parts.push(html! { "seed " (report.seed) });
    html! { @for (i, part) in parts.iter().enumerate() { @if i > 0 { " · " } (part) } }
}

/// What was done, in three sentences.
fn summary(report: &ChangeReport) -> Markup {
    let (sae, adapter) = (&report.sae, &report.adapter);
    let shown = report.features.len();
    html! {
        p.lead {
            "We read " (count_or_missing(report.corpus.tokens_harvested)) " tokens of "
            (or_missing(&report.corpus.name)) " through " (or_missing(&report.model.name))
            " and trained a sparse dictionary of " (count_or_missing(sae.features as u64))
            " features on what passes through " code { (or_missing(&report.site)) } ". "
            "Then, without the dictionary, we trained a small adapter of " (count_or_missing(adapter.rank as u64))
            " hidden units, placed right after that site, to answer in a new way: its loss on held-out pairs of question and answer went from "
            (figure_or_missing(adapter.loss_before, |v| number::fixed(v, 2))) " to "
            (figure_or_missing(adapter.loss_after, |v| number::fixed(v, 2))) " nats a token. "
            "Pulled back through the dictionary, the adapter becomes readable: "
            @if shown > 0 {
                "below are the " (shown) " features it changed most, with the text that makes each of them fire."
            } @else {
                "which features it reads, which it writes, and by how much each one changed."
            }
        }
    }
}

fn tiles(report: &ChangeReport) -> Markup {
    let (sae, adapter) = (&report.sae, &report.adapter);
    let three = |v: f64| number::fixed(v, 3);
    let two = |v: f64| number::fixed(v, 2);
    html! {
        dl.tiles {
            div.tile {
                dt { "Explained variance" }
                dd.value { (figure_or_missing(sae.explained_variance, three)) }
                dd.gloss {
                    "of the variance of held-out activations is reproduced"
                    @if sae.k > 0 { ", with " (sae.k) " features a token" }
                }
            }
            div.tile {
                dt { "Cross-entropy score" }
                dd.value { (figure_or_missing(sae.ce_score, three)) }
                dd.gloss { "of the model’s ability to predict survives when it sees only the dictionary’s version; 1 is all" }
            }
            div.tile {
                dt { "Adapter loss, held-out" }
                dd.value {
                    @if adapter.loss_before.is_finite() && adapter.loss_after.is_finite() {
                        span.num { (two(adapter.loss_before)) span.arrow { "→" } (two(adapter.loss_after)) }
                    } @else { (missing()) }
                }
                dd.gloss { (loss_change(adapter.loss_before, adapter.loss_after)) }
            }
            div.tile {
                dt { "Prediction against measurement" }
                dd.value {
                    @if report.agreement_spearman.is_finite() { "ρ = " }
                    (figure_or_missing(report.agreement_spearman, two))
                }
                dd.gloss { "Spearman’s rank correlation, over features; 1 is the same order" }
            }
        }
    }
}

fn loss_change(before: f64, after: f64) -> String {
    let share = (after - before) / before;
    if !share.is_finite() || before <= 0.0 {
        "nats a token, before and after training".to_owned()
    } else if share < 0.0 {
        format!(
            "nats a token; {} less after training",
            number::percent(-share)
        )
    } else {
        format!(
            "nats a token; {} more after training",
            number::percent(share)
        )
    }
}

/// The words a newcomer needs.
fn primer() -> Markup {
    html! {
        details.primer {
            summary { "New to this? Five words that the page uses" }
            dl.words {
                dt { "Residual stream" }
                dd {
                    "The list of numbers, one list a token, that each block of a language model reads and adds to. "
                    "A " em { "site" } " names a place in it: " code { "blocks.15.hook_resid_post" }
                    " is what leaves block 15 (counted from 0)."
                }
                dt { "Feature" }
                dd {
                    "A direction in the residual stream that often stands for something a person can name, such as "
                    "“words about ships”. Its " em { "activation" } " says how strongly it is present at a token; "
                    "its " em { "density" } " is the share of tokens where it is present at all."
                }
                dt { "Sparse dictionary (sparse autoencoder, SAE)" }
                dd {
                    "A large set of features, learned from data, such that each token’s numbers are close to a sum of only a few "
                    "of them. Reading which few is reading what the model is representing."
                }
                dt { "Adapter" }
                dd {
                    "A small trained part that changes the residual stream at one site while the model’s own weights stay as "
                    "they are. Each of its hidden units reads one direction and writes another."
                }
                dt { "Pullback" }
                dd {
                    "Rewriting the adapter in terms of features rather than raw numbers: which features each hidden unit reads, "
                    "and which it writes."
                }
            }
        }
    }
}

fn answers(report: &ChangeReport) -> Markup {
    let reply = |text: &str| {
        html! {
            @if text.trim().is_empty() { p.missing { "(empty answer)" } } @else { p dir="auto" { (plain(text.trim_end())) } }
        }
    };
    html! {
        @if report.answers.is_empty() { p { (missing()) } }
        @for answer in &report.answers {
            div.answer {
                p.prompt { span.who { "Prompt: " } (or_missing(&answer.prompt)) }
                div.pair {
                    div.reply { h4 { "Before" } (reply(&answer.before)) }
                    div.reply.after {
                        h4 { "After" @if answer.before == answer.after { " (the same)" } }
                        (reply(&answer.after))
                    }
                }
            }
        }
    }
}
