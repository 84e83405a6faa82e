//! `pullback chain run`: a chain, evolved and measured.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use pullback_artifact::{Manifest, PartialDir, write_atomic, write_json};
use pullback_chain::{Boundary, EngineKind, Precision, RunConfig, RunResult, Truncation};
use pullback_report::chain::{ChainPage, Curves, Tile, render};
use pullback_report::number::{count, duration, significant};
use pullback_report::plot::{Caption, Colours, Field, Series};

use super::SiteOptions;
use crate::context::{App, make_room};

/// Options of `chain run`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback chain run --hamiltonian \"-1*ZZ - 2*X\" --sites 20 --state \"+\" --scheme optimized4-11 --dt 0.05 --time 4 \\\n    \
    --observe \"X:9,ZZ:9,entropy:9\" -o quench\n\
    Site j counts from 0, bond j joins j and j+1; `*` is every site or bond, `ZZ:3-7` two sites. Entropies are in nats.\n\
    With -o it keeps checkpoints: after an interruption the same command goes on to the same figures."
)]
pub(crate) struct Arguments {
    /// The Hamiltonian: an expression such as "-ZZ - 0.5*X", or a model such as "xxz(delta=0.5)"
    #[arg(
        long,
        allow_hyphen_values = true,
        value_name = "H",
        required_unless_present = "gate",
        conflicts_with = "gate"
    )]
    hamiltonian: Option<String>,
    /// A gate or automaton in place of a Hamiltonian: a name, a .npy file or an expression
    #[arg(long, allow_hyphen_values = true)]
    gate: Option<String>,
    #[command(flatten)]
    site: SiteOptions,
    /// Sites of the chain
    #[arg(long)]
    sites: usize,
    /// The chain closes to a ring
    #[arg(long)]
    ring: bool,
    /// The state at the start: a pattern of 0, 1, +, - that is repeated, or wall (left half 0, right half 1)
    #[arg(long, default_value = "0", allow_hyphen_values = true)]
    state: String,
    /// What holds the state
    #[arg(long, value_enum, default_value_t)]
    engine: Engine,
    /// Amplitudes in 32 bits
    #[arg(long)]
    single: bool,
    /// The largest bond dimension of the engine mps
    #[arg(long, default_value_t = Truncation::default().max_bond, value_name = "CHI")]
    max_bond: usize,
    /// The weight that one update of the engine mps may discard below that
    #[arg(long, default_value_t = Truncation::default().cutoff, value_name = "WEIGHT")]
    cutoff: f64,
    /// The Trotter scheme: first, leapfrog2, optimized2-5, suzuki4, optimized4-11, symmetric6-19, `a=…;b=…` or `leapfrog=…`
    #[arg(long, default_value = "optimized4-11")]
    scheme: String,
    /// The Trotter step
    #[arg(long, default_value_t = 0.05)]
    dt: f64,
    /// Time to evolve a Hamiltonian, a multiple of --dt
    #[arg(long, conflicts_with = "steps")]
    time: Option<f64>,
    /// Steps in place of a time
    #[arg(long)]
    steps: Option<usize>,
    /// Steps from one row to the next
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// What is measured, as "X:9,ZZ:9,entropy:9,energy"
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    observe: String,
    /// Where the rows, a page and the checkpoints go
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Replace the output if it is there
    #[arg(long)]
    force: bool,
}

/// What holds the state.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum Engine {
    /// All amplitudes: exact, as many sites as memory takes
    #[default]
    Statevector,
    /// Stabilizer generators: Clifford gates, thousands of sites
    Stabilizer,
    /// A matrix-product state: long open chains, as far as --max-bond holds the entanglement
    Mps,
    /// A matrix-product state of the infinite chain, which --sites only numbers
    Infinite,
}

/// The bound on the distance of states from which on figures are said to be doubtful: one of modulus 1 may be off by twice
/// as much.
const WORTH_SAYING: f64 = 0.05;

