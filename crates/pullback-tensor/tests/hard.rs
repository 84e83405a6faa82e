//! Every method on matrices that decompositions stumble over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

use pullback_tensor::{
    LinalgError, Mat, Rung, Scalar, c64, eigenvalues, eigh, eigh_by, qr, singular_values, svd,
    svd_by,
};

/// Numbers in [−½, ½) from a small generator, so that the matrices never change.
struct Numbers(u64);

impl Numbers {
    fn real(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
    }

    fn complex(&mut self, rows: usize, columns: usize) -> Mat<c64> {
        Mat::from_fn(rows, columns, |_, _| c64::new(self.real(), self.real()))
    }

    fn isometry(&mut self, rows: usize, columns: usize) -> Mat<c64> {
        qr(self.complex(rows, columns).as_ref()).unwrap().q
    }

    /// A matrix with these singular values.
    fn with_values(&mut self, rows: usize, columns: usize, values: &[f64]) -> Mat<c64> {
        let u = self.isometry(rows, values.len());
        let v = self.isometry(columns, values.len());
        let scaled = Mat::from_fn(rows, values.len(), |i, j| u[(i, j)] * values[j]);
        scaled * v.adjoint()
    }
}

type Hard = (&'static str, Mat<c64>, Option<Vec<f64>>);

/// The set: name, matrix, singular values where they are known.
fn hard() -> Vec<Hard> {
    let mut n = Numbers(0x5eed);
    let graded: Vec<f64> = (0..24).map(|i| 10.0_f64.powi(-i)).collect();
    let near: Vec<f64> = (0..20).map(|i| 1.0 - 1e-14 * f64::from(i)).collect();
    let repeated = [3.0, 3.0, 3.0, 1.0, 1.0, 0.5, 0.5, 0.5];
    let clusters: Vec<f64> = (0..30)
        .map(|i| {
            if i < 10 {
                1.0
            } else if i < 20 {
                1e-8
            } else {
                1e-16
            }
        })
        .collect();
    let mut block = Mat::<c64>::zeros(12, 12);
    for i in 0..4 {
        for j in 0..4 {
            block[(i, j)] = c64::new(n.real(), n.real());
        }
    }
    let rank_one = n.with_values(17, 9, &[2.0]);
    let mut one_value = vec![2.0];
    one_value.resize(9, 0.0);
    let ones: Vec<f64> = vec![1.0; 16];
    vec![
        (
            "one entry",
            Mat::from_fn(1, 1, |_, _| c64::new(0.0, -3.0)),
            Some(vec![3.0]),
        ),
        ("zeros", Mat::zeros(7, 5), Some(vec![0.0; 5])),
        ("a row", n.complex(1, 9), None),
        ("a column", n.complex(9, 1), None),
        ("rank one", rank_one, Some(one_value)),
        ("identity", Mat::identity(16, 16), Some(ones.clone())),
        ("unitary", n.isometry(16, 16), Some(ones)),
        (
            "repeated",
            n.with_values(8, 8, &repeated),
            Some(repeated.to_vec()),
        ),
        ("graded", n.with_values(24, 24, &graded), Some(graded)),
        ("near degenerate", n.with_values(40, 20, &near), Some(near)),
        ("clusters", n.with_values(30, 35, &clusters), Some(clusters)),
        ("tiny", n.complex(10, 8).map_scaled(1e-300), None),
        ("subnormal", n.complex(10, 8).map_scaled(1e-312), None),
        ("huge", n.complex(8, 10).map_scaled(1e300), None),
        ("blocks of zeros", block, None),
        ("tall", n.complex(200, 3), None),
        ("wide", n.complex(3, 200), None),
        ("square", n.complex(65, 65), None),
    ]
}

trait MapScaled {
    fn map_scaled(&self, by: f64) -> Mat<c64>;
}

impl MapScaled for Mat<c64> {
    fn map_scaled(&self, by: f64) -> Mat<c64> {
        Mat::from_fn(self.nrows(), self.ncols(), |i, j| self[(i, j)].times(by))
    }
}

/// The largest entry of `a` and of `a − b`, found without squaring.
fn off(a: &Mat<c64>, b: &Mat<c64>) -> (f64, f64) {
    let (mut size, mut off) = (0.0_f64, 0.0_f64);
    for i in 0..a.nrows() {
        for j in 0..a.ncols() {
            size = size.max(a[(i, j)].modulus());
            off = off.max((a[(i, j)] - b[(i, j)]).modulus());
        }
    }
    (size, off)
}

fn assert_orthonormal(name: &str, u: &Mat<c64>) {
    let gram = u.adjoint() * u;
    let (_, off) = off(&gram, &Mat::identity(u.ncols(), u.ncols()));
    assert!(off < 1e-13, "{name}: columns are {off:e} from orthonormal");
}

#[test]
fn every_method_decomposes_every_hard_matrix() {
    for rung in Rung::ALL {
        for (name, a, values) in hard() {
            let name = format!("{name}, {rung:?}");
            let svd = svd_by(a.as_ref(), rung).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_orthonormal(&name, &svd.u);
            assert_orthonormal(&name, &svd.v);
            let scaled = Mat::from_fn(svd.u.nrows(), svd.values.len(), |i, j| {
                svd.u[(i, j)].times(svd.values[j])
            });
            let (size, off) = off(&a, &(scaled * svd.v.adjoint()));
            // Subnormal numbers have fewer digits.
            let least = 100.0 * f64::from_bits(1);
            assert!(
                off <= (2e-14 * size).max(least),
                "{name}: {off:e} of {size:e}"
            );
            assert!(svd.values.windows(2).all(|v| v[0] >= v[1]), "{name}");
            for (found, known) in svd.values.iter().zip(values.iter().flatten()) {
                assert!(
                    (found - known).abs() <= 4e-15 * svd.values[0].max(1.0),
                    "{name}: {found:e}, {known:e}"
                );
            }
        }
    }
}

#[test]
fn hermitian_matrices_of_the_set_have_the_squares_as_eigenvalues() {
    for rung in [Rung::Threads, Rung::Serial, Rung::Jacobi] {
        for (name, a, _) in hard() {
            // Squares of tiny and huge entries are no numbers.
            if ["tiny", "huge", "subnormal"].contains(&name) {
                continue;
            }
            let h = a.adjoint() * &a;
            let eigh = eigh_by(h.as_ref(), rung).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_orthonormal(name, &eigh.u);
            let mut squares: Vec<f64> = singular_values(a.as_ref()).unwrap();
            squares.resize(a.ncols(), 0.0);
            squares.reverse();
            let top = squares.last().unwrap().powi(2).max(1e-300);
            for (found, value) in eigh.values.iter().zip(&squares) {
                assert!(
                    (found - value * value).abs() < 1e-13 * top,
                    "{name}: {found:e}, {value:e}"
                );
            }
        }
    }
}

#[test]
fn real_matrices_go_the_same_way() {
    let mut n = Numbers(5);
    let a: Mat<f64> = Mat::from_fn(9, 6, |_, _| n.real());
    for rung in Rung::ALL {
        let svd = svd_by(a.as_ref(), rung).unwrap();
        let product: f64 = svd.values.iter().map(|x| x * x).sum();
        assert!((product - a.squared_norm_l2()).abs() < 1e-13);
    }
    let symmetric: Mat<f64> = Mat::from_fn(2, 2, |i, j| if i == j { 2.0 } else { 1.0 });
    let values = eigh(symmetric.as_ref()).unwrap().values;
    assert!((values[0] - 1.0).abs() < 1e-15 && (values[1] - 3.0).abs() < 1e-15);
}

#[test]
fn jacobi_keeps_the_digits_of_small_singular_values() {
    // Columns of very different lengths: their directions are known to all digits, and so are the values.
    let mut n = Numbers(11);
    let u = n.isometry(12, 6);
    let a = Mat::from_fn(12, 6, |i, j| u[(i, j)].times(10.0_f64.powi(-6 * j as i32)));
    let svd = svd_by(a.as_ref(), Rung::Jacobi).unwrap();
    for (j, value) in svd.values.iter().enumerate() {
        let known = 10.0_f64.powi(-6 * j as i32);
        assert!((value / known - 1.0).abs() < 1e-12, "{value:e} {known:e}");
    }
}

#[test]
fn what_is_not_finite_is_refused_with_its_place() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut a: Mat<c64> = Mat::identity(4, 4);
        a[(2, 1)] = c64::new(0.0, bad);
        let refusals = [
            svd(a.as_ref()).unwrap_err(),
            eigh(a.as_ref()).unwrap_err(),
            qr(a.as_ref()).unwrap_err(),
            eigenvalues(a.as_ref()).unwrap_err(),
        ];
        for refusal in refusals {
            assert!(
                matches!(
                    refusal,
                    LinalgError::NotFinite {
                        row: 2,
                        column: 1,
                        ..
                    }
                ),
                "{refusal}"
            );
        }
    }
    let skew = Mat::from_fn(2, 2, |i, j| c64::new(0.0, (i + j) as f64));
    assert!(matches!(
        eigh(skew.as_ref()),
        Err(LinalgError::NotHermitian { .. })
    ));
    let wide: Mat<c64> = Mat::zeros(2, 3);
    assert!(matches!(
        eigh(wide.as_ref()),
        Err(LinalgError::NotSquare { .. })
    ));
}

#[test]
fn eigenvalues_of_a_cycle_are_roots_of_one() {
    let n = 12;
    let shift = Mat::from_fn(n, n, |i, j| {
        c64::new(f64::from(u8::from((j + 1) % n == i)), 0.0)
    });
    let values = eigenvalues(shift.as_ref()).unwrap();
    assert_eq!(values.len(), n);
    for value in &values {
        assert!((value.powu(n as u32) - 1.0).norm() < 1e-12, "{value}");
    }
    let sum: c64 = values.iter().sum();
    assert!(sum.norm() < 1e-12);
}
