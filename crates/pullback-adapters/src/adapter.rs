//! An adapter of any kind.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Tensor;
use pullback_artifact::{Manifest, ModelRef, read_json};
use pullback_model::{Intervention, Model, Site};
use pullback_sae::SAE_KIND;
use serde_json::Value;

use crate::feature::DESCRIPTION;
use crate::feature::map::Support;
use crate::lora::peft;
use crate::residual::values;
use crate::{ADAPTER_KIND, AdapterError, FeatureAdapter, LoraAdapter, ResidualAdapter};

/// A learned change of a model, of any kind.
#[expect(
    clippy::large_enum_variant,
    reason = "there are few, and all variants own large memory"
)]
#[derive(Clone, Debug)]
pub enum Adapter {
    /// In the coordinates of the residual stream.
    Residual(ResidualAdapter),
    /// In the basis of a dictionary: a bias, a sparse matrix or low-rank factors over features.
    Feature(FeatureAdapter),
    /// Low-rank updates of weight matrices.
    Lora(LoraAdapter),
}

impl Adapter {
    /// The name of its basis: `residual`, `bias`, `sparse`, `low-rank` or `lora`.
    pub fn basis(&self) -> &'static str {
        match self {
            Self::Residual(_) => "residual",
            Self::Feature(adapter) => adapter.basis(),
            Self::Lora(_) => "lora",
        }
    }

    /// Where it acts; none for updates of weights.
    pub fn site(&self) -> Option<Site> {
        match self {
            Self::Residual(adapter) => Some(adapter.site),
            Self::Feature(adapter) => Some(adapter.site),
            Self::Lora(_) => None,
        }
    }

    /// The rank, where there is one: hidden units, columns of factors, the largest rank of an update.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::Residual(adapter) => Some(adapter.rank()),
            Self::Feature(adapter) => match adapter.support() {
                Support::LowRank { rank, .. } => Some(*rank),
                _ => None,
            },
            Self::Lora(adapter) => adapter.parts.iter().map(|part| part.rank).max(),
        }
    }

    /// All its numbers.
    fn numbers(&self) -> Vec<Vec<f32>> {
        match self {
            Self::Residual(a) => vec![values(&a.w_in), values(&a.b_in), values(&a.w_out)],
            Self::Feature(a) => a.values().to_vec(),
            Self::Lora(a) => {
                let parts = a.parts.iter();
                parts.flat_map(|p| [p.down.clone(), p.up.clone()]).collect()
            }
        }
    }

    /// Number of parameters: entries of a bias, of a sparse matrix or of factors; numbers of matrices.
    pub fn parameters(&self) -> usize {
        self.numbers().iter().map(Vec::len).sum()
    }

    /// Number of parameters that are not zero.
    pub fn nonzero(&self) -> usize {
        let numbers = self.numbers();
        numbers.iter().flatten().filter(|&&x| x != 0.0).count()
    }

    /// Writes the adapter's files into a directory. Those of LoRA are PEFT's.
    ///
    /// # Errors
    /// A file cannot be written, or PEFT has no name for a matrix.
    pub fn save(&self, dir: &Path, model: &Model, model_name: &str) -> Result<(), AdapterError> {
        match self {
            Self::Residual(adapter) => adapter.save(dir),
            Self::Feature(adapter) => adapter.save(dir),
            Self::Lora(adapter) => adapter.save_peft(dir, model.config(), model_name),
        }
    }

    /// Loads an adapter's artifact, or a directory of the PEFT library, for a model. `sae` is the place of the dictionary of
    /// an adapter in its basis; by default the one that the adapter records.
    ///
    /// # Errors
    /// The directory is no adapter, a file of it is damaged, or it was made for another model, site or dictionary.
    pub fn load(
        dir: &Path,
        model: &ModelRef,
        of: &Model,
        sae: Option<&Path>,
    ) -> Result<Self, AdapterError> {
        if !dir.join(pullback_artifact::MANIFEST_FILE).exists() && dir.join(peft::CONFIG).exists() {
            return Ok(Self::Lora(LoraAdapter::load_peft(dir, of.config())?));
        }
        let manifest = Manifest::load_kind(dir, ADAPTER_KIND)?;
        manifest.verify_sizes(dir)?;
        manifest.check_model(model)?;
        if dir.join(peft::CONFIG).exists() {
            return Ok(Self::Lora(LoraAdapter::load_peft(dir, of.config())?));
        }
        let description: Value = read_json(&dir.join(DESCRIPTION))?;
        let adapter = match description["basis"].as_str() {
            None | Some("residual") => {
                let (adapter, _) = ResidualAdapter::load(dir)?;
                Self::Residual(adapter.to_device(of.device()))
            }
            Some(_) => {
                let path = dictionary_path(&manifest, sae)?;
                let (dictionary, of_dictionary) =
                    pullback_sae::load(&path).map_err(|error| AdapterError::Dictionary {
                        adapter: dir.to_owned(),
                        sae: path.clone(),
                        problem: error.to_string(),
                    })?;
                let sae = (Arc::new(dictionary), &of_dictionary);
                Self::Feature(FeatureAdapter::load(dir, &manifest, sae, &path)?)
            }
        };
        if let Some(site) = adapter.site() {
            site.check(of.config())?;
        }
        let width = match &adapter {
            Self::Residual(adapter) => adapter.d(),
            Self::Feature(adapter) => pullback_sae::Dictionary::d(&**adapter.dictionary()),
            Self::Lora(_) => of.config().d_model,
        };
        if width != of.config().d_model {
            return Err(AdapterError::File {
                path: dir.to_owned(),
                problem: format!(
                    "the adapter is of width {width}, the model's stream of width {}",
                    of.config().d_model
                ),
            });
        }
        Ok(adapter)
    }

    /// The change that it makes, `factor` times as large.
    ///
    /// # Errors
    /// The factor is not finite.
    pub fn scaled(&self, factor: f32) -> Result<Self, AdapterError> {
        if !factor.is_finite() {
            return Err(AdapterError::Option(format!(
                "the scale of an adapter is {factor}, it must be a number"
            )));
        }
        Ok(match self {
            Self::Residual(adapter) => {
                let mut adapter = adapter.clone();
                adapter.w_out = adapter.w_out * factor;
                Self::Residual(adapter)
            }
            Self::Feature(adapter) => Self::Feature(adapter.scaled(factor)?),
            Self::Lora(adapter) => {
                let mut adapter = adapter.clone();
                for part in &mut adapter.parts {
                    part.scale *= f64::from(factor);
                }
                Self::Lora(adapter)
            }
        })
    }

    /// Puts the adapter to work: an intervention to run the model with, or, for updates of weights, the model's weights
    /// changed.
    ///
    /// # Errors
    /// The updates do not fit the model.
    pub fn attach(
        self,
        model: &mut Model,
        interventions: &mut Vec<Intervention>,
    ) -> Result<(), AdapterError> {
        if let Self::Lora(adapter) = self {
            let device = model.device().clone();
            let updates = adapter.updates(1.0, &device, model.dtype());
            model.merge(&updates)?;
        } else {
            interventions.extend(self.into_intervention());
        }
        Ok(())
    }

    /// The intervention to run a model with; none for updates of weights.
    pub(crate) fn into_intervention(self) -> Option<Intervention> {
        match self {
            Self::Residual(adapter) => Some(Intervention::new(adapter.site, Arc::new(adapter))),
            Self::Feature(adapter) => Some(Intervention::new(adapter.site, Arc::new(adapter))),
            Self::Lora(_) => None,
        }
    }

    /// One adapter that makes the sum of the changes of several of one kind and place, each of which reads what stands
    /// there before any of them.
    ///
    /// # Errors
    /// They are of different kinds, places, activations or dictionaries.
    pub fn merged(adapters: &[Self]) -> Result<Self, AdapterError> {
        let mut rest = adapters.iter();
        let first = rest
            .next()
            .ok_or_else(|| AdapterError::Option("no adapter is given to merge".to_owned()))?;
        rest.try_fold(first.clone(), |sum, next| sum.plus(next))
    }

    fn plus(&self, other: &Self) -> Result<Self, AdapterError> {
        let differ = |what: &str| {
            AdapterError::Option(format!(
                "a {} adapter and a {} adapter {what}: they can be composed in a run, not merged into one",
                self.basis(),
                other.basis()
            ))
        };
        if self.site() != other.site() {
            return Err(differ("of different places"));
        }
        match (self, other) {
            (Self::Residual(a), Self::Residual(b)) => {
                if a.activation != b.activation || a.d() != b.d() {
                    return Err(differ("of different activations or widths"));
                }
                Ok(Self::Residual(ResidualAdapter {
                    site: a.site,
                    activation: a.activation,
                    w_in: Tensor::cat(vec![a.w_in.clone(), b.w_in.clone()], 0),
                    b_in: Tensor::cat(vec![a.b_in.clone(), b.b_in.clone()], 0),
                    w_out: Tensor::cat(vec![a.w_out.clone(), b.w_out.clone()], 1),
                }))
            }
            (Self::Lora(a), Self::Lora(b)) => {
                let mut parts = a.parts.clone();
                parts.extend(b.parts.clone());
                Ok(Self::Lora(LoraAdapter { parts }.joined()))
            }
            (Self::Feature(a), Self::Feature(b)) => {
                if a.dictionary() != b.dictionary() {
                    return Err(differ("over different dictionaries"));
                }
                let (support, values) = a
                    .support()
                    .plus(a.values(), b.support(), b.values())
                    .ok_or_else(|| differ("over features of different forms"))?;
                let dictionary = Arc::clone(a.dictionary());
                FeatureAdapter::new(a.site, dictionary, support, values).map(Self::Feature)
            }
            _ => Err(differ("of different kinds")),
        }
    }
}

