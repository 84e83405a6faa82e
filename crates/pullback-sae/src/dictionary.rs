//! What every dictionary can do.

use pullback_kernels::sparse::{SparseCodes, decode};

/// A dictionary: features with an encoder, and a decoder whose rows are their directions.
pub trait Dictionary: Send + Sync {
    /// Width of the activations.
    fn d(&self) -> usize;

    /// Width of what the decoder makes: that of the activations, but for transcoders.
    fn d_out(&self) -> usize {
        self.decoder_bias().len()
    }

    /// Number of features.
    fn n_features(&self) -> usize;

    /// Codes of activations `[n, d]`.
    fn encode(&self, x: &[f32]) -> SparseCodes<f32>;

    /// Decoder, one row a feature: `[n_features, d_out]`.
    fn decoder(&self) -> &[f32];

    /// Decoder bias `[d_out]`.
    fn decoder_bias(&self) -> &[f32];

    /// What the codes alone make: `codes × decoder + bias`, `[n, d_out]`.
    fn decode(&self, codes: &SparseCodes<f32>) -> Vec<f32> {
        decode(codes, self.decoder(), self.decoder_bias())
    }

    /// The dictionary's output `[n, d_out]` for activations `x [n, d]` with these codes. It is [`Dictionary::decode`] where
    /// activations are not normalised and no part of them goes past the features.
    fn reconstruct(&self, x: &[f32], codes: &SparseCodes<f32>) -> Vec<f32> {
        let _ = x;
        self.decode(codes)
    }

    /// Direction `[d_out]` of a feature.
    ///
    /// # Panics
    /// If there is no such feature.
    fn direction(&self, feature: usize) -> &[f32] {
        &self.decoder()[feature * self.d_out()..(feature + 1) * self.d_out()]
    }
}
