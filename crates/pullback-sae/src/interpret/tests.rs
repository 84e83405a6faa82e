#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::TcpListener;

use pullback_artifact::Control;
use pullback_model::Message;
use serde_json::{Value, json};

use super::score::{Asked, judged};
use super::texts::{Excerpt, FeatureTexts};
use super::{CachedExplainer, Explainer, RemoteExplainer, Score, exchanged, explanation, prompt};
use crate::SaeError;

fn tokens(text: &[&str]) -> Vec<String> {
    text.iter().map(|t| (*t).to_owned()).collect()
}

fn excerpt(text: &[&str], activations: &[f32]) -> Excerpt {
    Excerpt {
        tokens: tokens(text),
        activations: activations.to_vec(),
    }
}

/// Says yes where the word of the description stands in the text, or between the marks if there are any.
struct Reader {
    questions: RefCell<Vec<String>>,
}

impl Explainer for Reader {
    fn name(&self) -> String {
        "reader".to_owned()
    }

    fn complete(&self, messages: &[Message], _: usize) -> Result<String, SaeError> {
        let text = &messages.last().unwrap().content;
        self.questions.borrow_mut().push(text.clone());
        let word = text.split("<<").nth(2).unwrap().split(">>").next().unwrap();
        Ok(format!("\n  \"{word}\"\nmore"))
    }

    fn agrees(&self, messages: &[Message]) -> Result<f64, SaeError> {
        let text = &messages.last().unwrap().content;
        self.questions.borrow_mut().push(text.clone());
        let part = |name: &str| {
            let rest = text.split(name).nth(1).unwrap();
            rest.lines().next().unwrap().to_owned()
        };
        let (word, text) = (part("Description: "), part("Text: "));
        let looked_at = match text.split_once("<<") {
            Some((_, rest)) => rest.split(">>").next().unwrap().to_owned(),
            None => text,
        };
        Ok(if looked_at.contains(&word) { 0.9 } else { 0.2 })
    }
}

fn texts() -> FeatureTexts {
    let sea = |other: &'static str| excerpt(&["the", " sea", other], &[0.0, 2.0, 0.0]);
    let quiet = |other: &'static str| excerpt(&["a", " dry", other], &[0.0; 3]);
    FeatureTexts {
        feature: 7,
        shown: vec![sea(" is"), sea(" was")],
        active: vec![sea(" here"), sea(" there"), sea(" far")],
        quiet: vec![quiet(" land"), quiet(" bone"), quiet(" joke")],
    }
}

#[test]
fn explanations_that_fit_tell_all_texts_apart_and_others_none() {
    let reader = Reader {
        questions: RefCell::default(),
    };
    let texts = texts();
    let own = explanation(&reader, &texts).unwrap();
    assert_eq!(own, "sea");
    let score = |asked, words: &str| {
        judged(&reader, asked, words, &texts, 1, &Control::hidden())
            .unwrap()
            .unwrap()
    };
    for asked in [Asked::Detection, Asked::Fuzzing] {
        let found = score(asked, &own);
        assert_eq!((found.auc, found.accuracy, found.texts), (1.0, 1.0, 6));
        let other = score(asked, "mountain");
        assert_eq!((other.auc, other.accuracy), (0.5, 0.5));
    }
    let questions = reader.questions.borrow();
    let marked = |q: &&String| q.contains("<<");
    // The explanation is written from the shown texts; the others are judged, the marks on the feature or beside it.
    assert!(
        questions[0].contains("- the <<sea>> is\n- the <<sea>> was\n"),
        "{}",
        questions[0]
    );
    assert!(questions.iter().skip(1).all(|q| !q.contains("sea>> is")));
    assert_eq!(questions.iter().filter(marked).count(), 13);
}

