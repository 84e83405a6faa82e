//! Rows straight from a model, which runs while they are trained on.

use std::path::PathBuf;

use pullback_artifact::{Control, Manifest, ModelRef, sha256_bytes};
use pullback_model::{Model, Site};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::sequences::{mark, run, widths};
use crate::store::ShardRows;
use crate::{
    ActivationError, ActivationStore, Corpus, Feed, FeedOrigin, FeedSite, Flags, HarvestConfig,
    Piece, Plan, STORE_KIND, Sequence, StoreInfo,
};

/// Activations that are made when they are needed: a model run over a plan's sequences, a piece of some thousand rows at a
/// time. The rows of a piece are shuffled; what goes before them, the order of the plan, has its documents mixed already.
///
/// Held-out sequences are run at the start and kept in memory, as stores.
pub struct ModelFeed<'m> {
    model: &'m Model,
    origin: FeedOrigin,
    sites: Vec<Site>,
    feed_sites: Vec<FeedSite>,
    sequences: Vec<Sequence>,
    batch: usize,
    per_piece: usize,
    seed: u64,
    median_norms: Vec<f64>,
    held_out: Vec<ActivationStore>,
    digest: String,
}

impl<'m> ModelFeed<'m> {
    /// Rows of a piece unless another number is asked for.
    pub const PIECE_ROWS: usize = 1 << 15;

    /// Chooses text and runs its held-out part. `config` is that of a harvest; its site is not looked at, and its
    /// `shard_rows` are the rows of a piece.
    ///
    /// # Errors
    /// As [`harvest`](crate::harvest); no text is held out.
    pub fn new(
        (model, name): (&'m Model, &str),
        sites: &[Site],
        corpus: &Corpus,
        config: &HarvestConfig,
        control: &Control,
    ) -> Result<Self, ActivationError> {
        let widths = widths(model, sites)?;
        if config.batch == 0 || config.shard_rows == 0 {
            return Err(ActivationError::Option(
                "at least one sequence in a batch and one row in a piece are needed".to_owned(),
            ));
        }
        let plan = Plan::new(corpus, model.tokenizer(), &config.plan, control)?;
        let text = format!("{} {sites:?} {config:?} {}", model.digest(), plan.digest());
        let digest = format!("sha256:{}", sha256_bytes(text.as_bytes()));
        let (held_out, sequences): (Vec<Sequence>, Vec<Sequence>) = plan
            .sequences
            .into_iter()
            .partition(|sequence| sequence.held_out);
        if held_out.is_empty() {
            return Err(ActivationError::Option(
                "no text is held out: norms are measured on it, and what is trained is judged on it"
                    .to_owned(),
            ));
        }
        let context = config.plan.context;
        let stage = control.stage("held out", (held_out.len() * context) as u64, "tokens");
        let held: Vec<&Sequence> = held_out.iter().collect();
        let of_sites = run(
            model,
            sites,
            &held,
            (0, config.batch),
            control,
            Some(&stage),
        )?;
        stage.finish();
        let model_ref = ModelRef {
            name: name.to_owned(),
            digest: model.digest().to_owned(),
        };
        let mut median_norms = Vec::with_capacity(sites.len());
        let mut stores = Vec::with_capacity(sites.len());
        for ((&site, &d), mut rows) in sites.iter().zip(&widths).zip(of_sites) {
            let mut median = None;
            let summary = mark(&mut rows, d, &mut median);
            let median_norm = median.unwrap_or(0.0);
            median_norms.push(median_norm);
            let info = StoreInfo {
                site,
                d,
                rows: summary.rows,
                shard_rows: vec![summary.rows],
                context,
                prepend_bos: config.plan.prepend_bos,
                median_norm,
                outliers: summary.outliers,
                held_out: summary.held_out,
            };
            let manifest = Manifest::new(STORE_KIND, config.plan.seed)
                .with_site(site.to_string())
                .with_model(model_ref.clone());
            let label = PathBuf::from(format!("held-out text at {site}"));
            stores.push(ActivationStore::in_memory(label, manifest, info, rows));
        }
        Ok(Self {
            model,
            origin: FeedOrigin {
                model: Some(model_ref),
                parents: Vec::new(),
                context,
                prepend_bos: config.plan.prepend_bos,
            },
            sites: sites.to_vec(),
            feed_sites: sites
                .iter()
                .zip(&widths)
                .map(|(site, &d)| FeedSite {
                    name: site.to_string(),
                    d,
                })
                .collect(),
            sequences,
            batch: config.batch,
            // Whole batches, one at least.
            per_piece: config.shard_rows.div_ceil(context * config.batch) * config.batch,
            seed: config.plan.seed,
            median_norms,
            held_out: stores,
            digest,
        })
    }

    /// The held-out rows, a store in memory for each site.
    pub fn held_out_stores(&self) -> &[ActivationStore] {
        &self.held_out
    }

    fn random(&self, stream: u64) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(stream);
        random
    }

