//! `--record`: what sites held, as a safetensors file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use pullback_model::{Input, Intervention, ModelConfig, Site};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::{Inside, token};
use crate::context::{App, NamedModel};

pub(super) fn run(
    app: &App,
    inside: &Inside,
    named: &NamedModel,
    ids: &[u32],
    interventions: &[Intervention],
    output: &Path,
) -> anyhow::Result<()> {
    let model = &named.model;
    let mut sites = inside.record.clone();
    sites.sort_unstable();
    sites.dedup();
    let mut recorded = model.record(Input::tokens(ids), &sites, interventions)?;
    let mut tensors = Vec::with_capacity(sites.len());
    for &site in &sites {
        let Some(values) = recorded.remove(&site) else {
            bail!("{site} was not recorded");
        };
        let [rows, width] = values.dims();
        let bytes: Vec<u8> = values
            .into_data()
            .iter::<f32>()
            .flat_map(f32::to_le_bytes)
            .collect();
        tensors.push((site, shape(model.config(), site, rows, width), bytes));
    }
    let metadata = BTreeMap::from([
        ("program", format!("pullback {}", env!("CARGO_PKG_VERSION"))),
        ("model", named.name.clone()),
        ("digest", model.digest().to_owned()),
        ("ids", serde_json::to_string(ids)?),
    ]);
    pullback_artifact::write_atomic(output, &serialized(&tensors, &metadata)?)?;
    let sites: Vec<_> = tensors
        .iter()
        .map(|(site, shape, _)| json!({ "site": site.to_string(), "shape": shape }))
        .collect();
    let result = json!({
        "file": output,
        "ids": ids,
        "tokens": token::texts(model, ids),
        "sites": sites,
    });
    app.print(&result, || {
        let lines = tensors
            .iter()
            .map(|(site, shape, _)| format!("{:32} {shape:?}\n", site.to_string()));
        lines.collect::<String>() + &format!("in {}\n", output.display())
    })
}

/// `[tokens, …]`, with heads apart.
fn shape(config: &ModelConfig, site: Site, rows: usize, width: usize) -> Vec<usize> {
    match site.place().heads(config) {
        Some(heads) => vec![rows, heads, width / heads],
        None => vec![rows, width],
    }
}

/// The file. The library writes metadata in an order that differs from run to run; here they are in order, so that equal
/// work leaves equal bytes.
fn serialized(
    tensors: &[(Site, Vec<usize>, Vec<u8>)],
    metadata: &BTreeMap<&str, String>,
) -> anyhow::Result<Vec<u8>> {
    let views = tensors
        .iter()
        .map(|(site, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes)?;
            Ok((site.to_string(), view))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let plain = safetensors::serialize(views, None)?;
    let broken = "the file cannot be put together";
    let (length, rest) = plain.split_first_chunk::<8>().context(broken)?;
    let length = usize::try_from(u64::from_le_bytes(*length))?;
    let (header, data) = rest.split_at_checked(length).context(broken)?;
    let header = std::str::from_utf8(header)?.trim_end();
    let entries = header.strip_prefix('{').context(broken)?;
    let metadata = serde_json::to_string(metadata)?;
    let mut header = format!("{{\"__metadata__\":{metadata},{entries}");
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let length = (header.len() as u64).to_le_bytes();
    Ok([&length[..], header.as_bytes(), data].concat())
}
