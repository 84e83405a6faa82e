//! Changes of every kind, and two checkpoints: planted ones are found, and losses are those of running the model by hand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use common::base::{assert_close, assert_has, interrupted_at, tiny, values, words};
use common::{Parts, random};
use pullback_adapters::{
    Activation, Adapter, AdapterError, Change, ExplainConfig, ExplainInput, Explanation,
    FeatureAdapter, HeldOutText, LoraAdapter, LoraPart, Prediction, ResidualAdapter, Support,
    TextSequence, explain_change,
};
use pullback_artifact::Control;
use pullback_model::{Edit, Input, Intervention, Model, Rows, RunOptions, Site, WeightName};
use pullback_sae::{Dictionary, FeaturePages, Sae};

const D: usize = 32;
const M: usize = 48;
/// The feature that is steered, and the size of the step.
const PLANTED: usize = 17;
const STEP: f32 = 2.0;

fn site() -> Site {
    Site::resid_post(1)
}

/// Rows of unit length that encode as they decode.
fn tied(seed: u64, k: usize) -> Sae {
    let mut rows = random(seed, M * D);
    for row in rows.chunks_exact_mut(D) {
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        for x in row {
            *x /= length;
        }
    }
    Sae::top_k(k, rows.clone(), vec![0.0; M], rows, vec![0.0; D]).unwrap()
}

fn text(model: &Model) -> HeldOutText {
    let sequences = (0..6).map(|seed| {
        let ids = model.tokenizer().encode(&words(seed, 30), false).unwrap();
        TextSequence::plain(ids[..20 + seed as usize].to_vec())
    });
    HeldOutText::new("words", sequences.collect()).unwrap()
}

fn config() -> ExplainConfig {
    ExplainConfig {
        top: 5,
        effect_tokens: 10_000,
        terms: 4,
        pages: FeaturePages {
            examples: 2,
            context: 3,
            tokens: 3,
        },
    }
}

fn input<'a>(
    model: &'a Model,
    change: Change<'a>,
    sae: &'a Sae,
    text: &'a HeldOutText,
) -> ExplainInput<'a> {
    ExplainInput {
        model,
        model_name: "tiny",
        change,
        sae,
        site: site(),
        text,
        store: None,
    }
}

fn explained(model: &Model, change: Change<'_>, sae: &Sae) -> Explanation {
    let text = text(model);
    explain_change(
        &input(model, change, sae, &text),
        &config(),
        &Control::hidden(),
    )
    .unwrap()
}

/// Activations at a site on all tokens of the text, `[rows, d]`.
fn recorded(model: &Model, text: &HeldOutText, site: Site, edits: &[Intervention]) -> Vec<f32> {
    let mut all = Vec::new();
    for sequence in text.sequences() {
        let input = Input::tokens(&sequence.ids);
        let mut found = model.record(input, &[site], edits).unwrap();
        all.extend(values(found.remove(&site).unwrap()));
    }
    all
}

/// The feature with the largest mean activation.
fn strongest(model: &Model, sae: &Sae) -> u32 {
    let codes = sae.encode(&recorded(model, &text(model), site(), &[]));
    let mut sums = [0.0; M];
    for (&feature, &value) in codes.features().iter().zip(codes.values()) {
        sums[feature as usize] += value;
    }
    let largest = (0..M).max_by(|&a, &b| sums[a].total_cmp(&sums[b]));
    largest.unwrap() as u32
}

fn over_features(sae: &Sae, support: Support, values: Vec<Vec<f32>>) -> Adapter {
    let adapter = FeatureAdapter::new(site(), Arc::new(sae.clone()), support, values);
    Adapter::Feature(adapter.unwrap())
}

