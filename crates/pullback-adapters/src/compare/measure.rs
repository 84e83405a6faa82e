//! What an adapter does on samples that no training saw: to the loss, and to the features of a dictionary.

use pullback_artifact::Control;
use pullback_kernels::sparse::SparseCodes;
use pullback_model::{Input, Model, RunOptions, Site};
use pullback_sae::{Dictionary, Sae};

use crate::feature::codes_of;
use crate::residual::{FIRST_POSITION, values};
use crate::train::{Sequence, prepare, targets};
use crate::{Adapter, AdapterError, Objective, Sample};

/// Share of the change that few features are to carry.
const SHARE: f64 = 0.9;

/// The samples, and what the model does on them without an adapter.
pub(super) struct Judge<'a> {
    model: &'a Model,
    sae: &'a Sae,
    site: Site,
    texts: Vec<Text>,
    loss: f64,
}

struct Text {
    sequence: Sequence,
    stream: Vec<f32>,
    codes: SparseCodes<f32>,
}

/// What was seen with an adapter.
pub(super) struct Change {
    /// Mean cross-entropy of the counted tokens.
    pub(super) loss: f64,
    /// The fewest features that carry most of the mean changes, those that changed most first.
    pub(super) features: Vec<u32>,
    /// How many carry most of the mean absolute changes.
    pub(super) features_absolute: usize,
    /// How much of the change of the stream the change of its reconstruction makes up.
    pub(super) explained: f64,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        model: &'a Model,
        sae: &'a Sae,
        site: Site,
        samples: &[Sample],
        context: usize,
        control: &Control,
    ) -> Result<Self, AdapterError> {
        let mut judge = Self {
            model,
            sae,
            site,
            texts: Vec::new(),
            loss: 0.0,
        };
        let (mut sum, mut count) = (0.0, 0);
        for sample in samples {
            for prepared in prepare(model, sample, Objective::NextToken, context)? {
                for sequence in prepared.sequences {
                    control.check()?;
                    let (loss, stream) = judge.run(&sequence, None)?;
                    sum += loss;
                    count += sequence.counted.len();
                    judge.texts.push(Text {
                        codes: codes_of(sae, &stream, 0),
                        sequence,
                        stream,
                    });
                }
            }
        }
        judge.loss = sum / f64::from(u32::try_from(count).unwrap_or(u32::MAX).max(1));
        Ok(judge)
    }

    /// The loss without an adapter.
    pub(super) fn loss(&self) -> f64 {
        self.loss
    }

    /// Sum of the cross-entropies of the counted tokens, and the stream `[time, d]` at the site.
    fn run(
        &self,
        sequence: &Sequence,
        adapter: Option<&Adapter>,
    ) -> Result<(f64, Vec<f32>), AdapterError> {
        let model = self.model;
        let (mut interventions, mut updates) = (Vec::new(), Vec::new());
        match adapter {
            Some(Adapter::Lora(lora)) => updates = lora.updates(1.0, model.device(), model.dtype()),
            Some(other) => interventions.extend(other.clone().into_intervention()),
            None => {}
        }
        let sites = [self.site];
        let options = RunOptions {
            interventions: &interventions,
            updates: &updates,
            record: &sites,
            ..RunOptions::default()
        };
        let mut out = model.run(Input::tokens(&sequence.ids), &options)?;
        let stream = values(&out.take(self.site)?);
        let last = sequence.rows_of(out.stream);
        let losses = model.cross_entropy(last, &targets(sequence))?;
        let losses: Vec<f64> = losses.to_data().iter::<f64>().collect();
        Ok((losses.iter().sum(), stream))
    }

    /// Runs all samples with an adapter.
    pub(super) fn measure(
        &self,
        adapter: &Adapter,
        control: &Control,
    ) -> Result<Change, AdapterError> {
        let (d, m) = (self.sae.d(), self.sae.n_features());
        let (mut loss, mut count, mut rows) = (0.0, 0_usize, 0_usize);
        let (mut mean, mut absolute) = (vec![0.0; m], vec![0.0; m]);
        let mut one = vec![0.0_f64; m];
        let (mut left, mut all) = (0.0, 0.0);
        let stage = control.stage("measure change", self.texts.len() as u64, "texts");
        for text in &self.texts {
            control.check()?;
            let (sum, stream) = self.run(&text.sequence, Some(adapter))?;
            loss += sum;
            count += text.sequence.counted.len();
            let codes = codes_of(self.sae, &stream, 0);
            for token in FIRST_POSITION..codes.tokens() {
                rows += 1;
                let (before, after) = (text.codes.token(token), codes.token(token));
                for (codes, sign) in [(before, -1.0), (after, 1.0)] {
                    for (&feature, &z) in codes.0.iter().zip(codes.1) {
                        one[feature as usize] += sign * f64::from(z);
                    }
                }
                let span = token * d..(token + 1) * d;
                let mut change: Vec<f64> = stream[span.clone()]
                    .iter()
                    .zip(&text.stream[span])
                    .map(|(after, before)| f64::from(*after) - f64::from(*before))
                    .collect();
                all += change.iter().map(|x| x * x).sum::<f64>();
                for &feature in before.0.iter().chain(after.0) {
                    // A feature active before and after is met twice, and then has nothing left.
                    let by = std::mem::take(&mut one[feature as usize]);
                    if by != 0.0 {
                        mean[feature as usize] += by;
                        absolute[feature as usize] += by.abs();
                        let row = self.sae.direction(feature as usize);
                        for (x, &w) in change.iter_mut().zip(row) {
                            *x -= by * f64::from(w);
                        }
                    }
                }
                left += change.iter().map(|x| x * x).sum::<f64>();
            }
            stage.advance(1);
        }
        stage.finish();
        debug_assert!(rows > 0);
        Ok(Change {
            loss: loss / count.max(1) as f64,
            features: fewest(&mean),
            features_absolute: fewest(&absolute).len(),
            explained: if all > 0.0 { 1.0 - left / all } else { 0.0 },
        })
    }
}

