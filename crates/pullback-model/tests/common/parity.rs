//! Comparison of a model with the reference values of transformers in `fixtures/families` (see
//! `make_families.py`): every site, the logits, and the gradient at every site.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the tests and the table each use their part"
)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a comparison fails by panicking"
)]

use std::path::{Path, PathBuf};

use pullback_model::Model;
use safetensors::SafeTensors;

/// The families with the files that hold the same model: a directory, then GGUF files.
///
/// Mistral has no GGUF file: the architecture `llama`, under which llama.cpp writes it, knows no sliding window.
pub const FAMILIES: [(&str, &[&str]); 9] = [
    ("llama", &["llama", "llama.gguf", "llama.q8_0.gguf"]),
    ("mistral", &["mistral"]),
    ("gpt2", &["gpt2", "gpt2.gguf"]),
    ("gpt_neox", &["gpt_neox", "gpt_neox.gguf"]),
    (
        "gpt_neox_sequential",
        &["gpt_neox_sequential", "gpt_neox_sequential.gguf"],
    ),
    ("gemma2", &["gemma2", "gemma2.gguf"]),
    ("gemma3_text", &["gemma3_text", "gemma3_text.gguf"]),
    ("qwen2", &["qwen2", "qwen2.gguf"]),
    ("qwen3", &["qwen3", "qwen3.gguf"]),
];

/// How far a value may be from the reference, and a gradient: in itself, and as a part of the largest entry
/// of the gradient at its site. In f32 transformers is up to 5.1e-6, 2.9e-6 and 5.2e-6 away.
pub const TOLERANCE: f32 = 1e-4;

/// The only place that knows how a model is run.
mod api {
    use std::collections::HashMap;
    use std::sync::Arc;

    use burn::tensor::activation::log_softmax;
    use burn::tensor::{Device, Int, Tensor, TensorData};
    use pullback_model::{Edit, Input, Intervention, Model, ModelError, Rows, RunOptions, Site};

    const LOGITS: &str = "hook_logits";

    /// Adds a tensor of the activation's shape.
    struct Add(Tensor<2>);

    impl Edit for Add {
        fn apply(&self, x: Tensor<2>, _rows: &Rows) -> Tensor<2> {
            x + self.0.clone()
        }

        fn describe(&self) -> String {
            "adding a tensor".to_owned()
        }
    }

    fn sites(names: &[String]) -> Vec<Site> {
        names
            .iter()
            .map(|name| name.parse().unwrap_or_else(|error| panic!("{error}")))
            .collect()
    }

    fn tokens(ids: &[u32]) -> Input {
        Input::tokens(ids)
    }

    /// Activations `[tokens, width]` of one sequence, flattened row by row, by the names of their sites.
    pub(super) fn activations(
        model: &Model,
        ids: &[u32],
        names: &[String],
    ) -> Result<HashMap<String, Vec<f32>>, ModelError> {
        let sites = sites(names);
        let options = RunOptions {
            record: &sites,
            ..RunOptions::default()
        };
        let mut out = model.run(tokens(ids), &options)?;
        names
            .iter()
            .zip(sites)
            .map(|(name, site)| {
                let values = out.take(site)?.into_data().iter::<f32>().collect();
                Ok((name.clone(), values))
            })
            .collect()
    }

    /// Gradients, shaped as the activations, of the mean cross-entropy of the targets; `widths` are those of the
    /// sites. Each is that of a zero tensor added at its site.
    pub(super) fn gradients(
        model: &Model,
        ids: &[u32],
        targets: &[u32],
        names: &[String],
        widths: &[usize],
    ) -> Result<HashMap<String, Vec<f32>>, ModelError> {
        let device = Device::flex().autodiff();
        let zeros: Vec<Tensor<2>> = widths
            .iter()
            .map(|&width| Tensor::zeros([ids.len(), width], &device).require_grad())
            .collect();
        let interventions: Vec<Intervention> = sites(names)
            .into_iter()
            .zip(&zeros)
            .map(|(site, zero)| Intervention::new(site, Arc::new(Add(zero.clone()))))
            .collect();
        let logits = sites(&[LOGITS.to_owned()]);
        let options = RunOptions {
            interventions: &interventions,
            record: &logits,
            device: Some(device.clone()),
            ..RunOptions::default()
        };
        let logits = model.run(tokens(ids), &options)?.take(logits[0])?;
        let column: Vec<i64> = targets.iter().map(|&id| i64::from(id)).collect();
        let column = TensorData::new(column, [targets.len(), 1]);
        let column = Tensor::<2, Int>::from_data(column, &logits.device());
        let loss = -log_softmax(logits, 1).gather(1, column).mean();
        let mut grads = loss.backward();
        Ok(names
            .iter()
            .zip(zeros)
            .map(|(name, zero)| {
                let gradient = zero
                    .grad_remove(&mut grads)
                    .unwrap_or_else(|| panic!("no gradient reaches {name}"));
                (name.clone(), gradient.into_data().iter::<f32>().collect())
            })
            .collect())
    }

