//! The state of an unfinished training, from which it goes on bit for bit.

use std::path::Path;

use bytemuck::{cast_slice, pod_collect_to_vec};
use pullback_artifact::write_atomic;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::{CurvePoint, TrainConfig};
use crate::SaeError;
use crate::learn::{Moments, Parameters};

/// The file; `finish` takes it out of the artifact.
const FILE: &str = "checkpoint.safetensors";
pub(super) const FILES: [&str; 1] = [FILE];

/// How far training is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) config: TrainConfig,
    pub(super) store: String,
    pub(super) step: usize,
    pub(super) curve: Vec<CurvePoint>,
    /// What the kind remembers of earlier batches.
    pub(super) memory: Vec<f64>,
    pub(super) loss_sum: f64,
    pub(super) loss_steps: u32,
}

/// All that the next step depends on.
pub(super) struct Checkpoint {
    pub(super) progress: Progress,
    pub(super) parameters: Parameters<f32>,
    pub(super) moments: Moments<f32>,
    /// Tokens since each feature fired.
    pub(super) silent: Vec<u64>,
}

impl Checkpoint {
    /// Writes one file, whole or not at all, so that progress and parameters never disagree.
    pub(super) fn save(&self, dir: &Path) -> Result<(), SaeError> {
        let path = dir.join(FILE);
        let wrong = |problem: String| SaeError::File {
            path: path.clone(),
            problem,
        };
        let mut tensors = Vec::new();
        for (prefix, parameters) in [
            ("parameters", &self.parameters),
            ("first", &self.moments.first),
            ("second", &self.moments.second),
        ] {
            for (name, values) in parameters.named() {
                let view = TensorView::new(Dtype::F32, vec![values.len()], cast_slice(values));
                tensors.push((
                    format!("{prefix}.{name}"),
                    view.map_err(|error| wrong(error.to_string()))?,
                ));
            }
        }
        let silent = TensorView::new(
            Dtype::U64,
            vec![self.silent.len()],
            cast_slice(&self.silent),
        );
        tensors.push((
            "silent".to_owned(),
            silent.map_err(|error| wrong(error.to_string()))?,
        ));
        let progress =
            serde_json::to_string(&self.progress).map_err(|error| wrong(error.to_string()))?;
        let metadata = [("progress".to_owned(), progress)].into_iter().collect();
        let bytes = safetensors::serialize(tensors, Some(metadata))
            .map_err(|error| wrong(error.to_string()))?;
        Ok(write_atomic(&path, &bytes)?)
    }

    /// The checkpoint of an interrupted training; `None` when it had not come to one.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, SaeError> {
        let path = dir.join(FILE);
        let wrong = |problem: String| SaeError::File {
            path: path.clone(),
            problem,
        };
        if !path.exists() {
            return Ok(None);
        }
        let bytes = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
        let (_, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| wrong(error.to_string()))?;
        let progress = metadata
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get("progress"))
            .ok_or_else(|| wrong("it does not say how far training was".to_owned()))?;
        let progress: Progress =
            serde_json::from_str(progress).map_err(|error| wrong(error.to_string()))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
        let floats = |name: String| -> Result<Vec<f32>, SaeError> {
            let view = tensors
                .tensor(&name)
                .map_err(|error| wrong(format!("{name}: {error}")))?;
            Ok(pod_collect_to_vec(view.data()))
        };
        let extras = tensors
            .names()
            .iter()
            .filter(|name| name.starts_with("parameters.extra_"))
            .count();
        let parameters = |prefix: &str| -> Result<Parameters<f32>, SaeError> {
            let decoder_bias = floats(format!("{prefix}.decoder_bias"))?;
            let parameters = Parameters {
                d: decoder_bias.len(),
                encoder: floats(format!("{prefix}.encoder"))?,
                encoder_bias: floats(format!("{prefix}.encoder_bias"))?,
                decoder: floats(format!("{prefix}.decoder"))?,
                decoder_bias,
                extras: (0..extras)
                    .map(|i| floats(format!("{prefix}.extra_{i}")))
                    .collect::<Result<_, _>>()?,
            };
            let size = progress.config.features * parameters.d;
            if parameters.encoder.len() != size || parameters.decoder.len() != size {
                return Err(wrong(format!(
                    "{prefix} does not have {} features",
                    progress.config.features
                )));
            }
            Ok(parameters)
        };
        let silent = tensors
            .tensor("silent")
            .map_err(|error| wrong(format!("silent: {error}")))?;
        let silent: Vec<u64> = pod_collect_to_vec(silent.data());
        if silent.len() != progress.config.features {
            return Err(wrong(format!(
                "silent does not have {} features",
                progress.config.features
            )));
        }
        Ok(Some(Self {
            parameters: parameters("parameters")?,
            moments: Moments {
                first: parameters("first")?,
                second: parameters("second")?,
            },
            silent,
            progress,
        }))
    }
}
