//! The normal training rows of stores, shuffled.

use std::sync::{Arc, Mutex, PoisonError};

use pullback_artifact::{Control, ParentRef, sha256_bytes};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::{
    ActivationError, ActivationStore, Feed, FeedOrigin, FeedSite, Flags, Piece, STORE_KIND,
};

/// Rows of a piece of stores that are shuffled whole.
const PIECE_ROWS: usize = 1 << 14;
/// Neighbouring rows that are read together where stores are too large to be shuffled whole.
const RUN: usize = 128;

/// The rows of one store, or those that several stores of the same text have in common, in an order drawn from a seed for
/// each pass.
///
/// Up to `buffer` bytes of activations are shuffled whole. More are read in runs of 128 neighbours, all runs of all shards
/// in a random order, and shuffled within pieces of half the buffer: the disk is read in whole runs, and a batch still
/// holds rows of thousands of places.
#[derive(Debug)]
pub struct StoreFeed<'a> {
    stores: Vec<&'a ActivationStore>,
    sites: Vec<FeedSite>,
    rows: Vec<u32>,
    seed: u64,
    /// Rows of a piece.
    piece_rows: usize,
    /// Whether the order is one of runs.
    in_runs: bool,
    /// The pass whose order was drawn last.
    order: Mutex<Option<(usize, Arc<Vec<u32>>)>>,
}

impl<'a> StoreFeed<'a> {
    /// The bytes of activations that are shuffled whole unless another number is asked for: 2 GiB.
    pub const BUFFER: u64 = 1 << 31;

    /// Of stores that were harvested together; one alone always fits.
    ///
    /// # Errors
    /// The stores are not of the same text, or none has a row to train on.
    pub fn new(
        stores: &[&'a ActivationStore],
        seed: u64,
        buffer: u64,
    ) -> Result<Self, ActivationError> {
        let [first, others @ ..] = stores else {
            return Err(ActivationError::Option(
                "at least one store is needed".to_owned(),
            ));
        };
        for other in others {
            same_text(first, other)?;
        }
        let rows: Vec<u32> = (0..first.len())
            .filter(|&row| {
                !first.flags(row).has(Flags::HELD_OUT)
                    && stores.iter().all(|store| !store.flags(row).is_abnormal())
            })
            .map(|row| row as u32)
            .collect();
        if rows.is_empty() {
            return Err(ActivationError::Option(format!(
                "{} holds no row to train on",
                first.path().display()
            )));
        }
        let sites: Vec<FeedSite> = stores
            .iter()
            .map(|store| FeedSite {
                name: store.info().site.to_string(),
                d: store.info().d,
            })
            .collect();
        let row_bytes: u64 = sites.iter().map(|site| 4 * site.d as u64).sum();
        let in_runs = rows.len() as u64 * row_bytes > buffer;
        let piece_rows = if in_runs {
            // Whole runs, one at least.
            let runs = buffer / 2 / row_bytes / RUN as u64;
            (runs.max(1) as usize) * RUN
        } else {
            PIECE_ROWS
        };
        Ok(Self {
            stores: stores.to_vec(),
            sites,
            rows,
            seed,
            piece_rows,
            in_runs,
            order: Mutex::new(None),
        })
    }

    /// Whether there is more than the buffer, so that rows are read in runs.
    pub fn is_in_runs(&self) -> bool {
        self.in_runs
    }

    /// The order of one pass: of rows, or of the first rows of runs.
    fn order(&self, pass: usize) -> Arc<Vec<u32>> {
        let mut last = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((number, order)) = &*last
            && *number == pass
        {
            return Arc::clone(order);
        }
        let mut order = if self.in_runs {
            (0..self.rows.len())
                .step_by(RUN)
                .map(|at| at as u32)
                .collect()
        } else {
            self.rows.clone()
        };
        order.shuffle(&mut self.random(pass as u64 + 1));
        let order = Arc::new(order);
        *last = Some((pass, Arc::clone(&order)));
        order
    }

    fn random(&self, stream: u64) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(stream);
        random
    }

    fn gather(&self, rows: &[u32]) -> Piece {
        let sites = self.stores.iter().map(|store| {
            let mut out = vec![0.0; rows.len() * store.info().d];
            store.gather(rows, &mut out);
            out
        });
        Piece {
            rows: rows.len(),
            sites: sites.collect(),
        }
    }
}

