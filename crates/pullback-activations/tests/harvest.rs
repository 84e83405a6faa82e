//! Harvests of the tiny model: rows against the model itself, marks, and what interruption leaves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use common::{
    assert_close, assert_has, assert_same_files, config, corpus, harvested, interrupted_at,
    setting, tiny, tiny_path, values, words,
};
use pullback_activations::{
    ActivationError, ActivationStore, Corpus, Flags, HarvestConfig, Plan, harvest,
};
use pullback_artifact::Control;
use pullback_model::gguf::Gguf;
use pullback_model::{Input, Model, RunOptions, Site};

/// What the model has at a site for one sequence, with the whole model run.
fn recorded(model: &Model, site: Site, ids: Vec<u32>) -> Vec<f32> {
    let options = RunOptions {
        record: &[site],
        ..RunOptions::default()
    };
    let mut out = model.run(Input::tokens(&ids), &options).unwrap();
    values(out.take(site).unwrap())
}

fn sequence(store: &ActivationStore, start: usize) -> std::ops::Range<usize> {
    start..start + store.info().context
}

fn error_of(corpus: &Corpus, config: &HarvestConfig, out: &Path) -> String {
    harvest(&tiny(), "tiny", corpus, config, out, &Control::hidden())
        .unwrap_err()
        .to_string()
}

#[test]
fn rows_are_what_the_model_has_at_the_site() {
    let dir = tempfile::tempdir().unwrap();
    let (model, corpus) = (tiny(), corpus(dir.path()));
    let sites = [
        "embed",
        "blocks.0.attn.hook_k",
        "blocks.0.hook_resid_post",
        "blocks.2.mlp.hook_post",
        "blocks.1.ln1.hook_scale",
        "ln_final.hook_normalized",
    ];
    for (number, name) in sites.iter().enumerate() {
        let site = Site::all(model.config())
            .into_iter()
            .find(|site| site.to_string().contains(name))
            .unwrap();
        let mut config = config();
        config.site = site;
        config.plan.tokens = 90;
        config.plan.held_out_tokens = 30;
        let store = harvested(
            &model,
            &corpus,
            &config,
            &dir.path().join(number.to_string()),
        );
        // 90 and 30 tokens are 6 and 2 whole sequences.
        assert_eq!(store.len(), 8 * 16);
        assert_eq!(store.info().site, site);
        for start in (0..store.len()).step_by(16) {
            let ids = sequence(&store, start)
                .map(|row| store.token(row))
                .collect();
            let expected = recorded(&model, site, ids);
            assert_eq!(expected.len(), 16 * store.info().d);
            let found: Vec<f32> = sequence(&store, start)
                .flat_map(|row| store.row(row).to_vec())
                .collect();
            // Sequences ran in twos: sums may be made in another order.
            assert_close(&found, &expected, 1e-5);
        }
    }
}

#[test]
fn a_site_as_wide_as_the_text_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    let mut config = config();
    config.site = "1.attn.pattern".parse().unwrap();
    let message = error_of(&corpus, &config, &dir.path().join("store"));
    assert!(
        message.contains("blocks.1.attn.hook_pattern cannot be harvested"),
        "{message}"
    );
}

