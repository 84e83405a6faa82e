//! Which sequences of tokens are harvested: chosen by a seed, spread over the groups of the corpus, with
//! whole documents held out.

use pullback_artifact::Control;
use pullback_model::Tokenizer;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{ActivationError, Corpus};

/// How sequences are chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanConfig {
    /// Tokens to harvest for training (rounded up to whole sequences).
    pub tokens: usize,
    /// Tokens to harvest from held-out documents, beside those.
    pub held_out_tokens: usize,
    /// Tokens in a sequence.
    pub context: usize,
    /// Put the model's beginning-of-text token before each sequence.
    pub prepend_bos: bool,
    /// Seed of the choice.
    pub seed: u64,
}

/// Tokens that are run together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// `context` token ids.
    pub ids: Vec<u32>,
    /// Index of the document.
    pub document: usize,
    /// Whether it is held out.
    pub held_out: bool,
}

/// The sequences of a harvest, in order.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The sequences: training ones and held-out ones mixed, so that every shard holds both.
    pub sequences: Vec<Sequence>,
}

/// Sequences taken from one document before it is another's turn: variety at little cost.
const RUN: usize = 8;
/// Of every so many documents of a group, one is held out.
const HELD_OUT_EVERY: usize = 10;

impl Plan {
    /// Chooses sequences.
    ///
    /// Each group's documents are shuffled by the seed; every tenth is held out (of a document that is alone
    /// in its group, the last tenth of the text). Documents are then visited in turn, group by group, a few sequences at a
    /// visit, until there are enough tokens. A document's tail shorter than a sequence is left out.
    ///
    /// # Errors
    /// An option makes no sense; the corpus is too small (the error says how many tokens it has); a text
    /// cannot be tokenized.
    pub fn new(
        corpus: &Corpus,
        tokenizer: &Tokenizer,
        config: &PlanConfig,
        control: &Control,
    ) -> Result<Self, ActivationError> {
        let bos = match (config.prepend_bos, tokenizer.bos()) {
            (true, None) => {
                return Err(ActivationError::Option(
                    "the model's tokenizer has no beginning-of-text token to prepend".to_owned(),
                ));
            }
            (true, bos) => bos,
            (false, _) => None,
        };
        let body = config.context.saturating_sub(usize::from(bos.is_some()));
        if body < 2 || config.context < 3 || config.tokens == 0 {
            return Err(ActivationError::Option(format!(
                "a harvest of {} tokens in sequences of {} is empty: at least one token and a context of 3 are needed",
                config.tokens, config.context
            )));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let wanted =
            [config.tokens, config.held_out_tokens].map(|tokens| tokens.div_ceil(config.context));
        let stage = control.stage("tokenize", (wanted[0] + wanted[1]) as u64, "sequences");
        let mut queues = Queues::new(corpus, &mut rng);
        let mut chosen: [Vec<Sequence>; 2] = [Vec::new(), Vec::new()];
        for (split, chosen) in chosen.iter_mut().enumerate() {
            while chosen.len() < wanted[split] {
                control.check()?;
                let Some(document) = queues.next(split) else {
                    let have = chosen.len() * config.context;
                    return Err(ActivationError::Corpus {
                        path: corpus.path().to_owned(),
                        problem: format!(
                            "is too small: it has {have} {} tokens in sequences of {}, {} are wanted",
                            ["training", "held-out"][split],
                            config.context,
                            wanted[split].saturating_mul(config.context)
                        ),
                    });
                };
                let source = &corpus.documents()[document.index];
                if document.bodies.is_none() {
                    let span = document.span(&source.text);
                    let ids = tokenizer.encode(span, false)?;
                    let mut bodies: Vec<Vec<u32>> =
                        ids.chunks_exact(body).map(<[u32]>::to_vec).collect();
                    bodies.reverse();
                    document.bodies = Some(bodies);
                }
                let bodies = document.bodies.get_or_insert_default();
                for _ in 0..RUN.min(wanted[split] - chosen.len()) {
                    let Some(next) = bodies.pop() else { break };
                    chosen.push(Sequence {
                        ids: bos.into_iter().chain(next).collect(),
                        document: document.index,
                        held_out: split == 1,
                    });
                    stage.advance(1);
                }
            }
        }
        stage.finish();
        let [train, held_out] = chosen;
        let mut sequences: Vec<Sequence> = train.into_iter().chain(held_out).collect();
        sequences.shuffle(&mut rng);
        Ok(Self { sequences })
    }

    /// Digest of the token ids, in order.
    pub(crate) fn digest(&self) -> String {
        let ids = self.sequences.iter().flat_map(|s| s.ids.iter().copied());
        let ids: Vec<u32> = ids.collect();
        format!(
            "sha256:{}",
            pullback_artifact::sha256_bytes(bytemuck::cast_slice(&ids))
        )
    }

    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.sequences
            .iter()
            .map(|sequence| sequence.ids.len())
            .sum()
    }
}

/// A document in line.
struct Waiting {
    index: usize,
    /// The part of the text to use, in tenths: `0..10` is all of it.
    tenths: std::ops::Range<usize>,
    /// Its token sequences, the next one last; made when its turn comes.
    bodies: Option<Vec<Vec<u32>>>,
}

impl Waiting {
    fn span<'a>(&self, text: &'a str) -> &'a str {
        let at = |tenth: usize| text.floor_char_boundary(text.len() * tenth / 10);
        &text[at(self.tenths.start)..at(self.tenths.end)]
    }
}

/// The documents of each split, group by group, and whose turn it is.
struct Queues {
    splits: [Vec<std::collections::VecDeque<Waiting>>; 2],
    turn: usize,
}

impl Queues {
    fn new(corpus: &Corpus, rng: &mut ChaCha8Rng) -> Self {
        let mut groups: std::collections::BTreeMap<&str, Vec<usize>> =
            std::collections::BTreeMap::new();
        for (index, document) in corpus.documents().iter().enumerate() {
            groups.entry(&document.group).or_default().push(index);
        }
        let mut splits: [Vec<std::collections::VecDeque<Waiting>>; 2] = [Vec::new(), Vec::new()];
        for mut members in groups.into_values() {
            members.shuffle(rng);
            // A document that is alone in its group gives its last tenth.
            let alone = members.len() == 1;
            let mut queues = [
                std::collections::VecDeque::new(),
                std::collections::VecDeque::new(),
            ];
            let mut wait = |split: usize, index, tenths| {
                queues[split].push_back(Waiting {
                    index,
                    tenths,
                    bodies: None,
                });
            };
            for (place, index) in members.into_iter().enumerate() {
                if alone {
                    wait(0, index, 0..9);
                    wait(1, index, 9..10);
                } else {
                    wait(usize::from(place % HELD_OUT_EVERY == 1), index, 0..10);
                }
            }
            for (split, queue) in splits.iter_mut().zip(queues) {
                split.push(queue);
            }
        }
        Self { splits, turn: 0 }
    }

    /// The next document with something left: groups take turns, and a visited document goes to the end of
    /// its group's line.
    fn next(&mut self, split: usize) -> Option<&mut Waiting> {
        let groups = &mut self.splits[split];
        for _ in 0..groups.len() {
            let group = self.turn % groups.len();
            self.turn += 1;
            let queue = &mut groups[group];
            while queue
                .front()
                .is_some_and(|w| w.bodies.as_ref().is_some_and(Vec::is_empty))
            {
                queue.pop_front();
            }
            if !queue.is_empty() {
                queue.rotate_left(1);
                return groups[group].back_mut();
            }
        }
        None
    }
}
