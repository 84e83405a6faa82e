//! Foundations of pullback: what every other crate needs to leave sound files behind and to be stopped safely.
//!
//! * [`PartialDir`] and [`Manifest`]: artifact directories that appear under their name only when complete, each with a
//!   `pullback.json` that says what it is, what it was made from and which files belong to it.
//! * [`write_atomic`], [`write_json`], [`read_json`]: single files, whole or not at all.
//! * [`sha256_file`], [`sha256_bytes`]: digests.
//! * [`Control`], [`Stage`], [`Interrupted`]: progress and interruption of long work.
//! * [`fetch()`], [`Fetcher`], [`Catalogue`], [`Cache`]: models and corpora by name, fetched once and verified.
//! * [`Hub`], [`HubReference`]: models of the Hugging Face hub, in the hub's own cache.
//! * [`post_json`]: questions to a server that answers with JSON.
//! * [`EventWriter`]: curves for `TensorBoard`.
//! * [`ArtifactError`]: everything that can go wrong here, each case naming the file or value.

mod atomic;
mod cache;
mod catalogue;
mod control;
mod digest;
mod endpoint;
mod error;
mod fetch;
mod hub;
mod manifest;
mod tensorboard;

pub use atomic::{
    PartialDir, read_json, refuse_existing, remove_existing, write_atomic, write_json,
};
pub use cache::Cache;
pub use catalogue::{Catalogue, Entry, EntryKind, Folder, Source};
pub use control::{Control, Interrupted, Stage};
pub use digest::{sha256_bytes, sha256_file};
pub use endpoint::post_json;
pub use error::ArtifactError;
pub use fetch::{Client, Fetched, Fetcher, fetch};
pub use hub::{Hub, HubModel, HubReference};
pub use manifest::{FORMAT, FileEntry, MANIFEST_FILE, Manifest, ModelRef, ParentRef};
pub use tensorboard::EventWriter;
