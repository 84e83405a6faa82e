//! What every dictionary can do.

use pullback_kernels::sparse::{SparseCodes, decode};

/// A dictionary: features with an encoder, and a decoder whose rows are their directions.
pub trait Dictionary: Send + Sync {
    /// Width of the activations.
    fn d(&self) -> usize;

    /// Number of features.
    fn n_features(&self) -> usize;

    /// Codes of activations `[n, d]`.
    fn encode(&self, x: &[f32]) -> SparseCodes<f32>;

    /// Decoder, one row a feature: `[n_features, d]`.
    fn decoder(&self) -> &[f32];

    /// Decoder bias `[d]`.
    fn decoder_bias(&self) -> &[f32];

    /// Reconstructions `[n, d]` of codes.
    fn decode(&self, codes: &SparseCodes<f32>) -> Vec<f32> {
        decode(codes, self.decoder(), self.decoder_bias())
    }

    /// Direction `[d]` of a feature.
    ///
    /// # Panics
    /// If there is no such feature.
    fn direction(&self, feature: usize) -> &[f32] {
        &self.decoder()[feature * self.d()..(feature + 1) * self.d()]
    }
}
