//! A page: heading, lead, sections, foot; one file that needs nothing else.
//!
//! The page has no scripts and loads nothing; a content security policy in its head says so to the browser as well.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::text::{identifier, plain};

/// The style of every page.
pub(crate) const STYLE: &str = include_str!("page.css");

/// A page under construction.
#[derive(Debug, Clone, Default)]
pub struct Page {
    title: String,
    subtitle: Option<Markup>,
    lead: Option<Markup>,
    sections: Vec<Section>,
    foot: Option<Markup>,
}

/// A part of a page with its own heading, listed in the contents.
#[derive(Debug, Clone)]
struct Section {
    id: String,
    heading: String,
    body: Markup,
}

impl Page {
    /// A page with a title and nothing else yet.
    pub fn new(title: &str) -> Self {
        Self {
            title: plain(title),
            ..Self::default()
        }
    }

    /// The line under the title.
    #[must_use]
    pub fn subtitle(mut self, subtitle: Markup) -> Self {
        self.subtitle = Some(subtitle);
        self
    }

    /// What stands before the first section.
    #[must_use]
    pub fn lead(mut self, lead: Markup) -> Self {
        self.lead = Some(lead);
        self
    }

    /// Adds a section; `id` is its address on the page.
    #[must_use]
    pub fn section(mut self, id: &str, heading: &str, body: Markup) -> Self {
        self.sections.push(Section {
            id: identifier(id),
            heading: heading.to_owned(),
            body,
        });
        self
    }

    /// The last line of the page.
    #[must_use]
    pub fn foot(mut self, foot: Markup) -> Self {
        self.foot = Some(foot);
        self
    }

    /// The whole page as HTML.
    pub fn render(&self) -> String {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy"
                        content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="generator" content={ "pullback " (env!("CARGO_PKG_VERSION")) };
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    main {
                        header.top {
                            h1 { (self.title) }
                            @if let Some(subtitle) = &self.subtitle { p.subtitle { (subtitle) } }
                        }
                        @if let Some(lead) = &self.lead { (lead) }
                        @if self.sections.len() > 2 {
                            nav.contents aria-label="Contents" {
                                @for section in &self.sections {
                                    a href={ "#" (section.id) } { (section.heading) }
                                }
                            }
                        }
                        @for section in &self.sections {
                            section id=(section.id) aria-labelledby={ (section.id) "-heading" } {
                                h2 id={ (section.id) "-heading" } { (section.heading) }
                                (section.body)
                            }
                        }
                        @if let Some(foot) = &self.foot { footer { (foot) } }
                    }
                }
            }
        }
        .into_string()
    }
}
