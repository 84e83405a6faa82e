//! Changes made to activations while the model runs.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Bool, Tensor, TensorData};

use crate::site::Site;

/// Where in the text the rows of an activation stand: one or several sequences, whose rows follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The position of the first row of each sequence, and how many rows it has.
    sequences: Vec<(usize, usize)>,
}

impl Rows {
    /// Rows of sequences that begin at position 0.
    pub fn new(lengths: &[usize]) -> Self {
        Self {
            sequences: lengths.iter().map(|&length| (0, length)).collect(),
        }
    }

    /// Rows of sequences that each go on from a position: pairs of first position and length.
    pub fn going_on(sequences: Vec<(usize, usize)>) -> Self {
        Self { sequences }
    }

    /// Rows of `batch` sequences of `time` positions, the first at `start`.
    pub fn uniform(batch: usize, time: usize, start: usize) -> Self {
        Self {
            sequences: vec![(start, time); batch],
        }
    }

    /// The first position and the number of rows of each sequence.
    pub fn sequences(&self) -> &[(usize, usize)] {
        &self.sequences
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.sequences.iter().map(|(_, length)| length).sum()
    }

    /// The positions of all rows.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        let of = |&(start, length): &(usize, usize)| start..start + length;
        self.sequences.iter().flat_map(of)
    }

    /// `[rows, 1]`: one where the row's position is at least `first`, else zero; `None` when all are.
    pub fn mask_from(&self, first: usize, like: &Tensor<2>) -> Option<Tensor<2>> {
        if self.sequences.iter().all(|&(start, _)| start >= first) {
            return None;
        }
        let mask: Vec<f32> = self
            .positions()
            .map(|position| if position >= first { 1.0 } else { 0.0 })
            .collect();
        let rows = mask.len();
        let options = (&like.device(), like.dtype());
        Some(Tensor::from_data(TensorData::new(mask, [rows, 1]), options))
    }
}

/// A change of an activation `[rows, width]` to another of the same shape.
pub trait Edit: Send + Sync {
    /// The changed activation. Burn operations keep it differentiable.
    fn apply(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2>;

    /// The derivative of [`Edit::apply`] at `x` in the direction `dx`, for forward-mode products; `None` (the default)
    /// when the edit has none.
    fn tangent(&self, x: &Tensor<2>, dx: Tensor<2>, rows: &Rows) -> Option<Tensor<2>> {
        let _ = (x, dx, rows);
        None
    }

    /// A few words for messages.
    fn describe(&self) -> String;
}

/// At which positions of a text an intervention acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Positions {
    /// All.
    All,
    /// Those in the range.
    Range(Range<usize>),
    /// Those listed.
    List(Vec<usize>),
}

impl Positions {
    /// Whether the position is one of them.
    pub fn contain(&self, position: usize) -> bool {
        match self {
            Self::All => true,
            Self::Range(range) => range.contains(&position),
            Self::List(list) => list.contains(&position),
        }
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all positions"),
            Self::Range(range) => {
                write!(f, "positions {} to {} (exclusive)", range.start, range.end)
            }
            Self::List(list) => write!(f, "positions {list:?}"),
        }
    }
}

/// An [`Edit`] at a [`Site`], everywhere or at some positions, sequences and heads. Several at one site are applied in
/// the order given.
#[derive(Clone)]
pub struct Intervention {
    site: Site,
    edit: Arc<dyn Edit>,
    positions: Positions,
    sequence: Option<usize>,
    heads: Option<Vec<usize>>,
}

impl fmt::Debug for Intervention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Intervention({})", self.describe())
    }
}

impl Intervention {
    /// An intervention at all positions and heads.
    pub fn new(site: Site, edit: Arc<dyn Edit>) -> Self {
        Self {
            site,
            edit,
            positions: Positions::All,
            sequence: None,
            heads: None,
        }
    }

    /// The same at some positions alone.
    #[must_use]
    pub fn at_positions(mut self, positions: Positions) -> Self {
        self.positions = positions;
        self
    }

    /// The same in one sequence of the batch alone.
    #[must_use]
    pub fn in_sequence(mut self, sequence: usize) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// The same on some heads alone, at a site that is divided into heads.
    #[must_use]
    pub fn on_heads(mut self, heads: Vec<usize>) -> Self {
        self.heads = Some(heads);
        self
    }

    /// Where it acts.
    pub fn site(&self) -> Site {
        self.site
    }

    /// The heads it acts on; `None`: all.
    pub fn heads(&self) -> Option<&[usize]> {
        self.heads.as_deref()
    }

    /// The one sequence of a batch that it acts on; `None`: all.
    pub fn sequence(&self) -> Option<usize> {
        self.sequence
    }

    /// A few words for messages.
    pub fn describe(&self) -> String {
        let mut text = format!("{} at {}", self.edit.describe(), self.site);
        if self.positions != Positions::All {
            text += &format!(", {}", self.positions);
        }
        if let Some(sequence) = self.sequence {
            text += &format!(", sequence {sequence}");
        }
        if let Some(heads) = &self.heads {
            text += &format!(", heads {heads:?}");
        }
        text
    }

