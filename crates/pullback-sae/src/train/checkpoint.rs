//! The state of an unfinished training, from which it goes on bit for bit.

use std::path::Path;

use bytemuck::{cast_slice, pod_collect_to_vec};
use pullback_artifact::write_atomic;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use pullback_activations::Position;

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
    /// Digest of the rows.
    pub(super) rows: String,
    pub(super) step: usize,
    /// Where the next step's rows begin.
    pub(super) position: Position,
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

    /// Looks for the checkpoint of an interrupted training with these settings on these rows; `like` has the shapes that
    /// its parameters must have.
    pub(super) fn load(
        dir: &Path,
        (config, rows): (&TrainConfig, &str),
        like: &Parameters<f32>,
    ) -> Result<Found, SaeError> {
        let path = dir.join(FILE);
        let wrong = |problem: String| SaeError::File {
            path: path.clone(),
            problem,
        };
        if !path.exists() {
            return Ok(Found::Nothing);
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
        if progress.config != *config || progress.rows != rows {
            return Ok(Found::Other);
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
        let floats = |name: String| -> Result<Vec<f32>, SaeError> {
            let view = tensors
                .tensor(&name)
                .map_err(|error| wrong(format!("{name}: {error}")))?;
            Ok(pod_collect_to_vec(view.data()))
        };
        let filled = |prefix: &str| -> Result<Parameters<f32>, SaeError> {
            let mut parameters = like.clone();
            if prefix != "parameters" {
                parameters.lengths = None;
            }
            for (name, values) in parameters.named_mut() {
                let name = format!("{prefix}.{name}");
                let found = floats(name.clone())?;
                if found.len() != values.len() {
                    return Err(wrong(format!(
                        "{name} has {} numbers, {} are needed",
                        found.len(),
                        values.len()
                    )));
                }
                *values = found;
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
        Ok(Found::Same(Box::new(Self {
            parameters: filled("parameters")?,
            moments: Moments {
                first: filled("first")?,
                second: filled("second")?,
            },
            silent,
            progress,
        })))
    }
}

/// What [`Checkpoint::load`] finds.
pub(super) enum Found {
    /// No checkpoint.
    Nothing,
    /// That of a different training.
    Other,
    /// The one looked for.
    Same(Box<Checkpoint>),
}
