//! Matryoshka (Bussmann et al., arXiv 2503.17547): features of nested dictionaries, each of which reconstructs alone.

use pullback_kernels::Real;
use pullback_kernels::sparse::{SparseCodes, decode, dots_with_rows};

use super::Kind;
use super::batch_top_k::Budget;
use crate::Selection;
use crate::learn::{
    Aux, Batch, Parameters, Part, Rows, Step, add_row_sums, auxiliary, centred, differences, scale,
};

pub(crate) struct Matryoshka {
    budget: Budget,
    widths: Vec<usize>,
    aux: Option<Aux>,
}

impl Matryoshka {
    pub(crate) fn new(k: usize, widths: Vec<usize>, aux: Option<Aux>) -> Self {
        Self {
            budget: Budget::new(k),
            widths,
            aux,
        }
    }

    /// The codes of the features that each level adds to the one before.
    fn by_level<T: Real>(&self, codes: &SparseCodes<T>) -> Vec<SparseCodes<T>> {
        let mut levels = vec![SparseCodes::new(); self.widths.len()];
        for token in 0..codes.tokens() {
            let (features, values) = codes.token(token);
            let mut first = 0;
            for (level, &width) in levels.iter_mut().zip(&self.widths) {
                let end = features.partition_point(|&feature| (feature as usize) < width);
                level.push(&features[first..end], &values[first..end]);
                first = end;
            }
        }
        levels
    }
}

impl<T: Real> Kind<T> for Matryoshka {
    /// The reconstruction loss is the sum over the levels, as in `SAELens`.
    fn batch(
        &mut self,
        parameters: &Parameters<T>,
        rows: &Rows<'_, T>,
        step: &Step<'_>,
    ) -> Batch<T> {
        let d = parameters.d_out;
        let n = (rows.target.len() / d) as f64;
        let centred = centred(parameters, rows.x);
        let codes = self.budget.select(parameters, &centred);
        let levels = self.by_level(&codes);
        // Of each level x̂ − x: what it adds goes on top of the level before.
        let mut slopes: Vec<Vec<T>> = Vec::with_capacity(levels.len());
        let mut squares = 0.0;
        let zero = vec![T::zero(); d];
        for level in &levels {
            let before = slopes.last();
            let bias = if before.is_some() {
                &zero
            } else {
                &parameters.decoder_bias
            };
            let mut slope = decode(level, &parameters.decoder, bias);
            squares += if let Some(before) = before {
                for (x, &before) in slope.iter_mut().zip(before) {
                    *x += before;
                }
                let squares = slope.chunks(256 * d).map(|rows| {
                    let squares = rows.iter().map(|x| x.as_f64() * x.as_f64());
                    squares.sum::<f64>()
                });
                squares.sum::<f64>()
            } else {
                differences(&mut slope, rows.target, d)
            };
            slopes.push(slope);
        }
        let mut bias_slope = vec![0.0; d];
        let whole = slopes.last();
        let auxiliary = self.aux.zip(whole).and_then(|(aux, whole)| {
            let error = (rows, &centred[..], &whole[..]);
            auxiliary(parameters, error, aux, step, None, &mut bias_slope)
        });
        let unit = 1.0 / (n * step.variance);
        // A feature is in its own level's reconstruction and in all wider ones.
        let mut wider: Option<Vec<T>> = None;
        let mut parts = Vec::with_capacity(levels.len());
        for (level, mut slope) in levels.iter().zip(slopes).rev() {
            scale(&mut slope, 2.0 * unit);
            add_row_sums(&mut bias_slope, &slope);
            if let Some(wider) = wider {
                for (x, wider) in slope.iter_mut().zip(wider) {
                    *x += wider;
                }
            }
            let of_codes = dots_with_rows(level, &parameters.decoder, &slope);
            wider = Some(slope.clone());
            parts.push(Part::new(level, slope, of_codes, parameters.features()));
        }
        Batch::of_codes(
            &codes,
            parameters.features(),
            (squares, unit),
            (
                centred,
                bias_slope,
                wider.filter(|_| parameters.skip.is_some()),
            ),
            parts,
            auxiliary,
        )
    }

    fn memory(&self) -> Vec<f64> {
        self.budget.memory()
    }

    fn remember(&mut self, memory: &[f64]) {
        self.budget.remember(memory);
    }

    fn selection(&self, parameters: &Parameters<T>, scale: f64) -> Selection {
        self.budget.selection(parameters.features(), scale)
    }
}