    /// Whether it has anything to do in these rows.
    pub(crate) fn acts_in(&self, rows: &Rows) -> bool {
        let mut sequences = rows.sequences().iter().enumerate();
        sequences.any(|(index, &(start, length))| {
            self.sequence.is_none_or(|only| only == index)
                && (start..start + length).any(|position| self.positions.contain(position))
        })
    }

    /// The changed activation, and its derivative in a direction where one is given.
    ///
    /// # Errors
    /// What is wrong with the edit: it changes the shape, or it has no derivative and one is asked for.
    pub(crate) fn apply(
        &self,
        x: Tensor<2>,
        dx: Option<Tensor<2>>,
        rows: &Rows,
        heads: Option<usize>,
    ) -> Result<(Tensor<2>, Option<Tensor<2>>), String> {
        let whole =
            self.positions == Positions::All && self.sequence.is_none() && self.heads.is_none();
        let dx_after = match &dx {
            None => None,
            Some(dx) => Some(
                self.edit
                    .tangent(&x, dx.clone(), rows)
                    .ok_or_else(|| format!("{} has no forward derivative", self.describe()))?,
            ),
        };
        let after = self.edit.apply(x.clone(), rows);
        if x.dims() != after.dims() {
            return Err(format!(
                "{} must keep the shape of the activation, {:?}, and gives {:?}",
                self.describe(),
                x.dims(),
                after.dims()
            ));
        }
        if whole {
            return Ok((after, dx_after));
        }
        let mask = self.mask(&x, rows, heads);
        let dx = match (dx, dx_after) {
            (Some(dx), Some(after)) => Some(dx.mask_where(mask.clone(), after)),
            _ => None,
        };
        Ok((x.mask_where(mask, after), dx))
    }

    /// Where it acts, `[rows, width]`.
    fn mask(&self, x: &Tensor<2>, rows: &Rows, heads: Option<usize>) -> Tensor<2, Bool> {
        let [count, width] = x.dims();
        let columns: Vec<bool> = match (&self.heads, heads) {
            (Some(chosen), Some(heads)) => {
                let each = width / heads;
                (0..width)
                    .map(|column| chosen.contains(&(column / each)))
                    .collect()
            }
            _ => vec![true; width],
        };
        let mut mask = Vec::with_capacity(count * width);
        for (index, &(start, length)) in rows.sequences().iter().enumerate() {
            let sequence = self.sequence.is_none_or(|only| only == index);
            for position in start..start + length {
                let row = sequence && self.positions.contain(position);
                mask.extend(columns.iter().map(|&column| row && column));
            }
        }
        Tensor::from_data(TensorData::new(mask, [count, width]), &x.device())
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

    fn tangent(&self, _x: &Tensor<2>, dx: Tensor<2>, _rows: &Rows) -> Option<Tensor<2>> {
        Some(dx)
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

    fn tangent(&self, _x: &Tensor<2>, dx: Tensor<2>, rows: &Rows) -> Option<Tensor<2>> {
        Some(self.apply(dx, rows))
    }

    fn describe(&self) -> String {
        "zero ablation".to_owned()
    }
}

/// Multiplies the activation by a number.
pub struct Scale(
    /// The factor.
    pub f32,
);

impl Edit for Scale {
    fn apply(&self, x: Tensor<2>, _rows: &Rows) -> Tensor<2> {
        x * self.0
    }

    fn tangent(&self, _x: &Tensor<2>, dx: Tensor<2>, _rows: &Rows) -> Option<Tensor<2>> {
        Some(dx * self.0)
    }

    fn describe(&self) -> String {
        format!("scaling by {}", self.0)
    }
}

/// Replaces the activation by what is given: `[rows, width]`, or `[1, width]` for all rows alike (a mean ablation, a
/// patch from another run).
pub struct Replace {
    /// What stands there afterwards.
    pub with: Tensor<2>,
}

impl Edit for Replace {
    fn apply(&self, x: Tensor<2>, _rows: &Rows) -> Tensor<2> {
        let [rows, width] = x.dims();
        if self.with.dims() == [1, width] {
            return self.with.clone().expand([rows as i64, width as i64]);
        }
        // Of another shape it is refused by the caller.
        self.with.clone()
    }

    fn tangent(&self, _x: &Tensor<2>, dx: Tensor<2>, _rows: &Rows) -> Option<Tensor<2>> {
        Some(dx.zeros_like())
    }

    fn describe(&self) -> String {
        "replacing".to_owned()
    }
}

/// Takes out the part of the activation along a direction `[width]`: `x − (x·u) u` with `u` of length one.
pub struct ProjectOut {
    /// The direction, of any length but zero.
    pub direction: Tensor<1>,
}

impl Edit for ProjectOut {
    fn apply(&self, x: Tensor<2>, _rows: &Rows) -> Tensor<2> {
        let direction: Tensor<2> = self.direction.clone().unsqueeze();
        let length = direction.clone().powf_scalar(2.0).sum_dim(1).sqrt();
        let unit = direction / length;
        let along = x.clone().matmul(unit.clone().transpose());
        x - along.matmul(unit)
    }

    fn tangent(&self, _x: &Tensor<2>, dx: Tensor<2>, rows: &Rows) -> Option<Tensor<2>> {
        Some(self.apply(dx, rows))
    }

    fn describe(&self) -> String {
        "projecting out a direction".to_owned()
    }
}