    /// The rows that are normal at all sites, those of `most` at most, in the order of `order`.
    fn normal(&self, of_sites: &[ShardRows], order: &[u32], most: usize) -> Piece {
        let normal = |&&row: &&u32| {
            of_sites
                .iter()
                .all(|rows| !Flags(rows.flags[row as usize]).is_abnormal())
        };
        let rows: Vec<usize> = order
            .iter()
            .filter(normal)
            .take(most)
            .map(|&row| row as usize)
            .collect();
        let sites = of_sites.iter().zip(&self.feed_sites).map(|(from, site)| {
            let mut out = Vec::with_capacity(rows.len() * site.d);
            for &row in &rows {
                out.extend_from_slice(&from.activations[row * site.d..(row + 1) * site.d]);
            }
            out
        });
        Piece {
            rows: rows.len(),
            sites: sites.collect(),
        }
    }
}

impl std::fmt::Debug for ModelFeed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelFeed")
            .field("sites", &self.feed_sites)
            .field("sequences", &self.sequences.len())
            .finish_non_exhaustive()
    }
}

impl Feed for ModelFeed<'_> {
    fn sites(&self) -> &[FeedSite] {
        &self.feed_sites
    }

    fn digest(&self) -> String {
        self.digest.clone()
    }

    fn origin(&self) -> FeedOrigin {
        self.origin.clone()
    }

    /// Not known: which rows are outliers is seen when they are made.
    fn pass(&self) -> Option<usize> {
        None
    }

    fn piece(&self, number: usize, control: &Control) -> Result<Piece, ActivationError> {
        let pieces = self.sequences.len().div_ceil(self.per_piece);
        let (pass, place) = (number / pieces, number % pieces);
        let mut order: Vec<&Sequence> = self.sequences.iter().collect();
        // The first pass has the order of the plan.
        if pass > 0 {
            order.shuffle(&mut self.random(pass as u64));
        }
        let first = place * self.per_piece;
        let sequences = &order[first..(first + self.per_piece).min(order.len())];
        let mut of_sites = run(
            self.model,
            &self.sites,
            sequences,
            (first, self.batch),
            control,
            None,
        )?;
        let sites = self.feed_sites.iter().zip(&self.median_norms);
        for (rows, (site, &median)) in of_sites.iter_mut().zip(sites) {
            mark(rows, site.d, &mut Some(median));
        }
        let mut order: Vec<u32> = (0..of_sites[0].len() as u32).collect();
        order.shuffle(&mut self.random((1 << 63) + number as u64));
        Ok(self.normal(&of_sites, &order, usize::MAX))
    }

    fn held_out(&self, most: usize) -> Result<Piece, ActivationError> {
        let stores = &self.held_out;
        let normal: Vec<u32> = (0..stores[0].len())
            .filter(|&row| stores.iter().all(|store| !store.flags(row).is_abnormal()))
            .take(most)
            .map(|row| row as u32)
            .collect();
        let sites = stores.iter().map(|store| {
            let mut out = vec![0.0; normal.len() * store.info().d];
            store.gather(&normal, &mut out);
            out
        });
        Ok(Piece {
            rows: normal.len(),
            sites: sites.collect(),
        })
    }
}
