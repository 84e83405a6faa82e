//! Analyses of what a model does with one text: what each layer would say ([`logit_lens`]), which parts a logit is made
//! of ([`attribute_logit`]), and where two texts part ([`Patcher`]).

mod attribution;
mod lens;
mod patching;

pub use attribution::{Attribution, Contribution, Part, attribute_logit};
pub use lens::{Followed, Lens, LensCell, LensOptions, logit_lens};
pub use patching::{PatchGrid, PatchPlace, Patcher};

use crate::error::ModelError;
use crate::model::Model;

/// A token id of the model's vocabulary.
fn check_token(model: &Model, id: u32) -> Result<(), ModelError> {
    let vocabulary = model.config().d_vocab;
    if (id as usize) < vocabulary {
        return Ok(());
    }
    Err(ModelError::Input {
        problem: format!("token id {id} is not below the vocabulary size {vocabulary}"),
    })
}
