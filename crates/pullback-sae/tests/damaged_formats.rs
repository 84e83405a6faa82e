//! Files of other programs that are damaged, or made to do harm: each is an error that names what is wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use common::base::assert_has;
use common::files::fixture;
use pullback_sae::SaeError;
use pullback_sae::formats::{PickleError, load};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// A copy of a fixture, to be damaged.
struct Copy {
    dir: tempfile::TempDir,
    weights: PathBuf,
}

impl Copy {
    fn new(name: &str, weights: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(&fixture("formats").join(name), dir.path());
        let weights = dir.path().join(weights);
        assert!(weights.is_file());
        Self { dir, weights }
    }

    fn error(&self) -> String {
        load(self.dir.path())
            .map(|_| ())
            .expect_err("a damaged file was read")
            .to_string()
    }

    fn config(&self, file: &str, change: impl Fn(&mut Value)) -> &Self {
        let path = self.dir.path().join(file);
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(&path, config.to_string()).unwrap();
        self
    }

    /// Gives a tensor of a safetensors file another shape, with zeros in it; an empty one takes it out.
    fn tensor(&self, name: &str, shape: &[usize]) -> &Self {
        let bytes = fs::read(&self.weights).unwrap();
        let old = SafeTensors::deserialize(&bytes).unwrap();
        let zeros = vec![0_u8; 4 * shape.iter().product::<usize>()];
        let mut all: Vec<(String, TensorView<'_>)> = old
            .iter()
            .filter(|(other, _)| *other != name)
            .map(|(name, view)| (name.to_owned(), view))
            .collect();
        if !shape.is_empty() {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), &zeros).unwrap();
            all.push((name.to_owned(), view));
        }
        let bytes = safetensors::serialize(all, None).unwrap();
        fs::write(&self.weights, bytes).unwrap();
        self
    }

    /// Rewrites the members of a zip archive, uncompressed.
    fn members(&self, change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> &Self {
        rewrite(&self.weights, CompressionMethod::Stored, change);
        self
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn rewrite(
    path: &Path,
    method: CompressionMethod,
    change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>,
) {
    let mut old = ZipArchive::new(Cursor::new(fs::read(path).unwrap())).unwrap();
    let mut new = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..old.len() {
        let mut member = old.by_index(index).unwrap();
        let name = member.name().to_owned();
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).unwrap();
        if let Some(bytes) = change(&name, bytes) {
            let options = SimpleFileOptions::default().compression_method(method);
            new.start_file(name, options).unwrap();
            new.write_all(&bytes).unwrap();
        }
    }
    fs::write(path, new.finish().unwrap().into_inner()).unwrap();
}

/// All files with numbers, one a container and reader.
const FILES: [(&str, &str); 6] = [
    ("dictionary-learning-MatryoshkaBatchTopKSAE", "ae.pt"),
    ("gemma-scope-lower-case", "params.npz"),
    ("saelens-gated", "sae_weights.safetensors"),
    ("sparsify/layers.1.mlp", "sae.safetensors"),
    (
        "gemma-scope-2/transcoder/layer_3_width_40_l0_small_affine",
        "params.safetensors",
    ),
    ("Llama3_1-8B-Base-L1R-8x", "checkpoints/final.safetensors"),
];

#[test]
fn files_that_are_cut_short_are_errors() {
    for (name, weights) in FILES {
        let copy = Copy::new(name, weights);
        let whole = fs::read(&copy.weights).unwrap();
        let step = whole.len() / 60;
        for length in (0..whole.len()).step_by(step).chain([whole.len() - 1]) {
            fs::write(&copy.weights, &whole[..length]).unwrap();
            let file = Path::new(weights).file_name().unwrap();
            assert_has(&copy.error(), &[file.to_str().unwrap()]);
        }
    }
}

/// Whatever a changed byte means, nothing panics, and no more is allocated than there is.
#[test]
fn changed_bytes_do_no_harm() {
    for (name, weights) in FILES {
        let copy = Copy::new(name, weights);
        let whole = fs::read(&copy.weights).unwrap();
        // Headers, of archives at the end as well, are where a byte can mean most.
        let head = |at: usize| at < 900 || at + 900 > whole.len();
        let places = (0..whole.len()).filter(|&at| at % if head(at) { 13 } else { 997 } == 0);
        let mut refused = 0;
        for at in places {
            for change in [0xff, 0x01] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                fs::write(&copy.weights, &bytes).unwrap();
                refused += usize::from(load(copy.dir.path()).is_err());
            }
        }
        assert!(refused > 20, "{name}: {refused}");
    }
}

