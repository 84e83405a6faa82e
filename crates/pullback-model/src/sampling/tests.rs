use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::{Piece, Sampling, StopStrings, choose, distribution};

fn reference() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sampling.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_remains_is_what_the_processors_of_transformers_leave() {
    let mut filtered = BTreeSet::new();
    for case in reference()["cases"].as_array().unwrap() {
        let logits: Vec<f32> = case["logits64"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_i64().unwrap() as f32 / 64.0)
            .collect();
        let history: Vec<u32> = serde_json::from_value(case["history"].clone()).unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let settings = &case["settings"];
        let number = |key: &str| settings[key].as_f64().map(|x| x as f32);
        let sampling = Sampling {
            temperature: number("temperature").unwrap(),
            top_k: settings["top_k"].as_u64().map(|k| k as usize),
            top_p: number("top_p"),
            min_p: number("min_p"),
            repetition_penalty: number("repetition_penalty").unwrap(),
            seed: 0,
        };
        sampling.check().unwrap();
        let found = distribution(&logits, &history, &sampling);
        let found_ids: Vec<u32> = found.iter().map(|(id, _)| *id).collect();
        assert_eq!(found_ids, ids, "{settings}");
        for ((_, probability), expected) in
            found.iter().zip(case["probabilities"].as_array().unwrap())
        {
            let expected = expected.as_f64().unwrap();
            assert!(
                (probability - expected).abs() < 1e-6,
                "{settings}: {probability} {expected}"
            );
        }
        filtered.insert(ids.len() == logits.len());
    }
    assert_eq!(filtered.len(), 2, "some cases cut the tail, some keep it");
}

#[test]
fn a_nucleus_of_many_tokens_is_that_of_a_whole_sort() {
    // Larger than the first blocks of the partial sort, and with ties.
    let logits: Vec<f32> = (0..5000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 20) as f32 / 1000.0)
        .collect();
    for p in [0.0_f32, 0.01, 0.2, 0.5, 0.9, 0.999] {
        let sampling = Sampling {
            temperature: 1.3,
            top_p: Some(p),
            ..Sampling::default()
        };
        let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / 1.3).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let mut expected = Vec::new();
        let mut sum = 0.0;
        for id in order {
            if !expected.is_empty() && sum >= f64::from(p) * total {
                break;
            }
            sum += weights[id];
            expected.push(id as u32);
        }
        expected.sort_unstable();
        let found: Vec<u32> = distribution(&logits, &[], &sampling)
            .iter()
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(found, expected, "{p}");
    }
}

#[test]
fn choices_follow_the_distribution_and_the_seed() {
    let logits = [1.0_f32, 3.0, 2.0, 0.0];
    let sampling = Sampling {
        temperature: 2.0,
        top_k: Some(3),
        ..Sampling::default()
    };
    let draw = |seed: u64| -> Vec<u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..40_000)
            .map(|_| choose(&logits, &[], &sampling, &mut rng))
            .collect()
    };
    let drawn = draw(1);
    assert_eq!(drawn, draw(1));
    assert_ne!(drawn, draw(2));
    let expected = distribution(&logits, &[], &sampling);
    assert_eq!(expected.len(), 3);
    for (id, probability) in expected {
        let seen = drawn.iter().filter(|&&d| d == id).count() as f64 / 40_000.0;
        // Five standard errors of 40,000 draws.
        assert!(
            (seen - probability).abs() < 0.0125,
            "{id}: {seen} {probability}"
        );
    }
    assert!(!drawn.contains(&3));
}

#[test]
fn temperature_zero_takes_the_likeliest_after_the_penalty() {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let logits = [1.0_f32, 3.0, 3.0, -1.0];
    let mut greedy = |history: &[u32], penalty: f32| {
        let sampling = Sampling {
            repetition_penalty: penalty,
            ..Sampling::default()
        };
        let id = choose(&logits, history, &sampling, &mut rng);
        assert_eq!(distribution(&logits, history, &sampling), [(id, 1.0)]);
        id
    };
    assert_eq!(greedy(&[1], 1.0), 1);
    assert_eq!(greedy(&[1], 1.1), 2);
    assert_eq!(greedy(&[1, 2, 1, 2, 99], 4.0), 0);
}

