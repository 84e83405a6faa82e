//! `pullback adapt train`: train an adapter of any kind.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use clap::ValueEnum;
use pullback_adapters::{
    Activation, Basis, Length, Objective, Sparsity, TrainConfig, TrainInput, built_in_samples,
    read_samples, train,
};
use pullback_artifact::{Manifest, ParentRef};
use pullback_model::{ModelConfig, Site, WeightName};
use pullback_sae::{Dictionary, SAE_KIND};
use serde_json::json;

use crate::context::{App, NamedModel, make_room, middle_site};

/// Options of `adapt train`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    pullback adapt train smollm2-135m-instruct --site blocks.15.hook_resid_post -o adapter\n  \
    pullback adapt train smollm2-135m-instruct --basis bias --sae sae --budget 64 --steps 80 -o bias\n  \
    pullback adapt train smollm2-135m-instruct --basis lora --matrices q,v --blocks 14,15 --rank 4 -o lora\n  \
    pullback adapt train smollm2-135m-instruct --basis lora --around sae --objective distill --data text.jsonl -o lora\n\
    Data are JSON Lines of {\"prompt\": \"…\", \"answer\": \"…\"}, {\"messages\": […]} or {\"text\": \"…\"}, for preferences with\n\
    \"rejected\": \"…\" (the worse answer); every sixth line is held out.\n\
    Without --data, the built-in set teaches the manner of an old sailor.")]
pub(crate) struct Arguments {
    /// A catalogue name, a .gguf file, a model directory, or `owner/name[@revision][:file.gguf]` of the hub
    model: String,
    /// In which terms the change is learned
    #[arg(long, value_enum, default_value_t = BasisName::Residual)]
    basis: BasisName,
    /// What to learn from; default: the built-in set
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Where it acts; default: the residual stream after the middle block
    #[arg(long, alias = "at", value_name = "SITE")]
    site: Option<Site>,
    /// The dictionary, for a basis over features (bias, sparse, low-rank)
    #[arg(long, value_name = "DIR")]
    sae: Option<PathBuf>,
    /// lora: train the updates with the activation at the site replaced by this dictionary's reconstruction, to close the
    /// gap that it leaves; with `--objective distill`, the model as it is is the teacher unless --teacher names one
    #[arg(long, value_name = "DIR", conflicts_with = "sae")]
    around: Option<PathBuf>,
    /// At most so many parameters: sets the rank (residual, lora, low-rank), the weights (sparse) or the entries (bias, sparse
    /// factors)
    #[arg(long, conflicts_with = "rank")]
    budget: Option<usize>,
    /// Hidden units (residual), columns of factors (low-rank), rank of updates (lora)
    #[arg(long)]
    rank: Option<usize>,
    /// The directory to make
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Replace the directory if it is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    learning: Learning,
}

/// What belongs to one basis.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Of one basis")]
struct Form {
    /// residual: the function between the two matrices (default: gelu)
    #[arg(long, value_enum)]
    activation: Option<ActivationName>,
    /// bias: entries act only where their feature is active
    #[arg(long)]
    active_only: bool,
    /// bias: how entries become few (default: top)
    #[arg(long, value_enum)]
    sparsity: Option<SparsityName>,
    /// bias: strength of l1 and hard-concrete
    #[arg(long, value_name = "WEIGHT", requires = "sparsity")]
    sparsity_weight: Option<f64>,
    /// low-rank: the factors are sparse, and --budget counts their entries
    #[arg(long)]
    sparse_factors: bool,
    /// lora: the matrices that are updated (default: all of q, k, v, o, gate, up, down that the model has)
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    matrices: Vec<String>,
    /// lora: the blocks (default: that of the site; with --around, all after it)
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    blocks: Vec<usize>,
    /// lora: the scale of the update times the rank (default: twice the rank)
    #[arg(long)]
    alpha: Option<f64>,
}

