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
/// Share of the tokens of a training that those trials have.
const SHARE: usize = 4;
/// A weight changes by no more than this factor from one trial to the next.
const MOST: f64 = 3.0;

/// The weight of each kind that needs one, from trainings on the first seed's activations. Short ones with a coarse row of
/// weights tell where the wanted L0 is and how fast it falls; two of full length, since L0 falls while a dictionary trains,
/// correct the weight by a straight line of logarithms.
pub(super) fn search(
    app: &App,
    wanted: &Wanted,
    place: &Path,
) -> anyhow::Result<BTreeMap<String, f64>> {
    let kinds = wanted.kinds.iter().filter(|kind| wanted.needs_weight(kind));
    let kinds: Vec<&String> = kinds.collect();
    if kinds.is_empty() {
        return Ok(BTreeMap::new());
    }
    let seed = wanted.seeds[0];
    let world = World::new(&wanted.world(seed), &app.control)?;
    // Logarithms of the L0 that these weights lead to.
    let tried = |round: usize, trials: &[(&String, f64)], share: usize| {
        app.control.say(&format!(
            "looking for the weights of sparsity losses: {} trainings",
            trials.len()
        ));
        let mut jobs = Vec::with_capacity(trials.len());
        for (number, &(kind, log)) in trials.iter().enumerate() {
            let mut config = wanted.training(kind, Some(log.exp()), seed)?;
            config.tokens = config.tokens.map(|tokens| tokens / share);
            let out = place.join(format!("{round}-{number}"));
            remove_existing(&out)?;
            jobs.push(Job { config, out });
        }
        let trained = train_all(&world, &jobs, &app.control, &mut |_, _| Ok(()))?;
        let l0 = trained.iter().map(|trained| {
            let (scores, _) = score(&trained.sae, &world, 2, &app.control)?;
            Ok(scores.l0.max(1e-3).ln())
        });
        l0.collect::<anyhow::Result<Vec<f64>>>()
    };
    let aim = (wanted.k as f64).ln();
    let coarse: Vec<(&String, f64)> = kinds
        .iter()
        .flat_map(|&kind| (0..TRIES).map(move |i| (kind, FIRST.ln() + RATIO.ln() * f64::from(i))))
        .collect();
    let l0 = tried(0, &coarse, SHARE)?;
    let mut trials = Vec::new();
    let mut slopes = Vec::new();
    for (trials_of, l0) in coarse.chunks(TRIES as usize).zip(l0.chunks(TRIES as usize)) {
        let Some(at) = l0.windows(2).position(|l0| l0[0] >= aim && l0[1] < aim) else {
            let reached = trials_of.iter().zip(l0);
            let reached: Vec<String> = reached
                .map(|((_, log), l0)| format!("{:.1} at {:.2}", l0.exp(), log.exp()))
                .collect();
            bail!(
                "no weight of the sparsity loss brings {} to {} active features: L0 was {}; leave it out of --kinds or ask \
                 for another --k or more --tokens",
                trials_of[0].0,
                wanted.k,
                reached.join(", ")
            );
        };
        let slope = (l0[at + 1] - l0[at]) / RATIO.ln();
        slopes.push(slope);
        trials.push((trials_of[at].0, trials_of[at].1 + (aim - l0[at]) / slope));
    }
    for round in 1..=2 {
        let l0 = tried(round, &trials, 1)?;
        for ((trial, slope), l0) in trials.iter_mut().zip(&slopes).zip(l0) {
            trial.1 += ((aim - l0) / slope).clamp(-MOST.ln(), MOST.ln());
        }
    }
    // Trials are of no use any more.
    std::fs::remove_dir_all(place)?;
    Ok(trials
        .into_iter()
        .map(|(kind, log)| (kind.clone(), log.exp()))
        .collect())
}
