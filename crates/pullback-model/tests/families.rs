//! Every model family against Hugging Face transformers: the activation at every site, the logits, and the gradient
//! at every site, in each of the files that hold the model (fixtures `families`, made by `make_families.py` and
//! `make_families_gguf.py`).

#![allow(clippy::unwrap_used)]

#[path = "common/parity.rs"]
mod parity;

use burn::tensor::Device;
use parity::{Difference, FAMILIES, Reference, TOLERANCE, family_path, table};
use pullback_model::Model;

/// Runs a comparison on every file of a family.
fn each_file(family: &str, compare: impl Fn(&Reference, &Model, &str)) {
    let (_, files) = FAMILIES.iter().find(|(name, _)| *name == family).unwrap();
    for file in *files {
        let model = Model::load(&family_path(file), &Device::flex())
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        compare(&Reference::load(family, file), &model, file);
    }
}

/// Fails with all sites in a table if one value is too far off.
#[track_caller]
fn assert_values(differences: &[Difference], what: &str) {
    assert!(
        differences.iter().all(|d| d.absolute <= TOLERANCE),
        "{what}\n{}",
        table(differences)
    );
}

/// Likewise for gradients, which must agree in themselves and as a part of the largest of their site.
#[track_caller]
fn assert_gradients(differences: &[Difference], what: &str) {
    assert!(
        differences
            .iter()
            .all(|d| d.absolute <= TOLERANCE && d.relative <= TOLERANCE),
        "{what}\n{}",
        table(differences)
    );
}

fn values_agree(family: &str) {
    each_file(family, |reference, model, file| {
        for text in 0..2 {
            let differences = reference.compare_values(model, text);
            assert_values(&differences, &format!("{file}, text {text}"));
            let logits = reference.compare_logits(model, text);
            assert_values(
                &[logits],
                &format!("{file}, text {text}, nothing else kept"),
            );
        }
        let both = reference.compare_batch(model);
        assert_values(&[both], &format!("{file}, both texts together"));
    });
}

fn gradients_agree(family: &str) {
    each_file(family, |reference, model, file| {
        for together in [true, false] {
            let differences = reference.compare_gradients(model, together);
            let runs = if together { "one run" } else { "a run a site" };
            assert_gradients(&differences, &format!("{file}, gradients, {runs}"));
        }
    });
}

macro_rules! family {
    ($name:ident) => {
        mod $name {
            #[test]
            fn values_at_every_site_are_those_of_transformers() {
                super::values_agree(stringify!($name));
            }

            #[test]
            fn gradients_at_every_site_are_those_of_transformers() {
                super::gradients_agree(stringify!($name));
            }
        }
    };
}

family!(llama);
family!(mistral);
family!(gpt2);
family!(gpt_neox);
family!(gpt_neox_sequential);
family!(gemma2);
family!(gemma3_text);
family!(qwen2);
family!(qwen3);

#[test]
fn expanded_weights_give_the_numbers_of_stored_ones() {
    use burn::tensor::DType;
    use pullback_model::{Input, ModelFiles, Site, Weights};

    for (_, files) in FAMILIES {
        for file in files {
            let path = family_path(file);
            let [stored, expanded] = [Weights::AsStored, Weights::Expanded].map(|weights| {
                let files = ModelFiles::open(&path).unwrap();
                let model =
                    Model::with_weights(files, &Device::flex(), DType::F64, weights).unwrap();
                let logits = Site::logits();
                let input = Input::batch(&[&[3, 11, 7, 20, 5], &[9, 2]]);
                let found = model.record(input, &[logits], &[]).unwrap()[&logits].clone();
                found.into_data().iter::<f64>().collect::<Vec<f64>>()
            });
            for (a, b) in stored.iter().zip(&expanded) {
                assert!((a - b).abs() < 1e-12, "{file}: {a} against {b}");
            }
        }
    }
}
