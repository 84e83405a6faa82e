//! The page's data blocks, made short: JSON for figures and tokens, base64 for running text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::data::{BrowsedFeature, BrowsedPassage, FeatureBrowser};

/// A figure with four significant digits; `null` where it is none.
fn short(x: f32) -> Value {
    rounded(x, 4)
}

fn rounded(x: f32, digits: usize) -> Value {
    if x.is_finite() && x == x.trunc() && x.abs() < 1e4 {
        return json!(x as i32);
    }
    let rounded: Option<f32> = format!("{x:.*e}", digits - 1).parse().ok();
    // Widening the digits as they are printed keeps `0.1` from becoming `0.10000000149011612`.
    let digits = rounded.and_then(|x| x.to_string().parse::<f64>().ok());
    digits
        .and_then(serde_json::Number::from_f64)
        .map_or(Value::Null, Value::Number)
}

/// JSON that can stand in a script element: no `<` in it.
fn embedded(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

/// The columns of the table, and what is needed to search.
pub(super) fn table(page: &FeatureBrowser) -> String {
    let column = |of: &dyn Fn(&BrowsedFeature) -> Value| -> Vec<Value> {
        page.features.iter().map(of).collect()
    };
    let logit = page
        .has_logits
        .then(|| column(&|feature| feature.logit_effect().map_or(Value::Null, short)));
    let change = page
        .change
        .as_ref()
        .map(|_| column(&|feature| feature.change.map_or(Value::Null, short)));
    embedded(&json!({
        "dictionary": page.dictionary,
        "width": width(page.tokens.len()),
        "feature": column(&|feature| json!(feature.feature)),
        "density": column(&|feature| short(feature.density)),
        "largest": column(&|feature| short(feature.largest)),
        "logit": logit,
        "change": change,
        "peaks": column(&|feature| json!(feature.peaks(&page.text))),
        "promoted": column(&|feature| {
            json!(feature.promoted.iter().map(|(token, _)| token).collect::<Vec<_>>())
        }),
    }))
}

/// The distinct tokens.
pub(super) fn tokens(page: &FeatureBrowser) -> String {
    embedded(&json!(page.tokens))
}

/// Everything else about each feature, one line a feature, so that a line is read when it is looked at. Which tokens are
/// promoted stands in the table already.
pub(super) fn details(page: &FeatureBrowser) -> String {
    let mut out = String::new();
    for feature in &page.features {
        let bands: Vec<Value> = feature
            .bands
            .iter()
            .map(|band| {
                json!([
                    rounded(band.from, 3),
                    rounded(band.to, 3),
                    rounded(band.low, 3),
                    rounded(band.high, 3),
                    passages(&band.examples, feature.largest)
                ])
            })
            .collect();
        let coactive: Vec<Value> = feature
            .coactive
            .iter()
            .flat_map(|(other, jaccard, together)| {
                [json!(other), rounded(*jaccard, 3), json!(together)]
            })
            .collect();
        out += &embedded(&json!([
            feature.count,
            short(feature.mean),
            feature.histogram,
            passages(&feature.examples, feature.largest),
            bands,
            feature
                .promoted
                .iter()
                .map(|(_, change)| rounded(*change, 3))
                .collect::<Vec<_>>(),
            pairs(&feature.suppressed),
            pairs(&feature.neighbours),
            coactive,
        ]));
        out.push('\n');
    }
    out
}

fn pairs(list: &[(u32, f32)]) -> Vec<Value> {
    list.iter()
        .flat_map(|(number, value)| [json!(number), rounded(*value, 3)])
        .collect()
}

/// Start, length, peak, activation; then the place of each other token with an activation, and that in thousandths of the
/// feature's largest.
fn passages(list: &[BrowsedPassage], largest: f32) -> Vec<Value> {
    list.iter()
        .map(|passage| {
            let marks: Vec<Value> = (0..)
                .zip(&passage.activations)
                .filter(|(place, value)| **value > 0.0 && *place != passage.peak)
                .flat_map(|(place, value)| {
                    let share = (1000.0 * value / largest).clamp(0.0, 1000.0);
                    [json!(place), json!(share.round() as u32)]
                })
                .collect();
            json!([
                passage.start,
                passage.activations.len(),
                passage.peak,
                short(passage.activation),
                marks
            ])
        })
        .collect()
}

/// Bytes that the place of a token takes.
fn width(tokens: usize) -> usize {
    match tokens {
        0..=0x1_0000 => 2,
        0x1_0001..=0x100_0000 => 3,
        _ => 4,
    }
}

/// The running text: a token's place in the list in [`width`] bytes, the lowest first, in base64.
pub(super) fn text(page: &FeatureBrowser) -> String {
    let width = width(page.tokens.len());
    let bytes: Vec<u8> = page
        .text
        .iter()
        .flat_map(|token| token.to_le_bytes().into_iter().take(width))
        .collect();
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_still_those() {
        for (x, expected) in [
            (0.1_f32, "0.1"),
            (1.0 / 3.0, "0.3333"),
            (12.0, "12"),
            (-123_456.0, "-123500.0"),
            (0.000_012_345, "0.00001234"),
            (f32::NAN, "null"),
            (f32::INFINITY, "null"),
            (0.0, "0"),
        ] {
            let text = short(x).to_string();
            let (found, wanted): (Option<f64>, Option<f64>) =
                (text.parse().ok(), expected.parse().ok());
            assert!(found == wanted && text.len() <= 10, "{text} for {expected}");
        }
    }

    #[test]
    fn nothing_can_end_the_element_it_stands_in() {
        let page = FeatureBrowser {
            tokens: vec!["</script><b>".to_owned(), "\u{2028}<!--".to_owned()],
            ..FeatureBrowser::default()
        };
        let text = tokens(&page);
        assert!(!text.contains('<'));
        let back: Vec<String> = serde_json::from_str(&text).unwrap();
        assert_eq!(back, page.tokens);
    }

    #[test]
    fn wide_vocabularies_take_more_bytes() {
        assert_eq!((width(3), width(65_536), width(65_537)), (2, 2, 3));
        let mut page = FeatureBrowser {
            tokens: vec![String::new(); 3],
            text: vec![2, 258],
            ..FeatureBrowser::default()
        };
        assert_eq!(STANDARD.decode(text(&page)).unwrap(), [2, 0, 2, 1]);
        page.tokens = vec![String::new(); 70_000];
        assert_eq!(STANDARD.decode(text(&page)).unwrap(), [2, 0, 0, 2, 1, 0]);
    }
}
