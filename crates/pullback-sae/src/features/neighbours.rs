//! Which rows of one matrix point where the rows of another do.

use pullback_artifact::Control;
use pullback_kernels::{Matrix, Threads, product};
use rayon::prelude::*;

use super::largest::largest;
use crate::SaeError;

/// Products of one block of rows with all others, in numbers.
const BLOCK: usize = 1 << 23;

/// The rows of `[n, d]`, each scaled to length one; a row of zeros, or one that is not finite, becomes zeros.
pub(crate) fn unit_rows(rows: &[f32], d: usize) -> Vec<f32> {
    let mut out = rows.to_vec();
    out.par_chunks_exact_mut(d).for_each(|row| {
        let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let factor = squares.sqrt().recip();
        for x in row {
            let scaled = (f64::from(*x) * factor) as f32;
            *x = if factor.is_finite() && scaled.is_finite() {
                scaled
            } else {
                0.0
            };
        }
    });
    out
}

/// For each of the rows `wanted` of `rows [n, d]` (all of them of length one or zero) its products with all of
/// `others [m, d]`, block by block: `see` gets the number of the block's first row within `wanted` and the cosines
/// `[block, m]`.
pub(crate) fn cosines(
    rows: &[f32],
    wanted: &[usize],
    others: &[f32],
    d: usize,
    control: &Control,
    mut see: impl FnMut(usize, &[f32]),
) -> Result<(), SaeError> {
    let m = others.len() / d;
    let block = (BLOCK / m.max(1)).clamp(1, 512);
    let stage = control.stage("nearest decoder rows", wanted.len() as u64, "features");
    for (number, features) in wanted.chunks(block).enumerate() {
        control.check()?;
        let chosen: Vec<f32> = features
            .iter()
            .flat_map(|&feature| &rows[feature * d..(feature + 1) * d])
            .copied()
            .collect();
        let cosines = product(
            Matrix::new(&chosen, features.len(), d, d),
            Matrix::new(others, m, d, d).transposed(),
            Threads::All,
        );
        see(number * block, &cosines);
        stage.advance(features.len() as u64);
    }
    stage.finish();
    Ok(())
}

/// For each of the rows `wanted` of `rows [n, d]` the `count` other rows of highest cosine, with that cosine.
pub(super) fn nearest(
    rows: &[f32],
    wanted: &[usize],
    d: usize,
    count: usize,
    control: &Control,
) -> Result<Vec<Vec<(u32, f32)>>, SaeError> {
    let unit = unit_rows(rows, d);
    let m = rows.len() / d;
    let mut found: Vec<Vec<(u32, f32)>> = Vec::with_capacity(wanted.len());
    cosines(&unit, wanted, &unit, d, control, |first, cosines| {
        found.par_extend(
            cosines
                .par_chunks_exact(m)
                .enumerate()
                .map(|(at, cosines)| largest(cosines, count, |other| other != wanted[first + at])),
        );
    })?;
    Ok(found)
}
