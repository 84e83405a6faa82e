//! `pullback chain`: quantum chains.

pub(crate) mod ground;
pub(crate) mod heisenberg;
pub(crate) mod qca;
pub(crate) mod run;

/// Commands under `chain`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Pull an operator back through an automaton
    Heisenberg(Box<heisenberg::Arguments>),
    /// Everything that can be said of a cellular automaton from its gate
    Qca(Box<qca::Arguments>),
    /// The ground state of a Hamiltonian on an open chain
    Ground(Box<ground::Arguments>),
    /// Evolve a chain and measure it
    Run(Box<run::Arguments>),
}

/// What stands on each site.
#[derive(Debug, clap::Args)]
pub(crate) struct SiteOptions {
    /// Spin of each site: 1/2, 1, 3/2, …
    #[arg(long, default_value = "1/2", conflicts_with = "clock")]
    pub(crate) spin: String,
    /// Sites are clocks of so many positions, with operators X, Xd, Z, Zd
    #[arg(long, value_name = "POSITIONS")]
    pub(crate) clock: Option<usize>,
}

impl SiteOptions {
    /// The site that the options describe.
    pub(crate) fn site(&self) -> Result<pullback_chain::Site, pullback_chain::ChainError> {
        match self.clock {
            Some(positions) => pullback_chain::Site::clock(positions),
            None => pullback_chain::Site::spin(&self.spin),
        }
    }
}
