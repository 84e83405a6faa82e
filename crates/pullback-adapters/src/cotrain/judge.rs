//! Dictionaries that are trained afterwards, and all of them judged at the same number of active features.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device};
use pullback_activations::{Corpus, ModelFeed};
use pullback_artifact::Control;
use pullback_model::{Model, ModelFiles, Site, Weights};
use pullback_sae::{
    CrossEntropy, Dictionary, Job, Sites, cross_entropy_scores, evaluate_reconstruction, train_all,
};
use serde::{Deserialize, Serialize};

use super::CotrainConfig;
use super::data::Data;
use super::grow::name_of;
use crate::AdapterError;

/// Held-out sequences that cross-entropies are measured on.
const SEQUENCES: usize = 128;

/// One dictionary, judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedDictionary {
    /// The seed of the run.
    pub seed: u64,
    /// Where it is.
    pub site: Site,
    /// `original`: it grew with its model. `fresh`: it was trained afterwards on that model. `fresh-on-twin`: afterwards on the
    /// model that grew alone.
    pub dictionary: String,
    /// Its artifact, from the directory of the result.
    pub path: PathBuf,
    /// The directory of its model, from there too.
    pub model: PathBuf,
    /// Active features a token on held-out rows; as good as equal by choice.
    pub l0: f64,
    /// Share of the variance of held-out rows that it explains.
    pub explained_variance: f64,
    /// Share of features that are active on no held-out row.
    pub silent_fraction: f64,
    /// `ce_spliced − ce_clean`, in nats a token.
    pub ce_increase: f64,
    /// Cross-entropies of its model.
    #[serde(flatten)]
    pub cross_entropy: CrossEntropy,
}

/// A model with what is judged on it.
pub(super) struct Judge<'a> {
    pub(super) config: &'a CotrainConfig,
    pub(super) seed: u64,
    pub(super) device: &'a Device,
    /// The directory of the whole work, that paths are given from.
    pub(super) root: &'a Path,
    pub(super) model: PathBuf,
}

impl Judge<'_> {
    /// Trains a dictionary at each site on the model as it is, into directories of the sites' names under `fresh`, and judges
    /// the dictionaries of each of `sets`, which are names and directories.
    ///
    /// # Errors
    /// A model or a dictionary cannot be used; training diverges; the work was interrupted.
    pub(super) fn judge(
        &self,
        corpus: &Corpus,
        data: &Data,
        fresh: &Path,
        sets: &[(&str, PathBuf)],
        control: &Control,
    ) -> Result<Vec<JudgedDictionary>, AdapterError> {
        let config = self.config;
        let files = ModelFiles::open(&self.model)?;
        let model = Model::with_weights(files, self.device, DType::F32, Weights::Expanded)?;
        let name = name_of(&self.model);
        let feed = ModelFeed::new(
            (&model, name.as_str()),
            &config.sites,
            corpus,
            &data.harvest,
            control,
        )
        .map_err(pullback_sae::SaeError::from)?;
        let jobs: Vec<Job> = config
            .sites
            .iter()
            .map(|&site| Job {
                config: config.dictionary_at(site, self.seed),
                out: fresh.join(site.to_string()),
            })
            .collect();
        // All are finished one after the other: those that are there already are those of the same work.
        let jobs: Vec<Job> = jobs.into_iter().filter(|job| !job.out.exists()).collect();
        if !jobs.is_empty() {
            train_all(&feed, &jobs, control, &mut |_, _| Ok(()))?;
        }
        let mut judged = Vec::new();
        for (set, place) in sets {
            for (number, &site) in config.sites.iter().enumerate() {
                let path = place.join(site.to_string());
                let (sae, _) = pullback_sae::load(&path)?;
                let store = &feed.held_out_stores()[number];
                let sites = Sites::of(store);
                let rows = sites.normal_rows(true);
                let mut known = vec![0.0; rows.len() * store.info().d];
                store.gather(&rows, &mut known);
                // Where that takes a threshold, it is set on the rows that are judged: one number, the same for all.
                let sae = sae.with_l0(config.k(), &known)?;
                let dictionary: Arc<dyn Dictionary> = Arc::new(sae);
                let found = evaluate_reconstruction(&dictionary, &sites, &rows, control)?;
                let scores = cross_entropy_scores(&model, &sites, &dictionary, SEQUENCES, control)?;
                let Some(&cross_entropy) = scores.first() else {
                    continue;
                };
                let silent = found.densities.iter().filter(|&&x| x == 0.0).count();
                judged.push(JudgedDictionary {
                    seed: self.seed,
                    site,
                    dictionary: (*set).to_owned(),
                    path: self.relative(&path),
                    model: self.relative(&self.model),
                    l0: found.metrics.l0,
                    explained_variance: found.metrics.explained_variance,
                    silent_fraction: silent as f64 / found.densities.len().max(1) as f64,
                    ce_increase: cross_entropy.ce_spliced - cross_entropy.ce_clean,
                    cross_entropy,
                });
            }
        }
        Ok(judged)
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.root).unwrap_or(path).to_owned()
    }
}
