//! `pullback sae compare`: two dictionaries matched on the directions of their features.

use std::path::PathBuf;

use anyhow::bail;
use pullback_artifact::{Manifest, write_atomic};
use pullback_report::dictionary_comparison::{self, ComparedDictionary, DictionaryComparison};
use pullback_sae::{CompareConfig, Comparison, Side, compare, load};
use serde_json::{Value, json};

use crate::context::App;

/// Options of `sae compare`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback sae compare sae-seed-0 sae-seed-1 -o comparison.html\n\
    Features are compared by the cosine of their decoder rows."
)]
pub(crate) struct Arguments {
    /// The first dictionary
    a: PathBuf,
    /// The second
    b: PathBuf,
    /// Cosine from which on a matched pair is one shared feature
    #[arg(long, default_value_t = 0.7)]
    threshold: f32,
    /// Match over all pairs where there are at most N × N of them
    #[arg(long, value_name = "N", default_value_t = 5000)]
    exact: usize,
    /// Near neighbours of each feature that a larger matching is restricted to
    #[arg(long, default_value_t = 32)]
    neighbours: usize,
    /// Write a page as well
    #[arg(long, short, value_name = "PAGE.html")]
    output: Option<PathBuf>,
    /// Replace the page if it is there
    #[arg(long)]
    force: bool,
}

/// Pairs of numbers that a matrix in memory may hold, whatever `--exact` says.
const MOST_EXACT: usize = 20_000;

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.exact > MOST_EXACT {
        bail!(
            "--exact is {}, at most {MOST_EXACT} fit into memory",
            arguments.exact
        );
    }
    if let (Some(path), false) = (&arguments.output, arguments.force) {
        pullback_artifact::refuse_existing(path)?;
    }
    let (a, manifest_a) = load(&arguments.a)?;
    let (b, manifest_b) = load(&arguments.b)?;
    let config = CompareConfig {
        threshold: arguments.threshold,
        exact: arguments.exact,
        neighbours: arguments.neighbours,
    };
    let found = compare(&a, &b, &config, &app.control)?;
    let notes = notes(&found, &manifest_a, &manifest_b);
    if let Some(path) = &arguments.output {
        let page = dictionary_comparison::render(&page(arguments, &found, &notes));
        write_atomic(path, page.as_bytes())?;
    }
    let result = json!({
        "a": side(&found.a),
        "b": side(&found.b),
        "exact": found.exact,
        "neighbours": (!found.exact).then_some(found.neighbours),
        "mean_matched_cosine": found.mean_matched_cosine,
        "threshold": found.threshold,
        "shared": found.shared,
        "lost": found.lost,
        "lost_but_near": found.lost_but_near,
        "new": found.new,
        "new_but_near": found.new_but_near,
        "pairs": found.pairs,
        "notes": notes,
        "page": arguments.output,
    });
    app.print(&result, || describe(arguments, &found, &notes))
}

fn side(side: &Side) -> Value {
    json!({
        "features": side.features,
        "without_direction": side.without_direction,
        "mean_max_cosine": side.mean_max_cosine,
        "nearest": side.nearest,
    })
}

/// What a reader should know before the figures.
fn notes(found: &Comparison, a: &Manifest, b: &Manifest) -> Vec<String> {
    let mut notes = vec![if found.exact {
        "The matching is one-to-one and of greatest total cosine over all pairs of features."
            .to_owned()
    } else {
        format!(
            "The dictionaries are too large for a matching over all pairs: it is one-to-one and of greatest total cosine over \
             pairs of which one feature is among the {} nearest of the other; {} of {} features of A have a partner.",
            found.neighbours,
            found.pairs.len(),
            found.a.features
        )
    }];
    notes.push(format!(
        "Shared are pairs of cosine {} or more; lost are the features of A in no shared pair, new those of B. MMCS is the mean \
         over the features of one dictionary of the largest cosine with a feature of the other; there several features may \
         have the same nearest.",
        found.threshold
    ));
    for (name, side) in [("A", &found.a), ("B", &found.b)] {
        if side.without_direction > 0 {
            notes.push(format!(
                "{} decoder rows of {name} are zero or not finite; their cosines count as zero.",
                side.without_direction
            ));
        }
    }
    let model = |manifest: &Manifest| manifest.model.as_ref().map(|model| model.digest.clone());
    if let (Some(x), Some(y)) = (model(a), model(b))
        && x != y
    {
        notes.push(
            "The dictionaries are of different models; their directions need not mean the same."
                .to_owned(),
        );
    }
    if let (Some(x), Some(y)) = (&a.site, &b.site)
        && x != y
    {
        notes.push(format!(
            "The dictionaries are of different sites: {x} and {y}."
        ));
    }
    notes
}

fn page(arguments: &Arguments, found: &Comparison, notes: &[String]) -> DictionaryComparison {
    let side = |path: &PathBuf, side: &Side, alone: &[u32], near: usize| ComparedDictionary {
        name: path.display().to_string(),
        features: side.features,
        mean_max_cosine: side.mean_max_cosine,
        nearest: side.nearest.clone(),
        alone: alone.to_vec(),
        alone_but_near: near,
    };
    DictionaryComparison {
        title: "What two dictionaries share".to_owned(),
        a: side(&arguments.a, &found.a, &found.lost, found.lost_but_near),
        b: side(&arguments.b, &found.b, &found.new, found.new_but_near),
        pairs: found
            .pairs
            .iter()
            .map(|pair| (pair.a, pair.b, pair.cosine))
            .collect(),
        mean_matched_cosine: found.mean_matched_cosine.unwrap_or(f64::NAN),
        threshold: found.threshold,
        shared: found.shared,
        notes: notes.to_vec(),
    }
}

/// Edges of the histogram that is printed; below the last one are the pairs that point apart.
const EDGES: [f32; 7] = [0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.0];

/// The comparison for a person.
fn describe(arguments: &Arguments, found: &Comparison, notes: &[String]) -> String {
    let mut text = format!(
        "{:24} {:>9} {:>9}\n{:24} {:>9} {:>9}\n{:24} {:>9.3} {:>9.3}\n{:24} {:>9} {:>9}\n{:24} {:>9} {:>9}\n{:24} {:>9} {:>9}\n\n",
        "",
        "A",
        "B",
        "features",
        found.a.features,
        found.b.features,
        "MMCS to the other",
        found.a.mean_max_cosine,
        found.b.mean_max_cosine,
        "shared",
        found.shared,
        found.shared,
        "lost / new",
        found.lost.len(),
        found.new.len(),
        "  near all the same",
        found.lost_but_near,
        found.new_but_near,
    );
    if let Some(mean) = found.mean_matched_cosine {
        text += &format!(
            "{} matched pairs, mean cosine {mean:.3}\n",
            found.pairs.len()
        );
    }
    let mut above = f32::INFINITY;
    for edge in EDGES.into_iter().chain([f32::NEG_INFINITY]) {
        let inside = |cosine: f32| cosine >= edge && cosine < above;
        let count = found
            .pairs
            .iter()
            .filter(|pair| inside(pair.cosine))
            .count();
        let name = if above.is_infinite() {
            format!("{edge:.2} or more")
        } else if edge.is_infinite() {
            format!("below {above:.2}")
        } else {
            format!("{edge:.2} to {above:.2}")
        };
        if count > 0 || edge.is_finite() {
            text += &format!("  cosine {name:14} {count:>9}\n");
        }
        above = edge;
    }
    text.push('\n');
    for note in notes {
        text += note;
        text.push('\n');
    }
    if let Some(path) = &arguments.output {
        text += &format!("{}\n", path.display());
    }
    text
}
