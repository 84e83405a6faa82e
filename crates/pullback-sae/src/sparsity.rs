//! Dictionaries brought to the same number of active features.

use pullback_kernels::sparse::encode_each;

use crate::{Dictionary, Sae, SaeError, Selection};

/// Rows that thresholds are set on, at most, and their pre-activations.
const ROWS: usize = 1 << 16;
const ENTRIES: usize = 1 << 26;

impl Sae {
    /// The same dictionary with `k` active features a token, so that others can be compared with it. One that takes the
    /// largest takes `k` of them. The thresholds of one that has thresholds are all moved by one number, the one at which
    /// `k` features a token are active on average over the rows `x [n, d]` (less where several are equally near); none goes
    /// below zero.
    ///
    /// # Errors
    /// `k` is not between 1 and the number of features; there are no rows; features are chosen in another way; too few
    /// pre-activations are above zero.
    pub fn with_l0(self, k: usize, x: &[f32]) -> Result<Self, SaeError> {
        let (m, d) = (self.n_features(), self.d());
        if k == 0 || k > m {
            return Err(SaeError::Option(format!(
                "{k} active features a token are asked for, it must be between 1 and the {m} features"
            )));
        }
        let selection = match self.selection() {
            Selection::TopK { .. } => Selection::TopK { k },
            Selection::Threshold { thresholds } => {
                let rows = (x.len() / d).min(ROWS).min((ENTRIES / m).max(1));
                if rows == 0 {
                    return Err(SaeError::Option(
                        "thresholds are set on rows, and there are none".to_owned(),
                    ));
                }
                let shift = shift(self.margins(thresholds, &x[..rows * d]), k * rows)?;
                let thresholds = thresholds.iter().map(|t| (t + shift).max(0.0)).collect();
                Selection::Threshold { thresholds }
            }
            other => {
                return Err(SaeError::Option(format!(
                    "a dictionary of the kind {} cannot be brought to a number of active features",
                    other.name()
                )));
            }
        };
        Self::new(crate::SaeParts {
            selection,
            ..self.into_parts()
        })
    }

    /// How far above its threshold each pre-activation above zero is.
    fn margins(&self, thresholds: &[f32], x: &[f32]) -> Vec<f32> {
        let x = self.prepared(x);
        let codes = encode_each(&x, self.encoder(), self.encoder_bias(), |_, pre| pre);
        let entries = codes.features().iter().zip(codes.values());
        entries
            .map(|(&feature, pre)| pre - thresholds[feature as usize])
            .collect()
    }
}

/// The number that `count` of the margins are above.
fn shift(mut margins: Vec<f32>, count: usize) -> Result<f32, SaeError> {
    if margins.len() <= count {
        return Err(SaeError::Option(format!(
            "only {} pre-activations are above zero, {count} are to be active",
            margins.len()
        )));
    }
    let descending = |a: &f32, b: &f32| b.total_cmp(a);
    let (above, next, _) = margins.select_nth_unstable_by(count, descending);
    let least = above.iter().copied().fold(f32::INFINITY, f32::min);
    let middle = f32::midpoint(least, *next);
    // Between neighbouring numbers there is none: the lower one is not above itself.
    Ok(if middle < least { middle } else { *next })
}

#[cfg(test)]
mod tests {
    use crate::{Dictionary, Normalization, Sae, SaeParts, Selection};

    fn numbers(seed: f32, count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| (seed + 1.7 * i as f32 + 0.013 * (i * i) as f32).sin())
            .collect()
    }

    fn dictionary(selection: Selection) -> Sae {
        let (m, d) = (40, 8);
        Sae::new(SaeParts {
            selection,
            encoder: numbers(0.2, m * d),
            encoder_bias: numbers(1.1, m),
            decoder: numbers(2.3, m * d),
            decoder_bias: numbers(0.4, d),
            input_bias: numbers(0.4, d),
            normalization: Normalization::None,
            skip: None,
        })
        .unwrap()
    }

    #[test]
    fn dictionaries_have_the_number_of_active_features_that_is_asked_for() {
        let x = numbers(5.0, 500 * 8);
        let thresholds = numbers(0.9, 40).iter().map(|t| t.abs()).collect();
        for selection in [
            Selection::TopK { k: 3 },
            Selection::Threshold {
                thresholds: vec![0.3; 40],
            },
            Selection::Threshold { thresholds },
        ] {
            let before = dictionary(selection.clone());
            for k in [2, 5] {
                let after = before.clone().with_l0(k, &x).unwrap();
                assert_eq!(after.encode(&x).active(), k * 500, "{selection:?}");
                assert_eq!(after.decoder(), before.decoder());
            }
        }
    }

    #[test]
    fn what_cannot_be_asked_for_is_refused() {
        let x = numbers(5.0, 50 * 8);
        let thresholds = || {
            dictionary(Selection::Threshold {
                thresholds: vec![0.3; 40],
            })
        };
        for (sae, k, x, words) in [
            (thresholds(), 0, &x[..], "0 active features"),
            (thresholds(), 41, &x[..], "between 1 and the 40 features"),
            (thresholds(), 40, &x[..], "are to be active"),
            (thresholds(), 3, &[][..], "there are none"),
            (dictionary(Selection::Relu), 3, &x[..], "of the kind relu"),
        ] {
            let error = sae.with_l0(k, x).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
