//! Generators of a stabilizer state, and of its complement.

use crate::error::ChainError;

use super::gate::{CliffordGate, Pauli};

/// The most sites; the bits then take 400 MB.
const MAX_SITES: usize = 30_000;

/// A stabilizer state of qubits.
#[derive(Clone, Debug)]
pub struct Stabilizer {
    sites: usize,
    words: usize,
    /// Generators that the state is an eigenvector of.
    stabilizers: Half,
    /// For each an operator that anticommutes with it and with no other.
    destabilizers: Half,
}

/// One generator for each site.
#[derive(Clone, Debug)]
struct Half {
    /// `[site, bit, word]`: bit 0 is that of `Z`, bit 1 that of `X`; generator `i` is bit `i` of the words. After the last
    /// site stand the signs, one where a generator has a minus.
    bits: Vec<u64>,
}

impl Half {
    fn new(sites: usize, words: usize, paulis: impl Iterator<Item = (u8, bool)>) -> Self {
        let mut bits = vec![0; (sites * 2 + 1) * words];
        for (site, (pauli, minus)) in paulis.enumerate() {
            let (word, bit) = (site / 64, 1_u64 << (site % 64));
            for k in 0..2 {
                if pauli >> k & 1 == 1 {
                    bits[(site * 2 + k) * words + word] |= bit;
                }
            }
            if minus {
                bits[sites * 2 * words + word] |= bit;
            }
        }
        Self { bits }
    }

    fn column(&self, site: usize, bit: usize, words: usize) -> &[u64] {
        &self.bits[(site * 2 + bit) * words..][..words]
    }

    fn apply(&mut self, gate: &CliffordGate, left: usize, right: usize, words: usize) {
        let (l, r) = (left * 2 * words, right * 2 * words);
        for w in 0..words {
            let places = [r + w, r + words + w, l + w, l + words + w];
            let mut bits = places.map(|place| self.bits[place]);
            let sign = self.bits.len() - words + w;
            self.bits[sign] ^= gate.apply(&mut bits);
            for (place, bit) in places.into_iter().zip(bits) {
                self.bits[place] = bit;
            }
        }
    }

    /// The Pauli operator of a generator at a site.
    fn pauli(&self, generator: usize, site: usize, words: usize) -> u8 {
        let bit =
            |k: usize| (self.column(site, k, words)[generator / 64] >> (generator % 64) & 1) as u8;
        bit(0) | bit(1) << 1
    }

    /// Whether a generator has a minus sign.
    fn is_minus(&self, generator: usize, words: usize) -> bool {
        let signs = &self.bits[self.bits.len() - words..];
        signs[generator / 64] >> (generator % 64) & 1 == 1
    }

    /// Generators that anticommute with a product of Pauli operators.
    fn anticommuting(&self, product: &[(usize, Pauli)], words: usize) -> Vec<u64> {
        let mut out = vec![0; words];
        for &(site, pauli) in product {
            for bit in 0..2 {
                // X against Z and the other way round.
                if pauli.0 >> (1 - bit) & 1 == 1 {
                    let column = self.column(site, bit, words);
                    out.iter_mut().zip(column).for_each(|(out, x)| *out ^= x);
                }
            }
        }
        out
    }
}

impl Stabilizer {
    /// A product of eigenstates of Pauli operators: `0`, `1` of Z, `+`, `-` of X.
    ///
    /// # Errors
    /// There are no sites or too many, or a letter is none of these.
    pub fn product(letters: &[char]) -> Result<Self, ChainError> {
        let sites = letters.len();
        if !(1..=MAX_SITES).contains(&sites) {
            return Err(ChainError::value(
                "the number of sites",
                sites,
                format!("expected 1 to {MAX_SITES}"),
            ));
        }
        if let Some(bad) = letters.iter().find(|letter| !"01+-".contains(**letter)) {
            return Err(ChainError::value(
                "the state of a site",
                format!("`{bad}`"),
                "stabilizer states are made of 0, 1, + and -",
            ));
        }
        let words = sites.div_ceil(64);
        let z = |letter: &char| "01".contains(*letter);
        let stabilizers = letters
            .iter()
            .map(|letter| (if z(letter) { 1 } else { 2 }, "1-".contains(*letter)));
        let destabilizers = letters
            .iter()
            .map(|letter| (if z(letter) { 2 } else { 1 }, false));
        Ok(Self {
            sites,
            words,
            stabilizers: Half::new(sites, words, stabilizers),
            destabilizers: Half::new(sites, words, destabilizers),
        })
    }

