//! Bases side by side: the same data, matched numbers of parameters, several seeds.
//!
//! Of each data set every sixth sample is never seen by a training; it is what losses are measured on. Of the others every
//! sixth is held out by the training, which keeps the state with the best loss on them; by the same loss the learning rate is
//! chosen, once for each data set, basis and budget, with the first seed.

mod measure;

use std::path::Path;
use std::sync::Arc;

use pullback_artifact::{Control, ParentRef, read_json, remove_existing, write_json};
use pullback_model::{Model, Site};
use pullback_sae::{Dictionary, Sae};
use serde::{Deserialize, Serialize};

use self::measure::{Judge, overlap};
use crate::feature::check_dictionary;
use crate::train::{Sets, TrainConfig, TrainInput, layer_of, train_on};
use crate::{AdapterError, Basis, Length, Sample, split};

/// A set of samples under a name.
pub struct DataSet {
    /// The name that rows give it.
    pub name: String,
    /// Its samples.
    pub samples: Vec<Sample>,
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompareConfig {
    /// Where the adapters act; that of the dictionary.
    pub site: Site,
    /// Bases under the names that rows give them; their sizes are set by the budgets.
    pub bases: Vec<(String, Basis)>,
    /// Numbers of parameters, at most.
    pub budgets: Vec<usize>,
    /// Seeds of the trainings.
    pub seeds: Vec<u64>,
    /// Learning rates that the first seed tries, as multiples of the basis's usual one.
    pub rates: Vec<f64>,
    /// Steps of each training.
    pub steps: usize,
    /// Samples in a batch.
    pub batch: usize,
    /// Plain text is cut into windows of so many tokens.
    pub context: usize,
}

/// One training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparedRow {
    /// The data set.
    pub data: String,
    /// The basis.
    pub basis: String,
    /// Parameters that it might have.
    pub budget: usize,
    /// The seed.
    pub seed: u64,
    /// Numbers that make it up.
    pub parameters: usize,
    /// Those that are not zero.
    pub nonzero: usize,
    /// The learning rate.
    pub lr: f64,
    /// The step that is kept: that with the best loss on what the training held out.
    pub kept_step: usize,
    /// That loss.
    pub validation_loss: f64,
    /// Loss on the samples that no training saw, without the adapter: cross-entropy of counted tokens, in nats.
    pub loss_before: f64,
    /// With it.
    pub loss_after: f64,
    /// How few features carry 90 % of `Σ_f |E Δz_f|`, the measured mean changes of activations on the unseen samples.
    pub features_90: usize,
    /// The same of `Σ_f E|Δz_f|`, where changes that cancel on average count.
    pub features_90_absolute: usize,
    /// Share of `E‖Δx‖²` at the site that the reconstructions of the changed and the unchanged activations differ by:
    /// `1 − E‖Δx − Δx̂‖² / E‖Δx‖²`. What is left the dictionary does not see.
    pub change_explained: f64,
    /// Mean overlap (intersection over union) of the features of `features_90` with those of the other seeds; none where
    /// there is one seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stability: Option<f64>,
}

/// What [`compare`] keeps of a training.
#[derive(Serialize, Deserialize)]
struct Kept {
    row: ComparedRow,
    features: Vec<u32>,
}

/// What the trainings are made with.
pub struct CompareInput<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its name.
    pub model_name: &'a str,
    /// The dictionary, and what artifacts record of it.
    pub dictionary: (Arc<Sae>, ParentRef),
    /// The data.
    pub data: &'a [DataSet],
}

impl CompareConfig {
    /// The bases and budgets that go together: a budget below one unit of rank, or above the number of features for a bias,
    /// leaves its basis out.
    pub fn sizes(&self, model: &Model, features: usize) -> Vec<(String, usize, Basis)> {
        let mut sizes = Vec::new();
        for (name, basis) in &self.bases {
            for &budget in &self.budgets {
                if matches!(basis, Basis::Bias { .. }) && budget > features {
                    continue;
                }
                // Sparse factors need room to choose their entries in.
                let template = match basis {
                    Basis::LowRank {
                        rank,
                        entries: Some(entries),
                    } => Basis::LowRank {
                        rank: (*rank).max(budget.div_ceil(features.max(1))),
                        entries: Some(*entries),
                    },
                    other => other.clone(),
                };
                if let Ok(basis) = template.with_budget(budget, model.config(), features) {
                    let config = TrainConfig::of(basis.clone(), self.site, 0);
                    if config.check(model.config()).is_ok() {
                        sizes.push((name.clone(), budget, basis));
                    }
                }
            }
        }
        sizes
    }

