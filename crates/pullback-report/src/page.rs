//! A page: heading, lead, sections, foot; one file that needs nothing else.
//!
//! A page loads nothing, and has no scripts but those that it is given; a content security policy in its head says so to
//! the browser as well, and names the scripts by their digests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

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
    styles: Vec<&'static str>,
    data: Vec<DataBlock>,
    scripts: Vec<&'static str>,
}

/// Data in a page for its script to read.
#[derive(Debug, Clone)]
pub(crate) struct DataBlock {
    id: &'static str,
    kind: &'static str,
    text: String,
}

impl DataBlock {
    /// JSON; it must not contain `<`.
    pub(crate) fn json(id: &'static str, text: String) -> Self {
        let kind = "application/json";
        Self { id, kind, text }
    }

    /// Plain text; it must not contain `<`.
    pub(crate) fn text(id: &'static str, text: String) -> Self {
        let kind = "text/plain";
        Self { id, kind, text }
    }
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

    /// Adds to the style of every page.
    pub(crate) fn style(mut self, style: &'static str) -> Self {
        self.styles.push(style);
        self
    }

    /// Adds data for the script.
    pub(crate) fn data(mut self, data: DataBlock) -> Self {
        debug_assert!(!data.text.contains('<'), "data could end its element");
        self.data.push(data);
        self
    }

    /// Adds a script, run when the page is there.
    pub(crate) fn script(mut self, script: &'static str) -> Self {
        self.scripts.push(script);
        self
    }

    /// What the browser is told to allow.
    fn policy(&self) -> String {
        let mut policy =
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
                .to_owned();
        if !self.scripts.is_empty() {
            policy += "; script-src";
            for script in &self.scripts {
                let digest = STANDARD.encode(Sha256::digest(script));
                policy += &format!(" 'sha256-{digest}'");
            }
        }
        policy
    }

    /// The whole page as HTML.
    pub fn render(&self) -> String {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy"
                        content=(self.policy());
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="generator" content={ "pullback " (env!("CARGO_PKG_VERSION")) };
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) @for style in &self.styles { (PreEscaped(style)) } }
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
                    @for data in &self.data { script id=(data.id) type=(data.kind) { (PreEscaped(&data.text)) } }
                    @for script in &self.scripts { script { (PreEscaped(script)) } }
                }
            }
        }
        .into_string()
    }
}
