//! The sections on method, repetition and caveats.

use maud::{Markup, PreEscaped, html};

use super::data::ChangeReport;
use super::{count_or_missing, or_missing, plots};
use crate::number;
use crate::text::plain;

/// A piece of mathematics: `W_out` is a W with the index out, `W_in^T` a transposed one. Only for texts of our own.
fn math(source: &str) -> Markup {
    let mut out = String::new();
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let name: String = rest.chars().take_while(char::is_ascii_alphabetic).collect();
        if name.is_empty() {
            match c {
                '_' | '^' => {
                    let index: String = rest[1..]
                        .chars()
                        .take_while(|c| c.is_alphanumeric())
                        .collect();
                    let tag = if c == '_' { "sub" } else { "sup" };
                    out.push_str(&format_tag(tag, &index));
                    rest = &rest[1 + index.len()..];
                    continue;
                }
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '&' => out.push_str("&amp;"),
                c => out.push(c),
            }
            rest = &rest[c.len_utf8()..];
        } else {
            // One letter is a variable; a word is a function or a plain word.
            rest = &rest[name.len()..];
            if name.len() == 1 {
                // A hat or a bar belongs to its letter.
                let marks: String = rest
                    .chars()
                    .take_while(|c| ('\u{300}'..='\u{36f}').contains(c))
                    .collect();
                rest = &rest[marks.len()..];
                out.push_str(&format_tag("var", &format!("{name}{marks}")));
            } else {
                out.push_str(&name);
            }
        }
    }
    PreEscaped(out)
}

fn format_tag(tag: &str, text: &str) -> String {
    format!("<{tag}>{text}</{tag}>")
}

/// A formula within a sentence.
fn inline(source: &str) -> Markup {
    html! { span.fm { (math(source)) } }
}

/// A formula on a line of its own.
fn display(source: &str, remark: &str) -> Markup {
    html! { p.formula { (math(source)) @if !remark.is_empty() { span.where { (remark) } } } }
}

/// What the pulled-back input matrix is called.
pub(super) fn p_in() -> Markup {
    inline("P_in = W_dec W_in^T")
}

/// What the pulled-back output matrix is called.
pub(super) fn p_out() -> Markup {
    inline("P_out = W_out^T W_enc")
}

pub(super) fn method(report: &ChangeReport) -> Markup {
    let (model, sae, adapter) = (&report.model, &report.sae, &report.adapter);
    let whole = |n: usize| count_or_missing(n as u64);
    html! {
        h3 { "What was used" }
        dl.facts {
            dt { "Model" }
            dd {
                (or_missing(&model.name)) ": " (or_missing(&model.architecture)) ", " (count_or_missing(model.parameters))
                " parameters, " (whole(model.layers)) " blocks, width " (whole(model.d_model))
                "; licence " (or_missing(&model.licence))
            }
            dt { "Site" } dd { code { (or_missing(&report.site)) } }
            dt { "Corpus" }
            dd {
                (or_missing(&report.corpus.name)) "; " (count_or_missing(report.corpus.tokens_harvested)) " tokens read, "
                (count_or_missing(report.corpus.tokens_held_out)) " held out"
            }
            dt { "Dictionary" } dd { (whole(sae.features)) " features, " (whole(sae.k)) " active a token" }
            dt { "Adapter" } dd { "rank " (whole(adapter.rank)) ", " (or_missing(&adapter.activation)) }
            dt { "Seed" } dd { (report.seed) }
        }
        h3 { "What was done with it" }
        ol.steps {
            li {
                p { "A TopK sparse autoencoder is trained to rebuild the activation " (inline("x")) " at the site from few features " (inline("z")) ":" }
                (display("z = TopK_k ( W_enc^T (x − b_dec) + b_enc )", "encoder"))
                (display("x̂ = W_dec^T z + b_dec", "decoder; its row i is the direction of feature i"))
                p.aside {
                    "Explained variance is " (inline("1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²")) " over held-out tokens, with " (inline("x̄"))
                    " their mean. The cross-entropy score is " (inline("(CE_zero − CE_spliced) / (CE_zero − CE_clean)")) "."
                }
            }
            li {
                p { "The model is changed by an adapter right after the site, trained by gradient through the blocks above. The dictionary takes no part in this:" }
                (display("x ↦ x + W_out act( W_in x + b_in )", &format!("where act is {}", if adapter.activation.trim().is_empty() { number::NOT_AVAILABLE.to_owned() } else { plain(&adapter.activation) })))
            }
            li {
                p {
                    "The adapter is pulled back through the dictionary. Writing " (inline("x̂")) " for " (inline("x"))
                    " turns what the hidden units see into a weighted sum of features:"
                }
                (display("W_in x̂ + b_in = (W_dec W_in^T)^T z + (b_in + W_in b_dec)", ""))
                p {
                    "so " (p_in()) " says how much each feature drives each hidden unit, and the bracket on the right is the unit’s bias with no "
                    "feature present. What a unit writes is " (p_out()) ": the first-order change of each feature’s pre-activation when the unit is active."
                }
                p.aside {
                    "A card’s “read” is the size of the feature’s row of " (inline("P_in")) ", “written” the first-order change of its pre-activation, "
                    (inline("P_out")) " at the units’ mean activity. "
                    "The share of the adapter’s change that lies outside the features shown is "
                    (super::figure_or_missing(report.residual_fraction, number::percent)) "."
                }
            }
            li {
                p {
                    "Two figures are given for each feature. The " strong { "predicted" } " change follows from these matrices, to first order. The "
                    strong { "measured" } " change is the mean of the feature’s activation over held-out text with the adapter less the mean without. "
                    "Their agreement is Spearman’s rank correlation over all features that fire at all."
                }
            }
            li {
                p {
                    "The features with the largest measured change are looked at closely: the passages where they fire most, and the tokens whose "
                    "logits their decoder row raises and lowers."
                }
            }
        }
        @if !report.method_notes.is_empty() {
            h3 { "Further remarks" }
            @for note in &report.method_notes { p { (plain(note)) } }
        }
    }
}

pub(super) fn again(report: &ChangeReport) -> Markup {
    html! {
        div.two {
            (plots::timings(report))
            div {
                p { "The whole run has the seed " code { (report.seed) } "; the same seed gives the same figures on the same machine." }
                @if report.commands.is_empty() {
                    p { "The commands are " (super::missing()) "." }
                } @else {
                    p { "These commands do the same, one stage at a time:" }
                    pre { code { @for (i, command) in report.commands.iter().enumerate() { @if i > 0 { "\n" } (plain(command)) } } }
                }
            }
        }
    }
}

pub(super) fn caveats(report: &ChangeReport) -> Markup {
    html! {
        @if report.caveats.is_empty() {
            p { (super::missing()) }
        } @else {
            ul.caveats { @for caveat in &report.caveats { li { (plain(caveat)) } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mathematics() {
        assert_eq!(
            math("W_in^T x < b").0,
            "<var>W</var><sub>in</sub><sup>T</sup> <var>x</var> &lt; <var>b</var>"
        );
        assert_eq!(math("act(x)").0, "act(<var>x</var>)");
        assert_eq!(math("x̂").0, "<var>x\u{302}</var>");
    }
}