/// Adapters of each kind that steer the planted feature and nothing else.
fn steering(model: &Model, sae: &Sae) -> Vec<Adapter> {
    let (from, to) = (strongest(model, sae), PLANTED as u32);
    assert_ne!(from, to);
    let constant = |activation| {
        let mut parts = Parts::random(1, D, 1);
        parts.w_in.fill(0.0);
        // Every activation function makes a one of it, or nearly.
        parts.b_in = vec![1.0];
        let row = sae.direction(PLANTED).iter();
        parts.w_out = row.map(|&x| f64::from(STEP * x)).collect();
        Adapter::Residual(parts.adapter(activation, &Device::flex(), DType::F32))
    };
    let bias = |active_only| Support::Bias {
        features: vec![to],
        active_only,
    };
    vec![
        constant(Activation::Identity),
        constant(Activation::Gelu),
        over_features(sae, bias(false), vec![vec![STEP]]),
        over_features(
            sae,
            Support::Sparse {
                pairs: vec![(from, to)],
            },
            vec![vec![3.0]],
        ),
        over_features(
            sae,
            Support::LowRank {
                rank: 1,
                read: vec![(from, 0)],
                write: vec![(to, 0)],
            },
            vec![vec![2.0], vec![1.5]],
        ),
        Adapter::Lora(writing(model, sae)),
    ]
}

/// An update of the last matrix of the MLP before the site that writes the planted feature alone.
fn writing(model: &Model, sae: &Sae) -> LoraAdapter {
    let post: Site = "blocks.1.mlp.hook_post".parse().unwrap();
    let hidden = recorded(model, &text(model), post, &[]);
    let width = model.config().d_mlp;
    let mut mean = vec![0.0; width];
    for row in hidden.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
    let first: Vec<f32> = mean.iter().map(|x| 40.0 * x / length).collect();
    LoraAdapter {
        parts: vec![LoraPart {
            weight: WeightName::Down(1),
            rank: 1,
            down: first,
            up: sae.direction(PLANTED).to_vec(),
            scale: 1.0,
        }],
    }
}

#[test]
fn one_steered_feature_is_found_first_in_every_basis() {
    let model = tiny();
    let sae = tied(3, 12);
    for adapter in steering(&model, &sae) {
        let basis = adapter.basis();
        let found = explained(&model, Change::Adapter(&adapter), &sae);
        assert_eq!(found.features[0].feature, PLANTED, "{basis}");
        let first = &found.features[0];
        assert!(first.measured > 0.1, "{basis}: {}", first.measured);
        // All of what is written lies along this one direction.
        let one = ExplainConfig { top: 1, ..config() };
        let text = text(&model);
        let input = input(&model, Change::Adapter(&adapter), &sae, &text);
        let alone = explain_change(&input, &one, &Control::hidden()).unwrap();
        assert!(alone.residual_fraction.unwrap() < 1e-6, "{basis}");
        assert!(found.residual_fraction_dictionary.unwrap() < 1e-6);
        let added = &found.decomposition.added;
        assert_eq!(added.terms[0].0, PLANTED, "{basis}");
        assert!(added.left < 1e-6, "{basis}: {}", added.left);
        assert!(found.predicted.unwrap()[PLANTED] > 0.0, "{basis}");
        assert!(first.effect_alone.is_some() && first.effect_removed.is_some());
    }
}

#[test]
fn a_fine_tuned_checkpoint_is_read_as_the_update_that_made_it() {
    let (model, sae) = (tiny(), tied(3, 12));
    let lora = writing(&model, &sae);
    let mut tuned = tiny();
    let updates = lora.updates(1.0, tuned.device(), tuned.dtype());
    tuned.merge(&updates).unwrap();
    let found = explained(&model, Change::Checkpoint(&tuned), &sae);
    assert_eq!(found.features[0].feature, PLANTED);
    assert_eq!(found.prediction, Prediction::None);
    assert!(found.predicted.is_none() && found.agreement_spearman.is_none());
    assert!(
        found
            .features
            .iter()
            .all(|feature| feature.predicted.is_none())
    );
    let adapter = Adapter::Lora(lora);
    let other = explained(&model, Change::Adapter(&adapter), &sae);
    assert_eq!(other.prediction, Prediction::FirstOrder);
    assert_close(&found.measured, &other.measured, 1e-3);
    let (a, b) = (found.effects.unwrap(), other.effects.unwrap());
    assert!((a.loss_after - b.loss_after).abs() < 1e-4, "{a:?} {b:?}");
    // And nothing changed is nothing found.
    let same = explained(&model, Change::Checkpoint(&tiny()), &sae);
    assert!(same.measured.iter().all(|&x| x == 0.0));
    assert_eq!(
        (same.residual_fraction, same.residual_fraction_codes),
        (None, None)
    );
    let effects = same.effects.unwrap();
    assert_eq!(effects.loss_before.to_bits(), effects.loss_after.to_bits());
    assert_eq!(
        (effects.together_alone, effects.together_removed),
        (0.0, 0.0)
    );
}