/// How it is trained.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Training")]
struct Learning {
    /// What is learned
    #[arg(long, value_enum, default_value_t = ObjectiveName::NextToken)]
    objective: ObjectiveName,
    /// Strength of the preference: beta of DPO, lambda of ORPO
    #[arg(long, default_value_t = 0.1)]
    beta: f64,
    /// distill: the model to learn from
    #[arg(long, value_name = "MODEL")]
    teacher: Option<String>,
    /// Weight of the divergence from the model without the adapter
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0)]
    leash: f64,
    /// Weight of the mean square of the change, relative to that of the activation (default: 2; for lora none)
    #[arg(long, value_name = "WEIGHT")]
    change_penalty: Option<f64>,
    /// Passes over the samples (default: 8)
    #[arg(long, conflicts_with = "steps")]
    epochs: Option<usize>,
    /// Steps, instead of passes
    #[arg(long)]
    steps: Option<usize>,
    /// Samples in a batch
    #[arg(long)]
    batch: Option<usize>,
    /// Plain text is cut into windows of so many tokens
    #[arg(long)]
    context: Option<usize>,
    /// Peak learning rate
    #[arg(long)]
    lr: Option<f64>,
    /// End after so many measurements of the held-out loss without a better one, and keep the best state
    #[arg(long, value_name = "COUNT")]
    patience: Option<usize>,
    /// Steps between measurements of the held-out loss (default: a pass over the samples)
    #[arg(long, value_name = "STEPS")]
    evaluate_every: Option<usize>,
    /// Seed of the start and of the order of samples
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Names of [`Basis`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BasisName {
    /// A narrow hidden layer in the residual stream
    Residual,
    /// Low-rank updates of weight matrices
    Lora,
    /// A vector over features, added to their activations
    Bias,
    /// Weights from features to features, few of them
    Sparse,
    /// Two narrow factors over features
    LowRank,
}

/// Names of [`Activation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ActivationName {
    Identity,
    Relu,
    Gelu,
    Silu,
}

/// Names of [`Sparsity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SparsityName {
    /// An entry a feature
    None,
    /// As many entries as the budget says, chosen in training
    Top,
    /// All entries, pulled towards zero
    L1,
    /// All entries behind gates that close
    HardConcrete,
}

/// Names of [`Objective`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ObjectiveName {
    /// The tokens of the answers
    NextToken,
    /// Preferences, against the model without the adapter
    Dpo,
    /// Preferences, by odds
    Orpo,
    /// The predictions of another model
    Distill,
}

impl From<ActivationName> for Activation {
    fn from(name: ActivationName) -> Self {
        match name {
            ActivationName::Identity => Self::Identity,
            ActivationName::Relu => Self::Relu,
            ActivationName::Gelu => Self::Gelu,
            ActivationName::Silu => Self::Silu,
        }
    }
}

/// Entries of a bias, weights of a sparse matrix and columns of factors when nothing is said.
const ENTRIES: usize = 64;
const WEIGHTS: usize = 512;
const COLUMNS: usize = 4;
/// Entries of sparse factors when nothing is said.
const FACTOR_ENTRIES: usize = 512;
/// Strength of L1 and of hard-concrete gates when nothing is said.
const SPARSITY_WEIGHTS: [f64; 2] = [0.3, 1e-4];

