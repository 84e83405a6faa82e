//! A page on which all features of a dictionary can be searched, sorted and looked at.
//!
//! The data stand in the page in short form and become elements only when they come into sight, so that ten thousand
//! features scroll freely. The one script is hand-written and has no dependencies.

mod data;
mod encode;

use maud::{Markup, html};

pub use data::{BrowsedBand, BrowsedFeature, BrowsedPassage, FeatureBrowser};

use crate::number;
use crate::page::{DataBlock, Page};
use crate::plot::{Caption, Histogram, figure};
use crate::text::{flow, plain};

const SCRIPT: &str = include_str!("feature_browser/browser.js");
const STYLE: &str = include_str!("feature_browser/browser.css");

/// The whole page.
pub fn render(page: &FeatureBrowser) -> String {
    Page::new(&page.title)
        .subtitle(flow(&page.subtitle))
        .lead(browse(page))
        .section("all", "All features at once", densities(page))
        .section("how", "How this was made", method(page))
        .style(STYLE)
        .data(DataBlock::json("table-data", encode::table(page)))
        .data(DataBlock::json("token-data", encode::tokens(page)))
        .data(DataBlock::text("detail-data", encode::details(page)))
        .data(DataBlock::text("text-data", encode::text(page)))
        .script(SCRIPT)
        .foot(html! { "Written by pullback " (env!("CARGO_PKG_VERSION")) ". The page loads nothing and sends nothing." })
        .render()
}

fn browse(page: &FeatureBrowser) -> Markup {
    let mut class = "browse".to_owned();
    if page.has_logits {
        class += " with-logit";
    }
    if page.change.is_some() {
        class += " with-change";
    }
    let change = page.change.as_ref().map(|name| plain(name));
    html! {
        div.toolbar role="search" {
            input #search type="search" placeholder="token or feature number" aria-label="Search features by token or number" autocomplete="off" spellcheck="false";
            label { "in"
                select #where {
                    option value="both" selected { "peak or promoted tokens" }
                    option value="peaks" { "peak tokens" }
                    option value="promoted" { "promoted tokens" }
                    option value="context" { "all text of the examples" }
                }
            }
            label { input #dead type="checkbox"; "show features that are never active" }
            span #count aria-live="polite" {}
        }
        noscript { p { "The table and the features are drawn by the page's own script, which is switched off here." } }
        div class=(class) {
            div.list {
                div.heads role="row" {
                    (head("feature", "feature", "number"))
                    (head("density", "active on", "share of tokens on which the feature is active"))
                    (head("largest", "largest activation", "its largest activation on the text"))
                    @if page.has_logits {
                        (head("logit", "logit effect", "the largest change of a token's logit by a unit of activation, up or down"))
                    }
                    @if let Some(change) = &change { (head("change", "change", &format!("{change}; sorted by size"))) }
                    span { "fires on" @if page.has_logits { ", " span.up-text { "promotes" } } }
                }
                div #view tabindex="0" role="grid" aria-label="Features" {
                    div #spacer {}
                    p #none hidden { "No feature fits." }
                }
            }
            div #detail aria-live="off" {}
        }
    }
}

fn head(key: &str, name: &str, title: &str) -> Markup {
    html! { button type="button" data-sort=(key) title=(title) aria-sort="none" role="columnheader" { (name) } }
}

/// The densities of the whole dictionary.
fn densities(page: &FeatureBrowser) -> Markup {
    let live = page.densities.iter().filter(|density| **density > 0.0);
    let logs: Vec<f64> = live.map(|density| f64::from(*density).log10()).collect();
    let silent = page.densities.len() - logs.len();
    let histogram = Histogram {
        caption: Caption::new(
            "densities",
            "How often features are active",
            "Histogram of the logarithm of the share of tokens on which each feature is active.",
        ),
        x_name: "share of tokens, as a power of ten".to_owned(),
        y_name: "features".to_owned(),
        values: logs,
        ..Histogram::default()
    };
    html! {
        div.plots {
            (figure(&histogram.caption, histogram.draw(), html! {
                (number::count(silent as u64)) " of " (number::count(page.densities.len() as u64))
                " features are never active on this text and are not in the plot."
            }))
            div.beside {
                dl.facts {
                    @for (name, value) in &page.facts { dt { (plain(name)) } dd { (plain(value)) } }
                }
            }
        }
    }
}

fn method(page: &FeatureBrowser) -> Markup {
    html! {
        ul.caveats {
            @for note in &page.notes { li { (plain(note)) } }
        }
    }
}