/// Adds given numbers to an activation.
struct Shift(Vec<f32>);

impl Edit for Shift {
    fn apply(&self, x: Tensor<2>, _rows: &Rows) -> Tensor<2> {
        let data = TensorData::new(self.0.clone(), x.dims());
        let shift = Tensor::from_data(data, &x.device());
        x + shift
    }

    fn describe(&self) -> String {
        "a shift".to_owned()
    }
}

/// The mean loss of the text, by hand: whole runs from tokens, logits, logarithms in f64. `shift [rows, d]` of all tokens is
/// added at the site.
fn loss_by_hand(
    model: &Model,
    text: &HeldOutText,
    edits: &[Intervention],
    (site, shift): (Site, &[f32]),
) -> f64 {
    let d = shift.len() / text.tokens();
    let (mut sum, mut count, mut start) = (0.0, 0, 0);
    for sequence in text.sequences() {
        let rows = sequence.ids.len();
        let own = Shift(shift[start * d..(start + rows) * d].to_vec());
        let mut all = edits.to_vec();
        all.push(Intervention::new(site, Arc::new(own)));
        let options = RunOptions {
            interventions: &all,
            ..RunOptions::default()
        };
        let out = model.run(Input::tokens(&sequence.ids), &options).unwrap();
        let logits = values(model.logits(out.stream));
        let width = logits.len() / rows;
        for at in 1..rows - 1 {
            let row = &logits[at * width..(at + 1) * width];
            let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            sum += total.ln() - f64::from(row[sequence.ids[at + 1] as usize]);
            count += 1;
        }
        start += rows;
    }
    sum / f64::from(count)
}

/// The difference of one feature's codes times its direction, at all rows but the first of each sequence.
fn shift_of(sae: &Sae, text: &HeldOutText, x: [&[f32]; 2], feature: usize, sign: f32) -> Vec<f32> {
    let codes = x.map(|x| sae.encode(x));
    let mut shift = Vec::new();
    let mut row = 0;
    for sequence in text.sequences() {
        for at in 0..sequence.ids.len() {
            let value = |side: usize| codes[side].value(row, feature as u32);
            let change = if at == 0 { 0.0 } else { value(1) - value(0) };
            shift.extend(sae.direction(feature).iter().map(|x| sign * change * x));
            row += 1;
        }
    }
    shift
}

