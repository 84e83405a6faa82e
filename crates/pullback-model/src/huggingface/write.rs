//! Writing models in the Hugging Face layout: new ones with random weights, and others' directories with new weights.

use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{read_config, read_json};
use crate::error::ModelError;
use crate::family::{Family, Part};
use crate::tokenizer::{END_OF_TEXT, train_byte_level};
use crate::weights::WeightName;

/// The files beside the weights that a directory is copied with.
const BESIDE: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// The sizes of a model that does not exist yet: a Llama (RMS norm, rotary positions, gated MLP, no biases) whose output
/// matrix is its embedding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewModel {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Number of heads; divides `d_model` into even widths.
    pub n_heads: usize,
    /// Width of the hidden layer of the MLP.
    pub d_mlp: usize,
    /// Number of positions.
    pub n_ctx: usize,
    /// Tokens of the byte-level BPE tokenizer that is trained on the texts; 257 are the bytes and the token that begins
    /// and ends texts.
    pub vocabulary: usize,
    /// Seed of the weights.
    pub seed: u64,
}

impl NewModel {
    /// Refuses sizes that make no model.
    ///
    /// # Errors
    /// Says which.
    pub fn check(&self) -> Result<(), ModelError> {
        let refuse = |problem: String| Err(ModelError::Input { problem });
        for (what, size, most) in [
            ("the width of the stream", self.d_model, MAX_WIDTH),
            ("the number of blocks", self.n_layers, MAX_LAYERS),
            ("the number of heads", self.n_heads, MAX_WIDTH),
            ("the width of the MLP", self.d_mlp, 4 * MAX_WIDTH),
            ("the number of positions", self.n_ctx, MAX_CONTEXT),
        ] {
            if size == 0 || size > most {
                return refuse(format!("{what} is {size}, it must be between 1 and {most}"));
            }
        }
        if !self.d_model.is_multiple_of(2 * self.n_heads) {
            return refuse(format!(
                "{} heads do not divide a stream of width {} into even widths",
                self.n_heads, self.d_model
            ));
        }
        if !(SMALLEST_VOCABULARY..=MAX_VOCABULARY).contains(&self.vocabulary) {
            return refuse(format!(
                "a vocabulary of {} tokens is asked for, it must be between {SMALLEST_VOCABULARY} (the bytes, and the token \
                 that begins and ends texts) and {MAX_VOCABULARY}",
                self.vocabulary
            ));
        }
        Ok(())
    }

    /// Trains the tokenizer on texts and writes a model with random weights to a directory that exists: matrices uniform
    /// with the variance `1/in`, those that write to the stream less by `√(2·n_layers)`, the embedding with the deviation
    /// 0.1, gains one.
    ///
    /// # Errors
    /// As [`NewModel::check`]; the texts have too few words for the vocabulary; a file cannot be written.
    pub fn create<'t>(
        &self,
        texts: impl Iterator<Item = &'t str> + Send,
        to: &Path,
    ) -> Result<(), ModelError> {
        self.check()?;
        let (tokenizer, vocabulary) = train_byte_level(texts, self.vocabulary)?;
        if vocabulary != self.vocabulary {
            return Err(ModelError::Input {
                problem: format!(
                    "the text is too small for a vocabulary of {} tokens: it gives {vocabulary}",
                    self.vocabulary
                ),
            });
        }
        write(&to.join("tokenizer.json"), tokenizer.as_bytes())?;
        write_json(
            &to.join("tokenizer_config.json"),
            &json!({
                "add_bos_token": true,
                "bos_token": END_OF_TEXT,
                "clean_up_tokenization_spaces": false,
                "eos_token": END_OF_TEXT,
                "model_max_length": self.n_ctx,
                "tokenizer_class": "PreTrainedTokenizerFast",
            }),
        )?;
        write_json(&to.join("config.json"), &self.config())?;
        let config = read_config(to)?;
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let weights: Vec<(WeightName, Vec<f32>)> = WeightName::all(&config)
            .filter(|&name| name != WeightName::Unembed)
            .map(|name| {
                let shape = name.shape(&config);
                let count = shape.iter().product();
                if name.is_gain() {
                    return (name, vec![1.0; count]);
                }
                let inner = shape.get(1).copied().unwrap_or(1) as f64;
                let deviation = match name {
                    WeightName::Embed => 0.1,
                    WeightName::O(_) | WeightName::Down(_) => {
                        (inner * 2.0 * self.n_layers as f64).sqrt().recip()
                    }
                    _ => inner.sqrt().recip(),
                };
                // A uniform number within `a` has the variance a²/3.
                let bound = deviation * 3.0_f64.sqrt();
                let draw = |_| rng.random_range(-bound..bound) as f32;
                (name, (0..count).map(draw).collect())
            })
            .collect();
        write_weights(to, &weights)
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "hidden_act": "silu",
            "hidden_size": self.d_model,
            "intermediate_size": self.d_mlp,
            "max_position_embeddings": self.n_ctx,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.n_heads,
            "num_hidden_layers": self.n_layers,
            "num_key_value_heads": self.n_heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": true,
            "torch_dtype": "float32",
            "vocab_size": self.vocabulary,
        })
    }
}

