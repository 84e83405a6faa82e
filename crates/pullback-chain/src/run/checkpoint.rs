//! A run that was stopped, in a file.

use std::collections::HashMap;
use std::path::Path;

use pullback_artifact::write_atomic;
use safetensors::SafeTensors;

use crate::error::ChainError;

use super::config::RunConfig;
use super::engine::Engine;
use super::evolve::Progress;

/// The name of the file.
pub(super) const FILE: &str = "checkpoint.safetensors";

/// Writes the state with all that was measured so far.
pub(super) fn write(
    path: &Path,
    config: &RunConfig,
    progress: &Progress,
    engine: &impl Engine,
) -> Result<(), ChainError> {
    let json = |value: serde_json::Result<String>| {
        value.map_err(|error| ChainError::File {
            path: path.to_owned(),
            message: format!("cannot be written: {error}"),
        })
    };
    let metadata = HashMap::from([
        ("config".to_owned(), json(serde_json::to_string(config))?),
        (
            "progress".to_owned(),
            json(serde_json::to_string(progress))?,
        ),
    ]);
    let bytes = safetensors::serialize(engine.stored(), Some(metadata)).map_err(|error| {
        ChainError::File {
            path: path.to_owned(),
            message: format!("cannot be written: {error}"),
        }
    })?;
    Ok(write_atomic(path, &bytes)?)
}

/// Takes up a run; `None` where there is none, or one with another configuration, or a file that is damaged.
pub(super) fn read(path: &Path, config: &RunConfig, engine: &mut impl Engine) -> Option<Progress> {
    let bytes = std::fs::read(path).ok()?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).ok()?;
    let metadata = metadata.metadata().as_ref()?;
    let stored: RunConfig = serde_json::from_str(metadata.get("config")?).ok()?;
    if stored != *config {
        return None;
    }
    let progress = serde_json::from_str(metadata.get("progress")?).ok()?;
    let tensors = SafeTensors::deserialize(&bytes).ok()?;
    for name in engine.names() {
        let view = tensors.tensor(name).ok()?;
        if !engine.restore(name, &view) {
            return None;
        }
    }
    Some(progress)
}
