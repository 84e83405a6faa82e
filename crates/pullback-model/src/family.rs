//! Model families as data: one row of [`FAMILIES`] says everything in which a family differs from the others, and the
//! rest of the crate reads it. A new family is a row here and a fixture in `tests/fixtures/families`.

use pullback_kernels::fused::Activation;

use crate::config::Norm;
use crate::weights::WeightName as W;

/// Whether a family's models have a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Has {
    Never,
    Always,
    /// As a key of `config.json` says, else the default; in GGUF: when the tensors are there.
    Key(&'static str, bool),
}

/// Which part of a stored tensor a weight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    /// Stored `[in, out]`.
    Transposed,
    /// Rows of each head in the order in which the coordinates that a rotary embedding turns together are neighbours.
    Neighbours,
    /// Queries, keys or values (0, 1, 2) of a tensor that holds the three below each other.
    Third(usize),
    /// The same, stored `[in, out]`: the three are beside each other.
    TransposedThird(usize),
    /// Queries, keys or values of a tensor that holds the three head by head.
    HeadThird(usize),
}

/// Where blocks of a family have sliding windows, when the file does not list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Windows {
    /// Nowhere.
    None,
    /// Everywhere.
    All,
    /// Where the file asks for them with `use_sliding_window`, from block `max_window_layers` on.
    Above,
    /// In all but every `n`-th block.
    AllButEvery(usize),
}

/// Keys of `config.json` that families call differently.
pub(crate) struct Keys {
    pub(crate) n_layers: &'static str,
    pub(crate) d_model: &'static str,
    pub(crate) d_mlp: &'static str,
    pub(crate) n_heads: &'static str,
    pub(crate) n_ctx: &'static str,
    pub(crate) norm_eps: &'static str,
    pub(crate) activation: &'static str,
}

const KEYS: Keys = Keys {
    n_layers: "num_hidden_layers",
    d_model: "hidden_size",
    d_mlp: "intermediate_size",
    n_heads: "num_attention_heads",
    n_ctx: "max_position_embeddings",
    norm_eps: "rms_norm_eps",
    activation: "hidden_act",
};

type Names = &'static [(W, &'static str, Part)];

/// One row of the table.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says whether the family has a part"
)]
pub(crate) struct Family {
    /// What we call it.
    pub(crate) name: &'static str,
    /// Its classes in Hugging Face transformers.
    pub(crate) class: &'static str,
    /// `model_type` in `config.json`.
    pub(crate) model_type: &'static str,
    /// `general.architecture` in GGUF.
    pub(crate) gguf: &'static str,
    pub(crate) norm: Norm,
    /// Whether Hugging Face checkpoints store gains less one.
    pub(crate) gain_less_one: bool,
    /// Whether positions are turned into angles; else they have learned vectors.
    pub(crate) rotary: bool,
    /// The share of each head that turns when the file does not say; `None`: always all of it.
    pub(crate) rotary_share: Option<f64>,
    pub(crate) activation: Activation,
    pub(crate) gated_mlp: bool,
    pub(crate) parallel: Has,
    pub(crate) post_norms: bool,
    pub(crate) qk_norms: bool,
    pub(crate) qkv_bias: Has,
    pub(crate) attn_out_bias: Has,
    pub(crate) mlp_bias: Has,
    /// Whether the embedding is multiplied by the root of its width.
    pub(crate) embed_scale: bool,
    /// Defaults of the caps on attention scores and on logits.
    pub(crate) softcaps: (Option<f32>, Option<f32>),
    pub(crate) windows: Windows,
    /// Base of the frequencies in blocks with a window, where it is another.
    pub(crate) local_rope_base: Option<f32>,
    /// Layers of the models whose attention scale is `(d_model / n_heads)^-½` in GGUF, which does not store it.
    pub(crate) gguf_wide_scale: &'static [usize],
    /// Whether the output matrix is the embedding when `config.json` does not say.
    pub(crate) tied: bool,
    pub(crate) keys: Keys,
    /// What names of tensors begin with in Hugging Face checkpoints; some are saved without.
    pub(crate) prefix: &'static str,
    /// What names of a block's tensors go on with, before its number.
    pub(crate) block: &'static str,
    pub(crate) names: &'static [Names],
    pub(crate) gguf_names: &'static [Names],
}

