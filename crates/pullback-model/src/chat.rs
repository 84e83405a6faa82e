//! Conversations as the model was trained to read them.
//!
//! A model file brings its chat format as a Jinja template. The template's own text may hold control tokens such as
//! `<|im_start|>`; the text of a message must not, whoever wrote it. So the ids of a conversation are made in such a way
//! that only control tokens of the template are read as such, while everything else is tokenized across the borders
//! between template and messages exactly as in one text.

mod python;

use std::ops::Range;
use std::path::Path;

use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value as JinjaValue;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ModelError;
use crate::gguf::Gguf;
use crate::huggingface::read_json;
use crate::tokenizer::Tokenizer;

/// The role of the messages that a model answers with.
const ASSISTANT: &str = "assistant";
const TEMPLATE: &str = "chat template";
/// The format that most small models use; for files whose vocabulary has its tokens but that bring no template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
                      '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
                      {% endif %}";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }

    /// Instructions for the whole conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What a person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model says.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(ASSISTANT, content)
    }
}

/// The chat format of a model.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// The texts of special tokens that templates may name: `bos_token` and so on.
    names: Vec<(&'static str, String)>,
}

/// A rendered conversation, and where the contents of its messages are in it.
struct Rendered {
    text: String,
    /// The number of the message and the bytes of its content, in the order of the text.
    contents: Vec<(usize, Range<usize>)>,
}

