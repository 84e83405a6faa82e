//! The weights of a model by their roles.

use crate::config::{ModelConfig, Norm};

/// A weight by its role. Matrices are `[out, in]`, row-major; the number is that of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightName {
    /// Token embedding, `[d_vocab, d_model]`.
    Embed,
    /// Learned vectors of the positions, `[n_ctx, d_model]`.
    Positions,
    /// Output matrix, `[d_vocab, d_model]`; the embedding itself where the two are tied.
    Unembed,
    /// Gain of the norm before the output matrix, `[d_model]`.
    FinalNorm,
    /// Its bias.
    FinalNormBias,
    /// Gain of the norm before the attention of a block, `[d_model]`.
    AttnNorm(usize),
    /// Its bias.
    AttnNormBias(usize),
    /// Queries, `[n_heads · d_head, d_model]`.
    Q(usize),
    /// Keys, `[n_kv_heads · d_head, d_model]`.
    K(usize),
    /// Values, `[n_kv_heads · d_head, d_model]`.
    V(usize),
    /// Bias of the queries.
    QBias(usize),
    /// Bias of the keys.
    KBias(usize),
    /// Bias of the values.
    VBias(usize),
    /// Gain of the norm of each query head, `[d_head]`.
    QNorm(usize),
    /// Gain of the norm of each key head, `[d_head]`.
    KNorm(usize),
    /// Output of the attention, `[d_model, n_heads · d_head]`.
    O(usize),
    /// Its bias.
    OBias(usize),
    /// Gain of the norm of what attention adds, `[d_model]`.
    AttnPostNorm(usize),
    /// Gain of the norm before the MLP of a block, `[d_model]`.
    MlpNorm(usize),
    /// Its bias.
    MlpNormBias(usize),
    /// Gate of the MLP, `[d_mlp, d_model]`.
    Gate(usize),
    /// Its bias.
    GateBias(usize),
    /// Input of the MLP, `[d_mlp, d_model]`.
    Up(usize),
    /// Its bias.
    UpBias(usize),
    /// Output of the MLP, `[d_model, d_mlp]`.
    Down(usize),
    /// Its bias.
    DownBias(usize),
    /// Gain of the norm of what the MLP adds, `[d_model]`.
    MlpPostNorm(usize),
}

/// Every weight that a block may have.
const BLOCK: [fn(usize) -> WeightName; 22] = [
    WeightName::AttnNorm,
    WeightName::AttnNormBias,
    WeightName::Q,
    WeightName::K,
    WeightName::V,
    WeightName::QBias,
    WeightName::KBias,
    WeightName::VBias,
    WeightName::QNorm,
    WeightName::KNorm,
    WeightName::O,
    WeightName::OBias,
    WeightName::AttnPostNorm,
    WeightName::MlpNorm,
    WeightName::MlpNormBias,
    WeightName::Gate,
    WeightName::GateBias,
    WeightName::Up,
    WeightName::UpBias,
    WeightName::Down,
    WeightName::DownBias,
    WeightName::MlpPostNorm,
];

impl WeightName {
    /// All weights of a model, the output matrix also where it is tied.
    pub fn all(config: &ModelConfig) -> impl Iterator<Item = Self> + use<> {
        let kinds: Vec<_> = BLOCK
            .into_iter()
            .filter(|kind| kind(0).exists(config))
            .collect();
        let blocks = (0..config.n_layers)
            .flat_map(move |layer| kinds.clone().into_iter().map(move |k| k(layer)));
        let first = [Self::Embed, Self::Positions];
        let last = [Self::FinalNorm, Self::FinalNormBias, Self::Unembed];
        let whole = |names: Vec<Self>| names.into_iter().filter(|name| name.exists(config));
        let first: Vec<_> = whole(first.to_vec()).collect();
        let last: Vec<_> = whole(last.to_vec()).collect();
        first.into_iter().chain(blocks).chain(last)
    }

