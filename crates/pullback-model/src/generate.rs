//! Next tokens: greedy and sampled text with a cache of keys and values, one or several texts at a time, under
//! interventions.

use burn::tensor::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::cache::KeyValueCache;
use crate::error::ModelError;
use crate::intervention::{Intervention, Rows};
use crate::model::Model;
use crate::run::{Input, LogitRows, PassOptions, RunOptions};
use crate::sampling::{Sampling, StopStrings, choose};
use crate::tokenizer::DecodeStream;

/// One candidate for the next token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NextToken {
    /// Token id.
    pub id: u32,
    /// Its text.
    pub token: String,
    /// Its logit.
    pub logit: f32,
    /// Its probability.
    pub probability: f32,
}

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions<'a> {
    /// At most this many tokens.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Token ids that end the text (they are not part of it).
    pub stop: Vec<u32>,
    /// Strings that end the text (they are not part of it, nor is what follows them).
    pub stop_strings: Vec<String>,
    /// Changes, applied at the prompt and at every generated token.
    pub interventions: &'a [Intervention],
}

/// What comes out of a generation, piece by piece.
#[derive(Clone, Debug, PartialEq)]
pub struct Emission {
    /// The prompt that it goes on from.
    pub sequence: usize,
    /// The token; `None` for text that was held back until the end.
    pub id: Option<u32>,
    /// The text that is certain with it: whole characters, and nothing that may begin a stop string.
    pub text: String,
}

/// Why a text ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The number of tokens asked for is reached.
    Length,
    /// The model's context is full.
    Context,
    /// A token that ends the text.
    StopToken(u32),
    /// A string that ends the text.
    StopString(String),
    /// The receiver of the pieces wanted no more.
    Stopped,
}

/// A generated text.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Its text, special tokens left out, cut before a stop string.
    pub text: String,
    /// Why it ends.
    pub ending: Ending,
}

/// A text in the making.
struct Writing<'a> {
    history: Vec<u32>,
    ids: Vec<u32>,
    text: String,
    rng: ChaCha8Rng,
    decoder: DecodeStream<'a>,
    stops: StopStrings,
    ending: Option<Ending>,
}

impl Writing<'_> {
    /// Takes text, and gives what of it is certain; notes a stop string.
    fn write(&mut self, piece: &str, stop_strings: &[String]) -> String {
        let shown = self.stops.push(piece);
        if let Some(stop) = shown.stop {
            self.ending = Some(Ending::StopString(stop_strings[stop].clone()));
        }
        self.text += &shown.text;
        shown.text
    }

    /// Ends the text: what was held back comes out.
    fn close(self, sequence: usize, stop_strings: &[String]) -> (Generated, Option<Emission>) {
        let Self {
            ids,
            mut text,
            decoder,
            mut stops,
            ending,
            ..
        } = self;
        let mut ending = ending.unwrap_or(Ending::Stopped);
        let mut rest = String::new();
        if !stops.stopped() {
            let last = stops.push(&decoder.finish());
            rest = last.text;
            match last.stop {
                Some(stop) => ending = Ending::StopString(stop_strings[stop].clone()),
                None => rest += &stops.finish(),
            }
        }
        text += &rest;
        let emission = (!rest.is_empty()).then_some(Emission {
            sequence,
            id: None,
            text: rest,
        });
        (Generated { ids, text, ending }, emission)
    }
}

impl Model {
    /// Logits `[d_vocab]` after the last of `ids`.
    ///
    /// # Errors
    /// As [`Model::run`].
    pub fn next_logits(
        &self,
        ids: &[u32],
        interventions: &[Intervention],
    ) -> Result<Vec<f32>, ModelError> {
        let input = Input::tokens(ids);
        let mut rows = self.advance(input, interventions, None, true)?;
        Ok(rows.pop().unwrap_or_default())
    }

    /// Logits after the last token of each sequence that has new ones.
    fn advance(
        &self,
        input: Input,
        interventions: &[Intervention],
        cache: Option<&mut KeyValueCache>,
        all_act: bool,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let options = RunOptions {
            interventions,
            ..RunOptions::default()
        };
        let how = PassOptions {
            direction: None,
            only_record: false,
            logits: LogitRows::Last,
            all_act,
        };
        let out = self.pass(input, &options, cache, how)?;
        let logits: Tensor<2> = out.logits.ok_or_else(|| ModelError::Input {
            problem: "the run made no logits".into(),
        })?;
        let width = logits.dims()[1];
        let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
        Ok(values.chunks_exact(width).map(<[f32]>::to_vec).collect())
    }

