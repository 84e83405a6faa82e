//! Running a model: any slice of its layers, from tokens or from a residual stream, with interventions and recordings.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use pullback_kernels::fused::{composed, cross_entropy, cross_entropy_stored, is_fused};
use pullback_kernels::{on_threads, standing_by};

use crate::block::{BlockRun, normalised};
use crate::cache::KeyValueCache;
use crate::config::Norm;
use crate::error::ModelError;
use crate::flow::Flow;
use crate::intervention::{Intervention, Rows};
use crate::model::{Matrix, Model};
use crate::pass::{Direction, Halt, Pass};
use crate::site::{Place, Site, SiteError};
use crate::weight_update::WeightUpdate;

/// Rows up to which a run is so short that threads are better kept standing by than woken.
const FEW_ROWS: usize = 16;

/// What a run starts from. Sequences of a batch may differ in length: their rows follow one another and no padding
/// stands between them, so each is computed as it would be alone.
#[expect(
    clippy::large_enum_variant,
    reason = "made once a run, and both variants own large memory"
)]
#[derive(Clone, Debug)]
pub enum Input {
    /// Token ids.
    Tokens {
        /// The ids of all sequences, one after the other.
        ids: Vec<u32>,
        /// The length of each sequence.
        lengths: Vec<usize>,
    },
    /// A residual stream as it enters block `layer`: `[rows, d_model]`.
    Residual {
        /// The stream.
        stream: Tensor<2>,
        /// The length of each sequence.
        lengths: Vec<usize>,
        /// The block that reads it; `n_layers` for the final norm.
        layer: usize,
    },
}

impl Input {
    /// The tokens of one sequence.
    pub fn tokens(ids: &[u32]) -> Self {
        Self::batch(&[ids])
    }

    /// The tokens of several sequences, whose lengths may differ.
    pub fn batch(sequences: &[&[u32]]) -> Self {
        Self::Tokens {
            ids: sequences.concat(),
            lengths: sequences.iter().map(|ids| ids.len()).collect(),
        }
    }

    /// The tokens of `batch` sequences of one length; a remainder is refused by the run.
    pub fn uniform(ids: Vec<u32>, batch: usize) -> Self {
        let lengths = even(ids.len(), batch);
        Self::Tokens { ids, lengths }
    }

    /// The residual stream of `batch` sequences of one length as it enters block `layer`.
    pub fn residual(stream: Tensor<2>, batch: usize, layer: usize) -> Self {
        let lengths = even(stream.dims()[0], batch);
        Self::Residual {
            stream,
            lengths,
            layer,
        }
    }
}

/// `total` rows as `batch` sequences of one length; what does not fit makes the lengths not add up.
fn even(total: usize, batch: usize) -> Vec<usize> {
    vec![total.checked_div(batch).unwrap_or(0); batch]
}

/// What a run does beside computing.
#[derive(Clone, Debug, Default)]
pub struct RunOptions<'a> {
    /// The run stops before this block (and computes no final norm); `None` runs to the end.
    pub stop_at: Option<usize>,
    /// Changes, applied in order at each site.
    pub interventions: &'a [Intervention],
    /// Sites whose activations are returned (after the interventions there).
    pub record: &'a [Site],
    /// Low-rank updates of weight matrices, as if they were added to the weights.
    pub updates: &'a [WeightUpdate],
    /// Device of the run when it starts from tokens; default: the model's. An autodiff device makes
    /// gradients possible.
    pub device: Option<Device>,
}

/// What a run returns.
#[derive(Debug)]
pub struct RunOutput {
    /// The residual stream where the run stopped; after the final norm when it ran to the end.
    /// `[rows, d_model]`.
    pub stream: Tensor<2>,
    /// Recorded activations, `[rows, width of the site]`.
    pub recorded: HashMap<Site, Tensor<2>>,
}

impl RunOutput {
    /// Takes a recorded activation.
    ///
    /// # Errors
    /// The site was not asked for.
    pub fn take(&mut self, site: Site) -> Result<Tensor<2>, ModelError> {
        take(&mut self.recorded, site)
    }
}

pub(crate) fn take(
    recorded: &mut HashMap<Site, Tensor<2>>,
    site: Site,
) -> Result<Tensor<2>, ModelError> {
    recorded.remove(&site).ok_or_else(|| {
        SiteError::NotReached {
            site,
            reached: "it was not among the sites to record".to_owned(),
        }
        .into()
    })
}

/// Which rows a run makes logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogitRows {
    /// All, if someone wants them.
    Wanted,
    /// The last of each sequence that has any.
    Last,
}

