//! Where a dictionary comes from, as far as its files say.

use std::path::Path;

/// What other tools want to know of a dictionary's origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The model.
    pub model: Option<String>,
    /// Where its input is read, by TransformerLens's name, as `blocks.7.hook_resid_post`.
    pub hook: Option<String>,
    /// Where its output belongs, for transcoders.
    pub hook_out: Option<String>,
    /// Tokens in a sequence.
    pub context: Option<usize>,
    /// Whether each sequence starts with the beginning-of-text token.
    pub prepend_bos: Option<bool>,
    /// The text that it was trained on.
    pub dataset: Option<String>,
}

/// The number in `blocks.N.…`.
pub(super) fn layer_of(hook: &str) -> Option<usize> {
    hook.strip_prefix("blocks.")?
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// The names of the directories and the file of a path, the last one first.
pub(super) fn components(path: &Path) -> Vec<String> {
    // What leads to a relative path may say more; where it cannot be found, the path itself has to do.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.components()
        .rev()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect()
}
