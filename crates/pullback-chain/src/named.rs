//! Names with parameters: `ising(g=2)`, `shift`, `haar(seed=3)`.

use crate::error::ChainError;
use crate::expression::parse_scalar;

/// What can be named, with its parameters and their usual values.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// The name.
    pub name: &'static str,
    /// Parameters and their usual values, in order.
    pub parameters: &'static [(&'static str, f64)],
    /// What it is, in a line.
    pub about: &'static str,
}

impl Named {
    /// How it is written with all its parameters.
    pub fn signature(&self) -> String {
        if self.parameters.is_empty() {
            return self.name.to_owned();
        }
        let parameters = self.parameters.iter().map(|(p, x)| format!("{p}={x}"));
        format!(
            "{}({})",
            self.name,
            parameters.collect::<Vec<_>>().join(", ")
        )
    }
}

/// Finds the entry that `text` names, with the values of its parameters in its order; `None` if it names none of them.
///
/// # Errors
/// It names one, but a parameter is unknown, stands twice or has no value.
pub(crate) fn find(
    table: &'static [Named],
    text: &str,
) -> Result<Option<(&'static Named, Vec<f64>)>, ChainError> {
    let text = text.trim();
    let (name, arguments) = match text.split_once('(') {
        Some((name, rest)) => (name.trim(), rest.strip_suffix(')')),
        None => (text, Some("")),
    };
    let Some(entry) = table.iter().find(|entry| entry.name == name) else {
        return Ok(None);
    };
    let bad = |value: &str, expected: String| {
        ChainError::value(
            format!("an argument of `{name}`"),
            format!("`{value}`"),
            expected,
        )
    };
    let Some(arguments) = arguments else {
        return Err(bad(
            text,
            "expected a closing parenthesis at the end".to_owned(),
        ));
    };
    let mut values: Vec<f64> = entry.parameters.iter().map(|(_, usual)| *usual).collect();
    let mut given = vec![false; values.len()];
    for (place, argument) in arguments.split(',').map(str::trim).enumerate() {
        if argument.is_empty() && arguments.trim().is_empty() {
            break;
        }
        let (index, value) = match argument.split_once('=') {
            Some((key, value)) => {
                let index = entry.parameters.iter().position(|(p, _)| *p == key.trim());
                (index, value)
            }
            None => ((place < values.len()).then_some(place), argument),
        };
        let Some(index) = index else {
            return Err(bad(argument, format!("expected {}", entry.signature())));
        };
        if std::mem::replace(&mut given[index], true) {
            return Err(bad(argument, "it is given twice".to_owned()));
        }
        values[index] = parse_scalar(value.trim())?;
    }
    Ok(Some((entry, values)))
}

/// The names of a table, for messages.
pub(crate) fn names(table: &[Named]) -> String {
    let names: Vec<String> = table.iter().map(Named::signature).collect();
    names.join(", ")
}
