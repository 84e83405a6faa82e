//! Training dictionaries.

mod checkpoint;
mod companion;
mod config;
mod session;
mod start;
mod units;
mod wiring;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pullback_activations::{ActivationStore, Extent, Feed, Piece, Position, StoreFeed, read_ahead};
use pullback_artifact::{Control, Manifest, read_json};
use serde::{Deserialize, Serialize};

use crate::metrics::{DensityHistogram, ReconstructionMetrics};
use crate::{CrossEntropy, Sae, SaeError, saelens};
pub use companion::{Companion, CompanionState, Met};
pub use config::{DecoderNorm, Schedule, TrainConfig};
use session::{Common, Session};
pub use units::InputNorm;
pub use wiring::Wiring;
use wiring::{Wire, Wires};

/// The `kind` of an autoencoder's manifest.
pub const SAE_KIND: &str = "sae";

/// One point of the training curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Tokens trained on.
    pub tokens: usize,
    /// Mean loss since the last point (fraction of variance unexplained, plus the auxiliary term).
    pub loss: f64,
    /// Explained variance of a sample of held-out rows; none when the store holds none.
    pub explained_variance: Option<f64>,
    /// Active features a token, in the last batch.
    #[serde(default)]
    pub l0: f64,
    /// Features that count as dead.
    pub dead: usize,
}

/// The figures of one site of a crosscoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteResult {
    /// The site.
    pub site: String,
    /// Its reconstruction; `dead_fraction` is on held-out rows here.
    #[serde(flatten)]
    pub reconstruction: ReconstructionMetrics,
    /// The model with this site alone replaced.
    #[serde(flatten)]
    pub cross_entropy: Option<CrossEntropy>,
}

impl CurvePoint {
    /// In a few words.
    fn message(&self) -> String {
        let explained = self
            .explained_variance
            .map_or_else(String::new, |explained| {
                format!("explained variance {explained:.3}, ")
            });
        format!("{explained}L0 {:.0}, {} dead", self.l0, self.dead)
    }
}

/// The figures of a dictionary: `result.json`, and the `sae` object of the commands. On held-out rows unless said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SaeResult {
    /// The kind by which codes are chosen in use: `topk`, `jumprelu`, `gated` or `relu`.
    pub selection: String,
    /// Number of features.
    pub features: usize,
    /// Active features a token, at most, where their number is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// Error, explained variance and lengths. `dead_fraction` is the share of features active on no normal training row.
    #[serde(flatten)]
    pub reconstruction: ReconstructionMetrics,
    /// How many features have which density, on training rows.
    pub density_histogram: DensityHistogram,
    /// Cross-entropies and their score, where the model was run; of a crosscoder's first site.
    #[serde(flatten)]
    pub cross_entropy: Option<CrossEntropy>,
    /// Figures of each site of a crosscoder; `reconstruction` is of all sites side by side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteResult>,
    /// Tokens trained on.
    pub train_tokens: usize,
    /// Tokens a second in training.
    pub train_tokens_per_second: f64,
}

/// What training keeps in `training.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Tokens trained on.
    pub tokens: usize,
    /// The curve.
    pub curve: Vec<CurvePoint>,
}

/// What [`train`] returns.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The dictionary, in the units of the activations.
    pub sae: Sae,
    /// The curve.
    pub training: Training,
    /// Share of features that count as dead at the end.
    pub dead_fraction: f64,
    /// Tokens a second, over the tokens that this call trained on.
    pub tokens_per_second: f64,
}

/// A dictionary to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// How.
    pub config: TrainConfig,
    /// The artifact to make.
    pub out: PathBuf,
}

/// Time between checkpoints; more where they take long to write.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(20);
/// Checkpoints are so many times as far apart as one takes to write.
const CHECKPOINT_SHARE: u32 = 20;

/// Trains on the store's normal training rows and leaves an artifact at `out`: the SAELens layout,
/// `training.json` and `pullback.json`.
///
/// Interrupted work stays in `<out>.partial`; the same call goes on from its last checkpoint, and what it
/// then leaves is byte for byte what an uninterrupted call leaves.
///
/// # Errors
/// An option makes no sense; the store has too few rows; `out` exists; training diverges; the work was
/// interrupted.
pub fn train(
    store: &ActivationStore,
    config: &TrainConfig,
    out: &Path,
    control: &Control,
) -> Result<Trained, SaeError> {
    let feed = StoreFeed::new(&[store], config.seed, StoreFeed::BUFFER)?;
    let jobs = [Job {
        config: config.clone(),
        out: out.to_owned(),
    }];
    let mut trained = train_all(&feed, &jobs, control, &mut |_, _| Ok(()))?;
    Ok(trained.remove(0))
}

