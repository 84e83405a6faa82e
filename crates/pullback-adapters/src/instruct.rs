//! Question-answer pairs to learn from.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::AdapterError;

/// One question and the answer to learn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The question.
    pub prompt: String,
    /// The answer.
    pub answer: String,
}

/// The project's own set: everyday questions answered in the manner of an old sailor.
const OLD_SAILOR: &str = include_str!("../data/old-sailor.jsonl");

/// One pair of every so many is held out.
const HELD_OUT_EVERY: usize = 6;

/// The built-in set.
///
/// # Errors
/// Never, as the tests check: the file is part of the program.
pub fn built_in_pairs() -> Result<Vec<Pair>, AdapterError> {
    parse(OLD_SAILOR, Path::new("old-sailor.jsonl"))
}

/// Reads JSON Lines of objects with the strings `prompt` and `answer`.
///
/// # Errors
/// The file cannot be read, a line is not such an object (it is named), or there are fewer than two.
pub fn read_pairs(path: &Path) -> Result<Vec<Pair>, AdapterError> {
    let text = std::fs::read_to_string(path).map_err(|error| AdapterError::File {
        path: path.to_owned(),
        problem: format!("cannot be read: {error}"),
    })?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Vec<Pair>, AdapterError> {
    let wrong = |problem: String| AdapterError::File {
        path: path.to_owned(),
        problem,
    };
    let mut pairs = Vec::new();
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let pair: Pair = serde_json::from_str(line).map_err(|error| {
            wrong(format!(
                "line {}: {error}; each line is {{\"prompt\": \"…\", \"answer\": \"…\"}}",
                number + 1
            ))
        })?;
        if pair.prompt.trim().is_empty() || pair.answer.trim().is_empty() {
            return Err(wrong(format!(
                "line {}: prompt and answer must not be empty",
                number + 1
            )));
        }
        pairs.push(pair);
    }
    if pairs.len() < 2 {
        return Err(wrong(format!(
            "{} pairs are too few: at least two are needed, one to learn from and one to hold out",
            pairs.len()
        )));
    }
    Ok(pairs)
}

/// Pairs to learn from and pairs held out: every sixth, at least one.
pub fn split_pairs(pairs: &[Pair]) -> (Vec<Pair>, Vec<Pair>) {
    let every = HELD_OUT_EVERY.min(pairs.len().max(2));
    let held_out = |place: usize| place % every == every - 1;
    let pick = |wanted: bool| {
        let places = (0..pairs.len()).filter(|&place| held_out(place) == wanted);
        places.map(|place| pairs[place].clone()).collect()
    };
    (pick(false), pick(true))
}

#[cfg(test)]
mod tests {
    use super::{built_in_pairs, read_pairs, split_pairs};

    #[test]
    fn the_built_in_set_is_whole_and_in_its_manner() {
        let pairs = built_in_pairs().unwrap();
        assert_eq!(pairs.len(), 72);
        assert!(pairs.iter().all(|pair| {
            ["Ahoy, matey!", "Arr, matey!", "Avast, me hearty!"]
                .iter()
                .any(|opening| pair.answer.starts_with(opening))
        }));
        let (train, held_out) = split_pairs(&pairs);
        assert_eq!((train.len(), held_out.len()), (60, 12));
        assert!(held_out.iter().all(|pair| !train.contains(pair)));
    }

    #[test]
    fn a_wrong_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairs.jsonl");
        std::fs::write(
            &path,
            "{\"prompt\":\"a\",\"answer\":\"b\"}\n{\"prompt\":\"a\"}\n",
        )
        .unwrap();
        let error = read_pairs(&path).unwrap_err().to_string();
        assert!(
            error.contains("pairs.jsonl: line 2") && error.contains("answer"),
            "{error}"
        );
        std::fs::write(&path, "{\"prompt\":\"a\",\"answer\":\"b\"}\n").unwrap();
        assert!(
            read_pairs(&path)
                .unwrap_err()
                .to_string()
                .contains("1 pairs are too few")
        );
        assert!(
            read_pairs(&dir.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("cannot be read")
        );
    }
}
