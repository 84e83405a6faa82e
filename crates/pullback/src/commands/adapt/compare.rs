//! `pullback adapt compare`: which basis learns most with how many numbers, and which can be read.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use clap::ValueEnum;
use pullback_adapters::{
    Activation, Basis, CompareConfig, CompareInput, ComparedRow, DataSet, Sparsity,
    built_in_samples, compare, data_digest, read_samples,
};
use pullback_artifact::{
    Manifest, ModelRef, ParentRef, PartialDir, read_json, write_atomic, write_json,
};
use pullback_model::{ModelConfig, Site, WeightName};
use pullback_report::adapter_comparison::{
    AdapterComparison, ComparedData, ComparedGroup, mean_and_deviation, render,
};
use pullback_sae::{Dictionary, SAE_KIND};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::context::{App, make_room};

/// Options of `adapt compare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    pullback adapt compare smollm2-135m-instruct --sae pullback-quickstart/sae --budgets 1200,9216 -o compared\n\
    Of each file every sixth sample is kept for the losses that are reported. The learning rate is chosen by the loss on what\n\
    the training itself holds out, with the first seed. A basis that cannot have a budget is left out of it: residual needs\n\
    2 d + 1 parameters at least, low-rank 2 m, a bias has at most m. Without --data, the built-in set is used.")]
pub(crate) struct Arguments {
    /// A catalogue name, a .gguf file, a model directory, or `owner/name[@revision][:file.gguf]` of the hub
    model: String,
    /// The dictionary that changes are read in, and whose features the bases over features use
    #[arg(long, value_name = "DIR")]
    sae: PathBuf,
    /// What to learn from, JSON Lines as for `adapt train`; several are compared one after the other
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// The bases
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAMES",
          default_values_t = [BasisName::Residual, BasisName::Bias, BasisName::Sparse, BasisName::LowRank, BasisName::SparseLowRank])]
    bases: Vec<BasisName>,
    /// Numbers of parameters, at most
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NUMBERS",
        default_values_t = [1200, 9216]
    )]
    budgets: Vec<usize>,
    /// Trainings of each, with seeds that follow each other
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps of each training
    #[arg(long, default_value_t = 40)]
    steps: usize,
    /// Samples in a batch
    #[arg(long, default_value_t = 6)]
    batch: usize,
    /// Plain text is cut into windows of so many tokens
    #[arg(long, default_value_t = 64)]
    context: usize,
    /// Learning rates that the first seed tries, as multiples of the basis's usual one
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS", default_values_t = [0.4, 1.0, 2.5])]
    rates: Vec<f64>,
    /// The directory to make
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Replace the directory if it is there
    #[arg(long)]
    force: bool,
}

/// The bases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BasisName {
    /// A narrow hidden layer in the residual stream
    Residual,
    /// Low-rank updates of the weight matrices of the site's block
    Lora,
    /// A vector over features
    Bias,
    /// Weights from features to features, few of them
    Sparse,
    /// Two narrow factors over features
    LowRank,
    /// Such factors with few entries
    SparseLowRank,
}

/// Columns of sparse factors at least.
const COLUMNS: usize = 8;
/// The `kind` of the manifest.
const COMPARISON_KIND: &str = "adapter-comparison";
/// What an unfinished comparison was asked for.
const WANTED_FILE: &str = "wanted.json";

/// What is asked for.
#[derive(PartialEq, Serialize, Deserialize)]
struct Wanted {
    compare: CompareConfig,
    model: String,
    dictionary: String,
    data: Vec<(String, String)>,
}

/// `result.json`.
#[derive(Serialize)]
struct Compared<'a> {
    model: &'a str,
    site: Site,
    rows: &'a [ComparedRow],
}