/// Trains several dictionaries on the same rows, which are made or read once. Each is what it would be alone.
///
/// Each point of a dictionary's curve is handed to `watch` with the number of its job. Rows are made ahead while steps
/// compute. Interruption is as in [`train`].
///
/// # Errors
/// As [`train`]; the batches or the numbers of steps of two jobs differ; a job's site is not in the feed; rows cannot be
/// made.
pub fn train_all(
    feed: &dyn Feed,
    jobs: &[Job],
    control: &Control,
    watch: &mut dyn FnMut(usize, &CurvePoint) -> Result<(), SaeError>,
) -> Result<Vec<Trained>, SaeError> {
    let Some(Job { config, .. }) = jobs.first() else {
        return Err(SaeError::Option("there is nothing to train".to_owned()));
    };
    let size = config.batch;
    for job in jobs {
        job.config.check(feed.pass())?;
    }
    let steps = config.steps(feed.pass())?;
    for Job { config, out } in jobs {
        let own = config.steps(feed.pass())?;
        if config.batch != size || own != steps {
            return Err(SaeError::Option(format!(
                "dictionaries that are trained together have the same batches and steps: {} has {own} steps of {} rows, the first {steps} of {size}",
                out.display(),
                config.batch
            )));
        }
    }
    let first = feed.piece(0, control)?;
    let common = Common {
        feed,
        rows: feed.digest(),
        first: &first,
        steps,
    };
    let mut sessions = Vec::with_capacity(jobs.len());
    for Job { config, out } in jobs {
        sessions.push(Session::open(&common, config, out, control)?);
    }
    // Checkpoints are not all written at once: some may be further than others.
    let places = sessions.iter().map(Session::place);
    let (begin, position) = places
        .min_by_key(|(step, _)| *step)
        .unwrap_or((0, Position::default()));
    let stage = control.stage("train", (steps * size) as u64, "tokens");
    stage.resume_from((begin * size) as u64);
    let clock = Instant::now();
    let extent = Extent {
        from: position,
        known: (position.piece == 0).then(|| first.clone()),
        rows: (steps - begin) * size,
    };
    read_ahead(feed, extent, control, |reader| {
        let save = |sessions: &[Session]| sessions.iter().try_for_each(Session::save);
        let mut saved = Instant::now();
        let mut between = CHECKPOINT_EVERY;
        let mut piece = Piece::default();
        for step in begin..steps {
            if control.is_interrupted() || saved.elapsed() > between {
                let clock = Instant::now();
                save(&sessions)?;
                between = CHECKPOINT_EVERY.max(CHECKPOINT_SHARE * clock.elapsed());
                saved = Instant::now();
                control.check()?;
            }
            if let Err(error) = reader.read(size, &mut piece) {
                save(&sessions)?;
                return Err(SaeError::from(error));
            }
            let mut messages = Vec::new();
            for (number, session) in sessions.iter_mut().enumerate() {
                if session.place().0 > step {
                    continue;
                }
                if let Some(point) = session.step(&piece, reader.position())? {
                    watch(number, &point)?;
                    messages.push(point.message());
                }
            }
            if let Some(message) = messages.first() {
                let more = messages.len() - 1;
                stage.message(&match more {
                    0 => message.clone(),
                    _ => format!("{message}, and {more} more"),
                });
            }
            stage.advance(size as u64);
        }
        Ok(())
    })?;
    let seconds = clock.elapsed().as_secs_f64();
    stage.finish();
    sessions
        .into_iter()
        .map(|session| session.finish(&common, seconds))
        .collect()
}

/// Loads an autoencoder's artifact and checks that it is one.
///
/// # Errors
/// The directory is no autoencoder, or a file of it is damaged.
pub fn load(path: &Path) -> Result<(Sae, Manifest), SaeError> {
    let manifest = Manifest::load_kind(path, SAE_KIND)?;
    manifest.verify_sizes(path)?;
    Ok((saelens::load(path)?, manifest))
}

/// Reads what training kept beside an autoencoder.
///
/// # Errors
/// `training.json` is missing or damaged.
pub fn load_training(path: &Path) -> Result<Training, SaeError> {
    Ok(read_json(&path.join("training.json"))?)
}
