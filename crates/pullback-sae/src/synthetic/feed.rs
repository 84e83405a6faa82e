//! A world as rows to train on.

use pullback_activations::{ActivationError, Feed, FeedSite, Piece};
use pullback_artifact::{Control, sha256_bytes};

use super::{PIECE_ROWS, World};

/// The only site.
pub(super) const SITE: &str = "synthetic";

/// Changes when the same configuration makes other numbers.
const VERSION: u32 = 1;

impl Feed for World {
    fn sites(&self) -> &[FeedSite] {
        std::slice::from_ref(self.site())
    }

    fn digest(&self) -> String {
        let text = serde_json::json!({ "synthetic": VERSION, "config": self.config() }).to_string();
        sha256_bytes(text.as_bytes())
    }

    fn pass(&self) -> Option<usize> {
        None
    }

    fn piece(&self, number: usize, _control: &Control) -> Result<Piece, ActivationError> {
        Ok(Piece {
            rows: PIECE_ROWS,
            sites: vec![World::piece(self, number as u64).rows],
        })
    }

    fn held_out(&self, most: usize) -> Result<Piece, ActivationError> {
        let mut rows = Vec::new();
        for number in 0..most.div_ceil(PIECE_ROWS) {
            rows.extend(World::held_out(self, number as u64).rows);
        }
        rows.truncate(most * self.config().d);
        Ok(Piece {
            rows: most,
            sites: vec![rows],
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use pullback_activations::{Extent, Feed, Piece, Position, read_ahead};
    use pullback_artifact::Control;

    use crate::synthetic::{PIECE_ROWS, World, WorldConfig};

    #[test]
    fn a_world_is_read_ahead_as_any_feed() {
        let control = Control::hidden();
        let config = WorldConfig::new(8, 100, 4);
        let world = World::new(&config, &control).unwrap();
        let mut all = Vec::new();
        (0..3).for_each(|number| all.extend(world.piece(number).rows));
        // From the middle of the first piece into the third.
        let extent = Extent {
            from: Position {
                piece: 0,
                row: 1000,
            },
            known: None,
            rows: 9000,
        };
        let read = read_ahead(&world, extent, &control, |reader| {
            let mut out = Piece::default();
            let mut rows = Vec::new();
            for _ in 0..3 {
                reader.read(3000, &mut out).unwrap();
                rows.extend_from_slice(&out.sites[0]);
            }
            rows
        });
        assert_eq!(read, all[1000 * 8..10_000 * 8]);
        let held_out = Feed::held_out(&world, PIECE_ROWS + 5).unwrap();
        assert_eq!(
            (held_out.rows, held_out.sites[0].len()),
            (PIECE_ROWS + 5, (PIECE_ROWS + 5) * 8)
        );
        assert_eq!(
            held_out.sites[0][..PIECE_ROWS * 8],
            world.held_out(0).rows[..]
        );
        assert_eq!((world.sites().len(), world.sites()[0].d), (1, 8));
        assert_eq!(
            world.digest(),
            World::new(&config, &control).unwrap().digest()
        );
        let other = WorldConfig {
            bias: 0.25,
            ..config
        };
        assert_ne!(
            world.digest(),
            World::new(&other, &control).unwrap().digest()
        );
    }
}