/// What a pass through the model leaves.
pub(crate) struct PassOutput {
    pub(crate) stream: Option<Tensor<2>>,
    pub(crate) logits: Option<Tensor<2>>,
    pub(crate) recorded: HashMap<Site, Tensor<2>>,
    pub(crate) tangents: HashMap<Site, Tensor<2>>,
}

/// How a pass is made.
#[derive(Clone, Copy)]
pub(crate) struct PassOptions<'a> {
    pub(crate) direction: Option<&'a Direction>,
    pub(crate) only_record: bool,
    pub(crate) logits: LogitRows,
    /// Whether an intervention without a row to act on is an error; a step of generation sees few positions.
    pub(crate) all_act: bool,
}

/// A pass from a caller's input to its end.
pub(crate) const WHOLE: PassOptions<'static> = PassOptions {
    direction: None,
    only_record: false,
    logits: LogitRows::Wanted,
    all_act: true,
};

impl Model {
    /// Runs the model.
    ///
    /// # Errors
    /// The input is empty, ragged or longer than the context; a token is not in the vocabulary; a site does not exist
    /// or is not reached by this run; an intervention has nothing to act on.
    pub fn run(&self, input: Input, options: &RunOptions<'_>) -> Result<RunOutput, ModelError> {
        let out = self.pass(input, options, None, WHOLE)?;
        Ok(RunOutput {
            stream: whole_stream(out.stream)?,
            recorded: out.recorded,
        })
    }

    /// Records activations and computes no more than they need: the run ends where the last of them is made.
    ///
    /// # Errors
    /// As [`Model::run`].
    pub fn record(
        &self,
        input: Input,
        sites: &[Site],
        interventions: &[Intervention],
    ) -> Result<HashMap<Site, Tensor<2>>, ModelError> {
        let options = RunOptions {
            interventions,
            record: sites,
            ..RunOptions::default()
        };
        let how = PassOptions {
            only_record: true,
            ..WHOLE
        };
        Ok(self.pass(input, &options, None, how)?.recorded)
    }

    /// Runs the model on the continuation of one sequence, whose earlier positions are in `cache`.
    ///
    /// # Errors
    /// As [`Model::run`]; also when the cache holds several sequences.
    pub fn run_cached(
        &self,
        ids: &[u32],
        options: &RunOptions<'_>,
        cache: &mut KeyValueCache,
    ) -> Result<RunOutput, ModelError> {
        let out = self.pass(Input::tokens(ids), options, Some(cache), WHOLE)?;
        Ok(RunOutput {
            stream: whole_stream(out.stream)?,
            recorded: out.recorded,
        })
    }

