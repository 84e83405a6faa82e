//! The whole page: well formed, closed to the world, and standing whatever it is given.

// The helpers are tests too, though they carry no attribute.
#![allow(clippy::expect_used)]

use std::collections::HashSet;

use pullback_report::change_report::{
    AdapterFacts, Answer, ChangeReport, CorpusFacts, Example, FeatureCard, HiddenUnit, ModelFacts,
    SaeFacts, UnitFeature, WordScore, render,
};

const VOID: [&str; 4] = ["meta", "br", "hr", "img"];

/// An element's name and its attributes.
type Tag = (String, Vec<(String, String)>);

/// Reads the page as strictly as XML would: every element closed in order, every attribute quoted. Returns the tags.
fn well_formed(page: &str) -> Vec<Tag> {
    let mut open: Vec<String> = Vec::new();
    let mut tags = Vec::new();
    let mut rest = page
        .strip_prefix("<!DOCTYPE html>")
        .expect("a document type");
    while let Some(at) = rest.find('<') {
        text_is_escaped(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(closing) = rest.strip_prefix('/') {
            let end = closing.find('>').expect("an end of the closing tag");
            assert_eq!(
                open.pop().as_deref(),
                Some(&closing[..end]),
                "closing tags in order"
            );
            rest = &closing[end + 1..];
            continue;
        }
        let name: String = rest
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect();
        assert!(
            !name.is_empty(),
            "a bare < before {:?}",
            &rest.chars().take(30).collect::<String>()
        );
        rest = &rest[name.len()..];
        let mut attributes = Vec::new();
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('>') {
                rest = after;
                break;
            }
            let equals = rest.find("=\"").expect("a quoted attribute");
            let key = &rest[..equals];
            assert!(
                key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
                "attribute {key:?}"
            );
            let value = &rest[equals + 2..];
            let end = value.find('"').expect("the closing quote");
            assert!(
                !value[..end].contains(['<', '>']),
                "attribute value {:?}",
                &value[..end]
            );
            attributes.push((key.to_owned(), value[..end].to_owned()));
            rest = &value[end + 1..];
        }
        if name == "style" {
            let end = rest.find("</style>").expect("the end of the style");
            rest = &rest[end..];
        }
        if !VOID.contains(&name.as_str()) {
            open.push(name.clone());
        }
        tags.push((name, attributes));
    }
    assert!(open.is_empty(), "left open: {open:?}");
    tags
}

fn text_is_escaped(text: &str) {
    for (at, _) in text.match_indices('&') {
        let entity: String = text[at..].chars().take(6).collect();
        let known = ["&lt;", "&gt;", "&amp;", "&quot;"]
            .iter()
            .any(|e| entity.starts_with(e));
        assert!(known, "a bare & in {entity:?}");
    }
    for c in text.chars() {
        assert!(
            c == '\n' || c == '\t' || !c.is_control(),
            "control character {c:?}"
        );
        assert!(
            !('\u{202a}'..='\u{202e}').contains(&c),
            "direction override {c:?}"
        );
    }
}

