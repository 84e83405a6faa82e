//! Gradients against finite differences in f64, the invariances of the loss, and resuming.

use super::{Companion, Joint, joint_batch};
use crate::kinds::{Kind, KindConfig};
use crate::learn::{Aux, Parameters, gradients};
use crate::{AuxLoss, Dictionary, TrainConfig};

const D: usize = 6;
const M: usize = 20;

fn numbers(seed: f64, count: usize) -> Vec<f64> {
    (0..count)
        .map(|i| (seed + 1.3 * i as f64 + 0.017 * (i * i) as f64).sin())
        .collect()
}

fn parameters() -> Parameters<f64> {
    let mut decoder = numbers(0.4, M * D);
    for row in decoder.chunks_exact_mut(D) {
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        for x in row {
            *x /= length;
        }
    }
    Parameters {
        d: D,
        d_out: D,
        tied: true,
        encoder: numbers(2.0, M * D),
        encoder_bias: numbers(0.1, M).iter().map(|x| 0.2 * x).collect(),
        decoder,
        decoder_bias: numbers(3.0, D).iter().map(|x| 0.3 * x).collect(),
        skip: None,
        lengths: None,
        extras: Vec::new(),
    }
}

fn kinds() -> Vec<Box<dyn Kind<f64>>> {
    let aux = Aux {
        loss: AuxLoss::default(),
        weight: 0.5,
        k: 3,
    };
    let kinds = [KindConfig::TopK { k: 4 }, KindConfig::BatchTopK { k: 4 }];
    kinds.iter().map(|kind| kind.build(aux)).collect()
}

fn rows() -> Vec<f64> {
    let mut x = numbers(0.7, 30 * D);
    for (row, x) in x.chunks_exact_mut(D).enumerate() {
        for x in x {
            *x = 3.0 * *x + 0.4 + 0.01 * row as f64;
        }
    }
    x
}

fn joint(kind: &mut dyn Kind<f64>, parameters: &Parameters<f64>, x: &[f64]) -> Joint<f64> {
    joint_batch(kind, parameters, x, &[])
}

#[test]
fn the_gradient_in_the_activations_is_that_of_finite_differences() {
    for mut kind in kinds() {
        let (parameters, x) = (parameters(), rows());
        let found = joint(&mut *kind, &parameters, &x);
        let mut largest = 0.0_f64;
        for at in (0..x.len()).step_by(7) {
            let mut moved = |by: f64| {
                let mut x = x.clone();
                x[at] += by;
                joint(&mut *kind, &parameters, &x).batch.reconstruction
            };
            let measured = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            let expected = found.gradient[at];
            assert!(
                (measured - expected).abs() < 1e-8,
                "{at}: {measured} {expected}"
            );
            largest = largest.max(expected.abs());
        }
        assert!(largest > 1e-3, "{largest}");
    }
}

#[test]
fn gradients_of_the_dictionary_are_those_of_finite_differences() {
    for mut kind in kinds() {
        let (at, x) = (parameters(), rows());
        let found = joint(&mut *kind, &at, &x);
        let (decoder, encoder, bias) = gradients(&at, &found.batch);
        let mut check = |expected: f64, part: fn(&mut Parameters<f64>) -> &mut f64| {
            let mut moved = |by: f64| {
                let mut moved = at.clone();
                *part(&mut moved) += by;
                joint(&mut *kind, &moved, &x).batch.reconstruction
            };
            let measured = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((measured - expected).abs() < 1e-8, "{measured} {expected}");
        };
        check(encoder[9], |p| &mut p.encoder[9]);
        check(bias[1], |p| &mut p.encoder_bias[1]);
        // Along a unit row the decoder's gradient is taken out: it is added back from the difference itself.
        let row = at.decoder_row(2).to_vec();
        let across: f64 = decoder[2 * D..3 * D]
            .iter()
            .zip(&row)
            .map(|(g, w)| g * w)
            .sum();
        assert!(across.abs() < 1e-12);
        assert!(encoder.iter().any(|g| g.abs() > 1e-4));
    }
}