impl Arguments {
    /// Refuses options of another basis or objective than the one that is asked for.
    fn check(&self) -> anyhow::Result<()> {
        let (form, learning, basis) = (&self.form, &self.learning, self.basis);
        let only = |given: bool, option: &str, of: BasisName, name: &str| {
            if given && basis != of {
                bail!("{option} belongs to --basis {name}");
            }
            Ok(())
        };
        only(
            form.activation.is_some(),
            "--activation",
            BasisName::Residual,
            "residual",
        )?;
        only(form.active_only, "--active-only", BasisName::Bias, "bias")?;
        only(
            form.sparsity.is_some(),
            "--sparsity",
            BasisName::Bias,
            "bias",
        )?;
        only(
            form.sparse_factors,
            "--sparse-factors",
            BasisName::LowRank,
            "low-rank",
        )?;
        only(
            !form.matrices.is_empty(),
            "--matrices",
            BasisName::Lora,
            "lora",
        )?;
        only(!form.blocks.is_empty(), "--blocks", BasisName::Lora, "lora")?;
        only(form.alpha.is_some(), "--alpha", BasisName::Lora, "lora")?;
        let over_features = matches!(
            basis,
            BasisName::Bias | BasisName::Sparse | BasisName::LowRank
        );
        if over_features && self.sae.is_none() {
            bail!("--sae is needed: a dictionary for the basis over its features");
        }
        if !over_features && self.sae.is_some() {
            bail!("--sae belongs to the bases over features: --basis bias, sparse or low-rank");
        }
        if self.rank.is_some() && matches!(basis, BasisName::Bias | BasisName::Sparse) {
            bail!("--rank does not belong to this basis: --budget says how many numbers it has");
        }
        let distills = learning.objective == ObjectiveName::Distill;
        only(self.around.is_some(), "--around", BasisName::Lora, "lora")?;
        let taught = learning.teacher.is_some() || self.around.is_some() && distills;
        if distills != taught {
            bail!("--objective distill and --teacher go together");
        }
        Ok(())
    }

    fn basis(&self, model: &ModelConfig, site: Site, features: usize) -> anyhow::Result<Basis> {
        let form = &self.form;
        let basis = match self.basis {
            BasisName::Residual => Basis::Residual {
                rank: self.rank.unwrap_or(8),
                activation: form.activation.map_or(Activation::Gelu, Activation::from),
            },
            BasisName::Lora => {
                let rank = self.rank.unwrap_or(8);
                let blocks = match &form.blocks[..] {
                    // Around a dictionary, what comes after it can make up for what it leaves out.
                    [] if self.around.is_some() => {
                        let first = site.layer().map_or(0, |layer| layer + 1);
                        (first..model.n_layers).collect()
                    }
                    [] => site.layer().into_iter().collect(),
                    blocks => blocks.to_vec(),
                };
                Basis::Lora {
                    rank,
                    alpha: form.alpha.unwrap_or(2.0 * rank as f64),
                    matrices: if form.matrices.is_empty() {
                        WeightName::of_blocks(model)
                    } else {
                        form.matrices.clone()
                    },
                    blocks,
                }
            }
            BasisName::Bias => {
                let count = self.budget;
                let weight = |kind: usize| form.sparsity_weight.unwrap_or(SPARSITY_WEIGHTS[kind]);
                Basis::Bias {
                    active_only: form.active_only,
                    sparsity: match form.sparsity.unwrap_or(SparsityName::Top) {
                        SparsityName::None => Sparsity::None,
                        SparsityName::Top => Sparsity::Top { count: ENTRIES },
                        SparsityName::L1 => Sparsity::L1 {
                            weight: weight(0),
                            count,
                        },
                        SparsityName::HardConcrete => Sparsity::HardConcrete {
                            weight: weight(1),
                            count,
                        },
                    },
                }
            }
            BasisName::Sparse => Basis::Sparse { weights: WEIGHTS },
            BasisName::LowRank => Basis::LowRank {
                rank: self.rank.unwrap_or(COLUMNS),
                entries: form.sparse_factors.then_some(FACTOR_ENTRIES),
            },
        };
        Ok(match self.budget {
            Some(budget) => basis.with_budget(budget, model, features)?,
            None => basis,
        })
    }

