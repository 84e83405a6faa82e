//! What is explained, put together from the options: models, change, dictionary, text.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use pullback_activations::ActivationStore;
use pullback_adapters::{
    ADAPTER_KIND, Adapter, Change, HeldOutText, built_in_samples, data_digest, read_samples, split,
};
use pullback_artifact::{MANIFEST_FILE, Manifest};
use pullback_model::Site;
use pullback_sae::{SAE_KIND, Sae, Wiring};

use super::{Arguments, On};
use crate::context::{App, NamedModel};

/// More text than this would fill the memory with activations.
const MOST_TOKENS: usize = 1 << 20;

/// All that an explanation needs.
pub(super) struct Source {
    pub(super) named: NamedModel,
    what: What,
    pub(super) sae: Sae,
    pub(super) sae_manifest: Manifest,
    pub(super) site: Site,
    pub(super) text: HeldOutText,
    pub(super) store: Option<ActivationStore>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "made once, and all variants own large memory"
)]
enum What {
    Adapter(PathBuf, Adapter),
    Checkpoint(NamedModel),
}

impl Source {
    pub(super) fn open(app: &App, arguments: &Arguments) -> anyhow::Result<Self> {
        if arguments.tokens == 0 || arguments.tokens > MOST_TOKENS {
            bail!(
                "--tokens is {}, it must be between 1 and {MOST_TOKENS}",
                arguments.tokens
            );
        }
        let (sae, sae_manifest) = pullback_sae::load(&arguments.sae)?;
        let site = site(arguments, &sae_manifest)?;
        let store = match &arguments.store {
            Some(path) => Some(opened(path, site)?),
            None => None,
        };
        let adapter_manifest = match &arguments.adapter {
            Some(path) if path.join(MANIFEST_FILE).exists() => {
                Some(Manifest::load_kind(path, ADAPTER_KIND)?)
            }
            _ => None,
        };
        // What cannot be had is said before a model is loaded.
        let text = Wanted::of(arguments, adapter_manifest.as_ref(), store.as_ref())?;
        let (named, what) = if let (Some(from), Some(to)) = (&arguments.from, &arguments.to) {
            let (from, to) = (app.load_model(from)?, app.load_model(to)?);
            (from, What::Checkpoint(to))
        } else if let Some(path) = &arguments.adapter {
            let manifests = [
                adapter_manifest.as_ref(),
                store.as_ref().map(ActivationStore::manifest),
                Some(&sae_manifest),
            ];
            let recorded = manifests.into_iter().flatten();
            let recorded = recorded
                .into_iter()
                .find(|manifest| manifest.model.is_some());
            let named = match (&arguments.model, recorded) {
                (name, Some(manifest)) => app.load_model_of(name.as_deref(), manifest)?,
                (Some(name), None) => app.load_model(name)?,
                (None, None) => {
                    bail!(
                        "neither adapter nor autoencoder record their model: name it with --model"
                    )
                }
            };
            // An adapter in the basis of another dictionary than the one it is read through has its own place.
            let own = adapter_manifest
                .as_ref()
                .and_then(|manifest| manifest.parent(SAE_KIND));
            let same = own.is_none_or(|parent| parent.digest == sae_manifest.digest());
            let place = same.then_some(arguments.sae.as_path());
            let adapter = Adapter::load(path, &named.reference(), &named.model, place)?;
            (named, What::Adapter(path.clone(), adapter))
        } else {
            bail!("an adapter is needed, or --from and --to");
        };
        check_models(&named, &what, &sae_manifest, store.as_ref())?;
        let text = text.read(app, arguments, &named)?;
        Ok(Self {
            named,
            what,
            sae,
            sae_manifest,
            site,
            text,
            store,
        })
    }

    pub(super) fn change(&self) -> Change<'_> {
        match &self.what {
            What::Adapter(_, adapter) => Change::Adapter(adapter),
            What::Checkpoint(to) => Change::Checkpoint(&to.model),
        }
    }

    /// `residual`, `lora`, `bias`, `sparse`, `low-rank` or `checkpoint`.
    pub(super) fn kind(&self) -> &'static str {
        match &self.what {
            What::Adapter(_, adapter) => adapter.basis(),
            What::Checkpoint(_) => "checkpoint",
        }
    }

    pub(super) fn adapter(&self) -> Option<&Adapter> {
        match &self.what {
            What::Adapter(_, adapter) => Some(adapter),
            What::Checkpoint(_) => None,
        }
    }

    /// The change in a sentence.
    pub(super) fn told(&self) -> String {
        match &self.what {
            What::Checkpoint(to) => {
                format!(
                    "The change is that from {} to {}.",
                    self.named.name, to.name
                )
            }
            What::Adapter(path, adapter) => {
                let place = adapter.site().map_or_else(
                    || "updates of weights".to_owned(),
                    |site| format!("acting at {site}"),
                );
                format!(
                    "The change is the adapter {} of the basis {}: {} numbers, {place}.",
                    path.display(),
                    adapter.basis(),
                    adapter.parameters()
                )
            }
        }
    }
}