#[test]
fn effects_are_those_of_running_the_model_by_hand() {
    let (model, sae) = (tiny(), tied(3, 12));
    let text = text(&model);
    let parts = Parts::random(4, D, 3);
    let at_site = parts.adapter(Activation::Gelu, &Device::flex(), DType::F32);
    let below = ResidualAdapter {
        site: Site::resid_post(0),
        ..at_site.clone()
    };
    let mlp: Site = "blocks.1.hook_mlp_out".parse().unwrap();
    let mut tuned = tiny();
    let lora = writing(&model, &sae);
    let updates = lora.updates(1.0, tuned.device(), tuned.dtype());
    tuned.merge(&updates).unwrap();
    let adapted = |adapter: &ResidualAdapter| {
        let edit: Arc<dyn Edit> = Arc::new(adapter.clone());
        vec![Intervention::new(adapter.site, edit)]
    };
    // The change, the site, and the changed model.
    let (first, second) = (
        Adapter::Residual(at_site.clone()),
        Adapter::Residual(below.clone()),
    );
    let third = Adapter::Lora(lora);
    let cases = [
        (Change::Adapter(&first), site(), &model, adapted(&at_site)),
        (Change::Adapter(&second), site(), &model, adapted(&below)),
        (Change::Adapter(&second), mlp, &model, adapted(&below)),
        (Change::Adapter(&third), mlp, &tuned, Vec::new()),
        (Change::Checkpoint(&tuned), site(), &tuned, Vec::new()),
    ];
    for (number, (change, site, changed, edits)) in cases.into_iter().enumerate() {
        let input = ExplainInput {
            site,
            ..input(&model, change, &sae, &text)
        };
        let found = explain_change(&input, &config(), &Control::hidden()).unwrap();
        let x = recorded(&model, &text, site, &[]);
        let y = recorded(changed, &text, site, &edits);
        let none = vec![0.0; x.len()];
        let before = loss_by_hand(&model, &text, &[], (site, &none));
        let after = loss_by_hand(changed, &text, &edits, (site, &none));
        let effects = found.effects.unwrap();
        assert_eq!(effects.positions, text.counted());
        assert!((effects.loss_before - before).abs() < 2e-5, "case {number}");
        assert!((effects.loss_after - after).abs() < 2e-5, "case {number}");
        let mut largest = 0.0_f64;
        for feature in &found.features {
            let shift = |sign| shift_of(&sae, &text, [&x, &y], feature.feature, sign);
            let alone = loss_by_hand(&model, &text, &[], (site, &shift(1.0))) - before;
            let removed = loss_by_hand(changed, &text, &edits, (site, &shift(-1.0))) - after;
            for (effect, by_hand) in [
                (feature.effect_alone.unwrap(), alone),
                (feature.effect_removed.unwrap(), removed),
            ] {
                assert!(
                    (effect - by_hand).abs() < 2e-5,
                    "case {number}: {effect} {by_hand}"
                );
                largest = largest.max(effect.abs());
            }
        }
        assert!(
            largest > 1e-3,
            "case {number}: nothing has an effect: {largest}"
        );
        // Together: the sums of all listed shifts, and of all there are.
        let listed = found.features.iter().map(|feature| feature.feature);
        let (listed, all): (Vec<usize>, Vec<usize>) = (listed.collect(), (0..M).collect());
        for (features, alone, removed) in [
            (listed, effects.together_alone, effects.together_removed),
            (all, effects.codes_alone, effects.codes_removed),
        ] {
            let sum = |sign: f32| {
                let mut sum = none.clone();
                for &feature in &features {
                    let own = shift_of(&sae, &text, [&x, &y], feature, sign);
                    sum.iter_mut().zip(own).for_each(|(sum, x)| *sum += x);
                }
                sum
            };
            let by_hand = loss_by_hand(&model, &text, &[], (site, &sum(1.0))) - before;
            assert!((alone - by_hand).abs() < 2e-5, "case {number}");
            let by_hand = loss_by_hand(changed, &text, &edits, (site, &sum(-1.0))) - after;
            assert!((removed - by_hand).abs() < 2e-5, "case {number}");
        }
    }
}

#[test]
fn first_order_predictions_are_those_of_the_exact_derivative() {
    let (model, sae) = (tiny(), tied(3, 12));
    let text = text(&model);
    let mut parts = Parts::random(4, D, 3);
    for x in &mut parts.w_out {
        *x *= 0.4;
    }
    let mut adapter = parts.adapter(Activation::Silu, &Device::flex(), DType::F32);
    adapter.site = Site::resid_post(0);
    let mut mean = vec![0.0_f64; D];
    let mut density = [0.0; M];
    let mut rows = 0.0;
    for sequence in text.sequences() {
        let input = Input::tokens(&sequence.ids);
        let mut found = model
            .record(input.clone(), &[adapter.site, site()], &[])
            .unwrap();
        let x = found.remove(&adapter.site).unwrap();
        let edited = adapter.apply(x.clone(), &Rows::new(&[sequence.ids.len()]));
        let direction = edited - x;
        let mut forward = model
            .jvp(input, adapter.site, direction, &[site()], &[])
            .unwrap();
        let tangent = values(forward.take(site()).unwrap());
        let codes = sae.encode(&values(found.remove(&site()).unwrap()));
        for &at in &sequence.counted {
            let row = tangent[at * D..(at + 1) * D].iter();
            mean.iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum += f64::from(*x));
            for &feature in codes.token(at).0 {
                density[feature as usize] += 1.0;
            }
            rows += 1.0;
        }
    }
    let expected: Vec<f32> = (0..M)
        .map(|feature| {
            let row = sae.encoder()[feature * D..(feature + 1) * D].iter();
            let dot: f64 = row.zip(&mean).map(|(&w, x)| f64::from(w) * x).sum();
            (density[feature] / rows * dot / rows) as f32
        })
        .collect();
    let found = explained(&model, Change::Adapter(&Adapter::Residual(adapter)), &sae);
    assert_eq!(found.prediction, Prediction::FirstOrder);
    let predicted = found.predicted.unwrap();
    let size = expected.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
    assert!(size > 0.02, "{size}");
    for (a, b) in predicted.iter().zip(&expected) {
        assert!((a - b).abs() < 5e-3 * size, "{a} {b}");
    }
    assert!(found.agreement_spearman.unwrap() > 0.5);
}

