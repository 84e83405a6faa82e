//! A page on two dictionaries: what they share, what only one of them has.

use maud::{Markup, html};

use crate::number;
use crate::page::Page;
use crate::plot::{Caption, Histogram, figure};
use crate::text::{flow, plain};

/// Two dictionaries matched on the cosines of their decoder rows.
#[derive(Debug, Clone, Default)]
pub struct DictionaryComparison {
    /// The title of the page.
    pub title: String,
    /// The first dictionary.
    pub a: ComparedDictionary,
    /// The second.
    pub b: ComparedDictionary,
    /// The one-to-one matching: feature of the first, of the second, cosine; highest cosine first.
    pub pairs: Vec<(u32, u32, f32)>,
    /// Mean cosine of the pairs.
    pub mean_matched_cosine: f64,
    /// The cosine from which on a pair is shared.
    pub threshold: f32,
    /// Pairs that are.
    pub shared: usize,
    /// Remarks, one paragraph each.
    pub notes: Vec<String>,
}

/// One of the two.
#[derive(Debug, Clone, Default)]
pub struct ComparedDictionary {
    /// What it is called.
    pub name: String,
    /// Features.
    pub features: usize,
    /// Mean over its features of the largest cosine with one of the other.
    pub mean_max_cosine: f64,
    /// The nearest of the other dictionary for each of its features, with the cosine.
    pub nearest: Vec<(u32, f32)>,
    /// Its features in no shared pair.
    pub alone: Vec<u32>,
    /// Those of them that are as near to a feature of the other that was matched elsewhere.
    pub alone_but_near: usize,
}

/// Rows of a table.
const ROWS: usize = 40;

/// The whole page.
pub fn render(page: &DictionaryComparison) -> String {
    Page::new(&page.title)
        .subtitle(flow(&format!(
            "A: {}, {} features; B: {}, {} features",
            page.a.name,
            number::count(page.a.features as u64),
            page.b.name,
            number::count(page.b.features as u64)
        )))
        .lead(tiles(page))
        .section("cosines", "How near they come", plots(page))
        .section("pairs", "Matched pairs", pairs(page))
        .section("alone", "Lost and new features", alone(page))
        .section(
            "how",
            "How this was made",
            html! { ul.caveats { @for note in &page.notes { li { (plain(note)) } } } },
        )
        .foot(html! { "Written by pullback " (env!("CARGO_PKG_VERSION")) ". The page loads nothing and sends nothing." })
        .render()
}

fn tiles(page: &DictionaryComparison) -> Markup {
    let tile = |name: &str, value: String, gloss: String| {
        html! { div.tile { dt { (name) } dd.value.num { (value) } dd.gloss { (gloss) } } }
    };
    let count = |n: usize| number::count(n as u64);
    let near = |n: usize| {
        format!(
            "{} of them near a feature that was matched elsewhere",
            count(n)
        )
    };
    html! {
        dl.tiles {
            (tile("Shared", count(page.shared), format!(
                "pairs of cosine {} or more, of {}", number::fixed(f64::from(page.threshold), 2), count(page.pairs.len())
            )))
            (tile("Lost", count(page.a.alone.len()), format!("in A alone; {}", near(page.a.alone_but_near))))
            (tile("New", count(page.b.alone.len()), format!("in B alone; {}", near(page.b.alone_but_near))))
            (tile("Mean matched cosine", number::fixed(page.mean_matched_cosine, 3), format!(
                "MMCS {} from A to B, {} from B to A",
                number::fixed(page.a.mean_max_cosine, 3), number::fixed(page.b.mean_max_cosine, 3)
            )))
        }
    }
}

fn plots(page: &DictionaryComparison) -> Markup {
    let histogram = |id: &str, title: &str, description: &str, values: Vec<f64>| {
        let histogram = Histogram {
            caption: Caption::new(id, title, description),
            x_name: "cosine".to_owned(),
            y_name: "features".to_owned(),
            values,
            height: 240.0,
            ..Histogram::default()
        };
        figure(&histogram.caption, histogram.draw(), html! {})
    };
    let nearest = |side: &ComparedDictionary| -> Vec<f64> {
        side.nearest.iter().map(|(_, x)| f64::from(*x)).collect()
    };
    html! {
        div.plots {
            (histogram("matched", "Matched pairs", "Histogram of the cosines of matched pairs.",
                page.pairs.iter().map(|(_, _, x)| f64::from(*x)).collect()))
            (histogram("nearest-a", "Features of A: their nearest in B", "Histogram of each feature's largest cosine.", nearest(&page.a)))
            (histogram("nearest-b", "Features of B: their nearest in A", "Histogram of each feature's largest cosine.", nearest(&page.b)))
        }
    }
}

fn cosine(x: f32) -> String {
    number::fixed(f64::from(x), 3)
}

fn pairs(page: &DictionaryComparison) -> Markup {
    let first = page.pairs.iter().take(ROWS);
    let edge = page
        .shared
        .saturating_sub(ROWS / 2)
        .max(ROWS.min(page.pairs.len()));
    let around = page.pairs.iter().skip(edge).take(ROWS);
    html! {
        p { "Every feature is in one pair at most. The nearest pairs, and those further down, about the threshold where it is among them:" }
        div.two {
            div { h3 { "Nearest" } (pair_table(first)) }
            @if edge < page.pairs.len() { div { h3 { "From place " (number::count(edge as u64 + 1)) " on" } (pair_table(around)) } }
        }
    }
}

fn pair_table<'a>(pairs: impl Iterator<Item = &'a (u32, u32, f32)>) -> Markup {
    html! {
        table {
            thead { tr { th { "A" } th { "B" } th { "cosine" } } }
            tbody { @for (a, b, x) in pairs {
                tr { td.num data-name="A" { (a) } td.num data-name="B" { (b) } td.num data-name="cosine" { (cosine(*x)) } }
            } }
        }
    }
}

fn alone(page: &DictionaryComparison) -> Markup {
    let table = |side: &ComparedDictionary, own: &str, other: &str| {
        // The farthest first: those are the ones that the other has nothing like.
        let mut order: Vec<(u32, (u32, f32))> = side
            .alone
            .iter()
            .filter_map(|&feature| Some((feature, *side.nearest.get(feature as usize)?)))
            .collect();
        order.sort_by(|a, b| a.1.1.total_cmp(&b.1.1).then(a.0.cmp(&b.0)));
        html! {
            @if order.is_empty() { p { "None." } } @else {
                table {
                    thead { tr { th { (own) } th { "nearest in " (other) } th { "cosine" } } }
                    tbody { @for (feature, (nearest, x)) in order.iter().take(ROWS) {
                        tr { td.num data-name=(own) { (feature) } td.num data-name="nearest" { (nearest) } td.num data-name="cosine" { (cosine(*x)) } }
                    } }
                }
                @if order.len() > ROWS { p.aside { "and " (number::count((order.len() - ROWS) as u64)) " more, which come nearer" } }
            }
        }
    };
    html! {
        div.two {
            div { h3 { "Lost: in A alone" } (table(&page.a, "A", "B")) }
            div { h3 { "New: in B alone" } (table(&page.b, "B", "A")) }
        }
    }
}
