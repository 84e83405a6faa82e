//! The SAELens layout: directories written by SAELens itself (`fixtures/make_saelens.py`), our own, and damaged ones.
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
use common::files::{dense, fixture, floats};
use common::{random, random_sae};
use pullback_sae::saelens::{SaeLensMetadata, load, save, save_sparsity};
use pullback_sae::{Dictionary, Sae};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

fn metadata() -> SaeLensMetadata {
    SaeLensMetadata {
        model_name: Some("tiny".to_owned()),
        hook_name: "blocks.1.hook_resid_post".to_owned(),
        hook_name_out: None,
        context_size: 16,
        prepend_bos: true,
    }
}

/// A directory that can be read, to be damaged.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        save(&random_sae(1, 6, 10, 3), &metadata(), dir.path()).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn config(&self, change: impl Fn(&mut Value)) -> &Self {
        let path = self.path().join("cfg.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
        self
    }

    /// Writes all tensors anew; those given replace or join the old ones, an empty shape removes one.
    fn tensors(&self, changed: &[(&str, &[usize])]) -> &Self {
        let path = self.path().join("sae_weights.safetensors");
        let bytes = fs::read(&path).unwrap();
        let old = SafeTensors::deserialize(&bytes).unwrap();
        let zeros = vec![0_u8; 4096];
        let mut all: Vec<(&str, TensorView<'_>)> = old
            .iter()
            .filter(|(name, _)| changed.iter().all(|(other, _)| other != name))
            .collect();
        for (name, shape) in changed.iter().filter(|(_, shape)| !shape.is_empty()) {
            let size = 4 * shape.iter().product::<usize>();
            all.push((
                name,
                TensorView::new(Dtype::F32, shape.to_vec(), &zeros[..size]).unwrap(),
            ));
        }
        let bytes = safetensors::serialize(all, None).unwrap();
        fs::write(&path, bytes).unwrap();
        self
    }

    fn error(&self) -> String {
        load(self.path())
            .map(|_| ())
            .expect_err("a damaged directory was read")
            .to_string()
    }
}

#[test]
fn what_saelens_wrote_is_read_and_means_the_same() {
    for name in ["saelens-topk", "saelens-topk-raw-input"] {
        let sae = load(&fixture(name)).unwrap();
        assert_eq!((sae.d(), sae.n_features(), sae.k().unwrap()), (12, 40, 5));
        let bytes = fs::read(fixture(name).join("expected.safetensors")).unwrap();
        let codes = sae.encode(&floats(&bytes, "x"));
        assert_close(&dense(&codes, 40), &floats(&bytes, "codes"), 1e-5);
        assert_close(&sae.decode(&codes), &floats(&bytes, "reconstruction"), 1e-5);
        assert!(codes.active() < 70 * 5 && codes.active() > 70 * 3);
    }
}

