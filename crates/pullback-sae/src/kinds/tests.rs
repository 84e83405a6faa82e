//! Losses and gradients of every kind, in `f64`, against dense sums over definitions and finite differences of them.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{JumpReluSparsity, Kind, KindConfig};
use crate::learn::{Adam, Aux, Batch, Moments, Parameters, Rows, Step, Sums, update};
use crate::{AuxLoss, Selection};

const M: usize = 24;
const D: usize = 6;
const N: usize = 10;
const VARIANCE: f64 = 1.7;
/// Share of the sparsity weight in all tests.
const SPARSITY: f64 = 0.6;
const UNIT: f64 = 1.0 / (N as f64 * VARIANCE);
const DEAD: [u32; 6] = [1, 2, 5, 9, 14, 20];

fn aux(loss: AuxLoss) -> Aux {
    Aux {
        loss,
        weight: 0.3,
        k: 3,
    }
}

fn build(config: &KindConfig, loss: AuxLoss) -> Box<dyn Kind<f64>> {
    config.build(aux(loss))
}

fn example(kind: &dyn Kind<f64>) -> (Parameters<f64>, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut random =
        |count: usize| -> Vec<f64> { (0..count).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let mut parameters = Parameters {
        d: D,
        d_out: D,
        tied: true,
        encoder: random(M * D),
        encoder_bias: random(M),
        decoder: random(M * D),
        decoder_bias: random(D),
        skip: None,
        lengths: None,
        extras: kind.extras(M),
    };
    for extra in &mut parameters.extras {
        let start = extra[0];
        *extra = random(M).iter().map(|x| start + 0.3 * x.abs()).collect();
    }
    (parameters, random(N * D))
}

fn step(dead: &[u32]) -> Step<'_> {
    Step {
        variance: VARIANCE,
        dead,
        sparsity: SPARSITY,
    }
}

/// Pre-activations `[N][M]`.
fn pre(p: &Parameters<f64>, x: &[f64]) -> Vec<Vec<f64>> {
    x.chunks_exact(D)
        .map(|x| {
            (0..M)
                .map(|i| {
                    let row = &p.encoder[i * D..(i + 1) * D];
                    let sum: f64 = (0..D).map(|j| row[j] * (x[j] - p.decoder_bias[j])).sum();
                    sum + p.encoder_bias[i]
                })
                .collect()
        })
        .collect()
}

/// `z·D (+ b)` by the first `width` features.
fn decoded(p: &Parameters<f64>, z: &[f64], width: usize, bias: Option<&[f64]>) -> Vec<f64> {
    let mut out = bias.map_or_else(|| vec![0.0; D], <[f64]>::to_vec);
    for i in 0..width {
        for (out, w) in out.iter_mut().zip(&p.decoder[i * D..]) {
            *out += z[i] * w;
        }
    }
    out
}