impl LoraAdapter {
    /// Updates of one matrix joined into one: ranks add up.
    fn joined(self) -> Self {
        let mut parts: Vec<crate::LoraPart> = Vec::new();
        for part in self.parts {
            let Some(own) = parts.iter_mut().find(|own| own.weight == part.weight) else {
                parts.push(part);
                continue;
            };
            // Scales go into the upper factors, so that both parts keep their own.
            let scaled = |up: &[f32], scale: f64| -> Vec<f32> {
                up.iter().map(|x| (f64::from(*x) * scale) as f32).collect()
            };
            let ups = [scaled(&own.up, own.scale), scaled(&part.up, part.scale)];
            let rows = ups[0]
                .chunks_exact(own.rank)
                .zip(ups[1].chunks_exact(part.rank));
            own.up = rows.flat_map(|(a, b)| [a, b].concat()).collect();
            own.down.extend_from_slice(&part.down);
            own.rank += part.rank;
            own.scale = 1.0;
        }
        Self { parts }
    }
}

/// The place of the dictionary that an adapter was made with.
fn dictionary_path(manifest: &Manifest, given: Option<&Path>) -> Result<PathBuf, AdapterError> {
    match (given, manifest.parent(SAE_KIND)) {
        (Some(path), _) => Ok(path.to_owned()),
        (None, Some(parent)) => Ok(PathBuf::from(&parent.path)),
        (None, None) => Err(AdapterError::Option(
            "the adapter does not record its dictionary: give it with --sae".to_owned(),
        )),
    }
}
