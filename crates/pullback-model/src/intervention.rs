//! Changes made to activations while the model runs.

use std::fmt;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use crate::site::Site;

/// Where in the text the rows of an activation stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Sequences.
    pub batch: usize,
    /// Positions of each in this call; the rows are `batch × time`.
    pub time: usize,
    /// Position of the first row of each sequence.
    pub start: usize,
}

impl Rows {
    /// Position of a row.
    pub fn position(&self, row: usize) -> usize {
        self.start + row % self.time
    }

    /// `[rows, 1]`: one where the row's position is at least `first`, else zero; `None` when all are.
    pub fn mask_from(&self, first: usize, like: &Tensor<2>) -> Option<Tensor<2>> {
        if self.start >= first {
            return None;
        }
        let rows = self.batch * self.time;
        let mask: Vec<f32> = (0..rows)
            .map(|row| {
                if self.position(row) >= first {
                    1.0
                } else {
                    0.0
                }
            })
            .collect();
        let options = (&like.device(), like.dtype());
        Some(Tensor::from_data(TensorData::new(mask, [rows, 1]), options))
    }
}

/// A change of an activation `[batch·time, width]` to another of the same shape.
pub trait Edit: Send + Sync {
    /// The changed activation. Burn operations keep it differentiable.
    fn apply(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2>;

    /// A few words for messages.
    fn describe(&self) -> String;
}

/// An [`Edit`] at a [`Site`]. Several at one site are applied in the order given.
#[derive(Clone)]
pub struct Intervention {
    site: Site,
    edit: Arc<dyn Edit>,
}

impl fmt::Debug for Intervention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Intervention({} at {})", self.edit.describe(), self.site)
    }
}

impl Intervention {
    /// An intervention.
    pub fn new(site: Site, edit: Arc<dyn Edit>) -> Self {
        Self { site, edit }
    }

    /// Where it acts.
    pub fn site(&self) -> Site {
        self.site
    }

    pub(crate) fn apply(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let before = x.dims();
        let after = self.edit.apply(x, rows);
        assert_eq!(
            before,
            after.dims(),
            "{} at {} must keep the shape of the activation",
            self.edit.describe(),
            self.site
        );
        after
    }
}

/// Adds one vector `[width]` at every position from `first_position` on.
pub struct AddVector {
    /// What is added.
    pub vector: Tensor<1>,
    /// The first position it is added at.
    pub first_position: usize,
}

impl Edit for AddVector {
    fn apply(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let vector: Tensor<2> = self.vector.clone().unsqueeze();
        match rows.mask_from(self.first_position, &x) {
            Some(mask) => x + mask.matmul(vector),
            None => x + vector,
        }
    }

    fn describe(&self) -> String {
        "adding a vector".to_owned()
    }
}

/// Sets the activation to zero (from `first_position` on).
pub struct Zero {
    /// The first position that is zeroed.
    pub first_position: usize,
}

impl Edit for Zero {
    fn apply(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        match rows.mask_from(self.first_position, &x) {
            Some(mask) => x.clone() - x * mask,
            None => x.zeros_like(),
        }
    }

    fn describe(&self) -> String {
        "zero ablation".to_owned()
    }
}
