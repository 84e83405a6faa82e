//! What chat templates expect of the Jinja of Python beyond the Jinja of Rust.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// An error in one line, without the source listing.
pub(super) fn describe(error: &Error) -> String {
    match (error.detail(), error.line()) {
        (Some(detail), _) if error.kind() == ErrorKind::InvalidOperation && is_raised(error) => {
            detail.to_owned()
        }
        (Some(detail), Some(line)) => format!("{detail} (line {line} of the template)"),
        (Some(detail), None) => detail.to_owned(),
        (None, Some(line)) => format!("{} (line {line} of the template)", error.kind()),
        (None, None) => error.kind().to_string(),
    }
}

/// Whether the template itself refused the conversation.
fn is_raised(error: &Error) -> bool {
    error
        .detail()
        .is_some_and(|detail| detail.starts_with(RAISED))
}

const RAISED: &str = "the template refuses the conversation: ";

/// `raise_exception(text)`.
pub(super) fn raise_exception(text: &str) -> Result<Value, Error> {
    Err(Error::new(
        ErrorKind::InvalidOperation,
        format!("{RAISED}{text}"),
    ))
}

/// `strftime_now(format)`: the time now, in UTC, by the commonest letters of C's `strftime`.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    strftime(seconds, format)
}

fn strftime(seconds: u64, format: &str) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    let days = seconds / 86_400;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    // The date of a day number, after Howard Hinnant's `civil_from_days`, for days after 1970.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let month_name = MONTHS[(month as usize - 1) % 12];
    let day_name = DAYS[(days % 7) as usize];

    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let two = |number: u64| format!("{number:02}");
        let field = match letters.next() {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('H') => two(hour),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('%') => "%".to_owned(),
            other => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now does not know %{other}"),
                ));
            }
        };
        out.push_str(&field);
    }
    Ok(out)
}

/// The methods of Python's strings and dictionaries that chat templates call.
pub(super) fn call_method(
    _state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let unknown = || {
        Error::new(
            ErrorKind::UnknownMethod,
            format!("{} has no method {method}", value.kind()),
        )
    };
    if let Some(text) = value.as_str() {
        return string_method(text, method, args)?.ok_or_else(unknown);
    }
    if value.kind() == ValueKind::Map {
        let pairs = || {
            value
                .try_iter()
                .map(|keys| keys.map(|key| (value.get_item(&key).unwrap_or_default(), key)))
        };
        return Ok(match method {
            "get" => {
                let (key, default): (Value, Option<Value>) = from_args(args)?;
                let found = value.get_item(&key)?;
                if found.is_undefined() {
                    default.unwrap_or(Value::from(()))
                } else {
                    found
                }
            }
            "keys" => pairs()?.map(|(_, key)| key).collect(),
            "values" => pairs()?.map(|(item, _)| item).collect(),
            "items" => pairs()?
                .map(|(item, key)| Value::from(vec![key, item]))
                .collect(),
            _ => return Err(unknown()),
        });
    }
    Err(unknown())
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let stripped = |left: bool, right: bool| -> Result<Value, Error> {
        let (set,): (Option<&str>,) = from_args(args)?;
        let inside = |c: char| set.map_or_else(|| c.is_whitespace(), |set| set.contains(c));
        let text = if left {
            text.trim_start_matches(inside)
        } else {
            text
        };
        Ok(if right {
            text.trim_end_matches(inside)
        } else {
            text
        }
        .into())
    };
    // Python takes a string or a tuple of them.
    let any = |test: &dyn Fn(&str) -> bool| -> Result<Value, Error> {
        let (options,): (Value,) = from_args(args)?;
        Ok(match options.as_str() {
            Some(option) => test(option),
            None => options
                .try_iter()?
                .any(|option| option.as_str().is_some_and(test)),
        }
        .into())
    };
    Ok(Some(match method {
        "strip" => stripped(true, true)?,
        "lstrip" => stripped(true, false)?,
        "rstrip" => stripped(false, true)?,
        "startswith" => any(&|option| text.starts_with(option))?,
        "endswith" => any(&|option| text.ends_with(option))?,
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "capitalize" => {
            let mut letters = text.chars();
            let first: String = letters
                .next()
                .into_iter()
                .flat_map(char::to_uppercase)
                .collect();
            format!("{first}{}", letters.as_str().to_lowercase()).into()
        }
        "replace" => {
            let (from, to, count): (&str, &str, Option<usize>) = from_args(args)?;
            count
                .map_or_else(
                    || text.replace(from, to),
                    |count| text.replacen(from, to, count),
                )
                .into()
        }
        "split" => {
            let (separator, at_most, kwargs): (Option<&str>, Option<i64>, Kwargs) =
                from_args(args)?;
            let at_most = at_most
                .or(kwargs.get("maxsplit")?)
                .and_then(|n| usize::try_from(n).ok());
            split(text, separator, at_most)
        }
        "rsplit" => {
            let (separator, at_most): (&str, Option<i64>) = from_args(args)?;
            let parts = at_most
                .and_then(|n| usize::try_from(n).ok())
                .map_or(usize::MAX, |n| n.saturating_add(1));
            let mut parts: Vec<Value> = text.rsplitn(parts, separator).map(Value::from).collect();
            parts.reverse();
            parts.into()
        }
        _ => return Ok(None),
    }))
}

fn split(text: &str, separator: Option<&str>, at_most: Option<usize>) -> Value {
    let parts = at_most.map_or(usize::MAX, |n| n.saturating_add(1));
    match separator {
        Some(separator) => text.splitn(parts, separator).map(Value::from).collect(),
        None => text.split_whitespace().map(Value::from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates() {
        assert_eq!(strftime(0, "%Y-%m-%d %a").unwrap(), "1970-01-01 Thu");
        assert_eq!(
            strftime(951_782_400, "%d %b %Y %A").unwrap(),
            "29 Feb 2000 Tuesday"
        );
        assert_eq!(
            strftime(1_767_225_599, "%d %B %y, %H:%M:%S%%").unwrap(),
            "31 December 25, 23:59:59%"
        );
        assert!(strftime(0, "%Q").is_err());
    }
}
