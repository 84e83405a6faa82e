//! `pullback chain ground`: the ground state of a Hamiltonian.

use std::time::Instant;

use anyhow::bail;
use pullback_chain::{Boundary, GroundOptions, Hamiltonian, Observable, Truncation, ground};
use pullback_report::number::duration;
use serde_json::{Map, Value, json};

use super::SiteOptions;
use crate::context::App;

/// Options of `chain ground`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  pullback chain ground --hamiltonian heisenberg --sites 40 --max-bond 100 --observe \"entropy:19,SzSz:19\"\n\
    The variance is that of the energy: near zero for an eigenstate. Site j counts from 0, bond j joins j and j+1."
)]
pub(crate) struct Arguments {
    /// The Hamiltonian: an expression such as "-ZZ - 0.5*X", or a model such as "xxz(delta=0.5)"
    #[arg(long, allow_hyphen_values = true, value_name = "H")]
    hamiltonian: String,
    #[command(flatten)]
    site: SiteOptions,
    /// Sites of the open chain
    #[arg(long)]
    sites: usize,
    /// The largest bond dimension
    #[arg(long, default_value_t = Truncation::default().max_bond, value_name = "CHI")]
    max_bond: usize,
    /// The weight that one cut may discard below that
    #[arg(long, default_value_t = Truncation::default().cutoff, value_name = "WEIGHT")]
    cutoff: f64,
    /// The most sweeps there and back
    #[arg(long, default_value_t = GroundOptions::default().sweeps)]
    sweeps: usize,
    /// It ends when a sweep changes the energy by less than this, relatively
    #[arg(long, default_value_t = GroundOptions::default().tolerance)]
    tolerance: f64,
    /// What is measured, as "X:9,ZZ:9,entropy:9"
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    observe: String,
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    let site = arguments.site.site()?;
    if arguments.sweeps == 0 {
        bail!("--sweeps is 0: expected 1 or more");
    }
    if !(arguments.tolerance > 0.0 && arguments.tolerance < 1.0) {
        bail!(
            "--tolerance is {}: expected a number above 0 and below 1",
            arguments.tolerance
        );
    }
    let h = Hamiltonian::parse(&arguments.hamiltonian, site)?;
    let options = GroundOptions {
        truncation: Truncation::new(arguments.max_bond, arguments.cutoff)?,
        sweeps: arguments.sweeps,
        tolerance: arguments.tolerance,
    };
    let observables = Observable::parse_list(
        &arguments.observe,
        h.site(),
        arguments.sites,
        Boundary::Open,
    )?;
    let start = Instant::now();
    let found = ground(&h, arguments.sites, options, &app.control)?;
    let mut values = Map::new();
    for observable in &observables {
        let value = observable.measure(&found.state, Some((&h, Boundary::Open)))?;
        values.insert(observable.name.clone(), value.into());
    }
    let seconds = start.elapsed().as_secs_f64();
    let per_site = found.energy / arguments.sites as f64;
    let max_bond = found.state.ledger().max_bond;
    let result = json!({
        "energy": found.energy,
        "variance": found.variance,
        "energy_per_site": per_site,
        "sweeps": found.sweeps,
        "converged": found.converged,
        "discarded": found.discarded,
        "max_bond": max_bond,
        "values": values,
        "seconds": seconds,
    });
    app.print(&result, || {
        let mut text = format!(
            "energy          {:.12}\nper site        {per_site:.12}\nvariance        {:.2e}\nbond dimension  {max_bond}, the last sweep discarded {:.1e}\n",
            found.energy, found.variance, found.discarded
        );
        for (name, value) in &values {
            let value = value.as_f64().map_or_else(|| Value::Null.to_string(), |x| format!("{x:.9}"));
            text += &format!("{name:15} {value}\n");
        }
        let rest = if found.converged {
            ""
        } else {
            "; the energy had not come to rest: raise --sweeps"
        };
        text + &format!("{} sweeps, {}{rest}\n", found.sweeps, duration(seconds))
    })
}
