//! Rows replaced by a dictionary's reconstruction, with the derivative.

use pullback_kernels::sparse::{SparseCodes, decode, dots_with_rows};

use crate::{Dictionary, Normalization, Sae, SaeError, Selection};

/// Activations `[n, d]` of which some are replaced by their reconstruction, and what their derivative needs.
#[derive(Debug)]
pub struct SplicedRows<'a> {
    sae: &'a Sae,
    replaced: Vec<bool>,
    codes: SparseCodes<f32>,
    values: Vec<f32>,
    /// Where each activation is brought to the length `√d` first: the factor of each row.
    factors: Option<Vec<f32>>,
    given: Vec<f32>,
}

impl<'a> SplicedRows<'a> {
    /// Replaces those of the rows `x [n, d]` for which `replaced` says so.
    ///
    /// # Errors
    /// The dictionary is no autoencoder of this width, or one whose derivative is not implemented: with a skip matrix, or
    /// activations that are centred one by one.
    pub fn new(sae: &'a Sae, x: &[f32], replaced: Vec<bool>) -> Result<Self, SaeError> {
        let d = sae.d();
        if d != sae.d_out() || x.len() != replaced.len() * d {
            return Err(SaeError::Option(format!(
                "a dictionary from width {d} to width {} cannot stand in for {} numbers in {} rows",
                sae.d_out(),
                x.len(),
                replaced.len()
            )));
        }
        let parts = sae.parts();
        if parts.normalization == Normalization::Layer || parts.skip.is_some() {
            return Err(SaeError::Option(
                "gradients do not flow through a dictionary with a skip matrix, or one that centres activations one by one"
                    .to_owned(),
            ));
        }
        let codes = sae.encode(x);
        let made = sae.reconstruct(x, &codes);
        let mut values = x.to_vec();
        for (row, _) in replaced
            .iter()
            .enumerate()
            .filter(|(_, replaced)| **replaced)
        {
            let span = row * d..(row + 1) * d;
            values[span.clone()].copy_from_slice(&made[span]);
        }
        let by_row = parts.normalization == Normalization::ConstantNorm;
        let factors = by_row.then(|| {
            let rows = x.chunks_exact(d);
            rows.map(|row| parts.normalization.of_row(row).1).collect()
        });
        Ok(Self {
            sae,
            replaced,
            codes,
            values,
            factors,
            given: x.to_vec(),
        })
    }

