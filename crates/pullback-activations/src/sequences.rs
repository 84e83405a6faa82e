//! Running a model over sequences, and the rows that come of it.

use pullback_artifact::{Control, Stage};
use pullback_model::{Input, Model, Site, SiteError};
use serde::{Deserialize, Serialize};

use crate::store::ShardRows;
use crate::{ActivationError, Flags, Sequence};

/// Rows with a norm above this many medians are marked as outliers (the rule of `dictionary_learning`'s
/// buffer).
const OUTLIER_MEDIANS: f64 = 10.0;

/// What is counted while rows are marked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) rows: usize,
    pub(crate) outliers: usize,
    pub(crate) held_out: usize,
    pub(crate) first_norm_sum: f64,
    pub(crate) firsts: usize,
}

/// Widths of the sites, which are the same for all texts.
///
/// # Errors
/// No site is given, one is given twice, does not exist, or is as wide as the text is long.
pub(crate) fn widths(model: &Model, sites: &[Site]) -> Result<Vec<usize>, ActivationError> {
    if sites.is_empty() {
        return Err(ActivationError::Option(
            "at least one site is needed".to_owned(),
        ));
    }
    let mut widths = Vec::with_capacity(sites.len());
    for (number, &site) in sites.iter().enumerate() {
        if sites[..number].contains(&site) {
            return Err(ActivationError::Option(format!(
                "{site} is given more than once"
            )));
        }
        let place = site.check(model.config())?.place();
        widths.push(place.width(model.config()).ok_or_else(|| {
            ActivationError::Option(format!(
                "{site} cannot be harvested: its width is the length of the text; a site of one width is needed"
            ))
        })?);
    }
    Ok(widths)
}

/// Runs sequences, `batch` together, and returns the rows of each site; the first sequence has the number `first`. Nothing
/// above the highest site is computed.
pub(crate) fn run(
    model: &Model,
    sites: &[Site],
    sequences: &[&Sequence],
    (first, batch): (usize, usize),
    control: &Control,
    stage: Option<&Stage>,
) -> Result<Vec<ShardRows>, ActivationError> {
    let mut common = ShardRows::default();
    let mut activations: Vec<Vec<f32>> = vec![Vec::new(); sites.len()];
    for (batch_number, together) in sequences.chunks(batch).enumerate() {
        control.check()?;
        let ids: Vec<u32> = together
            .iter()
            .flat_map(|sequence| sequence.ids.iter().copied())
            .collect();
        let input = Input::uniform(ids.clone(), together.len());
        let mut recorded = model.record(input, sites, &[])?;
        for (site, activations) in sites.iter().zip(&mut activations) {
            let found = recorded.remove(site).ok_or_else(|| SiteError::NotReached {
                site: *site,
                reached: "the run recorded nothing there".to_owned(),
            })?;
            let found = found.into_data().try_into_vec::<f32>().map_err(|error| {
                ActivationError::Option(format!(
                    "activations are kept in f32, the model runs in another type: {error:?}"
                ))
            })?;
            activations.extend(found);
        }
        for (place, sequence) in together.iter().enumerate() {
            let index = first + batch_number * batch + place;
            for position in 0..sequence.ids.len() {
                let mut flags = 0;
                if position == 0 {
                    flags |= Flags::FIRST.0;
                }
                if sequence.held_out {
                    flags |= Flags::HELD_OUT.0;
                }
                common.flags.push(flags);
                common.positions.push(position as u32);
                common.sequences.push(index as u32);
            }
        }
        common.tokens.extend(&ids);
        if let Some(stage) = stage {
            stage.advance(ids.len() as u64);
        }
    }
    Ok(activations
        .into_iter()
        .map(|activations| ShardRows {
            activations,
            ..common.clone()
        })
        .collect())
}

/// Marks outliers; the median norm is that of these rows where none is given yet.
pub(crate) fn mark(rows: &mut ShardRows, d: usize, median: &mut Option<f64>) -> Summary {
    let norms: Vec<f64> = rows
        .activations
        .chunks_exact(d)
        .map(|row| {
            let squares = row.iter().map(|&x| f64::from(x) * f64::from(x));
            squares.sum::<f64>().sqrt()
        })
        .collect();
    let median = *median.get_or_insert_with(|| median_of(&norms, &rows.flags));
    let mut summary = Summary {
        rows: rows.len(),
        outliers: 0,
        held_out: 0,
        first_norm_sum: 0.0,
        firsts: 0,
    };
    for (&norm, flags) in norms.iter().zip(&mut rows.flags) {
        if *flags & Flags::FIRST.0 != 0 {
            summary.first_norm_sum += norm;
            summary.firsts += 1;
        } else if norm > OUTLIER_MEDIANS * median || !norm.is_finite() {
            *flags |= Flags::OUTLIER.0;
            summary.outliers += 1;
        }
        summary.held_out += usize::from(*flags & Flags::HELD_OUT.0 != 0);
    }
    summary
}

/// Median norm of the rows that are not first.
fn median_of(norms: &[f64], flags: &[u8]) -> f64 {
    let mut rest: Vec<f64> = norms
        .iter()
        .zip(flags)
        .filter(|(norm, flags)| **flags & Flags::FIRST.0 == 0 && norm.is_finite())
        .map(|(&norm, _)| norm)
        .collect();
    rest.sort_by(f64::total_cmp);
    rest.get(rest.len() / 2).copied().unwrap_or(0.0)
}
