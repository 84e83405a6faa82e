//! `--change`: a number a feature.

use std::path::Path;

use anyhow::{Context as _, bail};
use pullback_artifact::read_json;
use serde_json::Value;

/// Reads the change of each of `features` features from one of: the explanation that `adapt explain -o` writes, what
/// `adapt explain --json` prints (its features only), a list with a number for every feature, or an object from feature
/// to number.
pub(super) fn read(path: &Path, features: usize) -> anyhow::Result<Vec<Option<f32>>> {
    let value: Value = read_json(path)?;
    parse(&value, features).with_context(|| path.display().to_string())
}

fn parse(value: &Value, features: usize) -> anyhow::Result<Vec<Option<f32>>> {
    let whole = value["measured"].as_array().or_else(|| value.as_array());
    if let Some(numbers) = whole {
        if numbers.len() != features {
            bail!(
                "{} numbers for a dictionary of {features} features",
                numbers.len()
            );
        }
        return numbers
            .iter()
            .map(|number| Ok(Some(finite(number)?)))
            .collect();
    }
    let mut change = vec![None; features];
    let mut set = |feature: Option<usize>, name: &dyn std::fmt::Display, number: &Value| {
        let Some(place) = feature.and_then(|feature| change.get_mut(feature)) else {
            bail!("there is no feature {name}: the dictionary has {features}");
        };
        *place = Some(finite(number)?);
        Ok(())
    };
    match (&value["features"], value) {
        (Value::Array(list), _) => {
            for entry in list {
                let feature = entry["feature"].as_u64();
                let feature = feature.and_then(|feature| usize::try_from(feature).ok());
                set(feature, &entry["feature"], &entry["measured"])?;
            }
        }
        (_, Value::Object(fields)) => {
            for (name, number) in fields {
                set(name.parse().ok(), name, number)?;
            }
        }
        _ => bail!(
            "this is no list of numbers, no object from feature to number and no explanation of `adapt explain`"
        ),
    }
    Ok(change)
}

fn finite(number: &Value) -> anyhow::Result<f32> {
    number
        .as_f64()
        .map(|number| number as f32)
        .filter(|number| number.is_finite())
        .with_context(|| format!("{number} stands where a number is needed"))
}

/// The `count` features of largest change, largest first.
pub(super) fn most(change: &[Option<f32>], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..change.len())
        .filter(|&feature| change[feature].is_some())
        .collect();
    let size = |feature: usize| change[feature].map_or(0.0, f32::abs);
    order.sort_by(|&a, &b| size(b).total_cmp(&size(a)).then(a.cmp(&b)));
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_forms_are_read() {
        let some = [None, Some(0.5), None, Some(-2.0)];
        for value in [
            json!({ "features": [
                { "feature": 1, "measured": 0.5, "predicted": 9 },
                { "feature": 3, "measured": -2 },
            ] }),
            json!({ "1": 0.5, "3": -2.0 }),
        ] {
            assert_eq!(parse(&value, 4).unwrap(), some);
        }
        let whole = json!({ "features": [], "measured": [0, 0.5, 1, -2], "predicted": [1] });
        let read = parse(&whole, 4).unwrap();
        assert_eq!(read, [Some(0.0), Some(0.5), Some(1.0), Some(-2.0)]);
        assert_eq!(parse(&json!([0, 0.5, 1, -2]), 4).unwrap(), read);
        assert_eq!(most(&read, 2), [3, 2]);
        assert_eq!(most(&some, 9), [3, 1]);
    }

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        for (value, words) in [
            (json!([1, 2]), "2 numbers for a dictionary of 4"),
            (json!([1, 2, 3, "x"]), "\"x\" stands where"),
            (json!({ "4": 1 }), "no feature 4"),
            (json!({ "one": 1 }), "no feature one"),
            (
                json!({ "features": [{ "feature": -1, "measured": 1 }] }),
                "no feature -1",
            ),
            (
                json!({ "features": [{ "feature": 1 }] }),
                "null stands where",
            ),
            (json!(3), "no list of numbers"),
        ] {
            let error = parse(&value, 4).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
