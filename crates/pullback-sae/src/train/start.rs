//! Where training starts: the parameters, and what is measured on the first rows.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{DecoderNorm, TrainConfig, Wires};
use crate::kinds::Kind;
use crate::learn::{Lengths, Parameters, Rows, Step, batch};

/// Rows that the geometric median is taken of.
const MEDIAN_ROWS: usize = 4096;
/// Length of an encoder row at the start where the decoder is not its copy.
const UNRELATED_SCALE: f32 = 0.25;
/// Length of a decoder row at the start where it is free: Adam's steps are then as long beside it as beside one of length
/// one. (`SAELens` starts at 0.1, `decoder_init_norm`.)
const FREE_LENGTH: f32 = 1.0;

/// Variance of rows of width `d` about their mean, summed over coordinates.
pub(super) fn variance(rows: &[f32], d: usize) -> f64 {
    let mut sum = vec![0.0_f64; d];
    let mut squares = 0.0;
    for row in rows.chunks_exact(d) {
        for (sum, &x) in sum.iter_mut().zip(row) {
            *sum += f64::from(x);
            squares += f64::from(x) * f64::from(x);
        }
    }
    let n = (rows.len() / d) as f64;
    squares / n - sum.iter().map(|sum| (sum / n) * (sum / n)).sum::<f64>()
}

/// The start, given some rows in the units of training: unit decoder rows in random directions, the decoder bias the
/// geometric median of the target. The encoder of what reconstructs its input is a copy of the decoder, otherwise it has
/// random unit rows of its own; where the decoder bias is not taken from the input, the encoder bias takes the input's
/// geometric median from it, so that pre-activations start about zero.
pub(super) fn initial(
    (x, target): (&[f32], &[f32]),
    wires: &Wires,
    config: &TrainConfig,
    kind: &dyn Kind<f32>,
) -> Parameters<f32> {
    let (d, d_out) = (wires.d(), wires.d_out());
    let m = config.features;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let widths: Vec<usize> = wires.outputs.iter().map(|wire| wire.d).collect();
    let mut decoder = unit_rows(&mut rng, m, d_out);
    // The same direction at all sites, where they can be compared: what most features of residual streams become.
    if widths.len() > 1 && widths.iter().all(|&width| width == widths[0]) {
        for row in decoder.chunks_exact_mut(d_out) {
            let (first, others) = row.split_at_mut(widths[0]);
            for part in others.chunks_exact_mut(widths[0]) {
                part.copy_from_slice(first);
            }
        }
    }
    let lengths = (config.decoder_norm == DecoderNorm::Free).then(|| {
        let ends = widths.iter().scan(0, |end, width| {
            *end += width;
            Some(*end)
        });
        Lengths {
            of_rows: vec![FREE_LENGTH; m],
            ends: ends.collect(),
        }
    });
    let tied = config.wiring.is_tied();
    let ends = lengths
        .as_ref()
        .map_or(vec![d_out], |lengths| lengths.ends.clone());
    if ends.len() > 1 {
        for row in decoder.chunks_exact_mut(d_out) {
            let length: f32 = crate::learn::parts(&ends)
                .map(|part| length(&row[part]))
                .sum();
            divide(row, length);
        }
    }
    let encoder = if config.wiring.is_same() {
        decoder.clone()
    } else {
        unit_rows(&mut rng, m, d)
    };
    let median = |rows: &[f32], d: usize| -> Vec<f32> {
        let rows = &rows[..rows.len().min(MEDIAN_ROWS * d)];
        geometric_median(rows, d)
            .into_iter()
            .map(|x| x as f32)
            .collect()
    };
    let encoder_bias = if tied {
        vec![0.0; m]
    } else {
        let median = median(x, d);
        let rows = encoder.chunks_exact(d);
        rows.map(|row| -row.iter().zip(&median).map(|(w, x)| w * x).sum::<f32>())
            .collect()
    };
    Parameters {
        d,
        d_out,
        tied,
        encoder,
        encoder_bias,
        decoder,
        decoder_bias: median(target, d_out),
        skip: config.wiring.has_skip().then(|| vec![0.0; d * d_out]),
        lengths,
        extras: kind.extras(m),
    }
}

/// Scales the encoder of the start, so that the features reconstruct the rows as well as such a start can.
///
/// With rows of length one the codes of random features are far too long: thousands of directions that overlap, and each
/// says the whole of what they share. Training then has to shorten them first, and features die meanwhile. The best of
/// the powers of `2^-½` down to 1/16 is taken, each with the thresholds that the kind gives it. Where the decoder knows
/// nothing of the encoder, as in a transcoder, the best would be silence, from which many features do not come back: its
/// scale is a quarter.
pub(super) fn choose_scale(
    parameters: &mut Parameters<f32>,
    config: &TrainConfig,
    rows: &Rows<'_, f32>,
    variance: f64,
) {
    let scaled = |scale: f32| {
        let mut scaled = parameters.clone();
        for x in scaled.encoder.iter_mut().chain(&mut scaled.encoder_bias) {
            *x *= scale;
        }
        scaled
    };
    if !config.wiring.is_same() {
        *parameters = scaled(UNRELATED_SCALE);
        return;
    }
    let step = Step {
        variance,
        dead: &[],
        sparsity: 0.0,
    };
    let loss = |scale: f32| {
        let mut at = scaled(scale);
        let mut kind = config.kind.build(config.aux(at.d_out));
        kind.prepare(&mut at, rows.x);
        batch(&mut *kind, &at, rows, &step).reconstruction
    };
    let mut best = (f64::INFINITY, 1.0);
    for power in 0..=8_u8 {
        let scale = 0.5_f32.powf(f32::from(power) / 2.0);
        let loss = loss(scale);
        if loss < best.0 {
            best = (loss, scale);
        }
    }
    *parameters = scaled(best.1);
}

fn unit_rows(rng: &mut ChaCha8Rng, m: usize, d: usize) -> Vec<f32> {
    let mut rows = vec![0.0_f32; m * d];
    for row in rows.chunks_exact_mut(d) {
        for x in row.iter_mut() {
            *x = rng.random_range(-1.0..1.0);
        }
        let length = length(row);
        divide(row, length);
    }
    rows
}

fn divide(row: &mut [f32], by: f32) {
    for x in row {
        *x /= by;
    }
}

fn length(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// The point with the least sum of distances to the rows, by Weiszfeld's iteration.
fn geometric_median(rows: &[f32], d: usize) -> Vec<f64> {
    let n = rows.len() / d;
    let mut at = vec![0.0; d];
    for row in rows.chunks_exact(d) {
        for (at, &x) in at.iter_mut().zip(row) {
            *at += f64::from(x) / n as f64;
        }
    }
    for _ in 0..100 {
        let mut next = vec![0.0; d];
        let mut total = 0.0;
        for x in rows.chunks_exact(d) {
            let squares: f64 = x
                .iter()
                .zip(&at)
                .map(|(&x, a)| (f64::from(x) - a).powi(2))
                .sum();
            let weight = squares.sqrt().max(1e-12).recip();
            total += weight;
            for (next, &x) in next.iter_mut().zip(x) {
                *next += weight * f64::from(x);
            }
        }
        let mut moved = 0.0;
        let mut length = 0.0;
        for (at, next) in at.iter_mut().zip(next) {
            let next = next / total;
            moved += (next - *at).powi(2);
            length += next * next;
            *at = next;
        }
        if moved <= 1e-10 * length {
            break;
        }
    }
    at
}
