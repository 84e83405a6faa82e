//! The units in which a dictionary is trained, and how they are undone in what is saved.

use faer::linalg::solvers::SelfAdjointEigen;
use faer::{Mat, Side};
use pullback_kernels::{Matrix, Threads, product};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Wire;
use crate::kinds::Kind;
use crate::learn::Parameters;
use crate::{Normalization, Sae, SaeError, SaeParts};

/// What is done to activations before a dictionary is trained on them. None of it needs anything of whoever uses the
/// dictionary: it is folded into the weights, or done by the dictionary itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputNorm {
    /// Nothing.
    None,
    /// Each site is multiplied by `sqrt(d) / mean ‖x‖` (`expected_average_only_in` of `SAELens`); folded.
    #[default]
    Average,
    /// Each activation is scaled to the length `sqrt(d)`, and its reconstruction back (`constant_norm_rescale`).
    ConstantNorm,
    /// Each activation is centred and divided by its standard deviation, and its reconstruction back (`layer_norm`).
    LayerNorm,
    /// Activations are centred and multiplied by the inverse square root of their covariance (arXiv 2511.13981); folded.
    Whitening,
}

impl InputNorm {
    /// The modes by the names of the command line.
    pub const NAMES: [&'static str; 5] = [
        "none",
        "average",
        "constant-norm",
        "layer-norm",
        "whitening",
    ];

    /// The mode of that name.
    ///
    /// # Errors
    /// No mode has it.
    pub fn named(name: &str) -> Result<Self, SaeError> {
        Ok(match name {
            "none" => Self::None,
            "average" => Self::Average,
            "constant-norm" => Self::ConstantNorm,
            "layer-norm" => Self::LayerNorm,
            "whitening" => Self::Whitening,
            _ => {
                return Err(SaeError::Option(format!(
                    "`{name}` is no way to normalise activations: {}",
                    Self::NAMES.join(", ")
                )));
            }
        })
    }
}

/// How activations become what is trained on.
#[derive(Clone, Debug)]
pub(super) enum Units {
    /// Each site has a factor.
    Factors(Vec<(f64, usize)>),
    /// Each row by itself.
    Rows(Normalization, usize),
    /// Centred and whitened.
    White(Whitening),
}

/// `x ↦ (x − mean)·root⁻¹`, where `root` is the square root of the covariance.
#[derive(Clone, Debug)]
pub(super) struct Whitening {
    mean: Vec<f32>,
    /// `[d, d]`, symmetric.
    root: Vec<f32>,
    inverse: Vec<f32>,
}

/// Eigenvalues of the covariance below this share of their mean count as that: directions that hardly vary in the sample
/// are not blown up.
const LEAST_VARIANCE: f64 = 1e-4;

impl Units {
    /// From a sample `[n, Σ d]` of the sites side by side.
    pub(super) fn of(mode: InputNorm, sample: &[f32], wires: &[Wire]) -> Result<Self, SaeError> {
        let d: usize = wires.iter().map(|wire| wire.d).sum();
        let alone = || {
            if wires.len() == 1 {
                Ok(())
            } else {
                Err(SaeError::Option(
                    "several sites can be normalised by factors only (average), or not at all (none)"
                        .to_owned(),
                ))
            }
        };
        let ones = || wires.iter().map(|wire| (1.0, wire.d)).collect();
        Ok(match mode {
            InputNorm::None => Self::Factors(ones()),
            InputNorm::Average => {
                let mut start = 0;
                let mut factors = Vec::with_capacity(wires.len());
                for wire in wires {
                    factors.push((average_factor(sample, d, start..start + wire.d), wire.d));
                    start += wire.d;
                }
                Self::Factors(factors)
            }
            InputNorm::ConstantNorm | InputNorm::LayerNorm => {
                alone()?;
                let by_row = if mode == InputNorm::LayerNorm {
                    Normalization::Layer
                } else {
                    Normalization::ConstantNorm
                };
                Self::Rows(by_row, d)
            }
            InputNorm::Whitening => {
                alone()?;
                Self::White(Whitening::of(sample, d)?)
            }
        })
    }