/// Beyond these a typing error would exhaust the memory.
const MAX_WIDTH: usize = 1 << 14;
const MAX_LAYERS: usize = 1 << 10;
const MAX_CONTEXT: usize = 1 << 20;
const MAX_VOCABULARY: usize = 1 << 20;
/// All bytes and one special token.
const SMALLEST_VOCABULARY: usize = 257;

/// Writes a copy of a model directory, `from`, with other weights in `f32`, to a directory that exists. `weights` are all
/// of the model, as [`Model::weights`](crate::Model::weights) gives them.
///
/// # Errors
/// `from` is no directory in the Hugging Face layout; its family stores a weight as a part of another tensor, or transposed; a
/// file cannot be read or written.
pub fn save_like(
    from: &Path,
    weights: &[(WeightName, Vec<f32>)],
    to: &Path,
) -> Result<(), ModelError> {
    let mut config = read_json(&from.join("config.json"))?;
    for key in ["torch_dtype", "dtype"] {
        if let Some(dtype) = config.get_mut(key) {
            *dtype = "float32".into();
        }
    }
    if let Some(fields) = config.as_object_mut() {
        fields.remove("quantization_config");
    }
    write_json(&to.join("config.json"), &config)?;
    for name in BESIDE {
        let path = from.join(name);
        if path.is_file() {
            let bytes = std::fs::read(&path).map_err(|source| ModelError::io(&path, source))?;
            write(&to.join(name), &bytes)?;
        }
    }
    write_weights(to, weights)
}

/// Writes `model.safetensors` of the model whose `config.json` is there.
fn write_weights(dir: &Path, weights: &[(WeightName, Vec<f32>)]) -> Result<(), ModelError> {
    let config = read_config(dir)?;
    let path = dir.join("model.safetensors");
    let wrong = |problem: String| ModelError::malformed(&path, "weights", problem);
    let family = Family::named(&config.architecture)
        .ok_or_else(|| wrong(format!("the family {} is unknown", config.architecture)))?;
    let mut stored = Vec::with_capacity(weights.len());
    for (weight, values) in weights {
        let (names, part) = family
            .in_huggingface(*weight)
            .ok_or_else(|| wrong(format!("there is no place for {weight:?}")))?;
        if part != Part::Whole {
            return Err(wrong(format!(
                "models of the family {} hold {weight:?} as a part of a joint or transposed matrix, which is not written here",
                config.architecture
            )));
        }
        let less = if family.gain_less_one && weight.is_gain() {
            1.0
        } else {
            0.0
        };
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|x| (x - less).to_le_bytes())
            .collect();
        let [name, _] = names;
        stored.push((name, weight.shape(&config), bytes));
    }
    let views = stored
        .iter()
        .map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            view.map(|view| (name.clone(), view))
                .map_err(|error| wrong(format!("{name}: {error}")))
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    // transformers asks for this word.
    let metadata = [("format".to_owned(), "pt".to_owned())];
    let bytes = safetensors::serialize(views, Some(metadata.into_iter().collect()))
        .map_err(|error| wrong(error.to_string()))?;
    write(&path, &bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    pullback_artifact::write_atomic(path, bytes)
        .map_err(|error| ModelError::malformed(path, "writing", error.to_string()))
}

fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    pullback_artifact::write_json(path, value)
        .map_err(|error| ModelError::malformed(path, "writing", error.to_string()))
}
