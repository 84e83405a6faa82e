//! What a change report is made from.
//!
//! Every figure may be missing: a value that is not finite, an empty list or an empty text is shown as
//! "not available". Figures start as NaN in the `Default` values; JSON writes NaN and infinities as `null`, which is
//! read back as NaN.

use serde::{Deserialize, Serialize};

use super::lenient;

/// Everything on the page about one learned change.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangeReport {
    /// The page's title.
    pub title: String,
    /// The model that was changed.
    pub model: ModelFacts,
    /// Where in the model: `blocks.15.hook_resid_post`.
    pub site: String,
    /// The text that was read.
    pub corpus: CorpusFacts,
    /// The seed of the whole run.
    pub seed: u64,
    /// The sparse dictionary and how good it is.
    pub sae: SaeFacts,
    /// The learned change.
    pub adapter: AdapterFacts,
    /// The same prompts answered before and after.
    pub answers: Vec<Answer>,
    /// Spearman's rank correlation between predicted and measured change over all live features.
    #[serde(deserialize_with = "lenient::figure")]
    pub agreement_spearman: f64,
    /// The share of the adapter's change, from zero to one, that lies outside the span of
    /// the decoder rows of the features shown.
    #[serde(deserialize_with = "lenient::figure")]
    pub residual_fraction: f64,
    /// The measured change of every feature, for the histogram.
    #[serde(deserialize_with = "lenient::list")]
    pub changes: Vec<f32>,
    /// Predicted and measured change of every live feature, for the scatter plots.
    #[serde(deserialize_with = "lenient::pairs")]
    pub scatter: Vec<(f32, f32)>,
    /// The most changed features, the most changed first.
    pub features: Vec<FeatureCard>,
    /// What each hidden unit of the adapter reads and writes.
    pub hidden_units: Vec<HiddenUnit>,
    /// Each stage of the run and its seconds, in order.
    #[serde(deserialize_with = "lenient::labelled")]
    pub seconds: Vec<(String, f64)>,
    /// The separate commands that do the same, in order.
    pub commands: Vec<String>,
    /// Further remarks on the method, one paragraph each.
    pub method_notes: Vec<String>,
    /// What a reader should not conclude, one point each.
    pub caveats: Vec<String>,
}

impl Default for ChangeReport {
    fn default() -> Self {
        Self {
            title: String::new(),
            model: ModelFacts::default(),
            site: String::new(),
            corpus: CorpusFacts::default(),
            seed: 0,
            sae: SaeFacts::default(),
            adapter: AdapterFacts::default(),
            answers: Vec::new(),
            agreement_spearman: f64::NAN,
            residual_fraction: f64::NAN,
            changes: Vec::new(),
            scatter: Vec::new(),
            features: Vec::new(),
            hidden_units: Vec::new(),
            seconds: Vec::new(),
            commands: Vec::new(),
            method_notes: Vec::new(),
            caveats: Vec::new(),
        }
    }
}

/// The model that was changed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelFacts {
    /// Its name: `smollm2-135m-instruct`.
    pub name: String,
    /// Its kind: `llama`.
    pub architecture: String,
    /// How many parameters it has.
    pub parameters: u64,
    /// How many blocks it has.
    pub layers: usize,
    /// The width of its residual stream.
    pub d_model: usize,
    /// Its licence.
    pub licence: String,
}

/// The text that was read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CorpusFacts {
    /// Its name.
    pub name: String,
    /// How many tokens the dictionary was trained on.
    pub tokens_harvested: u64,
    /// How many tokens were kept apart for measuring.
    pub tokens_held_out: u64,
}

/// The sparse dictionary and how good it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct SaeFacts {
    /// How many features it has.
    pub features: usize,
    /// How many features may be active at once.
    pub k: usize,
    /// The share of the activations' variance about their mean that it reproduces, on held-out text.
    #[serde(deserialize_with = "lenient::figure")]
    pub explained_variance: f64,
    /// How many features are active at once, on average.
    #[serde(deserialize_with = "lenient::figure")]
    pub l0: f64,
    /// The share of features that never fire.
    #[serde(deserialize_with = "lenient::figure")]
    pub dead_fraction: f64,
    /// Cross-entropy of the untouched model, in nats a token.
    #[serde(deserialize_with = "lenient::figure")]
    pub ce_clean: f64,
    /// Cross-entropy with the activations replaced by their reconstruction.
    #[serde(deserialize_with = "lenient::figure")]
    pub ce_spliced: f64,
    /// Cross-entropy with the activations replaced by zero.
    #[serde(deserialize_with = "lenient::figure")]
    pub ce_zero: f64,
    /// The share of the damage of zeroing that the reconstruction avoids.
    #[serde(deserialize_with = "lenient::figure")]
    pub ce_score: f64,
    /// Tokens seen and explained variance there.
    #[serde(deserialize_with = "lenient::pairs")]
    pub curve: Vec<(f64, f64)>,
    /// Whether `curve` was measured on held-out text (as opposed to the training batches).
    pub curve_held_out: bool,
    /// Tokens seen and training loss there.
    #[serde(deserialize_with = "lenient::pairs")]
    pub loss_curve: Vec<(f64, f64)>,
}

