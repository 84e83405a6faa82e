//! Feeds: every row once a pass, the same rows at every site, the same stream from every position.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;

use common::{
    assert_has, assert_same_files, config, corpus, harvested, interrupted_at, setting, tiny,
};
use pullback_activations::{
    ActivationError, ActivationStore, Extent, Feed, FeedSite, ModelFeed, Piece, Position,
    StoreFeed, harvest_sites, open_stores, read_ahead,
};
use pullback_artifact::{Control, Manifest};
use pullback_model::Site;

const QUIET: fn() -> Control = Control::hidden;

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// How often each row is there.
fn count<'a>(rows: impl Iterator<Item = &'a [f32]>) -> BTreeMap<Vec<u32>, usize> {
    let mut counts = BTreeMap::new();
    for row in rows {
        *counts.entry(bits(row)).or_default() += 1;
    }
    counts
}

/// The pieces of one pass, put together.
fn pass(feed: &dyn Feed, number: usize) -> Piece {
    let rows = feed.pass().unwrap();
    let mut pieces = 0;
    let mut seen = 0;
    while seen < rows {
        seen += feed.piece(pieces, &QUIET()).unwrap().rows;
        pieces += 1;
    }
    assert_eq!(seen, rows);
    let mut whole = Piece {
        rows: 0,
        sites: vec![Vec::new(); feed.sites().len()],
    };
    for piece in number * pieces..(number + 1) * pieces {
        let piece = feed.piece(piece, &QUIET()).unwrap();
        whole.rows += piece.rows;
        for (whole, part) in whole.sites.iter_mut().zip(piece.sites) {
            whole.extend(part);
        }
    }
    whole
}

#[test]
fn a_pass_holds_every_normal_training_row_once_whatever_the_buffer() {
    let setting = setting();
    let store = &setting.store;
    let d = store.info().d;
    let rows = store.normal_rows(false);
    let expected = count(rows.iter().map(|&row| store.row(row as usize)));
    // All at once; in runs, the last of which are shorter.
    for buffer in [u64::MAX, 2 * 128 * 4 * d as u64, 1] {
        let feed = StoreFeed::new(&[store], 3, buffer).unwrap();
        assert_eq!(feed.is_in_runs(), buffer < u64::MAX);
        assert_eq!(feed.pass(), Some(rows.len()));
        let (first, second) = (pass(&feed, 0), pass(&feed, 1));
        assert_eq!(count(first.sites[0].chunks_exact(d)), expected);
        assert_eq!(count(second.sites[0].chunks_exact(d)), expected);
        assert_ne!(first, second);
        let other = StoreFeed::new(&[store], 4, buffer).unwrap();
        assert_ne!(pass(&other, 0), first);
        assert_ne!(other.digest(), feed.digest());
        // Not the order of the store.
        let in_order: Vec<f32> = rows
            .iter()
            .flat_map(|&row| store.row(row as usize).to_vec())
            .collect();
        assert_ne!(first.sites[0], in_order);
    }
    let held_out = StoreFeed::new(&[store], 3, 0).unwrap().held_out(7).unwrap();
    let rows: Vec<f32> = store.normal_rows(true)[..7]
        .iter()
        .flat_map(|&row| store.row(row as usize).to_vec())
        .collect();
    assert_eq!((held_out.rows, &held_out.sites[0]), (7, &rows));
}

/// Rows that say which they are.
struct Counting {
    sites: Vec<FeedSite>,
    lengths: Vec<usize>,
    fails_at: usize,
}

impl Feed for Counting {
    fn sites(&self) -> &[FeedSite] {
        &self.sites
    }

    fn digest(&self) -> String {
        String::new()
    }

    fn pass(&self) -> Option<usize> {
        None
    }

    fn piece(&self, number: usize, _: &Control) -> Result<Piece, ActivationError> {
        if number == self.fails_at {
            return Err(ActivationError::Option("no more".to_owned()));
        }
        let before: usize = (0..number)
            .map(|i| self.lengths[i % self.lengths.len()])
            .sum();
        let rows = self.lengths[number % self.lengths.len()];
        let site = |d: usize| {
            (before..before + rows)
                .flat_map(|row| (0..d).map(move |j| (10 * row + j) as f32))
                .collect()
        };
        Ok(Piece {
            rows,
            sites: vec![site(2), site(3)],
        })
    }

    fn held_out(&self, _: usize) -> Result<Piece, ActivationError> {
        Ok(Piece::default())
    }
}

