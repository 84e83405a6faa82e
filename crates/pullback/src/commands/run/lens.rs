//! `--lens`: what each layer would say.

use std::fmt::Write as _;

use pullback_model::analysis::{Lens, LensCell, LensOptions, logit_lens};
use pullback_model::{Intervention, Model, Site};
use pullback_report::Markup;
use pullback_report::plot::{Caption, Colours, HeatCell, HeatMap, HeatRow};
use pullback_report::text::token_plain;
use serde_json::{Value, json};

use super::{Inside, picture, token};
use crate::context::App;

/// Characters of a token in the table, and of such columns side by side.
const CELL: usize = 11;
const COLUMNS: usize = 8;

pub(super) fn run(
    app: &App,
    inside: &Inside,
    model: &Model,
    ids: &[u32],
    interventions: &[Intervention],
) -> anyhow::Result<()> {
    let position = token::position(inside.position, ids)?;
    let (named, text) = (inside.follow.as_deref(), &ids[..=position]);
    let follow = token::named_or_likeliest(model, named, text, interventions)?;
    let options = LensOptions {
        top: inside.lens_top.max(1),
        follow: Some(follow),
    };
    let lens = logit_lens(model, ids, interventions, options)?;
    let tokens = token::texts(model, ids);
    if let Some(path) = &inside.plot {
        let title = "What each layer would say next";
        let caption = Caption::new(
            "lens",
            title,
            "A row a layer and a column a position: the likeliest next token, coloured by its probability.",
        );
        let note = "Each cell: the likeliest next token, if the layer were the last.";
        let drawing = drawing(&lens, &tokens, &caption);
        picture::write(path, &caption, drawing, &tokens.concat(), note)?;
    }
    let result = json!({
        "ids": ids,
        "tokens": tokens,
        "lens": {
            "followed": token::value(model, follow),
            "layers": layers(&lens),
        },
    });
    app.print(&result, || {
        let mut text = grid(&lens, &tokens);
        text += &one_position(model, &lens, &tokens, position, follow);
        text
    })
}

fn layers(lens: &Lens) -> Vec<Value> {
    let layers = lens.sites.iter().zip(&lens.cells);
    layers
        .map(|(site, cells)| json!({ "site": site, "positions": cells }))
        .collect()
}

/// What a row is called: by its block, or for the stream before the first.
fn name(number: usize, site: &Site) -> String {
    match site.layer() {
        Some(layer) if number > 0 => format!("block {layer}"),
        _ => "embedding".to_owned(),
    }
}

fn best(cell: &LensCell) -> &str {
    cell.top.first().map_or("", |token| token.token.as_str())
}

/// The likeliest token of each layer and position, in strips as wide as a terminal.
fn grid(lens: &Lens, tokens: &[String]) -> String {
    let mut text = "the likeliest next token, if the layer were the last\n\n".to_owned();
    for first in (0..tokens.len()).step_by(COLUMNS) {
        let strip = first..tokens.len().min(first + COLUMNS);
        let mut line = |label: &str, cells: Vec<String>| {
            let cells: Vec<String> = cells.iter().map(|c| token::cell(c, CELL)).collect();
            let line = format!("{label:>10}  {}", cells.join(" "));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", line.trim_end());
        };
        line("position", strip.clone().map(|p| p.to_string()).collect());
        let quoted = |text: &str| format!("{text:?}");
        line("token", strip.clone().map(|p| quoted(&tokens[p])).collect());
        for (number, (site, cells)) in lens.sites.iter().zip(&lens.cells).enumerate() {
            let row = cells[strip.clone()].iter().map(|cell| quoted(best(cell)));
            line(&name(number, site), row.collect());
        }
        text.push('\n');
    }
    text
}

/// All that is known of one position.
fn one_position(
    model: &Model,
    lens: &Lens,
    tokens: &[String],
    position: usize,
    follow: u32,
) -> String {
    let mut text = format!(
        "after position {position} ({:?}), with {} (#{follow}) followed\n\n{:>10}  {:>7}  {:>11}  {:>8}  likeliest\n",
        tokens[position],
        token::quoted(model, follow),
        "",
        "rank",
        "probability",
        "logit"
    );
    for (number, (site, cells)) in lens.sites.iter().zip(&lens.cells).enumerate() {
        let cell = &cells[position];
        let top: Vec<String> = cell
            .top
            .iter()
            .map(|next| format!("{:?} {:.3}", next.token, next.probability))
            .collect();
        let (rank, probability, logit) = cell.followed.map_or((0, f32::NAN, f32::NAN), |f| {
            (f.rank, f.probability, f.logit)
        });
        let _ = writeln!(
            text,
            "{:>10}  {rank:>7}  {probability:>11.4}  {logit:>8.3}  {}",
            name(number, site),
            top.join(", ")
        );
    }
    text
}

fn drawing(lens: &Lens, tokens: &[String], caption: &Caption) -> Option<Markup> {
    let rows = lens.sites.iter().zip(&lens.cells).enumerate();
    let rows = rows.map(|(number, (site, cells))| HeatRow {
        label: name(number, site),
        cells: cells
            .iter()
            .map(|cell| HeatCell {
                value: cell.top.first().map_or(f64::NAN, |t| t.probability.into()),
                text: token_plain(best(cell)),
                detail: detail(cell),
            })
            .collect(),
    });
    HeatMap {
        caption: caption.clone(),
        columns: tokens.iter().map(|token| token_plain(token)).collect(),
        rows: rows.collect(),
        colours: Colours::From0To(1.0),
        value_name: "probability".to_owned(),
        cell_width: 84.0,
    }
    .draw()
}

fn detail(cell: &LensCell) -> String {
    let mut lines: Vec<String> = cell
        .top
        .iter()
        .map(|next| format!("{} {:.3}", token_plain(&next.token), next.probability))
        .collect();
    if let Some(followed) = cell.followed {
        lines.push(format!("the followed token: rank {}", followed.rank));
    }
    lines.join("\n")
}