    /// Logits of several sequences run together, one sequence after the other.
    pub(super) fn batch_logits(model: &Model, texts: &[&[u32]]) -> Result<Vec<f32>, ModelError> {
        let sites = sites(&[LOGITS.to_owned()]);
        let options = RunOptions {
            record: &sites,
            ..RunOptions::default()
        };
        let logits = model.run(Input::batch(texts), &options)?.take(sites[0])?;
        Ok(logits.into_data().iter::<f32>().collect())
    }
}

/// Where the families are.
pub fn family_path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/families")
        .join(file)
}

/// The reference values of one family.
pub struct Reference {
    bytes: Vec<u8>,
    /// The factor by which a GGUF file holds larger queries, where it cannot state the model's scale of attention.
    query_factor: f32,
}

/// How far the values at one site are from the reference.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The site.
    pub site: String,
    /// The largest distance.
    pub absolute: f32,
    /// The same in units of the largest reference value.
    pub relative: f32,
}

impl Reference {
    /// The reference of a family, for one of the files that hold its model.
    pub fn load(family: &str, file: &str) -> Self {
        let bytes = std::fs::read(family_path(family).join("reference.safetensors")).unwrap();
        let mut reference = Self {
            bytes,
            query_factor: 1.0,
        };
        if Path::new(file).extension().is_some()
            && let Some(factor) = reference.find("gguf:query_factor")
        {
            reference.query_factor = factor[0];
        }
        reference
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    fn find(&self, name: &str) -> Option<Vec<f32>> {
        let tensors = self.tensors();
        let found = tensors.tensor(name).ok()?;
        Some(bytemuck::pod_collect_to_vec(found.data()))
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.find(name)
            .unwrap_or_else(|| panic!("the reference has no {name}"))
    }

    fn whole_numbers(&self, name: &str) -> Vec<u32> {
        let tensors = self.tensors();
        let ids: Vec<i64> = bytemuck::pod_collect_to_vec(tensors.tensor(name).unwrap().data());
        ids.into_iter()
            .map(|id| u32::try_from(id).unwrap())
            .collect()
    }

    /// Token ids of a text.
    pub fn ids(&self, text: usize) -> Vec<u32> {
        self.whole_numbers(&format!("{text}:ids"))
    }

    /// The targets of text 0.
    pub fn targets(&self) -> Vec<u32> {
        self.whole_numbers("0:targets")
    }

    /// Names of the tensors that start with `prefix`, without it, sorted.
    fn sites(&self, prefix: &str) -> Vec<String> {
        let mut sites: Vec<String> = self
            .tensors()
            .names()
            .into_iter()
            .filter_map(|name| name.strip_prefix(prefix))
            .filter(|rest| rest.contains("hook_"))
            .filter(|rest| !rest.starts_with("grad:"))
            .map(str::to_owned)
            .collect();
        sites.sort();
        sites
    }

    /// Whether queries of this site are larger in the file, by [`Self::query_factor`].
    fn factor(&self, site: &str) -> f32 {
        if site.ends_with("attn.hook_q") || site.ends_with("attn.hook_rot_q") {
            self.query_factor
        } else {
            1.0
        }
    }

    /// Distances at one site; attention scores are compared where the query sees the key.
    fn difference(&self, site: &str, found: &[f32], expected: &[f32]) -> Difference {
        assert_eq!(found.len(), expected.len(), "number of values at {site}");
        let seen = site
            .strip_suffix(".attn.hook_attn_scores")
            .map(|block| self.seen(block));
        let mut absolute = 0.0_f32;
        let mut largest = 0.0_f32;
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            if let Some((time, mask)) = &seen {
                let heads = found.len() / (time * time);
                let (query, key) = (i / (heads * time), i % time);
                if !mask[query * time + key] {
                    continue;
                }
            }
            let distance = (a - b).abs();
            // What is not a number is far away.
            absolute = if distance.is_nan() {
                f32::INFINITY
            } else {
                absolute.max(distance)
            };
            largest = largest.max(b.abs());
        }
        Difference {
            site: site.to_owned(),
            absolute,
            relative: absolute / largest,
        }
    }