/// What must hold of every page.
fn check(report: &ChangeReport) -> String {
    let page = render(report);
    let tags = well_formed(&page);
    let allowed: HashSet<&str> = [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "nav",
        "section",
        "article",
        "footer",
        "div",
        "p",
        "span",
        "bdi",
        "a",
        "h1",
        "h2",
        "h3",
        "h4",
        "em",
        "strong",
        "code",
        "pre",
        "mark",
        "var",
        "sub",
        "sup",
        "ul",
        "ol",
        "li",
        "dl",
        "dt",
        "dd",
        "details",
        "summary",
        "figure",
        "figcaption",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "svg",
        "g",
        "path",
        "line",
        "rect",
        "circle",
        "text",
        "desc",
    ]
    .into();
    let mut ids = HashSet::new();
    let mut links = Vec::new();
    for (name, attributes) in &tags {
        assert!(allowed.contains(name.as_str()), "unexpected element {name}");
        for (key, value) in attributes {
            assert!(!key.starts_with("on"), "event handler {key}");
            assert!(
                !matches!(key.as_str(), "src" | "srcset" | "style" | "xlink-href"),
                "attribute {key}"
            );
            match key.as_str() {
                "id" => assert!(ids.insert(value.clone()), "id {value} twice"),
                "href" => links.push(value.clone()),
                "aria-labelledby" => links.extend(value.split(' ').map(|id| format!("#{id}"))),
                _ => {}
            }
            if matches!(
                name.as_str(),
                "path" | "line" | "rect" | "circle" | "text" | "svg"
            ) {
                let is_number = matches!(
                    key.as_str(),
                    "x" | "y"
                        | "x1"
                        | "x2"
                        | "y1"
                        | "y2"
                        | "cx"
                        | "cy"
                        | "r"
                        | "d"
                        | "width"
                        | "height"
                        | "viewBox"
                );
                assert!(
                    !is_number || !(value.contains("NaN") || value.contains("inf")),
                    "{name} {key}={value}"
                );
                if matches!(key.as_str(), "width" | "height") {
                    assert!(
                        value.parse::<f64>().is_ok_and(|v| v >= 0.0),
                        "{name} {key}={value}"
                    );
                }
            }
        }
    }
    for link in links {
        let id = link.strip_prefix('#').expect("links stay on the page");
        assert!(ids.contains(id), "link to {id}, which is not there");
    }
    let lower = page.to_lowercase();
    for outside in [
        "http://",
        "https://",
        "url(",
        "@import",
        "<script",
        "javascript:",
        "<link",
        "<iframe",
    ] {
        assert!(!lower.contains(outside), "{outside} in the page");
    }
    for bad in ["NaN", ">inf<", "-inf"] {
        assert!(!page.contains(bad), "{bad} in the page");
    }
    page
}

const NASTY: [&str; 12] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "</style></svg></title><b>",
    "&lt;&amp;&#x3c;",
    "\u{0}\u{1}\u{7f}\u{9b}\u{fffd}\u{fffe}",
    "\u{202e}\u{2066}drawkcab",
    "\n\r\n\t   \u{a0}\u{2028}",
    "",
    "日本語 العربية हिन्दी 🌊👩‍👩‍👧",
    "]]>--><!--",
    "{{7*7}}${7*7}",
];

fn nasty(i: usize) -> String {
    NASTY[i % NASTY.len()].to_owned()
}

