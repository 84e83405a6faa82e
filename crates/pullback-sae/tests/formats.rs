//! Dictionaries in the files of other programs: those that the programs wrote (`fixtures/make_formats.py`), our own, and
//! ones that cannot be written.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use bytemuck::cast_slice;
use common::base::{assert_close, assert_has};
use common::files::{assert_expected, dense, fixture};
use common::random;
use pullback_sae::formats::{Format, Origin, detect, load, save};
use pullback_sae::{Dictionary, Normalization, Sae, SaeError, SaeParts, Selection};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const D: usize = 12;
const M: usize = 40;

/// A fixture, its format and its kind.
const FIXTURES: [(&str, Format, &str); 30] = [
    ("saelens-standard", Format::SaeLens, "relu"),
    ("saelens-standard-bf16", Format::SaeLens, "relu"),
    ("saelens-standard-f16", Format::SaeLens, "relu"),
    ("saelens-constant-norm", Format::SaeLens, "relu"),
    ("saelens-topk-rescaled", Format::SaeLens, "topk"),
    ("saelens-jumprelu", Format::SaeLens, "jumprelu"),
    ("saelens-gated", Format::SaeLens, "gated"),
    ("saelens-gated-raw-input", Format::SaeLens, "gated"),
    ("saelens-transcoder", Format::SaeLens, "relu"),
    ("saelens-skip-transcoder", Format::SaeLens, "relu"),
    ("saelens-jumprelu-transcoder", Format::SaeLens, "jumprelu"),
    (
        "saelens-jumprelu-skip-transcoder",
        Format::SaeLens,
        "jumprelu",
    ),
    ("saelens-batchtopk", Format::SaeLens, "jumprelu"),
    ("saelens-batchtopk-checkpoint", Format::SaeLens, "jumprelu"),
    ("saelens-matryoshka", Format::SaeLens, "jumprelu"),
    ("saelens-matryoshka-checkpoint", Format::SaeLens, "jumprelu"),
    ("saelens-flat", Format::SaeLens, "relu"),
    (
        "dictionary-learning-AutoEncoder",
        Format::DictionaryLearning,
        "relu",
    ),
    (
        "dictionary-learning-AutoEncoderNew",
        Format::DictionaryLearning,
        "relu",
    ),
    (
        "dictionary-learning-AutoEncoderTopK",
        Format::DictionaryLearning,
        "topk",
    ),
    (
        "dictionary-learning-BatchTopKSAE",
        Format::DictionaryLearning,
        "jumprelu",
    ),
    (
        "dictionary-learning-MatryoshkaBatchTopKSAE",
        Format::DictionaryLearning,
        "jumprelu",
    ),
    (
        "dictionary-learning-JumpReluAutoEncoder",
        Format::DictionaryLearning,
        "jumprelu",
    ),
    (
        "dictionary-learning-GatedAutoEncoder",
        Format::DictionaryLearning,
        "gated",
    ),
    ("sparsify/layers.1", Format::Sparsify, "topk"),
    ("sparsify/layers.1.mlp", Format::Sparsify, "topk"),
    (
        "gemma-scope-2b-pt-res/layer_12/width_40/average_l0_9",
        Format::GemmaScope,
        "jumprelu",
    ),
    ("gemma-scope-lower-case", Format::GemmaScope, "jumprelu"),
    (
        "gemma-scope-2/transcoder/layer_3_width_40_l0_small_affine",
        Format::GemmaScope2,
        "jumprelu",
    ),
    ("Llama3_1-8B-Base-L1R-8x", Format::LlamaScope, "jumprelu"),
];

fn made(name: &str) -> PathBuf {
    fixture("formats").join(name)
}

#[test]
fn what_the_libraries_wrote_is_read_and_means_the_same() {
    for (name, format, kind) in FIXTURES {
        let dir = made(name);
        assert_eq!(detect(&dir).unwrap(), format, "{name}");
        let sae = load(&dir).unwrap().sae;
        assert_eq!((sae.d(), sae.n_features()), (D, M), "{name}");
        assert_eq!(sae.selection().name(), kind, "{name}");
        println!("{name}");
        assert_expected(&sae, &dir);
    }
}