#[test]
fn maps_over_features_predict_their_own_mean_change() {
    let (model, sae) = (tiny(), tied(3, 12));
    let x = recorded(&model, &text(&model), site(), &[]);
    let mut rows = Vec::new();
    let mut start = 0;
    for sequence in text(&model).sequences() {
        rows.extend(sequence.counted.iter().map(|at| start + at));
        start += sequence.ids.len();
    }
    let codes = sae.encode(&x);
    let n = rows.len() as f32;
    let mean = |feature: u32| rows.iter().map(|&r| codes.value(r, feature)).sum::<f32>() / n;
    let active = |feature: u32| {
        rows.iter()
            .filter(|&&r| codes.value(r, feature) > 0.0)
            .count() as f32
            / n
    };
    let pairs = vec![(2, 9), (5, 9), (5, 11)];
    let cases = [
        (
            Support::Bias {
                features: vec![4, 9],
                active_only: true,
            },
            vec![vec![0.5, -1.5]],
            vec![(4, 0.5 * active(4)), (9, -1.5 * active(9))],
        ),
        (
            Support::Sparse {
                pairs: pairs.clone(),
            },
            vec![vec![0.3, -0.2, 0.7]],
            vec![(9, 0.3 * mean(2) - 0.2 * mean(5)), (11, 0.7 * mean(5))],
        ),
        (
            Support::LowRank {
                rank: 2,
                read: vec![(2, 0), (5, 0), (5, 1)],
                write: vec![(9, 0), (11, 1)],
            },
            vec![vec![0.3, -0.2, 0.7], vec![2.0, 3.0]],
            vec![
                (9, 2.0 * (0.3 * mean(2) - 0.2 * mean(5))),
                (11, 3.0 * 0.7 * mean(5)),
            ],
        ),
    ];
    for (support, values, expected) in cases {
        let adapter = over_features(&sae, support, values);
        let found = explained(&model, Change::Adapter(&adapter), &sae);
        assert_eq!(found.prediction, Prediction::Map);
        let mut all = vec![0.0; M];
        for (feature, x) in expected {
            all[feature as usize] = x;
        }
        assert_close(&found.predicted.unwrap(), &all, 1e-5);
        // Through another dictionary the map means nothing.
        let other = explained(&model, Change::Adapter(&adapter), &tied(8, 12));
        assert_eq!(other.prediction, Prediction::FirstOrder);
    }
}

