//! `pullback adapt`: learned changes, pulled back and read.

pub(crate) mod cotrain;
pub(crate) mod explain;
pub(crate) mod train;

/// Commands under `adapt`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train an adapter: in the residual stream, over features, or as updates of weights
    Train(Box<train::Arguments>),
    /// Pull an adapter back through an autoencoder and read what changed
    Explain(explain::Arguments),
    /// Grow a model and its dictionaries together, beside a twin that grows alone, and judge both
    Cotrain(Box<cotrain::Arguments>),
}
