//! Logit lens, direct logit attribution and activation patching, on the model of every family.

#![allow(clippy::unwrap_used)]

#[path = "common/parity.rs"]
mod parity;

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use parity::{FAMILIES, Reference, family_path};
use pullback_model::analysis::{
    LensOptions, Part, PatchPlace, Patcher, attribute_logit, logit_lens,
};
use pullback_model::{
    Input, Intervention, Model, ModelError, Norm, Place, Positions, Replace, Scale, Site,
};

/// The model of each family with the ids of its first text.
fn families() -> impl Iterator<Item = (&'static str, Model, Vec<u32>)> {
    FAMILIES.iter().map(|(family, files)| {
        let model = Model::load(&family_path(files[0]), &Device::flex()).unwrap();
        (*family, model, Reference::load(family, files[0]).ids(0))
    })
}

fn family(name: &str) -> (Model, Vec<u32>) {
    let (_, model, ids) = families().find(|(family, ..)| *family == name).unwrap();
    (model, ids)
}

fn numbers(x: Tensor<2>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

fn rows(x: Tensor<2>) -> Vec<Vec<f64>> {
    let width = x.dims()[1];
    numbers(x)
        .chunks_exact(width)
        .map(<[f64]>::to_vec)
        .collect()
}

fn record(model: &Model, ids: &[u32], site: Site, changes: &[Intervention]) -> Tensor<2> {
    let input = Input::tokens(ids);
    let mut recorded = model.record(input, &[site], changes).unwrap();
    recorded.remove(&site).unwrap()
}

#[track_caller]
fn close(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!((a - b).abs() <= tolerance, "{what}: {a} and {b}");
}

#[test]
fn the_lens_at_the_last_block_is_the_model_and_below_it_the_model_cut_short() {
    for (family, model, ids) in families() {
        let follow = ids[2];
        let options = LensOptions {
            top: 4,
            follow: Some(follow),
        };
        let lens = logit_lens(&model, &ids, &[], options).unwrap();
        let layers = model.config().n_layers;
        assert_eq!(lens.sites.len(), layers + 1);
        for (number, cells) in lens.cells.iter().enumerate() {
            // The oracle: the residual stream goes into the model above its last block, or is not cut at all.
            let logits = if number == layers {
                record(&model, &ids, Site::logits(), &[])
            } else {
                let stream = record(&model, &ids, lens.sites[number], &[]);
                let input = Input::residual(stream, 1, layers);
                let logits = Site::logits();
                let mut out = model.record(input, &[logits], &[]).unwrap();
                out.remove(&logits).unwrap()
            };
            assert_eq!(cells.len(), ids.len());
            for (cell, logits) in cells.iter().zip(rows(logits)) {
                let total: f64 = logits.iter().map(|x| x.exp()).sum();
                let mut order: Vec<usize> = (0..logits.len()).collect();
                order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
                for (found, &id) in cell.top.iter().zip(&order) {
                    assert_eq!(found.id as usize, id, "{family}");
                    close(f64::from(found.logit), logits[id], 1e-5, family);
                    let probability = f64::from(found.probability);
                    close(probability, logits[id].exp() / total, 1e-6, family);
                }
                assert_eq!(cell.top.len(), 4);
                let found = cell.followed.unwrap();
                let logit = logits[follow as usize];
                close(f64::from(found.logit), logit, 1e-5, family);
                close(
                    f64::from(found.probability),
                    logit.exp() / total,
                    1e-6,
                    family,
                );
                let place = order.iter().position(|&id| id == follow as usize);
                assert_eq!(found.rank, place.unwrap() + 1, "{family}");
            }
        }
    }
}

#[test]
fn the_lens_of_a_text_longer_than_its_chunks_is_that_of_all_positions() {
    let (model, _) = family("llama");
    let vocabulary = model.config().d_vocab as u32;
    let count = model.config().n_ctx.min(150) as u32;
    assert!(count > 64);
    let ids: Vec<u32> = (0..count).map(|i| (i * 7 + 3) % vocabulary).collect();
    let options = LensOptions {
        top: 1,
        follow: None,
    };
    let lens = logit_lens(&model, &ids, &[], options).unwrap();
    let logits = rows(record(&model, &ids, Site::logits(), &[]));
    let last = lens.cells.last().unwrap();
    assert_eq!(last.len(), ids.len());
    for (cell, logits) in last.iter().zip(logits) {
        close(
            f64::from(cell.top[0].logit),
            logits.into_iter().fold(f64::MIN, f64::max),
            1e-5,
            "top logit",
        );
        assert!(cell.followed.is_none());
    }
}

#[test]
fn what_the_lens_would_not_show_is_refused() {
    let (model, ids) = family("llama");
    let options = LensOptions {
        top: 1,
        follow: None,
    };
    let change = Intervention::new(Site::final_normalized(), Arc::new(Scale(2.0)));
    let error = logit_lens(&model, &ids, &[change], options).unwrap_err();
    assert!(error.to_string().contains("would not show"), "{error}");
    let options = LensOptions {
        follow: Some(1_000_000),
        ..options
    };
    let error = logit_lens(&model, &ids, &[], options).unwrap_err();
    assert!(error.to_string().contains("token id 1000000"), "{error}");
}

/// The logits before their cap, from the stream after the final norm: `[positions][vocabulary]`.
fn uncapped(model: &Model, ids: &[u32], changes: &[Intervention]) -> Vec<Vec<f64>> {
    let normalised = record(model, ids, Site::final_normalized(), changes);
    rows(model.unembed(normalised))
}

#[test]
fn contributions_sum_to_the_logit_in_every_family() {
    for (family, model, ids) in families() {
        let config = model.config();
        let logits = uncapped(&model, &ids, &[]);
        for (position, token, versus) in [
            (ids.len() - 1, ids[0], None),
            (ids.len() - 1, ids[1], Some(ids[2])),
            (0, ids[3], None),
        ] {
            let sum = attribute_logit(&model, &ids, position, token, versus, &[]).unwrap();
            let of = |id: u32| logits[position][id as usize];
            let expected = of(token) - versus.map_or(0.0, of);
            close(sum.logit, expected, 1e-4, family);
            let total: f64 = sum.contributions.iter().map(|c| c.value).sum();
            close(total, expected, 1e-4, family);
            close(sum.remainder, 0.0, 1e-4, family);
            let largest = sum.contributions.iter().map(|c| c.value.abs());
            assert!(largest.fold(0.0, f64::max) > 1e-2, "{family}");
            let count = |keep: fn(&Part) -> bool| {
                let parts = sum.contributions.iter().map(|c| c.part);
                parts.filter(keep).count()
            };
            assert_eq!(
                count(|part| matches!(part, Part::Head { .. })),
                config.n_layers * config.n_heads
            );
            assert_eq!(
                count(|part| matches!(part, Part::Mlp { .. })),
                config.n_layers
            );
            assert_eq!(
                count(|part| *part == Part::Position) == 1,
                config.rotary.is_none()
            );
            assert_eq!(
                count(|part| *part == Part::FinalBias) == 1,
                config.norm == Norm::Layer
            );
            assert_eq!(
                count(|part| matches!(part, Part::AttentionBias { .. })),
                if config.attn_out_bias {
                    config.n_layers
                } else {
                    0
                }
            );
        }
    }
}

/// The contribution of one head, from what it adds to the output of attention, number by number.
#[test]
fn heads_get_what_their_results_give() {
    for (family, model, ids) in families() {
        let config = model.config();
        let (position, token) = (ids.len() - 1, ids[0]);
        let sum = attribute_logit(&model, &ids, position, token, None, &[]).unwrap();
        let found: HashMap<Part, f64> = sum
            .contributions
            .iter()
            .map(|c| (c.part, c.value))
            .collect();
        let site = |name: &str| -> Site { name.parse().unwrap() };
        let row = |site: Site| rows(record(&model, &ids, site, &[]))[position].clone();
        let centred = |x: &[f64]| -> Vec<f64> {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let mean = if config.norm == Norm::Layer {
                mean
            } else {
                0.0
            };
            x.iter().map(|x| x - mean).collect()
        };
        let output = rows(model.unembedding())[token as usize].clone();
        let gain: Vec<f64> = model
            .final_gain()
            .clone()
            .into_data()
            .iter::<f64>()
            .collect();
        let scale = row(site("ln_final.hook_scale"))[0];
        let logit_of = |part: &[f64]| -> f64 {
            let part = centred(part);
            (0..config.d_model)
                .map(|i| output[i] * gain[i] * part[i] / scale)
                .sum()
        };
        for layer in 0..config.n_layers {
            let at = |name: &str| site(&format!("blocks.{layer}.{name}"));
            let results = row(at("attn.hook_result"));
            // Gain over scale of the norm after attention, from its input and output.
            let factor: Option<Vec<f64>> = config.post_norms.then(|| {
                let inside: Vec<f64> = (0..config.d_model)
                    .map(|i| results.iter().skip(i).step_by(config.d_model).sum())
                    .collect();
                let outside = row(at("ln1_post.hook_normalized"));
                inside.iter().zip(outside).map(|(x, y)| y / x).collect()
            });
            for (head, result) in results.chunks_exact(config.d_model).enumerate() {
                let mut result = result.to_vec();
                if let Some(factor) = &factor {
                    result.iter_mut().zip(factor).for_each(|(x, f)| *x *= f);
                }
                let what = format!("{family}, block {layer}, head {head}");
                close(
                    found[&Part::Head { layer, head }],
                    logit_of(&result),
                    1e-4,
                    &what,
                );
            }
            let mlp = logit_of(&row(at("hook_mlp_out")));
            close(found[&Part::Mlp { layer }], mlp, 1e-4, family);
        }
        let embedding = logit_of(&row(Site::embed()));
        close(found[&Part::Embedding], embedding, 1e-4, family);
    }
}

#[test]
fn attribution_under_interventions_keeps_its_sum_or_says_what_is_left() {
    let (model, ids) = family("gpt_neox");
    let position = ids.len() - 1;
    let run = |name: &str| {
        let change = Intervention::new(name.parse().unwrap(), Arc::new(Scale(3.0)));
        let plain = attribute_logit(&model, &ids, position, ids[0], None, &[]).unwrap();
        let changed = [change];
        let logit = uncapped(&model, &ids, &changed)[position][ids[0] as usize];
        let sum = attribute_logit(&model, &ids, position, ids[0], None, &changed).unwrap();
        close(sum.logit, logit, 1e-4, name);
        assert!(
            (sum.logit - plain.logit).abs() > 1e-3,
            "{name} does nothing"
        );
        sum.remainder
    };
    close(run("0.attn.result"), 0.0, 1e-4, "head results");
    close(run("1.attn.z"), 0.0, 1e-4, "heads");
    close(run("1.mlp_out"), 0.0, 1e-4, "MLP");
    // What is put into the stream itself belongs to no part.
    assert!(run("1.resid_pre").abs() > 1e-3);
}

#[test]
fn an_attribution_of_what_does_not_exist_is_refused() {
    let (model, ids) = family("llama");
    let error = attribute_logit(&model, &ids, ids.len(), 0, None, &[]).unwrap_err();
    assert!(error.to_string().contains("is not in the text"), "{error}");
    let error = attribute_logit(&model, &ids, 0, 0, Some(u32::MAX), &[]).unwrap_err();
    assert!(error.to_string().contains("token id"), "{error}");
}

/// Another text of the same length: half of its tokens are changed.
fn corrupted(ids: &[u32]) -> Vec<u32> {
    let half = ids.len() / 2;
    let mut other = ids.to_vec();
    other[1..half].reverse();
    other[0] = ids[ids.len() - 1];
    assert_ne!(other, ids);
    other
}

/// Logit of `answer` minus that of `other` after the last position, the text run whole.
fn metric(model: &Model, ids: &[u32], [answer, other]: [u32; 2], changes: &[Intervention]) -> f64 {
    let logits = model.next_logits(ids, changes).unwrap();
    f64::from(logits[answer as usize]) - f64::from(logits[other as usize])
}

#[test]
fn patches_are_what_each_does_alone_from_the_tokens_on() {
    for (family, model, mut clean) in families() {
        clean.truncate(7);
        let corrupted = corrupted(&clean);
        let pair = [clean[1], clean[2]];
        for place in PatchPlace::ALL {
            let patcher = Patcher::new(&model, [&clean, &corrupted], place, pair, &[]).unwrap();
            let expected = metric(&model, &clean, pair, &[]);
            close(patcher.clean_metric(), expected, 1e-5, family);
            let expected = metric(&model, &corrupted, pair, &[]);
            close(patcher.corrupted_metric(), expected, 1e-5, family);
            let mut seen = Vec::new();
            let grid = patcher
                .grid(|done, all| {
                    seen.push((done, all));
                    true
                })
                .unwrap();
            assert_eq!(seen.len(), model.config().n_layers);
            let mut spread = 0.0_f64;
            for (layer, metrics) in grid.metrics.iter().enumerate() {
                let site = place.site(layer);
                let with = record(&model, &clean, site, &[]);
                let replace = Intervention::new(site, Arc::new(Replace { with }));
                assert_eq!(metrics.len(), patcher.width());
                for (index, &found) in metrics.iter().enumerate() {
                    let alone = if place.by_head() {
                        replace.clone().on_heads(vec![index])
                    } else {
                        replace.clone().at_positions(Positions::List(vec![index]))
                    };
                    let expected = metric(&model, &corrupted, pair, &[alone]);
                    let what = format!("{family}, {site}, {index}");
                    close(found, expected, 1e-5, &what);
                    spread = spread.max((found - patcher.corrupted_metric()).abs());
                }
            }
            assert!(spread > 1e-4, "{family}: no patch of {place} does anything");
        }
    }
}

#[test]
fn the_whole_stream_patched_is_the_clean_text() {
    let (model, clean) = family("gemma3_text");
    let corrupted = corrupted(&clean);
    let pair = [clean[1], clean[2]];
    let place = PatchPlace::ResidPre;
    let patcher = Patcher::new(&model, [&clean, &corrupted], place, pair, &[]).unwrap();
    assert!((patcher.clean_metric() - patcher.corrupted_metric()).abs() > 1e-3);
    let all: Vec<usize> = (0..clean.len()).collect();
    for layer in 0..model.config().n_layers {
        let metrics = patcher.patch(layer, &[vec![], all.clone()]).unwrap();
        let normalised = |i: usize| patcher.normalised(metrics[i]).unwrap();
        close(normalised(0), 0.0, 1e-4, "nothing patched");
        close(normalised(1), 1.0, 1e-4, "all patched");
    }
}

#[test]
fn patches_under_interventions_are_what_each_does_alone() {
    let (model, mut clean) = family("gpt2");
    clean.truncate(6);
    let corrupted = corrupted(&clean);
    let pair = [clean[1], clean[2]];
    let scale = |name: &str| Intervention::new(name.parse().unwrap(), Arc::new(Scale(1.7)));
    let changes = [
        scale("hook_embed"),
        scale("0.mlp_out"),
        scale("1.resid_pre"),
        scale("1.attn_out"),
        scale("ln_final.normalized"),
        scale("logits"),
    ];
    for place in PatchPlace::ALL {
        let patcher = Patcher::new(&model, [&clean, &corrupted], place, pair, &changes).unwrap();
        let site = place.site(1);
        let with = record(&model, &clean, site, &changes);
        let found = patcher.patch(1, &[vec![0], vec![1]]).unwrap();
        for (index, &found) in found.iter().enumerate() {
            let patch = Intervention::new(site, Arc::new(Replace { with: with.clone() }));
            let patch = if place.by_head() {
                patch.on_heads(vec![index])
            } else {
                patch.at_positions(Positions::List(vec![index]))
            };
            let all: Vec<Intervention> = changes.iter().cloned().chain([patch]).collect();
            let expected = metric(&model, &corrupted, pair, &all);
            close(found, expected, 1e-4, &format!("{site}, {index}"));
        }
    }
}

#[test]
fn patching_that_cannot_be_is_refused_and_work_can_be_stopped() {
    let (model, clean) = family("llama");
    let (short, place) = (&clean[..clean.len() - 1], PatchPlace::MlpOut);
    let error = Patcher::new(&model, [&clean, short], place, [0, 1], &[]).unwrap_err();
    let text = error.to_string();
    let lengths = format!("have {} and {}", clean.len(), short.len());
    assert!(text.contains(&lengths) && text.contains('['), "{text}");
    let one = Intervention::new(Site::embed(), Arc::new(Scale(2.0))).in_sequence(0);
    let error = Patcher::new(&model, [&clean, &clean], place, [0, 1], &[one]).unwrap_err();
    assert!(error.to_string().contains("sequence"), "{error}");
    let patcher = Patcher::new(&model, [&clean, &clean], place, [0, 1], &[]).unwrap();
    assert_eq!(patcher.normalised(0.3), None);
    assert!(patcher.patch(99, &[vec![0]]).is_err());
    let error = patcher.patch(0, &[vec![clean.len()]]).unwrap_err();
    assert!(error.to_string().contains("no position"), "{error}");
    let stopped = patcher.grid(|done, _| done < 1);
    assert!(matches!(stopped, Err(ModelError::Stopped)));
    let error = "resid_mid".parse::<PatchPlace>().unwrap_err();
    assert!(error.to_string().contains("attn_out"), "{error}");
    assert_eq!("z".parse::<PatchPlace>().unwrap(), PatchPlace::Z);
    assert_eq!(PatchPlace::Z.site(1).place(), Place::Mixed);
}
