//! What goes to the two output streams: results to standard output, everything else to standard error.
#![expect(
    clippy::print_stderr,
    reason = "this is the one place that prints messages"
)]

use std::io::{self, Write};

use serde::Serialize;

/// One line of an error, with its causes.
pub(crate) fn error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

/// One line that is no error.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// Text on standard output, at once.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    written(
        io::stdout()
            .lock()
            .write_all(text.as_bytes())
            .and_then(|()| io::stdout().flush()),
    )
}

/// One JSON object on standard output.
pub(crate) fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    text(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// A reader that has gone away is no failure of ours.
fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::anyhow!("cannot write to standard output: {error}"))
        }
        _ => Ok(()),
    }
}
