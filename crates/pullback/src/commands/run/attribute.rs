//! `--attribute`: what each part of the model gives to a logit.

use std::fmt::Write as _;

use pullback_model::analysis::{Attribution, Contribution, Part, attribute_logit};
use pullback_model::{Intervention, Model};
use pullback_report::Markup;
use pullback_report::number::signed;
use pullback_report::plot::{Bar, Bars, Caption, Tone};
use serde_json::json;

use super::{Inside, picture, token};
use crate::context::App;

/// Characters of the longest bar of the table, and rows of the picture.
const BAR: f64 = 24.0;
const PICTURE_ROWS: usize = 30;

pub(super) fn run(
    app: &App,
    inside: &Inside,
    model: &Model,
    ids: &[u32],
    interventions: &[Intervention],
    wanted: Option<&str>,
    lines: usize,
) -> anyhow::Result<()> {
    let position = token::position(inside.position, ids)?;
    let text = &ids[..=position];
    let target = token::named_or_likeliest(model, wanted, text, interventions)?;
    let versus = inside.versus.as_deref();
    let versus = versus.map(|text| token::parse(model, text)).transpose()?;
    let found = attribute_logit(model, ids, position, target, versus, interventions)?;
    let tokens = token::texts(model, ids);
    let about = match versus {
        Some(other) => format!(
            "logit of {} minus that of {}",
            token::quoted(model, target),
            token::quoted(model, other)
        ),
        None => format!("logit of {}", token::quoted(model, target)),
    };
    if let Some(path) = &inside.plot {
        let title = format!("What gives the {about}");
        let caption = Caption::new(
            "attribution",
            &title,
            "A bar a part of the model, the largest contributions first.",
        );
        let note = format!(
            "After position {position}; {} in all, {} from parts not shown.",
            signed(found.logit, 4),
            signed(rest(&found, PICTURE_ROWS), 3)
        );
        let drawing = drawing(&found, &caption);
        picture::write(path, &caption, drawing, &tokens.concat(), &note)?;
    }
    let result = json!({
        "ids": ids,
        "tokens": tokens,
        "attribution": {
            "position": position,
            "token": token::value(model, target),
            "versus": versus.map(|id| token::value(model, id)),
            "logit": found.logit,
            "parts": found.contributions,
            "remainder": found.remainder,
        },
    });
    app.print(&result, || {
        let head = format!(
            "{about} after position {position} ({:?})\n\n",
            tokens[position]
        );
        head + &table(&found, lines)
    })
}

/// The largest contributions, by size.
fn largest(found: &Attribution) -> Vec<Contribution> {
    let mut sorted = found.contributions.clone();
    // Stable: equal ones stay in the order of the computation.
    sorted.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()));
    sorted
}

/// What all but so many of the largest give together.
fn rest(found: &Attribution, shown: usize) -> f64 {
    largest(found).iter().skip(shown).map(|c| c.value).sum()
}

fn table(found: &Attribution, lines: usize) -> String {
    let sorted = largest(found);
    let most = sorted.first().map_or(0.0, |c| c.value.abs());
    let shown = &sorted[..lines.min(sorted.len())];
    let mut text = String::new();
    let mut line = |name: &str, value: f64, bar: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{}",
            format!("{name:>24}  {value:>+10.4}  {bar}").trim_end()
        );
    };
    for contribution in shown {
        let share = if most > 0.0 {
            contribution.value.abs() / most
        } else {
            0.0
        };
        let mark = if contribution.value < 0.0 {
            "░"
        } else {
            "█"
        };
        let bar = mark.repeat((share * BAR).round() as usize);
        line(&contribution.part.to_string(), contribution.value, &bar);
    }
    if shown.len() < sorted.len() {
        let name = format!("{} other parts", sorted.len() - shown.len());
        line(&name, rest(found, lines), "");
    }
    line("remainder", found.remainder, "");
    line("logit before any cap", found.logit, "");
    let of = |keep: fn(&Part) -> bool| -> f64 {
        let kept = found.contributions.iter().filter(|c| keep(&c.part));
        kept.map(|c| c.value).sum()
    };
    let _ = writeln!(
        text,
        "\nall heads {:+.4}, all MLPs {:+.4}, embedding {:+.4}",
        of(|part| matches!(part, Part::Head { .. } | Part::AttentionBias { .. })),
        of(|part| matches!(part, Part::Mlp { .. })),
        of(|part| matches!(part, Part::Embedding | Part::Position)),
    );
    text
}

fn drawing(found: &Attribution, caption: &Caption) -> Option<Markup> {
    let rows = largest(found).into_iter().take(PICTURE_ROWS);
    Bars {
        caption: caption.clone(),
        rows: rows
            .map(|contribution| Bar {
                label: contribution.part.to_string(),
                value: contribution.value,
                text: signed(contribution.value, 3),
                tone: Tone::of(contribution.value),
                ..Bar::default()
            })
            .collect(),
        x_name: "logit".to_owned(),
    }
    .draw()
}
