//! Compressed-row codes and their view by feature.

use crate::Real;

/// Sparse codes of a batch: for each token its active features, in ascending order, and their values.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseCodes<T> {
    offsets: Vec<usize>,
    features: Vec<u32>,
    values: Vec<T>,
}

impl<T: Real> SparseCodes<T> {
    /// Codes of no tokens.
    pub fn new() -> Self {
        Self {
            offsets: vec![0],
            features: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Appends one token's codes.
    ///
    /// # Panics
    /// If the two slices differ in length.
    pub fn push(&mut self, features: &[u32], values: &[T]) {
        assert_eq!(
            features.len(),
            values.len(),
            "one value a feature is needed"
        );
        self.features.extend_from_slice(features);
        self.values.extend_from_slice(values);
        self.offsets.push(self.features.len());
    }

    /// Appends the tokens of another batch.
    pub fn append(&mut self, other: &Self) {
        let start = self.features.len();
        self.features.extend_from_slice(&other.features);
        self.values.extend_from_slice(&other.values);
        self.offsets
            .extend(other.offsets[1..].iter().map(|offset| start + offset));
    }

    /// Gives feature `i` the number `names[i]`; `names` must ascend.
    pub(super) fn rename(&mut self, names: &[u32]) {
        for feature in &mut self.features {
            *feature = names[*feature as usize];
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of active features over all tokens.
    pub fn active(&self) -> usize {
        self.features.len()
    }

    /// One token's active features and their values.
    pub fn token(&self, token: usize) -> (&[u32], &[T]) {
        let span = self.span(token);
        (&self.features[span.clone()], &self.values[span])
    }

    /// Where a token's entries stand among [`values`](Self::values).
    pub fn span(&self, token: usize) -> std::ops::Range<usize> {
        self.offsets[token]..self.offsets[token + 1]
    }

    /// A token's value of one feature; zero when it is inactive.
    pub fn value(&self, token: usize, feature: u32) -> T {
        let (features, values) = self.token(token);
        features
            .binary_search(&feature)
            .map_or(T::zero(), |at| values[at])
    }

    /// All features, token by token.
    pub fn features(&self) -> &[u32] {
        &self.features
    }

    /// All values, token by token.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// The same entries feature by feature, tokens ascending.
    ///
    /// # Panics
    /// If a feature is not below `n_features`.
    pub fn by_feature(&self, n_features: usize) -> ByFeature {
        let mut offsets = vec![0_u32; n_features + 1];
        for &feature in &self.features {
            offsets[feature as usize + 1] += 1;
        }
        for i in 0..n_features {
            offsets[i + 1] += offsets[i];
        }
        let mut next = offsets.clone();
        let mut tokens = vec![0_u32; self.features.len()];
        let mut entries = vec![0_u32; self.features.len()];
        for token in 0..self.tokens() {
            for entry in self.span(token) {
                let slot = &mut next[self.features[entry] as usize];
                tokens[*slot as usize] = token as u32;
                entries[*slot as usize] = entry as u32;
                *slot += 1;
            }
        }
        ByFeature {
            offsets,
            tokens,
            entries,
        }
    }
}

impl<T: Real> Default for SparseCodes<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Entries of sparse codes by feature: which tokens, and where their values stand.
#[derive(Clone, Debug)]
pub struct ByFeature {
    offsets: Vec<u32>,
    tokens: Vec<u32>,
    entries: Vec<u32>,
}

impl ByFeature {
    /// Tokens in which a feature is active, ascending, and the places of their values in
    /// [`SparseCodes::values`].
    pub fn feature(&self, feature: usize) -> (&[u32], &[u32]) {
        let span = self.offsets[feature] as usize..self.offsets[feature + 1] as usize;
        (&self.tokens[span.clone()], &self.entries[span])
    }
}
