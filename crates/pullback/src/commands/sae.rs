//! `pullback sae`: sparse autoencoders.

pub(crate) mod convert;
pub(crate) mod eval;
pub(crate) mod train;

/// Commands under `sae`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train a TopK autoencoder on a store
    Train(train::Arguments),
    /// Judge an autoencoder on a store's held-out text
    Eval(eval::Arguments),
    /// Write a dictionary in the files of another program
    Convert(convert::Arguments),
}
