//! Adapters in the basis of a dictionary: `x ↦ x + (g(z) − z)·W_dec` with `z` the codes of `x`.

pub(crate) mod grow;
pub(crate) mod map;
mod sum;

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use pullback_artifact::{Manifest, read_json, write_json};
use pullback_kernels::sparse::SparseCodes;
use pullback_model::{Edit, Rows, Site};
use pullback_sae::{Dictionary, Normalization, SAE_KIND, Sae};
use serde::{Deserialize, Serialize};

use crate::AdapterError;
use crate::residual::{FIRST_POSITION, values};
use crate::tensor_file::{TensorFile, write_tensors};
use map::{Decoder, Projected, Support};

pub(crate) const WEIGHTS: &str = "adapter.safetensors";
pub(crate) const DESCRIPTION: &str = "adapter.json";

/// A change of a dictionary's codes, and with it of the stream, from the second position of a sequence on. What the
/// dictionary does not reconstruct is carried along, so a map that changes no code changes nothing, bit for bit.
///
/// Codes are found with the dictionary's own selection. Gradients with respect to the stream pass beside the dictionary,
/// not through its encoder.
#[derive(Clone, Debug)]
pub struct FeatureAdapter {
    /// Where it acts.
    pub site: Site,
    dictionary: Arc<Sae>,
    support: Support,
    values: Vec<Vec<f32>>,
    projected: Projected<f32>,
}

#[derive(Serialize, Deserialize)]
struct Description {
    basis: String,
    site: Site,
    d: usize,
    features: usize,
    first_position: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    active_only: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
}

impl FeatureAdapter {
    /// From its parts; `values` as [`Support::sizes`] has them.
    ///
    /// # Errors
    /// The parts do not fit each other, or the dictionary's output is no stream that a change could be added to.
    pub fn new(
        site: Site,
        dictionary: Arc<Sae>,
        support: Support,
        values: Vec<Vec<f32>>,
    ) -> Result<Self, AdapterError> {
        check_dictionary(&dictionary)?;
        let m = dictionary.n_features() as u32;
        if !values.iter().map(Vec::len).eq(support.sizes()) {
            return Err(AdapterError::Option(format!(
                "{:?} numbers for the {:?} entries of an adapter",
                values.iter().map(Vec::len).collect::<Vec<_>>(),
                support.sizes()
            )));
        }
        let ascending = |entries: &[(u32, u32)]| entries.is_sorted_by(|a, b| a < b);
        let below = |entries: &[(u32, u32)], rows: u32, columns: u32| {
            entries.iter().all(|&(i, j)| i < rows && j < columns)
        };
        let fits = match &support {
            Support::Bias { features, .. } => {
                features.is_sorted_by(|a, b| a < b) && features.iter().all(|&i| i < m)
            }
            Support::Sparse { pairs } => ascending(pairs) && below(pairs, m, m),
            Support::LowRank { rank, read, write } => [read, write]
                .iter()
                .all(|part| ascending(part) && below(part, m, *rank as u32)),
        };
        if !fits {
            return Err(AdapterError::Option(format!(
                "entries of an adapter must ascend and name some of the dictionary's {m} features"
            )));
        }
        let projected = support.project(&values, decoder(&dictionary));
        Ok(Self {
            site,
            dictionary,
            support,
            values,
            projected,
        })
    }

    /// The dictionary.
    pub fn dictionary(&self) -> &Arc<Sae> {
        &self.dictionary
    }

    /// Where its parameters stand.
    pub fn support(&self) -> &Support {
        &self.support
    }

    /// Its parameters, part by part.
    pub fn values(&self) -> &[Vec<f32>] {
        &self.values
    }

