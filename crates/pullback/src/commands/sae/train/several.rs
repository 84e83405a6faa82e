//! One dictionary or several, trained, judged and written.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use pullback_activations::{ActivationStore, Feed};
use pullback_artifact::{EventWriter, Manifest, PartialDir, read_json, write_json};
use pullback_model::Model;
use pullback_sae::saelens::save_sparsity;
use pullback_sae::{
    CurvePoint, Job, SaeError, SaeResult, Sites, TrainConfig, Trained, Wiring, train_all,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Arguments;
use crate::commands::sae::eval::{describe, evaluate};
use crate::context::App;

/// The `kind` of the manifest of dictionaries that were trained together.
const SAES_KIND: &str = "saes";
/// What an unfinished training of several was asked for.
const WANTED_FILE: &str = "wanted.json";

/// One of several, in `result.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    directory: String,
    #[serde(flatten)]
    result: SaeResult,
}

/// What several dictionaries were asked for.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Wanted {
    rows: String,
    dictionaries: Vec<(String, TrainConfig)>,
}

/// Trains what is asked for on a feed; what it holds out stands in `stores`.
pub(super) fn run(
    app: &App,
    arguments: &Arguments,
    (feed, stores): (&dyn Feed, &[ActivationStore]),
    model: &Model,
) -> anyhow::Result<()> {
    let mut dictionaries = arguments.wanted(feed.sites())?;
    if let [(_, config)] = &dictionaries[..] {
        let jobs = [Job {
            config: config.clone(),
            out: arguments.output.clone(),
        }];
        let trained = train(app, arguments, feed, (&jobs, &[None]))?.remove(0);
        let result = judge(
            app,
            (config, trained),
            (feed, stores),
            model,
            &arguments.output,
        )?;
        return app.print(&result, || {
            describe(&result) + &format!("{}\n", arguments.output.display())
        });
    }
    let mut dir = PartialDir::open(&arguments.output)?;
    let wanted = Wanted {
        rows: feed.digest(),
        dictionaries: dictionaries.clone(),
    };
    let wanted_path = dir.path().join(WANTED_FILE);
    if dir.is_resumed() && read_json::<Wanted>(&wanted_path).ok().as_ref() != Some(&wanted) {
        app.control.say(&format!(
            "{} holds the start of a different training: starting anew",
            dir.path().display()
        ));
        dir.clear()?;
    }
    write_json(&wanted_path, &wanted)?;
    // An earlier run may have finished some.
    dictionaries.retain(|(name, _)| !dir.path().join(name).join("result.json").exists());
    let mut jobs = Vec::new();
    let mut names = Vec::new();
    for (name, config) in &dictionaries {
        let out = dir.path().join(name);
        // Finished, but not judged: its figures follow from a training that is done again.
        pullback_artifact::remove_existing(&out)?;
        names.push(Some(name.as_str()));
        jobs.push(Job {
            config: config.clone(),
            out,
        });
    }
    if !jobs.is_empty() {
        let trained = train(app, arguments, feed, (&jobs, &names))?;
        for (job, trained) in jobs.iter().zip(trained) {
            judge(app, (&job.config, trained), (feed, stores), model, &job.out)?;
        }
    }
    let mut rows = Vec::with_capacity(wanted.dictionaries.len());
    for (name, _) in &wanted.dictionaries {
        rows.push(Row {
            directory: name.clone(),
            result: read_json(&dir.path().join(name).join("result.json"))?,
        });
    }
    write_json(&dir.path().join("result.json"), &rows)?;
    let mut manifest = Manifest::new(SAES_KIND, arguments.seed)
        .with_config(json!({ "dictionaries": wanted.dictionaries }));
    let origin = feed.origin();
    for parent in origin.parents {
        manifest = manifest.with_parent(parent);
    }
    if let Some(model) = origin.model {
        manifest = manifest.with_model(model);
    }
    dir.finish_skipping(manifest, &[WANTED_FILE])?;
    app.print(&rows, || {
        table(&rows) + &format!("{}\n", arguments.output.display())
    })
}

/// Trains, with curves for `TensorBoard`: one's in the directory itself, those of several in directories of their names.
fn train(
    app: &App,
    arguments: &Arguments,
    feed: &dyn Feed,
    (jobs, names): (&[Job], &[Option<&str>]),
) -> anyhow::Result<Vec<Trained>> {
    let mut events = match &arguments.tensorboard {
        Some(dir) => names
            .iter()
            .map(|name| EventWriter::create(&name.map_or(dir.clone(), |name| dir.join(name))))
            .collect::<Result<Vec<_>, _>>()?,
        None => Vec::new(),
    };
    let mut watch = |number: usize, point: &CurvePoint| -> Result<(), SaeError> {
        let Some(events) = events.get_mut(number) else {
            return Ok(());
        };
        let mut scalars = vec![
            ("loss", point.loss),
            ("l0", point.l0),
            ("dead", point.dead as f64),
        ];
        let explained = point.explained_variance;
        scalars.extend(explained.map(|ev| ("explained_variance", ev)));
        Ok(events.scalars(point.tokens as u64, &scalars)?)
    };
    Ok(train_all(feed, jobs, &app.control, &mut watch)?)
}

/// Judges a trained dictionary and writes the figures into its directory.
fn judge(
    app: &App,
    (config, trained): (&TrainConfig, Trained),
    (feed, stores): (&dyn Feed, &[ActivationStore]),
    model: &Model,
    out: &Path,
) -> anyhow::Result<SaeResult> {
    // Settings that name no site are for the only one of the feed.
    let wiring = match &config.wiring {
        Wiring::Autoencoder { site: None } => Wiring::Autoencoder {
            site: feed.sites().first().map(|site| site.name.clone()),
        },
        wiring => wiring.clone(),
    };
    let sites = Sites::wired(&wiring, stores)?;
    let speed = (trained.training.tokens, trained.tokens_per_second);
    let (mut result, densities) = evaluate(app, model, &sites, trained.sae, speed)
        .with_context(|| format!("{} is trained, but could not be judged", out.display()))?;
    // Without training rows at hand the held-out ones are too few to tell: what counts as dead in training does.
    if sites.normal_rows(false).is_empty() {
        result.reconstruction.dead_fraction = trained.dead_fraction;
    }
    save_sparsity(&densities, out)?;
    write_json(&out.join("result.json"), &result)?;
    Ok(result)
}

/// A line a dictionary.
fn table(rows: &[Row]) -> String {
    let width = rows
        .iter()
        .map(|row| row.directory.len())
        .max()
        .unwrap_or(0);
    let mut text = format!(
        "{:width$}  {:>7}  {:>9}  {:>7}  {:>8}\n",
        "", "L0", "explained", "dead %", "CE score"
    );
    for Row { directory, result } in rows {
        let figures = &result.reconstruction;
        let explained = if result.sites.is_empty() {
            figures.explained_variance
        } else {
            let sites = result.sites.iter();
            let sum: f64 = sites
                .map(|site| site.reconstruction.explained_variance)
                .sum();
            sum / result.sites.len() as f64
        };
        let score = result.cross_entropy.map_or(f64::NAN, |ce| ce.ce_score);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{directory:width$}  {:7.1}  {explained:9.3}  {:7.1}  {score:8.3}",
            figures.l0,
            100.0 * figures.dead_fraction
        );
    }
    text
}