impl Arguments {
    fn bases(&self, model: &ModelConfig, site: Site) -> Vec<(String, Basis)> {
        let of = |name: &BasisName| match name {
            BasisName::Residual => Basis::Residual {
                rank: 1,
                activation: Activation::Gelu,
            },
            BasisName::Lora => Basis::Lora {
                rank: 1,
                alpha: 2.0,
                matrices: WeightName::of_blocks(model),
                blocks: site.layer().into_iter().collect(),
            },
            BasisName::Bias => Basis::Bias {
                active_only: false,
                sparsity: Sparsity::Top { count: 1 },
            },
            BasisName::Sparse => Basis::Sparse { weights: 1 },
            BasisName::LowRank => Basis::LowRank {
                rank: 1,
                entries: None,
            },
            BasisName::SparseLowRank => Basis::LowRank {
                rank: COLUMNS,
                entries: Some(2),
            },
        };
        let mut names: Vec<BasisName> = Vec::new();
        for name in &self.bases {
            if !names.contains(name) {
                names.push(*name);
            }
        }
        names
            .iter()
            .map(|name| {
                let value = name.to_possible_value();
                let written = value.map_or_else(String::new, |v| v.get_name().to_owned());
                (written, of(name))
            })
            .collect()
    }

    fn data(&self) -> anyhow::Result<Vec<DataSet>> {
        if self.data.is_empty() {
            return Ok(vec![DataSet {
                name: "old-sailor".to_owned(),
                samples: built_in_samples()?,
            }]);
        }
        let mut sets: Vec<DataSet> = Vec::new();
        for path in &self.data {
            let stem = path.file_stem().map(|stem| stem.to_string_lossy());
            let name = stem.map_or_else(|| "data".to_owned(), std::borrow::Cow::into_owned);
            if sets.iter().any(|set| set.name == name) {
                bail!(
                    "two files of --data are called {name}: rows would not tell them apart; rename one"
                );
            }
            sets.push(DataSet {
                name,
                samples: read_samples(path)?,
            });
        }
        Ok(sets)
    }
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let data = arguments.data()?;
    if arguments.seeds == 0 {
        bail!("--seeds is 0: at least one training of each is needed");
    }
    let Some(last) = arguments.seed.checked_add(arguments.seeds - 1) else {
        bail!(
            "--seed {} leaves no room for {} seeds",
            arguments.seed,
            arguments.seeds
        );
    };
    make_room(&arguments.output, arguments.force)?;
    let named = app.load_model(&arguments.model)?;
    let (sae, manifest) = pullback_sae::load(&arguments.sae)?;
    manifest.check_model(&named.reference())?;
    let Some(site) = manifest.site.as_deref() else {
        bail!("{} does not record its site", arguments.sae.display());
    };
    let site: Site = site.parse()?;
    let config = CompareConfig {
        site,
        bases: arguments.bases(named.model.config(), site),
        budgets: arguments.budgets.clone(),
        seeds: (arguments.seed..=last).collect(),
        rates: arguments.rates.clone(),
        steps: arguments.steps,
        batch: arguments.batch,
        context: arguments.context,
    };
    let parent = ParentRef {
        kind: SAE_KIND.to_owned(),
        digest: manifest.digest(),
        path: std::path::absolute(&arguments.sae)?.display().to_string(),
    };
    let digests = data.iter().map(|set| {
        let digest = data_digest(&set.samples)?;
        Ok((set.name.clone(), digest))
    });
    let wanted = Wanted {
        compare: config.clone(),
        model: named.model.digest().to_owned(),
        dictionary: parent.digest.clone(),
        data: digests.collect::<anyhow::Result<_>>()?,
    };
    let mut dir = PartialDir::open(&arguments.output)?;
    let wanted_path = dir.path().join(WANTED_FILE);
    if dir.is_resumed() && read_json::<Wanted>(&wanted_path).ok().as_ref() != Some(&wanted) {
        app.control.say(&format!(
            "{} holds the start of a different comparison: starting anew",
            dir.path().display()
        ));
        dir.clear()?;
    }
    write_json(&wanted_path, &wanted)?;
    let features = sae.n_features();
    let input = CompareInput {
        model: &named.model,
        model_name: &named.name,
        dictionary: (Arc::new(sae), parent.clone()),
        data: &data,
    };
    let rows = compare(&input, &config, dir.path(), &app.control)?;
    let result = Compared {
        model: &named.name,
        site,
        rows: &rows,
    };
    write_json(&dir.path().join("result.json"), &result)?;
    let page = page(&result, &config, features, arguments);
    write_atomic(
        &dir.path().join("comparison.html"),
        render(&page).as_bytes(),
    )?;
    let of = ModelRef {
        name: named.name.clone(),
        digest: named.model.digest().to_owned(),
    };
    let manifest = Manifest::new(COMPARISON_KIND, arguments.seed)
        .with_model(of)
        .with_site(site.to_string())
        .with_parent(parent)
        .with_config(json!({ "compare": config, "data": wanted.data }));
    dir.finish_skipping(manifest, &[WANTED_FILE])?;
    app.print(&result, || {
        text(&page) + &format!("{}\n", arguments.output.join("comparison.html").display())
    })
}

