//! Models that are trained: gradients of every weight of every family, new models, and what is written of them.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use pullback_model::{
    Input, Model, ModelFiles, NewModel, RunOptions, WeightName, Weights, save_like,
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
const IDS: [u32; 7] = [3, 1, 4, 1, 5, 9, 2];

fn path_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/families")
        .join(name)
}

fn load(path: &Path, dtype: DType) -> Model {
    let files = ModelFiles::open(path).unwrap();
    Model::with_weights(files, &Device::flex(), dtype, Weights::Expanded).unwrap()
}

fn flat(values: &[f64], device: &Device) -> Tensor<1> {
    Tensor::from_data(
        TensorData::new(values.to_vec(), [values.len()]),
        (device, DType::F64),
    )
}

/// The sum of cross-entropies, in `f64`.
fn loss(model: &Model) -> Tensor<1> {
    let n = IDS.len() - 1;
    let out = model
        .run(Input::tokens(&IDS[..n]), &RunOptions::default())
        .unwrap();
    model.cross_entropy(out.stream, &IDS[1..]).unwrap().sum()
}

fn number(x: Tensor<1>) -> f64 {
    x.into_data().iter::<f64>().next().unwrap()
}

#[test]
fn gradients_of_all_weights_are_those_of_finite_differences() {
    let device = Device::flex();
    for family in FAMILIES {
        let mut model = load(&path_of(family), DType::F64);
        let weights: Vec<(WeightName, Vec<f64>)> = model
            .weights()
            .into_iter()
            .map(|(name, values)| (name, values.iter().map(|&x| f64::from(x)).collect()))
            .collect();
        let expected: u64 = weights.iter().map(|(_, values)| values.len() as u64).sum();
        assert_eq!(expected, model.config().n_parameters(), "{family}");
        let tracked: Vec<Tensor<1>> = weights
            .iter()
            .map(|(_, values)| flat(values, &device.clone().autodiff()).require_grad())
            .collect();
        let names = weights.iter().map(|(name, _)| *name);
        model
            .set_weights(names.zip(tracked.iter().cloned()))
            .unwrap();
        let grads = loss(&model).backward();
        let gradients: Vec<Vec<f64>> = tracked
            .iter()
            .map(|tensor| tensor.grad(&grads).unwrap().into_data().iter().collect())
            .collect();
        for (number_of, (name, values)) in weights.iter().enumerate() {
            // Along the gradient itself every entry counts.
            let gradient = &gradients[number_of];
            let square: f64 = gradient.iter().map(|g| g * g).sum();
            assert!(square > 0.0, "{family} {name:?}");
            let step = 1e-5 / square.sqrt();
            let mut moved = |by: f64| {
                let changed = weights.iter().map(|(other, own)| {
                    let own: Vec<f64> = if other == name {
                        let pairs = values.iter().zip(gradient);
                        pairs.map(|(x, g)| x + by * g).collect()
                    } else {
                        own.clone()
                    };
                    (*other, flat(&own, &device))
                });
                let changed: Vec<_> = changed.collect();
                model.set_weights(changed).unwrap();
                number(loss(&model))
            };
            let measured = (moved(step) - moved(-step)) / (2.0 * step);
            assert!(
                (measured - square).abs() < 1e-6 * square + 1e-7 * square.sqrt(),
                "{family} {name:?}: {measured} {square}"
            );
        }
    }
}

fn new_model() -> NewModel {
    NewModel {
        d_model: 16,
        n_layers: 2,
        n_heads: 2,
        d_mlp: 24,
        n_ctx: 32,
        vocabulary: 270,
        seed: 3,
    }
}

const TEXTS: [&str; 3] = [
    "the sea and the wind and the ship, the sea and the wind",
    "a captain saw the sea, and the captain saw the wind",
    "the ship, the ship and the captain of the ship — naïve ☃",
];

