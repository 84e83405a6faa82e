//! The plots of a change report.

use std::collections::HashMap;

use maud::{Markup, html};

use super::cards::direction;
use super::data::{ChangeReport, FeatureCard};
use crate::number;
use crate::plot::{
    Bar, Bars, Caption, Guide, Histogram, LineChart, Mark, Point, Scatter, Series, Tone, figure,
};
use crate::text::{plain, token_plain};

/// How many rows the overview lists at most.
const ROWS: usize = 30;

/// The overview of all changes: the most changed features, the histogram, prediction against measurement.
pub(super) fn changes(report: &ChangeReport) -> Markup {
    overview(report, true)
}

/// The same; without predictions only what was measured.
pub(super) fn overview(report: &ChangeReport, predictions: bool) -> Markup {
    let bars = most_changed(&report.features);
    let height = bars.height().clamp(290.0, 420.0);
    html! {
        div.plots {
            (figure(&bars.caption, bars.draw(), html! {
                span.key.up {} " up, " span.key.down {} " down; with the words on which the feature fires most. "
                @if predictions { span.key.diamond {} " is what the pullback predicts." }
            }))
            (histogram(report, height))
            @if predictions { (values(report)) (ranks(report)) }
        }
        @if predictions { p { (agreement(report.agreement_spearman)) } }
    }
}

fn most_changed(cards: &[FeatureCard]) -> Bars {
    // Where prediction and measurement differ wildly in size, a common axis would hide one of them.
    let comparable = slope(&pairs(cards)).is_some_and(|s| (0.1..10.0).contains(&s));
    let rows = cards
        .iter()
        .take(ROWS)
        .map(|card| {
            let value = f64::from(card.measured);
            Bar {
                label: card.feature.to_string(),
                detail: card
                    .peak_words(3)
                    .iter()
                    .map(|word| token_plain(word))
                    .collect::<Vec<_>>()
                    .join(", "),
                value,
                text: number::signed(value, 2),
                marker: comparable.then(|| f64::from(card.predicted)),
                href: format!("#f{}", card.feature),
                tone: Tone::of(value),
            }
        })
        .collect();
    Bars {
        caption: Caption::new(
            "most-changed",
            "The most changed features",
            "A bar for each of the most changed features, as long as its measured change, with a mark at the predicted change.",
        ),
        rows,
        x_name: "change of mean activation".to_owned(),
    }
}

fn hint(card: &FeatureCard) -> String {
    let (_, _, word) = direction(card.measured);
    format!(
        "feature {}: {word} {}",
        card.feature,
        number::signed(f64::from(card.measured), 3)
    )
}

fn histogram(report: &ChangeReport, height: f64) -> Markup {
    let values: Vec<f64> = report.changes.iter().map(|v| f64::from(*v)).collect();
    let n = values.iter().filter(|v| v.is_finite()).count();
    let plot = Histogram {
        caption: Caption::new(
            "change-histogram",
            &format!("How far all {} features moved", number::count(n as u64)),
            "A histogram of the measured change of every feature; the features shown as cards are marked below the bars.",
        ),
        x_name: "change of mean activation".to_owned(),
        y_name: "number of features".to_owned(),
        values,
        marks: if n == 0 {
            Vec::new()
        } else {
            report
                .features
                .iter()
                .map(|card| Mark {
                    value: f64::from(card.measured),
                    label: hint(card),
                    tone: Tone::of(f64::from(card.measured)),
                })
                .collect()
        },
        log_count: true,
        height,
    };
    let mut title = plot.caption.clone();
    if n == 0 {
        "How far the features moved".clone_into(&mut title.title);
    }
    figure(
        &title,
        plot.draw(),
        html! {
            "Bars near zero are features that hardly moved. The marks below (" span.key.up {} " up, " span.key.down {}
            " down) are the features shown as cards."
        },
    )
}

