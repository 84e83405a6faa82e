//! The feature browser: closed to the world, its data whole.

// The helpers are tests too, though they carry no attribute.
#![allow(clippy::unwrap_used)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pullback_report::feature_browser::{
    BrowsedBand, BrowsedFeature, BrowsedPassage, FeatureBrowser, render,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn passage(start: u32, peak: u32, activations: &[f32]) -> BrowsedPassage {
    BrowsedPassage {
        start,
        peak,
        activation: activations[peak as usize],
        activations: activations.to_vec(),
    }
}

fn page() -> FeatureBrowser {
    FeatureBrowser {
        title: "Features of <x>".to_owned(),
        dictionary: 9,
        densities: vec![0.5, 0.0, 0.01],
        has_logits: true,
        tokens: ["a", " sea", "</script><b>", "\u{202e}"]
            .map(str::to_owned)
            .to_vec(),
        text: vec![0, 1, 2, 3, 1],
        features: vec![
            BrowsedFeature {
                feature: 4,
                count: 7,
                density: 0.25,
                largest: 3.0,
                mean: 1.0 / 3.0,
                histogram: vec![5, 2],
                examples: vec![passage(0, 1, &[0.5, 3.0, 0.0])],
                bands: vec![BrowsedBand {
                    from: 0.0,
                    to: 0.2,
                    low: 0.1,
                    high: 0.2,
                    examples: vec![passage(2, 0, &[0.15, 0.0, 0.1])],
                }],
                promoted: vec![(1, 0.7), (0, 0.6)],
                suppressed: vec![(2, -0.9)],
                neighbours: vec![(8, 0.5)],
                coactive: vec![(8, 0.25, 3)],
                ..BrowsedFeature::default()
            },
            BrowsedFeature {
                feature: 8,
                ..BrowsedFeature::default()
            },
        ],
        ..FeatureBrowser::default()
    }
}

/// What stands in the script element with an id.
#[track_caller]
fn block<'a>(page: &'a str, id: &str) -> &'a str {
    let start = page.find(&format!("<script id=\"{id}\"")).unwrap();
    let rest = &page[start..];
    let rest = &rest[rest.find('>').unwrap() + 1..];
    &rest[..rest.find("</script>").unwrap()]
}

#[test]
fn it_loads_nothing_and_allows_its_own_script_alone() {
    let html = render(&page());
    for way in [
        "http:",
        "https:",
        "src=",
        "url(",
        "@import",
        "innerHTML",
        "eval(",
    ] {
        let inside = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!inside.contains(way), "{way}");
    }
    let start = html.rfind("<script>").unwrap() + 8;
    let script = &html[start..start + html[start..].find("</script>").unwrap()];
    let digest = STANDARD.encode(Sha256::digest(script));
    let policy = html
        .split("Content-Security-Policy\" content=\"")
        .nth(1)
        .unwrap();
    let policy = &policy[..policy.find('"').unwrap()];
    assert!(policy.contains("default-src 'none'"));
    assert!(
        policy.ends_with(&format!("script-src 'sha256-{digest}'")),
        "{policy}"
    );
    assert!(html.contains("Features of &lt;x&gt;"));
    assert_eq!(html.matches("</script>").count(), 5);
}

#[test]
fn its_data_are_those_given() {
    let html = render(&page());
    let table: Value = serde_json::from_str(block(&html, "table-data")).unwrap();
    assert_eq!(table["feature"], serde_json::json!([4, 8]));
    assert_eq!(table["density"], serde_json::json!([0.25, 0]));
    assert_eq!(table["logit"], serde_json::json!([0.9, null]));
    assert_eq!(table["change"], Value::Null);
    assert_eq!(table["peaks"], serde_json::json!([[1, 2], []]));
    assert_eq!(table["promoted"], serde_json::json!([[1, 0], []]));
    let tokens: Vec<String> = serde_json::from_str(block(&html, "token-data")).unwrap();
    assert_eq!(tokens, page().tokens);
    let lines: Vec<&str> = block(&html, "detail-data").lines().collect();
    assert_eq!(lines.len(), 2);
    let line: Value = serde_json::from_str(lines[0]).unwrap();
    let expected = serde_json::json!([
        7,
        0.3333,
        [5, 2],
        [[0, 3, 1, 3, [0, 167]]],
        [[0, 0.2, 0.1, 0.2, [[2, 3, 0, 0.15, [2, 33]]]]],
        [0.7, 0.6],
        [2, -0.9],
        [8, 0.5],
        [8, 0.25, 3]
    ]);
    assert_eq!(line, expected);
    let bytes = STANDARD.decode(block(&html, "text-data")).unwrap();
    let text: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    assert_eq!(text, [0, 1, 2, 3, 1]);
}

#[test]
fn it_stands_without_logits_features_and_figures() {
    let mut bare = page();
    bare.has_logits = false;
    bare.change = Some("x".to_owned());
    bare.features[0].change = Some(f32::NAN);
    let html = render(&bare);
    assert!(!html.contains("data-sort=\"logit\"") && html.contains("data-sort=\"change\""));
    let table: Value = serde_json::from_str(block(&html, "table-data")).unwrap();
    assert_eq!(table["change"], serde_json::json!([null, null]));
    assert!(render(&FeatureBrowser::default()).contains("table-data"));
}