impl Feed for StoreFeed<'_> {
    fn sites(&self) -> &[FeedSite] {
        &self.sites
    }

    fn digest(&self) -> String {
        let stores = self.stores.iter().map(|store| store.manifest().digest());
        let stores: Vec<String> = stores.collect();
        let order = if self.in_runs { self.piece_rows } else { 0 };
        let text = format!("{stores:?} {} {order}", self.seed);
        format!("sha256:{}", sha256_bytes(text.as_bytes()))
    }

    fn origin(&self) -> FeedOrigin {
        let first = self.stores[0];
        let parents = self.stores.iter().map(|store| ParentRef {
            kind: STORE_KIND.to_owned(),
            digest: store.manifest().digest(),
            path: store.path().display().to_string(),
        });
        FeedOrigin {
            model: first.manifest().model.clone(),
            parents: parents.collect(),
            context: first.info().context,
            prepend_bos: first.info().prepend_bos,
        }
    }

    fn pass(&self) -> Option<usize> {
        Some(self.rows.len())
    }

    fn piece(&self, number: usize, control: &Control) -> Result<Piece, ActivationError> {
        control.check()?;
        let pieces = self.rows.len().div_ceil(self.piece_rows);
        let (pass, place) = (number / pieces, number % pieces);
        let order = self.order(pass);
        if !self.in_runs {
            let start = place * self.piece_rows;
            let end = (start + self.piece_rows).min(order.len());
            return Ok(self.gather(&order[start..end]));
        }
        let per_piece = self.piece_rows / RUN;
        let start = place * per_piece;
        let runs = &order[start..(start + per_piece).min(order.len())];
        let rows: Vec<u32> = runs
            .iter()
            .flat_map(|&at| {
                let at = at as usize;
                self.rows[at..(at + RUN).min(self.rows.len())]
                    .iter()
                    .copied()
            })
            .collect();
        let mut places: Vec<u32> = (0..rows.len() as u32).collect();
        places.shuffle(&mut self.random((1 << 63) + number as u64));
        // Rows are read run by run, and each is put where the shuffling wants it.
        let mut piece = Piece {
            rows: rows.len(),
            sites: Vec::with_capacity(self.stores.len()),
        };
        for store in &self.stores {
            let d = store.info().d;
            let mut out = vec![0.0; rows.len() * d];
            for (rows, places) in rows.chunks(RUN).zip(places.chunks(RUN)) {
                control.check()?;
                for (&row, &place) in rows.iter().zip(places) {
                    let place = place as usize * d;
                    out[place..place + d].copy_from_slice(store.row(row as usize));
                }
            }
            piece.sites.push(out);
        }
        Ok(piece)
    }

    fn held_out(&self, most: usize) -> Result<Piece, ActivationError> {
        let rows: Vec<u32> = (0..self.stores[0].len())
            .filter(|&row| {
                self.stores[0].flags(row).has(Flags::HELD_OUT)
                    && self
                        .stores
                        .iter()
                        .all(|store| !store.flags(row).is_abnormal())
            })
            .take(most)
            .map(|row| row as u32)
            .collect();
        Ok(self.gather(&rows))
    }
}

/// Checks that the rows of two stores belong together.
pub(crate) fn same_text(
    first: &ActivationStore,
    other: &ActivationStore,
) -> Result<(), ActivationError> {
    let differ = |what: String| {
        Err(ActivationError::Option(format!(
            "{} and {} are not of the same text: {what}; harvest both sites with one command",
            first.path().display(),
            other.path().display()
        )))
    };
    if first.len() != other.len() || first.info().context != other.info().context {
        return differ(format!(
            "they have {} and {} rows, in sequences of {} and {}",
            first.len(),
            other.len(),
            first.info().context,
            other.info().context
        ));
    }
    if let (Some(a), Some(b)) = (&first.manifest().model, &other.manifest().model)
        && a.digest != b.digest
    {
        return differ(format!("they are of the models {} and {}", a.name, b.name));
    }
    for row in 0..first.len() {
        let held_out = |store: &ActivationStore| store.flags(row).has(Flags::HELD_OUT);
        if first.token(row) != other.token(row) || held_out(first) != held_out(other) {
            return differ(format!(
                "row {row} is token {} in one and {} in the other",
                first.token(row),
                other.token(row)
            ));
        }
    }
    Ok(())
}
