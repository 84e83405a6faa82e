//! The section of the adapter's hidden units.

use std::collections::HashSet;

use maud::{Markup, html};

use super::data::{ChangeReport, UnitFeature};
use crate::number;
use crate::text::{head, token};

/// How many features a unit shows on each side.
const SHOWN: usize = 5;

pub(super) fn section(report: &ChangeReport) -> Markup {
    if report.hidden_units.is_empty() {
        return html! { p { (super::missing()) } };
    }
    let matched = report
        .hidden_units
        .iter()
        .any(|unit| !unit.matching.is_empty());
    let cards: HashSet<usize> = report.features.iter().map(|c| c.feature).collect();
    html! {
        p {
            "Each hidden unit is a small detector with an effect: it sums the features on the left with their weights, adds its bias, "
            "passes the sum through " (super::or_missing(&report.adapter.activation))
            ", and moves the features on the right. The weights are the unit’s column of "
            (super::method::p_in()) " and its row of " (super::method::p_out()) " (see " a href="#method" { "Method" } "). "
            "Numbers in blue lead to a feature’s card."
        }
        table {
            thead { tr { th scope="col" { "Unit" } th scope="col" { "Reads these features" } th scope="col" { "Writes these features" } @if matched { th scope="col" { "As a sum of few" } } } }
            tbody {
                @for unit in &report.hidden_units {
                    tr {
                        th scope="row" {
                            (unit.unit)
                            span.aside { "bias " (super::figure_or_missing(f64::from(unit.bias), |v| number::signed(v, 3))) }
                            @if unit.slope.is_finite() { span.aside { "mean slope " (number::fixed(f64::from(unit.slope), 2)) } }
                        }
                        td data-name="Reads" { (list(&unit.reads, &cards)) }
                        td data-name="Writes" { (list(&unit.writes, &cards)) }
                        @if matched {
                            td data-name="As a sum" {
                                (list(&unit.matching, &cards))
                                span.aside { (super::figure_or_missing(unit.matching_left, number::percent)) " left" }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn list(features: &[UnitFeature], cards: &HashSet<usize>) -> Markup {
    html! {
        @if features.is_empty() { (super::missing()) } @else {
            ul.reads {
                @for feature in features.iter().take(SHOWN) {
                    li {
                        span.num {
                            @if feature.value.is_finite() { (number::signed(f64::from(feature.value), 3)) } @else { "–" }
                        }
                        @if cards.contains(&feature.feature) {
                            a.num href={ "#f" (feature.feature) } { (feature.feature) }
                        } @else { span.num { (feature.feature) } }
                        span.tokens {
                            @for text in feature.tokens.iter().take(4) { span.chip.plain { (token(&head(text, 24))) } }
                        }
                    }
                }
            }
        }
    }
}
