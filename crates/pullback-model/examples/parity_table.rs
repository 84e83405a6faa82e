//! Prints the table of `docs/parity.md`: how far each family is from the reference values of transformers.
//!
//! `cargo run --release -p pullback-model --example parity_table`
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/common/parity.rs"]
mod parity;

use burn::tensor::Device;
use parity::{FAMILIES, Reference, TOLERANCE, family_path, worst, worst_relative};
use pullback_model::Model;

fn main() {
    println!(
        "| family | file | type | logits | sites | worst site | gradients | relative | worst gradient | tolerance |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (family, files) in FAMILIES {
        for file in files {
            let (kind, dtype) = match file.rsplit_once('.') {
                None => ("Hugging Face", "F32"),
                Some((stem, _)) if stem.ends_with("q8_0") => ("GGUF", "Q8_0"),
                Some(_) => ("GGUF", "F32"),
            };
            let model = match Model::load(&family_path(file), &Device::flex()) {
                Ok(model) => model,
                Err(error) => {
                    println!("| {family} | {kind} | {dtype} | not loaded: {error} | | | | | | |");
                    continue;
                }
            };
            let reference = Reference::load(family, file);
            let mut values = reference.compare_values(&model, 0);
            values.extend(reference.compare_values(&model, 1));
            let gradients = reference.compare_gradients(&model, true);
            let logits = values
                .iter()
                .filter(|difference| difference.site == "hook_logits")
                .map(|difference| difference.absolute)
                .fold(0.0, f32::max);
            let (site, gradient) = (worst(&values), worst(&gradients));
            println!(
                "| {family} | {kind} | {dtype} | {logits:.1e} | {:.1e} | `{}` | {:.1e} | {:.1e} | `{}` | {TOLERANCE:.0e} |",
                site.absolute,
                site.site,
                gradient.absolute,
                worst_relative(&gradients).relative,
                gradient.site,
            );
        }
    }
}