fn squares(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

/// `Σ‖x − x̂‖²` over all tokens, of codes `[N][M]`.
fn errors(p: &Parameters<f64>, x: &[f64], z: &[Vec<f64>], width: usize) -> f64 {
    x.chunks_exact(D)
        .zip(z)
        .map(|(x, z)| squares(x, &decoded(p, z, width, Some(&p.decoder_bias))))
        .sum()
}

/// Keeps the `k` largest of the chosen features, those above zero unless `signed`.
fn keep(pre: &[f64], among: &[u32], k: usize, signed: bool) -> Vec<f64> {
    let mut order: Vec<usize> = among.iter().map(|&i| i as usize).collect();
    order.retain(|&i| signed || pre[i] > 0.0);
    order.sort_by(|&a, &b| pre[b].total_cmp(&pre[a]));
    let mut z = vec![0.0; M];
    for &i in order.iter().take(k) {
        z[i] = pre[i];
    }
    z
}

fn all() -> Vec<u32> {
    (0..M as u32).collect()
}

/// The largest `k·N` of all.
fn keep_of_batch(pre: &[Vec<f64>], k: usize) -> Vec<Vec<f64>> {
    let mut values: Vec<f64> = pre.iter().flatten().copied().filter(|&x| x > 0.0).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    let bound = values[(k * N).min(values.len()) - 1];
    let kept = |&x: &f64| if x >= bound { x } else { 0.0 };
    pre.iter()
        .map(|row| row.iter().map(kept).collect())
        .collect()
}

/// The auxiliary loss with its weight: its target and its normaliser are those of `at`.
fn auxiliary(
    moved: &Parameters<f64>,
    at: &Parameters<f64>,
    x: &[f64],
    z_at: &[Vec<f64>],
    loss: AuxLoss,
) -> f64 {
    let targets: Vec<Vec<f64>> = x
        .chunks_exact(D)
        .zip(z_at)
        .map(|(x, z)| {
            let y = decoded(at, z, M, Some(&at.decoder_bias));
            x.iter().zip(y).map(|(x, y)| x - y).collect()
        })
        .collect();
    let spread = |rows: &[Vec<f64>]| -> f64 {
        let mean: Vec<f64> = (0..D)
            .map(|j| rows.iter().map(|row| row[j]).sum::<f64>() / N as f64)
            .collect();
        rows.iter().map(|row| squares(row, &mean)).sum()
    };
    let xs: Vec<Vec<f64>> = x.chunks_exact(D).map(<[f64]>::to_vec).collect();
    let bias = (loss == AuxLoss::Sparsify).then_some(&moved.decoder_bias[..]);
    let total: f64 = pre(moved, x)
        .iter()
        .zip(&targets)
        .map(|(pre, target)| {
            let z = keep(pre, &DEAD, 3, loss == AuxLoss::Saelens);
            squares(target, &decoded(moved, &z, M, bias))
        })
        .sum();
    // Six dead features, three used: the share is 1.
    0.3 * match loss {
        AuxLoss::Openai => total / spread(&targets),
        AuxLoss::Saelens => total * UNIT,
        AuxLoss::Sparsify => total / spread(&xs),
    }
}

/// Compares every gradient with finite differences of `loss`; those of the kind's own parameters where `extras`.
fn agrees(
    batch: &Batch<f64>,
    parameters: &Parameters<f64>,
    extras: bool,
    loss: &dyn Fn(&Parameters<f64>) -> f64,
) {
    assert!(
        (batch.loss() - loss(parameters)).abs() < 1e-12,
        "loss {} against {}",
        batch.loss(),
        loss(parameters)
    );
    let slope = |change: &dyn Fn(&mut Parameters<f64>, f64)| {
        let at = |by: f64| {
            let mut moved = parameters.clone();
            change(&mut moved, by);
            loss(&moved)
        };
        (at(1e-6) - at(-1e-6)) / 2e-6
    };
    let close = |what: &str, found: f64, change: &dyn Fn(&mut Parameters<f64>, f64)| {
        let expected = slope(change);
        assert!(
            (found - expected).abs() < 1e-7,
            "{what}: {found} against {expected}"
        );
    };
    let sums = Sums::of(parameters, batch);
    let (mut decoder, mut encoder) = (vec![0.0; D], vec![0.0; D]);
    let mut largest = 0.0_f64;
    for i in 0..M {
        batch.rows(i, &mut decoder, &mut encoder);
        for j in 0..D {
            let at = i * D + j;
            close("decoder", decoder[j], &|p, by| p.decoder[at] += by);
            close("encoder", encoder[j], &|p, by| p.encoder[at] += by);
            largest = largest.max(encoder[j].abs()).max(decoder[j].abs());
        }
        close("encoder bias", sums.bias[i], &|p, by| {
            p.encoder_bias[i] += by;
        });
        if extras {
            for e in 0..parameters.extras.len() {
                close("extra", sums.extras[e][i], &|p, by| p.extras[e][i] += by);
            }
        }
    }
    assert!(largest > 1e-3);
    for j in 0..D {
        close("decoder bias", sums.decoder_bias[j], &|p, by| {
            p.decoder_bias[j] += by;
        });
    }
}

#[test]
fn top_k_with_every_auxiliary_loss() {
    for loss in [AuxLoss::Openai, AuxLoss::Saelens, AuxLoss::Sparsify] {
        let mut kind = build(&KindConfig::TopK { k: 4 }, loss);
        let (parameters, x) = example(&*kind);
        let codes = |p: &Parameters<f64>| -> Vec<Vec<f64>> {
            let pre = pre(p, &x);
            pre.iter().map(|pre| keep(pre, &all(), 4, false)).collect()
        };
        let at = codes(&parameters);
        let batch = kind.batch(&parameters, &Rows::same(&x), &step(&DEAD));
        assert!(batch.auxiliary > 0.0);
        agrees(&batch, &parameters, true, &|p| {
            errors(p, &x, &codes(p), M) * UNIT + auxiliary(p, &parameters, &x, &at, loss)
        });
        let batch = kind.batch(&parameters, &Rows::same(&x), &step(&[]));
        agrees(&batch, &parameters, true, &|p| {
            errors(p, &x, &codes(p), M) * UNIT
        });
        for i in 0..M {
            assert_eq!(batch.fired[i], at.iter().any(|z| z[i] > 0.0));
        }
    }
}

#[test]
fn batch_top_k_and_its_threshold() {
    let mut kind = build(&KindConfig::BatchTopK { k: 4 }, AuxLoss::Openai);
    let (parameters, x) = example(&*kind);
    let codes = |p: &Parameters<f64>| keep_of_batch(&pre(p, &x), 4);
    let at = codes(&parameters);
    let smallest = at.iter().flatten().filter(|&&z| z > 0.0);
    let smallest = smallest.copied().fold(f64::INFINITY, f64::min);
    // The first batch looks at everything, the later ones where the last smallest code was.
    for _ in 0..3 {
        let batch = kind.batch(&parameters, &Rows::same(&x), &step(&DEAD));
        assert_eq!(batch.active, 4 * N);
        agrees(&batch, &parameters, true, &|p| {
            errors(p, &x, &codes(p), M) * UNIT + auxiliary(p, &parameters, &x, &at, AuxLoss::Openai)
        });
    }
    let Selection::Threshold { thresholds } = kind.selection(&parameters, 2.0) else {
        panic!("a threshold is what it becomes");
    };
    assert!((f64::from(thresholds[3]) - smallest / 2.0).abs() < 1e-7);
    // It moves a hundredth of the way.
    kind.remember(&[3.0, 0.0]);
    kind.batch(&parameters, &Rows::same(&x), &step(&[]));
    let expected = 3.0 + 0.01 * (smallest - 3.0);
    let found = kind.memory();
    assert!((found[0] - expected).abs() < 1e-12 && found[1] == smallest);
    // A guess that is too high finds too few codes, and everything is looked at again.
    kind.remember(&[0.0, 1e6]);
    assert_eq!(
        kind.batch(&parameters, &Rows::same(&x), &step(&[])).active,
        4 * N
    );
}

#[test]
fn equal_codes_of_a_batch_are_taken_in_order() {
    let mut kind = build(&KindConfig::BatchTopK { k: 2 }, AuxLoss::Openai);
    let (mut parameters, _) = example(&*kind);
    parameters.encoder.fill(0.0);
    parameters.encoder_bias.fill(1.0);
    let batch = kind.batch(&parameters, &Rows::same(&[0.5; N * D]), &step(&[]));
    assert_eq!(batch.active, 2 * N);
    // Twenty places: the first 20 features of the first token.
    assert!((0..M).all(|i| batch.fired[i] == (i < 20)));
}

#[test]
fn matryoshka_levels() {
    let widths = vec![5, 11, 24];
    let config = KindConfig::Matryoshka {
        k: 4,
        widths: widths.clone(),
    };
    let mut kind = build(&config, AuxLoss::Openai);
    let (parameters, x) = example(&*kind);
    let codes = |p: &Parameters<f64>| keep_of_batch(&pre(p, &x), 4);
    let at = codes(&parameters);
    let batch = kind.batch(&parameters, &Rows::same(&x), &step(&DEAD));
    agrees(&batch, &parameters, true, &|p| {
        let z = codes(p);
        let levels: f64 = widths.iter().map(|&width| errors(p, &x, &z, width)).sum();
        levels * UNIT + auxiliary(p, &parameters, &x, &at, AuxLoss::Openai)
    });
}

/// Both ways of kinds whose features decide for themselves.
fn both_ways(
    config: &KindConfig,
    dead: &[u32],
    check: impl Fn(&Batch<f64>, &Parameters<f64>, &[f64]),
) {
    for share in [0.0, 1.0] {
        let mut kind = build(config, AuxLoss::Openai);
        let (parameters, x) = example(&*kind);
        kind.remember(&[share]);
        let batch = kind.batch(&parameters, &Rows::same(&x), &step(dead));
        assert_eq!(batch.dense.is_some(), share > 0.5);
        check(&batch, &parameters, &x);
    }
}

#[test]
fn relu_with_its_penalty() {
    both_ways(
        &KindConfig::Relu { weight: 0.7 },
        &[],
        |batch, parameters, x| {
            agrees(batch, parameters, true, &|p| {
                let z: Vec<Vec<f64>> = pre(p, x)
                    .iter()
                    .map(|row| row.iter().map(|x| x.max(0.0)).collect())
                    .collect();
                let l1: f64 = z.iter().flatten().sum();
                (errors(p, x, &z, M) + 0.7 * SPARSITY * l1) * UNIT
            });
        },
    );
}

#[test]
fn gated_with_its_frozen_reconstruction() {
    both_ways(&KindConfig::Gated { weight: 0.7 }, &[], |batch, at, x| {
        agrees(batch, at, true, &|p| {
            let gates = pre(p, x);
            let mut total = 0.0;
            for (x, gates) in x.chunks_exact(D).zip(&gates) {
                let mut codes = vec![0.0; M];
                let mut open = vec![0.0; M];
                for i in 0..M {
                    if gates[i] > 0.0 {
                        let raw = gates[i] - p.encoder_bias[i];
                        codes[i] = (p.extras[0][i].exp() * raw + p.extras[1][i]).max(0.0);
                        open[i] = gates[i];
                    }
                }
                total += squares(x, &decoded(p, &codes, M, Some(&p.decoder_bias)));
                total += squares(x, &decoded(at, &open, M, Some(&at.decoder_bias)));
                total += 0.7 * SPARSITY * open.iter().sum::<f64>();
            }
            total * UNIT
        });
    });
}

/// The code of `JumpReLU` and, for each token and feature, the gradient of the reconstruction in it.
fn jump(p: &Parameters<f64>, x: &[f64]) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let z: Vec<Vec<f64>> = pre(p, x)
        .iter()
        .map(|row| {
            let kept = row.iter().zip(&p.extras[0]);
            kept.map(|(&x, &t)| if x > t { x } else { 0.0 }).collect()
        })
        .collect();
    let slopes = x
        .chunks_exact(D)
        .zip(&z)
        .map(|(x, z)| {
            let y = decoded(p, z, M, Some(&p.decoder_bias));
            (0..M)
                .map(|i| {
                    let row = &p.decoder[i * D..(i + 1) * D];
                    (0..D).map(|j| 2.0 * (y[j] - x[j]) * row[j]).sum()
                })
                .collect()
        })
        .collect();
    (z, slopes)
}