#[test]
fn tokens_are_whole_pieces_of_documents_and_no_document_is_in_both_parts() {
    let dir = tempfile::tempdir().unwrap();
    let (model, corpus) = (tiny(), corpus(dir.path()));
    let config = config();
    let store = harvested(&model, &corpus, &config, &dir.path().join("store"));
    let plan = Plan::new(&corpus, model.tokenizer(), &config.plan, &Control::hidden()).unwrap();
    assert_eq!(plan.tokens(), store.len());

    let mut documents = [BTreeSet::new(), BTreeSet::new()];
    let mut pieces = BTreeSet::new();
    let mut trained_on: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, planned) in plan.sequences.iter().enumerate() {
        let rows = sequence(&store, number * 16);
        let ids: Vec<u32> = rows.clone().map(|row| store.token(row)).collect();
        assert_eq!(ids, planned.ids);
        for (position, row) in rows.enumerate() {
            let flags = store.flags(row);
            assert_eq!(store.position(row) as usize, position);
            assert_eq!(store.sequence(row) as usize, number);
            assert_eq!(flags.has(Flags::FIRST), position == 0);
            assert_eq!(flags.has(Flags::HELD_OUT), planned.held_out);
        }
        let document = &corpus.documents()[planned.document];
        let all = model.tokenizer().encode(&document.text, false).unwrap();
        let piece = all
            .chunks_exact(16)
            .position(|piece| piece == ids)
            .expect("not a piece of its document");
        assert!(
            pieces.insert((planned.document, piece)),
            "the same piece twice"
        );
        documents[usize::from(planned.held_out)].insert(planned.document);
        if !planned.held_out {
            *trained_on.entry(&document.group).or_default() += 1;
        }
    }
    assert!(documents[0].is_disjoint(&documents[1]));
    assert!(documents.iter().all(|documents| documents.len() > 1));
    // Groups take turns of at most eight sequences, however much text each has.
    assert_eq!(trained_on.values().sum::<usize>(), 40);
    assert!(
        trained_on["long"].abs_diff(trained_on["short"]) <= 8,
        "{trained_on:?}"
    );

    let held_out: Vec<usize> = (0..50)
        .filter(|&s| plan.sequences[s].held_out)
        .map(|s| s * 16)
        .collect();
    assert_eq!(held_out.len(), 10);
    assert_eq!(store.sequence_starts(true), held_out);
    assert_eq!(store.sequence_starts(false).len(), 40);
    assert_eq!(store.info().held_out, 160);
    let normal = store.normal_rows(true);
    let expected: Vec<u32> = held_out
        .iter()
        .flat_map(|&start| start as u32 + 1..start as u32 + 16)
        .collect();
    assert_eq!(normal, expected);
}

