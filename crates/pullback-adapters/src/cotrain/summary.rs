//! Figures over sites and seeds.

use serde::{Deserialize, Serialize};

use super::{GrownSeed, JudgedDictionary};

/// A mean over seeds with the standard deviation between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation between seeds (with `n − 1`); none for one seed.
    pub deviation: Option<f64>,
}

impl Spread {
    /// Of one figure a seed.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        Self {
            mean,
            deviation: (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()),
        }
    }
}

/// One of the three kinds of dictionaries: means over sites, then over seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DictionarySummary {
    /// `original`, `fresh` or `fresh-on-twin`.
    pub dictionary: String,
    /// Active features a token.
    pub l0: Spread,
    /// Explained share of variance.
    pub explained_variance: Spread,
    /// Increase of the cross-entropy when one is spliced in, in nats a token.
    pub ce_increase: Spread,
    /// Share of features that are active on no held-out row.
    pub silent_fraction: Spread,
}

/// A model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// `co-trained` or `twin`.
    pub model: String,
    /// Held-out cross-entropy at the end, in nats a token.
    pub held_out: Spread,
}

/// Figures over all seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The two models.
    pub models: Vec<ModelSummary>,
    /// The three kinds of dictionaries.
    pub dictionaries: Vec<DictionarySummary>,
}

impl Summary {
    /// Over seeds.
    pub fn of(seeds: &[GrownSeed]) -> Self {
        let last = |model: &str, curve: fn(&GrownSeed) -> &Vec<super::GrowPoint>| {
            let ends = seeds.iter().filter_map(|seed| curve(seed).last());
            ModelSummary {
                model: model.to_owned(),
                held_out: Spread::of(&ends.map(|point| point.held_out).collect::<Vec<_>>()),
            }
        };
        let of = |name: &str| {
            let figure = |figure: fn(&JudgedDictionary) -> f64| {
                let of_seed = |seed: &GrownSeed| {
                    let own = seed.dictionaries.iter().filter(|d| d.dictionary == name);
                    let own: Vec<f64> = own.map(figure).collect();
                    own.iter().sum::<f64>() / own.len() as f64
                };
                Spread::of(&seeds.iter().map(of_seed).collect::<Vec<_>>())
            };
            DictionarySummary {
                dictionary: name.to_owned(),
                l0: figure(|d| d.l0),
                explained_variance: figure(|d| d.explained_variance),
                ce_increase: figure(|d| d.ce_increase),
                silent_fraction: figure(|d| d.silent_fraction),
            }
        };
        Self {
            models: vec![
                last("co-trained", |seed| &seed.co_trained),
                last("twin", |seed| &seed.twin),
            ],
            dictionaries: ["original", "fresh", "fresh-on-twin"].map(of).to_vec(),
        }
    }
}
