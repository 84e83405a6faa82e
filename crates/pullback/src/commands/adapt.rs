//! `pullback adapt`: learned changes, pulled back and read.

pub(crate) mod compare;
pub(crate) mod explain;
pub(crate) mod train;

/// Commands under `adapt`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train an adapter: in the residual stream, over features, or as updates of weights
    Train(Box<train::Arguments>),
    /// Train several bases with matched numbers of parameters and compare loss and readability
    Compare(compare::Arguments),
    /// Pull an adapter back through an autoencoder and read what changed
    Explain(Box<explain::Arguments>),
}
