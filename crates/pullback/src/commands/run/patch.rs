//! `--patch`: which activations of the prompt's run bring its answer back to another prompt.

use std::fmt::Write as _;

use anyhow::bail;
use pullback_model::analysis::{PatchGrid, Patcher};
use pullback_model::{Intervention, Model};
use pullback_report::Markup;
use pullback_report::number::fixed;
use pullback_report::plot::{Caption, Colours, HeatCell, HeatMap, HeatRow};
use pullback_report::text::token_plain;
use serde_json::json;

use super::{Inside, picture, token};
use crate::context::App;

/// Characters of a column of the table, and of such columns side by side.
const CELL: usize = 9;
const COLUMNS: usize = 9;

/// Everything that is shown.
struct Found<'a> {
    patcher: &'a Patcher<'a>,
    grid: PatchGrid,
    /// The share of the difference that each patch brings back.
    shares: Vec<Vec<f64>>,
    /// What stands above the columns: the clean token or the head, and the corrupted token where it is another.
    columns: Vec<(String, String)>,
}

pub(super) fn run(
    app: &App,
    inside: &Inside,
    model: &Model,
    [clean, corrupted]: [&[u32]; 2],
    interventions: &[Intervention],
) -> anyhow::Result<()> {
    let token_of = |given: &Option<String>, ids: &[u32]| {
        token::named_or_likeliest(model, given.as_deref(), ids, interventions)
    };
    let answer = token_of(&inside.answer, clean)?;
    let other = token_of(&inside.versus, corrupted)?;
    let place = inside.patch_place;
    let quoted = |id| token::quoted(model, id);
    if answer == other {
        bail!(
            "the answer is {} to both prompts: name two tokens to compare with --answer and --versus",
            quoted(answer)
        );
    }
    let texts = [clean, corrupted];
    let patcher = Patcher::new(model, texts, place, [answer, other], interventions)?;
    if patcher.normalised(0.0).is_none() {
        bail!(
            "the difference of {} and {} is {} after both prompts: there is nothing to bring back",
            quoted(answer),
            quoted(other),
            patcher.clean_metric()
        );
    }
    let stage = app
        .control
        .stage("patching", model.config().n_layers as u64, "blocks");
    let grid = patcher.grid(|done, _| {
        stage.set(done as u64);
        !app.control.is_interrupted()
    })?;
    stage.set(model.config().n_layers as u64);
    stage.finish();
    let share = |&metric: &f64| patcher.normalised(metric).unwrap_or(f64::NAN);
    let shares: Vec<Vec<f64>> = grid
        .metrics
        .iter()
        .map(|row| row.iter().map(share).collect())
        .collect();
    let texts = |ids: &[u32]| -> Vec<String> {
        token::texts(model, ids)
            .iter()
            .map(|text| token_plain(text))
            .collect()
    };
    let columns = if place.by_head() {
        let heads = (0..patcher.width()).map(|head| format!("head {head}"));
        heads.map(|head| (head, String::new())).collect()
    } else {
        let pairs = texts(clean).into_iter().zip(texts(corrupted));
        pairs
            .map(|(a, b)| if a == b { (a, String::new()) } else { (a, b) })
            .collect()
    };
    let found = Found {
        patcher: &patcher,
        grid,
        shares,
        columns,
    };
    let about = format!(
        "logit of {} minus that of {}",
        quoted(answer),
        quoted(other)
    );
    if let Some(path) = &inside.plot {
        let title = format!("Patching {place} from the clean run");
        let caption = Caption::new(
            "patching",
            &title,
            "A row a block and a column a position or head: the share of the difference that the patch brings back.",
        );
        let note = format!(
            "{about}: {} clean (1), {} corrupted (0).",
            fixed(patcher.clean_metric(), 3),
            fixed(patcher.corrupted_metric(), 3)
        );
        let prompts = [clean, corrupted].map(|ids| token::texts(model, ids).concat());
        let prompts = format!("clean: {}; corrupted: {}", prompts[0], prompts[1]);
        picture::write(path, &caption, found.drawing(&caption), &prompts, &note)?;
    }
    let side = |ids: &[u32], difference: f64| {
        let tokens = token::texts(model, ids);
        json!({ "ids": ids, "tokens": tokens, "difference": difference })
    };
    let result = json!({
        "patching": {
            "place": place,
            "by": if place.by_head() { "head" } else { "position" },
            "answer": token::value(model, answer),
            "versus": token::value(model, other),
            "clean": side(clean, patcher.clean_metric()),
            "corrupted": side(corrupted, patcher.corrupted_metric()),
            "difference": found.grid.metrics,
            "normalised": found.shares,
        },
    });
    app.print(&result, || {
        format!(
            "{about}: {:+.4} clean, {:+.4} corrupted\n\
             {place} of the clean run put into the corrupted one: the share of the difference that it brings back\n\n{}",
            patcher.clean_metric(),
            patcher.corrupted_metric(),
            found.table()
        )
    })
}