    /// Number of positions, and for each query and key whether it is seen.
    fn seen(&self, block: &str) -> (usize, Vec<bool>) {
        let tensors = self.tensors();
        let mask = tensors.tensor(&format!("0:mask:{block}")).unwrap();
        (
            mask.shape()[0],
            mask.data().iter().map(|&seen| seen == 1).collect(),
        )
    }

    /// Every site of a text that the reference holds, recorded in one run.
    pub fn compare_values(&self, model: &Model, text: usize) -> Vec<Difference> {
        let prefix = format!("{text}:");
        let names = self.sites(&prefix);
        assert!(names.iter().any(|name| name == "hook_logits"));
        let found = api::activations(model, &self.ids(text), &names)
            .unwrap_or_else(|error| panic!("text {text}: {error}"));
        names
            .iter()
            .map(|name| {
                let factor = self.factor(name);
                let expected = self.floats(&format!("{prefix}{name}"));
                let expected: Vec<f32> = expected.iter().map(|x| x * factor).collect();
                self.difference(name, &found[name], &expected)
            })
            .collect()
    }

    /// The logits alone, so that nothing else is kept.
    pub fn compare_logits(&self, model: &Model, text: usize) -> Difference {
        let names = ["hook_logits".to_owned()];
        let found = api::activations(model, &self.ids(text), &names)
            .unwrap_or_else(|error| panic!("text {text}: {error}"));
        let expected = self.floats(&format!("{text}:hook_logits"));
        self.difference("hook_logits", &found["hook_logits"], &expected)
    }

    /// The logits of both texts, which differ in length, run together.
    pub fn compare_batch(&self, model: &Model) -> Difference {
        let texts = [self.ids(0), self.ids(1)];
        let texts = texts.each_ref().map(Vec::as_slice);
        let found = api::batch_logits(model, &texts).unwrap_or_else(|error| panic!("{error}"));
        let expected = [0, 1].map(|text| self.floats(&format!("{text}:hook_logits")));
        self.difference("hook_logits", &found, &expected.concat())
    }

    /// The gradient of the loss of text 0 at every site: all of one run where `together`, else one run a site.
    pub fn compare_gradients(&self, model: &Model, together: bool) -> Vec<Difference> {
        let names = self.sites("0:grad:");
        let (ids, targets) = (self.ids(0), self.targets());
        let groups: Vec<&[String]> = if together {
            vec![&names]
        } else {
            names.chunks(1).collect()
        };
        let mut differences = Vec::new();
        for group in groups {
            let expected: Vec<Vec<f32>> = group
                .iter()
                .map(|name| self.floats(&format!("0:grad:{name}")))
                .collect();
            let widths: Vec<usize> = expected.iter().map(|e| e.len() / ids.len()).collect();
            let found = api::gradients(model, &ids, &targets, group, &widths)
                .unwrap_or_else(|error| panic!("{group:?}: {error}"));
            for (name, expected) in group.iter().zip(expected) {
                let factor = self.factor(name);
                let expected: Vec<f32> = expected.iter().map(|x| x / factor).collect();
                differences.push(self.difference(name, &found[name], &expected));
            }
        }
        differences
    }
}

/// The difference that is largest in itself.
pub fn worst(differences: &[Difference]) -> &Difference {
    differences
        .iter()
        .max_by(|a, b| a.absolute.total_cmp(&b.absolute))
        .unwrap()
}

/// The largest relative difference.
pub fn worst_relative(differences: &[Difference]) -> &Difference {
    differences
        .iter()
        .max_by(|a, b| a.relative.total_cmp(&b.relative))
        .unwrap()
}

/// A line a site, for messages.
pub fn table(differences: &[Difference]) -> String {
    let mut text = format!("{:44} {:>10} {:>10}\n", "site", "absolute", "relative");
    for difference in differences {
        text += &format!(
            "{:44} {:10.2e} {:10.2e}\n",
            difference.site, difference.absolute, difference.relative
        );
    }
    text
}
