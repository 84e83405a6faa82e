//! Reading figures from JSON, which has no NaN: `null` stands for it.

use serde::{Deserialize, Deserializer};

/// A number that can be missing.
pub(super) trait Figure {
    /// What stands for a missing one.
    const MISSING: Self;
}

impl Figure for f32 {
    const MISSING: Self = Self::NAN;
}

impl Figure for f64 {
    const MISSING: Self = Self::NAN;
}

fn or_missing<T: Figure>(value: Option<T>) -> T {
    value.unwrap_or(T::MISSING)
}

pub(super) fn figure<'de, D, T>(input: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Figure + Deserialize<'de>,
{
    Option::<T>::deserialize(input).map(or_missing)
}

pub(super) fn list<'de, D, T>(input: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Figure + Deserialize<'de>,
{
    Ok(Vec::<Option<T>>::deserialize(input)?
        .into_iter()
        .map(or_missing)
        .collect())
}

pub(super) fn pairs<'de, D, T>(input: D) -> Result<Vec<(T, T)>, D::Error>
where
    D: Deserializer<'de>,
    T: Figure + Deserialize<'de>,
{
    Ok(Vec::<(Option<T>, Option<T>)>::deserialize(input)?
        .into_iter()
        .map(|(a, b)| (or_missing(a), or_missing(b)))
        .collect())
}

pub(super) fn labelled<'de, D, T>(input: D) -> Result<Vec<(String, T)>, D::Error>
where
    D: Deserializer<'de>,
    T: Figure + Deserialize<'de>,
{
    Ok(Vec::<(String, Option<T>)>::deserialize(input)?
        .into_iter()
        .map(|(label, value)| (label, or_missing(value)))
        .collect())
}
