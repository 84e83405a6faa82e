//! The TopK sparse autoencoder (Gao et al., arXiv 2406.04093, section 2.3).

use pullback_kernels::sparse::{SparseCodes, encode_top_k};

use crate::{Dictionary, SaeError};

/// `z = relu(top_k((x − b_dec)·W_enc + b_enc))`, `x̂ = z·W_dec + b_dec`.
///
/// Both matrices are kept one row a feature: `encoder` is the transpose of SAELens's `W_enc`.
#[derive(Clone, Debug, PartialEq)]
pub struct TopKSae {
    d: usize,
    k: usize,
    encoder: Vec<f32>,
    encoder_bias: Vec<f32>,
    decoder: Vec<f32>,
    decoder_bias: Vec<f32>,
}

impl TopKSae {
    /// From its parts: `encoder [m, d]`, `encoder_bias [m]`, `decoder [m, d]`, `decoder_bias [d]`.
    ///
    /// # Errors
    /// The sizes do not agree, or `k` is not between 1 and the number of features.
    pub fn new(
        k: usize,
        encoder: Vec<f32>,
        encoder_bias: Vec<f32>,
        decoder: Vec<f32>,
        decoder_bias: Vec<f32>,
    ) -> Result<Self, SaeError> {
        let (m, d) = (encoder_bias.len(), decoder_bias.len());
        if encoder.len() != m * d || decoder.len() != m * d || m == 0 || d == 0 {
            return Err(SaeError::Option(format!(
                "the parts of a dictionary do not agree: encoder {}, decoder {}, {m} features of width {d}",
                encoder.len(),
                decoder.len()
            )));
        }
        if k == 0 || k > m {
            return Err(SaeError::Option(format!(
                "k is {k}, it must be between 1 and the {m} features"
            )));
        }
        Ok(Self {
            d,
            k,
            encoder,
            encoder_bias,
            decoder,
            decoder_bias,
        })
    }

    /// Active features a token, at most.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Encoder, one row a feature: `[n_features, d]`.
    pub fn encoder(&self) -> &[f32] {
        &self.encoder
    }

    /// Encoder bias `[n_features]`.
    pub fn encoder_bias(&self) -> &[f32] {
        &self.encoder_bias
    }

    /// `x − b_dec`, row by row.
    fn centred(&self, x: &[f32]) -> Vec<f32> {
        let mut out = x.to_vec();
        for row in out.chunks_exact_mut(self.d) {
            for (x, &b) in row.iter_mut().zip(&self.decoder_bias) {
                *x -= b;
            }
        }
        out
    }
}

impl Dictionary for TopKSae {
    fn d(&self) -> usize {
        self.d
    }

    fn n_features(&self) -> usize {
        self.encoder_bias.len()
    }

    fn encode(&self, x: &[f32]) -> SparseCodes<f32> {
        encode_top_k(
            &self.centred(x),
            &self.encoder,
            &self.encoder_bias,
            self.k,
            None,
        )
        .codes
    }

    fn decoder(&self) -> &[f32] {
        &self.decoder
    }

    fn decoder_bias(&self) -> &[f32] {
        &self.decoder_bias
    }
}
