//! A dictionary of any kind, ready to use.

use std::sync::OnceLock;

use pullback_kernels::sparse::{PreparedEncoder, SparseCodes, decode, encode_each, encode_top_k};
use pullback_kernels::{Matrix, Threads, product};

use crate::{Dictionary, SaeError};

/// Which pre-activations become codes, and how.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// Those above zero.
    Relu,
    /// The `k` largest of those above zero (Gao et al., arXiv 2406.04093, section 2.3).
    TopK {
        /// How many, at most.
        k: usize,
    },
    /// Those above zero and above the feature's threshold (Rajamanoharan et al., arXiv 2407.14435); what `BatchTopK`
    /// dictionaries become once they are trained.
    Threshold {
        /// One a feature.
        thresholds: Vec<f32>,
    },
    /// Features whose pre-activation is above zero are open; an open one's code is
    /// `relu(scale·w·(x − input_bias) + bias)` (Rajamanoharan et al., arXiv 2404.16014, section 3.2; the encoder bias is
    /// that of the gate).
    Gated {
        /// `exp(r_mag)`, one a feature.
        scales: Vec<f32>,
        /// Bias of the magnitude, one a feature.
        biases: Vec<f32>,
    },
}

impl Selection {
    /// The name of the kind: `relu`, `topk`, `jumprelu` or `gated`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::TopK { .. } => "topk",
            Self::Threshold { .. } => "jumprelu",
            Self::Gated { .. } => "gated",
        }
    }
}

/// What is done to each activation before the encoder, and undone after the decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalization {
    /// Nothing.
    #[default]
    None,
    /// Each activation is scaled to the length `sqrt(d)`.
    ConstantNorm,
    /// Each activation is centred and divided by its standard deviation (with `d − 1`) plus 1e-5.
    Layer,
}

impl Normalization {
    /// What is taken from an activation, and what it is multiplied with then.
    pub(crate) fn of_row(self, x: &[f32]) -> (f32, f32) {
        let d = x.len() as f64;
        let square = |shift: f64| {
            let squares = x.iter().map(|&x| (f64::from(x) - shift).powi(2));
            squares.sum::<f64>()
        };
        match self {
            Self::None => (0.0, 1.0),
            Self::ConstantNorm => (0.0, (d / square(0.0)).sqrt() as f32),
            Self::Layer => {
                let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / d;
                let deviation = (square(mean) / (d - 1.0)).sqrt();
                (mean as f32, (deviation + LAYER_EPS).recip() as f32)
            }
        }
    }
}

/// The parts of a dictionary.
#[derive(Clone, Debug, PartialEq)]
pub struct SaeParts {
    /// Which pre-activations become codes.
    pub selection: Selection,
    /// `[m, d]`, one row a feature.
    pub encoder: Vec<f32>,
    /// `[m]`.
    pub encoder_bias: Vec<f32>,
    /// `[m, d_out]`, one row a feature.
    pub decoder: Vec<f32>,
    /// `[d_out]`.
    pub decoder_bias: Vec<f32>,
    /// Taken from the input before the encoder, `[d]`: the decoder bias in most autoencoders, zeros in transcoders.
    pub input_bias: Vec<f32>,
    /// What is done to each activation first.
    pub normalization: Normalization,
    /// Added to the output: `x·skipᵀ`, `[d_out, d]`.
    pub skip: Option<Vec<f32>>,
}

/// A sparse autoencoder or transcoder: `pre = (x − input_bias)·W_enc + b_enc`, codes `z` from `pre` by the
/// [`Selection`], output `z·W_dec + b_dec (+ W_skip·x)`.
///
/// Both matrices are kept one row a feature: `encoder` is the transpose of SAELens's `W_enc`.
///
/// A TopK dictionary keeps what screening needs of the encoder from the first large batch on that it encodes: a quarter of
/// the memory of both matrices with AMX, an eighth with VNNI.
#[derive(Debug)]
pub struct Sae {
    parts: SaeParts,
    screen: OnceLock<PreparedEncoder>,
}

impl Clone for Sae {
    fn clone(&self) -> Self {
        Self {
            parts: self.parts.clone(),
            screen: OnceLock::new(),
        }
    }
}

impl PartialEq for Sae {
    fn eq(&self, other: &Self) -> bool {
        self.parts == other.parts
    }
}

/// Rows from which on a batch counts as large.
const LARGE_BATCH: usize = 32;

impl Sae {
    /// A TopK autoencoder from `encoder [m, d]`, `encoder_bias [m]`, `decoder [m, d]`, `decoder_bias [d]`.
    ///
    /// # Errors
    /// As [`Sae::new`].
    pub fn top_k(
        k: usize,
        encoder: Vec<f32>,
        encoder_bias: Vec<f32>,
        decoder: Vec<f32>,
        decoder_bias: Vec<f32>,
    ) -> Result<Self, SaeError> {
        Self::new(SaeParts {
            selection: Selection::TopK { k },
            encoder,
            encoder_bias,
            decoder,
            input_bias: decoder_bias.clone(),
            decoder_bias,
            normalization: Normalization::None,
            skip: None,
        })
    }