#[test]
fn the_jacobian_is_that_of_finite_differences() {
    let (model, sae) = (tiny(), tied(3, 12));
    let x = recorded(&model, &text(&model), site(), &[]);
    let rows: Vec<&[f32]> = {
        let mut rows = Vec::new();
        let mut start = 0;
        for sequence in text(&model).sequences() {
            let own = sequence.counted.iter().map(|at| start + at);
            rows.extend(own.map(|row| &x[row * D..(row + 1) * D]));
            start += sequence.ids.len();
        }
        rows
    };
    let (adapter, parts) = common::usual(4, D, 5);
    let found = explained(&model, Change::Adapter(&Adapter::Residual(adapter)), &sae);
    let jacobian = found.jacobian.unwrap();
    assert_eq!(jacobian.features.len(), 5);
    let encoded = |change: &[f64], feature: usize| -> f64 {
        let row = sae.encoder()[feature * D..(feature + 1) * D].iter();
        row.zip(change).map(|(&w, x)| f64::from(w) * x).sum()
    };
    // What the adapter writes when the activation is moved along a direction, in f64 throughout.
    let written = |x: &[f32], direction: &[f32], step: f64| {
        let pre: Vec<f64> = (0..5)
            .map(|unit| {
                let row = &parts.w_in[unit * D..(unit + 1) * D];
                let at = x.iter().zip(direction);
                let at = at.map(|(&x, &d)| f64::from(x) + step * f64::from(d));
                parts.b_in[unit] + row.iter().zip(at).map(|(w, x)| w * x).sum::<f64>()
            })
            .collect();
        let hidden: Vec<f64> = pre
            .iter()
            .map(|&u| common::act(Activation::Gelu, u))
            .collect();
        parts.written(&hidden)
    };
    let mut differs = 0.0_f32;
    for (i, &from) in jacobian.features.iter().enumerate() {
        let mut mean = vec![0.0; D];
        for row in &rows {
            let ends = [1e-5, -1e-5].map(|step| written(row, sae.direction(from), step));
            for (sum, (up, down)) in mean.iter_mut().zip(ends[0].iter().zip(&ends[1])) {
                *sum += (up - down) / 2e-5 / rows.len() as f64;
            }
        }
        for (j, &to) in jacobian.features.iter().enumerate() {
            let expected = encoded(&mean, to);
            let (weights, averaged) = (jacobian.weights[i][j], jacobian.averaged[i][j]);
            assert!(
                (f64::from(averaged) - expected).abs() < 1e-4,
                "{averaged} {expected}"
            );
            differs = differs.max((weights - averaged).abs());
        }
    }
    assert!(differs > 0.05, "the mean slopes are all one: {differs}");
    let units = found.units;
    assert!(units.iter().all(|unit| unit.mean_slope.is_finite()));
    assert!(units.iter().all(|unit| unit.matching.left <= 1.0));
}

#[test]
fn what_does_not_go_together_is_one_clear_error() {
    let (model, sae) = (tiny(), tied(3, 12));
    let text = text(&model);
    let (adapter, _) = common::usual(4, D, 2);
    let refused = |input: &ExplainInput<'_>, words: &[&str]| {
        let error = explain_change(input, &config(), &Control::hidden()).unwrap_err();
        assert_has(&error.to_string(), words);
    };
    let own = Adapter::Residual(adapter.clone());
    let usual = input(&model, Change::Adapter(&own), &sae, &text);
    // Above the dictionary's site nothing can be seen.
    let below = ExplainInput {
        site: Site::resid_post(0),
        ..usual
    };
    refused(
        &below,
        &[
            "blocks.1.hook_resid_post",
            "above",
            "blocks.0.hook_resid_post",
        ],
    );
    let lora = Adapter::Lora(writing(&model, &sae));
    let below = ExplainInput {
        change: Change::Adapter(&lora),
        ..below
    };
    refused(&below, &["block 1", "above", "blocks.0.hook_resid_post"]);
    let narrow = ExplainInput {
        site: "blocks.1.mlp.hook_post".parse().unwrap(),
        ..usual
    };
    refused(&narrow, &["width 32", &model.config().d_mlp.to_string()]);
    let nowhere = ExplainInput {
        site: Site::resid_post(9),
        ..usual
    };
    refused(&nowhere, &["blocks.9"]);
    // Numbers that are none.
    let broken = ResidualAdapter {
        w_out: adapter.w_out.clone() * f32::NAN,
        ..adapter.clone()
    };
    let broken = Adapter::Residual(broken);
    let nan = ExplainInput {
        change: Change::Adapter(&broken),
        ..usual
    };
    refused(&nan, &["with the change", "not finite"]);
    // Another model.
    let path = common::base::tiny_path();
    let other = path.with_file_name("families").join("gpt2");
    let other = Model::load(&other, &Device::flex()).unwrap();
    let apart = ExplainInput {
        change: Change::Checkpoint(&other),
        ..usual
    };
    refused(&apart, &["no checkpoints of one model", "gpt2"]);
    // Texts without a position to measure at.
    let short = HeldOutText::new("short", vec![TextSequence::plain(vec![1, 2])]);
    assert_has(&short.unwrap_err().to_string(), &["short", "too short"]);
    let sink = TextSequence {
        ids: vec![1, 2, 3],
        counted: vec![0],
    };
    let sink = HeldOutText::new("sink", vec![sink]).unwrap_err();
    assert_has(&sink.to_string(), &["sink", "sequence 0"]);
    for stage in ["run both models", "effects"] {
        let result = explain_change(&usual, &config(), &interrupted_at(stage, 1));
        let error = result.unwrap_err();
        assert!(
            matches!(error, AdapterError::Interrupted(_)),
            "{stage}: {error}"
        );
    }
}