impl Default for SaeFacts {
    fn default() -> Self {
        Self {
            features: 0,
            k: 0,
            explained_variance: f64::NAN,
            l0: f64::NAN,
            dead_fraction: f64::NAN,
            ce_clean: f64::NAN,
            ce_spliced: f64::NAN,
            ce_zero: f64::NAN,
            ce_score: f64::NAN,
            curve: Vec::new(),
            curve_held_out: false,
            loss_curve: Vec::new(),
        }
    }
}

/// The learned change.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct AdapterFacts {
    /// How many hidden units it has.
    pub rank: usize,
    /// Its activation function: `gelu`.
    pub activation: String,
    /// Loss on held-out pairs without it, in nats a token.
    #[serde(deserialize_with = "lenient::figure")]
    pub loss_before: f64,
    /// Loss on held-out pairs with it.
    #[serde(deserialize_with = "lenient::figure")]
    pub loss_after: f64,
    /// Steps and training loss there.
    #[serde(deserialize_with = "lenient::pairs")]
    pub train_curve: Vec<(f64, f64)>,
    /// Steps and held-out loss there.
    #[serde(deserialize_with = "lenient::pairs")]
    pub validation_curve: Vec<(f64, f64)>,
}

impl Default for AdapterFacts {
    fn default() -> Self {
        Self {
            rank: 0,
            activation: String::new(),
            loss_before: f64::NAN,
            loss_after: f64::NAN,
            train_curve: Vec::new(),
            validation_curve: Vec::new(),
        }
    }
}

/// One prompt answered twice.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// The prompt.
    pub prompt: String,
    /// The answer of the untouched model.
    pub before: String,
    /// The answer with the change.
    pub after: String,
}

/// One feature and what happened to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct FeatureCard {
    /// Its number in the dictionary.
    pub feature: usize,
    /// Its place by size of change, from 1.
    pub rank: usize,
    /// The change of its mean activation that the pullback predicts.
    #[serde(deserialize_with = "lenient::figure")]
    pub predicted: f32,
    /// The change of its mean activation that was measured.
    #[serde(deserialize_with = "lenient::figure")]
    pub measured: f32,
    /// The change of the loss, in nats a token, when its change alone is applied to the model as it was.
    #[serde(deserialize_with = "lenient::figure")]
    pub effect_alone: f64,
    /// The change of the loss when it alone is put back in the changed model.
    #[serde(deserialize_with = "lenient::figure")]
    pub effect_removed: f64,
    /// The share of tokens on which it fires.
    #[serde(deserialize_with = "lenient::figure")]
    pub density: f32,
    /// The tokens its decoder row makes likelier, with the change of their logits.
    #[serde(deserialize_with = "lenient::labelled")]
    pub promoted: Vec<(String, f32)>,
    /// The tokens its decoder row makes less likely, with the change of their logits.
    #[serde(deserialize_with = "lenient::labelled")]
    pub suppressed: Vec<(String, f32)>,
    /// Where it fires most, strongest first.
    pub examples: Vec<Example>,
    /// How strongly the adapter reads it: the size of its row in the pulled-back input matrix.
    #[serde(deserialize_with = "lenient::figure")]
    pub reads: f32,
    /// How strongly the adapter writes it: the first-order change of its pre-activation at the hidden units' mean
    /// activity, signed.
    #[serde(deserialize_with = "lenient::figure")]
    pub writes: f32,
    /// What it responds to, in the words of a language model; empty where none was asked.
    pub words: String,
    /// How well the words tell texts apart.
    pub scores: Vec<WordScore>,
}

/// How well a feature's words tell texts apart.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct WordScore {
    /// What the score is called.
    pub name: String,
    /// It.
    #[serde(deserialize_with = "lenient::figure")]
    pub own: f64,
    /// The same with another feature's words; NaN where there is none.
    #[serde(deserialize_with = "lenient::figure")]
    pub exchanged: f64,
}

impl Default for WordScore {
    fn default() -> Self {
        Self {
            name: String::new(),
            own: f64::NAN,
            exchanged: f64::NAN,
        }
    }
}

