//! Keys and values of the positions seen so far, for generation.

use burn::tensor::Tensor;

use crate::intervention::Rows;

/// Keys (after the rotary embedding) and values of one block: a pair a sequence.
#[derive(Clone, Debug)]
pub(crate) struct LayerMemory {
    sequences: Vec<Option<(Tensor<2>, Tensor<2>)>>,
}

impl LayerMemory {
    /// Adds the new rows of each sequence, and gives the keys and values of all positions of the sequences that have
    /// new rows.
    pub(crate) fn extend(
        &mut self,
        rows: &Rows,
        k: Tensor<2>,
        v: Tensor<2>,
    ) -> (Tensor<2>, Tensor<2>) {
        let mut first = 0;
        let mut all = (Vec::new(), Vec::new());
        let alone = rows.sequences().len() == 1;
        for (memory, &(_, length)) in self.sequences.iter_mut().zip(rows.sequences()) {
            if length == 0 {
                continue;
            }
            let part = |x: &Tensor<2>| {
                if alone {
                    x.clone()
                } else {
                    x.clone().narrow(0, first, length)
                }
            };
            let (mut keys, mut values) = (part(&k), part(&v));
            first += length;
            if let Some((old_keys, old_values)) = memory.take() {
                keys = Tensor::cat(vec![old_keys, keys], 0);
                values = Tensor::cat(vec![old_values, values], 0);
            }
            *memory = Some((keys.clone(), values.clone()));
            all.0.push(keys);
            all.1.push(values);
        }
        if alone {
            if let (Some(keys), Some(values)) = (all.0.pop(), all.1.pop()) {
                return (keys, values);
            }
            return (k, v);
        }
        (Tensor::cat(all.0, 0), Tensor::cat(all.1, 0))
    }

    /// How many positions each sequence has, zero for those without new rows.
    pub(crate) fn lengths(&self, rows: &Rows) -> Vec<usize> {
        let stored = |memory: &Option<(Tensor<2>, Tensor<2>)>| {
            memory.as_ref().map_or(0, |(keys, _)| keys.dims()[0])
        };
        let sequences = self.sequences.iter().zip(rows.sequences());
        sequences
            .map(|(memory, &(_, new))| if new == 0 { 0 } else { stored(memory) })
            .collect()
    }
}

/// Keys and values of all blocks, for one or several sequences.
#[derive(Clone, Debug)]
pub struct KeyValueCache {
    pub(crate) blocks: Vec<LayerMemory>,
    pub(crate) lengths: Vec<usize>,
}

impl KeyValueCache {
    /// An empty cache, for one sequence.
    pub fn new(n_layers: usize) -> Self {
        Self::for_batch(n_layers, 1)
    }

    /// An empty cache for several sequences.
    pub fn for_batch(n_layers: usize, sequences: usize) -> Self {
        let empty = LayerMemory {
            sequences: vec![None; sequences],
        };
        Self {
            blocks: vec![empty; n_layers],
            lengths: vec![0; sequences],
        }
    }

    /// Positions that it holds of the longest sequence.
    pub fn len(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Positions that it holds of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
