//! Rows to train on, in the order in which they are used.
//!
//! A [`Feed`] makes rows piece by piece; a piece is small enough for memory, however much there is in all. What a piece
//! holds follows from its number alone, so that interrupted work can go on where it was. [`read_ahead`] makes the next
//! piece in a thread of its own while the caller works on the last.

use std::sync::mpsc::{Receiver, sync_channel};

use pullback_artifact::{Control, ModelRef, ParentRef};
use serde::{Deserialize, Serialize};

use crate::ActivationError;

/// Activations of the same rows at each site of a feed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// How many rows.
    pub rows: usize,
    /// Of each site `[rows, d]`.
    pub sites: Vec<Vec<f32>>,
}

/// A site of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedSite {
    /// Its name, such as `blocks.7.hook_resid_post`.
    pub name: String,
    /// Width of an activation.
    pub d: usize,
}

/// What is known of where rows come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeedOrigin {
    /// The model.
    pub model: Option<ModelRef>,
    /// Artifacts that hold the rows.
    pub parents: Vec<ParentRef>,
    /// Tokens in a sequence.
    pub context: usize,
    /// Whether each sequence starts with the model's beginning-of-text token.
    pub prepend_bos: bool,
}

/// Rows without end: after the last of one pass come those of the next, in another order.
pub trait Feed: Sync {
    /// The sites.
    fn sites(&self) -> &[FeedSite];

    /// A digest of all that pieces follow from.
    fn digest(&self) -> String;

    /// Where rows come from.
    fn origin(&self) -> FeedOrigin {
        FeedOrigin::default()
    }

    /// Rows of one pass, where that is known before they are made.
    fn pass(&self) -> Option<usize>;

    /// A piece, counted from zero; it has at least one row.
    ///
    /// # Errors
    /// Rows cannot be made or read; the work was interrupted.
    fn piece(&self, number: usize, control: &Control) -> Result<Piece, ActivationError>;

    /// Rows that no piece holds, `most` at most; none where there are none.
    ///
    /// # Errors
    /// They cannot be read.
    fn held_out(&self, most: usize) -> Result<Piece, ActivationError>;
}

/// Where in a feed the next row stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The piece.
    pub piece: usize,
    /// The row in it.
    pub row: usize,
}

/// The rows of a feed from some position on.
#[derive(Debug)]
pub struct RowReader {
    pieces: Receiver<Result<Piece, ActivationError>>,
    current: Piece,
    position: Position,
}

impl RowReader {
    /// Where the next row stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Replaces what is in `out` by the next `rows` rows.
    ///
    /// # Errors
    /// What the feed returns; the rows are then lost, not their place: [`position`](Self::position) is that before the
    /// call.
    pub fn read(&mut self, rows: usize, out: &mut Piece) -> Result<(), ActivationError> {
        let before = self.position;
        out.rows = 0;
        out.sites.iter_mut().for_each(Vec::clear);
        while out.rows < rows {
            // The first piece is the one of the position at the start, whose row may be the one after its last.
            let first = self.current.rows == 0;
            if first || self.position.row == self.current.rows {
                let piece = self.pieces.recv().unwrap_or_else(|_| {
                    Err(ActivationError::Option(
                        "the thread that reads rows ahead has ended".to_owned(),
                    ))
                });
                match piece {
                    Ok(piece) => self.current = piece,
                    Err(error) => {
                        self.position = before;
                        return Err(error);
                    }
                }
                if !first {
                    self.position.piece += 1;
                    self.position.row = 0;
                }
                continue;
            }
            let take = (rows - out.rows).min(self.current.rows - self.position.row);
            out.sites.resize_with(self.current.sites.len(), Vec::new);
            for (out, from) in out.sites.iter_mut().zip(&self.current.sites) {
                let d = from.len() / self.current.rows;
                let start = self.position.row * d;
                out.extend_from_slice(&from[start..start + take * d]);
            }
            out.rows += take;
            self.position.row += take;
        }
        Ok(())
    }
}

/// What is read of a feed.
#[derive(Debug, Default)]
pub struct Extent {
    /// Where the first row stands.
    pub from: Position,
    /// The piece in which it stands, where it has been made already.
    pub known: Option<Piece>,
    /// How many rows will be read; no piece is made after that.
    pub rows: usize,
}

/// Runs `work` with the rows of a feed from a position on, while another thread makes the next piece. Two pieces stand
/// in memory at a time.
///
/// # Errors
/// What `work` returns.
pub fn read_ahead<R>(
    feed: &dyn Feed,
    Extent { from, known, rows }: Extent,
    control: &Control,
    work: impl FnOnce(&mut RowReader) -> R,
) -> R {
    std::thread::scope(|scope| {
        let (sender, pieces) = sync_channel(0);
        scope.spawn(move || {
            let mut known = known;
            let mut made = 0;
            for number in from.piece.. {
                let piece = match known.take() {
                    Some(piece) => Ok(piece),
                    None => feed.piece(number, control),
                };
                let piece = piece.and_then(|piece| {
                    if piece.rows == 0 {
                        return Err(ActivationError::Option(format!(
                            "piece {number} of the activations holds no row that could be trained on"
                        )));
                    }
                    Ok(piece)
                });
                let failed = piece.is_err();
                made += piece.as_ref().map_or(0, |piece| piece.rows);
                // No one waits any more, or no more will be asked for: the work is done.
                if sender.send(piece).is_err() || failed || made >= rows.saturating_add(from.row) {
                    return;
                }
            }
        });
        let mut reader = RowReader {
            pieces,
            current: Piece::default(),
            position: from,
        };
        work(&mut reader)
        // The reader goes with its end of the channel, and so does the thread.
    })
}
