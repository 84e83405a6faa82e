//! Gradients of every kind where what is reconstructed is not what is encoded, with a skip matrix, and with decoder rows of
//! free length, in `f64`, against finite differences of dense sums over definitions.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{JumpReluSparsity, KindConfig};
use crate::AuxLoss;
use crate::learn::{
    Adam, Aux, Lengths, Moments, Parameters, Rows, Step, batch, gradients, parts, update,
};

const M: usize = 20;
const IN: usize = 7;
const OUT: usize = 5;
const N: usize = 9;
const K: usize = 3;
const VARIANCE: f64 = 1.3;
const SPARSITY: f64 = 0.6;
const WEIGHT: f64 = 0.7;
const UNIT: f64 = 1.0 / (N as f64 * VARIANCE);
const DEAD: [u32; 5] = [1, 4, 8, 9, 17];
const WIDTHS: [usize; 3] = [4, 9, M];

/// What Adam moves.
#[derive(Clone)]
struct Moved {
    encoder: Vec<f64>,
    bias: Vec<f64>,
    decoder: Vec<f64>,
    decoder_bias: Vec<f64>,
    skip: Vec<f64>,
    extras: Vec<Vec<f64>>,
    /// Ends of the parts of a row, where lengths are free.
    ends: Option<Vec<usize>>,
}

