//! The next-token table, text after one or several prompts, and conversations.

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal};

use pullback_model::{
    Emission, GenerateOptions, Generated, Intervention, Message, Model, NextToken, Sampling,
};
use serde_json::json;

use super::{Arguments, chat_ids};
use crate::context::App;
use crate::output;

/// Tokens of an answer when --max-tokens does not say.
const CHAT_TOKENS: usize = 200;

fn options<'a>(
    arguments: &Arguments,
    model: &Model,
    max_tokens: usize,
    interventions: &'a [Intervention],
) -> GenerateOptions<'a> {
    let ends =
        (0..model.tokenizer().vocab_size() as u32).filter(|&id| model.tokenizer().is_end(id));
    let generation = &arguments.generation;
    GenerateOptions {
        max_tokens,
        sampling: Sampling {
            temperature: generation.temperature,
            top_k: generation.top_k,
            top_p: generation.top_p,
            min_p: generation.min_p,
            repetition_penalty: generation.repetition_penalty,
            seed: generation.seed,
        },
        stop: ends.collect(),
        stop_strings: generation.stop.clone(),
        interventions,
    }
}

/// Table and text for one or several prompts.
pub(super) fn run(
    app: &App,
    arguments: &Arguments,
    model: &Model,
    prompts: &[Vec<u32>],
    interventions: &[Intervention],
) -> anyhow::Result<()> {
    let tables = prompts
        .iter()
        .map(|ids| {
            let logits = model.next_logits(ids, interventions)?;
            Ok(model.rank_next(&logits, arguments.top))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let max_tokens = arguments.generation.max_tokens;
    let max_tokens = max_tokens.or(arguments.chat.then_some(CHAT_TOKENS));
    let max_tokens = max_tokens.filter(|&count| count > 0);
    let alone = prompts.len() == 1;
    if alone && !app.json && !arguments.chat {
        output::text(&table(&tables[0]))?;
    }
    let mut texts = Vec::new();
    if let Some(max_tokens) = max_tokens {
        let options = options(arguments, model, max_tokens, interventions);
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        texts = written(app, model, &prompts, &options, alone && !app.json)?;
    }
    if app.json {
        let mut result = if alone {
            json!({ "next": tables[0] })
        } else {
            json!({ "next": tables })
        };
        if max_tokens.is_some() {
            let strings: Vec<&str> = texts.iter().map(|text| text.text.as_str()).collect();
            let endings: Vec<_> = texts.iter().map(|text| &text.ending).collect();
            if alone {
                result["text"] = strings[0].into();
                result["ending"] = json!(endings[0]);
            } else {
                result["texts"] = json!(strings);
                result["endings"] = json!(endings);
            }
        }
        return output::json(&result);
    }
    if alone {
        return Ok(());
    }
    for (number, next) in tables.iter().enumerate() {
        let name = arguments.prompt.get(number).map_or("", String::as_str);
        output::text(&format!("{}. {name:?}\n", number + 1))?;
        match texts.get(number) {
            Some(text) => output::text(&format!("{}\n\n", text.text))?,
            None => output::text(&(table(next) + "\n"))?,
        }
    }
    Ok(())
}

/// Generates; one text is shown as it comes.
fn written(
    app: &App,
    model: &Model,
    prompts: &[&[u32]],
    options: &GenerateOptions<'_>,
    show: bool,
) -> anyhow::Result<Vec<Generated>> {
    let mut failed = None;
    let texts = model.generate_batch(prompts, options, |piece: Emission| {
        if show {
            failed = output::text(&piece.text).err();
        }
        failed.is_none() && !app.control.is_interrupted()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    if show {
        output::text("\n")?;
    }
    app.control.check()?;
    Ok(texts)
}

fn table(next: &[NextToken]) -> String {
    let mut text = format!(
        "{:>8}  {:>8}  {:>11}  token\n",
        "id", "logit", "probability"
    );
    for next in next {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:>8}  {:>8.3}  {:>11.4}  {:?}",
            next.id, next.logit, next.probability, next.token
        );
    }
    text
}

/// A conversation on the terminal, until the end of the input.
pub(super) fn converse(
    app: &App,
    arguments: &Arguments,
    model: &Model,
    interventions: &[Intervention],
) -> anyhow::Result<()> {
    let system = arguments.system.as_deref().map(Message::system);
    let mut messages: Vec<Message> = system.into_iter().collect();
    let prompt = if std::io::stdin().is_terminal() {
        "> "
    } else {
        ""
    };
    let max_tokens = arguments.generation.max_tokens.unwrap_or(CHAT_TOKENS);
    let options = options(arguments, model, max_tokens, interventions);
    loop {
        output::text(prompt)?;
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message::user(line.trim()));
        let ids = chat_ids(model, &messages)?;
        let texts = written(app, model, &[&ids], &options, true)?;
        messages.push(Message::assistant(texts[0].text.trim()));
    }
}
