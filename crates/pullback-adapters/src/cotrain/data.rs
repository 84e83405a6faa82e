//! The sequences that models are trained and judged on.

use pullback_activations::{Corpus, HarvestConfig, Plan, PlanConfig};
use pullback_artifact::Control;
use pullback_model::Tokenizer;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::CotrainConfig;
use crate::AdapterError;

/// Of the sequences of a text so many tenths are trained on at most: every tenth document is held out, and documents differ in
/// length.
const TRAINED_TENTHS: usize = 8;
/// Sequences that a model runs together for dictionaries.
const RUN: usize = 8;

/// Sequences of tokens, the same for all that is compared.
pub(super) struct Data {
    pub(super) harvest: HarvestConfig,
    pub(super) train: Vec<Vec<u32>>,
    pub(super) held_out: Vec<Vec<u32>>,
}

impl Data {
    /// Cuts a corpus into sequences, held-out documents apart.
    ///
    /// # Errors
    /// The text is too small for a batch.
    pub(super) fn new(
        corpus: &Corpus,
        tokenizer: &Tokenizer,
        config: &CotrainConfig,
        seed: u64,
        control: &Control,
    ) -> Result<Self, AdapterError> {
        let bos = usize::from(tokenizer.bos().is_some());
        let body = config.context - bos;
        let wanted = (config.tokens + config.held_out_tokens).div_ceil(config.context);
        let mut sequences = 0;
        for document in corpus.documents() {
            control.check()?;
            sequences += tokenizer.encode(&document.text, false)?.len() / body;
            if sequences > 2 * wanted {
                break;
            }
        }
        let of_tenths = |tenths: usize| sequences * tenths / 10 * config.context;
        let tokens = config.tokens.min(of_tenths(TRAINED_TENTHS));
        if tokens < config.batch * config.context {
            return Err(AdapterError::Option(format!(
                "{} is too small: it has {sequences} sequences of {} tokens, and a batch alone is {} of them, beside those held out",
                corpus.path().display(),
                config.context,
                config.batch
            )));
        }
        // Half of the tenth that is held out is there even where its documents are short.
        let held_out_tokens = config
            .held_out_tokens
            .min((sequences / 20).max(1) * config.context);
        let mut harvest = HarvestConfig::new(config.sites[0], tokens, seed);
        harvest.plan = PlanConfig {
            tokens,
            held_out_tokens,
            context: config.context,
            prepend_bos: bos == 1,
            seed,
        };
        harvest.batch = RUN;
        let plan = Plan::new(corpus, tokenizer, &harvest.plan, control)
            .map_err(pullback_sae::SaeError::from)?;
        let (held_out, train): (Vec<_>, Vec<_>) =
            plan.sequences.into_iter().partition(|s| s.held_out);
        let ids = |of: Vec<pullback_activations::Sequence>| of.into_iter().map(|s| s.ids).collect();
        Ok(Self {
            harvest,
            train: ids(train),
            held_out: ids(held_out),
        })
    }

    /// The sequences of a step: epoch after epoch, each in an order of its own.
    pub(super) fn batch(&self, config: &CotrainConfig, seed: u64, step: usize) -> Vec<&[u32]> {
        let n = self.train.len();
        let (mut order, mut of) = (Vec::new(), None);
        (step * config.batch..(step + 1) * config.batch)
            .map(|place| {
                let epoch = place / n;
                if of != Some(epoch) {
                    order = (0..n).collect::<Vec<usize>>();
                    let mut rng = ChaCha8Rng::seed_from_u64(seed);
                    rng.set_stream(epoch as u64 + 1);
                    order.shuffle(&mut rng);
                    of = Some(epoch);
                }
                &self.train[order[place % n]][..]
            })
            .collect()
    }
}