#[test]
fn the_loss_does_not_hang_on_the_lengths_of_activations() {
    for mut kind in kinds() {
        let (parameters, x) = (parameters(), rows());
        let one = joint(&mut *kind, &parameters, &x);
        let longer = |of: &dyn Fn(usize) -> f64| -> Vec<f64> {
            let numbered = x.iter().enumerate();
            numbered.map(|(at, x)| of(at / D) * x).collect()
        };
        // All of them, some of them a thousand times, each in another way.
        let some = |row: usize| if row.is_multiple_of(9) { 1000.0 } else { 1.0 };
        for scaled in [
            longer(&|_| 0.01),
            longer(&some),
            longer(&|row| 1.0 + row as f64),
        ] {
            let other = joint(&mut *kind, &parameters, &scaled);
            let [a, b] = [&one, &other].map(|j| j.batch.reconstruction);
            assert!((a - b).abs() < 1e-12 * a, "{a} {b}");
        }
        // So no step against the gradient changes a length to first order.
        let size: f64 = one.gradient.iter().map(|g| g.abs()).sum();
        assert!(size > 0.1, "{size}");
        for (g, x) in one.gradient.chunks_exact(D).zip(x.chunks_exact(D)) {
            let along: f64 = g.iter().zip(x).map(|(g, x)| g * x).sum();
            assert!(along.abs() < 1e-14 * 100.0, "{along}");
        }
    }
}

fn config(kind: KindConfig) -> TrainConfig {
    TrainConfig {
        batch: 30,
        lr: 0.01,
        input_norm: crate::InputNorm::ConstantNorm,
        ..TrainConfig::new(M, kind, 5)
    }
}

fn batch(number: usize) -> Vec<f32> {
    numbers(number as f64, 30 * D)
        .iter()
        .map(|&x| (2.0 * x + 0.3) as f32)
        .collect()
}

#[test]
fn it_learns_and_goes_on_from_its_state_bit_for_bit() {
    for kind in [KindConfig::TopK { k: 3 }, KindConfig::BatchTopK { k: 3 }] {
        let config = config(kind);
        let start = || Companion::start(&config, 40, &batch(0), D).unwrap();
        let mut whole = start();
        let first = whole.step(&batch(0)).unwrap();
        for number in 1..20 {
            whole.step(&batch(number % 4)).unwrap();
        }
        let mut second = start();
        let (state, numbers) = (whole.state().clone(), whole.numbers());
        let text = serde_json::to_string(&state).unwrap();
        let find = |name: &str| {
            let found = numbers.iter().find(|(own, _)| own == name);
            found.map(|(_, values)| values.clone())
        };
        second
            .restore(serde_json::from_str(&text).unwrap(), find)
            .unwrap();
        for number in 20..40 {
            let (a, b) = (batch(number % 4), batch(number % 4));
            assert_eq!(whole.step(&a).unwrap(), second.step(&b).unwrap());
        }
        assert_eq!(whole.sae().unwrap(), second.sae().unwrap());
        let last = whole.step(&batch(0)).unwrap();
        assert!(last.unexplained < 0.6 * first.unexplained, "{last:?}");
        let sae = whole.sae().unwrap();
        assert_eq!(sae.n_features(), M);
        assert!(second.restore(state, |_| None).is_err());
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let start = |config: &TrainConfig, x: &[f32]| match Companion::start(config, 10, x, D) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    let good = config(KindConfig::TopK { k: 3 });
    let other = config(KindConfig::Relu { weight: 1.0 });
    assert!(start(&other, &batch(0)).contains("not relu"));
    let many = config(KindConfig::TopK { k: M + 1 });
    assert!(start(&many, &batch(0)).contains("between 1 and"));
    assert!(start(&good, &[1.0; 3 * D]).contains("variance 0"));
    assert!(start(&good, &[]).contains("no two rows"));
    let other = TrainConfig {
        input_norm: crate::InputNorm::Average,
        ..good
    };
    assert!(start(&other, &batch(0)).contains("constant-norm"));
}