/// Predicted and measured change as they are.
fn values(report: &ChangeReport) -> Markup {
    let points: Vec<(f64, f64)> = report
        .scatter
        .iter()
        .map(|(p, m)| (f64::from(*p), f64::from(*m)))
        .collect();
    // With different scales the line of equality lies along an axis; the best slope says more.
    let (guide, note) = match slope(&points) {
        Some(s) if (0.2..5.0).contains(&s) => (
            Guide::Slope(1.0),
            "prediction and measurement equal".to_owned(),
        ),
        Some(s) => (
            Guide::Slope(s),
            format!(
                "measured = {} × predicted, the best fit",
                number::significant(s, 2)
            ),
        ),
        None => (Guide::None, String::new()),
    };
    let plot = Scatter {
        caption: Caption::new(
            "predicted-measured",
            "Predicted against measured change",
            "A point for each live feature: the change that the pullback predicts across, the measured change up.",
        ),
        x_name: "predicted change".to_owned(),
        y_name: "measured change".to_owned(),
        points,
        annotated: if report.scatter.is_empty() {
            Vec::new()
        } else {
            report
                .features
                .iter()
                .map(|card| Point {
                    x: f64::from(card.predicted),
                    y: f64::from(card.measured),
                    label: card.feature.to_string(),
                    hint: hint(card),
                    href: format!("#f{}", card.feature),
                    tone: Tone::of(f64::from(card.measured)),
                })
                .collect()
        },
        guide,
    };
    figure(
        &plot.caption,
        plot.draw(),
        html! {
            "One point a live feature; the numbered ones are shown as cards. "
            @if !note.is_empty() { span.key.dash {} " " (note) "." }
        },
    )
}

/// The same by rank, which is what Spearman's correlation looks at.
fn ranks(report: &ChangeReport) -> Markup {
    let finite: Vec<(f32, f32)> = report
        .scatter
        .iter()
        .copied()
        .filter(|(p, m)| p.is_finite() && m.is_finite())
        .collect();
    let n = finite.len() as f64;
    let predicted = rank(&finite.iter().map(|p| p.0).collect::<Vec<_>>());
    let measured = rank(&finite.iter().map(|p| p.1).collect::<Vec<_>>());
    // A card's point is found by its figures.
    let places: HashMap<(u32, u32), usize> = finite
        .iter()
        .enumerate()
        .map(|(i, (p, m))| ((p.to_bits(), m.to_bits()), i))
        .collect();
    let annotated = report
        .features
        .iter()
        .filter_map(|card| {
            let i = *places.get(&(card.predicted.to_bits(), card.measured.to_bits()))?;
            Some(Point {
                x: *predicted.get(i)?,
                y: *measured.get(i)?,
                label: String::new(),
                hint: hint(card),
                href: format!("#f{}", card.feature),
                tone: Tone::of(f64::from(card.measured)),
            })
        })
        .collect();
    let rho = report.agreement_spearman;
    let title = if rho.is_finite() {
        format!("The same by rank: Spearman’s ρ = {}", number::fixed(rho, 2))
    } else {
        "The same by rank".to_owned()
    };
    let plot = Scatter {
        caption: Caption::new(
            "predicted-measured-ranks",
            &title,
            "A point for each live feature: its rank by predicted change across, its rank by measured change up.",
        ),
        x_name: "rank by predicted change".to_owned(),
        y_name: "rank by measured change".to_owned(),
        points: predicted
            .iter()
            .copied()
            .zip(measured.iter().copied())
            .collect(),
        annotated,
        guide: if n > 1.0 {
            Guide::Slope(1.0)
        } else {
            Guide::None
        },
    };
    figure(
        &plot.caption,
        (n > 1.0).then(|| plot.draw()).flatten(),
        html! { "Rank 1 fell most, the last rose most. " span.key.dash {} " the same rank in both." },
    )
}

