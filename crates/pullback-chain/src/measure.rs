//! What is measured on a chain, whatever holds its state.

use pullback_tensor::c64;

use crate::dense::{Matrix, kron, trace};
use crate::error::ChainError;
use crate::expression::parse_operator;
use crate::hamiltonian::{Boundary, Hamiltonian};
use crate::site::Site;
use crate::stabilizer::{Pauli, Stabilizer};
use crate::statevector::{Real, StateVector};

/// Something that holds the state of a chain and can be asked about it. Every engine implements this.
pub trait Measure {
    /// Sites of the chain.
    fn sites(&self) -> usize;

    /// The expectation value of an operator on one or two different sites, the first one's index slow. The state need not
    /// be normalised; the value is that of the normalised one.
    ///
    /// # Errors
    /// A site does not exist, or the operator has another dimension.
    fn expectation(&self, sites: &[usize], operator: &Matrix) -> Result<c64, ChainError>;

    /// The von Neumann entropy across a bond, in nats.
    ///
    /// # Errors
    /// There is no such bond, or the cut is too large.
    fn entropy(&self, bond: usize) -> Result<f64, ChainError>;

    /// `⟨ψ|ψ⟩`.
    fn norm_squared(&self) -> f64;

    /// The correlation length in sites, of states of infinite chains.
    ///
    /// # Errors
    /// The chain is finite.
    fn correlation_length(&self) -> Result<f64, ChainError> {
        Err(ChainError::value(
            "an observable",
            "`correlation-length`",
            "only an infinite chain has one: use --engine infinite",
        ))
    }

    /// The energy: the sum over all bonds; of an infinite chain, that of a site.
    ///
    /// # Errors
    /// As [`Measure::expectation`].
    fn energy(&self, h: &Hamiltonian, boundary: Boundary) -> Result<f64, ChainError> {
        let sites = self.sites();
        let mut sum = 0.0;
        for bond in 0..boundary.bonds(sites) {
            let term = h.bond_term(bond, sites, boundary);
            sum += self.expectation(&[bond, (bond + 1) % sites], &term)?.re;
        }
        Ok(sum)
    }
}

impl<T: Real> Measure for StateVector<T> {
    fn sites(&self) -> usize {
        StateVector::sites(self)
    }

    fn expectation(&self, sites: &[usize], operator: &Matrix) -> Result<c64, ChainError> {
        let rho = self.reduced(sites)?;
        if operator.shape() != rho.shape() {
            return Err(ChainError::value(
                "the dimension of an operator",
                operator.nrows(),
                format!("expected {} for {} sites", rho.nrows(), sites.len()),
            ));
        }
        Ok(trace(&(operator * &rho)) / trace(&rho).re)
    }

    fn entropy(&self, bond: usize) -> Result<f64, ChainError> {
        StateVector::entropy(self, bond)
    }

    fn norm_squared(&self) -> f64 {
        StateVector::norm_squared(self)
    }
}

impl Measure for Stabilizer {
    fn sites(&self) -> usize {
        Stabilizer::sites(self)
    }

    fn expectation(&self, sites: &[usize], operator: &Matrix) -> Result<c64, ChainError> {
        let count = sites.len();
        let distinct = sites
            .iter()
            .enumerate()
            .all(|(i, s)| *s < Stabilizer::sites(self) && !sites[..i].contains(s));
        if !distinct || !(1..=2).contains(&count) || operator.nrows() != 1 << count {
            return Err(ChainError::value(
                "an operator",
                format!("{} rows on sites {sites:?}", operator.nrows()),
                format!(
                    "expected one on one or two different of {} qubits",
                    Stabilizer::sites(self)
                ),
            ));
        }
        let mut sum = c64::new(0.0, 0.0);
        for p in 0..1_u8 << (2 * count) {
            let bits: Vec<u8> = if count == 2 {
                vec![p >> 2, p & 3]
            } else {
                vec![p]
            };
            let product = bits
                .iter()
                .map(|&b| Pauli(b).matrix())
                .reduce(|a, b| kron(&a, &b));
            let Some(product) = product else { continue };
            let coefficient = trace(&(&product * operator)) / f64::from(1_u32 << count);
            if coefficient.norm() > 0.0 {
                let string: Vec<(usize, Pauli)> = sites
                    .iter()
                    .copied()
                    .zip(bits.iter().map(|&b| Pauli(b)))
                    .filter(|(_, p)| p.0 > 0)
                    .collect();
                sum += coefficient * f64::from(Stabilizer::expectation(self, &string));
            }
        }
        Ok(sum)
    }

    fn entropy(&self, bond: usize) -> Result<f64, ChainError> {
        Ok(self.entropy_bits(bond)? as f64 * std::f64::consts::LN_2)
    }

    fn norm_squared(&self) -> f64 {
        1.0
    }
}

/// One figure to be measured, under the name that it was asked for by.
#[derive(Clone, Debug)]
pub struct Observable {
    /// Its name: `X:39`, `ZZ:3-7`, `entropy:39`, `energy`.
    pub name: String,
    /// What was asked for without the place: `X`.
    pub what: String,
    /// The site or bond; the first one of two.
    pub place: Option<usize>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Operator { sites: Vec<usize>, matrix: Matrix },
    Entropy(usize),
    Energy,
    CorrelationLength,
}

