//! Plots and self-contained HTML pages.
//!
//! Everything here turns plain data into text: a page is one HTML file with its style inside it and without a single
//! load from anywhere, and a plot is inline SVG that follows the page's light or dark colours. Only the feature browser
//! has a script.
//!
//! - [`change_report::ChangeReport`] and [`change_report::render`]: what a learned change did to a model, feature by
//!   feature.
//! - [`feature_browser::FeatureBrowser`]: all features of a dictionary, to search, sort and look at.
//! - [`dictionary_comparison::DictionaryComparison`]: two dictionaries and the features that they share.
//! - [`adapter_comparison`]: bases of adapters at matched numbers of parameters.
//! - [`grown`]: models and dictionaries that were grown together.
//! - [`chain`]: automata and runs of quantum chains.
//! - [`page::Page`]: a page made of a heading, a lead and sections.
//! - [`plot`]: line charts, histograms, scatter plots, bars, heat maps and space-time pictures, in a page or as a file.
//! - [`text`] and [`number`]: how tokens and figures are written.

pub mod adapter_comparison;
pub mod chain;
pub mod change_report;
pub mod dictionary_comparison;
pub mod feature_browser;
pub mod grown;
pub mod number;
pub mod page;
pub mod plot;
pub mod text;

pub use maud::{Markup, html};