#[test]
fn the_file_itself_can_be_given() {
    for (name, file) in [
        ("saelens-gated", "sae_weights.safetensors"),
        ("dictionary-learning-AutoEncoder", "ae.pt"),
        ("sparsify/layers.1", "sae.safetensors"),
        ("gemma-scope-lower-case", "params.npz"),
        ("Llama3_1-8B-Base-L1R-8x", "checkpoints/final.safetensors"),
        (
            "gemma-scope-2/transcoder/layer_3_width_40_l0_small_affine",
            "params.safetensors",
        ),
    ] {
        let dir = made(name);
        assert_eq!(load(&dir.join(file)).unwrap(), load(&dir).unwrap());
    }
    // A checkpoint's configuration stands one directory up.
    let dir = tempfile::tempdir().unwrap();
    let from = made("dictionary-learning-BatchTopKSAE");
    fs::create_dir(dir.path().join("checkpoints")).unwrap();
    let file = dir.path().join("checkpoints/ae_500.pt");
    fs::copy(from.join("ae.pt"), &file).unwrap();
    assert_has(
        &load(&file).unwrap_err().to_string(),
        &["ae_500.pt", "dict_class"],
    );
    fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
    assert_eq!(load(&file).unwrap(), load(&from).unwrap());
}

#[test]
fn where_a_dictionary_comes_from_is_read() {
    let text = |text: &str| Some(text.to_owned());
    let of = |name: &str| load(&made(name)).unwrap().origin;
    assert_eq!(
        of("saelens-transcoder"),
        Origin {
            model: text("tiny"),
            hook: text("blocks.1.hook_resid_post"),
            hook_out: text("blocks.1.hook_mlp_out"),
            context: Some(16),
            prepend_bos: Some(true),
            dataset: None,
        }
    );
    assert_eq!(
        of("saelens-flat"),
        Origin {
            model: text("gpt2-small"),
            hook: text("blocks.2.hook_resid_pre"),
            hook_out: None,
            context: Some(128),
            prepend_bos: Some(true),
            dataset: text("Skylion007/openwebtext"),
        }
    );
    assert_eq!(
        of("dictionary-learning-GatedAutoEncoder"),
        Origin {
            model: text("EleutherAI/pythia-70m-deduped"),
            hook: text("blocks.1.hook_resid_post"),
            context: Some(128),
            ..Origin::default()
        }
    );
    assert_eq!(
        of("sparsify/layers.1.mlp"),
        Origin {
            model: text("tiny"),
            hook: text("blocks.1.ln2.hook_normalized"),
            hook_out: text("blocks.1.hook_mlp_out"),
            context: Some(64),
            prepend_bos: None,
            dataset: text("text"),
        }
    );
    let gemma = of("gemma-scope-2b-pt-res/layer_12/width_40/average_l0_9");
    assert_eq!(gemma.model, text("gemma-2-2b"));
    assert_eq!(gemma.hook, text("blocks.12.hook_resid_post"));
    let gemma = of("gemma-scope-2/transcoder/layer_3_width_40_l0_small_affine");
    assert_eq!(gemma.model, text("gemma-3-1b-pt"));
    assert_eq!(gemma.hook, text("blocks.3.ln2.hook_normalized"));
    assert_eq!(gemma.hook_out, text("blocks.3.hook_mlp_out"));
    let llama = of("Llama3_1-8B-Base-L1R-8x");
    assert_eq!(llama.hook, text("blocks.1.hook_resid_post"));
    assert_eq!(llama.hook_out, None);
}

/// A dictionary of this kind with numbers that have nothing special about them.
fn random_parts(seed: u64, d_out: usize, selection: Selection) -> SaeParts {
    SaeParts {
        selection,
        encoder: random(seed, M * D),
        encoder_bias: random(seed + 1, M),
        decoder: random(seed + 2, M * d_out),
        decoder_bias: random(seed + 3, d_out),
        input_bias: random(seed + 4, D),
        normalization: Normalization::None,
        skip: None,
    }
}

fn kinds() -> [Selection; 4] {
    let positive = |seed| random(seed, M).iter().map(|x| x + 1.5).collect();
    [
        Selection::Relu,
        Selection::TopK { k: 7 },
        Selection::Threshold {
            thresholds: random(77, M),
        },
        Selection::Gated {
            scales: positive(78),
            biases: random(79, M),
        },
    ]
}

