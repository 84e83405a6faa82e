//! `pullback sae`: sparse autoencoders.

pub(crate) mod codes;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod eval;
pub(crate) mod features;
pub(crate) mod synthetic;
pub(crate) mod train;

/// Commands under `sae`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train a dictionary of any kind on a store
    Train(Box<train::Arguments>),
    /// Judge an autoencoder on a store's held-out text
    Eval(eval::Arguments),
    /// Sparse codes of activations
    Encode(codes::Encode),
    /// Activations from sparse codes
    Decode(codes::Decode),
    /// Write a dictionary in the files of another program
    Convert(convert::Arguments),
    /// Write a page on which all features can be searched, sorted and looked at
    Features(features::Arguments),
    /// Match the features of two dictionaries
    Compare(compare::Arguments),
    /// Compare kinds of dictionaries on activations whose true features are known
    Synthetic(Box<synthetic::Arguments>),
}