impl Arguments {
    fn config(&self) -> anyhow::Result<RunConfig> {
        let steps = match (self.time, self.steps, &self.gate) {
            (None, Some(steps), _) => steps,
            (Some(time), None, None) => RunConfig::steps_in(time, self.dt)?,
            (_, _, Some(_)) => bail!("a gate has steps: use --steps N"),
            _ => bail!("how long? Use --time T or --steps N"),
        };
        if self.site.clock.is_some() && self.hamiltonian.as_deref() == Some("pxp") {
            bail!("--clock: the model pxp has sites of its own");
        }
        Ok(RunConfig {
            hamiltonian: self.hamiltonian.clone(),
            gate: self.gate.clone(),
            spin: self.site.spin.clone(),
            clock: self.site.clock,
            sites: self.sites,
            boundary: if self.ring {
                Boundary::Ring
            } else {
                Boundary::Open
            },
            state: self.state.clone(),
            engine: match self.engine {
                Engine::Statevector => EngineKind::Statevector,
                Engine::Stabilizer => EngineKind::Stabilizer,
                Engine::Mps => EngineKind::Mps,
                Engine::Infinite => EngineKind::Infinite,
            },
            precision: if self.single {
                Precision::Single
            } else {
                Precision::Double
            },
            truncation: Truncation::new(self.max_bond, self.cutoff)?,
            scheme: self.scheme.clone(),
            dt: self.dt,
            steps,
            every: self.every,
            observe: self.observe.clone(),
        })
    }
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.config()?;
    let Some(output) = &arguments.output else {
        let result = pullback_chain::run(&config, None, &app.control)?;
        return app.print(&result, || describe(&result));
    };
    make_room(output, arguments.force)?;
    let dir = PartialDir::open(output)?;
    let result = pullback_chain::run(&config, Some(dir.path()), &app.control)?;
    write_atomic(&dir.path().join("rows.csv"), csv(&result).as_bytes())?;
    let manifest = Manifest::new("chain-run", 0).with_config(serde_json::to_value(&config)?);
    dir.finish_skipping(manifest, &["checkpoint.safetensors"])?;
    // The time it took stands outside the manifest.
    write_json(&output.join("result.json"), &result)?;
    write_atomic(
        &output.join("report.html"),
        render(&page(&config, &result)).as_bytes(),
    )?;
    app.print(&result, || {
        describe(&result) + &format!("{}\n", output.join("report.html").display())
    })
}

/// The rows as text with commas, floats so that they are read back bit for bit.
fn csv(result: &RunResult) -> String {
    let mut text = String::new();
    if let Some(first) = result.rows.first() {
        let names: Vec<&str> = first.keys().map(String::as_str).collect();
        text += &names.join(",");
        text.push('\n');
    }
    for row in &result.rows {
        let values: Vec<String> = row.values().map(ToString::to_string).collect();
        text += &values.join(",");
        text.push('\n');
    }
    text
}

fn describe(result: &RunResult) -> String {
    let names: Vec<&String> = result
        .rows
        .first()
        .map(|row| row.keys().collect())
        .unwrap_or_default();
    let mut text = String::new();
    for name in &names {
        let _ = write!(text, "{name:>14} ");
    }
    text.push('\n');
    for row in &result.rows {
        for name in &names {
            let value = row.get(*name).and_then(serde_json::Value::as_f64);
            let _ = write!(text, "{:>14.9} ", value.unwrap_or(f64::NAN));
        }
        text.push('\n');
    }
    let ledger = &result.ledger;
    text += &format!(
        "discarded {:.1e}, norm off by {:.1e}{}; {}\n",
        ledger.discarded,
        ledger.norm_drift,
        ledger
            .energy_drift
            .map_or_else(String::new, |e| format!(", energy off by {e:.1e}")),
        duration(result.seconds)
    );
    if let (Some(max_bond), Some(truncation)) = (ledger.max_bond, &ledger.truncation) {
        let bound = truncation.error_bound.map_or_else(String::new, |bound| {
            format!("; truncation moved the state by {bound:.1e} at most")
        });
        let spent = match truncation.error_bound {
            Some(bound) => bound > WORTH_SAYING,
            None => ledger.discarded > WORTH_SAYING * WORTH_SAYING,
        };
        text += &format!(
            "bond dimension {max_bond}{bound}{}\n",
            if spent {
                ": raise --max-bond before these figures are relied on"
            } else {
                ""
            }
        );
    }
    text
}

/// A column of the rows.
fn column(result: &RunResult, name: &str) -> Vec<f64> {
    let value = |row: &pullback_chain::run::Row| {
        row.get(name)
            .and_then(serde_json::Value::as_f64)
            .unwrap_or(f64::NAN)
    };
    result.rows.iter().map(value).collect()
}

