//! Explanations of chosen features in words, made by a language model and scored by how well they tell texts apart.
//!
//! - [`Explainer`]: who writes and judges: [`LocalExplainer`] (a loaded model) or [`RemoteExplainer`] (a server that speaks
//!   `OpenAI`'s chat protocol), either behind [`CachedExplainer`], which asks the same thing only once.
//! - [`interpret`]: for each feature one line, written from its strongest texts, and scores on other texts:
//!   *detection* (is this a text on which the feature is active?) and *fuzzing* (are the marked tokens those on which it is
//!   active?), after Paulo et al., arXiv 2410.13928, sections 3.2 and 3.3.
//! - Beside each score stands that of another feature's explanation on the same texts. An explainer whose scores with exchanged
//!   explanations are as good has said nothing.
//!
//! The cost is proportional to the number of features asked for.

mod cache;
mod local;
mod prompt;
mod remote;
mod score;
mod texts;

use pullback_activations::ActivationStore;
use pullback_artifact::Control;
use pullback_model::{Message, Model};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Dictionary, SaeError};

pub use cache::CachedExplainer;
pub use local::LocalExplainer;
pub use remote::RemoteExplainer;
pub use score::Score;

use score::{Asked, judged};
use texts::{Excerpt, FeatureTexts, gather};

/// A language model that writes explanations and judges texts by them.
pub trait Explainer {
    /// What it is called; answers are kept under this name.
    fn name(&self) -> String;

    /// What it says, in so many tokens at most, without randomness.
    ///
    /// # Errors
    /// It cannot be asked.
    fn complete(&self, messages: &[Message], most: usize) -> Result<String, SaeError>;

    /// Its probability of `yes`, where the answer is yes or no.
    ///
    /// # Errors
    /// It cannot be asked.
    fn agrees(&self, messages: &[Message]) -> Result<f64, SaeError>;
}

impl<E: Explainer + ?Sized> Explainer for &E {
    fn name(&self) -> String {
        (**self).name()
    }

    fn complete(&self, messages: &[Message], most: usize) -> Result<String, SaeError> {
        (**self).complete(messages, most)
    }

    fn agrees(&self, messages: &[Message]) -> Result<f64, SaeError> {
        (**self).agrees(messages)
    }
}

/// How features are interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterpretConfig {
    /// The strongest texts that the explanation is written from, at most one a sequence.
    pub shown: usize,
    /// Other texts with the feature that explanations are scored on, and as many without it.
    pub judged: usize,
    /// Tokens of context on each side.
    pub context: usize,
    /// Seed of the choice of texts and of exchanged explanations.
    pub seed: u64,
}

impl Default for InterpretConfig {
    fn default() -> Self {
        Self {
            shown: 6,
            judged: 8,
            context: 12,
            seed: 0,
        }
    }
}

/// A feature in words, and how far they go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interpretation {
    /// The feature.
    pub feature: usize,
    /// What it responds to, in one line.
    pub explanation: String,
    /// Texts with the feature told from texts without; none where there are too few.
    pub detection: Option<Score>,
    /// The same with the explanation of another feature; none where there is only one.
    pub detection_exchanged: Option<Score>,
    /// Its own tokens told from others.
    pub fuzzing: Option<Score>,
    /// The same with the explanation of another feature.
    pub fuzzing_exchanged: Option<Score>,
}

/// Tokens of an explanation.
const LONGEST: usize = 40;
/// Characters of an explanation that are kept.
const LINE: usize = 200;

/// Explains features from the texts of a store, which must be of the dictionary's site, and scores the explanations.
///
/// # Errors
/// A feature does not exist; the parts do not fit; the explainer cannot be asked; the work was interrupted.
pub fn interpret(
    dictionary: &dyn Dictionary,
    (store, model): (&ActivationStore, &Model),
    features: &[usize],
    explainer: &dyn Explainer,
    config: &InterpretConfig,
    control: &Control,
) -> Result<Vec<Interpretation>, SaeError> {
    if config.shown == 0 || config.judged == 0 {
        return Err(SaeError::Option(
            "explanations need at least one text to be written from and one to be judged on"
                .to_owned(),
        ));
    }
    let texts = gather(dictionary, (store, model), features, config, control)?;
    let stage = control.stage("explain", texts.len() as u64, "features");
    let mut explanations = Vec::with_capacity(texts.len());
    for texts in &texts {
        control.check()?;
        explanations.push(explanation(explainer, texts)?);
        stage.advance(1);
    }
    stage.finish();
    let others = exchanged(texts.len(), config.seed);
    let stage = control.stage("judge explanations", texts.len() as u64, "features");
    let mut out = Vec::with_capacity(texts.len());
    for (place, texts) in texts.iter().enumerate() {
        let own = Some(&explanations[place]);
        let other = others.as_ref().map(|others| &explanations[others[place]]);
        let score = |asked: Asked, words: Option<&String>| -> Result<Option<Score>, SaeError> {
            match words {
                Some(words) => judged(explainer, asked, words, texts, config.seed, control),
                None => Ok(None),
            }
        };
        out.push(Interpretation {
            feature: texts.feature,
            detection: score(Asked::Detection, own)?,
            detection_exchanged: score(Asked::Detection, other)?,
            fuzzing: score(Asked::Fuzzing, own)?,
            fuzzing_exchanged: score(Asked::Fuzzing, other)?,
            explanation: explanations[place].clone(),
        });
        stage.advance(1);
    }
    stage.finish();
    Ok(out)
}

/// One line in words.
fn explanation(explainer: &dyn Explainer, texts: &FeatureTexts) -> Result<String, SaeError> {
    if texts.shown.is_empty() {
        return Ok("never active in the texts at hand".to_owned());
    }
    let said = explainer.complete(&prompt::explain(&texts.shown), LONGEST)?;
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut line = lines.next().unwrap_or("(no words)").to_owned();
    // What is announced comes on the lines that follow.
    if line.ends_with(':') {
        for more in lines {
            line = format!("{line} {more}");
        }
    }
    Ok(line
        .trim_matches(|c| c == '"' || c == '*')
        .chars()
        .take(LINE)
        .collect())
}

/// For each place another one, by one round through all in a random order; none for fewer than two.
fn exchanged(count: usize, seed: u64) -> Option<Vec<usize>> {
    if count < 2 {
        return None;
    }
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut others = vec![0; count];
    for (place, &from) in order.iter().enumerate() {
        others[from] = order[(place + 1) % count];
    }
    Some(others)
}

#[cfg(test)]
mod tests;
