//! What single features' changes do to the loss.

use pullback_artifact::Control;
use pullback_kernels::sparse::{SparseCodes, add_scaled};
use pullback_sae::{Dictionary, Sae};
use serde::{Deserialize, Serialize};

use super::change::Side;
use super::text::TextSequence;
use crate::AdapterError;

/// What a change does to the loss on some text, and what the listed features of it do together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effects {
    /// Positions whose loss is counted.
    pub positions: usize,
    /// Mean loss of the model as it was, in nats a token.
    pub loss_before: f64,
    /// Mean loss of the model as it became.
    pub loss_after: f64,
    /// Change of the loss when the changes of all listed features are applied to the model as it was.
    pub together_alone: f64,
    /// Change of the loss when all listed features are restored in the model as it became.
    pub together_removed: f64,
    /// Change of the loss when the change of all codes, listed or not, is applied to the model as it was: what the dictionary
    /// sees of the whole change.
    pub codes_alone: f64,
    /// Change of the loss when all codes are restored in the model as it became: what is left is what the dictionary does not
    /// see.
    pub codes_removed: f64,
}

/// The effects of one feature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Effect {
    /// Change of the mean loss when its change alone is applied to the model as it was.
    pub(crate) alone: f64,
    /// Change of the mean loss when it alone is restored in the model as it became.
    pub(crate) removed: f64,
}

/// Two models and the text that their losses are compared on.
pub(crate) struct Compared<'a> {
    pub(crate) before: &'a Side<'a>,
    pub(crate) after: &'a Side<'a>,
    pub(crate) sae: &'a Sae,
    pub(crate) sequences: &'a [TextSequence],
    /// Activations at the site, `[tokens, d]` of all sequences.
    pub(crate) x: [&'a [f32]; 2],
    /// Rows where features are changed: not the first of a sequence, no outliers.
    pub(crate) normal: &'a [bool],
}

impl Compared<'_> {
    /// The effects of some features, each by itself, and of all of them.
    ///
    /// A feature's change at a row is the difference of its codes there, times its decoder row. Sequences in which it is zero
    /// at all rows are not run again: their loss is known.
    ///
    /// # Errors
    /// A loss is not finite; the work was interrupted.
    pub(crate) fn effects(
        &self,
        features: &[usize],
        control: &Control,
    ) -> Result<(Effects, Vec<Effect>), AdapterError> {
        let codes = self.x.map(|x| self.sae.encode(x));
        let positions: usize = self.sequences.iter().map(|s| s.counted.len()).sum();
        let tokens: usize = self.sequences.iter().map(|s| s.ids.len()).sum();
        let stage = control.stage(
            "effects",
            (2 * tokens * (features.len() + 3)) as u64,
            "tokens",
        );
        let every: Vec<&TextSequence> = self.sequences.iter().collect();
        let sides = [self.before, self.after];
        let mut usual = Vec::with_capacity(2);
        for (side, x) in sides.into_iter().zip(self.x) {
            usual.push(side.losses(&every, x, control, &stage)?);
        }
        let n = positions as f64;
        // The change of the mean loss of a side when the shifts of some features, or of all, are added, times a sign.
        let changed = |which: usize, features: Option<&[usize]>| -> Result<f64, AdapterError> {
            let sign = if which == 0 { 1.0 } else { -1.0 };
            let (sequences, numbers, x) = self.shifted(which, sign, &codes, features);
            let losses = sides[which].losses(&sequences, &x, control, &stage)?;
            let ran: usize = sequences.iter().map(|s| s.ids.len()).sum();
            stage.advance((tokens - ran) as u64);
            let change = numbers.iter().zip(losses);
            let sum: f64 = change.map(|(&at, loss)| loss - usual[which][at]).sum();
            Ok(sum / n)
        };
        let mut each = Vec::with_capacity(features.len());
        for &feature in features {
            each.push(Effect {
                alone: changed(0, Some(&[feature]))?,
                removed: changed(1, Some(&[feature]))?,
            });
        }
        let effects = Effects {
            positions,
            loss_before: usual[0].iter().sum::<f64>() / n,
            loss_after: usual[1].iter().sum::<f64>() / n,
            together_alone: changed(0, Some(features))?,
            together_removed: changed(1, Some(features))?,
            codes_alone: changed(0, None)?,
            codes_removed: changed(1, None)?,
        };
        stage.finish();
        Ok((effects, each))
    }

    /// The sequences in which some of the features (or any, where none are named) change, their numbers, and their activations
    /// with that change added.
    fn shifted(
        &self,
        which: usize,
        sign: f32,
        codes: &[SparseCodes<f32>; 2],
        features: Option<&[usize]>,
    ) -> (Vec<&TextSequence>, Vec<usize>, Vec<f32>) {
        let d = self.sae.d();
        let (mut sequences, mut numbers, mut all) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for (number, sequence) in self.sequences.iter().enumerate() {
            let rows = start..start + sequence.ids.len();
            start = rows.end;
            let mut x = self.x[which][rows.start * d..rows.end * d].to_vec();
            let mut moved = false;
            for (row, x) in rows.zip(x.chunks_exact_mut(d)) {
                if !self.normal[row] {
                    continue;
                }
                let active: Vec<usize>;
                let features = if let Some(features) = features {
                    features
                } else {
                    active = active_in(codes, row);
                    &active
                };
                for &feature in features {
                    let value = |side: usize| codes[side].value(row, feature as u32);
                    let change = value(1) - value(0);
                    if change != 0.0 {
                        moved = true;
                        add_scaled(x, sign * change, self.sae.direction(feature));
                    }
                }
            }
            if moved {
                sequences.push(sequence);
                numbers.push(number);
                all.extend(x);
            }
        }
        (sequences, numbers, all)
    }
}

/// Features that are active at a row on either side, ascending.
fn active_in(codes: &[SparseCodes<f32>; 2], row: usize) -> Vec<usize> {
    let both = codes.iter().flat_map(|codes| codes.token(row).0);
    let mut features: Vec<usize> = both.map(|&feature| feature as usize).collect();
    features.sort_unstable();
    features.dedup();
    features
}