    fn check(&self, input: &CompareInput<'_>) -> Result<(), AdapterError> {
        let refuse = |problem: String| Err(AdapterError::Option(problem));
        // What would otherwise only leave every basis out.
        self.site.check(input.model.config())?;
        layer_of(self.site)?;
        check_dictionary(&input.dictionary.0)?;
        if self.bases.is_empty() || self.budgets.is_empty() || self.seeds.is_empty() {
            return refuse("a comparison needs a basis, a budget and a seed".to_owned());
        }
        if self.rates.is_empty() || self.rates.iter().any(|&r| !(r.is_finite() && r > 0.0)) {
            return refuse(format!(
                "the multiples of the learning rate are {:?}, they must be above zero",
                self.rates
            ));
        }
        for set in input.data {
            let (rest, unseen) = split(&set.samples);
            if unseen.is_empty() || rest.len() < 2 {
                return refuse(format!(
                    "{} has {} samples, too few: one is kept for the end and two are needed to train",
                    set.name,
                    set.samples.len()
                ));
            }
        }
        let features = input.dictionary.0.n_features();
        if self.sizes(input.model, features).is_empty() {
            return refuse(format!(
                "no basis can have any of the budgets {:?}: rank 1 of residual has {} parameters, of low-rank {}",
                self.budgets,
                2 * input.model.config().d_model + 1,
                2 * features
            ));
        }
        Ok(())
    }

    fn training(&self, basis: Basis, seed: u64, rate: f64) -> TrainConfig {
        let usual = TrainConfig::of(basis, self.site, seed);
        TrainConfig {
            length: Length::Steps(self.steps),
            batch: self.batch,
            context: self.context,
            lr: usual.lr * rate,
            // The best state is kept; training goes on to its end.
            patience: Some(usize::MAX),
            evaluate_every: Some(self.steps.div_ceil(4).max(1)),
            ..usual
        }
    }
}

/// Trains every basis with every budget and seed on every data set and measures what came out. Adapters are left in `dir`,
/// each with its figures; what is there already is not made again.
///
/// # Errors
/// An option makes no sense; a training cannot be done; the work was interrupted.
pub fn compare(
    input: &CompareInput<'_>,
    config: &CompareConfig,
    dir: &Path,
    control: &Control,
) -> Result<Vec<ComparedRow>, AdapterError> {
    config.check(input)?;
    let sizes = config.sizes(input.model, input.dictionary.0.n_features());
    let trainings = config.seeds.len() + config.rates.len() - 1;
    let total = input.data.len() * sizes.len() * trainings;
    let mut rows = Vec::new();
    let mut count = 0;
    for data in input.data {
        let (rest, unseen) = split(&data.samples);
        let mut work = Work {
            input,
            config,
            data: &data.name,
            samples: &rest,
            unseen: &unseen,
            judge: None,
            sets: Vec::new(),
            dir,
            control,
        };
        for (name, budget, basis) in &sizes {
            let mut kept = Vec::new();
            let mut best: Option<(f64, f64)> = None;
            for (number, &seed) in config.seeds.iter().enumerate() {
                let rates = match best {
                    Some((_, rate)) => vec![rate],
                    None => config.rates.clone(),
                };
                let mut of_seed: Option<Kept> = None;
                for rate in rates {
                    count += 1;
                    let Some(found) = work.one(name, *budget, basis, seed, rate)? else {
                        control.say(&format!(
                            "{count}/{total} {} {name} {budget} seed {seed}, rate × {rate}: diverged",
                            data.name
                        ));
                        continue;
                    };
                    control.say(&format!(
                        "{count}/{total} {} {name} {budget} seed {seed}, rate × {rate}: loss {:.3}, {} features carry 90 %",
                        data.name, found.row.loss_after, found.row.features_90
                    ));
                    let loss = found.row.validation_loss;
                    if number > 0 || best.is_none_or(|(least, _)| loss < least) {
                        if number == 0 {
                            best = Some((loss, rate));
                        }
                        of_seed = Some(found);
                    }
                }
                kept.push(of_seed.ok_or_else(|| {
                    AdapterError::Option(format!(
                        "every training of {name} with {budget} parameters on {} diverged: smaller --rates are needed",
                        data.name
                    ))
                })?);
            }
            let sets: Vec<&[u32]> = kept.iter().map(|kept| &kept.features[..]).collect();
            let stability: Vec<Option<f64>> = (0..sets.len())
                .map(|own| {
                    let others = sets.iter().enumerate().filter(|(other, _)| *other != own);
                    let overlaps: Vec<f64> =
                        others.map(|(_, other)| overlap(sets[own], other)).collect();
                    let count = overlaps.len() as f64;
                    (count > 0.0).then(|| overlaps.iter().sum::<f64>() / count)
                })
                .collect();
            for (kept, stability) in kept.into_iter().zip(stability) {
                rows.push(ComparedRow {
                    stability,
                    ..kept.row
                });
            }
        }
    }
    Ok(rows)
}