/// With `PULLBACK_SAELENS_OUT=DIR` the directory stays, for `make_saelens.py check DIR`.
#[test]
fn what_was_written_is_read_back_equal() {
    let temporary = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("PULLBACK_SAELENS_OUT").map(PathBuf::from);
    let dir = kept.as_deref().unwrap_or(temporary.path());
    fs::create_dir_all(dir).unwrap();
    let sae = random_sae(4, 12, 40, 5);
    save(&sae, &metadata(), dir).unwrap();
    assert_eq!(load(dir).unwrap(), sae);

    let x = random(9, 60 * 12);
    let codes = sae.encode(&x);
    let (dense, reconstruction) = (dense(&codes, 40), sae.decode(&codes));
    let view =
        |columns: usize, x| TensorView::new(Dtype::F32, vec![60, columns], cast_slice(x)).unwrap();
    let tensors = [
        ("x", view(12, &x[..])),
        ("codes", view(40, &dense[..])),
        ("reconstruction", view(12, &reconstruction[..])),
    ];
    fs::write(
        dir.join("ours.safetensors"),
        safetensors::serialize(tensors, None).unwrap(),
    )
    .unwrap();

    let bytes = fs::read(dir.join("sae_weights.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    assert_eq!(names, ["W_dec", "W_enc", "b_dec", "b_enc"]);
    assert_eq!(tensors.tensor("W_enc").unwrap().shape(), [12, 40]);
    assert_eq!(tensors.tensor("W_dec").unwrap().shape(), [40, 12]);
    // Column i of W_enc is feature i's.
    let written = floats(&bytes, "W_enc");
    assert_eq!(
        written[3 * 40 + 17].to_bits(),
        sae.encoder()[17 * 12 + 3].to_bits()
    );
}

#[test]
fn the_configuration_has_the_keys_of_version_six() {
    let dir = Directory::new();
    let config: Value =
        serde_json::from_slice(&fs::read(dir.path().join("cfg.json")).unwrap()).unwrap();
    for (key, value) in [
        ("d_in", json!(6)),
        ("d_sae", json!(10)),
        ("k", json!(3)),
        ("dtype", json!("float32")),
        ("device", json!("cpu")),
        ("architecture", json!("topk")),
        ("apply_b_dec_to_input", json!(true)),
        ("normalize_activations", json!("none")),
        ("reshape_activations", json!("none")),
        ("rescale_acts_by_decoder_norm", json!(false)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    let about = &config["metadata"];
    assert_eq!(about["hook_name"], "blocks.1.hook_resid_post");
    assert_eq!(about["model_name"], "tiny");
    assert_eq!(about["context_size"], 16);
    assert_eq!(about["prepend_bos"], true);
    let version = about["sae_lens_version"].as_str().unwrap();
    assert!(
        version.split('.').next().unwrap().parse::<u32>().unwrap() >= 6,
        "{version} means a flat configuration"
    );
}

#[test]
fn flat_configurations_of_older_versions_are_read() {
    let dir = Directory::new();
    let sae = load(dir.path()).unwrap();
    let flat = json!({
        "architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3},
        "d_in": 6, "d_sae": 10, "dtype": "torch.float32", "device": "cuda", "model_name": "gpt2-small",
        "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "prepend_bos": true, "context_size": 128,
        "normalize_activations": "none", "apply_b_dec_to_input": true, "finetuning_scaling_factor": false,
    });
    fs::write(
        dir.path().join("cfg.json"),
        serde_json::to_vec(&flat).unwrap(),
    )
    .unwrap();
    assert_eq!(load(dir.path()).unwrap(), sae);
}

#[test]
fn a_scaling_that_nobody_speaks_of_is_refused() {
    let dir = Directory::new();
    // SAELens before 6 multiplies the codes by this tensor where the configuration says so, and fails where it does not.
    dir.tensors(&[("scaling_factor", &[10])]);
    assert_has(
        &dir.error(),
        &[
            "sae_weights.safetensors",
            "scaling_factor",
            "finetuning_scaling_factor",
        ],
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = Directory::new();
    let weights = "sae_weights.safetensors";
    assert_has(
        &dir.tensors(&[("W_enc", &[10, 6])]).error(),
        &[weights, "W_enc", "[10, 6]", "[6, 10]", "transposed"],
    );
    let dir = Directory::new();
    assert_has(
        &dir.tensors(&[("W_dec", &[6, 10])]).error(),
        &[weights, "W_dec", "[6, 10]", "[10, 6]", "transposed"],
    );
    let dir = Directory::new();
    let error = dir.tensors(&[("W_dec", &[9, 6])]).error();
    assert_has(&error, &[weights, "W_dec", "[9, 6]"]);
    assert!(!error.contains("transposed"));
    for name in ["W_enc", "W_dec", "b_enc", "b_dec"] {
        let dir = Directory::new();
        assert_has(&dir.tensors(&[(name, &[])]).error(), &[weights, name]);
        let dir = Directory::new();
        assert_has(
            &dir.tensors(&[(name, &[3])]).error(),
            &[weights, name, "[3]"],
        );
    }
    let changed = |key: &'static str, value: Value| {
        let dir = Directory::new();
        dir.config(|config| config[key] = value.clone());
        let error = dir.error();
        assert_has(&error, &["cfg.json"]);
        error
    };
    assert_has(
        &changed("architecture", json!("temporal")),
        &["`temporal`", "`topk`"],
    );
    assert_has(&changed("architecture", Value::Null), &["null"]);
    assert_has(&changed("d_in", json!("6")), &["`d_in`", "\"6\""]);
    assert_has(&changed("d_sae", json!(-1)), &["`d_sae`", "-1"]);
    assert_has(
        &changed("normalize_activations", json!("covariance_whitening")),
        &["covariance_whitening", "layer_norm"],
    );
    for average in [json!(true), json!("expected_average_only_in")] {
        let said = average.to_string();
        assert_has(
            &changed("normalize_activations", average),
            &[&said, "factor", "activation_scaler.json", "W_enc"],
        );
    }
    let dir = Directory::new();
    dir.config(|config| {
        config.as_object_mut().unwrap().remove("k");
    });
    assert_has(&dir.error(), &["cfg.json", "`k`", "missing"]);
    let dir = Directory::new();
    fs::write(dir.path().join("cfg.json"), "{").unwrap();
    assert_has(&dir.error(), &["cfg.json"]);
    let dir = Directory::new();
    fs::remove_file(dir.path().join(weights)).unwrap();
    assert_has(&dir.error(), &[weights]);
    let dir = Directory::new();
    fs::write(dir.path().join(weights), b"\x10").unwrap();
    assert_has(&dir.error(), &[weights]);
}

#[test]
fn a_k_that_makes_no_sense_is_named_with_its_file() {
    for k in [json!(0), json!(11), json!(2.5), json!("3"), json!(-1)] {
        let dir = Directory::new();
        dir.config(|config| config["k"] = k.clone());
        assert_has(&dir.error(), &["cfg.json", "k", k.to_string().as_str()]);
    }
}

#[test]
fn sizes_of_zero_are_an_error() {
    for (d, m) in [(6_usize, 0_usize), (0, 10), (0, 0)] {
        let dir = Directory::new();
        dir.config(|config| {
            config["d_in"] = json!(d);
            config["d_sae"] = json!(m);
        });
        dir.tensors(&[
            ("W_enc", &[d, m]),
            ("W_dec", &[m, d]),
            ("b_enc", &[m]),
            ("b_dec", &[d]),
        ]);
        assert_has(&dir.error(), &["cfg.json"]);
    }
}

#[test]
fn densities_are_kept_as_logarithms() {
    let dir = tempfile::tempdir().unwrap();
    save_sparsity(&[1.0, 0.01, 0.0], dir.path()).unwrap();
    let bytes = fs::read(dir.path().join("sparsity.safetensors")).unwrap();
    assert_close(&floats(&bytes, "sparsity"), &[0.0, -2.0, -10.0], 1e-6);
}

#[test]
fn parts_that_do_not_agree_make_no_dictionary() {
    let refused = |k, sizes: [usize; 4]| {
        let part = |i: usize| vec![0.0; sizes[i]];
        Sae::top_k(k, part(0), part(1), part(2), part(3))
            .unwrap_err()
            .to_string()
    };
    assert_has(
        &refused(2, [12, 4, 12, 4]),
        &["encoder 12", "4 features of width 4"],
    );
    assert_has(&refused(2, [12, 4, 11, 3]), &["decoder 11"]);
    assert_has(&refused(0, [12, 4, 12, 3]), &["k is 0"]);
    assert_has(&refused(5, [12, 4, 12, 3]), &["k is 5", "4"]);
    assert_has(&refused(1, [0, 0, 0, 3]), &["0 features"]);
}

#[test]
fn selection_by_decoder_norm_is_folded_into_the_weights() {
    // Two features, one token: by pre-activation the first wins (2 against 1.5), by pre-activation times the
    // length of the decoder row the second does (2·1 against 1.5·3), and its code is undone in the decoder.
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "architecture": "topk", "d_in": 2, "d_sae": 2, "k": 1, "apply_b_dec_to_input": true,
        "normalize_activations": "none", "rescale_acts_by_decoder_norm": true,
    });
    fs::write(dir.path().join("cfg.json"), config.to_string()).unwrap();
    let parts: [(&str, Vec<usize>, [f32; 4]); 2] = [
        ("W_enc", vec![2, 2], [2.0, 0.0, 0.0, 1.5]),
        ("W_dec", vec![2, 2], [0.0, 1.0, 3.0, 0.0]),
    ];
    let zeros = [0_u8; 8];
    let bytes: Vec<Vec<u8>> = parts
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let mut tensors: Vec<(&str, TensorView<'_>)> = parts
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| {
            (
                *name,
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        })
        .collect();
    for name in ["b_enc", "b_dec"] {
        tensors.push((name, TensorView::new(Dtype::F32, vec![2], &zeros).unwrap()));
    }
    let path = dir.path().join("sae_weights.safetensors");
    fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let sae = load(dir.path()).unwrap();
    let codes = sae.encode(&[1.0, 1.0]);
    assert_eq!(codes.token(0), (&[1_u32][..], &[4.5_f32][..]));
    assert_eq!(sae.decode(&codes), [4.5, 0.0]);
}
