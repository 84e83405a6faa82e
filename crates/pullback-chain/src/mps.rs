//! Matrix-product states of open and infinite chains, for any local dimension.
//!
//! A state is `λ_0 B_0 B_1 … B_{L−1}`: every `B_j` is right-canonical (`Σ_p B_p B_p† = 1`) in the basis of Schmidt vectors,
//! and `λ_j` holds the Schmidt coefficients of the bond to the left of site `j`, `λ_0` the norm. A gate on sites `j`, `j + 1`
//! makes `C = gate B_j B_{j+1}`; the right singular vectors `Z` of `λ_j C` that are kept give `B_{j+1} = Z` and `B_j = C Z†`,
//! so nothing is ever divided by a small coefficient (Hastings, arXiv:0903.3253). Gates on different bonds need nothing of
//! one another and are applied at once.
//!
//! **What truncation costs.** The coefficients are not made to sum to one again. Then for every tensor `B B† ≤ 1`, and for
//! every bond the Gram matrix of the left vectors is at most `λ²`: truncation only takes away. Adding what was taken as
//! terms that no gate touches any more makes a longer vector that is canonical, on which the truncations of a layer are
//! orthogonal projectors `P_1 … P_n`, and `‖ψ − P_n … P_1 ψ‖² ≤ Σ ‖ψ − P_k ψ‖²`. So the state after a layer is off by at most
//! the root of the sum of the weights that the layer discarded, also where the tensors are canonical only up to those
//! weights; [`Ledger::error_bound`] is the sum over all layers. After each circuit the canonical form is restored.
//!
//! [`InfiniteMps`] is the same for an infinite chain that repeats after two sites.

mod canonical;
mod ground;
mod infinite;
mod measure;
mod operator;
mod spectrum;
mod state;
mod tensor;
mod truncate;
mod update;

pub use ground::{Ground, GroundOptions, ground};
pub use infinite::InfiniteMps;
pub use operator::Mpo;
pub(crate) use state::Parts;
pub use state::{Ledger, Mps};
pub use truncate::Truncation;
