//! Texts that end generation, found in text that comes in pieces.

use crate::error::ModelError;

/// Finds the first of several stop strings in a text that comes in pieces.
///
/// The first is the one that ends first, and of several that end at the same place the longest. How the text is cut into
/// pieces makes no difference. Text that may be the beginning of a stop string is held back until that is decided.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

/// What [`StopStrings::push`] lets through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Text that is now certain; it may be empty. A stop string is no part of it, nor is anything after one.
    pub text: String,
    /// The number of the stop string that was found, as given to [`StopStrings::new`].
    pub stop: Option<usize>,
}

impl StopStrings {
    /// A matcher for these strings; for none of them all text passes.
    ///
    /// # Errors
    /// When one of them is empty.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Result<Self, ModelError> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(ModelError::Input {
                problem: format!(
                    "stop string {index} is empty, so that no text could come before it"
                ),
            });
        }
        Ok(Self {
            stops,
            held: String::new(),
            stopped: false,
        })
    }

    /// Takes the next piece of the text. After a stop string was found nothing more comes out.
    pub fn push(&mut self, text: &str) -> Piece {
        if self.stopped {
            return Piece::default();
        }
        // What was held back is shorter than some stop string and holds none, so only ends in the new text count.
        let old = self.held.len();
        self.held.push_str(text);
        for end in old + 1..=self.held.len() {
            let so_far = &self.held.as_bytes()[..end];
            let found = self
                .stops
                .iter()
                .enumerate()
                .filter(|(_, stop)| so_far.ends_with(stop.as_bytes()))
                .max_by(|a, b| a.1.len().cmp(&b.1.len()).then(b.0.cmp(&a.0)));
            if let Some((index, stop)) = found {
                self.held.truncate(end - stop.len());
                self.stopped = true;
                return Piece {
                    text: std::mem::take(&mut self.held),
                    stop: Some(index),
                };
            }
        }
        let begins_a_stop = |at: &usize| {
            let rest = &self.held[*at..];
            self.stops.iter().any(|stop| stop.starts_with(rest))
        };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let keep = (from..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(begins_a_stop)
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        Piece {
            text: std::mem::replace(&mut self.held, rest),
            stop: None,
        }
    }

    /// Whether a stop string was found.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Ends the text: what was held back, since it did not become a stop string.
    pub fn finish(self) -> String {
        self.held
    }
}