    /// Sites of the chain.
    pub fn sites(&self) -> usize {
        self.sites
    }

    /// All bits of the generators and of their complement, signs last, for files.
    pub(crate) fn words(&self) -> [&[u64]; 2] {
        [&self.stabilizers.bits, &self.destabilizers.bits]
    }

    /// Takes the bits from a file; `false` if they are of another number.
    pub(crate) fn set_words(&mut self, stabilizers: bool, words: Vec<u64>) -> bool {
        let half = if stabilizers {
            &mut self.stabilizers
        } else {
            &mut self.destabilizers
        };
        let fits = half.bits.len() == words.len();
        if fits {
            half.bits = words;
        }
        fits
    }

    /// Applies a gate to two sites.
    ///
    /// # Panics
    /// A site does not exist, or both are the same.
    pub fn apply(&mut self, gate: &CliffordGate, left: usize, right: usize) {
        assert!(
            left != right && left.max(right) < self.sites,
            "a gate acts on two sites of the chain"
        );
        self.stabilizers.apply(gate, left, right, self.words);
        self.destabilizers.apply(gate, left, right, self.words);
    }

    /// The expectation value of a product of Pauli operators on different sites: −1, 0 or 1.
    ///
    /// # Panics
    /// A site does not exist.
    pub fn expectation(&self, product: &[(usize, Pauli)]) -> i8 {
        let against = self.stabilizers.anticommuting(product, self.words);
        if against.iter().any(|word| *word != 0) {
            return 0;
        }
        // The product is one of stabilizers, up to its sign: of those whose partner it anticommutes with.
        let members = self.destabilizers.anticommuting(product, self.words);
        let mut sum = vec![0_u8; self.sites];
        // Powers of i.
        let mut phase = 0_u32;
        for generator in (0..self.sites).filter(|g| members[g / 64] >> (g % 64) & 1 == 1) {
            phase += 2 * u32::from(self.stabilizers.is_minus(generator, self.words));
            for (site, sum) in sum.iter_mut().enumerate() {
                let pauli = self.stabilizers.pauli(generator, site, self.words);
                phase += product_phase(*sum, pauli);
                *sum ^= pauli;
            }
        }
        debug_assert!(product.iter().all(|(site, pauli)| sum[*site] == pauli.0));
        if phase.is_multiple_of(4) { 1 } else { -1 }
    }

    /// The entropy across a bond in bits: a whole number (Fattal et al., arXiv:quant-ph/0406168).
    ///
    /// # Errors
    /// There is no such bond.
    pub fn entropy_bits(&self, bond: usize) -> Result<usize, ChainError> {
        if bond + 1 >= self.sites {
            return Err(ChainError::value(
                "a bond",
                bond,
                format!("expected 0 to {}", self.sites.saturating_sub(2)),
            ));
        }
        // Both sides have the same entropy; the smaller one has fewer columns.
        let left = bond + 1;
        let part = if 2 * left <= self.sites {
            0..left
        } else {
            left..self.sites
        };
        let size = part.len();
        let mut columns: Vec<Vec<u64>> = part
            .flat_map(|site| {
                [0, 1].map(|bit| self.stabilizers.column(site, bit, self.words).to_vec())
            })
            .collect();
        Ok(rank(&mut columns) - size)
    }
}

/// The power of i in the product of two Pauli operators: `XY = iZ` and so on.
fn product_phase(a: u8, b: u8) -> u32 {
    const Z: u8 = 1;
    const X: u8 = 2;
    const Y: u8 = 3;
    match (a, b) {
        (X, Y) | (Y, Z) | (Z, X) => 1,
        (Y, X) | (Z, Y) | (X, Z) => 3,
        _ => 0,
    }
}

/// The rank of rows of bits.
fn rank(rows: &mut [Vec<u64>]) -> usize {
    let mut rank = 0;
    let words = rows.first().map_or(0, Vec::len);
    for word in 0..words {
        for bit in 0..64 {
            let has = |row: &Vec<u64>| row[word] >> bit & 1 == 1;
            let Some(found) = rows[rank..].iter().position(has) else {
                continue;
            };
            rows.swap(rank, rank + found);
            let (done, rest) = rows.split_at_mut(rank + 1);
            let pivot = &done[rank];
            for row in rest.iter_mut().filter(|row| has(row)) {
                // What stands before this word is zero in both.
                for (x, p) in row[word..].iter_mut().zip(&pivot[word..]) {
                    *x ^= p;
                }
            }
            rank += 1;
            if rank == rows.len() {
                return rank;
            }
        }
    }
    rank
}
