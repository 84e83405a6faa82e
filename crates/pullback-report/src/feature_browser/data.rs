//! What the page is made from.

/// All features of a dictionary, to be looked through in a browser.
///
/// Tokens are kept once, in [`tokens`](Self::tokens); everything else names them by their place there.
#[derive(Debug, Clone, Default)]
pub struct FeatureBrowser {
    /// The title of the page.
    pub title: String,
    /// One line on what was looked at.
    pub subtitle: String,
    /// Features of the whole dictionary.
    pub dictionary: usize,
    /// Share of tokens on which each of them is active.
    pub densities: Vec<f32>,
    /// Whether promoted tokens were computed.
    pub has_logits: bool,
    /// What the features' change is a change by; none where no change is given.
    pub change: Option<String>,
    /// The distinct tokens.
    pub tokens: Vec<String>,
    /// The tokens of all passages, as places in [`tokens`](Self::tokens); passages may share them.
    pub text: Vec<u32>,
    /// The features on the page.
    pub features: Vec<BrowsedFeature>,
    /// How the figures were made, one paragraph each.
    pub notes: Vec<String>,
    /// Facts about dictionary, store and model: name and value.
    pub facts: Vec<(String, String)>,
}

/// One feature on the page.
#[derive(Debug, Clone, Default)]
pub struct BrowsedFeature {
    /// Its number.
    pub feature: usize,
    /// Tokens on which it is active.
    pub count: u64,
    /// Share of tokens on which it is active.
    pub density: f32,
    /// Its largest activation.
    pub largest: f32,
    /// Its mean activation where it is active.
    pub mean: f32,
    /// Its change, where one is given.
    pub change: Option<f32>,
    /// Counts of its activations in bins of one width from zero to the largest.
    pub histogram: Vec<u64>,
    /// Its strongest activations.
    pub examples: Vec<BrowsedPassage>,
    /// Examples by quantile, lowest first.
    pub bands: Vec<BrowsedBand>,
    /// Tokens it promotes, with the change of their logit, largest first.
    pub promoted: Vec<(u32, f32)>,
    /// Tokens it suppresses, lowest first.
    pub suppressed: Vec<(u32, f32)>,
    /// Features of nearest direction, with their cosine.
    pub neighbours: Vec<(u32, f32)>,
    /// Features active on the same tokens: number, Jaccard index, tokens together.
    pub coactive: Vec<(u32, f32, u32)>,
}

/// A passage of text around an activation.
#[derive(Debug, Clone, Default)]
pub struct BrowsedPassage {
    /// Its first token in the page's text.
    pub start: u32,
    /// Which of its tokens the activation is on.
    pub peak: u32,
    /// The activation.
    pub activation: f32,
    /// The feature's activation on each token of the passage.
    pub activations: Vec<f32>,
}

/// Examples from a quantile band.
#[derive(Debug, Clone, Default)]
pub struct BrowsedBand {
    /// Share of the active tokens below the band.
    pub from: f32,
    /// Share of them below its end.
    pub to: f32,
    /// Its smallest activation.
    pub low: f32,
    /// Its largest.
    pub high: f32,
    /// Examples, strongest first.
    pub examples: Vec<BrowsedPassage>,
}

impl BrowsedFeature {
    /// Its largest change of a logit, up or down.
    pub fn logit_effect(&self) -> Option<f32> {
        let ends = [self.promoted.first(), self.suppressed.first()];
        ends.into_iter()
            .flatten()
            .map(|(_, change)| change.abs())
            .reduce(f32::max)
    }

    /// The distinct tokens that its examples peak on, those of the strongest first.
    pub fn peaks<'a>(&'a self, text: &'a [u32]) -> Vec<u32> {
        let bands = self.bands.iter().rev().flat_map(|band| &band.examples);
        let mut peaks = Vec::new();
        for passage in self.examples.iter().chain(bands) {
            if let Some(&token) = text.get((passage.start + passage.peak) as usize)
                && !peaks.contains(&token)
            {
                peaks.push(token);
            }
        }
        peaks
    }
}