/// Says the same always.
struct Parrot(&'static str);

impl Explainer for Parrot {
    fn name(&self) -> String {
        "parrot".to_owned()
    }

    fn complete(&self, _: &[Message], _: usize) -> Result<String, SaeError> {
        Ok(self.0.to_owned())
    }

    fn agrees(&self, _: &[Message]) -> Result<f64, SaeError> {
        Ok(0.5)
    }
}

#[test]
fn explanations_are_one_line() {
    let said = |text| explanation(&Parrot(text), &texts()).unwrap();
    assert_eq!(said("\n\"ships\"\nand more"), "ships");
    assert_eq!(
        said("In common:\n- ships\n\n- boats"),
        "In common: - ships - boats"
    );
    assert_eq!(said(" \n"), "(no words)");
    assert_eq!(said("é".repeat(300).leak()).chars().count(), 200);
}

#[test]
fn scores_are_those_of_counting_pairs() {
    // Pairs: 0.9 beats all three; 0.4 ties with one and beats one.
    let score = Score::of(&[0.9, 0.4], &[0.4, 0.1, 0.6]).unwrap();
    assert!((score.auc - 4.5 / 6.0).abs() < 1e-12);
    assert!((score.accuracy - 0.5 * (0.5 + 2.0 / 3.0)).abs() < 1e-12);
    assert_eq!(score.texts, 5);
    assert!(Score::of(&[], &[0.1]).is_none());
}

#[test]
fn marks_stand_around_words() {
    let text = tokens(&["The", " old", " sea", ",", "\n", "cold"]);
    assert_eq!(
        prompt::written(&text, &[false, true, true, false, false, true]),
        "The <<old sea>>, <<cold>>"
    );
    let half = excerpt(&["a", "b", "c"], &[1.0, 0.4, 2.0]);
    assert_eq!(half.marked(), [true, false, true]);
}

#[test]
fn everyone_gets_another_ones_explanation() {
    assert_eq!(exchanged(1, 0), None);
    for count in 2..9 {
        let mut others = exchanged(count, 3).unwrap();
        assert!(others.iter().enumerate().all(|(own, &other)| own != other));
        others.sort_unstable();
        assert!(others.into_iter().eq(0..count));
    }
}

#[test]
fn the_same_question_is_asked_once_and_a_damaged_answer_again() {
    let dir = tempfile::tempdir().unwrap();
    let reader = || Reader {
        questions: RefCell::default(),
    };
    let ask = |explainer: &CachedExplainer<Reader>| {
        let texts = texts();
        let score = judged(
            explainer,
            Asked::Detection,
            "sea",
            &texts,
            1,
            &Control::hidden(),
        );
        (explanation(explainer, &texts).unwrap(), score.unwrap())
    };
    let first = CachedExplainer::new(reader(), dir.path());
    let found = ask(&first);
    assert_eq!(first.asked(), 7);
    let second = CachedExplainer::new(reader(), dir.path());
    assert_eq!(ask(&second), found);
    assert_eq!(second.asked(), 0);
    let file = std::fs::read_dir(dir.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    std::fs::write(file.path(), "{").unwrap();
    let third = CachedExplainer::new(reader(), dir.path());
    assert_eq!(ask(&third), found);
    assert_eq!(third.asked(), 1);
}

/// Answers requests one after the other, and gives back what was asked.
fn server(answers: Vec<(u16, String)>) -> (String, std::thread::JoinHandle<Vec<(String, Value)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for (status, answer) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            let mut block = [0; 4096];
            let (head, body) = loop {
                let count = stream.read(&mut block).unwrap();
                bytes.extend_from_slice(&block[..count]);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n")
                    && let Ok(body) = serde_json::from_str(body)
                {
                    break (head.to_owned(), body);
                }
            };
            asked.push((head, body));
            write!(
                stream,
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
                answer.len()
            )
            .unwrap();
        }
        asked
    });
    (url, thread)
}

#[test]
fn a_server_is_asked_in_its_protocol() {
    let choice = |choice: Value| (200, json!({ "choices": [choice] }).to_string());
    let likely = |yes: f64, no: f64| {
        json!({
            "message": { "content": "No" },
            "logprobs": { "content": [{ "top_logprobs": [
                { "token": " Yes", "logprob": yes.ln() },
                { "token": "no", "logprob": no.ln() },
                { "token": "maybe", "logprob": -1.0 },
            ] }] },
        })
    };
    let (url, thread) = server(vec![
        choice(json!({ "message": { "content": "ships" } })),
        choice(likely(0.6, 0.2)),
        choice(json!({ "message": { "content": "**Yes**, it does" } })),
        choice(json!({ "message": { "content": "perhaps" } })),
        (429, "slow down".to_owned()),
        (200, "<html>".to_owned()),
        (200, "{}".to_owned()),
    ]);
    let key = Some("secret".to_owned());
    let explainer = RemoteExplainer::new(&url, "some-model", key, Control::hidden());
    let question = [Message::user("what is it?")];
    assert_eq!(explainer.complete(&question, 9).unwrap(), "ships");
    let agrees = || explainer.agrees(&question);
    assert!((agrees().unwrap() - 0.75).abs() < 1e-12);
    assert_eq!(agrees().unwrap(), 1.0);
    assert_eq!(agrees().unwrap(), 0.5);
    for words in [
        ["429", "slow down"],
        ["no JSON", "<html>"],
        ["without choices", "{}"],
    ] {
        let error = agrees().unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let asked = thread.join().unwrap();
    assert!(
        asked[0].0.starts_with("POST /v1/chat/completions "),
        "{}",
        asked[0].0
    );
    assert!(
        asked[0]
            .0
            .to_lowercase()
            .contains("authorization: bearer secret")
    );
    assert_eq!(asked[0].1["messages"][0]["content"], "what is it?");
    assert_eq!(asked[0].1["model"], "some-model");
    assert_eq!(asked[1].1["logprobs"], true);
}

#[test]
fn a_key_does_not_travel_in_the_open() {
    let key = Some("secret".to_owned());
    let explainer = RemoteExplainer::new("http://example.com/v1", "m", key, Control::hidden());
    let error = explainer
        .agrees(&[Message::user("?")])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("https://") && !error.contains("secret"),
        "{error}"
    );
}
