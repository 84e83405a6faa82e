//! `pullback adapt`: learned changes, pulled back and read.

pub(crate) mod compare;
pub(crate) mod cotrain;
pub(crate) mod explain;
pub(crate) mod merge;
pub(crate) mod train;

/// Commands under `adapt`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train an adapter: in the residual stream, over features, or as updates of weights
    Train(Box<train::Arguments>),
    /// Train several bases with matched numbers of parameters and compare loss and readability
    Compare(compare::Arguments),
    /// Read through an autoencoder what an adapter, or another checkpoint, changed
    Explain(Box<explain::Arguments>),
    /// Make one adapter of several
    Merge(merge::Arguments),
    /// Grow a model and its dictionaries together, beside a twin that grows alone, and judge both
    Cotrain(Box<cotrain::Arguments>),
}