/// Names of Llama and of those that follow it; block names follow `model.layers.N.`.
const LLAMA_NAMES: Names = &[
    (W::Embed, "embed_tokens.weight", Part::Whole),
    (W::Unembed, "lm_head.weight", Part::Whole),
    (W::FinalNorm, "norm.weight", Part::Whole),
    (W::AttnNorm(0), "input_layernorm.weight", Part::Whole),
    (W::Q(0), "self_attn.q_proj.weight", Part::Whole),
    (W::K(0), "self_attn.k_proj.weight", Part::Whole),
    (W::V(0), "self_attn.v_proj.weight", Part::Whole),
    (W::O(0), "self_attn.o_proj.weight", Part::Whole),
    (W::QBias(0), "self_attn.q_proj.bias", Part::Whole),
    (W::KBias(0), "self_attn.k_proj.bias", Part::Whole),
    (W::VBias(0), "self_attn.v_proj.bias", Part::Whole),
    (W::OBias(0), "self_attn.o_proj.bias", Part::Whole),
    (W::QNorm(0), "self_attn.q_norm.weight", Part::Whole),
    (W::KNorm(0), "self_attn.k_norm.weight", Part::Whole),
    (
        W::MlpNorm(0),
        "post_attention_layernorm.weight",
        Part::Whole,
    ),
    (W::Gate(0), "mlp.gate_proj.weight", Part::Whole),
    (W::Up(0), "mlp.up_proj.weight", Part::Whole),
    (W::Down(0), "mlp.down_proj.weight", Part::Whole),
    (W::GateBias(0), "mlp.gate_proj.bias", Part::Whole),
    (W::UpBias(0), "mlp.up_proj.bias", Part::Whole),
    (W::DownBias(0), "mlp.down_proj.bias", Part::Whole),
];

/// What Gemma's four norms of a block are called.
const GEMMA_NAMES: Names = &[
    (
        W::AttnPostNorm(0),
        "post_attention_layernorm.weight",
        Part::Whole,
    ),
    (
        W::MlpNorm(0),
        "pre_feedforward_layernorm.weight",
        Part::Whole,
    ),
    (
        W::MlpPostNorm(0),
        "post_feedforward_layernorm.weight",
        Part::Whole,
    ),
];

const GPT2_NAMES: Names = &[
    (W::Embed, "wte.weight", Part::Whole),
    (W::Positions, "wpe.weight", Part::Whole),
    (W::Unembed, "lm_head.weight", Part::Whole),
    (W::FinalNorm, "ln_f.weight", Part::Whole),
    (W::FinalNormBias, "ln_f.bias", Part::Whole),
    (W::AttnNorm(0), "ln_1.weight", Part::Whole),
    (W::AttnNormBias(0), "ln_1.bias", Part::Whole),
    (W::Q(0), "attn.c_attn.weight", Part::TransposedThird(0)),
    (W::K(0), "attn.c_attn.weight", Part::TransposedThird(1)),
    (W::V(0), "attn.c_attn.weight", Part::TransposedThird(2)),
    (W::QBias(0), "attn.c_attn.bias", Part::Third(0)),
    (W::KBias(0), "attn.c_attn.bias", Part::Third(1)),
    (W::VBias(0), "attn.c_attn.bias", Part::Third(2)),
    (W::O(0), "attn.c_proj.weight", Part::Transposed),
    (W::OBias(0), "attn.c_proj.bias", Part::Whole),
    (W::MlpNorm(0), "ln_2.weight", Part::Whole),
    (W::MlpNormBias(0), "ln_2.bias", Part::Whole),
    (W::Up(0), "mlp.c_fc.weight", Part::Transposed),
    (W::UpBias(0), "mlp.c_fc.bias", Part::Whole),
    (W::Down(0), "mlp.c_proj.weight", Part::Transposed),
    (W::DownBias(0), "mlp.c_proj.bias", Part::Whole),
];

const GPT_NEOX_NAMES: Names = &[
    (W::Embed, "embed_in.weight", Part::Whole),
    (W::Unembed, "embed_out.weight", Part::Whole),
    (W::FinalNorm, "final_layer_norm.weight", Part::Whole),
    (W::FinalNormBias, "final_layer_norm.bias", Part::Whole),
    (W::AttnNorm(0), "input_layernorm.weight", Part::Whole),
    (W::AttnNormBias(0), "input_layernorm.bias", Part::Whole),
    (
        W::Q(0),
        "attention.query_key_value.weight",
        Part::HeadThird(0),
    ),
    (
        W::K(0),
        "attention.query_key_value.weight",
        Part::HeadThird(1),
    ),
    (
        W::V(0),
        "attention.query_key_value.weight",
        Part::HeadThird(2),
    ),
    (
        W::QBias(0),
        "attention.query_key_value.bias",
        Part::HeadThird(0),
    ),
    (
        W::KBias(0),
        "attention.query_key_value.bias",
        Part::HeadThird(1),
    ),
    (
        W::VBias(0),
        "attention.query_key_value.bias",
        Part::HeadThird(2),
    ),
    (W::O(0), "attention.dense.weight", Part::Whole),
    (W::OBias(0), "attention.dense.bias", Part::Whole),
    (
        W::MlpNorm(0),
        "post_attention_layernorm.weight",
        Part::Whole,
    ),
    (
        W::MlpNormBias(0),
        "post_attention_layernorm.bias",
        Part::Whole,
    ),
    (W::Up(0), "mlp.dense_h_to_4h.weight", Part::Whole),
    (W::UpBias(0), "mlp.dense_h_to_4h.bias", Part::Whole),
    (W::Down(0), "mlp.dense_4h_to_h.weight", Part::Whole),
    (W::DownBias(0), "mlp.dense_4h_to_h.bias", Part::Whole),
];

