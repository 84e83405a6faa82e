//! A dictionary in the units of the activations does what the parameters do in those of training.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{InputNorm, Units, Whitening, in_units_of_activations};
use crate::kinds::KindConfig;
use crate::learn::{Aux, Parameters};
use crate::train::Wire;
use crate::{AuxLoss, Dictionary};

const N: usize = 200;
const M: usize = 12;

/// Rows whose coordinates differ in size, hang together and have a mean.
fn rows(seed: u64, d: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut out = Vec::new();
    for _ in 0..N {
        let common: f32 = rng.random_range(-1.0..1.0);
        for j in 0..d {
            let own: f32 = rng.random_range(-1.0..1.0);
            out.push((own + common) * (1.0 + j as f32) + 3.0 - j as f32);
        }
    }
    out
}

fn wires(widths: &[usize]) -> Vec<Wire> {
    let wire = |(place, &d)| Wire { place, d };
    widths.iter().enumerate().map(wire).collect()
}

fn parameters(
    d: usize,
    d_out: usize,
    (tied, skip): (bool, bool),
    extras: usize,
) -> Parameters<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut random =
        |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-1.0..1.0)).collect() };
    Parameters {
        d,
        d_out,
        tied,
        encoder: random(M * d),
        encoder_bias: random(M),
        decoder: random(M * d_out),
        decoder_bias: random(d_out),
        skip: skip.then(|| random(d * d_out)),
        lengths: None,
        extras: (0..extras)
            .map(|_| random(M).iter().map(|x| 0.5 * x.abs()).collect())
            .collect(),
    }
}

/// The reconstruction of one row in the units of training, by its definition.
fn reconstruction(config: &KindConfig, p: &Parameters<f32>, x: &[f64]) -> Vec<f64> {
    let pre: Vec<f64> = (0..M)
        .map(|i| {
            let row = p
                .encoder_row(i)
                .iter()
                .zip(x)
                .zip(p.decoder_bias.iter().chain([&0.0; 9]));
            let sum: f64 = row
                .map(|((&w, x), &b)| f64::from(w) * (x - if p.tied { f64::from(b) } else { 0.0 }))
                .sum();
            sum + f64::from(p.encoder_bias[i])
        })
        .collect();
    let mut order: Vec<usize> = (0..M).collect();
    order.sort_by(|&a, &b| pre[b].total_cmp(&pre[a]));
    let code = |i: usize| -> f64 {
        let extra = |e: usize| f64::from(p.extras[e][i]);
        match config {
            KindConfig::TopK { k } if order[..*k].contains(&i) => pre[i].max(0.0),
            KindConfig::Relu { .. } => pre[i].max(0.0),
            KindConfig::JumpRelu { .. } if pre[i] > extra(0) => pre[i],
            KindConfig::Gated { .. } if pre[i] > 0.0 => {
                let raw = pre[i] - f64::from(p.encoder_bias[i]);
                (extra(0).exp() * raw + extra(1)).max(0.0)
            }
            _ => 0.0,
        }
    };
    let mut out: Vec<f64> = p.decoder_bias.iter().map(|&b| f64::from(b)).collect();
    for i in 0..M {
        let z = code(i);
        for (out, &w) in out.iter_mut().zip(p.decoder_row(i)) {
            *out += z * f64::from(w);
        }
    }
    if let Some(skip) = &p.skip {
        for (out, row) in out.iter_mut().zip(skip.chunks_exact(x.len())) {
            *out += row
                .iter()
                .zip(x)
                .map(|(&w, x)| f64::from(w) * x)
                .sum::<f64>();
        }
    }
    out
}

/// Rows in the units of training, and the way back, by their definitions.
type Map = Box<dyn Fn(&[f64]) -> Vec<f64>>;
fn by_definition(mode: InputNorm, sample: &[f32], widths: &[usize], row: &[f64]) -> (Map, Map) {
    let d: usize = widths.iter().sum();
    let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let sample: Vec<Vec<f64>> = sample
        .chunks_exact(d)
        .map(|row| row.iter().map(|&x| f64::from(x)).collect())
        .collect();
    let affine = |shift: Vec<f64>, factor: Vec<f64>| -> (Map, Map) {
        let (s, f) = (shift.clone(), factor.clone());
        (
            Box::new(move |x| (0..x.len()).map(|j| (x[j] - s[j]) * f[j]).collect()),
            Box::new(move |y| (0..y.len()).map(|j| y[j] / factor[j] + shift[j]).collect()),
        )
    };
    match mode {
        InputNorm::None => affine(vec![0.0; d], vec![1.0; d]),
        InputNorm::Average => {
            let mut factors = Vec::new();
            let mut start = 0;
            for &width in widths {
                let lengths = sample.iter().map(|row| length(&row[start..start + width]));
                let factor = (width as f64).sqrt() * N as f64 / lengths.sum::<f64>();
                factors.extend(vec![factor; width]);
                start += width;
            }
            affine(vec![0.0; d], factors)
        }
        InputNorm::ConstantNorm => affine(vec![0.0; d], vec![(d as f64).sqrt() / length(row); d]),
        InputNorm::LayerNorm => {
            let mean = row.iter().sum::<f64>() / d as f64;
            let squares: f64 = row.iter().map(|x| (x - mean).powi(2)).sum();
            let deviation = (squares / (d as f64 - 1.0)).sqrt();
            affine(vec![mean; d], vec![1.0 / deviation; d])
        }
        InputNorm::Whitening => unreachable!("it has a test of its own"),
    }
}