fn counting(fails_at: usize) -> Counting {
    let site = |d| FeedSite {
        name: format!("width {d}"),
        d,
    };
    Counting {
        sites: vec![site(2), site(3)],
        lengths: vec![5, 1, 8],
        fails_at,
    }
}

#[test]
fn the_stream_is_the_same_from_every_position_in_batches_of_any_size() {
    let feed = counting(usize::MAX);
    let read = |from: Position, size: usize, batches: usize| {
        let extent = Extent {
            from,
            known: None,
            rows: size * batches,
        };
        read_ahead(&feed, extent, &QUIET(), |reader| {
            let (mut rows, mut positions) = (Vec::new(), vec![reader.position()]);
            let mut batch = Piece::default();
            for _ in 0..batches {
                reader.read(size, &mut batch).unwrap();
                assert_eq!((batch.rows, batch.sites.len()), (size, 2));
                for (two, three) in batch.sites[0].chunks(2).zip(batch.sites[1].chunks(3)) {
                    assert_eq!(two, &three[..2]);
                    rows.push(two[0] as usize / 10);
                }
                positions.push(reader.position());
            }
            (rows, positions)
        })
    };
    let (all, positions) = read(Position::default(), 3, 20);
    assert_eq!(all, (0..60).collect::<Vec<_>>());
    for (batch, &from) in positions.iter().enumerate() {
        let (rows, _) = read(from, 4, 6);
        assert_eq!(rows, (3 * batch..3 * batch + 24).collect::<Vec<_>>());
    }
}

#[test]
fn a_failing_piece_ends_the_stream_at_the_last_good_position() {
    let feed = counting(2);
    let all = || Extent {
        rows: usize::MAX,
        ..Extent::default()
    };
    read_ahead(&feed, all(), &QUIET(), |reader| {
        let mut batch = Piece::default();
        reader.read(4, &mut batch).unwrap();
        let before = reader.position();
        assert_eq!(before, Position { piece: 0, row: 4 });
        // Six rows come before the piece that fails.
        let message = reader.read(4, &mut batch).unwrap_err().to_string();
        assert_eq!(message, "no more");
        assert_eq!(reader.position(), before);
    });
    // Work that ends early does not wait for the thread's next piece for ever.
    read_ahead(&counting(usize::MAX), all(), &QUIET(), |_| ());
}

fn sites() -> Vec<Site> {
    [
        "blocks.0.hook_resid_post",
        "blocks.1.mlp.hook_post",
        "blocks.1.hook_mlp_out",
    ]
    .iter()
    .map(|name| name.parse().unwrap())
    .collect()
}

#[test]
fn stores_harvested_together_are_those_harvested_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (model, corpus) = (tiny(), corpus(dir.path()));
    let (config, sites) = (config(), sites());
    let harvest_all = |name: &str, control: &Control| {
        harvest_sites(
            &model,
            "tiny",
            &corpus,
            (&config, &sites),
            &dir.path().join(name),
            control,
        )
    };
    let results = harvest_all("all", &QUIET()).unwrap();
    let stores = open_stores(&dir.path().join("all")).unwrap();
    assert_eq!((results.len(), stores.len()), (3, 3));
    for (site, store) in sites.iter().zip(&stores) {
        let mut alone = config.clone();
        alone.site = *site;
        let path = dir.path().join(format!("alone-{site}"));
        let expected = harvested(&model, &corpus, &alone, &path);
        assert_eq!(store.info().site, *site);
        // The timings are not part of a store that was harvested with others.
        std::fs::remove_file(path.join("result.json")).unwrap();
        assert_same_files(store.path(), &path);
        assert_eq!(store.manifest().digest(), expected.manifest().digest());
    }
    // Interrupted once and gone on with.
    let error = harvest_all("again", &interrupted_at("harvest", 5)).unwrap_err();
    assert!(matches!(error, ActivationError::Interrupted(_)), "{error}");
    harvest_all("again", &QUIET()).unwrap();
    for name in ["all", "again"] {
        std::fs::remove_file(dir.path().join(name).join("result.json")).unwrap();
    }
    for site in &sites {
        let of = |name: &str| dir.path().join(name).join(site.to_string());
        assert_same_files(&of("again"), &of("all"));
    }
    let manifest = |name: &str| Manifest::load(&dir.path().join(name)).unwrap().digest();
    assert_eq!(manifest("again"), manifest("all"));

    // Sites of one row stand side by side, in every order of rows.
    let refs: Vec<&ActivationStore> = stores.iter().collect();
    for buffer in [u64::MAX, 1] {
        let feed = StoreFeed::new(&refs, 0, buffer).unwrap();
        let rows: BTreeMap<Vec<u32>, usize> = (0..stores[0].len())
            .map(|row| (bits(stores[0].row(row)), row))
            .collect();
        let piece = feed.piece(0, &QUIET()).unwrap();
        for at in 0..piece.rows {
            let of = |site: usize| {
                let d = stores[site].info().d;
                &piece.sites[site][at * d..(at + 1) * d]
            };
            let row = rows[&bits(of(0))];
            assert_eq!(of(1), stores[1].row(row));
            assert_eq!(of(2), stores[2].row(row));
        }
    }
}

