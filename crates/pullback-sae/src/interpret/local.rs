//! A loaded model as explainer.

use pullback_model::{GenerateOptions, Message, Model};

use super::Explainer;
use crate::SaeError;

/// A model that is in memory. One without a chat template is given the questions as plain text.
pub struct LocalExplainer<'a> {
    model: &'a Model,
    name: String,
    /// Tokens that mean yes, and no.
    answers: [Vec<u32>; 2],
}

impl<'a> LocalExplainer<'a> {
    /// Takes a model under a name.
    ///
    /// # Errors
    /// The model has no token for yes or for no.
    pub fn new(model: &'a Model, name: &str) -> Result<Self, SaeError> {
        let tokenizer = model.tokenizer();
        let meaning = |word: &str| -> Vec<u32> {
            (0..tokenizer.vocab_size() as u32)
                .filter(|&id| tokenizer.token_text(id).trim().eq_ignore_ascii_case(word))
                .collect()
        };
        let answers = [meaning("yes"), meaning("no")];
        if answers.iter().any(Vec::is_empty) {
            return Err(SaeError::Option(format!(
                "{name} cannot judge explanations: it has no token for yes or for no"
            )));
        }
        Ok(Self {
            model,
            name: format!("{name} {}", model.digest()),
            answers,
        })
    }

    fn tokens(&self, messages: &[Message]) -> Result<Vec<u32>, SaeError> {
        let tokenizer = self.model.tokenizer();
        let mut ids = if let Ok(template) = self.model.chat_template() {
            template.encode_chat(tokenizer, messages, true)?
        } else {
            let text: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
            tokenizer.encode_with_bos(&(text.join("\n") + "\nAnswer:"), true)?
        };
        // The question stands at the end.
        let most = self.model.config().n_ctx.saturating_sub(1).max(1);
        if ids.len() > most {
            ids.drain(..ids.len() - most);
        }
        Ok(ids)
    }
}

impl Explainer for LocalExplainer<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn complete(&self, messages: &[Message], most: usize) -> Result<String, SaeError> {
        let ids = self.tokens(messages)?;
        let options = GenerateOptions {
            max_tokens: most,
            stop: self.model.tokenizer().end_tokens().to_vec(),
            ..GenerateOptions::default()
        };
        let mut texts = self.model.generate_batch(&[&ids], &options, |_| true)?;
        Ok(texts.pop().map(|text| text.text).unwrap_or_default())
    }

    fn agrees(&self, messages: &[Message]) -> Result<f64, SaeError> {
        let logits = self.model.next_logits(&self.tokens(messages)?, &[])?;
        let [yes, no] = [0, 1].map(|which: usize| {
            let of = self.answers[which]
                .iter()
                .map(|&id| f64::from(logits[id as usize]));
            let of: Vec<f64> = of.collect();
            let top = of.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            top + of.iter().map(|x| (x - top).exp()).sum::<f64>().ln()
        });
        Ok(((no - yes).exp() + 1.0).recip())
    }
}
