//! Pages on quantum chains: the card of an automaton, and a run.

use maud::{Markup, html};

use crate::number;
use crate::page::Page;
use crate::plot::{Caption, Field, LineChart, Series, figure};
use crate::text::{flow, plain};

/// A figure with its name and what it means.
#[derive(Debug, Clone, Default)]
pub struct Tile {
    /// Its name.
    pub name: String,
    /// The figure, written.
    pub value: String,
    /// What it means.
    pub gloss: String,
}

impl Tile {
    /// From its three parts.
    pub fn new(name: &str, value: impl Into<String>, gloss: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            value: value.into(),
            gloss: gloss.into(),
        }
    }
}

/// A table with a heading.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Its heading.
    pub heading: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows; the first cell of each is text, the others are figures.
    pub rows: Vec<Vec<String>>,
}

/// Curves over time that share a plot.
#[derive(Debug, Clone, Default)]
pub struct Curves {
    /// Title and description.
    pub caption: Caption,
    /// The horizontal axis.
    pub x_name: String,
    /// The vertical axis.
    pub y_name: String,
    /// One curve or two.
    pub series: Vec<Series>,
}

/// A page on a chain.
#[derive(Debug, Clone, Default)]
pub struct ChainPage {
    /// The title.
    pub title: String,
    /// The line under it.
    pub subtitle: String,
    /// The figures above everything.
    pub tiles: Vec<Tile>,
    /// Space-time pictures.
    pub fields: Vec<Field>,
    /// Curves.
    pub curves: Vec<Curves>,
    /// Tables.
    pub tables: Vec<Table>,
    /// Remarks, one paragraph each.
    pub notes: Vec<String>,
}

/// The whole page.
pub fn render(page: &ChainPage) -> String {
    let mut out = Page::new(&page.title)
        .subtitle(flow(&page.subtitle))
        .lead(tiles(&page.tiles));
    if !page.fields.is_empty() {
        out = out.section("space-time", "Space and time", html! {
            div.plots { @for field in &page.fields { (figure(&field.caption, field.draw(), html! {})) } }
        });
    }
    if !page.curves.is_empty() {
        out = out.section("curves", "Curves", html! {
            div.plots { @for curves in &page.curves { (figure(&curves.caption, curves.chart().draw(), html! {})) } }
        });
    }
    for table in &page.tables {
        out = out.section(&table.heading, &table.heading, rows(table));
    }
    out.section(
        "how",
        "How this was made",
        html! { ul.caveats { @for note in &page.notes { li { (plain(note)) } } } },
    )
    .foot(html! { "Written by pullback " (env!("CARGO_PKG_VERSION")) ". The page loads nothing and sends nothing." })
    .render()
}

impl Curves {
    fn chart(&self) -> LineChart {
        LineChart {
            caption: self.caption.clone(),
            x_name: self.x_name.clone(),
            y_name: self.y_name.clone(),
            series: self.series.clone(),
            ..LineChart::default()
        }
    }
}

fn tiles(tiles: &[Tile]) -> Markup {
    html! {
        dl.tiles {
            @for tile in tiles {
                div.tile { dt { (tile.name) } dd.value.num { (tile.value) } dd.gloss { (plain(&tile.gloss)) } }
            }
        }
    }
}

fn rows(table: &Table) -> Markup {
    html! {
        @if table.rows.is_empty() { p { "None." } } @else {
            table {
                thead { tr { @for column in &table.columns { th { (column) } } } }
                tbody { @for row in &table.rows {
                    tr { @for (i, cell) in row.iter().enumerate() {
                        @if i == 0 { td { (plain(cell)) } } @else {
                            td.num data-name=(table.columns.get(i).map_or("", String::as_str)) { (plain(cell)) }
                        }
                    } }
                } }
            }
        }
    }
}

/// A figure as a tile shows it.
pub fn tile_figure(value: f64) -> String {
    if value == value.round() && value.abs() < 1e6 {
        number::fixed(value, 0)
    } else {
        number::significant(value, 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::Colours;

    #[test]
    fn a_page_has_all_its_parts_and_escapes_text() {
        let page = ChainPage {
            title: "A <chain>".to_owned(),
            subtitle: "two & two".to_owned(),
            tiles: vec![Tile::new("Index", tile_figure(1.0), "bits <b>")],
            fields: vec![Field {
                caption: Caption::new("f", "Weights", "Where it is."),
                rows: vec![vec![0.0, 1.0], vec![1.0, 0.5]],
                times: (0.0, 1.0),
                time_name: "step".to_owned(),
                first_place: 0,
                place_name: "site".to_owned(),
                colours: Colours::From0To(1.0),
                value_name: "weight".to_owned(),
                lines: Vec::new(),
            }],
            curves: vec![Curves {
                caption: Caption::new("c", "Energies", "Over momentum."),
                x_name: "k".to_owned(),
                y_name: "ε".to_owned(),
                series: vec![Series::new("ε", &[(0.0, 1.0), (1.0, 2.0)])],
            }],
            tables: vec![Table {
                heading: "Charges".to_owned(),
                columns: vec!["charge".to_owned(), "range".to_owned()],
                rows: vec![vec!["Z<I>".to_owned(), "1".to_owned()]],
            }],
            notes: vec!["A remark.".to_owned()],
        };
        let out = render(&page);
        for part in [
            "Space and time",
            "Curves",
            "Charges",
            "A remark.",
            "field series-a",
        ] {
            assert!(out.contains(part), "{part}");
        }
        assert!(!out.contains("<chain>") && !out.contains("Z<I>"));
        assert_eq!(tile_figure(1.0), "1");
        assert_eq!(tile_figure(1.58496), "1.585");
    }
}
