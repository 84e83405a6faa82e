//! What all commands share: progress, names of models and corpora, loading.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use burn::tensor::{DType, Device};
use pullback_activations::Corpus;
use pullback_artifact::{
    Catalogue, Control, EntryKind, Hub, HubReference, Manifest, ModelRef, fetch,
};
use pullback_model::{Model, ModelFiles, Site, Weights};

use crate::cli::{Cli, DeviceKind, WeightsKind};
use crate::output;

/// One run of the program.
pub(crate) struct App {
    pub(crate) control: Control,
    pub(crate) json: bool,
    device: DeviceKind,
    weights: Weights,
}

/// A model with the name that artifacts record of it.
pub(crate) struct NamedModel {
    pub(crate) name: String,
    pub(crate) model: Model,
}

impl NamedModel {
    pub(crate) fn reference(&self) -> ModelRef {
        ModelRef {
            name: self.name.clone(),
            digest: self.model.digest().to_owned(),
        }
    }
}

impl App {
    pub(crate) fn new(cli: &Cli) -> Self {
        Self {
            control: if cli.quiet {
                Control::hidden()
            } else {
                Control::terminal()
            },
            json: cli.json,
            device: cli.device,
            weights: match cli.weights {
                WeightsKind::Quantized => Weights::AsStored,
                WeightsKind::Expanded => Weights::Expanded,
            },
        }
    }

    /// Makes Ctrl-C stop at the next safe point.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        Ok(self.control.handle_ctrl_c()?)
    }

    /// Prints the result: the JSON object, or the text for a person.
    pub(crate) fn print<T: serde::Serialize>(
        &self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        if self.json {
            output::json(value)
        } else {
            output::text(&text())
        }
    }

    /// The file or directory of a model given as a catalogue name, a `.gguf` file, a directory or a repository of the
    /// hub, and the name that artifacts record. What exists on disk wins; what is not here is fetched.
    pub(crate) fn model_path(&self, model: &str) -> anyhow::Result<(String, PathBuf)> {
        let path = Path::new(model);
        if path.exists() {
            let stem = if path.is_dir() {
                path.file_name()
            } else {
                path.file_stem()
            };
            let name = stem.map_or_else(
                || model.to_owned(),
                |name| name.to_string_lossy().into_owned(),
            );
            return Ok((name, path.to_owned()));
        }
        if HubReference::is_meant_by(model) {
            let reference: HubReference = model.parse()?;
            let hub = Hub::from_env()?;
            // What the cache holds is used as it is: a model must not change between the steps of one piece of work.
            let found = match hub.find(&reference)? {
                Some(found) => found,
                None => hub.fetch(&reference, &self.control).with_context(|| {
                    format!("{model} does not exist as a file or directory, and was looked for on the hub")
                })?,
            };
            return Ok((reference.to_string(), found.path));
        }
        if model.contains(['/', '\\']) || path.extension().is_some_and(|e| e == "gguf") {
            bail!(
                "{model} does not exist: give a .gguf file, a model directory, a name of the catalogue ({}) or a repository of the hub (owner/name)",
                names(EntryKind::Model)?
            );
        }
        let fetched = fetch(model, &self.control)?;
        if fetched.entry.kind != EntryKind::Model {
            bail!(
                "`{model}` is a corpus, a model is needed here ({})",
                names(EntryKind::Model)?
            );
        }
        Ok((fetched.entry.name, fetched.path))
    }

    /// Where models are to run.
    pub(crate) fn device_kind(&self) -> DeviceKind {
        self.device
    }

    /// Where models run.
    fn device(&self) -> anyhow::Result<Device> {
        match self.device {
            DeviceKind::Cpu => Ok(Device::flex()),
            DeviceKind::Gpu => gpu(),
        }
    }

    /// Loads a model.
    pub(crate) fn load_model(&self, model: &str) -> anyhow::Result<NamedModel> {
        // What cannot be had is said before anything is fetched.
        let device = self.device()?;
        let (name, path) = self.model_path(model)?;
        let files = ModelFiles::open(&path)?;
        let model = Model::with_weights(files, &device, DType::F32, self.weights)?;
        Ok(NamedModel { name, model })
    }

    /// Loads the model that an artifact was made with: the one named, or the one that it records.
    pub(crate) fn load_model_of(
        &self,
        named: Option<&str>,
        manifest: &Manifest,
    ) -> anyhow::Result<NamedModel> {
        let Some(recorded) = &manifest.model else {
            bail!("the artifact does not record its model: name it with --model");
        };
        let name = named.unwrap_or(&recorded.name);
        let model = self.load_model(name).with_context(|| {
            format!("the model `{}` that the artifact was made with is needed (--model gives its place)", recorded.name)
        })?;
        manifest.check_model(&ModelRef {
            name: recorded.name.clone(),
            digest: model.model.digest().to_owned(),
        })?;
        Ok(model)
    }

    /// Opens a corpus given as a catalogue name, a file or a directory.
    pub(crate) fn open_corpus(&self, text: &str) -> anyhow::Result<Corpus> {
        let path = Path::new(text);
        let in_catalogue = Catalogue::built_in()?
            .entries
            .iter()
            .any(|entry| entry.name == text);
        if path.exists() || !in_catalogue {
            return Ok(Corpus::open(path)?);
        }
        let fetched = fetch(text, &self.control)?;
        if fetched.entry.kind != EntryKind::Corpus {
            bail!(
                "`{text}` is a model, a corpus is needed here ({})",
                names(EntryKind::Corpus)?
            );
        }
        Ok(Corpus::open(&fetched.path)?)
    }
}

/// The graphics card.
#[cfg(feature = "gpu")]
fn gpu() -> anyhow::Result<Device> {
    // It can be set up once only.
    static DEVICE: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    if let Some(device) = DEVICE.get() {
        return Ok(device.clone());
    }
    let device = Device::wgpu_options().init().context(
        "no graphics card can be used (Vulkan, Metal or DirectX 12 is needed): use --device cpu",
    )?;
    Ok(DEVICE.get_or_init(|| device).clone())
}

#[cfg(not(feature = "gpu"))]
fn gpu() -> anyhow::Result<Device> {
    bail!(
        "--device gpu: this program was built without it; build it with `cargo build --release --features gpu`, or use --device cpu"
    )
}

/// Names of a kind in the catalogue.
fn names(kind: EntryKind) -> anyhow::Result<String> {
    let catalogue = Catalogue::built_in()?;
    let names: Vec<&str> = catalogue
        .of_kind(kind)
        .map(|entry| entry.name.as_str())
        .collect();
    Ok(names.join(", "))
}

/// With `--force`, takes away an artifact that stands where the new one goes.
pub(crate) fn make_room(out: &Path, force: bool) -> anyhow::Result<()> {
    if force {
        pullback_artifact::remove_existing(out)?;
    }
    Ok(())
}

/// The usual site of a model: the residual stream after its middle block.
pub(crate) fn middle_site(n_layers: usize) -> Site {
    Site::resid_post(n_layers / 2)
}