impl Moved {
    fn random(extras: usize, ends: Option<Vec<usize>>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut random = |count: usize| -> Vec<f64> {
            (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
        };
        Self {
            encoder: random(M * IN),
            bias: random(M),
            decoder: random(M * OUT),
            decoder_bias: random(OUT),
            skip: random(OUT * IN),
            extras: (0..extras)
                .map(|_| random(M).iter().map(|x| 0.3 * x.abs()).collect())
                .collect(),
            ends,
        }
    }

    fn length(&self, feature: usize) -> f64 {
        let row = &self.decoder[feature * OUT..(feature + 1) * OUT];
        self.ends.as_ref().map_or(1.0, |ends| {
            let squares = |part: &[f64]| part.iter().map(|x| x * x).sum::<f64>();
            parts(ends).map(|part| squares(&row[part]).sqrt()).sum()
        })
    }

    /// As the trainer holds them.
    fn parameters(&self) -> Parameters<f64> {
        let lengths: Vec<f64> = (0..M).map(|i| self.length(i)).collect();
        let by_row = |x: &[f64], d: usize, power: i32| -> Vec<f64> {
            let rows = x.chunks_exact(d).zip(&lengths);
            rows.flat_map(|(row, length)| row.iter().map(move |x| x * length.powi(power)))
                .collect()
        };
        Parameters {
            d: IN,
            d_out: OUT,
            tied: false,
            encoder: by_row(&self.encoder, IN, 1),
            encoder_bias: by_row(&self.bias, 1, 1),
            decoder: by_row(&self.decoder, OUT, -1),
            decoder_bias: self.decoder_bias.clone(),
            skip: Some(self.skip.clone()),
            lengths: self.ends.clone().map(|ends| Lengths {
                of_rows: lengths.clone(),
                ends,
            }),
            extras: self.extras.clone(),
        }
    }

    fn pre(&self, x: &[f64]) -> Vec<f64> {
        (0..M)
            .map(|i| {
                let row = self.encoder[i * IN..(i + 1) * IN].iter();
                let sum: f64 = row.zip(x).map(|(w, x)| w * x).sum();
                (sum + self.bias[i]) * self.length(i)
            })
            .collect()
    }

    /// Codes × decoder, without bias; codes are in units of the rows' lengths.
    fn decoded(&self, z: &[f64], width: usize) -> Vec<f64> {
        let mut out = vec![0.0; OUT];
        for i in 0..width {
            for (out, w) in out.iter_mut().zip(&self.decoder[i * OUT..]) {
                *out += z[i] / self.length(i) * w;
            }
        }
        out
    }

    /// What bias and skip matrix make.
    fn rest(&self, x: &[f64]) -> Vec<f64> {
        (0..OUT)
            .map(|j| {
                let row = self.skip[j * IN..(j + 1) * IN].iter();
                self.decoder_bias[j] + row.zip(x).map(|(w, x)| w * x).sum::<f64>()
            })
            .collect()
    }
}

fn plus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn squares(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

fn largest(pre: &[f64], among: &[usize], k: usize) -> Vec<f64> {
    let mut order = among.to_vec();
    order.retain(|&i| pre[i] > 0.0);
    order.sort_by(|&a, &b| pre[b].total_cmp(&pre[a]));
    let mut z = vec![0.0; pre.len()];
    for &i in order.iter().take(k) {
        z[i] = pre[i];
    }
    z
}

/// The loss of a batch by its definition; what is not differentiated is that of `at`.
fn loss(config: &KindConfig, p: &Moved, at: &Moved, x: &[f64], y: &[f64]) -> f64 {
    let tokens = || x.chunks_exact(IN).zip(y.chunks_exact(OUT));
    let all: Vec<usize> = (0..M).collect();
    let whole: Vec<f64> = x.chunks_exact(IN).flat_map(|x| p.pre(x)).collect();
    let of_batch = largest(&whole, &(0..N * M).collect::<Vec<_>>(), K * N);
    let mut total = 0.0;
    for (token, (x, y)) in tokens().enumerate() {
        let (pre, rest) = (p.pre(x), p.rest(x));
        let error = |z: &[f64], width: usize| squares(y, &plus(&p.decoded(z, width), &rest));
        let positive: Vec<f64> = pre.iter().map(|x| x.max(0.0)).collect();
        let l1 = WEIGHT * SPARSITY * positive.iter().sum::<f64>();
        total += match config {
            KindConfig::TopK { k } => error(&largest(&pre, &all, *k), M),
            KindConfig::BatchTopK { .. } => error(&of_batch[token * M..(token + 1) * M], M),
            KindConfig::Matryoshka { widths, .. } => widths
                .iter()
                .map(|&width| error(&of_batch[token * M..(token + 1) * M], width))
                .sum(),
            KindConfig::Relu { .. } => error(&positive, M) + l1,
            KindConfig::Gated { .. } => {
                let codes: Vec<f64> = (0..M)
                    .map(|i| {
                        let raw = pre[i] - p.bias[i] * p.length(i);
                        let size = (p.extras[0][i].exp() * raw + p.extras[1][i]).max(0.0);
                        if pre[i] > 0.0 { size } else { 0.0 }
                    })
                    .collect();
                // Decoder, its bias and the skip matrix of the second reconstruction are not differentiated.
                let frozen = plus(&at.decoded(&positive, M), &at.rest(x));
                error(&codes, M) + l1 + squares(y, &frozen)
            }
            KindConfig::JumpRelu { .. } => {
                let kept = pre.iter().zip(&p.extras[0]);
                let z: Vec<f64> = kept.map(|(&x, &t)| if x > t { x } else { 0.0 }).collect();
                let active = z.iter().filter(|&&z| z > 0.0).count() as f64;
                error(&z, M) + WEIGHT * SPARSITY * active
            }
        };
    }
    total * UNIT
}

/// The auxiliary loss of TopK by its definition.
fn auxiliary(which: AuxLoss, p: &Moved, at: &Moved, x: &[f64], y: &[f64]) -> f64 {
    let all: Vec<usize> = (0..M).collect();
    let dead: Vec<usize> = DEAD.iter().map(|&i| i as usize).collect();
    let (mut total, mut errors) = (0.0, Vec::new());
    for (x, y) in x.chunks_exact(IN).zip(y.chunks_exact(OUT)) {
        let z = largest(&at.pre(x), &all, K);
        let made = plus(&at.decoded(&z, M), &at.rest(x));
        let error: Vec<f64> = y.iter().zip(&made).map(|(y, made)| y - made).collect();
        let again = p.decoded(&largest(&p.pre(x), &dead, 2), M);
        let again = if which == AuxLoss::Sparsify {
            plus(&again, &p.decoder_bias)
        } else {
            again
        };
        total += squares(&error, &again);
        errors.extend(error);
    }
    let spread = |rows: &[f64]| -> f64 {
        (0..OUT)
            .map(|j| {
                let column = || rows.iter().skip(j).step_by(OUT);
                let mean = column().sum::<f64>() / N as f64;
                column().map(|x| (x - mean).powi(2)).sum::<f64>()
            })
            .sum()
    };
    0.3 * total
        / if which == AuxLoss::Sparsify {
            spread(y)
        } else {
            spread(&errors)
        }
}

fn kinds() -> Vec<(KindConfig, usize)> {
    vec![
        (KindConfig::TopK { k: K }, 0),
        (KindConfig::BatchTopK { k: K }, 0),
        (
            KindConfig::Matryoshka {
                k: K,
                widths: WIDTHS.to_vec(),
            },
            0,
        ),
        (KindConfig::Relu { weight: WEIGHT }, 0),
        (KindConfig::Gated { weight: WEIGHT }, 2),
        (
            KindConfig::JumpRelu {
                sparsity: JumpReluSparsity::Step { weight: WEIGHT },
                bandwidth: 0.5,
                threshold: Some(0.1),
                active: K,
                revive: 0.0,
            },
            1,
        ),
    ]
}

/// No constraint, one part, and two sites of different widths.
fn shapes() -> [Option<Vec<usize>>; 3] {
    [None, Some(vec![OUT]), Some(vec![2, OUT])]
}

fn rows() -> (Vec<f64>, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let mut random =
        |count: usize| -> Vec<f64> { (0..count).map(|_| rng.random_range(-1.0..1.0)).collect() };
    (random(N * IN), random(N * OUT))
}

type Part = fn(&mut Moved) -> &mut Vec<f64>;

/// Compares with finite differences of `expected`.
fn agrees(what: &str, found: &[f64], moved: &Moved, part: Part, expected: &dyn Fn(&Moved) -> f64) {
    let mut largest = 0.0_f64;
    for (at, &found) in found.iter().enumerate() {
        let by = |step: f64| {
            let mut moved = moved.clone();
            part(&mut moved)[at] += step;
            expected(&moved)
        };
        let slope = (by(1e-6) - by(-1e-6)) / 2e-6;
        assert!(
            (found - slope).abs() < 1e-7,
            "{what} {at}: {found} against {slope}"
        );
        largest = largest.max(found.abs());
    }
    assert!(largest > 1e-3, "{what}: all gradients vanish");
}

fn check(config: &KindConfig, moved: &Moved, which: AuxLoss, dead: &[u32], share: f64) {
    let (x, y) = rows();
    let mut kind = config.build::<f64>(Aux {
        loss: which,
        weight: 0.3,
        k: 2,
    });
    kind.remember(&[share]);
    let parameters = moved.parameters();
    let step = Step {
        variance: VARIANCE,
        dead,
        sparsity: SPARSITY,
    };
    let batch = batch(&mut *kind, &parameters, &Rows::pairs(&x, &y), &step);
    let expected = |p: &Moved| {
        let more = if dead.is_empty() {
            0.0
        } else {
            auxiliary(which, p, moved, &x, &y)
        };
        loss(config, p, moved, &x, &y) + more
    };
    let what = format!("{config:?} {:?}", moved.ends);
    assert!((batch.loss() - expected(moved)).abs() < 1e-12, "{what}");
    let (mut decoder, encoder, bias) = gradients(&parameters, &batch);
    if moved.ends.is_none() {
        // Rows of length one: the part along the row, which is left out, is put back.
        let mut whole = vec![0.0; IN];
        for (i, row) in decoder.chunks_exact_mut(OUT).enumerate() {
            batch.rows(i, row, &mut whole);
        }
    }
    agrees(&what, &decoder, moved, |p| &mut p.decoder, &expected);
    agrees(&what, &encoder, moved, |p| &mut p.encoder, &expected);
    agrees(&what, &bias, moved, |p| &mut p.bias, &expected);
    let skip = batch.skip.as_ref().expect("there is a skip matrix");
    agrees(&what, skip, moved, |p| &mut p.skip, &expected);
    let sums = crate::learn::Sums::of(&parameters, &batch);
    let found = &sums.decoder_bias;
    agrees(&what, found, moved, |p| &mut p.decoder_bias, &expected);
    // The thresholds of JumpReLU have no true derivatives.
    if let KindConfig::Gated { .. } = config {
        agrees(
            &what,
            &sums.extras[0],
            moved,
            |p| &mut p.extras[0],
            &expected,
        );
        agrees(
            &what,
            &sums.extras[1],
            moved,
            |p| &mut p.extras[1],
            &expected,
        );
    }
}

#[test]
fn transcoders_of_every_kind_and_rows_of_free_length() {
    for ends in shapes() {
        for (config, extras) in kinds() {
            let moved = Moved::random(extras, ends.clone());
            for share in [0.0, 1.0] {
                check(&config, &moved, AuxLoss::Openai, &[], share);
            }
        }
    }
}

#[test]
fn auxiliary_losses_of_transcoders() {
    for ends in shapes() {
        let moved = Moved::random(0, ends);
        for which in [AuxLoss::Openai, AuxLoss::Sparsify] {
            check(&KindConfig::TopK { k: K }, &moved, which, &DEAD, 0.0);
        }
    }
}

#[test]
fn an_update_moves_what_it_should_and_brings_rows_back() {
    let (x, y) = rows();
    for ends in [vec![OUT], vec![2, OUT]] {
        let moved = Moved::random(0, Some(ends));
        let mut parameters = moved.parameters();
        let mut kind = KindConfig::Relu { weight: WEIGHT }.build::<f64>(Aux {
            loss: AuxLoss::Openai,
            weight: 0.0,
            k: 1,
        });
        let step = Step {
            variance: VARIANCE,
            dead: &[],
            sparsity: SPARSITY,
        };
        let batch = batch(&mut *kind, &parameters, &Rows::pairs(&x, &y), &step);
        let (decoder, encoder, bias) = gradients(&parameters, &batch);
        let mut moments = Moments::zero(&parameters);
        let rate = 1e-3;
        let adam = Adam::at(1, rate, (0.9, 0.999));
        update(&mut parameters, &mut moments, &batch, adam, None);
        // The first step of Adam moves every number by the rate, against its gradient's sign.
        let mut expected = moved.clone();
        let skip = batch.skip.clone().expect("there is a skip matrix");
        for (p, g) in [
            (&mut expected.decoder, &decoder),
            (&mut expected.encoder, &encoder),
            (&mut expected.bias, &bias),
            (&mut expected.skip, &skip),
        ] {
            for (p, g) in p.iter_mut().zip(g) {
                *p -= rate * g / (g.abs() + 1e-8);
            }
        }
        let expected = expected.parameters();
        let close = |found: &[f64], expected: &[f64]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-9, "{found} {expected}");
            }
        };
        close(&parameters.decoder, &expected.decoder);
        close(&parameters.encoder, &expected.encoder);
        close(&parameters.encoder_bias, &expected.encoder_bias);
        let lengths = |p: &Parameters<f64>| p.lengths.as_ref().map(|l| l.of_rows.clone());
        close(
            &lengths(&parameters).expect("free"),
            &lengths(&expected).expect("free"),
        );
        close(
            parameters.skip.as_ref().expect("kept"),
            expected.skip.as_ref().expect("kept"),
        );
    }
}