impl Found<'_> {
    /// Numbers with a shade each, in strips as wide as a terminal.
    fn table(&self) -> String {
        let mut text = String::new();
        let count = self.patcher.width();
        for first in (0..count).step_by(COLUMNS) {
            let strip = first..count.min(first + COLUMNS);
            let mut line = |label: &str, cells: Vec<String>| {
                let line = format!("{label:>10}  {}", cells.join(" "));
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{}", line.trim_end());
            };
            if !self.grid.place.by_head() {
                line(
                    "position",
                    strip.clone().map(|p| format!("{p:<CELL$}")).collect(),
                );
            }
            let columns = &self.columns[strip.clone()];
            let cut = |text: &String| token::cell(text, CELL);
            let label = if self.grid.place.by_head() {
                ""
            } else {
                "clean"
            };
            line(label, columns.iter().map(|(clean, _)| cut(clean)).collect());
            if columns.iter().any(|(_, corrupted)| !corrupted.is_empty()) {
                let corrupted = columns.iter().map(|(_, corrupted)| cut(corrupted));
                line("corrupted", corrupted.collect());
            }
            for (layer, shares) in self.shares.iter().enumerate() {
                let cells = shares[strip.clone()].iter();
                let cells = cells.map(|&share| {
                    let shade = shade(share);
                    token::cell(&format!("{:>5} {shade}{shade}", fixed(share, 2)), CELL)
                });
                line(&format!("block {layer}"), cells.collect());
            }
            text.push('\n');
        }
        text
    }

    fn drawing(&self, caption: &Caption) -> Option<Markup> {
        let all = || {
            self.shares
                .iter()
                .flatten()
                .filter(|share| share.is_finite())
        };
        // One is the whole effect; a patch may have more, and all may have little.
        let full = all().fold(1.0_f64, |most, share| most.max(share.abs()));
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|(clean, corrupted)| match corrupted.as_str() {
                "" => clean.clone(),
                corrupted => format!("{clean} / {corrupted}"),
            })
            .collect();
        let longest = columns.iter().map(|column| column.chars().count()).max();
        let longest = longest.unwrap_or(0);
        let metrics = &self.grid.metrics;
        let rows = self.shares.iter().zip(metrics).enumerate();
        let rows = rows.map(|(layer, (shares, metrics))| HeatRow {
            label: format!("block {layer}"),
            cells: shares
                .iter()
                .zip(metrics)
                .map(|(&value, metric)| HeatCell {
                    value,
                    text: fixed(value, 2),
                    detail: format!("share {value:.4}, difference of the logits {metric:.4}"),
                })
                .collect(),
        });
        HeatMap {
            caption: caption.clone(),
            columns,
            rows: rows.collect(),
            colours: Colours::AboutZero(full),
            value_name: "share brought back".to_owned(),
            cell_width: (8.0 + 7.2 * longest as f64).clamp(58.0, 130.0),
        }
        .draw()
    }
}

/// How dark a share is.
fn shade(share: f64) -> char {
    match share {
        share if share < -0.125 => '-',
        share if share < 0.125 => ' ',
        share if share < 0.375 => '░',
        share if share < 0.625 => '▒',
        share if share < 0.875 => '▓',
        _ => '█',
    }
}