#[test]
fn folded_weights_do_what_training_did() {
    let aux = Aux {
        loss: AuxLoss::Openai,
        weight: 0.0,
        k: 1,
    };
    let kinds = [("topk", 0), ("relu", 0), ("jumprelu", 1), ("gated", 2)];
    // An autoencoder, a crosscoder of three sites, a transcoder of two widths with and without a skip matrix.
    let shapes: [(&[usize], &[usize], bool, bool); 4] = [
        (&[7], &[7], true, false),
        (&[3, 4, 2], &[3, 4, 2], false, false),
        (&[6], &[4], false, true),
        (&[4], &[6], false, false),
    ];
    for (ins, outs, tied, skip) in shapes {
        let same = ins == outs;
        let modes: &[InputNorm] = if tied {
            &[
                InputNorm::None,
                InputNorm::Average,
                InputNorm::ConstantNorm,
                InputNorm::LayerNorm,
            ]
        } else {
            &[InputNorm::None, InputNorm::Average]
        };
        let (d, d_out) = (ins.iter().sum::<usize>(), outs.iter().sum::<usize>());
        let (x, y) = (rows(1, d), rows(if same { 1 } else { 2 }, d_out));
        for &mode in modes {
            for (name, extras) in kinds {
                let config = KindConfig::named(name, M, 3).expect("a name");
                let kind = config.build::<f32>(aux);
                let parameters = parameters(d, d_out, (tied, skip), extras);
                let inputs = Units::of(mode, &x, &wires(ins)).expect("it can be");
                let outputs = Units::of(mode, &y, &wires(outs)).expect("it can be");
                let sae = in_units_of_activations(&parameters, &*kind, &inputs, &outputs)
                    .expect("it fits");
                let codes = sae.encode(&x);
                let found = sae.reconstruct(&x, &codes);
                let mut trained_on = x.clone();
                inputs.apply(&mut trained_on);
                for at in 0..N {
                    let wide = |x: &[f32], d: usize| -> Vec<f64> {
                        x[at * d..(at + 1) * d]
                            .iter()
                            .map(|&x| f64::from(x))
                            .collect()
                    };
                    let row = wide(&x, d);
                    let (into, _) = by_definition(mode, &x, ins, &row);
                    let (_, back) = by_definition(mode, &y, outs, &row);
                    let inner = into(&row);
                    let close = |a: f64, b: f64| (a - b).abs() < 1e-4 * (1.0 + b.abs());
                    let seen = wide(&trained_on, d);
                    assert!(seen.iter().zip(&inner).all(|(&a, &b)| close(a, b)));
                    let expected = back(&reconstruction(&config, &parameters, &inner));
                    let found = wide(&found, d_out);
                    assert!(
                        found.iter().zip(&expected).all(|(&a, &b)| close(a, b)),
                        "{name} {mode:?} {ins:?}: {found:?} against {expected:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn whitened_rows_have_the_unit_covariance_and_weights_are_folded() {
    let d = 6;
    let x = rows(3, d);
    let units = Units::of(InputNorm::Whitening, &x, &wires(&[d])).expect("it can be");
    let mut white = x.clone();
    units.apply(&mut white);
    for i in 0..d {
        for j in 0..d {
            let column = |j: usize| white.iter().skip(j).step_by(d).map(|&x| f64::from(x));
            let mean = column(i).sum::<f64>() / N as f64;
            assert!(mean.abs() < 1e-5);
            let covariance = column(i).zip(column(j)).map(|(a, b)| a * b).sum::<f64>() / N as f64;
            assert!((covariance - f64::from(u8::from(i == j))).abs() < 1e-4);
        }
    }
    let Units::White(Whitening { mean, root, .. }) = &units else {
        panic!("not whitening");
    };
    for (name, extras) in [("topk", 0), ("relu", 0), ("jumprelu", 1), ("gated", 2)] {
        let config = KindConfig::named(name, M, 3).expect("a name");
        let kind = config.build::<f32>(Aux {
            loss: AuxLoss::Openai,
            weight: 0.0,
            k: 1,
        });
        let parameters = parameters(d, d, (true, false), extras);
        let sae = in_units_of_activations(&parameters, &*kind, &units, &units).expect("it fits");
        let found = sae.reconstruct(&x, &sae.encode(&x));
        for at in 0..N {
            let row: Vec<f64> = white[at * d..(at + 1) * d]
                .iter()
                .map(|&x| f64::from(x))
                .collect();
            let inner = reconstruction(&config, &parameters, &row);
            for j in 0..d {
                let back: f64 = (0..d).map(|i| inner[i] * f64::from(root[i * d + j])).sum();
                let expected = back + f64::from(mean[j]);
                let found = f64::from(found[at * d + j]);
                assert!(
                    (found - expected).abs() < 1e-3 * (1.0 + expected.abs()),
                    "{name}: {found} against {expected}"
                );
            }
        }
    }
    let few = Units::of(InputNorm::Whitening, &x[..d * d], &wires(&[d])).expect_err("too few");
    assert!(few.to_string().contains("6 rows"), "{few}");
    let two = Units::of(InputNorm::LayerNorm, &x, &wires(&[2, 4])).expect_err("two sites");
    assert!(two.to_string().contains("several sites"), "{two}");
}
