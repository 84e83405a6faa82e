//! Steps and rows.

use std::path::Path;
use std::time::{Duration, Instant};

use pullback_artifact::Control;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::ChainError;
use crate::mps;
use crate::scheme::Scheme;
use crate::statevector::Precision;

use super::checkpoint;
use super::config::{EngineKind, Movement, RunConfig, Setting};
use super::engine::{Amplitudes, Engine, Generators};
use super::tensors::{Cells, Tensors};

/// Time between checkpoints.
const CHECKPOINT: Duration = Duration::from_secs(20);

/// What was measured at one time: `t`, then every observable under its name.
pub type Row = Map<String, Value>;

/// What a run cost in truth.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ledger {
    /// Weight that truncation threw away; an engine that keeps everything has none.
    pub discarded: f64,
    /// The largest `|⟨ψ|ψ⟩ − 1|` in any row.
    pub norm_drift: f64,
    /// The largest change of the energy in any row in which it was measured: all if it was asked for, else the first and
    /// the last. `None` for gates.
    pub energy_drift: Option<f64>,
    /// The largest bond dimension, of engines that have one.
    pub max_bond: Option<usize>,
    /// What truncation took, bond by bond, and how far off the state can be.
    pub truncation: Option<TruncationEntry>,
    /// The steps of a Hamiltonian.
    pub trotter: Option<TrotterEntry>,
}

/// What truncation took from a state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TruncationEntry {
    /// The weight discarded at each bond.
    pub by_bond: Vec<f64>,
    /// The norm of the difference from the same run without truncation is no larger, before normalising.
    /// `None` for infinite chains.
    pub error_bound: Option<f64>,
}

/// How a Hamiltonian was cut into steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrotterEntry {
    /// The scheme.
    pub scheme: String,
    /// Its order.
    pub order: usize,
    /// The step.
    pub dt: f64,
    /// Steps done.
    pub steps: usize,
}

/// Rows, ledger and time of a run.
#[derive(Clone, Debug, Serialize)]
pub struct RunResult {
    /// One row at the start and one after every `every` steps.
    pub rows: Vec<Row>,
    /// What it cost in truth.
    pub ledger: Ledger,
    /// The time it took, that of an earlier part that was taken up not counted.
    pub seconds: f64,
}

/// How far a run has come.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) steps: usize,
    pub(super) rows: Vec<Row>,
    pub(super) norm_drift: f64,
    pub(super) first_energy: Option<f64>,
    pub(super) energy_drift: Option<f64>,
}

/// Does a run. With a directory it keeps a checkpoint there, every twenty seconds and when it is stopped, and takes up one
/// that it finds; what comes out is the same, bit by bit.
///
/// # Errors
/// The configuration is wrong, memory is short, a file cannot be written, or the user stopped it.
pub fn run(
    config: &RunConfig,
    dir: Option<&Path>,
    control: &Control,
) -> Result<RunResult, ChainError> {
    let setting = Setting::new(config)?;
    match (config.engine, config.precision) {
        (EngineKind::Statevector, Precision::Double) => evolve(
            Amplitudes::<f64>::new(config, &setting)?,
            config,
            &setting,
            dir,
            control,
        ),
        (EngineKind::Statevector, Precision::Single) => evolve(
            Amplitudes::<f32>::new(config, &setting)?,
            config,
            &setting,
            dir,
            control,
        ),
        (EngineKind::Mps, Precision::Double) => evolve(
            Tensors::new(config, &setting)?,
            config,
            &setting,
            dir,
            control,
        ),
        (EngineKind::Infinite, Precision::Double) => evolve(
            Cells::new(config, &setting)?,
            config,
            &setting,
            dir,
            control,
        ),
        (EngineKind::Mps | EngineKind::Infinite, Precision::Single) => Err(ChainError::value(
            "the precision of a matrix-product state",
            "single",
            "expected double",
        )),
        (EngineKind::Stabilizer, _) => evolve(
            Generators::new(config, &setting)?,
            config,
            &setting,
            dir,
            control,
        ),
    }
}