#[test]
fn a_new_model_is_one_like_any_other_and_follows_from_its_seed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let create = |name: &str, seed: u64| {
        let path = at(name);
        let new = NewModel {
            seed,
            ..new_model()
        };
        new.create(TEXTS.into_iter(), &path).unwrap();
        path
    };
    let (a, b, c) = (create("a", 3), create("b", 3), create("c", 4));
    let read = |path: &Path, file: &str| std::fs::read(path.join(file)).unwrap();
    for file in ["model.safetensors", "tokenizer.json", "config.json"] {
        assert_eq!(read(&a, file), read(&b, file), "{file}");
    }
    assert_ne!(read(&a, "model.safetensors"), read(&c, "model.safetensors"));
    let mut model = load(&a, DType::F32);
    let tokenizer = model.tokenizer();
    for text in TEXTS {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, true), text);
        assert!(ids.len() < text.len());
    }
    // Bytes that were never seen are tokens too.
    let ids = tokenizer.encode("ψ\u{1}", false).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), "ψ\u{1}");
    assert_eq!(tokenizer.bos(), Some(0));
    assert_eq!(tokenizer.encode_with_bos("the", true).unwrap()[0], 0);
    // The predictions of the start are near those of nothing: log of the vocabulary.
    let ids = tokenizer.encode(TEXTS[0], false).unwrap();
    let ids = &ids[..ids.len().min(20)];
    let n = ids.len() - 1;
    let out = model
        .run(Input::tokens(&ids[..n]), &RunOptions::default())
        .unwrap();
    let losses = model.cross_entropy(out.stream, &ids[1..]).unwrap();
    let mean: f32 = losses.mean().into_data().iter().next().unwrap();
    assert!((mean - 270.0_f32.ln()).abs() < 0.7, "{mean}");
    // Written with the weights it has, it is the same file.
    let copy = at("copy");
    let weights = model.weights();
    save_like(&a, &weights, &copy).unwrap();
    assert_eq!(
        read(&a, "model.safetensors"),
        read(&copy, "model.safetensors")
    );
    let loaded = ModelFiles::open(&copy).unwrap();
    assert_eq!(loaded.digest, model.digest());
}

#[test]
fn models_of_other_families_are_written_with_their_own_words() {
    let dir = tempfile::tempdir().unwrap();
    for family in ["llama", "gemma2", "qwen3", "mistral"] {
        let from = path_of(family);
        let to = dir.path().join(family);
        std::fs::create_dir(&to).unwrap();
        let mut model = load(&from, DType::F32);
        let weights = model.weights();
        save_like(&from, &weights, &to).unwrap();
        let mut copy = load(&to, DType::F32);
        for ((name, a), (_, b)) in weights.iter().zip(copy.weights()) {
            for (a, b) in a.iter().zip(&b) {
                // Gains less one are rounded once more.
                assert!((a - b).abs() < 1e-6, "{family} {name:?}: {a} {b}");
            }
        }
    }
    let from = path_of("gpt2");
    let weights = load(&from, DType::F32).weights();
    let error = save_like(&from, &weights, dir.path()).unwrap_err();
    assert!(error.to_string().contains("joint or transposed"), "{error}");
}

#[test]
fn what_makes_no_model_is_refused() {
    let good = new_model();
    for (bad, words) in [
        (
            NewModel {
                n_heads: 3,
                ..good.clone()
            },
            "3 heads do not divide",
        ),
        (
            NewModel {
                d_model: 0,
                ..good.clone()
            },
            "the width of the stream is 0",
        ),
        (
            NewModel {
                n_layers: 1 << 20,
                ..good.clone()
            },
            "the number of blocks",
        ),
        (
            NewModel {
                vocabulary: 200,
                ..good.clone()
            },
            "a vocabulary of 200",
        ),
    ] {
        let error = bad.check().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let large = NewModel {
        vocabulary: 5000,
        ..good
    };
    let error = large.create(TEXTS.into_iter(), dir.path()).unwrap_err();
    assert!(
        error.to_string().contains("the text is too small"),
        "{error}"
    );
    let mut model = load(&path_of("llama"), DType::F64);
    let one = flat(&[1.0], &Device::flex());
    let error = model
        .set_weights([(WeightName::Q(0), one.clone())])
        .unwrap_err();
    assert!(error.to_string().contains("1 numbers"), "{error}");
    let error = model.set_weights([(WeightName::Q(99), one)]).unwrap_err();
    assert!(error.to_string().contains("no weight"), "{error}");
}
