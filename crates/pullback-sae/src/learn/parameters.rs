//! Parameters in training, and Adam.

use pullback_kernels::Real;

/// Parameters in training, in normalised units; both matrices one row a feature.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameters<T> {
    /// Width of what is encoded.
    pub(crate) d: usize,
    /// Width of what is reconstructed.
    pub(crate) d_out: usize,
    /// Whether the decoder bias is taken from what is encoded.
    pub(crate) tied: bool,
    pub(crate) encoder: Vec<T>,
    pub(crate) encoder_bias: Vec<T>,
    /// Rows of length one.
    pub(crate) decoder: Vec<T>,
    pub(crate) decoder_bias: Vec<T>,
    /// Added to the reconstruction: `x·skipᵀ`, `[d_out, d]`.
    pub(crate) skip: Option<Vec<T>>,
    pub(crate) lengths: Option<Lengths<T>>,
    /// What the kind adds, each one number a feature.
    pub(crate) extras: Vec<Vec<T>>,
}

impl<T: Real> Parameters<T> {
    pub(crate) fn features(&self) -> usize {
        self.encoder_bias.len()
    }

    pub(crate) fn decoder_row(&self, feature: usize) -> &[T] {
        &self.decoder[feature * self.d_out..(feature + 1) * self.d_out]
    }

    pub(crate) fn encoder_row(&self, feature: usize) -> &[T] {
        &self.encoder[feature * self.d..(feature + 1) * self.d]
    }

    /// All vectors with their names, in a fixed order, to change them.
    pub(crate) fn named_mut(&mut self) -> Vec<(String, &mut Vec<T>)> {
        let mut named = vec![
            ("encoder".to_owned(), &mut self.encoder),
            ("encoder_bias".to_owned(), &mut self.encoder_bias),
            ("decoder".to_owned(), &mut self.decoder),
            ("decoder_bias".to_owned(), &mut self.decoder_bias),
        ];
        named.extend(self.skip.iter_mut().map(|skip| ("skip".to_owned(), skip)));
        let lengths = self.lengths.iter_mut();
        named.extend(lengths.map(|lengths| ("lengths".to_owned(), &mut lengths.of_rows)));
        let extras = self.extras.iter_mut().enumerate();
        named.extend(extras.map(|(i, extra)| (format!("extra_{i}"), extra)));
        named
    }

    /// All vectors with their names, in a fixed order.
    pub(crate) fn named(&self) -> Vec<(String, &Vec<T>)> {
        let mut named = vec![
            ("encoder".to_owned(), &self.encoder),
            ("encoder_bias".to_owned(), &self.encoder_bias),
            ("decoder".to_owned(), &self.decoder),
            ("decoder_bias".to_owned(), &self.decoder_bias),
        ];
        named.extend(self.skip.iter().map(|skip| ("skip".to_owned(), skip)));
        let lengths = self.lengths.iter();
        named.extend(lengths.map(|lengths| ("lengths".to_owned(), &lengths.of_rows)));
        let extras = self.extras.iter().enumerate();
        named.extend(extras.map(|(i, extra)| (format!("extra_{i}"), extra)));
        named
    }
}

/// Lengths of decoder rows that are free, and are parameters therefore: what Adam moves are the decoder rows times their
/// lengths, and the encoder rows and biases divided by them (`SAELens`'s `W_dec`, `W_enc` and `b_enc`). All else sees rows of
/// length one, so that every penalty on a code is one on the code times the length of its row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lengths<T> {
    /// One a feature.
    pub(crate) of_rows: Vec<T>,
    /// Where the sites of a crosscoder end in a row: its length is the sum of those of its parts.
    pub(crate) ends: Vec<usize>,
}

/// Consecutive spans with these ends.
pub(crate) fn parts(ends: &[usize]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(start, &end)| start..end)
}

/// First and second moments of Adam, laid out as the parameters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Moments<T> {
    pub(crate) first: Parameters<T>,
    pub(crate) second: Parameters<T>,
}

impl<T: Real> Moments<T> {
    pub(crate) fn zero(like: &Parameters<T>) -> Self {
        let zeros = |x: &Vec<T>| vec![T::zero(); x.len()];
        let zero = Parameters {
            d: like.d,
            d_out: like.d_out,
            tied: like.tied,
            encoder: zeros(&like.encoder),
            encoder_bias: zeros(&like.encoder_bias),
            decoder: zeros(&like.decoder),
            decoder_bias: zeros(&like.decoder_bias),
            skip: like.skip.as_ref().map(zeros),
            lengths: None,
            extras: like.extras.iter().map(zeros).collect(),
        };
        Self {
            first: zero.clone(),
            second: zero,
        }
    }
}

/// Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) at one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adam<T> {
    rate: T,
    beta1: T,
    beta2: T,
    root_correction: T,
    eps: T,
    /// What gradients are multiplied with first.
    factor: T,
}

impl<T: Real> Adam<T> {
    /// At step `step`, counted from one.
    pub(crate) fn at(step: usize, lr: f64, (beta1, beta2): (f64, f64)) -> Self {
        Self {
            rate: T::of(lr / (1.0 - beta1.powi(step as i32))),
            beta1: T::of(beta1),
            beta2: T::of(beta2),
            root_correction: T::of((1.0 - beta2.powi(step as i32)).sqrt().recip()),
            eps: T::of(1e-8),
            factor: T::one(),
        }
    }

    /// The same for gradients multiplied with `factor`.
    pub(crate) fn scaled(self, factor: f64) -> Self {
        Self {
            factor: T::of(factor),
            ..self
        }
    }

    #[inline(always)]
    pub(crate) fn update(
        &self,
        parameters: &mut [T],
        gradient: &[T],
        first: &mut [T],
        second: &mut [T],
    ) {
        let n = parameters.len();
        let (gradient, first, second) = (&gradient[..n], &mut first[..n], &mut second[..n]);
        for i in 0..n {
            let g = self.factor * gradient[i];
            first[i] = self.beta1 * first[i] + (T::one() - self.beta1) * g;
            second[i] = self.beta2 * second[i] + (T::one() - self.beta2) * g * g;
            parameters[i] -=
                self.rate * first[i] / (second[i].sqrt() * self.root_correction + self.eps);
        }
    }
}