/// Names in GGUF, the same for all families; block names follow `blk.N.`.
const GGUF_NAMES: Names = &[
    (W::Embed, "token_embd.weight", Part::Whole),
    (W::Positions, "position_embd.weight", Part::Whole),
    (W::Unembed, "output.weight", Part::Whole),
    (W::FinalNorm, "output_norm.weight", Part::Whole),
    (W::FinalNormBias, "output_norm.bias", Part::Whole),
    (W::AttnNorm(0), "attn_norm.weight", Part::Whole),
    (W::AttnNormBias(0), "attn_norm.bias", Part::Whole),
    (W::Q(0), "attn_q.weight", Part::Whole),
    (W::K(0), "attn_k.weight", Part::Whole),
    (W::V(0), "attn_v.weight", Part::Whole),
    (W::QBias(0), "attn_q.bias", Part::Whole),
    (W::KBias(0), "attn_k.bias", Part::Whole),
    (W::VBias(0), "attn_v.bias", Part::Whole),
    (W::O(0), "attn_output.weight", Part::Whole),
    (W::OBias(0), "attn_output.bias", Part::Whole),
    (W::QNorm(0), "attn_q_norm.weight", Part::Whole),
    (W::KNorm(0), "attn_k_norm.weight", Part::Whole),
    (
        W::AttnPostNorm(0),
        "post_attention_norm.weight",
        Part::Whole,
    ),
    (W::MlpNorm(0), "ffn_norm.weight", Part::Whole),
    (W::MlpNormBias(0), "ffn_norm.bias", Part::Whole),
    (W::Gate(0), "ffn_gate.weight", Part::Whole),
    (W::GateBias(0), "ffn_gate.bias", Part::Whole),
    (W::Up(0), "ffn_up.weight", Part::Whole),
    (W::UpBias(0), "ffn_up.bias", Part::Whole),
    (W::Down(0), "ffn_down.weight", Part::Whole),
    (W::DownBias(0), "ffn_down.bias", Part::Whole),
    (W::MlpPostNorm(0), "post_ffw_norm.weight", Part::Whole),
];

/// What differs for Llama, whose GGUF files have the coordinates that turn together as neighbours.
const GGUF_LLAMA_NAMES: Names = &[
    (W::Q(0), "attn_q.weight", Part::Neighbours),
    (W::K(0), "attn_k.weight", Part::Neighbours),
    (W::QBias(0), "attn_q.bias", Part::Neighbours),
    (W::KBias(0), "attn_k.bias", Part::Neighbours),
];

/// What families whose queries, keys and values are one matrix call it in GGUF.
const GGUF_JOINT_NAMES: Names = &[
    (W::Q(0), "attn_qkv.weight", Part::Third(0)),
    (W::K(0), "attn_qkv.weight", Part::Third(1)),
    (W::V(0), "attn_qkv.weight", Part::Third(2)),
    (W::QBias(0), "attn_qkv.bias", Part::Third(0)),
    (W::KBias(0), "attn_qkv.bias", Part::Third(1)),
    (W::VBias(0), "attn_qkv.bias", Part::Third(2)),
];

const LLAMA: Family = Family {
    name: "llama",
    class: "LlamaForCausalLM",
    model_type: "llama",
    gguf: "llama",
    norm: Norm::Rms,
    gain_less_one: false,
    rotary: true,
    rotary_share: None,
    activation: Activation::Silu,
    gated_mlp: true,
    parallel: Has::Never,
    post_norms: false,
    qk_norms: false,
    qkv_bias: Has::Key("attention_bias", false),
    attn_out_bias: Has::Key("attention_bias", false),
    mlp_bias: Has::Key("mlp_bias", false),
    embed_scale: false,
    softcaps: (None, None),
    windows: Windows::None,
    local_rope_base: None,
    gguf_wide_scale: &[],
    tied: false,
    keys: KEYS,
    prefix: "model.",
    block: "layers.",
    names: &[LLAMA_NAMES],
    gguf_names: &[GGUF_LLAMA_NAMES, GGUF_NAMES],
};

