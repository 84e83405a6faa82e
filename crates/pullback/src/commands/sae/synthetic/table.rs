//! The table of the benchmark.

use pullback_sae::synthetic::Scores;
use serde::Serialize;

use super::{Benchmark, Row};

/// The columns: name, digits, value.
type Column = (&'static str, usize, fn(&Scores) -> f64);
const COLUMNS: [Column; 9] = [
    ("L0", 2, |s| s.l0),
    ("explained", 3, |s| s.explained_variance),
    ("MCC", 3, |s| s.mcc),
    ("F1", 3, |s| s.f1),
    ("precision", 3, |s| s.precision),
    ("recall", 3, |s| s.recall),
    ("unique", 3, |s| s.uniqueness),
    ("dead", 1, |s| s.dead as f64),
    ("shrinkage", 3, |s| s.shrinkage),
];

/// A mean over seeds with its standard deviation; none over a single one.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Mean {
    mean: f64,
    deviation: Option<f64>,
}

/// A kind's line.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    kind: String,
    #[serde(flatten)]
    figures: serde_json::Map<String, serde_json::Value>,
    #[serde(skip)]
    means: Vec<Mean>,
}

fn mean(values: &[f64]) -> Mean {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    Mean {
        mean,
        deviation: (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()),
    }
}

/// A line a kind, in the order of the kinds.
pub(super) fn lines(kinds: &[String], rows: &[Row]) -> Vec<Line> {
    kinds
        .iter()
        .map(|kind| {
            let of_kind: Vec<&Row> = rows.iter().filter(|row| row.kind == *kind).collect();
            let means: Vec<Mean> = COLUMNS
                .iter()
                .map(|(_, _, value)| {
                    let values: Vec<f64> = of_kind.iter().map(|row| value(&row.scores)).collect();
                    mean(&values)
                })
                .collect();
            let figures = COLUMNS.iter().zip(&means).map(|((name, ..), mean)| {
                let figure = serde_json::json!({ "mean": mean.mean, "deviation": mean.deviation });
                (name.to_lowercase(), figure)
            });
            Line {
                kind: kind.clone(),
                figures: figures.collect(),
                means,
            }
        })
        .collect()
}

/// The table for a person, with what it stands on.
pub(super) fn text(result: &Benchmark<'_>) -> String {
    let wanted = result.wanted;
    let true_l0 = result
        .rows
        .iter()
        .map(|row| row.scores.true_l0)
        .sum::<f64>();
    let mut text = format!(
        "{} true features in {} dimensions, mean largest cosine {:.3}, {:.1} fire at a time\n\
         dictionaries of {} features, k {}, {} activations, {} seeds\n\n{:<12}",
        wanted.world.features,
        wanted.world.d,
        result.overlap,
        true_l0 / result.rows.len() as f64,
        wanted.train.features,
        wanted.k,
        wanted.train.tokens.unwrap_or_default(),
        wanted.seeds.len(),
        "kind",
    );
    for (name, ..) in COLUMNS {
        text += &format!("{name:>16}");
    }
    text.push('\n');
    for line in &result.table {
        text += &format!("{:<12}", line.kind);
        for (mean, (_, digits, _)) in line.means.iter().zip(COLUMNS) {
            let figure = match mean.deviation {
                Some(deviation) => format!("{:.digits$} ± {deviation:.digits$}", mean.mean),
                None => format!("{:.digits$}", mean.mean),
            };
            text += &format!("{figure:>16}");
        }
        text.push('\n');
    }
    for (kind, weight) in result.weights {
        text += &format!("weight of the sparsity loss of {kind}: {weight:.2}\n");
    }
    text
}
