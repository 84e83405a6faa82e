//! A server that speaks `OpenAI`'s chat protocol as explainer.

use pullback_artifact::{Control, post_json};
use pullback_model::Message;
use serde_json::{Value, json};

use super::Explainer;
use crate::SaeError;

/// A model behind an address such as `http://localhost:8080/v1`.
pub struct RemoteExplainer {
    url: String,
    model: String,
    key: Option<String>,
    control: Control,
}

impl RemoteExplainer {
    /// The server's address up to `/chat/completions`, the name it knows the model by, and the key it wants.
    pub fn new(url: &str, model: &str, key: Option<String>, control: Control) -> Self {
        Self {
            url: url.trim_end_matches('/').to_owned(),
            model: model.to_owned(),
            key,
            control,
        }
    }

    fn ask(&self, messages: &[Message], most: usize, more: Value) -> Result<Value, SaeError> {
        let mut body = json!({
            "model": self.model,
            "messages": messages,
            "max_tokens": most,
            "temperature": 0,
        });
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        let url = format!("{}/chat/completions", self.url);
        let answer = post_json(&url, self.key.as_deref(), &body, &self.control)?;
        match answer.pointer("/choices/0") {
            Some(choice) => Ok(choice.clone()),
            None => Err(SaeError::Option(format!(
                "{url} answered without choices: {}",
                answer.to_string().chars().take(200).collect::<String>()
            ))),
        }
    }
}

/// What a choice says.
fn said(choice: &Value) -> String {
    let text = choice.pointer("/message/content").and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

/// Yes or no as the first word of an answer.
fn first_word(text: &str) -> Option<bool> {
    let word = text
        .trim_start_matches(|c: char| !c.is_alphanumeric())
        .split(|c: char| !c.is_alphanumeric())
        .next()?;
    if word.eq_ignore_ascii_case("yes") {
        return Some(true);
    }
    word.eq_ignore_ascii_case("no").then_some(false)
}

/// From the probabilities of the first token where the server gives them, else from the answer; one half where it is
/// neither yes nor no.
fn probability_of_yes(choice: &Value) -> f64 {
    let likely = choice.pointer("/logprobs/content/0/top_logprobs");
    if let Some(likely) = likely.and_then(Value::as_array) {
        let mut sums = [0.0, 0.0];
        for token in likely {
            let text = token["token"].as_str().and_then(first_word);
            if let (Some(yes), Some(log)) = (text, token["logprob"].as_f64()) {
                sums[usize::from(!yes)] += log.exp();
            }
        }
        let total = sums[0] + sums[1];
        if total > 0.0 {
            return sums[0] / total;
        }
    }
    match first_word(&said(choice)) {
        Some(true) => 1.0,
        Some(false) => 0.0,
        None => 0.5,
    }
}

impl Explainer for RemoteExplainer {
    fn name(&self) -> String {
        format!("{} {}", self.url, self.model)
    }

    fn complete(&self, messages: &[Message], most: usize) -> Result<String, SaeError> {
        Ok(said(&self.ask(messages, most, json!({}))?))
    }

    fn agrees(&self, messages: &[Message]) -> Result<f64, SaeError> {
        let more = json!({ "logprobs": true, "top_logprobs": 20 });
        Ok(probability_of_yes(&self.ask(messages, 3, more)?))
    }
}
