//! `--config FILE`: options of a command from a TOML file; those on the command line win.

use std::ffi::OsString;

use anyhow::{Context, bail};
use clap::Command;
use toml::{Table, Value};

/// Puts the options of a `--config` file before those on the command line, right after the subcommands.
pub(crate) fn expand(arguments: Vec<OsString>, command: &Command) -> anyhow::Result<Vec<OsString>> {
    let mut rest = Vec::new();
    let mut file = None;
    let mut iter = arguments.into_iter();
    while let Some(argument) = iter.next() {
        match argument.to_str() {
            Some("--") => {
                rest.push(argument);
                rest.extend(iter.by_ref());
            }
            Some("--config") => {
                file = Some(
                    iter.next()
                        .context("--config needs the name of a TOML file")?,
                );
            }
            Some(text) if text.starts_with("--config=") => {
                file = Some(OsString::from(&text["--config=".len()..]));
            }
            _ => rest.push(argument),
        }
    }
    let Some(file) = file else { return Ok(rest) };
    let name = file.to_string_lossy().into_owned();
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {name}"))?;
    let table: Table = text
        .parse()
        .with_context(|| format!("{name} is not TOML"))?;

    // The subcommands stand first; options of the file come after them.
    let mut depth = 1;
    let mut current = command;
    while let Some(next) = rest
        .get(depth)
        .and_then(|word| word.to_str())
        .and_then(|word| current.find_subcommand(word))
    {
        current = next;
        depth += 1;
    }
    let known: Vec<&str> = current
        .get_arguments()
        .chain(command.get_arguments())
        .filter_map(clap::Arg::get_long)
        .collect();
    let mut options: Vec<OsString> = Vec::new();
    for (key, value) in &table {
        let long = key.replace('_', "-");
        if !known.contains(&long.as_str()) {
            bail!(
                "{name}: `{key}` is no option of this command; it knows {}",
                known.join(", ")
            );
        }
        push(&mut options, &long, value).with_context(|| format!("{name}: `{key}`"))?;
    }
    let tail = rest.split_off(depth);
    rest.extend(options);
    rest.extend(tail);
    Ok(rest)
}

fn push(options: &mut Vec<OsString>, long: &str, value: &Value) -> anyhow::Result<()> {
    let text = match value {
        Value::Boolean(true) => {
            options.push(format!("--{long}").into());
            return Ok(());
        }
        Value::Boolean(false) => return Ok(()),
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Array(items) => {
            for item in items {
                push(options, long, item)?;
            }
            return Ok(());
        }
        Value::Table(_) | Value::Datetime(_) => {
            bail!("a table or date is not the value of an option")
        }
    };
    options.push(format!("--{long}={text}").into());
    Ok(())
}