/// The fewest entries that make up most of the sum of absolute values, the largest first.
fn fewest(changes: &[f64]) -> Vec<u32> {
    let total: f64 = changes.iter().map(|x| x.abs()).sum();
    let mut order: Vec<u32> = (0..changes.len() as u32)
        .filter(|&i| changes[i as usize] != 0.0)
        .collect();
    order.sort_by(|&a, &b| {
        let size = |i: u32| changes[i as usize].abs();
        size(b).total_cmp(&size(a)).then(a.cmp(&b))
    });
    let mut sum = 0.0;
    let mut count = 0;
    for &i in &order {
        if sum >= SHARE * total {
            break;
        }
        sum += changes[i as usize].abs();
        count += 1;
    }
    order.truncate(count);
    order
}

/// Intersection over union; one where both are empty.
pub(super) fn overlap(a: &[u32], b: &[u32]) -> f64 {
    let both = a.iter().filter(|feature| b.contains(feature)).count();
    let union = a.len() + b.len() - both;
    if union == 0 {
        1.0
    } else {
        both as f64 / union as f64
    }
}

#[cfg(test)]
mod tests {
    use super::{fewest, overlap};

    #[test]
    fn the_fewest_features_are_the_largest_up_to_nine_tenths() {
        assert_eq!(fewest(&[0.0, -6.0, 1.0, 3.0]), [1, 3]);
        assert_eq!(fewest(&[1.0; 10]).len(), 9);
        assert_eq!(fewest(&[5.0, 0.0]), [0]);
        assert!(fewest(&[0.0; 3]).is_empty());
    }

    #[test]
    fn overlap_is_intersection_over_union() {
        assert!((overlap(&[1, 2, 3], &[3, 4]) - 0.25).abs() < 1e-12);
        assert!((overlap(&[], &[]) - 1.0).abs() < 1e-12);
        assert!(overlap(&[1], &[]).abs() < 1e-12);
    }
}
