//! Which tokens the directions of features make likelier, and which less likely.

use burn::tensor::{Tensor, TensorData};
use pullback_artifact::Control;
use pullback_model::Model;
use rayon::prelude::*;

use super::largest::largest;
use crate::{Dictionary, SaeError, Sites};

/// Logits of one block of features, in numbers.
const BLOCK: usize = 1 << 23;

/// Token ids with the change of their logit: those raised most, and those lowered most.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Effects {
    pub(super) promoted: Vec<(u32, f32)>,
    pub(super) suppressed: Vec<(u32, f32)>,
}

/// `W_U (γ ∘ direction)` of some features, with γ the gains of the final norm, block by block: the `count` tokens at
/// either end. Control tokens are left out. Where directions are not of the model's width, there are no effects; of
/// a crosscoder they are those of its last site.
pub(super) fn effects(
    (dictionary, sites): (&dyn Dictionary, &Sites<'_>),
    wanted: &[usize],
    model: &Model,
    count: usize,
    control: &Control,
) -> Result<Option<Vec<Effects>>, SaeError> {
    let d = match sites.outputs[..] {
        [.., _, last] => last.info().d,
        _ => dictionary.d_out(),
    };
    if d != model.config().d_model {
        return Ok(None);
    }
    let tokenizer = model.tokenizer();
    let vocabulary = tokenizer.vocab_size();
    let plain: Vec<bool> = (0..vocabulary)
        .map(|id| !tokenizer.is_special(id as u32))
        .collect();
    let stage = control.stage("logit effects", wanted.len() as u64, "features");
    let mut found = Vec::with_capacity(wanted.len());
    for block in wanted.chunks((BLOCK / vocabulary.max(1)).clamp(1, 512)) {
        control.check()?;
        let directions: Vec<f32> = block
            .iter()
            .flat_map(|&feature| {
                let row = dictionary.direction(feature);
                row[row.len() - d..].iter().copied()
            })
            .collect();
        let data = TensorData::new(directions, [block.len(), d]);
        let directions = Tensor::<2>::from_data(data, model.device());
        let logits = model.unembed(directions * model.final_gain().clone().unsqueeze());
        let width = logits.dims()[1];
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        let known = vocabulary.min(width);
        found.par_extend(logits.par_chunks_exact(width).map(|logits| {
            let logits = &logits[..known];
            let lowered: Vec<f32> = logits.iter().map(|x| -x).collect();
            let suppressed = largest(&lowered, count, |id| plain[id]);
            Effects {
                promoted: largest(logits, count, |id| plain[id]),
                suppressed: suppressed.into_iter().map(|(id, x)| (id, -x)).collect(),
            }
        }));
        stage.advance(block.len() as u64);
    }
    stage.finish();
    Ok(Some(found))
}
