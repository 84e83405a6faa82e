//! A tensor of one site.

use pullback_tensor::{Mat, MatMut, MatRef, c64};

/// `B[l, p, r]`, the left index fastest, then the physical one: `[l p, r]` and `[l, p r]` are the same memory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) left: usize,
    pub(super) physical: usize,
    pub(super) right: usize,
    pub(super) data: Vec<c64>,
}

impl Tensor {
    pub(super) fn new(left: usize, physical: usize, right: usize, data: Vec<c64>) -> Self {
        assert_eq!(data.len(), left * physical * right, "a tensor's entries");
        Self {
            left,
            physical,
            right,
            data,
        }
    }

    pub(super) fn zeros(left: usize, physical: usize, right: usize) -> Self {
        let data = vec![c64::new(0.0, 0.0); left * physical * right];
        Self::new(left, physical, right, data)
    }

    pub(super) fn from_mat(left: usize, physical: usize, right: usize, m: &Mat<c64>) -> Self {
        let mut data = Vec::with_capacity(left * physical * right);
        for column in 0..m.ncols() {
            data.extend_from_slice(m.col_as_slice(column));
        }
        Self::new(left, physical, right, data)
    }

    /// `[l p, r]`.
    pub(super) fn by_left(&self) -> MatRef<'_, c64> {
        MatRef::from_column_major_slice(&self.data, self.left * self.physical, self.right)
    }

    /// `[l, p r]`.
    pub(super) fn by_right(&self) -> MatRef<'_, c64> {
        MatRef::from_column_major_slice(&self.data, self.left, self.physical * self.right)
    }

    pub(super) fn by_left_mut(&mut self) -> MatMut<'_, c64> {
        MatMut::from_column_major_slice_mut(&mut self.data, self.left * self.physical, self.right)
    }

    pub(super) fn by_right_mut(&mut self) -> MatMut<'_, c64> {
        MatMut::from_column_major_slice_mut(&mut self.data, self.left, self.physical * self.right)
    }

    /// `[l, r]` of one physical state.
    pub(super) fn slice(&self, p: usize) -> MatRef<'_, c64> {
        let stride = self.left * self.physical;
        MatRef::from_column_major_slice_with_stride(
            &self.data[self.left * p..],
            self.left,
            self.right,
            stride,
        )
    }

    /// The tensor with row `l` times `factors[l]`.
    pub(super) fn weighted(&self, factors: &[f64]) -> Self {
        let mut out = self.clone();
        for column in out.data.chunks_exact_mut(self.left) {
            for (x, factor) in column.iter_mut().zip(factors) {
                *x *= *factor;
            }
        }
        out
    }
}
