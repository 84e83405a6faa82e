//! A store in memory, of sequences whose lengths may differ.

use std::path::PathBuf;

use pullback_artifact::{Manifest, ModelRef};
use pullback_model::Site;

use crate::sequences::mark;
use crate::store::ShardRows;
use crate::{ActivationError, ActivationStore, Flags, STORE_KIND, StoreInfo};

impl ActivationStore {
    /// A store that is nowhere on disk: `activations [rows, d]` of a site on sequences of tokens, all of them held out. Rows
    /// are marked as those of a harvest are. [`StoreInfo::context`] is the length of the longest sequence; what goes by
    /// sequences of one length, such as [`ActivationStore::sequence_starts`], is for texts whose sequences have one.
    ///
    /// `label` is what errors call it.
    ///
    /// # Errors
    /// There are no tokens, or not one activation of width `d` for each.
    pub fn of_text(
        label: &str,
        model: ModelRef,
        (site, d): (Site, usize),
        sequences: &[&[u32]],
        activations: Vec<f32>,
    ) -> Result<Self, ActivationError> {
        let rows: usize = sequences.iter().map(|ids| ids.len()).sum();
        if rows == 0 || d == 0 || activations.len() != rows * d {
            return Err(ActivationError::Option(format!(
                "{} numbers are not the activations of width {d} of {rows} tokens, of which there must be some",
                activations.len()
            )));
        }
        let mut shard = ShardRows {
            activations,
            tokens: sequences.concat(),
            ..ShardRows::default()
        };
        for (number, ids) in sequences.iter().enumerate() {
            for position in 0..ids.len() {
                let first = if position == 0 { Flags::FIRST.0 } else { 0 };
                shard.flags.push(first | Flags::HELD_OUT.0);
                shard.positions.push(position as u32);
                shard.sequences.push(number as u32);
            }
        }
        let mut median = None;
        let summary = mark(&mut shard, d, &mut median);
        let info = StoreInfo {
            site,
            d,
            rows,
            shard_rows: vec![rows],
            context: sequences.iter().map(|ids| ids.len()).max().unwrap_or(0),
            prepend_bos: false,
            median_norm: median.unwrap_or(0.0),
            outliers: summary.outliers,
            held_out: rows,
        };
        let manifest = Manifest::new(STORE_KIND, 0)
            .with_site(site.to_string())
            .with_model(model);
        Ok(Self::in_memory(PathBuf::from(label), manifest, info, shard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_marked_and_refused_when_they_do_not_fit() {
        let model = || ModelRef {
            name: "none".to_owned(),
            digest: "sha256:0".to_owned(),
        };
        let site = Site::resid_post(0);
        let sequences: [&[u32]; 2] = [&[1, 2, 3], &[4, 5]];
        // The first rows are large, as sinks are; the row of token 5 is a hundred times the usual.
        let x = vec![50.0, 0.0, 1.0, 0.0, 0.0, 1.0, 60.0, 0.0, 100.0, 0.0];
        let store =
            ActivationStore::of_text("text", model(), (site, 2), &sequences, x.clone()).unwrap();
        assert_eq!(store.normal_rows(true), [1, 2]);
        assert_eq!(store.normal_rows(false), [0_u32; 0]);
        assert_eq!((store.len(), store.info().context), (5, 3));
        assert_eq!((store.position(4), store.sequence(4)), (1, 1));
        assert_eq!((store.token(4), store.row(4)), (5, &[100.0, 0.0][..]));
        let wrong = ActivationStore::of_text("text", model(), (site, 3), &sequences, x);
        let error = wrong.unwrap_err().to_string();
        assert!(
            error.contains("10 numbers") && error.contains('5'),
            "{error}"
        );
        assert!(ActivationStore::of_text("text", model(), (site, 2), &[], Vec::new()).is_err());
    }
}
