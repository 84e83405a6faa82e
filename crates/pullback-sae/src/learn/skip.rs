//! A linear way past the features, as transcoders may have it: `x̂ = z·W_dec + b_dec + x·skipᵀ`.

use pullback_kernels::{Matrix, MatrixMut, Real, Threads, matmul, product};

use super::{Batch, Parameters, Rows, Step};
use crate::kinds::Kind;

/// Losses and gradients of a batch: the features reconstruct what the skip matrix leaves of the target.
pub(crate) fn batch<T: Real>(
    kind: &mut dyn Kind<T>,
    parameters: &Parameters<T>,
    rows: &Rows<'_, T>,
    step: &Step<'_>,
) -> Batch<T> {
    let Some(skip) = &parameters.skip else {
        return kind.batch(parameters, rows, step);
    };
    let (d, d_out) = (parameters.d, parameters.d_out);
    let n = rows.x.len() / d;
    let x = Matrix::new(rows.x, n, d, d);
    let mut left = rows.target.to_vec();
    matmul(
        MatrixMut::new(&mut left, n, d_out, d_out),
        x,
        Matrix::new(skip, d_out, d, d).transposed(),
        T::one(),
        -T::one(),
        Threads::All,
    );
    let rows = Rows {
        target: &left,
        ..*rows
    };
    let mut batch = kind.batch(parameters, &rows, step);
    batch.skip = batch.slope.take().map(|slope| {
        let slope = Matrix::new(&slope, n, d_out, d_out);
        product(slope.transposed(), x, Threads::All)
    });
    batch
}
