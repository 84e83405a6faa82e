//! Product states by name.

use pullback_tensor::c64;

use crate::error::ChainError;

/// The letter of each site: `wall` is the left half in state 0 and the right half in the last one, anything else is a
/// pattern that is repeated: digits for states, `+` for the equal superposition of all, `-` for that of two with a minus.
///
/// # Errors
/// The text is empty or has a letter that is no state.
pub fn letters(text: &str, dimension: usize, sites: usize) -> Result<Vec<char>, ChainError> {
    let digit = |n: usize| char::from_digit(n as u32, 36).unwrap_or('0');
    if text == "wall" {
        return Ok((0..sites)
            .map(|j| {
                if j < sites / 2 {
                    '0'
                } else {
                    digit(dimension - 1)
                }
            })
            .collect());
    }
    let known = |c: &char| {
        c.to_digit(36).is_some_and(|n| (n as usize) < dimension)
            || *c == '+'
            || (*c == '-' && dimension == 2)
    };
    let bad = || {
        let minus = if dimension == 2 { ", - " } else { " " };
        let expected = format!(
            "expected `wall`, or a pattern of 0 to {}, +{minus}that is repeated",
            digit(dimension - 1)
        );
        ChainError::value("the state", format!("`{text}`"), expected)
    };
    if text.is_empty() || !text.chars().all(|c| known(&c)) {
        return Err(bad());
    }
    Ok(text.chars().cycle().take(sites).collect())
}

/// The amplitudes of a site's state.
pub fn amplitudes(letter: char, dimension: usize) -> Vec<c64> {
    let even = 1.0 / (dimension as f64).sqrt();
    (0..dimension)
        .map(|i| {
            let x = match letter {
                '-' if i == 1 => -even,
                '+' | '-' => even,
                _ => f64::from(u8::from(letter.to_digit(36) == Some(i as u32))),
            };
            c64::new(x, 0.0)
        })
        .collect()
}