#[test]
fn jump_relu_with_every_penalty() {
    let (bandwidth, revive) = (0.8, 0.05);
    for sparsity in [
        JumpReluSparsity::Step { weight: 0.7 },
        JumpReluSparsity::Tanh {
            weight: 0.7,
            scale: 4.0,
        },
        JumpReluSparsity::Quadratic {
            weight: 0.7,
            target: 3.0,
        },
    ] {
        let config = KindConfig::JumpRelu {
            sparsity,
            bandwidth,
            threshold: Some(0.2),
            active: 3,
            revive,
        };
        both_ways(&config, &DEAD, |batch, at, x| {
            let revived = |p: &Parameters<f64>| -> f64 {
                let lack = |row: &Vec<f64>, i: usize| (p.extras[0][i] - row[i]).max(0.0);
                pre(p, x)
                    .iter()
                    .map(|row| DEAD.iter().map(|&i| lack(row, i as usize)).sum::<f64>())
                    .sum()
            };
            let penalty = |z: &[Vec<f64>]| -> f64 {
                let active = z.iter().flatten().filter(|&&z| z > 0.0).count() as f64;
                SPARSITY
                    * match sparsity {
                        JumpReluSparsity::Step { weight } => weight * active,
                        JumpReluSparsity::Tanh { weight, scale } => {
                            weight * z.iter().flatten().map(|z| (scale * z).tanh()).sum::<f64>()
                        }
                        JumpReluSparsity::Quadratic { weight, target } => {
                            N as f64 * weight * (active / N as f64 / target - 1.0).powi(2)
                        }
                    }
            };
            // All but the thresholds have true derivatives.
            agrees(batch, at, false, &|p| {
                let (z, _) = jump(p, x);
                (errors(p, x, &z, M) + penalty(&z) + revive * revived(p)) * UNIT
            });
            // The thresholds have the pseudo-derivatives of the paper.
            let (z, slopes) = jump(at, x);
            let pres = pre(at, x);
            let active = z.iter().flatten().filter(|&&z| z > 0.0).count() as f64 / N as f64;
            let sums = Sums::of(at, batch);
            let mut seen = 0;
            for i in 0..M {
                let threshold = at.extras[0][i];
                let mut expected = 0.0;
                for token in 0..N {
                    let value = pres[token][i];
                    if DEAD.contains(&(i as u32)) && value <= threshold {
                        expected += revive;
                    }
                    if (value - threshold).abs() >= bandwidth / 2.0 {
                        continue;
                    }
                    seen += 1;
                    let mut by_code = slopes[token][i];
                    let by_step = SPARSITY
                        * match sparsity {
                            JumpReluSparsity::Step { weight } => weight,
                            JumpReluSparsity::Tanh { weight, scale } => {
                                let tanh = (scale * z[token][i]).tanh();
                                by_code += SPARSITY * weight * scale * (1.0 - tanh * tanh);
                                0.0
                            }
                            JumpReluSparsity::Quadratic { weight, target } => {
                                2.0 * weight * (active / target - 1.0) / target
                            }
                        };
                    expected -= (threshold * by_code + by_step) / bandwidth;
                }
                let found = sums.extras[0][i];
                assert!(
                    (found - expected * UNIT).abs() < 1e-12,
                    "threshold {i}: {found} against {}",
                    expected * UNIT
                );
            }
            assert!(seen > 20);
        });
    }
}

