//! From what was measured and predicted to an explanation: features are chosen and interpreted.

use burn::tensor::{Tensor, TensorData};
use pullback_activations::ActivationStore;
use pullback_artifact::Control;
use pullback_model::Model;
use pullback_sae::interpret::{Interpretation, interpret};
use pullback_sae::{Dictionary, Sae};

use super::decompose::{Decomposition, least_squares, matching_pursuit};
use super::effects::{Effect, Effects};
use super::measure::{CHUNK, Measured, Sums};
use super::predict::{self, Prediction};
use super::units::{self, Hidden};
use super::{ChangedFeature, ExplainConfig, Explanation, Words};
use crate::residual::values;
use crate::{AdapterError, Pullback, ResidualAdapter};

/// What was measured and predicted, before features are chosen and interpreted.
pub(super) struct Seen<'a> {
    measured: Measured,
    prediction: Prediction,
    predicted: Option<Vec<f32>>,
    residual: Option<SeenResidual<'a>>,
}

/// What is known of a residual adapter at the dictionary's own site beside that.
struct SeenResidual<'a> {
    adapter: &'a ResidualAdapter,
    pullback: Pullback,
    hidden: Hidden,
    writes: Vec<f32>,
}

impl<'a> Seen<'a> {
    pub(super) fn plain(
        measured: Measured,
        prediction: Prediction,
        predicted: Option<Vec<f32>>,
    ) -> Self {
        Self {
            measured,
            prediction,
            predicted,
            residual: None,
        }
    }

    /// A residual adapter on activations `[n, d]` of its site.
    pub(super) fn residual(
        activations: &[f32],
        adapter: &'a ResidualAdapter,
        sae: &Sae,
        control: &Control,
    ) -> Result<Self, AdapterError> {
        let d = adapter.d();
        if activations.is_empty() || !activations.len().is_multiple_of(d) || sae.d() != d {
            return Err(AdapterError::Option(format!(
                "{} numbers are not activations of width {d} for a dictionary of width {}",
                activations.len(),
                sae.d()
            )));
        }
        let mut sums = Sums::new(sae);
        let device = adapter.w_in.device();
        let stage = control.stage("measure change", (activations.len() / d) as u64, "tokens");
        for x in activations.chunks(CHUNK * d) {
            control.check()?;
            let data = TensorData::new(x.to_vec(), [x.len() / d, d]);
            let tensor = Tensor::<2>::from_data(data, &device);
            let change = adapter.change(tensor.clone());
            sums.add(x, &values(&(tensor + change.clone())), &values(&change));
            stage.advance((x.len() / d) as u64);
        }
        stage.finish();
        Self::of_residual(adapter, sae, activations, sums.finish()?, control)
    }

    /// The same, where features have been measured.
    pub(super) fn of_residual(
        adapter: &'a ResidualAdapter,
        sae: &Sae,
        x: &[f32],
        measured: Measured,
        control: &Control,
    ) -> Result<Self, AdapterError> {
        let pullback = Pullback::new(adapter, sae)?;
        let hidden = Hidden::of(adapter, x, control)?;
        let writes = pullback.pre_activation_change(&hidden.mean);
        let predicted = writes.iter().zip(&measured.density).enumerate();
        let predicted = predicted
            .map(|(feature, (w, p))| w * p * predict::gain(sae, feature))
            .collect();
        Ok(Self {
            measured,
            prediction: Prediction::Weights,
            predicted: Some(predicted),
            residual: Some(SeenResidual {
                adapter,
                pullback,
                hidden,
                writes,
            }),
        })
    }

    pub(super) fn agreement(&self) -> Option<f64> {
        self.measured.agreement(self.predicted.as_deref()?)
    }

    /// Chooses the features that changed most and interprets them; `effects` measures losses.
    pub(super) fn explanation(
        self,
        (sae, store, model): (&Sae, &ActivationStore, &Model),
        positions: usize,
        (config, words): (&ExplainConfig, Option<Words<'_>>),
        control: &Control,
        effects: impl FnOnce(&[usize]) -> Result<Option<(Effects, Vec<Effect>)>, AdapterError>,
    ) -> Result<Explanation, AdapterError> {
        let measured = &self.measured;
        let mut chosen = measured.ranked();
        chosen.truncate(config.top);
        let (effects, of_features) = effects(&chosen)?.unzip();
        let pages = config.pages.make(sae, store, model, &chosen, control)?;
        let said: Vec<Option<Interpretation>> = match words {
            Some(Words { explainer, config }) => {
                let parts = (store, model);
                let said = interpret(sae, parts, &chosen, explainer, &config, control)?;
                said.into_iter().map(Some).collect()
            }
            None => vec![None; chosen.len()],
        };
        let pages = pages.into_iter().zip(said).enumerate();
        let features = pages.map(|(place, (page, words))| {
            let feature = page.feature;
            let effect = of_features.as_ref().map(|all: &Vec<Effect>| all[place]);
            let residual = self.residual.as_ref();
            ChangedFeature {
                feature,
                predicted: self.predicted.as_ref().map(|all| all[feature]),
                measured: measured.change[feature],
                effect_alone: effect.map(|effect| effect.alone),
                effect_removed: effect.map(|effect| effect.removed),
                density: page.density,
                reads: residual.map(|it| it.pullback.read_length(feature, |_| 1.0) as f32),
                reads_averaged: residual.map(|it| {
                    let slope = &it.hidden.slope;
                    it.pullback.read_length(feature, |unit| slope[unit]) as f32
                }),
                writes: residual.map(|it| it.writes[feature]),
                promoted: page.promoted,
                suppressed: page.suppressed,
                examples: page.examples,
                words,
            }
        });
        let features: Vec<ChangedFeature> = features.collect();
        let all: Vec<usize> = (0..sae.n_features()).collect();
        Ok(Explanation {
            features,
            prediction: self.prediction,
            agreement_spearman: self.agreement(),
            residual_fraction: measured.outside(sae, &chosen),
            residual_fraction_dictionary: measured.outside(sae, &all),
            residual_fraction_codes: measured.unseen_share(),
            positions,
            effects,
            decomposition: decomposition(sae, measured, config),
            units: self.residual.as_ref().map_or_else(Vec::new, |it| {
                let seen = (measured, &it.hidden);
                units::units(it.adapter, sae, &it.pullback, seen, config.terms)
            }),
            jacobian: self
                .residual
                .as_ref()
                .map(|it| units::jacobian(&it.pullback, &it.hidden, &chosen)),
            measured: self.measured.change,
            predicted: self.predicted,
            live: self.measured.live,
        })
    }
}

/// The mean change of the stream as sums of decoder rows.
fn decomposition(sae: &Sae, measured: &Measured, config: &ExplainConfig) -> Decomposition {
    let mean = &measured.delta_mean;
    let factors = least_squares(sae, mean);
    let mut order: Vec<usize> = (0..factors.len()).collect();
    order.sort_by(|&a, &b| {
        let size = |feature: usize| factors[feature].abs();
        size(b).total_cmp(&size(a)).then(a.cmp(&b))
    });
    order.truncate(config.top);
    let turned: Vec<f64> = mean.iter().map(|x| -x).collect();
    Decomposition {
        least_squares: order.into_iter().map(|i| (i, factors[i])).collect(),
        agreement_least_squares: measured.agreement(&factors),
        added: matching_pursuit(sae.decoder(), mean, config.terms),
        removed: matching_pursuit(sae.decoder(), &turned, config.terms),
    }
}