    /// The name of its basis: `bias`, `sparse` or `low-rank`.
    pub fn basis(&self) -> &'static str {
        match self.support {
            Support::Bias { .. } => "bias",
            Support::Sparse { .. } => "sparse",
            Support::LowRank { .. } => "low-rank",
        }
    }

    /// What it adds to activations `[n, d]`, at any position.
    pub fn change(&self, x: &[f32]) -> Vec<f32> {
        self.projected.change(&self.dictionary.encode(x))
    }

    /// The change that it makes, `factor` times as large.
    ///
    /// # Errors
    /// Never for an adapter that was made.
    pub fn scaled(&self, factor: f32) -> Result<Self, AdapterError> {
        let mut values = self.values.clone();
        if let Some(last) = values.last_mut() {
            for x in last.iter_mut() {
                *x *= factor;
            }
        }
        Self::new(
            self.site,
            Arc::clone(&self.dictionary),
            self.support.clone(),
            values,
        )
    }

    /// Writes `adapter.safetensors` and `adapter.json`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), AdapterError> {
        let m = self.dictionary.n_features();
        let mut tensors = TensorFile::default();
        let names = self.support.names();
        let mut entries = |name: &str, indices: [Vec<u32>; 2], values: &[f32]| {
            let [rows, columns] = indices;
            tensors.integers(format!("{name}_rows"), rows);
            tensors.integers(format!("{name}_columns"), columns);
            tensors.floats(name.to_owned(), vec![values.len()], values.to_vec());
        };
        match &self.support {
            Support::Bias { features, .. } => {
                tensors.integers("features".to_owned(), features.clone());
                let b = &self.values[0];
                tensors.floats(names[0].to_owned(), vec![b.len()], b.clone());
            }
            Support::Sparse { pairs } => entries(names[0], columns(pairs), &self.values[0]),
            Support::LowRank { rank, read, write } => {
                for ((name, part), values) in names.iter().zip([read, write]).zip(&self.values) {
                    if part.len() == m * rank {
                        tensors.floats((*name).to_owned(), vec![m, *rank], values.clone());
                    } else {
                        let [rows, cols] = columns(part);
                        tensors.integers(format!("{name}_rows"), rows);
                        tensors.integers(format!("{name}_columns"), cols);
                        tensors.floats((*name).to_owned(), vec![values.len()], values.clone());
                    }
                }
            }
        }
        write_tensors(&dir.join(WEIGHTS), &tensors, None)?;
        let description = Description {
            basis: self.basis().to_owned(),
            site: self.site,
            d: self.dictionary.d(),
            features: m,
            first_position: FIRST_POSITION,
            active_only: match self.support {
                Support::Bias { active_only, .. } => Some(active_only),
                _ => None,
            },
            rank: match self.support {
                Support::LowRank { rank, .. } => Some(rank),
                _ => None,
            },
        };
        Ok(write_json(&dir.join(DESCRIPTION), &description)?)
    }

    /// Loads an adapter's files; `sae` is the dictionary and the manifest of its artifact.
    ///
    /// # Errors
    /// The adapter was made with another dictionary, or a file is damaged.
    pub(crate) fn load(
        dir: &Path,
        manifest: &Manifest,
        sae: (Arc<Sae>, &Manifest),
        sae_path: &Path,
    ) -> Result<Self, AdapterError> {
        manifest.check_parent(SAE_KIND, &sae.1.digest(), &sae_path.display().to_string())?;
        let description: Description = read_json(&dir.join(DESCRIPTION))?;
        manifest.check_site(&description.site.to_string())?;
        let wrong = |problem: String| AdapterError::File {
            path: dir.join(DESCRIPTION),
            problem,
        };
        let dictionary = sae.0;
        let (m, d) = (dictionary.n_features(), dictionary.d());
        if (description.features, description.d) != (m, d)
            || description.first_position != FIRST_POSITION
        {
            return Err(wrong(format!(
                "{} features of width {} from position {}, expected the dictionary's {m} of width {d} and position {FIRST_POSITION}",
                description.features, description.d, description.first_position
            )));
        }
        let file = TensorFile::read(&dir.join(WEIGHTS))?;
        let part = |name: &str, columns_below: usize| -> Result<_, AdapterError> {
            if let Some(values) = file.matrix(name, [m, columns_below])? {
                let all: Vec<u32> = (0..m as u32).collect();
                return Ok((grow::every(&all, columns_below), values));
            }
            let values = file.vector(name)?;
            let rows = file.integer_vector(&format!("{name}_rows"), values.len())?;
            let cols = file.integer_vector(&format!("{name}_columns"), values.len())?;
            Ok((rows.into_iter().zip(cols).collect(), values))
        };
        let (support, values) = match description.basis.as_str() {
            "bias" => {
                let values = file.vector("bias")?;
                let features = file.integer_vector("features", values.len())?;
                let active_only = description.active_only.unwrap_or(false);
                let support = Support::Bias {
                    features,
                    active_only,
                };
                (support, vec![values])
            }
            "sparse" => {
                let (pairs, values) = part("weights", m)?;
                (Support::Sparse { pairs }, vec![values])
            }
            "low-rank" => {
                let rank = description
                    .rank
                    .filter(|&rank| rank > 0 && rank <= m)
                    .ok_or_else(|| wrong("a low-rank adapter needs a rank above 0".to_owned()))?;
                let (read, read_values) = part("read", rank)?;
                let (write, write_values) = part("write", rank)?;
                let support = Support::LowRank { rank, read, write };
                (support, vec![read_values, write_values])
            }
            other => {
                return Err(wrong(format!(
                    "the basis is \"{other}\", it should be bias, sparse or low-rank"
                )));
            }
        };
        Self::new(description.site, dictionary, support, values)
            .map_err(|error| wrong(error.to_string()))
    }
}

