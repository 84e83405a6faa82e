//! Two-qubit gates that turn Pauli operators into such.

use pullback_tensor::c64;

use crate::dense::{Matrix, adjoint, kron};
use crate::site::Site;

/// A Pauli operator of one site in two bits: `I` 0, `Z` 1, `X` 2, `Y` 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauli(pub u8);

impl Pauli {
    /// By its letter.
    pub fn named(letter: char) -> Option<Self> {
        "IZXY".find(letter).map(|i| Self(i as u8))
    }

    /// Its letter.
    pub fn letter(self) -> char {
        ['I', 'Z', 'X', 'Y'][usize::from(self.0 & 3)]
    }

    /// Its matrix.
    pub fn matrix(self) -> Matrix {
        let name = self.letter().to_string();
        Site::QUBIT
            .operator(&name)
            .unwrap_or_else(|| Matrix::identity(2, 2))
    }
}

/// A gate by what it makes of the sixteen products of two Pauli operators, each numbered by four bits, the left site's the
/// higher ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliffordGate {
    /// The images of the four products with one bit, from the lowest bit on.
    images: [u8; 4],
    /// The sign of each image as an exclusive or of products of bits: bit `m` says whether the product of the bits in `m`
    /// is in it.
    sign: u16,
}

impl CliffordGate {
    /// From a matrix `[4, 4]`, if it is such a gate: `P → U P U†`.
    pub fn from_matrix(u: &Matrix) -> Option<Self> {
        if u.shape() != (4, 4) {
            return None;
        }
        let products: Vec<Matrix> = (0..16)
            .map(|p| kron(&Pauli(p >> 2).matrix(), &Pauli(p & 3).matrix()))
            .collect();
        let mut table = [(0_u8, false); 16];
        for (p, product) in products.iter().enumerate() {
            let moved = u * product * adjoint(u);
            let found = products.iter().enumerate().find_map(|(q, image)| {
                let product = image * &moved;
                let overlap: c64 = (0..4).map(|i| product[(i, i)]).sum::<c64>() / 4.0;
                ((overlap.norm() - 1.0).abs() < 1e-9).then_some((q as u8, overlap.re < 0.0))
            });
            table[p] = found?;
        }
        let images = [0, 1, 2, 3].map(|bit: u8| table[1 << bit].0);
        // Möbius transformation of the signs.
        let mut sign: u16 = (0..16).map(|p| u16::from(table[p].1) << p).sum();
        for bit in 0..4 {
            for p in (0..16_usize).filter(|p| p >> bit & 1 == 1) {
                sign ^= (sign >> (p ^ (1 << bit)) & 1) << p;
            }
        }
        Some(Self { images, sign })
    }

    /// The image of a product, its sign left out.
    pub fn image(&self, p: u8) -> u8 {
        let bits = (0..4).filter(|bit| p >> bit & 1 == 1);
        bits.fold(0, |sum, bit| sum ^ self.images[bit])
    }

    /// Applies the gate to 64 products at a time: `bits` from the lowest one on; gives the signs that it adds.
    pub(super) fn apply(&self, bits: &mut [u64; 4]) -> u64 {
        let mut sign = 0;
        for m in 0..16 {
            if self.sign >> m & 1 == 1 {
                let factors = (0..4).filter(|bit| m >> bit & 1 == 1);
                sign ^= factors.fold(u64::MAX, |product, bit| product & bits[bit]);
            }
        }
        let mut out = [0; 4];
        for (to, out) in out.iter_mut().enumerate() {
            for from in 0..4 {
                if self.images[from] >> to & 1 == 1 {
                    *out ^= bits[from];
                }
            }
        }
        *bits = out;
        sign
    }
}