#[test]
fn a_pickle_that_names_a_function_is_not_run() {
    let copy = Copy::new("dictionary-learning-AutoEncoder", "ae.pt");
    let dir = copy.dir.path().join("made");
    let call = format!("cposix\nsystem\n(X{{}}mkdir {}tR.", dir.display());
    copy.members(|name, bytes| {
        Some(if name.ends_with("data.pkl") {
            [b"\x80\x02", call.as_bytes()].concat()
        } else {
            bytes
        })
    });
    let error = load(copy.dir.path()).unwrap_err();
    assert_has(&error.to_string(), &["ae.pt", "`posix.system`", "not run"]);
    let SaeError::Pickle { error, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(error, PickleError::Global("posix.system".to_owned()));
    assert!(!dir.exists());
}

#[test]
fn storages_of_unknown_kinds_are_named() {
    let copy = Copy::new("dictionary-learning-AutoEncoder", "ae.pt");
    copy.members(|name, bytes| {
        if !name.ends_with("data.pkl") {
            return Some(bytes);
        }
        let text: Vec<u8> = bytes.clone();
        let at = text
            .windows(12)
            .position(|window| window == b"FloatStorage")
            .unwrap();
        Some([&text[..at], b"ByteStorage", &text[at + 12..]].concat())
    });
    assert_has(&copy.error(), &["ae.pt", "`torch.ByteStorage`"]);
}

#[test]
fn archives_that_lie_are_errors() {
    fn damaged(change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> String {
        let copy = Copy::new("dictionary-learning-AutoEncoder", "ae.pt");
        copy.members(change);
        copy.error()
    }
    // Numbers that are missing, too few, too many.
    assert_has(
        &damaged(|name, bytes| (!name.ends_with("data/0")).then_some(bytes)),
        &["ae.pt", "data/0"],
    );
    for change in [-4_i64, 4] {
        let error = damaged(|name, mut bytes| {
            if name.ends_with("data/0") {
                bytes.resize((bytes.len() as i64 + change) as usize, 0);
            }
            Some(bytes)
        });
        assert_has(&error, &["ae.pt", "data/0", "bytes"]);
    }
    assert_has(
        &damaged(|name, bytes| (!name.ends_with("data.pkl")).then_some(bytes)),
        &["ae.pt", "no data.pkl"],
    );
    assert_has(
        &damaged(|name, bytes| {
            Some(if name.ends_with("byteorder") {
                b"big".to_vec()
            } else {
                bytes
            })
        }),
        &["ae.pt", "big-endian"],
    );
    let copy = Copy::new("dictionary-learning-AutoEncoder", "ae.pt");
    rewrite(&copy.weights, CompressionMethod::Deflated, |_, bytes| {
        Some(bytes)
    });
    assert_has(&copy.error(), &["ae.pt", "compressed"]);
}

#[test]
fn descriptions_of_arrays_are_checked() {
    let described = |text: &str| {
        let copy = Copy::new("gemma-scope-lower-case", "params.npz");
        copy.members(|name, bytes| {
            if name != "b_enc.npy" {
                return Some(bytes);
            }
            let mut head = b"\x93NUMPY\x01\x00".to_vec();
            head.extend((text.len() as u16).to_le_bytes());
            head.extend(text.bytes());
            head.extend(&bytes[bytes.len() - 4 * 40..]);
            Some(head)
        });
        copy.error()
    };
    let problem = |error: &str, words: &[&str]| {
        assert_has(error, &["params.npz", "b_enc"]);
        assert_has(error, words);
    };
    problem(
        &described("{'descr': '>f4', 'fortran_order': False, 'shape': (40,), }"),
        &["'>f4'", "'<f4'"],
    );
    problem(
        &described("{'descr': '|O', 'fortran_order': False, 'shape': (40,), }"),
        &["'|O'"],
    );
    problem(
        &described("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }"),
        &["99999999999999", "bytes"],
    );
    problem(
        &described("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }"),
        &["4294967296"],
    );
    problem(
        &described("{'descr': '<f4', 'fortran_order': False, 'shape': (-40,), }"),
        &["-40"],
    );
    problem(&described("nothing"), &["nothing"]);
    problem(
        &described("{'descr': '<f4', 'fortran_order': False, 'shape': (5, 8), }"),
        &["[5, 8]", "vector"],
    );
}

#[test]
fn transposed_matrices_are_named() {
    let transposed = [
        (
            "saelens-skip-transcoder",
            "sae_weights.safetensors",
            "W_skip",
            [12, 8],
        ),
        (
            "saelens-transcoder",
            "sae_weights.safetensors",
            "W_dec",
            [8, 40],
        ),
        (
            "sparsify/layers.1",
            "sae.safetensors",
            "encoder.weight",
            [12, 40],
        ),
        // What SAELens's own reader of this format makes of it.
        ("sparsify/layers.1", "sae.safetensors", "W_dec", [12, 40]),
        (
            "gemma-scope-2/transcoder/layer_3_width_40_l0_small_affine",
            "params.safetensors",
            "w_enc",
            [40, 12],
        ),
        (
            "Llama3_1-8B-Base-L1R-8x",
            "checkpoints/final.safetensors",
            "decoder.weight",
            [40, 12],
        ),
    ];
    for (name, weights, tensor, shape) in transposed {
        let copy = Copy::new(name, weights);
        let shape_text = format!("{shape:?}");
        assert_has(
            &copy.tensor(tensor, &shape).error(),
            &[tensor, &shape_text, "transposed"],
        );
    }
    // The same numbers under a description with sizes exchanged.
    let copy = Copy::new("gemma-scope-lower-case", "params.npz");
    copy.members(|name, mut bytes| {
        if name == "w_dec.npy" {
            let at = bytes
                .windows(8)
                .position(|window| window == b"(40, 12)")
                .unwrap();
            bytes[at..at + 8].copy_from_slice(b"(12, 40)");
        }
        Some(bytes)
    });
    assert_has(
        &copy.error(),
        &["w_dec", "[12, 40]", "[40, 12]", "transposed"],
    );
}

#[test]
fn missing_and_senseless_parts_are_named() {
    let copy = Copy::new("saelens-gated", "sae_weights.safetensors");
    assert_has(&copy.tensor("r_mag", &[]).error(), &["`r_mag`", "b_gate"]);
    let copy = Copy::new("saelens-jumprelu", "sae_weights.safetensors");
    assert_has(
        &copy.tensor("threshold", &[39]).error(),
        &["threshold", "[39]", "[40]"],
    );
    let copy = Copy::new("saelens-transcoder", "sae_weights.safetensors");
    assert_has(
        &copy
            .config("cfg.json", |config| config["d_out"] = json!(9))
            .error(),
        &["W_dec", "[40, 8]", "[40, 9]"],
    );
    let copy = Copy::new("saelens-transcoder", "sae_weights.safetensors");
    assert_has(
        &copy
            .config("cfg.json", |config| {
                config["normalize_activations"] = json!("layer_norm");
            })
            .error(),
        &["cfg.json", "layer_norm", "transcoder"],
    );
    let copy = Copy::new("saelens-batchtopk-checkpoint", "sae_weights.safetensors");
    fs::remove_file(copy.dir.path().join("activation_scaler.json")).unwrap();
    assert_has(
        &copy.error(),
        &["expected_average_only_in", "activation_scaler.json"],
    );

    let dict = "dictionary-learning-AutoEncoderTopK";
    let changed = |key: &str, value: Value| {
        let copy = Copy::new(dict, "ae.pt");
        copy.config("config.json", |config| {
            config["trainer"][key] = value.clone();
        });
        copy.error()
    };
    assert_has(&changed("k", json!(6)), &["`k` is 5", "6"]);
    assert_has(
        &changed("activation_dim", json!(13)),
        &["config.json", "13", "12"],
    );
    assert_has(
        &changed("dict_class", json!("IdentityDict")),
        &["IdentityDict", "AutoEncoderTopK"],
    );
    assert_has(
        &changed("dict_class", json!("GatedAutoEncoder")),
        &["gate_bias", "encoder.weight"],
    );
    let copy = Copy::new(dict, "ae.pt");
    fs::remove_file(copy.dir.path().join("config.json")).unwrap();
    assert_has(&copy.error(), &["ae.pt", "dict_class"]);

    let copy = Copy::new("sparsify/layers.1", "sae.safetensors");
    assert_has(
        &copy
            .config("cfg.json", |config| {
                config["activation"] = json!("groupmax");
            })
            .error(),
        &["groupmax", "topk"],
    );
    let copy = Copy::new("sparsify/layers.1", "sae.safetensors");
    assert_has(
        &copy
            .config("cfg.json", |config| config["skip_connection"] = json!(true))
            .error(),
        &["W_skip"],
    );
    let llama = |key: &'static str, value: Value| {
        let copy = Copy::new("Llama3_1-8B-Base-L1R-8x", "checkpoints/final.safetensors");
        copy.config("hyperparams.json", |config| config[key] = value.clone());
        copy.error()
    };
    assert_has(
        &llama("dataset_average_activation_norm", json!({"in": 0})),
        &["hyperparams.json", "dataset_average_activation_norm.in"],
    );
    assert_has(
        &llama("norm_activation", json!("batch-wise")),
        &["batch-wise"],
    );
    assert_has(&llama("use_glu_encoder", json!(true)), &["use_glu_encoder"]);
}

#[test]
fn numbers_that_are_none_are_refused() {
    let with = |name: &'static str, value: f32| {
        let copy = Copy::new("gemma-scope-lower-case", "params.npz");
        copy.members(|member, mut bytes| {
            if member == name {
                let at = bytes.len() - 4 * 3;
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            Some(bytes)
        });
        load(copy.dir.path()).map(|_| ())
    };
    let error = with("b_enc.npy", f32::NAN).unwrap_err().to_string();
    assert_has(&error, &["params.npz", "b_enc", "NaN", "place 37"]);
    assert!(with("w_dec.npy", f32::INFINITY).is_err());
    // A feature that never opens.
    assert!(with("threshold.npy", f32::INFINITY).is_ok());
    assert!(with("threshold.npy", f32::NEG_INFINITY).is_err());
}