    /// Brings rows into these units, in place.
    pub(super) fn apply(&self, x: &mut [f32]) {
        match self {
            Self::Factors(factors) => {
                if let [(factor, _)] = factors[..] {
                    if factor != 1.0 {
                        x.par_chunks_mut(1 << 15).for_each(|x| {
                            for x in x {
                                *x *= factor as f32;
                            }
                        });
                    }
                    return;
                }
                let each: Vec<f32> = per_column(factors).map(|x| x as f32).collect();
                for row in x.chunks_exact_mut(each.len()) {
                    for (x, factor) in row.iter_mut().zip(&each) {
                        *x *= factor;
                    }
                }
            }
            Self::Rows(normalization, d) => {
                x.par_chunks_mut(*d).for_each(|row| {
                    let (shift, factor) = normalization.of_row(row);
                    for x in row {
                        *x = (*x - shift) * factor;
                    }
                });
            }
            Self::White(white) => {
                let d = white.mean.len();
                for row in x.chunks_exact_mut(d) {
                    for (x, mean) in row.iter_mut().zip(&white.mean) {
                        *x -= mean;
                    }
                }
                let out = times(x, &white.inverse, d);
                x.copy_from_slice(&out);
            }
        }
    }
}

/// The factor of each column.
fn per_column(factors: &[(f64, usize)]) -> impl Iterator<Item = f64> + '_ {
    factors
        .iter()
        .flat_map(|&(factor, d)| std::iter::repeat_n(factor, d))
}

/// `x·matrix` for rows `x [n, d]` and `matrix [d, d]`.
fn times(x: &[f32], matrix: &[f32], d: usize) -> Vec<f32> {
    product(
        Matrix::new(x, x.len() / d, d, d),
        Matrix::new(matrix, d, d, d),
        Threads::All,
    )
}

/// `sqrt(d) / mean ‖x‖` over some columns of rows of width `d`.
fn average_factor(sample: &[f32], d: usize, columns: std::ops::Range<usize>) -> f64 {
    let total: f64 = sample
        .chunks_exact(d)
        .map(|row| {
            let squares = row[columns.clone()].iter();
            squares
                .map(|&x| f64::from(x) * f64::from(x))
                .sum::<f64>()
                .sqrt()
        })
        .sum();
    (columns.len() as f64).sqrt() * (sample.len() / d) as f64 / total
}

impl Whitening {
    fn of(sample: &[f32], d: usize) -> Result<Self, SaeError> {
        let n = sample.len() / d;
        if n <= d {
            return Err(SaeError::Option(format!(
                "whitening needs the covariance of width {d}, and {n} rows do not give it: harvest more tokens"
            )));
        }
        let mut mean = vec![0.0_f64; d];
        for row in sample.chunks_exact(d) {
            for (mean, &x) in mean.iter_mut().zip(row) {
                *mean += f64::from(x) / n as f64;
            }
        }
        let centred = Mat::from_fn(n, d, |i, j| f64::from(sample[i * d + j]) - mean[j]);
        let covariance = centred.transpose() * &centred * faer::Scale(1.0 / n as f64);
        let eigen = SelfAdjointEigen::new(covariance.as_ref(), Side::Lower).map_err(|error| {
            SaeError::Option(format!(
                "the covariance of the activations has no eigenvalues: {error:?}"
            ))
        })?;
        let values: Vec<f64> = (0..d).map(|i| eigen.S()[i]).collect();
        let least = LEAST_VARIANCE * values.iter().sum::<f64>() / d as f64;
        let vectors = eigen.U();
        let power = |exponent: f64| -> Vec<f32> {
            let scaled = Mat::from_fn(d, d, |i, j| {
                vectors[(i, j)] * values[j].max(least).powf(exponent)
            });
            let matrix = &scaled * vectors.transpose();
            (0..d * d)
                .map(|at| matrix[(at / d, at % d)] as f32)
                .collect()
        };
        Ok(Self {
            root: power(0.5),
            inverse: power(-0.5),
            mean: mean.into_iter().map(|x| x as f32).collect(),
        })
    }
}

