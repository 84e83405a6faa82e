//! The commands, one file each.

pub(crate) mod adapt;
pub(crate) mod chain;
pub(crate) mod harvest;
pub(crate) mod inspect;
pub(crate) mod pull;
pub(crate) mod quickstart;
pub(crate) mod run;
pub(crate) mod sae;
pub(crate) mod show;
pub(crate) mod tokenize;

use crate::cli::Command;
use crate::context::App;

/// Runs a command.
pub(crate) fn run(app: &App, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Quickstart(arguments) => quickstart::run(app, &arguments),
        Command::Pull(arguments) => pull::run(app, &arguments),
        Command::Inspect(arguments) => inspect::run(app, &arguments),
        Command::Run(arguments) => run::run(app, &arguments),
        Command::Harvest(arguments) => harvest::run(app, &arguments),
        Command::Sae(sae::Command::Train(arguments)) => sae::train::run(app, &arguments),
        Command::Sae(sae::Command::Eval(arguments)) => sae::eval::run(app, &arguments),
        Command::Sae(sae::Command::Encode(arguments)) => sae::codes::encode(app, &arguments),
        Command::Sae(sae::Command::Decode(arguments)) => sae::codes::decode(app, &arguments),
        Command::Sae(sae::Command::Convert(arguments)) => sae::convert::run(app, &arguments),
        Command::Sae(sae::Command::Features(arguments)) => sae::features::run(app, &arguments),
        Command::Sae(sae::Command::Compare(arguments)) => sae::compare::run(app, &arguments),
        Command::Sae(sae::Command::Synthetic(arguments)) => sae::synthetic::run(app, &arguments),
        Command::Adapt(adapt::Command::Train(arguments)) => adapt::train::run(app, &arguments),
        Command::Adapt(adapt::Command::Compare(arguments)) => adapt::compare::run(app, &arguments),
        Command::Adapt(adapt::Command::Cotrain(arguments)) => adapt::cotrain::run(app, &arguments),
        Command::Adapt(adapt::Command::Explain(arguments)) => adapt::explain::run(app, &arguments),
        Command::Adapt(adapt::Command::Merge(arguments)) => adapt::merge::run(app, &arguments),
        Command::Chain(chain::Command::Qca(arguments)) => chain::qca::run(app, &arguments),
        Command::Chain(chain::Command::Heisenberg(arguments)) => {
            chain::heisenberg::run(app, &arguments)
        }
        Command::Chain(chain::Command::Ground(arguments)) => chain::ground::run(app, &arguments),
        Command::Chain(chain::Command::Run(arguments)) => chain::run::run(app, &arguments),
        Command::Tokenize(arguments) => tokenize::run(app, &arguments),
        Command::Show(arguments) => show::run(app, &arguments),
    }
}
