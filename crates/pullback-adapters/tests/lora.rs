//! Updates of weights: against PEFT, merged against composed, files both ways.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor};
use common::base::{assert_close, assert_has, tiny, tiny_path, values};
use common::random;
use pullback_adapters::{Adapter, LoraAdapter, LoraPart, lora_weights};
use pullback_model::{Input, Model, ModelFiles, RunOptions, WeightName, WeightUpdate};
use serde_json::{Value, json};

const IDS: [u32; 4] = [5, 60, 7, 100];

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft")
}

fn logits(model: &Model, updates: &[WeightUpdate]) -> Tensor<2> {
    let options = RunOptions {
        updates,
        ..RunOptions::default()
    };
    let out = model.run(Input::tokens(&IDS), &options).unwrap();
    model.logits(out.stream)
}

/// Updates of every matrix of a block.
fn adapter(seed: u64) -> LoraAdapter {
    let model = tiny();
    let parts = WeightName::MATRICES.iter().enumerate().map(|(i, (_, of))| {
        let weight = of(1 + i % 2);
        let shape = weight.shape(model.config());
        let rank = 2 + i % 2;
        LoraPart {
            weight,
            rank,
            down: random(seed + i as u64, rank * shape[1]),
            up: random(seed + 20 + i as u64, rank * shape[0]),
            scale: 0.1,
        }
    });
    LoraAdapter {
        parts: parts.collect(),
    }
}

#[test]
fn files_of_peft_give_its_logits() {
    let model = tiny();
    let lora = LoraAdapter::load_peft(&fixture(), model.config()).unwrap();
    assert_eq!(lora.parts.len(), 6);
    let down = lora.parts.iter().find(|p| p.weight == WeightName::Down(2));
    assert_eq!(down.map(|p| (p.rank, p.scale)), Some((2, 3.5)));
    let expected: Value =
        serde_json::from_slice(&fs::read(fixture().join("logits.json")).unwrap()).unwrap();
    let expected = expected["adapted"].as_array().unwrap();
    let expected: Vec<f32> = expected
        .iter()
        .map(|x| x.as_f64().unwrap() as f32)
        .collect();
    let updates = lora.updates(1.0, &Device::flex(), DType::F32);
    let found = values(logits(&model, &updates));
    assert_close(&found, &expected, 2e-5);
    let clean = values(logits(&model, &[]));
    let moved = clean.iter().zip(&found).map(|(a, b)| (a - b).abs());
    assert!(moved.fold(0.0, f32::max) > 0.1);
}

#[test]
fn what_is_written_for_peft_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let lora = adapter(5);
    lora.save_peft(dir.path(), model.config(), "tiny").unwrap();
    let mut expected = lora.clone();
    let order: Vec<WeightName> = WeightName::all(model.config()).collect();
    expected
        .parts
        .sort_by_key(|part| order.iter().position(|w| *w == part.weight));
    let found = LoraAdapter::load_peft(dir.path(), model.config()).unwrap();
    assert_eq!(found.parts.len(), expected.parts.len());
    for (a, b) in found.parts.iter().zip(&expected.parts) {
        assert_eq!((a.weight, &a.down, &a.up), (b.weight, &b.down, &b.up));
        assert!((a.scale - b.scale).abs() < 1e-12);
    }
    // For `make_peft.py check DIR`.
    if let Some(out) = std::env::var_os("PULLBACK_PEFT_OUT") {
        let out = PathBuf::from(out);
        fs::create_dir_all(&out).unwrap();
        lora.save_peft(&out, model.config(), "tiny").unwrap();
        let updates = lora.updates(1.0, &Device::flex(), DType::F32);
        let adapted = values(logits(&model, &updates));
        let text = json!({ "ids": IDS, "adapted": adapted }).to_string();
        fs::write(out.join("logits.json"), text).unwrap();
    }
}

#[test]
fn merged_equals_composed() {
    let files = || ModelFiles::open(&tiny_path()).unwrap();
    let lora = adapter(5);
    for (dtype, bound) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
        let mut model = Model::from_files(files(), &Device::flex(), dtype).unwrap();
        let clean = logits(&model, &[]);
        let updates = lora.updates(0.5, &Device::flex(), dtype);
        let composed = logits(&model, &updates);
        Adapter::Lora(lora.clone())
            .scaled(0.5)
            .unwrap()
            .attach(&mut model, &mut Vec::new())
            .unwrap();
        let merged = logits(&model, &[]);
        let distance = |a: &Tensor<2>, b: &Tensor<2>| {
            let most = (a.clone() - b.clone()).abs().max();
            most.into_data().iter::<f64>().next().unwrap()
        };
        assert!(
            distance(&merged, &composed) < bound,
            "{}",
            distance(&merged, &composed)
        );
        assert!(distance(&clean, &composed) > 0.1);
    }
}

#[test]
fn several_updates_of_a_matrix_merge_into_one() {
    let model = tiny();
    let pair = [Adapter::Lora(adapter(5)), Adapter::Lora(adapter(90))];
    let Adapter::Lora(sum) = Adapter::merged(&pair).unwrap() else {
        panic!("an update of weights");
    };
    assert_eq!(sum.parts.len(), 7);
    let device = Device::flex();
    let mut both = adapter(5).updates(1.0, &device, DType::F32);
    both.extend(adapter(90).updates(1.0, &device, DType::F32));
    let expected = values(logits(&model, &both));
    let found = values(logits(&model, &sum.updates(1.0, &device, DType::F32)));
    assert_close(&found, &expected, 2e-5);
}

#[test]
fn a_zero_update_changes_no_bit() {
    let model = tiny();
    let mut lora = adapter(5);
    for part in &mut lora.parts {
        part.up.fill(0.0);
    }
    let updates = lora.updates(1.0, &Device::flex(), DType::F32);
    assert_eq!(
        values(logits(&model, &updates)),
        values(logits(&model, &[]))
    );
}