fn page(config: &RunConfig, result: &RunResult) -> ChainPage {
    let what = config
        .hamiltonian
        .as_ref()
        .or(config.gate.as_ref())
        .cloned()
        .unwrap_or_default();
    let times = column(result, "t");
    let names: Vec<String> = result
        .rows
        .first()
        .map(|row| row.keys().skip(1).cloned().collect())
        .unwrap_or_default();
    // Figures of one kind at several places are a picture, single ones curves.
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for name in names {
        let (kind, place) = name.rsplit_once(':').unwrap_or((&name, ""));
        let key = if place.parse::<usize>().is_ok() {
            kind.to_owned()
        } else {
            name.clone()
        };
        match groups.iter_mut().find(|(group, _)| *group == key) {
            Some((_, members)) => members.push(name.clone()),
            None => groups.push((key, vec![name.clone()])),
        }
    }
    let mut fields = Vec::new();
    let mut curves = Vec::new();
    for (number, (kind, members)) in groups.iter().enumerate() {
        if members.len() >= 4 {
            fields.push(field(number, kind, members, &times, result));
            continue;
        }
        for (i, name) in members.iter().enumerate() {
            let points: Vec<(f64, f64)> = times.iter().copied().zip(column(result, name)).collect();
            curves.push(Curves {
                caption: Caption::new(
                    &format!("curve-{number}-{i}"),
                    name,
                    &format!("{name} over time."),
                ),
                x_name: "t".to_owned(),
                y_name: unit(name),
                series: vec![Series::new(name, &points)],
            });
        }
    }
    let ledger = &result.ledger;
    let mut tiles = vec![
        Tile::new(
            "Sites",
            count(config.sites as u64),
            format!("{:?} boundary, engine {:?}", config.boundary, config.engine).to_lowercase(),
        ),
        Tile::new(
            "Norm drift",
            significant(ledger.norm_drift, 2),
            "largest distance of the squared norm from one",
        ),
        Tile::new(
            "Discarded",
            significant(ledger.discarded, 2),
            "weight thrown away by truncation",
        ),
    ];
    if let Some(drift) = ledger.energy_drift {
        tiles.push(Tile::new(
            "Energy drift",
            significant(drift, 2),
            "largest change of the energy in the rows in which it was measured",
        ));
    }
    if let (Some(max_bond), Some(truncation)) = (ledger.max_bond, &ledger.truncation) {
        tiles.push(Tile::new(
            "Bond dimension",
            count(max_bond as u64),
            truncation.error_bound.map_or_else(
                || "the largest there was".to_owned(),
                |bound| {
                    format!(
                        "truncation moved the state by {} at most",
                        significant(bound, 2)
                    )
                },
            ),
        ));
    }
    let mut notes = vec![format!(
        "Start: {}. {} rows in {}.",
        config.state,
        count(result.rows.len() as u64),
        duration(result.seconds)
    )];
    if let Some(trotter) = &ledger.trotter {
        notes.push(format!("Trotter scheme {} of order {} with dt = {}: its error is part of every figure and falls with that power of dt.", trotter.scheme, trotter.order, trotter.dt));
    }
    notes.push("Entropies are in nats. Bond j joins sites j and j + 1.".to_owned());
    ChainPage {
        title: format!("A chain of {} sites", config.sites),
        subtitle: what,
        tiles,
        fields,
        curves,
        tables: Vec::new(),
        notes,
    }
}

fn unit(name: &str) -> String {
    if name.starts_with("entropy") {
        format!("{name}, nats")
    } else {
        name.to_owned()
    }
}

fn field(
    number: usize,
    kind: &str,
    members: &[String],
    times: &[f64],
    result: &RunResult,
) -> Field {
    let place = |name: &String| {
        name.rsplit_once(':')
            .and_then(|(_, place)| place.parse::<i64>().ok())
            .unwrap_or(0)
    };
    let mut members: Vec<&String> = members.iter().collect();
    members.sort_by_key(|name| place(name));
    let columns: Vec<Vec<f64>> = members.iter().map(|name| column(result, name)).collect();
    let rows: Vec<Vec<f64>> = (0..times.len())
        .map(|t| columns.iter().map(|column| column[t]).collect())
        .collect();
    let most = rows
        .iter()
        .flatten()
        .filter(|x| x.is_finite())
        .fold(0.0_f64, |m, x| m.max(x.abs()));
    let signed = rows.iter().flatten().any(|x| *x < -1e-9);
    let full = if most > 0.0 { most } else { 1.0 };
    let bonds = kind == "entropy";
    Field {
        caption: Caption::new(
            &format!("field-{number}"),
            kind,
            &format!("{kind} over places and time."),
        ),
        rows,
        times: (
            times.first().copied().unwrap_or(0.0),
            times.last().copied().unwrap_or(0.0),
        ),
        time_name: "t".to_owned(),
        first_place: members.first().map_or(0, |name| place(name)),
        place_name: if bonds { "bond" } else { "site or bond" }.to_owned(),
        colours: if signed {
            Colours::AboutZero(full)
        } else {
            Colours::From0To(full)
        },
        value_name: unit(kind),
        lines: Vec::new(),
    }
}
