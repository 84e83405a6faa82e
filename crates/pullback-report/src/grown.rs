//! A page on models and dictionaries that were grown together: tables of figures and training curves.

use maud::{Markup, html};

use crate::page::Page;
use crate::plot::{LineChart, figure};
use crate::text::{flow, plain};

/// What the page shows.
#[derive(Debug, Clone, Default)]
pub struct GrownPage {
    /// Its title.
    pub title: String,
    /// One line under it.
    pub subtitle: String,
    /// What the names mean.
    pub lead: String,
    /// Tables, each a section.
    pub tables: Vec<FigureTable>,
    /// Curves of training.
    pub charts: Vec<LineChart>,
    /// Remarks, one paragraph each.
    pub notes: Vec<String>,
}

/// A table: names on the left, figures on the right.
#[derive(Debug, Clone, Default)]
pub struct FigureTable {
    /// Its heading.
    pub heading: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// How many of the columns are names.
    pub names: usize,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// The whole page.
pub fn render(page: &GrownPage) -> String {
    let mut out = Page::new(&page.title)
        .subtitle(flow(&page.subtitle))
        .lead(html! { p { (plain(&page.lead)) } });
    for (number, of_page) in page.tables.iter().enumerate() {
        out = out.section(&format!("table-{number}"), &of_page.heading, table(of_page));
    }
    out.section(
        "curves",
        "Training",
        html! { @for chart in &page.charts { (figure(&chart.caption, chart.draw(), html! {})) } },
    )
    .section(
        "how",
        "How this was made",
        html! { ul.caveats { @for note in &page.notes { li { (plain(note)) } } } },
    )
    .foot(html! { "Written by pullback " (env!("CARGO_PKG_VERSION")) ". The page loads nothing and sends nothing." })
    .render()
}

fn table(table: &FigureTable) -> Markup {
    let is_name = |column: usize| column < table.names;
    html! {
        table {
            thead { tr {
                @for (column, name) in table.columns.iter().enumerate() {
                    @if is_name(column) { th { (plain(name)) } } @else { th.num { (plain(name)) } }
                }
            } }
            tbody { @for row in &table.rows {
                tr { @for (column, cell) in row.iter().enumerate() {
                    @if is_name(column) { td { (plain(cell)) } } @else { td.num { (plain(cell)) } }
                } }
            } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FigureTable, GrownPage, render};
    use crate::plot::{Caption, LineChart, Series};

    #[test]
    fn figures_curves_and_remarks_are_there_and_text_is_text() {
        let page = GrownPage {
            title: "Grown".to_owned(),
            lead: "<b>original</b>".to_owned(),
            tables: vec![FigureTable {
                heading: "Figures".to_owned(),
                columns: vec!["Dictionary".to_owned(), "L0".to_owned()],
                names: 1,
                rows: vec![vec!["fresh".to_owned(), "16.00 ± 0.01".to_owned()]],
            }],
            charts: vec![LineChart {
                caption: Caption::new("a", "Loss of seed 0", ""),
                series: vec![Series::new("twin", &[(1.0, 2.0), (2.0, 1.0)])],
                ..LineChart::default()
            }],
            notes: vec!["a remark".to_owned()],
            ..GrownPage::default()
        };
        let text = render(&page);
        for part in [
            "<td class=\"num\">16.00 ± 0.01</td>",
            "<td>fresh</td>",
            "Loss of seed 0",
            "a remark",
            "&lt;b&gt;original",
        ] {
            assert!(text.contains(part), "{part}");
        }
        assert!(!text.contains("<script") && text.contains("<svg"));
    }
}