#[test]
fn texts_are_cut_and_counted_as_they_should() {
    let setting = common::base::setting();
    let model = &setting.model;
    let corpus = common::base::corpus(&setting.dir.path().join("more"));
    let text = HeldOutText::of_corpus(model, &corpus, 16, 700).unwrap();
    // The first document has more than 700 tokens, or the next one goes on; windows never cross a document.
    let first = &corpus.documents()[0].text;
    let ids = model.tokenizer().encode_with_bos(first, false).unwrap();
    let mut whole = ids.chunks(16).filter(|window| window.len() > 2);
    for (sequence, window) in text.sequences().iter().zip(&mut whole) {
        let window = &window[..sequence.ids.len()];
        assert_eq!(sequence.ids, window);
    }
    assert!(text.tokens() <= 700 && text.tokens() > 680);
    let inner = text.sequences().iter().map(|s| s.ids.len() - 2);
    assert_eq!(text.counted(), inner.sum::<usize>());
    let error = HeldOutText::of_corpus(model, &corpus, 2, 700).unwrap_err();
    assert_has(&error.to_string(), &["context of 2", "at least 3"]);
    // Of answers the positions before their tokens count: those that training counts.
    let samples = common::samples();
    let answers = HeldOutText::of_samples("pairs", model, &samples, 64).unwrap();
    assert_eq!(answers.sequences().len(), samples.len());
    for sequence in answers.sequences() {
        let last = *sequence.counted.last().unwrap();
        assert_eq!(last + 2, sequence.ids.len());
        assert!(sequence.counted.len() < sequence.ids.len() / 2);
    }
    // Of a store its held-out sequences, whole.
    let store = HeldOutText::of_store(&setting.store, 40).unwrap();
    assert_eq!(store.sequences().len(), 2);
    let starts = setting.store.sequence_starts(true);
    for (sequence, start) in store.sequences().iter().zip(starts) {
        let rows = start..start + 16;
        let tokens: Vec<u32> = rows.map(|row| setting.store.token(row)).collect();
        assert_eq!(sequence.ids, tokens);
        assert_eq!(sequence.counted, (1..15).collect::<Vec<usize>>());
    }
}

#[test]
fn examples_come_from_the_text_or_from_a_store() {
    let setting = common::base::setting();
    let (model, sae) = (&setting.model, tied(3, 12));
    let text = text(model);
    let (adapter, _) = common::usual(4, D, 2);
    let adapter = Adapter::Residual(adapter);
    let own = input(model, Change::Adapter(&adapter), &sae, &text);
    let stored = ExplainInput {
        store: Some(&setting.store),
        ..own
    };
    let explain = |input| explain_change(input, &config(), &Control::hidden()).unwrap();
    let (own, stored) = (explain(&own), explain(&stored));
    assert_eq!(own.measured, stored.measured);
    assert_eq!(own.effects, stored.effects);
    let ids: Vec<usize> = own.features.iter().map(|feature| feature.feature).collect();
    let control = Control::hidden();
    let pages = config()
        .pages
        .make(&sae, &setting.store, model, &ids, &control)
        .unwrap();
    for (feature, page) in stored.features.iter().zip(pages) {
        assert_eq!(
            (&feature.examples, feature.density),
            (&page.examples, page.density)
        );
    }
    // Passages of the text end where their sequence ends.
    let texts: Vec<String> = text
        .sequences()
        .iter()
        .map(|sequence| model.tokenizer().decode(&sequence.ids, false))
        .collect();
    for example in own.features.iter().flat_map(|feature| &feature.examples) {
        let passage = format!("{}{}{}", example.before, example.token, example.after);
        assert!(
            texts.iter().any(|text| text.contains(passage.trim())),
            "{passage}"
        );
    }
}
