//! Writes a feature browser of invented features, to look at the page and to time it without a model.
//!
//! `cargo run -p pullback-report --example feature_browser -- browser.html 10000`

use std::process::ExitCode;

use pullback_report::feature_browser::{
    BrowsedBand, BrowsedFeature, BrowsedPassage, FeatureBrowser, render,
};

/// Numbers that look random; the generator of Knuth's MMIX.
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }

    fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f32) as usize).min(n - 1)
    }
}

/// Tokens of context on each side.
const CONTEXT: usize = 12;

fn passage(dice: &mut Dice, text: usize, largest: f32, share: f32) -> BrowsedPassage {
    let length = 2 * CONTEXT + 1;
    let activation = largest * share;
    let mut activations: Vec<f32> = (0..length)
        .map(|_| {
            if dice.unit() < 0.15 {
                activation * dice.unit()
            } else {
                0.0
            }
        })
        .collect();
    activations[CONTEXT] = activation;
    BrowsedPassage {
        start: dice.below(text - length) as u32,
        peak: CONTEXT as u32,
        activation,
        activations,
    }
}

fn feature(dice: &mut Dice, number: usize, features: usize, text: usize) -> BrowsedFeature {
    // Densities over four powers of ten, and one feature in fifty that is never active.
    let density = if dice.unit() < 0.02 {
        0.0
    } else {
        10_f32.powf(-4.0 * dice.unit() - 0.5)
    };
    let largest = if density > 0.0 {
        2.0 + 20.0 * dice.unit()
    } else {
        0.0
    };
    let count = (f64::from(density) * 1e6) as u64;
    let mut effects = |sign: f32| -> Vec<(u32, f32)> {
        let start = 0.4 + 2.0 * dice.unit();
        (0..8)
            .map(|rank| (dice.below(WORDS) as u32, sign * start * 0.9_f32.powi(rank)))
            .collect()
    };
    let (promoted, suppressed) = (effects(1.0), effects(-1.0));
    let others = |dice: &mut Dice| -> Vec<(u32, f32)> {
        (0..6)
            .map(|rank| (dice.below(features) as u32, 0.7 * 0.85_f32.powi(rank)))
            .collect()
    };
    let live = density > 0.0;
    BrowsedFeature {
        feature: number,
        count,
        density,
        largest,
        mean: 0.3 * largest,
        change: Some((dice.unit() - 0.5).powi(3)),
        histogram: (0..if live { 24 } else { 0 })
            .map(|bin| (count as f32 * 0.25 * (-0.25 * bin as f32).exp()) as u64)
            .collect(),
        examples: (0..if live { 6 } else { 0 })
            .map(|rank| passage(dice, text, largest, 1.0 - 0.03 * rank as f32))
            .collect(),
        bands: (0..if live { 5 } else { 0 })
            .map(|band| {
                let from = band as f32 / 5.0;
                BrowsedBand {
                    from,
                    to: from + 0.2,
                    low: from * largest,
                    high: (from + 0.2) * largest,
                    examples: vec![passage(dice, text, largest, from + 0.1)],
                }
            })
            .collect(),
        promoted,
        suppressed,
        neighbours: others(dice),
        coactive: others(dice)
            .into_iter()
            .map(|(other, share)| (other, share, (share * 1000.0) as u32))
            .collect(),
    }
}

/// Distinct tokens.
const WORDS: usize = 40_000;

fn page(features: usize, text: usize) -> FeatureBrowser {
    const SYLLABLES: [&str; 16] = [
        "ka", "lo", "mir", "en", "sto", "ra", "vi", "que", "ul", "tan", "ber", "shi", "po", "zed",
        "ing", "er",
    ];
    let mut dice = Dice(1);
    let mut tokens: Vec<String> = vec![
        "\n".to_owned(),
        " ".to_owned(),
        "</script>".to_owned(),
        "\u{202e}".to_owned(),
        "日本".to_owned(),
        String::new(),
    ];
    while tokens.len() < WORDS {
        let space = if dice.unit() < 0.7 { " " } else { "" };
        let word: String = (0..=dice.below(3))
            .map(|_| SYLLABLES[dice.below(16)])
            .collect();
        tokens.push(format!("{space}{word}"));
    }
    let features: Vec<BrowsedFeature> = (0..features)
        .map(|number| feature(&mut dice, number, features, text))
        .collect();
    FeatureBrowser {
        title: "Features of nothing".to_owned(),
        subtitle: format!("{} invented features", features.len()),
        dictionary: features.len(),
        densities: features.iter().map(|feature| feature.density).collect(),
        has_logits: true,
        change: Some("an invented change".to_owned()),
        // Often the first words, seldom the last, as in a language.
        text: (0..text)
            .map(|_| (WORDS as f32 * dice.unit().powi(4)) as u32)
            .collect(),
        tokens,
        features,
        notes: vec!["Everything here is invented.".to_owned()],
        facts: vec![("dictionary".to_owned(), "none".to_owned())],
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let path = arguments
        .next()
        .unwrap_or_else(|| "browser.html".to_owned());
    let features = arguments
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(10_000);
    match std::fs::write(&path, render(&page(features, 1_000_000))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
