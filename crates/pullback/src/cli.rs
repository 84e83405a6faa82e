//! The command line.

use clap::{Parser, Subcommand};

use crate::commands::{adapt, chain, harvest, inspect, pull, quickstart, run, sae, show, tokenize};

/// Change a language model, then read the change in a basis a person can understand.
#[derive(Debug, Parser)]
#[command(
    name = "pullback",
    version,
    propagate_version = true,
    after_help = "Start with `pullback quickstart`: the whole story on a real model, in a few minutes.\n\
                  Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted (the same command goes on)."
)]
pub(crate) struct Cli {
    /// Print one JSON object on standard output and nothing else there
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// No progress on standard error
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,

    /// Options of the command from a TOML file; those on the command line win
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<String>,

    /// Where models run; `gpu` needs a program built with the feature `gpu`
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) device: DeviceKind,

    /// How models are held in memory; the numbers are the same
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) weights: WeightsKind,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How models are held in memory.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum WeightsKind {
    /// As the file stores them, decoded when they are used
    #[default]
    Quantized,
    /// As 32-bit numbers
    Expanded,
}

/// Where models run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DeviceKind {
    /// The processor, with the fused kernels
    #[default]
    Cpu,
    /// The graphics card, through wgpu
    Gpu,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The whole story on a real model; writes a page to read
    Quickstart(quickstart::Arguments),
    /// Fetch a model or a corpus into the cache
    Pull(pull::Arguments),
    /// Layers, sites, sizes and tokenizer of a model
    Inspect(inspect::Arguments),
    /// Text to token ids and back
    Tokenize(tokenize::Arguments),
    /// Next-token table, text, chat; activations, logit lens, attribution, patching
    Run(Box<run::Arguments>),
    /// Keep activations of a model on disk
    Harvest(harvest::Arguments),
    /// Sparse autoencoders
    #[command(subcommand)]
    Sae(sae::Command),
    /// Learned changes, pulled back and read
    #[command(subcommand)]
    Adapt(adapt::Command),
    /// Quantum chains: cellular automata and evolution
    #[command(subcommand)]
    Chain(chain::Command),
    /// What is this artifact?
    Show(show::Arguments),
}