#[test]
fn rows_far_longer_than_the_median_are_marked() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    // The tiny model with the embedding of one token set to 40 in every coordinate.
    let gguf = Gguf::open(&tiny_path()).unwrap();
    let model = tiny();
    let text = &corpus.documents()[0].text;
    let token = model.tokenizer().encode(text, false).unwrap()[1];
    let embedding = gguf.tensor("token_embd.weight").unwrap();
    let place = gguf.tensor_bytes(embedding).as_ptr() as usize - gguf.bytes().as_ptr() as usize;
    assert_eq!(
        gguf.tensor_bytes(embedding).len(),
        300 * 32 * 2,
        "F16 is assumed"
    );
    let mut bytes = gguf.bytes().to_vec();
    for half in bytes[place + token as usize * 64..][..64].chunks_exact_mut(2) {
        // 40 = 1.25 · 2^5 in F16.
        half.copy_from_slice(&0x5100_u16.to_le_bytes());
    }
    let path = dir.path().join("loud.gguf");
    fs::write(&path, bytes).unwrap();
    let model = Model::load(&path, &Device::flex()).unwrap();

    let mut config = config();
    config.site = Site::resid_post(0);
    // Two shards: the median is that of the first.
    config.shard_rows = 416;
    let result = harvest(
        &model,
        "loud",
        &corpus,
        &config,
        &dir.path().join("store"),
        &Control::hidden(),
    )
    .unwrap();
    let store = ActivationStore::open(&dir.path().join("store")).unwrap();
    assert_eq!(store.info().shard_rows, [416, 384]);
    let norm = |row: usize| {
        store
            .row(row)
            .iter()
            .map(|&x| f64::from(x).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    let mut norms: Vec<f64> = (0..416).filter(|row| row % 16 != 0).map(norm).collect();
    norms.sort_by(f64::total_cmp);
    let median = norms[norms.len() / 2];
    assert!((store.info().median_norm - median).abs() < 1e-12 * median);
    let mut outliers = 0;
    for row in 0..store.len() {
        let outlier = row % 16 != 0 && norm(row) > 10.0 * median;
        assert_eq!(store.flags(row).has(Flags::OUTLIER), outlier, "row {row}");
        assert_eq!(store.flags(row).is_abnormal(), outlier || row % 16 == 0);
        if outlier {
            assert_eq!(store.token(row), token);
            outliers += 1;
        }
    }
    assert!(outliers > 3, "the loud token was met {outliers} times");
    assert_eq!(
        (store.info().outliers, result.outliers),
        (outliers, outliers)
    );
    let normal: Vec<u32> = (0..store.len() as u32)
        .filter(|&row| {
            !store.flags(row as usize).is_abnormal()
                && !store.flags(row as usize).has(Flags::HELD_OUT)
        })
        .collect();
    assert_eq!(store.normal_rows(false), normal);
    let firsts = (0..50).map(|s| norm(s * 16)).sum::<f64>() / 50.0;
    assert!((result.first_norm - firsts).abs() < 1e-9 * firsts);
}

#[test]
fn an_interrupted_harvest_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (model, corpus, config) = (tiny(), corpus(dir.path()), config());
    let whole = harvested(&model, &corpus, &config, &dir.path().join("whole"));
    for (stage, times) in [
        ("tokenize", 3),
        ("harvest", 1),
        ("harvest", 2),
        ("harvest", 3),
        ("harvest", 4),
        ("harvest", 15),
        ("harvest", 25),
    ] {
        let out = dir.path().join(format!("{stage}{times}"));
        let control = interrupted_at(stage, times);
        let error = harvest(&model, "tiny", &corpus, &config, &out, &control).unwrap_err();
        assert!(matches!(error, ActivationError::Interrupted(_)), "{error}");
        assert!(!out.exists(), "half a store under its final name");
        let resumed = harvested(&model, &corpus, &config, &out);
        assert_same_files(&out, whole.path());
        assert_eq!(
            resumed.manifest().digest(),
            whole.manifest().digest(),
            "{stage} {times}"
        );
    }
    // Again and again: each call gets one shard further.
    let out = dir.path().join("piecemeal");
    let mut calls = 1;
    while harvest(
        &model,
        "tiny",
        &corpus,
        &config,
        &out,
        &interrupted_at("harvest", 4),
    )
    .is_err()
    {
        calls += 1;
        assert!(calls < 40, "no progress");
    }
    assert!(calls > 5, "only {calls} calls");
    assert_same_files(&out, whole.path());
    assert_eq!(
        ActivationStore::open(&out).unwrap().manifest().digest(),
        whole.manifest().digest()
    );
}