impl Observable {
    /// Reads a list such as `X:39,ZZ:39,entropy:39`: an expression of an operator and its site, of two neighbouring ones and
    /// their bond, or of two and both sites (`ZZ:3-7`); the entropy of a bond in nats; `energy`; `correlation-length`. `*` is every site or bond.
    ///
    /// # Errors
    /// Something cannot be read, or there is no such place.
    pub fn parse_list(
        text: &str,
        site: Site,
        sites: usize,
        boundary: Boundary,
    ) -> Result<Vec<Self>, ChainError> {
        let mut out: Vec<Self> = Vec::new();
        for item in split_at_commas(text) {
            let item = item.trim();
            if item.is_empty() {
                continue;
            }
            for observable in Self::parse(item, site, sites, boundary)? {
                if out.iter().all(|other| other.name != observable.name) {
                    out.push(observable);
                }
            }
        }
        Ok(out)
    }

    fn parse(
        item: &str,
        site: Site,
        sites: usize,
        boundary: Boundary,
    ) -> Result<Vec<Self>, ChainError> {
        let bad =
            |expected: String| ChainError::value("an observable", format!("`{item}`"), expected);
        if item == "energy" {
            return Ok(vec![Self {
                name: item.to_owned(),
                what: item.to_owned(),
                place: None,
                kind: Kind::Energy,
            }]);
        }
        if item == "correlation-length" {
            return Ok(vec![Self {
                name: item.to_owned(),
                what: item.to_owned(),
                place: None,
                kind: Kind::CorrelationLength,
            }]);
        }
        let Some((what, place)) = item.rsplit_once(':') else {
            return Err(bad("expected an operator and its place, as X:3, ZZ:3 (bond 3), ZZ:3-7, entropy:3, X:* or energy".to_owned()));
        };
        let (what, place) = (what.trim(), place.trim());
        let bonds = boundary.bonds(sites);
        let number = |text: &str, end: usize, name: &str| {
            let number: Option<usize> = text.trim().parse().ok().filter(|&n| n < end);
            number.ok_or_else(|| {
                bad(format!(
                    "expected a {name} from 0 to {}",
                    end.saturating_sub(1)
                ))
            })
        };
        let places = |end: usize, name: &str| -> Result<Vec<usize>, ChainError> {
            if place == "*" {
                Ok((0..end).collect())
            } else {
                Ok(vec![number(place, end, name)?])
            }
        };
        let named = |at: usize, kind: Kind| Self {
            name: format!("{what}:{at}"),
            what: what.to_owned(),
            place: Some(at),
            kind,
        };
        if what == "entropy" {
            // A cut of an open chain; on a ring it would be two.
            let end = sites.saturating_sub(1);
            return Ok(places(end, "bond")?
                .into_iter()
                .map(|at| named(at, Kind::Entropy(at)))
                .collect());
        }
        let local = parse_operator(what, site)?;
        let d = site.dimension();
        if let Some(matrix) = local.one_site(d) {
            let one = |at| {
                named(
                    at,
                    Kind::Operator {
                        sites: vec![at],
                        matrix: matrix.clone(),
                    },
                )
            };
            return Ok(places(sites, "site")?.into_iter().map(one).collect());
        }
        let matrix = local.bond(d);
        if let Some((i, j)) = place.split_once('-') {
            let (i, j) = (number(i, sites, "site")?, number(j, sites, "site")?);
            if i == j {
                return Err(bad("expected two different sites".to_owned()));
            }
            let kind = Kind::Operator {
                sites: vec![i, j],
                matrix,
            };
            return Ok(vec![Self {
                name: format!("{what}:{i}-{j}"),
                what: what.to_owned(),
                place: Some(i),
                kind,
            }]);
        }
        let two = |at: usize| {
            named(
                at,
                Kind::Operator {
                    sites: vec![at, (at + 1) % sites],
                    matrix: matrix.clone(),
                },
            )
        };
        Ok(places(bonds, "bond")?.into_iter().map(two).collect())
    }

    /// Whether it is the energy.
    pub fn is_energy(&self) -> bool {
        matches!(self.kind, Kind::Energy)
    }

    /// Measures it; of an operator that is not Hermitian, the real part. The energy is `None` without a Hamiltonian.
    ///
    /// # Errors
    /// The cut is too large.
    pub fn measure(
        &self,
        state: &impl Measure,
        h: Option<(&Hamiltonian, Boundary)>,
    ) -> Result<Option<f64>, ChainError> {
        Ok(match (&self.kind, h) {
            (Kind::Operator { sites, matrix }, _) => Some(state.expectation(sites, matrix)?.re),
            (Kind::Entropy(bond), _) => Some(state.entropy(*bond)?),
            (Kind::CorrelationLength, _) => Some(state.correlation_length()?),
            (Kind::Energy, Some((h, boundary))) => Some(state.energy(h, boundary)?),
            (Kind::Energy, None) => None,
        })
    }
}

/// Pieces between commas that are in no parentheses.
fn split_at_commas(text: &str) -> Vec<&str> {
    let (mut depth, mut start) = (0_i32, 0);
    let mut out = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth <= 0 => {
                out.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}