/// The trainings on one data set.
struct Work<'a> {
    input: &'a CompareInput<'a>,
    config: &'a CompareConfig,
    data: &'a str,
    samples: &'a [Sample],
    unseen: &'a [Sample],
    judge: Option<Judge<'a>>,
    /// By the first block that is run and whether there are codes, which is what the frozen parts hang on.
    sets: Vec<((usize, bool), Sets)>,
    dir: &'a Path,
    control: &'a Control,
}

impl Work<'_> {
    /// One training and its figures; none where it diverged.
    fn one(
        &mut self,
        name: &str,
        budget: usize,
        basis: &Basis,
        seed: u64,
        rate: f64,
    ) -> Result<Option<Kept>, AdapterError> {
        let (input, control) = (self.input, self.control);
        let out = self
            .dir
            .join(format!("{}-{name}-{budget}-{seed}-{rate}", self.data));
        let figures = out.with_added_extension("json");
        if figures.exists() {
            return Ok(read_json(&figures)?);
        }
        remove_existing(&out)?;
        let config = self.config.training(basis.clone(), seed, rate);
        let over_features = basis.needs_dictionary();
        let mut of_training = TrainInput::new(input.model, input.model_name, self.samples);
        of_training.dictionary = over_features.then(|| input.dictionary.clone());
        let first = match basis {
            Basis::Lora { blocks, .. } => blocks.iter().min().copied().unwrap_or(0),
            _ => self.config.site.layer().map_or(0, |layer| layer + 1),
        };
        let key = (first, over_features);
        let place = self.sets.iter().position(|(of, _)| *of == key);
        let place = if let Some(place) = place {
            place
        } else {
            let sets = Sets::new(&of_training, &config, control)?;
            self.sets.push((key, sets));
            self.sets.len() - 1
        };
        let kept = match train_on(&self.sets[place].1, &of_training, &config, &out, control) {
            Ok(trained) => {
                let judge = match &mut self.judge {
                    Some(judge) => judge,
                    none => none.insert(Judge::new(
                        input.model,
                        &input.dictionary.0,
                        self.config.site,
                        self.unseen,
                        self.config.context,
                        control,
                    )?),
                };
                let change = judge.measure(&trained.adapter, control)?;
                let result = &trained.result;
                Some(Kept {
                    row: ComparedRow {
                        data: self.data.to_owned(),
                        basis: name.to_owned(),
                        budget,
                        seed,
                        parameters: result.parameters,
                        nonzero: result.nonzero,
                        lr: config.lr,
                        kept_step: result.kept_step,
                        validation_loss: result.loss_after,
                        loss_before: judge.loss(),
                        loss_after: change.loss,
                        features_90: change.features.len(),
                        features_90_absolute: change.features_absolute,
                        change_explained: change.explained,
                        stability: None,
                    },
                    features: change.features,
                })
            }
            Err(AdapterError::Diverged { .. }) => None,
            Err(error) => return Err(error),
        };
        write_json(&figures, &kept)?;
        Ok(kept)
    }
}