    /// Whether models of this configuration have such a weight (the block aside).
    pub fn exists(self, config: &ModelConfig) -> bool {
        match self {
            Self::Positions => config.rotary.is_none(),
            Self::FinalNormBias | Self::AttnNormBias(_) | Self::MlpNormBias(_) => {
                config.norm == Norm::Layer
            }
            Self::QBias(_) | Self::KBias(_) | Self::VBias(_) => config.qkv_bias,
            Self::OBias(_) => config.attn_out_bias,
            Self::QNorm(_) | Self::KNorm(_) => config.qk_norms,
            Self::AttnPostNorm(_) | Self::MlpPostNorm(_) => config.post_norms,
            Self::Gate(_) => config.gated_mlp,
            Self::GateBias(_) => config.gated_mlp && config.mlp_bias,
            Self::UpBias(_) | Self::DownBias(_) => config.mlp_bias,
            _ => true,
        }
    }

    /// The block it belongs to.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::Embed
            | Self::Positions
            | Self::Unembed
            | Self::FinalNorm
            | Self::FinalNormBias => None,
            Self::AttnNorm(l)
            | Self::AttnNormBias(l)
            | Self::Q(l)
            | Self::K(l)
            | Self::V(l)
            | Self::QBias(l)
            | Self::KBias(l)
            | Self::VBias(l)
            | Self::QNorm(l)
            | Self::KNorm(l)
            | Self::O(l)
            | Self::OBias(l)
            | Self::AttnPostNorm(l)
            | Self::MlpNorm(l)
            | Self::MlpNormBias(l)
            | Self::Gate(l)
            | Self::GateBias(l)
            | Self::Up(l)
            | Self::UpBias(l)
            | Self::Down(l)
            | Self::DownBias(l)
            | Self::MlpPostNorm(l) => Some(l),
        }
    }

    /// The same weight of another block.
    pub(crate) fn in_layer(self, layer: usize) -> Self {
        BLOCK
            .into_iter()
            .find(|kind| self.layer().is_some_and(|own| kind(own) == self))
            .map_or(self, |kind| kind(layer))
    }

    /// Whether it is the gain of a norm.
    pub(crate) fn is_gain(self) -> bool {
        matches!(
            self,
            Self::FinalNorm
                | Self::AttnNorm(_)
                | Self::AttnPostNorm(_)
                | Self::QNorm(_)
                | Self::KNorm(_)
                | Self::MlpNorm(_)
                | Self::MlpPostNorm(_)
        )
    }

    /// The shape that follows from a configuration, `[out, in]` for a matrix.
    pub fn shape(self, config: &ModelConfig) -> Vec<usize> {
        let d = config.d_model;
        match self {
            Self::Embed | Self::Unembed => vec![config.d_vocab, d],
            Self::Positions => vec![config.n_ctx, d],
            Self::FinalNorm
            | Self::FinalNormBias
            | Self::AttnNorm(_)
            | Self::AttnNormBias(_)
            | Self::OBias(_)
            | Self::AttnPostNorm(_)
            | Self::MlpNorm(_)
            | Self::MlpNormBias(_)
            | Self::DownBias(_)
            | Self::MlpPostNorm(_) => vec![d],
            Self::QNorm(_) | Self::KNorm(_) => vec![config.d_head],
            Self::Q(_) => vec![config.d_q(), d],
            Self::QBias(_) => vec![config.d_q()],
            Self::K(_) | Self::V(_) => vec![config.d_kv(), d],
            Self::KBias(_) | Self::VBias(_) => vec![config.d_kv()],
            Self::O(_) => vec![d, config.d_q()],
            Self::Gate(_) | Self::Up(_) => vec![config.d_mlp, d],
            Self::GateBias(_) | Self::UpBias(_) => vec![config.d_mlp],
            Self::Down(_) => vec![d, config.d_mlp],
        }
    }
}