/// Spearman's correlation in words.
fn agreement(rho: f64) -> Markup {
    if !rho.is_finite() {
        return html! { "How well prediction and measurement agree is " (super::missing()) "." };
    }
    let value = number::fixed(rho, 2);
    let words = match rho {
        r if r >= 0.8 => {
            "The order of the features by predicted change is close to the measured one: for this adapter the linear \
             pullback already tells which features change."
        }
        r if r >= 0.5 => {
            "Prediction and measurement agree in broad lines, not in detail: use the pullback to find candidates, and the measurement \
             to rank them."
        }
        r if r >= 0.2 => {
            "Prediction and measurement agree only loosely: the pullback points to some of the right features, and the measured change \
             is the figure to trust."
        }
        r if r >= -0.2 => {
            "Prediction and measurement are all but unrelated here: trust the measured change, and take the pullback as a description of \
             the adapter’s weights only."
        }
        _ => {
            "Prediction and measurement run against each other here: trust the measured change only."
        }
    };
    html! { strong { "ρ = " (value) "." } " " (words) }
}

fn pairs(cards: &[FeatureCard]) -> Vec<(f64, f64)> {
    cards
        .iter()
        .map(|c| (f64::from(c.predicted), f64::from(c.measured)))
        .collect()
}

/// How many times larger measurements are than predictions, as the ratio of their root mean squares.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let (xx, yy) = points
        .iter()
        .filter(|p| p.0.is_finite() && p.1.is_finite())
        .fold((0.0, 0.0), |(xx, yy), (x, y)| (xx + x * x, yy + y * y));
    let s = (yy / xx).sqrt();
    (s.is_finite() && s > 0.0).then_some(s)
}

/// Each value's rank from 1; equal values share the mean of their ranks.
fn rank(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut at = 0;
    while at < order.len() {
        let value = values[order[at]];
        let end = at
            + order[at..]
                .iter()
                .take_while(|i| values[**i].total_cmp(&value).is_eq())
                .count();
        // The mean of the ranks at+1 to end.
        let shared = (at + 1 + end) as f64 / 2.0;
        for i in &order[at..end] {
            ranks[*i] = shared;
        }
        at = end;
    }
    ranks
}

/// How the dictionary and the adapter were trained.
pub(super) fn training(report: &ChangeReport) -> Markup {
    let sae = &report.sae;
    let held = if sae.curve_held_out {
        "held-out text"
    } else {
        "training batches"
    };
    let variance = LineChart {
        caption: Caption::new(
            "sae-variance",
            "Dictionary: explained variance",
            "The dictionary’s explained variance over the tokens seen in training.",
        ),
        x_name: "tokens seen".to_owned(),
        y_name: "explained variance".to_owned(),
        series: vec![Series::new(held, &sae.curve)],
        ..LineChart::default()
    };
    let loss = LineChart {
        caption: Caption::new(
            "sae-loss",
            "Dictionary: loss",
            "The dictionary’s training loss over the tokens seen.",
        ),
        x_name: "tokens seen".to_owned(),
        y_name: "training loss (logarithmic)".to_owned(),
        series: vec![Series::new("training", &sae.loss_curve)],
        log_y: true,
        ..LineChart::default()
    };
    let adapter = LineChart {
        caption: Caption::new(
            "adapter-loss",
            "Adapter: loss",
            "The adapter’s loss over its training steps, on training batches and on held-out pairs.",
        ),
        x_name: "step".to_owned(),
        y_name: "loss (nats a token)".to_owned(),
        series: vec![
            Series::new("training", &report.adapter.train_curve),
            Series::new("held-out", &report.adapter.validation_curve),
        ],
        ..LineChart::default()
    };
    html! {
        div.plots {
            (figure(&variance.caption, variance.draw(), html! { "On " (held) "." }))
            (figure(&loss.caption, loss.draw(), html! { "Reconstruction error with the auxiliary term for features that stopped firing." }))
            (figure(&adapter.caption, adapter.draw(), html! {
                "Held-out loss " (super::figure_or_missing(report.adapter.loss_before, |v| number::fixed(v, 3))) " before, "
                (super::figure_or_missing(report.adapter.loss_after, |v| number::fixed(v, 3))) " after."
            }))
            div.beside {
                p { strong { "What to look for." } " The dictionary has seen enough text when its curves have levelled off; a curve still rising at the right edge would gain from more." }
                p { "The adapter has learned something general rather than its examples when the held-out curve falls along with the training curve; a held-out curve that turns up again means that it began to learn them by heart." }
            }
        }
    }
}

