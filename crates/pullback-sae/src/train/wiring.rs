//! Which sites of a feed a dictionary reads, and which it reconstructs.

use pullback_activations::{Feed, Piece};
use pullback_artifact::Manifest;
use serde::{Deserialize, Serialize};

use crate::SaeError;

/// What a dictionary reads and what it reconstructs; sites by their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "shape")]
pub enum Wiring {
    /// Both are the activations of one site.
    Autoencoder {
        /// The site; without, the only one that there is.
        site: Option<String>,
    },
    /// It reads one site and reconstructs another, as the input and the output of an MLP (arXiv 2406.11944).
    Transcoder {
        /// What is read.
        from: String,
        /// What is reconstructed.
        to: String,
        /// Whether there is a linear way past the features (arXiv 2501.18823).
        skip: bool,
    },
    /// It reads and reconstructs several sites together, side by side (Lindsey et al., October 2024).
    Crosscoder {
        /// The sites.
        sites: Vec<String>,
    },
}

impl Default for Wiring {
    fn default() -> Self {
        Self::Autoencoder { site: None }
    }
}

impl Wiring {
    /// What a dictionary was trained to read and to reconstruct; the manifest's site, where its settings name none.
    pub fn of(manifest: &Manifest) -> Self {
        let wiring = manifest
            .config
            .get("train")
            .and_then(|train| train.get("wiring"));
        match wiring.map(|wiring| serde_json::from_value::<Self>(wiring.clone())) {
            Some(Ok(wiring)) if !wiring.inputs().is_empty() => wiring,
            _ => Self::Autoencoder {
                site: manifest.site.clone(),
            },
        }
    }

    /// The sites that are read.
    pub fn inputs(&self) -> Vec<&str> {
        match self {
            Self::Autoencoder { site } => site.iter().map(String::as_str).collect(),
            Self::Transcoder { from, .. } => vec![from],
            Self::Crosscoder { sites } => sites.iter().map(String::as_str).collect(),
        }
    }

    /// The sites that are reconstructed.
    pub fn outputs(&self) -> Vec<&str> {
        match self {
            Self::Transcoder { to, .. } => vec![to],
            _ => self.inputs(),
        }
    }

    /// Whether what is reconstructed is what is read.
    pub(crate) fn is_same(&self) -> bool {
        !matches!(self, Self::Transcoder { .. })
    }

    /// Whether the decoder bias is taken from the input: that of an autoencoder only, whose input it approximates.
    pub(crate) fn is_tied(&self) -> bool {
        matches!(self, Self::Autoencoder { .. })
    }

    pub(crate) fn has_skip(&self) -> bool {
        matches!(self, Self::Transcoder { skip: true, .. })
    }

    /// The same with the name of the only site, where none is given, and its sites' places in the feed.
    ///
    /// # Errors
    /// A site is not in the feed; none is named and there are several; a crosscoder has fewer than two.
    pub(crate) fn resolve(&self, feed: &dyn Feed) -> Result<(Self, Wires), SaeError> {
        let names = || {
            let names: Vec<&str> = feed.sites().iter().map(|site| site.name.as_str()).collect();
            names.join(", ")
        };
        let named = match self {
            Self::Autoencoder { site: None } => match feed.sites() {
                [only] => Self::Autoencoder {
                    site: Some(only.name.clone()),
                },
                _ => {
                    return Err(SaeError::Option(format!(
                        "there are activations of several sites: name one of {}",
                        names()
                    )));
                }
            },
            Self::Crosscoder { sites } if sites.len() < 2 => {
                return Err(SaeError::Option(format!(
                    "a crosscoder needs at least two sites, of {}",
                    names()
                )));
            }
            other => other.clone(),
        };
        let places = |sites: Vec<&str>| -> Result<Vec<Wire>, SaeError> {
            let mut places: Vec<Wire> = Vec::with_capacity(sites.len());
            for name in sites {
                let place = feed.sites().iter().position(|site| site.name == name);
                let place = place.ok_or_else(|| {
                    SaeError::Option(format!(
                        "there are no activations at {name}, only at {}",
                        names()
                    ))
                })?;
                if places.iter().any(|wire| wire.place == place) {
                    return Err(SaeError::Option(format!("{name} is given more than once")));
                }
                places.push(Wire {
                    place,
                    d: feed.sites()[place].d,
                });
            }
            Ok(places)
        };
        let wires = Wires {
            inputs: places(named.inputs())?,
            outputs: places(named.outputs())?,
        };
        Ok((named, wires))
    }
}

/// A site's place in the feed, and its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wire {
    pub(crate) place: usize,
    pub(crate) d: usize,
}

/// Places in the feed of what is read and what is reconstructed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wires {
    pub(crate) inputs: Vec<Wire>,
    pub(crate) outputs: Vec<Wire>,
}

impl Wires {
    /// Width of what is read.
    pub(crate) fn d(&self) -> usize {
        self.inputs.iter().map(|wire| wire.d).sum()
    }

    /// Width of what is reconstructed.
    pub(crate) fn d_out(&self) -> usize {
        self.outputs.iter().map(|wire| wire.d).sum()
    }
}

/// Rows of some sites side by side, `[rows, Σ d]`.
pub(crate) fn joined(piece: &Piece, wires: &[Wire], rows: usize) -> Vec<f32> {
    if let [only] = wires {
        return piece.sites[only.place][..rows * only.d].to_vec();
    }
    let d: usize = wires.iter().map(|wire| wire.d).sum();
    let mut out = Vec::with_capacity(rows * d);
    for row in 0..rows {
        for wire in wires {
            out.extend_from_slice(&piece.sites[wire.place][row * wire.d..(row + 1) * wire.d]);
        }
    }
    out
}