/// The dictionary in the units of the activations. Codes are in units of their own: uniformly scaled, so that decoder rows
/// keep length one where there is one factor.
pub(super) fn in_units_of_activations(
    parameters: &Parameters<f32>,
    kind: &dyn Kind<f32>,
    inputs: &Units,
    outputs: &Units,
) -> Result<Sae, SaeError> {
    let (d, d_out) = (parameters.d, parameters.d_out);
    let bias_of_input = |decoder_bias: &[f32]| {
        if parameters.tied {
            decoder_bias.to_vec()
        } else {
            vec![0.0; d]
        }
    };
    match (inputs, outputs) {
        (Units::Factors(ins), Units::Factors(outs)) => {
            let logs: f64 = outs.iter().map(|(factor, _)| factor.ln()).sum();
            let scale = match outs[..] {
                [(only, _)] => only,
                _ => (logs / outs.len() as f64).exp(),
            };
            let ins: Vec<f64> = per_column(ins).collect();
            let outs: Vec<f64> = per_column(outs).collect();
            let by_columns = |x: &[f32], factor: &dyn Fn(usize) -> f64, width: usize| {
                let factors: Vec<f32> = (0..width).map(|at| factor(at) as f32).collect();
                let mut out = x.to_vec();
                // One site's factors are ones: what scales it has gone into the codes.
                if factors.iter().any(|&factor| factor != 1.0) {
                    out.par_chunks_mut(width).for_each(|row| {
                        for (x, factor) in row.iter_mut().zip(&factors) {
                            *x *= factor;
                        }
                    });
                }
                out
            };
            // Divided, not multiplied by an inverse: the bits of one site's biases are those of a division.
            let decoder_bias: Vec<f32> = parameters
                .decoder_bias
                .iter()
                .zip(&outs)
                .map(|(b, &factor)| b / factor as f32)
                .collect();
            Sae::new(SaeParts {
                selection: kind.selection(parameters, scale),
                encoder: by_columns(&parameters.encoder, &|at| ins[at] / scale, d),
                encoder_bias: parameters.encoder_bias.iter().map(|b| b / scale as f32).collect(),
                decoder: by_columns(&parameters.decoder, &|at| scale / outs[at], d_out),
                input_bias: bias_of_input(&decoder_bias),
                decoder_bias,
                normalization: Normalization::None,
                skip: parameters.skip.as_ref().map(|skip| {
                    let rows = skip.chunks_exact(d).zip(&outs);
                    rows.flat_map(|(row, out)| {
                        row.iter().zip(&ins).map(move |(x, factor)| x * (factor / out) as f32)
                    })
                    .collect()
                }),
            })
        }
        (Units::Rows(normalization, _), _) => Sae::new(SaeParts {
            selection: kind.selection(parameters, 1.0),
            encoder: parameters.encoder.clone(),
            encoder_bias: parameters.encoder_bias.clone(),
            decoder: parameters.decoder.clone(),
            input_bias: bias_of_input(&parameters.decoder_bias),
            decoder_bias: parameters.decoder_bias.clone(),
            normalization: *normalization,
            skip: None,
        }),
        (Units::White(white), _) => {
            let decoder_bias: Vec<f32> = times(&parameters.decoder_bias, &white.root, d)
                .into_iter()
                .zip(&white.mean)
                .map(|(b, mean)| b + mean)
                .collect();
            Sae::new(SaeParts {
                selection: kind.selection(parameters, 1.0),
                encoder: times(&parameters.encoder, &white.inverse, d),
                encoder_bias: parameters.encoder_bias.clone(),
                decoder: times(&parameters.decoder, &white.root, d),
                input_bias: decoder_bias.clone(),
                decoder_bias,
                normalization: Normalization::None,
                skip: None,
            })
        }
        (Units::Factors(_), _) => Err(SaeError::Option(
            "a transcoder's input and output are normalised by factors only (average), or not at all (none)"
                .to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests;