    /// From its parts.
    ///
    /// # Errors
    /// The sizes do not agree, `k` is not between 1 and the number of features, or activations are normalised where
    /// outputs are of another width.
    pub fn new(parts: SaeParts) -> Result<Self, SaeError> {
        let (m, d, d_out) = (
            parts.encoder_bias.len(),
            parts.input_bias.len(),
            parts.decoder_bias.len(),
        );
        if parts.encoder.len() != m * d
            || parts.decoder.len() != m * d_out
            || m == 0
            || d == 0
            || d_out == 0
        {
            return Err(SaeError::Option(format!(
                "the parts of a dictionary do not agree: encoder {}, decoder {}, {m} features of width {d} to {d_out}",
                parts.encoder.len(),
                parts.decoder.len()
            )));
        }
        let sizes: &[(&str, usize)] = match &parts.selection {
            Selection::Relu => &[],
            Selection::TopK { k } => {
                if *k == 0 || *k > m {
                    return Err(SaeError::Option(format!(
                        "k is {k}, it must be between 1 and the {m} features"
                    )));
                }
                &[]
            }
            Selection::Threshold { thresholds } => &[("thresholds", thresholds.len())],
            Selection::Gated { scales, biases } => &[
                ("scales of magnitudes", scales.len()),
                ("biases of magnitudes", biases.len()),
            ],
        };
        if let Some((what, size)) = sizes.iter().find(|(_, size)| *size != m) {
            return Err(SaeError::Option(format!("{size} {what} for {m} features")));
        }
        if let Some(skip) = &parts.skip
            && skip.len() != d * d_out
        {
            return Err(SaeError::Option(format!(
                "the skip matrix has {} elements, {d_out}×{d} are needed",
                skip.len()
            )));
        }
        if parts.normalization != Normalization::None && d != d_out {
            return Err(SaeError::Option(format!(
                "activations of width {d} are normalised, which cannot be undone in outputs of width {d_out}"
            )));
        }
        Ok(Self {
            parts,
            screen: OnceLock::new(),
        })
    }

    /// All parts.
    pub fn parts(&self) -> &SaeParts {
        &self.parts
    }

    /// All parts, to change them.
    pub fn into_parts(self) -> SaeParts {
        self.parts
    }

    /// Which pre-activations become codes.
    pub fn selection(&self) -> &Selection {
        &self.parts.selection
    }

    /// Active features a token, at most, where their number is limited.
    pub fn k(&self) -> Option<usize> {
        match self.parts.selection {
            Selection::TopK { k } => Some(k),
            _ => None,
        }
    }

    /// Encoder, one row a feature: `[n_features, d]`.
    pub fn encoder(&self) -> &[f32] {
        &self.parts.encoder
    }

    /// Encoder bias `[n_features]`.
    pub fn encoder_bias(&self) -> &[f32] {
        &self.parts.encoder_bias
    }

    /// Taken from the input before the encoder, `[d]`.
    pub fn input_bias(&self) -> &[f32] {
        &self.parts.input_bias
    }

    /// What the encoder multiplies: activations normalised and without the input bias.
    pub(crate) fn prepared(&self, x: &[f32]) -> Vec<f32> {
        let mut out = x.to_vec();
        for row in out.chunks_exact_mut(self.d()) {
            let (shift, factor) = self.parts.normalization.of_row(row);
            for (x, &b) in row.iter_mut().zip(&self.parts.input_bias) {
                // `x − b` exactly where nothing is normalised.
                *x = if self.parts.normalization == Normalization::None {
                    *x - b
                } else {
                    (*x - shift) * factor - b
                };
            }
        }
        out
    }
}

/// Added to the standard deviation of a normalised activation.
const LAYER_EPS: f64 = 1e-5;

impl Dictionary for Sae {
    fn d(&self) -> usize {
        self.parts.input_bias.len()
    }

    fn n_features(&self) -> usize {
        self.parts.encoder_bias.len()
    }

    fn encode(&self, x: &[f32]) -> SparseCodes<f32> {
        let (encoder, bias) = (&self.parts.encoder, &self.parts.encoder_bias);
        let x = self.prepared(x);
        match &self.parts.selection {
            Selection::TopK { k } if x.len() < LARGE_BATCH * self.d() => {
                encode_top_k(&x, encoder, bias, *k, None).codes
            }
            Selection::TopK { k } => {
                let screen = self
                    .screen
                    .get_or_init(|| PreparedEncoder::new(encoder, bias));
                screen.encode_top_k(&x, encoder, bias, *k, None).codes
            }
            Selection::Relu => encode_each(&x, encoder, bias, |_, pre| pre),
            Selection::Threshold { thresholds } => encode_each(&x, encoder, bias, |i, pre| {
                if pre > thresholds[i] { pre } else { 0.0 }
            }),
            Selection::Gated { scales, biases } => encode_each(&x, encoder, bias, |i, pre| {
                if pre > 0.0 {
                    scales[i] * (pre - bias[i]) + biases[i]
                } else {
                    0.0
                }
            }),
        }
    }

    fn decoder(&self) -> &[f32] {
        &self.parts.decoder
    }

    fn decoder_bias(&self) -> &[f32] {
        &self.parts.decoder_bias
    }

    fn reconstruct(&self, x: &[f32], codes: &SparseCodes<f32>) -> Vec<f32> {
        let (d, d_out) = (self.d(), self.d_out());
        let mut out = decode(codes, &self.parts.decoder, &self.parts.decoder_bias);
        if let Some(skip) = &self.parts.skip {
            let prepared;
            let from = if self.parts.normalization == Normalization::None {
                x
            } else {
                prepared = self.prepared(x);
                &prepared
            };
            let added = product(
                Matrix::new(from, codes.tokens(), d, d),
                Matrix::new(skip, d_out, d, d).transposed(),
                Threads::All,
            );
            for (out, added) in out.iter_mut().zip(added) {
                *out += added;
            }
        }
        if self.parts.normalization != Normalization::None {
            for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
                let (shift, factor) = self.parts.normalization.of_row(x);
                // SAELens multiplies by the deviation itself, without what was added to it.
                let back = match self.parts.normalization {
                    Normalization::Layer => factor.recip() - LAYER_EPS as f32,
                    _ => factor.recip(),
                };
                for out in out {
                    *out = *out * back + shift;
                }
            }
        }
        out
    }
}
