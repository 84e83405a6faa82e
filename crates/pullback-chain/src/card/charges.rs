//! Conserved local charges: operators `Q = Σ_j e^{ikj} q_j` with `U Q U† = Q`, where `q` acts on few sites and is moved two
//! sites at a time.

use std::collections::HashMap;

use pullback_tensor::{Mat, c64, svd};
use serde::Serialize;

use crate::error::ChainError;
use crate::qca::Qca;

use super::operators::{Movement, Stretch};

/// A singular value below this belongs to a charge.
const NOTHING: f64 = 1e-8;

/// The most coefficients of a moved density.
const COEFFICIENTS: f64 = 1_100_000.0;

/// The most densities of which the moved ones are compared.
const DENSITIES: usize = 500;

/// Momenta, as multiples of 2π/8 for each cell of two sites.
const MOMENTA: usize = 8;

/// The conserved charges of an automaton.
#[derive(Clone, Debug, Serialize)]
pub struct Charges {
    /// For each range: how many independent charges have densities on so many sites at most, at momentum zero. The
    /// identity is not counted.
    pub by_range: Vec<usize>,
    /// The same at the momenta `2πm/8` of cells of two sites, `m = 0 … 7`, up to the largest range.
    pub by_momentum: Vec<Vec<usize>>,
    /// The densities found at momentum zero: for each charge its largest terms.
    pub densities: Vec<Vec<Term>>,
}

/// A term of a density.
#[derive(Clone, Debug, Serialize)]
pub struct Term {
    /// One letter a site: `I X Y Z` for qubits, numbers in the basis of Gell-Mann otherwise.
    pub operators: String,
    /// Whether it begins at even sites.
    pub even: bool,
    /// Its coefficient; the largest of a density is 1.
    pub coefficient: f64,
}

/// A string of basis operators that begins and ends with another than the identity.
type Word = Vec<usize>;

/// Finds the charges with densities on up to `most` sites; fewer where a density does not fit.
///
/// # Errors
/// Memory is short.
pub fn charges(qca: &Qca, most: usize) -> Result<Charges, ChainError> {
    let movement = Movement::new(qca);
    let size = movement.size();
    let width = |range: usize| range + 2 * movement.reach();
    let fits = |range: usize| {
        let words: usize = (1..=range).map(|r| words_of(size, r)).sum();
        (size as f64).powi(width(range) as i32) <= COEFFICIENTS && 2 * words <= DENSITIES
    };
    let range = (1..=most)
        .take_while(|&range| fits(range))
        .last()
        .unwrap_or(0);
    let mut found = Charges {
        by_range: Vec::new(),
        by_momentum: vec![Vec::new(); MOMENTA],
        densities: Vec::new(),
    };
    // Densities of a smaller range come first, so that their columns are the first ones.
    let mut densities: Vec<(bool, Word)> = Vec::new();
    let mut ends = Vec::new();
    for r in 1..=range {
        for even in [true, false] {
            densities.extend(words(size, r).into_iter().map(|word| (even, word)));
        }
        ends.push(densities.len());
    }
    // What becomes of each density: words, how many cells they have moved, coefficients.
    let mut moved: Vec<Vec<(usize, isize, f64)>> = Vec::with_capacity(densities.len());
    let mut rows: HashMap<(bool, Word), usize> = HashMap::new();
    for (even, word) in &densities {
        let next = rows.len();
        rows.entry((*even, word.clone())).or_insert(next);
    }
    for (even, word) in &densities {
        let start = isize::from(!*even);
        let string: Vec<(isize, usize)> = (start..).zip(word.iter().copied()).collect();
        let first = start - movement.reach() as isize;
        let mut stretch = Stretch::new(first, width(word.len()), size, &string)?;
        movement.step(&mut stretch)?;
        moved.push(terms(&stretch, size, &mut rows));
    }
    for m in 0..MOMENTA {
        let phase = |cells: isize| {
            c64::from_polar(
                1.0,
                std::f64::consts::TAU * m as f64 / MOMENTA as f64 * cells as f64,
            )
        };
        let mut a = Mat::<c64>::zeros(rows.len(), densities.len());
        for (column, terms) in moved.iter().enumerate() {
            for &(row, cells, x) in terms {
                a[(row, column)] += phase(cells) * x;
            }
            a[(column, column)] -= 1.0;
        }
        // The triangle has the same singular values and far fewer rows, and so have its leading blocks.
        let triangle = pullback_tensor::qr(a.as_ref())?.r;
        for &end in &ends {
            let svd = svd(triangle.submatrix(0, 0, end, end))?;
            let first = svd.values.iter().position(|s| *s < NOTHING).unwrap_or(end);
            found.by_momentum[m].push(end - first);
            if m == 0 && end == densities.len() {
                let kernel = svd.v.subcols(first, end - first).to_owned();
                found.densities = readable(&kernel, &densities, size);
            }
        }
    }
    found.by_range.clone_from(&found.by_momentum[0]);
    Ok(found)
}