    /// The `count` likeliest next tokens, likeliest first; equal logits in the order of their ids.
    pub fn rank_next(&self, logits: &[f32], count: usize) -> Vec<NextToken> {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&x| f64::from(x - top).exp()).sum();
        let log_total = f64::from(top) + sum.ln();
        let before = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
        let mut order: Vec<usize> = (0..logits.len()).collect();
        if count < order.len() {
            order.select_nth_unstable_by(count, before);
            order.truncate(count);
        }
        order.sort_unstable_by(before);
        order
            .into_iter()
            .map(|id| NextToken {
                id: id as u32,
                token: self.tokenizer().token_text(id as u32),
                logit: logits[id],
                probability: (f64::from(logits[id]) - log_total).exp() as f32,
            })
            .collect()
    }

    /// Generates after `ids`, handing each token to `emit` as it comes; `emit` returning false stops, and so
    /// does the end of the model's context.
    ///
    /// # Errors
    /// As [`Model::generate_batch`].
    pub fn generate(
        &self,
        ids: &[u32],
        options: &GenerateOptions<'_>,
        mut emit: impl FnMut(u32) -> bool,
    ) -> Result<Vec<u32>, ModelError> {
        let mut texts = self.generate_batch(&[ids], options, |piece| match piece.id {
            Some(id) => emit(id),
            None => true,
        })?;
        Ok(texts.pop().map(|text| text.ids).unwrap_or_default())
    }

    /// Generates after several prompts at once, each as it would be alone, handing what comes to `emit`; `emit`
    /// returning false ends all texts.
    ///
    /// Text number `n` draws from the `n`-th stream of the seed, so that equal prompts give different samples.
    ///
    /// # Errors
    /// As [`Model::run`]; also when a prompt alone is empty or longer than the context, a setting of the sampling is out
    /// of its range, or an intervention would act on nothing within the prompts and the tokens asked for.
    pub fn generate_batch(
        &self,
        prompts: &[&[u32]],
        options: &GenerateOptions<'_>,
        mut emit: impl FnMut(Emission) -> bool,
    ) -> Result<Vec<Generated>, ModelError> {
        options.sampling.check()?;
        if prompts.is_empty() || prompts.iter().any(|ids| ids.is_empty()) {
            return Err(ModelError::Input {
                problem: "the prompt holds no tokens".to_owned(),
            });
        }
        self.check_interventions(prompts, options)?;
        let mut cache = KeyValueCache::for_batch(self.config().n_layers, prompts.len());
        let stops = StopStrings::new(options.stop_strings.iter().cloned())?;
        let mut texts: Vec<Writing<'_>> = prompts
            .iter()
            .enumerate()
            .map(|(number, ids)| {
                let mut rng = ChaCha8Rng::seed_from_u64(options.sampling.seed);
                rng.set_stream(number as u64);
                Writing {
                    history: ids.to_vec(),
                    ids: Vec::new(),
                    text: String::new(),
                    rng,
                    decoder: self.tokenizer().decode_stream(true).continuing(),
                    stops: stops.clone(),
                    ending: (options.max_tokens == 0).then_some(Ending::Length),
                }
            })
            .collect();
        let mut input = Input::batch(prompts);
        while texts.iter().any(|text| text.ending.is_none()) {
            let rows = self.advance(input, options.interventions, Some(&mut cache), false)?;
            let mut rows = rows.into_iter();
            let (mut ids, mut lengths) = (Vec::new(), vec![0; texts.len()]);
            let mut wanted = true;
            for (sequence, text) in texts.iter_mut().enumerate() {
                if text.ending.is_some() {
                    continue;
                }
                let Some(logits) = rows.next() else { break };
                let next = choose(&logits, &text.history, &options.sampling, &mut text.rng);
                if options.stop.contains(&next) {
                    text.ending = Some(Ending::StopToken(next));
                } else {
                    text.history.push(next);
                    text.ids.push(next);
                    let piece = text.decoder.push(next);
                    let shown = text.write(&piece, &options.stop_strings);
                    wanted &= emit(Emission {
                        sequence,
                        id: Some(next),
                        text: shown,
                    });
                    if text.ending.is_none() && text.ids.len() >= options.max_tokens {
                        text.ending = Some(Ending::Length);
                    }
                    if text.ending.is_none() && cache.lengths()[sequence] >= self.config().n_ctx {
                        text.ending = Some(Ending::Context);
                    }
                }
                if text.ending.is_none() {
                    ids.push(next);
                    lengths[sequence] = 1;
                }
            }
            if !wanted {
                for text in &mut texts {
                    text.ending.get_or_insert(Ending::Stopped);
                }
            }
            input = Input::Tokens { ids, lengths };
        }
        let mut generated = Vec::with_capacity(texts.len());
        for (sequence, text) in texts.into_iter().enumerate() {
            let (whole, rest) = text.close(sequence, &options.stop_strings);
            generated.push(whole);
            if let Some(rest) = rest {
                emit(rest);
            }
        }
        Ok(generated)
    }

    /// Every intervention has something to act on within the prompts and the tokens asked for.
    fn check_interventions(
        &self,
        prompts: &[&[u32]],
        options: &GenerateOptions<'_>,
    ) -> Result<(), ModelError> {
        let most = self.config().n_ctx;
        let reach = |ids: &&[u32]| (ids.len() + options.max_tokens).min(most.max(ids.len()));
        let lengths: Vec<usize> = prompts.iter().map(reach).collect();
        let rows = Rows::new(&lengths);
        match options.interventions.iter().find(|i| !i.acts_in(&rows)) {
            None => Ok(()),
            Some(intervention) => Err(ModelError::Input {
                problem: format!(
                    "{} never acts: the texts have {lengths:?} positions at most",
                    intervention.describe()
                ),
            }),
        }
    }
}