/// What the model loses when it sees only what the dictionary keeps.
pub(super) fn fidelity(report: &ChangeReport) -> Markup {
    let sae = &report.sae;
    let row = |label: &str, value: f64, tone: Tone| Bar {
        label: label.to_owned(),
        value,
        text: number::fixed(value, 3),
        tone,
        ..Bar::default()
    };
    let bars = Bars {
        caption: Caption::new(
            "cross-entropy",
            "Cross-entropy on held-out text, nats a token",
            "Three bars: the model’s cross-entropy untouched, with the dictionary’s reconstruction spliced in, and with the activations set to zero.",
        ),
        rows: vec![
            row("untouched", sae.ce_clean, Tone::Quiet),
            row("dictionary spliced in", sae.ce_spliced, Tone::Plain),
            row("set to zero", sae.ce_zero, Tone::Quiet),
        ],
        x_name: String::new(),
    };
    let rise = sae.ce_spliced - sae.ce_clean;
    html! {
        p {
            "A feature means something only as far as the dictionary keeps what the model uses. The test: replace the activations at "
            code { (super::or_missing(&report.site)) } " by the dictionary’s reconstruction and let the model go on predicting text. "
            @if rise.is_finite() {
                "Its cross-entropy rises by " (number::fixed(rise, 2)) " nats a token; wiping the site out altogether would cost "
                (super::figure_or_missing(sae.ce_zero - sae.ce_clean, |v| number::fixed(v, 2))) "."
            }
        }
        div.two {
            (figure(&bars.caption, bars.draw(), html! { "Lower is better." }))
            div {
                dl.facts {
                    dt { "Explained variance" } dd { (super::figure_or_missing(sae.explained_variance, |v| number::fixed(v, 3))) }
                    dt { "Cross-entropy score" } dd { (super::figure_or_missing(sae.ce_score, |v| number::fixed(v, 3))) }
                    dt { "Active features a token (L0)" } dd { (super::figure_or_missing(sae.l0, |v| number::fixed(v, 1))) }
                    dt { "Features that never fire" } dd { (super::figure_or_missing(sae.dead_fraction, number::percent)) }
                    dt { "Share of the change outside the features shown" }
                    dd { (super::figure_or_missing(report.residual_fraction, number::percent)) }
                }
            }
        }
    }
}

/// How long each stage took.
pub(super) fn timings(report: &ChangeReport) -> Markup {
    let total: f64 = report
        .seconds
        .iter()
        .map(|s| s.1)
        .filter(|s| s.is_finite())
        .sum();
    let bars = Bars {
        caption: Caption::new(
            "timings",
            "Time by stage",
            "A bar for each stage of the run, as long as it took.",
        ),
        rows: report
            .seconds
            .iter()
            .map(|(stage, seconds)| Bar {
                label: plain(stage),
                value: *seconds,
                text: number::duration(*seconds),
                ..Bar::default()
            })
            .collect(),
        x_name: String::new(),
    };
    figure(
        &bars.caption,
        bars.draw(),
        html! { @if !report.seconds.is_empty() { "All together " (number::duration(total)) "." } },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_their_rank() {
        assert_eq!(rank(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
        assert!(rank(&[]).is_empty());
    }

    #[test]
    fn slope_is_the_ratio_of_sizes() {
        assert!((slope(&[(1.0, 2.0), (-1.0, -2.0)]).unwrap() - 2.0).abs() < 1e-12);
        assert!(slope(&[]).is_none());
        assert!(slope(&[(0.0, 0.0)]).is_none());
    }
}