impl ChatTemplate {
    /// Compiles a Jinja template, as Hugging Face transformers does: with `trim_blocks` and `lstrip_blocks`, and with the
    /// methods of Python's strings, lists and dictionaries.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(|error| template_error(&python::describe(&error)))?,
        );
        environment.set_unknown_method_callback(python::call_method);
        environment.add_function("raise_exception", python::raise_exception);
        environment.add_function("strftime_now", python::strftime_now);
        environment
            .add_template_owned(TEMPLATE, source.to_owned())
            .map_err(|error| {
                template_error(&format!("it does not parse: {}", python::describe(&error)))
            })?;
        let roles = [
            ("bos_token", tokenizer.bos()),
            ("eos_token", tokenizer.eos()),
            ("unk_token", tokenizer.unk()),
            ("pad_token", tokenizer.pad()),
        ];
        let names = roles
            .into_iter()
            .filter_map(|(name, id)| Some((name, tokenizer.token_text(id?))))
            .collect();
        Ok(Self {
            environment,
            source: source.to_owned(),
            names,
        })
    }

    /// The template of a GGUF file, or `ChatML` if the vocabulary has its tokens; `None` if neither.
    ///
    /// # Errors
    /// When the template does not parse.
    pub fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Option<Self>, ModelError> {
        Self::or_chatml(gguf.string("tokenizer.chat_template")?, tokenizer)
    }

    /// The template of a Hugging Face directory: the first of `chat_template.jinja`, `chat_template` in
    /// `chat_template.json` and `chat_template` in `tokenizer_config.json`. In JSON it is a string, or several by name as a
    /// list of `{"name": …, "template": …}` or as an object, of which the one called `default` is taken, or the only one.
    /// Without one, `ChatML` if the vocabulary has its tokens; `None` if neither.
    ///
    /// # Errors
    /// When a file cannot be read, none of several templates is the default, or the template does not parse.
    pub fn from_huggingface(
        directory: &Path,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>, ModelError> {
        let file = directory.join("chat_template.jinja");
        if file.is_file() {
            let source =
                std::fs::read_to_string(&file).map_err(|source| ModelError::io(&file, source))?;
            return Self::new(&source, tokenizer).map(Some);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let file = directory.join(name);
            if !file.is_file() {
                continue;
            }
            let settings = read_json(&file)?;
            if let Some(source) = template_in(&settings["chat_template"], name)? {
                return Self::new(source, tokenizer).map(Some);
            }
        }
        Self::or_chatml(None, tokenizer)
    }

    fn or_chatml(source: Option<&str>, tokenizer: &Tokenizer) -> Result<Option<Self>, ModelError> {
        let has = |name| {
            tokenizer
                .token_id(name)
                .is_some_and(|id| tokenizer.is_special(id))
        };
        let chatml = || (has("<|im_start|>") && has("<|im_end|>")).then_some(CHATML);
        source
            .or_else(chatml)
            .map(|source| Self::new(source, tokenizer))
            .transpose()
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation, with the beginning of an answer at its end if `add_generation_prompt`.
    ///
    /// # Errors
    /// When the template refuses the conversation (an unknown role, say) or fails.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ModelError> {
        let messages: Vec<JinjaValue> = messages
            .iter()
            .map(|m| {
                JinjaValue::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())])
            })
            .collect();
        let names = self
            .names
            .iter()
            .map(|(name, text)| (*name, JinjaValue::from(text.as_str())));
        let context = [
            ("messages", JinjaValue::from(messages)),
            (
                "add_generation_prompt",
                JinjaValue::from(add_generation_prompt),
            ),
        ];
        self.environment
            .get_template(TEMPLATE)
            .and_then(|template| template.render(JinjaValue::from_pairs(names.chain(context))))
            .map_err(|error| template_error(&python::describe(&error)))
    }

    /// The ids of a conversation: those of [`ChatTemplate::render`], where only control tokens that the template wrote
    /// are control tokens, and not their text within a message.
    ///
    /// # Errors
    /// When the template refuses the conversation, or changes the text of a message that holds the text of a control
    /// token, so that the two cannot be told apart.
    pub fn encode_chat(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, ModelError> {
        let rendered = match self.locate(messages, add_generation_prompt)? {
            Ok(rendered) => rendered,
            Err(text) => {
                let unsafe_message = messages
                    .iter()
                    .find(|m| !tokenizer.find_special(&m.content).is_empty());
                if let Some(message) = unsafe_message {
                    return Err(template_error(&format!(
                        "it changes the text of the messages, and a message of role {:?} holds the text of a control \
                         token",
                        message.role
                    )));
                }
                return tokenizer.encode(&text, true);
            }
        };
        Ok(encode_rendered(tokenizer, &rendered)?
            .into_iter()
            .map(|(id, _)| id)
            .collect())
    }

    /// [`ChatTemplate::encode_chat`] for training: also a mark for each token that a model should learn to produce, which
    /// are those of the messages of role `assistant` and of the control token that ends each.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode_chat`], and when the template changes the messages' text, so that it cannot be found.
    pub fn encode_chat_with_mask(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<(Vec<u32>, Vec<bool>), ModelError> {
        let rendered = self.locate(messages, add_generation_prompt)?.map_err(|_| {
            template_error("it changes the text of the messages, so that the answers cannot be found in the result")
        })?;
        let tokens = encode_rendered(tokenizer, &rendered)?;
        let mut mask = vec![false; tokens.len()];
        for (message, content) in &rendered.contents {
            if messages[*message].role != ASSISTANT {
                continue;
            }
            for (mark, (_, range)) in mask.iter_mut().zip(&tokens) {
                *mark |= overlaps(range, content);
            }
            let next = tokens
                .iter()
                .position(|(id, range)| range.start >= content.end && tokenizer.is_special(*id));
            if let Some(next) = next
                && rendered.text[content.end..tokens[next].1.start]
                    .trim()
                    .is_empty()
            {
                mask[next] = true;
            }
        }
        Ok((tokens.into_iter().map(|(id, _)| id).collect(), mask))
    }

    /// Renders a conversation and finds the contents of its messages in the result; the text alone where the template
    /// changes them in other ways than by trimming.
    ///
    /// The contents are found by rendering once more with marks around each, which must give the same text once the marks
    /// are taken out: first around the whole content, then around what is left of it without white space at its ends.
    fn locate(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Result<Rendered, String>, ModelError> {
        let text = self.render(messages, add_generation_prompt)?;
        for trimmed in [false, true] {
            let Some(marks) = Marks::unused(messages, &text) else {
                break;
            };
            let marked: Vec<Message> = messages
                .iter()
                .enumerate()
                .map(|(index, message)| {
                    Message::new(
                        &message.role,
                        marks.around(index, &message.content, trimmed),
                    )
                })
                .collect();
            // The marks themselves may be what the template refuses.
            let Ok(output) = self.render(&marked, add_generation_prompt) else {
                continue;
            };
            if let Some(rendered) = marks.take_out(&output, messages.len())
                && rendered.text == text
            {
                return Ok(Ok(rendered));
            }
        }
        Ok(Err(text))
    }
}

/// The default template of an entry `chat_template`.
fn template_in<'a>(entry: &'a Value, file: &str) -> Result<Option<&'a str>, ModelError> {
    let named: Vec<(&str, &str)> = match entry {
        Value::Null => return Ok(None),
        Value::String(source) => return Ok(Some(source)),
        Value::Array(list) => list
            .iter()
            .filter_map(|entry| Some((entry["name"].as_str()?, entry["template"].as_str()?)))
            .collect(),
        Value::Object(map) => map
            .iter()
            .filter_map(|(name, source)| Some((name.as_str(), source.as_str()?)))
            .collect(),
        _ => Vec::new(),
    };
    let default = named.iter().find(|(name, _)| *name == "default");
    match (default, named.as_slice()) {
        (Some((_, source)), _) | (None, [(_, source)]) => Ok(Some(source)),
        (None, []) => Err(template_error(&format!(
            "{file}: chat_template is neither a text nor a list of named templates"
        ))),
        (None, several) => {
            let names: Vec<&str> = several.iter().map(|(name, _)| *name).collect();
            Err(template_error(&format!(
                "{file}: none of the templates is called \"default\" (they are: {})",
                names.join(", ")
            )))
        }
    }
}