#[test]
fn thresholds_start_where_as_many_features_are_active_as_asked_for() {
    let config = KindConfig::named("jumprelu", M, 3).expect("the name is known");
    let mut kind = build(&config, AuxLoss::Openai);
    let (mut parameters, x) = example(&*kind);
    parameters.encoder_bias.fill(0.0);
    kind.prepare(&mut parameters, &x);
    let threshold = parameters.extras[0][0];
    assert!(threshold > 0.0 && parameters.extras[0].iter().all(|&t| t == threshold));
    assert_eq!(
        kind.batch(&parameters, &Rows::same(&x), &step(&[])).active,
        3 * N
    );
}

#[test]
fn an_update_is_one_step_of_adam_with_unit_decoder_rows() {
    let mut kind = build(&KindConfig::TopK { k: 4 }, AuxLoss::Openai);
    let (mut parameters, x) = example(&*kind);
    for row in parameters.decoder.chunks_exact_mut(D) {
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        for x in row.iter_mut() {
            *x /= length;
        }
    }
    let batch = kind.batch(&parameters, &Rows::same(&x), &step(&[]));
    let before = parameters.clone();
    let mut moments = Moments::zero(&parameters);
    let adam = Adam::at(1, 0.01, (0.9, 0.999));
    update(&mut parameters, &mut moments, &batch, adam, None);
    let (mut decoder, mut encoder) = (vec![0.0; D], vec![0.0; D]);
    for i in 0..M {
        batch.rows(i, &mut decoder, &mut encoder);
        let row = &parameters.decoder[i * D..(i + 1) * D];
        assert!((row.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-12);
        for j in 0..D {
            // The first step of Adam moves every coordinate by the rate, against its gradient's sign.
            let moved = parameters.encoder[i * D + j] - before.encoder[i * D + j];
            let expected = if encoder[j] == 0.0 {
                0.0
            } else {
                -0.01 * encoder[j].signum()
            };
            assert!((moved - expected).abs() < 1e-6, "{moved} {expected}");
        }
    }
    let after = kind.batch(&parameters, &Rows::same(&x), &step(&[]));
    assert!(after.loss() < batch.loss());
}

#[test]
fn a_long_gradient_is_clipped() {
    let mut kind = build(&KindConfig::Gated { weight: 0.7 }, AuxLoss::Openai);
    let (mut parameters, x) = example(&*kind);
    for row in parameters.decoder.chunks_exact_mut(D) {
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        for x in row.iter_mut() {
            *x /= length;
        }
    }
    let batch = kind.batch(&parameters, &Rows::same(&x), &step(&[]));
    let sums = Sums::of(&parameters, &batch);
    let (mut decoder, mut encoder) = (vec![0.0; D], vec![0.0; D]);
    let numbers = sums.extras.iter().flatten();
    let mut total: f64 = numbers
        .chain(&sums.bias)
        .chain(&sums.decoder_bias)
        .map(|x| x * x)
        .sum();
    for i in 0..M {
        batch.rows(i, &mut decoder, &mut encoder);
        let row = parameters.decoder_row(i);
        let along: f64 = decoder.iter().zip(row).map(|(g, w)| g * w).sum();
        total += (0..D)
            .map(|j| (decoder[j] - along * row[j]).powi(2) + encoder[j].powi(2))
            .sum::<f64>();
    }
    let norm = total.sqrt();
    let moment = |clip: Option<f64>| {
        let (mut parameters, mut moments) = (parameters.clone(), Moments::zero(&parameters));
        let adam = Adam::at(1, 0.01, (0.9, 0.999));
        update(&mut parameters, &mut moments, &batch, adam, clip);
        moments.first.encoder_bias
    };
    let (free, clipped, loose) = (
        moment(None),
        moment(Some(norm / 4.0)),
        moment(Some(2.0 * norm)),
    );
    for ((free, clipped), loose) in free.iter().zip(clipped).zip(loose) {
        assert!((clipped - free / 4.0).abs() <= 1e-12 * free.abs());
        assert_eq!(*free, loose);
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    for (config, what) in [
        (KindConfig::TopK { k: 0 }, "k is 0"),
        (KindConfig::BatchTopK { k: 25 }, "k is 25"),
        (KindConfig::Relu { weight: f64::NAN }, "weight is NaN"),
        (KindConfig::Gated { weight: -1.0 }, "weight is -1"),
        (
            KindConfig::Matryoshka {
                k: 2,
                widths: vec![8, 8, 24],
            },
            "[8, 8, 24]",
        ),
        (
            KindConfig::JumpRelu {
                sparsity: JumpReluSparsity::Step { weight: 1.0 },
                bandwidth: 0.0,
                threshold: None,
                active: 3,
                revive: 0.0,
            },
            "the bandwidth is 0",
        ),
    ] {
        let error = config.check(M).expect_err("it is refused").to_string();
        assert!(error.contains(what), "{error}");
    }
    for name in KindConfig::NAMES {
        let config = KindConfig::named(name, M, 4).expect("the name is known");
        assert_eq!(config.name(), name);
        config.check(M).expect("the usual settings are right");
    }
    assert!(KindConfig::named("top", M, 4).is_err());
}
