//! A run: a state, what moves it, what is measured, and a ledger of what went wrong.

mod checkpoint;
mod config;
mod engine;
mod evolve;
mod tensors;

pub use config::{EngineKind, RunConfig};
pub use evolve::{Ledger, Row, RunResult, TrotterEntry, TruncationEntry, run};