fn page(
    result: &Compared<'_>,
    config: &CompareConfig,
    features: usize,
    arguments: &Arguments,
) -> AdapterComparison {
    let mut data: Vec<ComparedData> = Vec::new();
    let mut last: Option<(&str, &str, usize)> = None;
    for row in result.rows {
        if data.last().is_none_or(|set| set.name != row.data) {
            data.push(ComparedData {
                name: row.data.clone(),
                loss_before: row.loss_before,
                groups: Vec::new(),
            });
        }
        let key = (row.data.as_str(), row.basis.as_str(), row.budget);
        let Some(set) = data.last_mut() else { continue };
        if last != Some(key) {
            set.groups.push(ComparedGroup {
                basis: row.basis.clone(),
                parameters: row.parameters as f64,
                lr: row.lr,
                ..ComparedGroup::default()
            });
            last = Some(key);
        }
        if let Some(group) = set.groups.last_mut() {
            group.losses.push(row.loss_after);
            group.features_90.push(row.features_90 as f64);
            group
                .features_90_absolute
                .push(row.features_90_absolute as f64);
            group.change_explained.push(row.change_explained);
            group.stability.extend(row.stability);
        }
    }
    AdapterComparison {
        title: "Bases of adapters, compared".to_owned(),
        subtitle: format!(
            "{}, {}, dictionary {} of {features} features",
            result.model,
            result.site,
            arguments.sae.display()
        ),
        data,
        notes: vec![
            format!(
                "Each adapter was trained for {} steps of {} samples, with seeds {}. Every sixth sample was seen by no training: \
                 losses are of those. Of the others every sixth was held out; the state with the best loss on them was kept.",
                config.steps,
                config.batch,
                config.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
            ),
            format!(
                "Learning rates: {} times the usual rate of the basis were tried with the first seed, and that with the best loss \
                 on what the training held out was used for all.",
                config.rates.iter().map(f64::to_string).collect::<Vec<_>>().join(", ")
            ),
            "Features for 90 %: the fewest features whose mean changes of activation on the unseen samples make up 90 % of the sum \
             of all absolute mean changes; without cancelling: the same with the mean of absolute changes. Stability: \
             intersection over union of these sets between seeds. Seen by the dictionary: the share of the squared change at the \
             site that the change of the reconstruction makes up."
                .to_owned(),
            "± is the standard deviation over seeds.".to_owned(),
        ],
    }
}

/// The table in the terminal.
fn text(page: &AdapterComparison) -> String {
    let mut out = String::new();
    for data in &page.data {
        out += &format!(
            "{}: loss {:.3} without an adapter\n{:<16} {:>10}  {:<15} {:>13} {:>10}\n",
            data.name,
            data.loss_before,
            "basis",
            "parameters",
            "loss",
            "features 90 %",
            "stability"
        );
        for group in &data.groups {
            let (loss, deviation) = mean_and_deviation(&group.losses);
            let (few, _) = mean_and_deviation(&group.features_90);
            let (stability, _) = mean_and_deviation(&group.stability);
            let stability = if group.stability.is_empty() {
                "–".to_owned()
            } else {
                format!("{stability:.2}")
            };
            out += &format!(
                "{:<16} {:>10}  {loss:.3} ± {deviation:.3} {few:>15.0} {stability:>10}\n",
                group.basis, group.parameters
            );
        }
    }
    out
}
