//! `pullback chain heisenberg`: an observable pulled back through an automaton.

use std::time::Instant;

use anyhow::{Context as _, bail};
use pullback_chain::{Hamiltonian, PulledBack, Qca, Scheme, Truncation, parse_operator};
use pullback_report::number::duration;
use serde_json::{Map, Value, json};

use super::SiteOptions;
use crate::context::App;

/// Sites that are the most without --sites.
const MOST_SITES: usize = 400;

/// Options of `chain heisenberg`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback chain heisenberg --gate kicked-ising --operator Z --steps 4 --overlaps \"X,Z\"\n\
    The operator stands on site 0 of the answer, sites to its left are negative. Norms are those of Tr(A†B)/Tr 1: a string of \
    Pauli operators has length one. Entropies are in nats."
)]
pub(crate) struct Arguments {
    /// The gate or automaton, as in chain qca
    #[arg(
        long,
        allow_hyphen_values = true,
        required_unless_present = "hamiltonian",
        conflicts_with = "hamiltonian"
    )]
    gate: Option<String>,
    /// One Trotter step of a Hamiltonian in place of a gate
    #[arg(long, allow_hyphen_values = true, value_name = "H")]
    hamiltonian: Option<String>,
    /// The Trotter scheme
    #[arg(long, default_value = "first")]
    scheme: String,
    /// The Trotter step
    #[arg(long, default_value_t = 0.1)]
    dt: f64,
    #[command(flatten)]
    site: SiteOptions,
    /// The operator on one site
    #[arg(long, allow_hyphen_values = true)]
    operator: String,
    /// The operator stands on the right site of the first gates, not on the left one
    #[arg(long)]
    odd: bool,
    /// Steps
    #[arg(long)]
    steps: usize,
    /// Sites of the open chain; without it, as many as the operator can reach
    #[arg(long)]
    sites: Option<usize>,
    /// The largest bond dimension
    #[arg(long, default_value_t = Truncation::default().max_bond, value_name = "CHI")]
    max_bond: usize,
    /// The weight that one update may discard below that
    #[arg(long, default_value_t = Truncation::default().cutoff, value_name = "WEIGHT")]
    cutoff: f64,
    /// Operators on one site with which overlaps are taken, as "X,Z"
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    overlaps: String,
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let site = arguments.site.site()?;
    let qca = match (&arguments.gate, &arguments.hamiltonian) {
        (_, Some(h)) => Qca::trotter(
            &Hamiltonian::parse(h, site)?,
            &Scheme::parse(&arguments.scheme)?,
            arguments.dt,
        )?,
        (gate, None) => Qca::parse(gate.as_deref().unwrap_or_default(), site)?,
    };
    let d = qca.dimension();
    let one_site = |text: &str| {
        parse_operator(text, qca.site())?
            .one_site(d)
            .with_context(|| format!("`{text}` acts on two sites: expected an operator on one"))
    };
    let operator = one_site(&arguments.operator)?;
    let overlaps = arguments
        .overlaps
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(|text| Ok((text, one_site(text)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let truncation = Truncation::new(arguments.max_bond, arguments.cutoff)?;
    // A layer reaches one site further on each side.
    let reach = qca.layers().len().saturating_mul(arguments.steps);
    let sites = match arguments.sites {
        Some(sites) => sites,
        None if 2 * reach + 4 > MOST_SITES => {
            bail!(
                "--steps {} may reach {} sites: name the size of the chain with --sites",
                arguments.steps,
                2 * reach + 4
            )
        }
        None => 2 * reach + 4,
    };
    pullback_chain::Mps::check_size(d * d, sites, truncation.max_bond)?;
    let place = (sites / 2) & !1 | usize::from(arguments.odd);
    let start = Instant::now();
    let mut pulled = PulledBack::new(&qca, &operator, place, sites)?;
    let stage = app
        .control
        .stage("pull back", arguments.steps as u64, "steps");
    let relative = |j: usize| j as i64 - place as i64;
    let mut rows = Vec::with_capacity(arguments.steps + 1);
    for t in 0..=arguments.steps {
        app.control.check()?;
        if t > 0 {
            pulled.step(truncation)?;
        }
        stage.set(t as u64);
        stage.message(&format!("bond {}", pulled.ledger().max_bond));
        let mut found = Map::new();
        for (name, other) in &overlaps {
            let values: Vec<Value> = pulled
                .overlaps(other)?
                .iter()
                .enumerate()
                .filter(|(_, x)| x.norm() > 1e-12)
                .map(|(j, x)| json!({ "site": relative(j), "re": x.re, "im": x.im }))
                .collect();
            found.insert((*name).to_owned(), values.into());
        }
        let entropies = pulled.entropies()?;
        let support = pulled.support()?.map(|(a, b)| [relative(a), relative(b)]);
        rows.push(json!({
            "t": t,
            "support": support,
            "support_sites": support.map_or(0, |[a, b]| b - a + 1),
            "operator_entropy": entropies.iter().copied().fold(0.0, f64::max),
            "overlaps": found,
        }));
    }
    stage.finish();
    let ledger = pulled.ledger();
    let weights: Vec<Value> = pulled
        .weights()?
        .iter()
        .enumerate()
        .filter(|(_, w)| **w > 1e-12)
        .map(|(j, w)| json!({ "site": relative(j), "weight": w }))
        .collect();
    let last = rows.last().cloned().unwrap_or_default();
    let result = json!({
        "operator": arguments.operator,
        "steps": arguments.steps,
        "sites": sites,
        "support": last["support"],
        "support_sites": last["support_sites"],
        "operator_entropy": last["operator_entropy"],
        "overlaps": last["overlaps"],
        "weights": weights,
        "rows": rows,
        "ledger": {
            "discarded": ledger.discarded(),
            "error_bound": ledger.error_bound,
            "max_bond": ledger.max_bond,
            "norm_squared": pulled.norm_squared(),
        },
        "seconds": start.elapsed().as_secs_f64(),
    });
    app.print(&result, || {
        let mut text = format!("{:>5} {:>15} {:>7} {:>16}\n", "t", "support", "sites", "operator entropy");
        for row in &rows {
            let support = match row["support"].as_array() {
                Some(ends) => format!("{} to {}", ends[0], ends[1]),
                None => "-".to_owned(),
            };
            let entropy = row["operator_entropy"].as_f64().unwrap_or(f64::NAN);
            // Numbers of JSON do not take a width.
            let (t, size) = (row["t"].to_string(), row["support_sites"].to_string());
            text += &format!("{t:>5} {support:>15} {size:>7} {entropy:>16.9}\n");
        }
        if let Some(found) = last["overlaps"].as_object() {
            for (name, values) in found {
                for value in values.as_array().into_iter().flatten() {
                    let x = value["re"].as_f64().unwrap_or(f64::NAN);
                    text += &format!("overlap with {name} on {:>4}: {x:.9}\n", value["site"].to_string());
                }
            }
        }
        text + &format!(
            "bond dimension {}, discarded {:.1e}; truncation moved the operator by {:.1e} at most; {}\n",
            ledger.max_bond,
            ledger.discarded(),
            ledger.error_bound,
            duration(start.elapsed().as_secs_f64())
        )
    })
}