const GEMMA2: Family = Family {
    name: "gemma2",
    class: "Gemma2ForCausalLM",
    model_type: "gemma2",
    gguf: "gemma2",
    gain_less_one: true,
    activation: Activation::GeluTanh,
    post_norms: true,
    mlp_bias: Has::Never,
    embed_scale: true,
    softcaps: (Some(50.0), Some(30.0)),
    windows: Windows::AllButEvery(2),
    gguf_wide_scale: &[46],
    tied: true,
    keys: Keys {
        activation: "hidden_activation",
        ..KEYS
    },
    names: &[GEMMA_NAMES, LLAMA_NAMES],
    gguf_names: &[GGUF_NAMES],
    ..LLAMA
};

/// All families.
pub(crate) const FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        name: "mistral",
        class: "MistralForCausalLM",
        model_type: "mistral",
        gguf: "mistral3",
        qkv_bias: Has::Never,
        attn_out_bias: Has::Never,
        mlp_bias: Has::Never,
        windows: Windows::All,
        ..LLAMA
    },
    Family {
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        model_type: "qwen2",
        gguf: "qwen2",
        gguf_names: &[GGUF_NAMES],
        qkv_bias: Has::Always,
        attn_out_bias: Has::Never,
        mlp_bias: Has::Never,
        windows: Windows::Above,
        ..LLAMA
    },
    Family {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        model_type: "qwen3",
        gguf: "qwen3",
        gguf_names: &[GGUF_NAMES],
        qk_norms: true,
        mlp_bias: Has::Never,
        windows: Windows::Above,
        ..LLAMA
    },
    GEMMA2,
    Family {
        name: "gemma3",
        class: "Gemma3ForCausalLM",
        model_type: "gemma3_text",
        gguf: "gemma3",
        qk_norms: true,
        softcaps: (None, None),
        windows: Windows::AllButEvery(6),
        local_rope_base: Some(10_000.0),
        gguf_wide_scale: &[62],
        ..GEMMA2
    },
    Family {
        name: "gpt2",
        class: "GPT2LMHeadModel",
        model_type: "gpt2",
        gguf: "gpt2",
        norm: Norm::Layer,
        rotary: false,
        activation: Activation::GeluTanh,
        gated_mlp: false,
        qkv_bias: Has::Always,
        attn_out_bias: Has::Always,
        mlp_bias: Has::Always,
        tied: true,
        keys: Keys {
            n_layers: "n_layer",
            d_model: "n_embd",
            d_mlp: "n_inner",
            n_heads: "n_head",
            n_ctx: "n_positions",
            norm_eps: "layer_norm_epsilon",
            activation: "activation_function",
        },
        prefix: "transformer.",
        block: "h.",
        names: &[GPT2_NAMES],
        gguf_names: &[GGUF_JOINT_NAMES, GGUF_NAMES],
        ..LLAMA
    },
    Family {
        name: "gpt_neox",
        class: "GPTNeoXForCausalLM",
        model_type: "gpt_neox",
        gguf: "gptneox",
        norm: Norm::Layer,
        rotary_share: Some(0.25),
        activation: Activation::Gelu,
        gated_mlp: false,
        parallel: Has::Key("use_parallel_residual", true),
        qkv_bias: Has::Key("attention_bias", true),
        attn_out_bias: Has::Key("attention_bias", true),
        mlp_bias: Has::Always,
        keys: Keys {
            norm_eps: "layer_norm_eps",
            ..KEYS
        },
        prefix: "gpt_neox.",
        names: &[GPT_NEOX_NAMES],
        gguf_names: &[GGUF_JOINT_NAMES, GGUF_NAMES],
        ..LLAMA
    },
];

impl Family {
    /// The family of that name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.name == name)
    }

    /// The tensor of a Hugging Face checkpoint that holds a weight, with and without the prefix, and the part of it.
    pub(crate) fn in_huggingface(&self, weight: W) -> Option<([String; 2], Part)> {
        let (name, part) = find(self.names, weight)?;
        let inner = match weight.layer() {
            Some(layer) => format!("{}{layer}.{name}", self.block),
            None => name.to_owned(),
        };
        // The output matrix belongs to the whole model, not to the part that the prefix names; new files call it
        // `lm_head` in all families.
        Some(if weight == W::Unembed {
            ([inner, "lm_head.weight".to_owned()], part)
        } else {
            ([format!("{}{inner}", self.prefix), inner], part)
        })
    }

    /// The tensor of a GGUF file that holds a weight, and the part of it.
    pub(crate) fn in_gguf(&self, weight: W) -> Option<(String, Part)> {
        let (name, part) = find(self.gguf_names, weight)?;
        Some(match weight.layer() {
            Some(layer) => (format!("blk.{layer}.{name}"), part),
            None => (name.to_owned(), part),
        })
    }
}

fn find(names: &'static [Names], weight: W) -> Option<(&'static str, Part)> {
    let template = weight.in_layer(0);
    names
        .iter()
        .flat_map(|list| list.iter())
        .find(|(name, _, _)| *name == template)
        .map(|&(_, name, part)| (name, part))
}