fn template_error(problem: &str) -> ModelError {
    ModelError::ChatTemplate {
        problem: problem.to_owned(),
    }
}

fn overlaps(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The ids of a rendered conversation and the bytes that each stands for.
fn encode_rendered(
    tokenizer: &Tokenizer,
    rendered: &Rendered,
) -> Result<Vec<(u32, Range<usize>)>, ModelError> {
    let text = rendered.text.as_str();
    let tokens = tokenizer.encode_with_offsets(text, true)?;
    let injected = tokens.iter().any(|(id, range)| {
        // Some control tokens take the white space beside them.
        let written = text.get(range.clone()).unwrap_or_default();
        let start = range.start + (written.len() - written.trim_start().len());
        let range = start..start + written.trim().len();
        tokenizer.is_special(*id)
            && rendered
                .contents
                .iter()
                .any(|(_, content)| overlaps(&range, content))
    });
    if !injected {
        return Ok(tokens);
    }

    // A message holds the text of a control token: only those of the template count, and between them all is plain.
    let mut tokens = Vec::new();
    let mut start = 0;
    for (id, range) in template_specials(tokenizer, rendered) {
        encode_plain(tokenizer, text, start..range.start, &mut tokens)?;
        start = range.end;
        tokens.push((id, range));
    }
    encode_plain(tokenizer, text, start..text.len(), &mut tokens)?;
    Ok(tokens)
}

fn encode_plain(
    tokenizer: &Tokenizer,
    text: &str,
    range: Range<usize>,
    tokens: &mut Vec<(u32, Range<usize>)>,
) -> Result<(), ModelError> {
    if !range.is_empty() {
        let plain = tokenizer.encode_with_offsets(&text[range.clone()], false)?;
        tokens.extend(
            plain
                .into_iter()
                .map(|(id, r)| (id, r.start + range.start..r.end + range.start)),
        );
    }
    Ok(())
}

/// The control tokens in the parts of a rendered conversation that are not content.
fn template_specials(tokenizer: &Tokenizer, rendered: &Rendered) -> Vec<(u32, Range<usize>)> {
    let mut found = Vec::new();
    let mut find = |gap: Range<usize>| {
        let start = gap.start;
        let specials = tokenizer.find_special(&rendered.text[gap]).into_iter();
        found.extend(specials.map(|(id, r)| (id, r.start + start..r.end + start)));
    };
    let mut start = 0;
    for (_, content) in &rendered.contents {
        find(start..content.start);
        start = content.end;
    }
    find(start..rendered.text.len());
    found
}

/// Three characters of a private use area with which contents are marked: `open`, the number of the message, `number_end`,
/// the content, `close`.
struct Marks {
    open: char,
    number_end: char,
    close: char,
}

impl Marks {
    /// Characters that occur neither in the messages nor in the rendered text.
    fn unused(messages: &[Message], text: &str) -> Option<Self> {
        let is_used = |c: char| text.contains(c) || messages.iter().any(|m| m.content.contains(c));
        let mut unused = ('\u{F0000}'..='\u{FFFFD}').filter(|&c| !is_used(c));
        Some(Self {
            open: unused.next()?,
            number_end: unused.next()?,
            close: unused.next()?,
        })
    }

    fn around(&self, index: usize, content: &str, trimmed: bool) -> String {
        let Self {
            open,
            number_end,
            close,
        } = self;
        let inner = if trimmed { content.trim() } else { content };
        let start = content.len()
            - if trimmed {
                content.trim_start().len()
            } else {
                content.len()
            };
        let (before, after) = (&content[..start], &content[start + inner.len()..]);
        format!("{before}{open}{index}{number_end}{inner}{close}{after}")
    }

    /// The text without the marks, and what they enclosed; `None` if they do not nest as they were put.
    fn take_out(&self, output: &str, messages: usize) -> Option<Rendered> {
        let mut text = String::with_capacity(output.len());
        let mut contents = Vec::new();
        let mut rest = output;
        while let Some((before, marked)) = rest.split_once(self.open) {
            text.push_str(before);
            let (number, marked) = marked.split_once(self.number_end)?;
            let (content, after) = marked.split_once(self.close)?;
            let start = text.len();
            text.push_str(content);
            let index = number
                .parse()
                .ok()
                .filter(|&index: &usize| index < messages)?;
            contents.push((index, start..text.len()));
            rest = after;
        }
        text.push_str(rest);
        (!text.contains([self.open, self.number_end, self.close]))
            .then_some(Rendered { text, contents })
    }
}
