//! The program `pullback`: one file a command under `commands`, nothing else of substance.

mod cli;
mod commands;
mod config_file;
mod context;
mod output;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use cli::Cli;
use context::App;
use pullback_kernels::allocator::{MiMalloc, keep_freed_memory};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Wrong usage, as clap has it.
const USAGE: u8 = 2;
/// Stopped by a signal: 128 + SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    keep_freed_memory();
    let command = Cli::command().args_override_self(true);
    let arguments = match config_file::expand(std::env::args_os().collect(), &command) {
        Ok(arguments) => arguments,
        Err(error) => {
            output::error(&error);
            return ExitCode::from(USAGE);
        }
    };
    let cli = command
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match cli {
        Ok(cli) => cli,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(USAGE);
            // Nothing can be done about a closed terminal.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let app = App::new(&cli);
    match app.start().and_then(|()| commands::run(&app, cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if app.control.is_interrupted() => {
            output::note("stopped; the same command goes on from here");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
