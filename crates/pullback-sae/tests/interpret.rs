//! Interpreting features of a real store with the model itself as explainer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::cell::RefCell;

use common::base::{assert_has, setting};
use common::{dense_codes, identity_sae, random_sae, rows_of};
use pullback_artifact::Control;
use pullback_model::Message;
use pullback_sae::interpret::{Explainer, InterpretConfig, LocalExplainer, interpret};
use pullback_sae::{Dictionary, SaeError};

/// Writes down what it is shown.
struct Witness {
    seen: RefCell<Vec<String>>,
}

impl Explainer for Witness {
    fn name(&self) -> String {
        "witness".to_owned()
    }

    fn complete(&self, messages: &[Message], _: usize) -> Result<String, SaeError> {
        let mut seen = self.seen.borrow_mut();
        seen.push(messages.last().unwrap().content.clone());
        Ok(format!("explanation {}", seen.len()))
    }

    fn agrees(&self, messages: &[Message]) -> Result<f64, SaeError> {
        self.seen
            .borrow_mut()
            .push(messages.last().unwrap().content.clone());
        Ok(0.5)
    }
}

#[test]
fn explanations_are_written_from_the_strongest_texts_and_exchanged_between_features() {
    let setting = setting();
    let sae = random_sae(7, setting.store.info().d, 64, 2);
    let witness = Witness {
        seen: RefCell::default(),
    };
    let config = InterpretConfig {
        shown: 3,
        judged: 4,
        context: 4,
        ..InterpretConfig::default()
    };
    let parts = (&setting.store, &setting.model);
    let mut rows: Vec<u32> = setting.store.normal_rows(false);
    rows.extend(setting.store.normal_rows(true));
    let codes = dense_codes(&sae, &rows_of(&setting.store, &rows));
    // Two that are active on some tokens, and not on all.
    let share = |feature: usize| {
        let active = codes.iter().filter(|codes| codes[feature] > 0.0).count();
        active as f64 / rows.len() as f64
    };
    let features: Vec<usize> = (0..64)
        .rev()
        .filter(|&feature| (0.03..0.12).contains(&share(feature)))
        .take(2)
        .collect();
    let control = Control::hidden();
    let found = interpret(&sae, parts, &features, &witness, &config, &control).unwrap();
    assert_eq!(found.len(), 2);
    let seen = witness.seen.borrow();
    // The strongest token of the whole store stands marked in what the explanation is written from.
    for (place, &feature) in features.iter().enumerate() {
        let top = (0..rows.len())
            .max_by(|&a, &b| codes[a][feature].total_cmp(&codes[b][feature]))
            .unwrap();
        let token = setting.store.token(rows[top] as usize);
        let word = setting.model.tokenizer().token_text(token);
        let first = seen[place].lines().nth(1).unwrap();
        let marked: Vec<&str> = first.split("<<").skip(1).collect();
        assert!(
            marked
                .iter()
                .any(|part| part.split(">>").next().unwrap().contains(word.trim())),
            "{word}: {first}"
        );
        assert_eq!(seen[place].matches("\n- ").count(), 3);
        assert_eq!(found[place].feature, feature);
        assert_eq!(
            found[place].explanation,
            format!("explanation {}", place + 1)
        );
        // Who always says the same guesses.
        let score = found[place].detection.unwrap();
        assert!((score.auc - 0.5).abs() < 1e-12 && score.texts <= 8 && score.texts > 1);
    }
    // Each explanation is asked about on the texts of both features.
    for number in [1, 2] {
        let words = format!("Description: explanation {number}\n");
        let asked = seen.iter().filter(|text| text.contains(&words)).count();
        let texts: usize = found
            .iter()
            .map(|f| f.detection.unwrap().texts + f.fuzzing.map_or(0, |score| score.texts))
            .sum();
        assert_eq!(asked, texts);
    }
}

#[test]
fn a_model_explains_itself_the_same_way_each_time() {
    let setting = setting();
    let sae = identity_sae(setting.store.info().d);
    let parts = (&setting.store, &setting.model);
    let control = Control::hidden();
    match LocalExplainer::new(&setting.model, "tiny") {
        Ok(explainer) => {
            let ask = || {
                let config = InterpretConfig::default();
                interpret(&sae, parts, &[1], &explainer, &config, &control).unwrap()
            };
            let found = ask();
            assert_eq!(found, ask());
            let p = explainer.agrees(&[Message::user("a sea?")]).unwrap();
            assert!((0.0..=1.0).contains(&p));
            // One feature has nobody to exchange its explanation with.
            assert!(found[0].detection_exchanged.is_none());
        }
        Err(error) => assert_has(&error.to_string(), &["tiny", "yes"]),
    }
}

#[test]
fn what_cannot_be_interpreted_is_refused_in_words() {
    let setting = setting();
    let sae = identity_sae(setting.store.info().d);
    let witness = Witness {
        seen: RefCell::default(),
    };
    let parts = (&setting.store, &setting.model);
    let refused = |features: &[usize], config: &InterpretConfig, words: &[&str]| {
        let control = Control::hidden();
        let error = interpret(&sae, parts, features, &witness, config, &control).unwrap_err();
        assert_has(&error.to_string(), words);
    };
    let config = InterpretConfig::default();
    let count = sae.n_features().to_string();
    refused(&[10_000], &config, &["10000", &count]);
    let none = InterpretConfig {
        judged: 0,
        ..config
    };
    refused(&[1], &none, &["judged on"]);
}