#[test]
fn stores_of_different_text_and_sites_given_twice_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (model, corpus) = (tiny(), corpus(dir.path()));
    let first = harvested(&model, &corpus, &config(), &dir.path().join("first"));
    let mut other = config();
    other.plan.seed = 9;
    let second = harvested(&model, &corpus, &other, &dir.path().join("second"));
    let message = StoreFeed::new(&[&first, &second], 0, 0)
        .unwrap_err()
        .to_string();
    assert_has(
        &message,
        &["first", "second", "not of the same text", "harvest both"],
    );
    let twice = [sites()[0], sites()[0]];
    let out = dir.path().join("twice");
    let message = harvest_sites(&model, "tiny", &corpus, (&config(), &twice), &out, &QUIET())
        .unwrap_err()
        .to_string();
    assert_has(&message, &["blocks.0.hook_resid_post", "more than once"]);
}

#[test]
fn a_running_model_feeds_what_a_harvest_would_have_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (model, corpus) = (tiny(), corpus(dir.path()));
    let sites = sites();
    let mut config = config();
    let out = dir.path().join("stores");
    harvest_sites(&model, "tiny", &corpus, (&config, &sites), &out, &QUIET()).unwrap();
    let stores = open_stores(&out).unwrap();
    let refs: Vec<&ActivationStore> = stores.iter().collect();
    let stored = StoreFeed::new(&refs, 0, u64::MAX).unwrap();
    config.shard_rows = 100;
    let feed = ModelFeed::new((&model, "tiny"), &sites, &corpus, &config, &QUIET()).unwrap();
    assert_eq!(feed.sites(), stored.sites());

    // Batches of the model hold other sequences together, so sums may be made in another order: rows are matched by
    // their first numbers, rounded.
    let key = |row: &[f32]| -> Vec<i64> {
        row[..3]
            .iter()
            .map(|x| (f64::from(*x) * 1e3).round() as i64)
            .collect()
    };
    let whole = pass(&stored, 0);
    let d = stores[0].info().d;
    let mut expected: Vec<Vec<i64>> = whole.sites[0].chunks_exact(d).map(key).collect();
    let mut found = Vec::new();
    let mut piece = 0;
    while found.len() < expected.len() {
        let rows = feed.piece(piece, &QUIET()).unwrap();
        assert!(rows.rows > 0 && rows.rows <= 128);
        found.extend(rows.sites[0].chunks_exact(d).map(key));
        piece += 1;
    }
    let mut near = 0;
    expected.sort();
    found.sort();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        near += usize::from(found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1));
    }
    assert_eq!(near, found.len());
    // A piece is the same whenever it is made; the next pass has another order.
    assert_eq!(
        feed.piece(1, &QUIET()).unwrap(),
        feed.piece(1, &QUIET()).unwrap()
    );
    assert_ne!(
        feed.piece(0, &QUIET()).unwrap(),
        feed.piece(piece, &QUIET()).unwrap()
    );

    // What is held out.
    for (store, memory) in stores.iter().zip(feed.held_out_stores()) {
        assert_eq!(memory.info().held_out, memory.len());
        let starts = store.sequence_starts(true);
        let tokens = |store: &ActivationStore, starts: &[usize]| -> Vec<Vec<u32>> {
            let context = store.info().context;
            let of = |&start: &usize| {
                (start..start + context)
                    .map(|row| store.token(row))
                    .collect()
            };
            starts.iter().map(of).collect()
        };
        assert_eq!(
            tokens(store, &starts),
            tokens(memory, &memory.sequence_starts(true))
        );
    }
    let held_out = feed.held_out(5).unwrap();
    assert_eq!((held_out.rows, held_out.sites.len()), (5, 3));
    config.plan.held_out_tokens = 0;
    let message = ModelFeed::new((&model, "tiny"), &sites, &corpus, &config, &QUIET())
        .unwrap_err()
        .to_string();
    assert_has(&message, &["no text is held out"]);
}