fn full(text: impl Fn(usize) -> String, value: impl Fn(usize) -> f64) -> ChangeReport {
    let figure = |i: usize| value(i) as f32;
    let curve = |n: usize| (0..n).map(|i| (i as f64, value(i))).collect::<Vec<_>>();
    let unit = |i: usize| UnitFeature {
        feature: i,
        value: figure(i),
        tokens: (0..4).map(|j| text(i + j)).collect(),
    };
    ChangeReport {
        title: text(0),
        model: ModelFacts {
            name: text(1),
            architecture: text(2),
            parameters: 134_515_008,
            layers: 30,
            d_model: 576,
            licence: text(3),
        },
        site: text(4),
        corpus: CorpusFacts {
            name: text(5),
            tokens_harvested: 203_000,
            tokens_held_out: 10,
        },
        seed: u64::MAX,
        sae: SaeFacts {
            features: 40,
            k: 4,
            explained_variance: value(0),
            l0: value(1),
            dead_fraction: value(2),
            ce_clean: value(3),
            ce_spliced: value(4),
            ce_zero: value(5),
            ce_score: value(6),
            curve: curve(20),
            curve_held_out: true,
            loss_curve: curve(1),
        },
        adapter: AdapterFacts {
            rank: 8,
            activation: text(6),
            loss_before: value(7),
            loss_after: value(8),
            train_curve: curve(30),
            validation_curve: curve(3),
        },
        answers: (0..12)
            .map(|i| Answer {
                prompt: text(i),
                before: text(i + 1),
                after: text(i + 1),
            })
            .collect(),
        agreement_spearman: value(9),
        residual_fraction: value(10),
        changes: (0..400).map(figure).collect(),
        scatter: (0..400).map(|i| (figure(i), figure(i + 1))).collect(),
        features: (0..14)
            .map(|i| FeatureCard {
                // One number comes twice.
                feature: i.min(12),
                rank: i + 1,
                predicted: figure(i),
                measured: figure(i + 1),
                density: figure(i + 2),
                promoted: (0..12).map(|j| (text(j), figure(j))).collect(),
                suppressed: (0..3).map(|j| (text(i + j), figure(j))).collect(),
                examples: (0..12)
                    .map(|j| Example {
                        before: text(i + j),
                        token: text(i + j + 1),
                        after: text(i + j + 2).repeat(20),
                        activation: figure(j),
                        source: text(j),
                        context: if j % 2 == 0 {
                            (0..40).map(|t| (text(i + j + t), figure(t))).collect()
                        } else {
                            Vec::new()
                        },
                    })
                    .collect(),
                reads: figure(i),
                writes: figure(i + 3),
                words: text(i),
                scores: vec![WordScore {
                    name: text(i + 1),
                    own: f64::from(figure(i)),
                    exchanged: f64::from(figure(i + 1)),
                }],
                effect_alone: f64::from(figure(i)),
                effect_removed: f64::from(figure(i + 1)),
            })
            .collect(),
        hidden_units: (0..8)
            .map(|u| HiddenUnit {
                unit: u,
                bias: figure(u),
                reads: (0..6).map(unit).collect(),
                writes: (0..2).map(unit).collect(),
                slope: figure(u),
                matching: (0..2).map(unit).collect(),
                matching_left: f64::from(figure(u + 1)),
            })
            .collect(),
        seconds: (0..6).map(|i| (text(i), value(i))).collect(),
        commands: (0..4).map(&text).collect(),
        method_notes: (0..4).map(&text).collect(),
        caveats: (0..12).map(&text).collect(),
    }
}

#[test]
fn nasty_texts_stay_texts() {
    let page = check(&full(nasty, |i| (i as f64 * 0.7).sin()));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(page.contains("U+202E"));
}

#[test]
fn every_odd_figure_is_survived() {
    let odd = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        0.0,
        -0.0,
        1e300,
        -1e300,
        f64::MIN_POSITIVE,
        5e-324,
        1.0,
        -1.0,
        1e-20,
        3e38,
    ];
    for alone in odd {
        check(&full(|_| "x".to_owned(), |_| alone));
    }
    for shift in 0..odd.len() {
        check(&full(nasty, |i| odd[(i + shift) % odd.len()]));
    }
}

#[test]
fn an_empty_report_says_so() {
    let page = check(&ChangeReport::default());
    assert!(page.matches("not available").count() > 10);
    assert!(!page.contains("0.00"), "no figure is invented");
}

#[test]
fn the_story_is_told() {
    let page = check(&full(
        |i| format!("text {i}"),
        |i| 1.0 + (i as f64 * 0.7).sin(),
    ));
    for part in [
        "before and after",
        "feature by feature",
        "Explained variance",
        "Spearman",
        "How to read a card",
        "<mark>",
        "prefers-color-scheme: dark",
        "@media print",
        "<svg role=\"img\"",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert_eq!(page.matches("<article").count(), 14);
    assert!(
        page.contains("more examples"),
        "the later examples are folded"
    );
}

#[test]
fn a_report_survives_json() {
    let report = full(nasty, |i| if i % 3 == 0 { f64::NAN } else { i as f64 });
    let json = serde_json::to_string(&report).unwrap();
    let back: ChangeReport = serde_json::from_str(&json).unwrap();
    assert_eq!(render(&report), render(&back));
    let sparse: ChangeReport = serde_json::from_str(r#"{"title": "only a title"}"#).unwrap();
    assert!(check(&sparse).contains("only a title"));
}