/// Pairs as two lists.
fn columns(pairs: &[(u32, u32)]) -> [Vec<u32>; 2] {
    let (a, b) = pairs.iter().copied().unzip();
    [a, b]
}

/// The decoder of a dictionary.
pub(crate) fn decoder(dictionary: &Sae) -> Decoder<'_, f32> {
    Decoder {
        rows: dictionary.decoder(),
        d: dictionary.d_out(),
    }
}

/// Whether changed codes of a dictionary mean a change of the stream that it reads.
pub(crate) fn check_dictionary(dictionary: &Sae) -> Result<(), AdapterError> {
    let parts = dictionary.parts();
    if dictionary.d() != dictionary.d_out() {
        return Err(AdapterError::Option(format!(
            "the dictionary is a transcoder from width {} to {}: an autoencoder is needed",
            dictionary.d(),
            dictionary.d_out()
        )));
    }
    if parts.normalization != Normalization::None {
        return Err(AdapterError::Option(format!(
            "the dictionary normalises each activation ({:?}): a change of its codes is no fixed change of the stream, so it can neither be adapted nor explained",
            parts.normalization
        )));
    }
    Ok(())
}

/// Codes of a sequence's activations `[n, d]`, empty at the positions an adapter leaves alone; `start` is the position of
/// the first row.
pub(crate) fn codes_of(dictionary: &Sae, x: &[f32], start: usize) -> SparseCodes<f32> {
    let all = dictionary.encode(x);
    let mut codes = SparseCodes::new();
    for token in 0..all.tokens() {
        if start + token < FIRST_POSITION {
            codes.push(&[], &[]);
        } else {
            let (features, values) = all.token(token);
            codes.push(features, values);
        }
    }
    codes
}

impl Edit for FeatureAdapter {
    fn apply(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let [n, d] = x.dims();
        let mut change = self.change(&values(&x));
        for (row, position) in change.chunks_exact_mut(d).zip(rows.positions()) {
            if position < FIRST_POSITION {
                row.fill(0.0);
            }
        }
        let options = (&x.device(), x.dtype());
        x + Tensor::from_data(TensorData::new(change, [n, d]), options)
    }

    fn describe(&self) -> String {
        format!(
            "a {} adapter over {} features",
            self.basis(),
            self.dictionary.n_features()
        )
    }
}
