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

/// Asks for an explanation. One example shows small models the form of an answer.
pub(super) fn explain(shown: &[Excerpt]) -> Vec<Message> {
    let ask = |texts: &str| {
        format!(
            "A part of a language model is active on the words between << and >> in these texts:\n{texts}\
             What do the marked words or their contexts have in common? Answer with one short phrase."
        )
    };
    let lines = shown.iter().map(|excerpt| {
        let text = written(&excerpt.tokens, &excerpt.marked());
        format!("- {text}\n")
    });
    vec![
        Message::system(
            "You name what texts have in common, in one short phrase and nothing else.",
        ),
        Message::user(ask(
            "- She bought three <<apples>> at the market\n- a slice of <<pear>> and some cheese\n- the <<plum>> tree in bloom\n",
        )),
        Message::assistant("names of fruit"),
        Message::user(ask(&lines.collect::<String>())),
    ]
}

/// Asks whether a text has what an explanation says.
pub(super) fn detect(explanation: &str, tokens: &[String]) -> Vec<Message> {
    let ask = |explanation: &str, text: &str| {
        format!(
            "Description: {explanation}\nText: {text}\nDoes the text contain what the description says? Answer yes or no."
        )
    };
    let text = written(tokens, &vec![false; tokens.len()]);
    let fruit = "names of fruit";
    vec![
        Message::system("You answer with yes or no."),
        Message::user(ask(fruit, "we drove to the coast in the evening")),
        Message::assistant("No"),
        Message::user(ask(fruit, "and then he peeled an orange for her")),
        Message::assistant("Yes"),
        Message::user(ask(explanation, &text)),
    ]
}

/// Asks whether marked tokens are what an explanation says.
pub(super) fn fuzz(explanation: &str, tokens: &[String], marked: &[bool]) -> Vec<Message> {
    let ask = |explanation: &str, text: &str| {
        format!(
            "Description: {explanation}\nText: {text}\nDo the words between << and >> fit the description? Answer yes or no."
        )
    };
    let text = written(tokens, marked);
    let fruit = "names of fruit";
    vec![
        Message::system("You answer with yes or no."),
        Message::user(ask(fruit, "and then he peeled an <<orange>> for her")),
        Message::assistant("Yes"),
        Message::user(ask(fruit, "and then <<he>> peeled an orange for her")),
        Message::assistant("No"),
        Message::user(ask(explanation, &text)),
    ]
}