    /// The rows as they are now, `[n, d]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Pulls a gradient in [`SplicedRows::values`] back to the rows that were given. Which features are active is taken as
    /// fixed, which it is almost everywhere: a code then changes as its pre-activation does.
    pub fn pull(&self, gradient: &[f32]) -> Vec<f32> {
        let (sae, d) = (self.sae, self.sae.d());
        let slopes = dots_with_rows(&self.codes, sae.decoder(), gradient);
        let mut by_code = SparseCodes::new();
        let mut scaled = Vec::new();
        for token in 0..self.codes.tokens() {
            let (features, _) = self.codes.token(token);
            scaled.clear();
            let own = &slopes[self.codes.span(token)];
            scaled.extend(features.iter().zip(own).map(
                |(&feature, slope)| match sae.selection() {
                    Selection::Gated { scales, .. } => slope * scales[feature as usize],
                    _ => *slope,
                },
            ));
            by_code.push(features, &scaled);
        }
        let mut out = decode(&by_code, sae.encoder(), &vec![0.0; d]);
        if let Some(factors) = &self.factors {
            // y = r·f(u) with u = x/r and r = ‖x‖/√d: through u comes what is across it, and through r, whose derivative is
            // u/d, the part of the gradient along f(u) = y/r.
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            for (row, &factor) in factors.iter().enumerate() {
                let span = row * d..(row + 1) * d;
                let (x, y) = (&self.given[span.clone()], &self.values[span.clone()]);
                let across = dot(&out[span.clone()], x);
                let along = factor * factor * (dot(&gradient[span.clone()], y) - across) / d as f32;
                for (out, x) in out[span].iter_mut().zip(x) {
                    *out += along * x;
                }
            }
        }
        for (row, replaced) in self.replaced.iter().enumerate() {
            if !replaced {
                let span = row * d..(row + 1) * d;
                out[span.clone()].copy_from_slice(&gradient[span]);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::SplicedRows;
    use crate::{Normalization, Sae, SaeParts, Selection};

    const D: usize = 7;
    const M: usize = 30;
    const ROWS: usize = 40;

    fn numbers(seed: f32, count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| (seed + 1.9 * i as f32 + 0.011 * (i * i) as f32).sin())
            .collect()
    }

    fn sae(selection: Selection, normalization: Normalization) -> Sae {
        Sae::new(SaeParts {
            selection,
            encoder: numbers(0.2, M * D),
            encoder_bias: numbers(1.1, M),
            decoder: numbers(2.3, M * D),
            decoder_bias: numbers(0.4, D),
            input_bias: numbers(0.7, D),
            normalization,
            skip: None,
        })
        .unwrap()
    }

    /// The function is linear while no feature changes: differences over a small step are then exact but for rounding, which
    /// at sums of some tens over a step of 2e-3 allows 1e-2 at most, and the gradient is of the order of ten.
    #[test]
    fn what_is_pulled_back_is_the_derivative() {
        let gated = Selection::Gated {
            scales: numbers(3.0, M).iter().map(|x| x.exp()).collect(),
            biases: numbers(4.0, M).iter().map(|x| x + 4.0).collect(),
        };
        let thresholds = vec![0.4; M];
        for (selection, normalization) in [
            (Selection::TopK { k: 4 }, Normalization::None),
            (Selection::TopK { k: 4 }, Normalization::ConstantNorm),
            (Selection::Relu, Normalization::None),
            (Selection::Relu, Normalization::ConstantNorm),
            (Selection::Threshold { thresholds }, Normalization::None),
            (gated, Normalization::None),
        ] {
            let sae = sae(selection.clone(), normalization);
            let x = numbers(6.0, ROWS * D);
            let replaced: Vec<bool> = (0..ROWS).map(|row| row % 5 != 0).collect();
            let weights = numbers(8.0, ROWS * D);
            let spliced = SplicedRows::new(&sae, &x, replaced.clone()).unwrap();
            assert_eq!(&spliced.values()[..D], &x[..D]);
            assert_ne!(&spliced.values()[D..2 * D], &x[D..2 * D]);
            let pulled = spliced.pull(&weights);
            let mut compared = 0;
            for at in (0..x.len()).step_by(11) {
                let moved = |by: f32| {
                    let mut x = x.clone();
                    x[at] += by;
                    SplicedRows::new(&sae, &x, replaced.clone()).unwrap()
                };
                let (up, down) = (moved(1e-3), moved(-1e-3));
                // A feature that comes or goes makes a jump, which is not the derivative.
                if up.codes.features() != spliced.codes.features()
                    || down.codes.features() != spliced.codes.features()
                {
                    continue;
                }
                let changes = up.values().iter().zip(down.values()).zip(&weights);
                let change: f64 = changes
                    .map(|((a, b), w)| f64::from(a - b) * f64::from(*w))
                    .sum();
                let measured = change / 2e-3;
                let expected = f64::from(pulled[at]);
                assert!(
                    (measured - expected).abs() < 1e-2,
                    "{selection:?} {at}: {measured} {expected}"
                );
                compared += 1;
            }
            assert!(compared > 10, "{selection:?} {compared}");
            assert!(pulled.iter().any(|x| x.abs() > 0.5));
        }
    }

    #[test]
    fn what_has_no_derivative_here_is_refused() {
        let mut parts = sae(Selection::Relu, Normalization::None).into_parts();
        parts.skip = Some(vec![0.0; D * D]);
        let with_skip = Sae::new(parts).unwrap();
        let error = SplicedRows::new(&with_skip, &[0.0; D], vec![true]).unwrap_err();
        assert!(error.to_string().contains("skip matrix"));
        let centred = sae(Selection::Relu, Normalization::Layer);
        let error = SplicedRows::new(&centred, &[0.0; D], vec![true]).unwrap_err();
        assert!(error.to_string().contains("centres activations"));
        let plain = sae(Selection::Relu, Normalization::None);
        let error = SplicedRows::new(&plain, &[0.0; 3], vec![true]).unwrap_err();
        assert!(error.to_string().contains("3 numbers in 1 rows"));
    }
}
