//! What adapters learn from: questions with answers, conversations, plain text, preferences.

use std::path::Path;

use pullback_model::Message;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::AdapterError;

/// One question and the answer to learn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The question.
    pub prompt: String,
    /// The answer.
    pub answer: String,
}

/// One line of data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Sample {
    /// A question with its answer; the answer's tokens count.
    Pair {
        /// Question and answer.
        #[serde(flatten)]
        pair: Pair,
        /// A worse answer, for preferences.
        #[serde(skip_serializing_if = "Option::is_none")]
        rejected: Option<String>,
    },
    /// A conversation; the tokens of the model's messages count.
    Chat {
        /// The messages.
        messages: Vec<Message>,
        /// A worse last message, for preferences.
        #[serde(skip_serializing_if = "Option::is_none")]
        rejected: Option<String>,
    },
    /// Text, of which every token counts.
    Text {
        /// The text.
        text: String,
    },
}

impl Sample {
    /// The worse answer, where there is one.
    pub fn rejected(&self) -> Option<&str> {
        match self {
            Self::Pair { rejected, .. } | Self::Chat { rejected, .. } => rejected.as_deref(),
            Self::Text { .. } => None,
        }
    }

    /// The conversation; none for plain text.
    pub(crate) fn conversation(&self) -> Option<Vec<Message>> {
        match self {
            Self::Pair { pair, .. } => Some(vec![
                Message::user(&pair.prompt),
                Message::assistant(&pair.answer),
            ]),
            Self::Chat { messages, .. } => Some(messages.clone()),
            Self::Text { .. } => None,
        }
    }

    /// The conversation with the worse answer at its end.
    pub(crate) fn rejected_conversation(&self) -> Option<Vec<Message>> {
        let mut messages = self.conversation()?;
        let rejected = self.rejected()?;
        messages.pop();
        messages.push(Message::assistant(rejected));
        Some(messages)
    }

    /// A few words of it for messages.
    pub(crate) fn opening(&self) -> String {
        let text = match self {
            Self::Pair { pair, .. } => &pair.prompt,
            Self::Chat { messages, .. } => messages.first().map_or("", |m| m.content.as_str()),
            Self::Text { text } => text,
        };
        match text.char_indices().nth(60) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.to_owned(),
        }
    }
}

impl From<Pair> for Sample {
    fn from(pair: Pair) -> Self {
        Self::Pair {
            pair,
            rejected: None,
        }
    }
}

/// The project's own set: everyday questions answered in the manner of an old sailor.
const OLD_SAILOR: &str = include_str!("../data/old-sailor.jsonl");

/// One sample of every so many is held out.
const HELD_OUT_EVERY: usize = 6;

/// The built-in set.
///
/// # Errors
/// Never, as the tests check: the file is part of the program.
pub fn built_in_samples() -> Result<Vec<Sample>, AdapterError> {
    parse(OLD_SAILOR, Path::new("old-sailor.jsonl"))
}

/// Reads JSON Lines. Each line is an object: `{"prompt": …, "answer": …}`, `{"messages": [{"role": …, "content": …}, …]}`
/// with the model's message last, or `{"text": …}`. The first two may have a worse answer, `"rejected"`.
///
/// # Errors
/// The file cannot be read, a line is not such an object or has no answer (it is named), or there are fewer than two.
pub fn read_samples(path: &Path) -> Result<Vec<Sample>, AdapterError> {
    let text = std::fs::read_to_string(path).map_err(|error| AdapterError::File {
        path: path.to_owned(),
        problem: format!("cannot be read: {error}"),
    })?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Vec<Sample>, AdapterError> {
    let wrong = |problem: String| AdapterError::File {
        path: path.to_owned(),
        problem,
    };
    let mut samples = Vec::new();
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let sample =
            sample(line).map_err(|problem| wrong(format!("line {}: {problem}", number + 1)))?;
        samples.push(sample);
    }
    if samples.len() < 2 {
        return Err(wrong(format!(
            "{} samples are too few: at least two are needed, one to learn from and one to hold out",
            samples.len()
        )));
    }
    Ok(samples)
}

/// The keys that a line may have.
const KEYS: [&str; 5] = ["prompt", "answer", "messages", "text", "rejected"];

fn sample(line: &str) -> Result<Sample, String> {
    let forms = "each line is {\"prompt\": \"…\", \"answer\": \"…\"}, {\"messages\": […]} or {\"text\": \"…\"}, the first two with \"rejected\": \"…\" for preferences";
    let value: Value = serde_json::from_str(line).map_err(|error| format!("{error}; {forms}"))?;
    let Some(object) = value.as_object() else {
        return Err(format!("no object; {forms}"));
    };
    if let Some(key) = object.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("the key {key:?} is not known; {forms}"));
    }
    let string = |key: &str| match object.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Err(format!("{key} is empty")),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("{key} is no string; {forms}")),
    };
    let (prompt, answer) = (string("prompt")?, string("answer")?);
    let (text, rejected) = (string("text")?, string("rejected")?);
    match (prompt, answer, object.get("messages"), text) {
        (Some(prompt), Some(answer), None, None) => Ok(Sample::Pair {
            pair: Pair { prompt, answer },
            rejected,
        }),
        (None, None, Some(messages), None) => {
            let messages = Vec::<Message>::deserialize(messages).map_err(|error| {
                format!("messages: {error}; each is {{\"role\": \"…\", \"content\": \"…\"}}")
            })?;
            match messages.last() {
                Some(last) if last.role == "assistant" && !last.content.trim().is_empty() => {
                    Ok(Sample::Chat { messages, rejected })
                }
                _ => Err(
                    "the last message must be an answer, of role \"assistant\": there is nothing to learn from otherwise"
                        .to_owned(),
                ),
            }
        }
        (None, None, None, Some(text)) if rejected.is_none() => Ok(Sample::Text { text }),
        (Some(_), None, None, None) => Err(format!("the answer is missing; {forms}")),
        _ => Err(format!("the keys do not go together; {forms}")),
    }
}

/// What is learnt from and what is held out: every sixth, at least one.
pub fn split<T: Clone>(samples: &[T]) -> (Vec<T>, Vec<T>) {
    let every = HELD_OUT_EVERY.min(samples.len().max(2));
    let held_out = |place: usize| place % every == every - 1;
    let pick = |wanted: bool| {
        let places = (0..samples.len()).filter(|&place| held_out(place) == wanted);
        places.map(|place| samples[place].clone()).collect()
    };
    (pick(false), pick(true))
}

#[cfg(test)]
mod tests {
    use super::{Sample, built_in_samples, read_samples, split};

    #[test]
    fn the_built_in_set_is_whole_and_in_its_manner() {
        let pairs = built_in_samples().unwrap();
        assert_eq!(pairs.len(), 72);
        assert!(pairs.iter().all(|sample| {
            let Sample::Pair { pair, .. } = sample else {
                return false;
            };
            ["Ahoy, matey!", "Arr, matey!", "Avast, me hearty!"]
                .iter()
                .any(|opening| pair.answer.starts_with(opening))
        }));
        let (train, held_out) = split(&pairs);
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
        let error = read_samples(&path).unwrap_err().to_string();
        assert!(
            error.contains("pairs.jsonl: line 2") && error.contains("answer"),
            "{error}"
        );
        std::fs::write(&path, "{\"prompt\":\"a\",\"answer\":\"b\"}\n").unwrap();
        assert!(
            read_samples(&path)
                .unwrap_err()
                .to_string()
                .contains("1 samples are too few")
        );
        assert!(
            read_samples(&dir.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("cannot be read")
        );
    }
}