#[test]
fn results_of_heads_are_those_of_the_updated_matrix() {
    let mut model = tiny();
    let sites = [1, 2].map(|layer| format!("blocks.{layer}.attn.hook_result").parse().unwrap());
    let updates = adapter(5).updates(1.0, &Device::flex(), DType::F32);
    let options = RunOptions {
        updates: &updates,
        record: &sites,
        ..RunOptions::default()
    };
    let composed = model.run(Input::tokens(&IDS), &options).unwrap();
    model.merge(&updates).unwrap();
    let mut merged = model.record(Input::tokens(&IDS), &sites, &[]).unwrap();
    for site in sites {
        let found = values(composed.recorded[&site].clone());
        assert_close(&found, &values(merged.remove(&site).unwrap()), 1e-5);
    }
    assert_close(
        &values(model.logits(composed.stream)),
        &values(logits(&model, &[])),
        2e-5,
    );
}

#[test]
fn updates_that_do_not_fit_are_refused() {
    let model = tiny();
    let update = |weight: WeightName, rank: usize, out: usize| {
        let lora = LoraAdapter {
            parts: vec![LoraPart {
                weight,
                rank,
                down: vec![0.1; rank * 32],
                up: vec![0.1; rank * out],
                scale: 1.0,
            }],
        };
        lora.updates(1.0, &Device::flex(), DType::F32)
    };
    let refused = |updates: &[WeightUpdate], stop: Option<usize>| {
        let options = RunOptions {
            updates,
            stop_at: stop,
            ..RunOptions::default()
        };
        let result = model.run(Input::tokens(&IDS), &options);
        result.map(|_| ()).unwrap_err().to_string()
    };
    assert_has(
        &refused(&update(WeightName::Q(9), 2, 32), None),
        &["Q(9)", "3 blocks"],
    );
    assert_has(
        &refused(&update(WeightName::Embed, 2, 32), None),
        &["Embed"],
    );
    assert_has(
        &refused(&update(WeightName::Q(1), 2, 31), None),
        &["[31, 2]", "[32, 32]"],
    );
    assert_has(
        &refused(&update(WeightName::Q(1), 2, 32), Some(1)),
        &["Q(1)", "0 to 1"],
    );
    let names = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let weights = lora_weights(model.config(), &names(&["q", "down"]), &[2, 0, 2]).unwrap();
    assert_eq!(
        weights,
        [
            WeightName::Q(0),
            WeightName::Down(0),
            WeightName::Q(2),
            WeightName::Down(2)
        ]
    );
    let error = lora_weights(model.config(), &names(&["query"]), &[0]).unwrap_err();
    assert_has(&error.to_string(), &["`query`", "q, k, v"]);
    let error = lora_weights(model.config(), &names(&["q"]), &[3]).unwrap_err();
    assert_has(&error.to_string(), &["no block 3", "0 to 2"]);
}

#[test]
fn files_of_other_methods_and_models_are_refused() {
    let model = tiny();
    let refused = |change: &dyn Fn(&mut Value), rename: Option<(&str, &str)>| {
        let dir = tempfile::tempdir().unwrap();
        let mut settings: Value =
            serde_json::from_slice(&fs::read(fixture().join("adapter_config.json")).unwrap())
                .unwrap();
        change(&mut settings);
        fs::write(dir.path().join("adapter_config.json"), settings.to_string()).unwrap();
        let mut bytes = fs::read(fixture().join("adapter_model.safetensors")).unwrap();
        if let Some((from, to)) = rename {
            assert_eq!(from.len(), to.len());
            let mut at = 0;
            while let Some(found) = bytes[at..]
                .windows(from.len())
                .position(|w| w == from.as_bytes())
            {
                bytes[at + found..at + found + to.len()].copy_from_slice(to.as_bytes());
                at += found + to.len();
            }
        }
        fs::write(dir.path().join("adapter_model.safetensors"), bytes).unwrap();
        let result = LoraAdapter::load_peft(dir.path(), model.config());
        result.map(|_| ()).unwrap_err().to_string()
    };
    let keep = |_: &mut Value| {};
    assert_has(
        &refused(&|s| s["peft_type"] = "LOHA".into(), None),
        &["LOHA", "LORA"],
    );
    assert_has(
        &refused(&|s| s["use_dora"] = true.into(), None),
        &["use_dora"],
    );
    assert_has(
        &refused(&|s| s["bias"] = "all".into(), None),
        &["bias", "all"],
    );
    assert_has(
        &refused(&|s| s["modules_to_save"] = json!(["lm_head"]), None),
        &["modules_to_save", "lm_head"],
    );
    assert_has(
        &refused(&|s| s["alpha_pattern"] = json!({ ".*down": 3 }), None),
        &["alpha_pattern", ".*down"],
    );
    assert_has(
        &refused(&|s| s["lora_alpha"] = Value::Null, None),
        &["lora_alpha"],
    );
    assert_has(
        &refused(&keep, Some(("layers.2.", "layers.7."))),
        &["layers.7.", "3 blocks"],
    );
    assert_has(
        &refused(&keep, Some(("v_proj.lora_A", "v_proj.lora_X"))),
        &["v_proj.lora_A.weight is missing"],
    );
    assert_has(
        &refused(&keep, Some(("v_proj.lora_B", "v_proj.lora_C"))),
        &["v_proj.lora_B.weight is missing"],
    );
    assert_has(
        &refused(
            &keep,
            Some((
                "0.self_attn.q_proj.lora_A.weight",
                "0.self_attn.q_proj.lora_0.weight",
            )),
        ),
        &["lora_0", "not supported"],
    );
}
