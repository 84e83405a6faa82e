//! The page of one explanation: what a change of a model, of whatever kind, does to features and to the loss.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::cards;
use super::data::{ChangeReport, FeatureCard};
use super::{figure_or_missing, or_missing, plots, units};
use crate::number;
use crate::page::Page;
use crate::plot::{Bar, Bars, Caption, Tone, figure};
use crate::text::{flow, head, plain, token, token_plain};

/// What is explained, beside what a [`ChangeReport`] holds. Figures that are not finite are not shown.
#[derive(Debug, Clone, Default)]
pub struct ChangeExplanation {
    /// Title, model, site, dictionary, features, agreement and so on. Answers, training and corpus are not shown.
    pub report: ChangeReport,
    /// What was changed, in a sentence.
    pub change: String,
    /// The text that was measured on, in a few words.
    pub text: String,
    /// Where predictions come from, in a sentence; empty where there are none.
    pub prediction: String,
    /// What the change does to the loss, where it was measured.
    pub loss: Option<LossFigures>,
    /// The features whose prediction is furthest off: number, predicted, measured.
    pub apart: Vec<(usize, f32, f32)>,
    /// Share of the change outside the span of all decoder rows.
    pub residual_dictionary: f64,
    /// Share of the change that the change of all codes does not make.
    pub residual_codes: f64,
    /// The mean change as a few decoder rows that were added, and what that leaves.
    pub added: (Vec<(usize, f32)>, f64),
    /// The same of what was taken away.
    pub removed: (Vec<(usize, f32)>, f64),
    /// How the shown features feed each other through a nonlinear adapter: the largest entries, as from, to, by the weights
    /// alone, averaged over the text.
    pub paths: Vec<(usize, usize, f32, f32)>,
    /// A few words that features fire on, for those that have no card.
    pub words: BTreeMap<usize, Vec<String>>,
}

/// Losses in nats a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossFigures {
    /// Positions that were counted.
    pub positions: usize,
    /// Of the model as it was.
    pub before: f64,
    /// Of the model as it became.
    pub after: f64,
    /// Change when all shown features' changes are applied to the model as it was.
    pub together_alone: f64,
    /// Change when all shown features are restored in the model as it became.
    pub together_removed: f64,
    /// Change when the change of all codes is applied to the model as it was.
    pub codes_alone: f64,
    /// Change when all codes are restored in the model as it became.
    pub codes_removed: f64,
}

/// The whole page as HTML.
pub fn render_explanation(page: &ChangeExplanation) -> String {
    let report = &page.report;
    let mut html = Page::new(&report.title)
        .subtitle(subtitle(page))
        .lead(html! { (lead(page)) (tiles(page)) (super::primer()) })
        .section(
            "features",
            "What changed, feature by feature",
            features(page),
        )
        .section("loss", "What each feature does to the loss", loss(page));
    if !page.prediction.is_empty() {
        html = html.section(
            "apart",
            "Where prediction and measurement part",
            apart(page),
        );
    }
    html = html.section("stream", "The change as a sum of features", stream(page));
    if !report.hidden_units.is_empty() {
        html = html.section("adapter", "The adapter, unit by unit", adapter(page));
    }
    html.section("method", "How this was measured", method(report))
        .foot(html! {
            "Made by pullback " (env!("CARGO_PKG_VERSION")) ". This file stands alone: it loads nothing and runs no scripts."
        })
        .render()
}

fn subtitle(page: &ChangeExplanation) -> Markup {
    let report = &page.report;
    html! {
        strong { (or_missing(&report.model.name)) } " · " code { (or_missing(&report.site)) } " · "
        (number::count(report.sae.features as u64)) " features · measured on " (plain(&page.text))
    }
}

fn lead(page: &ChangeExplanation) -> Markup {
    let shown = page.report.features.len();
    html! {
        p.lead {
            (plain(&page.change)) " "
            "The same text was run through the model without and with the change, and what passes through the site was "
            "written in features of the dictionary both times. "
            @if shown > 0 { "Below are the " (shown) " features whose mean activation changed most." }
        }
    }
}

fn nats(change: f64) -> String {
    number::signed(change, 3)
}