impl FeatureCard {
    /// The words on which it fires in its examples, the most frequent first, without repetition.
    pub fn peak_words(&self, count: usize) -> Vec<String> {
        most_frequent(self.examples.iter().map(Example::peak_word), count)
    }
}

/// Distinct words (whatever their case), the most frequent first, ties in the order they come.
pub fn most_frequent(words: impl Iterator<Item = String>, count: usize) -> Vec<String> {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for word in words.filter(|word| !word.is_empty()) {
        match counted
            .iter_mut()
            .find(|(known, _)| known.to_lowercase() == word.to_lowercase())
        {
            Some((_, times)) => *times += 1,
            None => counted.push((word, 1)),
        }
    }
    counted.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    counted
        .into_iter()
        .take(count)
        .map(|(word, _)| word)
        .collect()
}

impl Example {
    /// The whole word around the token: `Ahoy` for the token `oy` after `Ah`.
    pub fn peak_word(&self) -> String {
        let in_word = |c: char| c.is_alphanumeric() || c == '\'' || c == '’';
        let token = self.token.trim();
        let mut word = String::new();
        if self.token.starts_with(in_word) {
            let rest = self.before.trim_end_matches(in_word);
            word.push_str(&self.before[rest.len()..]);
        }
        word.push_str(token);
        if self.token.ends_with(in_word) {
            let rest = self.after.trim_start_matches(in_word);
            word.push_str(&self.after[..self.after.len() - rest.len()]);
        }
        word
    }
}

impl Default for FeatureCard {
    fn default() -> Self {
        Self {
            feature: 0,
            rank: 0,
            predicted: f32::NAN,
            measured: f32::NAN,
            effect_alone: f64::NAN,
            effect_removed: f64::NAN,
            density: f32::NAN,
            promoted: Vec::new(),
            suppressed: Vec::new(),
            examples: Vec::new(),
            reads: f32::NAN,
            writes: f32::NAN,
            words: String::new(),
            scores: Vec::new(),
        }
    }
}

/// A place in the text where a feature fires.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Example {
    /// The text before the token.
    pub before: String,
    /// The token on which the feature fires.
    pub token: String,
    /// The text after the token.
    pub after: String,
    /// How strongly it fires there.
    #[serde(deserialize_with = "lenient::figure")]
    pub activation: f32,
    /// Where the text is from.
    pub source: String,
    /// The tokens of the whole snippet with the feature's activation on each, for shading; may be left empty. Joined,
    /// they are `before`, `token` and `after`.
    #[serde(deserialize_with = "lenient::labelled")]
    pub context: Vec<(String, f32)>,
}

impl Default for Example {
    fn default() -> Self {
        Self {
            before: String::new(),
            token: String::new(),
            after: String::new(),
            activation: f32::NAN,
            source: String::new(),
            context: Vec::new(),
        }
    }
}

/// What one hidden unit of the adapter reads and writes, in features.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct HiddenUnit {
    /// Its number.
    pub unit: usize,
    /// Its bias after the pullback, `b_in + W_in b_dec`.
    #[serde(deserialize_with = "lenient::figure")]
    pub bias: f32,
    /// The features that drive it most, strongest first.
    pub reads: Vec<UnitFeature>,
    /// The features that it moves most, strongest first.
    pub writes: Vec<UnitFeature>,
    /// The mean slope of its activation function on the text.
    #[serde(deserialize_with = "lenient::figure")]
    pub slope: f32,
    /// What it writes as a sum of a few features' directions with factors above zero; may be left empty.
    pub matching: Vec<UnitFeature>,
    /// The share of what it writes that the sum leaves.
    #[serde(deserialize_with = "lenient::figure")]
    pub matching_left: f64,
}

impl Default for HiddenUnit {
    fn default() -> Self {
        Self {
            unit: 0,
            bias: f32::NAN,
            reads: Vec::new(),
            writes: Vec::new(),
            slope: f32::NAN,
            matching: Vec::new(),
            matching_left: f64::NAN,
        }
    }
}

/// A feature as a hidden unit sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct UnitFeature {
    /// Its number in the dictionary.
    pub feature: usize,
    /// The entry of the pulled-back matrix.
    #[serde(deserialize_with = "lenient::figure")]
    pub value: f32,
    /// A few tokens that say what the feature is about.
    pub tokens: Vec<String>,
}

impl Default for UnitFeature {
    fn default() -> Self {
        Self {
            feature: 0,
            value: f32::NAN,
            tokens: Vec::new(),
        }
    }
}