    fn config(
        &self,
        model: &ModelConfig,
        site: Site,
        features: usize,
    ) -> anyhow::Result<TrainConfig> {
        let learning = &self.learning;
        let basis = self.basis(model, site, features)?;
        let defaults = TrainConfig::of(basis, site, learning.seed);
        let beta = learning.beta;
        Ok(TrainConfig {
            objective: match learning.objective {
                ObjectiveName::NextToken => Objective::NextToken,
                ObjectiveName::Dpo => Objective::Dpo { beta },
                ObjectiveName::Orpo => Objective::Orpo { weight: beta },
                ObjectiveName::Distill => Objective::Distill,
            },
            around: self.around.is_some(),
            leash: learning.leash,
            length: match (learning.steps, learning.epochs) {
                (Some(steps), _) => Length::Steps(steps),
                (None, Some(epochs)) => Length::Epochs(epochs),
                (None, None) => defaults.length,
            },
            batch: learning.batch.unwrap_or(defaults.batch),
            context: learning.context.unwrap_or(defaults.context),
            lr: learning.lr.unwrap_or(defaults.lr),
            change_penalty: learning.change_penalty.unwrap_or(defaults.change_penalty),
            patience: learning.patience,
            evaluate_every: learning.evaluate_every,
            ..defaults
        })
    }
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    arguments.check()?;
    let samples = match &arguments.data {
        Some(path) => read_samples(path)?,
        None => built_in_samples()?,
    };
    make_room(&arguments.output, arguments.force)?;
    let named = app.load_model(&arguments.model)?;
    let config_of = named.model.config();
    let site = match (arguments.site, &arguments.around) {
        (Some(site), _) => site,
        // Where the dictionary was trained, unless it does not say.
        (None, Some(path)) => match Manifest::load_kind(path, SAE_KIND)?.site {
            Some(site) => site.parse()?,
            None => middle_site(config_of.n_layers),
        },
        (None, None) => middle_site(config_of.n_layers),
    };
    let mut input = TrainInput::new(&named.model, &named.name, &samples);
    if let Some(path) = arguments.sae.as_ref().or(arguments.around.as_ref()) {
        let (sae, manifest) = pullback_sae::load(path)?;
        manifest.check_model(&named.reference())?;
        manifest.check_site(&site.to_string())?;
        let place = std::path::absolute(path)?;
        let parent = ParentRef {
            kind: SAE_KIND.to_owned(),
            digest: manifest.digest(),
            path: place.display().to_string(),
        };
        input.dictionary = Some((Arc::new(sae), parent));
    }
    let features = input
        .dictionary
        .as_ref()
        .map_or(0, |(sae, _)| sae.n_features());
    let config = arguments.config(config_of, site, features)?;
    let teacher: Option<NamedModel> = match &arguments.learning.teacher {
        Some(teacher) => Some(app.load_model(teacher)?),
        None => None,
    };
    input.teacher = teacher.as_ref().map(|teacher| &teacher.model);
    let trained = train(&input, &config, &arguments.output, &app.control)?;
    let result = trained.result;
    let mut printed = json!(result);
    printed["seconds_per_step"] = json!(trained.seconds_per_step);
    app.print(&printed, || {
        let place = match trained.adapter.site() {
            Some(site) => format!(" at {site}"),
            None => String::new(),
        };
        let rank = result.rank.map(|rank| format!(", rank {rank}"));
        let gap = result.gap.map(|gap| {
            format!(
                "cross-entropy {:.4} clean, {:.4} with the dictionary, {:.4} with it and the updates: {:.0} % of the gap is closed\n",
                gap.ce_clean,
                gap.ce_spliced,
                gap.ce_adapted,
                100.0 * gap.closed()
            )
        });
        format!(
            "{}{}{place}: {} parameters, {} of them not zero\nheld-out loss {:.3} before, {:.3} after {} steps\n{}{}\n",
            result.basis,
            rank.unwrap_or_default(),
            result.parameters,
            result.nonzero,
            result.loss_before,
            result.loss_after,
            result.kept_step,
            gap.unwrap_or_default(),
            arguments.output.display()
        )
    })
}