/// How many words have this length.
fn words_of(size: usize, length: usize) -> usize {
    match length {
        1 => size - 1,
        _ => (size - 1)
            .saturating_pow(2)
            .saturating_mul(size.saturating_pow(length as u32 - 2)),
    }
}

fn words(size: usize, length: usize) -> Vec<Word> {
    let mut out: Vec<Word> = vec![Vec::new()];
    for place in 0..length {
        let least = usize::from(place == 0 || place + 1 == length);
        out = out
            .into_iter()
            .flat_map(|word| (least..size).map(move |level| [word.as_slice(), &[level]].concat()))
            .collect();
    }
    out
}

/// The words in a stretch, with the cell that each begins in.
fn terms(
    stretch: &Stretch,
    size: usize,
    rows: &mut HashMap<(bool, Word), usize>,
) -> Vec<(usize, isize, f64)> {
    let coefficients = stretch.coefficients();
    let mut out = Vec::new();
    let mut width = 0;
    while size.pow(width) < coefficients.len() {
        width += 1;
    }
    for (index, &x) in coefficients.iter().enumerate() {
        if x.abs() < 1e-13 {
            continue;
        }
        let mut word: Word = vec![0; width as usize];
        let mut rest = index;
        for level in word.iter_mut().rev() {
            *level = rest % size;
            rest /= size;
        }
        let Some(low) = word.iter().position(|&level| level > 0) else {
            continue;
        };
        let high = word.iter().rposition(|&level| level > 0).unwrap_or(low);
        let start = stretch.first() + low as isize;
        let key = (start.rem_euclid(2) == 0, word[low..=high].to_vec());
        let next = rows.len();
        let row = *rows.entry(key).or_insert(next);
        out.push((row, start.div_euclid(2), x));
    }
    out
}

/// The kernel in a basis in which each charge has a term that no other has, largest coefficients first.
fn readable(kernel: &Mat<c64>, densities: &[(bool, Word)], size: usize) -> Vec<Vec<Term>> {
    let (n, count) = kernel.shape();
    // At momentum zero the map is real: real and imaginary parts of the vectors span the same space.
    let mut vectors: Vec<Vec<f64>> = Vec::new();
    for k in 0..count {
        vectors.push((0..n).map(|i| kernel[(i, k)].re).collect());
        vectors.push((0..n).map(|i| kernel[(i, k)].im).collect());
    }
    let mut reduced: Vec<(usize, Vec<f64>)> = Vec::new();
    for column in 0..n {
        if reduced.len() == count {
            break;
        }
        let best = (0..vectors.len()).max_by(|&a, &b| {
            vectors[a][column]
                .abs()
                .total_cmp(&vectors[b][column].abs())
        });
        let Some(best) = best.filter(|&b| vectors[b][column].abs() > 1e-6) else {
            continue;
        };
        let mut pivot = vectors.swap_remove(best);
        let by = pivot[column];
        for x in &mut pivot {
            *x /= by;
        }
        let others = vectors.iter_mut().chain(reduced.iter_mut().map(|(_, v)| v));
        for other in others {
            let by = other[column];
            other.iter_mut().zip(&pivot).for_each(|(x, p)| *x -= by * p);
        }
        reduced.push((column, pivot));
    }
    reduced
        .into_iter()
        .map(|(_, vector)| {
            let most = vector.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
            let mut terms: Vec<Term> = vector
                .iter()
                .zip(densities)
                .filter(|(x, _)| x.abs() > 1e-7 * most)
                .map(|(x, (even, word))| Term {
                    operators: letters(word, size),
                    even: *even,
                    coefficient: x / most,
                })
                .collect();
            terms.sort_by(|a, b| b.coefficient.abs().total_cmp(&a.coefficient.abs()));
            terms
        })
        .collect()
}

fn letters(word: &[usize], size: usize) -> String {
    if size == 4 {
        return word
            .iter()
            .map(|&level| ['I', 'X', 'Y', 'Z'][level])
            .collect();
    }
    let numbers: Vec<String> = word.iter().map(usize::to_string).collect();
    numbers.join(".")
}
