//! Hooks: where they act and where not, in the order given, in batches of different lengths, at the prompt and at every
//! generated token; and what is said of those that could not act.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Tensor, TensorData};
use pullback_model::{
    AddVector, Edit, Emission, Ending, GenerateOptions, Input, Intervention, KeyValueCache, Model,
    Positions, Replace, Rows, RunOptions, Sampling, Scale, Site, Zero,
};

const FAMILIES: [&str; 9] = [
    "llama",
    "mistral",
    "gpt2",
    "gpt_neox",
    "gpt_neox_sequential",
    "gemma2",
    "gemma3_text",
    "qwen2",
    "qwen3",
];

const TEXTS: [&[u32]; 3] = [
    &[3, 11, 7, 20, 5, 8, 9, 30, 31, 2],
    &[9, 2, 14],
    &[1, 40, 17, 6, 12],
];

fn family(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/families")
        .join(name);
    Model::load(&path, &Device::flex()).unwrap()
}

fn site(name: &str) -> Site {
    name.parse().unwrap()
}

fn values(x: &Tensor<2>) -> Vec<f32> {
    x.to_data().iter::<f32>().collect()
}

fn record(model: &Model, input: Input, at: Site, edits: &[Intervention]) -> Vec<f32> {
    values(&model.record(input, &[at], edits).unwrap()[&at])
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Adds one and then doubles, or the other way round.
fn add_and_double(at: Site, width: usize) -> [Intervention; 2] {
    let vector = Tensor::<1>::ones([width], &Device::flex());
    [
        Intervention::new(
            at,
            Arc::new(AddVector {
                vector,
                first_position: 0,
            }),
        ),
        Intervention::new(at, Arc::new(Scale(2.0))),
    ]
}

#[test]
fn sequences_of_a_batch_are_computed_as_they_would_be_alone() {
    for name in FAMILIES {
        let model = family(name);
        for at in model.config().sites() {
            // Scores and patterns of a batch are as wide as its longest text asks for.
            if at.to_string().contains("pattern") || at.to_string().contains("scores") {
                continue;
            }
            let together = record(&model, Input::batch(&TEXTS), at, &[]);
            let alone: Vec<f32> = TEXTS
                .iter()
                .flat_map(|ids| record(&model, Input::tokens(ids), at, &[]))
                .collect();
            assert!(
                worst(&together, &alone) < 2e-5,
                "{name}, {at}: {}",
                worst(&together, &alone)
            );
        }
    }
}

#[test]
fn patterns_of_a_batch_are_those_of_each_text_with_zeros_after_them() {
    let model = family("gemma2");
    let at = site("1.attn.pattern");
    let heads = model.config().n_heads;
    let most = TEXTS[0].len();
    let together = record(&model, Input::batch(&TEXTS), at, &[]);
    let mut first = 0;
    for ids in TEXTS {
        let alone = record(&model, Input::tokens(ids), at, &[]);
        for query in 0..ids.len() {
            for head in 0..heads {
                let start = ((first + query) * heads + head) * most;
                let row = &together[start..start + most];
                let start = (query * heads + head) * ids.len();
                let expected = &alone[start..start + ids.len()];
                assert!(worst(&row[..ids.len()], expected) < 1e-6);
                assert!(row[ids.len()..].iter().all(|&x| x == 0.0));
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                assert!(expected[query + 1..].iter().all(|&x| x == 0.0));
            }
        }
        first += ids.len();
    }
}

#[test]
fn interventions_compose_in_the_order_given() {
    let model = family("llama");
    let at = Site::resid_post(0);
    let [add, double] = add_and_double(at, model.config().d_model);
    let input = || Input::tokens(TEXTS[0]);
    let clean = record(&model, input(), at, &[]);
    let first = record(&model, input(), at, &[add.clone(), double.clone()]);
    let second = record(&model, input(), at, &[double, add]);
    for ((x, a), b) in clean.iter().zip(first).zip(second) {
        assert_eq!(a, (x + 1.0) * 2.0);
        assert_eq!(b, x * 2.0 + 1.0);
    }
}

#[test]
fn positions_sequences_and_heads_that_are_named_change_and_others_do_not() {
    let model = family("gemma3_text");
    let config = model.config();
    for name in [
        "2.attn.q",
        "2.attn.v",
        "2.attn.z",
        "2.attn.result",
        "2.attn.pattern",
    ] {
        let at = site(name);
        let heads = at.place().heads(config).unwrap();
        let chosen = heads - 1;
        let edit = Intervention::new(at, Arc::new(Zero { first_position: 0 }))
            .at_positions(Positions::List(vec![1, 2]))
            .in_sequence(2)
            .on_heads(vec![chosen]);
        let clean = record(&model, Input::batch(&TEXTS), at, &[]);
        let changed = record(&model, Input::batch(&TEXTS), at, &[edit]);
        let rows: usize = TEXTS.iter().map(|ids| ids.len()).sum();
        let width = clean.len() / rows;
        let first = TEXTS[0].len() + TEXTS[1].len();
        for row in 0..rows {
            for column in 0..width {
                let index = row * width + column;
                let named =
                    (row == first + 1 || row == first + 2) && column / (width / heads) == chosen;
                let expected = if named { 0.0 } else { clean[index] };
                assert_eq!(
                    changed[index], expected,
                    "{name}, row {row}, column {column}"
                );
            }
        }
        assert!(clean.iter().zip(&changed).any(|(a, b)| a != b), "{name}");
    }
}

#[test]
fn replacing_an_activation_with_that_of_another_run_makes_it_that_run() {
    for name in FAMILIES {
        let model = family(name);
        let logits = Site::logits();
        let (clean, other): (&[u32], &[u32]) = (&[3, 11, 7, 20, 5], &[9, 2, 14, 33, 21]);
        let layer = model.config().n_layers - 1;
        let target = record(&model, Input::tokens(clean), logits, &[]);
        let at = Site::resid_post(layer);
        let with = model.record(Input::tokens(clean), &[at], &[]).unwrap()[&at].clone();
        let patch = Intervention::new(at, Arc::new(Replace { with }));
        let patched = record(&model, Input::tokens(other), logits, &[patch]);
        assert!(worst(&patched, &target) < 1e-6, "{name}");
    }
}

#[test]
fn scores_and_patterns_in_the_open_change_nothing() {
    for name in FAMILIES {
        let model = family(name);
        let last = Site::final_normalized();
        let closed = record(&model, Input::batch(&TEXTS), last, &[]);
        let open: Vec<Site> = model
            .config()
            .sites()
            .into_iter()
            .filter(|at| *at != Site::logits())
            .collect();
        let all = model.record(Input::batch(&TEXTS), &open, &[]).unwrap();
        assert!(worst(&values(&all[&last]), &closed) < 2e-5, "{name}");
    }
}

/// Writes large scores wherever there is a zero, which is what hidden keys show.
struct Everywhere;

impl Edit for Everywhere {
    fn apply(&self, x: Tensor<2>, _rows: &Rows) -> Tensor<2> {
        let hidden = x.clone().equal_elem(0.0);
        x.mask_fill(hidden, 50.0)
    }

    fn describe(&self) -> String {
        "large scores".to_owned()
    }
}

#[test]
fn what_an_edit_writes_at_hidden_keys_is_not_used() {
    let model = family("mistral");
    let at = site("1.attn_scores");
    let width = {
        let scores = model.record(Input::tokens(TEXTS[0]), &[at], &[]).unwrap();
        let scores = &scores[&at];
        assert!(values(scores).contains(&f32::NEG_INFINITY));
        scores.dims()[1]
    };
    let edit = Intervention::new(at, Arc::new(Everywhere));
    let logits = Site::logits();
    let clean = record(&model, Input::tokens(TEXTS[0]), logits, &[]);
    let edited = record(&model, Input::tokens(TEXTS[0]), logits, &[edit]);
    assert!(worst(&clean, &edited) < 1e-6);
    assert_eq!(width, model.config().n_heads * TEXTS[0].len());
}

#[test]
fn no_more_is_computed_than_a_recording_needs() {
    // An edit that is reached would be counted.
    struct Count(Mutex<usize>);
    impl Edit for Count {
        fn apply(&self, x: Tensor<2>, _rows: &Rows) -> Tensor<2> {
            *self.0.lock().unwrap() += 1;
            x
        }

        fn describe(&self) -> String {
            "counting".to_owned()
        }
    }
    let model = family("llama");
    let count = Arc::new(Count(Mutex::new(0)));
    let edits: Vec<Intervention> = model
        .config()
        .sites()
        .into_iter()
        .map(|at| Intervention::new(at, Arc::clone(&count) as Arc<dyn Edit>))
        .collect();
    let at = site("1.attn.z");
    model
        .record(Input::tokens(TEXTS[0]), &[at], &edits)
        .unwrap();
    let before = model
        .config()
        .sites()
        .iter()
        .position(|s| *s == at)
        .unwrap();
    assert_eq!(*count.0.lock().unwrap(), before + 1);
}

#[test]
fn hooks_that_cannot_act_are_errors() {
    let model = family("gpt_neox");
    let zero = || Arc::new(Zero { first_position: 0 });
    let run = |edit: Intervention| {
        let options = RunOptions {
            interventions: &[edit],
            stop_at: None,
            ..RunOptions::default()
        };
        let message = model.run(Input::tokens(TEXTS[1]), &options).unwrap_err();
        message.to_string()
    };
    let at = Site::resid_post(0);
    let late = Intervention::new(at, zero()).at_positions(Positions::Range(5..9));
    let message = run(late);
    assert!(
        message.contains("never acts") && message.contains("0 to 2"),
        "{message}"
    );
    let message = run(Intervention::new(at, zero()).in_sequence(1));
    assert!(
        message.contains("never acts") && message.contains("sequence 1"),
        "{message}"
    );
    let message = run(Intervention::new(at, zero()).on_heads(vec![0]));
    assert!(message.contains("is not divided into heads"), "{message}");
    let message = run(Intervention::new(site("0.attn.q"), zero()).on_heads(vec![64]));
    assert!(message.contains("has the heads 0 to"), "{message}");
    // Blocks whose attention and MLP work side by side have no stream between them.
    let message = run(Intervention::new(site("0.resid_mid"), zero()));
    assert!(
        message.contains("blocks.0.hook_resid_mid does not exist in a gpt_neox model")
            && message.contains("hook_mlp_out"),
        "{message}"
    );
    let with = Tensor::<2>::zeros([2, 3], &Device::flex());
    let message = run(Intervention::new(at, Arc::new(Replace { with })));
    assert!(message.contains("must keep the shape"), "{message}");
}

#[test]
fn cached_runs_under_hooks_agree_with_recomputed_ones() {
    for name in FAMILIES {
        let model = family(name);
        let config = model.config();
        let vector = Tensor::<1>::from_data(
            TensorData::new(
                (0..config.d_model).map(|i| (i as f32).sin()).collect(),
                [config.d_model],
            ),
            &Device::flex(),
        );
        let edits = [
            Intervention::new(
                Site::resid_post(0),
                Arc::new(AddVector {
                    vector,
                    first_position: 1,
                }),
            ),
            Intervention::new(site("1.attn.pattern"), Arc::new(Scale(0.5)))
                .at_positions(Positions::Range(2..7))
                .on_heads(vec![0]),
            Intervention::new(site("1.attn.k"), Arc::new(Scale(1.2))),
        ];
        let ids = TEXTS[0];
        let logits = Site::logits();
        let whole = record(&model, Input::tokens(ids), logits, &edits);
        let mut cache = KeyValueCache::new(config.n_layers);
        let mut pieces = Vec::new();
        for piece in [&ids[..4], &ids[4..5], &ids[5..9], &ids[9..]] {
            // A piece sees only the edits that act in it.
            let start = cache.len();
            let options = RunOptions {
                interventions: if start < 7 { &edits } else { &edits[..1] },
                record: &[logits],
                ..RunOptions::default()
            };
            if start >= 7 {
                // The change of the keys still has to act.
                let edits = [edits[0].clone(), edits[2].clone()];
                let options = RunOptions {
                    interventions: &edits,
                    record: &[logits],
                    ..RunOptions::default()
                };
                let mut out = model.run_cached(piece, &options, &mut cache).unwrap();
                pieces.extend(values(&out.take(logits).unwrap()));
                continue;
            }
            let mut out = model.run_cached(piece, &options, &mut cache).unwrap();
            pieces.extend(values(&out.take(logits).unwrap()));
        }
        assert!(
            worst(&pieces, &whole) < 1e-4,
            "{name}: {}",
            worst(&pieces, &whole)
        );
    }
}

/// Greedy text by running everything anew for each token.
fn recomputed(model: &Model, ids: &[u32], count: usize, edits: &[Intervention]) -> Vec<u32> {
    let mut ids = ids.to_vec();
    let start = ids.len();
    for _ in 0..count {
        let logits = record(model, Input::tokens(&ids), Site::logits(), edits);
        let row = &logits[logits.len() - model.config().d_vocab..];
        let best = (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        ids.push(best as u32);
    }
    ids.split_off(start)
}

#[test]
fn batched_generation_writes_what_each_prompt_alone_would() {
    for name in FAMILIES {
        let model = family(name);
        let vector = Tensor::<1>::ones([model.config().d_model], &Device::flex());
        let edit = AddVector {
            vector,
            first_position: 2,
        };
        let edits = [Intervention::new(Site::resid_post(0), Arc::new(edit))];
        let options = GenerateOptions {
            max_tokens: 6,
            interventions: &edits,
            ..GenerateOptions::default()
        };
        let texts = model.generate_batch(&TEXTS, &options, |_| true).unwrap();
        for (ids, text) in TEXTS.iter().zip(texts) {
            assert_eq!(text.ids, recomputed(&model, ids, 6, &edits), "{name}");
            assert_eq!(text.ending, Ending::Length);
        }
    }
}

#[test]
fn an_edit_of_the_logits_decides_the_next_token() {
    let model = family("gemma2");
    let mut wish = vec![0.0_f32; model.config().d_vocab];
    wish[17] = 1000.0;
    let vector = Tensor::<1>::from_data(
        TensorData::new(wish, [model.config().d_vocab]),
        &Device::flex(),
    );
    let edit = AddVector {
        vector,
        first_position: 4,
    };
    let edits = [Intervention::new(Site::logits(), Arc::new(edit))];
    let options = GenerateOptions {
        max_tokens: 5,
        interventions: &edits,
        ..GenerateOptions::default()
    };
    let free = model
        .generate(
            &[9, 2, 14],
            &GenerateOptions {
                max_tokens: 5,
                ..GenerateOptions::default()
            },
            |_| true,
        )
        .unwrap();
    let text = model.generate(&[9, 2, 14], &options, |_| true).unwrap();
    // Positions 2 and 3 choose the first two tokens.
    assert_eq!(text[..2], free[..2]);
    assert_eq!(text[2..], [17, 17, 17]);
}

#[test]
fn sampling_repeats_with_its_seed_and_equal_prompts_differ() {
    let model = family("llama");
    let prompts = [TEXTS[0], TEXTS[0], TEXTS[0]];
    let generate = |seed| {
        let options = GenerateOptions {
            max_tokens: 12,
            sampling: Sampling {
                temperature: 3.0,
                seed,
                ..Sampling::default()
            },
            ..GenerateOptions::default()
        };
        let texts = model.generate_batch(&prompts, &options, |_| true).unwrap();
        texts.into_iter().map(|text| text.ids).collect::<Vec<_>>()
    };
    let first = generate(1);
    assert_eq!(first, generate(1));
    assert_ne!(first, generate(2));
    assert_ne!(first[0], first[1]);
    assert_ne!(first[1], first[2]);
}

#[test]
fn stop_strings_end_the_text_before_them() {
    let model = family("llama");
    let options = |stop_strings: Vec<String>| GenerateOptions {
        max_tokens: 10,
        stop_strings,
        ..GenerateOptions::default()
    };
    let whole = &model
        .generate_batch(&[TEXTS[1]], &options(Vec::new()), |_| true)
        .unwrap()[0];
    // Any string from the middle of the text will do.
    let from = whole.text.char_indices().map(|(at, _)| at).nth(3).unwrap();
    let to = whole.text.char_indices().map(|(at, _)| at).nth(6).unwrap();
    let stop = whole.text[from..to].to_owned();
    let mut streamed: HashMap<usize, String> = HashMap::new();
    let text = &model
        .generate_batch(
            &[TEXTS[1]],
            &options(vec![stop.clone()]),
            |piece: Emission| {
                streamed
                    .entry(piece.sequence)
                    .or_default()
                    .push_str(&piece.text);
                true
            },
        )
        .unwrap()[0];
    assert_eq!(text.text, whole.text[..whole.text.find(&stop).unwrap()]);
    assert_eq!(streamed.remove(&0).unwrap_or_default(), text.text);
    assert_eq!(text.ending, Ending::StopString(stop));
}