fn tiles(page: &ChangeExplanation) -> Markup {
    let report = &page.report;
    let left = page.report.residual_fraction;
    html! {
        dl.tiles {
            div.tile {
                dt { "Loss" }
                dd.value {
                    @if let Some(loss) = &page.loss {
                        span.num { (number::fixed(loss.before, 3)) span.arrow { "→" } (number::fixed(loss.after, 3)) }
                    } @else { (super::missing()) }
                }
                dd.gloss { "nats a token on this text, without and with the change" }
            }
            div.tile {
                dt { "These features alone" }
                dd.value {
                    @if let Some(loss) = &page.loss { span.num { (nats(loss.together_alone)) } } @else { (super::missing()) }
                }
                dd.gloss {
                    "change of the loss when only their changes are made"
                    @if let Some(loss) = &page.loss { "; the whole change makes " (nats(loss.after - loss.before)) }
                }
            }
            div.tile {
                dt { "Outside these features" }
                dd.value { (figure_or_missing(left, number::percent)) }
                dd.gloss { "of the change of the stream is no sum of the shown features’ directions" }
            }
            div.tile {
                dt { "Prediction against measurement" }
                dd.value {
                    @if report.agreement_spearman.is_finite() { "ρ = " }
                    (figure_or_missing(report.agreement_spearman, |v| number::fixed(v, 2)))
                }
                dd.gloss { "Spearman’s rank correlation, over features; 1 is the same order" }
            }
        }
    }
}

fn features(page: &ChangeExplanation) -> Markup {
    html! {
        p { (cards::most(&page.report.changes)) (plain(&page.prediction)) }
        (plots::overview(&page.report, !page.prediction.is_empty()))
        (cards::list(&page.report))
    }
}

/// A feature with the words it fires on, and a link where it has a card.
fn named(page: &ChangeExplanation, feature: usize) -> Markup {
    let cards = &page.report.features;
    let card = cards.iter().find(|card| card.feature == feature);
    let words = match card {
        Some(card) => card.peak_words(3),
        None => page.words.get(&feature).cloned().unwrap_or_default(),
    };
    html! {
        @if card.is_some() { a.num href={ "#f" (feature) } { (feature) } } @else { span.num { (feature) } }
        " " span.tokens { @for word in &words { span.chip.plain { (token(&head(word, 24))) } } }
    }
}

fn loss(page: &ChangeExplanation) -> Markup {
    let Some(loss) = &page.loss else {
        return html! { p { "The loss was not measured." } };
    };
    let whole = loss.after - loss.before;
    let bars = |id: &str, title: &str, of: fn(&FeatureCard) -> f64| {
        let rows = page.report.features.iter().map(|card| {
            let value = of(card);
            let words = card.peak_words(2);
            let words: Vec<String> = words.iter().map(|word| token_plain(word)).collect();
            Bar {
                label: card.feature.to_string(),
                detail: words.join(", "),
                value,
                text: nats(value),
                href: format!("#f{}", card.feature),
                // A lower loss is what training is for.
                tone: Tone::of(value),
                ..Bar::default()
            }
        });
        let bars = Bars {
            caption: Caption::new(
                id,
                title,
                "A bar for each shown feature, as long as the change of the loss.",
            ),
            rows: rows.collect(),
            x_name: "change of the loss, nats a token".to_owned(),
        };
        figure(&bars.caption, bars.draw(), html! {})
    };
    html! {
        p {
            "On " (number::count(loss.positions as u64)) " positions the change takes the loss from " (number::fixed(loss.before, 3))
            " to " (number::fixed(loss.after, 3)) " nats a token (" (nats(whole)) "). A feature’s effect is measured twice. "
            em { "Alone" } ": only its change is made in the model as it was, everything else stays. "
            em { "Removed" } ": in the changed model it alone is put back to what it was. "
            "The two need not be opposite: features act together, and the layers above are not linear. "
            "All shown features together change the loss by " strong { (nats(loss.together_alone)) } " alone, and by "
            strong { (nats(loss.together_removed)) } " when they are put back."
        }
        p {
            "For comparison the change of " em { "all" } " features of the dictionary, which is all that it sees of the change: alone it changes "
            "the loss by " strong { (nats(loss.codes_alone)) } ", put back by " strong { (nats(loss.codes_removed)) }
            ". What the whole change does beyond that goes past the dictionary."
        }
        div.plots {
            (bars("effect-alone", "Applied alone", |card| card.effect_alone))
            (bars("effect-removed", "Put back alone", |card| card.effect_removed))
        }
    }
}

