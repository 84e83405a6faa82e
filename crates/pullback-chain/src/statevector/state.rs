//! The amplitudes.

use pullback_tensor::c64;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::dense::Matrix;
use crate::error::ChainError;

use super::real::Real;

/// Single or double.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// `f32`
    Single,
    /// `f64`
    #[default]
    Double,
}

/// Partial sums are over so many amplitudes, whatever the threads, so that they do not hang on their number.
const PART: usize = 1 << 14;

/// A pure state of a chain; site 0 is the slowest index.
#[derive(Clone, Debug)]
pub struct StateVector<T> {
    dimension: usize,
    sites: usize,
    re: Vec<T>,
    im: Vec<T>,
}

impl<T: Real> StateVector<T> {
    /// The number of amplitudes, where the state fits into the memory that is free.
    ///
    /// # Errors
    /// It does not, or there are no sites.
    pub fn check_size(dimension: usize, sites: usize) -> Result<usize, ChainError> {
        if sites == 0 || dimension < 2 {
            return Err(ChainError::value(
                "the number of sites",
                sites,
                "expected 1 or more, of dimension 2 or more",
            ));
        }
        let bits = sites as f64 * (dimension as f64).log2();
        let bytes = bits.exp2() * 2.0 * size_of::<T>() as f64;
        let free = free_memory();
        if bits > 60.0 || bytes > free {
            return Err(ChainError::Memory {
                sites,
                dimension,
                needed: gigabytes(bytes),
                available: gigabytes(free),
            });
        }
        Ok(dimension.pow(sites as u32))
    }

    /// A product of one state a site, each of `dimension` amplitudes.
    ///
    /// # Errors
    /// The state does not fit into memory, or a site's state has another dimension.
    pub fn product(dimension: usize, locals: &[Vec<c64>]) -> Result<Self, ChainError> {
        let size = Self::check_size(dimension, locals.len())?;
        if let Some(local) = locals.iter().find(|local| local.len() != dimension) {
            return Err(ChainError::value(
                "the dimension of a site's state",
                local.len(),
                format!("expected {dimension}"),
            ));
        }
        // From the right, in double precision as long as it is short.
        let mut re = vec![T::of(0.0); size];
        let mut im = vec![T::of(0.0); size];
        let half = locals.len() / 2;
        let (left, right) = (amplitudes(&locals[..half]), amplitudes(&locals[half..]));
        re.par_chunks_mut(right.len())
            .zip(im.par_chunks_mut(right.len()))
            .zip(&left)
            .for_each(|((re, im), l)| {
                for ((re, im), r) in re.iter_mut().zip(im).zip(&right) {
                    let x = l * r;
                    *re = T::of(x.re);
                    *im = T::of(x.im);
                }
            });
        Ok(Self {
            dimension,
            sites: locals.len(),
            re,
            im,
        })
    }

    /// From real and imaginary parts.
    ///
    /// # Errors
    /// Their length is not `dimension^sites`.
    pub fn from_parts(
        dimension: usize,
        sites: usize,
        re: Vec<T>,
        im: Vec<T>,
    ) -> Result<Self, ChainError> {
        let size = Self::check_size(dimension, sites)?;
        if re.len() != size || im.len() != size {
            return Err(ChainError::value(
                "the number of amplitudes",
                format!("{} and {}", re.len(), im.len()),
                format!("expected {size} for {sites} sites of dimension {dimension}"),
            ));
        }
        Ok(Self {
            dimension,
            sites,
            re,
            im,
        })
    }

    /// States of a site.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Sites of the chain.
    pub fn sites(&self) -> usize {
        self.sites
    }

    /// Real and imaginary parts.
    pub fn parts(&self) -> (&[T], &[T]) {
        (&self.re, &self.im)
    }

    pub(super) fn parts_mut(&mut self) -> (&mut [T], &mut [T]) {
        (&mut self.re, &mut self.im)
    }

    /// An amplitude.
    pub fn amplitude(&self, index: usize) -> c64 {
        c64::new(self.re[index].f64(), self.im[index].f64())
    }

    /// `⟨ψ|ψ⟩`.
    pub fn norm_squared(&self) -> f64 {
        self.inner(self).re
    }

    /// `⟨self|other⟩`.
    ///
    /// # Panics
    /// The states are of different chains.
    pub fn inner(&self, other: &Self) -> c64 {
        assert_eq!(
            (self.sites, self.dimension),
            (other.sites, other.dimension),
            "states of one kind of chain"
        );
        let parts: Vec<c64> = self
            .re
            .par_chunks(PART)
            .zip(self.im.par_chunks(PART))
            .zip(other.re.par_chunks(PART).zip(other.im.par_chunks(PART)))
            .map(|((a, b), (x, y))| {
                let mut sum = c64::new(0.0, 0.0);
                for ((a, b), (x, y)) in a.iter().zip(b).zip(x.iter().zip(y)) {
                    sum += c64::new(a.f64(), -b.f64()) * c64::new(x.f64(), y.f64());
                }
                sum
            })
            .collect();
        parts.iter().sum()
    }

    /// `|⟨self|other⟩|²`, for normalised states.
    ///
    /// # Panics
    /// The states are of different chains.
    pub fn fidelity(&self, other: &Self) -> f64 {
        self.inner(other).norm_sqr()
    }

    /// Replaces the state by `a` on one site, an operator that need not be unitary.
    ///
    /// # Panics
    /// There is no such site, or the operator has another dimension.
    pub fn apply_to_site(&mut self, site: usize, a: &Matrix) {
        let d = self.dimension;
        assert!(
            site < self.sites && a.shape() == (d, d),
            "an operator of a site of the chain"
        );
        let inner = d.pow((self.sites - site - 1) as u32);
        let mut re = vec![T::of(0.0); d];
        let mut im = vec![T::of(0.0); d];
        let whole = d * inner;
        for (x, y) in self
            .re
            .chunks_exact_mut(whole)
            .zip(self.im.chunks_exact_mut(whole))
        {
            for k in 0..inner {
                for i in 0..d {
                    let (mut p, mut q) = (T::of(0.0), T::of(0.0));
                    for j in 0..d {
                        let (u, v) = (T::of(a[(i, j)].re), T::of(a[(i, j)].im));
                        let (s, t) = (x[j * inner + k], y[j * inner + k]);
                        p += u * s - v * t;
                        q += u * t + v * s;
                    }
                    re[i] = p;
                    im[i] = q;
                }
                for i in 0..d {
                    x[i * inner + k] = re[i];
                    y[i * inner + k] = im[i];
                }
            }
        }
    }
}

/// The amplitudes of a product state.
fn amplitudes(locals: &[Vec<c64>]) -> Vec<c64> {
    let mut out = vec![c64::new(1.0, 0.0)];
    for local in locals {
        out = out
            .iter()
            .flat_map(|a| local.iter().map(move |b| a * b))
            .collect();
    }
    out
}

/// Memory that can be had, in bytes; half of what an address can hold where the system does not say.
pub(crate) fn free_memory() -> f64 {
    let told = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find(|line| line.starts_with("MemAvailable:"))?;
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        });
    told.map_or(usize::MAX as f64 / 2.0, |kilobytes| kilobytes * 1024.0)
}

fn gigabytes(bytes: f64) -> String {
    format!("{:.3} GB", bytes / 1e9)
}