#[test]
fn shards_already_written_are_not_computed_again() {
    let dir = tempfile::tempdir().unwrap();
    let (model, corpus, config) = (tiny(), corpus(dir.path()), config());
    let out = dir.path().join("store");
    harvest(
        &model,
        "tiny",
        &corpus,
        &config,
        &out,
        &interrupted_at("harvest", 12),
    )
    .unwrap_err();
    let shard = dir.path().join("store.partial/shard-00002.safetensors");
    let before = fs::metadata(&shard).unwrap().modified().unwrap();
    harvested(&model, &corpus, &config, &out);
    let after = fs::metadata(out.join("shard-00002.safetensors"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(before, after);
}

#[test]
fn work_of_another_configuration_is_started_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (model, corpus, config) = (tiny(), corpus(dir.path()), config());
    let mut changes: Vec<HarvestConfig> = (0..4).map(|_| config.clone()).collect();
    changes[0].plan.seed += 1;
    changes[1].site = Site::resid_post(0);
    changes[2].shard_rows = 32;
    changes[3].plan.prepend_bos = true;
    for (number, changed) in changes.iter().enumerate() {
        let out = dir.path().join(format!("resumed{number}"));
        harvest(
            &model,
            "tiny",
            &corpus,
            &config,
            &out,
            &interrupted_at("harvest", 12),
        )
        .unwrap_err();
        let found = harvested(&model, &corpus, changed, &out);
        let fresh = harvested(
            &model,
            &corpus,
            changed,
            &dir.path().join(format!("fresh{number}")),
        );
        assert_same_files(&out, fresh.path());
        assert_eq!(found.manifest().digest(), fresh.manifest().digest());
    }
}

#[test]
fn the_seed_decides() {
    let dir = tempfile::tempdir().unwrap();
    let (model, corpus, config) = (tiny(), corpus(dir.path()), config());
    let first = harvested(&model, &corpus, &config, &dir.path().join("first"));
    let second = harvested(&model, &corpus, &config, &dir.path().join("second"));
    assert_same_files(first.path(), second.path());
    assert_eq!(first.manifest().digest(), second.manifest().digest());
    let mut other = config.clone();
    other.plan.seed = 8;
    let third = harvested(&model, &corpus, &other, &dir.path().join("third"));
    assert_ne!(first.manifest().digest(), third.manifest().digest());
    let tokens = |store: &ActivationStore| {
        (0..store.len())
            .map(|row| store.token(row))
            .collect::<Vec<_>>()
    };
    assert_ne!(tokens(&first), tokens(&third));
}

#[test]
fn the_beginning_token_stands_before_each_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let (model, corpus) = (tiny(), corpus(dir.path()));
    let mut config = config();
    config.plan.prepend_bos = true;
    let store = harvested(&model, &corpus, &config, &dir.path().join("store"));
    let plan = Plan::new(&corpus, model.tokenizer(), &config.plan, &Control::hidden()).unwrap();
    assert!(store.info().prepend_bos);
    assert_eq!(store.len(), 50 * 16);
    for (number, planned) in plan.sequences.iter().enumerate() {
        let ids: Vec<u32> = sequence(&store, number * 16)
            .map(|row| store.token(row))
            .collect();
        assert_eq!(ids[0], model.tokenizer().bos().unwrap());
        let text = &corpus.documents()[planned.document].text;
        let all = model.tokenizer().encode(text, false).unwrap();
        assert!(all.chunks_exact(15).any(|piece| piece == &ids[1..]));
        assert!(
            store.flags(number * 16).has(Flags::FIRST)
                && !store.flags(number * 16 + 1).has(Flags::FIRST)
        );
    }
}

#[test]
fn of_a_single_document_the_last_tenth_is_held_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.txt");
    let text = words(3, 4000);
    fs::write(&path, &text).unwrap();
    let (model, corpus) = (tiny(), Corpus::open(&path).unwrap());
    let store = harvested(&model, &corpus, &config(), &dir.path().join("store"));
    let at = text.len() * 9 / 10;
    let pieces = |text: &str| {
        let ids = model.tokenizer().encode(text, false).unwrap();
        ids.chunks_exact(16)
            .map(<[u32]>::to_vec)
            .collect::<BTreeSet<_>>()
    };
    let parts = [pieces(&text[..at]), pieces(&text[at..])];
    for held_out in [false, true] {
        let starts = store.sequence_starts(held_out);
        assert_eq!(starts.len(), if held_out { 10 } else { 40 });
        for start in starts {
            let ids: Vec<u32> = sequence(&store, start)
                .map(|row| store.token(row))
                .collect();
            assert!(parts[usize::from(held_out)].contains(&ids));
        }
    }
}

#[test]
fn one_document_a_folder_is_enough_to_hold_some_out() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("corpus");
    for group in 0..6 {
        fs::create_dir_all(folder.join(group.to_string())).unwrap();
        fs::write(
            folder.join(group.to_string()).join("all.txt"),
            words(group, 600),
        )
        .unwrap();
    }
    let corpus = Corpus::open(&folder).unwrap();
    let store = harvested(&tiny(), &corpus, &config(), &dir.path().join("store"));
    assert_eq!(store.info().held_out, 160);
}