fn apart(page: &ChangeExplanation) -> Markup {
    html! {
        p {
            "Prediction and measurement are two figures for the same thing, and where they differ the prediction has left something out: "
            "features compete for being active, and the change is not small. Furthest off, by the distance of the two, are:"
        }
        @if page.apart.is_empty() { p { (super::missing()) } } @else {
            table {
                thead { tr { th { "Feature" } th { "predicted" } th { "measured" } th { "off by" } } }
                tbody { @for (feature, predicted, measured) in &page.apart {
                    tr {
                        td data-name="Feature" { (named(page, *feature)) }
                        td.num data-name="predicted" { (number::signed(f64::from(*predicted), 3)) }
                        td.num data-name="measured" { (number::signed(f64::from(*measured), 3)) }
                        td.num data-name="off by" { (number::signed(f64::from(measured - predicted), 3)) }
                    }
                } }
            }
        }
        @if !page.paths.is_empty() {
            h3 { "From feature to feature" }
            p {
                "The largest first-order effects among the shown features through the adapter: by how much a unit of the one moves the "
                "pre-activation of the other. By the weights alone every hidden unit lets all through; averaged over the text it lets "
                "through the mean slope of its activation function."
            }
            table {
                thead { tr { th { "from" } th { "to" } th { "by the weights" } th { "averaged" } } }
                tbody { @for (from, to, weights, averaged) in &page.paths {
                    tr {
                        td data-name="from" { (named(page, *from)) }
                        td data-name="to" { (named(page, *to)) }
                        td.num data-name="by the weights" { (number::signed(f64::from(*weights), 3)) }
                        td.num data-name="averaged" { (number::signed(f64::from(*averaged), 3)) }
                    }
                } }
            }
        }
    }
}

fn stream(page: &ChangeExplanation) -> Markup {
    let list = |terms: &[(usize, f32)]| {
        html! {
            @if terms.is_empty() { p { "None." } } @else {
                table {
                    thead { tr { th { "Feature" } th { "factor" } } }
                    tbody { @for (feature, factor) in terms {
                        tr {
                            td data-name="Feature" { (named(page, *feature)) }
                            td.num data-name="factor" { (number::significant(f64::from(*factor), 3)) }
                        }
                    } }
                }
            }
        }
    };
    html! {
        dl.facts {
            dt { "Outside the directions of the shown features" }
            dd { (figure_or_missing(page.report.residual_fraction, number::percent)) " of E‖Δ‖², the mean square of the change of the stream" }
            dt { "Outside the directions of all features" }
            dd { (figure_or_missing(page.residual_dictionary, number::percent)) }
            dt { "Not made by the change of the codes" }
            dd {
                (figure_or_missing(page.residual_codes, number::percent))
                ": what is left of the change after that of the dictionary’s own reconstruction is taken away; it is above 100 % where the "
                "codes change in other ways than the stream"
            }
        }
        p {
            "The mean of the change over all positions can be written as a sum of few decoder rows with factors above zero "
            "(non-negative matching pursuit). Features whose direction it adds:"
        }
        div.two {
            div { h3 { "Added" } (list(&page.added.0)) p.aside { (figure_or_missing(page.added.1, number::percent)) " of the mean change’s square is left" } }
            div { h3 { "Taken away" } (list(&page.removed.0)) p.aside { (figure_or_missing(page.removed.1, number::percent)) " is left" } }
        }
    }
}

fn adapter(page: &ChangeExplanation) -> Markup {
    units::section(&page.report)
}

fn method(report: &ChangeReport) -> Markup {
    html! {
        @for note in &report.method_notes { p { (flow(note)) } }
        @if !report.caveats.is_empty() {
            h3 { "What not to conclude" }
            ul.caveats { @for caveat in &report.caveats { li { (flow(caveat)) } } }
        }
        @if !report.commands.is_empty() {
            h3 { "To do it again" }
            @for command in &report.commands { pre { code { (plain(command)) } } }
        }
    }
}
