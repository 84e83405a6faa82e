//! What explainers are asked.

use pullback_model::Message;

use super::Excerpt;

/// Tokens on one line, those that are marked between << and >>.
pub(super) fn written(tokens: &[String], marked: &[bool]) -> String {
    let mut out = String::new();
    let mut open = false;
    for (token, &mark) in tokens.iter().zip(marked) {
        if open && !mark {
            out += ">>";
        }
        if mark && !open {
            // The space before a word stays outside of its mark.
            let word = token.trim_start_matches(' ');
            out += &token[..token.len() - word.len()];
            out += "<<";
            out += word;
        } else {
            out += token;
        }
        open = mark;
    }
    if open {
        out += ">>";
    }
    out.replace(['\n', '\r'], " ").trim().to_owned()
}

/// Asks for an explanation.
pub(super) fn explain(shown: &[Excerpt]) -> Vec<Message> {
    let mut text = String::from(
        "A part of a language model is active on the words between << and >> in these texts:\n",
    );
    for excerpt in shown {
        text += &format!("- {}\n", written(&excerpt.tokens, &excerpt.marked()));
    }
    text +=
        "What do the marked words or their contexts have in common? Answer with one short phrase.";
    vec![
        Message::system(
            "You name what texts have in common, in one short phrase and nothing else.",
        ),
        Message::user(text),
    ]
}

/// Asks whether a text has what an explanation says.
pub(super) fn detect(explanation: &str, tokens: &[String]) -> Vec<Message> {
    let text = written(tokens, &vec![false; tokens.len()]);
    question(&format!(
        "Description: {explanation}\nText: {text}\nDoes the text contain what the description says? Answer yes or no."
    ))
}

/// Asks whether marked tokens are what an explanation says.
pub(super) fn fuzz(explanation: &str, tokens: &[String], marked: &[bool]) -> Vec<Message> {
    let text = written(tokens, marked);
    question(&format!(
        "Description: {explanation}\nText: {text}\nDo the words between << and >> fit the description? Answer yes or no."
    ))
}

fn question(text: &str) -> Vec<Message> {
    vec![
        Message::system("You answer with yes or no."),
        Message::user(text),
    ]
}
