//! Stabilizer states of qubits: Clifford gates on thousands of sites (Aaronson and Gottesman, arXiv:quant-ph/0406196).
//!
//! The bits of all generators at one site lie side by side, so that a gate works on 64 generators at a time.

mod gate;
mod tableau;

pub use gate::{CliffordGate, Pauli};
pub use tableau::Stabilizer;