    pub(crate) fn pass(
        &self,
        input: Input,
        options: &RunOptions<'_>,
        mut cache: Option<&mut KeyValueCache>,
        how: PassOptions<'_>,
    ) -> Result<PassOutput, ModelError> {
        let config = self.config();
        let (first, from_tokens) = match &input {
            Input::Tokens { .. } => (0, true),
            Input::Residual { layer, .. } => (*layer, false),
        };
        let last = options.stop_at.unwrap_or(config.n_layers);
        if first > last || last > config.n_layers {
            return Err(ModelError::Input {
                problem: format!(
                    "a run from block {first} to before block {last} is not within the model's {} blocks",
                    config.n_layers
                ),
            });
        }
        let to_the_end = options.stop_at.is_none();
        let lifted = match &input {
            Input::Residual { stream, .. } => stream.device().is_autodiff(),
            Input::Tokens { .. } => self.device().is_autodiff(),
        };
        let rows = self.rows_of(&input, cache.as_deref())?;
        let positions: Arc<[u32]> = rows.positions().map(|p| p as u32).collect();
        let longest = rows
            .sequences()
            .iter()
            .map(|&(start, length)| start + length);
        let longest = longest.max().unwrap_or(0);
        let mut pass = Pass {
            config,
            rows,
            positions,
            interventions: options.interventions,
            updates: options.updates,
            record: options.record,
            direction: how.direction,
            only_record: how.only_record,
            recorded: HashMap::new(),
            tangents: HashMap::new(),
        };
        let reached = |site: Site| match site.place() {
            Place::Embed | Place::PosEmbed => from_tokens,
            Place::FinalScale | Place::FinalNormalized | Place::Logits => to_the_end,
            _ => site
                .layer()
                .is_some_and(|layer| (first..last).contains(&layer)),
        };
        let extent = format!("this run computes blocks {first} to {last} (exclusive)");
        pass.check(reached, &extent)?;
        pass.check_updates(first..last)?;
        if how.all_act {
            pass.check_all_act()?;
        }
        let added: Vec<usize> = pass.rows.sequences().iter().map(|&(_, new)| new).collect();
        let new_rows: usize = added.iter().sum();
        let run = || {
            self.through(
                input,
                options,
                &mut pass,
                cache.as_deref_mut(),
                how,
                last,
                longest,
            )
        };
        // Graphs of gradients belong to the thread that asks for them.
        let with_gradients = options.device.as_ref().is_some_and(Device::is_autodiff) || lifted;
        let halted = if with_gradients || !is_fused(self.device()) {
            run()
        } else if new_rows <= FEW_ROWS {
            standing_by(run)
        } else {
            on_threads(run)
        };
        let (stream, logits) = match halted {
            Ok((stream, logits)) => (Some(stream), logits),
            Err(Halt::Done) => (None, None),
            Err(Halt::Error(error)) => return Err(error),
        };
        if let Some(cache) = cache {
            for (length, new) in cache.lengths.iter_mut().zip(added) {
                *length += new;
            }
        }
        Ok(PassOutput {
            stream,
            logits,
            recorded: pass.recorded,
            tangents: pass.tangents,
        })
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call, split off for its early ends"
    )]
    fn through(
        &self,
        input: Input,
        options: &RunOptions<'_>,
        pass: &mut Pass<'_>,
        mut cache: Option<&mut KeyValueCache>,
        how: PassOptions<'_>,
        last: usize,
        longest: usize,
    ) -> Result<(Tensor<2>, Option<Tensor<2>>), Halt> {
        let (mut stream, first) = match input {
            Input::Tokens { ids, .. } => (self.embedded(&ids, options, pass)?, 0),
            Input::Residual { stream, layer, .. } => (Flow::new(stream), layer),
        };
        for layer in first..last {
            let local = pass.config.windows[layer].is_some();
            let run = BlockRun {
                block: &self.blocks()[layer],
                layer,
                angles: self.angles(longest, local),
            };
            let memory = cache.as_deref_mut().map(|cache| &mut cache.blocks[layer]);
            stream = run.run(stream, pass, memory)?;
        }
        if options.stop_at.is_some() {
            return Ok((stream.x, None));
        }
        let places = [Place::FinalScale, Place::FinalNormalized];
        let normal = normalised(stream, self.final_norm_weights(), 0, places, pass)?;
        let logits = if how.logits == LogitRows::Last && !options.record.contains(&Site::logits()) {
            let kept = last_rows(&normal.x, pass);
            let logits = self.capped_logits(Flow::new(kept));
            Some(pass.tap(0, Place::Logits, logits)?.x)
        } else if pass.wants(0, Place::Logits) {
            let logits = self.capped_logits(normal.clone());
            let logits = pass.tap(0, Place::Logits, logits)?.x;
            Some(match how.logits {
                LogitRows::Wanted => logits,
                LogitRows::Last => last_rows(&logits, pass),
            })
        } else {
            None
        };
        Ok((normal.x, logits))
    }

    /// The rows that an input stands for.
    fn rows_of(&self, input: &Input, cache: Option<&KeyValueCache>) -> Result<Rows, ModelError> {
        let problem = |problem| Err(ModelError::Input { problem });
        let config = self.config();
        let (total, what, lengths) = match input {
            Input::Tokens { ids, lengths } => (ids.len(), "tokens", lengths),
            Input::Residual {
                stream, lengths, ..
            } => {
                let [rows, width] = stream.dims();
                if width != config.d_model {
                    return problem(format!(
                        "the residual stream has the width {width}, the model {}",
                        config.d_model
                    ));
                }
                (rows, "rows", lengths)
            }
        };
        let starts = match cache {
            Some(cache) => cache.lengths.clone(),
            None => vec![0; lengths.len()],
        };
        if starts.len() != lengths.len() {
            return problem(format!(
                "{} sequences go on from a cache of {}",
                lengths.len(),
                starts.len()
            ));
        }
        if total == 0 || lengths.iter().sum::<usize>() != total {
            return problem(format!(
                "{total} {what} do not divide into sequences of {lengths:?}"
            ));
        }
        // A sequence of a cache may stand still.
        if cache.is_none() && lengths.contains(&0) {
            return problem("a sequence of the batch is empty".into());
        }
        let sequences: Vec<(usize, usize)> =
            starts.into_iter().zip(lengths.iter().copied()).collect();
        let longest = sequences.iter().map(|&(start, new)| start + new).max();
        match longest {
            Some(longest) if longest > config.n_ctx => problem(format!(
                "the text has {longest} tokens, the model's context is {}",
                config.n_ctx
            )),
            _ => Ok(Rows::going_on(sequences)),
        }
    }

    fn embedded(
        &self,
        ids: &[u32],
        options: &RunOptions<'_>,
        pass: &mut Pass<'_>,
    ) -> Result<Flow, Halt> {
        self.check_ids(ids)?;
        let device = options.device.as_ref().unwrap_or(self.device());
        let onto = |rows: Tensor<2>| {
            if device.is_autodiff() && !rows.device().is_autodiff() {
                Tensor::from_inner(rows)
            } else {
                rows
            }
        };
        let mut stream = pass.tap(0, Place::Embed, Flow::new(onto(self.embed_rows(ids))))?;
        if let Some(rows) = self.position_rows(&pass.positions) {
            let positions = pass.tap(0, Place::PosEmbed, Flow::new(onto(rows)))?;
            stream = stream.plus(positions);
        }
        Ok(stream)
    }

    fn check_ids(&self, ids: &[u32]) -> Result<(), ModelError> {
        let vocabulary = self.config().d_vocab;
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            None => Ok(()),
            Some(id) => Err(ModelError::Input {
                problem: format!("token id {id} is not below the vocabulary size {vocabulary}"),
            }),
        }
    }

    /// The final norm of a residual stream `[n, d_model]`.
    pub fn final_norm(&self, stream: Tensor<2>) -> Tensor<2> {
        let config = self.config();
        let is_layer = config.norm == Norm::Layer;
        let eps = f64::from(config.norm_eps);
        Flow::new(stream)
            .norm(self.final_norm_weights(), is_layer, eps)
            .x
    }

    /// Logits `[n, d_vocab]` of normalised streams `[n, d_model]` (what a run to the end returns).
    pub fn logits(&self, normalized: Tensor<2>) -> Tensor<2> {
        self.capped_logits(Flow::new(normalized)).x
    }

    fn capped_logits(&self, normalized: Flow) -> Flow {
        normalized
            .linear(|x| self.unembed(x))
            .softcap(self.config().final_softcap)
    }

    /// Logits with the model's cap, where it has one.
    pub(crate) fn capped(&self, logits: Tensor<2>) -> Tensor<2> {
        Flow::new(logits).softcap(self.config().final_softcap).x
    }

    /// Cross-entropy in nats of each row's target, from normalised streams `[n, d_model]`; the logits are
    /// never in memory whole.
    ///
    /// # Errors
    /// A target is not in the vocabulary, or there is not one a row.
    pub fn cross_entropy(
        &self,
        normalized: Tensor<2>,
        targets: &[u32],
    ) -> Result<Tensor<1>, ModelError> {
        if normalized.dims()[0] != targets.len() {
            return Err(ModelError::Input {
                problem: format!(
                    "{} targets for {} rows",
                    targets.len(),
                    normalized.dims()[0]
                ),
            });
        }
        self.check_ids(targets)?;
        if let Some(cap) = self.config().final_softcap {
            let rows: Vec<Tensor<1>> = (0..targets.len())
                .step_by(CAPPED_ROWS)
                .map(|first| {
                    let count = CAPPED_ROWS.min(targets.len() - first);
                    let logits = self.unembed(normalized.clone().narrow(0, first, count));
                    let logits = composed::softcap(logits, Some(f64::from(cap)));
                    composed::loss_of_logits(logits, &targets[first..first + count])
                })
                .collect();
            return Ok(Tensor::cat(rows, 0));
        }
        Ok(match self.output_matrix() {
            Matrix::Stored(weight, ..) => {
                cross_entropy_stored(normalized, weight, Arc::from(targets))
            }
            Matrix::Dense(weight) => cross_entropy(normalized, weight.clone(), Arc::from(targets)),
        })
    }
}

/// Rows whose capped logits stand in memory together.
const CAPPED_ROWS: usize = 128;

fn whole_stream(stream: Option<Tensor<2>>) -> Result<Tensor<2>, ModelError> {
    stream.ok_or_else(|| ModelError::Input {
        problem: "the run ended before its last block".into(),
    })
}

/// The last row of each sequence that has any, `[sequences, width]`.
fn last_rows(x: &Tensor<2>, pass: &mut Pass<'_>) -> Tensor<2> {
    let mut kept = Vec::new();
    let mut sequences = Vec::new();
    let mut end = 0;
    for &(start, length) in pass.rows.sequences() {
        end += length;
        if length > 0 {
            kept.push(x.clone().narrow(0, end - 1, 1));
            sequences.push((start + length - 1, 1));
        } else {
            sequences.push((start, 0));
        }
    }
    // What follows, the site of the logits, sees these rows alone.
    pass.rows = Rows::going_on(sequences);
    Tensor::cat(kept, 0)
}