#[test]
fn logits_that_are_infinite_or_no_numbers() {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let inf = f32::INFINITY;
    for temperature in [0.0, 1.0] {
        let sampling = Sampling {
            temperature,
            top_k: Some(2),
            top_p: Some(0.9),
            min_p: Some(0.1),
            repetition_penalty: 1.2,
            seed: 0,
        };
        let mut one = |logits: &[f32]| choose(logits, &[0, 1, 2], &sampling, &mut rng);
        assert_eq!(one(&[f32::NAN, 0.0, -9.0]), 1);
        assert_eq!(one(&[0.0, inf, -9.0]), 1);
        assert_eq!(one(&[-inf, -inf, -9.0]), 2);
        assert!(one(&[-inf, f32::NAN, -inf]) < 3);
        assert_eq!(one(&[f32::NAN]), 0);
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let with = |change: fn(&mut Sampling)| {
        let mut sampling = Sampling::default();
        change(&mut sampling);
        sampling.check().unwrap_err().to_string()
    };
    Sampling::default().check().unwrap();
    assert_eq!(
        with(|s| s.temperature = -1.0),
        "the temperature is -1, expected 0 or more"
    );
    assert!(with(|s| s.temperature = f32::NAN).contains("temperature is NaN"));
    assert_eq!(
        with(|s| s.top_k = Some(0)),
        "top-k is 0, expected 1 or more"
    );
    assert_eq!(
        with(|s| s.top_p = Some(1.5)),
        "top-p is 1.5, expected a number from 0 to 1"
    );
    assert!(with(|s| s.min_p = Some(-0.5)).contains("min-p is -0.5"));
    assert_eq!(
        with(|s| s.repetition_penalty = 0.0),
        "the repetition penalty is 0, expected more than 0"
    );
}

#[test]
fn stop_strings_across_pieces() {
    let mut stop = StopStrings::new(["</s>", "\n\nUser:"]).unwrap();
    let passed = |text: &str| Piece {
        text: text.into(),
        stop: None,
    };
    assert_eq!(stop.push("one <"), passed("one "));
    assert_eq!(stop.push("b> two\n"), passed("<b> two"));
    assert_eq!(stop.push("\n"), passed(""));
    assert_eq!(stop.push("\n"), passed("\n"));
    assert_eq!(stop.push("Use"), passed(""));
    assert!(!stop.stopped());
    let found = stop.push("r: more");
    assert_eq!((found.text.as_str(), found.stop), ("", Some(1)));
    assert!(stop.stopped());
    assert_eq!(stop.push("even more"), passed(""));
    assert_eq!(stop.finish(), "");

    let mut none = StopStrings::new([""; 0]).unwrap();
    assert_eq!(none.push("all"), passed("all"));
    let mut open = StopStrings::new(["abc"]).unwrap();
    assert_eq!(open.push("xab"), passed("x"));
    assert_eq!(open.finish(), "ab");
    assert!(
        StopStrings::new(["a", ""])
            .unwrap_err()
            .to_string()
            .contains("stop string 1 is empty")
    );
}

/// By trying each end in turn: the text that may pass of all that came so far, and the stop that was found.
fn plainly(stops: &[String], text: &str) -> (String, Option<usize>) {
    for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
        let longest = (0..stops.len())
            .filter(|&i| text[..end].ends_with(&stops[i]))
            .max_by_key(|&i| (stops[i].len(), usize::MAX - i));
        if let Some(i) = longest {
            return (text[..end - stops[i].len()].to_owned(), Some(i));
        }
    }
    let held = (0..text.len())
        .filter(|&at| text.is_char_boundary(at))
        .find(|&at| stops.iter().any(|stop| stop.starts_with(&text[at..])));
    (text[..held.unwrap_or(text.len())].to_owned(), None)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stop_strings_are_found_as_by_plain_search(
        stops in prop::collection::vec("[abé]{1,4}", 0..4),
        pieces in prop::collection::vec("[abcé]{0,4}", 0..10),
    ) {
        let mut matcher = StopStrings::new(stops.clone()).unwrap();
        let (mut text, mut out, mut found) = (String::new(), String::new(), None);
        for piece in &pieces {
            let passed = matcher.push(piece);
            text.push_str(piece);
            out.push_str(&passed.text);
            found = found.or(passed.stop);
            prop_assert_eq!((out.clone(), found), plainly(&stops, &text));
            prop_assert_eq!(matcher.stopped(), found.is_some());
        }
        out.push_str(&matcher.finish());
        if found.is_none() {
            prop_assert_eq!(out, text);
        }
    }
}