/// What to write, by a name for the directory.
fn to_write() -> Vec<(String, Format, Sae, Origin)> {
    let origin = Origin {
        model: Some("tiny".to_owned()),
        hook: Some("blocks.1.hook_resid_post".to_owned()),
        context: Some(16),
        prepend_bos: Some(true),
        ..Origin::default()
    };
    let transcodes = Origin {
        hook_out: Some("blocks.1.hook_mlp_out".to_owned()),
        ..origin.clone()
    };
    let mut all = Vec::new();
    for (seed, selection) in kinds().into_iter().enumerate() {
        let kind = selection.name();
        let seed = 100 * (seed as u64 + 1);
        // What is taken from the input: the decoder's bias, nothing, another vector.
        for input in ["tied", "raw", "other"] {
            let mut parts = random_parts(seed, D, selection.clone());
            match input {
                "tied" => parts.input_bias.clone_from(&parts.decoder_bias),
                "raw" => parts.input_bias = vec![0.0; D],
                _ => {}
            }
            let sae = Sae::new(parts).unwrap();
            for format in [
                Format::SaeLens,
                Format::DictionaryLearning,
                Format::Sparsify,
                Format::GemmaScope,
            ] {
                let top_k = kind == "topk";
                if (format == Format::Sparsify && !top_k) || (format == Format::GemmaScope && top_k)
                {
                    continue;
                }
                let name = format!("{format}-{kind}-{input}");
                all.push((name, format, sae.clone(), origin.clone()));
            }
        }
        let mut parts = random_parts(seed + 10, D, selection.clone());
        parts.input_bias.clone_from(&parts.decoder_bias);
        for (name, normalization) in [
            ("layer", Normalization::Layer),
            ("constant", Normalization::ConstantNorm),
        ] {
            parts.normalization = normalization;
            let sae = Sae::new(parts.clone()).unwrap();
            let name = format!("saelens-{kind}-{name}");
            all.push((name, Format::SaeLens, sae, origin.clone()));
        }
        if kind == "topk" {
            let mut parts = random_parts(seed + 20, D, selection);
            parts.skip = Some(random(seed + 30, D * D));
            let sae = Sae::new(parts).unwrap();
            let name = "sparsify-topk-skip".to_owned();
            all.push((name, Format::Sparsify, sae, transcodes.clone()));
            continue;
        }
        for skip in [false, true] {
            let mut parts = random_parts(seed + 20, 8, selection.clone());
            if skip {
                parts.skip = Some(random(seed + 30, 8 * D));
            }
            let sae = Sae::new(parts).unwrap();
            let name = format!("saelens-{kind}-transcoder-{skip}");
            all.push((name, Format::SaeLens, sae, transcodes.clone()));
        }
    }
    all
}

/// With `PULLBACK_FORMATS_OUT=DIR` the directories stay, for `make_formats.py check DIR …`.
#[test]
fn what_was_written_is_read_back_and_means_the_same() {
    let temporary = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("PULLBACK_FORMATS_OUT").map(PathBuf::from);
    let root = kept.as_deref().unwrap_or(temporary.path());
    let x = random(9, 30 * D);
    for (name, format, sae, origin) in to_write() {
        println!("{name}");
        let dir = root.join(&name);
        save(format, &sae, &origin, &dir).unwrap();
        assert_eq!(detect(&dir).unwrap(), format);
        let read = load(&dir).unwrap();
        let (codes, ours) = (sae.encode(&x), read.sae.encode(&x));
        let (output, reconstruction) =
            (sae.reconstruct(&x, &codes), read.sae.reconstruct(&x, &ours));
        assert_close(&dense(&ours, M), &dense(&codes, M), 1e-5);
        assert_close(&reconstruction, &output, 1e-5);
        match format {
            Format::SaeLens => assert_eq!(read.origin, origin, "{name}"),
            Format::DictionaryLearning => assert_eq!(
                read.origin,
                Origin {
                    prepend_bos: None,
                    ..origin
                }
            ),
            _ => {}
        }
        write_expected(&dir, &x, &dense(&codes, M), &output);
    }
}

fn write_expected(dir: &Path, x: &[f32], codes: &[f32], output: &[f32]) {
    let tokens = x.len() / D;
    let view = |values| {
        let values: &[f32] = values;
        let shape = vec![tokens, values.len() / tokens];
        TensorView::new(Dtype::F32, shape, cast_slice(values)).unwrap()
    };
    let tensors = [
        ("x", view(x)),
        ("codes", view(codes)),
        ("output", view(output)),
    ];
    fs::write(
        dir.join("expected.safetensors"),
        safetensors::serialize(tensors, None).unwrap(),
    )
    .unwrap();
}