/// The site of the dictionary.
fn site(arguments: &Arguments, sae: &Manifest) -> anyhow::Result<Site> {
    let wiring = Wiring::of(sae);
    if !matches!(wiring, Wiring::Autoencoder { .. }) {
        bail!(
            "{} reads {} and reconstructs {}: a change is read through an autoencoder of one site",
            arguments.sae.display(),
            wiring.inputs().join(", "),
            wiring.outputs().join(", ")
        );
    }
    match (arguments.site, wiring.inputs().first()) {
        (Some(site), Some(own)) if own.parse::<Site>()? != site => bail!(
            "{} is a dictionary of {own}, --site is {site}: features of one site mean nothing at another",
            arguments.sae.display()
        ),
        (Some(site), _) => Ok(site),
        (None, Some(own)) => Ok(own.parse()?),
        (None, None) => bail!(
            "{} does not record its site: give it with --site",
            arguments.sae.display()
        ),
    }
}

fn opened(path: &Path, site: Site) -> anyhow::Result<ActivationStore> {
    let store = ActivationStore::open(path)?;
    if store.info().site != site {
        bail!(
            "{} holds activations of {}, the dictionary is of {site}",
            path.display(),
            store.info().site
        );
    }
    Ok(store)
}

/// Dictionary and store must be of the model, or of either checkpoint.
fn check_models(
    named: &NamedModel,
    what: &What,
    sae: &Manifest,
    store: Option<&ActivationStore>,
) -> anyhow::Result<()> {
    let manifests = [Some(sae), store.map(ActivationStore::manifest)];
    for manifest in manifests.into_iter().flatten() {
        if manifest.model.is_none() {
            continue;
        }
        let own = manifest.check_model(&named.reference());
        match what {
            What::Checkpoint(to) if own.is_err() => {
                let other = manifest.check_model(&to.reference());
                other.with_context(|| {
                    format!("the {} is of neither --from nor --to", manifest.kind)
                })?;
            }
            _ => own?,
        }
    }
    Ok(())
}

/// Which text is measured on.
enum Wanted<'a> {
    /// A file, or a name of the catalogue.
    Named(&'a str),
    /// The held-out part of an adapter's data.
    Answers(&'a Path, &'a Manifest),
    /// The held-out part of a store.
    Store(&'a ActivationStore),
}

impl<'a> Wanted<'a> {
    fn of(
        arguments: &'a Arguments,
        adapter: Option<&'a Manifest>,
        store: Option<&'a ActivationStore>,
    ) -> anyhow::Result<Self> {
        if let Some(text) = &arguments.text {
            return Ok(Self::Named(text));
        }
        let answers = match (arguments.on, &arguments.adapter, adapter) {
            (Some(On::Corpus), ..) => None,
            (on, Some(path), Some(manifest))
                if on.is_some() || !manifest.config["data"].is_null() =>
            {
                Some((path, manifest))
            }
            (Some(On::Answers), ..) => {
                bail!(
                    "--on answers needs an adapter that `adapt train` made: give text with --text"
                )
            }
            _ => None,
        };
        match (answers, store) {
            (Some((path, manifest)), _) => Ok(Self::Answers(path, manifest)),
            (None, Some(store)) => Ok(Self::Store(store)),
            (None, None) => bail!("there is no text to measure on: give it with --text or --store"),
        }
    }

    fn read(
        self,
        app: &App,
        arguments: &Arguments,
        named: &NamedModel,
    ) -> anyhow::Result<HeldOutText> {
        let model = &named.model;
        match self {
            Self::Store(store) => Ok(HeldOutText::of_store(store, arguments.tokens)?),
            Self::Named(text) => {
                let path = Path::new(text);
                if is_samples(path) {
                    let samples = read_samples(path)?;
                    return Ok(HeldOutText::of_samples(
                        text,
                        model,
                        &samples,
                        arguments.context,
                    )?);
                }
                let corpus = app.open_corpus(text)?;
                let (context, tokens) = (arguments.context, arguments.tokens);
                Ok(HeldOutText::of_corpus(model, &corpus, context, tokens)?)
            }
            Self::Answers(path, manifest) => {
                let (name, samples) = match &arguments.data {
                    Some(path) => (path.display().to_string(), read_samples(path)?),
                    None => ("the built-in set".to_owned(), built_in_samples()?),
                };
                if manifest.config["data"] != data_digest(&samples)? {
                    bail!(
                        "{} was trained on other pairs: give them with --data, or measure with --text or --on corpus",
                        path.display()
                    );
                }
                let context = manifest.config["train"]["context"].as_u64();
                let context = context.map_or(model.config().n_ctx, |context| context as usize);
                let held_out = split(&samples).1;
                let name = format!("the held-out part of {name}");
                Ok(HeldOutText::of_samples(&name, model, &held_out, context)?)
            }
        }
    }
}

/// Whether a file holds questions with answers or conversations, and no plain text.
fn is_samples(path: &Path) -> bool {
    if path
        .extension()
        .is_none_or(|extension| extension != "jsonl")
    {
        return false;
    }
    let Ok(text) = std::fs::read_to_string(path) else {
        // The corpus says what is wrong with it.
        return false;
    };
    let first = text.lines().find(|line| !line.trim().is_empty());
    let value = first.and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    value.is_some_and(|value| value.get("prompt").is_some() || value.get("messages").is_some())
}
