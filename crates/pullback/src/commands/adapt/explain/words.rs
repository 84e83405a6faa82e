//! Who puts features into words, and how far the words can be trusted.

use std::path::Path;

use anyhow::bail;
use pullback_adapters::Explanation;
use pullback_artifact::Cache;
use pullback_model::Model;
use pullback_sae::interpret::{
    CachedExplainer, Explainer, Interpretation, LocalExplainer, RemoteExplainer, Score,
};
use serde::Serialize;

use super::Arguments;
use crate::context::{App, NamedModel};

/// The variable that holds the key of a server.
const KEY: &str = "OPENAI_API_KEY";
/// The directory of kept answers inside the cache.
const KEPT: &str = "explanations";

/// Who is asked.
pub(super) enum Asked {
    /// A model in memory; none: the one that is explained.
    Local(Option<Box<NamedModel>>),
    Remote(RemoteExplainer),
}

impl Asked {
    /// From the options; none where no words are wanted. `name` is the explained model's.
    pub(super) fn open(
        app: &App,
        arguments: &Arguments,
        name: &str,
    ) -> anyhow::Result<Option<Self>> {
        let Some(explainer) = &arguments.explainer else {
            return Ok(None);
        };
        if explainer.starts_with("http://") || explainer.starts_with("https://") {
            let Some(model) = &arguments.explainer_model else {
                bail!(
                    "--explainer {explainer} is a server: name one of its models with --explainer-model"
                );
            };
            let key = std::env::var(KEY).ok().filter(|key| !key.is_empty());
            let control = app.control.clone();
            let remote = RemoteExplainer::new(explainer, model, key, control);
            return Ok(Some(Self::Remote(remote)));
        }
        if arguments.explainer_model.is_some() {
            bail!("--explainer-model belongs to a server: --explainer http://… or https://…");
        }
        if explainer == name {
            return Ok(Some(Self::Local(None)));
        }
        Ok(Some(Self::Local(Some(Box::new(
            app.load_model(explainer)?,
        )))))
    }

    /// Ready to be asked, each question once.
    pub(super) fn explainer<'a>(
        &'a self,
        own: (&'a Model, &'a str),
    ) -> anyhow::Result<Box<dyn Explainer + 'a>> {
        let cache = Cache::from_env()?;
        let dir = cache.root().join(KEPT);
        Ok(match self {
            Self::Local(other) => {
                let (model, name) = match other {
                    Some(other) => (&other.model, other.name.as_str()),
                    None => own,
                };
                Box::new(CachedExplainer::new(LocalExplainer::new(model, name)?, dir))
            }
            Self::Remote(remote) => Box::new(CachedExplainer::new(remote, dir)),
        })
    }
}

/// Mean scores over features, with their own words and with exchanged ones.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Trust {
    features: usize,
    detection: Option<f64>,
    detection_exchanged: Option<f64>,
    fuzzing: Option<f64>,
    fuzzing_exchanged: Option<f64>,
}

impl Trust {
    /// Of an explanation; none where nobody was asked for words.
    pub(super) fn of(explanation: &Explanation) -> Option<Self> {
        let words: Vec<&Interpretation> = explanation
            .features
            .iter()
            .filter_map(|feature| feature.words.as_ref())
            .collect();
        if words.is_empty() {
            return None;
        }
        let mean = |score: &dyn Fn(&Interpretation) -> Option<Score>| {
            let found: Vec<f64> = words
                .iter()
                .filter_map(|w| score(w))
                .map(|s| s.auc)
                .collect();
            let count = found.len() as f64;
            (count > 0.0).then(|| found.iter().sum::<f64>() / count)
        };
        Some(Self {
            features: words.len(),
            detection: mean(&|w| w.detection),
            detection_exchanged: mean(&|w| w.detection_exchanged),
            fuzzing: mean(&|w| w.fuzzing),
            fuzzing_exchanged: mean(&|w| w.fuzzing_exchanged),
        })
    }

    /// How far the words can be trusted.
    pub(super) fn sentence(&self) -> String {
        let written =
            |x: Option<f64>| x.map_or_else(|| "not measured".to_owned(), |x| format!("{x:.2}"));
        format!(
            "The words for the {} features were written by a language model from their strongest texts. On other texts they tell \
             the feature's from others with an area under the curve of {} (detection) and its tokens from others with {} \
             (fuzzing), where 0.5 is guessing; with the words of another feature in their place it is {} and {}. Only what is \
             above that is due to the words.",
            self.features,
            written(self.detection),
            written(self.fuzzing),
            written(self.detection_exchanged),
            written(self.fuzzing_exchanged)
        )
    }
}

/// A place that is no server is a model's name or path; said before anything is loaded.
pub(super) fn check(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.explainer.is_none() && arguments.explainer_model.is_some() {
        bail!("--explainer-model needs --explainer http://… or https://…");
    }
    if let Some(explainer) = &arguments.explainer
        && Path::new(explainer).as_os_str().is_empty()
    {
        bail!("--explainer is empty: name a model or the address of a server");
    }
    Ok(())
}