#[test]
fn what_a_format_says_itself_comes_back_bit_by_bit() {
    for (name, format, mut sae, origin) in to_write() {
        let exact = name.ends_with("-tied") && !name.contains("gated")
            || name.ends_with("-layer") && !name.contains("gated");
        if !exact || format == Format::GemmaScope || name.contains("learning-jumprelu") {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        save(format, &sae, &origin, dir.path()).unwrap();
        assert_eq!(load(dir.path()).unwrap().sae, sae, "{name}");
        // And the other way of taking from the input.
        let mut parts = sae.into_parts();
        parts.input_bias = vec![0.0; D];
        sae = Sae::new(parts).unwrap();
        if name.contains("learning-topk") {
            continue;
        }
        save(format, &sae, &origin, dir.path()).unwrap();
        assert_eq!(load(dir.path()).unwrap().sae, sae, "{name}");
    }
}

#[test]
fn what_a_format_cannot_say_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |format, sae: &Sae| {
        let error = save(format, sae, &Origin::default(), dir.path()).unwrap_err();
        assert!(matches!(error, SaeError::Inexpressible { .. }), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{error}");
        error.to_string()
    };
    let [relu, top_k, threshold, gated] = kinds();
    let plain = |selection: &Selection| Sae::new(random_parts(1, D, selection.clone())).unwrap();
    for selection in [&relu, &threshold, &gated] {
        assert_has(
            &refused(Format::Sparsify, &plain(selection)),
            &["sparsify", selection.name(), "TopK"],
        );
    }
    assert_has(
        &refused(Format::GemmaScope, &plain(&top_k)),
        &["gemma-scope", "topk", "threshold"],
    );
    for format in [
        Format::DictionaryLearning,
        Format::Sparsify,
        Format::GemmaScope,
    ] {
        let mut parts = random_parts(1, D, relu.clone());
        parts.normalization = Normalization::Layer;
        let sae = Sae::new(parts).unwrap();
        assert_has(&refused(format, &sae), &[format.name(), "normalised"]);
    }
    let mut parts = random_parts(1, D, relu.clone());
    parts.skip = Some(random(2, D * D));
    let skips = Sae::new(parts.clone()).unwrap();
    parts.selection = top_k.clone();
    let skips_top_k = Sae::new(parts).unwrap();
    for format in [Format::DictionaryLearning, Format::GemmaScope] {
        assert_has(&refused(format, &skips), &["skip matrix"]);
    }
    assert_has(
        &refused(Format::SaeLens, &skips_top_k),
        &["saelens", "TopK", "skip"],
    );
    let widens = Sae::new(random_parts(1, 8, top_k.clone())).unwrap();
    assert_has(&refused(Format::SaeLens, &widens), &["TopK", "one width"]);
    for format in [Format::DictionaryLearning, Format::Sparsify] {
        assert_has(&refused(format, &widens), &["width 12", "width 8"]);
    }
    let mut parts = random_parts(1, D, gated);
    if let Selection::Gated { scales, .. } = &mut parts.selection {
        scales[3] = 0.0;
    }
    let silent = Sae::new(parts).unwrap();
    for format in [Format::SaeLens, Format::DictionaryLearning] {
        assert_has(&refused(format, &silent), &["scale 0", "logarithm"]);
    }
    for format in [Format::GemmaScope2, Format::LlamaScope] {
        assert_has(&refused(format, &plain(&relu)), &["read only"]);
    }
}

/// A feature's scale below zero would turn the comparison round.
#[test]
fn a_gated_dictionary_becomes_thresholds_only_where_that_means_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let x = random(5, 50 * D);
    let mut parts = random_parts(3, D, kinds()[3].clone());
    let sae = Sae::new(parts.clone()).unwrap();
    save(Format::GemmaScope, &sae, &Origin::default(), dir.path()).unwrap();
    let read = load(dir.path()).unwrap().sae;
    assert_eq!(read.selection().name(), "jumprelu");
    assert_close(
        &dense(&read.encode(&x), M),
        &dense(&sae.encode(&x), M),
        1e-5,
    );
    if let Selection::Gated { scales, .. } = &mut parts.selection {
        scales[3] = -1.0;
    }
    let error = save(
        Format::GemmaScope,
        &Sae::new(parts).unwrap(),
        &Origin::default(),
        dir.path(),
    );
    assert_has(&error.unwrap_err().to_string(), &["scale -1"]);
}

#[test]
fn what_is_no_dictionary_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let error = |path: &Path| load(path).unwrap_err().to_string();
    assert_has(
        &error(dir.path()),
        &["no dictionary", "params.npz", "ae.pt", "cfg.json"].map(|part| {
            if part == "cfg.json" {
                "sae.safetensors"
            } else {
                part
            }
        }),
    );
    assert_has(&error(&dir.path().join("none")), &["none", "no such file"]);
    let file = dir.path().join("notes.txt");
    fs::write(&file, "text").unwrap();
    assert_has(&error(&file), &["notes.txt", "no file of a dictionary"]);
    for name in ["ae.pt", "params.npz"] {
        fs::write(dir.path().join(name), "text").unwrap();
        assert_has(&error(&dir.path().join(name)), &[name, "archive"]);
    }
    assert_has(
        &error(dir.path()),
        &["several formats", "ae.pt", "params.npz"],
    );
}
