//! `pullback sae`: sparse autoencoders.

pub(crate) mod compare;
pub(crate) mod eval;
pub(crate) mod features;
pub(crate) mod train;

/// Commands under `sae`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train a TopK autoencoder on a store
    Train(train::Arguments),
    /// Judge an autoencoder on a store's held-out text
    Eval(eval::Arguments),
    /// Write a page on which all features can be searched, sorted and looked at
    Features(features::Arguments),
    /// Match the features of two dictionaries
    Compare(compare::Arguments),
}