#[test]
fn what_cannot_be_harvested_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    let config = config();
    let out = dir.path().join("store");
    let refused = |change: &dyn Fn(&mut HarvestConfig)| {
        let mut config = config.clone();
        change(&mut config);
        let error = error_of(&corpus, &config, &out);
        assert!(!out.exists());
        error
    };
    let error = refused(&|c| c.plan.tokens = 1_000_000);
    assert_has(
        &error,
        &[
            "corpus is too small",
            "training tokens",
            "1000000 are wanted",
        ],
    );
    let error = refused(&|c| c.plan.held_out_tokens = 16_000);
    assert_has(
        &error,
        &["corpus is too small", "held-out tokens", "16000 are wanted"],
    );
    assert_has(
        &refused(&|c| c.site = Site::resid_post(3)),
        &["blocks.3", "blocks.0 to blocks.2"],
    );
    assert_has(&refused(&|c| c.plan.context = 65), &["65", "context is 64"]);
    assert_has(&refused(&|c| c.plan.context = 1), &["context of 3"]);
    assert_has(&refused(&|c| c.plan.context = 0), &["context of 3"]);
    assert_has(&refused(&|c| c.plan.tokens = 0), &["0 tokens"]);
    assert_has(&refused(&|c| c.batch = 0), &["at least one sequence"]);
    assert_has(&refused(&|c| c.shard_rows = 0), &["one row in a shard"]);
    // The message of a corpus that is too small says how much it has, and that much can be harvested.
    let error = refused(&|c| c.plan.tokens = 1_000_000);
    let have = error
        .split("it has ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(have > 640, "{error}");
    let mut most = config.clone();
    most.plan.tokens = have;
    harvested(&tiny(), &corpus, &most, &dir.path().join("most"));

    harvested(&tiny(), &corpus, &config, &out);
    let error = harvest(&tiny(), "tiny", &corpus, &config, &out, &Control::hidden()).unwrap_err();
    assert_has(&error.to_string(), &["store", "exists"]);
}

#[test]
fn a_context_of_two_tokens_has_no_prediction_to_count_and_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    let mut config = config();
    config.plan.context = 2;
    let result = harvest(
        &tiny(),
        "tiny",
        &corpus,
        &config,
        &dir.path().join("store"),
        &Control::hidden(),
    );
    assert_has(
        &result.expect_err("it was harvested").to_string(),
        &["context of 3"],
    );
}

#[test]
fn a_store_that_contradicts_itself_is_refused() {
    let setting = setting();
    let store = setting.store.path();
    let open_error = || ActivationStore::open(store).unwrap_err().to_string();
    let shard = store.join("shard-00003.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    assert_has(&open_error(), &["shard-00003.safetensors"]);
    fs::remove_file(&shard).unwrap();
    assert_has(&open_error(), &["shard-00003.safetensors"]);
    fs::write(&shard, &bytes).unwrap();
    assert_has(
        &ActivationStore::open(setting.dir.path())
            .unwrap_err()
            .to_string(),
        &["pullback.json"],
    );
    // The last shard is smaller: under another name it does not fit.
    fs::copy(store.join("shard-00012.safetensors"), &shard).unwrap();
    assert_has(&open_error(), &["shard-00003.safetensors"]);
    fs::write(&shard, &bytes).unwrap();
    ActivationStore::open(store).unwrap();
}

#[test]
fn a_listing_that_contradicts_the_shards_is_refused() {
    let setting = setting();
    let store = setting.store.path();
    let info = fs::read_to_string(store.join("store.json")).unwrap();
    let mut accepted = Vec::new();
    // All of one length, so that the size in the manifest still fits.
    for (from, to) in [
        ("\"d\": 32", "\"d\": 31"),
        ("\"rows\": 800", "\"rows\": 900"),
        ("\"rows\": 800", "\"rows\": 700"),
        ("\"context\": 16", "\"context\": 15"),
        ("\"context\": 16", "\"context\": 0 "),
    ] {
        assert!(info.contains(from), "{info}");
        fs::write(store.join("store.json"), info.replacen(from, to, 1)).unwrap();
        if ActivationStore::open(store).is_ok() {
            accepted.push(to);
        }
    }
    assert!(accepted.is_empty(), "{accepted:?} were accepted");
}
