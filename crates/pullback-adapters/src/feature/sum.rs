//! The sum of two maps of codes.

use std::collections::BTreeMap;

use super::map::Support;

impl Support {
    /// The map that adds what both add, with its values; `None` where no map of these kinds does.
    pub(crate) fn plus(
        &self,
        own: &[Vec<f32>],
        other: &Self,
        others: &[Vec<f32>],
    ) -> Option<(Self, Vec<Vec<f32>>)> {
        let union = |a: Vec<(u32, u32)>, b: Vec<(u32, u32)>| {
            let mut sums = BTreeMap::new();
            for (entries, values) in [(a, &own[0]), (b, &others[0])] {
                for (entry, value) in entries.into_iter().zip(values) {
                    *sums.entry(entry).or_insert(0.0) += value;
                }
            }
            sums.into_iter().unzip::<(u32, u32), f32, Vec<_>, Vec<_>>()
        };
        let pairs = |features: &[u32]| features.iter().map(|&i| (i, 0)).collect::<Vec<_>>();
        match (self, other) {
            (
                Self::Bias {
                    features: a,
                    active_only: one,
                },
                Self::Bias {
                    features: b,
                    active_only: two,
                },
            ) if one == two => {
                let (entries, values) = union(pairs(a), pairs(b));
                let features = entries.into_iter().map(|(i, _)| i).collect();
                let active_only = *one;
                Some((
                    Self::Bias {
                        features,
                        active_only,
                    },
                    vec![values],
                ))
            }
            (Self::Sparse { pairs: a }, Self::Sparse { pairs: b }) => {
                let (pairs, values) = union(a.clone(), b.clone());
                Some((Self::Sparse { pairs }, vec![values]))
            }
            (
                Self::LowRank {
                    rank: r,
                    read: a,
                    write: c,
                },
                Self::LowRank {
                    rank: s,
                    read: b,
                    write: e,
                },
            ) => {
                // Columns of the second follow those of the first.
                let join = |part: usize, a: &[(u32, u32)], b: &[(u32, u32)]| {
                    let shifted = b.iter().map(|&(i, column)| (i, column + *r as u32));
                    let entries = a.iter().copied().chain(shifted);
                    let values = own[part].iter().chain(&others[part]).copied();
                    let mut joined: Vec<((u32, u32), f32)> = entries.zip(values).collect();
                    joined.sort_unstable_by_key(|&(entry, _)| entry);
                    joined.into_iter().unzip::<_, _, Vec<_>, Vec<_>>()
                };
                let (read, read_values) = join(0, a, b);
                let (write, write_values) = join(1, c, e);
                let rank = r + s;
                Some((
                    Self::LowRank { rank, read, write },
                    vec![read_values, write_values],
                ))
            }
            _ => None,
        }
    }
}