fn evolve(
    mut engine: impl Engine,
    config: &RunConfig,
    setting: &Setting,
    dir: Option<&Path>,
    control: &Control,
) -> Result<RunResult, ChainError> {
    let start = Instant::now();
    let file = dir.map(|dir| dir.join(checkpoint::FILE));
    let mut progress = match &file {
        Some(file) => checkpoint::read(file, config, &mut engine).unwrap_or_default(),
        None => Progress::default(),
    };
    let stage = control.stage("evolve", config.steps as u64, "steps");
    stage.resume_from(progress.steps as u64);
    if progress.rows.is_empty() {
        record(&mut progress, &engine, config, setting)?;
    }
    let mut written = Instant::now();
    while progress.steps < config.steps {
        if let Err(interrupted) = control.check() {
            if let Some(file) = &file {
                checkpoint::write(file, config, &progress, &engine)?;
            }
            return Err(interrupted.into());
        }
        let steps = config.every.min(config.steps - progress.steps);
        engine.advance(steps)?;
        progress.steps += steps;
        record(&mut progress, &engine, config, setting)?;
        stage.set(progress.steps as u64);
        stage.message(&match engine.truncated() {
            Some(ledger) => format!(
                "bond {}, discarded {:.1e}",
                ledger.max_bond,
                ledger.discarded()
            ),
            None => format!("norm off by {:.1e}", progress.norm_drift),
        });
        if let Some(file) = file.as_ref().filter(|_| written.elapsed() >= CHECKPOINT) {
            checkpoint::write(file, config, &progress, &engine)?;
            written = Instant::now();
        }
    }
    stage.finish();
    let trotter = match &setting.movement {
        Movement::Hamiltonian(_, scheme) => Some(entry(scheme, config)),
        Movement::Automaton(_) => None,
    };
    let truncated = engine.truncated();
    Ok(RunResult {
        rows: progress.rows,
        ledger: Ledger {
            discarded: truncated.map_or(0.0, mps::Ledger::discarded),
            norm_drift: progress.norm_drift,
            energy_drift: progress.energy_drift,
            max_bond: truncated.map(|ledger| ledger.max_bond),
            truncation: truncated.map(|ledger| TruncationEntry {
                by_bond: ledger.by_bond.clone(),
                error_bound: (config.engine == EngineKind::Mps).then_some(ledger.error_bound),
            }),
            trotter,
        },
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn entry(scheme: &Scheme, config: &RunConfig) -> TrotterEntry {
    TrotterEntry {
        scheme: scheme.name().to_owned(),
        order: scheme.order(),
        dt: config.dt,
        steps: config.steps,
    }
}

/// Measures a row.
fn record(
    progress: &mut Progress,
    engine: &impl Engine,
    config: &RunConfig,
    setting: &Setting,
) -> Result<(), ChainError> {
    let h = setting.hamiltonian(config.boundary);
    let t = match setting.movement {
        Movement::Hamiltonian(..) => progress.steps as f64 * config.dt,
        Movement::Automaton(_) => progress.steps as f64,
    };
    let mut row = Row::new();
    row.insert("t".to_owned(), t.into());
    let mut energy = None;
    for observable in &setting.observables {
        let value = observable.measure(engine, h)?;
        if observable.is_energy() {
            energy = value;
        }
        row.insert(observable.name.clone(), value.into());
    }
    let ends = progress.steps == 0 || progress.steps == config.steps;
    if let (None, true, Some((h, boundary))) = (energy, ends, h) {
        energy = Some(engine.energy(h, boundary)?);
    }
    if let Some(energy) = energy {
        let first = *progress.first_energy.get_or_insert(energy);
        let drift = (energy - first).abs();
        progress.energy_drift = Some(progress.energy_drift.map_or(drift, |most| most.max(drift)));
    }
    progress.norm_drift = progress.norm_drift.max((engine.norm_squared() - 1.0).abs());
    progress.rows.push(row);
    Ok(())
}
