//! Weights of sparsity losses that lead to the wanted number of active features.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::bail;
use pullback_artifact::remove_existing;
use pullback_sae::synthetic::{World, score};
use pullback_sae::{Job, train_all};

use super::Wanted;
use crate::context::App;

/// Weights that are tried first, each a multiple of the one before.
const FIRST: f64 = 0.25;
const RATIO: f64 = 3.0;
const TRIES: i32 = 6;
/// Share of the tokens of a training that a trial has.
const SHARE: usize = 4;

/// The weight of each kind that needs one, from short trainings on the first seed's activations: first a coarse row of
/// weights, then one between the two that enclose the wanted L0, and what follows from the nearest two by a straight line
/// of logarithms.
pub(super) fn search(
    app: &App,
    wanted: &Wanted,
    place: &Path,
) -> anyhow::Result<BTreeMap<String, f64>> {
    let kinds: Vec<&String> = wanted
        .kinds
        .iter()
        .filter(|kind| wanted.needs_weight(kind))
        .collect();
    let mut found = BTreeMap::new();
    if kinds.is_empty() {
        return Ok(found);
    }
    let seed = wanted.seeds[0];
    let world = World::new(&wanted.world(seed), &app.control)?;
    let k = wanted.k as f64;
    // L0 by the logarithm of the weight, ascending in the weight.
    let mut seen: BTreeMap<&String, Vec<(f64, f64)>> = BTreeMap::new();
    let first: Vec<(&String, f64)> = kinds
        .iter()
        .flat_map(|&kind| (0..TRIES).map(move |i| (kind, FIRST * RATIO.powi(i))))
        .collect();
    let mut trials = first;
    for round in 0..3 {
        app.control.say(&format!(
            "looking for the weights of sparsity losses: {} short trainings",
            trials.len()
        ));
        let mut jobs = Vec::with_capacity(trials.len());
        for (number, &(kind, weight)) in trials.iter().enumerate() {
            let mut config = wanted.training(kind, Some(weight), seed)?;
            config.tokens = config.tokens.map(|tokens| tokens / SHARE);
            let out = place.join(format!("{round}-{number}"));
            remove_existing(&out)?;
            jobs.push(Job { config, out });
        }
        let trained = train_all(&world, &jobs, &app.control, &mut |_, _| Ok(()))?;
        for (&(kind, weight), trained) in trials.iter().zip(&trained) {
            let (scores, _) = score(&trained.sae, &world, 2, &app.control)?;
            let seen = seen.entry(kind).or_default();
            seen.push((weight.ln(), scores.l0));
            seen.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        trials.clear();
        for (kind, seen) in &seen {
            let Some(between) = seen.windows(2).find(|pair| pair[0].1 >= k && pair[1].1 < k) else {
                let reached: Vec<String> = seen
                    .iter()
                    .map(|(weight, l0)| format!("{l0:.1} at {:.2}", weight.exp()))
                    .collect();
                bail!(
                    "no weight of the sparsity loss brings {kind} to {k} active features: L0 was {}; \
                     leave it out of --kinds or ask for another --k",
                    reached.join(", ")
                );
            };
            let [(low, many), (high, few)] = [between[0], between[1]];
            let (many, few) = (many.ln(), few.max(1e-3).ln());
            let share = (many - k.ln()) / (many - few);
            let weight = (low + share * (high - low)).exp();
            if round < 2 {
                trials.push((kind, weight));
            } else {
                found.insert((*kind).clone(), weight);
            }
        }
    }
    // Trials are of no use any more.
    std::fs::remove_dir_all(place)?;
    Ok(found)
}
