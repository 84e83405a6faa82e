//! TopK (Gao et al., arXiv 2406.04093).

use pullback_kernels::Real;
use pullback_kernels::sparse::{Candidates, SparseCodes, decode, dots_with_rows, encode_top_k};

use super::Kind;
use crate::learn::{
    Aux, Batch, Parameters, Part, Rows, Step, add_row_sums, auxiliary, centred, differences, scale,
};
use crate::{AuxLoss, Selection};

pub(crate) struct TopK {
    pub(crate) k: usize,
    pub(crate) aux: Option<Aux>,
}

impl<T: Real> Kind<T> for TopK {
    fn batch(
        &mut self,
        parameters: &Parameters<T>,
        rows: &Rows<'_, T>,
        step: &Step<'_>,
    ) -> Batch<T> {
        let centred = centred(parameters, rows.x);
        // Candidates are chosen above zero, as all variants but SAELens's do.
        let candidates = self
            .aux
            .filter(|aux| aux.loss != AuxLoss::Saelens && aux.weight > 0.0 && !step.dead.is_empty())
            .map(|aux| Candidates {
                features: step.dead,
                k: aux.k,
            });
        let encoded = encode_top_k(
            &centred,
            &parameters.encoder,
            &parameters.encoder_bias,
            self.k,
            candidates,
        );
        reconstruct(
            parameters,
            (rows, centred),
            encoded.codes,
            (self.aux, encoded.among),
            step,
        )
    }

    fn selection(&self, _: &Parameters<T>, _: f64) -> Selection {
        Selection::TopK { k: self.k }
    }
}

/// The batch whose codes are given, reconstructed once, with the auxiliary loss.
pub(super) fn reconstruct<T: Real>(
    parameters: &Parameters<T>,
    (rows, centred): (&Rows<'_, T>, Vec<T>),
    codes: SparseCodes<T>,
    (aux, dead_codes): (Option<Aux>, Option<SparseCodes<T>>),
    step: &Step<'_>,
) -> Batch<T> {
    let d = parameters.d_out;
    let n = codes.tokens() as f64;
    let mut slope = decode(&codes, &parameters.decoder, &parameters.decoder_bias);
    // From here on `slope` is x̂ − x, then its multiple.
    let squares = differences(&mut slope, rows.target, d);
    let mut bias_slope = vec![0.0; d];
    let auxiliary = aux.and_then(|aux| {
        auxiliary(
            parameters,
            (rows, &centred, &slope),
            aux,
            step,
            dead_codes,
            &mut bias_slope,
        )
    });
    let unit = 1.0 / (n * step.variance);
    scale(&mut slope, 2.0 * unit);
    add_row_sums(&mut bias_slope, &slope);
    let slopes = dots_with_rows(&codes, &parameters.decoder, &slope);
    let features = parameters.features();
    let whole = parameters.skip.is_some().then(|| slope.clone());
    let parts = vec![Part::new(&codes, slope, slopes, features)];
    Batch::of_codes(
        &codes,
        features,
        (squares, unit),
        (centred, bias_slope, whole),
        parts,
        auxiliary,
    )
}
