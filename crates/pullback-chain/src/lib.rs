//! Quantum chains: two-site unitaries, the cellular automata they make, states and their evolution.
//!
//! - [`Site`], [`parse_operator`], [`Hamiltonian`]: operators and Hamiltonians from a small language or by name.
//! - [`Gate`], [`Scheme`], [`Qca`], [`Mpu`]: two-site unitaries, Suzuki-Trotter schemes, cellular automata, matrix-product
//!   unitaries.
//! - [`card()`], [`Card`]: everything that can be said of an automaton: index, light cone, duality, charges and more.
//! - [`StateVector`], [`Plan`]: all amplitudes of a chain, and circuits gathered into few walks through them.
//! - [`Mps`], [`InfiniteMps`], [`Truncation`]: matrix-product states, finite and infinite, and what of a bond is kept.
//! - [`ground()`], [`Ground`]: ground states by DMRG.
//! - [`PulledBack`]: observables in the Heisenberg picture.
//! - [`Measure`], [`Observable`], [`run()`]: what is measured, the same on every engine, and runs that can be taken up again.
//! - [`Stabilizer`]: Clifford automata on thousands of sites.

pub mod card;
pub mod circuit;
pub mod dense;
mod error;
mod expression;
mod gate;
mod hamiltonian;
pub mod heisenberg;
pub mod initial;
pub mod measure;
pub mod mps;
mod mpu;
mod named;
pub mod npy;
mod qca;
pub mod run;
mod scheme;
mod site;
pub mod stabilizer;
pub mod statevector;

pub use card::{Card, card};
pub use circuit::{PlacedGate, trotter_circuit};
pub use error::ChainError;
pub use expression::{Local, parse_operator, parse_scalar};
pub use gate::{GATES, Gate, UNITARY_WITHIN, haar};
pub use hamiltonian::{Boundary, Hamiltonian, MODELS};
pub use heisenberg::PulledBack;
pub use measure::{Measure, Observable};
pub use mps::{Ground, GroundOptions, InfiniteMps, Mpo, Mps, Truncation, ground};
pub use mpu::Mpu;
pub use named::Named;
pub use qca::{AUTOMATA, Layer, Qca};
pub use run::{EngineKind, RunConfig, RunResult, run};
pub use scheme::{SCHEMES, Scheme};
pub use site::{MAX_DIMENSION, Site};
pub use stabilizer::Stabilizer;
pub use statevector::{Plan, Precision, StateVector};
